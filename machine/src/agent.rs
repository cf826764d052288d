//! The guest agent: programs, files, time and power inside the guest, over `qapi`'s types and a transport of our own.
//!
//! Everything that comes back is written by the guest and bounded here. Known traps of QEMU's agent, each worked round
//! below: output is only ever captured with `capture-output: true` (mode `stdout` of agent 10.0 never reports the end); a
//! stream stops silently at 16 MiB; the first "exited" answer is also the last; `exited` waits for everybody who holds the
//! output open; there is no command to end a program.

mod bell;
mod exec;
mod files;
mod link;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use qapi::Command;
use serde_json::{Value, json};

use bell::Bell;
pub use bell::EndWait;
pub use exec::{ExecLimits, ExecOutput, GuestPid, ProgramEnd};
pub use files::FollowedFile;
use link::{Link, LinkError};

use crate::qmp::Qmp;

/// How long an ordinary command may take: the agent answers in milliseconds, a guest under TCG that is busy with a disk
/// needs seconds.
pub const COMMAND_LIMIT: Duration = Duration::from_secs(30);

/// A sync that is not answered is sent again after this time.
const SYNC_AGAIN: Duration = Duration::from_secs(3);

/// Why the guest's agent did not do it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AgentError {
    /// Nobody answers: the agent is not installed, not started yet, or stuck.
    #[error("the guest's agent did not answer {command} within {:.1} s", limit.as_secs_f32())]
    TimedOut {
        /// The command.
        command: String,
        /// The limit that it had.
        limit: Duration,
    },
    /// QEMU ended meanwhile.
    #[error("the machine ended while the guest's agent was asked {command}: {why}")]
    MachineGone {
        /// The command.
        command: String,
        /// What ended the control connection.
        why: String,
    },
    /// The guest was reset meanwhile; whether the command was carried out is unknown.
    #[error("the guest was reset while its agent was asked {command}")]
    Reset {
        /// The command.
        command: String,
    },
    /// The socket failed.
    #[error("failed to reach the guest's agent for {command}: {why}")]
    Connection {
        /// The command.
        command: String,
        /// What the system said.
        why: String,
    },
    /// The answer is none.
    #[error("the guest's agent answered {command} with something else than an answer: {what}")]
    Garbage {
        /// The command.
        command: String,
        /// What is wrong with it.
        what: String,
    },
    /// The agent said no.
    #[error("the guest's agent refused {command}: {description} ({class})")]
    Refused {
        /// The command.
        command: String,
        /// The agent's error class, such as `CommandNotFound` when a distribution blocks the command.
        class: String,
        /// The agent's words.
        description: String,
    },
    /// A program in the guest did not end in time; the rest of its output is lost.
    #[error("'{program}' (process {pid} in the guest) did not end within {:.1} s", limit.as_secs_f32())]
    ProgramTimedOut {
        /// The program's path.
        program: String,
        /// Its process in the guest.
        pid: GuestPid,
        /// The limit that it had.
        limit: Duration,
    },
    /// A file in the guest is larger than the caller wants to read.
    #[error("'{path}' in the guest has more than the allowed {max} bytes")]
    FileTooLarge {
        /// The path in the guest.
        path: String,
        /// The most that was allowed, in bytes.
        max: u64,
    },
}

impl AgentError {
    /// The machine is gone: nothing that is asked later can have an answer.
    pub fn is_machine_gone(&self) -> bool {
        matches!(self, AgentError::MachineGone { .. })
    }
}

/// The agent of one guest. Clones share one connection and take turns.
#[derive(Debug, Clone)]
pub struct Agent {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    socket: PathBuf,
    qmp: Option<Qmp>,
    link: Mutex<Option<Link>>,
    bell: OnceLock<Bell>,
}

/// How the guest is asked to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShutdownMode {
    /// Off, by the guest's own shutdown.
    PowerDown,
    /// Stop without turning off.
    Halt,
    /// Start again.
    Reboot,
}

impl Agent {
    /// An agent on any socket, without a machine to watch: `qemu-ga -m unix-listen` for one.
    pub fn on_socket(socket: impl Into<PathBuf>) -> Agent {
        Agent::new(socket.into(), None)
    }

    pub(crate) fn of_machine(socket: PathBuf, qmp: Qmp) -> Agent {
        Agent::new(socket, Some(qmp))
    }

    fn new(socket: PathBuf, qmp: Option<Qmp>) -> Agent {
        Agent { shared: Arc::new(Shared { socket, qmp, link: Mutex::default(), bell: OnceLock::new() }) }
    }

    /// From now on the guest program `program` rings at the end of programs that take long, through the port
    /// whose socket this is. Neither needs to be there. The first call counts.
    pub fn hang_bell(&self, socket: impl Into<PathBuf>, program: impl Into<String>) {
        self.shared.bell.get_or_init(|| Bell::new(socket.into(), program.into()));
    }

    /// Asks for a sign of life.
    ///
    /// # Errors
    /// [`AgentError`].
    pub fn ping(&self, limit: Duration) -> Result<(), AgentError> {
        self.raw("guest-ping", &Value::Null, limit).map(drop)
    }

    /// Waits for the agent's first answer, or for the machine's end. `progress` is called about once a second with the
    /// time waited so far. A reset of the guest meanwhile is no failure.
    ///
    /// # Errors
    /// [`AgentError::TimedOut`] after `limit`, [`AgentError::MachineGone`] as soon as QEMU ends.
    pub fn wait_ready(
        &self,
        limit: Duration,
        mut progress: impl FnMut(Duration),
    ) -> Result<Duration, AgentError> {
        let started = Instant::now();
        let deadline = started + limit;
        let mut told = started;
        let mut tick = || {
            if told.elapsed() >= Duration::from_secs(1) {
                told = Instant::now();
                progress(started.elapsed());
            }
        };
        let mut guard = self.lock();
        loop {
            // The request waits in the port's buffer until the agent opens it, so its answer is an event; no polling.
            match self.synced(&mut guard, deadline, &mut tick).map(drop) {
                Ok(()) => return Ok(started.elapsed()),
                Err(error @ LinkError::MachineGone(_)) => return Err(error.about("to be ready", limit)),
                Err(_) if Instant::now() < deadline => {}
                Err(_) => return Err(AgentError::TimedOut { command: "to be ready".into(), limit }),
            }
            // A connection that fails at once must not spin.
            tick();
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Executes an agent command of `qapi`'s schema.
    ///
    /// # Errors
    /// [`AgentError`].
    pub fn execute<C: Command>(&self, command: &C, limit: Duration) -> Result<C::Ok, AgentError> {
        let garbage = |error: serde_json::Error| AgentError::Garbage {
            command: C::NAME.into(),
            what: error.to_string(),
        };
        let arguments = serde_json::to_value(command).map_err(garbage)?;
        let answer = self.raw(C::NAME, &arguments, limit)?;
        serde_json::from_value(answer).map_err(garbage)
    }

    /// Executes any agent command by name. `arguments` is an object, or [`Value::Null`] for none.
    ///
    /// # Errors
    /// [`AgentError`].
    pub fn raw(&self, command: &str, arguments: &Value, limit: Duration) -> Result<Value, AgentError> {
        let deadline = Instant::now() + limit;
        let mut guard = self.lock();
        let link =
            self.synced(&mut guard, deadline, &mut || {}).map_err(|error| error.about(command, limit))?;
        let answer = link.ask(command, arguments, deadline);
        self.keep_or_drop(&mut guard, answer).map_err(|error| error.about(command, limit))
    }

    /// What the guest says that it is (`guest-get-osinfo`).
    ///
    /// # Errors
    /// [`AgentError`].
    pub fn os_info(&self) -> Result<qapi::qga::GuestOSInfo, AgentError> {
        self.execute(&qapi::qga::guest_get_osinfo {}, COMMAND_LIMIT)
    }

    /// Whether Windows answers.
    ///
    /// # Errors
    /// [`AgentError`].
    pub fn is_windows(&self) -> Result<bool, AgentError> {
        Ok(self.os_info()?.id.as_deref() == Some("mswindows"))
    }

    /// Sets the guest's clock to the host's. After a restore it stands where it was saved.
    ///
    /// The agent's own command needs `/sbin/hwclock`, which Debian 12 has in a package of its own; where it is refused,
    /// `date` is run instead, to the second.
    ///
    /// # Errors
    /// [`AgentError`].
    pub fn set_time(&self) -> Result<(), AgentError> {
        let now = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let nanoseconds = i64::try_from(now().as_nanos()).unwrap_or(i64::MAX);
        let refused = match self.raw("guest-set-time", &json!({ "time": nanoseconds }), COMMAND_LIMIT) {
            Err(error @ AgentError::Refused { .. }) => error,
            other => return other.map(drop),
        };
        let seconds = format!("@{}", now().as_secs());
        let output = self.exec(&["date", "-u", "-s", &seconds], &ExecLimits::within(COMMAND_LIMIT));
        if output.is_ok_and(|output| output.success()) { Ok(()) } else { Err(refused) }
    }

    /// Asks the guest to end or to start again. There is no answer to wait for: it comes, if at all, as the machine's
    /// end or as a `RESET` event.
    ///
    /// # Errors
    /// [`AgentError`] if the agent was not in sync, or refused.
    pub fn shutdown(&self, mode: ShutdownMode) -> Result<(), AgentError> {
        let mode = match mode {
            ShutdownMode::PowerDown => "powerdown",
            ShutdownMode::Halt => "halt",
            ShutdownMode::Reboot => "reboot",
        };
        // The agent says nothing on success and an error at once; half a second is enough to hear it.
        match self.raw(
            "guest-shutdown",
            &json!({ "mode": mode }),
            COMMAND_LIMIT.min(Duration::from_millis(500)),
        ) {
            Ok(_)
            | Err(AgentError::TimedOut { .. } | AgentError::MachineGone { .. } | AgentError::Reset { .. }) => {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Link>> {
        self.shared.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The link, in sync; opened if there is none.
    fn synced<'a>(
        &self,
        guard: &'a mut MutexGuard<'_, Option<Link>>,
        deadline: Instant,
        tick: &mut dyn FnMut(),
    ) -> Result<&'a mut Link, LinkError> {
        if guard.is_none() {
            if let Some(why) = self.shared.qmp.as_ref().and_then(Qmp::gone) {
                return Err(LinkError::MachineGone(why));
            }
            let opened = Link::open(&self.shared.socket, self.shared.qmp.clone());
            **guard = Some(opened.map_err(LinkError::Io)?);
        }
        let in_sync = match guard.as_mut() {
            Some(link) if link.is_synced() => Ok(()),
            Some(link) => link.sync(SYNC_AGAIN, deadline, tick),
            None => unreachable!("the link was just opened"),
        };
        self.keep_or_drop(guard, in_sync)?;
        guard.as_mut().ok_or(LinkError::TimedOut)
    }

    /// A broken connection is opened again by the next command; anything else only has to be synced again.
    fn keep_or_drop<T>(
        &self,
        guard: &mut MutexGuard<'_, Option<Link>>,
        result: Result<T, LinkError>,
    ) -> Result<T, LinkError> {
        if matches!(result, Err(LinkError::Io(_) | LinkError::Garbage(_) | LinkError::MachineGone(_))) {
            **guard = None;
        }
        result
    }
}

#[cfg(test)]
mod tests;
