//! What a sealed image has beside its disk, and the private copies that every start gets.
//!
//! UEFI variables and the TPM's state change at every boot, so no start may use the image's own. Sealing happens after QEMU
//! and swtpm have ended: only then both files are at rest.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use no43_machine::firmware::{self, Wanted};
use no43_machine::spec::{Clock, DiskFormat, FlashFile, MachineSpec, Smbios};
use no43_machine::tpm;
use serde::{Deserialize, Serialize};

use crate::image::Image;
use crate::install::{self, Identity, PhaseTime};
use crate::plan::{DiskBus, Firmware};

/// File names inside an image's folder.
pub(crate) const VARS: &str = "vars.fd";
pub(crate) const TPM: &str = tpm::STATE_FILE;
/// The TPM's folder among a start's own files.
const TPM_FOLDER: &str = "tpm";

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
    /// The folder of the TPM's state, for [`no43_machine::tpm::Swtpm`].
    pub tpm_state: Option<PathBuf>,
    /// How the system disk is attached.
    pub disk_bus: no43_machine::spec::DiskBus,
    /// SMBIOS UUID.
    pub uuid: String,
    /// SMBIOS table 1.
    pub smbios: Smbios,
}

impl Private {
    /// Makes `spec` the machine that was installed: firmware, the bus of its first disk, identity, the clock and the
    /// processor as Windows knows them. The TPM's socket is known only when swtpm runs.
    pub fn apply(&self, spec: &mut MachineSpec) {
        spec.firmware = self.firmware.clone();
        if let Some(system) = spec.disks.first_mut() {
            system.bus = self.disk_bus;
            system.boot_index = Some(1);
        }
        spec.uuid = Some(self.uuid.clone());
        spec.smbios = Some(self.smbios.clone());
        spec.clock = Clock::LocalTime;
        spec.panic_device = true;
        // added to what the recipe asks for, such as hiding the hypervisor
        spec.cpu = install::windows_cpu(spec.accel, &spec.cpu);
    }
}

/// Who a start of an image is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Who<'a> {
    /// `None` for the machine that was installed.
    pub identity: Option<&'a Identity>,
    /// Begin with an empty TPM instead of a copy of the image's: a TPM's keys are an identity, too.
    pub empty_tpm: bool,
}

impl Image {
    /// [`Sealed::private_parts`] with this image's own files; `None` for an image without such parts.
    ///
    /// # Errors
    /// When a file cannot be copied, or the firmware is not on this host.
    pub fn private_parts(&self, dir: &Path, who: Who<'_>) -> io::Result<Option<Private>> {
        let sealed = self.manifest.sealed.as_ref();
        sealed.map(|sealed| sealed.private_parts(Some(&self.dir), dir, who)).transpose()
    }
}

impl Sealed {
    /// Copies UEFI variables and TPM state out of the image's folder `from` into `dir`, for one start; what is there already
    /// is kept, so a machine that is started again goes on with its own. Without `from` everything must be there.
    ///
    /// # Errors
    /// When a file cannot be copied, or the firmware is not on this host.
    pub fn private_parts(&self, from: Option<&Path>, dir: &Path, who: Who<'_>) -> io::Result<Private> {
        let found = firmware::find(wanted(self.firmware), no43_machine::spec::DEFAULT_MACHINE_TYPE)
            .map_err(io::Error::other)?;
        fs::create_dir_all(dir)?;
        let vars = dir.join(VARS);
        copy_once(from, VARS, &vars)?;
        let tpm_state = match self.tpm {
            true => {
                let state = dir.join(TPM_FOLDER);
                if !state.is_dir() {
                    fs::create_dir(&state)?;
                    if !who.empty_tpm {
                        copy_once(from, TPM, &state.join(TPM))?;
                    }
                }
                Some(state)
            }
            false => None,
        };
        let Identity { uuid, serial } = who.identity.unwrap_or(&self.identity).clone();
        Ok(Private {
            firmware: no43_machine::spec::Firmware::Uefi {
                code: found.code,
                vars: FlashFile { path: vars, format: self.vars_format },
                smm: found.smm,
            },
            tpm_state,
            disk_bus: disk_bus(self.disk_bus),
            uuid,
            smbios: smbios(&serial),
        })
    }
}

/// Images are read-only; a start's own copy is not. Written whole or not at all: half a file of variables would be kept.
fn copy_once(from: Option<&Path>, name: &str, to: &Path) -> io::Result<()> {
    if to.exists() {
        return Ok(());
    }
    let missing = || io::Error::new(io::ErrorKind::NotFound, format!("{} is missing", to.display()));
    let from = from.ok_or_else(missing)?.join(name);
    let aside = to.with_extension("new");
    let copied = (|| {
        let mut file = File::create(&aside)?;
        file.set_permissions(fs::Permissions::from_mode(0o600))?;
        io::copy(&mut File::open(&from)?, &mut file)?;
        file.sync_all()?;
        fs::rename(&aside, to)
    })();
    copied
        .map_err(|error| io::Error::new(error.kind(), format!("failed to copy {}: {error}", from.display())))
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
