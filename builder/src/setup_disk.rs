//! Set-up disk: one FAT32 image in the shape of a USB stick, written once, in order, with the same bytes every time.
//!
//! Windows Setup searches removable media for `Autounattend.xml` and `$WinPEDriver$`, read/write ones first. Everything is
//! known before the first byte is written, so no file system driver is needed: folders come first, then each file in one
//! piece, copied by the kernel. Dates are fixed, the serial number is made of the names and sizes.

mod fat;
mod names;
mod tree;
mod write;

use std::io;
use std::path::{Path, PathBuf};

use tree::Folder;

/// Where a file's contents come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// These bytes.
    Bytes(Vec<u8>),
    /// A file of this host, as large as it is when the disk is written.
    Path(PathBuf),
    /// A piece of a file, such as a driver that lies in an ISO.
    Piece {
        /// The file.
        path: PathBuf,
        /// First byte.
        at: u64,
        /// Bytes.
        length: u64,
    },
}

/// The contents of a set-up disk, before it is written.
#[derive(Clone, Debug)]
pub struct SetupDisk {
    label: String,
    root: Folder,
    free: u64,
}

/// A written set-up disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Where it is.
    pub path: PathBuf,
    /// Size of the image; what is free takes no room.
    pub bytes: u64,
    /// Bytes of files and folders.
    pub content_bytes: u64,
    /// Files.
    pub files: usize,
    /// Volume serial number, which is the disk's signature too.
    pub serial: u32,
}

/// Why a set-up disk cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum SetupDiskError {
    /// A name that FAT cannot hold.
    #[error("'{path}' cannot be on a set-up disk: {why}")]
    Name {
        /// The path on the disk.
        path: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Something of this name is there already.
    #[error("'{path}' is on the set-up disk already (upper and lower case are the same there)")]
    Twice {
        /// The path on the disk.
        path: String,
    },
    /// FAT's limit.
    #[error("{path} has {bytes} bytes; a file on a FAT disk holds at most 4 GiB less one byte")]
    TooLarge {
        /// The source.
        path: String,
        /// Its size.
        bytes: u64,
    },
    /// Too many names in one folder, or too much in all.
    #[error("{0} is more than a FAT disk holds")]
    TooMuch(String),
    /// A source cannot be read.
    #[error("failed to read {path}, which belongs onto the set-up disk: {source}")]
    Read {
        /// The source.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A source has another size than at first.
    #[error(
        "{path} changed while the set-up disk was written: {expected} bytes were expected, {found} are there"
    )]
    Changed {
        /// The source.
        path: PathBuf,
        /// Bytes at first.
        expected: u64,
        /// Bytes now.
        found: u64,
    },
    /// The image cannot be written.
    #[error("failed to write the set-up disk {path}: {source}")]
    Write {
        /// The image.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// For logs that the guest writes there; unwritten room takes no room.
const DEFAULT_FREE: u64 = 32 << 20;

impl SetupDisk {
    /// An empty disk with this volume label: up to 11 of A–Z, 0–9, `-`, `_` and space.
    ///
    /// # Errors
    /// Another label.
    pub fn new(label: &str) -> Result<Self, SetupDiskError> {
        let good = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || "-_ ".contains(c);
        if label.is_empty() || label.len() > 11 || !label.chars().all(good) || label.trim() != label {
            let why = "a volume label has 1 to 11 of A-Z, 0-9, '-', '_' and space";
            return Err(SetupDiskError::Name { path: label.to_owned(), why });
        }
        Ok(Self { label: label.to_owned(), root: Folder::default(), free: DEFAULT_FREE })
    }

    /// Leaves this many bytes free (at least).
    #[must_use]
    pub fn with_free(self, bytes: u64) -> Self {
        Self { free: bytes, ..self }
    }

    /// Adds a file at `path` (parts with `/` between them); folders are made as needed.
    ///
    /// # Errors
    /// A name that FAT cannot hold, or that is there already.
    pub fn file(&mut self, path: &str, source: Source) -> Result<&mut Self, SetupDiskError> {
        self.root.add(path, Some(source))?;
        Ok(self)
    }

    /// Adds an empty folder at `path`, if there is none yet.
    ///
    /// # Errors
    /// A name that FAT cannot hold, or that a file has already.
    pub fn folder(&mut self, path: &str) -> Result<&mut Self, SetupDiskError> {
        self.root.add(path, None)?;
        Ok(self)
    }

    /// Adds a folder of this host with all that is in it, below `path` (`""` is the top). Links are followed.
    ///
    /// # Errors
    /// What cannot be read, and names that FAT cannot hold or that are there already.
    pub fn host_folder(&mut self, path: &str, folder: &Path) -> Result<&mut Self, SetupDiskError> {
        self.root.add_host_folder(path, folder)?;
        Ok(self)
    }

    /// Writes the image to `path`, aside first and renamed at the end, readable for its owner only. It is not synced to
    /// the disk: a set-up disk is made anew for each installation.
    ///
    /// # Errors
    /// A source that cannot be read or changes meanwhile, and an image that cannot be written; nothing is left then.
    pub fn write(&self, path: &Path) -> Result<Written, SetupDiskError> {
        write::write(self, path)
    }
}

#[cfg(test)]
mod tests;
