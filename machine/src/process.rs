//! QEMU's process: in a group of its own, watched by a pidfd, killed as a group and checked to be gone.
//!
//! QEMU's control socket is its standard input: a listening socket that is bound before QEMU starts needs no polling, and
//! descriptor 0 is the one that a child can be given without unsafe code and without leaking it into other children.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, kill_process_group, pidfd_open, test_kill_process_group, waitpid,
};

/// How long a killed process may take to be gone: a QEMU in an uninterruptible VFIO call has been seen to need seconds.
pub const KILL_LIMIT: Duration = Duration::from_secs(10);

/// When a process started, in clock ticks since boot (field 22 of `/proc/PID/stat`). Together with the pid it names a
/// process for ever.
///
/// # Errors
/// `NotFound` if there is no such process; `InvalidData` if the kernel's answer has another shape.
pub fn start_time(pid: u32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse_start_time(&stat)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a strange /proc/PID/stat"))
}

/// The second field is the program's name in brackets, and may hold spaces and brackets itself.
fn parse_start_time(stat: &str) -> Option<u64> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// Whether exactly this process still runs (a zombie does not).
pub fn is_running(pid: u32, started: u64) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    let state = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().next());
    parse_start_time(&stat) == Some(started) && !matches!(state, Some("Z" | "X"))
}

/// The groups that this process started and means to end itself.
static OWN: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

fn own() -> MutexGuard<'static, BTreeSet<u32>> {
    OWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether [`kill_own`] would kill this process.
pub fn is_own(pid: u32) -> bool {
    own().contains(&pid)
}

/// Kills every machine that this process started and would end itself: for a process that leaves without unwinding, whose
/// machines nobody could use afterwards. Returns their process ids; does not wait.
pub fn kill_own() -> Vec<u32> {
    let groups: Vec<u32> = std::mem::take(&mut *own()).into_iter().collect();
    let pids = groups.iter().filter_map(|pid| Pid::from_raw(i32::try_from(*pid).ok()?));
    for pid in pids {
        let _ = kill_process_group(pid, Signal::KILL);
    }
    groups
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// Its exit code, if it ended by itself and was our child.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
}

impl From<ExitStatus> for Status {
    fn from(status: ExitStatus) -> Self {
        Status { code: status.code(), signal: status.signal() }
    }
}

/// A QEMU that we started, or one that an earlier no43 started.
#[derive(Debug)]
pub(crate) struct Process {
    pid: Pid,
    start_time: u64,
    pidfd: OwnedFd,
    /// Absent for an adopted process: its parent reaps it, and its status stays unknown.
    child: Option<Mutex<Child>>,
}

impl Process {
    /// Starts `argv` in a process group of its own with `stdin` as descriptor 0, perhaps `network` as descriptor 1, no output,
    /// and errors to a file.
    pub(crate) fn spawn(
        argv: &[String],
        stdin: OwnedFd,
        network: Option<OwnedFd>,
        stderr: &Path,
    ) -> io::Result<Process> {
        let (program, arguments) = argv.split_first().expect("argv holds at least the program");
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(stdin)
            .stdout(network.map_or_else(Stdio::null, Stdio::from))
            .stderr(File::create(stderr)?)
            .process_group(0)
            .spawn()?;
        let pid = Pid::from_child(&child);
        let watched =
            start_time(child.id()).and_then(|started| Ok((started, pidfd_open(pid, PidfdFlags::empty())?)));
        match watched {
            Ok((start_time, pidfd)) => {
                own().insert(child.id());
                Ok(Process { pid, start_time, pidfd, child: Some(Mutex::new(child)) })
            }
            Err(error) => {
                child.kill()?;
                child.wait()?;
                Err(error)
            }
        }
    }

    /// Takes over a process that runs already; `None` if it does not.
    pub(crate) fn adopt(pid: u32, started: u64) -> Option<Process> {
        let known = Pid::from_raw(i32::try_from(pid).ok()?)?;
        let pidfd = pidfd_open(known, PidfdFlags::empty()).ok()?;
        // Looked at after the pidfd is open: from here on it cannot become another process.
        is_running(pid, started).then_some(Process { pid: known, start_time: started, pidfd, child: None })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid.as_raw_pid().unsigned_abs()
    }

    pub(crate) fn start_time(&self) -> u64 {
        self.start_time
    }

    /// Waits for the end. `None` if it still runs when the limit is over.
    pub(crate) fn wait(&self, limit: Duration) -> Option<Status> {
        let deadline = Instant::now() + limit;
        loop {
            let rest = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(rest).ok();
            match poll(&mut [PollFd::new(&self.pidfd.as_fd(), PollFlags::IN)], timeout.as_ref()) {
                Ok(0) => return None,
                Err(rustix::io::Errno::INTR) => {}
                // A pidfd cannot fail to be polled; if it does, the process is as good as gone.
                Ok(_) | Err(_) => return Some(self.reap()),
            }
        }
    }

    /// From now on it is not ended with this process.
    pub(crate) fn disown(&self) {
        own().remove(&self.pid());
    }

    fn reap(&self) -> Status {
        // its number may soon be another process's
        self.disown();
        let unknown = Status { code: None, signal: None };
        let Some(child) = &self.child else {
            // An adopted process may be a child of ours after all: left running and taken up again.
            let ended = waitpid(Some(self.pid), WaitOptions::NOHANG).ok().flatten();
            return ended.map_or(unknown, |(_, status)| Status {
                code: status.exit_status(),
                signal: status.terminating_signal(),
            });
        };
        let mut child = child.lock().unwrap_or_else(PoisonError::into_inner);
        child.wait().map_or(unknown, Status::from)
    }

    pub(crate) fn is_alive(&self) -> bool {
        self.wait(Duration::ZERO).is_none()
    }

    /// Kills the whole group and waits until nobody of it is left; false if somebody still is after [`KILL_LIMIT`].
    pub(crate) fn kill_group(&self) -> bool {
        let deadline = Instant::now() + KILL_LIMIT;
        // The leader's pid is the group's number as long as any member lives, or we have not reaped the leader.
        let _ = kill_process_group(self.pid, Signal::KILL);
        if self.wait(KILL_LIMIT).is_none() {
            return false;
        }
        while test_kill_process_group(self.pid).is_ok() && group_lives(self.pid()) {
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        true
    }
}

/// Whether a process group has members that are more than zombies. Those of an adopted machine wait for a parent that may
/// have other things to do.
fn group_lives(group: u32) -> bool {
    let Ok(processes) = fs::read_dir("/proc") else { return true };
    processes.flatten().any(|entry| {
        let is_process = entry.file_name().as_encoded_bytes().first().is_some_and(u8::is_ascii_digit);
        let stat = if is_process { fs::read_to_string(entry.path().join("stat")).ok() } else { None };
        let mut fields =
            stat.as_deref().and_then(|stat| stat.rsplit_once(')')).map(|(_, rest)| rest.split_whitespace());
        let (state, member) = match &mut fields {
            Some(fields) => {
                (fields.next(), fields.nth(1).and_then(|field| field.parse().ok()) == Some(group))
            }
            None => (None, false),
        };
        member && !matches!(state, Some("Z" | "X"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_does_not_shift_the_fields() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 1 1";
        assert_eq!(parse_start_time(stat), Some(4711));
        assert_eq!(parse_start_time("7 (a"), None);
    }

    #[test]
    fn we_run_and_the_past_does_not() {
        let me = std::process::id();
        let started = start_time(me).unwrap();
        assert!(is_running(me, started));
        assert!(!is_running(me, started + 1));
    }

    #[test]
    fn a_group_of_zombies_does_not_live() {
        let null = File::open("/dev/null").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let process =
            Process::spawn(&["true".to_owned()], null.into(), None, &dir.path().join("err")).unwrap();
        let poll_only = Process::adopt(process.pid(), process.start_time());
        while is_running(process.pid(), process.start_time()) {
            std::thread::yield_now();
        }
        assert!(!group_lives(process.pid()));
        assert!(process.kill_group());
        drop(poll_only);
    }

    #[test]
    fn the_whole_group_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let argv = ["sh", "-c", "sleep 1000 & sleep 1000"].map(String::from);
        let null = File::open("/dev/null").unwrap();
        let process = Process::spawn(&argv, null.into(), None, &dir.path().join("err")).unwrap();
        assert!(process.is_alive());
        assert!(process.kill_group());
        assert_eq!(process.wait(Duration::ZERO), Some(Status { code: None, signal: Some(9) }));
        assert!(!is_running(process.pid(), process.start_time()));
    }
}
