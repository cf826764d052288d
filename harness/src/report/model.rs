//! The events of a run, sorted into what a report shows.

use crate::diagnosis::{Facts, Finding};
use crate::evidence::read::{Run, State};
use crate::evidence::{CardFacts, CheckResult, Event, Fact, Frame, Section};
use crate::exit_codes;
use crate::verdict::{FailureKind, Verdict};
use crate::words;
use serde::Serialize;
use std::time::Duration;

/// A whole run. Serialised, it is `report.json`.
#[derive(Debug, Clone, Serialize)]
pub struct Model {
    /// Version of this format.
    pub v: u32,
    /// The folder's name.
    pub run: String,
    /// Name of the recipe.
    pub recipe: String,
    /// Version of `no43`.
    pub no43: String,
    /// RFC 3339, UTC.
    pub started: String,
    /// Duration in milliseconds.
    pub took_ms: u64,
    /// The answer; a run that died or still runs has none of its own and gets one that says so.
    pub answer: Verdict,
    /// "PASSED", "FAILED (guest)", …
    pub headline: String,
    /// Exit code.
    pub exit_code: u8,
    /// Event lines that could not be read.
    pub unreadable_lines: usize,
    /// What was asked for.
    pub main: SectionModel,
    /// The run that had to fail, if there was one.
    pub control: Option<SectionModel>,
}

/// One run inside the run.
#[derive(Debug, Clone, Default, Serialize)]
pub struct SectionModel {
    /// Cards in the order of the recipe.
    pub cards: Vec<CardFacts>,
    /// Facts by subject.
    pub facts: Vec<(String, Vec<Fact>)>,
    /// Checks in the order in which they were asked.
    pub checks: Vec<CheckResult>,
    /// Phases in the order in which they began.
    pub phases: Vec<PhaseModel>,
    /// Pictures in order.
    pub frames: Vec<Frame>,
    /// Logs: file, title, bytes kept, bytes left out.
    pub logs: Vec<(String, String, u64, u64)>,
    /// Dumps of the guest's memory: file, bytes, stop.
    pub dumps: Vec<(String, u64, String)>,
    /// Changes to the host: target, before, after.
    pub host_changes: Vec<(String, String, String)>,
    /// Notes: text, is a warning.
    pub notes: Vec<(String, bool)>,
    /// Causes, best first.
    pub causes: Vec<Finding>,
    /// What the causes were judged by.
    pub observed: Facts,
    /// How the control ended; only in a control.
    pub control: Option<ControlModel>,
}

/// How a control ended.
#[derive(Debug, Clone, Serialize)]
pub struct ControlModel {
    /// The check in which it had to fail.
    pub fails_in: String,
    /// It did, and nothing before it failed.
    pub as_it_must: bool,
    /// The line that shows it, or what was wrong.
    pub line: String,
}

/// A phase with its place in time.
#[derive(Debug, Clone, Serialize)]
pub struct PhaseModel {
    /// Name.
    pub name: String,
    /// What it does.
    pub note: String,
    /// Start, milliseconds from the start of the run.
    pub from_ms: u64,
    /// Duration in milliseconds; none when it never ended.
    pub took_ms: Option<u64>,
    /// Limit in milliseconds.
    pub limit_ms: Option<u64>,
    /// What went wrong.
    pub problem: Option<String>,
}

impl Model {
    /// Sorts a run's events.
    pub fn of(run: &Run) -> Self {
        let (mut main, mut control) = (SectionModel::default(), None);
        let mut answer = None;
        let mut took_ms = run.records.last().map_or(0, |r| r.ms);
        for record in &run.records {
            match &record.event {
                Event::Verdict { answer: a } => answer = Some(a.clone()),
                Event::RunEnded { took_ms: t, .. } => took_ms = *t,
                event => {
                    let section = match record.section {
                        Section::Main => &mut main,
                        Section::Control => control.get_or_insert_with(SectionModel::default),
                    };
                    section.take(event, record.ms);
                }
            }
        }
        let answer = answer.unwrap_or_else(|| missing(&run.state));
        Self {
            v: 1,
            run: run.started.run.clone(),
            recipe: run.started.recipe.clone(),
            no43: run.started.no43.clone(),
            started: run.started.started.clone(),
            took_ms,
            headline: headline(&answer, main.without_work()),
            exit_code: exit_codes::of(&answer),
            answer,
            unreadable_lines: run.unreadable,
            main,
            control,
        }
    }
}

/// The verdict's word; a pass says so when the card was not seen to work.
pub(super) fn headline(answer: &Verdict, without_work: bool) -> String {
    match answer {
        Verdict::Passed if without_work => format!("{} without work", answer.headline()),
        _ => answer.headline(),
    }
}

/// The answer of a run that has written none.
fn missing(state: &State) -> Verdict {
    match state {
        State::Finished(ended) => ended.answer.clone(),
        State::Running => Verdict::Skipped { reason: "the run still goes on".into() },
        State::DiedSilently { last, ms } => Verdict::failed(
            FailureKind::Harness,
            format!(
                "no43 died silently {last}, {} after its start; the next command that changes something gives its cards back",
                words::duration(Duration::from_millis(*ms))
            ),
        ),
    }
}

impl SectionModel {
    fn take(&mut self, event: &Event, ms: u64) {
        match event.clone() {
            Event::Facts { subject, facts } => match self.facts.iter_mut().find(|(name, _)| *name == subject)
            {
                Some((_, known)) => known.extend(facts),
                None => self.facts.push((subject, facts)),
            },
            Event::Card { card } => self.cards.push(card),
            Event::PhaseStarted { phase, limit_ms, note } => {
                self.phases.push(PhaseModel {
                    name: phase,
                    note,
                    from_ms: ms,
                    took_ms: None,
                    limit_ms,
                    problem: None,
                });
            }
            Event::PhaseEnded { phase, took_ms, problem } => {
                if let Some(open) =
                    self.phases.iter_mut().rev().find(|p| p.name == phase && p.took_ms.is_none())
                {
                    open.took_ms = Some(took_ms);
                    open.problem = problem;
                }
            }
            Event::Check { result } => self.checks.push(result),
            Event::FrameAdded { frame } => self.frames.push(frame),
            Event::LogAttached { file, title, bytes, omitted } => {
                self.logs.push((file, title, bytes, omitted));
            }
            Event::DumpKept { file, bytes, stop } => self.dumps.push((file, bytes, stop)),
            Event::HostChange { target, before, after } => self.host_changes.push((target, before, after)),
            Event::Note { text, warning } => self.notes.push((text, warning)),
            Event::Diagnosis { cause } => self.causes.push(cause),
            Event::Observed { facts } => self.observed.merge(&facts),
            Event::ControlEnded { fails_in, as_it_must, line } => {
                self.control = Some(ControlModel { fails_in, as_it_must, line });
            }
            Event::RunStarted { .. } | Event::Verdict { .. } | Event::RunEnded { .. } | Event::Unknown => {}
        }
    }

    /// Work was asked for, and none was done.
    fn without_work(&self) -> bool {
        let mut work = self.checks.iter().filter(|check| check.check == "work").peekable();
        work.peek().is_some() && work.all(|check| !check.passed())
    }

    /// How a check is called where several cards may have the same check: "picture", or "picture, card 2" from the second card on.
    pub fn label(&self, result: &CheckResult) -> String {
        let place = self.cards.iter().position(|card| card.slot == result.card);
        match place {
            Some(n) if n > 0 => format!("{}, card {}", result.full_name(), n + 1),
            _ => result.full_name(),
        }
    }
}
