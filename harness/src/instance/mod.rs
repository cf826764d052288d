//! Instance: a named VM that a person keeps, and the one thing here that cannot be made again.
//!
//! ```text
//! NAME/instance.json   name, identity (UUID, MAC, serial numbers), recipe, kept disks
//! NAME/lock            held (flock) by whoever runs or changes it
//! NAME/system/         system.json, disk.qcow2 (on top of an image), vars.fd, tpm/, snapshots/
//! NAME/old/            the system before a renew, until the person confirms the new one
//! NAME/disks/          disks with keep = true: they outlive every renew
//! NAME/last.json       how the last run ended
//! ```
//!
//! Everything is made aside and renamed. What belongs together (disk, UEFI variables, vTPM) is one folder, so that a
//! renew is one exchange of two folders.

mod create;
mod differ;
mod disk;
mod error;
mod keep;
mod record;
mod renew;
mod snapshot;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use no43_builder::install::Identity;
use no43_builder::store::Store;
use no43_builder::windows::{Private, Who};
use no43_host::{ProcessRef, Roots};
use rustix::fs::{FlockOperation, flock};

pub use create::{NewInstance, Origin};
pub use differ::{Difference, differences};
pub use disk::{DiskFacts, overlay_on};
pub use error::InstanceError;
pub use keep::{Imported, Moved};
pub use record::{KeptDisk, LastRun, Record, System, check_name};
pub use renew::Renewed;

pub(crate) use error::file_error;
pub use record::random_hex;
pub(crate) use record::{new_serial, new_uuid, now};

/// For a program that another thread starts at this moment: until it is executed it has our files open, this lock too.
const LOCK_LIMIT: Duration = Duration::from_millis(300);

/// Where instances are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instances {
    dir: PathBuf,
}

/// One instance on disk.
#[derive(Debug, Clone)]
pub struct Instance {
    /// Its folder, whose last part is its name.
    pub dir: PathBuf,
    /// Who it is.
    pub record: Record,
    /// What its system disk lies on.
    pub system: System,
}

/// The right to run or change an instance. The kernel lets go of it if we die.
#[derive(Debug)]
#[must_use]
pub struct Held(#[expect(dead_code, reason = "the open file is the lock")] File);

impl Instances {
    /// `$NO43_INSTANCES`, else `$XDG_DATA_HOME/no43/instances`, else `~/.local/share/no43/instances`.
    ///
    /// # Errors
    /// [`InstanceError::NoPlace`] if none of these is known.
    pub fn open_default() -> Result<Self, InstanceError> {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let dir = set("NO43_INSTANCES")
            .or_else(|| set("XDG_DATA_HOME").map(|data| data.join("no43/instances")))
            .or_else(|| set("HOME").map(|home| home.join(".local/share/no43/instances")))
            .ok_or(InstanceError::NoPlace)?;
        let dir = std::path::absolute(&dir).map_err(file_error("find", &dir))?;
        Ok(Self { dir })
    }

    /// Instances in this folder, which need not exist.
    pub fn at(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The instance of this name; `None` if there is none.
    ///
    /// # Errors
    /// If the name can be none, or the folder is there and cannot be understood.
    pub fn get(&self, name: &str) -> Result<Option<Instance>, InstanceError> {
        check_name(name)?;
        let dir = self.dir.join(name);
        if !dir.exists() {
            return Ok(None);
        }
        Instance::open(&dir).map(Some)
    }

    /// The instance of this name.
    ///
    /// # Errors
    /// As [`Instances::get`]; an unknown name is answered with those that there are.
    pub fn find(&self, name: &str) -> Result<Instance, InstanceError> {
        self.get(name)?.ok_or_else(|| InstanceError::NoSuch {
            name: name.to_owned(),
            others: self.names().unwrap_or_default().join(", "),
        })
    }

    /// Every instance by name, and what is wrong with those that cannot be read.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn list(&self) -> Result<(Vec<Instance>, Vec<InstanceError>), InstanceError> {
        let (mut whole, mut damaged) = (Vec::new(), Vec::new());
        for name in self.names()? {
            match Instance::open(&self.dir.join(name)) {
                Ok(instance) => whole.push(instance),
                Err(error) => damaged.push(error),
            }
        }
        Ok((whole, damaged))
    }

    fn names(&self) -> Result<Vec<String>, InstanceError> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(file_error("list", &self.dir)(error)),
        };
        let names = entries.flatten().filter(|entry| entry.path().is_dir());
        let mut names: Vec<String> = names
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|n| check_name(n).is_ok())
            .collect();
        names.sort();
        Ok(names)
    }

    /// A folder in which this process makes an instance.
    pub(crate) fn aside(&self) -> PathBuf {
        let me = ProcessRef::current(&Roots::real());
        self.dir.join(format!(".new-{}-{}-{}", me.pid, me.start_time, random_hex(4)))
    }

    /// Removes what interrupted commands left: folders that were to be deleted, and those that never became an instance.
    pub(crate) fn sweep(&self) {
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with(".removed-")
                || maker_of(&name).is_some_and(|maker| !maker.is_alive(&Roots::real()))
            {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }

    /// Removes an instance with everything in it, kept disks too: there is no way back.
    ///
    /// # Errors
    /// If it runs, or a file cannot be removed.
    pub fn remove(&self, instance: &Instance, store: &Store) -> Result<(), InstanceError> {
        let _held = instance.hold()?;
        // renamed away first: a half-removed instance is never found
        let aside = self.dir.join(format!(".removed-{}-{}", instance.name(), random_hex(4)));
        fs::rename(&instance.dir, &aside).map_err(file_error("remove", &instance.dir))?;
        let _ = store.forget_instance(&instance.dir.join(record::RECORD));
        fs::remove_dir_all(&aside).map_err(file_error("remove", &aside))
    }

    /// Gives an instance another name. Its identity, and what the guest sees, stay.
    ///
    /// # Errors
    /// If it runs, or the new name is taken or can be none.
    pub fn rename(&self, instance: &Instance, to: &str, store: &Store) -> Result<Instance, InstanceError> {
        check_name(to)?;
        let _held = instance.hold()?;
        let dir = self.dir.join(to);
        disk::rename_new(&instance.dir, &dir).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => InstanceError::Exists { name: to.to_owned(), dir: dir.clone() },
            _ => file_error("rename", &instance.dir)(error),
        })?;
        let mut moved = Instance::open(&dir)?;
        to.clone_into(&mut moved.record.name);
        moved.save()?;
        moved.protect(store)?;
        let _ = store.forget_instance(&instance.dir.join(record::RECORD));
        Ok(moved)
    }
}

/// Who makes an instance in a folder of this name; `None` for any other name.
fn maker_of(name: &str) -> Option<ProcessRef> {
    let mut parts = name.strip_prefix(".new-")?.split('-');
    Some(ProcessRef { pid: parts.next()?.parse().ok()?, start_time: parts.next()?.parse().ok()? })
}

impl Instance {
    /// Reads an instance, and first finishes what an interrupted change left half done.
    fn open(dir: &Path) -> Result<Self, InstanceError> {
        let name = dir.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        let record = Record::read(dir)?;
        let system = match System::read(&dir.join(record::SYSTEM)) {
            Err(error) if !dir.join(record::SYSTEM).exists() => {
                return Err(InstanceError::NoSystem { name, why: error.to_string() });
            }
            other => other?,
        };
        Ok(Self { dir: dir.to_owned(), record: Record { name, ..record }, system })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.record.name
    }

    /// The system disk.
    pub fn disk(&self) -> PathBuf {
        self.system_dir().join(record::DISK)
    }

    /// The UEFI variables; made at the first start of a machine with UEFI.
    pub fn vars(&self) -> PathBuf {
        self.system_dir().join(record::VARS)
    }

    /// The folder of the virtual TPM's state.
    pub fn tpm(&self) -> PathBuf {
        self.system_dir().join(record::TPM)
    }

    /// What an installed system has beside its disk: copies that its first start or its making put here. `None` for a system
    /// that was not installed.
    ///
    /// # Errors
    /// If a part is missing, or this host has no such firmware.
    pub fn private_parts(&self) -> Result<Option<Private>, InstanceError> {
        let Some(sealed) = &self.system.sealed else { return Ok(None) };
        let identity = Identity { uuid: self.record.uuid.clone(), serial: self.record.serial.clone() };
        let who = Who { identity: Some(&identity), empty_tpm: true };
        let dir = self.system_dir();
        sealed.private_parts(None, &dir, who).map(Some).map_err(file_error("use", &dir))
    }

    /// Notes what the guest was given at its first start.
    ///
    /// # Errors
    /// What the file system says.
    pub(crate) fn note_given(&self, fields: &[String]) -> Result<(), InstanceError> {
        let dir = self.system_dir();
        let mut system = System::read(&dir)?;
        system.given.extend(fields.iter().cloned());
        system.write(&dir)
    }

    /// A kept disk's file.
    pub fn kept_disk(&self, disk: &KeptDisk) -> PathBuf {
        disk.path.clone().unwrap_or_else(|| self.dir.join(record::DISKS).join(format!("{}.qcow2", disk.name)))
    }

    fn system_dir(&self) -> PathBuf {
        self.dir.join(record::SYSTEM)
    }

    /// Locks it. One process at a time runs or changes an instance.
    ///
    /// # Errors
    /// [`InstanceError::Busy`].
    pub fn hold(&self) -> Result<Held, InstanceError> {
        let path = self.dir.join(record::LOCK);
        let file = File::options().create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(file_error("open", &path))?;
        let deadline = Instant::now() + LOCK_LIMIT;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Held(file)),
                Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    return Err(InstanceError::Busy { name: self.name().to_owned() });
                }
                Err(error) => return Err(file_error("lock", &path)(error.into())),
            }
        }
    }

    /// Writes the record.
    ///
    /// # Errors
    /// What the file system says.
    pub fn save(&self) -> Result<(), InstanceError> {
        self.record.write(&self.dir)
    }

    /// Keeps the images below this instance from being removed. A store that is read-only here cannot lose them from here.
    ///
    /// # Errors
    /// If the store cannot be written for another reason.
    pub fn protect(&self, store: &Store) -> Result<(), InstanceError> {
        let old = System::read(&self.dir.join(record::OLD)).ok();
        let keys: Vec<_> = self
            .system
            .image
            .iter()
            .chain(old.iter().filter_map(|old| old.image.as_ref()))
            .cloned()
            .collect();
        match store.keep_for_instance(self.name(), &self.dir.join(record::RECORD), &keys) {
            Ok(()) | Err(no43_builder::store::StoreError::ReadOnly { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// How its last run ended.
    pub fn last_run(&self) -> Option<LastRun> {
        record::read_json(&self.dir.join(record::LAST)).ok()
    }

    /// Notes how a run ended.
    ///
    /// # Errors
    /// What the file system says.
    pub fn note_last_run(&self, last: &LastRun) -> Result<(), InstanceError> {
        record::write_json(&self.dir, record::LAST, last)
    }

    /// Bytes that its files take on this host's disk.
    pub fn bytes(&self) -> u64 {
        disk::allocated(&self.dir)
    }
}

#[cfg(test)]
mod tests;
