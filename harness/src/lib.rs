//! Checks, evidence, verdicts and reports: what turns a running machine into a proof.
//!
//! The path of a run is `Plan` + `Image` → [`verify::verify`] → [`evidence::RunDir`] → [`report`]. Reports are made from the run's
//! `events.jsonl` and from nothing else, so a run that died, or one of last week, can be reported again.
//!
//! The guest is hostile: every string and picture from it passes through [`words::clean`] or a size limit before it is kept.

pub mod checks;
pub mod diagnosis;
pub mod driver_lock;
pub mod evidence;
pub mod exit_codes;
pub mod guest_program;
pub mod instance;
pub mod job;
pub mod lender;
pub mod report;
pub mod running;
pub mod stop;
pub mod verdict;
pub mod verify;
pub mod words;

pub use stop::Stop;
pub use verdict::{FailureKind, Verdict};
pub use verify::{VerifyOptions, verify};
