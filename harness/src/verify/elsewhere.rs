//! The checks on a VM that somebody else built or runs: all that is had of it is the socket of its guest agent.
//!
//! The guest program is copied in under a new name and removed afterwards. What this host knows of the card counts only where the
//! card is named; otherwise what cannot be compared is skipped with that reason.

mod subjects;

use super::cards::{card_facts, fact_of};
use super::guest::LiveGuest;
use super::in_use::undisturbed;
use super::run::{Ended, Failure, sentence, tell_causes};
use super::spec::Borrowed;
use super::witness::Witness;
use super::{VerifyOptions, kept};
use crate::checks::{self, Asking, Choice, Guest as _, HostEye, Limits, Subject};
use crate::diagnosis::Facts;
use crate::evidence::{CardFacts, Event, Fact, Recorder, Round, Sink};
use crate::stop::Stop;
use crate::verdict::{FailureKind, Verdict};
use crate::words;
use no43_builder::plan::{CardFunctions, ChecksPlan, WorkWish};
use no43_host::{Card, Inventory, PciAddress};
use no43_machine::agent::{Agent, ExecLimits};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::Duration;
use subjects::subjects;

/// An agent that lives answers within this, also without KVM.
const ANSWER_LIMIT: Duration = Duration::from_secs(15);
/// For making a folder, and for removing it.
const SMALL_LIMIT: Duration = Duration::from_secs(30);
/// A VM of somebody else's.
#[derive(Debug, Clone)]
pub struct Elsewhere {
    /// Its guest agent's socket.
    pub agent: PathBuf,
    /// The card's address on this host, where the VM runs here and its card is to be compared.
    pub card: Option<PciAddress>,
    /// The guest program for Linux.
    pub linux_program: PathBuf,
    /// The guest program for Windows, or why there is none.
    pub windows_program: Result<PathBuf, String>,
}

/// Proves that the cards of a VM work, as far as its agent lets it be asked, and writes a run's folder with its reports.
pub fn verify_elsewhere(
    vm: &Elsewhere,
    options: &VerifyOptions,
    stop: &Stop,
    sink: &mut dyn Sink,
) -> Verdict {
    kept("agent", options, sink, |recorder| {
        let mut ended = Ended::default();
        if let Err(failure) = ask(vm, options, stop, recorder, &mut ended) {
            ended.fail(failure);
        }
        ended.verdict()
    })
}

/// What is asked of such a VM: nothing of a recipe is known, nor who sees the card's output.
pub fn checks_elsewhere() -> ChecksPlan {
    ChecksPlan {
        card: true,
        driver: true,
        connector: false,
        picture: false,
        quiet: true,
        work: Some(WorkWish::Usual),
        driver_version: None,
        skip: BTreeMap::new(),
        own: Vec::new(),
        lifecycle: Vec::new(),
        ready_limit: ANSWER_LIMIT.as_secs(),
    }
}

fn ask(
    vm: &Elsewhere,
    options: &VerifyOptions,
    stop: &Stop,
    recorder: &mut Recorder<'_>,
    ended: &mut Ended,
) -> Result<(), Failure> {
    let here = vm.card.map(|address| OnThisHost::look(address, options)).transpose()?;
    let facts = vec![Fact::new("in use", "a VM that another program runs, and that goes on running")];
    recorder.event(Event::Facts { subject: "machine".into(), facts });
    let agent = answering(vm, recorder)?;
    let program = Program::carry(&agent, vm, recorder)?;
    let mut guest = LiveGuest::of_agent(agent.clone(), Limits::SLOW.program).with_program(&program.path);
    let asked = (|| {
        let report =
            guest.report().map_err(|e| Failure::new("agent", FailureKind::Guest, format!("{e:#}")))?;
        let subjects = subjects(&report, here.as_ref()).map_err(|cause| {
            let mut facts = Facts::default();
            facts.add("run.failed", "present");
            tell_causes(recorder, &facts);
            Failure::new("present", FailureKind::Guest, cause)
        })?;
        round(options, stop, recorder, (&mut guest, &subjects, here), ended)
    })();
    program.remove(&agent, recorder);
    asked
}

fn answering(vm: &Elsewhere, recorder: &mut Recorder<'_>) -> Result<Agent, Failure> {
    let agent = Agent::on_socket(&vm.agent);
    let phase = recorder.begin("agent", Some(ANSWER_LIMIT), "one answer of the guest's agent");
    let answer = agent.ping(ANSWER_LIMIT).map_err(|error| {
        format!(
            "no agent answers on {} (none runs in the guest, or another program, such as libvirt, has the socket): {error}",
            vm.agent.display()
        )
    });
    recorder.end(phase, answer.as_ref().err().map(String::as_str));
    answer.map(|()| agent).map_err(|cause| Failure::new("agent", FailureKind::Guest, cause))
}

/// The card as this host has it, and what happens to it here meanwhile.
struct OnThisHost {
    card: Card,
    inventory: Inventory,
    witness: Witness,
}

impl OnThisHost {
    fn look(address: PciAddress, options: &VerifyOptions) -> Result<Self, Failure> {
        let wrong = |cause: String| Failure::new("lease", FailureKind::HostSetup, cause);
        let inventory = Inventory::read(&options.roots).map_err(|e| wrong(e.to_string()))?;
        let cards = inventory.cards_now(&options.state, &options.roots);
        let names: Vec<String> = cards.iter().map(|card| card.address.slot_name()).collect();
        let card = cards.into_iter().find(|card| card.has(&address)).ok_or_else(|| {
            wrong(format!("--card {address} is no card of this host; there are: {}", names.join(", ")))
        })?;
        let witness = Witness::begin(&options.roots, &card.functions, &inventory);
        Ok(Self { card, inventory, witness })
    }
}

fn round(
    options: &VerifyOptions,
    stop: &Stop,
    recorder: &mut Recorder<'_>,
    (guest, subjects, mut here): (&mut LiveGuest<'_>, &[Subject], Option<OnThisHost>),
    ended: &mut Ended,
) -> Result<(), Failure> {
    let mut facts = Facts::default();
    for subject in subjects {
        recorder.event(Event::Card { card: shown(subject, here.as_ref()) });
        // what is on bus 0 has no port above it; more cannot be told from inside
        if subject.video().guest.starts_with("0000:00:") {
            facts.add("machine.slot", "root bus");
        }
    }
    if let Some(here) = &here {
        facts.merge(&here.witness.standing(&here.inventory));
        facts.merge(&here.witness.not_bound(here.card.functions.iter().copied()));
    }
    let choice = undisturbed(Choice { only: options.choice.only.clone(), skip: options.choice.skip.clone() });
    let plan = checks_elsewhere();
    let phase = recorder.begin("checks", None, "each check has its own limit");
    let asked = {
        let mut asking = Asking {
            guest,
            eye: None,
            recorder: &mut *recorder,
            stop,
            limits: Limits::SLOW,
            round: Round::First,
            required: &[],
            host: here.as_mut().map(|here| &mut here.witness as &mut dyn HostEye),
            driver_version: None,
            work: WorkWish::Usual,
            user: None,
            choice: &choice,
            last: None,
            seeds: &mut HashMap::new(),
        };
        checks::run_round(&plan, subjects, &mut asking)
    };
    recorder.end(phase, asked.failure.as_ref().map(|(failed, _)| failed.seen.as_str()));
    ended.results.extend(asked.results.iter().cloned());
    let Some((failed, kind)) = &asked.failure else {
        return if stop.is_set() { Err(Failure::interrupted("checks")) } else { Ok(()) };
    };
    facts.merge(&asked.facts);
    if let Some(here) = &mut here {
        facts.merge(&here.witness.facts());
    }
    facts.add("run.failed", &failed.check);
    ended.results.iter().filter(|result| result.failed()).for_each(|result| fact_of(result, &mut facts));
    asked.marks.iter().for_each(|mark| facts.mark(*mark));
    tell_causes(recorder, &facts);
    Err(Failure::new(&failed.check, *kind, sentence(failed)).judged_by(&facts))
}

fn shown(subject: &Subject, here: Option<&OnThisHost>) -> CardFacts {
    let of_host = here.and_then(|here| {
        let borrowed = Borrowed::new(here.card.clone(), &CardFunctions::All, None).ok()?;
        Some(card_facts(&borrowed, &here.inventory))
    });
    let card = of_host.unwrap_or_else(|| CardFacts {
        name: words::clean(&subject.name),
        slot: subject.slot.clone(),
        roles: subject.functions.iter().map(|function| function.role.clone()).collect(),
        facts: vec![Fact::new("place", "as the guest names it; nothing is known of this card on a host")],
        stays: true,
    });
    CardFacts { stays: true, ..card }
}

/// Our program in that guest.
struct Program {
    /// The program.
    path: String,
    /// What is removed afterwards.
    remove: Vec<String>,
}

impl Program {
    /// Copies it in under a name that nobody can have taken.
    fn carry(agent: &Agent, vm: &Elsewhere, recorder: &mut Recorder<'_>) -> Result<Self, Failure> {
        let phase = recorder.begin("carry", None, "the guest program goes into the guest through its agent");
        let carried = Self::carried(agent, vm);
        recorder.end(phase, carried.as_ref().err().map(|failure| failure.cause.as_str()));
        carried
    }

    fn carried(agent: &Agent, vm: &Elsewhere) -> Result<Self, Failure> {
        let guest = |cause: String| Failure::new("agent", FailureKind::Guest, cause);
        let setup = |cause: String| Failure::new("agent", FailureKind::HostSetup, cause);
        let os = agent
            .os_info()
            .map_err(|e| guest(format!("the agent does not say which system it is in: {e}")))?;
        let windows = os.id.as_deref() == Some("mswindows");
        let from = match &vm.windows_program {
            _ if !windows => &vm.linux_program,
            Ok(path) => path,
            Err(why) => return Err(setup(why.clone())),
        };
        let bytes =
            std::fs::read(from).map_err(|e| setup(format!("failed to read {}: {e}", from.display())))?;
        let name = format!("no43-{:016x}", crate::evidence::random());
        let program =
            if windows { Self::in_windows(&name) } else { Self::in_linux(agent, &name).map_err(guest)? };
        let put = agent
            .write_file(&program.path, &bytes)
            .map_err(|e| format!("failed to write {}: {e}", program.path));
        let ready =
            put.and_then(|()| if windows { Ok(()) } else { small(agent, &["chmod", "700", &program.path]) });
        if let Err(why) = ready {
            let _ = small(agent, &program.remove.iter().map(String::as_str).collect::<Vec<_>>());
            return Err(guest(format!("the guest program could not be copied in: {why}")));
        }
        Ok(program)
    }

    fn in_windows(name: &str) -> Self {
        let path = format!("C:\\Windows\\Temp\\{name}.exe");
        Self { remove: ["cmd.exe", "/c", "del", &path].map(str::to_owned).to_vec(), path }
    }

    /// Not in `/run`, from which many systems run no programs.
    fn in_linux(agent: &Agent, name: &str) -> Result<Self, String> {
        let dir = format!("/var/tmp/{name}");
        small(agent, &["mkdir", "-m", "700", &dir])?;
        let remove = ["rm", "-rf", "--", &dir].map(str::to_owned).to_vec();
        Ok(Self { path: format!("{dir}/no43-guest"), remove })
    }

    fn remove(&self, agent: &Agent, recorder: &mut Recorder<'_>) {
        let argv: Vec<&str> = self.remove.iter().map(String::as_str).collect();
        if let Err(why) = small(agent, &argv) {
            recorder.note(format!("{} was left in the guest: {why}", self.path), true);
        }
    }
}

fn small(agent: &Agent, argv: &[&str]) -> Result<(), String> {
    let output =
        agent.exec(argv, &ExecLimits::within(SMALL_LIMIT)).map_err(|e| format!("{}: {e}", argv[0]))?;
    if output.success() {
        return Ok(());
    }
    Err(format!("{} in the guest: {}", argv[0], words::clean_to(&output.stderr_text(), 300)))
}

/// Whether there is a socket at all, before anything is written.
///
/// # Errors
/// What is there instead.
pub fn is_socket(path: &Path) -> Result<(), String> {
    use std::os::unix::fs::FileTypeExt as _;
    match std::fs::metadata(path) {
        Ok(what) if what.file_type().is_socket() => Ok(()),
        Ok(_) => Err(format!("{} is no socket: --agent wants the socket of a guest agent", path.display())),
        Err(error) => Err(format!("failed to look at {}: {error}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evidence::Record;
    use crate::verify::scripted;
    use serde_json::{Value, json};
    use std::sync::{Arc, Mutex};

    /// A Linux guest with one GeForce and one emulated adapter.
    pub(super) fn linux(driver: Option<&str>) -> Value {
        json!({
            "version": 1, "os": "Debian GNU/Linux 12", "boot_id": "a",
            "functions": [
                {"address": "0000:00:02.0", "id": "1234:1111", "class": "0x030000", "driver": "bochs-drm"},
                {"address": "0000:05:00.0", "id": "10de:2484", "class": "0x030000", "driver": driver},
                {"address": "0000:05:00.1", "id": "10de:228b", "class": "0x040300", "driver": "snd_hda_intel"},
            ],
        })
    }

    /// An agent of a Linux guest: it keeps what it was asked to run, and reports what it is given.
    fn agent(report: &Value) -> (tempfile::TempDir, PathBuf, Arc<Mutex<Vec<String>>>) {
        let log = Arc::new(Mutex::new(Vec::new()));
        let (kept, report) = (Arc::clone(&log), report.to_string());
        let mut output = String::new();
        let (dir, socket) = scripted::agent(move |command, arguments| match command {
            "guest-get-osinfo" => json!({"id": "debian"}),
            "guest-file-open" => json!(1000),
            "guest-file-write" => scripted::written(arguments).1,
            "guest-exec" => {
                let command = scripted::command(arguments);
                output =
                    if command.iter().any(|word| word == "report") { report.clone() } else { String::new() };
                kept.lock().unwrap().push(command.join(" "));
                json!({"pid": 7})
            }
            "guest-exec-status" => scripted::ended(0, &output),
            _ => json!({}),
        });
        (dir, socket, log)
    }

    fn run(report: &Value) -> (Verdict, Vec<String>) {
        let (dir, socket, log) = agent(report);
        let program = dir.path().join("no43-guest");
        std::fs::write(&program, vec![7_u8; 100_000]).unwrap();
        let vm = Elsewhere {
            agent: socket,
            card: None,
            linux_program: program,
            windows_program: Err("none is needed".into()),
        };
        let options = crate::verify::tests::options(dir.path());
        let mut sink = |_: &Record| {};
        let verdict = verify_elsewhere(&vm, &options, &Stop::new(), &mut sink);
        let log = log.lock().unwrap().clone();
        (verdict, log)
    }

    #[test]
    fn a_vm_of_somebody_elses_is_proved_and_left_as_it_was() {
        let (verdict, log) = run(&linux(Some("nvidia")));
        assert!(verdict.is_passed(), "{verdict:?}");
        let dir = log[0].strip_prefix("mkdir -m 700 ").expect("a folder is made first").to_owned();
        assert!(dir.starts_with("/var/tmp/no43-"), "{log:?}");
        assert!(log.iter().any(|line| line.starts_with(&format!("{dir}/no43-guest report"))), "{log:?}");
        assert_eq!(log.last(), Some(&format!("rm -rf -- {dir}")));
    }

    #[test]
    fn a_vm_without_a_card_is_red_and_left_as_it_was() {
        let mut none = linux(None);
        none["functions"].as_array_mut().unwrap().truncate(1);
        let (verdict, log) = run(&none);
        assert!(matches!(verdict, Verdict::Failed { kind: FailureKind::Guest, .. }), "{verdict:?}");
        assert!(verdict.reason().contains("no graphics card of its own"), "{verdict:?}");
        assert!(log.last().is_some_and(|line| line.starts_with("rm -rf -- /var/tmp/no43-")), "{log:?}");
    }
}
