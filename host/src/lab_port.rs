//! The wire between a no43 inside the lab and the lab around it: JSON lines over a virtio-serial port.
//!
//! The inner side asks for what only the outside can do: a picture of a card's own output, a card pulled out, an error
//! injected. Every request carries a number; the answer carries it back. Lines that are no message are skipped, so that a
//! half line left by an earlier run harms nothing.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Serialize};

use crate::PciAddress;

/// The port's name; udev makes `/dev/virtio-ports/org.no43.lab` of it.
pub const PORT_NAME: &str = "org.no43.lab";

/// Raised when a message changes its meaning.
pub const VERSION: u32 = 1;

/// Longer lines are thrown away: nothing that either side says comes near it.
pub const LONGEST_LINE: usize = 64 << 10;

/// What the inner side may ask. Addresses are those of the lab host, as its own lspci shows them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum Request {
    /// Who is there?
    Hello {
        /// The asker's [`VERSION`].
        version: u32,
    },
    /// Take a picture of a card's own output.
    Capture {
        /// Any function of the card.
        address: PciAddress,
        /// Name of the PNG file to be made in the shared evidence directory; a bare name, see [`is_bare_name`].
        file: String,
    },
    /// Pull the card out of the running machine.
    CutCard {
        /// Any function of the card.
        address: PciAddress,
    },
    /// Let the port above the card report an error.
    InjectAer {
        /// Any function of the card.
        address: PciAddress,
        /// Whether the link is lost with it.
        fatal: bool,
    },
}

/// What the lab answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "kebab-case")]
pub enum Reply {
    /// The lab is there.
    Hello {
        /// The lab's [`VERSION`].
        version: u32,
        /// The lab profile's name.
        profile: String,
        /// Where it put cards.
        cards: Vec<PciAddress>,
    },
    /// The picture was taken.
    Captured {
        /// The file in the shared evidence directory.
        file: String,
        /// Pixels.
        width: u32,
        /// Pixels.
        height: u32,
        /// Whether this is only the emulator's own "has not initialized the display" screen: then the card shows nothing.
        placeholder: bool,
    },
    /// Done, without anything to tell.
    Done,
    /// It could not be done.
    Failed {
        /// Why.
        why: String,
    },
}

/// A message with its number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Numbered<T> {
    /// The asker counts; the answer repeats it.
    pub id: u64,
    /// The message.
    pub body: T,
}

/// Why the lab could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum LabPortError {
    /// The port is there and does not open.
    #[error("the lab's port {path} does not open: {source}")]
    Open {
        /// The device node.
        path: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The port broke while it was used.
    #[error("the lab's port broke: {0}")]
    Broken(#[from] io::Error),
    /// No answer came in time.
    #[error("the lab did not answer '{asked}' within {} s ({})", limit.as_secs(), seen.as_deref().map_or("it said nothing".into(), |line| format!("the last thing it said was {line:?}")))]
    TimedOut {
        /// The request.
        asked: String,
        /// How long was waited.
        limit: Duration,
        /// The last line that came and was no answer to it.
        seen: Option<String>,
    },
    /// The lab could not do it.
    #[error("the lab could not do '{asked}': {why}")]
    Failed {
        /// The request.
        asked: String,
        /// Why.
        why: String,
    },
}

/// Whether a file name is safe to use inside a directory: no path, nothing hidden, nothing odd.
pub fn is_bare_name(name: &str) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    (1..=100).contains(&name.len()) && !name.starts_with('.') && name.chars().all(good)
}

/// One message as a line with its end.
pub fn encode<T: Serialize>(id: u64, body: &T) -> String {
    #[derive(Serialize)]
    struct Line<'a, T> {
        id: u64,
        body: &'a T,
    }
    // plain enums of text and numbers always have a JSON form
    let mut line = serde_json::to_string(&Line { id, body }).unwrap_or_default();
    line.push('\n');
    line
}

/// Cuts a stream of bytes into lines and reads those that are messages. Bounded, and never fails.
#[derive(Debug, Default)]
pub struct LineReader {
    line: Vec<u8>,
    /// A line that grew too long is thrown away up to its end.
    skipping: bool,
    last_odd: Option<String>,
}

impl LineReader {
    /// Takes bytes as they come and returns the messages that they complete.
    pub fn feed<T: for<'de> Deserialize<'de>>(&mut self, bytes: &[u8]) -> Vec<Numbered<T>> {
        let mut messages = Vec::new();
        for byte in bytes {
            match byte {
                b'\n' => {
                    let line = std::mem::take(&mut self.line);
                    if !std::mem::take(&mut self.skipping) {
                        messages.extend(self.read(&line));
                    }
                }
                _ if self.line.len() >= LONGEST_LINE => {
                    self.line.clear();
                    self.skipping = true;
                }
                _ if self.skipping => {}
                byte => self.line.push(*byte),
            }
        }
        messages
    }

    /// The last line that was no message, for error texts.
    pub fn last_odd(&self) -> Option<&str> {
        self.last_odd.as_deref()
    }

    fn read<T: for<'de> Deserialize<'de>>(&mut self, line: &[u8]) -> Option<Numbered<T>> {
        let message = serde_json::from_slice(line).ok();
        if message.is_none() && !line.is_empty() {
            self.last_odd = Some(String::from_utf8_lossy(line).chars().take(200).collect());
        }
        message
    }
}

/// The inner side's end of the port.
#[derive(Debug)]
pub struct Client {
    port: Result<File, (String, io::ErrorKind, String)>,
    reader: LineReader,
    next_id: u64,
}

impl Client {
    /// Opens the port under a `/dev`. `None` where there is none: this is no lab.
    ///
    /// A port that is there and does not open (not permitted, in use by another) is told by the first request.
    pub fn open(dev: &Path) -> Option<Self> {
        let path = dev.join("virtio-ports").join(PORT_NAME);
        if !path.exists() {
            return None;
        }
        let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::CLOEXEC;
        let port = rustix::fs::open(&path, flags, rustix::fs::Mode::empty())
            .map(File::from)
            .map_err(|e| (path.display().to_string(), io::Error::from(e).kind(), e.to_string()));
        Some(Client { port, ..Client::over_nothing() })
    }

    /// Over a stream that is already open and does not block, for tests and for other carriers.
    pub fn over(stream: File) -> Self {
        Client { port: Ok(stream), ..Client::over_nothing() }
    }

    fn over_nothing() -> Self {
        let port = Err((String::new(), io::ErrorKind::NotFound, String::new()));
        // numbers differ between runs, so that an answer to a run that was killed is not taken for ours
        let next_id = u64::from(std::process::id()) << 20;
        Client { port, reader: LineReader::default(), next_id }
    }

    /// Asks, and waits for the answer at most for `limit`. `Reply::Failed` comes back as an error.
    pub fn ask(&mut self, request: &Request, limit: Duration) -> Result<Reply, LabPortError> {
        let asked = serde_json::to_string(request).unwrap_or_default();
        let port = self.port.as_mut().map_err(|(path, kind, why)| LabPortError::Open {
            path: path.clone(),
            source: io::Error::new(*kind, why.clone()),
        })?;
        let deadline = Instant::now() + limit;
        let id = self.next_id;
        self.next_id += 1;
        let timed_out = |reader: &LineReader| LabPortError::TimedOut {
            asked: asked.clone(),
            limit,
            seen: reader.last_odd().map(str::to_string),
        };
        if !write_all(port, encode(id, request).as_bytes(), deadline)? {
            return Err(timed_out(&self.reader));
        }
        let mut chunk = [0u8; 4096];
        loop {
            let count = match read_some(port, &mut chunk, deadline)? {
                Some(count) => count,
                None => return Err(timed_out(&self.reader)),
            };
            // answers to earlier requests that were given up on are not ours
            let answer =
                self.reader.feed::<Reply>(&chunk[..count]).into_iter().find(|message| message.id == id);
            match answer.map(|message| message.body) {
                None => {}
                Some(Reply::Failed { why }) => return Err(LabPortError::Failed { asked, why }),
                Some(reply) => return Ok(reply),
            }
        }
    }
}

/// False when the deadline came first.
fn wait(port: &File, flags: PollFlags, deadline: Instant) -> io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(port, flags)], Some(&timeout)) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// A port whose other side is not there yet hangs up or reads as empty; it may come back before the deadline.
fn pause(deadline: Instant) -> bool {
    std::thread::sleep(Duration::from_millis(20));
    Instant::now() < deadline
}

fn write_all(mut port: &File, mut bytes: &[u8], deadline: Instant) -> io::Result<bool> {
    while !bytes.is_empty() {
        if !wait(port, PollFlags::OUT, deadline)? {
            return Ok(false);
        }
        match port.write(bytes) {
            Ok(0) if !pause(deadline) => return Ok(false),
            Ok(count) => bytes = &bytes[count..],
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                if !pause(deadline) {
                    return Ok(false);
                }
            }
            Err(e) => return Err(e),
        }
    }
    Ok(true)
}

fn read_some(mut port: &File, chunk: &mut [u8], deadline: Instant) -> io::Result<Option<usize>> {
    loop {
        if !wait(port, PollFlags::IN, deadline)? {
            return Ok(None);
        }
        match port.read(chunk) {
            Ok(0) if !pause(deadline) => return Ok(None),
            Ok(0) => {}
            Ok(count) => return Ok(Some(count)),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                if !pause(deadline) {
                    return Ok(None);
                }
            }
            Err(e) => return Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::{BufRead, BufReader};
    use std::os::unix::net::UnixStream;

    fn pair() -> (Client, UnixStream) {
        let (near, far) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        (Client::over(File::from(std::os::fd::OwnedFd::from(near))), far)
    }

    fn capture() -> Request {
        Request::Capture { address: "01:00.0".parse().unwrap(), file: "card-1.png".into() }
    }

    #[test]
    fn the_wire_looks_like_this() {
        insta::assert_snapshot!(encode(7, &capture()), @r#"{"id":7,"body":{"do":"capture","address":"0000:01:00.0","file":"card-1.png"}}"#);
        insta::assert_snapshot!(encode(7, &Reply::Failed { why: "no such card".into() }), @r#"{"id":7,"body":{"reply":"failed","why":"no such card"}}"#);
    }

    #[test]
    fn noise_and_late_answers_are_not_taken_for_the_answer() {
        let (mut client, far) = pair();
        let lab = std::thread::spawn(move || {
            let mut lines = BufReader::new(far.try_clone().unwrap());
            let mut line = String::new();
            lines.read_line(&mut line).unwrap();
            let asked: Numbered<Request> = serde_json::from_str(&line).unwrap();
            let mut far = far;
            far.write_all(b"half a li\xff\n{\"id\":").unwrap();
            far.write_all(b"1}\n").unwrap();
            far.write_all(encode(asked.id - 1, &Reply::Failed { why: "late".into() }).as_bytes()).unwrap();
            let answer =
                Reply::Captured { file: "card-1.png".into(), width: 1280, height: 800, placeholder: false };
            for byte in encode(asked.id, &answer).as_bytes() {
                far.write_all(&[*byte]).unwrap();
            }
        });
        let answer = client.ask(&capture(), Duration::from_secs(20)).unwrap();
        assert!(matches!(answer, Reply::Captured { width: 1280, .. }));
        lab.join().unwrap();
    }

    #[test]
    fn a_silent_lab_is_given_up_on_with_its_last_words() {
        let (mut client, mut far) = pair();
        far.write_all(b"login: \n").unwrap();
        let error = client.ask(&capture(), Duration::from_millis(60)).unwrap_err().to_string();
        assert!(error.contains("\"do\":\"capture\"") && error.contains("login:"), "{error}");
    }

    #[test]
    fn a_lab_that_cannot_is_an_error() {
        let (mut client, far) = pair();
        let lab = std::thread::spawn(move || {
            let mut line = String::new();
            BufReader::new(far.try_clone().unwrap()).read_line(&mut line).unwrap();
            let asked: Numbered<Request> = serde_json::from_str(&line).unwrap();
            (&far)
                .write_all(encode(asked.id, &Reply::Failed { why: "no such card".into() }).as_bytes())
                .unwrap();
        });
        let error = client.ask(&capture(), Duration::from_secs(20)).unwrap_err();
        assert!(matches!(error, LabPortError::Failed { ref why, .. } if why == "no such card"), "{error}");
        lab.join().unwrap();
    }

    #[test]
    fn no_port_is_no_lab_and_a_shut_port_says_so() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Client::open(dir.path()).is_none());
        std::fs::create_dir_all(dir.path().join("virtio-ports").join(PORT_NAME)).unwrap();
        let mut client = Client::open(dir.path()).unwrap();
        let error = client.ask(&Request::Hello { version: VERSION }, Duration::from_secs(1)).unwrap_err();
        assert!(matches!(error, LabPortError::Open { .. }), "{error}");
    }

    #[test]
    fn bare_names_only() {
        assert!(is_bare_name("card-1.png"));
        for bad in ["", ".", "..", "../x", "a/b", ".hidden", "a b", "a\0", "é"] {
            assert!(!is_bare_name(bad), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived_and_messages_between_them_are_found(
            noise in proptest::collection::vec(any::<u8>(), 0..300),
            id in any::<u64>(),
            cut in 1usize..50,
        ) {
            let mut stream = noise.clone();
            stream.push(b'\n');
            stream.extend(encode(id, &capture()).into_bytes());
            let mut reader = LineReader::default();
            let found: Vec<Numbered<Request>> = stream.chunks(cut).flat_map(|chunk| reader.feed(chunk)).collect();
            prop_assert_eq!(found.last(), Some(&Numbered { id, body: capture() }));
        }

        #[test]
        fn endless_lines_do_not_fill_memory(length in 0usize..200_000) {
            let mut reader = LineReader::default();
            let none: Vec<Numbered<Reply>> = reader.feed(&vec![b'x'; length]);
            prop_assert!(none.is_empty() && reader.line.len() <= LONGEST_LINE);
            let mut rest = vec![b'\n'];
            rest.extend(encode(1, &Reply::Done).into_bytes());
            prop_assert_eq!(reader.feed::<Reply>(&rest).len(), 1);
        }
    }
}
