//! 'no code': Windows' device manager has no problem with any function of the card.

use super::{Answer, Asking, Subject, look_until};
use crate::diagnosis::explain;
use no43_guest::problem::problem;
use no43_guest::protocol::Report;

pub(super) fn ask(asking: &mut Asking<'_, '_>, card: &Subject) -> Answer {
    let expected = format!("problem code 0 on all {} functions", card.functions.len());
    // a code that passes by itself gets the time that a driver gets; Windows may still configure the class
    let limit = asking.limits.driver;
    let report = match look_until(asking, limit, |report| !codes(report, card).iter().any(passing)) {
        Ok(report) => report,
        Err(error) => return Answer::broken(expected, format!("{error:#}")),
    };
    let all = codes(&report, card);
    let details = all.iter().map(|(address, code)| format!("{address}: {}", code_words(*code)));
    let details: Vec<String> = details.collect();
    let wrong: Vec<String> = all
        .iter()
        .filter(|(_, code)| *code != Some(0))
        .map(|(address, code)| format!("{address}: {}", code_words(*code)))
        .collect();
    if wrong.is_empty() {
        return Answer::holds(expected, format!("problem code 0 on all {}", all.len())).details(details);
    }
    let status = card.functions.iter().filter_map(|f| report.function(&f.guest)?.node.as_ref());
    let status = status.filter_map(|node| Some(format!("problem status {:#010x}", node.problem_status?)));
    Answer::broken(expected, wrong.join("; ")).details(details.into_iter().chain(status))
}

/// Every function that is there, with its code; a function that is not there is the business of 'present'.
fn codes(report: &Report, card: &Subject) -> Vec<(String, Option<u32>)> {
    let one = |f: &super::SubjectFunction| {
        let there = report.function(&f.guest)?;
        Some((format!("{} ({})", f.shown_as, f.role), there.node.as_ref().and_then(|node| node.problem)))
    };
    card.functions.iter().filter_map(one).collect()
}

fn passing((_, code): &(String, Option<u32>)) -> bool {
    code.and_then(problem).is_some_and(|row| row.kind.is_transient())
}

/// "problem code 43 (CM_PROB_FAILED_POST_START): the driver started the card and then reported it as failed".
fn code_words(code: Option<u32>) -> String {
    let Some(code) = code else { return "problem code unknown".into() };
    let name = problem(code).map_or(String::new(), |row| format!(" (CM_PROB_{})", row.name));
    match explain(code) {
        Some(row) => format!("problem code {code}{name}: {}", row.meaning),
        None if code == 0 => "problem code 0".into(),
        None => format!("problem code {code}{name}"),
    }
}
