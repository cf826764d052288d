//! UEFI firmware, found by the descriptors that every distribution installs, never by a hard-coded path.

mod der;
pub mod keys;
mod signature;

pub use signature::signers;

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::spec::{DiskFormat, Firmware, FlashFile};

/// Where descriptors are, the most important directory first. A file of the same name in an earlier one hides the later.
pub const DESCRIPTOR_DIRS: [&str; 2] = ["/etc/qemu/firmware", "/usr/share/qemu/firmware"];

/// What the firmware must be able to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// Boots anything.
    Plain,
    /// Boots only what Microsoft's keys have signed.
    SecureBoot,
}

/// One firmware of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The descriptor that names it.
    pub descriptor: PathBuf,
    /// The code.
    pub code: FlashFile,
    /// The variables of a new machine; copied, never used.
    pub vars_template: FlashFile,
    /// The code needs System Management Mode.
    pub smm: bool,
}

impl Found {
    /// Makes a machine's own copy of the variables at `vars` (which must not exist) and the firmware with it.
    ///
    /// # Errors
    /// What the system says.
    pub fn with_own_vars(&self, vars: &Path) -> io::Result<Firmware> {
        let mut from = fs::File::open(&self.vars_template.path)?;
        // A plain copy would take over the template's mode, which is often read-only.
        io::copy(&mut from, &mut fs::File::create_new(vars)?)?;
        let vars = FlashFile { path: vars.to_owned(), format: self.vars_template.format };
        Ok(Firmware::Uefi { code: self.code.clone(), vars, smm: self.smm })
    }
}

/// Why there is no firmware.
#[derive(Debug, thiserror::Error)]
pub enum FirmwareError {
    /// Nothing fits.
    #[error(
        "no {} for {machine} among the {looked_at} firmware descriptors in {}: install the package 'ovmf' \
         (Fedora: 'edk2-ovmf')",
        match wanted { Wanted::Plain => "UEFI firmware", Wanted::SecureBoot => "UEFI firmware with Secure Boot and enrolled keys" },
        DESCRIPTOR_DIRS.join(", ")
    )]
    NotFound {
        /// What was asked for.
        wanted: Wanted,
        /// The machine type.
        machine: String,
        /// How many descriptors there are.
        looked_at: usize,
    },
}

/// Finds the firmware that the distribution prefers among those that fit this machine type.
///
/// # Errors
/// [`FirmwareError::NotFound`]. Descriptors that cannot be understood are passed over: they may be newer than this program.
pub fn find(wanted: Wanted, machine_type: &str) -> Result<Found, FirmwareError> {
    let dirs: Vec<PathBuf> = own_dir().into_iter().chain(DESCRIPTOR_DIRS.map(PathBuf::from)).collect();
    find_in(&dirs, wanted, machine_type)
}

/// The person's own descriptors come first, as QEMU's `docs/interop/firmware.json` says.
fn own_dir() -> Option<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let config = absolute("XDG_CONFIG_HOME").or_else(|| Some(absolute("HOME")?.join(".config")))?;
    Some(config.join("qemu/firmware"))
}

fn find_in(dirs: &[PathBuf], wanted: Wanted, machine_type: &str) -> Result<Found, FirmwareError> {
    let files = descriptor_files(dirs);
    let fitting = files.iter().find_map(|path| {
        let descriptor: Descriptor = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
        descriptor.fits(wanted, machine_type).then(|| descriptor.found(path.clone())).flatten()
    });
    fitting.ok_or_else(|| FirmwareError::NotFound {
        wanted,
        machine: machine_type.to_owned(),
        looked_at: files.len(),
    })
}

/// The order of file names over all directories is the order of preference. An empty file hides one without a replacement.
fn descriptor_files(dirs: &[PathBuf]) -> Vec<PathBuf> {
    let mut files: Vec<(OsString, PathBuf)> = Vec::new();
    for dir in dirs {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let (name, path) = (entry.file_name(), entry.path());
            let is_new = files.iter().all(|(known, _)| *known != name);
            if is_new && path.extension().is_some_and(|extension| extension == "json") {
                files.push((name, path));
            }
        }
    }
    files.sort();
    files.into_iter().map(|(_, path)| path).collect()
}

/// QEMU's `docs/interop/firmware.json`, as far as it matters here.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Descriptor {
    interface_types: Vec<String>,
    mapping: Mapping,
    targets: Vec<Target>,
    features: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Mapping {
    device: String,
    mode: Option<String>,
    executable: Option<FlashPart>,
    nvram_template: Option<FlashPart>,
}

#[derive(Debug, Deserialize)]
struct FlashPart {
    filename: PathBuf,
    format: DiskFormat,
}

#[derive(Debug, Deserialize)]
struct Target {
    architecture: String,
    machines: Vec<String>,
}

impl Descriptor {
    fn fits(&self, wanted: Wanted, machine_type: &str) -> bool {
        let has = |feature: &str| self.features.iter().any(|known| known == feature);
        let security = match wanted {
            // Firmware with enrolled keys would refuse an unsigned loader.
            Wanted::Plain => !has("secure-boot") && !has("requires-smm"),
            Wanted::SecureBoot => has("secure-boot") && has("enrolled-keys"),
        };
        let machine = |pattern: &String| match pattern.strip_suffix('*') {
            Some(start) => machine_type.starts_with(start),
            None => machine_type == pattern,
        };
        // Firmware for confidential guests has no variables of its own, or only boots with their hardware.
        let split = self.mapping.mode.as_deref().is_none_or(|mode| mode == "split");
        security
            && split
            && self.mapping.device == "flash"
            && self.interface_types.iter().any(|kind| kind == "uefi")
            && self
                .targets
                .iter()
                .any(|target| target.architecture == "x86_64" && target.machines.iter().any(machine))
    }

    fn found(&self, descriptor: PathBuf) -> Option<Found> {
        let part = |part: &FlashPart| FlashFile { path: part.filename.clone(), format: part.format };
        Some(Found {
            descriptor,
            code: part(self.mapping.executable.as_ref()?),
            vars_template: part(self.mapping.nvram_template.as_ref()?),
            smm: self.features.iter().any(|feature| feature == "requires-smm"),
        })
    }
}

#[cfg(test)]
mod tests;
