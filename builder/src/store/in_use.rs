//! Images that are read from where no lock reaches: the lab shares the store over 9p, which carries none.

use std::fs::{self, File, OpenOptions};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use super::{Store, StoreError};

const FILE: &str = "in-use.lock";

/// As long as this lives, no image is removed from the store. The kernel lets go of it if we die.
#[derive(Debug)]
#[must_use]
pub struct InUse(File);

impl Drop for InUse {
    fn drop(&mut self) {
        // Closing is not enough: a program that another thread has just forked holds the file until it executes.
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

impl Store {
    /// Keeps every image where it is, for somebody who reads the store from elsewhere. Any number may do so at once.
    ///
    /// # Errors
    /// When the store cannot be written to, or images are being removed at this moment.
    pub fn hold(&self) -> Result<InUse, StoreError> {
        fs::create_dir_all(&self.dir).map_err(StoreError::io("create", &self.dir))?;
        self.lock_use(FlockOperation::NonBlockingLockShared, "images are being removed right now")
    }

    /// Held by whoever removes images. A store that is not there has none to remove, and is not made for that.
    pub(super) fn removing(&self) -> Result<Option<InUse>, StoreError> {
        if !self.dir.exists() {
            return Ok(None);
        }
        self.lock_use(FlockOperation::NonBlockingLockExclusive, "a run in a lab reads it").map(Some)
    }

    fn lock_use(&self, how: FlockOperation, who: &'static str) -> Result<InUse, StoreError> {
        let path = self.dir.join(FILE);
        let file = open(&path).map_err(StoreError::io("open", &path))?;
        match flock(&file, how) {
            Ok(()) => Ok(InUse(file)),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(StoreError::InUse { path: self.dir.clone(), who }),
            Err(error) => Err(StoreError::io("lock", &path)(error.into())),
        }
    }
}

fn open(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().create(true).truncate(false).write(true).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_removed_under_a_reader_that_no_lock_reaches() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(Some(dir.path())).unwrap();
        let (one, two) = (store.hold().unwrap(), store.hold().unwrap());
        drop(one);
        let error = store.gc(&[], false).unwrap_err().to_string();
        assert!(
            error.ends_with("is in use: a run in a lab reads it; try again when that is over"),
            "{error}"
        );
        assert!(store.gc(&[], true).is_ok(), "looking is always allowed");
        drop(two);
        // a child that another test starts at this moment has our files open until it becomes its own program
        let removed = (0..500).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(10));
            store.gc(&[], false).is_ok()
        });
        assert!(removed, "the lock outlived its owner");
    }
}
