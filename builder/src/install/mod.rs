//! Unattended installation of Windows from its original medium: phases with named deadlines, driven by events.
//!
//! [`install`] starts one machine with target disk, medium and set-up disk, and follows it from the firmware to the
//! shutdown. What happens is told by QEMU's events, by the firmware's and the guest program's lines on COM1, and by the
//! guest agent; pictures and disk counters are looked at every few seconds, because a guest that is stuck says nothing.
//! A failure names phase, cause, what was seen, and a fix ([`InstallError::Failed`]).

mod cause;
pub(crate) mod com1;
mod drive;
mod look;
mod phase;
pub(crate) mod watch;

pub use cause::Cause;
pub(crate) use drive::windows_cpu;
pub use drive::{Failed, Identity, InstallError, Installed, Job, install};
pub use look::{Installation, running};
pub use phase::{Limits, Phase, PhaseTime};
pub use watch::MEDIUM_SERIAL;
