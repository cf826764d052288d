//! 'given back': after the run every function of the card has the driver that it had before.

use super::{Answer, CheckResult, result_of};
use crate::evidence::Round;
use crate::verdict::FailureKind;
use std::time::Duration;

/// The check's name.
pub(super) const NAME: &str = "given back";

/// One function after it was given back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Returned {
    /// PCI address on the host.
    pub address: String,
    /// The driver before the run; none if it had none.
    pub before: Option<String>,
    /// The driver now.
    pub now: Option<String>,
}

/// Judges what came back. `problem` is what went wrong on the way, in the host's words.
pub fn given_back(
    returned: &[Returned],
    problem: Option<&str>,
    took: Duration,
) -> (CheckResult, FailureKind) {
    let expected = "every function has the driver that it had before the run";
    let word = |driver: &Option<String>| driver.clone().unwrap_or_else(|| "no driver".into());
    let details: Vec<String> = returned
        .iter()
        .map(|f| format!("{}: before {}, now {}", f.address, word(&f.before), word(&f.now)))
        .collect();
    let mut wrong: Vec<String> = returned
        .iter()
        .filter(|f| f.before != f.now)
        .map(|f| format!("{} has {} instead of {}", f.address, word(&f.now), word(&f.before)))
        .collect();
    wrong.extend(problem.map(str::to_owned));
    let answer = if wrong.is_empty() {
        let mut drivers: Vec<String> = returned.iter().filter_map(|f| f.now.clone()).collect();
        drivers.dedup();
        let seen = match drivers.as_slice() {
            [] => "the functions are free, as they were before".into(),
            [one] => format!("{one} has its device again"),
            many => format!("{} have their devices again", sentence_list(many)),
        };
        Answer::holds(expected, seen)
    } else {
        Answer::broken(expected, wrong.join("; "))
    };
    (result_of(NAME, "", Round::AfterRun, answer.details(details), took), FailureKind::Host)
}

/// "a", "a and b", "a, b and c".
fn sentence_list(words: &[String]) -> String {
    match words.split_last() {
        None => String::new(),
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} and {last}", rest.join(", ")),
    }
}
