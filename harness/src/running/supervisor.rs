//! The process that belongs to one running machine: starts it or takes it over, watches it, gives its cards back.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use no43_builder::plan::{Plan, SharePlan};
use no43_builder::store::Store;
use no43_guest::setup::first_start::FirstStart;
use no43_host::{Lease, ProcessRef, kvm};
use no43_machine::tpm::Swtpm;
use no43_machine::{Accel, Machine, StartOptions, accel};
use serde::{Deserialize, Serialize};

use super::beside::Beside;
use super::control::{self, Shared, Wake};
use super::event::Happened;
use super::host::{Host, Refusal, Taken};
use super::hub::Hub;
use super::keep_input::keep_input;
use super::logind::{self, Guard};
use super::note::{RunNote, Runs, Stage};
use super::spec::{Parts, describe, tpm_socket};
use super::watch::Watch;
use crate::exit_codes;
use crate::instance::{Held, Instance, Instances};

/// For swtpm, which ends with QEMU.
const TPM_LIMIT: Duration = Duration::from_secs(30);
/// For followers to read the last lines before the process ends.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// What a supervisor is to do; read from its standard input.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(clippy::large_enum_variant, reason = "there is one in a process")]
pub enum Request {
    /// Start an instance.
    Start(StartRequest),
    /// Take over a machine that runs.
    Adopt {
        /// Its name.
        name: String,
    },
}

/// Which instance, and how.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StartRequest {
    /// The instance.
    pub name: String,
    /// The folder of all instances.
    pub instances: PathBuf,
    /// The store of its image.
    pub store: PathBuf,
    /// What the machine is.
    pub plan: Plan,
    /// The command that it is started for and without which it is of no use: a job's.
    pub owner: Option<ProcessRef>,
    /// How long to wait for cards that others have, in seconds.
    pub wait_s: u64,
    /// Read-only raw disks for this run.
    pub extra_disks: Vec<PathBuf>,
    /// What its guest is given when it first answers. This request goes through a pipe and is never written down.
    #[serde(default)]
    pub first_start: Option<FirstStart>,
    /// QEMU itself.
    pub qemu: PathBuf,
    /// The guest gets this host's last keyboard or pointer if the recipe says so.
    #[serde(default)]
    pub last_input: bool,
}

/// How a supervisor is started.
#[derive(Debug, Clone, Copy)]
pub struct Launch<'a> {
    /// This program.
    pub no43: &'a Path,
    /// Where running machines are.
    pub runs: &'a Runs,
}

/// What wakes a supervisor; made before it begins, so that a signal handler can have its end.
#[derive(Debug)]
pub struct Supervisor {
    wake: Sender<Wake>,
    woken: Receiver<Wake>,
}

impl Default for Supervisor {
    fn default() -> Self {
        let (wake, woken) = channel();
        Self { wake, woken }
    }
}

impl Supervisor {
    /// To be called when this process is asked to end: the guest is shut down in order.
    pub fn stopper(&self) -> impl Fn() + Send + use<> {
        let wake = self.wake.clone();
        move || drop(wake.send(Wake::Signal))
    }
}

/// Watches one machine from its start to its end. `ready` is told when there is a socket to talk to, or why there is none.
pub fn supervise(
    supervisor: Supervisor,
    request: &Request,
    ready: &mut dyn FnMut(Result<(), Refusal>),
) -> u8 {
    // a session of its own: the terminal's end is not ours. Refused only to a leader of a group, which we are not.
    let _ = rustix::process::setsid();
    let host = match Host::here() {
        Ok(host) => host,
        Err(refusal) => {
            let code = refusal.code;
            ready(Err(refusal));
            return code;
        }
    };
    let opened = match request {
        Request::Start(start) => Run::open(supervisor, host, &start.instances, &start.name),
        Request::Adopt { name } => Run::open_running(supervisor, host, name),
    };
    let mut run = match opened {
        Ok(run) => run,
        Err(refusal) => {
            let code = refusal.code;
            ready(Err(refusal));
            return code;
        }
    };
    let result = match request {
        Request::Start(start) => run.start(start, ready),
        Request::Adopt { .. } => run.adopt(ready),
    };
    run.end(&result)
}

/// A run, its instance held.
pub(super) struct Run {
    pub(super) host: Host,
    pub(super) runs: Runs,
    pub(super) instance: Instance,
    instances: Instances,
    held: Option<Held>,
    pub(super) shared: Arc<Shared>,
    pub(super) woken: Receiver<Wake>,
    pub(super) note: RunNote,
    /// Somebody heard that this supervisor serves; then the end is told as events.
    announced: bool,
    /// What the guest is given when it first answers.
    pub(super) first_start: Option<FirstStart>,
    /// To be mounted in a guest that starts.
    pub(super) shares: Vec<SharePlan>,
    /// Of a guest whose driver is kept as it is.
    pub(super) keep_driver: Option<Plan>,
}

impl Run {
    fn open(supervisor: Supervisor, host: Host, instances: &Path, name: &str) -> Result<Self, Refusal> {
        let instances = Instances::at(instances);
        let instance = instances.find(name).map_err(|error| Refusal::new(exit_codes::INSTANCE, error))?;
        let held = instance.hold().map_err(|error| Refusal::new(exit_codes::INSTANCE, error))?;
        let runs = Runs::under(&host.state, &host.roots);
        let dirs = runs.dirs(name);
        dirs.create().map_err(|error| {
            Refusal::new(exit_codes::HOST_SETUP, format!("failed to make {}: {error}", dirs.dir().display()))
        })?;
        let shared = Arc::new(Shared {
            hub: Hub::new(&dirs.dir().join("events.jsonl")),
            wake: supervisor.wake,
            give_up: AtomicBool::new(false),
            serves: AtomicBool::new(false),
        });
        let note = RunNote {
            name: name.to_owned(),
            instances: instances.dir().to_owned(),
            supervisor: ProcessRef::current(&host.roots),
            lease: None,
            began: crate::instance::now(),
            stage: Stage::Starting,
            ephemeral: instance.record.ephemeral,
            owner: None,
            cards: Vec::new(),
            cpus: 0,
            memory_mib: 0,
            forwards: Vec::new(),
            companions: Vec::new(),
        };
        Ok(Self {
            host,
            runs,
            instance,
            instances,
            held: Some(held),
            shared,
            woken: supervisor.woken,
            note,
            announced: false,
            first_start: None,
            keep_driver: None,
            shares: Vec::new(),
        })
    }

    fn open_running(supervisor: Supervisor, host: Host, name: &str) -> Result<Self, Refusal> {
        let runs = Runs::under(&host.state, &host.roots);
        let gone = || {
            Refusal::new(exit_codes::FAILED_HOST, format!("nothing is written down about a machine '{name}'"))
        };
        let note = runs.note(name).ok_or_else(gone)?;
        let mut run = Self::open(supervisor, host, &note.instances, name)?;
        run.note = RunNote { supervisor: run.note.supervisor, ..note };
        Ok(run)
    }

    pub(super) fn hub(&self) -> &Hub {
        &self.shared.hub
    }

    /// Writes down how far it is.
    pub(super) fn set_stage(&mut self, stage: Stage) {
        self.note.stage = stage;
        self.write_note();
    }

    fn write_note(&self) {
        if let Err(error) = self.runs.write_note(&self.note) {
            self.hub().warn(format!("failed to write down how far this run is: {error}"));
        }
    }

    /// From here on `attach`, `stop` and `ps` work.
    fn announce(&mut self, ready: &mut dyn FnMut(Result<(), Refusal>)) -> Result<(), Refusal> {
        self.write_note();
        control::serve(&self.runs.control(&self.note.name), &self.shared).map_err(|error| {
            Refusal::new(exit_codes::HOST_SETUP, format!("failed to listen for other commands: {error}"))
        })?;
        self.announced = true;
        ready(Ok(()));
        Ok(())
    }

    fn start(
        &mut self,
        start: &StartRequest,
        ready: &mut dyn FnMut(Result<(), Refusal>),
    ) -> Result<u8, Refusal> {
        let name = self.note.name.clone();
        if let Ok(record) = self.runs.dirs(&name).running_record()
            && record.is_running()
        {
            let refusal = Refusal::new(
                exit_codes::INSTANCE,
                format!("'{name}' runs already (process {}): no43 attach {name}", record.pid),
            );
            ready(Err(refusal.clone()));
            return Err(refusal);
        }
        self.note.owner = start.owner;
        self.watch_owner();
        self.note.cpus = start.plan.machine.cpus;
        self.note.memory_mib = start.plan.machine.memory_mib;
        self.note.forwards.clone_from(&start.plan.devices.forwards);
        self.shares.clone_from(&start.plan.devices.shares);
        if let Err(refusal) = self.announce(ready) {
            ready(Err(refusal.clone()));
            return Err(refusal);
        }
        let store =
            Store::open(Some(&start.store)).map_err(|error| Refusal::new(exit_codes::STORE, error))?;
        let image = self
            .instance
            .ready(&self.instances, &store)
            .map_err(|error| Refusal::new(exit_codes::INSTANCE, error))?;
        self.check_disks()?;
        self.host.recover(&self.shared.hub);
        let wait = Duration::from_secs(start.wait_s);
        let mut taken = self.host.take(&start.plan, &name, wait, &self.shared.give_up, &self.shared.hub)?;
        self.note.lease = Some(taken.lease.id().to_owned());
        self.note.cards = taken.borrowed.iter().map(|one| one.card.titled()).collect();
        self.write_note();
        let start = &match self.with_input(start, &taken) {
            Ok(start) => start,
            Err(refusal) => {
                let _ = self.host.give_back(taken.lease, &self.shared.hub);
                return Err(refusal);
            }
        };
        let (machine, tpm) = match self.start_machine(start, image.as_ref(), &mut taken) {
            Ok(machine) => machine,
            Err(refusal) => {
                let _ = self.host.give_back(taken.lease, &self.shared.hub);
                return Err(refusal);
            }
        };
        let ready_limit = Duration::from_secs(start.plan.checks.ready_limit);
        self.first_start.clone_from(&start.first_start);
        self.keep_driver = start.plan.driver.keep.then(|| start.plan.clone());
        Ok(self.watch(machine, tpm, Some(taken.lease), Some(ready_limit)))
    }

    /// The same, but this host keeps its last keyboard and pointer.
    fn with_input(&self, start: &StartRequest, taken: &Taken) -> Result<StartRequest, Refusal> {
        let mut start = start.clone();
        let functions = taken.lease.functions();
        let said = keep_input(&mut start.plan, &functions, start.last_input, &self.host.roots)?;
        said.into_iter().for_each(|what| self.hub().note(what));
        Ok(start)
    }

    /// Binds, describes, starts.
    fn start_machine(
        &mut self,
        start: &StartRequest,
        image: Option<&no43_builder::image::Image>,
        taken: &mut Taken,
    ) -> Result<(Machine, Option<Swtpm>), Refusal> {
        let setup = |error: &dyn std::fmt::Display| Refusal::new(exit_codes::HOST_SETUP, error.to_string());
        let dirs = self.runs.dirs(&self.note.name);
        let verdict = kvm::probe_cached(&self.host.roots, &self.host.state);
        let (accel, warning) = accel::choose(&verdict);
        if let Some(warning) = warning {
            self.hub().warn(warning);
        }
        let parts = Parts {
            plan: &start.plan,
            instance: &self.instance,
            image,
            cards: &taken.borrowed,
            accel,
            dirs: &dirs,
            extra_disks: &start.extra_disks,
        };
        let (mut spec, tpm_state) = describe(&parts)?;
        if spec.memlock_needed().is_some() {
            no43_host::memlock::check(spec.memory_mib).map_err(|error| setup(&error))?;
        }
        self.given_up()?;
        if spec.huge_pages {
            let pages = taken.lease.huge_pages(spec.memory_mib, &self.host.privilege);
            self.hub().note(format!("the guest's memory: {}", pages.map_err(|error| setup(&error))?));
        }
        let beside = Beside::open(
            &start.plan,
            &mut spec,
            &dirs,
            &self.host.privilege,
            &taken.lease,
            &self.shared.hub,
        )?;
        self.note.companions = beside.companions.processes().to_vec();
        self.write_note();
        let began = Instant::now();
        self.host.bind(taken, &self.shared.hub)?;
        self.given_up()?;
        let tpm = tpm_state.map(|state| Swtpm::start_lasting(&state, &tpm_socket(&dirs))).transpose();
        let mut tpm = tpm.map_err(|error| setup(&error))?;
        spec.tpm = tpm.as_ref().map(|tpm| tpm.socket().to_owned());
        let options = StartOptions {
            qemu: start.qemu.clone(),
            outlives: true,
            network: beside.network,
            ..StartOptions::new(dirs.dir())
        };
        let not_noted = |error: no43_host::StateError| {
            self.hub().warn(format!("failed to write down which QEMU uses the cards: {error}"));
        };
        taken.lease.announce_machine(&dirs.qmp_socket()).unwrap_or_else(not_noted);
        let lease = &mut taken.lease;
        let machine = Machine::start_noted(&spec, &options, |record| {
            lease.attach_machine(record.pid, record.start_time, &record.qmp_socket).unwrap_or_else(not_noted);
        });
        let machine = machine.map_err(|error| Refusal::new(exit_codes::FAILED_HOST, error))?;
        if let Some(tpm) = &mut tpm {
            tpm.leave_running();
        }
        beside.companions.belong_to_qemu();
        self.hub().say(Happened::Started {
            pid: machine.pid(),
            took_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
            accelerator: if accel == Accel::Kvm { "KVM" } else { "TCG" }.into(),
        });
        Ok((machine, tpm))
    }

    /// Wakes the supervisor when the command that the machine was started for is gone.
    fn watch_owner(&self) {
        let Some(owner) = self.note.owner else { return };
        let (shared, roots) = (Arc::clone(&self.shared), self.host.roots.clone());
        let wait = move || {
            wait_for_end(owner, &roots);
            shared.give_up.store(true, Ordering::SeqCst);
            let _ = shared.wake.send(Wake::OwnerGone);
        };
        let _ = std::thread::Builder::new().name("owner".into()).stack_size(128 << 10).spawn(wait);
    }

    /// The machine outlives the command that it was started for.
    pub(super) fn disown(&mut self) {
        self.note.owner = None;
        self.write_note();
    }

    fn given_up(&self) -> Result<(), Refusal> {
        match self.shared.give_up.load(Ordering::SeqCst) {
            true => {
                Err(Refusal::new(exit_codes::INTERRUPTED, "given up while it started; nothing of it is left"))
            }
            false => Ok(()),
        }
    }

    /// Kept disks that another running instance has.
    fn check_disks(&self) -> Result<(), Refusal> {
        if self.instance.record.disks.is_empty() {
            return Ok(());
        }
        for row in
            self.runs.list().into_iter().filter(|row| row.note.name != self.note.name && row.pid.is_some())
        {
            let Ok(Some(other)) = Instances::at(&row.note.instances).get(&row.note.name) else { continue };
            let theirs: Vec<PathBuf> =
                other.record.disks.iter().map(|disk| canonical(&other.kept_disk(disk))).collect();
            for disk in &self.instance.record.disks {
                let path = self.instance.kept_disk(disk);
                if theirs.contains(&canonical(&path)) {
                    let by = row.note.name.clone();
                    let error =
                        crate::instance::InstanceError::DiskInUse { disk: disk.name.clone(), path, by };
                    return Err(Refusal::new(exit_codes::INSTANCE, error));
                }
            }
        }
        Ok(())
    }

    fn adopt(&mut self, ready: &mut dyn FnMut(Result<(), Refusal>)) -> Result<u8, Refusal> {
        let adopted = self.take_over();
        let (machine, tpm, lease) = match adopted {
            Ok(adopted) => adopted,
            Err(refusal) => {
                ready(Err(refusal.clone()));
                return Err(refusal);
            }
        };
        self.note.lease = lease.as_ref().map(|lease| lease.id().to_owned());
        self.note.stage = Stage::Running;
        if let Err(refusal) = self.announce(ready) {
            ready(Err(refusal.clone()));
            return Err(refusal);
        }
        self.hub().say(Happened::Adopted { pid: machine.pid() });
        self.watch_owner();
        Ok(self.watch(machine, tpm, lease, None))
    }

    fn take_over(&mut self) -> Result<(Machine, Option<Swtpm>, Option<Lease>), Refusal> {
        let failed = |error: &dyn std::fmt::Display| Refusal::new(exit_codes::FAILED_HOST, error.to_string());
        let machine =
            Machine::adopt(self.runs.dirs(&self.note.name).dir()).map_err(|error| failed(&error))?;
        let lease = match &self.note.lease {
            Some(id) => {
                Lease::adopt(id, &self.host.state, &self.host.roots).map_err(|error| failed(&error))?
            }
            None => None,
        };
        let tpm = Swtpm::adopt(&tpm_socket(&self.runs.dirs(&self.note.name)));
        Ok((machine, tpm, lease))
    }

    /// Keeps the host awake and its shutdown waiting; what cannot be had is said.
    fn hold_host(&self) -> Guard {
        let (guard, said) = logind::hold(&self.note.name, &self.note.cards, &self.shared.wake);
        said.into_iter().for_each(|what| self.hub().note(what));
        guard
    }

    fn watch(
        &mut self,
        machine: Machine,
        tpm: Option<Swtpm>,
        lease: Option<Lease>,
        ready_limit: Option<Duration>,
    ) -> u8 {
        // after QEMU's start, which nothing delays, and until the cards are back
        let guard = self.hold_host();
        self.set_stage(Stage::Running);
        self.shared.serves.store(true, Ordering::SeqCst);
        let ended = Watch::new(self, &machine).until_the_end(ready_limit);
        drop(machine);
        // the instance is held until then: whoever copies or starts it next finds a state at rest
        if let Some(Err(error)) = tpm.map(|tpm| tpm.wait_end(TPM_LIMIT)) {
            self.hub().warn(error.to_string());
        }
        self.shared.serves.store(false, Ordering::SeqCst);
        self.set_stage(Stage::Ending);
        self.hub().say(Happened::Ended { how: ended.how.clone(), orderly: ended.orderly });
        let back = lease.map_or(Ok(()), |lease| self.host.give_back(lease, &self.shared.hub));
        drop(guard);
        let last = crate::instance::LastRun {
            began: self.note.began,
            ended: crate::instance::now(),
            how: ended.how,
            orderly: ended.orderly,
        };
        if !self.note.ephemeral
            && let Err(error) = self.instance.note_last_run(&last)
        {
            self.hub().warn(error.to_string());
        }
        if back.is_err() { exit_codes::FAILED_HOST } else { ended.code }
    }

    /// Forgets the run, and tells followers that nothing more comes.
    fn end(&mut self, result: &Result<u8, Refusal>) -> u8 {
        let code = match result {
            Ok(code) => *code,
            Err(refusal) => refusal.code,
        };
        if !self.announced {
            // another supervisor's run directory may be in use: nothing of it was touched
            return code;
        }
        if let Err(refusal) = result {
            self.hub().say(Happened::Failed { cause: refusal.cause.clone() });
        }
        let name = self.note.name.clone();
        if self.note.ephemeral {
            self.held = None;
            let removed =
                Store::open(Some(&self.instance.system.store)).map_err(|error| error.to_string()).and_then(
                    |store| self.instances.remove(&self.instance, &store).map_err(|error| error.to_string()),
                );
            if let Err(error) = removed {
                self.hub().warn(format!("the throw-away disk is still there: {error}"));
            }
        }
        self.runs.forget(&name);
        self.hub().say(Happened::Done { code });
        self.hub().close();
        self.held = None;
        std::thread::sleep(LAST_WORDS);
        code
    }
}

/// Returns when the process is gone; at once if it is gone already.
fn wait_for_end(process: ProcessRef, roots: &no43_host::Roots) {
    use rustix::event::{PollFd, PollFlags, poll};
    use rustix::process::{Pid, PidfdFlags, pidfd_open};
    let pid = i32::try_from(process.pid).ok().and_then(Pid::from_raw);
    let Some(Ok(pidfd)) = pid.map(|pid| pidfd_open(pid, PidfdFlags::empty())) else { return };
    // looked at after the pidfd is open: from here on it cannot become another process
    if !process.is_alive(roots) {
        return;
    }
    while let Err(rustix::io::Errno::INTR) = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], None) {}
}

fn canonical(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}
