//! The lab: an emulated passthrough host, in which a whole run of no43 happens for real without any of the hardware.
//!
//! A [`Profile`] says which host to pretend. [`Lab::up`] brings it up (restored from a snapshot where there is one), and
//! [`run()`] carries a static no43 and its recipes in, runs it there as an ordinary user, and brings its words, its evidence
//! and its exit code out. While it runs, the inner no43 can ask the lab for what only the outside can see or do: the picture
//! on a card's own output, a card that is cut off, a bus error.
//!
//! Nothing that comes from the lab host is trusted; a lab that breaks is a *lab fault* and no verdict about any guest.

mod carry;
mod devices;
mod error;
mod image;
mod inside;
mod outer;
mod port;
pub mod profile;
mod run;
mod running;
mod shell;
mod snapshot;
mod stream;

pub use error::LabError;
pub use image::LabHost;
pub use outer::{Lab, LabOptions, Started, private_name};
pub use profile::Profile;
pub use run::{Ended, RunOptions, run};
pub use running::{LabRecord, Running};
pub use shell::shell;
