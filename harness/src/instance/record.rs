//! What an instance's files say: its identity, its recipe, its disks; and how such a file is read and written.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use no43_builder::key::Key;
use no43_builder::windows::Sealed;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::error::{InstanceError, file_error};

/// The newest format that is read, and the one that is written.
pub(super) const FORMAT: u32 = 1;
/// The longest name: it is part of socket paths, which have at most 107 bytes.
pub(super) const NAME_MAX: usize = 40;
/// A record with a plan of a hundred steps has some 100 KiB.
const RECORD_MAX: u64 = 8 << 20;

pub(crate) const RECORD: &str = "instance.json";
pub(super) const LOCK: &str = "lock";
pub(super) const SYSTEM: &str = "system";
pub(super) const OLD: &str = "old";
pub(super) const DISKS: &str = "disks";
pub(super) const LAST: &str = "last.json";
pub(super) const SYSTEM_RECORD: &str = "system.json";
pub(super) const DISK: &str = "disk.qcow2";
pub(super) const VARS: &str = "vars.fd";
pub(super) const TPM: &str = "tpm";
pub(super) const SNAPSHOTS: &str = "snapshots";
pub(super) const KERNEL: &str = "kernel";
pub(super) const INITRD: &str = "initrd";

/// Who an instance is. What is in here never changes by itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Version of this format.
    pub format: u32,
    /// The folder's name counts; this is for people who read the file.
    pub name: String,
    /// The SMBIOS UUID: Windows ties its licence to it.
    pub uuid: String,
    /// The network card's address.
    pub mac: String,
    /// The system disk's serial number.
    pub serial: String,
    /// Hash of the host's machine id, to notice a copied folder.
    pub host: String,
    /// The recipe that it was made from.
    pub recipe: PathBuf,
    /// Seconds since 1970.
    pub created: u64,
    /// Removed when its run ends.
    pub ephemeral: bool,
    /// Who made a throw-away one: it is removed if that dies before it runs.
    #[serde(default)]
    pub maker: Option<no43_host::ProcessRef>,
    /// The plan of its last start, without which it could not start when the recipe is gone.
    pub plan: Value,
    /// Disks that outlive a renew.
    #[serde(default)]
    pub disks: Vec<KeptDisk>,
}

/// A disk that outlives every renew of the system disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptDisk {
    /// Its name in the recipe.
    pub name: String,
    /// Its serial number, by which the guest finds it.
    pub serial: String,
    /// Its virtual size.
    pub bytes: u64,
    /// A file or device of the person's own; `None` for one that is kept here.
    pub path: Option<PathBuf>,
}

/// What a system disk lies on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct System {
    /// Version of this format.
    pub format: u32,
    /// The image; `None` for a disk that stands alone (imported from a backup).
    pub image: Option<Key>,
    /// SHA-256 of every disk below, the image's own first. A key names inputs; an overlay needs the very bytes.
    pub below: Vec<String>,
    /// The store that the image is in.
    pub store: PathBuf,
    /// The kernel's command line, where kernel and initrd lie beside a disk that stands alone.
    pub direct: Option<String>,
    /// Seconds since 1970.
    pub created: u64,
    /// Snapshots, the oldest first.
    #[serde(default)]
    pub snapshots: Vec<Snapshot>,
    /// A restore that was begun: it is finished before the next start.
    #[serde(default)]
    pub restoring: Option<String>,
    /// Of a system that was installed: firmware, TPM, how its disk is attached.
    #[serde(default)]
    pub sealed: Option<Sealed>,
    /// What its guest was given at its first start, by the names of `no43_guest::setup::first_start`.
    #[serde(default)]
    pub given: Vec<String>,
}

/// A saved state of disk, UEFI variables and vTPM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Its name.
    pub name: String,
    /// Seconds since 1970.
    pub created: u64,
}

/// How the last run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastRun {
    /// Seconds since 1970.
    pub began: u64,
    /// Seconds since 1970.
    pub ended: u64,
    /// In words.
    pub how: String,
    /// It ended by its own or a person's wish.
    pub orderly: bool,
}

/// Whether `name` can be an instance's: a folder's, a machine's and a unit's name.
///
/// # Errors
/// [`InstanceError::BadName`].
pub fn check_name(name: &str) -> Result<(), InstanceError> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let why = match name {
        "" => "it is empty",
        _ if name.len() > NAME_MAX => "it is too long",
        _ if name.contains('/') => "it holds a '/'",
        _ if !name.starts_with(|c: char| c.is_ascii_alphanumeric()) => {
            "it does not begin with a letter or digit"
        }
        _ if !name.chars().all(good) => "it holds other characters",
        _ => return Ok(()),
    };
    Err(InstanceError::BadName { name: name.to_owned(), why })
}

impl Record {
    pub(super) fn read(dir: &Path) -> Result<Self, InstanceError> {
        let record: Record = read_json(&dir.join(RECORD))?;
        check_format(record.format, &dir.join(RECORD))?;
        Ok(record)
    }

    pub(super) fn write(&self, dir: &Path) -> Result<(), InstanceError> {
        write_json(dir, RECORD, self)
    }
}

impl System {
    pub(super) fn read(dir: &Path) -> Result<Self, InstanceError> {
        let system: System = read_json(&dir.join(SYSTEM_RECORD))?;
        check_format(system.format, &dir.join(SYSTEM_RECORD))?;
        Ok(system)
    }

    pub(super) fn write(&self, dir: &Path) -> Result<(), InstanceError> {
        write_json(dir, SYSTEM_RECORD, self)
    }
}

fn check_format(format: u32, path: &Path) -> Result<(), InstanceError> {
    if format <= FORMAT { Ok(()) } else { Err(InstanceError::TooNew { path: path.to_owned(), format }) }
}

/// Reads one JSON value of bounded length.
pub(super) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, InstanceError> {
    let file = File::open(path).map_err(file_error("read", path))?;
    let mut bytes = Vec::new();
    file.take(RECORD_MAX + 1).read_to_end(&mut bytes).map_err(file_error("read", path))?;
    let damaged = |why: String| InstanceError::Damaged { path: path.to_owned(), why };
    if bytes.len() as u64 > RECORD_MAX {
        return Err(damaged("it is absurdly long".into()));
    }
    serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))
}

/// Writes aside, syncs and renames: after that the file is there whole, power cut or not.
pub(super) fn write_json<T: Serialize>(dir: &Path, name: &str, value: &T) -> Result<(), InstanceError> {
    let path = dir.join(name);
    let aside = dir.join(format!(".{name}.{}", random_hex(4)));
    let written = (|| {
        let mut text = serde_json::to_vec_pretty(value)?;
        text.push(b'\n');
        let mut file = File::create_new(&aside)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&aside, &path)?;
        File::open(dir)?.sync_all()
    })();
    written.map_err(|why| {
        let _ = fs::remove_file(&aside);
        file_error("write", &path)(why)
    })
}

/// `2 * bytes` hexadecimal digits from the kernel's random numbers.
pub fn random_hex(bytes: usize) -> String {
    random(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn random(bytes: usize) -> Vec<u8> {
    let mut buffer = vec![0u8; bytes];
    // cannot fail on a kernel since 3.17 that has booted
    let _ = File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut buffer));
    buffer
}

/// A serial number, of the machine and its system disk.
pub(crate) fn new_serial() -> String {
    format!("NO43{}", random_hex(6).to_uppercase())
}

/// A random UUID (RFC 4122, version 4).
pub(crate) fn new_uuid() -> String {
    let mut b = random(16);
    b[6] = b[6] & 0x0f | 0x40;
    b[8] = b[8] & 0x3f | 0x80;
    let hex: String = b.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// An address in QEMU's own range, 52:54:00.
pub(super) fn new_mac() -> String {
    let b = random(3);
    format!("52:54:00:{:02x}:{:02x}:{:02x}", b[0], b[1], b[2])
}

/// A hash of this host's machine id: the id itself is not for files that travel (machine-id(5)).
pub(super) fn this_host() -> String {
    use sha2::{Digest as _, Sha256};
    let id = fs::read_to_string("/etc/machine-id").unwrap_or_default();
    let sum = Sha256::digest(format!("no43 instance {}", id.trim()).as_bytes());
    sum.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
