//! Staging: a layer being built, beside the published ones, until `publish` makes it visible in one rename.

use std::fmt;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::gc::REMOVED;
use super::{Store, StoreError, gib, names_in};
use crate::image::{self, FileFact, Image, Manifest};
use crate::key::{Key, hex};

/// How often a builder that waits for another one of the same layer looks again. The other one takes minutes.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// A folder in which one layer is built. Dropping it without publishing removes everything in it.
#[derive(Debug)]
pub struct Staging {
    key: Key,
    dir: PathBuf,
    lock: Lock,
    store: Store,
    published: bool,
}

/// A staging folder that a dead builder had left behind and that is gone now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dropped {
    /// The layer that was being built.
    pub key: Key,
    /// The process that was building it; `None` if it did not get as far as saying so.
    pub pid: Option<u32>,
    /// Bytes that are free again.
    pub bytes: u64,
}

impl fmt::Display for Dropped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "dropped the unfinished layer {}", self.key.short())?;
        if let Some(pid) = self.pid {
            write!(f, " that process {pid} was building when it died")?;
        }
        write!(f, " ({} freed)", gib(self.bytes))
    }
}

/// Who is building; written into the lock file for people and for cleaning up.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Owner {
    pid: u32,
    /// A folder outside the store that goes with the staging.
    #[serde(default)]
    outside: Option<PathBuf>,
}

#[derive(Debug)]
struct Lock {
    file: File,
    path: PathBuf,
}

impl Store {
    /// Starts to build `key`: an empty folder that nobody else has. While another process builds the same layer this
    /// waits, telling `waiting` its pid once; `None` means that the other one has published it.
    ///
    /// # Errors
    /// When the store cannot be written, or `cancelled` says so (as an interrupted system call).
    pub fn begin(
        &self,
        key: &Key,
        waiting: &mut dyn FnMut(u32),
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Option<Staging>, StoreError> {
        let tmp = self.dir.join("tmp");
        fs::create_dir_all(&tmp).map_err(StoreError::io("create", &tmp))?;
        let path = tmp.join(format!("{key}.lock"));
        let mut told = false;
        let mut lock = loop {
            match Lock::take(&path).map_err(StoreError::io("lock", &path))? {
                Ok(lock) => break lock,
                Err(owner) => {
                    if !std::mem::replace(&mut told, true) {
                        waiting(owner.pid);
                    }
                }
            }
            if cancelled() {
                return Err(StoreError::io("lock", &path)(io::ErrorKind::Interrupted.into()));
            }
            std::thread::sleep(LOOK_AGAIN);
        };
        if self.get(key)?.is_some() {
            lock.release();
            return Ok(None);
        }
        // A dead builder of the same layer, not yet swept; and an image that is damaged makes room.
        lock.drop_leavings(&tmp.join(key.as_str())).map_err(StoreError::io("remove", &tmp))?;
        lock.write(&Owner { pid: std::process::id(), outside: None })
            .map_err(StoreError::io("write", &path))?;
        let dir = tmp.join(key.as_str());
        fs::create_dir(&dir).map_err(StoreError::io("create", &dir))?;
        Ok(Some(Staging { key: key.clone(), dir, lock, store: self.clone(), published: false }))
    }

    /// Drops the staging folders of builders that died. Only commands that change the store call this, and say what was
    /// dropped.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub fn sweep(&self) -> Result<Vec<Dropped>, StoreError> {
        for name in names_in(&self.images_dir())?.iter().filter(|name| name.ends_with(REMOVED)) {
            let path = self.images_dir().join(name);
            remove(&path).map_err(StoreError::io("remove", &path))?;
        }
        let tmp = self.dir.join("tmp");
        let mut dropped = Vec::new();
        for name in names_in(&tmp)? {
            let Some(key) = name.strip_suffix(".lock").and_then(|key| key.parse::<Key>().ok()) else {
                continue;
            };
            let (path, dir) = (tmp.join(&name), tmp.join(key.as_str()));
            let Ok(mut lock) = Lock::take(&path).map_err(StoreError::io("lock", &path))? else { continue };
            let owner = lock.owner();
            let outside = owner.outside.as_deref().map_or(0, size_of);
            let bytes = size_of(&dir) + outside;
            let found = dir.exists() || outside > 0;
            lock.drop_leavings(&dir).map_err(StoreError::io("remove", &dir))?;
            lock.release();
            if found {
                dropped.push(Dropped { key, pid: (owner.pid != 0).then_some(owner.pid), bytes });
            }
        }
        Ok(dropped)
    }

    /// Staging folders that a dead builder left behind; looks only.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn leavings(&self) -> Result<Vec<Key>, StoreError> {
        let tmp = self.dir.join("tmp");
        let keys = names_in(&tmp)?.into_iter().filter_map(|name| name.parse::<Key>().ok());
        Ok(keys.filter(|key| Lock::is_free(&tmp.join(format!("{key}.lock")))).collect())
    }
}

impl Staging {
    /// The folder to build in.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Remembers a folder outside the store that must go when this staging goes, whoever does it.
    pub(crate) fn owns_outside(&mut self, dir: &Path) -> Result<(), StoreError> {
        let owner = Owner { pid: std::process::id(), outside: Some(dir.to_owned()) };
        self.lock.write(&owner).map_err(StoreError::io("write", &self.lock.path))
    }

    /// Makes the layer visible: hashes `names`, writes the manifest, brings everything to the disk, and renames the
    /// folder. `manifest.files` is filled in. Whatever else is in the folder is removed.
    ///
    /// # Errors
    /// When something cannot be written; then nothing is published.
    pub fn publish(mut self, names: &[&str], mut manifest: Manifest) -> Result<Image, StoreError> {
        self.keep_only(names)?;
        manifest.files = hash_all(&self.dir, names)?;
        let path = self.dir.join(image::MANIFEST);
        let text = serde_json::to_string_pretty(&manifest).expect("a manifest is made of plain values");
        fs::write(&path, text + "\n").map_err(StoreError::io("write", &path))?;
        for name in names.iter().copied().chain([image::MANIFEST]) {
            seal(&self.dir.join(name))?;
        }
        sync(&self.dir)?;

        let images = self.store.images_dir();
        fs::create_dir_all(&images).map_err(StoreError::io("create", &images))?;
        let dir = self.store.image_dir(&self.key);
        if dir.exists() {
            // Only a damaged image gets this far: a whole one would have been found by `begin`.
            fs::remove_dir_all(&dir).map_err(StoreError::io("remove", &dir))?;
        }
        fs::rename(&self.dir, &dir).map_err(StoreError::io("publish", &dir))?;
        self.published = true;
        sync(&images)?;
        Ok(Image { dir, manifest })
    }

    /// Leaves everything as it is: the next build sweeps it away, with the machine that may still run in it.
    pub(crate) fn leave(self) {
        std::mem::forget(self);
    }

    fn keep_only(&self, names: &[&str]) -> Result<(), StoreError> {
        for name in names_in(&self.dir)?.iter().filter(|name| !names.contains(&name.as_str())) {
            let path = self.dir.join(name);
            remove(&path).map_err(StoreError::io("remove", &path))?;
        }
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // What cannot be removed now is swept by the next command, so a failure here may stay silent.
        if self.lock.drop_leavings(&self.dir).is_ok() || self.published {
            self.lock.release();
        }
    }
}

impl Lock {
    /// The lock on `path`, or who holds it.
    fn take(path: &Path) -> io::Result<Result<Self, Owner>> {
        loop {
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
            let mut lock = Self { file, path: path.to_owned() };
            match flock(&lock.file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => return Ok(Err(lock.owner())),
                Err(error) => return Err(error.into()),
            }
            // The last holder may have removed the file between our open and our lock.
            let ours = lock.file.metadata()?.ino();
            if fs::metadata(path).is_ok_and(|now| now.ino() == ours) {
                return Ok(Ok(lock));
            }
        }
    }

    /// True if nobody holds it. Makes no file, and shares the lock for a moment only.
    fn is_free(path: &Path) -> bool {
        match File::open(path) {
            Ok(file) => flock(&file, FlockOperation::NonBlockingLockShared).is_ok(),
            Err(_) => true,
        }
    }

    fn owner(&mut self) -> Owner {
        let mut text = String::new();
        let read = self.file.rewind().and_then(|()| (&self.file).take(4096).read_to_string(&mut text));
        read.ok().and_then(|_| serde_json::from_str(&text).ok()).unwrap_or_default()
    }

    fn write(&mut self, owner: &Owner) -> io::Result<()> {
        let text = serde_json::to_string(owner).expect("a pid and a path are plain values");
        self.file.set_len(0)?;
        self.file.rewind()?;
        self.file.write_all(text.as_bytes())
    }

    /// Removes the staging folder, and the one outside if there is one.
    fn drop_leavings(&mut self, dir: &Path) -> io::Result<()> {
        if let Some(outside) = self.owner().outside {
            crate::step::end_machine_in(&outside);
            remove_tree(&outside)?;
        }
        remove_tree(dir)
    }

    /// The file goes while the lock is still held, so that nobody can find a file that nobody holds.
    fn release(&self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Removes a tree that may hold files of a user namespace (mmdebstrap's), and that its makers may just be leaving: a
/// killed mmdebstrap still cleans up for a second or two.
fn remove_tree(path: &Path) -> io::Result<()> {
    let give_up = Instant::now() + Duration::from_secs(10);
    loop {
        let error = match remove(path) {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() > give_up => return Err(error),
            Err(error) => error,
        };
        if error.kind() == io::ErrorKind::PermissionDenied {
            crate::debian::remove_as_namespace_root(path)?;
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

fn remove(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(facts) if facts.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound && !path.exists() => Ok(()),
        other => other,
    }
}

/// What a tree takes on the disk, holes not counted; what cannot be read counts nothing.
pub(super) fn size_of(path: &Path) -> u64 {
    let Ok(facts) = fs::symlink_metadata(path) else { return 0 };
    let own = facts.blocks() * 512;
    if !facts.is_dir() {
        return own;
    }
    own + fs::read_dir(path).map_or(0, |entries| entries.flatten().map(|entry| size_of(&entry.path())).sum())
}

/// The facts of all files. The hash is the price of `verify`; on a processor with SHA instructions it is about 1 s per GB.
fn hash_all(dir: &Path, names: &[&str]) -> Result<Vec<FileFact>, StoreError> {
    names
        .iter()
        .map(|&name| {
            let path = dir.join(name);
            let (bytes, sha256) = hash_file(&path).map_err(StoreError::io("read", &path))?;
            Ok(FileFact { name: name.to_owned(), bytes, sha256 })
        })
        .collect()
}

/// Length and SHA-256 of a file.
pub(crate) fn hash_file(path: &Path) -> io::Result<(u64, String)> {
    let mut file = File::open(path)?;
    let (mut hash, mut bytes, mut buffer) = (Sha256::new(), 0, vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok((bytes, hex(&hash.finalize()))),
            n => {
                hash.update(&buffer[..n]);
                bytes += n as u64;
            }
        }
    }
}

fn seal(path: &Path) -> Result<(), StoreError> {
    fs::set_permissions(path, Permissions::from_mode(0o444)).map_err(StoreError::io("seal", path))?;
    sync(path)
}

fn sync(path: &Path) -> Result<(), StoreError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(StoreError::io("sync", path))
}
