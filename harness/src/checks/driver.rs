//! 'driver' and 'connector': a driver of the guest has the video function, and shows a connector of it.

use super::{Answer, Asking, Subject, forbidden, look_until};
use crate::diagnosis::{Facts, Mark, is_windows};
use no43_guest::protocol::{Report, Severity};
use std::time::Duration;

/// Drivers that hold a device without driving it: Linux, then what Windows falls back to.
const HOLDERS: &[&str] = &["vfio-pci", "pci-stub", "pciback", "BasicDisplay", "BasicRender"];

/// The service that an NVIDIA card must have in Windows.
const NVIDIA_SERVICE: &str = "nvlddmkm";

pub(super) fn ask_driver(asking: &mut Asking<'_, '_>, card: &Subject) -> Answer {
    let video = &card.video().guest;
    let expected = format!("a driver has the video function {video}");
    // udev loads drivers while the agent already answers; one that has given up will not come back, and a forbidden one not at all
    let settled = |r: &Report| driver(r, card).is_some() || gave_up(r, card) || r.function(video).is_none();
    let noticed = match look_until(asking, Duration::ZERO, settled) {
        Ok(report) if settled(&report) => Facts::default(),
        Ok(_) => forbidden::look(asking, video),
        Err(error) => return Answer::broken(expected, format!("{error:#}")),
    };
    let hopeless = noticed.get("guest.blacklist").iter().any(|module| module != "none");
    let limit = if hopeless { Duration::ZERO } else { asking.limits.driver };
    let report = match look_until(asking, limit, settled) {
        Ok(report) => report,
        Err(error) => return Answer::broken(expected, format!("{error:#}")),
    };
    let details = card.functions.iter().map(|f| {
        let name = report.function(&f.guest).and_then(|there| there.driver.as_deref()).unwrap_or("no driver");
        format!("{} {} ({}): {name}", f.guest, f.shown_as, f.role)
    });
    match driver(&report, card) {
        Some(name) => Answer::holds(expected, name).details(details.collect::<Vec<_>>()),
        None => {
            let mut answer = Answer::broken(expected, without_driver(&report, card))
                .details(details.collect::<Vec<_>>())
                .with_guest_lines(card.guest_lines(&report));
            if card.video().shown_as != card.video().id {
                answer.marks.push(Mark::PresentAs);
            }
            answer.noticed = noticed;
            answer
        }
    }
}

/// "no driver has …", or which one has it that does not count.
fn without_driver(report: &Report, card: &Subject) -> String {
    let video = card.video();
    match report.function(&video.guest).and_then(|function| function.driver.as_deref()) {
        Some(other) => {
            format!("{other} has {} ({}), which is not the card's own driver", video.guest, video.shown_as)
        }
        None if report.function(&video.guest).is_none() => {
            format!("nothing is at {} in the guest, where {} must be", video.guest, video.shown_as)
        }
        None => format!("no driver has {} ({})", video.guest, video.shown_as),
    }
}

/// Whether a driver of that name holds a device without driving it.
pub(crate) fn holds_only(name: &str) -> bool {
    HOLDERS.iter().any(|holder| name.eq_ignore_ascii_case(holder))
}

/// The driver of the card's video function, if it is one that drives.
fn driver<'a>(report: &'a Report, card: &Subject) -> Option<&'a str> {
    let function = report.function(&card.video().guest)?;
    let name = function.driver.as_deref()?;
    let holds = holds_only(name);
    let nvidia = function.node.is_some() && card.video().shown_as.to_string().starts_with("10de:");
    let other = nvidia && !name.eq_ignore_ascii_case(NVIDIA_SERVICE);
    (!holds && !other).then_some(name)
}

/// Has the kernel said that a driver failed on this card?
fn gave_up(report: &Report, card: &Subject) -> bool {
    report.log.iter().any(|line| line.severity == Severity::Error && card.is_named_in(&line.text))
}

pub(super) fn ask_connector(asking: &mut Asking<'_, '_>, card: &Subject) -> Answer {
    let video = card.video().guest.clone();
    if asking.last.as_ref().is_some_and(is_windows) {
        return Answer::skipped(
            "",
            "Windows has no DRM connectors; 'work' shows whether a desktop is on the card",
        );
    }
    let expected = format!("a DRM connector whose parent is {video}");
    let limit = asking.limits.driver;
    let report = match look_until(asking, limit, |r| r.connectors_of(&video).next().is_some()) {
        Ok(report) => report,
        Err(error) => return Answer::broken(expected, format!("{error:#}")),
    };
    let connectors: Vec<String> = report
        .connectors_of(&video)
        .map(|c| {
            let status = c.status.as_deref().unwrap_or("status unknown");
            format!("{} {status}{}", c.name, c.modes.first().map(|m| format!(", {m}")).unwrap_or_default())
        })
        .collect();
    if connectors.is_empty() {
        let others = report
            .connectors
            .iter()
            .map(|c| format!("guest has {} of {}", c.name, c.pci.as_deref().unwrap_or("no PCI device")));
        return Answer::broken(expected, "the driver shows none")
            .details(others.collect::<Vec<_>>())
            .with_guest_lines(card.guest_lines(&report));
    }
    let mut answer = Answer::holds(expected, connectors.join("; ")).details(connectors);
    answer.marks.push(Mark::ConnectorSeen);
    answer
}
