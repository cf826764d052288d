//! Snapshots of a stopped instance: disk, UEFI variables and vTPM together, or not at all.
//!
//! The disk's part is a snapshot inside the qcow2 file: it takes no time and no room until the guest writes. It counts only
//! if the folder with the other parts is there, which is renamed into place last.

use std::fs;

use super::error::{InstanceError, file_error};
use super::record::{self, Snapshot, System};
use super::{Instance, check_name, disk};

impl Instance {
    /// Saves the state of a stopped instance under a name. Kept disks are not part of it.
    ///
    /// # Errors
    /// If it runs, or the name is taken.
    pub fn snapshot(&mut self, name: &str) -> Result<(), InstanceError> {
        check_name(name)?;
        let _held = self.hold()?;
        self.finish_restore()?;
        if self.system.snapshots.iter().any(|known| known.name == name) {
            return Err(InstanceError::Refused(format!(
                "instance '{}' has a snapshot '{name}' already",
                self.name()
            )));
        }
        let dir = self.system_dir();
        let place = dir.join(record::SNAPSHOTS).join(name);
        disk::remove_dir_if_there(&place).map_err(file_error("remove", &place))?;
        fs::create_dir_all(&place).map_err(file_error("make", &place))?;
        disk::mirror_file(&self.vars(), &place.join(record::VARS)).map_err(file_error("copy", &place))?;
        disk::copy_dir(&self.tpm(), &place.join(record::TPM)).map_err(file_error("copy", &place))?;
        // what an interrupted snapshot of this name left
        let _ = self.snapshot_command("-d", name);
        self.snapshot_command("-c", name)?;
        self.system.snapshots.push(Snapshot { name: name.to_owned(), created: record::now() });
        self.system.write(&dir)
    }

    /// Makes the state of a snapshot the current one. What was written since is gone.
    ///
    /// # Errors
    /// If it runs, or there is no such snapshot.
    pub fn restore(&mut self, name: &str) -> Result<(), InstanceError> {
        let _held = self.hold()?;
        if !self.system.snapshots.iter().any(|known| known.name == name) {
            let names: Vec<&str> = self.system.snapshots.iter().map(|known| known.name.as_str()).collect();
            return Err(InstanceError::Refused(format!(
                "instance '{}' has no snapshot '{name}'; it has: {}",
                self.name(),
                if names.is_empty() { "none".to_owned() } else { names.join(", ") }
            )));
        }
        // written down first: a kill from here on is finished by the next start
        self.system.restoring = Some(name.to_owned());
        self.system.write(&self.system_dir())?;
        self.finish_restore()?;
        self.system.restoring = None;
        Ok(())
    }

    /// Removes a snapshot.
    ///
    /// # Errors
    /// If it runs, or there is no such snapshot.
    pub fn drop_snapshot(&mut self, name: &str) -> Result<(), InstanceError> {
        let _held = self.hold()?;
        let before = self.system.snapshots.len();
        self.system.snapshots.retain(|known| known.name != name);
        if self.system.snapshots.len() == before {
            return Err(InstanceError::Refused(format!(
                "instance '{}' has no snapshot '{name}'",
                self.name()
            )));
        }
        self.system.write(&self.system_dir())?;
        let place = self.system_dir().join(record::SNAPSHOTS).join(name);
        self.snapshot_command("-d", name)?;
        disk::remove_dir_if_there(&place).map_err(file_error("remove", &place))
    }

    /// Carries out a restore that was begun; doing it twice is the same as once. The caller holds the instance.
    pub(super) fn finish_restore(&self) -> Result<(), InstanceError> {
        let dir = self.system_dir();
        let system = System::read(&dir)?;
        let Some(name) = &system.restoring else { return Ok(()) };
        let place = dir.join(record::SNAPSHOTS).join(name);
        self.snapshot_command("-a", name)?;
        disk::mirror_file(&place.join(record::VARS), &self.vars()).map_err(file_error("restore", &place))?;
        let tpm = self.tpm();
        disk::remove_dir_if_there(&tpm).map_err(file_error("remove", &tpm))?;
        disk::copy_dir(&place.join(record::TPM), &tpm).map_err(file_error("restore", &place))?;
        System { restoring: None, ..system }.write(&dir)
    }

    fn snapshot_command(&self, what: &str, name: &str) -> Result<(), InstanceError> {
        let word = match what {
            "-c" => "save",
            "-a" => "restore",
            _ => "remove",
        };
        let disk = self.disk();
        let args = [std::ffi::OsStr::new("snapshot"), what.as_ref(), name.as_ref(), disk.as_os_str()];
        disk::qemu_img(&format!("{word} the snapshot '{name}'"), args).map(drop)
    }
}
