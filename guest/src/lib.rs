//! What the guest program and the harness share: the protocol they speak and the pattern they compare.
//!
//! The library has no heavy dependencies and runs everywhere; the executable `no43-guest` (feature `program`)
//! is built on top of it. The guest is hostile: whatever comes from it goes through [`protocol::parse_report`],
//! [`protocol::parse_painted`], [`work::parse_work`], [`setup::event::Event::find`] and their like, which bound sizes and never panic.

pub mod driver_log;
pub mod identity;
pub mod nvidia;
pub mod own_check;
pub mod pattern;
pub mod problem;
pub mod protocol;
pub mod setup;
pub mod work;
