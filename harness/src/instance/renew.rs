//! Renew: a new system disk from a new image; kept disks stay, and the old system disk stays until the person confirms.

use no43_builder::plan::IdentityKind;

use super::create::{Origin, make_system};
use super::error::{InstanceError, file_error};
use super::record::{self, System};
use super::{Instance, disk};

/// What a renew did.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Renewed {
    /// There is a new system disk; the old one is kept.
    New,
    /// The old system disk is gone.
    Confirmed,
    /// The old system disk is the current one again.
    Undone,
}

impl Instance {
    /// Makes a new system disk on `origin`. The old one is kept in `old` until [`Instance::confirm`] or
    /// [`Instance::undo_renew`].
    ///
    /// # Errors
    /// If it runs, or an earlier renew was not confirmed yet.
    pub fn renew(&mut self, origin: &Origin<'_>, identity: IdentityKind) -> Result<Renewed, InstanceError> {
        let _held = self.hold()?;
        let (dir, old) = (self.system_dir(), self.dir.join(record::OLD));
        if System::read(&old).is_ok() {
            return Err(InstanceError::Refused(format!(
                "instance '{0}' was renewed before, and its former system disk is still kept: confirm with no43 instance renew {0} --confirm, or go back with --undo",
                self.name()
            )));
        }
        // the new one is made in the place of the old one, and then both change places in one step
        disk::remove_dir_if_there(&old).map_err(file_error("remove", &old))?;
        make_system(&old, origin, identity)?;
        disk::exchange(&dir, &old).map_err(file_error("exchange", &dir))?;
        self.system = System::read(&dir)?;
        self.protect(origin.store)?;
        Ok(Renewed::New)
    }

    /// Whether a former system disk waits to be confirmed away.
    pub fn has_old(&self) -> bool {
        System::read(&self.dir.join(record::OLD)).is_ok()
    }

    /// Removes the former system disk.
    ///
    /// # Errors
    /// If there is none, or the instance runs.
    pub fn confirm(&mut self, store: &no43_builder::store::Store) -> Result<Renewed, InstanceError> {
        let _held = self.hold()?;
        let old = self.former()?;
        let aside = self.dir.join(format!(".old-{}", record::random_hex(4)));
        std::fs::rename(&old, &aside).map_err(file_error("remove", &old))?;
        std::fs::remove_dir_all(&aside).map_err(file_error("remove", &aside))?;
        self.protect(store)?;
        Ok(Renewed::Confirmed)
    }

    /// Goes back to the former system disk; the new one is removed.
    ///
    /// # Errors
    /// If there is none, or the instance runs.
    pub fn undo_renew(&mut self, store: &no43_builder::store::Store) -> Result<Renewed, InstanceError> {
        {
            let _held = self.hold()?;
            let old = self.former()?;
            disk::exchange(&self.system_dir(), &old).map_err(file_error("exchange", &old))?;
            self.system = System::read(&self.system_dir())?;
        }
        self.confirm(store)?;
        Ok(Renewed::Undone)
    }

    fn former(&self) -> Result<std::path::PathBuf, InstanceError> {
        let nothing = || {
            InstanceError::Refused(format!(
                "instance '{}' has no former system disk: it was not renewed",
                self.name()
            ))
        };
        if self.has_old() { Ok(self.dir.join(record::OLD)) } else { Err(nothing()) }
    }
}
