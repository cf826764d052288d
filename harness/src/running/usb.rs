//! USB devices of the host that come and go while a guest runs.

use no43_builder::plan::UsbPlan;
use no43_host::input::{Passed, inputs, last_ones};
use no43_host::usb::{UsbDevice, matching};
use no43_host::{Roots, usb};
use rustix::fs::{Access, access};
use serde_json::{Map, Value, json};

use super::event::Ask;
use crate::exit_codes;

/// Why a USB device was not passed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum UsbError {
    /// Nothing like it is plugged in.
    #[error("no USB device '{wish}' is plugged in; {there} (no43 usb ls)")]
    NotThere {
        /// What was asked for.
        wish: String,
        /// What there is instead.
        there: String,
    },
    /// Several are alike.
    #[error("{count} USB devices are '{wish}': name one by its port ({ports})")]
    Several {
        /// What was asked for.
        wish: String,
        /// How many.
        count: usize,
        /// Their ports.
        ports: String,
    },
    /// Nobody could type or point here any more.
    #[error(
        "{device} is the last {kind} of this host: plug another one in, share it by [[usb]] in the recipe, which has keys that switch it over, or --yes if you have another way in"
    )]
    LastOne {
        /// The device.
        device: String,
        /// What it is.
        kind: &'static str,
    },
    /// The user may not open it.
    #[error(
        "{device}: you may not write to {node}; let your user have it (udev: SUBSYSTEM==\"usb\", ATTR{{idVendor}}==\"{vendor}\", TAG+=\"uaccess\")"
    )]
    NotYours {
        /// The device.
        device: String,
        /// Its node.
        node: String,
        /// For the rule.
        vendor: String,
    },
}

impl UsbError {
    /// The exit code that goes with it.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            UsbError::LastOne { .. } => exit_codes::NOT_LENT,
            _ => exit_codes::HOST_SETUP,
        }
    }
}

/// QEMU's name of what is plugged in at a port, or of what has an id; the same at the start and later.
fn device_id(wish: &str) -> String {
    format!("host-{}", wish.to_ascii_lowercase().replace(':', "."))
}

/// QEMU's arguments for a device of a recipe; `None` for an input device that is shared.
pub(super) fn at_start(device: &UsbPlan) -> Option<String> {
    match device {
        UsbPlan::Port { bus, port } => {
            let id = device_id(&format!("{bus}-{port}"));
            Some(format!("usb-host,id={id},hostbus={bus},hostport={port}"))
        }
        UsbPlan::Id(id) => {
            let (vendor, product) = id.split_once(':')?;
            Some(format!("usb-host,id={},vendorid=0x{vendor},productid=0x{product}", device_id(id)))
        }
        UsbPlan::Evdev { .. } => None,
    }
}

/// The one device that is meant by a port (`1-4.2`) or an id (`046d:c52b`), which this user may use.
///
/// The host's last keyboard or pointer is only given away with `yes`.
///
/// # Errors
/// [`UsbError`].
pub fn find(wish: &str, yes: bool, roots: &Roots) -> Result<UsbDevice, UsbError> {
    let all = usb::devices(roots);
    let found = one(&all, wish)?;
    let inputs = inputs(roots);
    let last = last_ones(&inputs, &[Passed::UsbPort(found.port.clone())]);
    if let Some(last) = last.first().filter(|_| !yes) {
        return Err(UsbError::LastOne { device: found.to_string(), kind: last.kind.word() });
    }
    if access(&found.node, Access::READ_OK | Access::WRITE_OK).is_err() {
        let vendor = found.id.split(':').next().unwrap_or_default().to_owned();
        return Err(UsbError::NotYours {
            device: found.to_string(),
            node: found.node.display().to_string(),
            vendor,
        });
    }
    Ok(found.clone())
}

fn one<'a>(all: &'a [UsbDevice], wish: &str) -> Result<&'a UsbDevice, UsbError> {
    match matching(all, wish)[..] {
        [found] => Ok(found),
        [] => {
            let there: Vec<String> = all.iter().map(ToString::to_string).collect();
            let there = if there.is_empty() { "there is none at all".to_owned() } else { there.join(", ") };
            Err(UsbError::NotThere { wish: wish.to_owned(), there })
        }
        ref several => {
            let ports: Vec<&str> = several.iter().map(|device| device.port.as_str()).collect();
            Err(UsbError::Several { wish: wish.to_owned(), count: several.len(), ports: ports.join(", ") })
        }
    }
}

/// Plug it in: whatever sits at that port, also after it was pulled and put back.
#[must_use]
pub fn plug(device: &UsbDevice) -> Ask {
    let (bus, port) = device.port.split_once('-').unwrap_or((&device.port, ""));
    let mut properties = Map::new();
    properties.insert("driver".into(), "usb-host".into());
    properties.insert("hostbus".into(), bus.parse::<u32>().map_or(Value::Null, |bus| json!(bus)));
    properties.insert("hostport".into(), port.into());
    Ask::Usb { id: device_id(&device.port), plug: Some(properties) }
}

/// Take out what was plugged in, or was there from the start, by that port or id.
#[must_use]
pub fn unplug(wish: &str) -> Ask {
    Ask::Usb { id: device_id(wish), plug: None }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn stick(port: &str) -> UsbDevice {
        UsbDevice {
            port: port.into(),
            id: "0781:5581".into(),
            name: "Ultra".into(),
            inputs: Vec::new(),
            node: "/dev/bus/usb/001/004".into(),
        }
    }

    #[test]
    fn a_device_has_one_name_from_its_start_to_its_end() {
        let Ask::Usb { id, plug: Some(properties) } = plug(&stick("1-4.2")) else { panic!("not plugged") };
        assert_eq!(id, "host-1-4.2");
        assert_eq!(json!(properties), json!({"driver": "usb-host", "hostbus": 1, "hostport": "4.2"}));
        let start = at_start(&UsbPlan::Port { bus: 1, port: "4.2".into() });
        assert_eq!(start.as_deref(), Some("usb-host,id=host-1-4.2,hostbus=1,hostport=4.2"));
        assert_eq!(unplug("1-4.2"), Ask::Usb { id, plug: None });
        let start = at_start(&UsbPlan::Id("046d:c52b".into()));
        assert_eq!(start.as_deref(), Some("usb-host,id=host-046d.c52b,vendorid=0x046d,productid=0xc52b"));
        assert_eq!(unplug("046D:C52B"), Ask::Usb { id: "host-046d.c52b".into(), plug: None });
    }

    #[test]
    fn the_last_keyboard_is_only_lent_with_yes() {
        let dir = tempfile::tempdir().unwrap();
        let roots = Roots::under(dir.path());
        let device = roots.sys.join("devices/usb1/1-4");
        let event = device.join("input/event0/device");
        fs::create_dir_all(event.join("capabilities")).unwrap();
        fs::write(event.join("capabilities/key"), "fffffffffffffffe").unwrap();
        for (name, text) in [("idVendor", "046d"), ("idProduct", "c52b"), ("busnum", "1"), ("devnum", "2")] {
            fs::write(device.join(name), text).unwrap();
        }
        for (class, what) in [("bus/usb/devices/1-4", "1-4"), ("class/input/event0", "1-4/input/event0")] {
            fs::create_dir_all(roots.sys.join(class).parent().unwrap()).unwrap();
            symlink(roots.sys.join("devices/usb1").join(what), roots.sys.join(class)).unwrap();
        }
        fs::create_dir_all(roots.dev.join("bus/usb/001")).unwrap();
        fs::write(roots.dev.join("bus/usb/001/002"), "").unwrap();
        let refused = find("1-4", false, &roots).unwrap_err();
        assert_eq!(refused.exit_code(), exit_codes::NOT_LENT);
        assert!(refused.to_string().contains("the last keyboard of this host"), "{refused}");
        assert_eq!(find("046d:c52b", true, &roots).unwrap().port, "1-4");
    }

    #[test]
    fn a_wish_is_one_device_or_a_sentence() {
        let all = [stick("1-4"), stick("2-1")];
        assert_eq!(one(&all, "2-1"), Ok(&all[1]));
        let said = |wish: &str, all: &[UsbDevice]| one(all, wish).expect_err("not one").to_string();
        assert_eq!(said("0781:5581", &all), "2 USB devices are '0781:5581': name one by its port (1-4, 2-1)");
        assert_eq!(
            said("1-9", &all[..1]),
            "no USB device '1-9' is plugged in; Ultra (1-4, 0781:5581) (no43 usb ls)"
        );
        assert_eq!(said("1-9", &[]), "no USB device '1-9' is plugged in; there is none at all (no43 usb ls)");
    }
}
