//! Lends a plan's cards to a build, for a driver whose own installer wants to see its card.
//!
//! The machine of a build dies with the build, and the lease's journal is the safety net as everywhere: if this process is killed, the
//! next command that changes something gives the cards back.

use no43_builder::build::{Lender, Lent};
use no43_builder::plan::Plan;
use no43_host::privilege::Privilege;
use no43_host::state::StateDir;
use no43_host::{Inventory, Lease, Roots, lease, memlock, recovery};
use no43_machine::spec::PassedCard;

use crate::verify::cards::request;
use crate::verify::spec::{Borrowed, passed};

/// This host's cards.
#[derive(Debug)]
pub struct HostCards {
    roots: Roots,
    state: StateDir,
    privilege: Privilege,
}

impl HostCards {
    /// For this host and this user.
    ///
    /// # Errors
    /// When no folder for leases can be used.
    pub fn here() -> anyhow::Result<Self> {
        Ok(Self { roots: Roots::real(), state: StateDir::open_default()?, privilege: Privilege::detect() })
    }
}

impl Lender for HostCards {
    fn lend(&self, plan: &Plan) -> Result<Box<dyn Lent>, String> {
        if !recovery::pending(&self.state, &self.roots).is_empty() {
            recovery::recover(&self.state, &self.roots, &self.privilege)
                .map_err(|error| error.to_string())?;
        }
        memlock::check(plan.machine.memory_mib).map_err(|error| error.to_string())?;
        let requests = plan.cards.iter().map(request).collect::<Result<Vec<_>, _>>();
        let requests = requests.map_err(|failure| failure.cause)?;
        let inventory = Inventory::read(&self.roots).map_err(|error| error.to_string())?;
        let holder = format!("{} (build)", plan.name);
        let lease = lease(&inventory, &requests, &holder, &self.state, &self.roots)
            .map_err(|error| error.to_string())?;
        // From here on, dropping gives back.
        let mut lent = LentCards { lease: Some(lease), cards: Vec::new(), privilege: self.privilege };
        lent.bind(plan)?;
        Ok(Box::new(lent))
    }
}

/// Cards that are given back when this is dropped.
struct LentCards {
    lease: Option<Lease>,
    cards: Vec<PassedCard>,
    privilege: Privilege,
}

impl LentCards {
    fn bind(&mut self, plan: &Plan) -> Result<(), String> {
        let Some(lease) = &mut self.lease else { return Ok(()) };
        // The cards stand in the order of the requests, so each wish has its own.
        let wishes = plan.cards.iter();
        let wishes = wishes.flat_map(|wish| std::iter::repeat_n(wish, wish.request.count.max(1) as usize));
        for (card, wish) in lease.cards().iter().zip(wishes) {
            let borrowed = Borrowed::new(card.clone(), &wish.functions, wish.present_as.as_deref());
            self.cards.push(passed(&borrowed.map_err(|error| format!("{error:#}"))?));
        }
        lease.bind(&self.privilege).map(drop).map_err(|error| error.to_string())
    }
}

impl Lent for LentCards {
    fn cards(&self) -> Vec<PassedCard> {
        self.cards.clone()
    }
}

impl Drop for LentCards {
    fn drop(&mut self) {
        if let Some(lease) = self.lease.take() {
            // What does not come back stays in the journal, and is said by the next command that looks.
            let _ = lease.give_back(&self.privilege);
        }
    }
}
