//! What can go wrong with a lab.
//!
//! A *lab fault* (the outer QEMU died, the lab host does not answer) says nothing about the guest or the recipe under test:
//! [`LabError::is_fault`] tells them apart, and the command line gives faults an exit code of their own.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use no43_builder::store::StoreError;
use no43_machine::{AdoptError, AgentError, QmpError, StartError};

use crate::profile::ProfileError;

/// Why the lab did not do it.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// The profile is wrong.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// The image cannot be a lab host.
    #[error("image {key} is no lab host: {why}")]
    Image {
        /// The image's key.
        key: String,
        /// What is missing.
        why: String,
    },
    /// QEMU did not start.
    #[error("failed to start the lab's machine: {0}")]
    Start(#[from] StartError),
    /// A running lab could not be taken over.
    #[error("failed to reach the running lab: {0}")]
    Adopt(#[from] AdoptError),
    /// The outer QEMU ended by itself.
    #[error(
        "lab fault: the lab's QEMU ended while {phase} ({how}); this says nothing about the guest{}",
        indented(messages)
    )]
    Died {
        /// What was going on.
        phase: String,
        /// Exit code or signal, and QEMU's word for it.
        how: String,
        /// The end of QEMU's error output and of the lab host's console.
        messages: String,
    },
    /// The lab host does not answer, or says no to what the lab itself needs.
    #[error("lab fault: {phase}: {why}; this says nothing about the guest{}", indented(messages))]
    Broken {
        /// What was going on.
        phase: String,
        /// What happened.
        why: String,
        /// The end of the lab host's console.
        messages: String,
    },
    /// The command in the lab took longer than the caller allows.
    #[error("the command in the lab did not end within {:.0} s and was stopped", limit.as_secs_f32())]
    Limit {
        /// The limit.
        limit: Duration,
    },
    /// Ctrl-C a second time: the lab was taken down.
    #[error("interrupted: the lab was taken down at once")]
    Interrupted,
    /// `lab up` for a profile that is up.
    #[error("lab '{name}' is already up (process {pid}); stop it with: no43 lab down {name}")]
    AlreadyUp {
        /// The lab's name.
        name: String,
        /// Its QEMU.
        pid: u32,
    },
    /// A lab that is asked for is not up.
    #[error("lab '{name}' is not up; start it with: no43 lab up --profile {name}")]
    NotUp {
        /// The lab's name.
        name: String,
    },
    /// Another no43 uses the lab.
    #[error(
        "lab '{name}' is in use by process {pid}; wait for it, or use a lab of your own: no43 lab run --private"
    )]
    InUse {
        /// The lab's name.
        name: String,
        /// Who uses it.
        pid: String,
    },
    /// A recipe's directory that should not be copied.
    #[error("{} cannot be carried into the lab: {why}", path.display())]
    Carry {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong with it and what to do.
        why: String,
    },
    /// The store's images could not be kept for the run.
    #[error(transparent)]
    Images(#[from] StoreError),
    /// The store's modes keep the inner user out.
    #[error("{0} cannot be read by the lab host's ordinary user; allow it with: chmod o+rx {0}", path.display())]
    Store {
        /// The directory.
        path: PathBuf,
    },
    /// A program that is needed on this side.
    #[error("failed to run {program}: {why}")]
    Program {
        /// The program.
        program: String,
        /// What it or the system said.
        why: String,
    },
    /// A file or directory of the lab.
    #[error("failed to {what} {}: {why}", path.display())]
    File {
        /// The verb.
        what: &'static str,
        /// What it was about.
        path: PathBuf,
        /// What the system says.
        why: io::Error,
    },
}

impl LabError {
    /// The lab itself broke: no verdict about guest, recipe or host.
    pub fn is_fault(&self) -> bool {
        matches!(self, LabError::Died { .. } | LabError::Broken { .. })
    }

    pub(crate) fn file(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> LabError {
        let path = path.into();
        move |why| LabError::File { what, path, why }
    }
}

/// What happened on a connection to the lab host; [`crate::outer`] looks whether QEMU is gone and makes a [`LabError`] of
/// it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Trouble {
    #[error(transparent)]
    Agent(#[from] AgentError),
    #[error(transparent)]
    Qmp(#[from] QmpError),
    #[error("{0}")]
    Said(String),
}

/// The last lines of a log, for an error message.
pub(crate) fn tail(path: &Path, lines: usize) -> String {
    let bytes = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(8192)..]).into_owned();
    let printable = |line: &str| line.chars().filter(|c| !c.is_control()).collect::<String>();
    let all: Vec<String> = text.lines().map(printable).filter(|line| !line.trim().is_empty()).collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

fn indented(messages: &str) -> String {
    messages.lines().map(|line| format!("\n  {line}")).collect()
}
