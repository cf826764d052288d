//! What NVIDIA's own interfaces say about cards: the same types for NVML and for `nvidia-smi -q -x`.

use serde::{Deserialize, Serialize};

/// One source's words about the driver and its cards.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NvidiaFacts {
    /// Version of the driver, as `580.95.05`.
    pub driver_version: Option<String>,
    /// Version of the library NVML; only it says so.
    pub nvml_version: Option<String>,
    /// Newest CUDA that the driver serves, as `13.0`.
    pub cuda_version: Option<String>,
    /// Version of the document type of `nvidia-smi`, as `v12`.
    pub schema: Option<String>,
    /// Its cards, in its order.
    pub cards: Vec<NvidiaCard>,
    /// What was asked for and refused, as `card 0: encoder capacity: not supported`.
    pub unknown: Vec<String>,
}

/// One card.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NvidiaCard {
    /// PCI address in the guest, as `0000:01:00.0`.
    pub address: Option<String>,
    /// Vendor and device, as `10de:2484`.
    pub id: Option<String>,
    /// Vendor and device of the subsystem.
    pub subsystem: Option<String>,
    /// Name, as `NVIDIA GeForce RTX 3070`.
    pub name: Option<String>,
    /// `GeForce`, `Quadro` and so on, if told.
    pub brand: Option<String>,
    /// Version of the video BIOS.
    pub vbios: Option<String>,
    /// Link generation and lanes, now and at most. Idle cards go down to generation 1.
    pub link: Option<crate::protocol::GuestLink>,
    /// Replays on the link since the start.
    pub replays: Option<u64>,
    /// Size of BAR 1 in bytes: shows whether a resizable BAR arrived.
    pub bar1_bytes: Option<u64>,
    /// Video memory in bytes.
    pub memory_bytes: Option<u64>,
    /// Of it in use.
    pub memory_used_bytes: Option<u64>,
    /// `none`, `pass-through`, `vgpu`, `host-vgpu`, `host-vsga`; a card in a VM says `pass-through`.
    pub virtualization: Option<String>,
    /// `wddm`, `tcc` (older: `wdm`) or `mcdm`; Windows only.
    pub driver_model: Option<String>,
    /// H.264 encoder capacity in percent.
    pub encoder_percent: Option<u32>,
    /// Encoder sessions at this moment.
    pub encoder_sessions: Option<u32>,
    /// Why clocks are lowered now, as `gpu-idle`, `sw-power-cap`, `hw-slowdown`; empty and told: nothing holds them.
    pub throttle_reasons: Option<Vec<String>>,
    /// Version of the firmware of the GPU system processor; `None` also where it is not used.
    pub gsp_firmware: Option<String>,
    /// Whether GSP firmware is at work.
    pub gsp: Option<bool>,
    /// Temperature of the chip in °C.
    pub temperature_c: Option<u32>,
    /// The card no longer answers ("fallen off the bus").
    pub lost: Option<bool>,
}

/// Names of the bits of clock event ("throttle") reasons in NVML, in the order of the bits; `nvml.h`,
/// `nvmlClocksEventReason…`.
pub const THROTTLE_REASONS: &[(u64, &str)] = &[
    (0x1, "gpu-idle"),
    (0x2, "applications-clocks"),
    (0x4, "sw-power-cap"),
    (0x8, "hw-slowdown"),
    (0x10, "sync-boost"),
    (0x20, "sw-thermal"),
    (0x40, "hw-thermal"),
    (0x80, "hw-power-brake"),
    (0x100, "display-clocks"),
];
