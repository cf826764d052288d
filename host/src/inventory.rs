//! What sits on this host's PCI bus, read from sysfs with few system calls and without waking anything up.
//!
//! Class, ids and driver of a function all stand in its `uevent` file, so a function costs one file and two links. The
//! rest (BARs, link, reset methods) is read only for functions of graphics cards: asking for the link speed of a sleeping
//! device wakes it.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::roots::{link_name, read_line, read_small};
use crate::{PciAddress, PciId, Roots, names};

/// Why this host's devices could not be read.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// There is no PCI bus in sysfs: a container without /sys, or a machine without PCI.
    #[error("no PCI devices under {path}: {source} (is /sys mounted here?)")]
    NoPci {
        /// The directory that was looked for.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// A file that every kernel has could not be read.
    #[error("failed to read {path}: {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// A file says something that this program does not understand.
    #[error("{path} has no {what}: {text:?}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What was expected in it.
        what: &'static str,
        /// What stands there instead, cut.
        text: String,
    },
}

/// Everything on the PCI bus, and what the IOMMU makes of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Inventory {
    /// All functions, in the order of their addresses.
    pub functions: Vec<Function>,
    /// What is known about the IOMMU.
    pub iommu: IommuFacts,
}

/// One PCI function.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Function {
    /// Where it sits.
    pub address: PciAddress,
    /// Vendor and device.
    pub id: PciId,
    /// Vendor and device of the board it is on; `None` where the function has none.
    pub subsystem: Option<PciId>,
    /// Class, subclass and programming interface in 24 bits: `0x030000` is a VGA controller.
    pub class: u32,
    /// The driver that has it now.
    pub driver: Option<String>,
    /// Its IOMMU group; `None` where there is no IOMMU or it is off.
    pub group: Option<u32>,
    /// The bridges above it, outermost first.
    pub bridges: Vec<PciAddress>,
    /// Name from the PCI id list, `None` where no list has it.
    pub name: Option<String>,
    /// Whether the fields below were read: only for functions of graphics cards.
    pub detailed: bool,
    /// Revision; `None` where unknown.
    pub revision: Option<u8>,
    /// Whether the firmware showed its first picture here; `None` on functions that cannot say.
    pub boot_vga: Option<bool>,
    /// Memory and I/O windows that are in use, the ROM too.
    pub bars: Vec<Bar>,
    /// PCI Express link; `None` for conventional functions.
    pub link: Option<Link>,
    /// Ways to reset it, best first; `None` where the kernel is too old to tell.
    pub reset_methods: Option<Vec<String>>,
    /// NUMA node; `None` where there is only one or the firmware does not tell.
    pub numa_node: Option<u32>,
    /// What `driver_override` says; `None` when it is not set.
    pub driver_override: Option<String>,
}

/// One window of a function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bar {
    /// 0 to 5 for the BARs, 6 for the expansion ROM.
    pub index: u8,
    /// Bytes.
    pub size: u64,
    /// What is behind it.
    pub kind: BarKind,
    /// Whether reads have no side effects.
    pub prefetchable: bool,
}

/// What a window leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BarKind {
    /// I/O ports.
    Io,
    /// Memory below 4 GiB.
    Memory32,
    /// Memory anywhere.
    Memory64,
}

/// A PCI Express link. What the kernel calls unknown stays `None`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Link {
    /// GT/s now; cards slow down when idle.
    pub speed: Option<f32>,
    /// Lanes now.
    pub width: Option<u8>,
    /// GT/s at best.
    pub max_speed: Option<f32>,
    /// Lanes at best.
    pub max_width: Option<u8>,
}

/// What sysfs tells about the IOMMU.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IommuFacts {
    /// ACPI tables by which the firmware describes one: `DMAR` (Intel), `IVRS` (AMD), `VIOT` (virtual).
    pub tables: Vec<String>,
    /// IOMMU units that the kernel uses, for example `dmar0`.
    pub units: Vec<String>,
    /// Number of IOMMU groups that hold PCI functions.
    pub groups: usize,
}

impl Function {
    /// Class and subclass, for example `0x0300`.
    pub fn class16(&self) -> u16 {
        u16::try_from(self.class >> 8 & 0xffff).unwrap_or(0)
    }

    /// Whether it drives a display: VGA, 3D or other display controller.
    pub fn is_display(&self) -> bool {
        self.class16() >> 8 == 0x03
    }

    /// Whether it is a PCI bridge, switch port or root port: those are never lent and do not make a group unsafe.
    pub fn is_bridge(&self) -> bool {
        matches!(self.class16(), 0x0604 | 0x0609)
    }

    /// Whether it is the host bridge, which every group 0 has.
    pub fn is_host_bridge(&self) -> bool {
        self.class16() == 0x0600
    }

    /// `Samsung NVMe SSD Controller`, or its id where no list names it.
    pub fn described(&self) -> String {
        if self.is_display() { names::card(self.id) } else { names::with_maker_or_id(self.id) }
    }
}

impl Inventory {
    /// Reads the PCI bus. Functions that leave while it is read are left out.
    pub fn read(roots: &Roots) -> Result<Self, HostError> {
        let dir = roots.sys.join("bus/pci/devices");
        let entries = fs::read_dir(&dir).map_err(|source| HostError::NoPci { path: dir.clone(), source })?;
        let mut functions = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|source| HostError::Unreadable { path: dir.clone(), source })?;
            let Some(address) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            functions.extend(read_function(&entry.path(), address)?);
        }
        functions.sort_by_key(|function| function.address);
        let mut inventory = Inventory { iommu: read_iommu(roots, &functions), functions };
        inventory.add_details(roots);
        Ok(inventory)
    }

    /// The function at an address.
    pub fn function(&self, address: &PciAddress) -> Option<&Function> {
        let index = self.functions.binary_search_by_key(address, |function| function.address).ok()?;
        Some(&self.functions[index])
    }

    /// The PCI functions of each IOMMU group.
    pub fn groups(&self) -> BTreeMap<u32, Vec<PciAddress>> {
        let mut groups: BTreeMap<u32, Vec<PciAddress>> = BTreeMap::new();
        for function in &self.functions {
            if let Some(group) = function.group {
                groups.entry(group).or_default().push(function.address);
            }
        }
        groups
    }

    fn add_details(&mut self, roots: &Roots) {
        let wanted: Vec<PciAddress> =
            crate::card::group_functions(&self.functions).into_iter().flatten().collect();
        for function in self.functions.iter_mut().filter(|function| wanted.contains(&function.address)) {
            read_details(&roots.device(&function.address), function);
        }
    }
}

/// Reads what every function has; `None` when it has left meanwhile.
fn read_function(dir: &Path, address: PciAddress) -> Result<Option<Function>, HostError> {
    let path = dir.join("uevent");
    let uevent = match read_small(&path) {
        Ok(text) => text,
        Err(e) if matches!(e.kind(), ErrorKind::NotFound) || e.raw_os_error() == Some(19) => return Ok(None),
        Err(source) => return Err(HostError::Unreadable { path, source }),
    };
    let value =
        |key: &str| uevent.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=')).map(str::trim);
    let malformed =
        |what| HostError::Malformed { path: path.clone(), what, text: uevent.chars().take(200).collect() };
    let id = value("PCI_ID").and_then(|id| id.parse().ok()).ok_or_else(|| malformed("PCI_ID"))?;
    let class = value("PCI_CLASS").and_then(|class| u32::from_str_radix(class, 16).ok());
    let subsystem: Option<PciId> = value("PCI_SUBSYS_ID").and_then(|id| id.parse().ok());
    Ok(Some(Function {
        address,
        id,
        subsystem: subsystem.filter(|id| id.vendor != 0),
        class: class.ok_or_else(|| malformed("PCI_CLASS"))?,
        driver: value("DRIVER").map(str::to_string),
        group: link_name(&dir.join("iommu_group")).and_then(|group| group.parse().ok()),
        bridges: bridges_above(dir, address),
        name: None,
        detailed: false,
        revision: None,
        boot_vga: None,
        bars: Vec::new(),
        link: None,
        reset_methods: None,
        numa_node: None,
        driver_override: None,
    }))
}

/// The device link leads through every bridge above: `../../../devices/pci0000:00/0000:00:04.0/0000:01:00.0`.
fn bridges_above(dir: &Path, address: PciAddress) -> Vec<PciAddress> {
    let Ok(target) = fs::read_link(dir) else { return Vec::new() };
    target
        .components()
        .filter_map(|part| part.as_os_str().to_str()?.parse().ok())
        .filter(|part| *part != address)
        .collect()
}

fn read_details(dir: &Path, function: &mut Function) {
    let line = |name: &str| read_line(&dir.join(name)).ok();
    function.detailed = true;
    function.name = names::device(function.id);
    function.revision = line("revision").and_then(|text| parse_hex(&text)).and_then(|n| u8::try_from(n).ok());
    function.boot_vga = line("boot_vga").map(|text| text == "1");
    function.bars = read_small(&dir.join("resource")).map(|text| parse_resource(&text)).unwrap_or_default();
    function.link = read_link_state(&line);
    function.reset_methods =
        line("reset_method").map(|text| text.split_whitespace().map(str::to_string).collect());
    function.numa_node = line("numa_node").and_then(|text| text.parse().ok());
    function.driver_override = line("driver_override").filter(|text| !text.is_empty() && text != "(null)");
}

fn read_link_state(line: &dyn Fn(&str) -> Option<String>) -> Option<Link> {
    // "16.0 GT/s PCIe", "Unknown"; widths 0 and 255 are the kernel's unknown
    let speed = |name| line(name).and_then(|text| text.split(' ').next()?.parse::<f32>().ok());
    let width = |name| line(name).and_then(|text| text.parse::<u8>().ok()).filter(|w| !matches!(w, 0 | 255));
    let link = Link {
        max_speed: speed("max_link_speed"),
        max_width: width("max_link_width"),
        speed: speed("current_link_speed"),
        width: width("current_link_width"),
    };
    (link != Link::default()).then_some(link)
}

/// Reads a `resource` file: one `start end flags` line for each window, all zero where it is not used.
pub(crate) fn parse_resource(text: &str) -> Vec<Bar> {
    const IO: u64 = 0x100;
    const PREFETCH: u64 = 0x2000;
    const MEMORY_64: u64 = 0x10_0000;
    let bar = |(index, line): (usize, &str)| {
        let mut numbers = line.split_whitespace().map(parse_hex);
        let (start, end, flags) = (numbers.next()??, numbers.next()??, numbers.next()??);
        Some(Bar {
            index: u8::try_from(index).ok()?,
            size: end.checked_sub(start)?.checked_add(1).filter(|_| end != 0)?,
            kind: match flags {
                _ if flags & IO != 0 => BarKind::Io,
                _ if flags & MEMORY_64 != 0 => BarKind::Memory64,
                _ => BarKind::Memory32,
            },
            prefetchable: flags & PREFETCH != 0,
        })
    };
    // behind line 7 stand the windows of bridges and virtual functions
    text.lines().take(7).enumerate().filter_map(bar).collect()
}

fn parse_hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text.trim().strip_prefix("0x")?, 16).ok()
}

fn read_iommu(roots: &Roots, functions: &[Function]) -> IommuFacts {
    let tables = roots.sys.join("firmware/acpi/tables");
    let mut units: Vec<String> = fs::read_dir(roots.sys.join("class/iommu"))
        .map(|dir| dir.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
        .unwrap_or_default();
    units.sort();
    let mut groups: Vec<u32> = functions.iter().filter_map(|function| function.group).collect();
    groups.sort_unstable();
    groups.dedup();
    IommuFacts {
        tables: ["DMAR", "IVRS", "VIOT"]
            .iter()
            .filter(|name| tables.join(name).exists())
            .map(ToString::to_string)
            .collect(),
        units,
        groups: groups.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn windows_keep_their_numbers_and_sizes() {
        let text = "0x00000000fb000000 0x00000000fbffffff 0x0000000000040200\n\
                    0x0000007000000000 0x00000071ffffffff 0x000000000014220c\n\
                    0x0000000000000000 0x0000000000000000 0x0000000000000000\n\
                    0x0000007200000000 0x0000007201ffffff 0x000000000014220c\n\
                    0x0000000000000000 0x0000000000000000 0x0000000000000000\n\
                    0x000000000000f000 0x000000000000f07f 0x0000000000040101\n\
                    0x00000000fc000000 0x00000000fc07ffff 0x0000000000046200\n";
        let seen: Vec<String> = parse_resource(text)
            .iter()
            .map(|bar| {
                format!(
                    "{} {:?} {} KiB{}",
                    bar.index,
                    bar.kind,
                    bar.size >> 10,
                    if bar.prefetchable { " p" } else { "" }
                )
            })
            .collect();
        insta::assert_snapshot!(seen.join("\n"), @r"
        0 Memory32 16384 KiB
        1 Memory64 8388608 KiB p
        3 Memory64 32768 KiB p
        5 Io 0 KiB
        6 Memory32 512 KiB p
        ");
    }

    proptest! {
        #[test]
        fn no_resource_file_can_break_it(text in "(0x[0-9a-f]{0,20} ?|\n|.){0,40}") {
            prop_assert!(parse_resource(&text).len() <= 7);
        }
    }
}
