//! Devices that come and go while the guest runs.

use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::machine::Machine;
use crate::qmp::{QmpError, wait_event};

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
    let events = machine.subscribe();
    machine
        .qmp()
        .raw("device_del", json!({ "id": id }))
        .map_err(|why| HotplugError::Qmp { what: format!("take out '{id}'"), why })?;
    let ended = wait_event(&events, limit, |event| {
        let ours = event.text("device") == Some(id);
        match event.name.as_str() {
            "DEVICE_DELETED" if ours => Some(true),
            "DEVICE_UNPLUG_GUEST_ERROR" if ours => Some(false),
            _ => None,
        }
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
