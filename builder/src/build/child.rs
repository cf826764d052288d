//! A child process that reports line by line, can be cancelled, and does not outlive us.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use super::BuildError;

/// Lines of a failed program that an error shows.
const TAIL: usize = 25;
/// How long a cancelled child may clean up: mmdebstrap removes its tree, about 2 s for a large one.
const CLEAN_UP_LIMIT: Duration = Duration::from_secs(15);
/// How often a waiting builder looks whether it was cancelled.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// A longer line is cut: what runs in the tree is not trusted to print reasonable things.
const LONGEST_LINE: u64 = 64 << 10;

/// Where a program is, also in the folders that an ordinary user's `PATH` leaves out.
pub(crate) fn tool(name: &'static str, package: &'static str) -> Result<PathBuf, BuildError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin", "/usr/bin"].map(PathBuf::from));
    folders
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
        .ok_or(BuildError::MissingTool { name, package })
}

/// A command that the kernel kills when we die, in a process group of its own: a Ctrl-C on the terminal reaches us alone,
/// and we decide what becomes of the child.
pub(crate) fn command(program: &Path) -> Command {
    dying_with_us("KILL", program)
}

/// As [`command`], for a program that starts others and cleans up when all of them are asked to end. mmdebstrap itself
/// ignores SIGTERM and counts on a terminal that signals the whole group, so a shell stands in for the terminal.
pub(crate) fn supervised(program: &Path) -> Command {
    // An asynchronous command would get /dev/null as its input, so ours goes by descriptor 3.
    const SUPERVISOR: &str = r#"
        exec 3<&0
        "$@" <&3 3<&- &
        child=$!
        stop() { trap '' TERM; kill -TERM 0; (sleep "$CLEAN_UP_LIMIT"; kill -KILL 0) & wait "$child"; kill -KILL 0; }
        trap stop TERM
        wait "$child"
    "#;
    let mut command = dying_with_us("TERM", Path::new("/bin/sh"));
    command
        .args(["-c", SUPERVISOR, "sh"])
        .arg(program)
        .env("CLEAN_UP_LIMIT", CLEAN_UP_LIMIT.as_secs().to_string());
    command
}

fn dying_with_us(signal: &str, program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args([OsStr::new("--pdeathsig"), OsStr::new(signal), OsStr::new("--"), program.as_os_str()]);
    command.process_group(0).stdin(Stdio::null());
    command
}

/// Runs `command` to its end. Every line that it prints goes to `log` and to `line`; `line` may stop it with an error.
pub(crate) fn run(
    name: &'static str,
    mut command: Command,
    log: &mut File,
    cancelled: &dyn Fn() -> bool,
    line: &mut dyn FnMut(&str) -> Result<(), BuildError>,
) -> Result<(), BuildError> {
    let (reader, writer) = io::pipe().map_err(BuildError::spawn(name))?;
    command.stdout(writer.try_clone().map_err(BuildError::spawn(name))?).stderr(writer);
    let mut child = command.spawn().map_err(BuildError::spawn(name))?;
    drop(command); // its copies of the pipe's end would keep the reader waiting
    let (sender, lines) = mpsc::sync_channel(256);
    std::thread::spawn(move || read_lines(reader, &sender));

    let mut tail = VecDeque::with_capacity(TAIL);
    loop {
        match lines.recv_timeout(LOOK_AGAIN) {
            Ok(text) => {
                // A log that cannot be written must not end a build that could still succeed.
                let _ = writeln!(log, "{text}");
                if tail.len() == TAIL {
                    tail.pop_front();
                }
                tail.push_back(text);
                if let Err(error) = line(tail.back().expect("a line was just added")) {
                    end(&mut child);
                    return Err(error);
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        if cancelled() {
            end(&mut child);
            return Err(BuildError::Cancelled);
        }
    }
    let status = child.wait().map_err(BuildError::spawn(name))?;
    if status.success() { Ok(()) } else { Err(BuildError::failed(name, status, tail)) }
}

/// Runs a command whose output is small and only of interest when it fails, or afterwards.
pub(crate) fn output(name: &'static str, mut command: Command) -> Result<String, BuildError> {
    let output =
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).output().map_err(BuildError::spawn(name))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let from = lines.len().saturating_sub(TAIL);
    Err(BuildError::failed(name, output.status, lines[from..].to_vec()))
}

fn read_lines(reader: impl Read, sender: &mpsc::SyncSender<String>) {
    let mut reader = BufReader::new(reader);
    let mut bytes = Vec::new();
    while let Ok(1..) = (&mut reader).take(LONGEST_LINE).read_until(b'\n', &mut bytes) {
        let line = String::from_utf8_lossy(&bytes).trim_end_matches(['\n', '\r']).to_owned();
        bytes.clear();
        if sender.send(line).is_err() {
            return;
        }
    }
}

/// Asks the leader of the group to stop, waits for the clean-up, and then insists.
fn end(child: &mut Child) {
    let Some(leader) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) else { return };
    let _ = kill_process(leader, Signal::TERM);
    let insist = Instant::now() + CLEAN_UP_LIMIT;
    while matches!(child.try_wait(), Ok(None)) && Instant::now() < insist {
        std::thread::sleep(LOOK_AGAIN);
    }
    let _ = kill_process_group(leader, Signal::KILL);
    let _ = child.wait();
}

/// How a program ended, in words.
pub(crate) fn ending(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => "ended strangely".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    fn shell(script: &str) -> Command {
        let mut sh = supervised(Path::new("/bin/sh"));
        sh.args(["-c", script]);
        sh
    }

    #[test]
    fn lines_arrive_and_a_failure_shows_the_last_ones() {
        let mut seen = Vec::new();
        let mut log = tempfile::tempfile().unwrap();
        let error =
            run("sh", shell("cat; echo one; echo two >&2; exit 3"), &mut log, &|| false, &mut |line| {
                seen.push(line.to_owned());
                Ok(())
            });
        assert_eq!(seen, ["one", "two"]);
        assert_eq!(error.unwrap_err().to_string(), "sh failed (exit code 3):\n  one\n  two");
    }

    #[test]
    fn cancelling_ends_the_whole_group() {
        let cancel = AtomicBool::new(false);
        let mut log = tempfile::tempfile().unwrap();
        let mut pid = 0;
        let started = Instant::now();
        let error = run(
            "sh",
            shell("sleep 100 & echo $!; wait"),
            &mut log,
            &|| cancel.load(Ordering::Relaxed),
            &mut |line| {
                pid = line.parse().unwrap();
                cancel.store(true, Ordering::Relaxed);
                Ok(())
            },
        );
        assert!(matches!(error, Err(BuildError::Cancelled)));
        assert!(started.elapsed() < Duration::from_secs(10));
        std::thread::sleep(Duration::from_millis(50));
        let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        assert!(state.is_empty() || state.contains(") Z "), "still there: {state}");
    }
}
