//! A reader of ISO 9660 discs (ECMA-119) with Joliet names where there are some: one path at a time.

use std::fs::File;
use std::io::{self, Seek as _, SeekFrom};
use std::path::Path;

use crate::media::source::{ReadAt, Source};

const SECTOR: u64 = 2048;
/// Volume descriptors begin here; a disc has two or three.
const FIRST_DESCRIPTOR: u64 = 16;
const DESCRIPTORS_LIMIT: u64 = 32;
/// The largest folder of virtio-win has a few kilobytes.
const DIRECTORY_LIMIT: u64 = 4 << 20;

/// Why a disc cannot be read.
#[derive(Debug)]
pub(super) enum IsoError {
    Io(io::Error),
    /// A sentence for a person.
    Damaged(String),
}

/// An open disc.
#[derive(Debug)]
pub(super) struct Iso<S = File> {
    source: Source<S>,
    root: Entry,
    /// Names are Joliet's: two bytes a character, long and with small letters.
    joliet: bool,
    pub(super) label: String,
}

/// A file or folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) directory: bool,
    /// First byte on the disc.
    pub(super) at: u64,
    pub(super) bytes: u64,
}

impl Iso<File> {
    pub(super) fn open(path: &Path) -> Result<Self, IsoError> {
        let mut file = File::open(path).map_err(IsoError::Io)?;
        let bytes = file.seek(SeekFrom::End(0)).map_err(IsoError::Io)?;
        Self::new(Source::new(file, bytes))
    }
}

impl<S: ReadAt> Iso<S> {
    pub(super) fn new(source: Source<S>) -> Result<Self, IsoError> {
        let mut primary = None;
        for sector in FIRST_DESCRIPTOR..FIRST_DESCRIPTOR + DESCRIPTORS_LIMIT {
            let descriptor = read(&source, sector * SECTOR, SECTOR)?;
            if &descriptor[1..6] != b"CD001" {
                break;
            }
            let joliet = descriptor[0] == 2 && matches!(&descriptor[88..91], b"%/@" | b"%/C" | b"%/E");
            let root = || record(&descriptor[156..190], joliet);
            match descriptor[0] {
                1 => {
                    let label: String = descriptor[40..72].iter().map(|byte| char::from(*byte)).collect();
                    primary = root().map(|root| (root, label.trim().to_owned()));
                }
                2 if joliet => {
                    if let (Some(root), Some((_, label))) = (root(), primary.clone()) {
                        return Ok(Self { source, root, joliet, label });
                    }
                }
                255 => break,
                _ => {}
            }
        }
        let (root, label) = primary.ok_or_else(|| damaged("it has no ISO 9660 volume"))?;
        Ok(Self { source, root, joliet: false, label })
    }

    /// The file or folder at `path`, compared without case.
    pub(super) fn find(&self, path: &str) -> Result<Option<Entry>, IsoError> {
        let mut entry = self.root.clone();
        for part in path.split('/').filter(|part| !part.is_empty()) {
            if !entry.directory {
                return Ok(None);
            }
            let inside = self.entries(&entry)?;
            match inside.into_iter().find(|inside| inside.name.eq_ignore_ascii_case(part)) {
                Some(found) => entry = found,
                None => return Ok(None),
            }
        }
        Ok(Some(entry))
    }

    /// What is in the folder at `path`; `None` if there is no such folder.
    pub(super) fn list(&self, path: &str) -> Result<Option<Vec<Entry>>, IsoError> {
        match self.find(path)? {
            Some(entry) if entry.directory => self.entries(&entry).map(Some),
            _ => Ok(None),
        }
    }

    fn entries(&self, folder: &Entry) -> Result<Vec<Entry>, IsoError> {
        if folder.bytes > DIRECTORY_LIMIT {
            return Err(damaged(format!("a folder claims {} bytes", folder.bytes)));
        }
        let bytes = read(&self.source, folder.at, folder.bytes)?;
        let mut entries: Vec<Entry> = Vec::new();
        // No record lies across two sectors; the rest of a sector is zero.
        for sector in bytes.chunks(usize::try_from(SECTOR).unwrap_or(2048)) {
            let mut rest = sector;
            while let Some(length) = rest.first().map(|length| usize::from(*length)).filter(|n| *n > 0) {
                let whole = rest.get(..length).ok_or_else(|| damaged("a folder's record is cut off"))?;
                rest = &rest[length..];
                let entry =
                    record(whole, self.joliet).ok_or_else(|| damaged("a folder's record is damaged"))?;
                // The folder itself and the way up have names of one byte, 0 and 1.
                if !matches!(entry.name.as_str(), "" | "\0" | "\u{1}") {
                    self.check(&entry)?;
                    entries.push(entry);
                }
            }
        }
        let mut names = entries.iter().map(|entry| &entry.name).collect::<Vec<_>>();
        names.sort_unstable();
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(damaged(format!("'{}' is in several pieces", twice[0].escape_debug())));
        }
        Ok(entries)
    }

    fn check(&self, entry: &Entry) -> Result<(), IsoError> {
        let (end, bytes) = (entry.at.saturating_add(entry.bytes), self.source.bytes);
        if end <= bytes {
            return Ok(());
        }
        let name = entry.name.escape_debug();
        Err(damaged(format!("it is cut off: '{name}' reaches to byte {end}, and the file has {bytes}")))
    }
}

fn damaged(why: impl Into<String>) -> IsoError {
    IsoError::Damaged(why.into())
}

fn read<S: ReadAt>(source: &Source<S>, at: u64, length: u64) -> Result<Vec<u8>, IsoError> {
    let length = usize::try_from(length).map_err(|_| damaged("a length is too large"))?;
    source.read(at, length).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => damaged(format!("it ends before byte {}", at + length as u64)),
        _ => IsoError::Io(error),
    })
}

/// A folder's record: extent at 2, bytes at 10, flags at 25, name from 33.
fn record(bytes: &[u8], joliet: bool) -> Option<Entry> {
    let u32_at = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let name = bytes.get(33..33 + usize::from(*bytes.get(32)?))?;
    // Attributes may stand in front of the contents.
    let block = u64::from(u32_at(2)?) + u64::from(*bytes.get(1)?);
    Some(Entry {
        name: name_of(name, joliet),
        directory: bytes.get(25)? & 2 != 0,
        at: block * SECTOR,
        bytes: u32_at(10)?.into(),
    })
}

/// Without the version behind it, and without the dot of a name that has no extension.
fn name_of(name: &[u8], joliet: bool) -> String {
    let text: String = match joliet && name.len() > 1 {
        true => {
            let units: Vec<u16> =
                name.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect();
            String::from_utf16_lossy(&units)
        }
        false => name.iter().map(|byte| char::from(*byte)).collect(),
    };
    let plain = text.split_once(';').map_or(text.as_str(), |(name, _)| name);
    plain.strip_suffix('.').unwrap_or(plain).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::inspect::tests::{Disc, tool};

    fn disc() -> &'static Vec<u8> {
        static BYTES: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
        BYTES.get_or_init(|| {
            let disc = Disc::empty();
            disc.file("viostor/w10/amd64/viostor.inf", b"[Version]");
            let iso = disc.dir.path().join("d.iso");
            let mut command = std::process::Command::new("genisoimage");
            command.args(["-quiet", "-J", "-r", "-V", "virtio-win-0.1.285", "-o"]);
            tool(command.arg(&iso).arg(disc.dir.path().join("root")));
            std::fs::read(iso).expect("made")
        })
    }

    fn look(bytes: Vec<u8>) -> Result<Option<Vec<Entry>>, IsoError> {
        let length = bytes.len() as u64;
        Iso::new(Source::new(bytes, length))?.list("VIOSTOR/w10/amd64")
    }

    #[test]
    fn a_file_is_found_where_it_lies() {
        let entries = look(disc().clone()).expect("good").expect("there");
        assert_eq!(entries.len(), 1);
        assert_eq!(entries[0].name, "viostor.inf");
        let at = usize::try_from(entries[0].at).expect("small");
        assert_eq!(&disc()[at..at + 9], b"[Version]");
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(300))]

        #[test]
        fn damage_is_never_a_panic(at: proptest::sample::Index, change in 1u8.., cut: bool) {
            let mut bytes = disc().clone();
            let written: Vec<usize> = (0x8000..bytes.len()).filter(|at| bytes[*at] != 0).collect();
            let at = written[at.index(written.len())];
            bytes[at] ^= change;
            if cut {
                bytes.truncate(at);
            }
            let _ = look(bytes);
        }
    }
}
