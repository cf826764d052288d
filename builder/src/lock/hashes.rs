//! SHA-256 of files, remembered as long as path, size, time and inode stay the same.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::key::{hex, is_sha256_hex};

/// A file changed this recently may change again within the same tick of the clock: its sum is not remembered.
const TOO_NEW: Duration = Duration::from_secs(2);

/// Remembered sums; forgotten ones cost time, never truth.
#[derive(Debug, Default)]
pub struct HashCache {
    file: Option<PathBuf>,
    known: BTreeMap<PathBuf, Known>,
    changed: bool,
}

/// A file's sum.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sum {
    /// 64 hexadecimal digits.
    pub sha256: String,
    /// In bytes.
    pub size: u64,
    /// The file was not read again.
    pub cached: bool,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    size: u64,
    /// Seconds and nanoseconds; ctime catches a file whose mtime was set back.
    mtime: (i64, i64),
    ctime: (i64, i64),
    device: u64,
    inode: u64,
    sha256: String,
}

impl Known {
    fn of(meta: &fs::Metadata, sha256: String) -> Self {
        Self {
            size: meta.size(),
            mtime: (meta.mtime(), meta.mtime_nsec()),
            ctime: (meta.ctime(), meta.ctime_nsec()),
            device: meta.dev(),
            inode: meta.ino(),
            sha256,
        }
    }
}

impl HashCache {
    /// Remembers nothing beyond this process.
    #[must_use]
    pub fn in_memory() -> Self {
        Self::default()
    }

    /// Remembers in `file`; one that cannot be read counts as empty.
    #[must_use]
    pub fn open(file: PathBuf) -> Self {
        let known: Option<BTreeMap<PathBuf, Known>> =
            fs::read(&file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let mut known = known.unwrap_or_default();
        known.retain(|_, known| is_sha256_hex(&known.sha256));
        Self { file: Some(file), known, changed: false }
    }

    /// The sum of the file at `path`.
    ///
    /// # Errors
    /// The file cannot be read, or is not a regular file.
    pub fn sum(&mut self, path: &Path) -> io::Result<Sum> {
        let absolute = std::path::absolute(path)?;
        let mut open = File::open(path)?;
        let meta = open.metadata()?;
        if !meta.is_file() {
            return Err(io::Error::other("not a regular file"));
        }
        let fresh = |sha256| Known::of(&meta, sha256);
        if let Some(known) = self.known.get(&absolute)
            && *known == fresh(known.sha256.clone())
        {
            return Ok(Sum { sha256: known.sha256.clone(), size: known.size, cached: true });
        }
        let sha256 = sha256_of(&mut open)?;
        let age = meta.modified().ok().and_then(|time| SystemTime::now().duration_since(time).ok());
        if age.is_some_and(|age| age > TOO_NEW) {
            self.known.insert(absolute, fresh(sha256.clone()));
            self.changed = true;
        }
        Ok(Sum { sha256, size: meta.size(), cached: false })
    }

    /// Remembers the sum of a file that nobody but this process has written, and nobody will write again.
    pub(super) fn learn(&mut self, path: &Path, sha256: &str) -> io::Result<Sum> {
        let meta = fs::metadata(path)?;
        self.known.insert(std::path::absolute(path)?, Known::of(&meta, sha256.to_owned()));
        self.changed = true;
        Ok(Sum { sha256: sha256.to_owned(), size: meta.size(), cached: false })
    }

    /// Writes what was learned; failing costs only the next run's time, so it is not an error.
    pub fn save(&mut self) {
        let Some(file) = self.file.as_ref().filter(|_| self.changed) else { return };
        self.known.retain(|path, _| path.exists());
        let folder = file.parent().unwrap_or(Path::new("."));
        if let Ok(bytes) = serde_json::to_vec(&self.known)
            && fs::create_dir_all(folder).is_ok()
            && super::write_atomically(folder, file, &bytes).is_ok()
        {
            self.changed = false;
        }
    }
}

impl Drop for HashCache {
    fn drop(&mut self) {
        self.save();
    }
}

/// SHA-256 of everything that `from` still gives.
pub(crate) fn sha256_of(from: &mut impl Read) -> io::Result<String> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(hex(&hasher.finalize())),
            Ok(n) => hasher.update(&buffer[..n]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn old(path: &Path) {
        let time = SystemTime::now() - Duration::from_secs(60);
        File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
    }

    #[test]
    fn a_sum_is_remembered_until_the_file_changes() {
        let dir = tempfile::tempdir().unwrap();
        let (file, cache) = (dir.path().join("a"), dir.path().join("cache/sums.json"));
        fs::write(&file, "abc").unwrap();
        old(&file);
        let mut hashes = HashCache::open(cache.clone());
        let first = hashes.sum(&file).unwrap();
        assert_eq!(first.sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        drop(hashes);
        let mut hashes = HashCache::open(cache);
        assert!(hashes.sum(&file).unwrap().cached);
        fs::write(&file, "abd").unwrap();
        old(&file);
        let changed = hashes.sum(&file).unwrap();
        assert!(!changed.cached);
        assert_ne!(changed.sha256, first.sha256);
        assert!(hashes.sum(dir.path()).is_err());
    }
}
