//! Which cards of somebody else's VM are asked about, and what the checks expect of them.

use super::OnThisHost;
use crate::checks::{Subject, SubjectFunction};
use crate::words;
use no43_guest::protocol::{GuestFunction, Report};
use no43_host::{PciAddress, Role};

/// Graphics that a hypervisor makes up. Never counted as a card unless named.
const EMULATED: &[&str] = &[
    "1234:1111", // QEMU's VGA and bochs-display
    "1af4:1050", // virtio-gpu
    "1b36:0100", // QXL
    "1013:00b8", // Cirrus
    "15ad:0405", // VMware SVGA II
    "15ad:0406", // VMware SVGA
    "80ee:beef", // VirtualBox
    "1414:5353", // Hyper-V
];

/// The cards that are asked about, as the checks expect them.
pub(super) fn subjects(report: &Report, here: Option<&OnThisHost>) -> Result<Vec<Subject>, String> {
    let displays: Vec<&GuestFunction> =
        report.functions.iter().filter(|there| role(there) == Role::Video).collect();
    let list = |displays: &[&GuestFunction]| {
        let one = |there: &&GuestFunction| {
            format!("{} {}", words::clean(&there.address), words::clean(there.id.as_deref().unwrap_or("?")))
        };
        if displays.is_empty() {
            "none".to_owned()
        } else {
            displays.iter().map(one).collect::<Vec<_>>().join(", ")
        }
    };
    let subjects: Vec<Subject> = match here {
        Some(host) => known(report, &displays, host).into_iter().collect(),
        None => displays
            .iter()
            .filter(|there| !is_emulated(there))
            .filter_map(|there| unknown(report, there))
            .collect(),
    };
    if subjects.is_empty() {
        return Err(match here {
            Some(host) => {
                format!("the guest has no display function {}; it has: {}", host.card.id, list(&displays))
            }
            None => format!("the guest has no graphics card of its own; its displays: {}", list(&displays)),
        });
    }
    Ok(subjects)
}

fn is_emulated(there: &GuestFunction) -> bool {
    there.id.as_deref().is_some_and(|id| EMULATED.contains(&id))
}

/// A card of this host: every function of it must be in the guest, wherever that VM puts it.
fn known(report: &Report, displays: &[&GuestFunction], host: &OnThisHost) -> Option<Subject> {
    let card = &host.card;
    let own = card.id.to_string();
    let video = displays.iter().find(|there| there.id.as_deref() == Some(own.as_str()))?;
    let slot: PciAddress = video.address.parse().ok()?;
    let mut functions = Vec::new();
    for (address, role) in card.functions.iter().zip(&card.roles) {
        let Some(there) = host.inventory.function(address) else { continue };
        let id = there.id.to_string();
        let same = |place: &&GuestFunction| place.id.as_deref() == Some(id.as_str());
        let beside = |place: &&GuestFunction| {
            place.address.parse().is_ok_and(|at: PciAddress| (at.bus, at.device) == (slot.bus, slot.device))
        };
        let all = || report.functions.iter().filter(same);
        let place =
            if *address == card.address { Some(*video) } else { all().find(beside).or_else(|| all().next()) };
        let guest = place.map_or_else(
            || PciAddress { function: address.function, ..slot }.to_string(),
            |place| place.address.clone(),
        );
        functions.push(SubjectFunction {
            host: *address,
            guest,
            role: role.to_string(),
            id: there.id,
            shown_as: there.id,
            bars: there.bars.iter().map(|bar| (bar.index, bar.size)).collect(),
        });
    }
    functions.sort_by_key(|function| (function.host != card.address, function.host));
    let link = host.inventory.function(&card.address).and_then(|function| function.link.as_ref());
    Some(Subject {
        name: card.name.clone(),
        slot: card.address.slot_name(),
        functions,
        left_out: Vec::new(),
        link_width: link.and_then(|link| link.width).filter(|width| *width > 0).map(u32::from),
        compared: true,
    })
}

/// A card of which only the guest knows something: its addresses stand for those of the host.
fn unknown(report: &Report, video: &GuestFunction) -> Option<Subject> {
    let slot: PciAddress = video.address.parse().ok()?;
    let function = |there: &GuestFunction| {
        let at: PciAddress = there.address.parse().ok()?;
        let beside = (at.domain, at.bus, at.device) == (slot.domain, slot.bus, slot.device);
        let id = there.id.as_deref()?.parse().ok().filter(|_| beside)?;
        Some(SubjectFunction {
            host: at,
            guest: there.address.clone(),
            role: role(there).to_string(),
            id,
            shown_as: id,
            bars: Vec::new(),
        })
    };
    let mut functions: Vec<SubjectFunction> = report.functions.iter().filter_map(function).collect();
    functions.sort_by_key(|function| (function.guest != video.address, function.host));
    let first = functions.first().filter(|first| first.guest == video.address)?;
    Some(Subject {
        name: no43_host::device_name(first.id).unwrap_or_else(|| first.id.to_string()),
        slot: slot.slot_name(),
        functions,
        left_out: Vec::new(),
        link_width: None,
        compared: false,
    })
}

/// From the six hexadecimal digits of its class, where the guest tells them.
fn role(there: &GuestFunction) -> Role {
    let text = there.class.as_deref().unwrap_or("");
    let digits = text.strip_prefix("0x").unwrap_or(text).get(..4);
    digits.and_then(|digits| u16::from_str_radix(digits, 16).ok()).map_or(Role::Other, Role::of_class)
}

#[cfg(test)]
mod tests {
    use super::super::tests::linux;
    use super::*;
    use no43_guest::protocol::parse_report;
    use serde_json::Value;

    const WINDOWS: &str = include_str!("../../../fixtures/report-windows.json");

    fn parsed(value: &Value) -> Report {
        parse_report(value.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn only_real_cards_are_asked_about_with_the_functions_beside_them() {
        let found = subjects(&parsed(&linux(None)), None).unwrap();
        assert_eq!(found.len(), 1, "{found:?}");
        let places: Vec<String> =
            found[0].functions.iter().map(|f| format!("{} {}", f.guest, f.role)).collect();
        assert_eq!(places, ["0000:05:00.0 video", "0000:05:00.1 audio"]);
        assert!(!found[0].compared && found[0].name.contains("RTX 3070"), "{found:?}");
        let windows = subjects(&parse_report(WINDOWS.as_bytes()).unwrap(), None).unwrap();
        assert_eq!(windows.len(), 1, "{windows:?}");

        let mut none = linux(None);
        none["functions"].as_array_mut().unwrap().truncate(1);
        let why = subjects(&parsed(&none), None).unwrap_err();
        assert_eq!(why, "the guest has no graphics card of its own; its displays: 0000:00:02.0 1234:1111");
    }
}
