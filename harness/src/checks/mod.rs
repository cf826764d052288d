//! The checks: rows of a table, asked in order, each with what must hold before it makes sense to ask.
//!
//! What must hold is computed from the host's inventory and the plan ([`Subject`]), never from literals. A check that needs one that
//! failed is skipped with that reason; the others are still asked, so that a report shows everything that is wrong at once.

mod driver;
mod forbidden;
mod given_back;
mod identity;
mod own;
mod picture;
mod present;
mod quiet;
mod seams;
mod subject;
mod windows;
mod work;

pub(crate) use driver::holds_only;
pub use given_back::{Returned, given_back};
pub use own::Ran;
#[cfg(test)]
pub(crate) use own::tests::own_check as own_check_for_tests;
pub use picture::is_placeholder;
pub use seams::{Capability, Complaints, Eye, Guest, HostEye};
pub use subject::{Subject, SubjectFunction};
pub(crate) use work::{DESKTOP, DESKTOP_FOLDER, needs_session};

use crate::diagnosis::{Facts, Mark, facts_of_report, is_windows};
use crate::evidence::{CheckResult, Fact, Outcome, Recorder, Round};
use crate::stop::Stop;
use crate::verdict::FailureKind;
use crate::words;
use no43_builder::plan::{ChecksPlan, WorkWish};
use no43_guest::protocol::Report;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How long a check waits for something that comes a little after the agent.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// For one run of the guest program: it reads sysfs, or sets a mode.
    pub program: Duration,
    /// For drivers and connectors: udev loads modules while the agent already answers.
    pub driver: Duration,
    /// For the picture: from "painted" in the guest to the frame on the output.
    pub picture: Duration,
    /// Between two looks.
    pub pause: Duration,
}

impl Limits {
    /// On a host with KVM.
    pub const QUICK: Self = Self {
        program: Duration::from_secs(60),
        driver: Duration::from_secs(30),
        picture: Duration::from_secs(10),
        pause: Duration::from_millis(300),
    };
    /// Under TCG, or under a KVM that TCG emulates: everything takes 10 to 30 times as long, and a guest that still starts its
    /// services longer.
    pub const SLOW: Self = Self {
        program: Duration::from_secs(180),
        driver: Duration::from_secs(120),
        picture: Duration::from_secs(60),
        pause: Duration::from_secs(1),
    };
    /// Under TCG inside a lab: emulation in emulation. A report that takes 40 ms on a real machine took over a minute.
    pub const SLOWEST: Self = Self {
        program: Duration::from_secs(300),
        driver: Duration::from_secs(900),
        picture: Duration::from_secs(300),
        pause: Duration::from_secs(3),
    };
}

/// A check by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Check {
    /// The guest program answers through the agent.
    Agent,
    /// Every function of the card is there, with ids and BAR sizes.
    Present,
    /// Windows has no problem code on any function.
    NoCode,
    /// A driver has the video function.
    Driver,
    /// The driver has the version that the recipe asks for.
    Version,
    /// The audio function has a driver.
    Audio,
    /// The link is as wide as on the host.
    Link,
    /// The card has a DRM connector.
    Connector,
    /// What the guest paints is on the card's own output.
    Picture,
    /// The card does work with known answers.
    Work,
    /// Neither side complains about the card.
    Quiet,
    /// The host has its drivers back.
    GivenBack,
}

/// A row of the table.
struct Row {
    check: Check,
    name: &'static str,
    layer: Layer,
    /// What must have passed before.
    needs: &'static [Check],
    wanted: fn(&ChecksPlan) -> bool,
    ask: Ask,
}

/// Once for the guest, or once for each card.
enum Ask {
    Guest(fn(&mut Asking<'_, '_>) -> Answer),
    Card(fn(&mut Asking<'_, '_>, &Subject) -> Answer),
    /// The same, and only of a Windows.
    WindowsCard(fn(&mut Asking<'_, '_>, &Subject) -> Answer),
}

/// What a check is about; each layer rests on the one before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layer {
    /// The machine and its guest program.
    Machine,
    /// Devices and their state.
    Pnp,
    /// The right card with the right driver.
    Identity,
    /// It does what it is for.
    Work,
    /// And nobody complains.
    Quiet,
}

impl Layer {
    fn word(self) -> &'static str {
        match self {
            Self::Machine => "machine",
            Self::Pnp => "pnp",
            Self::Identity => "identity",
            Self::Work => "work",
            Self::Quiet => "quiet",
        }
    }
}

const ROWS: &[Row] = &[
    Row {
        check: Check::Agent,
        name: "agent",
        layer: Layer::Machine,
        needs: &[],
        wanted: |_| true,
        ask: Ask::Guest(agent),
    },
    Row {
        check: Check::Present,
        name: "present",
        layer: Layer::Pnp,
        needs: &[Check::Agent],
        wanted: |c| c.card,
        ask: Ask::Card(present::ask),
    },
    Row {
        check: Check::NoCode,
        name: "no code",
        layer: Layer::Pnp,
        needs: &[Check::Agent],
        wanted: |c| c.card,
        ask: Ask::WindowsCard(windows::ask),
    },
    Row {
        check: Check::Driver,
        name: "driver",
        layer: Layer::Identity,
        needs: &[Check::Agent],
        wanted: |c| c.driver,
        ask: Ask::Card(driver::ask_driver),
    },
    Row {
        check: Check::Version,
        name: "version",
        layer: Layer::Identity,
        needs: &[Check::Agent, Check::Driver],
        wanted: |c| c.driver && c.driver_version.is_some(),
        ask: Ask::Card(identity::ask_version),
    },
    Row {
        check: Check::Audio,
        name: "audio",
        layer: Layer::Identity,
        needs: &[Check::Agent],
        wanted: |c| c.card,
        ask: Ask::Card(identity::ask_audio),
    },
    Row {
        check: Check::Link,
        name: "link",
        layer: Layer::Identity,
        needs: &[Check::Agent, Check::Present],
        wanted: |c| c.card,
        ask: Ask::Card(identity::ask_link),
    },
    Row {
        check: Check::Connector,
        name: "connector",
        layer: Layer::Identity,
        needs: &[Check::Agent, Check::Driver],
        wanted: |c| c.connector,
        ask: Ask::Card(driver::ask_connector),
    },
    Row {
        check: Check::Picture,
        name: "picture",
        layer: Layer::Work,
        needs: &[Check::Agent, Check::Driver, Check::Connector],
        wanted: |c| c.picture,
        ask: Ask::Card(picture::ask),
    },
    Row {
        check: Check::Work,
        name: "work",
        layer: Layer::Work,
        needs: &[Check::Agent, Check::Driver],
        wanted: |c| c.work.is_some(),
        ask: Ask::Card(work::ask),
    },
    Row {
        check: Check::Quiet,
        name: "quiet",
        layer: Layer::Quiet,
        needs: &[Check::Agent],
        wanted: |c| c.quiet,
        ask: Ask::Card(quiet::ask),
    },
];

/// The names of all checks, in order, as reports show them and a control names them.
pub fn names() -> Vec<&'static str> {
    ROWS.iter().map(|row| row.name).chain([given_back::NAME]).collect()
}

/// Everything that a check may use.
pub struct Asking<'a, 'r> {
    /// The guest.
    pub guest: &'a mut dyn Guest,
    /// Who sees the card's own output from outside, if anyone does.
    pub eye: Option<&'a mut dyn Eye>,
    /// Where evidence goes.
    pub recorder: &'a mut Recorder<'r>,
    /// The request to stop.
    pub stop: &'a Stop,
    /// How long to wait.
    pub limits: Limits,
    /// Which round this is.
    pub round: Round,
    /// What must be there: a check that would be skipped for lack of it fails instead.
    pub required: &'a [Capability],
    /// This host's own view of the cards.
    pub host: Option<&'a mut dyn HostEye>,
    /// The driver version that the recipe asks for.
    pub driver_version: Option<String>,
    /// The work that the card must do.
    pub work: WorkWish,
    /// The guest's user, for checks of one's own.
    pub user: Option<String>,
    /// Which checks are asked at all.
    pub choice: &'a Choice,
    /// The guest's last report.
    pub last: Option<Report>,
    /// Seeds of the pictures painted so far, by card: a stale picture is recognised by them.
    pub seeds: &'a mut HashMap<String, u64>,
}

/// Which checks a run asks: `--check` and `--skip`, and `[checks] skip`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Choice {
    /// Only these, and what they rest on; all when empty.
    pub only: Vec<String>,
    /// Not these, with the reason that the report gives.
    pub skip: Vec<(String, String)>,
}

impl Choice {
    /// What is wrong with it: a name that no check has, neither one of ours nor one of the plan itself.
    pub fn mistake(&self, plan: &ChecksPlan) -> Option<String> {
        let own = plan.own.iter().map(|check| check.name.as_str());
        let known: Vec<&str> = names().into_iter().chain(own).collect();
        let mut all = self.only.iter().chain(self.skip.iter().map(|(name, _)| name));
        let unknown = all.find(|name| !known.contains(&name.as_str()))?;
        Some(format!("no check is called '{unknown}'; there are: {}", known.join(", ")))
    }

    fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|one| one == name)
    }

    /// Whether it is really asked.
    pub(crate) fn asks(&self, name: &str) -> bool {
        self.wants(name) && self.skips(name).is_none()
    }

    fn skips(&self, name: &str) -> Option<&str> {
        self.skip.iter().find(|(one, _)| one == name).map(|(_, why)| why.as_str())
    }
}

/// What a check found.
#[derive(Debug, Clone)]
pub struct Answer {
    outcome: Outcome,
    kind: FailureKind,
    expected: String,
    seen: String,
    details: Vec<String>,
    guest_lines: Vec<String>,
    evidence: Vec<String>,
    marks: Vec<Mark>,
    metrics: Vec<Fact>,
    /// What the check noticed beside its answer, for causes.
    noticed: Facts,
}

impl Answer {
    fn new(outcome: Outcome, expected: impl Into<String>, seen: impl AsRef<str>) -> Self {
        Self {
            outcome,
            kind: FailureKind::Guest,
            expected: expected.into(),
            seen: words::clean(seen.as_ref()),
            details: Vec::new(),
            guest_lines: Vec::new(),
            evidence: Vec::new(),
            marks: Vec::new(),
            metrics: Vec::new(),
            noticed: Facts::default(),
        }
    }

    fn holds(expected: impl Into<String>, seen: impl AsRef<str>) -> Self {
        Self::new(Outcome::Passed, expected, seen)
    }

    fn broken(expected: impl Into<String>, seen: impl AsRef<str>) -> Self {
        Self::new(Outcome::Failed, expected, seen)
    }

    fn skipped(expected: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::new(Outcome::Skipped { reason: reason.into() }, expected, "not asked")
    }

    fn blame(mut self, kind: FailureKind) -> Self {
        self.kind = kind;
        self
    }

    fn details(mut self, lines: impl IntoIterator<Item = String>) -> Self {
        self.details = lines.into_iter().take(200).map(|line| words::clean(&line)).collect();
        self
    }

    fn with_guest_lines(mut self, lines: Vec<String>) -> Self {
        self.guest_lines = lines;
        self
    }
}

/// How a round of checks ended.
#[derive(Debug, Clone, Default)]
pub struct RoundResult {
    /// The checks, in order.
    pub results: Vec<CheckResult>,
    /// The first failure and who is to blame.
    pub failure: Option<(CheckResult, FailureKind)>,
    /// Facts that a diagnosis can lean on.
    pub marks: Vec<Mark>,
    /// What the guest said about itself and the cards.
    pub facts: Facts,
    /// The guest's boot id, to see that a reboot was one.
    pub boot_id: Option<String>,
}

/// Asks every wanted check about every card, in the order of the table.
pub fn run_round(plan: &ChecksPlan, cards: &[Subject], asking: &mut Asking<'_, '_>) -> RoundResult {
    let mut round = RoundResult::default();
    let mut passed: Vec<(Check, String)> = Vec::new();
    for row in ROWS.iter().filter(|row| (row.wanted)(plan)) {
        if row.check != Check::Agent && !asking.choice.wants(row.name) {
            continue;
        }
        match row.ask {
            Ask::WindowsCard(_) if !asking.last.as_ref().is_some_and(is_windows) => {}
            Ask::WindowsCard(ask) => {
                for card in cards {
                    step(row, &card.slot, asking, &mut passed, &mut round, |asking| ask(asking, card));
                }
            }
            Ask::Guest(ask) => step(row, "", asking, &mut passed, &mut round, ask),
            Ask::Card(ask) => {
                for card in cards {
                    step(row, &card.slot, asking, &mut passed, &mut round, |asking| ask(asking, card));
                }
            }
        }
        if asking.stop.is_set() {
            break;
        }
    }
    own_checks(plan, cards, asking, &mut round);
    if let Some(report) = &asking.last {
        round.facts.merge(&facts_of_report(report, cards));
    }
    round.boot_id = asking.guest.last_boot_id();
    round
}

/// The recipe's own checks, after all others: they need a guest that answers.
fn own_checks(plan: &ChecksPlan, cards: &[Subject], asking: &mut Asking<'_, '_>, round: &mut RoundResult) {
    let answers = round.results.iter().any(|r| r.check == name_of(Check::Agent) && r.passed());
    for check in plan.own.iter().filter(|check| asking.choice.wants(&check.name)) {
        let whom: Vec<Option<&Subject>> =
            if check.each_card { cards.iter().map(Some).collect() } else { vec![None] };
        for card in whom {
            if asking.stop.is_set() {
                return;
            }
            let began = Instant::now();
            let answer = match (asking.choice.skips(&check.name), answers) {
                (Some(why), _) => Answer::skipped("", format!("left out: {why}")),
                (None, false) => Answer::skipped("", "'agent' does not hold, so there is nothing to ask"),
                (None, true) => own::ask(check, asking, card),
            };
            let kind = answer.kind;
            let slot = card.map_or("", |card| card.slot.as_str());
            let mut result = result_of(&check.name, slot, asking.round, answer, began.elapsed());
            result.layer = "own".into();
            if result.failed() && round.failure.is_none() {
                round.failure = Some((result.clone(), kind));
            }
            asking.recorder.check(result.clone());
            round.results.push(result);
        }
    }
}

fn step(
    row: &Row,
    card: &str,
    asking: &mut Asking<'_, '_>,
    passed: &mut Vec<(Check, String)>,
    round: &mut RoundResult,
    ask: impl FnOnce(&mut Asking<'_, '_>) -> Answer,
) {
    let began = Instant::now();
    // what was not asked for cannot be missing
    let missing = row.needs.iter().find(|need| {
        let name = name_of(**need);
        let asked = round.results.iter().any(|r| r.check == name) && asking.choice.skips(name).is_none();
        asked && !passed.iter().any(|(check, slot)| check == *need && (slot.is_empty() || slot == card))
    });
    let answer = match (asking.choice.skips(row.name), missing) {
        (Some(why), _) => Answer::skipped("", format!("left out: {why}")),
        (None, Some(need)) => {
            Answer::skipped("", format!("'{}' does not hold, so there is nothing to ask", name_of(*need)))
        }
        (None, None) => ask(asking),
    };
    round.marks.extend(answer.marks.iter().copied());
    round.facts.merge(&answer.noticed);
    let mut result = result_of(row.name, card, asking.round, answer.clone(), began.elapsed());
    result.layer = row.layer.word().into();
    if result.passed() {
        passed.push((row.check, card.to_owned()));
    }
    if result.failed() && round.failure.is_none() {
        round.failure = Some((result.clone(), answer.kind));
    }
    asking.recorder.check(result.clone());
    round.results.push(result);
}

fn name_of(check: Check) -> &'static str {
    ROWS.iter().find(|row| row.check == check).map_or(given_back::NAME, |row| row.name)
}

fn result_of(name: &str, card: &str, round: Round, answer: Answer, took: Duration) -> CheckResult {
    CheckResult {
        check: name.into(),
        layer: String::new(),
        card: card.into(),
        round,
        answer: answer.outcome,
        expected: answer.expected,
        seen: answer.seen,
        details: answer.details,
        guest_lines: answer.guest_lines,
        evidence: answer.evidence,
        metrics: answer.metrics,
        took_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
    }
}

/// The first check: the guest program answers with a report.
fn agent(asking: &mut Asking<'_, '_>) -> Answer {
    let expected = "the guest's agent runs no43-guest, and it answers with a report";
    let report = asking.guest.report();
    asking.last = report.as_ref().ok().cloned();
    match report {
        Ok(report) => {
            let facts = facts_of(&report);
            let seen = facts.iter().map(|f| f.value.as_str()).collect::<Vec<_>>().join(", ");
            if asking.round == Round::First {
                asking.recorder.event(crate::evidence::Event::Facts { subject: "guest".into(), facts });
            }
            Answer::holds(
                expected,
                if seen.is_empty() { "it answers, and says nothing about itself" } else { &seen },
            )
            .details(report.unknown.iter().map(|line| format!("unknown to the guest: {line}")))
        }
        Err(error) => Answer::broken(expected, format!("{error:#}")),
    }
}

fn facts_of(report: &Report) -> Vec<Fact> {
    let rows = [("system", &report.os), ("kernel", &report.kernel)];
    rows.into_iter().filter_map(|(name, value)| Some(Fact::new(name, value.as_ref()?))).collect()
}

/// Looks at the guest's report again and again until it holds, will not hold any more, or the limit is over. Returns the last report.
fn look_until(
    asking: &mut Asking<'_, '_>,
    limit: Duration,
    mut settled: impl FnMut(&Report) -> bool,
) -> anyhow::Result<Report> {
    let began = Instant::now();
    loop {
        let report = asking.guest.report()?;
        asking.last = Some(report.clone());
        if settled(&report) || began.elapsed() >= limit || asking.stop.is_set() {
            return Ok(report);
        }
        if let Some(reason) = asking.guest.gone() {
            anyhow::bail!("the machine is gone: {reason}");
        }
        std::thread::sleep(asking.limits.pause);
    }
}

/// The last report, or a first one: for what does not change while the checks are asked.
fn known_report(asking: &mut Asking<'_, '_>) -> anyhow::Result<Report> {
    match &asking.last {
        Some(report) => Ok(report.clone()),
        None => look_until(asking, Duration::ZERO, |_| true),
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod windows_tests;
