//! Drivers for Windows from a virtio-win ISO, taken in place: just those of the machine's own buses.
//!
//! The ISO has one folder for each driver, system and architecture (`viostor/w10/amd64`). Windows Setup loads what lies
//! below `$WinPEDriver$` on the set-up disk and carries it into the installed system; only what Setup itself needs to see
//! disk and network belongs there, and never two versions of one driver.

mod iso9660;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::media::System;
use crate::setup_disk::{SetupDisk, SetupDiskError, Source};
use iso9660::{Iso, IsoError};

/// One driver of the ISO.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Driver {
    /// Its folder at the ISO's top.
    pub folder: &'static str,
    /// The file that Windows installs it by.
    pub inf: &'static str,
    /// For people.
    pub what: &'static str,
    /// When it must be there.
    pub phase: Phase,
    /// What a recipe without this driver can say instead.
    pub instead: Option<&'static str>,
}

/// When a driver must be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// While Windows Setup runs: below `$WinPEDriver$`.
    Setup,
    /// Before the first agent answers: staged with the guest program.
    Image,
    /// When the desktop is up.
    FirstBoot,
}

const fn driver(folder: &'static str, inf: &'static str, what: &'static str, phase: Phase) -> Driver {
    Driver { folder, inf, what, phase, instead: None }
}

const fn or_else(driver: Driver, instead: &'static str) -> Driver {
    Driver { instead: Some(instead), ..driver }
}

/// `virtio-blk`
pub static DISK: Driver =
    or_else(driver("viostor", "viostor.inf", "virtio disk", Phase::Setup), "machine.disk-bus = \"ahci\"");
/// `virtio-scsi`
pub static SCSI: Driver = or_else(
    driver("vioscsi", "vioscsi.inf", "virtio SCSI controller", Phase::Setup),
    "machine.disk-bus = \"ahci\"",
);
/// `virtio-net`
pub static NETWORK: Driver = driver("NetKVM", "netkvm.inf", "virtio network card", Phase::Setup);
/// The guest agent's channel.
pub static SERIAL: Driver = driver("vioserial", "vioser.inf", "virtio serial ports", Phase::Image);
/// Gives memory back to the host.
pub static BALLOON: Driver = driver("Balloon", "balloon.inf", "memory balloon", Phase::FirstBoot);
/// Entropy.
pub static RANDOM: Driver = driver("viorng", "viorng.inf", "random numbers", Phase::FirstBoot);
/// Keyboard, mouse, tablet.
pub static INPUT: Driver = driver("vioinput", "vioinput.inf", "virtio input", Phase::FirstBoot);
/// Tells the host of a stop code.
pub static PANIC: Driver = driver("pvpanic", "pvpanic.inf", "panic notifier", Phase::FirstBoot);

/// Where Windows Setup looks for drivers on removable media.
pub const WINPE_DRIVERS: &str = "$WinPEDriver$";
/// The guest agent's installer on the ISO.
pub const GUEST_AGENT: &str = "guest-agent/qemu-ga-x86_64.msi";

const ARCHITECTURE: &str = "amd64";
/// Debugger symbols: larger than all the rest, and no part of a driver.
const LEFT_OUT: &str = ".pdb";
/// Setup of Windows 11 24H2 and Server 2025 does not get through with older ones (kvm-guest-drivers-windows#1100, #1186).
const NEEDS: (u32, [u32; 3]) = (26100, [0, 1, 258]);

/// Why there is no driver.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The ISO cannot be read.
    #[error("failed to read {path}: {source}")]
    Io {
        /// The ISO.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// Not an ISO, or a damaged one.
    #[error(
        "{path} is not a virtio-win ISO: {why}\n    fix   name the ISO of the virtio-win project as inputs.virtio"
    )]
    NotVirtioWin {
        /// The file.
        path: PathBuf,
        /// What was found.
        why: String,
    },
    /// No drivers for this system.
    #[error(
        "{path} carries {driver} for {held}, the media is {system}\n    fix   inputs.virtio: use an ISO with \
         {driver}/{folder}/{ARCHITECTURE}{}", instead.map_or_else(String::new, |instead| format!(", or set {instead}"))
    )]
    NoFolder {
        /// The ISO.
        path: PathBuf,
        /// The driver's folder.
        driver: &'static str,
        /// Systems that it has this driver for.
        held: String,
        /// The system of the media.
        system: &'static str,
        /// That system's folder.
        folder: &'static str,
        /// What would do without it.
        instead: Option<&'static str>,
    },
    /// A folder without the file that Windows installs by.
    #[error("{folder} on {path} is not a driver: there is no {inf}")]
    NoInf {
        /// The ISO.
        path: PathBuf,
        /// The driver's folder for this system.
        folder: String,
        /// What is missing.
        inf: &'static str,
    },
    /// A name or place that a set-up disk cannot take.
    #[error(transparent)]
    SetupDisk(#[from] SetupDiskError),
}

/// A file of a driver: its name, and where it lies in the ISO.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriverFile {
    /// Without folders.
    pub name: String,
    /// A piece of the ISO.
    pub source: Source,
}

/// An open virtio-win ISO.
#[derive(Debug)]
pub struct VirtioWin {
    path: PathBuf,
    iso: Iso,
}

impl VirtioWin {
    /// Opens the ISO; only its descriptors are read.
    ///
    /// # Errors
    /// A file that cannot be read or is something else.
    pub fn open(path: &Path) -> Result<Self, DriverError> {
        let iso = Iso::open(path).map_err(|error| of_iso(path, error))?;
        let found = Self { path: path.to_owned(), iso };
        if found.iso.find(DISK.folder).map_err(|error| of_iso(path, error))?.is_none() {
            let why = format!("the disc '{}' has no folder {}", found.iso.label.escape_debug(), DISK.folder);
            return Err(DriverError::NotVirtioWin { path: path.to_owned(), why });
        }
        Ok(found)
    }

    /// Such as `[0, 1, 285]`, from the disc's label.
    #[must_use]
    pub fn version(&self) -> Option<[u32; 3]> {
        let label = self.iso.label.to_ascii_lowercase();
        let mut parts = label.strip_prefix("virtio-win-")?.split(['.', '-']).map(str::parse);
        let mut part = || parts.next()?.ok();
        Some([part()?, part()?, part()?])
    }

    /// A sentence if these drivers are known not to get through the set-up of this build of Windows.
    #[must_use]
    pub fn warning(&self, build: u32) -> Option<String> {
        let (from, least) = NEEDS;
        let dotted = |version: [u32; 3]| version.map(|part| part.to_string()).join(".");
        let version = self.version().filter(|version| build >= from && *version < least)?;
        Some(format!(
            "virtio-win {} is known to stop Windows Setup of build {build}; take {} or newer",
            dotted(version),
            dotted(least)
        ))
    }

    /// The files of `driver` for `system`.
    ///
    /// # Errors
    /// The ISO has none, or cannot be read.
    pub fn driver(&self, driver: &Driver, system: &System) -> Result<Vec<DriverFile>, DriverError> {
        let failed = |error| of_iso(&self.path, error);
        let folder = format!("{}/{}/{ARCHITECTURE}", driver.folder, system.virtio);
        let Some(entries) = self.iso.list(&folder).map_err(failed)? else {
            return Err(DriverError::NoFolder {
                path: self.path.clone(),
                driver: driver.folder,
                held: self.held(driver).map_err(failed)?,
                system: system.name,
                folder: system.virtio,
                instead: driver.instead,
            });
        };
        let files: Vec<DriverFile> = entries
            .into_iter()
            .filter(|entry| !entry.directory && !entry.name.to_ascii_lowercase().ends_with(LEFT_OUT))
            .map(|entry| DriverFile {
                source: Source::Piece { path: self.path.clone(), at: entry.at, length: entry.bytes },
                name: entry.name,
            })
            .collect();
        if !files.iter().any(|file| file.name.eq_ignore_ascii_case(driver.inf)) {
            return Err(DriverError::NoInf { path: self.path.clone(), folder, inf: driver.inf });
        }
        Ok(files)
    }

    /// Which systems the ISO has this driver for, as it names them.
    fn held(&self, driver: &Driver) -> Result<String, IsoError> {
        let mut held = Vec::new();
        for system in self.iso.list(driver.folder)?.unwrap_or_default() {
            let folder = format!("{}/{}/{ARCHITECTURE}", driver.folder, system.name);
            if self.iso.list(&folder)?.is_some() {
                held.push(system.name);
            }
        }
        let held = held.join(", ").escape_debug().to_string();
        Ok(if held.is_empty() { "no system".to_owned() } else { held })
    }

    /// What the lock keeps: the version, and for which systems there are the drivers that an installation may need.
    ///
    /// # Errors
    /// The ISO cannot be read.
    pub fn facts(&self) -> Result<BTreeMap<String, String>, DriverError> {
        let mut facts = BTreeMap::new();
        if let Some(version) = self.version() {
            facts.insert("virtio-win".to_owned(), version.map(|part| part.to_string()).join("."));
        }
        for driver in [&DISK, &SCSI, &NETWORK, &SERIAL] {
            let held = self.held(driver).map_err(|error| of_iso(&self.path, error))?;
            facts.insert(driver.folder.to_owned(), held);
        }
        Ok(facts)
    }

    /// Another file of the ISO, such as [`GUEST_AGENT`].
    ///
    /// # Errors
    /// The ISO cannot be read.
    pub fn file(&self, path: &str) -> Result<Option<Source>, DriverError> {
        let entry = self.iso.find(path).map_err(|error| of_iso(&self.path, error))?;
        let piece = |entry: iso9660::Entry| Source::Piece {
            path: self.path.clone(),
            at: entry.at,
            length: entry.bytes,
        };
        Ok(entry.filter(|entry| !entry.directory).map(piece))
    }

    /// Puts `drivers` onto a set-up disk, each into a folder of its own below `at` (such as [`WINPE_DRIVERS`]). Returns
    /// the paths of their inf files there.
    ///
    /// # Errors
    /// As [`VirtioWin::driver`]; two drivers of the same name.
    pub fn put(
        &self,
        disk: &mut SetupDisk,
        at: &str,
        drivers: &[&Driver],
        system: &System,
    ) -> Result<Vec<String>, DriverError> {
        let mut infs = Vec::new();
        for driver in drivers {
            for file in self.driver(driver, system)? {
                let path = format!("{at}/{}/{}", driver.folder, file.name);
                disk.file(&path, file.source)?;
                if file.name.eq_ignore_ascii_case(driver.inf) {
                    infs.push(path);
                }
            }
        }
        Ok(infs)
    }
}

fn of_iso(path: &Path, error: IsoError) -> DriverError {
    let path = path.to_owned();
    match error {
        IsoError::Io(source) => DriverError::Io { path, source },
        IsoError::Damaged(why) => DriverError::NotVirtioWin { path, why },
    }
}

#[cfg(test)]
mod tests;
