//! 'work': the card does work whose answers are known; a software adapter is never counted as the card.

use super::own::{PICTURE_LIMIT, decode};
use super::{Answer, Asking, Subject};
use crate::words;
use no43_builder::plan::WorkWish;
use no43_guest::work::{WORK, WorkOutcome, WorkReport, WorkResult};
use std::time::Duration;

/// The piece of work that takes a picture of Windows' desktop.
pub(crate) const DESKTOP: &str = "desktop-picture";
/// Where it leaves the picture: a folder that every Windows has, and that others cannot list.
pub(crate) const DESKTOP_FOLDER: &str = r"C:\Windows\Temp";
const DESKTOP_FILE: &str = r"C:\Windows\Temp\desktop.png";
const REMOVE_LIMIT: Duration = Duration::from_secs(30);

/// Whether somebody must be logged on for it.
pub(crate) fn needs_session(wish: &WorkWish) -> bool {
    let chosen = chosen(wish);
    WORK.iter().any(|row| row.session && chosen.contains(&row.name))
}

pub(super) fn ask(asking: &mut Asking<'_, '_>, card: &Subject) -> Answer {
    let only = chosen(&asking.work);
    let expected = match &asking.work {
        WorkWish::Usual => {
            "the usual work for this guest and card, done by the card with the right answers".to_owned()
        }
        WorkWish::Only(kinds) => format!("{}, done by the card with the right answers", kinds.join(", ")),
    };
    let wants_desktop = only.contains(&DESKTOP);
    // a picture that an earlier run could not remove is none of this one
    let left = wants_desktop.then(|| remove_desktop(asking)).flatten();
    match asking.guest.work(&card.video().guest, &only) {
        Ok(report) => {
            let mut answer = judge(card, &report, &asking.work, expected);
            answer.details.extend(left);
            if wants_desktop {
                let (file, problems) = desktop(asking, &report);
                answer.evidence.extend(file);
                answer.details.extend(problems);
            }
            let adapters = report.results.iter().filter_map(|result| result.adapter.as_ref());
            adapters.for_each(|adapter| answer.noticed.add("guest.adapter", &adapter.name));
            answer
        }
        Err(error) if no_such_command(&error) => Answer::skipped(
            expected,
            "the guest program in this image does no work yet: no43 build makes a new image",
        ),
        Err(error) => Answer::broken(expected, format!("{error:#}")),
    }
}

/// Gives what went wrong; that there is none is fine.
fn remove_desktop(asking: &mut Asking<'_, '_>) -> Option<String> {
    let remove = ["cmd.exe", "/c", "del", "/q", DESKTOP_FILE].map(str::to_owned);
    let removed = asking.guest.run(&remove, REMOVE_LIMIT).is_ok_and(|ran| ran.code == Some(0));
    (!removed).then(|| format!("the picture of a desktop may still be in the guest: {DESKTOP_FILE}"))
}

/// The picture of a desktop that a guest's program has left for us: where it is kept, and what went wrong.
fn desktop(asking: &mut Asking<'_, '_>, report: &WorkReport) -> (Option<String>, Vec<String>) {
    if !report.results.iter().any(|result| result.name == DESKTOP && result.picture.is_some()) {
        return (None, Vec::new());
    }
    let mut problems = Vec::new();
    let picture = asking.guest.fetch(DESKTOP_FILE, PICTURE_LIMIT).and_then(|bytes| decode(&bytes));
    // a person's desktop is nobody else's business
    problems.extend(remove_desktop(asking));
    let caption = "the desktop that the card shows, as the guest sees it";
    let kept = picture.map_err(|error| format!("no picture of the desktop: {error:#}")).and_then(|picture| {
        let file = asking.recorder.frame("desktop", caption, &picture);
        file.ok_or_else(|| "the picture of the desktop could not be kept".into())
    });
    problems.extend(kept.as_ref().err().map(|why| words::clean(why)));
    (kept.ok(), problems)
}

/// The rows of the guest program's table that a recipe's words stand for: `cuda` is all that begins with it.
fn chosen(wish: &WorkWish) -> Vec<&'static str> {
    let WorkWish::Only(kinds) = wish else { return Vec::new() };
    let wanted = |name: &str| kinds.iter().any(|kind| name == kind || name.starts_with(&format!("{kind}-")));
    WORK.iter().map(|row| row.name).filter(|name| wanted(name)).collect()
}

fn no_such_command(error: &anyhow::Error) -> bool {
    format!("{error:#}").contains("unrecognized subcommand")
}

fn judge(card: &Subject, report: &WorkReport, wish: &WorkWish, expected: String) -> Answer {
    let details = report.results.iter().map(|result| line(card, result)).collect::<Vec<_>>();
    let bad = report.results.iter().find(|result| is_bad(card, result));
    if let Some(bad) = bad {
        return Answer::broken(expected, line(card, bad)).details(details);
    }
    let passed: Vec<&WorkResult> =
        report.results.iter().filter(|r| r.outcome == WorkOutcome::Passed).collect();
    let skipped = report.results.iter().find(|r| r.outcome == WorkOutcome::Skipped);
    match (passed.is_empty(), wish, skipped) {
        // work that was asked for by name must have been done
        (_, WorkWish::Only(_), Some(skipped)) => {
            Answer::broken(expected, line(card, skipped)).details(details)
        }
        (true, _, Some(skipped)) => Answer::skipped(expected, reason(skipped)).details(details),
        (true, _, None) => Answer::skipped(expected, "the guest program did no work at all").details(details),
        (false, _, _) => {
            let done = passed.iter().map(|r| format!("{}{}", r.name, metrics(r)));
            Answer::holds(expected, done.collect::<Vec<_>>().join(", ")).details(details)
        }
    }
}

/// Failed, unknown, or done by somebody else than the card.
fn is_bad(card: &Subject, result: &WorkResult) -> bool {
    match result.outcome {
        WorkOutcome::Skipped => false,
        WorkOutcome::Passed => not_the_card(card, result).is_some(),
        WorkOutcome::Failed | WorkOutcome::Unknown => true,
    }
}

/// Why an adapter is not this card: the guest's own word for "passed" does not decide it.
fn not_the_card(card: &Subject, result: &WorkResult) -> Option<String> {
    let Some(adapter) = &result.adapter else { return Some("it does not say on which adapter".into()) };
    let name = words::clean(&adapter.name);
    let soft = ["llvmpipe", "lavapipe", "swiftshader", "basic render", "warp"];
    if adapter.software == Some(true) || soft.iter().any(|word| name.to_lowercase().contains(word)) {
        return Some(format!("{name} is a software adapter"));
    }
    let video = card.video();
    if let Some(address) = adapter.address.as_deref().filter(|address| *address != video.guest) {
        return Some(format!("{name} is at {}, the card is at {}", words::clean(address), video.guest));
    }
    let shown = video.shown_as.to_string();
    adapter
        .id
        .as_deref()
        .filter(|id| *id != shown)
        .map(|id| format!("{name} is {}, the card is {shown}", words::clean(id)))
}

fn line(card: &Subject, result: &WorkResult) -> String {
    let name = words::clean(&result.name);
    let reason = reason(result);
    match result.outcome {
        WorkOutcome::Passed => match not_the_card(card, result) {
            Some(why) => format!("{name}: not done by the card: {why}"),
            None => format!("{name}: passed{}", metrics(result)),
        },
        WorkOutcome::Failed => format!("{name}: {reason}"),
        WorkOutcome::Skipped => format!("{name}: skipped: {reason}"),
        WorkOutcome::Unknown => format!("{name}: it does not say how it ended"),
    }
}

fn reason(result: &WorkResult) -> String {
    let cause = result.cause.and_then(|cause| serde_json::to_value(cause).ok());
    let cause = cause.as_ref().and_then(|value| value.as_str()).unwrap_or("").replace('-', " ");
    let words = words::clean(result.reason.as_deref().unwrap_or("no reason given"));
    if cause.is_empty() { words } else { format!("{cause}: {words}") }
}

/// " (copy-to-card 11.8 GB/s)".
fn metrics(result: &WorkResult) -> String {
    let one = |metric: &no43_guest::work::Metric| {
        let value = metric.value;
        let value = match metric.unit.as_str() {
            "bytes" => words::bytes(value),
            "bytes/s" => format!("{:.1} GB/s", value as f64 / 1e9),
            "ppm" => format!("{:.2} %", value as f64 / 1e4),
            "us" => format!("{:.1} ms", value as f64 / 1e3),
            unit => format!("{value} {}", words::clean(unit)),
        };
        format!("{} {value}", words::clean(&metric.name))
    };
    let all: Vec<String> = result.metrics.iter().take(4).map(one).collect();
    if all.is_empty() { String::new() } else { format!(" ({})", all.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_a_recipe_stand_for_work() {
        let chosen = |kinds: &[&str]| {
            let kinds = kinds.iter().map(|kind| (*kind).to_owned()).collect();
            chosen(&WorkWish::Only(kinds)).join(" ")
        };
        insta::assert_snapshot!(chosen(&["optix"]), @"optix-trace");
        insta::assert_snapshot!(chosen(&["desktop", "cuda", "nvenc"]), @"cuda-checksum cuda-memory cuda-copy nvenc-frame desktop-picture");
        insta::assert_snapshot!(chosen(&["vulkan", "d3d11", "d3d12"]), @"vulkan-compute d3d11-scene d3d12-scene");
    }
}
