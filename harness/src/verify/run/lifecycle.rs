//! What a working card survives: restarts, cold starts, power cycles, being taken out, changes of its driver. After each, all
//! is asked again.

use super::{Failure, Run};
use crate::checks::{self, Choice, Limits, Subject};
use crate::evidence::Round;
use crate::running::first_start;
use crate::verdict::FailureKind;
use crate::verify::cards::Held;
use crate::verify::guest::exit_words;
use crate::verify::spec::Scratch;
use crate::words;
use no43_builder::plan::{ChecksPlan, Lifecycle, OwnCheck, Session};
use no43_builder::secret::SecretError;
use no43_machine::agent::ShutdownMode;
use no43_machine::hotplug::{self, HotplugError, UNPLUG_LIMIT};
use no43_machine::{Machine, MachineSpec};
use std::time::{Duration, Instant};

/// From the request to restart to QEMU's RESET: the guest stops its services first.
const REBOOT_LIMIT: Duration = Duration::from_secs(180);
/// The same after the agent has refused the request.
const REFUSED_LIMIT: Duration = Duration::from_secs(30);

/// What all rounds of a run share.
#[derive(Clone, Copy)]
pub(super) struct Stand<'a> {
    pub(super) spec: &'a MachineSpec,
    pub(super) subjects: &'a [Subject],
    pub(super) limits: Limits,
    pub(super) scratch: &'a Scratch,
}

impl Run<'_, '_> {
    /// Asks, and asks again after each step of the recipe's and each power cycle, until something is wrong. The outer error is
    /// a machine that does not start again.
    pub(super) fn rounds(
        &mut self,
        mut machine: Machine,
        held: &mut Held,
        stand: Stand<'_>,
    ) -> Result<(Machine, Result<(), Failure>), Failure> {
        let mut asked = match self.log_on(&machine, stand) {
            Ok(()) => self.again(&machine, stand, Round::First),
            failed => failed,
        };
        for step in self.plan.checks.lifecycle.clone() {
            if self.is_over(&asked) {
                break;
            }
            asked = match step {
                Lifecycle::Reboot => self.reboot(&machine, stand),
                Lifecycle::Replug => self.replug(&machine, stand),
                Lifecycle::ColdStart => {
                    machine = self.power_cycle(machine, held, stand)?;
                    self.again(&machine, stand, Round::AfterColdStart)
                }
                Lifecycle::Driver(step) => self.change_driver(&machine, stand, &step),
            };
        }
        let cycles = self.options.cycles;
        for cycle in 1..=cycles {
            if self.is_over(&asked) {
                break;
            }
            machine = self.power_cycle(machine, held, stand)?;
            asked = self.again(&machine, stand, Round::Cycle(cycle));
            if asked.is_err() && !self.stop.is_set() {
                self.ended.unstable =
                    Some(format!("right {cycle} times, then not after power cycle {cycle} of {cycles}"));
            }
        }
        Ok((machine, asked))
    }

    fn is_over(&self, asked: &Result<(), Failure>) -> bool {
        asked.is_err() || self.ended.failure.is_some() || self.stop.is_set()
    }

    /// Switches off and on, with the same disk.
    fn power_cycle(
        &mut self,
        machine: Machine,
        held: &mut Held,
        stand: Stand<'_>,
    ) -> Result<Machine, Failure> {
        self.shut_down(&machine, stand.scratch);
        drop(machine);
        self.start(held, stand.spec, stand.scratch)
    }

    /// The same checks once more.
    pub(super) fn again(&mut self, machine: &Machine, stand: Stand<'_>, round: Round) -> Result<(), Failure> {
        self.ready(machine, stand.spec, stand.scratch)?;
        self.keep_driver(machine);
        self.round(machine, stand.subjects, stand.limits, round)?;
        match self.has_stopped() {
            true => Err(Failure::new("machine", FailureKind::Guest, "it came back by itself")),
            false => Ok(()),
        }
    }

    /// Where something that is asked needs a person's session in Windows: reads that person's password, before anything else
    /// is done.
    pub(super) fn read_log_on(&mut self) -> Result<(), Failure> {
        if needs_session(&self.plan.checks, &self.choice) && self.plan.guest.os.starts_with("windows") {
            let unreadable = |e: SecretError| Failure::new("log on", FailureKind::HostSetup, e.to_string());
            self.log_on = first_start::log_on(self.plan).map_err(unreadable)?;
        }
        Ok(())
    }

    /// The guest's user is logged on at each start from now on, so it restarts once. Its disk is thrown away.
    fn log_on(&mut self, machine: &Machine, stand: Stand<'_>) -> Result<(), Failure> {
        let Some(request) = self.log_on.take() else { return Ok(()) };
        self.ready(machine, stand.spec, stand.scratch)?;
        let phase = self.recorder.begin(
            "log on",
            Some(first_start::LIMIT),
            "the guest's user is logged on at each start: a check needs that session",
        );
        let given = first_start::give(&machine.agent(), &request);
        let refused = given.map_or_else(|why| vec![why], |answer| first_start::refused(&answer));
        let why = refused.first().map(|why| words::clean_to(why, 400));
        self.recorder.end(phase, why.as_deref());
        why.map_or(Ok(()), |why| Err(Failure::new("log on", FailureKind::Guest, why)))?;
        self.restart(machine)
    }

    fn reboot(&mut self, machine: &Machine, stand: Stand<'_>) -> Result<(), Failure> {
        self.restart(machine)?;
        self.again(machine, stand, Round::AfterReboot)
    }

    /// The guest restarts; its agent comes later.
    pub(super) fn restart(&mut self, machine: &Machine) -> Result<(), Failure> {
        let phase = self.recorder.begin(
            "reboot",
            Some(REBOOT_LIMIT),
            "from the request to the machine's RESET: the guest stops its services first",
        );
        let events = machine.subscribe();
        let asked = machine.agent().shutdown(ShutdownMode::Reboot);
        // a guest on its way down ends its helpers first, so a refusal may only mean that it has begun
        let limit = if asked.is_ok() { REBOOT_LIMIT } else { REFUSED_LIMIT };
        let reset = self.wait_reset(machine, &events, limit).map_err(|cause| match asked {
            Ok(()) => cause,
            Err(refusal) => format!("{cause}; its agent had said: {refusal}"),
        });
        self.recorder.end(phase, reset.as_ref().err().map(String::as_str));
        reset.map_err(|cause| Failure::new("reboot", FailureKind::Guest, cause))
    }

    /// Every card out of the running guest, and in again.
    fn replug(&mut self, machine: &Machine, stand: Stand<'_>) -> Result<(), Failure> {
        let phase = self.recorder.begin(
            "replug",
            Some(UNPLUG_LIMIT),
            "the guest lets go of every function of a card, then finds them again",
        );
        let mut cards = stand.spec.cards.iter().enumerate();
        let done = cards.try_for_each(|(index, card)| {
            hotplug::unplug_card(machine, index, card, UNPLUG_LIMIT)?;
            hotplug::plug_card(machine, index, card)
        });
        self.recorder.end(phase, done.as_ref().err().map(ToString::to_string).as_deref());
        done.map_err(|error| Failure::new("replug", replug_blame(&error), error.to_string()))?;
        self.again(machine, stand, Round::AfterReplug)
    }

    fn wait_reset(
        &mut self,
        machine: &Machine,
        events: &std::sync::mpsc::Receiver<no43_machine::Event>,
        limit: Duration,
    ) -> Result<(), String> {
        use std::sync::mpsc::RecvTimeoutError;
        let began = Instant::now();
        while began.elapsed() < limit && !self.stop.is_set() {
            match events.recv_timeout(Duration::from_millis(500)) {
                Ok(event) if event.name == "RESET" => return Ok(()),
                Ok(_) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    let words = machine.exit().map_or_else(
                        || "QEMU closed its control connection".to_owned(),
                        |exit| exit_words(&exit),
                    );
                    return Err(format!("the machine ended instead of restarting: {words}"));
                }
            }
        }
        Err(format!("the guest did not restart within {}", words::limit(limit)))
    }
}

/// Whether a check of one's own, or the picture of the desktop, is asked for and needs somebody to be logged on.
fn needs_session(plan: &ChecksPlan, choice: &Choice) -> bool {
    let own = |check: &OwnCheck| check.session == Session::User && choice.asks(&check.name);
    plan.own.iter().any(own) || choice.asks("work") && plan.work.as_ref().is_some_and(checks::needs_session)
}

/// A guest that keeps a card is a fault of the guest; what QEMU refuses is not.
fn replug_blame(error: &HotplugError) -> FailureKind {
    match error {
        HotplugError::Qmp { .. } => FailureKind::Host,
        HotplugError::Refused { .. } | HotplugError::TimedOut { .. } => FailureKind::Guest,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::own_check_for_tests as own_check;
    use crate::verify::plan_for_tests;
    use no43_builder::plan::WorkWish;

    #[test]
    fn somebody_is_logged_on_only_for_what_is_asked_and_needs_a_session() {
        let plan = |session, work: &str| ChecksPlan {
            own: vec![own_check("looks", session)],
            work: Some(WorkWish::Only(vec!["d3d11".to_owned(), work.to_owned()])),
            ..plan_for_tests(Vec::new()).checks
        };
        let choice = |only: &[&str], skip: &[&str]| Choice {
            only: only.iter().map(|&name| name.to_owned()).collect(),
            skip: skip.iter().map(|&name| (name.to_owned(), "why not".to_owned())).collect(),
        };
        let user = plan(Session::User, "d3d12");
        let desktop = plan(Session::Service, "desktop");
        let neither = plan(Session::Service, "d3d12");
        let needs = |only: &[&str], skip: &[&str]| {
            [&user, &desktop, &neither].map(|plan| needs_session(plan, &choice(only, skip)))
        };
        assert_eq!(needs(&[], &[]), [true, true, false]);
        assert_eq!(needs(&["driver"], &[]), [false, false, false]);
        assert_eq!(needs(&["looks", "work"], &[]), [true, true, false]);
        assert_eq!(needs(&[], &["looks"]), [false, true, false]);
        assert_eq!(needs(&[], &["work"]), [true, false, false]);
        assert!(needs_session(&plan(Session::Service, "desktop-picture"), &Choice::default()));
    }
}
