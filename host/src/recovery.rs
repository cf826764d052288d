//! What dead runs left behind, and how it is put right.
//!
//! First question, always: does the QEMU still live? A living one is adopted by whoever wants it and never touched here.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::binding::{Limits, Place};
use crate::state::{LeaseRecord, MachineRef, StateDir, StateError};
use crate::{GivenBack, PciAddress, Privilege, Roots};

/// Something that a run left behind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// The lease.
    pub lease: String,
    /// The name of the run.
    pub holder: String,
    /// Its no43 process, which is dead.
    pub pid: u32,
    /// Seconds since 1970.
    pub since: u64,
    /// What its cards are called.
    pub cards: Vec<String>,
    /// What is to be done.
    pub left: Left,
}

/// What a dead no43 left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "left", rename_all = "kebab-case")]
pub enum Left {
    /// Its machine runs on: adopt it by its QMP socket, or stop it.
    RunningMachine {
        /// The QEMU.
        machine: MachineRef,
    },
    /// These functions are to be given back to their drivers.
    BoundFunctions {
        /// The functions.
        functions: Vec<PciAddress>,
    },
    /// Nothing but a promise in a file.
    Nothing,
}

impl fmt::Display for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cards = self.cards.join(", ");
        write!(f, "run '{}' (process {}, which is gone)", self.holder, self.pid)?;
        match &self.left {
            Left::RunningMachine { machine } => {
                write!(f, " has left a machine running with {cards} (process {})", machine.process.pid)
            }
            Left::BoundFunctions { .. } => {
                write!(f, " has left {cards} bound to vfio-pci: no43 release gives it back")
            }
            Left::Nothing => write!(f, " has left only its lease of {cards}: no43 release removes it"),
        }
    }
}

/// What recovery did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recovered {
    /// The run's name, and what became of its cards.
    pub given_back: Vec<(String, GivenBack)>,
    /// Machines that still run without a no43; nothing was done about them.
    pub running: Vec<Pending>,
    /// What could not be put right, in words.
    pub problems: Vec<String>,
}

impl Recovered {
    /// Nothing was found.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What is left behind by dead runs. Changes nothing.
pub fn pending(state: &StateDir, roots: &Roots) -> Vec<Pending> {
    state.holdings(roots).iter().filter_map(|lease| judge(lease, state, roots)).collect()
}

fn judge(lease: &LeaseRecord, state: &StateDir, roots: &Roots) -> Option<Pending> {
    if lease.owner.is_alive(roots) {
        return None;
    }
    let running = lease.living_machine(roots);
    let journal = state.journal(roots).into_iter().filter(|entry| entry.lease == lease.id);
    let functions: Vec<PciAddress> = journal.map(|entry| entry.address).collect();
    Some(Pending {
        lease: lease.id.clone(),
        holder: lease.holder.clone(),
        pid: lease.owner.pid,
        since: lease.since,
        cards: lease
            .cards
            .iter()
            .map(|card| format!("{} at {}", card.name, card.address.slot_name()))
            .collect(),
        left: match running {
            Some(machine) => Left::RunningMachine { machine },
            None if functions.is_empty() => Left::Nothing,
            None => Left::BoundFunctions { functions },
        },
    })
}

/// Gives back what dead runs left bound, and forgets them. Machines that still run are only reported.
///
/// One card that cannot be given back does not stop the others: it is in `problems`.
pub fn recover(state: &StateDir, roots: &Roots, privilege: &Privilege) -> Result<Recovered, StateError> {
    let mut recovered = Recovered::default();
    if pending(state, roots).is_empty() {
        return Ok(recovered);
    }
    let _lock = state.lock_leases()?;
    // once more under the lock: another command may have been quicker
    for left in pending(state, roots) {
        let is_dead = !matches!(left.left, Left::RunningMachine { .. });
        if is_dead
            && state.extras(roots).iter().any(|extra| extra.lease == left.lease)
            && let Err(e) = privilege.give_back_extras(&left.lease, state, roots)
        {
            // kept with its lease: the next command tries it again
            recovered.problems.push(format!("the network of '{}': {e}", left.holder));
            continue;
        }
        match &left.left {
            Left::RunningMachine { .. } => recovered.running.push(left),
            Left::Nothing => state.remove_lease(&left.lease)?,
            Left::BoundFunctions { functions } => {
                let place = Place { state, roots, limits: Limits::default() };
                match privilege.release(functions, &place) {
                    Ok(back) => {
                        state.remove_lease(&left.lease)?;
                        recovered.given_back.push((left.holder, back));
                    }
                    Err(e) => recovered.problems.push(format!(
                        "{} (left behind by '{}'): {e}",
                        left.cards.join(", "),
                        left.holder
                    )),
                }
            }
        }
    }
    Ok(recovered)
}
