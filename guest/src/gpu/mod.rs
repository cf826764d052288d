//! `no43-guest work`: GPU work with known answers, each piece in a process of its own.
//!
//! Drivers' libraries crash, hang, and keep threads and memory; a process of its own has a limit and can be ended,
//! and what happens to it says nothing about the next piece.

mod answer;
mod cuda;
#[cfg(windows)]
mod desktop;
#[cfg(windows)]
mod direct3d;
mod h264;
mod nvenc;
mod optix;
mod ptx;
mod run;
#[cfg(any(windows, test))]
mod scene;
mod target;
mod vulkan;

pub(crate) use run::{Item, Options, nvidia_smi, nvml, print_nvidia_smi, print_nvml};

use std::path::PathBuf;

use crate::native::Absent;
use no43_guest::work::{Metric, WorkCause, WorkResult};
use target::Target;

/// Why a piece of work did not pass.
#[derive(Debug, Clone)]
pub(crate) struct Stop {
    cause: WorkCause,
    reason: String,
}

impl Stop {
    fn new(cause: WorkCause, reason: impl Into<String>) -> Self {
        Self { cause, reason: reason.into() }
    }

    /// A call failed.
    fn call(reason: impl Into<String>) -> Self {
        Self::new(WorkCause::CallFailed, reason)
    }
}

impl From<Absent> for Stop {
    fn from(absent: Absent) -> Self {
        match absent {
            Absent::Library(text) => Self::new(WorkCause::NoLibrary, text),
            Absent::Unable(text) => Self::new(WorkCause::NotSupported, text),
            Absent::Call(text) => Self::call(text),
        }
    }
}

/// What a piece of work is given.
#[derive(Debug)]
pub(crate) struct Task {
    /// The adapter.
    target: Target,
    /// Percent of the free video memory that the memory test takes.
    memory_percent: u8,
    /// Picks the numbers that are worked on.
    seed: u32,
    /// Where a picture goes, if somebody wants it.
    #[cfg_attr(not(windows), expect(dead_code, reason = "only work of Windows leaves a picture"))]
    out: Option<PathBuf>,
}

/// Does the work of that name; what it ran on and what it measured goes into `result` as soon as it is known.
type Program = fn(&Task, &mut WorkResult) -> Result<(), Stop>;

/// The programs of [`no43_guest::work::WORK`], by name.
const PROGRAMS: &[(&str, Program)] = &[
    ("cuda-checksum", cuda::checksum),
    ("cuda-memory", cuda::memory),
    ("cuda-copy", cuda::copy),
    ("vulkan-compute", vulkan::compute),
    ("nvenc-frame", nvenc::frame),
    ("optix-trace", optix::trace),
    #[cfg(windows)]
    ("d3d11-scene", direct3d::scene_11),
    #[cfg(windows)]
    ("d3d12-scene", direct3d::scene_12),
    #[cfg(windows)]
    ("desktop-picture", desktop::picture),
];

fn metric(name: &str, value: u64, unit: &str) -> Metric {
    Metric { name: name.to_owned(), value, unit: unit.to_owned() }
}

/// Bytes per second; 0 if no time was measured.
fn rate(bytes: u64, time: std::time::Duration) -> u64 {
    let nanoseconds = time.as_nanos().max(1);
    u64::try_from(u128::from(bytes) * 1_000_000_000 / nanoseconds).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use no43_guest::work::WORK;

    #[test]
    fn every_program_has_a_row_and_every_row_a_program() {
        let guest = if cfg!(windows) { "windows" } else { "linux" };
        let mut programs: Vec<_> = PROGRAMS.iter().map(|(name, _)| *name).collect();
        let rows = WORK.iter().filter(|row| row.guests.contains(&guest));
        let mut rows: Vec<_> = rows.map(|row| row.name).collect();
        programs.sort_unstable();
        rows.sort_unstable();
        assert_eq!(programs, rows);
    }

    #[test]
    fn rates() {
        assert_eq!(rate(1 << 30, std::time::Duration::from_millis(500)), 2 << 30);
        assert_eq!(rate(1, std::time::Duration::ZERO), 1_000_000_000);
    }
}
