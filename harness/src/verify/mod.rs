//! `verify`: a plan and its image in, a verdict and a folder of evidence out.
//!
//! The order of a run is the order of `run::section`; every way out of it collects evidence first and gives the cards back
//! last. If this process is killed, the lease's journal is the safety net: the next command that changes something gives the cards back.

pub(crate) mod cards;
mod disk;
mod driver_change;
mod dumps;
mod elsewhere;
mod eye;
mod guest;
mod in_use;
mod keep;
pub(crate) mod run;
#[cfg(test)]
mod scripted;
pub(crate) mod spec;
pub(crate) mod witness;

pub use elsewhere::{Elsewhere, checks_elsewhere, is_socket, verify_elsewhere};
pub use in_use::{InUse, verify_in_use};
pub use keep::Keep;

use crate::checks::{Capability, Choice};
use crate::evidence::{CheckResult, Event, Fact, Recorder, Round, RunDir, Section, Sink};
use crate::report;
use crate::stop::Stop;
use crate::verdict::{FailureKind, Verdict};
use crate::words;
use no43_builder::image::Image;
use no43_builder::plan::Plan;
use no43_host::Roots;
use no43_host::privilege::Privilege;
use no43_host::state::StateDir;
use no43_machine::RunAs;
use std::path::PathBuf;

/// How to run `verify`. [`VerifyOptions::here`] fills in what this host says.
#[derive(Debug, Clone)]
pub struct VerifyOptions {
    /// Where folders of runs are made.
    pub runs: PathBuf,
    /// Where sockets and the throw-away disk go; must be a local file system. None: the system's folder for temporary files.
    pub scratch: Option<PathBuf>,
    /// This host.
    pub roots: Roots,
    /// Where leases and the journal are.
    pub state: StateDir,
    /// How bindings are changed.
    pub privilege: Privilege,
    /// QEMU itself.
    pub qemu: PathBuf,
    /// QEMU's user, when this process is root.
    pub run_as: Option<RunAs>,
    /// What must be there; a check that lacks it fails instead of being skipped.
    pub required: Vec<Capability>,
    /// Where the lab around this host, if there is one, puts the pictures that it takes: `$NO43_LAB_SHARE`, else `/no43/share`.
    pub lab_share: PathBuf,
    /// A run that must fail, after the main one.
    pub control: Option<Control>,
    /// Which checks are asked.
    pub choice: Choice,
    /// After a failure the machine stays and keeps its cards.
    pub keep: Option<Keep>,
    /// How often the machine is switched off and on after everything else, with the same checks each time.
    pub cycles: u32,
}

/// A run that must fail in one check, with all before it green.
#[derive(Debug, Clone)]
pub struct Control {
    /// What is run.
    pub plan: Plan,
    /// Its image.
    pub image: Image,
    /// The check in which it must fail, e.g. "driver".
    pub fails_in: String,
}

impl VerifyOptions {
    /// For this host and this user.
    ///
    /// # Errors
    /// When no folder for leases can be used.
    pub fn here() -> anyhow::Result<Self> {
        // a lab names the folder in which it puts its pictures; where it does, nobody seeing the card is a fault of the lab
        let lab_share = std::env::var_os("NO43_LAB_SHARE").filter(|v| !v.is_empty()).map(PathBuf::from);
        Ok(Self {
            runs: RunDir::default_root(),
            scratch: None,
            roots: Roots::real(),
            state: StateDir::open_default()?,
            privilege: Privilege::detect(),
            qemu: "qemu-system-x86_64".into(),
            run_as: None,
            required: lab_share.iter().map(|_| Capability::CardCapture).collect(),
            lab_share: lab_share.unwrap_or_else(|| "/no43/share".into()),
            control: None,
            choice: Choice::default(),
            keep: None,
            cycles: 0,
        })
    }
}

/// Asks, before an image is built for it, whether this host has the cards of the plan at all; they may be in use.
///
/// # Errors
/// The verdict that [`verify`] would come to.
pub fn cards_exist(plan: &Plan, options: &VerifyOptions) -> Result<(), Verdict> {
    cards::exist(plan, options).map_err(|failure| Verdict::failed(failure.kind, failure.cause))
}

/// Proves that the plan's cards work in a machine made from the image, and writes the run's folder with its reports.
/// `sink` hears every event; the folder is named to it first. A second run that must fail can follow as control.
pub fn verify(
    plan: &Plan,
    image: &Image,
    options: &VerifyOptions,
    stop: &Stop,
    sink: &mut dyn Sink,
) -> Verdict {
    kept(&plan.name, options, sink, |recorder| in_folder(plan, image, options, stop, recorder))
}

/// Makes a run's folder, fills it, and writes the reports.
fn kept(
    name: &str,
    options: &VerifyOptions,
    sink: &mut dyn Sink,
    ask: impl FnOnce(&mut Recorder<'_>) -> Verdict,
) -> Verdict {
    let run = match RunDir::create(&options.runs, name) {
        Ok(run) => run,
        Err(error) => return Verdict::failed(FailureKind::HostSetup, format!("{error:#}")),
    };
    let folder = run.path().to_owned();
    let mut recorder = Recorder::new(run, sink);
    let answer = ask(&mut recorder);
    own_facts(options, &mut recorder);
    let written = recorder.finish(&answer).and_then(|_| report::write(&folder).map(drop));
    match written {
        Ok(()) => answer,
        // evidence that could not be kept makes a pass worth nothing; a failure stays what it is
        Err(error) if answer.is_passed() => Verdict::failed(
            FailureKind::Harness,
            format!("the evidence in {} is not complete: {error:#}", folder.display()),
        ),
        Err(_) => answer,
    }
}

fn in_folder(
    plan: &Plan,
    image: &Image,
    options: &VerifyOptions,
    stop: &Stop,
    recorder: &mut Recorder<'_>,
) -> Verdict {
    if let Some(control) = &options.control
        && !crate::checks::names().contains(&control.fails_in.as_str())
    {
        let names = crate::checks::names().join(", ");
        return Verdict::failed(
            FailureKind::Harness,
            format!("no check is called '{}'; there are: {names}", control.fails_in),
        );
    }
    if let Some(mistake) = options.choice.mistake(&plan.checks) {
        return Verdict::failed(FailureKind::Harness, mistake);
    }
    image_facts(image, recorder);
    if plan.driver.test_signed {
        recorder.note("test signing is on: Windows takes drivers that Microsoft has not signed", true);
    }
    let main = run::section(plan, image, options, stop, recorder);
    let answer = main.verdict();
    if !answer.is_passed() || stop.is_set() {
        return answer;
    }
    let Some(control) = &options.control else { return answer };
    recorder.set_section(Section::Control);
    // it fails at its first start
    let once = VerifyOptions { cycles: 0, keep: None, ..options.clone() };
    let ended = run::section(&control.plan, &control.image, &once, stop, recorder);
    let (as_it_must, line) = judge_control(&ended, &control.fails_in);
    recorder.event(Event::ControlEnded {
        fails_in: control.fails_in.clone(),
        as_it_must,
        line: line.clone(),
    });
    recorder.set_section(Section::Main);
    match (as_it_must, ended.failure) {
        (true, _) => answer,
        (false, Some(failure)) if failure.kind != FailureKind::Guest => {
            Verdict::failed(failure.kind, format!("control: {}", failure.cause))
        }
        (false, _) => {
            Verdict::failed(FailureKind::Harness, format!("the control did not fail as it must: {line}"))
        }
    }
}

fn image_facts(image: &Image, recorder: &mut Recorder<'_>) {
    let manifest = &image.manifest;
    let facts = vec![
        Fact::new("layer", format!("{} ({})", manifest.layer, manifest.key.short())),
        Fact::new("made", &manifest.provenance.created),
        Fact::new("packages", manifest.provenance.packages.len().to_string()),
    ];
    recorder.event(Event::Facts { subject: "image".into(), facts });
}

/// What this run itself cost the host, QEMU left out.
fn own_facts(options: &VerifyOptions, recorder: &mut Recorder<'_>) {
    let status = std::fs::read_to_string(options.roots.proc_.join("self/status")).unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
    if let Some(kib) = peak.and_then(|kib| kib.parse::<u64>().ok()) {
        let facts = vec![Fact::new("memory at most", words::bytes(kib << 10))];
        recorder.event(Event::Facts { subject: "no43".into(), facts });
    }
}

/// Did the control fail where it must, with everything before it green? Returns the line that shows it, or what is wrong with it.
fn judge_control(ended: &run::Ended, fails_in: &str) -> (bool, String) {
    let failed: Vec<&CheckResult> = ended.results.iter().filter(|r| r.failed()).collect();
    match (failed.first(), &ended.failure) {
        (None, None) => (false, format!("every check passed, and '{fails_in}' had to fail")),
        (None, Some(failure)) => (false, format!("it broke before any check failed: {}", failure.cause)),
        (Some(first), _) if first.check != fails_in => {
            (false, format!("'{}' failed before '{fails_in}': {}", first.check, first.seen))
        }
        // what fails after it is its consequence; but nothing in a guest may harm the host
        (Some(_), _) if failed.iter().any(|r| r.round == Round::AfterRun) => {
            let seen = failed.last().map_or("", |r| r.seen.as_str());
            (false, format!("the host did not get everything back: {seen}"))
        }
        (Some(first), _) => (true, first.guest_lines.first().unwrap_or(&first.seen).clone()),
    }
}

#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) use tests::plan as plan_for_tests;
