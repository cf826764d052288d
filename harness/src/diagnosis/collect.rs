//! From what a guest reports, and from what a run has written down, to the facts that causes read.

use super::patterns::patterns;
use super::xid;
use super::{Facts, Mark};
use crate::checks::Subject;
use crate::evidence::read::Run;
use crate::evidence::{CheckResult, Event, Section};
use no43_builder::driver::Version;
use no43_guest::protocol::{DevNode, GuestFunction, Report, Severity};

/// Vendor of NVIDIA's cards in ids such as `10de:2484`.
const NVIDIA: &str = "10de:";

/// What a guest says about itself and these cards.
pub fn facts_of_report(report: &Report, cards: &[Subject]) -> Facts {
    let mut facts = Facts::default();
    facts.add("guest.os", if is_windows(report) { "windows" } else { "linux" });
    for card in cards {
        of_card(&mut facts, report, card);
    }
    of_guest(&mut facts, report);
    of_log(&mut facts, report);
    facts
}

/// Whether a report is a Windows'.
pub(crate) fn is_windows(report: &Report) -> bool {
    report.windows.is_some() || report.functions.iter().any(|function| function.node.is_some())
}

fn of_card(facts: &mut Facts, report: &Report, card: &Subject) {
    let missing = card.functions.iter().filter(|f| report.function(&f.guest).is_none());
    facts.all("guest.missing", missing.map(|f| f.role.clone()));
    for function in &card.functions {
        let Some(there) = report.function(&function.guest) else { continue };
        if function.role == "audio" {
            facts.add("guest.audio-driver", there.driver.as_deref().unwrap_or("none"));
        }
        if let Some(node) = &there.node {
            of_node(facts, node);
        }
        let unassigned = there.bars.iter().filter(|bar| bar.index < 6 && bar.assigned == Some(false));
        facts.all("guest.unassigned", unassigned.map(|bar| format!("{} BAR{}", there.address, bar.index)));
    }
    facts.maybe("guest.card-kind", card_kind(report, card));
    if let Some(video) = report.function(&card.video().guest) {
        of_video(facts, video);
        let connected =
            report.connectors_of(&video.address).filter(|c| c.status.as_deref() == Some("connected"));
        if !report.connectors.is_empty() {
            facts.all("guest.connectors", connected.map(|c| c.name.clone()));
        }
    }
}

/// `vgpu`, `mobile` or `desktop`, by what NVIDIA's interfaces say in the guest, else by the card's name on the host. Only of
/// NVIDIA's cards: the names of others do not tell it.
fn card_kind(report: &Report, card: &Subject) -> Option<&'static str> {
    let video = card.video();
    if !video.shown_as.to_string().starts_with(NVIDIA) {
        return None;
    }
    let sources = [&report.nvml, &report.nvidia_smi].into_iter().flatten().flat_map(|facts| &facts.cards);
    let told = sources.filter(|told| told.address.as_deref() == Some(video.guest.as_str()));
    let (mut names, mut virtual_card) = (Vec::new(), false);
    for told in told {
        names.extend(told.name.clone());
        virtual_card |= told.virtualization.as_deref() == Some("vgpu");
    }
    // a card that is shown as another one has that one's driver and not its name
    if video.shown_as == video.id {
        names.push(card.name.clone());
    }
    if virtual_card {
        return Some("vgpu");
    }
    let name = names.into_iter().find(|name| !name.trim().is_empty())?;
    let word = |word: &str| {
        let number = word.trim_end_matches('M');
        let short = number.len() + 1 == word.len() && number.bytes().all(|b| b.is_ascii_digit());
        ["laptop", "mobile", "max-q"].contains(&word.to_ascii_lowercase().as_str())
            || (short && !number.is_empty())
    };
    let words = name.split(|c: char| !c.is_ascii_alphanumeric() && c != '-');
    Some(if words.into_iter().any(word) { "mobile" } else { "desktop" })
}

/// What follows from facts of two sides together.
pub(crate) fn concluded(facts: &Facts) -> Facts {
    let mut facts = facts.clone();
    let (is, wanted) = (facts.get("guest.driver-version"), facts.get("recipe.driver-version"));
    if facts.get("guest.driver-source").is_empty() && !wanted.is_empty() && is == wanted {
        facts.add("guest.driver-source", "package");
    }
    facts
}

fn of_node(facts: &mut Facts, node: &DevNode) {
    if let Some(code) = node.problem.filter(|code| *code != 0) {
        facts.add("guest.code", code.to_string());
        facts.maybe("guest.code-status", node.problem_status.map(|status| format!("{status:#010x}")));
    }
}

fn of_video(facts: &mut Facts, video: &GuestFunction) {
    facts.add("guest.driver", video.driver.as_deref().unwrap_or("none"));
    facts.maybe("guest.vendor", video.id.as_deref().and_then(|id| id.split(':').next()));
    facts.maybe("guest.subsystem", video.subsystem.as_deref());
    facts.maybe("guest.driver-version", driver_version(video));
    // an INF that was matched names the id by which; without one, why not is known only of the recipe's own package
    let matched = video.node.as_ref().and_then(|node| node.matching_id.as_ref());
    let matched = matched.filter(|id| id.to_ascii_uppercase().contains("DEV_"));
    facts.maybe("guest.inf-match", matched.map(|_| "matches"));
    facts.maybe("guest.msi", video.msi.map(|on| if on { "on" } else { "off" }));
    let width = video.link.as_ref().and_then(|link| link.width).filter(|width| *width > 0);
    facts.maybe("guest.link-width", width.map(|width| width.to_string()));
}

/// The driver's version as people say it: NVIDIA's from the four numbers that Windows stores.
pub(crate) fn driver_version(video: &GuestFunction) -> Option<String> {
    let text = video.driver_version.as_deref()?;
    let of_nvidia = video.id.as_deref().is_some_and(|id| id.starts_with(NVIDIA));
    match Version::from_driver_ver(text).filter(|_| of_nvidia) {
        Some(version) => Some(version.to_string()),
        None => Some(text.to_owned()),
    }
}

fn of_guest(facts: &mut Facts, report: &Report) {
    let on = |value: Option<bool>| value.map(|on| if on { "on" } else { "off" });
    if let Some(machine) = &report.machine {
        facts.maybe("guest.secure-boot", on(machine.secure_boot));
        match (machine.hypervisor_present, &machine.hypervisor) {
            (Some(true), name) => facts.add("guest.hypervisor", name.as_deref().unwrap_or("present")),
            (Some(false), _) => facts.add("guest.hypervisor", "none"),
            (None, _) => {}
        }
    }
    if let Some(windows) = &report.windows {
        facts.maybe("guest.memory-integrity", on(windows.memory_integrity));
        // Windows starts its own hypervisor for VBS; the launch type alone says only that it may
        let own = match (windows.vbs, windows.hypervisor_launch_type.as_deref()) {
            (Some(true), _) => Some("yes"),
            (Some(false), _) | (None, Some("off")) => Some("no"),
            _ => None,
        };
        facts.maybe("guest.own-hypervisor", own);
    }
}

fn of_log(facts: &mut Facts, report: &Report) {
    let telling = |severity| matches!(severity, Severity::Error | Severity::Warning);
    for line in report.log.iter().filter(|line| telling(line.severity)) {
        facts.add("guest.says", &line.text);
        facts.maybe("guest.xid", xid::number_in(&line.text).map(|number| number.to_string()));
    }
    for event in report.events.iter().filter(|event| event.level.is_none_or(|level| level <= 3)) {
        facts.add("guest.says", event_words(event));
        let number = event.data.iter().find_map(|text| xid::number_in(text));
        facts.maybe("guest.xid", number.map(|number| number.to_string()));
    }
}

/// "Display event 4101: nvlddmkm".
pub(crate) fn event_words(event: &no43_guest::protocol::SystemEvent) -> String {
    let id = event.id.map_or("?".into(), |id| id.to_string());
    let name = if event.provider.eq_ignore_ascii_case("nvlddmkm") {
        format!("nvlddmkm {id}")
    } else {
        format!("{} event {id}", event.provider)
    };
    format!("{name}: {}", event.data.join(" "))
}

/// What a kept run knew. A run of an earlier version has no facts of its own: then what its checks said must do.
pub fn facts_of_run(run: &Run) -> Facts {
    let mut facts = Facts::default();
    let mut failed: Option<&CheckResult> = None;
    for record in run.records.iter().filter(|record| record.section == Section::Main) {
        match &record.event {
            Event::Observed { facts: seen } => facts.merge(seen),
            Event::Check { result } if result.failed() && failed.is_none() => failed = Some(result),
            Event::PhaseEnded { phase, problem: Some(problem), .. }
                if failed.is_none() && !phase.starts_with("checks") && !facts.knows("run.failed") =>
            {
                facts.add("run.failed", phase);
                facts.add("qemu.says", problem);
            }
            _ => {}
        }
    }
    if let Some(failed) = failed.filter(|_| facts.get("run.round").is_empty()) {
        facts.add("run.failed", &failed.check);
        facts.add("run.round", round_word(failed.round));
        failed.guest_lines.iter().for_each(|line| add_line(&mut facts, line));
    }
    facts
}

/// A line of the guest's kernel, with the number in it.
pub(crate) fn add_line(facts: &mut Facts, line: &str) {
    facts.add("guest.says", line);
    facts.maybe("guest.xid", xid::number_in(line).map(|number| number.to_string()));
}

/// Lines of this host's kernel that say something about a card.
pub(crate) fn telling_host_lines<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let rows = || patterns().iter().filter(|row| row.side == super::Side::Host);
    lines.filter(|line| rows().any(|row| row.fits(line))).collect()
}

/// The value of `run.round`.
pub(crate) fn round_word(round: crate::evidence::Round) -> &'static str {
    use crate::evidence::Round;
    match round {
        Round::First => "first",
        Round::AfterReboot => "after-reboot",
        Round::AfterColdStart | Round::Cycle(_) => "after-cold-start",
        Round::AfterReplug => "after-replug",
        Round::AfterReload => "after-driver-reload",
        Round::AfterReinstall | Round::WithDriver(_) | Round::AfterRollback => "after-driver-change",
        Round::AfterRun => "after-run",
    }
}

impl Facts {
    /// Adds what a check noticed.
    pub fn mark(&mut self, mark: Mark) {
        self.add("run.mark", mark.words());
    }
}
