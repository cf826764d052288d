//! Programs in the guest: started, waited for, their output bounded and its loss made visible.

use std::fmt;
use std::time::{Duration, Instant};

use qapi::qga::{GuestExecStatus, guest_exec_status};
use serde_json::{Value, json};

use super::{Agent, AgentError, COMMAND_LIMIT};

/// The agent keeps this many bytes of each stream and silently drops the rest. Agent 10.0 says "not truncated" when it did,
/// so the length decides.
pub(super) const STREAM_MAX: usize = 16 << 20;

/// A process in the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuestPid(
    /// The number that the agent gave it.
    pub i64,
);

impl fmt::Display for GuestPid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a program gets and how long it may take.
#[derive(Debug, Clone)]
pub struct ExecLimits {
    /// How long the program may run.
    pub deadline: Duration,
    /// Its standard input; empty if absent.
    pub input: Option<Vec<u8>>,
    /// `NAME=VALUE`; empty means the agent's own environment, anything else *replaces* it.
    pub env: Vec<String>,
}

impl ExecLimits {
    /// Only a limit.
    pub fn within(deadline: Duration) -> Self {
        ExecLimits { deadline, input: None, env: Vec::new() }
    }
}

/// How a program in the guest ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProgramEnd {
    /// Its exit code.
    pub code: Option<i64>,
    /// The signal or NTSTATUS that ended it.
    pub signal: Option<i64>,
}

/// How a program in the guest ended, and what it said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOutput {
    /// Its exit code; `None` if a signal (in Windows an NTSTATUS of 0xC0000000 and more) ended it.
    pub code: Option<i64>,
    /// The signal or NTSTATUS that ended it. PowerShell's exit code -1 arrives here as 0xFFFFFFFF.
    pub signal: Option<i64>,
    /// Standard output, at most 16 MiB.
    pub stdout: Vec<u8>,
    /// Standard error, at most 16 MiB.
    pub stderr: Vec<u8>,
    /// More was written than is here.
    pub truncated: bool,
}

impl ExecOutput {
    /// Exit code 0.
    pub fn success(&self) -> bool {
        self.code == Some(0)
    }

    /// Standard output as text; foreign bytes are replaced.
    pub fn stdout_text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text; foreign bytes are replaced.
    pub fn stderr_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
}

impl Agent {
    /// Runs a program to its end. `argv[0]` is looked up in the guest's `PATH`; there is no shell. The end is only seen
    /// when everybody who holds the program's output has closed it: for what leaves something running behind, use
    /// [`Agent::spawn`] or [`Agent::exec_saved`].
    ///
    /// # Errors
    /// [`AgentError::ProgramTimedOut`] after the limit (the program goes on: see [`Agent::kill_program`]);
    /// [`AgentError::Reset`] if the guest was reset meanwhile.
    pub fn exec(&self, argv: &[&str], limits: &ExecLimits) -> Result<ExecOutput, AgentError> {
        let started = Instant::now();
        let pid = self.begin(argv, limits, true)?;
        let status = self.wait_program(argv, pid, started, limits.deadline)?;
        let (stdout, stderr) = (status.out_data.unwrap_or_default(), status.err_data.unwrap_or_default());
        let said = status.out_truncated == Some(true) || status.err_truncated == Some(true);
        Ok(ExecOutput {
            code: status.exitcode,
            signal: status.signal,
            truncated: said || stdout.len() >= STREAM_MAX || stderr.len() >= STREAM_MAX,
            stdout,
            stderr,
        })
    }

    /// Starts a program and leaves it to itself; its output goes nowhere.
    ///
    /// # Errors
    /// [`AgentError`] if it could not be started.
    pub fn spawn(&self, argv: &[&str]) -> Result<GuestPid, AgentError> {
        self.begin(argv, &ExecLimits::within(COMMAND_LIMIT), false)
    }

    /// Starts a program whose output goes where it sends it itself, with an environment of its own; [`Agent::ended`] tells
    /// its end.
    ///
    /// # Errors
    /// [`AgentError`] if it could not be started.
    pub fn spawn_with(&self, argv: &[&str], env: Vec<String>) -> Result<GuestPid, AgentError> {
        self.begin(argv, &ExecLimits { env, ..ExecLimits::within(COMMAND_LIMIT) }, false)
    }

    /// How a program that was spawned has ended: exit code, or signal (NTSTATUS in Windows). `None` while it runs. Can be
    /// asked once after the end.
    ///
    /// # Errors
    /// [`AgentError`].
    pub fn ended(&self, pid: GuestPid) -> Result<Option<ProgramEnd>, AgentError> {
        let status = self.execute(&guest_exec_status { pid: pid.0 }, COMMAND_LIMIT)?;
        Ok(status.exited.then_some(ProgramEnd { code: status.exitcode, signal: status.signal }))
    }

    /// Runs a program in a Linux guest with its output in files, and reads them back: for output of more than 16 MiB, for
    /// programs that leave something running behind, and for results that must not be lost with one lost answer. The files
    /// are removed afterwards. At most `max` bytes are read of each stream.
    ///
    /// # Errors
    /// As [`Agent::exec`].
    pub fn exec_saved(&self, argv: &[&str], limits: &ExecLimits, max: u64) -> Result<ExecOutput, AgentError> {
        // The output's files are opened by a shell inside brackets, so that only the program holds them.
        const SCRIPT: &str =
            r#"d=$(mktemp -d) && echo "$d" && { "$@" >"$d/out" 2>"$d/err" </dev/null; echo $? >"$d/code"; }"#;
        let mut command = vec!["/bin/sh", "-c", SCRIPT, "sh"];
        command.extend_from_slice(argv);
        let shell = self.exec(&command, limits)?;
        let dir = shell.stdout_text().trim().to_owned();
        let failed = |what: &str| AgentError::Garbage { command: "guest-exec".into(), what: what.to_owned() };
        // The guest names the directory; it is only ever used inside the guest.
        if !shell.success() || !dir.starts_with('/') {
            return Err(failed(&format!("no directory for the output: {}", shell.stderr_text())));
        }
        let code = self.read_file(&format!("{dir}/code"), 64)?;
        let (stdout, out_cut) = self.read_file_prefix(&format!("{dir}/out"), max)?;
        let (stderr, err_cut) = self.read_file_prefix(&format!("{dir}/err"), max)?;
        self.exec(&["rm", "-rf", "--", &dir], &ExecLimits::within(COMMAND_LIMIT))?;
        let code =
            String::from_utf8_lossy(&code).trim().parse::<i64>().map_err(|_| failed("no exit code"))?;
        // A shell says 128 + N for signal N.
        let signal = (code > 128 && code < 128 + 65).then(|| code - 128);
        let code = signal.is_none().then_some(code);
        Ok(ExecOutput { code, signal, stdout, stderr, truncated: out_cut || err_cut })
    }

    /// Ends a program in the guest, with everything that it started in Windows. The agent itself has no command for it.
    ///
    /// # Errors
    /// [`AgentError`].
    pub fn kill_program(&self, pid: GuestPid) -> Result<ExecOutput, AgentError> {
        let number = pid.to_string();
        let windows = self.is_windows()?;
        let argv: &[&str] =
            if windows { &["taskkill", "/F", "/T", "/PID", &number] } else { &["kill", "-KILL", &number] };
        self.exec(argv, &ExecLimits::within(COMMAND_LIMIT))
    }

    pub(super) fn begin(
        &self,
        argv: &[&str],
        limits: &ExecLimits,
        capture: bool,
    ) -> Result<GuestPid, AgentError> {
        let Some((path, rest)) = argv.split_first() else {
            let what = "no program to run".to_owned();
            return Err(AgentError::Garbage { command: "guest-exec".into(), what });
        };
        let mut arguments = json!({ "path": path, "arg": rest, "capture-output": capture });
        if !limits.env.is_empty() {
            arguments["env"] = json!(limits.env);
        }
        if let Some(input) = &limits.input {
            use base64::prelude::{BASE64_STANDARD, Engine as _};
            arguments["input-data"] = Value::String(BASE64_STANDARD.encode(input));
        }
        let answer = self.raw("guest-exec", &arguments, COMMAND_LIMIT)?;
        let pid = answer.get("pid").and_then(Value::as_i64);
        let what =
            || AgentError::Garbage { command: "guest-exec".into(), what: format!("no pid in {answer}") };
        pid.map(GuestPid).ok_or_else(what)
    }

    fn wait_program(
        &self,
        argv: &[&str],
        pid: GuestPid,
        started: Instant,
        limit: Duration,
    ) -> Result<GuestExecStatus, AgentError> {
        let mut wait = self.wait_for(pid, started, limit);
        loop {
            // Tens of megabytes over a virtio port under TCG take longer than an ordinary answer.
            let status = self.execute(&guest_exec_status { pid: pid.0 }, COMMAND_LIMIT * 4)?;
            if status.exited {
                return Ok(status);
            }
            let Some(rest) = limit.checked_sub(started.elapsed()).filter(|rest| !rest.is_zero()) else {
                let program = argv.first().copied().unwrap_or_default().to_owned();
                return Err(AgentError::ProgramTimedOut { program, pid, limit });
            };
            wait.pause(rest);
        }
    }
}
