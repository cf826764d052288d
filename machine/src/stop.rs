//! The orderly end of a machine: ask the guest, then QEMU, then the kernel; each step with its limit.

use std::time::Duration;

use crate::agent::ShutdownMode;
use crate::machine::{Exit, Machine};
use crate::process::Status;

/// How long each step may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StopLimits {
    /// The guest's own shutdown, asked for by its agent or else by the power button. Zero leaves the step out.
    pub guest: Duration,
    /// QEMU's own end after `quit`: it writes the disks' caches.
    pub quit: Duration,
}

impl Default for StopLimits {
    /// 90 s for the guest (systemd gives a service that long to stop), 15 s for QEMU.
    fn default() -> Self {
        StopLimits { guest: Duration::from_secs(90), quit: Duration::from_secs(15) }
    }
}

impl StopLimits {
    /// For a machine whose disks are thrown away: the guest is not asked.
    pub fn at_once() -> Self {
        StopLimits { guest: Duration::ZERO, ..StopLimits::default() }
    }
}

/// Which step ended the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoppedBy {
    /// It had ended before.
    Itself,
    /// The guest shut down, asked by its agent.
    Agent,
    /// The guest shut down, asked by the power button.
    PowerButton,
    /// QEMU was told to quit.
    Quit,
    /// The process group was killed.
    Kill,
}

/// How a machine was stopped.
#[derive(Debug, Clone, PartialEq)]
pub struct Stopped {
    /// The step that did it.
    pub by: StoppedBy,
    /// How QEMU ended.
    pub exit: Exit,
    /// Nobody of QEMU's process group is left. False only if the kernel could not kill it (a hanging device).
    pub gone: bool,
}

impl Machine {
    /// Stops the machine: by the guest (agent, then power button), by `quit`, by `SIGKILL`; the first that works. The agent
    /// is only asked if it answers within 2 s.
    pub fn stop(&self, limits: StopLimits) -> Stopped {
        let stopped = |by, exit| Stopped { by, exit, gone: self.kill() };
        if let Some(exit) = self.exit() {
            return stopped(StoppedBy::Itself, exit);
        }
        if let Some((by, exit)) = self.stop_by_guest(limits.guest) {
            return stopped(by, exit);
        }
        if self.quit().is_ok()
            && let Some(exit) = self.wait_exit(limits.quit)
        {
            return stopped(StoppedBy::Quit, exit);
        }
        let gone = self.kill();
        let unknown =
            Exit { status: Status { code: None, signal: None }, reason: None, stderr: String::new() };
        Stopped { by: StoppedBy::Kill, exit: self.exit().unwrap_or(unknown), gone }
    }

    fn stop_by_guest(&self, limit: Duration) -> Option<(StoppedBy, Exit)> {
        if limit.is_zero() {
            return None;
        }
        let agent = self.agent();
        if agent.ping(Duration::from_secs(2).min(limit)).is_ok()
            && agent.shutdown(ShutdownMode::PowerDown).is_ok()
        {
            return self.wait_exit(limit).map(|exit| (StoppedBy::Agent, exit));
        }
        let exit = self.powerdown(limit).ok()??;
        Some((StoppedBy::PowerButton, exit))
    }
}
