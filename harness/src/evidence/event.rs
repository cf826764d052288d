//! The events of a run: the lines of `events.jsonl`.
//!
//! The format only grows. A reader skips kinds that it does not know ([`Event::Unknown`]); a field that is added gets a default.

use crate::verdict::Verdict;
use no43_builder::driver::Version;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// The version that every line carries as `v`.
pub const EVENT_VERSION: u32 = 1;

/// One line of `events.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Format version, [`EVENT_VERSION`].
    pub v: u32,
    /// Position in the file, from 0; a gap means that lines were lost.
    pub seq: u64,
    /// Milliseconds since the run started, by the monotonic clock.
    pub ms: u64,
    /// Which run inside the run this belongs to.
    #[serde(default)]
    pub section: Section,
    /// What happened.
    pub event: Event,
}

/// A run may hold a second, deliberately failing one: its control.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Section {
    /// What was asked for.
    #[default]
    Main,
    /// The run that must fail, to show that the checks can.
    Control,
}

/// What can happen in a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Event {
    /// First line of every run.
    RunStarted {
        /// The folder's name, e.g. "2026-11-22-3f9c".
        run: String,
        /// Name of the recipe.
        recipe: String,
        /// Version of `no43` that ran.
        no43: String,
        /// RFC 3339, UTC.
        started: String,
        /// Process id of `no43`.
        pid: u32,
    },
    /// Facts about something, in the order in which a report shows them.
    Facts {
        /// "host", "machine", "image", "guest".
        subject: String,
        /// Name and value.
        facts: Vec<Fact>,
    },
    /// A card that this run uses.
    Card {
        /// Its facts.
        card: CardFacts,
    },
    /// A stretch of work began.
    PhaseStarted {
        /// Short name, e.g. "agent".
        phase: String,
        /// The longest it may take, in milliseconds.
        limit_ms: Option<u64>,
        /// Why the limit is what it is, or what the phase does.
        #[serde(default)]
        note: String,
    },
    /// The stretch is over.
    PhaseEnded {
        /// The name given at its start.
        phase: String,
        /// How long it took, in milliseconds.
        took_ms: u64,
        /// What went wrong; none when it did what it should.
        #[serde(default)]
        problem: Option<String>,
    },
    /// A check has its answer.
    Check {
        /// The answer.
        result: CheckResult,
    },
    /// A picture was kept.
    FrameAdded {
        /// The picture.
        frame: Frame,
    },
    /// A log file lies in the folder.
    LogAttached {
        /// Path relative to the run's folder.
        file: String,
        /// What it is, e.g. "serial port of the guest".
        title: String,
        /// Bytes kept.
        bytes: u64,
        /// Bytes left out in the middle.
        #[serde(default)]
        omitted: u64,
    },
    /// A dump of the guest's memory lies in the folder. It is never handed in: whatever the guest knew is in it.
    DumpKept {
        /// Path relative to the run's folder.
        file: String,
        /// Its size.
        bytes: u64,
        /// Of which stop, e.g. "stop code 0x116 (0x1, 0x2, 0x3, 0x4)".
        stop: String,
    },
    /// The host was changed, or changed back.
    HostChange {
        /// PCI address or path.
        target: String,
        /// What it was, e.g. "bochs-drm".
        before: String,
        /// What it is now.
        after: String,
    },
    /// Something that a reader should know and that decides nothing.
    Note {
        /// One sentence.
        text: String,
        /// True when it is a warning.
        #[serde(default)]
        warning: bool,
    },
    /// What was seen, as causes read it; a later version may draw other conclusions from the same.
    Observed {
        /// The facts.
        facts: crate::diagnosis::Facts,
    },
    /// A likely cause of the failure, best first.
    Diagnosis {
        /// The cause and what speaks for and against it.
        cause: crate::diagnosis::Finding,
    },
    /// The control run is over.
    ControlEnded {
        /// The check in which it had to fail.
        fails_in: String,
        /// True when it failed there and nowhere before.
        as_it_must: bool,
        /// What it said: the line of the guest's driver, or what was wrong with the control.
        line: String,
    },
    /// The answer. One per run, just before the end.
    Verdict {
        /// The answer.
        answer: Verdict,
    },
    /// Last line of every run that ended in order.
    RunEnded {
        /// Exit code of `no43`.
        exit_code: u8,
        /// Duration in milliseconds.
        took_ms: u64,
    },
    /// A kind that a newer version wrote.
    #[serde(other)]
    Unknown,
}

/// A named value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fact {
    /// Short name.
    pub name: String,
    /// Value with its unit.
    pub value: String,
}

impl Fact {
    /// A fact; the value is cleaned, since it may be foreign.
    pub fn new(name: impl Into<String>, value: impl AsRef<str>) -> Self {
        Self { name: name.into(), value: crate::words::clean(value.as_ref()) }
    }
}

/// A card as the report names it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CardFacts {
    /// Marketing name, or "vendor device" where none is known.
    pub name: String,
    /// Slot as lspci writes it, e.g. "01:00".
    pub slot: String,
    /// "video", "audio", "usb", "ucsi", in function order.
    pub roles: Vec<String>,
    /// More: ids, BARs, group, driver.
    pub facts: Vec<Fact>,
    /// It belongs to a machine that was running before and goes on running.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stays: bool,
}

/// At which point of the run a check was asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Round {
    /// After the first start.
    #[default]
    First,
    /// After the guest was restarted.
    AfterReboot,
    /// After the machine was switched off and started again.
    AfterColdStart,
    /// After the cards were taken out of the running guest and plugged in again.
    AfterReplug,
    /// After the driver let go of its cards and took them again.
    AfterReload,
    /// After the driver was taken out of the guest and put in again.
    AfterReinstall,
    /// With the driver of another package, of this version.
    WithDriver(Version),
    /// After Windows went back to the driver before.
    AfterRollback,
    /// After so many power cycles, which nothing but that was done between.
    Cycle(u32),
    /// After the machine is gone.
    AfterRun,
}

impl Round {
    /// True for a round that repeats the first one.
    pub fn is_again(self) -> bool {
        !matches!(self, Self::First | Self::AfterRun)
    }

    /// True where the guest has started anew.
    pub fn is_restart(self) -> bool {
        matches!(self, Self::AfterReboot | Self::AfterColdStart | Self::Cycle(_))
    }

    /// As it follows a check's name: "" or " again after reboot".
    pub fn suffix(self) -> Cow<'static, str> {
        match self {
            Self::First | Self::AfterRun => "".into(),
            Self::AfterReboot => " again after reboot".into(),
            Self::AfterColdStart => " again after cold start".into(),
            Self::AfterReplug => " again after replug".into(),
            Self::AfterReload => " again after reload of the driver".into(),
            Self::AfterReinstall => " again after reinstallation of the driver".into(),
            Self::WithDriver(version) => format!(" again with driver {version}").into(),
            Self::AfterRollback => " again after rollback of the driver".into(),
            Self::Cycle(number) => format!(" again after power cycle {number}").into(),
        }
    }
}

/// The answer of one check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
pub enum Outcome {
    /// It holds.
    Passed,
    /// It does not; the result's `seen` says what is there instead.
    Failed,
    /// It was not asked.
    Skipped {
        /// Why, and how to get it asked.
        reason: String,
    },
}

/// One check with everything a reader needs to believe the answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckResult {
    /// Name from the table of checks, e.g. "driver".
    pub check: String,
    /// "machine", "pnp", "identity", "work", "quiet" or "own"; empty for what is about the host.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub layer: String,
    /// Slot of the card, e.g. "01:00"; empty for a check that is about no card.
    #[serde(default)]
    pub card: String,
    /// When it was asked.
    #[serde(default)]
    pub round: Round,
    /// The answer.
    pub answer: Outcome,
    /// What must hold, with numbers.
    pub expected: String,
    /// What was seen, in one line.
    pub seen: String,
    /// More lines: one per function, per connector.
    #[serde(default)]
    pub details: Vec<String>,
    /// Lines of the guest's own log that speak about it.
    #[serde(default)]
    pub guest_lines: Vec<String>,
    /// Files of the run's folder that show it: pictures, logs.
    #[serde(default)]
    pub evidence: Vec<String>,
    /// Numbers that it measured.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub metrics: Vec<Fact>,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
}

impl CheckResult {
    /// Name with the round, as reports and test systems show it: "picture again after reboot".
    pub fn full_name(&self) -> String {
        format!("{}{}", self.check, self.round.suffix())
    }

    /// True for a pass.
    pub fn passed(&self) -> bool {
        self.answer == Outcome::Passed
    }

    /// True for a failure.
    pub fn failed(&self) -> bool {
        self.answer == Outcome::Failed
    }
}

/// A kept picture.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frame {
    /// Path relative to the run's folder.
    pub file: String,
    /// Where it was taken: "screen", "card 01:00", "expected 01:00".
    pub source: String,
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// What it is, for a caption.
    #[serde(default)]
    pub caption: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_reads_as_it_was_written() {
        let record = Record {
            v: EVENT_VERSION,
            seq: 3,
            ms: 1200,
            section: Section::Control,
            event: Event::PhaseEnded { phase: "agent".into(), took_ms: 24_000, problem: None },
        };
        let line = serde_json::to_string(&record).unwrap();
        insta::assert_snapshot!(line, @r#"{"v":1,"seq":3,"ms":1200,"section":"control","event":{"kind":"phase-ended","phase":"agent","took_ms":24000,"problem":null}}"#);
        assert_eq!(serde_json::from_str::<Record>(&line).unwrap(), record);
    }

    #[test]
    fn a_kind_of_a_newer_version_is_no_error() {
        let record: Record =
            serde_json::from_str(r#"{"v":2,"seq":0,"ms":0,"event":{"kind":"weather","sky":"blue"}}"#)
                .unwrap();
        assert_eq!(record.event, Event::Unknown);
        assert_eq!(record.section, Section::Main);
    }
}
