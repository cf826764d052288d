//! Files that are either whole or not there.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

/// Writes a file aside, flushes it to the disk and renames it into place; a reader never sees half of it. Safe on 9p.
///
/// # Errors
/// Those of the file system, e.g. a full disk; the old file, if any, is then still whole.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let aside = path.with_extension(format!("{}.new", std::process::id()));
    let written = File::create(&aside).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    let published = written.and_then(|()| fs::rename(&aside, path));
    if published.is_err() {
        let _ = fs::remove_file(&aside); // nothing more can be done about a second failure
    }
    published
}

/// The longest log that is kept whole; of a longer one the middle is left out.
pub(super) const MAX_LOG: u64 = 4 << 20;

/// Reads at most [`MAX_LOG`] bytes of a log: the first eighth and the rest from its end, since causes stand at the start and effects at the end. Returns the bytes
/// and how many were left out between them.
pub(super) fn read_log(path: &Path) -> io::Result<(Vec<u8>, u64)> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut bytes = Vec::new();
    if length <= MAX_LOG {
        file.take(MAX_LOG).read_to_end(&mut bytes)?;
        return Ok((bytes, 0));
    }
    let (head, omitted) = (MAX_LOG / 8, length - MAX_LOG);
    Read::by_ref(&mut file).take(head).read_to_end(&mut bytes)?;
    bytes.extend_from_slice(format!("\n… {omitted} bytes left out …\n").as_bytes());
    file.seek(SeekFrom::Start(head + omitted))?;
    file.take(MAX_LOG - head).read_to_end(&mut bytes)?;
    Ok((bytes, omitted))
}

/// The last lines of a file as cleaned text, for an error message; empty when there is no such file.
pub fn tail(path: &Path, lines: usize) -> Vec<String> {
    let Ok(mut file) = File::open(path) else { return Vec::new() };
    let length = file.metadata().map_or(0, |m| m.len());
    let mut bytes = Vec::new();
    if file.seek(SeekFrom::Start(length.saturating_sub(64 << 10))).is_err()
        || file.take(64 << 10).read_to_end(&mut bytes).is_err()
    {
        return Vec::new();
    }
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<String> = text
        .lines()
        .map(|line| crate::words::clean_to(line, 300))
        .filter(|line| !line.trim().is_empty())
        .collect();
    all[all.len().saturating_sub(lines)..].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_log_keeps_both_ends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("serial.log");
        let mut text = b"first line\n".to_vec();
        text.resize(usize::try_from(MAX_LOG).unwrap() + 1000, b'.');
        text.extend_from_slice(b"\nlast line\n");
        fs::write(&path, &text).unwrap();
        let (kept, omitted) = read_log(&path).unwrap();
        assert_eq!(omitted, 1011);
        assert!(kept.starts_with(b"first line") && kept.ends_with(b"last line\n"));
        assert_eq!(tail(&path, 1), ["last line"]);
    }

    #[test]
    fn a_failed_write_leaves_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        write_atomic(&path, b"old").unwrap();
        write_atomic(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(write_atomic(&dir.path().join("no/such"), b"x").is_err());
    }
}
