//! The phases of an unattended installation, their names and how long each may take.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// One phase. They come in this order; a phase that leaves no sign is passed over when a later one shows itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// From QEMU's start until the firmware starts the medium.
    Firmware,
    /// "Press any key to boot from CD or DVD", until the medium is read in earnest.
    BootPrompt,
    /// Windows PE: disk layout and copying, until the first restart.
    Copying,
    /// The first start from the target disk, until the second restart.
    Specialize,
    /// From there until the guest program reports from the first logon.
    Oobe,
    /// The guest program carries out its plan.
    FirstLogon,
    /// The guest agent answers.
    Agent,
    /// The guest shuts down; QEMU and the TPM end.
    Seal,
}

/// One row of [`PHASES`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    pub(super) phase: Phase,
    /// What a person reads.
    pub(super) name: &'static str,
    /// Longest time with KVM and an SSD. Nobody publishes times per phase: 2 h is the cap that other builders use for all.
    pub(super) limit: Duration,
    /// What it waits for, in an error.
    pub(super) waits_for: &'static str,
}

const fn row(phase: Phase, name: &'static str, minutes: u64, waits_for: &'static str) -> Row {
    Row { phase, name, limit: Duration::from_secs(minutes * 60), waits_for }
}

pub(super) static PHASES: [Row; 8] = [
    row(Phase::Firmware, "firmware", 2, "the firmware to start the medium"),
    row(Phase::BootPrompt, "boot prompt", 1, "the medium to be read after a key was pressed"),
    row(Phase::Copying, "copying files", 40, "the first restart"),
    row(Phase::Specialize, "specialize", 20, "the second restart"),
    row(Phase::Oobe, "oobe", 20, "the guest program to report from the first logon"),
    row(Phase::FirstLogon, "first logon", 90, "the guest program to finish its plan"),
    row(Phase::Agent, "agent", 5, "the guest agent to answer"),
    row(Phase::Seal, "seal", 10, "the guest to shut down"),
];

impl Phase {
    pub(super) fn row(self) -> &'static Row {
        PHASES.iter().find(|row| row.phase == self).expect("a test looks for a row of every phase")
    }

    /// What a person reads.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.row().name
    }
}

/// How long the parts of an installation may take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Every limit is multiplied by this: 1 is for KVM and an SSD.
    pub patience: f64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { patience: 1.0 }
    }
}

/// Without any sign of life for so long, an installation is stuck: a screen that does not change, no disk that is read or
/// written, no line. A Windows that works turns a wheel; a question by Windows Setup stands still.
const STILL: Duration = Duration::from_secs(180);

impl Limits {
    /// How long `phase` may take.
    #[must_use]
    pub fn of(self, phase: Phase) -> Duration {
        phase.row().limit.mul_f64(self.patience)
    }

    /// How long nothing at all may happen.
    #[must_use]
    pub fn still(self) -> Duration {
        STILL.mul_f64(self.patience)
    }
}

/// How long a phase took; kept in the image's manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhaseTime {
    /// Which.
    pub phase: Phase,
    /// Milliseconds.
    pub ms: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_phases() {
        assert!(
            PHASES
                .iter()
                .enumerate()
                .all(|(n, row)| row.phase as usize == n && row.phase.row().name == row.name)
        );
        assert_eq!(Phase::Seal as usize + 1, PHASES.len());
        let limits = Limits { patience: 0.5 };
        assert_eq!(limits.of(Phase::Firmware), Duration::from_secs(60));
    }
}
