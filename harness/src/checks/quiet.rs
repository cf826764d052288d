//! 'quiet': neither the guest nor this host complains about the card while it works.

use super::{Answer, Asking, Subject};
use crate::diagnosis::{event_words, xid, xid_in};
use crate::verdict::FailureKind;
use no43_guest::protocol::{Report, Severity};

/// Numbers of NVIDIA's that a program can cause with a card that is well, or that tell nothing.
const HARMLESS: &[&str] = &["info", "secondary"];

pub(super) fn ask(asking: &mut Asking<'_, '_>, card: &Subject) -> Answer {
    let expected = "no complaint about the card: no TDR, Xid, PCIe error or vfio message on either side";
    let report = match asking.guest.report() {
        Ok(report) => report,
        Err(error) => return Answer::broken(expected, format!("{error:#}")),
    };
    let mut bad = of_guest(&report, card);
    if let Some(first) = bad.first().cloned() {
        bad.extend(card.guest_lines(&report).into_iter().filter(|line| *line != first));
        bad.truncate(8);
        return Answer::broken(expected, first).with_guest_lines(bad);
    }
    let mut seen = format!(
        "{} lines of the guest about cards, none of them bad",
        report.log.len() + report.events.len()
    );
    let Some(host) = asking.host.as_mut() else {
        return Answer::holds(expected, seen);
    };
    let complaints = host.complaints();
    let wrong: Vec<String> = complaints
        .gone
        .iter()
        .map(|address| format!("{address} left the host's bus"))
        .chain(complaints.errors)
        .chain(complaints.lines)
        .collect();
    if let Some(first) = wrong.first() {
        let details = wrong.iter().map(|line| format!("host: {line}"));
        return Answer::broken(expected, format!("host: {first}")).blame(FailureKind::Host).details(details);
    }
    seen.push_str(match &complaints.log_unreadable {
        None => "; the host's kernel is quiet",
        Some(_) => "; the host's PCIe error counters did not move",
    });
    let note = complaints.log_unreadable.map(|why| format!("the host's kernel log was not read: {why}"));
    let corrected =
        complaints.corrected.iter().map(|text| format!("host, corrected by the link itself: {text}"));
    Answer::holds(expected, seen).details(corrected.chain(note))
}

/// What the guest's logs say against the card, worst first.
fn of_guest(report: &Report, card: &Subject) -> Vec<String> {
    let log =
        report.log.iter().filter(|line| line.severity == Severity::Error && card.is_named_in(&line.text));
    let xids = report.log.iter().filter(|line| xid_in(&line.text).is_some_and(is_telling));
    let events = report.events.iter().filter(|event| {
        let display = event.provider.eq_ignore_ascii_case("display") && event.id == Some(4101);
        let driver =
            event.provider.eq_ignore_ascii_case("nvlddmkm") && event.level.is_some_and(|level| level <= 2);
        display || driver
    });
    log.chain(xids).map(|line| line.text.clone()).chain(events.map(event_words)).collect()
}

fn is_telling(number: u32) -> bool {
    xid(number).is_none_or(|row| !HARMLESS.contains(&row.class))
}
