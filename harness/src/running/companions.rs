//! Programs that run beside a kept machine: passt is its network, virtiofsd serves its shares.
//!
//! They end by themselves when QEMU closes its end, so they may outlive the supervisor as QEMU does. Until QEMU has them they
//! are ours: [`Companions`] kills what it still holds, and the run's note names them for whoever buries a dead run.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use no43_builder::plan::{ForwardPlan, SharePlan};
use no43_host::{ProcessRef, Roots};
use rustix::process::{Pid, Signal, kill_process};

use crate::words;

/// Both are ready in milliseconds.
const READY_LIMIT: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(3);
/// Where distributions put virtiofsd, which is not meant for the `PATH`.
const VIRTIOFSD: &[&str] = &[
    "/usr/libexec/virtiofsd",
    "/usr/lib/virtiofsd",
    "/usr/lib/qemu/virtiofsd",
    "/usr/local/libexec/virtiofsd",
];
/// What virtiofsd says when it can be connected to.
const WAITING: &str = "Waiting for vhost-user socket connection";

/// Why a program is not used; something else does its work then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NotUsed {
    /// This host has none.
    NotInstalled,
    /// In its own words.
    Failed(String),
}

impl From<String> for NotUsed {
    fn from(why: String) -> Self {
        NotUsed::Failed(why)
    }
}

/// The programs of one machine, until QEMU has them.
#[derive(Debug, Default)]
pub(super) struct Companions {
    children: Vec<Child>,
    processes: Vec<ProcessRef>,
}

impl Companions {
    /// All of them, for the run's note.
    pub(super) fn processes(&self) -> &[ProcessRef] {
        &self.processes
    }

    /// QEMU has them: they end with it.
    pub(super) fn belong_to_qemu(mut self) {
        self.children.clear();
    }

    fn spawn(&mut self, command: &mut Command) -> io::Result<&mut Child> {
        let child = command.stdout(Stdio::null()).process_group(0).spawn()?;
        self.processes.extend(ProcessRef::of(child.id(), &Roots::real()));
        self.children.push(child);
        Ok(self.children.last_mut().expect("just pushed"))
    }

    /// The guest's network by passt: the host's own addresses, and no copying through QEMU. Returns QEMU's end.
    ///
    /// # Errors
    /// This host has no passt that works.
    pub(super) fn passt(&mut self, forwards: &[ForwardPlan], log: &Path) -> Result<OwnedFd, NotUsed> {
        let program = in_path("passt").ok_or(NotUsed::NotInstalled)?;
        let failed = |what: &str, error: io::Error| format!("failed to {what}: {error}");
        let (ours, theirs) = UnixStream::pair().map_err(|error| failed("make a pair of sockets", error))?;
        // it gives root up before it writes this, so the folder is everybody's; nobody else reads what is in it
        let ready = tempfile::tempdir().map_err(|error| failed("make a folder", error))?;
        fs::set_permissions(ready.path(), fs::Permissions::from_mode(0o777))
            .map_err(|error| failed("open a folder", error))?;
        let pid_file = ready.path().join("pid");
        let mut command = Command::new(program);
        command.args(["--foreground", "--quiet", "--fd", "0", "-u", "none", "--pid"]).arg(&pid_file);
        command.args(forward_arguments(forwards));
        let errors = File::create(log).map_err(|error| failed("make a log", error))?;
        let child = self
            .spawn(command.stdin(OwnedFd::from(theirs)).stderr(errors))
            .map_err(|error| failed("start passt", error))?;
        command.stdin(Stdio::null());
        wait_ready(child, log, || fs::read(&pid_file).is_ok_and(|text| text.ends_with(b"\n")))?;
        Ok(ours.into())
    }

    /// Serves a share by virtiofsd on `socket`.
    ///
    /// # Errors
    /// This host has none that works.
    pub(super) fn virtiofsd(&mut self, share: &SharePlan, socket: &Path, log: &Path) -> Result<(), NotUsed> {
        let program = virtiofsd().ok_or(NotUsed::NotInstalled)?;
        let failed = |what: &str, error: io::Error| format!("failed to {what}: {error}");
        let listener = UnixListener::bind(socket).map_err(|error| failed("listen for QEMU", error))?;
        let mut command = Command::new(program);
        command.args(["--fd=0", "--shared-dir"]).arg(&share.path);
        if share.read_only {
            command.arg("--readonly");
        }
        let errors = File::create(log).map_err(|error| failed("make a log", error))?;
        let child = self
            .spawn(command.stdin(OwnedFd::from(listener)).stderr(errors))
            .map_err(|error| failed("start virtiofsd", error))?;
        command.stdin(Stdio::null());
        wait_ready(child, log, || fs::read_to_string(log).is_ok_and(|said| said.contains(WAITING)))?;
        Ok(())
    }
}

impl Drop for Companions {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Kills companions of a dead run, if they are still the same processes.
pub(super) fn bury(processes: &[ProcessRef]) {
    let roots = Roots::real();
    for process in processes.iter().filter(|process| process.is_alive(&roots)) {
        if let Some(pid) = i32::try_from(process.pid).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

/// Several forwards are one argument; without any nothing is listened on.
fn forward_arguments(forwards: &[ForwardPlan]) -> [String; 2] {
    let ports: Vec<String> = forwards.iter().map(|one| format!("{}:{}", one.host, one.guest)).collect();
    let text = if ports.is_empty() { "none".to_owned() } else { format!("127.0.0.1/{}", ports.join(",")) };
    ["-t".to_owned(), text]
}

/// Waits until the program is ready; `Err` is what it said when it ended instead.
fn wait_ready(child: &mut Child, log: &Path, ready: impl Fn() -> bool) -> Result<(), String> {
    let deadline = Instant::now() + READY_LIMIT;
    loop {
        if ready() {
            return Ok(());
        }
        let ended = child.try_wait().map_err(|error| error.to_string())?;
        if ended.is_none() && Instant::now() < deadline {
            std::thread::sleep(LOOK);
            continue;
        }
        let said = fs::read_to_string(log).unwrap_or_default();
        // lines about a log that is not there are no reason
        let lines = said.lines().filter(|line| !line.trim().is_empty() && !line.contains("to syslog"));
        let last: Vec<&str> = lines.collect();
        let last = words::clean_to(&last[last.len().saturating_sub(2)..].join("; "), 300);
        return Err(match ended {
            Some(status) if last.is_empty() => format!("it ended with {status}"),
            Some(_) => last,
            None => format!("it was not ready within {} s: {last}", READY_LIMIT.as_secs()),
        });
    }
}

fn in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// The virtiofsd written in Rust. QEMU's older one of the same name takes other arguments.
fn virtiofsd() -> Option<PathBuf> {
    let all = in_path("virtiofsd").into_iter().chain(VIRTIOFSD.iter().map(PathBuf::from));
    all.filter(|file| file.is_file()).find(|file| {
        let help = Command::new(file).arg("--help").stdin(Stdio::null()).output();
        help.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("--shared-dir"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forwards_become_one_argument() {
        let one = |host, guest| ForwardPlan { host, guest };
        assert_eq!(forward_arguments(&[]), ["-t", "none"]);
        assert_eq!(
            forward_arguments(&[one(2222, 22), one(3389, 3389)]),
            ["-t", "127.0.0.1/2222:22,3389:3389"]
        );
    }

    #[test]
    fn what_a_program_says_at_its_end_is_the_reason() {
        let dir = tempfile::tempdir().expect("a folder");
        let log = dir.path().join("log");
        let said = |script: &str| {
            let mut all = Companions::default();
            let mut command = Command::new("sh");
            command.args(["-c", script]).stderr(File::create(&log).expect("a log"));
            let child = all.spawn(&mut command).expect("sh");
            wait_ready(child, &log, || fs::read(&log).is_ok_and(|text| text.starts_with(b"ready")))
        };
        let script =
            "echo 'Failed to send 3 bytes to syslog' >&2; echo 'External interface not usable' >&2; exit 1";
        assert_eq!(said(script), Err("External interface not usable".into()));
        assert_eq!(said("exit 3"), Err("it ended with exit status: 3".into()));
        assert_eq!(said("echo ready >&2; sleep 1000"), Ok(()));
    }

    #[test]
    fn what_qemu_does_not_have_is_killed() {
        let mut all = Companions::default();
        let mut command = Command::new("sleep");
        all.spawn(command.arg("1000")).expect("sleep");
        let process = all.processes()[0];
        assert!(process.is_alive(&Roots::real()));
        drop(all);
        assert!(!process.is_alive(&Roots::real()));

        let mut all = Companions::default();
        all.spawn(Command::new("sleep").arg("1000")).expect("sleep");
        let processes = all.processes().to_vec();
        all.belong_to_qemu();
        assert!(processes[0].is_alive(&Roots::real()));
        bury(&processes);
        let deadline = Instant::now() + Duration::from_secs(5);
        while processes[0].is_alive(&Roots::real()) {
            assert!(Instant::now() < deadline, "it is still there");
            std::thread::sleep(LOOK);
        }
    }

    /// The real program, where it is installed: it says why it cannot, or serves.
    #[test]
    fn virtiofsd_serves_until_qemu_goes() {
        if virtiofsd().is_none() {
            eprintln!("skipped: virtiofsd is not installed (Debian has it from 13 on)");
            return;
        }
        let dir = tempfile::tempdir().expect("a folder");
        let (socket, log) = (dir.path().join("s"), dir.path().join("log"));
        let share = SharePlan { name: "x".into(), path: dir.path().into(), read_only: true, to: None };
        let mut all = Companions::default();
        all.virtiofsd(&share, &socket, &log).expect("it serves");
        drop(UnixStream::connect(&socket).expect("it listens"));
        let status = all.children[0].wait().expect("it ends");
        assert!(status.success(), "{status}");
    }
}
