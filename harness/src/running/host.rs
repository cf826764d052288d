//! The host's part of a kept run: put right what dead runs left, lease (and wait for it), bind, give back.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use no43_builder::plan::Plan;
use no43_host::lease::{LeaseError, exists};
use no43_host::{
    BindError, CardRequest, GivenBack, Inventory, Lease, Privilege, Roots, StateDir, lease, recovery,
};

use super::event::Happened;
use super::hub::Hub;
use crate::exit_codes;
use crate::verify::cards::request;
use crate::verify::spec::Borrowed;

/// Between two looks for a card that somebody else has. Its end writes a file that every look reads.
const WAIT_PAUSE: Duration = Duration::from_millis(300);

/// Why there is no machine, with the exit code that says it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Refusal {
    /// One of [`exit_codes`].
    pub code: u8,
    /// One sentence.
    pub cause: String,
}

impl Refusal {
    pub(super) fn new(code: u8, cause: impl std::fmt::Display) -> Self {
        Self { code, cause: cause.to_string() }
    }
}

/// This host, for one run.
#[derive(Debug, Clone)]
pub(super) struct Host {
    pub(super) state: StateDir,
    pub(super) roots: Roots,
    pub(super) privilege: Privilege,
}

/// The cards of a run.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) lease: Lease,
    pub(super) borrowed: Vec<Borrowed>,
}

impl Host {
    pub(super) fn here() -> Result<Self, Refusal> {
        let state = StateDir::open_default().map_err(|error| Refusal::new(exit_codes::HOST_SETUP, error))?;
        Ok(Self { state, roots: Roots::real(), privilege: Privilege::detect() })
    }

    /// Gives back what dead runs left bound.
    pub(super) fn recover(&self, hub: &Hub) {
        match recovery::recover(&self.state, &self.roots, &self.privilege) {
            Err(error) => hub.warn(format!("what dead runs left could not be looked at: {error}")),
            Ok(recovered) => {
                for (holder, back) in &recovered.given_back {
                    hub.note(format!("run '{holder}' had died with cards bound: gave back {back}"));
                }
                for problem in &recovered.problems {
                    hub.warn(format!("could not be put right: {problem}"));
                }
            }
        }
    }

    /// Leases all cards of the plan or none; waits up to `wait` for cards that others have.
    pub(super) fn take(
        &self,
        plan: &Plan,
        holder: &str,
        wait: Duration,
        give_up: &AtomicBool,
        hub: &Hub,
    ) -> Result<Taken, Refusal> {
        let broken = |error: String| Refusal::new(exit_codes::FAILED_HARNESS, error);
        let requests: Vec<CardRequest> = plan
            .cards
            .iter()
            .map(|wish| request(wish).map_err(|failure| broken(failure.cause)))
            .collect::<Result<_, _>>()?;
        let began = Instant::now();
        let mut said = String::new();
        let lease = loop {
            let error = match self.try_lease(&requests, holder) {
                Ok(lease) => break lease,
                Err(error) => error,
            };
            if give_up.load(Ordering::SeqCst) {
                return Err(Refusal::new(exit_codes::INTERRUPTED, "given up while a card was waited for"));
            }
            if !may_come(&error) || began.elapsed() >= wait {
                let waited = if wait.is_zero() || !may_come(&error) {
                    String::new()
                } else {
                    format!(" (waited {})", crate::words::limit(wait))
                };
                return Err(Refusal::new(code_of_lease(&error), format!("{error}{waited}")));
            }
            let why = error.to_string();
            if why != said {
                hub.say(Happened::Waiting { why: why.clone() });
                said = why;
            }
            std::thread::sleep(WAIT_PAUSE);
            // a run that died meanwhile may have been the one that was waited for
            self.recover(hub);
        };
        let wishes =
            plan.cards.iter().flat_map(|wish| std::iter::repeat_n(wish, wish.request.count.max(1) as usize));
        let mut borrowed = Vec::new();
        for (card, wish) in lease.cards().iter().zip(wishes) {
            let one = Borrowed::new(card.clone(), &wish.functions, wish.present_as.as_deref());
            borrowed.push(one.map_err(|error| broken(format!("{error:#}")))?);
        }
        Ok(Taken { lease, borrowed })
    }

    fn try_lease(&self, requests: &[CardRequest], holder: &str) -> Result<Lease, LeaseError> {
        let inventory = Inventory::read(&self.roots)?;
        exists(&inventory.cards_now(&self.state, &self.roots), requests)?;
        lease(&inventory, requests, holder, &self.state, &self.roots)
    }

    /// Gives every function to vfio-pci.
    pub(super) fn bind(&self, taken: &mut Taken, hub: &Hub) -> Result<(), Refusal> {
        if taken.borrowed.is_empty() {
            return Ok(());
        }
        taken.lease.bind(&self.privilege).map_err(|error| Refusal::new(code_of_bind(&error), error))?;
        for one in &taken.borrowed {
            let (name, address) = (one.card.name.clone(), one.card.address.short());
            hub.say(Happened::Card { name: crate::words::clean(&name), address });
        }
        Ok(())
    }

    /// Ends a lease. `Err` says what is not as before.
    pub(super) fn give_back(&self, lease: Lease, hub: &Hub) -> Result<(), String> {
        let back = lease.give_back(&self.privilege);
        let (cards, problem) = match back {
            Ok(GivenBack { quarantined: Some(why), .. }) => {
                (String::new(), Some(format!("quarantine: {why}")))
            }
            Ok(back) => (back.to_string(), None),
            Err(error) => (String::new(), Some(format!("{error}; no43 release tries it again"))),
        };
        // a machine without a card, or a card that was never taken
        if !cards.is_empty() || problem.is_some() {
            hub.say(Happened::GaveBack { cards, problem: problem.clone() });
        }
        problem.map_or(Ok(()), Err)
    }
}

/// Whether waiting can help: others have what is wanted.
fn may_come(error: &LeaseError) -> bool {
    matches!(
        error,
        LeaseError::AlreadyLeased { .. }
            | LeaseError::LeftBehind { .. }
            | LeaseError::TooFew { .. }
            | LeaseError::InUse { .. }
    )
}

fn code_of_lease(error: &LeaseError) -> u8 {
    match error {
        LeaseError::State(_) | LeaseError::Host(_) => exit_codes::FAILED_HOST,
        _ => exit_codes::NOT_LENT,
    }
}

fn code_of_bind(error: &BindError) -> u8 {
    match error {
        BindError::InUse { .. } => exit_codes::NOT_LENT,
        BindError::NoVfio { .. } | BindError::Privilege { .. } => exit_codes::HOST_SETUP,
        _ => exit_codes::FAILED_HOST,
    }
}
