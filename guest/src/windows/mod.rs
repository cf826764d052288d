//! The guest program on Windows.

#[expect(unsafe_code, reason = "calls of the Windows API, each wrapped in a safe function here")]
pub(crate) mod api;
mod bell;
mod command;
mod report;
pub(crate) mod service;
mod setup;

pub(crate) use api::running::Running;
pub(crate) use bell::BellPort;
pub(crate) use command::{
    Task, actor, bell_port, first_start, functions, is_busy, power_off, restart, setup_logs,
};
