//! Device nodes of Windows as they come from its API, and the functions of a report that are made of them.
//!
//! The API hands out bytes with a type. They are taken apart here, where tests can make any node, because the nodes of
//! Wine never have a problem code.

use no43_guest::protocol::{DevNode, GuestFunction, GuestLink};

/// A property of a device node that a report needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Property {
    HardwareIds,
    CompatibleIds,
    LocationPaths,
    BusNumber,
    Address,
    ProblemCode,
    ProblemStatus,
    Class,
    Service,
    DriverVersion,
    DriverDate,
    DriverInf,
    DriverInfSection,
    DriverProvider,
    MatchingId,
    LinkSpeed,
    LinkWidth,
    MaxLinkSpeed,
    MaxLinkWidth,
}

/// Bytes of a property with their type (`DEVPROP_TYPE_…`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Value {
    pub(crate) kind: u32,
    pub(crate) bytes: Vec<u8>,
}

/// Types of devpropdef.h.
mod kind {
    pub(super) const INT32: u32 = 0x06;
    pub(super) const UINT32: u32 = 0x07;
    pub(super) const FILETIME: u32 = 0x10;
    pub(super) const STRING: u32 = 0x12;
    pub(super) const NTSTATUS: u32 = 0x18;
    pub(super) const STRING_LIST: u32 = 0x2012;
}

/// One node as it was read.
#[derive(Debug, Clone, Default)]
pub(crate) struct RawNode {
    /// Its instance id.
    pub(crate) instance: String,
    /// Flags and problem number that cfgmgr32 gives, or its error.
    pub(crate) status: Option<Result<(u32, u32), u32>>,
    /// What it has of the properties.
    pub(crate) values: Vec<(Property, Value)>,
}

/// The flag of cfg.h without which the problem number is not to be believed.
const DN_HAS_PROBLEM: u32 = 0x400;

impl RawNode {
    fn value(&self, property: Property) -> Option<&Value> {
        self.values.iter().find(|(known, _)| *known == property).map(|(_, value)| value)
    }

    fn number(&self, property: Property) -> Option<u32> {
        let value =
            self.value(property).filter(|v| [kind::INT32, kind::UINT32, kind::NTSTATUS].contains(&v.kind))?;
        value.bytes.as_slice().try_into().ok().map(u32::from_le_bytes)
    }

    fn text(&self, property: Property) -> Option<String> {
        let value = self.value(property).filter(|value| value.kind == kind::STRING)?;
        utf16_texts(&value.bytes).into_iter().next()
    }

    fn texts(&self, property: Property) -> Vec<String> {
        let value = self.value(property).filter(|value| value.kind == kind::STRING_LIST);
        value.map(|value| utf16_texts(&value.bytes)).unwrap_or_default()
    }

    fn date(&self) -> Option<String> {
        let value = self.value(Property::DriverDate).filter(|value| value.kind == kind::FILETIME)?;
        date(value.bytes.as_slice().try_into().ok().map(u64::from_le_bytes)?)
    }

    /// Address with domain 0, which is all that Windows says on a PC; `None` if it does not.
    fn address(&self) -> Option<String> {
        let (bus, place) = (self.number(Property::BusNumber)?, self.number(Property::Address)?);
        let (device, function) = (place >> 16, place & 0xffff);
        (bus <= 0xff && device < 32 && function < 8)
            .then(|| format!("0000:{bus:02x}:{device:02x}.{function}"))
    }

    /// The problem code: the property, else what the status says with its flag.
    fn problem(&self) -> Option<u32> {
        let status = self.status.and_then(Result::ok);
        let told = status.map(|(flags, problem)| if flags & DN_HAS_PROBLEM == 0 { 0 } else { problem });
        self.number(Property::ProblemCode).or(told)
    }
}

/// Functions that can belong to a card, by the rule of the Linux report, ordered by address. What nodes do not say is
/// added to `unknown`.
pub(crate) fn functions(nodes: &[RawNode], unknown: &mut Vec<String>) -> Vec<GuestFunction> {
    let mut all: Vec<GuestFunction> = nodes.iter().filter_map(|node| function(node, unknown)).collect();
    all.sort_by(|a, b| a.address.cmp(&b.address));
    let is = |f: &GuestFunction, class: &str| f.class.as_deref().is_some_and(|c| c.starts_with(class));
    let slot = |f: &GuestFunction| f.address.split('.').next().unwrap_or_default().to_owned();
    let slots: Vec<String> = all.iter().filter(|f| is(f, "03")).map(slot).collect();
    all.retain(|f| ["03", "04", "0c03", "0c80"].iter().any(|class| is(f, class)) || slots.contains(&slot(f)));
    for f in &all {
        if f.node.as_ref().is_none_or(|node| node.problem.is_none()) {
            unknown.push(format!("{}: no problem code", f.address));
        }
    }
    all
}

fn function(raw: &RawNode, unknown: &mut Vec<String>) -> Option<GuestFunction> {
    if !raw.instance.to_ascii_uppercase().starts_with(r"PCI\") {
        return None;
    }
    let Some(address) = raw.address() else {
        unknown.push(format!("{}: no PCI address", raw.instance));
        return None;
    };
    if let Some(Err(code)) = raw.status {
        unknown.push(format!("{address}: CM_Get_DevNode_Status gives {code}"));
    }
    let link = GuestLink {
        speed: raw.number(Property::LinkSpeed),
        width: raw.number(Property::LinkWidth),
        max_speed: raw.number(Property::MaxLinkSpeed),
        max_width: raw.number(Property::MaxLinkWidth),
    };
    let ids = Ids::of(&raw.instance);
    Some(GuestFunction {
        address,
        id: ids.id,
        subsystem: ids.subsystem,
        class: class(&raw.texts(Property::CompatibleIds))
            .or_else(|| class(&raw.texts(Property::HardwareIds))),
        driver: raw.text(Property::Service),
        driver_version: raw.text(Property::DriverVersion),
        link: (link != GuestLink::default()).then_some(link),
        node: Some(DevNode {
            instance: raw.instance.clone(),
            problem: raw.problem(),
            problem_status: raw.number(Property::ProblemStatus),
            flags: raw.status.and_then(Result::ok).map(|(flags, _)| flags),
            class: raw.text(Property::Class),
            hardware_ids: raw.texts(Property::HardwareIds),
            location_paths: raw.texts(Property::LocationPaths),
            driver_date: raw.date(),
            inf: raw.text(Property::DriverInf),
            inf_section: raw.text(Property::DriverInfSection),
            provider: raw.text(Property::DriverProvider),
            matching_id: raw.text(Property::MatchingId),
        }),
        ..GuestFunction::default()
    })
}

struct Ids {
    id: Option<String>,
    subsystem: Option<String>,
}

impl Ids {
    /// From `PCI\VEN_10DE&DEV_2484&SUBSYS_146B10DE&REV_A1\…`; in SUBSYS the device comes before the vendor.
    fn of(instance: &str) -> Self {
        let ids = instance.split('\\').nth(1).unwrap_or_default().to_ascii_lowercase();
        let hex = |text: &str| text.bytes().all(|b| b.is_ascii_hexdigit());
        let part = |name: &str, digits: usize| {
            let value = ids.split('&').find_map(|part| part.strip_prefix(name))?;
            (value.len() == digits && hex(value)).then(|| value.to_owned())
        };
        let id = part("ven_", 4).zip(part("dev_", 4)).map(|(vendor, device)| format!("{vendor}:{device}"));
        let subsystem = part("subsys_", 8).map(|both| format!("{}:{}", &both[4..], &both[..4]));
        Self { id, subsystem }
    }
}

/// Six digits from an id as `PCI\CC_030000` (or four, `PCI\CC_0300`, where there is no longer one).
fn class(ids: &[String]) -> Option<String> {
    let codes = ids.iter().filter_map(|id| {
        let code = id.rsplit(['\\', '&']).next()?.strip_prefix("CC_")?;
        code.bytes().all(|b| b.is_ascii_hexdigit()).then(|| code.to_ascii_lowercase())
    });
    let longest = codes.filter(|code| [4, 6].contains(&code.len())).max_by_key(String::len)?;
    Some(format!("{longest:0<6}"))
}

/// The element `HypervisorLaunchType` of a boot entry: a little-endian number, 0 off, 1 auto.
pub(crate) fn launch_type(bytes: &[u8]) -> Option<String> {
    Some(match bytes.try_into().ok().map(u64::from_le_bytes)? {
        0 => "off".into(),
        1 => "auto".into(),
        number => number.to_string(),
    })
}

/// One text, or several with a NUL after each.
fn utf16_texts(bytes: &[u8]) -> Vec<String> {
    let units: Vec<u16> = bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect();
    let texts = units.split(|unit| *unit == 0).filter(|text| !text.is_empty());
    texts.map(String::from_utf16_lossy).collect()
}

/// The day of a FILETIME (100 ns since 1601) in the Gregorian calendar.
fn date(filetime: u64) -> Option<String> {
    // Days since 0000-03-01, counted in eras of 400 years (the usual algorithm; 1601-01-01 is day 584694).
    let days = filetime / 864_000_000_000 + 584_694;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let of_month = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + era * 400 + u64::from(month <= 2);
    (year <= 9999).then(|| format!("{year:04}-{month:02}-{of_month:02}"))
}

#[cfg(test)]
mod tests {
    use no43_guest::problem::{PROBLEMS, ProblemKind};
    use proptest::prelude::*;

    use super::*;

    fn number(value: u32) -> Value {
        Value { kind: kind::UINT32, bytes: value.to_le_bytes().to_vec() }
    }

    fn texts(kind: u32, list: &[&str]) -> Value {
        let units = list.iter().flat_map(|text| text.encode_utf16().chain([0])).chain([0]);
        Value { kind, bytes: units.flat_map(u16::to_le_bytes).collect() }
    }

    /// A node as Windows would show it, with this problem.
    fn node(instance: &str, class: &str, address: u32, problem: u32) -> RawNode {
        use Property::*;
        let flags = if problem == 0 { 0x0180_200a } else { 0x0180_2400 };
        RawNode {
            instance: instance.into(),
            status: Some(Ok((flags, problem))),
            values: vec![
                (BusNumber, number(1)),
                (Address, number(address)),
                (ProblemCode, Value { kind: kind::INT32, bytes: problem.to_le_bytes().to_vec() }),
                (
                    ProblemStatus,
                    Value { kind: kind::NTSTATUS, bytes: 0xC000_009A_u32.to_le_bytes().to_vec() },
                ),
                (
                    CompatibleIds,
                    texts(kind::STRING_LIST, &[r"PCI\VEN_10DE&CC_0300", &format!(r"PCI\CC_{class}")]),
                ),
                (HardwareIds, texts(kind::STRING_LIST, &[r"PCI\VEN_10DE&DEV_2484&SUBSYS_146B10DE&REV_A1"])),
                (Service, texts(kind::STRING, &["nvlddmkm"])),
                (DriverVersion, texts(kind::STRING, &["32.0.15.6094"])),
                (
                    DriverDate,
                    Value { kind: kind::FILETIME, bytes: 133_682_400_000_000_000_u64.to_le_bytes().to_vec() },
                ),
                (DriverInf, texts(kind::STRING, &["oem4.inf"])),
                (DriverInfSection, texts(kind::STRING, &["Section043"])),
                (DriverProvider, texts(kind::STRING, &["NVIDIA"])),
                (LinkSpeed, number(1)),
                (LinkWidth, number(16)),
                (MaxLinkSpeed, number(4)),
            ],
        }
    }

    const CARD: &str = r"PCI\VEN_10DE&DEV_2484&SUBSYS_146B10DE&REV_A1\4&1A2B&0&0008";

    #[test]
    fn launch_types_have_names() {
        let of = |number: u64| launch_type(&number.to_le_bytes());
        assert_eq!([of(0), of(1), of(7)], [Some("off".into()), Some("auto".into()), Some("7".into())]);
        assert_eq!(launch_type(&[1]), None);
    }

    #[test]
    fn a_card_with_code_43() {
        let mut unknown = vec![];
        let audio = node(r"PCI\VEN_10DE&DEV_228B&SUBSYS_146B10DE&REV_A1\4&1A2B&0&0108", "040300", 1, 0);
        let bridge = node(r"PCI\VEN_8086&DEV_2918&SUBSYS_11001AF4&REV_02\3&11&0&F8", "060100", 0x1f_0000, 0);
        let found = functions(&[audio, bridge, node(CARD, "030000", 0, 43)], &mut unknown);
        assert_eq!((found.len(), unknown.len()), (2, 0), "{unknown:?}");
        insta::assert_snapshot!(serde_json::to_string_pretty(&found[0]).unwrap(), @r#"
        {
          "address": "0000:01:00.0",
          "id": "10de:2484",
          "subsystem": "10de:146b",
          "class": "030000",
          "driver": "nvlddmkm",
          "bars": [],
          "modalias": null,
          "driver_version": "32.0.15.6094",
          "link": {
            "speed": 1,
            "width": 16,
            "max_speed": 4,
            "max_width": null
          },
          "node": {
            "instance": "PCI\\VEN_10DE&DEV_2484&SUBSYS_146B10DE&REV_A1\\4&1A2B&0&0008",
            "problem": 43,
            "problem_status": 3221225626,
            "flags": 25175040,
            "class": null,
            "hardware_ids": [
              "PCI\\VEN_10DE&DEV_2484&SUBSYS_146B10DE&REV_A1"
            ],
            "location_paths": [],
            "driver_date": "2024-08-16",
            "inf": "oem4.inf",
            "inf_section": "Section043",
            "provider": "NVIDIA",
            "matching_id": null
          }
        }
        "#);
        let node = found[1].node.as_ref().unwrap();
        assert_eq!((found[1].address.as_str(), node.problem), ("0000:01:00.1", Some(0)));
    }

    #[test]
    fn every_problem_code_comes_through_from_either_source() {
        for row in PROBLEMS.iter().filter(|row| row.kind != ProblemKind::Legacy) {
            let mut raw = node(CARD, "030000", 0, row.code);
            let seen = |raw: &RawNode| {
                functions(std::slice::from_ref(raw), &mut vec![])[0].node.clone().unwrap().problem
            };
            assert_eq!(seen(&raw), Some(row.code));
            raw.values.retain(|(property, _)| *property != Property::ProblemCode); // before Windows Vista, and Wine
            assert_eq!(seen(&raw), Some(row.code));
        }
    }

    #[test]
    fn what_is_not_said_stays_unknown() {
        let mut raw = node(CARD, "030000", 0, 0);
        raw.values.retain(|(property, _)| {
            [Property::BusNumber, Property::Address, Property::CompatibleIds].contains(property)
        });
        raw.status = Some(Err(13));
        let mut unknown = vec![];
        let found = functions(std::slice::from_ref(&raw), &mut unknown);
        let node = found[0].node.as_ref().unwrap();
        assert_eq!(
            (node.problem, node.problem_status, &found[0].driver, &found[0].link),
            (None, None, &None, &None)
        );
        raw.values.clear();
        functions(&[raw], &mut unknown);
        insta::assert_snapshot!(unknown.join("\n"), @r"
        0000:01:00.0: CM_Get_DevNode_Status gives 13
        0000:01:00.0: no problem code
        PCI\VEN_10DE&DEV_2484&SUBSYS_146B10DE&REV_A1\4&1A2B&0&0008: no PCI address
        ");
    }

    #[test]
    fn days() {
        let day = |n: u64| date(n * 864_000_000_000).unwrap();
        assert_eq!(
            (day(0), day(59), day(145_731)),
            ("1601-01-01".into(), "1601-03-01".into(), "2000-01-01".into())
        );
        assert_eq!(date(133_682_400_000_000_000).unwrap(), "2024-08-16");
        assert_eq!(date(u64::MAX), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(kind in 0_u32..0x2020, bytes in proptest::collection::vec(any::<u8>(), 0..40), instance in "PCI[\\\\A-Z&_0-9é]{0,40}") {
            use Property::*;
            let all = [HardwareIds, CompatibleIds, BusNumber, Address, ProblemCode, Service, DriverDate, LinkSpeed];
            for kind in [kind, kind::STRING, kind::STRING_LIST, kind::FILETIME, kind::UINT32] {
                let values = all.iter().map(|p| (*p, Value { kind, bytes: bytes.clone() })).collect();
                functions(&[RawNode { instance: instance.clone(), status: None, values }], &mut vec![]);
            }
            let address = [(BusNumber, number(1)), (Address, number(0))].to_vec();
            functions(&[RawNode { instance, status: None, values: address }], &mut vec![]);
        }
    }
}
