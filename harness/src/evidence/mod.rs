//! What was seen: one folder per run, with events, frames, logs and a marker at each end.
//!
//! ```text
//! runs/2026-11-22-3f9c/
//!   started.json     written before anything else: who, when, what
//!   events.jsonl     one line per event; every report is made from it
//!   frames/          pictures, changed ones only: 0012.345-card-0100.png
//!   logs/            serial log, guest log, QEMU's own words
//!   dumps/           what Windows wrote of a stop
//!   result.json      written last: verdict, exit code, duration
//! ```
//!
//! A run without `result.json` whose process is gone died silently; [`read::Run`] says so. Works on a 9p share: no locks, no sockets,
//! every whole file written aside and renamed.

pub mod event;
mod files;
mod frames;
pub mod read;
mod run_dir;

pub use event::{CardFacts, CheckResult, Event, Fact, Frame, Outcome, Record, Round, Section};
pub use files::{tail, write_atomic};
pub use frames::FrameStore;
#[cfg(test)]
pub(crate) use frames::encode;
pub(crate) use run_dir::random;
pub use run_dir::{Phase, Recorder, RunDir, Sink};
