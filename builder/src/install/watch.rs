//! The course of an installation, decided from what is seen: a pure machine, without clock, process or file.
//!
//! The boot key: it is pressed from the moment when the firmware says that it starts *our* CD until either it says that
//! this failed, or well more than a boot loader was read from the CD since. Where COM1 is mute, the first picture that the
//! firmware draws takes the place of its words. Once the CD was read, no key is pressed any more, ever.

use std::time::Duration;

use no43_guest::setup::event::{Cause as GuestCause, Event, Outcome, What};

use super::cause::{self, Cause, Silence};
use super::{Limits, Phase, PhaseTime};

/// The serial number that our CD drive shows; the firmware puts it into the names of its boot entries.
pub const MEDIUM_SERIAL: &str = "no43-media";

/// A boot manager with its fonts has 1 to 3 MB; who reads more has taken the key.
const LOADER_BYTES: u64 = 6 << 20;

/// Firmware, partition tables and directories of the set-up disk are less than this; the answer file and drivers are more.
const SETUP_DISK_LOOKED_AT: u64 = 640 << 10;

/// One press per half second: OVMF forgets keys that come before the prompt, and the prompt lasts 5 s.
const KEY_EVERY: Duration = Duration::from_millis(500);

/// Restarts that nobody announced, beyond the two of Windows Setup and one that OOBE may want. dockur allows ten in all.
const RESTARTS: u32 = 6;

/// Unannounced restarts while the guest program works.
const FOREIGN_RESTARTS: u32 = 2;

/// By how much stillness may be shorter when Setup's log has named a cause.
const NAMED_SOONER: u32 = 6;

/// Pictures that are remembered; a blinking cursor makes two.
const RECENT: usize = 3;

/// Lines of the firmware and of setup logs that are kept for a failure.
const KEPT: usize = 40;

/// Something that was seen.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Seen {
    /// A line on COM1 that is not the guest program's.
    Line(String),
    /// The guest program said something.
    Guest(Event),
    /// QEMU reset the machine.
    Reset,
    /// QEMU reported a panic, in words.
    Panicked(String),
    /// Bytes read and written so far.
    Blocks(Blocks),
    /// A picture, as a hash.
    Screen(u64),
    /// The guest's agent answered.
    AgentAnswers,
    /// QEMU ended; how.
    Ended { orderly: bool, how: String },
    /// Here, the disk is full.
    HostDiskFull,
    /// Time passes.
    Tick,
}

/// What QEMU counts, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Blocks {
    /// Read from the medium.
    pub(super) medium: u64,
    /// Read from the set-up disk.
    pub(super) setup_disk: u64,
    /// Read from the target disk.
    pub(super) target_read: u64,
    /// Written to the target disk.
    pub(super) target_written: u64,
}

/// Something to do.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Act {
    /// Press the boot key, and look at the counters.
    PressKey,
    /// A phase began.
    Phase(Phase),
    /// Tell a person.
    Say(String),
    /// Begin to ask for the agent.
    AskAgent,
    /// Ask the guest to shut down.
    ShutDown,
    /// The installation is done.
    Done,
    /// It has failed.
    Fail(Box<Verdict>),
}

/// Why it failed, as far as the course tells.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Verdict {
    pub(super) phase: Phase,
    pub(super) cause: Cause,
    /// What was seen, one sentence each.
    pub(super) seen: Vec<String>,
    /// Lines of the guest's logs.
    pub(super) logs: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Prompt {
    /// Not seen yet.
    Before,
    /// Keys are pressed; the medium's counter at the beginning, and when the last key was pressed.
    Pressing { from: u64, last: Option<Duration> },
    /// The medium was read.
    Over,
}

/// The course so far.
#[derive(Debug)]
pub(super) struct Watch {
    limits: Limits,
    phase: Phase,
    since: Duration,
    times: Vec<PhaseTime>,
    prompt: Prompt,
    blocks: Blocks,
    /// The last different pictures: a cursor that blinks comes back to one of them, and is no sign of life.
    recent: Vec<u64>,
    screens: u32,
    /// When something last changed.
    alive: Duration,
    com1_speaks: bool,
    restarts: u32,
    /// The guest program announced the next restart.
    announced: bool,
    action: Option<String>,
    firmware: Vec<String>,
    logs: Vec<String>,
    refused: u32,
    /// What an error in Setup's own log means, with its line. Setup goes on after many errors.
    named: Option<(Cause, String)>,
    ended: bool,
}

impl Watch {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            phase: Phase::Firmware,
            since: Duration::ZERO,
            times: Vec::new(),
            prompt: Prompt::Before,
            blocks: Blocks::default(),
            recent: Vec::new(),
            screens: 0,
            alive: Duration::ZERO,
            com1_speaks: false,
            restarts: 0,
            announced: false,
            action: None,
            firmware: Vec::new(),
            logs: Vec::new(),
            refused: 0,
            named: None,
            ended: false,
        }
    }

    /// How long each finished phase took.
    pub(super) fn times(&self) -> &[PhaseTime] {
        &self.times
    }

    /// Actions that the guest program refused because it is the stand-in's.
    pub(super) fn refused(&self) -> u32 {
        self.refused
    }

    /// What follows from something that was seen at `now`, counted from QEMU's start.
    pub(super) fn see(&mut self, seen: Seen, now: Duration) -> Vec<Act> {
        let mut acts = Vec::new();
        if self.ended {
            return acts;
        }
        match seen {
            Seen::Line(line) => self.line(&line, now, &mut acts),
            Seen::Guest(event) => self.guest(event.what, now, &mut acts),
            Seen::Reset => self.reset(now, &mut acts),
            Seen::Panicked(words) => self.fail(Cause::Panic, vec![words], now, &mut acts),
            Seen::Blocks(blocks) => self.blocks(blocks, now, &mut acts),
            Seen::Screen(hash) => self.picture(hash, now),
            Seen::AgentAnswers => {
                if self.phase == Phase::Agent {
                    self.enter(Phase::Seal, now, &mut acts);
                    acts.push(Act::ShutDown);
                }
            }
            Seen::Ended { orderly, how } => self.machine_ended(orderly, how, now, &mut acts),
            Seen::HostDiskFull => {
                let seen = "QEMU stopped the guest because this host's disk is full".to_owned();
                self.fail(Cause::DiskFull, vec![seen], now, &mut acts);
            }
            Seen::Tick => {}
        }
        self.press(now, &mut acts);
        self.time(now, &mut acts);
        acts
    }

    fn enter(&mut self, phase: Phase, now: Duration, acts: &mut Vec<Act>) {
        let ms = u64::try_from(now.saturating_sub(self.since).as_millis()).unwrap_or(u64::MAX);
        self.times.push(PhaseTime { phase: self.phase, ms });
        (self.phase, self.since, self.alive) = (phase, now, now);
        acts.push(Act::Phase(phase));
    }

    fn line(&mut self, line: &str, now: Duration, acts: &mut Vec<Act>) {
        self.alive = now;
        self.com1_speaks = true;
        let ours = line.contains(MEDIUM_SERIAL);
        let failed = line.contains("BdsDxe: failed to");
        let (starting, refused) = (line.contains("BdsDxe: starting"), line.contains("Access Denied"));
        if line.contains("BdsDxe: ") {
            push_kept(&mut self.firmware, line.to_owned());
        }
        if starting && ours && self.phase > Phase::BootPrompt {
            let seen = format!("after the first restart the firmware says: {line}");
            self.fail(Cause::TargetNotBootable, vec![seen], now, acts);
        } else if starting && ours && self.phase == Phase::Firmware {
            self.enter(Phase::BootPrompt, now, acts);
            self.begin_pressing();
        } else if failed && ours && self.phase <= Phase::BootPrompt {
            let cause = if refused {
                Cause::SecureBoot
            } else if self.phase == Phase::BootPrompt {
                Cause::NoBootKey
            } else {
                Cause::MediumNotStarted
            };
            self.fail(cause, vec![format!("the firmware says: {line}")], now, acts);
        }
    }

    fn begin_pressing(&mut self) {
        self.prompt = Prompt::Pressing { from: self.blocks.medium, last: None };
    }

    fn press(&mut self, now: Duration, acts: &mut Vec<Act>) {
        if let Prompt::Pressing { last, .. } = &mut self.prompt
            && !self.ended
            && last.is_none_or(|last| now.saturating_sub(last) >= KEY_EVERY)
        {
            *last = Some(now);
            acts.push(Act::PressKey);
        }
    }

    fn blocks(&mut self, blocks: Blocks, now: Duration, acts: &mut Vec<Act>) {
        if blocks != self.blocks {
            self.alive = now;
        }
        self.blocks = blocks;
        if let Prompt::Pressing { from, .. } = self.prompt
            && blocks.medium.saturating_sub(from) > LOADER_BYTES
        {
            self.prompt = Prompt::Over;
            if self.phase == Phase::Firmware {
                self.enter(Phase::BootPrompt, now, acts);
            }
            self.enter(Phase::Copying, now, acts);
        }
    }

    fn picture(&mut self, hash: u64, now: Duration) {
        if self.recent.contains(&hash) {
            return;
        }
        if self.recent.len() == RECENT {
            self.recent.remove(0);
        }
        self.recent.push(hash);
        self.alive = now;
        self.screens += 1;
        // The first picture may be the one before the firmware's. Firmware that speaks later drops keys that come too early,
        // so the phase stays until it does, or until the medium is read.
        if self.screens > 1 && !self.com1_speaks && self.prompt == Prompt::Before {
            self.begin_pressing();
        }
    }

    fn reset(&mut self, now: Duration, acts: &mut Vec<Act>) {
        self.alive = now;
        if std::mem::take(&mut self.announced) {
            return;
        }
        self.restarts += 1;
        match self.phase {
            // A reset before the medium is read starts the firmware anew.
            Phase::Firmware | Phase::BootPrompt => {}
            Phase::Copying => self.enter(Phase::Specialize, now, acts),
            Phase::Specialize => self.enter(Phase::Oobe, now, acts),
            _ => acts.push(Act::Say(format!("restart {} that nobody announced", self.restarts))),
        }
        let restarts = format!("{} restarts that nobody announced", self.restarts);
        if self.phase == Phase::FirstLogon && self.restarts > FOREIGN_RESTARTS + 3 {
            self.fail(Cause::UpdateTookOver, vec![restarts], now, acts);
        } else if self.restarts > RESTARTS {
            self.fail(Cause::BootLoop, vec![restarts], now, acts);
        }
    }

    fn guest(&mut self, what: What, now: Duration, acts: &mut Vec<Act>) {
        self.alive = now;
        if self.phase < Phase::FirstLogon
            && matches!(what, What::Started { .. } | What::Begun { .. } | What::Finished { .. })
        {
            self.enter(Phase::FirstLogon, now, acts);
        }
        match what {
            What::Begun { name, action } => {
                acts.push(Act::Say(format!("set-up action {}: {name}", action + 1)));
                self.action = Some(name);
            }
            What::Ended { outcome: Outcome::Refused, name, note, .. } => {
                self.refused += 1;
                let note = note.map(|note| format!(": {note}")).unwrap_or_default();
                acts.push(Act::Say(format!("refused, not done: {name}{note}")));
            }
            What::Restarting { reason, .. } => {
                self.announced = true;
                acts.push(Act::Say(format!("restart: {reason}")));
            }
            What::Finished { image_state: Some(state), .. } if state != "IMAGE_STATE_COMPLETE" => {
                self.fail(Cause::ImageState, vec![format!("ImageState is {state}")], now, acts);
            }
            What::Finished { .. } if self.phase == Phase::FirstLogon => {
                self.enter(Phase::Agent, now, acts);
                acts.push(Act::AskAgent);
            }
            What::Failed { name, cause, code, text, log, .. } => {
                let code = code.map(|code| format!(" (code {code})")).unwrap_or_default();
                let whose = if name.is_empty() { String::new() } else { format!("'{name}': ") };
                self.logs.extend(log);
                let cause = match cause {
                    GuestCause::DiskFull => Cause::DiskFull,
                    // it died because somebody restarted the guest under it
                    GuestCause::KeepsDying if self.restarts > FOREIGN_RESTARTS + 2 => Cause::UpdateTookOver,
                    _ => Cause::Action,
                };
                self.fail(cause, vec![format!("{whose}{text}{code}")], now, acts);
            }
            What::SetupLog { file, lines } => {
                let lines: Vec<String> = lines.iter().map(|line| format!("{file}: {line}")).collect();
                if let Some((cause, line)) = cause::of_logs(lines.iter().map(String::as_str)) {
                    self.named = Some((cause, line.to_owned()));
                }
                lines.into_iter().for_each(|line| push_kept(&mut self.logs, line));
            }
            What::SetupFailed { logs } => {
                for log in &logs {
                    self.logs.extend(log.lines.iter().map(|line| format!("{}: {line}", log.file)));
                }
                let lines = self.logs.clone();
                let (cause, seen) = match cause::of_logs(lines.iter().map(String::as_str)) {
                    Some((cause, line)) => (cause, line.to_owned()),
                    None => (Cause::Still, "Windows Setup ran its error handler".to_owned()),
                };
                self.fail(cause, vec![seen], now, acts);
            }
            _ => {}
        }
    }

    fn machine_ended(&mut self, orderly: bool, how: String, now: Duration, acts: &mut Vec<Act>) {
        if orderly && self.phase == Phase::Seal {
            let ms = u64::try_from(now.saturating_sub(self.since).as_millis()).unwrap_or(u64::MAX);
            self.times.push(PhaseTime { phase: Phase::Seal, ms });
            self.ended = true;
            acts.push(Act::Done);
            return;
        }
        let cause = if orderly { Cause::SwitchedOff } else { Cause::MachineGone };
        self.fail(cause, vec![how], now, acts);
    }

    fn time(&mut self, now: Duration, acts: &mut Vec<Act>) {
        if self.ended {
            return;
        }
        let (spent, still) = (now.saturating_sub(self.since), now.saturating_sub(self.alive));
        let limit = self.limits.of(self.phase);
        // a Setup that has named what is wrong and stands still asks somebody
        let named = self.named.clone().filter(|_| self.phase == Phase::Copying);
        let still_limit = self.limits.still() / if named.is_some() { NAMED_SOONER } else { 1 };
        // The agent is silent by nature, and a shutdown has its own limit.
        let can_be_still = self.phase < Phase::Agent;
        let is_still = can_be_still && still >= still_limit;
        if !is_still && spent < limit {
            return;
        }
        // the target is not touched before the answer file says how
        let setup_disk_read = self.blocks.setup_disk > SETUP_DISK_LOOKED_AT || self.blocks.target_written > 0;
        let silence = Silence { is_still, setup_disk_read };
        let waited = self.phase.row().waits_for;
        let mut seen = vec![if is_still {
            format!("nothing changed for {} s while {waited} was awaited", still.as_secs())
        } else {
            format!("{waited} was awaited for {} s", spent.as_secs())
        }];
        seen.extend(
            self.action
                .as_ref()
                .filter(|_| self.phase == Phase::FirstLogon)
                .map(|name| format!("last action: {name}")),
        );
        let cause = match named {
            Some((cause, line)) => {
                seen.insert(0, line);
                cause
            }
            None => cause::of_silence(self.phase, &silence),
        };
        self.fail(cause, seen, now, acts);
    }

    fn fail(&mut self, cause: Cause, mut seen: Vec<String>, now: Duration, acts: &mut Vec<Act>) {
        if self.ended {
            return;
        }
        self.ended = true;
        let ms = u64::try_from(now.saturating_sub(self.since).as_millis()).unwrap_or(u64::MAX);
        self.times.push(PhaseTime { phase: self.phase, ms });
        let Blocks { medium, setup_disk, target_written, .. } = self.blocks;
        let mib = |bytes: u64| bytes >> 20;
        seen.push(format!(
            "read {} MiB of the medium and {} KiB of the set-up disk, wrote {} MiB to the target disk",
            mib(medium),
            setup_disk >> 10,
            mib(target_written)
        ));
        if self.phase <= Phase::Copying || cause == Cause::TargetNotBootable {
            seen.extend(
                self.firmware
                    .last()
                    .filter(|line| !seen[0].contains(line.as_str()))
                    .map(|line| format!("the firmware's last words: {line}")),
            );
        }
        let logs = std::mem::take(&mut self.logs);
        let from = logs.len().saturating_sub(KEPT);
        acts.push(Act::Fail(Box::new(Verdict {
            phase: self.phase,
            cause,
            seen,
            logs: logs[from..].to_vec(),
        })));
    }
}

fn push_kept(lines: &mut Vec<String>, line: String) {
    if lines.len() == KEPT {
        lines.remove(0);
    }
    lines.push(line);
}

#[cfg(test)]
mod tests;
