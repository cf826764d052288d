//! One run: lease, bind, start, check, restart, check again, stop, give back.

mod drivers;
mod lifecycle;
mod stop_code;

use self::lifecycle::Stand;
use super::cards::{self, Held};
use super::driver_change::Version;
use super::dumps::Stops;
use super::eye::LabEye;
use super::guest::{LiveGuest, exit_words};
use super::keep::Keep;
use super::spec::{Borrowed, Scratch, machine_spec, subjects};
use super::witness::Witness;
use super::{VerifyOptions, disk};
use crate::checks::{self, Asking, Choice, Eye, Guest, HostEye, Limits, RoundResult, Subject};
use crate::diagnosis::{self, Facts, Mark};
use crate::evidence::{CheckResult, Event, Fact, Outcome, Recorder, Round, tail};
use crate::stop::Stop;
use crate::verdict::{FailureKind, Verdict};
use crate::{driver_lock, words};
use no43_builder::image::Image;
use no43_builder::plan::{Firmware as PlannedFirmware, Plan};
use no43_guest::setup::first_start::FirstStart;
use no43_host::{Inventory, kvm};
use no43_machine::firmware::{self, Wanted};
use no43_machine::spec::{Display, OnPanic};
use no43_machine::tpm::Swtpm;
use no43_machine::{Accel, AgentError, Machine, MachineSpec, StartOptions, StopLimits, StoppedBy};
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// For an orderly shutdown; the disk is thrown away, so a guest that takes longer is switched off with a note.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(90);
/// Phases that end before there is a QEMU that could say something.
const BEFORE_QEMU: &[&str] = &["lease", "bind", "memory"];
/// Between two looks at the emulated screen while waiting.
const SCREEN_PAUSE: Duration = Duration::from_secs(3);

/// What went wrong, where.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    /// The check or phase.
    pub(crate) place: String,
    /// Who is to blame.
    pub(crate) kind: FailureKind,
    /// One sentence.
    pub(crate) cause: String,
}

impl Failure {
    pub(super) fn new(place: &str, kind: FailureKind, cause: impl Into<String>) -> Self {
        Self { place: place.into(), kind, cause: words::clean(&cause.into()) }
    }

    /// Whose fault it is by all that was seen: of a card that has left its host's bus, a guest only sees the consequence.
    pub(super) fn judged_by(mut self, facts: &Facts) -> Self {
        let gone: Vec<&str> = facts.seen("host.gone").collect();
        if self.kind == FailureKind::Guest && !gone.is_empty() {
            self.kind = FailureKind::Host;
            self.cause =
                format!("{} left this host's bus while the machine ran; {}", gone.join(" and "), self.cause);
        }
        self
    }

    pub(super) fn interrupted(place: &str) -> Self {
        Self::new(
            place,
            FailureKind::Interrupted,
            format!("stopped in phase '{place}' as asked; the cards are back"),
        )
    }
}

/// How a run ended.
#[derive(Debug, Default)]
pub(super) struct Ended {
    /// All checks, in order.
    pub(super) results: Vec<CheckResult>,
    /// The first thing that went wrong.
    pub(super) failure: Option<Failure>,
    /// It went wrong in a power cycle, after it had been right: when, and how often it had been.
    pub(super) unstable: Option<String>,
}

impl Ended {
    /// Passed needs at least one check about a card that was asked: a run that proved nothing has not passed.
    pub(super) fn verdict(&self) -> Verdict {
        if let (Some(failure), Some(when)) = (&self.failure, &self.unstable)
            && failure.kind == FailureKind::Guest
        {
            return Verdict::Unstable { reason: format!("{when}: {}", failure.cause) };
        }
        if let Some(failure) = &self.failure {
            return Verdict::failed(failure.kind, failure.cause.clone());
        }
        let proved = self.results.iter().any(|r| r.passed() && !r.card.is_empty());
        let reason = self.results.iter().find_map(|r| match &r.answer {
            Outcome::Skipped { reason } => {
                Some(format!("nothing was proved: '{}' was skipped: {reason}", r.check))
            }
            _ => None,
        });
        match (proved, reason) {
            (true, _) => Verdict::Passed,
            (false, Some(reason)) => Verdict::Skipped { reason },
            (false, None) => Verdict::Skipped {
                reason: "nothing was proved: the recipe asks for no check of a card".into(),
            },
        }
    }

    pub(super) fn fail(&mut self, failure: Failure) {
        // what comes after the first failure is mostly its consequence
        if self.failure.is_none() {
            self.failure = Some(failure);
        }
    }
}

/// What all steps of a run share.
struct Run<'a, 'r> {
    plan: &'a Plan,
    image: &'a Image,
    options: &'a VerifyOptions,
    stop: &'a Stop,
    recorder: &'a mut Recorder<'r>,
    ended: Ended,
    marks: Vec<Mark>,
    /// What causes are judged by, collected on the way.
    facts: Facts,
    guest_facts: Facts,
    witness: Option<Witness>,
    choice: Choice,
    qemu_words: Vec<String>,
    /// Stops of Windows in the machine that was started last.
    stops: Option<Stops>,
    seeds: HashMap<String, u64>,
    /// Lives as long as its machine.
    tpm: Option<Swtpm>,
    /// The machine was left running, and has the cards.
    left: bool,
    /// The guest's boot id in the last round: a reboot gives another.
    boot_id: Option<String>,
    /// Of the driver that must run; changes with it.
    version: Version,
    /// What the guest's user is logged on with.
    log_on: Option<FirstStart>,
}

/// One run from the lease to the cards' return. Whatever happens inside, the cards are given back and the evidence is kept.
pub(super) fn section(
    plan: &Plan,
    image: &Image,
    options: &VerifyOptions,
    stop: &Stop,
    recorder: &mut Recorder<'_>,
) -> Ended {
    let mut run = Run {
        plan,
        image,
        options,
        stop,
        recorder,
        ended: Ended::default(),
        marks: Vec::new(),
        facts: Facts::default(),
        guest_facts: Facts::default(),
        witness: None,
        choice: choice(plan, options),
        qemu_words: Vec::new(),
        stops: None,
        seeds: HashMap::new(),
        boot_id: None,
        version: Version::of(plan),
        tpm: None,
        left: false,
        log_on: None,
    };
    let taken = run.read_log_on().and_then(|()| cards::take(plan, options, run.recorder));
    let mut held = match taken {
        Ok(held) => held,
        Err(failure) => {
            run.facts.merge(&planned_facts(plan, &[]));
            run.ended.fail(failure);
            run.explain(None);
            return run.ended;
        }
    };
    if let Err(failure) = run.with_cards(&mut held) {
        run.ended.fail(failure);
    }
    let explained = run.ended.failure.is_some();
    run.give_back(held);
    if !explained {
        run.explain(None);
    }
    run.ended
}

impl Run<'_, '_> {
    /// Binds, starts, checks and stops. Returns early with the first thing that makes going on pointless.
    fn with_cards(&mut self, held: &mut Held) -> Result<(), Failure> {
        let setup = |e: anyhow::Error| Failure::new("disk", FailureKind::HostSetup, format!("{e:#}"));
        let mut removed_at_the_end = None;
        let scratch = match &self.options.keep {
            Some(keep) => keep.scratch().map_err(|e| setup(e.into()))?,
            None => {
                let dir = disk::scratch(self.options.scratch.as_deref()).map_err(setup)?;
                Scratch::at(removed_at_the_end.insert(dir).path())
            }
        };
        let result = self.with_scratch(held, &scratch);
        if let Err(failure) = &result {
            self.ended.fail(failure.clone());
        }
        self.explain(Some(&scratch));
        result
    }

    fn with_scratch(&mut self, held: &mut Held, scratch: &Scratch) -> Result<(), Failure> {
        let accel = self.accel();
        let mut spec = self.describe(&held.borrowed, accel, scratch)?;
        // BARs are read before vfio-pci has the card: then no driver of the host has resized or switched them off
        let inventory = Inventory::read(&self.options.roots)
            .map_err(|e| Failure::new("bind", FailureKind::Host, e.to_string()))?;
        let subjects = subjects(&spec, &held.borrowed, &inventory)
            .map_err(|e| Failure::new("bind", FailureKind::Host, format!("{e:#}")))?;
        self.begin_to_look(held, &inventory, &spec);
        cards::check_memlock(&spec, self.options)?;
        cards::huge_pages(held, &spec, self.options)?;
        self.stopped("bind")?;
        cards::bind(held, self.options, self.recorder)?;
        self.see_bound(held);
        if self.options.keep.is_none() {
            let phase = self.recorder.begin("disk", None, "a throw-away overlay on the image");
            let made = disk::overlay(self.image, &scratch.disk).map_err(|e| format!("{e:#}"));
            self.recorder.end(phase, made.as_ref().err().map(String::as_str));
            made.map_err(|cause| Failure::new("disk", FailureKind::HostSetup, cause))?;
        }
        self.driver_disks(&mut spec, &subjects, &inventory, scratch)?;
        self.with_machine(held, &spec, &subjects, accel, scratch)
    }

    /// From here on what the host's kernel says about the cards is this run's.
    fn begin_to_look(&mut self, held: &Held, inventory: &Inventory, spec: &MachineSpec) {
        let functions: Vec<_> =
            held.borrowed.iter().flat_map(|one| one.functions.iter().map(|(address, _)| *address)).collect();
        let witness = Witness::begin(&self.options.roots, &functions, inventory);
        self.facts.merge(&witness.standing(inventory));
        self.facts.merge(&planned_facts(self.plan, &held.borrowed));
        self.facts.add("machine.type", &spec.machine_type);
        self.facts.add("machine.accelerator", accel_word(spec.accel));
        self.witness = Some(witness);
    }

    /// All functions of a lent card belong to vfio-pci, also those that the guest does not get.
    fn see_bound(&mut self, held: &Held) {
        let Some(witness) = &self.witness else { return };
        let all = held.borrowed.iter().flat_map(|one| one.card.functions.iter().copied());
        self.facts.merge(&witness.not_bound(all));
    }

    fn accel(&mut self) -> Accel {
        if self.plan.machine.uefi_under_lab {
            self.recorder.note("machine.uefi-under-lab: using TCG, QEMU's translator, inside the lab", true);
            return Accel::Tcg;
        }
        let verdict = kvm::probe_cached(&self.options.roots, &self.options.state);
        let (accel, warning) = no43_machine::accel::choose(&verdict);
        if let Some(warning) = warning {
            self.recorder.note(warning, true);
            self.marks.push(Mark::NoKvm);
        }
        accel
    }

    fn describe(
        &mut self,
        cards: &[Borrowed],
        accel: Accel,
        scratch: &Scratch,
    ) -> Result<MachineSpec, Failure> {
        let setup = |e: anyhow::Error| Failure::new("start", FailureKind::HostSetup, format!("{e:#}"));
        let private = disk::private_parts(self.image, self.plan, scratch).map_err(setup)?;
        let wanted = match self.plan.machine.firmware {
            _ if private.is_some() => None,
            PlannedFirmware::Bios => None,
            PlannedFirmware::Uefi => Some(Wanted::Plain),
            PlannedFirmware::UefiSecure => Some(Wanted::SecureBoot),
        };
        let uefi = wanted
            .map(|wanted| {
                firmware::find(wanted, no43_machine::spec::DEFAULT_MACHINE_TYPE)
                    .map_err(anyhow::Error::from)
                    .and_then(|found| Ok(found.with_own_vars(&scratch.vars)?))
            })
            .transpose()
            .map_err(setup)?
            .or_else(|| private.as_ref().map(|private| private.firmware.clone()));
        let mut spec = machine_spec(self.plan, self.image.direct_kernel(), cards, accel, scratch, uefi)
            .map_err(setup)?;
        if let Some(private) = private {
            private.apply(&mut spec);
            spec.tpm = private.tpm_state.map(|_| scratch.tpm_socket.clone());
        }
        if let Some(keep) = &self.options.keep {
            keep.open_doors(&mut spec);
        }
        let facts = vec![
            Fact::new(
                "accelerator",
                match accel {
                    Accel::Kvm => "KVM",
                    Accel::Tcg => "TCG (no KVM: 10 to 30 times slower)",
                },
            ),
            Fact::new("machine", &spec.machine_type),
            Fact::new("CPUs", spec.smp.count().to_string()),
            Fact::new("memory", words::bytes(spec.memory_mib << 20)),
        ];
        self.recorder.event(Event::Facts { subject: "machine".into(), facts });
        Ok(spec)
    }

    fn eye(&self) -> Option<LabEye> {
        LabEye::open(&self.options.roots, &[&self.options.lab_share, &self.options.runs])
    }

    fn stopped(&self, place: &str) -> Result<(), Failure> {
        if self.stop.is_set() { Err(Failure::interrupted(place)) } else { Ok(()) }
    }

    /// Starts QEMU, asks everything in every round, stops QEMU.
    fn with_machine(
        &mut self,
        held: &mut Held,
        spec: &MachineSpec,
        subjects: &[Subject],
        accel: Accel,
        scratch: &Scratch,
    ) -> Result<(), Failure> {
        let limits = limits(accel, self.eye().is_some());
        let machine = self.start(held, spec, scratch)?;
        let (machine, asked) = self.rounds(machine, held, Stand { spec, subjects, limits, scratch })?;
        let asked = self.with_stop_code(asked);
        self.keep_dump(&machine);
        if let Err(failure) = &asked {
            self.ended.fail(failure.clone());
        }
        self.last_look(&machine, spec);
        match self.options.keep.as_ref().filter(|_| self.ended.failure.is_some() && !self.stop.is_set()) {
            Some(keep) if machine.is_alive() => self.leave(keep, machine, held, scratch),
            _ => self.shut_down(&machine, scratch),
        }
        asked
    }

    /// The machine stays as it is, with its cards.
    fn leave(&mut self, keep: &Keep, mut machine: Machine, held: &Held, scratch: &Scratch) {
        if let Err(why) = keep.leave(&mut machine, held, self.plan, &self.options.roots) {
            self.recorder
                .note(format!("the machine cannot be kept, nothing can be written down of it: {why}"), true);
            return self.shut_down(&machine, scratch);
        }
        if let Some(tpm) = &mut self.tpm {
            tpm.leave_running();
        }
        self.left = true;
        self.keep_logs(&machine, scratch);
        self.recorder.note(format!("the machine and its card are kept as '{}'", keep.instance.name()), true);
    }

    fn start(&mut self, held: &mut Held, spec: &MachineSpec, scratch: &Scratch) -> Result<Machine, Failure> {
        let options = StartOptions {
            qemu: self.options.qemu.clone(),
            run_as: self.options.run_as.clone(),
            ..StartOptions::new(&scratch.machine)
        };
        let phase = self.recorder.begin(
            "start",
            Some(options.limit),
            "QEMU until it serves commands: it pins the guest's memory for the card",
        );
        let start_tpm = if self.options.keep.is_some() { Swtpm::start_lasting } else { Swtpm::start };
        let tpm = spec.tpm.as_ref().map(|socket| start_tpm(&scratch.tpm, socket)).transpose();
        let tpm = tpm.map_err(|error| Failure::new("start", FailureKind::HostSetup, error.to_string()));
        // a former one ended with its machine; it is let go of here
        self.tpm = match tpm {
            Ok(tpm) => tpm,
            Err(failure) => {
                self.recorder.end(phase, Some(&failure.cause));
                return Err(failure);
            }
        };
        cards::announce(held, &options.dirs, self.recorder);
        let recorder = &mut *self.recorder;
        let started = Machine::start_noted(spec, &options, |machine| cards::attach(held, machine, recorder));
        let problem = started.as_ref().err().map(ToString::to_string);
        self.recorder.end(phase, problem.as_deref());
        let machine = started.map_err(|e| {
            let cause = e.to_string();
            self.qemu_words = cause.lines().map(words::clean).collect();
            Failure::new("start", FailureKind::Host, cause)
        })?;
        let (major, minor, micro) = machine.qmp().version();
        self.facts.add("qemu.version", format!("{major}.{minor}.{micro}"));
        // any other guest ends with its panic
        let goes_on = spec.on_panic == OnPanic::GoOn;
        self.stops = goes_on.then(|| Stops::of(machine.subscribe()));
        Ok(machine)
    }

    /// Waits for the guest's agent; the emulated screen is looked at meanwhile.
    fn ready(&mut self, machine: &Machine, spec: &MachineSpec, scratch: &Scratch) -> Result<(), Failure> {
        let limit = Duration::from_secs(self.plan.checks.ready_limit);
        let phase = self.recorder.begin(
            "agent",
            Some(limit),
            "from the start of the guest to the first answer of its agent (checks.ready-limit)",
        );
        let began = Instant::now();
        let mut last_look = Instant::now();
        let waited = loop {
            let left = limit.saturating_sub(began.elapsed());
            // short turns, so that a request to stop is seen
            match machine.agent().wait_ready(left.min(Duration::from_secs(1)), |_| ()) {
                Err(AgentError::TimedOut { .. }) if began.elapsed() < limit && !self.stop.is_set() => {}
                other => break other,
            }
            if self.has_stopped() {
                let failure = Failure::new("agent", FailureKind::Guest, "its agent had not answered yet");
                self.recorder.end(phase, Some(&failure.cause));
                return Err(failure);
            }
            if last_look.elapsed() >= SCREEN_PAUSE {
                last_look = Instant::now();
                self.look(machine, spec);
            }
        };
        let failure = match waited {
            Ok(_) => None,
            Err(_) if self.stop.is_set() => Some(Failure::interrupted("agent")),
            Err(error) => Some(self.silent(&error, machine, spec, scratch, limit)),
        };
        self.recorder.end(phase, failure.as_ref().map(|f| f.cause.as_str()));
        failure.map_or(Ok(()), Err)
    }

    /// Where the recipe says that its driver stays, before anything is asked: Windows may need another try for this card.
    fn keep_driver(&mut self, machine: &Machine) {
        if !self.plan.driver.keep {
            return;
        }
        let why = "until the card's driver has bound; then Windows is told to install no other";
        let phase = self.recorder.begin("keep driver", Some(driver_lock::BIND_LIMIT), why);
        let done = driver_lock::keep(&machine.agent(), self.plan, &|| self.stop.is_set());
        self.recorder.end(phase, None);
        if let Some(Err(why)) = done {
            let note = format!(
                "updates.driver = \"ours\": Windows may install another driver: {}",
                words::clean(&why)
            );
            self.recorder.note(note, true);
        }
    }

    /// What is known about a guest whose agent did not come.
    fn silent(
        &mut self,
        error: &AgentError,
        machine: &Machine,
        spec: &MachineSpec,
        scratch: &Scratch,
        limit: Duration,
    ) -> Failure {
        if let Some(exit) = machine.exit() {
            let cause = exit_words(&exit);
            self.qemu_words = cause.lines().map(words::clean).collect();
            return Failure::new(
                "machine",
                blame(&exit),
                format!("the machine ended while its agent was waited for: {cause}"),
            );
        }
        let screen =
            self.look(machine, spec).map(|file| format!("; last screen: {file}")).unwrap_or_default();
        let serial = tail(&scratch.serial, 1).pop();
        if serial.is_none() {
            self.marks.push(Mark::SilentSerial);
        }
        let said = serial.map_or_else(
            || "its serial port stayed silent".to_owned(),
            |line| format!("its serial port said last: {line}"),
        );
        let why =
            if matches!(error, AgentError::TimedOut { .. }) { String::new() } else { format!(" ({error})") };
        Failure::new(
            "agent",
            FailureKind::Guest,
            format!("the guest's agent did not answer within {}{why}; {said}{screen}", words::limit(limit)),
        )
    }

    /// Keeps the emulated screen if it changed.
    fn look(&mut self, machine: &Machine, spec: &MachineSpec) -> Option<String> {
        if spec.display == Display::None {
            return None;
        }
        let picture = machine.screendump(None).ok()?;
        self.recorder.frame("screen", "the guest's emulated screen", &picture)
    }

    fn round(
        &mut self,
        machine: &Machine,
        subjects: &[Subject],
        limits: Limits,
        round: Round,
    ) -> Result<RoundResult, Failure> {
        self.stopped("checks")?;
        let name = format!("checks{}", round.suffix());
        let phase = self.recorder.begin(&name, None, "each check has its own limit");
        let mut guest = LiveGuest::new(machine, limits.program);
        let mut eye = self.eye();
        let mut asking = Asking {
            guest: &mut guest,
            eye: eye.as_mut().map(|eye| eye as &mut dyn Eye),
            recorder: self.recorder,
            stop: self.stop,
            limits,
            round,
            required: &self.options.required,
            host: self.witness.as_mut().map(|witness| witness as &mut dyn HostEye),
            driver_version: self.version.asked.clone(),
            work: self.plan.checks.work.clone().unwrap_or_default(),
            user: self.plan.guest.user.as_ref().map(|user| user.name.clone()),
            choice: &self.choice,
            last: None,
            seeds: &mut self.seeds,
        };
        let result = checks::run_round(&self.plan.checks, subjects, &mut asking);
        let gone = guest.gone();
        self.ended.results.extend(result.results.iter().cloned());
        let before = std::mem::replace(&mut self.boot_id, result.boot_id.clone());
        let same_boot = round.is_restart() && before.is_some() && before == self.boot_id;
        self.marks.extend(result.marks.iter().copied());
        // the last round is the one that failed, and what it saw counts
        self.guest_facts = result.facts.clone();
        let failure = match (gone, &result.failure) {
            (Some(words), _) => Some(Failure::new(
                "machine",
                machine.exit().as_ref().map_or(FailureKind::Host, blame),
                format!("the machine ended during the checks: {words}"),
            )),
            (None, Some((failed, kind))) => Some(Failure::new(&failed.check, *kind, sentence(failed))),
            (None, None) if same_boot => Some(Failure::new(
                "reboot",
                FailureKind::Guest,
                "the guest did not restart: it still has the same boot id",
            )),
            (None, None) if self.stop.is_set() => Some(Failure::interrupted("checks")),
            (None, None) => None,
        };
        self.recorder.end(phase, failure.as_ref().map(|f| f.cause.as_str()));
        failure.map_or(Ok(result), Err)
    }

    /// The emulated screen at the end, and the card's own output if somebody sees it and a failure needs it.
    fn last_look(&mut self, machine: &Machine, spec: &MachineSpec) {
        if machine.is_alive() {
            self.look(machine, spec);
        }
    }

    fn shut_down(&mut self, machine: &Machine, scratch: &Scratch) {
        // a guest whose agent never came is not asked: nothing of it is kept
        let limit = match &self.ended.failure {
            None => SHUTDOWN_LIMIT,
            Some(failure) if failure.place == "agent" => Duration::ZERO,
            Some(_) => Duration::from_secs(20),
        };
        let phase = self.recorder.begin(
            "shutdown",
            Some(limit),
            "by the guest, else by QEMU, else by the kernel; the disk is thrown away",
        );
        let stopped = machine.stop(StopLimits { guest: limit, ..StopLimits::default() });
        let problem = match stopped.by {
            _ if !stopped.gone => {
                Some("QEMU's process cannot be killed: a device hangs in the kernel".to_owned())
            }
            StoppedBy::Agent | StoppedBy::PowerButton => None,
            StoppedBy::Itself => Some(format!("it had ended before: {}", exit_words(&stopped.exit))),
            StoppedBy::Quit if limit.is_zero() => None,
            StoppedBy::Quit => Some(format!(
                "the guest did not shut down within {}; QEMU was told to quit",
                words::limit(limit)
            )),
            StoppedBy::Kill => Some("QEMU did not end by itself and was killed".to_owned()),
        };
        self.recorder.end(phase, problem.as_deref());
        if !stopped.gone {
            self.ended.fail(Failure::new(
                "shutdown",
                FailureKind::Host,
                "QEMU's process cannot be killed: a device hangs in the kernel",
            ));
        }
        self.keep_logs(machine, scratch);
    }

    fn keep_logs(&mut self, machine: &Machine, scratch: &Scratch) {
        self.recorder.log_file("serial", "serial port of the guest", &scratch.serial);
        self.recorder.log_file("qemu", "QEMU's own words", machine.dirs().stderr().as_path());
    }

    /// Names the likely causes of the failure.
    fn explain(&mut self, scratch: Option<&Scratch>) {
        let Some(failure) = &self.ended.failure else { return };
        let mut facts = std::mem::take(&mut self.facts);
        facts.merge(&self.guest_facts);
        if let Some(witness) = &mut self.witness {
            facts.merge(&witness.facts());
        }
        facts.add("run.failed", &failure.place);
        // what is refused before QEMU starts is refused in words that QEMU would use, or that name a holder
        if BEFORE_QEMU.contains(&failure.place.as_str()) {
            failure.cause.lines().for_each(|line| facts.add("qemu.says", line));
        }
        self.ended.results.iter().filter(|r| r.failed()).for_each(|r| cards::fact_of(r, &mut facts));
        let serial = scratch.map(|scratch| tail(&scratch.serial, 40)).unwrap_or_default();
        serial.iter().for_each(|line| facts.add("serial.says", line));
        let stopped = self.stops.as_mut().and_then(Stops::first);
        facts.maybe("machine.stop-code", stopped.and_then(|stop| stop.code()));
        self.qemu_words.iter().for_each(|line| facts.add("qemu.says", line));
        self.marks.iter().for_each(|mark| facts.mark(*mark));
        tell_causes(self.recorder, &facts);
        self.ended.failure = self.ended.failure.take().map(|failure| failure.judged_by(&facts));
    }

    fn give_back(&mut self, held: Held) {
        if self.left {
            if let Err(why) = held.leave() {
                self.recorder.note(format!("the lease could not be let go of: {why}"), true);
            }
            return;
        }
        let began = Instant::now();
        let (returned, problem) = cards::give_back(held, self.options, self.recorder);
        let (result, kind) = checks::given_back(&returned, problem.as_deref(), began.elapsed());
        if result.failed() {
            self.ended.fail(Failure::new(&result.check, kind, sentence(&result)));
        }
        self.recorder.check(result.clone());
        self.ended.results.push(result);
    }
}

/// How long checks wait, by what runs the guest; in a lab all is emulated once more.
pub(super) fn limits(accel: Accel, in_lab: bool) -> Limits {
    match (accel, in_lab) {
        (Accel::Tcg, true) => Limits::SLOWEST,
        (Accel::Tcg, false) | (Accel::Kvm, true) => Limits::SLOW,
        (Accel::Kvm, false) => Limits::QUICK,
    }
}

fn accel_word(accel: Accel) -> &'static str {
    match accel {
        Accel::Kvm => "KVM",
        Accel::Tcg => "TCG",
    }
}

/// A guest whose kernel stopped ends its machine by that; any other end is this host's.
fn blame(exit: &no43_machine::Exit) -> FailureKind {
    match exit.reason.as_deref() {
        Some("guest-panic") => FailureKind::Guest,
        _ => FailureKind::Host,
    }
}

/// Writes down what is known of a failure, and the causes that it speaks for.
pub(super) fn tell_causes(recorder: &mut Recorder<'_>, facts: &Facts) {
    let facts = &diagnosis::concluded(facts);
    recorder.event(Event::Observed { facts: facts.clone() });
    for cause in diagnosis::diagnose(facts) {
        recorder.event(Event::Diagnosis { cause });
    }
}

/// What the command line asks for, and what the recipe leaves out.
pub(super) fn choice(plan: &Plan, options: &VerifyOptions) -> Choice {
    let recipe = plan.checks.skip.iter().map(|(name, why)| (name.clone(), why.clone()));
    Choice {
        only: options.choice.only.clone(),
        skip: options.choice.skip.iter().cloned().chain(recipe).collect(),
    }
}

/// What recipe and plan say, as far as causes depend on it.
pub(super) fn planned_facts(plan: &Plan, cards: &[Borrowed]) -> Facts {
    let mut facts = Facts::default();
    let firmware = match plan.machine.firmware {
        PlannedFirmware::Bios => "bios",
        PlannedFirmware::Uefi => "uefi",
        PlannedFirmware::UefiSecure => "uefi-secure",
    };
    facts.add("machine.firmware", firmware);
    facts.add("machine.hypervisor-hidden", if plan.machine.hidden { "yes" } else { "no" });
    facts.add("machine.slot", "root port");
    facts.add("guest.battery", "none"); // no43 gives no machine one
    facts.maybe("recipe.driver-version", plan.checks.driver_version.as_deref());
    if plan.guest.os.starts_with("windows") {
        facts.add("recipe.updates-driver", if plan.driver.keep { "ours" } else { "free" });
    }
    for card in cards {
        let left_out = card.card.functions.iter().zip(&card.card.roles);
        let left_out =
            left_out.filter(|(address, _)| !card.functions.iter().any(|(given, _)| given == *address));
        facts.all("recipe.functions", left_out.map(|(_, role)| role.to_string()));
        let shown = card.present_as.unwrap_or(card.card.id);
        facts.maybe("guest.inf-match", plan.driver.listed.get(&shown.to_string()));
        facts.maybe("recipe.present-as", card.present_as.map(|id| id.to_string()));
    }
    facts
}

/// "driver: no driver has 0000:01:00.0 (10de:2484); guest: nouveau: unknown chipset".
pub(super) fn sentence(result: &CheckResult) -> String {
    let said = result.guest_lines.first().map(|line| format!("; the guest says: {line}")).unwrap_or_default();
    format!("{}: {}{said}", result.full_name(), result.seen)
}
