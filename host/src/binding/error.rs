//! Why a card could not be bound or given back.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::PciAddress;
use crate::holders::{self, Holder};
use crate::state::StateError;

/// Why a card could not be bound or given back. Goes through sudo as JSON, so it holds only text and numbers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum BindError {
    /// Somebody has its device nodes open. Nothing was written.
    #[error("{card} is in use by {}: close that first; nothing was changed", holders::sentence(holders))]
    InUse {
        /// Which card.
        card: String,
        /// By whom.
        holders: Vec<Holder>,
    },
    /// The kernel lacks vfio-pci.
    #[error("the driver vfio-pci is not there: {why}; try: sudo modprobe vfio-pci")]
    NoVfio {
        /// What modprobe said.
        why: String,
    },
    /// A write was refused.
    #[error("failed to write '{text}' to {}: {why}", path.display())]
    Write {
        /// The file in sysfs.
        path: PathBuf,
        /// What was written.
        text: String,
        /// What the kernel said.
        why: String,
    },
    /// A write did not come back.
    #[error(
        "writing '{text}' to {} did not return within {limit_s} s, process {pid} hangs in the kernel: {card} is in quarantine until the host is rebooted",
        path.display()
    )]
    Hung {
        /// Which card.
        card: String,
        /// The file in sysfs.
        path: PathBuf,
        /// What was written.
        text: String,
        /// The limit in seconds.
        limit_s: u64,
        /// The child that hangs.
        pid: u32,
    },
    /// It was taken, and does not answer.
    #[error("{card} is of no use and in quarantine now: {why}")]
    Dead {
        /// Which card.
        card: String,
        /// What was seen.
        why: String,
    },
    /// All writes went well, and still another driver has the function.
    #[error("{address} was offered to vfio-pci and is with {} now: {hint}", now.as_deref().unwrap_or("no driver"))]
    NotTaken {
        /// The function.
        address: PciAddress,
        /// Its driver now.
        now: Option<String>,
        /// What is likely.
        hint: String,
    },
    /// The group's node did not appear or cannot be opened.
    #[error("{} cannot be used by this user: {why}", path.display())]
    Node {
        /// The node.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The request is not allowed.
    #[error("refused: {why}")]
    Refused {
        /// Why.
        why: String,
    },
    /// Root could not be reached.
    #[error("this needs root: {why}")]
    Privilege {
        /// Why not, and what to do.
        why: String,
    },
    /// The journal could not be written, so nothing else was.
    #[error("{why}")]
    State {
        /// What failed.
        why: String,
    },
}

impl From<StateError> for BindError {
    fn from(error: StateError) -> Self {
        BindError::State { why: error.to_string() }
    }
}
