//! The few text files that matter, read out of a driver package in place: a self-extracting 7z archive or a folder.
//!
//! A package is foreign: names, counts and sizes are checked before a byte is unpacked, and only what is asked for is
//! unpacked at all. In a solid block that means everything in front of it too, and nothing behind.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use sevenz_rust2::{Archive, BlockDecoder, Password};

use super::DriverError;

/// The first bytes of a 7z archive.
const SIGNATURE: [u8; 6] = [b'7', b'z', 0xbc, 0xaf, 0x27, 0x1c];

/// A self-extractor's program is a few hundred kilobytes; the archive begins behind it.
const STUB_LIMIT: u64 = 16 << 20;

/// More than any driver package has (about 3,000 files).
const MOST_FILES: usize = 100_000;

/// More than any driver package unpacks to (about 2 GiB).
const MOST_BYTES: u64 = 16 << 30;

/// The largest text file that is read: the largest display INF known has 3 MiB.
pub(super) const MOST_TEXT: u64 = 32 << 20;

/// All texts together.
const MOST_TEXTS: u64 = 256 << 20;

/// The decoder's dictionary at most; what a package was packed with decides below that.
const MEMORY_KIB: usize = 256 << 10;

/// One text file of a package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    /// Its path in the package, with `/`.
    pub(super) path: String,
    /// Its bytes.
    pub(super) bytes: Vec<u8>,
}

/// What was found in a package.
#[derive(Debug, Default)]
pub(super) struct Contents {
    /// How many files it has.
    pub(super) files: usize,
    /// Their size, unpacked.
    pub(super) bytes: u64,
    /// The texts.
    pub(super) texts: Vec<Member>,
}

/// Whether a file is one that says what the package is for.
fn is_wanted(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path).to_ascii_lowercase();
    name.ends_with(".inf") || name.ends_with(".cat") || name == "setup.cfg" || name == "listdevices.txt"
}

/// Reads the texts of a package file.
pub(super) fn of_file(path: &Path) -> Result<Contents, DriverError> {
    let (archive, mut source) = open(path)?;
    let start = source.start;
    let damaged = |error: sevenz_rust2::Error| DriverError::Damaged {
        path: path.to_owned(),
        why: format!("its 7z archive at byte {start} cannot be read: {error}"),
    };
    let password = Password::empty();
    let mut contents = check(path, &archive)?;
    for block in 0..archive.blocks.len() {
        let decoder =
            BlockDecoder::new_with_memory_limit(1, MEMORY_KIB, block, &archive, &password, &mut source);
        let wanted = decoder.entries().iter().filter(|e| e.has_stream() && is_wanted(e.name())).count();
        if wanted > 0 {
            unpack(decoder, wanted, &mut contents).map_err(damaged)?;
        }
    }
    Ok(contents)
}

/// Finds the archive in a package file and reads its directory.
fn open(path: &Path) -> Result<(Archive, Behind), DriverError> {
    let failed = |source| DriverError::Io { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(failed)?;
    let Some(start) = find_archive(&mut file).map_err(failed)? else {
        return Err(DriverError::NotAPackage { path: path.to_owned(), what: what_it_is(&mut file) });
    };
    let damaged = |error: sevenz_rust2::Error| DriverError::Damaged {
        path: path.to_owned(),
        why: format!("its 7z archive at byte {start} cannot be read: {error}"),
    };
    let mut source = Behind::new(file, start).map_err(failed)?;
    let archive =
        Archive::read_with_memory_limit(&mut source, &Password::empty(), MEMORY_KIB).map_err(damaged)?;
    Ok((archive, source))
}

/// Refuses what no package needs and an attacker would like, by the archive's directory alone.
fn check(path: &Path, archive: &Archive) -> Result<Contents, DriverError> {
    let refuse = |why: String| Err(DriverError::Damaged { path: path.to_owned(), why });
    if archive.files.len() > MOST_FILES {
        return refuse(format!("it lists {} files, more than {MOST_FILES}", archive.files.len()));
    }
    let mut contents = Contents::default();
    let mut texts = 0_u64;
    for entry in &archive.files {
        let name = entry.name();
        if let Some(why) = unsafe_name(name) {
            return refuse(format!("it has a file named {name:?}, which {why}"));
        }
        contents.files += usize::from(entry.has_stream());
        contents.bytes = contents.bytes.saturating_add(entry.size());
        if is_wanted(name) {
            texts = texts.saturating_add(entry.size());
            if entry.size() > MOST_TEXT {
                return refuse(format!("{name} has {} bytes, more than {MOST_TEXT}", entry.size()));
            }
        }
    }
    if contents.bytes > MOST_BYTES {
        return refuse(format!("it unpacks to {} bytes, more than {MOST_BYTES}", contents.bytes));
    }
    if texts > MOST_TEXTS {
        return refuse(format!("its text files have {texts} bytes, more than {MOST_TEXTS}"));
    }
    Ok(contents)
}

/// Why a name in an archive is not to be trusted.
fn unsafe_name(name: &str) -> Option<&'static str> {
    let path = name.replace('\\', "/");
    if path.split('/').any(|part| part == "..") {
        Some("leads out of the package")
    } else if path.starts_with('/') || path.as_bytes().get(1) == Some(&b':') {
        Some("is absolute")
    } else if path.chars().any(char::is_control) {
        Some("holds control characters")
    } else {
        None
    }
}

fn unpack<R: Read + Seek>(
    decoder: BlockDecoder<'_, R>,
    wanted: usize,
    contents: &mut Contents,
) -> Result<(), sevenz_rust2::Error> {
    let mut left = wanted;
    decoder.for_each_entries(&mut |entry, reader| {
        if entry.has_stream() && is_wanted(entry.name()) {
            let mut bytes = Vec::new();
            reader.take(MOST_TEXT).read_to_end(&mut bytes)?;
            contents.texts.push(Member { path: entry.name().replace('\\', "/"), bytes });
            left -= 1;
        }
        // what is behind the last one is not unpacked
        Ok(left > 0)
    })?;
    Ok(())
}

/// Gives every wanted file of a package, an archive or a folder, to `take`, in the package's own order. Names were checked.
pub(super) fn each(
    path: &Path,
    wanted: &dyn Fn(&str) -> bool,
    take: &mut dyn FnMut(&str, &mut dyn Read) -> Result<(), DriverError>,
) -> Result<(), DriverError> {
    if path.is_dir() {
        return each_in_folder(path, wanted, take);
    }
    let (archive, mut source) = open(path)?;
    check(path, &archive)?;
    let password = Password::empty();
    let mut failed = None;
    for block in 0..archive.blocks.len() {
        let decoder =
            BlockDecoder::new_with_memory_limit(1, MEMORY_KIB, block, &archive, &password, &mut source);
        let is_wanted = |entry: &sevenz_rust2::ArchiveEntry| {
            entry.has_stream() && wanted(&entry.name().replace('\\', "/"))
        };
        let mut left = decoder.entries().iter().filter(|entry| is_wanted(entry)).count();
        if left == 0 {
            continue;
        }
        let read = decoder.for_each_entries(&mut |entry, reader| {
            if is_wanted(entry) {
                let name = entry.name().replace('\\', "/");
                // What the directory says is what is written at most.
                if let Err(error) = take(&name, &mut reader.take(entry.size())) {
                    failed = Some(error);
                    return Ok(false);
                }
                left -= 1;
            }
            Ok(left > 0)
        });
        if let Some(error) = failed {
            return Err(error);
        }
        let why = |error| format!("it cannot be unpacked: {error}");
        read.map_err(|error| DriverError::Damaged { path: path.to_owned(), why: why(error) })?;
    }
    Ok(())
}

fn each_in_folder(
    root: &Path,
    wanted: &dyn Fn(&str) -> bool,
    take: &mut dyn FnMut(&str, &mut dyn Read) -> Result<(), DriverError>,
) -> Result<(), DriverError> {
    let (mut folders, mut files) = (vec![PathBuf::new()], Vec::new());
    while let Some(folder) = folders.pop() {
        let path = root.join(&folder);
        let failed = |source| DriverError::Io { path: path.clone(), source };
        for entry in fs::read_dir(&path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let below = folder.join(entry.file_name());
            match entry.file_type().map_err(failed)? {
                kind if kind.is_dir() => folders.push(below),
                kind if kind.is_file() => files.push(below.to_string_lossy().into_owned()),
                _ => {}
            }
            if files.len() > MOST_FILES {
                let why = format!("it has more than {MOST_FILES} files");
                return Err(DriverError::Damaged { path: root.to_owned(), why });
            }
        }
    }
    files.sort();
    for name in files.iter().filter(|name| wanted(name)) {
        let path = root.join(name);
        let mut file = File::open(&path).map_err(|source| DriverError::Io { path, source })?;
        take(name, &mut file)?;
    }
    Ok(())
}

/// Reads the texts of an unpacked package; links are not followed.
pub(super) fn of_folder(root: &Path) -> Result<Contents, DriverError> {
    let mut contents = Contents::default();
    let mut folders = vec![PathBuf::new()];
    let mut texts = 0;
    while let Some(folder) = folders.pop() {
        let path = root.join(&folder);
        let failed = |source| DriverError::Io { path: path.clone(), source };
        for entry in fs::read_dir(&path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let (kind, below) = (entry.file_type().map_err(failed)?, folder.join(entry.file_name()));
            if kind.is_dir() {
                folders.push(below);
                continue;
            }
            let bytes = entry.metadata().map_err(failed)?.len();
            contents.files += 1;
            contents.bytes += bytes;
            let name = below.to_string_lossy().into_owned();
            if !kind.is_file() || !is_wanted(&name) {
                continue;
            }
            texts += bytes;
            if contents.files > MOST_FILES || bytes > MOST_TEXT || texts > MOST_TEXTS {
                let why = format!("{name} makes it larger than any driver package");
                return Err(DriverError::Damaged { path: root.to_owned(), why });
            }
            contents.texts.push(Member { path: name, bytes: fs::read(entry.path()).map_err(failed)? });
        }
    }
    contents.texts.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(contents)
}

/// Where the 7z archive begins: at the start, or behind a self-extractor's program.
fn find_archive(file: &mut File) -> io::Result<Option<u64>> {
    let mut buffer = vec![0; 1 << 16];
    let (mut start, mut kept) = (0_u64, 0_usize);
    while start < STUB_LIMIT {
        let read = file.read(&mut buffer[kept..])?;
        if read == 0 {
            return Ok(None);
        }
        let filled = kept + read;
        for at in memory_find(&buffer[..filled], &SIGNATURE) {
            if is_header(&buffer[at..filled], file, start + at as u64)? {
                return Ok(Some(start + at as u64));
            }
        }
        // a signature may lie across the edge
        kept = filled.min(SIGNATURE.len() - 1);
        buffer.copy_within(filled - kept..filled, 0);
        start += (filled - kept) as u64;
    }
    Ok(None)
}

fn memory_find<'a>(haystack: &'a [u8], needle: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
    haystack.windows(needle.len()).enumerate().filter(move |(_, part)| *part == needle).map(|(at, _)| at)
}

/// The signature also stands in the program itself, as a constant. Behind the true one is version 0.
fn is_header(seen: &[u8], file: &mut File, at: u64) -> io::Result<bool> {
    if let Some(version) = seen.get(SIGNATURE.len()) {
        return Ok(*version == 0);
    }
    let back = file.stream_position()?;
    let mut version = [0];
    file.seek(SeekFrom::Start(at + SIGNATURE.len() as u64))?;
    let read = file.read(&mut version)?;
    file.seek(SeekFrom::Start(back))?;
    Ok(read == 1 && version[0] == 0)
}

/// In words, for the person who named the wrong file.
fn what_it_is(file: &mut File) -> String {
    let mut head = [0; 16];
    let read = file.seek(SeekFrom::Start(0)).and_then(|_| file.read(&mut head)).unwrap_or(0);
    let known: &[(&[u8], &str)] = &[
        (b"MZ", "a Windows program that is no 7z self-extractor"),
        (b"PK", "a ZIP archive: unpack it, and name the folder"),
        (b"<", "a web page: the download was not the package"),
        (b"Rar!", "a RAR archive: unpack it, and name the folder"),
        (b"MSCF", "a cabinet: unpack it with cabextract, and name the folder"),
        (&[0x7f, b'E', b'L', b'F'], "a Linux program"),
    ];
    let head = &head[..read];
    let text = known.iter().find(|(start, _)| head.starts_with(start)).map(|row| row.1);
    text.unwrap_or(if head.is_empty() { "an empty file" } else { "something else" }).to_owned()
}

/// A file from some byte on, as if it began there.
struct Behind {
    file: File,
    start: u64,
}

impl Behind {
    fn new(mut file: File, start: u64) -> io::Result<Self> {
        file.seek(SeekFrom::Start(start))?;
        Ok(Self { file, start })
    }
}

impl Read for Behind {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.file.read(buffer)
    }
}

impl Seek for Behind {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let to = match to {
            SeekFrom::Start(at) => SeekFrom::Start(self.start.saturating_add(at)),
            other => other,
        };
        let at = self.file.seek(to)?;
        at.checked_sub(self.start)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "before the start"))
    }
}
