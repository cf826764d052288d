//! What a machine has beside CPUs, memory and cards: further disks, shares, USB devices, sound, and its place in the network.
//!
//! All of it is given when a machine starts and enters no key.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Everything of that kind. A plan of an earlier version has none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DevicesPlan {
    /// `[[disk]]`
    pub disks: Vec<DiskPlan>,
    /// `[[share]]`
    pub shares: Vec<SharePlan>,
    /// `[[usb]]`
    pub usb: Vec<UsbPlan>,
    /// Where the emulated sound card's sound goes.
    pub audio: AudioPlan,
    /// Ports of this host's loopback that lead into the guest, with `network.mode = "user"`.
    pub forwards: Vec<ForwardPlan>,
    /// The MAC address, if the recipe says so; an instance has one of its own otherwise.
    pub mac: Option<String>,
}

/// A disk beside the system's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskPlan {
    /// By which it is kept.
    pub name: String,
    /// Its virtual size; `None` for a disk of the person's own.
    pub bytes: Option<u64>,
    /// It outlives every rebuild of the system disk.
    pub keep: bool,
    /// A file or block device of the person's own.
    pub path: Option<PathBuf>,
}

/// A folder of this host that the guest sees.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharePlan {
    /// The tag by which the guest mounts it.
    pub name: String,
    /// The folder.
    pub path: PathBuf,
    /// The guest may not write.
    pub read_only: bool,
    /// Where a Linux guest sees it, mounted when its agent answers.
    #[serde(default)]
    pub to: Option<String>,
}

/// A USB device of this host, or a keyboard or mouse that it shares.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UsbPlan {
    /// Whatever is plugged in there: bus and port, such as `1` and `4.2`.
    Port {
        /// The bus.
        bus: u16,
        /// The port on it.
        port: String,
    },
    /// Every device with this id, such as `046d:c52b`.
    Id(String),
    /// An input device that host and guest share.
    Evdev {
        /// Such as `/dev/input/by-id/…-event-kbd`.
        path: PathBuf,
        /// The keys that switch it over, in QEMU's words, such as `ctrl-ctrl`.
        toggle: String,
    },
}

/// Where sound goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AudioPlan {
    /// The card's own outputs; no emulated sound card.
    #[default]
    Card,
    /// An emulated sound card, played by PipeWire.
    Pipewire,
    /// An emulated sound card, played by PulseAudio.
    Pulse,
    /// No emulated sound card.
    None,
}

/// One TCP port of 127.0.0.1 that leads into the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForwardPlan {
    /// On the host.
    pub host: u16,
    /// In the guest.
    pub guest: u16,
}
