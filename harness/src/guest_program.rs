//! Our program in guests of our own: where it is, and how it tells the ends of other programs.

use no43_guest::setup::WINDOWS_PROGRAM;
use no43_machine::{Agent, RunDirs};

/// What the agent starts: in Linux guests it looks it up in its `PATH`.
pub(crate) const fn guest_program(windows: bool) -> &'static str {
    if windows { WINDOWS_PROGRAM } else { "no43-guest" }
}

/// From now on the end of a program that this agent runs is known at once, if the guest has our program and the machine,
/// whose folder this is, was started with a bell.
pub fn hang_bell(agent: &Agent, dirs: &RunDirs) {
    if let Ok(windows) = agent.is_windows() {
        agent.hang_bell(dirs.bell_socket(), guest_program(windows));
    }
}
