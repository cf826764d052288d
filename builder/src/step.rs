//! Step: one change, carried out through the guest agent in a running machine, kept as an overlay on the layer below.
//!
//! Every step starts the machine, works, and shuts it down in order: a layer is always a file system at rest. The overlay
//! names the layer below relatively, as it will lie in the store.

mod driver;

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use no43_machine::agent::{ExecLimits, ExecOutput, ShutdownMode};
use no43_machine::qmp::wait_event;
use no43_machine::spec::{DirectKernel, Disk, DiskCache, MachineSpec, Network, Smp};
use no43_machine::{Agent, AgentError, Machine, StartError, StartOptions, StopLimits, StoppedBy};

pub use driver::{driver_command, driver_disk};

use crate::build::child::{self, tool};
use crate::build::{BuildError, Context, Made};
use crate::debian::{self, Entry};
use crate::image::{BootKind, DISK, INITRD, Image, KERNEL, Provenance};
use crate::plan::{Awaited, FileIn, LayerPlan, NetworkPlan, Plan, StepPlan};
use crate::store::{Staging, StoreError};

/// The guest's agent must answer within this time: a whole Debian takes about 80 s without KVM on one core.
const READY_LIMIT: Duration = Duration::from_secs(600);
/// From the request to QEMU's end: 90 s is what systemd gives one service, twice that for a busy machine without KVM.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(180);
/// A command that only asks or moves something small.
const SHORT_LIMIT: Duration = Duration::from_secs(60);
/// How often something awaited is asked for.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Lines of output, or of the serial console, that an error shows.
const TAIL: usize = 20;

/// Run last in every step. What this start of the machine made for itself must not be the same in every machine made from
/// the layer: its id, its keys, its seed, its journal. And free blocks need not be kept: apt alone leaves 150 MB of them.
const AT_REST: &str = ": > /etc/machine-id
    rm -f /etc/ssh/ssh_host_*_key* /var/lib/dbus/machine-id /var/lib/systemd/random-seed
    rm -rf /var/log/journal/*
    sync
    fstrim / 2> /dev/null || true";

/// How a step can fail.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// The machine did not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// Nobody answered in the guest.
    #[error("the guest agent gave no answer: {error}; the serial console ends with:{console}", console = indented(console))]
    NotReady {
        /// How the wait ended.
        error: AgentError,
        /// The last lines of the serial console.
        console: Vec<String>,
    },
    /// The guest agent failed later.
    #[error("{what}: {error}")]
    Agent {
        /// What was being done.
        what: String,
        /// How it failed.
        error: AgentError,
    },
    /// A program in the guest ended with something else than 0.
    #[error("{program} ended with {code} in the guest:{tail}", tail = indented(tail))]
    Program {
        /// Program and arguments.
        program: String,
        /// Its exit code or signal.
        code: String,
        /// The last lines of its output.
        tail: Vec<String>,
    },
    /// What was awaited did not come.
    #[error("{what} did not come about within {} s{last}", limit.as_secs())]
    Awaited {
        /// What was awaited.
        what: String,
        /// How long.
        limit: Duration,
        /// What the last look said.
        last: String,
    },
    /// The guest did not restart.
    #[error("the guest did not restart within {} s after it was asked to", limit.as_secs())]
    NoReset {
        /// How long it had.
        limit: Duration,
    },
    /// The guest had to be switched off hard, so its disk is not at rest.
    #[error(
        "the guest did not shut down within {} s (ended by {by}); the serial console ends with:{console}",
        SHUTDOWN_LIMIT.as_secs(), console = indented(console)
    )]
    NotShutDown {
        /// What ended it.
        by: String,
        /// The last lines of the serial console.
        console: Vec<String>,
    },
    /// The guest program could not do what it was asked for.
    #[error("{what}{log}", log = indented(log))]
    Guest {
        /// What failed, and how.
        what: String,
        /// The last lines of its log.
        log: Vec<String>,
    },
    /// The machine does not restart by itself.
    #[error("the machine is gone: {what}")]
    Gone {
        /// What is known.
        what: String,
    },
}

/// Builds a step's layer in `staging`.
pub(crate) fn build(
    step: &StepPlan,
    layer: &LayerPlan,
    plan: &Plan,
    below: &Image,
    staging: &mut Staging,
    context: &mut Context<'_>,
) -> Result<Made, BuildError> {
    let disk = staging.dir().join(DISK);
    create_overlay(&disk, below)?;
    let run_dir = run_dir(staging)?;
    let console = staging.dir().join("console.log");
    let spec = machine(plan, step, below, &disk, &console, context);
    context.progress.phase("starting the machine");
    let options = StartOptions {
        qemu: context.options.qemu.clone(),
        dies_with_us: true,
        ..StartOptions::new(&run_dir)
    };
    let failed = |source: StepError| BuildError::Step { step: layer.name.clone(), source: Box::new(source) };
    let result = in_machine(&spec, &options, step, &console, context);
    let _ = std::fs::remove_dir_all(&run_dir);
    if context.cancelled()() {
        return Err(BuildError::Cancelled);
    }
    result.map_err(failed)?;
    rebase(&disk, Path::new("..").join(below.manifest.key.as_str()).join(DISK).as_path())?;
    let mut files = vec![DISK];
    if let BootKind::Direct { .. } = below.manifest.boot {
        for name in [KERNEL, INITRD] {
            same_file(&below.dir.join(name), &staging.dir().join(name))?;
            files.push(name);
        }
    }
    let provenance = Provenance { tools: versions(&context.options.qemu), ..Provenance::default() };
    Ok(Made { files, boot: below.manifest.boot.clone(), provenance, sealed: None })
}

/// Ends the QEMU of a dead builder, if one runs in `dir`: its disk was never going to be anything.
pub(crate) fn end_machine_in(dir: &Path) {
    if let Ok(machine) = Machine::adopt(dir) {
        machine.kill();
    }
}

fn machine(
    plan: &Plan,
    step: &StepPlan,
    below: &Image,
    disk: &Path,
    console: &Path,
    context: &Context<'_>,
) -> MachineSpec {
    let mut spec = MachineSpec::new(format!("build-{}", plan.name), context.options.accel);
    spec.smp = Smp::cpus(plan.machine.cpus.clamp(1, 64) as u16);
    spec.memory_mib = plan.machine.memory_mib;
    // Until the layer is published nobody needs it, and publishing writes everything to the disk.
    spec.disks =
        vec![Disk { serial: Some("no43-system".to_owned()), cache: DiskCache::Unsafe, ..Disk::qcow2(disk) }];
    spec.kernel = below.direct_kernel().map(|direct| DirectKernel {
        kernel: direct.kernel,
        initrd: Some(direct.initrd),
        cmdline: direct.command_line,
    });
    if let StepPlan::Driver(driver) = step {
        spec.disks.extend(driver.run.as_ref().map(driver_disk));
    }
    let online = matches!(step, StepPlan::Install { .. } | StepPlan::Driver(_))
        || !matches!(plan.network, NetworkPlan::None);
    if online {
        spec.network = Network::User { mac: None, restrict: false, forwards: Vec::new() };
    }
    spec.serials = vec![console.to_owned()];
    spec
}

fn in_machine(
    spec: &MachineSpec,
    options: &StartOptions,
    step: &StepPlan,
    console: &Path,
    context: &mut Context<'_>,
) -> Result<(), StepError> {
    let machine = Machine::start(spec, options)?;
    let agent = machine.agent();
    wait_ready(&machine, &agent, READY_LIMIT, console, context)?;
    wait_booted(&agent, context)?;
    context.progress.phase(&format!("{step_in_words}", step_in_words = InWords(step)));
    match step {
        StepPlan::Run { argv, limit } => run(&agent, argv, seconds(*limit), context)?,
        StepPlan::Copy { files } => copy(&agent, files, context)?,
        StepPlan::Install { packages, limit } => install(&agent, packages, seconds(*limit), context)?,
        StepPlan::Driver(driver) => {
            run(&agent, &driver_command(driver, false), seconds(driver.limit), context)?;
        }
        StepPlan::Reboot { limit } => {
            reboot(&machine, &agent, seconds(*limit), console, context)?;
            wait_booted(&agent, context)?;
        }
        StepPlan::WaitFor { what, limit } => wait_for(&agent, what, seconds(*limit), context)?,
    }
    context.progress.phase("shutting the guest down");
    check(&["tidying up"], &exec(&agent, &["sh", "-c", AT_REST], SHORT_LIMIT * 5, context)?)?;
    shut_down(&machine, &agent, console)
}

/// The agent answers long before a systemd has started everything, and then a step would find half a system: no EFI
/// partition, no name server, nobody who listens to the power button. Units that failed are the recipe's business.
fn wait_booted(agent: &Agent, context: &mut Context<'_>) -> Result<(), StepError> {
    const SCRIPT: &str = "[ ! -d /run/systemd/system ] || systemctl is-system-running --wait; true";
    context.progress.phase("waiting until the guest has started everything");
    exec(agent, &["sh", "-c", SCRIPT], READY_LIMIT, context).map(drop)
}

pub(crate) fn shut_down(machine: &Machine, agent: &Agent, console: &Path) -> Result<(), StepError> {
    let asked = agent.shutdown(ShutdownMode::PowerDown);
    if asked.is_ok() && machine.wait_exit(SHUTDOWN_LIMIT).is_some_and(|exit| exit.is_orderly()) {
        return Ok(());
    }
    let stopped = machine.stop(StopLimits::default());
    match stopped.by {
        StoppedBy::Agent | StoppedBy::PowerButton | StoppedBy::Itself if stopped.exit.is_orderly() => Ok(()),
        by => Err(StepError::NotShutDown { by: format!("{by:?}"), console: tail_of_file(console) }),
    }
}

/// Waits in slices, so that a cancelled build does not wait for a guest that takes minutes.
pub(crate) fn wait_ready(
    machine: &Machine,
    agent: &Agent,
    limit: Duration,
    console: &Path,
    context: &mut Context<'_>,
) -> Result<(), StepError> {
    context.progress.phase("waiting for the guest agent");
    let give_up = Instant::now() + limit;
    loop {
        let slice = Duration::from_secs(2).min(give_up.saturating_duration_since(Instant::now()));
        let error = match agent.wait_ready(slice, |_| {}) {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        if context.cancelled()() {
            return Err(StepError::Gone { what: "the build was stopped".to_owned() });
        }
        if error.is_machine_gone() || !machine.is_alive() || Instant::now() >= give_up {
            let error = match error {
                AgentError::TimedOut { command, .. } => AgentError::TimedOut { command, limit },
                other => other,
            };
            return Err(StepError::NotReady { error, console: tail_of_file(console) });
        }
    }
}

fn run(agent: &Agent, argv: &[String], limit: Duration, context: &mut Context<'_>) -> Result<(), StepError> {
    let words: Vec<&str> = argv.iter().map(String::as_str).collect();
    let output = exec(agent, &words, limit, context)?;
    check(&words, &output)
}

/// One archive instead of a call per file: modes and links come along, and the agent's slow file writing happens once.
fn copy(agent: &Agent, files: &[FileIn], context: &mut Context<'_>) -> Result<(), StepError> {
    const ARCHIVE: &str = "/var/tmp/no43-copy.tar";
    let what = "copying files in";
    let mut bytes = Vec::new();
    let entries: Vec<Entry> = files.iter().map(debian::entry_of).collect();
    debian::archive(&entries, &mut bytes)
        .map_err(|error| StepError::Gone { what: format!("{what}: {error}") })?;
    agent.write_file(ARCHIVE, &bytes).map_err(|error| StepError::Agent { what: what.to_owned(), error })?;
    let unpack = [
        "tar",
        "--extract",
        "--file",
        ARCHIVE,
        "--directory",
        "/",
        "--no-same-owner",
        "--preserve-permissions",
    ];
    check(&unpack, &exec(agent, &unpack, SHORT_LIMIT * 5, context)?)?;
    check(&["rm", ARCHIVE], &exec(agent, &["rm", ARCHIVE], SHORT_LIMIT, context)?)?;
    for file in files.iter().filter(|file| file.owner != "root:root") {
        let chown = ["chown", "--no-dereference", &file.owner, &file.to];
        check(&chown, &exec(agent, &chown, SHORT_LIMIT, context)?)?;
    }
    Ok(())
}

/// By the guest's own package manager; what it downloaded does not stay in the layer.
fn install(
    agent: &Agent,
    packages: &[String],
    limit: Duration,
    context: &mut Context<'_>,
) -> Result<(), StepError> {
    const SCRIPT: &str = "export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8; set -e; apt-get -q update; \
        apt-get -q -y --no-install-recommends install \"$@\"; apt-get clean; find /var/lib/apt/lists -type f -delete; sync";
    let mut argv = vec!["sh", "-c", SCRIPT, "apt-get"];
    argv.extend(packages.iter().map(String::as_str));
    let output = exec(agent, &argv, limit, context)?;
    let shown: Vec<&str> =
        ["apt-get", "install"].into_iter().chain(packages.iter().map(String::as_str)).collect();
    check(&shown, &output)
}

fn reboot(
    machine: &Machine,
    agent: &Agent,
    limit: Duration,
    console: &Path,
    context: &mut Context<'_>,
) -> Result<(), StepError> {
    let started = Instant::now();
    let events = machine.subscribe();
    agent
        .shutdown(ShutdownMode::Reboot)
        .map_err(|error| StepError::Agent { what: "asking for a restart".to_owned(), error })?;
    let reset = wait_event(&events, limit, |event| (event.name == "RESET").then_some(()));
    match reset {
        Some(()) => wait_ready(machine, agent, limit.saturating_sub(started.elapsed()), console, context),
        None if !machine.is_alive() => {
            Err(StepError::Gone { what: "it ended instead of restarting".to_owned() })
        }
        None => Err(StepError::NoReset { limit }),
    }
}

fn wait_for(
    agent: &Agent,
    what: &Awaited,
    limit: Duration,
    context: &mut Context<'_>,
) -> Result<(), StepError> {
    let argv: Vec<&str> = match what {
        Awaited::File(path) => vec!["test", "-e", path],
        Awaited::Unit(unit) => vec!["systemctl", "is-active", unit],
        Awaited::Run(argv) => argv.iter().map(String::as_str).collect(),
    };
    let give_up = Instant::now() + limit;
    loop {
        let output = exec(agent, &argv, limit, context)?;
        if output.success() {
            return Ok(());
        }
        if Instant::now() + LOOK_AGAIN > give_up {
            let said = tail(&output);
            let last = if said.is_empty() {
                String::new()
            } else {
                format!("; the last look said:{}", indented(&said))
            };
            return Err(StepError::Awaited { what: awaited_in_words(what), limit, last });
        }
        if context.cancelled()() {
            return Err(StepError::Gone { what: "the build was stopped".to_owned() });
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// As [`exec`], with the agent's own environment: for guests that are no Linux.
pub(crate) fn exec_plain(
    agent: &Agent,
    argv: &[&str],
    limit: Duration,
    context: &mut Context<'_>,
) -> Result<ExecOutput, StepError> {
    let what = || format!("running {}", argv.first().copied().unwrap_or_default());
    let output = agent
        .exec(argv, &ExecLimits::within(limit))
        .map_err(|error| StepError::Agent { what: what(), error })?;
    context.log_line(&format!("$ {}\n{}{}", argv.join(" "), output.stdout_text(), output.stderr_text()));
    Ok(output)
}

fn exec(
    agent: &Agent,
    argv: &[&str],
    limit: Duration,
    context: &mut Context<'_>,
) -> Result<ExecOutput, StepError> {
    use std::io::Write;
    // Without a PATH of its own the agent looks programs up in whatever its service manager left it.
    let limits = ExecLimits {
        env: vec![
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into(),
            "HOME=/root".into(),
        ],
        ..ExecLimits::within(limit)
    };
    let what = || format!("running {}", argv.first().copied().unwrap_or_default());
    let output = agent.exec(argv, &limits).map_err(|error| StepError::Agent { what: what(), error })?;
    let _ = writeln!(context.log, "$ {}\n{}{}", argv.join(" "), output.stdout_text(), output.stderr_text());
    Ok(output)
}

pub(crate) fn check(argv: &[&str], output: &ExecOutput) -> Result<(), StepError> {
    if output.success() {
        return Ok(());
    }
    let code = match (output.code, output.signal) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "an unknown end".to_owned(),
    };
    Err(StepError::Program { program: argv.join(" "), code, tail: tail(output) })
}

fn tail(output: &ExecOutput) -> Vec<String> {
    last_lines(&(output.stdout_text() + &output.stderr_text()))
}

pub(crate) fn tail_of_file(path: &Path) -> Vec<String> {
    last_lines(&String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()))
}

/// Control characters are escaped: this came from a guest and goes to a terminal.
fn last_lines(text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    let shown = &lines[lines.len().saturating_sub(TAIL)..];
    shown.iter().map(|line| clean(line)).collect()
}

/// A guest's words for a terminal.
pub(crate) fn clean(line: &str) -> String {
    line.chars()
        .take(300)
        .flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] })
        .collect()
}

pub(crate) fn create_overlay(disk: &Path, below: &Image) -> Result<(), BuildError> {
    let mut command = child::command(&tool("qemu-img", "qemu-utils")?);
    command.args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"]).arg(below.disk()).arg(disk);
    child::output("qemu-img", command).map(drop)
}

/// Only the name in the header changes; the overlay's contents stay what they are.
pub(crate) fn rebase(disk: &Path, onto: &Path) -> Result<(), BuildError> {
    let mut command = child::command(&tool("qemu-img", "qemu-utils")?);
    command.args(["rebase", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b"]).arg(onto).arg(disk);
    child::output("qemu-img", command).map(drop)
}

/// The same file under another name where that is possible: it is read-only anyway.
fn same_file(from: &Path, to: &Path) -> Result<(), BuildError> {
    match std::fs::hard_link(from, to) {
        Ok(()) => Ok(()),
        Err(_) => Ok(std::fs::copy(from, to).map(drop).map_err(StoreError::io("copy", from))?),
    }
}

/// What the names of run directories begin with; the builder's process follows.
pub(crate) const RUN_DIR_PREFIX: &str = "no43-step-";

/// Where run directories are, the first choice first.
pub(crate) fn run_dir_places() -> Vec<PathBuf> {
    let own = std::env::var_os("XDG_RUNTIME_DIR")
        .map(PathBuf::from)
        .filter(|dir| dir.is_dir() && dir.as_os_str().len() < 60);
    own.into_iter().chain([std::env::temp_dir()]).collect()
}

/// Sockets need a short path, so the machine runs outside the store.
pub(crate) fn run_dir(staging: &mut Staging) -> Result<PathBuf, BuildError> {
    let parent = run_dir_places().swap_remove(0);
    let dir = parent.join(format!("{RUN_DIR_PREFIX}{}", std::process::id()));
    staging.owns_outside(&dir)?;
    Ok(dir)
}

pub(crate) fn versions(qemu: &Path) -> std::collections::BTreeMap<String, String> {
    let output = Command::new(qemu).arg("--version").output().ok();
    let line =
        output.and_then(|output| String::from_utf8_lossy(&output.stdout).lines().next().map(str::to_owned));
    line.into_iter().map(|line| ("qemu".to_owned(), line)).collect()
}

fn seconds(limit: u64) -> Duration {
    Duration::from_secs(limit)
}

fn awaited_in_words(what: &Awaited) -> String {
    match what {
        Awaited::File(path) => format!("the file {path}"),
        Awaited::Unit(unit) => format!("the unit {unit} being active"),
        Awaited::Run(argv) => format!("'{}' ending with 0", argv.join(" ")),
    }
}

/// A step as a progress line says it.
struct InWords<'a>(&'a StepPlan);

impl fmt::Display for InWords<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            StepPlan::Run { argv, .. } => write!(f, "running {}", argv.join(" ")),
            StepPlan::Copy { files } => write!(f, "copying {} files in", files.len()),
            StepPlan::Install { packages, .. } => write!(f, "installing {}", packages.join(" ")),
            StepPlan::Driver(_) => f.write_str("installing NVIDIA's driver and building its module"),
            StepPlan::Reboot { .. } => f.write_str("restarting the guest"),
            StepPlan::WaitFor { what, .. } => write!(f, "waiting for {}", awaited_in_words(what)),
        }
    }
}

fn indented(lines: &[String]) -> String {
    lines.iter().map(|line| format!("\n  {line}")).collect()
}
