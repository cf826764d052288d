//! 'quiet': the guest's kernel says nothing bad about the card.

use super::{Answer, Asking, Subject};
use no43_guest::protocol::Severity;

pub(super) fn ask(asking: &mut Asking<'_, '_>, card: &Subject) -> Answer {
    let expected = "no line of the guest's kernel calls the card broken";
    let report = match asking.guest.report() {
        Ok(report) => report,
        Err(error) => return Answer::broken(expected, format!("{error:#}")),
    };
    let bad: Vec<&str> = report
        .log
        .iter()
        .filter(|l| l.severity == Severity::Error && card.is_named_in(&l.text))
        .map(|l| l.text.as_str())
        .collect();
    match bad.first() {
        None => Answer::holds(expected, format!("{} lines about cards, none of them bad", report.log.len())),
        Some(first) => Answer::broken(expected, first).with_guest_lines(card.guest_lines(&report)),
    }
}
