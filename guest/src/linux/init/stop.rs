//! The end of the guest: everybody asked, then killed, disks written, machine switched off.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use anyhow::Result;
use rustix::mount::{MountFlags, UnmountFlags, mount_remount, unmount};
use rustix::process::{Pid, Signal, kill_process_group};
use rustix::system::{RebootCommand, reboot};

use super::log::Log;
use super::mounts;
use super::processes::Processes;
use crate::linux::Root;
use crate::linux::power::Ending;

/// Who is asked to end (SIGTERM, then SIGKILL), and how long is waited. Services of a lean guest need
/// milliseconds; what a step started through the agent may need a moment to write its files.
const SIGNALS: &[(Signal, Duration)] =
    &[(Signal::TERM, Duration::from_secs(5)), (Signal::KILL, Duration::from_secs(2))];

/// `kill(-1)`: all processes but PID 1 itself. A process group is addressed by the negative number.
const EVERYBODY: Pid = Pid::INIT;

/// Ends everything and the machine.
pub(super) fn stop(root: &Root, ending: Ending, processes: &Processes, log: &Log) -> Result<Infallible> {
    let (word, command) = match ending {
        Ending::PowerOff => ("power off", RebootCommand::PowerOff),
        Ending::Reboot => ("reboot", RebootCommand::Restart),
        Ending::Halt => ("halt", RebootCommand::Halt),
    };
    log.say(&format!("{word} asked for"));
    end_everybody(processes);
    rustix::fs::sync();
    for point in mounts::foreign_mount_points(root) {
        let _ = unmount(point, UnmountFlags::empty()); // still in use: synced at least
    }
    if let Err(error) = mount_remount("/", MountFlags::RDONLY, c"") {
        log.say(&format!("failed to make the root read-only: {error}"));
        rustix::fs::sync();
    }
    log.say(word);
    loop {
        if let Err(error) = reboot(command) {
            log.say(&format!("{word} failed: {error}"));
        }
        std::thread::sleep(Duration::from_secs(10));
    }
}

fn end_everybody(processes: &Processes) {
    for (signal, limit) in SIGNALS {
        let _ = kill_process_group(EVERYBODY, *signal); // fails if there is nobody
        let end = Instant::now() + *limit;
        while Instant::now() < end {
            processes.reap();
            if processes.nobody_is_left() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
