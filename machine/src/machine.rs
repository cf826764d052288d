//! A running QEMU: started, adopted, asked, ended.
//!
//! [`Machine::start`] returns when QEMU serves commands, which is after the guest's CPUs have begun to run (unless
//! `paused`). Nothing is polled on the way: the control socket exists before QEMU does, so QEMU's greeting is an event, and
//! QEMU's early death is the end of that connection.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use no43_host::memlock::{self, MemlockError};
use serde_json::Value;

use crate::agent::Agent;
use crate::argv::SpecError;
use crate::process::{Process, Status};
use crate::qmp::{Event, Qmp, QmpError};
use crate::rundir::{RunDirs, RunRecord};
use crate::spec::MachineSpec;

/// How long QEMU may take from its start to its greeting: it reads all disks' headers and pins the guest's memory for VFIO
/// (seconds for tens of GiB).
pub(crate) const GREETING_LIMIT: Duration = Duration::from_secs(60);

/// How much of QEMU's error output goes into an error.
const STDERR_SHOWN: usize = 4096;

/// Where and how to start a machine.
#[derive(Debug, Clone)]
pub struct StartOptions {
    /// QEMU itself; looked up in `PATH` if it has no slash.
    pub qemu: PathBuf,
    /// The run directory, made if it is not there.
    pub dirs: RunDirs,
    /// Run QEMU as another user (only root can).
    pub run_as: Option<RunAs>,
    /// Leave QEMU running when the [`Machine`] is dropped; [`Machine::adopt`] finds it again.
    pub outlives: bool,
    /// Let the kernel kill QEMU when the thread that started it ends, even by `kill -9`: for machines without a card that
    /// nobody could take up again.
    pub dies_with_us: bool,
    /// The opened tap of [`Network::Opened`](crate::spec::Network::Opened).
    pub network: Option<Arc<OwnedFd>>,
    /// How long QEMU may take to greet.
    pub limit: Duration,
}

impl StartOptions {
    /// `qemu-system-x86_64` of the `PATH`, ended with the [`Machine`].
    pub fn new(run_dir: impl Into<PathBuf>) -> Self {
        StartOptions {
            qemu: "qemu-system-x86_64".into(),
            dirs: RunDirs::at(run_dir),
            run_as: None,
            outlives: false,
            dies_with_us: false,
            network: None,
            limit: GREETING_LIMIT,
        }
    }
}

/// Another user for QEMU: it gets all groups of that user (`kvm` for one), no capabilities and no way to get new ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunAs {
    /// The user's number.
    pub uid: u32,
    /// The number of the user's own group.
    pub gid: u32,
}

/// Why a machine did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The description makes no sense.
    #[error("failed to describe the machine to QEMU: {0}")]
    Spec(#[from] SpecError),
    /// The run directory, the socket or the process could not be made.
    #[error("failed to {what}: {why}")]
    Prepare {
        /// What was tried.
        what: String,
        /// What the system said.
        why: io::Error,
    },
    /// VFIO would fail with "cannot allocate memory".
    #[error(transparent)]
    Memlock(#[from] MemlockError),
    /// QEMU ended before it served commands.
    #[error("QEMU ended at its start ({}): {}", describe(*status), if stderr.is_empty() { "it said nothing" } else { stderr })]
    Died {
        /// How it ended.
        status: Status,
        /// The end of what it wrote to its error output.
        stderr: String,
    },
    /// QEMU lives and does not talk. It was killed.
    #[error("QEMU was started and could not be talked to: {why}; its messages: {stderr}")]
    Silent {
        /// What failed.
        why: QmpError,
        /// The end of what it wrote to its error output.
        stderr: String,
    },
}

/// Why a machine could not be taken over.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// There is no readable record.
    #[error("failed to read the record {path} of a running machine: {why}")]
    NoRecord {
        /// The record's path.
        path: PathBuf,
        /// What the system said.
        why: io::Error,
    },
    /// The QEMU of the record is gone.
    #[error("the QEMU of machine '{name}' (process {pid}) does not run any more")]
    Dead {
        /// The machine's name.
        name: String,
        /// Its process.
        pid: u32,
    },
    /// It lives and does not talk; most likely another no43 holds its control socket.
    #[error(
        "failed to talk to the QEMU of machine '{name}' (process {pid}); does another no43 hold it? {why}"
    )]
    Silent {
        /// The machine's name.
        name: String,
        /// Its process.
        pid: u32,
        /// What failed.
        why: QmpError,
    },
}

/// How a machine ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Exit {
    /// QEMU's own exit code, or the signal that ended it; both unknown for an adopted machine.
    pub status: Status,
    /// QEMU's word for it: `guest-shutdown`, `host-qmp-quit`, `guest-reset` …; `None` if QEMU had no time to say.
    pub reason: Option<String>,
    /// The end of QEMU's error output.
    pub stderr: String,
}

impl Exit {
    /// QEMU ended because it was told to, by the guest or by us.
    pub fn is_orderly(&self) -> bool {
        self.status.signal.is_none() && self.status.code.unwrap_or(0) == 0
    }
}

/// One running QEMU.
///
/// Dropping it kills QEMU's process group and waits until it is gone, unless it was started with
/// [`StartOptions::outlives`] or [`Machine::leave_running`] was called; then only the connection is closed. If this process
/// itself is killed, QEMU lives on: the record in the run directory says how to find it, and [`Machine::adopt`] takes it
/// over.
#[derive(Debug)]
pub struct Machine {
    name: String,
    dirs: RunDirs,
    process: Process,
    qmp: Qmp,
    agent: Mutex<Option<Agent>>,
    outlives: bool,
}

impl Machine {
    /// Starts QEMU and waits until it serves commands.
    ///
    /// # Errors
    /// [`StartError`]; whatever was started is gone then.
    pub fn start(spec: &MachineSpec, options: &StartOptions) -> Result<Machine, StartError> {
        Self::start_noted(spec, options, |_| ())
    }

    /// As [`Machine::start`]; `note` learns of the process as soon as there is one. QEMU needs seconds from there to its
    /// greeting, and whoever dies meanwhile must have written down whose cards it has.
    ///
    /// # Errors
    /// [`StartError`]; whatever was started is gone then.
    pub fn start_noted(
        spec: &MachineSpec,
        options: &StartOptions,
        note: impl FnOnce(&RunRecord),
    ) -> Result<Machine, StartError> {
        let dirs = &options.dirs;
        spec.check(dirs)?;
        // Root lifts the limit for another user, see `command_line`.
        if !spec.cards.is_empty() && options.run_as.is_none() {
            memlock::check(spec.memory_mib)?;
        }
        let listener = prepare(spec, options).map_err(|why| StartError::Prepare {
            what: format!("prepare the run directory {}", dirs.dir().display()),
            why,
        })?;
        let argv = command_line(spec, options);
        let failed = |what: &str, why| StartError::Prepare { what: what.to_owned(), why };
        // Connected before QEMU is there: the connection waits in the socket's queue, and ends with QEMU.
        let stream = UnixStream::connect(dirs.qmp_socket())
            .map_err(|why| failed("connect to the control socket", why))?;
        let network = options.network.as_ref().map(|opened| opened.try_clone()).transpose();
        let network = network.map_err(|why| failed("hand over the network device", why))?;
        let process = Process::spawn(&argv, OwnedFd::from(listener), network, &dirs.stderr())
            .map_err(|why| failed(&format!("start {}", argv[0]), why))?;
        let record = RunRecord {
            name: spec.name.clone(),
            pid: process.pid(),
            start_time: process.start_time(),
            qmp_socket: dirs.qmp_socket(),
            agent_socket: dirs.agent_socket(),
            argv,
        };
        if let Err(why) = dirs.write_record(&record) {
            process.kill_group();
            return Err(failed("write the machine's record", why));
        }
        if options.outlives {
            process.disown();
        }
        note(&record);
        match Qmp::open(stream, options.limit) {
            Ok(qmp) => Ok(Machine {
                name: spec.name.clone(),
                dirs: dirs.clone(),
                process,
                qmp,
                agent: Mutex::default(),
                outlives: options.outlives,
            }),
            Err(why) => Err(start_failure(&process, dirs, why)),
        }
    }

    /// Takes over a QEMU that an earlier no43 left running in this directory. Only one no43 can hold a machine.
    ///
    /// # Errors
    /// [`AdoptError`]; the machine is not touched then.
    pub fn adopt(run_dir: impl Into<PathBuf>) -> Result<Machine, AdoptError> {
        let dirs = RunDirs::at(run_dir);
        let RunRecord { name, pid, start_time, qmp_socket, .. } =
            dirs.running_record().map_err(|why| AdoptError::NoRecord { path: dirs.record(), why })?;
        let Some(process) = Process::adopt(pid, start_time) else {
            return Err(AdoptError::Dead { name, pid });
        };
        match Qmp::connect(&qmp_socket, Duration::from_secs(5)) {
            Ok(qmp) => Ok(Machine { name, dirs, process, qmp, agent: Mutex::default(), outlives: true }),
            Err(why) => Err(AdoptError::Silent { name, pid, why }),
        }
    }

    /// The machine's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The run directory.
    pub fn dirs(&self) -> &RunDirs {
        &self.dirs
    }

    /// QEMU's process.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// When QEMU's process started, in clock ticks since boot.
    pub fn start_time(&self) -> u64 {
        self.process.start_time()
    }

    /// QEMU's control connection.
    pub fn qmp(&self) -> &Qmp {
        &self.qmp
    }

    /// The guest's agent. All clones share one connection, because QEMU serves one at a time.
    pub fn agent(&self) -> Agent {
        let mut agent = self.agent.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        agent.get_or_insert_with(|| Agent::of_machine(self.dirs.agent_socket(), self.qmp.clone())).clone()
    }

    /// An agent with a connection of its own, which is closed when it is dropped: QEMU serves one at a time, and others
    /// may want it.
    pub fn new_agent(&self) -> Agent {
        Agent::of_machine(self.dirs.agent_socket(), self.qmp.clone())
    }

    /// Every event from now on; disconnects when QEMU is gone.
    pub fn subscribe(&self) -> Receiver<Event> {
        self.qmp.subscribe()
    }

    /// Lets the guest's CPUs run.
    ///
    /// # Errors
    /// [`QmpError`].
    pub fn cont(&self) -> Result<(), QmpError> {
        self.qmp.raw("cont", Value::Null).map(drop)
    }

    /// Whether QEMU runs.
    pub fn is_alive(&self) -> bool {
        self.process.is_alive()
    }

    /// Presses the power button and waits for QEMU's end. `Ok(None)` if the guest did not shut down within `limit`.
    ///
    /// # Errors
    /// [`QmpError`] if the button could not be pressed.
    pub fn powerdown(&self, limit: Duration) -> Result<Option<Exit>, QmpError> {
        match self.qmp.raw("system_powerdown", Value::Null) {
            Ok(_) | Err(QmpError::Gone { .. }) => Ok(self.wait_exit(limit)),
            Err(error) => Err(error),
        }
    }

    /// Ends QEMU without asking the guest; the disks' caches are written.
    ///
    /// # Errors
    /// [`QmpError`] if QEMU does not take the command.
    pub fn quit(&self) -> Result<(), QmpError> {
        match self.qmp.raw("quit", Value::Null) {
            // QEMU may be gone before its answer is read.
            Ok(_) | Err(QmpError::Gone { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Kills QEMU's process group and waits until nobody of it is left. False if somebody still is after
    /// [`crate::process::KILL_LIMIT`].
    pub fn kill(&self) -> bool {
        self.process.kill_group()
    }

    /// Waits for QEMU's end. `None` if it still runs when the limit is over.
    pub fn wait_exit(&self, limit: Duration) -> Option<Exit> {
        let status = self.process.wait(limit)?;
        // The last events are in the socket until the reader has met its end.
        let patience = Duration::from_secs(1);
        let events = self.qmp.subscribe();
        crate::qmp::wait_event(&events, patience, |_| None::<()>);
        let reason = self.qmp.shutdown_event();
        let reason =
            reason.as_ref().and_then(|data| data.get("reason")).and_then(Value::as_str).map(str::to_owned);
        Some(Exit { status, reason, stderr: self.dirs.stderr_tail(STDERR_SHOWN) })
    }

    /// How the machine ended; `None` while it runs.
    pub fn exit(&self) -> Option<Exit> {
        self.wait_exit(Duration::ZERO)
    }

    /// From now on QEMU lives on when this is dropped.
    pub fn leave_running(&mut self) {
        self.outlives = true;
        self.process.disown();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if !self.outlives {
            self.process.kill_group();
        }
    }
}

/// Makes the run directory and the control socket, and removes what an earlier machine left there.
fn prepare(spec: &MachineSpec, options: &StartOptions) -> io::Result<UnixListener> {
    let dirs = &options.dirs;
    dirs.create()?;
    if let Ok(record) = dirs.read_record()
        && record.is_running()
    {
        let what = format!("machine '{}' (process {}) still runs there", record.name, record.pid);
        return Err(io::Error::new(io::ErrorKind::AddrInUse, what));
    }
    for path in spec.sockets(dirs).into_iter().chain([dirs.record()]) {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    let listener = UnixListener::bind(dirs.qmp_socket())?;
    fs::set_permissions(dirs.qmp_socket(), fs::Permissions::from_mode(0o600))?;
    if let Some(user) = &options.run_as {
        for path in [dirs.dir().to_owned(), dirs.qmp_socket()] {
            chown(path, Some(user.uid), Some(user.gid))?;
        }
    }
    Ok(listener)
}

/// QEMU with its arguments, behind util-linux' tools if another user is wanted; they replace themselves by QEMU, so the pid
/// is the same.
fn command_line(spec: &MachineSpec, options: &StartOptions) -> Vec<String> {
    let mut argv = Vec::new();
    if options.dies_with_us {
        argv.extend(["setpriv", "--pdeathsig", "KILL", "--"].map(String::from));
    }
    if let Some(RunAs { uid, gid }) = options.run_as {
        if let Some(bytes) = spec.memlock_needed() {
            argv.extend(["prlimit".to_owned(), format!("--memlock={bytes}"), "--".to_owned()]);
        }
        argv.push("setpriv".to_owned());
        argv.extend([format!("--reuid={uid}"), format!("--regid={gid}")]);
        argv.extend(
            ["--init-groups", "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all", "--"]
                .map(String::from),
        );
    }
    argv.push(options.qemu.display().to_string());
    argv.extend(spec.argv(&options.dirs));
    argv
}

/// QEMU's own words if it is dead or dies now, else what the connection says.
fn start_failure(process: &Process, dirs: &RunDirs, why: QmpError) -> StartError {
    // The connection ends a moment before the process does.
    let grace = if matches!(why, QmpError::Gone { .. }) { Duration::from_secs(2) } else { Duration::ZERO };
    let ended = process.wait(grace);
    process.kill_group();
    let stderr = dirs.stderr_tail(STDERR_SHOWN);
    match ended {
        Some(status) => StartError::Died { status, stderr },
        None => StartError::Silent { why, stderr },
    }
}

fn describe(status: Status) -> String {
    match (status.code, status.signal) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "status unknown".to_owned(),
    }
}
