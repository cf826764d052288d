//! Running a program with a limit, its output in a file, and nothing of it left behind when the limit is over.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use no43_guest::setup::Codes;
use no43_guest::setup::event::{Cause, Outcome};

use super::{Done, Failure, logs};

/// How long a wait sleeps at most between two looks at the process.
const LOOK: Duration = Duration::from_millis(100);

/// A program to run.
pub(crate) struct Program {
    /// Path, or a name that the system looks for.
    pub(crate) path: PathBuf,
    /// Its arguments.
    pub(crate) arguments: Vec<Argument>,
    /// Where its output goes.
    pub(crate) output: PathBuf,
    /// Where it writes its own log, if it does.
    pub(crate) own_log: Option<PathBuf>,
    /// When it is ended.
    pub(crate) limit: Duration,
    /// Where it starts, if not where this process is.
    pub(crate) folder: Option<PathBuf>,
    /// A variable beside those of this process.
    pub(crate) variable: Option<(&'static str, String)>,
}

/// One argument.
pub(crate) enum Argument {
    /// Quoted by the rules of the system.
    Word(OsString),
    /// Windows only: put into the command line as it is, for programs with rules of their own (msiexec).
    #[cfg_attr(not(windows), expect(dead_code, reason = "only Windows programs read their own command line"))]
    Raw(String),
}

impl Program {
    /// A program that starts where this one is, and has no log of its own.
    pub(crate) fn new(path: PathBuf, arguments: Vec<Argument>, output: PathBuf, limit: Duration) -> Self {
        Self { path, arguments, output, own_log: None, limit, folder: None, variable: None }
    }

    /// Runs it and takes its exit code for what `codes` says. A code in no list is a failure with the log's end.
    pub(crate) fn run(&self, codes: &Codes) -> Result<Done, Failure> {
        let code = self.exit_code()?;
        let table = [
            (&codes.done, Outcome::Done),
            (&codes.restart, Outcome::RestartNeeded),
            (&codes.unchanged, Outcome::Unchanged),
        ];
        match table.iter().find(|(list, _)| list.contains(&code)) {
            Some((_, outcome)) => Ok(Done { outcome: *outcome, code: Some(code), note: None }),
            None => Err(Failure {
                cause: Cause::ExitCode,
                code: Some(code),
                text: format!("{} ended with {code}", self.path.display()),
                log: self.log_tail(),
            }),
        }
    }

    /// Runs it to its end.
    pub(crate) fn exit_code(&self) -> Result<i64, Failure> {
        let end = Instant::now() + self.limit;
        let mut group = Group::start(self.command()?).map_err(|error| Failure {
            cause: Cause::NotStarted,
            ..Failure::io(self.path.display(), &error)
        })?;
        let mut pause = Duration::from_millis(2);
        let status = loop {
            match group.child.try_wait() {
                Ok(Some(status)) => break status,
                Ok(None) if Instant::now() >= end => {
                    group.end();
                    self.bound_logs();
                    return Err(Failure {
                        log: self.log_tail(),
                        ..Failure::new(
                            Cause::TimedOut,
                            format!("{} did not end within {} s", self.path.display(), self.limit.as_secs()),
                        )
                    });
                }
                Ok(None) => {
                    std::thread::sleep(pause);
                    pause = (pause * 2).min(LOOK);
                }
                Err(error) => return Err(Failure::io(self.path.display(), &error)),
            }
        };
        self.bound_logs();
        Ok(exit_code(status))
    }

    fn command(&self) -> Result<Command, Failure> {
        let failure = |error| Failure::io(self.output.display(), &error);
        let output = OpenOptions::new().create(true).append(true).open(&self.output).map_err(failure)?;
        let errors = output.try_clone().map_err(failure)?;
        let mut command = Command::new(&self.path);
        for argument in &self.arguments {
            match argument {
                Argument::Word(word) => {
                    command.arg(word);
                }
                #[cfg(windows)]
                Argument::Raw(text) => {
                    std::os::windows::process::CommandExt::raw_arg(&mut command, text);
                }
                #[cfg(not(windows))]
                Argument::Raw(text) => {
                    command.arg(text);
                }
            }
        }
        if let Some(folder) = &self.folder {
            command.current_dir(folder);
        }
        if let Some((name, value)) = &self.variable {
            command.env(name, value);
        }
        command.stdin(Stdio::null()).stdout(output).stderr(errors);
        Ok(command)
    }

    fn logs(&self) -> impl Iterator<Item = &Path> {
        self.own_log.as_deref().into_iter().chain([self.output.as_path()])
    }

    fn bound_logs(&self) {
        self.logs().for_each(logs::bound);
    }

    /// The end of the program's own log, else of its output.
    pub(crate) fn log_tail(&self) -> Vec<String> {
        self.logs().map(logs::tail).find(|lines| !lines.is_empty()).unwrap_or_default()
    }
}

#[cfg(unix)]
fn exit_code(status: std::process::ExitStatus) -> i64 {
    use std::os::unix::process::ExitStatusExt as _;
    // as a shell says it: 128 and the signal
    status.code().map_or_else(|| 128 + i64::from(status.signal().unwrap_or_default()), i64::from)
}

#[cfg(windows)]
fn exit_code(status: std::process::ExitStatus) -> i64 {
    // Windows' codes are unsigned, as NTSTATUS is written
    status.code().map_or(-1, |code| i64::from(code.cast_unsigned()))
}

/// A process and everything that it starts.
struct Group {
    child: Child,
    #[cfg(windows)]
    job: Option<crate::windows::api::Job>,
}

impl Group {
    #[cfg(unix)]
    fn start(mut command: Command) -> std::io::Result<Self> {
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        Ok(Self { child: command.spawn()? })
    }

    #[cfg(windows)]
    fn start(mut command: Command) -> std::io::Result<Self> {
        const NO_WINDOW: u32 = 0x0800_0000; // CREATE_NO_WINDOW
        std::os::windows::process::CommandExt::creation_flags(&mut command, NO_WINDOW);
        let child = command.spawn()?;
        let job = crate::windows::api::Job::around(&child);
        Ok(Self { child, job })
    }

    /// Ends all of it, and waits for the process itself.
    fn end(&mut self) {
        #[cfg(target_os = "linux")]
        if let Some(group) = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
        #[cfg(windows)]
        if let Some(job) = &self.job {
            job.end();
        }
        let _ = self.child.kill(); // fails where the group's end has ended it
        let _ = self.child.wait();
    }
}
