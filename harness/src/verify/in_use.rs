//! The checks on a machine that is in use: it is asked through its agent and left as it is.

use super::cards::{self, fact_of};
use super::guest::LiveGuest;
use super::run::{Ended, Failure, choice, limits, planned_facts, sentence, tell_causes};
use super::spec::{Borrowed, passed, subjects};
use super::witness::Witness;
use super::{VerifyOptions, kept};
use crate::checks::{self, Asking, Choice, HostEye, Subject};
use crate::evidence::{CardFacts, Event, Fact, Recorder, Round, Sink};
use crate::guest_program::hang_bell;
use crate::stop::Stop;
use crate::verdict::{FailureKind, Verdict};
use no43_builder::plan::Plan;
use no43_host::{Inventory, kvm};
use no43_machine::agent::Agent;
use no43_machine::{Accel, MachineSpec, RunDirs, accel};
use std::collections::HashMap;
use std::time::Duration;

/// An agent that lives answers within this, also without KVM.
const ANSWER_LIMIT: Duration = Duration::from_secs(15);

/// What is left out unless it is asked for by name, since somebody may sit in front of the guest.
const DISTURBS: &[(&str, &str)] = &[
    ("picture", "it paints over what the guest shows; --check picture asks for it"),
    ("work", "it loads a card that is in use; --check work asks for it"),
];

/// A machine that `no43 run` has started.
#[derive(Debug, Clone)]
pub struct InUse {
    /// Its name.
    pub name: String,
    /// What it was started as.
    pub plan: Plan,
    /// Where its sockets are.
    pub dirs: RunDirs,
    /// The lease of its cards.
    pub lease: Option<String>,
}

/// Proves that the cards of a running machine work, as far as that can be asked without a restart, and writes a run's folder
/// with its reports.
pub fn verify_in_use(machine: &InUse, options: &VerifyOptions, stop: &Stop, sink: &mut dyn Sink) -> Verdict {
    kept(&machine.name, options, sink, |recorder| {
        let mut ended = Ended::default();
        if let Err(failure) = ask(machine, options, stop, recorder, &mut ended) {
            ended.fail(failure);
        }
        ended.verdict()
    })
}

fn ask(
    machine: &InUse,
    options: &VerifyOptions,
    stop: &Stop,
    recorder: &mut Recorder<'_>,
    ended: &mut Ended,
) -> Result<(), Failure> {
    let broken = |e: &dyn std::fmt::Display| Failure::new("lease", FailureKind::Host, e.to_string());
    let inventory = Inventory::read(&options.roots).map_err(|e| broken(&e))?;
    let borrowed = lent(machine, options, &inventory)?;
    for one in &borrowed {
        let card = cards::card_facts(one, &inventory);
        recorder.event(Event::Card { card: CardFacts { stays: true, ..card } });
    }
    let facts = vec![Fact::new("in use", format!("'{}', which goes on running", machine.name))];
    recorder.event(Event::Facts { subject: "machine".into(), facts });
    let mut spec = MachineSpec::new(&machine.name, Accel::Kvm);
    spec.cards = borrowed.iter().map(passed).collect();
    let subjects = subjects(&spec, &borrowed, &inventory).map_err(|e| broken(&format!("{e:#}")))?;
    let functions: Vec<_> =
        borrowed.iter().flat_map(|one| one.functions.iter().map(|(address, _)| *address)).collect();
    let mut witness = Witness::begin(&options.roots, &functions, &inventory);
    let mut facts = witness.standing(&inventory);
    facts.merge(&planned_facts(&machine.plan, &borrowed));
    facts.merge(&witness.not_bound(borrowed.iter().flat_map(|one| one.card.functions.iter().copied())));

    let agent = answering(machine, recorder)?;
    let asked = round(machine, options, stop, recorder, (agent, &subjects, &mut witness));
    ended.results.extend(asked.results.iter().cloned());
    let Some((failed, kind)) = &asked.failure else {
        return if stop.is_set() { Err(Failure::interrupted("checks")) } else { Ok(()) };
    };
    facts.merge(&asked.facts);
    facts.merge(&witness.facts());
    facts.add("run.failed", &failed.check);
    ended.results.iter().filter(|r| r.failed()).for_each(|r| fact_of(r, &mut facts));
    asked.marks.iter().for_each(|mark| facts.mark(*mark));
    tell_causes(recorder, &facts);
    Err(Failure::new(&failed.check, *kind, sentence(failed)).judged_by(&facts))
}

/// The cards that the machine has, as its plan shows them.
fn lent(machine: &InUse, options: &VerifyOptions, inventory: &Inventory) -> Result<Vec<Borrowed>, Failure> {
    let leases = options.state.leases(&options.roots);
    let Some(lease) = leases.iter().find(|lease| Some(&lease.id) == machine.lease.as_ref()) else {
        return Ok(Vec::new());
    };
    let all = inventory.cards_now(&options.state, &options.roots);
    let here = |address| {
        all.iter().find(|card| card.address == address).cloned().ok_or_else(|| {
            let cause = format!("{address} has left the bus since it was lent to '{}'", machine.name);
            Failure::new("lease", FailureKind::Host, cause)
        })
    };
    let cards = lease.cards.iter().map(|card| here(card.address)).collect::<Result<Vec<_>, _>>()?;
    cards::as_wished(&machine.plan, &cards)
}

fn answering(machine: &InUse, recorder: &mut Recorder<'_>) -> Result<Agent, Failure> {
    let agent = Agent::on_socket(machine.dirs.agent_socket());
    let phase = recorder.begin("agent", Some(ANSWER_LIMIT), "one answer of the guest's agent");
    let answer = agent.ping(ANSWER_LIMIT).map_err(|error| {
        format!("the guest's agent does not answer (still starting, or another command uses it): {error}")
    });
    recorder.end(phase, answer.as_ref().err().map(String::as_str));
    hang_bell(&agent, &machine.dirs);
    answer.map(|_| agent).map_err(|cause| Failure::new("agent", FailureKind::Guest, cause))
}

fn round(
    machine: &InUse,
    options: &VerifyOptions,
    stop: &Stop,
    recorder: &mut Recorder<'_>,
    (agent, subjects, witness): (Agent, &[Subject], &mut Witness),
) -> checks::RoundResult {
    let (accel, _) = accel::choose(&kvm::probe_cached(&options.roots, &options.state));
    let accel = if machine.plan.machine.uefi_under_lab { Accel::Tcg } else { accel };
    let mut eye = super::eye::LabEye::open(&options.roots, &[&options.lab_share, &options.runs]);
    let limits = limits(accel, eye.is_some());
    let mut guest = LiveGuest::of_agent(agent, limits.program);
    let choice = undisturbed(started_before(choice(&machine.plan, options)));
    let phase = recorder.begin("checks", None, "each check has its own limit");
    let mut seeds = HashMap::new();
    let mut asking = Asking {
        guest: &mut guest,
        eye: eye.as_mut().map(|eye| eye as &mut dyn checks::Eye),
        recorder,
        stop,
        limits,
        round: Round::First,
        required: &options.required,
        host: Some(witness as &mut dyn HostEye),
        driver_version: machine.plan.checks.driver_version.clone(),
        work: machine.plan.checks.work.clone().unwrap_or_default(),
        user: machine.plan.guest.user.as_ref().map(|user| user.name.clone()),
        choice: &choice,
        last: None,
        seeds: &mut seeds,
    };
    let asked = checks::run_round(&machine.plan.checks, subjects, &mut asking);
    let problem = asked.failure.as_ref().map(|(failed, _)| failed.seen.clone());
    recorder.end(phase, problem.as_deref());
    asked
}

/// An instance has been started before, so what it is given then can be asked for.
fn started_before(mut choice: Choice) -> Choice {
    choice.skip.retain(|(_, why)| why != no43_builder::apps::AT_FIRST_START);
    choice
}

/// Leaves out what a person in front of the guest would notice, unless it was named.
pub(super) fn undisturbed(mut choice: Choice) -> Choice {
    for (name, why) in DISTURBS {
        if !choice.only.iter().any(|only| only == name) {
            choice.skip.push(((*name).to_owned(), (*why).to_owned()));
        }
    }
    choice
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_person_would_notice_is_left_out_unless_it_is_named() {
        let team = |why: &str| Choice { only: Vec::new(), skip: vec![("parsec".into(), why.into())] };
        assert_eq!(started_before(team(no43_builder::apps::AT_FIRST_START)).skip, []);
        assert_eq!(started_before(team("no")).skip.len(), 1);
        let named = Choice { only: vec!["driver".into(), "work".into()], skip: Vec::new() };
        let skipped = |choice: Choice| choice.skip.into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        assert_eq!(skipped(undisturbed(Choice::default())), ["picture", "work"]);
        assert_eq!(skipped(undisturbed(named)), ["picture"]);
    }
}
