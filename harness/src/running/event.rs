//! What happens to a running machine, as lines for whoever follows it.

use serde::{Deserialize, Serialize};

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Happened {
    /// From here on the follower misses nothing.
    Followed,
    /// A sentence for the person.
    Note {
        /// The sentence.
        text: String,
        /// It is about something that is not as it should be.
        warning: bool,
    },
    /// A card is wanted and not free.
    Waiting {
        /// Who has it.
        why: String,
    },
    /// A card was lent and bound.
    Card {
        /// What it is called.
        name: String,
        /// Where it sits.
        address: String,
    },
    /// QEMU runs the guest's CPUs.
    Started {
        /// QEMU's process.
        pid: u32,
        /// From the first write to the host until QEMU answered.
        took_ms: u64,
        /// `KVM` or `TCG`.
        accelerator: String,
    },
    /// A no43 that had been killed left the machine running, and this one watches it now.
    Adopted {
        /// QEMU's process.
        pid: u32,
    },
    /// The guest's agent answers.
    Ready {
        /// Since the start of the guest.
        after_ms: u64,
    },
    /// The agent did not come; the guest runs on.
    NotReady {
        /// The limit.
        limit_s: u64,
    },
    /// The guest restarted; it keeps its cards.
    Rebooted,
    /// The guest was asked to shut down.
    Stopping {
        /// How long it may take.
        limit_s: u64,
        /// By its agent, or the power button.
        how: String,
    },
    /// The guest did not shut down in time, and runs on.
    StillRunning {
        /// The limit.
        limit_s: u64,
    },
    /// QEMU paused the guest.
    Paused {
        /// Why.
        why: String,
    },
    /// The guest goes on.
    Resumed,
    /// The guest's kernel says that it has panicked.
    Panicked {
        /// What it says: a stop code, for one.
        what: String,
    },
    /// The machine is gone.
    Ended {
        /// In words.
        how: String,
        /// Somebody wished it: the guest, or a person.
        orderly: bool,
    },
    /// The cards are back.
    GaveBack {
        /// Functions and drivers.
        cards: String,
        /// What is not as before.
        problem: Option<String>,
    },
    /// There is no machine, and there will be none.
    Failed {
        /// Why.
        cause: String,
    },
    /// Nothing more comes.
    Done {
        /// The exit code of an attached run.
        code: u8,
    },
}

/// An event with its time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Milliseconds since the run began.
    pub at_ms: u64,
    /// What happened.
    #[serde(flatten)]
    pub what: Happened,
}

/// What a client asks the supervisor for, one JSON line each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Ask {
    /// All events that come, after [`Happened::Followed`].
    Follow {
        /// And before them all that were.
        past: bool,
    },
    /// Ask the guest to shut down.
    Stop {
        /// How long it may take.
        limit_s: u64,
        /// Do not ask: end QEMU.
        force: bool,
    },
    /// A picture of the emulated screen into this file (PPM).
    Shot {
        /// The file, which must not exist.
        path: std::path::PathBuf,
    },
    /// The machine outlives the command that it was started for.
    Untie,
    /// A USB device of the host comes or goes.
    Usb {
        /// The device's name in QEMU.
        id: String,
        /// QEMU's properties for a device that comes; `None` for one that goes.
        plug: Option<serde_json::Map<String, serde_json::Value>>,
    },
}

/// The supervisor's answer to everything but [`Ask::Follow`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// It is done, or begun.
    Ok,
    /// It cannot be done.
    No(String),
}
