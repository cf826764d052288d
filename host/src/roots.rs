//! Where sysfs, proc and dev are: the real ones, or a tree that a test laid out.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// The three trees that the kernel shows itself in. Everything in this crate takes them as a parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roots {
    /// `/sys`
    pub sys: PathBuf,
    /// `/proc`
    pub proc_: PathBuf,
    /// `/dev`
    pub dev: PathBuf,
}

impl Roots {
    /// This machine's own trees.
    pub fn real() -> Self {
        Roots { sys: "/sys".into(), proc_: "/proc".into(), dev: "/dev".into() }
    }

    /// `sys`, `proc` and `dev` under one directory, for tests.
    pub fn under(dir: &Path) -> Self {
        Roots { sys: dir.join("sys"), proc_: dir.join("proc"), dev: dir.join("dev") }
    }

    /// Whether these are this machine's own trees, so that loading a kernel module changes them.
    pub fn is_real(&self) -> bool {
        *self == Self::real()
    }

    /// `/sys/bus/pci/devices/<address>`
    pub(crate) fn device(&self, address: &crate::PciAddress) -> PathBuf {
        self.sys.join("bus/pci/devices").join(address.to_string())
    }

    /// The id of this boot, `unknown` where the kernel does not tell.
    pub(crate) fn boot_id(&self) -> String {
        read_line(&self.proc_.join("sys/kernel/random/boot_id")).unwrap_or_else(|_| "unknown".to_string())
    }
}

/// Reads a small kernel file with as few system calls as possible (`fs::read` asks for the size first, which sysfs
/// answers with a lie). Longer content than 4 KiB, a sysfs page, is cut.
pub(crate) fn read_small(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut page = [0u8; 4096];
    let mut filled = 0;
    while filled < page.len() {
        match file.read(&mut page[filled..])? {
            0 => break,
            // sysfs gives a whole attribute at once: a short read is the end
            n => filled += n,
        }
        if page[filled - 1] == b'\n' {
            break;
        }
    }
    Ok(String::from_utf8_lossy(&page[..filled]).into_owned())
}

/// The trimmed content of a one-line kernel file.
pub(crate) fn read_line(path: &Path) -> io::Result<String> {
    read_small(path).map(|text| text.trim().to_string())
}

/// The last part of where a link points to: how sysfs says "driver" and "group".
pub(crate) fn link_name(path: &Path) -> Option<String> {
    let target = std::fs::read_link(path).ok()?;
    Some(target.file_name()?.to_string_lossy().into_owned())
}
