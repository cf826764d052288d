//! The guest program on Windows.

#[expect(unsafe_code, reason = "calls of the Windows API, each wrapped in a safe function here")]
pub(crate) mod api;
mod command;
mod report;
pub(crate) mod service;
mod setup;

pub(crate) use command::{Task, actor, first_start, functions, power_off, restart, setup_logs};
