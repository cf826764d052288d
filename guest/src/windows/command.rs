//! The commands that only the Windows program has, and its answers to those that both have.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::Subcommand;
use no43_guest::protocol::{BELL_PORT, GuestFunction};
use no43_guest::setup::first_start::{FirstStart, FirstStarted};

use super::api::{devices, machine};
use super::report;
use super::setup::{self, Windows};
use crate::devnodes;

#[derive(Subcommand)]
pub(crate) enum Task {
    /// Say what the guest sees: PCI functions of cards, their problem codes and drivers
    Report {
        /// Print JSON for the harness instead of text for a person
        #[arg(long)]
        json: bool,
        /// As in Linux guests; Windows has loaded its drivers before a program runs
        #[arg(long, value_name = "N", default_value_t = 0)]
        settle_seconds: u64,
    },
}

impl Task {
    pub(crate) fn run(self) -> Result<()> {
        let Self::Report { json, settle_seconds: _ } = self;
        let report = report::report();
        if json {
            println!("{}", serde_json::to_string(&report)?);
        } else {
            print!("{}", report::human(&report));
        }
        Ok(())
    }
}

/// The functions of this guest's cards; what cannot be read is not there.
pub(crate) fn functions() -> Vec<GuestFunction> {
    devices::pci_nodes().map(|nodes| devnodes::functions(&nodes, &mut Vec::new())).unwrap_or_default()
}

/// What carries out set-up plans here.
pub(crate) fn actor(state: &Path, channels: &[PathBuf]) -> Windows {
    Windows::new(state, channels)
}

/// Applies what an instance is given at its first start.
pub(crate) fn first_start(request: &FirstStart) -> FirstStarted {
    setup::first_start(request)
}

/// Where Windows Setup writes what went wrong, in Windows itself and in the system that it starts from.
pub(crate) fn setup_logs() -> Vec<PathBuf> {
    let root = PathBuf::from(std::env::var_os("SystemRoot").unwrap_or_else(|| r"C:\Windows".into()));
    let folders = [
        root.join("Panther"),
        root.join(r"Panther\UnattendGC"),
        r"C:\$Windows.~BT\Sources\Panther".into(),
        r"X:\Windows\Panther".into(), // the system that Setup starts from
        r"C:\Windows\Panther".into(), // the new one, seen from there
    ];
    let mut files: Vec<PathBuf> = folders
        .into_iter()
        .flat_map(|folder| ["setuperr.log", "setupact.log"].map(|name| folder.join(name)))
        .collect();
    let mut seen = Vec::new();
    files.retain(|file| {
        let name = file.to_string_lossy().to_lowercase();
        let new = !seen.contains(&name);
        seen.push(name);
        new
    });
    files
}

/// The port on which the host is told of the ends of programs; whether it is there, only opening it tells.
#[expect(clippy::unnecessary_wraps, reason = "Linux knows its ports")]
pub(crate) fn bell_port() -> Option<PathBuf> {
    Some(format!(r"\\.\Global\{BELL_PORT}").into())
}

/// Whether another one has the port open: `ERROR_ACCESS_DENIED`, `ERROR_SHARING_VIOLATION`, `ERROR_BUSY`.
pub(crate) fn is_busy(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(5 | 32 | 170))
}

/// Restarts Windows.
pub(crate) fn restart() -> Result<u8> {
    machine::end(true).context("failed to restart Windows").map(|()| 0)
}

/// Switches the machine off.
pub(crate) fn power_off() -> Result<u8> {
    machine::end(false).context("failed to shut Windows down").map(|()| 0)
}
