//! The answer of a run: passed, failed with a cause, skipped with a reason, or unstable with a reason.

use serde::{Deserialize, Serialize};

/// Where the cause of a failure sits. It decides the exit code, and whom the report addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    /// The guest, its driver or its programs.
    Guest,
    /// This host: its kernel, its card, its QEMU.
    Host,
    /// The emulated passthrough host around us; says nothing about guest or host.
    Lab,
    /// `no43` itself.
    Harness,
    /// The host does not lend what was asked for; nothing was started.
    NotLent,
    /// Something that a person sets up once is missing; nothing was started.
    HostSetup,
    /// A person stopped the run.
    Interrupted,
}

impl FailureKind {
    /// All kinds, for tables and tests.
    pub const ALL: &[FailureKind] = &[
        Self::Guest,
        Self::Host,
        Self::Lab,
        Self::Harness,
        Self::NotLent,
        Self::HostSetup,
        Self::Interrupted,
    ];

    /// The word behind FAILED in a report.
    pub fn word(self) -> &'static str {
        match self {
            Self::Guest => "guest",
            Self::Host => "host",
            Self::Lab => "lab fault",
            Self::Harness => "no43",
            Self::NotLent => "not lent",
            Self::HostSetup => "host set-up",
            Self::Interrupted => "interrupted",
        }
    }
}

/// The answer of a run.
#[must_use = "a verdict that nobody reads proves nothing"]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "kebab-case")]
pub enum Verdict {
    /// Every check holds.
    Passed,
    /// Something does not hold.
    Failed {
        /// One sentence: what does not hold, and the line or number that shows it.
        cause: String,
        /// Where the cause sits.
        kind: FailureKind,
    },
    /// Nothing was proved.
    Skipped {
        /// Which capability is missing, and how to get it.
        reason: String,
    },
    /// It holds, but not every time.
    Unstable {
        /// What differed between the tries.
        reason: String,
    },
}

impl Verdict {
    /// A failure with its cause.
    pub fn failed(kind: FailureKind, cause: impl Into<String>) -> Self {
        Self::Failed { cause: cause.into(), kind }
    }

    /// True only for [`Verdict::Passed`].
    pub fn is_passed(&self) -> bool {
        matches!(self, Self::Passed)
    }

    /// The word that a report prints largest.
    pub fn headline(&self) -> String {
        match self {
            Self::Passed => "PASSED".into(),
            Self::Failed { kind, .. } => format!("FAILED ({})", kind.word()),
            Self::Skipped { .. } => "SKIPPED".into(),
            Self::Unstable { .. } => "UNSTABLE".into(),
        }
    }

    /// Cause or reason; empty for a pass.
    pub fn reason(&self) -> &str {
        match self {
            Self::Passed => "",
            Self::Failed { cause, .. } => cause,
            Self::Skipped { reason } | Self::Unstable { reason } => reason,
        }
    }
}
