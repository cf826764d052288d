//! Children of PID 1: its own and the orphans of everybody else.
//!
//! All are buried in one place, by the main thread. A child is started and registered under the same lock that
//! burying takes, so that no exit code is lost, and `std`'s own wait after a failed start cannot be robbed.

use std::collections::HashMap;
use std::io;
use std::process::Command;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, WaitOptions, WaitStatus, kill_process, wait, waitid,
};

/// The search path of everything that is started here.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Who waits for which child.
#[derive(Default)]
pub(super) struct Processes(Mutex<HashMap<u32, Sender<WaitStatus>>>);

impl Processes {
    /// Starts a child that nobody waits for; its end shows up in [`Processes::reap`].
    pub(super) fn spawn(&self, command: &mut Command) -> io::Result<u32> {
        let _waiting = self.lock();
        Ok(with_environment(command).spawn()?.id())
    }

    /// Starts a child and waits for its end, from any thread but the main one. After `limit` it is killed.
    pub(super) fn run(&self, command: &mut Command, limit: Duration) -> io::Result<WaitStatus> {
        let (sender, end) = channel();
        let pid = {
            let mut waiting = self.lock();
            let pid = with_environment(command).spawn()?.id();
            waiting.insert(pid, sender);
            pid
        };
        end.recv_timeout(limit).map_err(|_| {
            // Removed under the lock: as long as it is registered it was not buried, so the pid is still its own.
            if self.lock().remove(&pid).is_some()
                && let Some(pid) = Pid::from_raw(pid.cast_signed())
            {
                let _ = kill_process(pid, Signal::KILL);
            }
            io::Error::new(io::ErrorKind::TimedOut, format!("did not end within {} s", limit.as_secs()))
        })
    }

    /// Buries all children that have died, tells those who wait, and gives the list.
    pub(super) fn reap(&self) -> Vec<(u32, WaitStatus)> {
        let mut waiting = self.lock();
        let mut dead = Vec::new();
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            let pid = pid.as_raw_nonzero().get().cast_unsigned();
            if let Some(sender) = waiting.remove(&pid) {
                let _ = sender.send(status); // it may have given up waiting
            }
            dead.push((pid, status));
        }
        dead
    }

    /// Whether there is no child, alive or dead. Orphans become children of PID 1, so for it this means that no
    /// other process is left. (A signal to everybody would reach the kernel's threads and always find somebody.)
    pub(super) fn nobody_is_left(&self) -> bool {
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        waitid(WaitId::All, look).is_err_and(|error| error == Errno::CHILD)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u32, Sender<WaitStatus>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn with_environment(command: &mut Command) -> &mut Command {
    command.env("PATH", PATH).env("HOME", "/root").env("LANG", "C.UTF-8").current_dir("/")
}

/// How a child ended, in words.
pub(super) fn in_words(status: WaitStatus) -> String {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "unknown reason".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // One test for everything: `reap` buries any child of the test process, also those of other tests, so it is
    // run in a process of its own.
    #[test]
    fn children_are_waited_for_and_buried() {
        const MARK: &str = "NO43_TEST_PROCESSES";
        if std::env::var_os(MARK).is_none() {
            let own = std::env::current_exe().unwrap();
            let name = "linux::init::processes::tests::children_are_waited_for_and_buried";
            let output =
                Command::new(own).args(["--exact", name, "--nocapture"]).env(MARK, "1").output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            return;
        }
        let processes = std::sync::Arc::new(Processes::default());
        let reaper = processes.clone();
        std::thread::spawn(move || {
            loop {
                reaper.reap();
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let limit = Duration::from_secs(20);
        for _ in 0..20 {
            let status = processes.run(Command::new("sh").args(["-c", "exit 3"]), limit).unwrap();
            assert_eq!(in_words(status), "exit code 3");
            assert!(processes.run(&mut Command::new("/does/not/exist"), limit).is_err());
        }
        let status = processes.run(Command::new("sh").args(["-c", "kill -9 $$"]), limit).unwrap();
        assert_eq!(in_words(status), "signal 9");
        let late = processes.run(Command::new("sleep").arg("600"), Duration::from_millis(50)).unwrap_err();
        assert_eq!(late.kind(), io::ErrorKind::TimedOut);
        processes.spawn(&mut Command::new("true")).unwrap();
    }
}
