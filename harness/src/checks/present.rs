//! 'present': the guest sees every function of the card, with the ids that the plan presents and the host's BAR sizes.

use super::{Answer, Asking, Subject, SubjectFunction};
use crate::words;
use no43_guest::protocol::{BarKind, GuestFunction, Report};

pub(super) fn ask(asking: &mut Asking<'_, '_>, card: &Subject) -> Answer {
    if !card.compared {
        return Answer::skipped(
            "",
            "only the guest knows this card: --card ADDRESS names it on this host, to compare",
        );
    }
    let expected = expectation(card);
    match asking.guest.report() {
        Ok(report) => judge(card, &report, expected),
        Err(error) => Answer::broken(expected, format!("{error:#}")),
    }
}

fn expectation(card: &Subject) -> String {
    let ids: Vec<String> = card.functions.iter().map(|f| f.shown_as.to_string()).collect();
    let bars: Vec<String> = card.functions.iter().map(|f| bar_words(&f.bars)).collect();
    format!("{} functions, {}, {}, as on the host", card.functions.len(), ids.join(" + "), bars.join(" + "))
}

/// "BAR0 16 MiB, BAR2 4 KiB". The ROM (6) is left out: QEMU may leave it away or give its own.
fn bar_words(bars: &[(u8, u64)]) -> String {
    let words: Vec<String> = bars
        .iter()
        .filter(|(index, _)| *index < 6)
        .map(|(index, size)| format!("BAR{index} {}", words::bytes(*size)))
        .collect();
    if words.is_empty() { "no BARs".into() } else { words.join(", ") }
}

fn judge(card: &Subject, report: &Report, expected: String) -> Answer {
    let (mut wrong, mut details) = (Vec::new(), Vec::new());
    for function in &card.functions {
        let name = format!("{} {}", function.host, function.role);
        match report.function(&function.guest) {
            None => wrong.push(format!("{name} is not at {} in the guest", function.guest)),
            Some(there) => {
                let problems = compare(function, there);
                let bars: Vec<(u8, u64)> = there.bars.iter().map(|bar| (bar.index, bar.size)).collect();
                let id = there.id.as_deref().unwrap_or("unknown id");
                details.push(format!("host {name} → guest {} {id}, {}", there.address, bar_words(&bars)));
                wrong.extend(problems.into_iter().map(|p| format!("{name}: {p}")));
            }
        }
    }
    if wrong.is_empty() {
        let count = card.functions.len();
        let told = |f: &SubjectFunction| report.function(&f.guest).is_some_and(|there| !bars_unknown(there));
        let seen = match card.functions.iter().all(told) {
            true => format!("{count} of {count} {}", expected.split_once(' ').map_or("", |(_, rest)| rest)),
            false => {
                let ids: Vec<String> = card.functions.iter().map(|f| f.shown_as.to_string()).collect();
                format!(
                    "{count} of {count} functions, {}; the guest does not tell their BARs",
                    ids.join(" + ")
                )
            }
        };
        return Answer::holds(expected, seen).details(details);
    }
    let others = report.functions.iter().map(|f| {
        format!(
            "guest has {} {} ({})",
            f.address,
            f.id.as_deref().unwrap_or("?"),
            f.class.as_deref().unwrap_or("?")
        )
    });
    details.extend(others);
    Answer::broken(expected, wrong.join("; ")).details(details).with_guest_lines(card.guest_lines(report))
}

/// Windows does not always say which windows a device has: unknown is not missing.
fn bars_unknown(there: &GuestFunction) -> bool {
    there.node.is_some() && there.bars.is_empty()
}

/// What differs between a function of the host and the same one in the guest, apart from the ROM.
fn compare(function: &SubjectFunction, there: &GuestFunction) -> Vec<String> {
    let mut wrong = Vec::new();
    let shown = function.shown_as.to_string();
    match &there.id {
        Some(id) if *id == shown => {}
        Some(id) => wrong.push(format!("shows {id} instead of {shown}")),
        None => wrong.push(format!("shows no id instead of {shown}")),
    }
    if bars_unknown(there) {
        return wrong;
    }
    for (index, size) in function.bars.iter().filter(|(index, _)| *index < 6) {
        match there.bars.iter().find(|bar| bar.index == *index) {
            None => wrong.push(format!("BAR{index} ({}) is missing", words::bytes(*size))),
            Some(bar) if bar.size != *size => wrong.push(format!(
                "BAR{index} has {} instead of {}",
                words::bytes(bar.size),
                words::bytes(*size)
            )),
            // I/O windows may stay without an address; nothing of a card of today depends on them
            Some(bar) if bar.assigned == Some(false) && bar.kind != BarKind::Io => {
                wrong.push(format!("BAR{index} ({}) got no address in the guest", words::bytes(*size)));
            }
            Some(_) => {}
        }
    }
    wrong
}
