//! Image: one published layer in the store, read-only, with a manifest that says what went in and what it became.
//!
//! A layer's disk is a qcow2 file whose backing file is named relatively (`../<parent>/disk.qcow2`), so a store can be
//! mounted anywhere. Kernel and initrd lie beside the disk only where a machine is started with them directly.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::key::Key;
use crate::windows::Sealed;

/// The manifest's format; a reader refuses a newer one.
pub const FORMAT: u32 = 1;
/// File names inside an image's folder.
pub(crate) const MANIFEST: &str = "manifest.json";
pub(crate) const DISK: &str = "disk.qcow2";
pub(crate) const KERNEL: &str = "kernel";
pub(crate) const INITRD: &str = "initrd";

/// A published layer.
#[derive(Clone, Debug)]
pub struct Image {
    /// Its folder in the store.
    pub dir: PathBuf,
    /// What it is and how it came about.
    pub manifest: Manifest,
}

impl Image {
    /// The qcow2 file; it needs the disks of all layers below, which lie beside it in the store.
    #[must_use]
    pub fn disk(&self) -> PathBuf {
        self.dir.join(DISK)
    }

    /// Kernel, initrd and command line, if the machine is started with them directly.
    #[must_use]
    pub fn direct_kernel(&self) -> Option<DirectKernel> {
        match &self.manifest.boot {
            BootKind::Disk => None,
            BootKind::Direct { command_line, .. } => Some(DirectKernel {
                kernel: self.dir.join(KERNEL),
                initrd: self.dir.join(INITRD),
                command_line: command_line.clone(),
            }),
        }
    }

    /// What all of the image's own files take, in bytes; layers below are not counted.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.manifest.files.iter().map(|file| file.bytes).sum()
    }
}

/// What `-kernel`, `-initrd` and `-append` get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectKernel {
    /// The kernel, copied out of the image.
    pub kernel: PathBuf,
    /// The initrd.
    pub initrd: PathBuf,
    /// The kernel's command line: the root disk and what the recipe adds. The serial console is `ttyS0`.
    pub command_line: String,
}

/// What an image is and how it came about. Lies in every image's folder as `manifest.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of this format.
    pub format: u32,
    /// The layer's key, which is also the folder's name.
    pub key: Key,
    /// The layer below.
    pub parent: Option<Key>,
    /// The layer's name: "base" or the step's.
    pub layer: String,
    /// The recipe that was built when this layer was made; others may share it.
    pub recipe: String,
    /// Everything that was hashed into the key, together with the parent's key.
    pub inputs: Value,
    /// How to start it.
    pub boot: BootKind,
    /// Where it comes from.
    pub provenance: Provenance,
    /// Of an image that was installed by UEFI: what every start gets a copy of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed: Option<Sealed>,
    /// Every file beside the manifest.
    pub files: Vec<FileFact>,
}

/// How a machine starts from the image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BootKind {
    /// Bootloader and kernel are inside: BIOS and UEFI, here and under other hypervisors.
    Disk,
    /// Kernel and initrd are beside the disk and given to QEMU.
    Direct {
        /// The kernel's command line.
        command_line: String,
        /// Why this image is of this kind, for people.
        note: String,
    },
}

/// What every image of the direct kind says about itself.
pub(crate) const DIRECT_NOTE: &str = "kernel and initrd are beside the disk, only for lab host and lab guest: \
     a kernel upgrade inside does not count, and other hypervisors cannot boot this disk";

/// Where an image comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provenance {
    /// When it was made, in UTC, such as `2026-11-22T17:30:00Z`.
    pub created: String,
    /// How long it took, in milliseconds.
    pub milliseconds: u64,
    /// The version of no43.
    pub no43: String,
    /// Versions of the programs that made it.
    pub tools: BTreeMap<String, String>,
    /// How root rights inside the tree came about, such as `unshare, as an ordinary user`; empty for a step.
    pub mode: String,
    /// SHA-256 of every signed package index that was used.
    pub in_releases: Vec<InRelease>,
    /// Every package of the image, as Debian's package manager lists them; empty for a step.
    pub packages: Vec<Package>,
}

/// A signed index of packages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InRelease {
    /// Such as `bookworm`.
    pub suite: String,
    /// Of the whole file.
    pub sha256: String,
}

/// An installed package.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Package {
    /// With `:amd64` where Debian says so.
    pub name: String,
    /// Debian's version.
    pub version: String,
}

/// One file of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileFact {
    /// Its name in the image's folder.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// Of its contents.
    pub sha256: String,
}

/// `time` as RFC 3339 in UTC, to the second.
#[must_use]
pub(crate) fn rfc3339(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    // Days to a civil date, with years that begin in March so that the leap day comes last.
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let day_of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn dates() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_795_367_950, "2026-11-22T17:19:10Z"),
            (4_107_542_399, "2100-02-28T23:59:59Z"),
        ] {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }
}
