//! PCI addresses and ids, written the way lspci writes them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Where a PCI function sits: `0000:01:00.0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress {
    /// PCI domain; 0 on nearly every PC. 32 bits, because Intel VMD invents domains above 0xffff.
    pub domain: u32,
    /// Bus number.
    pub bus: u8,
    /// Device number on the bus, 0 to 31.
    pub device: u8,
    /// Function number of the device, 0 to 7.
    pub function: u8,
}

impl PciAddress {
    /// `01:00.0`, or with the domain where that is not 0, as lspci prints it.
    pub fn short(&self) -> String {
        format!("{}.{}", self.slot_name(), self.function)
    }

    /// `01:00`: the slot that all functions of a device share.
    pub fn slot_name(&self) -> String {
        match self.domain {
            0 => format!("{:02x}:{:02x}", self.bus, self.device),
            domain => format!("{domain:04x}:{:02x}:{:02x}", self.bus, self.device),
        }
    }

    /// Whether both are functions of one slot.
    pub fn same_slot(&self, other: &Self) -> bool {
        (self.domain, self.bus, self.device) == (other.domain, other.bus, other.device)
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{:x}", self.domain, self.bus, self.device, self.function)
    }
}

/// A text that is no PCI address or no PCI id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is not a PCI {what}: expected {expected}")]
pub struct ParsePciError {
    text: String,
    what: &'static str,
    expected: &'static str,
}

impl FromStr for PciAddress {
    type Err = ParsePciError;

    /// Takes `0000:01:00.0`, `01:00.0`, and a bare slot (`01:00`), which means its function 0.
    fn from_str(text: &str) -> Result<Self, ParsePciError> {
        parse_address(text).ok_or_else(|| ParsePciError {
            text: text.chars().take(40).collect(),
            what: "address",
            expected: "something like 01:00.0 or 0000:01:00.0",
        })
    }
}

fn parse_address(text: &str) -> Option<PciAddress> {
    let (slot, function) = match text.split_once('.') {
        Some((slot, function)) => (slot, hex(function, 1)?),
        None => (text, 0),
    };
    let (head, device) = slot.rsplit_once(':')?;
    let (domain, bus) = match head.split_once(':') {
        Some((domain, bus)) => (hex(domain, 8)?, bus),
        None => (0, head),
    };
    let (bus, device) = (hex(bus, 2)?, hex(device, 2)?);
    (device < 32 && function < 8).then_some(PciAddress {
        domain,
        bus: u8::try_from(bus).ok()?,
        device: u8::try_from(device).ok()?,
        function: u8::try_from(function).ok()?,
    })
}

/// One to `digits` hexadecimal digits and nothing else (`from_str_radix` alone would take a sign).
fn hex(text: &str, digits: usize) -> Option<u32> {
    let fits = (1..=digits).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
    fits.then(|| u32::from_str_radix(text, 16).ok()).flatten()
}

/// Vendor and device of a PCI function: `10de:2484`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciId {
    /// Vendor id, for example `0x10de` for NVIDIA.
    pub vendor: u16,
    /// Device id, given by the vendor.
    pub device: u16,
}

impl fmt::Display for PciId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:04x}", self.vendor, self.device)
    }
}

impl FromStr for PciId {
    type Err = ParsePciError;

    fn from_str(text: &str) -> Result<Self, ParsePciError> {
        let parsed = text.split_once(':').and_then(|(vendor, device)| {
            Some(PciId {
                vendor: u16::try_from(hex(vendor, 4)?).ok()?,
                device: u16::try_from(hex(device, 4)?).ok()?,
            })
        });
        parsed.ok_or_else(|| ParsePciError {
            text: text.chars().take(40).collect(),
            what: "id",
            expected: "vendor and device like 10de:2484",
        })
    }
}

macro_rules! serde_as_text {
    ($type:ty) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

serde_as_text!(PciAddress);
serde_as_text!(PciId);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn addresses_are_read_with_and_without_domain() {
        let full: PciAddress = "0000:01:00.1".parse().unwrap();
        assert_eq!(full, "01:00.1".parse().unwrap());
        assert_eq!(full.to_string(), "0000:01:00.1");
        assert_eq!(full.short(), "01:00.1");
        assert_eq!(full.slot_name(), "01:00");
        assert_eq!("4d:00".parse::<PciAddress>().unwrap().short(), "4d:00.0");
        let vmd: PciAddress = "10000:e1:00.0".parse().unwrap();
        assert_eq!(vmd.short(), "10000:e1:00.0");
        for bad in ["", "01", "01:20.0", "01:00.8", "0x1:00.0", "+1:00.0", "01:00.0 ", "::.", "1:2:3:4.5"] {
            assert!(bad.parse::<PciAddress>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in ".{0,20}") {
            if let Ok(address) = text.parse::<PciAddress>() {
                prop_assert_eq!(address.to_string().parse(), Ok(address));
            }
            let _ = text.parse::<PciId>();
        }

        #[test]
        fn written_addresses_are_read_back(domain in 0u32.., bus in 0u8.., device in 0u8..32, function in 0u8..8) {
            let address = PciAddress { domain, bus, device, function };
            prop_assert_eq!(address.to_string().parse(), Ok(address));
            prop_assert_eq!(address.short().parse(), Ok(address));
        }
    }
}
