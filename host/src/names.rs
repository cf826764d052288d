//! What people call a device: the PCI id list built in, the system's own where that knows more.

use std::fs;
use std::sync::OnceLock;

use crate::PciId;

/// Devices that people meet with no43 and that the lists lack or name badly.
const OURS: &[(u16, u16, &str)] = &[
    (0x1234, 0x1111, "QEMU standard VGA"),
    (0x1234, 0x11e8, "QEMU educational device"),
    (0x10de, 0x10fa, "TU116/TU117 High Definition Audio Controller"),
    (0x10de, 0x2684, "AD102 [GeForce RTX 4090]"),
    (0x10de, 0x2704, "AD103 [GeForce RTX 4080]"),
    (0x10de, 0x2782, "AD104 [GeForce RTX 4070 Ti]"),
    (0x10de, 0x2786, "AD104 [GeForce RTX 4070]"),
    (0x10de, 0x2803, "AD106 [GeForce RTX 4060 Ti]"),
    (0x10de, 0x2882, "AD107 [GeForce RTX 4060]"),
    (0x10de, 0x2b85, "GB202 [GeForce RTX 5090]"),
    (0x10de, 0x2c02, "GB203 [GeForce RTX 5080]"),
    (0x10de, 0x2c05, "GB203 [GeForce RTX 5070 Ti]"),
    (0x10de, 0x2d04, "GB206 [GeForce RTX 5060 Ti]"),
];

/// Makers by the word that people use.
const MAKERS: &[(u16, &str)] = &[
    (0x1002, "AMD"),
    (0x1022, "AMD"),
    (0x102b, "Matrox"),
    (0x10de, "NVIDIA"),
    (0x1234, "QEMU"),
    (0x144d, "Samsung"),
    (0x1a03, "ASPEED"),
    (0x1af4, "virtio"),
    (0x1b36, "QEMU"),
    (0x8086, "Intel"),
];

/// Where distributions keep the full list; read only when the built-in one has no name.
const SYSTEM_LISTS: &[&str] = &["/usr/share/misc/pci.ids", "/usr/share/hwdata/pci.ids"];

/// The maker's everyday name.
pub(crate) fn maker(vendor: u16) -> Option<&'static str> {
    MAKERS.iter().find(|row| row.0 == vendor).map(|row| row.1)
}

/// The device's name as the lists have it, for example `GA104 [GeForce RTX 3070]`.
pub fn device(id: PciId) -> Option<String> {
    let ours = OURS.iter().find(|row| (row.0, row.1) == (id.vendor, id.device)).map(|row| row.2.to_string());
    ours.or_else(|| {
        pci_ids::Device::from_vid_pid(id.vendor, id.device).map(|device| device.name().to_string())
    })
    .or_else(|| in_list(system_list(), id))
}

/// The system's list, read at most once; empty where there is none.
fn system_list() -> &'static str {
    static LIST: OnceLock<String> = OnceLock::new();
    LIST.get_or_init(|| {
        let bytes = SYSTEM_LISTS.iter().find_map(|path| fs::read(path).ok()).unwrap_or_default();
        String::from_utf8(bytes).unwrap_or_default()
    })
}

/// `GeForce RTX 3070 (GA104)`: the name on the box first, the chip after it.
pub(crate) fn card(id: PciId) -> String {
    let Some(name) = device(id) else {
        return match maker(id.vendor) {
            Some(maker) => format!("{maker} card {id}"),
            None => format!("card {id}"),
        };
    };
    match name.split_once(" [").and_then(|(chip, rest)| Some((chip, rest.strip_suffix(']')?))) {
        Some((chip, product)) => format!("{product} ({chip})"),
        None => with_maker(id, &name),
    }
}

/// `Samsung NVMe SSD Controller`: for sentences about other devices.
pub(crate) fn with_maker_or_id(id: PciId) -> String {
    device(id).map_or_else(|| format!("device {id}"), |name| with_maker(id, &name))
}

fn with_maker(id: PciId, name: &str) -> String {
    match maker(id.vendor) {
        Some(maker) if !name.to_lowercase().contains(&maker.to_lowercase()) => format!("{maker} {name}"),
        _ => name.to_string(),
    }
}

/// Looks one id up in the text of a `pci.ids` file.
fn in_list(list: &str, id: PciId) -> Option<String> {
    let vendor = format!("\n{:04x}  ", id.vendor);
    let section = &list[position(list, &vendor)? + vendor.len()..];
    let device = format!("\t{:04x}  ", id.device);
    section
        .lines()
        .skip(1)
        .take_while(|line| line.starts_with('\t') || line.starts_with('#'))
        .find_map(|line| line.strip_prefix(&device))
        .map(|name| name.trim().to_string())
}

/// Where a line that starts with a vendor begins. Hops from line end to line end, which is quicker than a text search.
fn position(list: &str, vendor: &str) -> Option<usize> {
    let mut at = 0;
    while let Some(step) = list[at..].find('\n') {
        at += step;
        if list[at..].starts_with(vendor) {
            return Some(at);
        }
        at += 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(id: &str) -> String {
        card(id.parse().unwrap())
    }

    #[test]
    fn cards_are_called_by_the_name_on_the_box() {
        assert_eq!(name("10de:2484"), "GeForce RTX 3070 (GA104)");
        assert_eq!(name("10de:1f82"), "GeForce GTX 1650 (TU117)");
        assert_eq!(name("1a03:2000"), "ASPEED Graphics Family");
        assert_eq!(name("1234:1111"), "QEMU standard VGA");
        assert_eq!(name("10de:2b85"), "GeForce RTX 5090 (GB202)");
        assert_eq!(name("dead:beef"), "card dead:beef");
    }

    #[test]
    fn a_system_list_is_read_by_vendor_and_device() {
        let list = "# c\n0001  One\n\t2484  wrong vendor\n10de  NVIDIA\n\t0020  old\n\t\t1043 0200  board\n# x\n\t2484  GA104\n10df  Next\n\t9999  no\n";
        assert_eq!(in_list(list, "10de:2484".parse().unwrap()).as_deref(), Some("GA104"));
        assert_eq!(in_list(list, "10de:9999".parse().unwrap()), None);
        assert_eq!(in_list("", "10de:9999".parse().unwrap()), None);
    }
}
