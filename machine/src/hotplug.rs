//! Devices that come and go while the guest runs.

use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::argv::{card_port, functions};
use crate::machine::Machine;
use crate::qmp::{QmpError, wait_event};
use crate::spec::PassedCard;

/// How long a guest may take to let a device go: Linux needs 5 s for its attention button alone.
pub const UNPLUG_LIMIT: Duration = Duration::from_secs(30);

/// Why a device did not come or go.
#[derive(Debug, thiserror::Error)]
pub enum HotplugError {
    /// QEMU said no, or is gone.
    #[error("failed to {what}: {why}")]
    Qmp {
        /// What was tried.
        what: String,
        /// What QEMU said.
        why: QmpError,
    },
    /// The guest refused (`DEVICE_UNPLUG_GUEST_ERROR`).
    #[error("the guest refused to let device '{device}' go")]
    Refused {
        /// The device's id.
        device: String,
    },
    /// The guest never let it go.
    #[error("the guest did not let device '{device}' go within {} s", limit.as_secs())]
    TimedOut {
        /// The device's id.
        device: String,
        /// The limit.
        limit: Duration,
    },
}

/// Plugs a device in. `properties` is an object with QEMU's properties; their types matter, and `qapi` has none for them.
///
/// # Errors
/// [`HotplugError::Qmp`].
pub fn plug(
    machine: &Machine,
    driver: &str,
    id: &str,
    bus: &str,
    properties: Map<String, Value>,
) -> Result<(), HotplugError> {
    let mut arguments = json!({ "driver": driver, "id": id, "bus": bus });
    if let Some(object) = arguments.as_object_mut() {
        object.extend(properties);
    }
    let what = || format!("plug {driver} '{id}' into {bus}");
    machine
        .qmp()
        .raw("device_add", arguments)
        .map(drop)
        .map_err(|why| HotplugError::Qmp { what: what(), why })
}

/// Plugs in the share with this tag, which the machine's description has with [`crate::spec::Attach::Later`], into spare
/// root port number `spare`. The guest can mount it when it has found the device (events, udev).
///
/// # Errors
/// [`HotplugError::Qmp`].
pub fn plug_share(machine: &Machine, tag: &str, spare: u8) -> Result<(), HotplugError> {
    let mut properties = Map::new();
    properties.insert("fsdev".into(), tag.into());
    properties.insert("mount_tag".into(), tag.into());
    plug(machine, "virtio-9p-pci", &format!("share-{tag}"), &format!("spare{spare}"), properties)
}

/// Takes a device out and waits until the guest has let it go.
///
/// # Errors
/// [`HotplugError`].
pub fn unplug(machine: &Machine, id: &str, limit: Duration) -> Result<(), HotplugError> {
    unplug_all(machine, id, &[id.to_owned()], limit)
}

/// Takes a whole card out of a running guest, and waits until the guest has let every function of it go: asked about one
/// function of a slot, a guest gives up all of them.
///
/// # Errors
/// [`HotplugError`]; some functions may be gone then.
pub fn unplug_card(
    machine: &Machine,
    index: usize,
    card: &PassedCard,
    limit: Duration,
) -> Result<(), HotplugError> {
    let ids: Vec<String> = functions(index, card).into_iter().map(|function| function.id).collect();
    let Some(first) = functions(index, card).into_iter().find(|function| function.number == 0) else {
        return Ok(());
    };
    unplug_all(machine, &first.id, &ids, limit)
}

/// Plugs a card in where it was taken out. The guest looks at it when function 0 comes, so that one comes last.
///
/// # Errors
/// [`HotplugError::Qmp`].
pub fn plug_card(machine: &Machine, index: usize, card: &PassedCard) -> Result<(), HotplugError> {
    let mut all = functions(index, card);
    all.sort_by_key(|function| std::cmp::Reverse(function.number));
    let several = all.len() > 1;
    for function in all {
        let mut properties = Map::new();
        properties.insert("host".into(), function.host.to_string().into());
        properties.insert("addr".into(), format!("0x0.{:#x}", function.number).into());
        if several && function.number == 0 {
            properties.insert("multifunction".into(), true.into());
        }
        if let Some(shown) = function.present_as {
            properties.insert("x-pci-vendor-id".into(), shown.vendor.into());
            properties.insert("x-pci-device-id".into(), shown.device.into());
        }
        plug(machine, "vfio-pci", &function.id, &card_port(index), properties)?;
    }
    Ok(())
}

/// Asks for one device, and waits for the end of all.
fn unplug_all(machine: &Machine, id: &str, all: &[String], limit: Duration) -> Result<(), HotplugError> {
    let events = machine.subscribe();
    machine
        .qmp()
        .raw("device_del", json!({ "id": id }))
        .map_err(|why| HotplugError::Qmp { what: format!("take out '{id}'"), why })?;
    let mut left: Vec<&str> = all.iter().map(String::as_str).collect();
    let ended = wait_event(&events, limit, |event| {
        let device = event.text("device").unwrap_or_default();
        match event.name.as_str() {
            "DEVICE_DELETED" => left.retain(|one| *one != device),
            "DEVICE_UNPLUG_GUEST_ERROR" if left.contains(&device) => return Some(false),
            _ => {}
        }
        left.is_empty().then_some(true)
    });
    let device = id.to_owned();
    match ended {
        Some(true) => Ok(()),
        Some(false) => Err(HotplugError::Refused { device }),
        None => match machine.qmp().gone() {
            Some(why) => {
                let why = QmpError::Gone { during: "device_del".into(), why };
                Err(HotplugError::Qmp { what: format!("take out '{id}'"), why })
            }
            None => Err(HotplugError::TimedOut { device, limit }),
        },
    }
}
