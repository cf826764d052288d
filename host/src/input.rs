//! Keyboards and pointers of this host, and which of them would be left if some were given to a guest.
//!
//! A person whose last keyboard is in a guest cannot even ask for it back. What is a keyboard or a pointer is read from the
//! kernel's bitmaps of keys and axes, as udev does, not guessed from names.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::roots::read_line;
use crate::{PciAddress, Roots};

/// What a person does with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Has the letters.
    Keyboard,
    /// A mouse, a touch pad, a tablet.
    Pointer,
}

impl Kind {
    /// As people call it.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Keyboard => "keyboard",
            Kind::Pointer => "pointer",
        }
    }
}

/// One input device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Input {
    /// As it calls itself; may be anything.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// `/dev/input/event3`
    pub node: PathBuf,
    /// Its USB bus and port, such as `1-4.2`; `None` if it is not on USB.
    pub usb_port: Option<String>,
    /// Vendor and product on USB, such as `046d:c52b`.
    pub usb_id: Option<String>,
    /// The PCI functions above it: the USB controller, for one.
    pub pci: Vec<PciAddress>,
}

/// What a guest is to get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Passed {
    /// Whatever is at this USB bus and port.
    UsbPort(String),
    /// Every USB device of this vendor and product.
    UsbId(String),
    /// A PCI function with everything below it.
    Pci(PciAddress),
}

impl Passed {
    /// Whether the device goes with it. A hub takes along what is plugged into it.
    pub fn takes(&self, input: &Input) -> bool {
        match self {
            Passed::UsbPort(port) => input.usb_port.as_ref().is_some_and(|theirs| {
                theirs == port || theirs.strip_prefix(port.as_str()).is_some_and(|rest| rest.starts_with('.'))
            }),
            Passed::UsbId(id) => input.usb_id.as_ref() == Some(id),
            Passed::Pci(address) => input.pci.contains(address),
        }
    }
}

/// This host's keyboards and pointers. Buttons of the case and other things without letters or axes are none.
pub fn inputs(roots: &Roots) -> Vec<Input> {
    let entries = fs::read_dir(roots.sys.join("class/input")).into_iter().flatten().flatten();
    let mut inputs: Vec<Input> = entries.filter_map(|entry| input(&entry.path(), roots)).collect();
    inputs.sort_by(|a, b| a.node.cmp(&b.node));
    inputs
}

fn input(dir: &Path, roots: &Roots) -> Option<Input> {
    let event = dir.file_name()?.to_str().filter(|name| name.starts_with("event"))?;
    let device = dir.join("device");
    let kind = kind(&device)?;
    // .../0000:00:14.0/usb1/1-4/1-4.2/1-4.2:1.0/0003:046D:C52B.0001/input/input7/event3
    let place = dir.canonicalize().ok()?;
    let parts: Vec<&str> = place.components().filter_map(|part| part.as_os_str().to_str()).collect();
    let usb = parts.iter().rposition(|part| is_usb_port(part));
    let id = usb.and_then(|at| {
        let dir: PathBuf = place.components().take(at + 1).collect();
        let word = |name: &str| read_line(&dir.join(name)).ok();
        Some(format!("{}:{}", word("idVendor")?, word("idProduct")?))
    });
    Some(Input {
        name: read_line(&device.join("name"))
            .unwrap_or_default()
            .chars()
            .filter(|c| !c.is_control())
            .take(80)
            .collect(),
        kind,
        node: roots.dev.join("input").join(event),
        usb_port: usb.map(|at| parts[at].to_owned()),
        usb_id: id,
        pci: parts.iter().filter(|part| part.contains('.')).filter_map(|part| part.parse().ok()).collect(),
    })
}

/// `1-4.2`, and not the interface `1-4.2:1.0`.
fn is_usb_port(part: &str) -> bool {
    let number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    part.split_once('-').is_some_and(|(bus, ports)| number(bus) && ports.split('.').all(number))
}

fn kind(device: &Path) -> Option<Kind> {
    /// Letters from Q on, by the kernel's `input-event-codes.h`.
    const LETTERS: std::ops::RangeInclusive<usize> = 16..=25;
    const BTN_LEFT: usize = 0x110;
    const BTN_TOUCH: usize = 0x14a;
    let bitmap = |name: &str| read_line(&device.join("capabilities").join(name)).unwrap_or_default();
    let (keys, relative, absolute) = (bitmap("key"), bitmap("rel"), bitmap("abs"));
    if LETTERS.into_iter().all(|key| bit(&keys, key)) {
        return Some(Kind::Keyboard);
    }
    let axes = |map: &str| bit(map, 0) && bit(map, 1);
    let buttons = bit(&keys, BTN_LEFT) || bit(&keys, BTN_TOUCH);
    (buttons && (axes(&relative) || axes(&absolute))).then_some(Kind::Pointer)
}

/// A bitmap in sysfs is words of 64 bits in hexadecimal, the highest first.
fn bit(map: &str, number: usize) -> bool {
    let word = map.split_whitespace().rev().nth(number / 64);
    word.and_then(|word| u64::from_str_radix(word, 16).ok())
        .is_some_and(|word| word >> (number % 64) & 1 == 1)
}

/// The keyboards and pointers that would be gone with `passed` where none of their kind stays.
pub fn last_ones<'a>(inputs: &'a [Input], passed: &[Passed]) -> Vec<&'a Input> {
    let goes = |input: &Input| passed.iter().any(|one| one.takes(input));
    let stays = |kind: Kind| inputs.iter().any(|input| input.kind == kind && !goes(input));
    inputs.iter().filter(|input| goes(input) && !stays(input.kind)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::symlink;

    const KEYS: &str = "10000 0 3f0002000000000 0 fffffffffffffffe";
    const BUTTONS: &str = "70000 0 0 0 0";

    struct Desk(Roots, #[expect(dead_code, reason = "its end removes the folder")] tempfile::TempDir);

    impl Desk {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let roots = Roots::under(dir.path());
            fs::create_dir_all(roots.sys.join("class/input")).unwrap();
            Desk(roots, dir)
        }

        fn plug(&self, event: &str, usb: &str, name: &str, keys: &str, rel: &str) {
            let usb_dir = self.0.sys.join("devices/pci0000:00/0000:00:14.0").join(usb);
            let dir = usb_dir.join("input").join(event);
            fs::create_dir_all(dir.join("device/capabilities")).unwrap();
            fs::write(usb_dir.join("idVendor"), "046d\n").unwrap();
            fs::write(usb_dir.join("idProduct"), "c52b\n").unwrap();
            fs::write(dir.join("device/name"), name).unwrap();
            fs::write(dir.join("device/capabilities/key"), keys).unwrap();
            fs::write(dir.join("device/capabilities/rel"), rel).unwrap();
            symlink(&dir, self.0.sys.join("class/input").join(event)).unwrap();
        }

        fn lost(&self, passed: &[Passed]) -> Vec<String> {
            let inputs = inputs(&self.0);
            last_ones(&inputs, passed).iter().map(|i| format!("{} {}", i.kind.word(), i.name)).collect()
        }
    }

    #[test]
    fn the_last_keyboard_is_noticed_whichever_way_it_goes() {
        let desk = Desk::new();
        desk.plug("event0", "usb1/1-4", "Keys", KEYS, "0");
        desk.plug("event1", "usb1/1-5/1-5.2", "Mouse", BUTTONS, "903");
        desk.plug("event2", "usb1/1-5/1-5.3", "Second mouse", BUTTONS, "903");
        desk.plug("event3", "usb1/1-6", "Power Button", "10000000000000 0", "0");
        let all = inputs(&desk.0);
        assert_eq!(all.len(), 3, "{all:#?}");
        assert_eq!((all[0].usb_port.as_deref(), all[0].usb_id.as_deref()), (Some("1-4"), Some("046d:c52b")));
        let port = |port: &str| Passed::UsbPort(port.into());
        assert_eq!(desk.lost(&[port("1-4")]), ["keyboard Keys"]);
        assert_eq!(desk.lost(&[port("1-5.2")]), [""; 0]);
        assert_eq!(desk.lost(&[port("1-5")]), ["pointer Mouse", "pointer Second mouse"], "the hub");
        assert_eq!(desk.lost(&[port("1-5.2"), port("1-5.3")]).len(), 2);
        assert_eq!(desk.lost(&[Passed::Pci("00:14.0".parse().unwrap())]).len(), 3, "the whole controller");
        assert_eq!(desk.lost(&[Passed::UsbId("046d:c52b".into())]).len(), 3);
        assert_eq!(desk.lost(&[port("1-40")]), [""; 0]);
        desk.plug("event9", "usb2/2-1", "Other keys", KEYS, "0");
        assert_eq!(desk.lost(&[port("1-4")]), [""; 0]);
    }

    proptest! {
        #[test]
        fn no_bitmap_breaks_it(map in "[0-9a-fx ]{0,80}", number in 0usize..1000) {
            let _ = bit(&map, number);
        }
    }
}
