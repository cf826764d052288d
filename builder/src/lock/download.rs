//! Downloads of inputs by curl, which knows this host's certificates and proxies: resumed where they were cut off.
//!
//! A part that was fetched stays in the folder of inputs under a name made of the URL, with what the server called that
//! version (`ETag` or date). A later try asks for the rest of exactly that version; any other answer starts anew. The URL
//! reaches curl by its standard input: a signed address is a secret.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Read, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use sha2::{Digest as _, Sha256};

use super::fetch::FetchError;
use super::kind_of;
use crate::key::hex;

/// A server that says nothing for so long is gone.
const STALL_SECONDS: u32 = 60;
const CONNECT_SECONDS: u32 = 30;
/// A download that was cut off after it had brought something is continued so often.
const TRIES: u32 = 5;
const HEADERS_LIMIT: u64 = 64 << 10;
const BUFFER: usize = 1 << 18;

/// How far a download is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress<'a> {
    /// The file's name, as the address ends.
    pub file: &'a str,
    /// Bytes that are here, those of earlier tries included.
    pub done: u64,
    /// Bytes in all, where the server says so.
    pub total: Option<u64>,
}

/// Fetches `url` into a file in `folder`, whose path is returned. It is the caller's to move or remove.
pub(super) fn download(
    url: &str,
    folder: &Path,
    progress: &dyn Fn(Progress<'_>),
) -> Result<PathBuf, FetchError> {
    let mut part = Part::open(url, folder)?;
    let mut tries = 0;
    loop {
        let before = part.length;
        tries += 1;
        match part.fetch(url, progress) {
            Ok(()) => return Ok(part.path),
            Err(Trouble::Fatal(error)) => return Err(error),
            Err(Trouble::Again) if tries < TRIES => {}
            Err(Trouble::CutOff(_)) if part.length > before && tries < TRIES => {}
            Err(Trouble::Again) => {
                let sentence = format!("failed to fetch {}: its version changes all the time", shown(url));
                return Err(FetchError::Failed(sentence));
            }
            Err(Trouble::CutOff(why)) => {
                let kept = match part.length {
                    0 => String::new(),
                    kept => format!("; {kept} bytes are kept, the next try goes on there"),
                };
                return Err(FetchError::Failed(format!("failed to fetch {}: {why}{kept}", shown(url))));
            }
        }
    }
}

/// Without what may be a secret: user, password, query.
fn shown(url: &str) -> String {
    let plain = url.split(['?', '#']).next().unwrap_or(url);
    match (plain.split_once("://"), plain.rfind('@')) {
        (Some((scheme, _)), Some(at)) if !plain[at..].contains('/') || at > scheme.len() => {
            let host = plain[at + 1..].to_owned();
            let in_authority = !plain[scheme.len() + 3..at].contains('/');
            if in_authority { format!("{scheme}://{host}") } else { plain.to_owned() }
        }
        _ => plain.to_owned(),
    }
}

enum Trouble {
    /// Trying again may help.
    CutOff(String),
    /// The part that was here is of no use, and is thrown away.
    Again,
    Fatal(FetchError),
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Self::Fatal(FetchError::Failed(format!("failed to keep the download: {error}")))
    }
}

/// What of a file is here already.
struct Part {
    path: PathBuf,
    /// Locked, so that two of us do not write into it.
    file: File,
    length: u64,
    /// Beside it: what the server calls this version.
    version_path: PathBuf,
    version: Option<String>,
}

impl Part {
    fn open(url: &str, folder: &Path) -> Result<Self, FetchError> {
        let name = &hex(&Sha256::digest(url))[..32];
        let path = folder.join(format!(".part-{name}"));
        let version_path = folder.join(format!(".part-{name}.version"));
        let failed = |error: io::Error| {
            FetchError::Failed(format!("failed to keep the download in {}: {error}", path.display()))
        };
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(failed)?;
        if file.try_lock().is_err() {
            let sentence = format!("{} is being fetched by another no43; wait for that one", shown(url));
            return Err(FetchError::Failed(sentence));
        }
        let version = fs::read_to_string(&version_path).ok().filter(|text| !text.is_empty());
        let mut length = file.seek(SeekFrom::End(0)).map_err(failed)?;
        if version.is_none() && length > 0 {
            file.set_len(0).map_err(failed)?;
            length = 0;
        }
        Ok(Self { path, file, length, version_path, version })
    }

    fn fetch(&mut self, url: &str, progress: &dyn Fn(Progress<'_>)) -> Result<(), Trouble> {
        let mut curl = Curl::start(url, self.length, self.version.as_deref())?;
        let answer = curl.answer();
        let answer = match answer {
            Ok(Some(answer)) => answer,
            // No answer at all: curl says why.
            Ok(None) => return Err(Trouble::CutOff(curl.end().unwrap_or_else(|| "no answer".to_owned()))),
            Err(error) => return Err(Trouble::CutOff(error.to_string())),
        };
        self.accept(url, &answer)?;
        let total = answer.length.map(|length| self.length + length);
        let file = file_name(url);
        let mut buffer = vec![0; BUFFER];
        loop {
            let got = curl.body.read(&mut buffer).map_err(|error| Trouble::CutOff(error.to_string()))?;
            if got == 0 {
                break;
            }
            if self.length == 0 {
                check_head(url, &answer, &buffer[..got])?;
            }
            self.file.seek(SeekFrom::Start(self.length))?;
            self.file.write_all(&buffer[..got])?;
            self.length += got as u64;
            progress(Progress { file, done: self.length, total });
        }
        if let Some(why) = curl.end() {
            return Err(Trouble::CutOff(why));
        }
        if let Some(total) = total.filter(|total| *total != self.length) {
            return Err(Trouble::CutOff(format!("{} of {total} bytes came", self.length)));
        }
        let _ = fs::remove_file(&self.version_path);
        Ok(())
    }

    /// Decides by the answer's head whether it is the rest, the whole, or nothing that can be used.
    fn accept(&mut self, url: &str, answer: &Answer) -> Result<(), Trouble> {
        let failed = |what: String| format!("failed to fetch {}: {what}", shown(url));
        match answer.status {
            206 if answer.starts_at == Some(self.length) => return Ok(()),
            // The part is as long as the whole, or longer: not to be trusted, so from the start.
            206 | 416 => {
                self.restart(None)?;
                return Err(Trouble::Again);
            }
            200 => {}
            404 | 410 => {
                let sentence = failed(format!("the server has no such file ({})", answer.status));
                return Err(Trouble::Fatal(FetchError::NotThere(sentence)));
            }
            status @ (408 | 429 | 500..) => return Err(Trouble::CutOff(format!("the server says {status}"))),
            status => {
                return Err(Trouble::Fatal(FetchError::Failed(failed(format!("the server says {status}")))));
            }
        }
        self.restart(answer.version.clone())?;
        Ok(())
    }

    fn restart(&mut self, version: Option<String>) -> io::Result<()> {
        self.file.set_len(0)?;
        self.length = 0;
        match &version {
            Some(version) => fs::write(&self.version_path, version)?,
            None => drop(fs::remove_file(&self.version_path)),
        }
        self.version = version;
        Ok(())
    }
}

/// The last part of the address's path.
fn file_name(url: &str) -> &str {
    let path = url.split(['?', '#']).next().unwrap_or(url);
    path.rsplit('/').next().filter(|name| !name.is_empty()).unwrap_or("file")
}

/// A page where a file was expected: sign-in pages and 'not found' texts come with status 200.
fn check_head(url: &str, answer: &Answer, head: &[u8]) -> Result<(), Trouble> {
    let page = kind_of(head).is_some_and(|kind| kind.is("HTML page"));
    if !wants_page(file_name(url)) && (page || answer.page) {
        let what = format!("{} gives an HTML page, not a file", shown(url));
        let fix = "take the address of the file itself, or fetch it by hand and write path = \"…\"";
        return Err(Trouble::Fatal(FetchError::Failed(format!("{what}; {fix}"))));
    }
    Ok(())
}

/// Would a page be right for a file of this name?
pub(super) fn wants_page(name: &str) -> bool {
    let extension = name.rsplit_once('.').map(|(_, extension)| extension.to_ascii_lowercase());
    extension.is_some_and(|extension| ["html", "htm", "xhtml", "xml", "svg"].contains(&extension.as_str()))
}

/// The head of the last answer, behind all redirections.
#[derive(Debug, Default)]
struct Answer {
    status: u16,
    /// Bytes of the body.
    length: Option<u64>,
    /// First byte of a part.
    starts_at: Option<u64>,
    /// A strong `ETag`, else the date of the last change.
    version: Option<String>,
    /// The server says that it is an HTML page.
    page: bool,
}

/// A running curl, whose output is heads and then the body.
struct Curl {
    child: Child,
    body: BufReader<Box<dyn Read>>,
}

impl Curl {
    fn start(url: &str, from: u64, version: Option<&str>) -> Result<Self, Trouble> {
        let fatal = |sentence: String| Trouble::Fatal(FetchError::Failed(sentence));
        let mut command = Command::new("curl");
        // --disable comes first, so that nobody's .curlrc changes the output.
        command.args(["--disable", "--config", "-"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).env("LC_ALL", "C");
        let mut child = command.spawn().map_err(|error| {
            fatal(format!("failed to start curl (package curl), which fetches inputs: {error}"))
        })?;
        let text = config(url, from, version);
        let stdin = child.stdin.take();
        let given = stdin.map_or(Ok(()), |mut stdin| stdin.write_all(text.as_bytes()));
        let stdout = child.stdout.take();
        let body: Box<dyn Read> = match stdout {
            Some(stdout) => Box::new(stdout),
            None => Box::new(io::empty()),
        };
        let curl = Self { child, body: BufReader::with_capacity(BUFFER, body) };
        given.map_err(|error| fatal(format!("failed to tell curl what to fetch: {error}")))?;
        Ok(curl)
    }

    /// The answer's head; `None` if curl ends without one.
    fn answer(&mut self) -> io::Result<Option<Answer>> {
        loop {
            let Some(answer) = read_head(&mut self.body)? else { return Ok(None) };
            // curl passes on the heads of answers that it follows, but not their bodies.
            if !matches!(answer.status, 100..=199 | 301 | 302 | 303 | 307 | 308) {
                return Ok(Some(answer));
            }
        }
    }

    /// Waits for curl; a reason if it did not do its work.
    fn end(&mut self) -> Option<String> {
        let mut said = String::new();
        if let Some(stderr) = self.child.stderr.take() {
            let _ = stderr.take(4096).read_to_string(&mut said);
        }
        match self.child.wait() {
            Ok(status) if status.success() => None,
            Ok(status) if said.trim().is_empty() => Some(format!("curl ended with {status}")),
            Ok(_) => Some(said.trim().trim_start_matches("curl: ").replace('\n', " ")),
            Err(error) => Some(error.to_string()),
        }
    }
}

impl Drop for Curl {
    fn drop(&mut self) {
        // Already ended: both fail, and nothing is left to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One option a line; texts are in quotes.
fn config(url: &str, from: u64, version: Option<&str>) -> String {
    let quoted = |text: &str| {
        let plain: String = text.chars().filter(|c| !c.is_control()).collect();
        format!("\"{}\"", plain.replace('\\', "\\\\").replace('"', "\\\""))
    };
    let mut text = format!(
        "url = {}\nsilent\nshow-error\ninclude\nlocation\ngloboff\nsuppress-connect-headers\nmax-redirs = 10\n\
         proto = \"=http,https\"\nproto-redir = \"=http,https\"\nconnect-timeout = {CONNECT_SECONDS}\n\
         speed-limit = 1\nspeed-time = {STALL_SECONDS}\nuser-agent = \"no43/{}\"\n",
        quoted(url),
        env!("CARGO_PKG_VERSION"),
    );
    if let Some(version) = version.filter(|_| from > 0) {
        text.push_str(&format!("header = \"Range: bytes={from}-\"\n"));
        text.push_str(&format!("header = {}\n", quoted(&format!("If-Range: {version}"))));
    }
    text
}

fn read_head(body: &mut impl io::BufRead) -> io::Result<Option<Answer>> {
    let mut limited = body.take(HEADERS_LIMIT);
    let mut answer = Answer::default();
    let (mut tag, mut date) = (None, None);
    let mut line = Vec::new();
    let mut first = true;
    loop {
        line.clear();
        if limited.read_until(b'\n', &mut line)? == 0 {
            return match limited.limit() {
                0 => Err(io::Error::other("the server's headers do not end")),
                _ => Ok(None),
            };
        }
        let text = String::from_utf8_lossy(&line);
        let text = text.trim();
        if text.is_empty() {
            answer.version = tag.or(date);
            return Ok(Some(answer));
        }
        if first {
            // HTTP/1.1 200 OK
            answer.status = text.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
            first = false;
            continue;
        }
        let Some((name, value)) = text.split_once(':') else { continue };
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "content-length" => answer.length = value.parse().ok(),
            // bytes 100-999/1000
            "content-range" => {
                let range = value.strip_prefix("bytes ").and_then(|range| range.split('-').next());
                answer.starts_at = range.and_then(|start| start.parse().ok());
            }
            // A weak tag (W/) says nothing about bytes.
            "etag" if value.starts_with('"') => tag = Some(value.to_owned()),
            "last-modified" => date = Some(value.to_owned()),
            "content-type" => answer.page = value.to_ascii_lowercase().starts_with("text/html"),
            _ => {}
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
