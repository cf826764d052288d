//! Store: a folder of published images, named by key. What is there is whole; what is not whole is not there.
//!
//! ```text
//! images/<key>/     manifest.json, disk.qcow2, for direct boot also kernel and initrd; all read-only
//! tmp/<key>/        a layer being built; tmp/<key>.lock is held (flock) by its builder as long as that lives
//! roots/<hash>      one file per recipe that was built: its path, and the key that garbage collection keeps
//! apt-cache/<suite>/  packages that were downloaded before
//! failed/           logs of the last builds that failed
//! ```
//!
//! Looking takes no lock and writes nothing, so a store also works read-only and over 9p, which carries no locks.
//! Staging folders whose lock nobody holds are dropped by the next command that changes the store, which says so.

mod gc;
mod in_use;
mod staging;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::image::{self, Image, Manifest};
use crate::key::Key;

pub use gc::{Collected, Fault, Verified};
pub use in_use::InUse;
pub(crate) use staging::hash_file;
pub use staging::{Dropped, Staging};

/// Longest manifest that is read: a package list of a whole desktop is below 1 MiB.
const MANIFEST_LIMIT: u64 = 16 << 20;

/// A store of images.
#[derive(Clone, Debug)]
pub struct Store {
    dir: PathBuf,
}

/// What can be wrong with a store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Neither `$NO43_STORE` nor a home is known.
    #[error("no place for the store: set NO43_STORE to a folder with some gigabytes free")]
    NoPlace,
    /// A file operation failed.
    #[error("failed to {what} {path}: {source}", path = path.display())]
    Io {
        /// The verb, such as "create".
        what: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// No space is left on the store's file system.
    #[error(
        "the disk is full: {free} free where the store is ({path}), {needed} needed to go on; \
         `no43 image gc` drops images that no recipe uses, NO43_STORE moves the store",
        path = path.display(), free = gib(*free), needed = gib(*needed)
    )]
    Full {
        /// The store.
        path: PathBuf,
        /// Free bytes there, now.
        free: u64,
        /// Bytes that this step needs, as far as that is known.
        needed: u64,
    },
    /// The store cannot be written to.
    #[error("the store {path} is read-only here", path = path.display())]
    ReadOnly {
        /// The store.
        path: PathBuf,
    },
    /// An image is there, but cannot be used.
    #[error("image {key} is damaged: {what}; `no43 image rm {key}` drops it, the next build makes it again", key = key.short())]
    Damaged {
        /// Which image.
        key: Key,
        /// What is wrong with it.
        what: String,
    },
    /// Somebody reads the images, or removes some, at this moment.
    #[error("the store {path} is in use: {who}; try again when that is over", path = path.display())]
    InUse {
        /// The store.
        path: PathBuf,
        /// What it is used for.
        who: &'static str,
    },
    /// A person named an image that is not there.
    #[error("no image {0} in the store; `no43 image ls` shows them")]
    NoSuchImage(String),
    /// A person's abbreviation fits several images.
    #[error("{prefix} could be any of {keys}: give more digits")]
    Ambiguous {
        /// What was given.
        prefix: String,
        /// What it could be.
        keys: String,
    },
    /// Instances lie on this one.
    #[error(
        "image {key} is below the disk of instance {users}: it is kept as long as they are (no43 instance ls)",
        key = key.short()
    )]
    Used {
        /// The image that was to be removed.
        key: Key,
        /// The instances' names.
        users: String,
    },
    /// Other images lie on top of this one.
    #[error("image {key} is the base of {children}: remove these first", key = key.short())]
    HasChildren {
        /// The image that was to be removed.
        key: Key,
        /// The short keys of those on top of it.
        children: String,
    },
}

impl StoreError {
    pub(crate) fn io(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::Full { free: free_bytes(&path), path, needed: 0 }
            }
            io::ErrorKind::ReadOnlyFilesystem => Self::ReadOnly { path },
            _ => Self::Io { what, path, source },
        }
    }
}

impl Store {
    /// The store in `dir`, or in the default place: `$NO43_STORE`, else `$XDG_CACHE_HOME/no43`, else `~/.cache/no43`.
    /// Nothing is made before something is built.
    ///
    /// # Errors
    /// When no `dir` is given and none of these variables is set.
    pub fn open(dir: Option<&Path>) -> Result<Self, StoreError> {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let dir = dir
            .map(Path::to_owned)
            .or_else(|| set("NO43_STORE"))
            .or_else(|| set("XDG_CACHE_HOME").map(|cache| cache.join("no43")))
            .or_else(|| set("HOME").map(|home| home.join(".cache/no43")))
            .ok_or(StoreError::NoPlace)?;
        let dir = std::path::absolute(&dir).map_err(StoreError::io("find", &dir))?;
        Ok(Self { dir })
    }

    /// The store's folder, absolute.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The image with this key, if it and every layer below it are there. A few small reads, no locks.
    ///
    /// # Errors
    /// When it is there, but cannot be read or is not what its manifest says.
    pub fn get(&self, key: &Key) -> Result<Option<Image>, StoreError> {
        let Some(image) = self.read(key)? else { return Ok(None) };
        let mut parent = image.manifest.parent.clone();
        while let Some(key) = parent {
            match self.read(&key)? {
                Some(below) => parent = below.manifest.parent,
                None => return Ok(None),
            }
        }
        Ok(Some(image))
    }

    /// Every image in the store, the newest last. Damaged ones are in the second list.
    ///
    /// # Errors
    /// When the store's folder cannot be read.
    pub fn images(&self) -> Result<(Vec<Image>, Vec<StoreError>), StoreError> {
        let (mut images, mut damaged) = (Vec::new(), Vec::new());
        for name in names_in(&self.images_dir())? {
            let Ok(key) = name.parse::<Key>() else { continue };
            match self.read(&key) {
                Ok(Some(image)) => images.push(image),
                Ok(None) => {}
                Err(error) => damaged.push(error),
            }
        }
        images.sort_by(|a, b| a.manifest.provenance.created.cmp(&b.manifest.provenance.created));
        Ok((images, damaged))
    }

    /// The one key that begins with `prefix`, as people type it.
    ///
    /// # Errors
    /// When there is none, or more than one.
    pub fn find(&self, prefix: &str) -> Result<Key, StoreError> {
        let keys = names_in(&self.images_dir())?.into_iter().filter_map(|name| name.parse::<Key>().ok());
        let mut fitting: Vec<Key> = keys.filter(|key| key.as_str().starts_with(prefix)).collect();
        match fitting.len() {
            1 => Ok(fitting.remove(0)),
            0 => Err(StoreError::NoSuchImage(prefix.to_owned())),
            _ => Err(StoreError::Ambiguous { prefix: prefix.to_owned(), keys: short_list(&fitting) }),
        }
    }

    /// Free bytes for an ordinary user where the store is or will be.
    #[must_use]
    pub fn free_bytes(&self) -> u64 {
        free_bytes(&self.dir)
    }

    /// Where packages that were downloaded before are kept for `suite`.
    pub(crate) fn apt_cache(&self, suite: &str) -> PathBuf {
        self.dir.join("apt-cache").join(suite)
    }

    /// Where the log of a failed build of `key` goes.
    pub(crate) fn failed_log(&self, key: &Key) -> PathBuf {
        self.dir.join("failed").join(format!("{}.log", key.short()))
    }

    fn images_dir(&self) -> PathBuf {
        self.dir.join("images")
    }

    fn image_dir(&self, key: &Key) -> PathBuf {
        self.images_dir().join(key.as_str())
    }

    /// One image, without a look at its parents. Sizes are compared, contents are not: see [`Store::verify`].
    fn read(&self, key: &Key) -> Result<Option<Image>, StoreError> {
        let dir = self.image_dir(key);
        let path = dir.join(image::MANIFEST);
        let damaged = |what: String| StoreError::Damaged { key: key.clone(), what };
        let text = match fs::metadata(&path) {
            Ok(facts) if facts.len() > MANIFEST_LIMIT => {
                return Err(damaged("its manifest is absurdly long".to_owned()));
            }
            Ok(_) => fs::read_to_string(&path).map_err(StoreError::io("read", &path))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound && !dir.exists() => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(damaged("it has no manifest".to_owned()));
            }
            Err(error) => return Err(StoreError::io("read", &path)(error)),
        };
        let manifest: Manifest = serde_json::from_str(&text)
            .map_err(|error| damaged(format!("its manifest cannot be read: {error}")))?;
        check(&manifest, key, &dir).map_err(damaged)?;
        Ok(Some(Image { dir, manifest }))
    }
}

/// What can be seen without reading the files.
fn check(manifest: &Manifest, key: &Key, dir: &Path) -> Result<(), String> {
    if manifest.format > image::FORMAT {
        return Err(format!(
            "its manifest has format {}, this no43 reads up to {}",
            manifest.format,
            image::FORMAT
        ));
    }
    if manifest.key != *key {
        return Err(format!("its manifest is that of {}", manifest.key.short()));
    }
    for file in &manifest.files {
        if file.name.is_empty() || file.name.contains('/') || file.name.starts_with('.') {
            return Err(format!("its manifest names a strange file '{}'", file.name.escape_debug()));
        }
        match fs::metadata(dir.join(&file.name)) {
            Ok(facts) if facts.len() == file.bytes => {}
            Ok(facts) => {
                return Err(format!("{} has {} bytes instead of {}", file.name, facts.len(), file.bytes));
            }
            Err(error) => return Err(format!("{}: {error}", file.name)),
        }
    }
    Ok(())
}

/// The names in a folder, sorted; a folder that is not there has none.
fn names_in(dir: &Path) -> Result<Vec<String>, StoreError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(StoreError::io("list", dir)(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry.map_err(StoreError::io("list", dir))?.file_name().into_string().ok());
    }
    names.sort();
    Ok(names)
}

/// Free bytes for an ordinary user on the file system of `path` or of the first folder above that exists; 0 if that
/// cannot be found out.
pub(crate) fn free_bytes(path: &Path) -> u64 {
    let there = path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    rustix::fs::statvfs(there).map_or(0, |facts| facts.f_bavail.saturating_mul(facts.f_frsize))
}

/// `bytes` for people, such as `1.3 GiB`; "unknown" for 0 would be a lie for free space, so it says `0 MiB`.
pub(crate) fn gib(bytes: u64) -> String {
    let mib = bytes.div_ceil(1 << 20);
    if mib < 1024 { format!("{mib} MiB") } else { format!("{}.{} GiB", mib / 1024, mib % 1024 * 10 / 1024) }
}

fn short_list(keys: &[Key]) -> String {
    keys.iter().map(Key::short).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
