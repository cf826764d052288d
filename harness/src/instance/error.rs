//! What can be wrong with an instance, each with what to do about it.

use std::io;
use std::path::{Path, PathBuf};

use no43_builder::store::StoreError;

/// Why something could not be done with an instance. Nothing was changed, unless a variant says so.
#[derive(Debug, thiserror::Error)]
pub enum InstanceError {
    /// No folder for instances is known.
    #[error("no place for instances: set NO43_INSTANCES to a folder that is kept")]
    NoPlace,
    /// A name that cannot be a folder's and a machine's.
    #[error("'{name}' cannot be an instance's name: {why}; use letters, digits, '-', '_' and '.', at most {max} characters", name = shown(name), max = super::record::NAME_MAX)]
    BadName {
        /// The name.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The name is taken.
    #[error("instance '{name}' is there already ({dir}): choose another --name, or no43 instance rm {name}", dir = dir.display())]
    Exists {
        /// The name.
        name: String,
        /// Its folder.
        dir: PathBuf,
    },
    /// There is none of this name.
    #[error("there is no instance '{name}'; {}", if others.is_empty() { "there are none yet: no43 run RECIPE makes one".to_owned() } else { format!("there are: {others}") })]
    NoSuch {
        /// The name.
        name: String,
        /// Those that there are.
        others: String,
    },
    /// Somebody runs or changes it.
    #[error("instance '{name}' is running or being changed: no43 ps shows it, no43 stop {name} ends it")]
    Busy {
        /// The name.
        name: String,
    },
    /// Its folder has no system disk.
    #[error(
        "instance '{name}' has no system disk ({why}): no43 instance renew {name} makes one, kept disks stay"
    )]
    NoSystem {
        /// The name.
        name: String,
        /// What the system said.
        why: String,
    },
    /// A file is there and cannot be understood.
    #[error("{path} is damaged: {why}", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// It was made by a newer version.
    #[error("{path} has format {format}, this no43 reads up to {}: use a newer no43", super::record::FORMAT, path = path.display())]
    TooNew {
        /// The file.
        path: PathBuf,
        /// Its format.
        format: u32,
    },
    /// The folder was copied from another host.
    #[error(
        "instance '{name}' was made on another host: two VMs with one identity disturb each other's network and licences\n  \
         fix   no43 instance import {dir} --name {name}-here      (this host's own copy; it keeps its identity if no other instance here has it)",
        dir = dir.display()
    )]
    OtherHost {
        /// The name.
        name: String,
        /// Its folder.
        dir: PathBuf,
    },
    /// The folder was copied on this host.
    #[error(
        "instances '{name}' and '{other}' have the same UUID: one folder is a copy of the other; no43 instance import gives a copy an identity of its own"
    )]
    SameIdentity {
        /// The one that was asked for.
        name: String,
        /// The other one.
        other: String,
    },
    /// The image below it is gone.
    #[error(
        "instance '{name}' lies on image {key}, which is not in {store}; its own disk is untouched\n  \
         fix   bring that store back (NO43_STORE, --store), or no43 instance renew {name} for a new system disk",
        store = store.display()
    )]
    NoImage {
        /// The name.
        name: String,
        /// The image's short key.
        key: String,
        /// Where it was looked for.
        store: PathBuf,
    },
    /// The image below it was built again: the same inputs, other bytes.
    #[error(
        "instance '{name}' lies on image {key}, which was built again since and has other bytes now: started on it, the disk would be destroyed\n  \
         fix   bring the former store back, or no43 instance renew {name} for a new system disk (kept disks stay)"
    )]
    OtherBytes {
        /// The name.
        name: String,
        /// The image's short key.
        key: String,
    },
    /// A program failed.
    #[error("failed to {what}: {why}")]
    Program {
        /// What it was to do.
        what: String,
        /// What it said.
        why: String,
    },
    /// A file operation failed.
    #[error("failed to {what} {path}: {why}", path = path.display())]
    File {
        /// The verb.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        why: io::Error,
    },
    /// A kept disk is used by another instance.
    #[error("disk '{disk}' ({path}) is in use by instance '{by}': a disk belongs to one running VM at a time", path = path.display())]
    DiskInUse {
        /// The disk's name.
        disk: String,
        /// Its file.
        path: PathBuf,
        /// Who has it.
        by: String,
    },
    /// A request that does not fit the instance's state.
    #[error("{0}")]
    Refused(String),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A name for a message: cut, and without control characters.
fn shown(name: &str) -> String {
    let short: String = name.chars().take(40).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    if short.len() < name.len() { format!("{short}…") } else { short }
}

pub(crate) fn file_error<'a>(
    what: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> InstanceError + 'a {
    move |why| InstanceError::File { what, path: path.to_owned(), why }
}
