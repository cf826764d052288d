//! Reading a medium: the few files that matter, found by path and read in place.

use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::path::{Path, PathBuf};

use no43_machine::firmware::signers;

use super::source::{ReadAt, Source};
use super::systems::evaluation_days;
use super::udf::{Entry, Udf, UdfError};
use super::wim::{self, Wim, WimImage};
use super::{Channel, Media, MediaError};
use crate::lock::{KIND_BYTES, kind_of};

/// In this order; only one of them is on a medium.
const INSTALL_FILES: &[&str] = &["sources/install.wim", "sources/install.esd", "sources/install.swm"];
/// Folders with a whole medium below each, on those for two architectures.
const ARCHITECTURE_FOLDERS: &[&str] = &["x64", "x86", "arm64"];
const BOOT_WIM: &str = "sources/boot.wim";
const CHANNEL_FILE: &str = "sources/ei.cfg";
const CHANNEL_LIMIT: u64 = 4096;
/// As firmware of each architecture looks for it on removable media.
const BOOT_MANAGERS: &[(&str, &str)] = &[
    ("amd64", "efi/boot/bootx64.efi"),
    ("arm64", "efi/boot/bootaa64.efi"),
    ("x86", "efi/boot/bootia32.efi"),
];

/// Reads what a Windows installation medium holds.
///
/// # Errors
/// When the file cannot be read, is no UDF disc, installs no Windows, or is damaged.
pub fn inspect(path: &Path) -> Result<Media, MediaError> {
    inspect_counted(path).map(|(media, _)| media)
}

/// The same, with the number of bytes that were read.
///
/// # Errors
/// As [`inspect`].
pub fn inspect_counted(path: &Path) -> Result<(Media, u64), MediaError> {
    let io = |source| MediaError::Io { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(io)?;
    // Seeking also tells the size of a block device: a real disc in a drive.
    let bytes = file.seek(std::io::SeekFrom::End(0)).map_err(io)?;
    let source = Source::new(file, bytes);
    let media = Inspector { path, source: &source, udf: open(path, &source)? }.media()?;
    Ok((media, source.bytes_read()))
}

fn open<'a, S: ReadAt>(path: &Path, source: &'a Source<S>) -> Result<Udf<'a, S>, MediaError> {
    Udf::open(source).map_err(|error| match error {
        UdfError::NotUdf => not_a_disc(path, source),
        error => of_udf(path, error),
    })
}

/// A file without UDF: its first bytes tell what it is instead.
fn not_a_disc<S: ReadAt>(path: &Path, source: &Source<S>) -> MediaError {
    const FETCH: &str = "name the ISO as Microsoft ships it";
    let mut head = vec![0; KIND_BYTES];
    let length = source.read_some(0, &mut head).unwrap_or(0);
    head.truncate(length);
    let (what, fix) = match kind_of(&head) {
        Some(kind) if kind.is("HTML page") => {
            let start = String::from_utf8_lossy(&head[..head.len().min(48)]).into_owned();
            let what = format!("an HTML page ('{}…')", start.escape_debug());
            (what, "the address leads to a page; take the address of the file itself, or fetch it by hand")
        }
        Some(kind) if kind.is("WIM archive") => {
            ("a bare WIM or ESD file".to_owned(), "an ISO is needed, since Setup itself is started from it")
        }
        Some(kind) if kind.is("ISO 9660 image") => {
            let label = kind.label.map(|label| format!(" '{label}'")).unwrap_or_default();
            (format!("an ISO 9660 disc{label} without UDF"), FETCH)
        }
        Some(kind) => (format!("a {}", kind.name), FETCH),
        None if length == 0 => ("an empty file".to_owned(), FETCH),
        None => {
            let start = head[..head.len().min(16)].escape_ascii().to_string();
            (format!("something that begins with '{start}' and has no UDF volume"), FETCH)
        }
    };
    MediaError::NotADisc { path: path.to_owned(), what, fix }
}

fn of_udf(path: &Path, error: UdfError) -> MediaError {
    let path = path.to_owned();
    match error {
        UdfError::Io(source) => MediaError::Io { path, source },
        UdfError::Truncated { what, at, end } => {
            MediaError::Truncated { path, what: format!("its {what}"), needed: at, bytes: end }
        }
        error => MediaError::Damaged { path, why: error.to_string() },
    }
}

/// A medium while its facts are gathered.
struct Inspector<'a, S> {
    path: &'a Path,
    source: &'a Source<S>,
    udf: Udf<'a, S>,
}

impl<S: ReadAt> Inspector<'_, S> {
    fn media(&self) -> Result<Media, MediaError> {
        let (install_file, install) = self.install_file()?;
        let images = self.wim(install_file, &install)?;
        self.all_parts(install_file, images.part)?;
        let mut setup_languages: Vec<String> = Vec::new();
        if let Some(boot) = self.find(BOOT_WIM)? {
            setup_languages =
                self.wim(BOOT_WIM, &boot)?.images.into_iter().flat_map(|i| i.languages).collect();
        }
        setup_languages.sort();
        setup_languages.dedup();
        let channel = channel(&images.images, self.small_file(CHANNEL_FILE, CHANNEL_LIMIT)?.as_deref());
        let evaluation = || images.images.iter().find_map(|i| evaluation_days(i.edition_id.as_deref()?));
        let (architecture, boot_signers) = self.boot_manager(&images.images)?;
        Ok(Media {
            label: self.udf.label.clone(),
            bytes: self.source.bytes,
            architecture,
            channel,
            evaluation_days: evaluation().filter(|_| channel == Channel::Evaluation),
            install_file: install_file.to_owned(),
            esd: images.esd,
            setup_languages,
            boot_signers,
            images: images.images,
        })
    }

    fn path(&self) -> PathBuf {
        self.path.to_owned()
    }

    /// A file that is whole; `None` where there is none of this name.
    fn find(&self, name: &str) -> Result<Option<Entry>, MediaError> {
        let entry = self.udf.find(name).map_err(|error| of_udf(self.path, error))?;
        let Some(entry) = entry.filter(|entry| !entry.directory) else { return Ok(None) };
        if entry.end() > self.source.bytes {
            let (needed, bytes) = (entry.end(), self.source.bytes);
            return Err(MediaError::Truncated { path: self.path(), what: name.to_owned(), needed, bytes });
        }
        Ok(Some(entry))
    }

    fn install_file(&self) -> Result<(&'static str, Entry), MediaError> {
        for name in INSTALL_FILES {
            if let Some(entry) = self.find(name)? {
                return Ok((name, entry));
            }
        }
        let mut found = Vec::new();
        for folder in ARCHITECTURE_FOLDERS {
            for name in INSTALL_FILES {
                let name = format!("{folder}/{name}");
                found.extend(self.find(&name)?.map(|_| name));
            }
        }
        if !found.is_empty() {
            return Err(MediaError::SeveralArchitectures { path: self.path(), found });
        }
        let mut names = self.udf.list("").map_err(|error| of_udf(self.path, error))?;
        names.truncate(8);
        let found = if names.is_empty() { "no files".to_owned() } else { names.join(", ") };
        let label = self.udf.label.escape_debug().to_string();
        Err(MediaError::NotWindows { path: self.path(), label, found: found.escape_debug().to_string() })
    }

    fn wim(&self, name: &str, entry: &Entry) -> Result<Wim, MediaError> {
        wim::read(&mut self.udf.reader(entry), entry.bytes).map_err(|source| MediaError::Wim {
            path: self.path(),
            file: name.to_owned(),
            source,
        })
    }

    /// `install.swm` goes on in `install2.swm`, `install3.swm`, …
    fn all_parts(&self, file: &str, (part, parts): (u16, u16)) -> Result<(), MediaError> {
        let stem = file.trim_end_matches(".swm");
        for number in 2..=parts {
            let missing = format!("{stem}{number}.swm");
            if self.find(&missing)?.is_none() {
                return Err(MediaError::MissingPart {
                    path: self.path(),
                    file: file.to_owned(),
                    part,
                    parts,
                    missing,
                });
            }
        }
        Ok(())
    }

    /// A file's contents, if it is there and not larger than `limit`.
    fn small_file(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>, MediaError> {
        let Some(entry) = self.find(name)?.filter(|entry| entry.bytes <= limit) else { return Ok(None) };
        let mut contents = Vec::new();
        let read = self.udf.reader(&entry).read_to_end(&mut contents);
        read.map_err(|source| MediaError::Io { path: self.path(), source })?;
        Ok(Some(contents))
    }

    /// The architecture of the images, and who signed its boot manager.
    fn boot_manager(&self, images: &[WimImage]) -> Result<(String, Vec<String>), MediaError> {
        let of_images = images.iter().find_map(|image| image.arch.clone());
        for (architecture, name) in BOOT_MANAGERS {
            if of_images.as_deref().is_some_and(|of_images| of_images != *architecture) {
                continue;
            }
            if let Some(entry) = self.find(name)? {
                let io = |source| MediaError::Io { path: self.path(), source };
                let signers = signers(&mut self.udf.reader(&entry)).map_err(io)?;
                return Ok(((*architecture).to_owned(), signers));
            }
        }
        Ok((of_images.unwrap_or_else(|| "unknown".to_owned()), Vec::new()))
    }
}

/// Evaluation editions say so in their edition id; otherwise `ei.cfg` does, with a line below `[Channel]` or `[VL]`.
fn channel(images: &[WimImage], ei_cfg: Option<&[u8]>) -> Channel {
    let editions = || images.iter().filter_map(|image| image.edition_id.as_deref());
    if editions().next().is_some() && editions().all(|edition| edition.ends_with("Eval")) {
        return Channel::Evaluation;
    }
    let text = String::from_utf8_lossy(ei_cfg.unwrap_or_default()).to_lowercase();
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let below = |section: &str| {
        let at = lines.iter().position(|line| *line == section)?;
        lines.get(at + 1).copied()
    };
    match (below("[channel]"), below("[vl]")) {
        (Some("volume"), _) | (_, Some("1")) => Channel::Volume,
        (Some("eval"), _) => Channel::Evaluation,
        (Some(_), _) => Channel::Retail,
        (None, _) => Channel::Unknown,
    }
}

#[cfg(test)]
pub(crate) mod tests;
