//! One QEMU: its command line, its process, QMP, the guest agent, its pictures and its snapshots.
//!
//! A [`MachineSpec`] is a pure description; [`Machine::start`] makes it run. Everything that waits has a limit and ends
//! early when the machine is gone. Nothing here knows recipes, images or checks; those are the callers' words.

pub mod accel;
pub mod agent;
mod argv;
pub mod firmware;
pub mod frames;
pub mod hotplug;
mod machine;
pub mod process;
pub mod qmp;
mod rundir;
pub mod screen;
pub mod snapshot;
pub mod spec;
mod stop;
pub mod terminal;
pub mod tpm;

pub use accel::Accel;
pub use agent::{Agent, AgentError};
pub use argv::SpecError;
pub use frames::Frames;
pub use machine::{AdoptError, Exit, Machine, RunAs, StartError, StartOptions};
pub use qmp::{Event, Qmp, QmpError};
pub use rundir::{RunDirs, RunRecord, SOCKET_PATH_MAX};
pub use screen::{ScreenError, is_placeholder};
pub use spec::MachineSpec;
pub use stop::{StopLimits, Stopped, StoppedBy};
