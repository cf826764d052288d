//! A running machine saved to a file, and brought back in a third of a second instead of booted.
//!
//! Rules, each learned from a failure:
//! - A saved machine is a *pair*: this file and the disks as they were at the same stop. After [`save`] the machine is only
//!   good for [`Machine::quit`]; then the disks are frozen, and every restore gets fresh overlays on top of them.
//! - The restoring machine needs the same QEMU, machine type and devices. What was plugged in later, a mounted 9p share
//!   above all, must be out when it is saved.
//! - Two restores are twins: give [`crate::MachineSpec::vmgenid`] a fresh GUID each time, and set the clock
//!   ([`crate::Agent::set_time`]) before anything else.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc::Receiver;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::machine::Machine;
use crate::qmp::{Event, Qmp, QmpError, wait_event};

/// How long saving or restoring may take: 64 GiB to a disk with 500 MB/s need two minutes.
pub const LIMIT: Duration = Duration::from_secs(180);

/// From this version on QEMU takes an open file as a file; before, only as if it were a socket, which is deprecated since.
const FILES_SINCE: (u64, u64, u64) = (9, 1, 0);

/// Why a machine was not saved or restored.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The state file.
    #[error("failed to open the state file {path}: {why}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        why: io::Error,
    },
    /// QEMU refused a command, or is gone.
    #[error("failed to {what} the machine: {why}")]
    Qmp {
        /// "save" or "restore".
        what: &'static str,
        /// What QEMU said.
        why: QmpError,
    },
    /// QEMU began and gave up: a device that cannot be saved, a state of another machine.
    #[error("QEMU could not {what} the machine: {why}")]
    Failed {
        /// "save" or "restore".
        what: &'static str,
        /// What QEMU said.
        why: String,
    },
    /// It took too long.
    #[error("QEMU did not {what} the machine within {} s", limit.as_secs())]
    TimedOut {
        /// "save" or "restore".
        what: &'static str,
        /// The limit.
        limit: Duration,
    },
}

/// Stops the guest's CPUs and writes its state to a new file. Returns the time it took. The machine stays stopped, with its
/// disks let go: quit it, and keep its disks as they are.
///
/// # Errors
/// [`SnapshotError`]; after `Failed` the machine can go on by [`Machine::cont`].
pub fn save(machine: &Machine, state: &Path, limit: Duration) -> Result<Duration, SnapshotError> {
    let file = File::create(state).map_err(|why| SnapshotError::File { path: state.to_owned(), why })?;
    let started = Instant::now();
    let what = "save";
    let qmp = machine.qmp();
    let run = |command: &str, arguments| {
        qmp.raw(command, arguments).map_err(|why| SnapshotError::Qmp { what, why })
    };
    run("stop", Value::Null)?;
    announce(machine, what)?;
    // Without this QEMU writes at 128 MiB/s, the speed of a network of 2014.
    run("migrate-set-parameters", json!({ "max-bandwidth": 1u64 << 40 }))?;
    let uri = hand_over(qmp, &file).map_err(|why| SnapshotError::Qmp { what, why })?;
    let events = machine.subscribe();
    run("migrate", json!({ "uri": uri }))?;
    finished(machine, &events, what, limit)?;
    // QEMU says "completed" a moment before it has changed its own state, and there is no event for that.
    while run("query-status", Value::Null)?["status"] == "finish-migrate" {
        if started.elapsed() > limit {
            return Err(SnapshotError::TimedOut { what, limit });
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(started.elapsed())
}

/// Reads a saved state into a machine that was started with [`crate::MachineSpec::incoming`], and lets its CPUs run.
/// Returns the time it took.
///
/// # Errors
/// [`SnapshotError`].
pub fn restore(machine: &Machine, state: &Path, limit: Duration) -> Result<Duration, SnapshotError> {
    let file = File::open(state).map_err(|why| SnapshotError::File { path: state.to_owned(), why })?;
    let started = Instant::now();
    let what = "restore";
    announce(machine, what)?;
    let failed = |why| SnapshotError::Qmp { what, why };
    let uri = hand_over(machine.qmp(), &file).map_err(failed)?;
    let events = machine.subscribe();
    machine.qmp().raw("migrate-incoming", json!({ "uri": uri })).map_err(failed)?;
    finished(machine, &events, what, limit)?;
    machine.cont().map_err(failed)?;
    Ok(started.elapsed())
}

/// Gives QEMU the open file, so that it needs no right to open it itself. Returns QEMU's name for it.
fn hand_over(qmp: &Qmp, file: &File) -> Result<String, QmpError> {
    if qmp.version() < FILES_SINCE {
        qmp.send_fd("state", file.as_fd())?;
        return Ok("fd:state".to_owned());
    }
    let set = qmp.raw_with_fd("add-fd", Value::Null, file.as_fd())?;
    let number = set.get("fdset-id").and_then(Value::as_u64).unwrap_or_default();
    Ok(format!("file:/dev/fdset/{number}"))
}

/// Turns QEMU's `MIGRATION` events on.
fn announce(machine: &Machine, what: &'static str) -> Result<(), SnapshotError> {
    let capabilities = json!({ "capabilities": [{ "capability": "events", "state": true }] });
    let set = machine.qmp().raw("migrate-set-capabilities", capabilities);
    set.map(drop).map_err(|why| SnapshotError::Qmp { what, why })
}

/// Waits for the last `MIGRATION` event.
fn finished(
    machine: &Machine,
    events: &Receiver<Event>,
    what: &'static str,
    limit: Duration,
) -> Result<(), SnapshotError> {
    let ended = wait_event(events, limit, |event| match (event.name.as_str(), event.text("status")) {
        ("MIGRATION", Some("completed")) => Some(true),
        ("MIGRATION", Some("failed" | "cancelled")) => Some(false),
        _ => None,
    });
    match ended {
        Some(true) => Ok(()),
        Some(false) => Err(SnapshotError::Failed { what, why: why_failed(machine) }),
        None => match machine.exit() {
            // An incoming QEMU that meets a foreign state says why on its error output and ends.
            Some(exit) => Err(SnapshotError::Failed { what, why: exit.stderr }),
            None => Err(SnapshotError::TimedOut { what, limit }),
        },
    }
}

fn why_failed(machine: &Machine) -> String {
    let answer = machine.qmp().raw("query-migrate", Value::Null).unwrap_or_default();
    let said = answer.get("error-desc").and_then(Value::as_str).map(str::to_owned);
    said.unwrap_or_else(|| machine.dirs().stderr_tail(1000))
}
