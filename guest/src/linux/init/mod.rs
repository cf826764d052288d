//! PID 1 of the lean guest: an ordinary Debian root whose only service is the guest agent.
//!
//! The aim is the time until the agent answers, on one emulated core: the agent's port comes first, everything
//! else (drivers of all other devices, network, power button) waits in the background until the agent listens.
//! A full init takes three times as long to the same point, most of it in processes that a guest of this kind
//! does not need.
//!
//! Nothing here may end the process, because the kernel panics when PID 1 dies: failures are said on the console
//! and the boot goes on.

mod agent;
mod buttons;
mod log;
mod modules;
mod mounts;
mod network;
mod processes;
mod stop;

use std::convert::Infallible;
use std::fs;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, getpid};
use signal_hook::iterator::Signals;

use self::agent::Agent;
use self::log::Log;
use self::processes::Processes;
use super::power::Ending;
use super::{Root, read_text, wait_for};

/// File under `/run/no43-guest` that says that this init runs the guest.
pub(crate) const RUNNING: &str = "init";

/// File beside it that says that the drivers of cards have been loaded.
pub(crate) const SETTLED: &str = "settled";

/// How long the background work waits for the agent to listen; then it begins anyway, because a guest without
/// an agent is still to have its drivers.
const AGENT_HEAD_START: Duration = Duration::from_secs(5);

/// How long the boot waits for the agent's port: its name comes from the host a moment after its driver. A guest
/// without such a port goes on without.
const PORT_LIMIT: Duration = Duration::from_secs(2);

/// Modules that the agent's port needs; the initrd may have loaded some of them.
const AGENT_MODULES: &[&str] = &["virtio_pci", "virtio_console"];

/// Runs the guest. Does not come back unless this process is not PID 1.
///
/// # Errors
/// If this process is not PID 1 or cannot receive signals.
pub(crate) fn run() -> Result<()> {
    if getpid() != Pid::INIT {
        bail!("'init' is for PID 1 only");
    }
    match boot(&Root::real())? {}
}

fn boot(root: &Root) -> Result<Infallible> {
    let failures = mounts::mount_all(root);
    let log = Arc::new(Log::open(root));
    log.say("init started");
    failures.iter().for_each(|failure| log.say(failure));
    if let Err(error) = fs::create_dir_all(root.state()).and_then(|()| mark(root, RUNNING)) {
        log.say(&format!("failed to write to {}: {error}", root.state().display()));
    }
    let (sender, events) = channel();
    forward_signals(sender.clone())?;
    let processes = Arc::new(Processes::default());
    if let Err(error) = modules::load(root, AGENT_MODULES) {
        log.say(&format!("{error:#}")); // the background work tries again with modprobe
    }
    wait_for(PORT_LIMIT, || agent::port(root));
    let mut agent = Agent::new(root);
    agent.tend(&processes, &log);
    set_hostname(root, &log);
    let background =
        Background { root: root.clone(), processes: processes.clone(), log: log.clone(), sender };
    let agent_pid = agent.pid();
    std::thread::Builder::new()
        .spawn(move || background.run(agent_pid))
        .context("failed to start a thread")?;
    let ending = serve(&events, &mut agent, &processes, &log);
    stop::stop(root, ending, &processes, &log)
}

/// Keeps the agent running and buries the dead until somebody asks for the end.
fn serve(events: &Receiver<i32>, agent: &mut Agent, processes: &Processes, log: &Log) -> Ending {
    loop {
        let wait = agent.tend(processes, log);
        let signal = match events.recv_timeout(wait) {
            Ok(signal) => signal,
            Err(RecvTimeoutError::Timeout) => continue,
            Err(RecvTimeoutError::Disconnected) => {
                std::thread::sleep(wait); // without signals only polling is left
                Signal::CHILD.as_raw()
            }
        };
        if let Some(ending) = Ending::from_signal(signal) {
            return ending;
        }
        for (pid, status) in processes.reap() {
            agent.note_end(pid, status, log);
        }
    }
}

/// All signals that mean something to PID 1 become events; so does the power button (see [`buttons`]).
fn forward_signals(sender: Sender<i32>) -> Result<()> {
    let wanted = [Signal::CHILD, Signal::TERM, Signal::INT, Signal::USR1, Signal::USR2];
    let mut signals =
        Signals::new(wanted.map(Signal::as_raw)).context("failed to set up the receiving of signals")?;
    let forward = move || signals.forever().all(|signal| sender.send(signal).is_ok());
    std::thread::Builder::new().spawn(forward).context("failed to start a thread")?;
    Ok(())
}

/// What is done beside the agent.
struct Background {
    root: Root,
    processes: Arc<Processes>,
    log: Arc<Log>,
    sender: Sender<i32>,
}

impl Background {
    fn run(&self, agent: Option<u32>) {
        let (root, log) = (&self.root, &self.log);
        let listens = || agent.filter(|pid| agent::listens(root, *pid)).map(|_| ());
        if agent.is_some() && wait_for(AGENT_HEAD_START, listens).is_some() {
            log.say("agent listens");
        }
        let devices = modules::load_for_cards(root, &self.processes, log);
        if let Err(error) = mark(root, SETTLED) {
            log.say(&format!("failed to say that the drivers are loaded: {error}"));
        }
        log.say(&format!("drivers of cards ({devices} devices) loaded"));
        let devices = modules::load_for_all(root, &self.processes, log);
        agent::link_ports(root);
        log.say(&format!("drivers of all {devices} devices loaded"));
        buttons::watch(root, &self.sender);
        network::start(root, &self.processes, log);
    }
}

fn mark(root: &Root, name: &str) -> std::io::Result<()> {
    fs::write(root.state().join(name), "")
}

fn set_hostname(root: &Root, log: &Log) {
    let name = read_text(&root.path("etc/hostname")).unwrap_or_default();
    let name = name.lines().next().filter(|name| !name.is_empty()).unwrap_or("no43-guest");
    if let Err(error) = rustix::system::sethostname(name.as_bytes()) {
        log.say(&format!("failed to set the host name: {error}"));
    }
}
