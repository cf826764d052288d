//! What a sealed image has beside its disk, and the private copies that every start gets.
//!
//! UEFI variables and the TPM's state change at every boot, so no start may use the image's own. Sealing happens after QEMU
//! and swtpm have ended: only then both files are at rest.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use no43_machine::firmware::{self, Wanted};
use no43_machine::spec::{DiskFormat, FlashFile, Smbios};
use no43_machine::tpm;
use serde::{Deserialize, Serialize};

use crate::image::Image;
use crate::install::{Identity, PhaseTime};
use crate::plan::{DiskBus, Firmware};

/// File names inside an image's folder.
pub(crate) const VARS: &str = "vars.fd";
pub(crate) const TPM: &str = tpm::STATE_FILE;

/// Kept in the manifest of an image that was installed by UEFI.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sealed {
    /// UEFI, with Secure Boot or without.
    pub firmware: Firmware,
    /// Format of the file with the variables.
    pub vars_format: DiskFormat,
    /// There is a TPM's state.
    pub tpm: bool,
    /// How the system disk is attached; another bus would not boot.
    pub disk_bus: DiskBus,
    /// Who the machine was while it was installed.
    pub identity: Identity,
    /// How long each phase of the installation took.
    pub phases: Vec<PhaseTime>,
    /// Actions of the set-up plan that were refused: above 0 only where the stand-in for Windows Setup was installed.
    #[serde(default)]
    pub refused_actions: u32,
}

/// What one start of an image has for itself.
#[derive(Debug)]
pub struct Private {
    /// UEFI with this start's own variables.
    pub firmware: no43_machine::spec::Firmware,
    /// The folder of the TPM's state, for [`no43_machine::tpm::Swtpm::start`].
    pub tpm_state: Option<PathBuf>,
    /// How the system disk is attached.
    pub disk_bus: no43_machine::spec::DiskBus,
    /// SMBIOS UUID.
    pub uuid: String,
    /// SMBIOS table 1.
    pub smbios: Smbios,
}

impl Image {
    /// Copies UEFI variables and TPM state into `dir`, for one start; what is there already is kept, so a machine that is
    /// started again goes on with its own. `None` for an image without such parts. `identity` is the machine's own, if it
    /// is not to be the one of the installation.
    ///
    /// # Errors
    /// When a file cannot be copied, or the firmware is not on this host.
    pub fn private_parts(&self, dir: &Path, identity: Option<&Identity>) -> io::Result<Option<Private>> {
        let Some(sealed) = &self.manifest.sealed else { return Ok(None) };
        let found = firmware::find(wanted(sealed.firmware), no43_machine::spec::DEFAULT_MACHINE_TYPE)
            .map_err(io::Error::other)?;
        fs::create_dir_all(dir)?;
        let vars = dir.join(VARS);
        copy_once(&self.dir.join(VARS), &vars)?;
        let tpm_state = match sealed.tpm {
            true => {
                let state = dir.join("tpm");
                fs::create_dir_all(&state)?;
                copy_once(&self.dir.join(TPM), &state.join(TPM))?;
                Some(state)
            }
            false => None,
        };
        let Identity { uuid, serial } = identity.unwrap_or(&sealed.identity).clone();
        Ok(Some(Private {
            firmware: no43_machine::spec::Firmware::Uefi {
                code: found.code,
                vars: FlashFile { path: vars, format: sealed.vars_format },
                smm: found.smm,
            },
            tpm_state,
            disk_bus: disk_bus(sealed.disk_bus),
            uuid,
            smbios: smbios(&serial),
        }))
    }
}

/// Images are read-only; a start's own copy is not.
fn copy_once(from: &Path, to: &Path) -> io::Result<()> {
    match fs::File::create_new(to) {
        Ok(mut file) => io::copy(&mut fs::File::open(from)?, &mut file).map(drop),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

pub(crate) fn wanted(firmware: Firmware) -> Wanted {
    match firmware {
        Firmware::UefiSecure => Wanted::SecureBoot,
        Firmware::Uefi | Firmware::Bios => Wanted::Plain,
    }
}

pub(crate) fn disk_bus(bus: DiskBus) -> no43_machine::spec::DiskBus {
    match bus {
        DiskBus::Virtio => no43_machine::spec::DiskBus::Virtio,
        DiskBus::Ahci => no43_machine::spec::DiskBus::Ahci,
        DiskBus::Nvme => no43_machine::spec::DiskBus::Nvme,
    }
}

pub(crate) fn smbios(serial: &str) -> Smbios {
    Smbios { manufacturer: "no43".to_owned(), product: "VM".to_owned(), serial: serial.to_owned() }
}
