//! The USB devices of this host, by port: what can be passed to a guest, and what a person types with.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::Roots;
use crate::input::{Input, Kind, Passed, inputs};
use crate::roots::read_line;

/// Texts of a device are cut here: it may say anything.
const NAME_MAX: usize = 80;

/// One device that is plugged in, hubs left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UsbDevice {
    /// Where it is plugged in, as `lsusb -t` and recipes write it: `1-4.2`.
    pub port: String,
    /// `vendor:product`, such as `046d:c52b`.
    pub id: String,
    /// What it calls itself; empty where it does not.
    pub name: String,
    /// What a person at this host does with it, as long as the host has it.
    pub inputs: Vec<Kind>,
    /// Its node, such as `/dev/bus/usb/001/004`.
    pub node: PathBuf,
}

impl fmt::Display for UsbDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} ({}, {})",
            if self.name.is_empty() { "a device" } else { &self.name },
            self.port,
            self.id
        )
    }
}

/// Every device, in the order of their ports. Empty where this host has no USB.
pub fn devices(roots: &Roots) -> Vec<UsbDevice> {
    let Ok(entries) = fs::read_dir(roots.sys.join("bus/usb/devices")) else { return Vec::new() };
    let inputs = inputs(roots);
    let mut found: Vec<UsbDevice> = entries
        .flatten()
        .filter_map(|entry| device(&entry.path(), entry.file_name().to_str()?, roots, &inputs))
        .collect();
    found.sort_by_key(|one| port_order(&one.port));
    found
}

/// The devices that a person means by a port or an id.
pub fn matching<'a>(devices: &'a [UsbDevice], wish: &str) -> Vec<&'a UsbDevice> {
    let wish = wish.to_ascii_lowercase();
    devices.iter().filter(|one| one.port == wish || one.id == wish).collect()
}

/// `1-4.2` is a device; `usb1` a root hub, `1-4:1.0` an interface.
fn device(dir: &Path, port: &str, roots: &Roots, inputs: &[Input]) -> Option<UsbDevice> {
    if port.contains(':') || !port.starts_with(|first: char| first.is_ascii_digit()) {
        return None;
    }
    let line = |name: &str| read_line(&dir.join(name)).ok();
    // hubs: what is behind them has ports of its own
    if line("bDeviceClass").as_deref() == Some("09") {
        return None;
    }
    let number = |name: &str| line(name)?.trim().parse::<u16>().ok();
    let words: Vec<String> = ["manufacturer", "product"].into_iter().filter_map(line).collect();
    let name: String = words.join(" ").chars().filter(|c| !c.is_control()).take(NAME_MAX).collect();
    let passed = Passed::UsbPort(port.to_owned());
    let mut kinds: Vec<Kind> =
        inputs.iter().filter(|input| passed.takes(input)).map(|input| input.kind).collect();
    kinds.sort();
    kinds.dedup();
    Some(UsbDevice {
        port: port.to_owned(),
        id: format!("{}:{}", line("idVendor")?, line("idProduct")?),
        name: name.trim().to_owned(),
        inputs: kinds,
        node: roots.dev.join(format!("bus/usb/{:03}/{:03}", number("busnum")?, number("devnum")?)),
    })
}

/// `1-10` after `1-9`.
fn port_order(port: &str) -> Vec<u32> {
    port.split(['-', '.']).map(|part| part.parse().unwrap_or(u32::MAX)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plug(roots: &Roots, port: &str, files: &[(&str, &str)]) {
        for (name, text) in files {
            let file = roots.sys.join("bus/usb/devices").join(port).join(name);
            fs::create_dir_all(file.parent().expect("a folder")).expect("sysfs");
            fs::write(file, format!("{text}\n")).expect("sysfs");
        }
    }

    /// As the kernel shows it: a link from the class to what hangs below the port.
    fn keyboard_at(roots: &Roots, port: &str) {
        let dir = roots.sys.join("devices/usb1").join(port).join("input/event0");
        fs::create_dir_all(dir.join("device/capabilities")).expect("sysfs");
        fs::write(dir.join("device/capabilities/key"), "fffffffffffffffe").expect("sysfs");
        fs::create_dir_all(roots.sys.join("class/input")).expect("sysfs");
        std::os::unix::fs::symlink(&dir, roots.sys.join("class/input/event0")).expect("sysfs");
    }

    #[test]
    fn devices_are_found_by_port_and_id_and_hubs_are_left_out() {
        let dir = tempfile::tempdir().expect("a folder");
        let roots = Roots::under(dir.path());
        assert_eq!(devices(&roots), []);
        let facts = |vendor, product, number| {
            [
                ("idVendor", vendor),
                ("idProduct", product),
                ("busnum", "1"),
                ("devnum", number),
                ("bDeviceClass", "00"),
            ]
        };
        plug(&roots, "1-10", &facts("046d", "c52b", "12"));
        plug(&roots, "1-10", &[("manufacturer", "Logitech"), ("product", "USB\u{7}Receiver")]);
        keyboard_at(&roots, "1-10");
        plug(&roots, "1-10:1.0", &[("bInterfaceClass", "03")]);
        plug(&roots, "1-2.1", &facts("0781", "5581", "4"));
        plug(&roots, "usb1", &facts("1d6b", "0002", "1"));
        plug(&roots, "1-2", &facts("05e3", "0610", "3"));
        plug(&roots, "1-2", &[("bDeviceClass", "09")]);

        let found = devices(&roots);
        let ports: Vec<&str> = found.iter().map(|one| one.port.as_str()).collect();
        assert_eq!(ports, ["1-2.1", "1-10"]);
        assert_eq!(found[1].inputs, [Kind::Keyboard]);
        assert_eq!(found[1].to_string(), "Logitech USBReceiver (1-10, 046d:c52b)");
        assert_eq!(found[0].inputs, []);
        assert_eq!(found[0].to_string(), "a device (1-2.1, 0781:5581)");
        assert!(found[0].node.ends_with("dev/bus/usb/001/004"));
        assert_eq!(matching(&found, "046D:C52B").len(), 1);
        assert_eq!(matching(&found, "1-2.1").len(), 1);
        assert!(matching(&found, "1-2").is_empty());
    }
}
