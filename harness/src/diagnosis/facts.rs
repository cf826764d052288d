//! What was seen, as named values: the only thing that causes read, whether it came from a guest, this host or QEMU.
//!
//! A name that is missing means *nobody looked, or nobody could tell*; a value `none` means that it was looked at and there is
//! nothing. That difference decides what a cause still lacks.

use crate::words;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Most values that one name keeps: logs are cut here.
const MAX_VALUES: usize = 60;

/// A name that facts may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Name {
    /// As it stands in events and in the table of causes.
    pub name: &'static str,
    /// As a report says it; empty for lines that are quoted alone.
    pub title: &'static str,
    /// How a person finds it out where nobody could tell.
    pub how: &'static str,
}

const fn fact(name: &'static str, title: &'static str, how: &'static str) -> Name {
    Name { name, title, how }
}

const WINDOWS: &str = "no43-guest report in the guest";

/// Every name, first those of the run, then QEMU's, the host's and the guest's.
pub const NAMES: &[Name] = &[
    fact("run.failed", "failed", "no43 report"),
    fact("run.round", "failed in the round", "no43 report"),
    fact("run.mark", "", "no43 report"),
    fact("recipe.present-as", "the recipe shows the card as", "no43 recipe show --resolved"),
    fact("recipe.functions", "functions that the recipe leaves out", "no43 recipe show --resolved"),
    fact("recipe.driver-version", "driver that the recipe asks for", "no43 recipe show --resolved"),
    fact("recipe.updates-driver", "updates.driver", "no43 recipe show --resolved"),
    fact("machine.firmware", "firmware of the machine", "no43 plan"),
    fact("machine.type", "machine type", "no43 plan"),
    fact("machine.accelerator", "accelerator", "no43 doctor"),
    fact("machine.hypervisor-hidden", "hypervisor hidden from the guest", "no43 plan"),
    fact("machine.slot", "place of the card in the machine", "no43 plan"),
    fact("machine.stop-code", "stop code", "the run's events of QEMU (GUEST_PANICKED)"),
    fact("qemu.version", "QEMU", "qemu-system-x86_64 --version"),
    fact("qemu.says", "", "the run's log of QEMU"),
    fact("serial.says", "", "the run's serial log"),
    fact("host.says", "", "dmesg on the host, as root"),
    fact("host.gone", "functions that left the host's bus", "lspci on the host"),
    fact("host.boot-vga", "boot_vga of the card", "cat /sys/bus/pci/devices/ADDRESS/boot_vga on the host"),
    fact(
        "host.framebuffer",
        "framebuffer of the host inside a BAR of the card",
        "sudo cat /proc/iomem on the host",
    ),
    fact("host.rom", "video BIOS of the card", "read /sys/bus/pci/devices/ADDRESS/rom on the host, as root"),
    fact("host.bar-largest", "largest BAR in bytes", "lspci -vv on the host"),
    fact("host.phys-bits", "address bits of the host's CPU", "lscpu on the host"),
    fact("host.power-state", "power state", "cat /sys/bus/pci/devices/ADDRESS/power_state on the host"),
    fact(
        "host.reset-methods",
        "ways to reset the card",
        "cat /sys/bus/pci/devices/ADDRESS/reset_method on the host",
    ),
    fact("host.not-bound", "functions of the card that a host driver kept", "lspci -nnk on the host"),
    fact("host.same-id", "other cards with the same ids", "no43 gpus"),
    fact("host.vfio-ids", "vfio-pci.ids of the kernel's command line", "cat /proc/cmdline on the host"),
    fact("host.iommu", "IOMMU of the host", "no43 doctor"),
    fact("host.interrupt-remapping", "interrupt remapping", "no43 doctor"),
    fact(
        "host.aer",
        "PCIe errors counted on the host during the run",
        "cat /sys/bus/pci/devices/ADDRESS/aer_dev_* on the host",
    ),
    fact("host.link-width", "lanes on the host", "lspci -vv on the host"),
    fact("host.link-width-max", "lanes of card and slot at best", "lspci -vv on the host"),
    fact("host.subsystem", "subsystem ids on the host", "lspci -nnvv on the host"),
    fact("host.chassis", "chassis of the host", "cat /sys/class/dmi/id/chassis_type on the host"),
    fact("guest.os", "guest", WINDOWS),
    fact("guest.code", "problem code", "Device Manager, or no43-guest report in the guest"),
    fact("guest.code-status", "problem status", WINDOWS),
    fact("guest.says", "", "dmesg or the event log in the guest"),
    fact("guest.xid", "Xid", "dmesg or the event log in the guest"),
    fact("guest.vendor", "vendor of the card", WINDOWS),
    fact("guest.missing", "functions missing in the guest", WINDOWS),
    fact("guest.driver", "driver of the video function", WINDOWS),
    fact("guest.audio-driver", "driver of the audio function", WINDOWS),
    fact("guest.driver-version", "driver version in the guest", WINDOWS),
    fact(
        "guest.driver-source",
        "where the driver came from",
        "C:\\Windows\\INF\\setupapi.dev.log in the guest",
    ),
    fact("guest.inf-match", "what the driver's INF says of this card", "no43 driver inspect PACKAGE"),
    fact(
        "guest.blacklist",
        "drivers that the guest's settings forbid",
        "/etc/modprobe.d and /proc/cmdline in the guest",
    ),
    fact("guest.hypervisor", "hypervisor seen by the guest", WINDOWS),
    fact(
        "guest.own-hypervisor",
        "the guest runs a hypervisor of its own",
        "msinfo32 in the guest: Virtualization-based security",
    ),
    fact("guest.memory-integrity", "memory integrity", "Windows Security in the guest: Core isolation"),
    fact("guest.secure-boot", "Secure Boot", "msinfo32 in the guest"),
    fact(
        "guest.msi",
        "message-signalled interrupts",
        "lspci -vv on the host while the guest runs: MSI: Enable",
    ),
    fact("guest.battery", "battery in the guest", "powercfg /batteryreport in the guest"),
    fact(
        "guest.card-kind",
        "kind of card",
        "the card's name: mobile cards end in M or say Laptop, Mobile, Max-Q",
    ),
    fact("guest.subsystem", "subsystem ids in the guest", WINDOWS),
    fact("guest.unassigned", "BARs without an address in the guest", WINDOWS),
    fact("guest.connectors", "outputs of the card with a screen", WINDOWS),
    fact("guest.adapter", "adapter that did the work", "no43-guest work in the guest"),
    fact("guest.link-width", "lanes in the guest", WINDOWS),
];

/// The row of a name.
pub(crate) fn row(name: &str) -> Option<&'static Name> {
    NAMES.iter().find(|row| row.name == name)
}

/// Named values; one name may have several (lines of a log, functions).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Facts(BTreeMap<String, Vec<String>>);

impl Facts {
    /// Adds a value; foreign text is cleaned and cut. The same value twice counts once.
    pub fn add(&mut self, name: &str, value: impl AsRef<str>) {
        debug_assert!(row(name).is_some(), "no fact is called {name}");
        let value = words::clean_to(value.as_ref(), 400);
        let values = self.0.entry(name.to_owned()).or_default();
        if values.len() < MAX_VALUES && !values.contains(&value) {
            values.push(value);
        }
    }

    /// Adds a value that may be unknown.
    pub fn maybe(&mut self, name: &str, value: Option<impl AsRef<str>>) {
        if let Some(value) = value {
            self.add(name, value);
        }
    }

    /// Adds all values; `none` if there are none. For what was looked at.
    pub fn all<T: AsRef<str>>(&mut self, name: &str, values: impl IntoIterator<Item = T>) {
        let mut any = false;
        for value in values {
            if let Some(known) = self.0.get_mut(name).filter(|known| **known == ["none"]) {
                known.clear();
            }
            self.add(name, value);
            any = true;
        }
        if !any && self.get(name).is_empty() {
            self.add(name, "none");
        }
    }

    /// The values of a name; none if nobody could tell.
    pub fn get(&self, name: &str) -> &[String] {
        self.0.get(name).map_or(&[], Vec::as_slice)
    }

    /// What was seen under a name: nothing if nobody could tell, nor if nothing was there.
    pub fn seen(&self, name: &str) -> impl Iterator<Item = &str> {
        self.get(name).iter().map(String::as_str).filter(|value| *value != "none")
    }

    /// Whether anything is known under this name.
    pub fn knows(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Whether nothing at all is known.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All names with their values, in the order of the names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[String])> {
        self.0.iter().map(|(name, values)| (name.as_str(), values.as_slice()))
    }

    /// Takes over what another collection knows.
    pub fn merge(&mut self, other: &Self) {
        for (name, values) in other.iter() {
            let known = self.0.entry(name.to_owned()).or_default();
            for value in values {
                if known.len() < MAX_VALUES && !known.contains(value) {
                    known.push(value.clone());
                }
            }
        }
    }
}
