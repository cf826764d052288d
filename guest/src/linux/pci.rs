//! The PCI functions that can belong to a graphics card, as the guest's kernel shows them in sysfs.

use std::io;
use std::path::Path;

use no43_guest::protocol::{BarKind, GuestBar, GuestFunction, GuestLink};

use super::{Root, names, read_text};

/// Classes (base class, or base class and subclass) of the functions that a graphics card has.
const CLASSES: &[(&str, &str)] = &[
    ("03", "display"),
    ("04", "audio or video"),
    ("0c03", "USB"),
    ("0c80", "UCSI: NVIDIA's USB-C controller calls itself another serial bus"),
];

/// Base class of display controllers.
const DISPLAY: &str = "03";

/// Flags of the kernel's `struct resource`, the third column of the file `resource`.
mod flags {
    pub(super) const IO: u64 = 0x100;
    pub(super) const MEMORY: u64 = 0x200;
    pub(super) const PREFETCH: u64 = 0x2000;
    pub(super) const UNSET: u64 = 0x2000_0000;
}

/// All functions that can belong to a card, ordered by address. What cannot be read is added to `unknown`.
pub(crate) fn functions(root: &Root, unknown: &mut Vec<String>) -> Vec<GuestFunction> {
    let devices = root.path("sys/bus/pci/devices");
    let addresses = names(&devices).unwrap_or_else(|error| {
        unknown.push(format!("{}: {error}", devices.display()));
        Vec::new()
    });
    let all: Vec<GuestFunction> =
        addresses.iter().map(|address| function(&devices.join(address), address, unknown)).collect();
    let slots: Vec<String> =
        all.iter().filter(|f| is_class(f, DISPLAY)).map(|f| slot(&f.address).to_owned()).collect();
    all.into_iter()
        .filter(|f| {
            CLASSES.iter().any(|(class, _)| is_class(f, class)) || slots.iter().any(|s| s == slot(&f.address))
        })
        .collect()
}

/// Brings an address into the kernel's form with domain (`01:00.0` → `0000:01:00.0`); `None` if it is none.
pub(crate) fn address(text: &str) -> Option<String> {
    let with_domain =
        if text.matches(':').count() == 1 { format!("0000:{text}") } else { text.to_owned() }.to_lowercase();
    let (domain, rest) = with_domain.split_once(':')?;
    let (bus, rest) = rest.split_once(':')?;
    let (device, function) = rest.split_once('.')?;
    let hex = |part: &str, digits: std::ops::RangeInclusive<usize>| {
        digits.contains(&part.len()) && part.bytes().all(|b| b.is_ascii_hexdigit())
    };
    (hex(domain, 4..=8) && hex(bus, 2..=2) && hex(device, 2..=2) && hex(function, 1..=1))
        .then_some(with_domain)
}

fn function(dir: &Path, address: &str, unknown: &mut Vec<String>) -> GuestFunction {
    let mut known = |name: &str, value: io::Result<String>| match value {
        Ok(text) => Some(text.trim_start_matches("0x").to_owned()),
        Err(error) => {
            unknown.push(format!("{address}/{name}: {error}"));
            None
        }
    };
    let mut attribute = |name: &str| known(name, read_text(&dir.join(name)));
    let mut pair = |a: &str, b: &str| Some(format!("{}:{}", attribute(a)?, attribute(b)?));
    let id = pair("vendor", "device");
    let subsystem = pair("subsystem_vendor", "subsystem_device");
    let class = attribute("class");
    let modalias = attribute("modalias");
    let bars = attribute("resource").map(|text| bars(&text)).unwrap_or_default();
    let driver = match std::fs::read_link(dir.join("driver")) {
        Ok(link) => link.file_name().map(|name| name.to_string_lossy().into_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => known("driver", Err(error)),
    };
    GuestFunction {
        address: address.to_owned(),
        id,
        subsystem,
        class,
        driver,
        bars,
        modalias,
        driver_version: driver_version(dir),
        link: link(dir),
        msi: msi(dir),
        node: None,
    }
}

/// Whether message-signalled interrupts are in use: the kernel lists them. Without a driver nobody has asked for any.
fn msi(dir: &Path) -> Option<bool> {
    let used = names(&dir.join("msi_irqs")).ok()?;
    (!used.is_empty() || dir.join("driver").exists()).then_some(!used.is_empty())
}

/// Version of the module that the driver came in; drivers of the kernel itself have none.
fn driver_version(dir: &Path) -> Option<String> {
    read_text(&dir.join("driver/module/version")).ok().filter(|text| !text.is_empty())
}

/// The link of a PCI Express function; a function without one has no such files, or says "Unknown" in them.
fn link(dir: &Path) -> Option<GuestLink> {
    let number = |name: &str| read_text(&dir.join(name)).ok()?.parse().ok().filter(|n| *n != 0);
    let generation = |name: &str| {
        let text = read_text(&dir.join(name)).ok()?;
        let rates = ["2.5", "5.0", "8.0", "16.0", "32.0", "64.0"]; // GT/s, first word of the file
        let at = rates.iter().position(|rate| text.split(' ').next() == Some(rate))?;
        u32::try_from(at + 1).ok()
    };
    let link = GuestLink {
        speed: generation("current_link_speed"),
        width: number("current_link_width"),
        max_speed: generation("max_link_speed"),
        max_width: number("max_link_width").filter(|width| *width != 255), // the kernel's word for unknown
    };
    (link != GuestLink::default()).then_some(link)
}

/// Reads the file `resource`: one line `start end flags` per register; 6 is the ROM, later ones are a bridge's.
fn bars(resource: &str) -> Vec<GuestBar> {
    (0..=6).zip(resource.lines()).filter_map(|(index, line)| bar(index, line)).collect()
}

fn bar(index: u8, line: &str) -> Option<GuestBar> {
    let mut columns =
        line.split_whitespace().map(|text| u64::from_str_radix(text.trim_start_matches("0x"), 16).ok());
    let (start, end, flags) = (columns.next()??, columns.next()??, columns.next()??);
    let size = end.checked_sub(start)?.checked_add(1)?;
    if flags == 0 {
        return None;
    }
    let kind = match flags {
        f if f & flags::IO != 0 => BarKind::Io,
        f if f & flags::PREFETCH != 0 => BarKind::Prefetchable,
        f if f & flags::MEMORY != 0 => BarKind::Memory,
        _ => BarKind::Unknown,
    };
    Some(GuestBar { index, size, kind, assigned: Some(flags & flags::UNSET == 0 && start != 0) })
}

fn is_class(function: &GuestFunction, class: &str) -> bool {
    function.class.as_deref().is_some_and(|found| found.starts_with(class))
}

/// The address without its function, as `0000:01:00`.
fn slot(address: &str) -> &str {
    address.split_once('.').map_or(address, |(slot, _)| slot)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::linux::report::tests::FakeGuest;

    #[test]
    fn a_card_is_seen_with_all_its_functions_and_nothing_else() {
        let guest = FakeGuest::new();
        guest.function("0000:00:00.0", &[("class", "0x060000")]);
        guest.function("0000:00:03.0", &[("class", "0x010802")]);
        guest.function("0000:01:00.0", &[("class", "0x030000"), ("vendor", "0x10de"), ("device", "0x2484")]);
        guest.function("0000:01:00.1", &[("class", "0x040300")]);
        guest.function("0000:01:00.2", &[("class", "0x0c0330")]);
        guest.function("0000:01:00.3", &[("class", "0x0c8000")]);
        guest.function("0000:01:00.4", &[("class", "0xff0000")]);
        guest.driver("0000:01:00.0", "nvidia");
        let mut unknown = Vec::new();
        let found = functions(&guest.root(), &mut unknown);
        let lines: Vec<String> =
            found.iter().map(|f| format!("{} {:?} {:?} {:?}", f.address, f.class, f.id, f.driver)).collect();
        insta::assert_snapshot!(lines.join("\n"), @r#"
        0000:01:00.0 Some("030000") Some("10de:2484") Some("nvidia")
        0000:01:00.1 Some("040300") Some("1234:1111") None
        0000:01:00.2 Some("0c0330") Some("1234:1111") None
        0000:01:00.3 Some("0c8000") Some("1234:1111") None
        0000:01:00.4 Some("ff0000") Some("1234:1111") None
        "#);
        assert!(unknown.is_empty(), "{unknown:?}");
    }

    #[test]
    fn what_cannot_be_read_is_unknown_and_said() {
        let guest = FakeGuest::new();
        guest.function("0000:01:00.0", &[("class", "0x030000")]);
        guest.remove("sys/bus/pci/devices/0000:01:00.0/subsystem_vendor");
        let mut unknown = Vec::new();
        let found = functions(&guest.root(), &mut unknown);
        assert_eq!(found[0].subsystem, None);
        insta::assert_snapshot!(unknown.join("\n"), @"0000:01:00.0/subsystem_vendor: No such file or directory (os error 2)");
    }

    #[test]
    fn bars_have_size_kind_and_place() {
        // A secondary-vga behind a root port, a BAR that got no address, and an unused one.
        let text = "0x00000000fd000000 0x00000000fdffffff 0x0000000000042208\n\
                    0x0000000000000000 0x0000000000000000 0x0000000000000000\n\
                    0x0000000000000000 0x000000000fffffff 0x000000002014220c\n\
                    0x000000000000d000 0x000000000000d07f 0x0000000000040101\n\
                    garbage\n\
                    0x00000000fe800000 0x00000000fe800fff 0x0000000000040200\n\
                    0x00000000fe810000 0x00000000fe81ffff 0x0000000000046200\n\
                    0x00000000fea00000 0x00000000febfffff 0x0000000000000200\n";
        let lines: Vec<String> = bars(text).iter().map(|bar| format!("{bar:?}")).collect();
        insta::assert_snapshot!(lines.join("\n"), @r"
        GuestBar { index: 0, size: 16777216, kind: Prefetchable, assigned: Some(true) }
        GuestBar { index: 2, size: 268435456, kind: Prefetchable, assigned: Some(false) }
        GuestBar { index: 3, size: 128, kind: Io, assigned: Some(true) }
        GuestBar { index: 5, size: 4096, kind: Memory, assigned: Some(true) }
        GuestBar { index: 6, size: 65536, kind: Prefetchable, assigned: Some(true) }
        ");
    }

    #[test]
    fn addresses() {
        assert_eq!(address("01:00.0").as_deref(), Some("0000:01:00.0"));
        assert_eq!(address("0000:0A:1f.7").as_deref(), Some("0000:0a:1f.7"));
        assert_eq!(address("10000:01:00.0").as_deref(), Some("10000:01:00.0"));
        for wrong in ["", "virtio0", "0000:01:00", "01:00.0/..", "1:0.0", "0000:01:00.12", "pci0000:00"] {
            assert_eq!(address(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn any_resource_file_is_read(text in "([0-9a-fx ]{0,60}\n){0,9}|\\PC*") {
            prop_assert!(bars(&text).len() <= 7);
            let _ = address(&text);
        }
    }
}
