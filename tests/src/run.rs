//! One run of a program: with a limit, its output kept, its process group ended in order.

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal};
use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Output beyond this is dropped: a program that loops must not fill the memory.
const OUTPUT_LIMIT: usize = 4 << 20;

/// How long a program may take to stop in order after SIGTERM (a lab gives cards back and stops two machines).
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// A program to run.
#[derive(Debug)]
#[must_use = "nothing runs before `done`, `ok` or `start`"]
pub struct Run {
    program: PathBuf,
    command: Command,
    limit: Duration,
}

/// What was seen of a program that ended.
#[derive(Debug, Clone)]
pub struct Seen {
    /// The command as a person would type it.
    pub command: String,
    /// Exit code; `None` after a signal.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// Wall time.
    pub time: Duration,
}

impl Run {
    /// A program with a limit of 60 s and no standard input.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        let program = program.into();
        let mut command = Command::new(&program);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        Self { program, command, limit: Duration::from_secs(60) }
    }

    /// Adds arguments.
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.command.args(args);
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Runs in this folder.
    pub fn dir(mut self, dir: &Path) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// How long it may take, in seconds.
    pub fn limit(mut self, seconds: u64) -> Self {
        self.limit = Duration::from_secs(seconds);
        self
    }

    /// In a mount namespace of its own that a shell script has prepared, with this program's environment.
    pub fn in_namespace(self, prepare: &str) -> Self {
        let mut outer = vec!["--mount"];
        if !rustix::process::geteuid().is_root() {
            outer.extend(["--map-root-user", "--map-auto"]);
        }
        let script = format!("set -e\n{prepare}\nexec \"$@\"");
        outer.extend(["sh", "-c", script.as_str(), "sh"]);
        self.below("unshare", outer)
    }

    /// The same program and environment below another one, for example `unshare … PROGRAM ARGS`.
    pub fn below<A: AsRef<OsStr>>(
        mut self,
        outer: impl Into<PathBuf>,
        args: impl IntoIterator<Item = A>,
    ) -> Self {
        let mut below = Self::new(outer).args(args);
        below.command.arg(&self.program).args(self.command.get_args());
        for (name, value) in self.command.get_envs() {
            match value {
                Some(value) => below.command.env(name, value),
                None => below.command.env_remove(name),
            };
        }
        if let Some(dir) = self.command.get_current_dir() {
            below.command.current_dir(dir);
        }
        below.limit = self.limit;
        std::mem::swap(&mut self, &mut below);
        self
    }

    /// Starts it and returns at once.
    pub fn start(mut self) -> Result<Running> {
        let words: Vec<OsString> = self.command.get_args().map(OsStr::to_owned).collect();
        let name = self.program.file_name().unwrap_or(self.program.as_os_str());
        let shown: Vec<_> = std::iter::once(name.to_string_lossy())
            .chain(words.iter().map(|w| w.to_string_lossy()))
            .collect();
        let shown = shown.join(" ");
        let mut child =
            self.command.spawn().with_context(|| format!("failed to start {}", self.program.display()))?;
        let out = Kept::of(child.stdout.take());
        let err = Kept::of(child.stderr.take());
        Ok(Running { shown, child, started: Instant::now(), limit: self.limit, out, err })
    }

    /// Runs it to its end, whatever the exit code. A run beyond its limit is stopped and an error.
    pub fn done(self) -> Result<Seen> {
        self.start()?.done()
    }

    /// Runs it to its end; any exit code but 0 is an error that shows the output.
    pub fn ok(self) -> Result<Seen> {
        self.done()?.must_exit(0)
    }
}

/// A program that was started. Dropped while it runs, its process group is killed.
#[derive(Debug)]
pub struct Running {
    shown: String,
    child: Child,
    started: Instant,
    limit: Duration,
    out: Kept,
    err: Kept,
}

impl Running {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has said on standard error so far.
    pub fn stderr(&self) -> String {
        self.err.text()
    }

    /// Sends a signal to this one process (not to its children).
    pub fn signal(&self, signal: Signal) -> Result<()> {
        rustix::process::kill_process(pid(&self.child)?, signal)
            .with_context(|| format!("failed to signal {}", self.shown))
    }

    /// Waits until `what` holds; an error if the program ends or `seconds` pass before.
    pub fn wait_until(
        &mut self,
        what: &str,
        seconds: u64,
        mut holds: impl FnMut(&Self) -> bool,
    ) -> Result<()> {
        let end = Instant::now() + Duration::from_secs(seconds);
        loop {
            if holds(self) {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                if holds(self) {
                    return Ok(());
                }
                bail!("{} ended ({status}) before {what}\n{}", self.shown, self.tail());
            }
            if Instant::now() > end {
                bail!("{} for {seconds} s without {what}\n{}", self.shown, self.tail());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits for its end within the limit.
    pub fn done(mut self) -> Result<Seen> {
        let end = self.started + self.limit;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(self.seen(status));
            }
            if Instant::now() > end {
                self.stop();
                bail!("{} did not end within {} s\n{}", self.shown, self.limit.as_secs(), self.tail());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn seen(&self, status: ExitStatus) -> Seen {
        let time = self.started.elapsed();
        self.out.finish();
        self.err.finish();
        Seen {
            command: self.shown.clone(),
            code: status.code(),
            signal: status.signal(),
            stdout: self.out.text(),
            stderr: self.err.text(),
            time,
        }
    }

    /// In order first, so that cards come back and inner machines stop; by force after [`STOP_LIMIT`].
    fn stop(&mut self) {
        let Ok(group) = pid(&self.child) else { return };
        let _ = rustix::process::kill_process_group(group, Signal::TERM);
        let end = Instant::now() + STOP_LIMIT;
        while Instant::now() < end && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(50));
        }
        let _ = rustix::process::kill_process_group(group, Signal::KILL);
        let _ = self.child.wait();
    }

    fn tail(&self) -> String {
        format!("{}{}", last_lines(&self.out.text()), last_lines(&self.err.text()))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.stop();
        }
    }
}

fn pid(child: &Child) -> Result<Pid> {
    let raw = i32::try_from(child.id()).context("a process id fits")?;
    Pid::from_raw(raw).context("a process id is not 0")
}

/// Output that a thread reads, so that a full pipe never stops the program.
#[derive(Debug)]
struct Kept {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: Mutex<Option<std::thread::JoinHandle<()>>>,
}

impl Kept {
    fn of(stream: Option<impl Read + Send + 'static>) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let into = Arc::clone(&bytes);
        let reader = stream.map(|mut stream| {
            std::thread::spawn(move || {
                let mut chunk = [0; 16 << 10];
                while let Ok(n @ 1..) = stream.read(&mut chunk) {
                    let mut kept = into.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    let room = OUTPUT_LIMIT.saturating_sub(kept.len()).min(n);
                    kept.extend_from_slice(&chunk[..room]);
                }
            })
        });
        Self { bytes, reader: Mutex::new(reader) }
    }

    /// Waits until the pipe is closed, but not for a daemon that wrongly inherited it.
    fn finish(&self) {
        let end = Instant::now() + Duration::from_secs(2);
        let mut reader = self.reader.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        while reader.as_ref().is_some_and(|r| !r.is_finished()) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
        drop(reader.take_if(|r| r.is_finished()).map(std::thread::JoinHandle::join));
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
            .into_owned()
    }
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(40)..].iter().map(|l| format!("    {l}\n")).collect()
}

impl Seen {
    /// The output of both streams, for error messages and searches.
    pub fn all(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }

    /// Fails unless it ended with this exit code.
    pub fn must_exit(self, code: impl Into<i32>) -> Result<Self> {
        let code = code.into();
        if self.code == Some(code) {
            return Ok(self);
        }
        let ended = match (self.code, self.signal) {
            (Some(code), _) => format!("exit code {code}"),
            (None, Some(signal)) => format!("signal {signal}"),
            (None, None) => "an unknown end".to_owned(),
        };
        bail!(
            "{}: {ended} instead of exit code {code}\n{}{}",
            self.command,
            last_lines(&self.stdout),
            last_lines(&self.stderr)
        )
    }

    /// Fails unless every one of these texts is in the output (of either stream).
    pub fn must_say(self, texts: &[&str]) -> Result<Self> {
        let all = self.all();
        match texts.iter().find(|t| !all.contains(**t)) {
            None => Ok(self),
            Some(missing) => bail!("{} does not say {missing:?}:\n{}", self.command, last_lines(&all)),
        }
    }

    /// Fails if any of these texts is in the output.
    pub fn must_not_say(self, texts: &[&str]) -> Result<Self> {
        let all = self.all();
        match texts.iter().find(|t| all.contains(**t)) {
            None => Ok(self),
            Some(found) => bail!("{} says {found:?}:\n{}", self.command, last_lines(&all)),
        }
    }

    /// Standard output as JSON.
    pub fn json(&self) -> Result<serde_json::Value> {
        let text = self.stdout.trim();
        serde_json::from_str(text)
            .with_context(|| format!("{}: standard output is no JSON:\n{}", self.command, last_lines(text)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Run {
        Run::new("/bin/sh").args(["-c", script])
    }

    #[test]
    fn output_and_exit_code_are_kept() {
        let seen = sh("echo out; echo err >&2; exit 3").done().expect("it runs");
        assert_eq!((seen.code, seen.stdout.as_str(), seen.stderr.as_str()), (Some(3), "out\n", "err\n"));
        let error = seen.must_exit(0).expect_err("not 0").to_string();
        assert!(error.contains("exit code 3 instead of exit code 0") && error.contains("err"), "{error}");
    }

    #[test]
    fn a_run_beyond_its_limit_is_stopped_with_its_children_and_shows_what_it_said() {
        let start = Instant::now();
        let error = sh("echo before; sleep 60 & wait").limit(1).done().expect_err("too long").to_string();
        assert!(error.contains("did not end within 1 s") && error.contains("before"), "{error}");
        assert!(start.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn a_wait_ends_early_when_the_program_is_gone() {
        let mut running = sh("exit 5").start().expect("it starts");
        let error = running.wait_until("a light", 30, |_| false).expect_err("it ended").to_string();
        assert!(error.contains("before a light"), "{error}");
    }

    #[test]
    fn a_program_can_run_below_another_with_its_environment() {
        let run = sh("echo $COLOUR $1").env("COLOUR", "red").below("/usr/bin/env", ["SIZE=1"]);
        assert_eq!(run.ok().expect("it runs").stdout, "red\n");
    }

    #[test]
    fn what_must_be_said_is_named_when_it_is_not() {
        let seen = sh("echo one two").ok().expect("it runs").must_say(&["one", "two"]).expect("both");
        assert!(seen.clone().must_say(&["three"]).expect_err("no three").to_string().contains("\"three\""));
        assert!(seen.must_not_say(&["two"]).is_err());
    }
}
