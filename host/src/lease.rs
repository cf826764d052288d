//! The right of one run to use cards: all of its cards at once or none, and only one run for each card.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use serde::{Deserialize, Serialize};

use crate::binding::{Limits, Place, VfioNode, already_ours, check_access};
use crate::card::{Card, CardState};
use crate::extras::{self, HugePages};
use crate::health::way_out;
use crate::holders::Holder;
use crate::inventory::HostError;
use crate::net::{NetDevice, NetError};
use crate::process::ProcessRef;
use crate::state::{LeaseRecord, LeasedCard, MachineRef, StateDir, StateError};
use crate::{BindError, GivenBack, Inventory, PciAddress, PciId, Privilege, Roots, clock, holders};

/// Words behind a model's number that make it another model.
const OTHER_MODEL: &[&str] = &["ti", "super", "xt", "xtx", "gre", "mobile", "laptop", "max-q", "d"];

/// Which card is wanted. What is `None` or false does not narrow the choice; all narrowings count together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CardRequest {
    /// The slot, by the address of any function in it.
    pub address: Option<PciAddress>,
    /// Vendor and device of the video function.
    pub id: Option<PciId>,
    /// Part of the name: `RTX 3070` (which is not an RTX 3070 Ti).
    pub model: Option<String>,
    /// Any card will do.
    pub any: bool,
    /// How many such cards; 0 counts as 1.
    pub count: usize,
}

impl CardRequest {
    /// The card in one slot.
    pub fn at(address: PciAddress) -> Self {
        CardRequest { address: Some(address), count: 1, ..Self::default() }
    }

    /// Any card that is free.
    pub fn any() -> Self {
        CardRequest { any: true, count: 1, ..Self::default() }
    }

    /// Whether a card is what is asked for, free or not. A request that names nothing matches only with `any`.
    pub fn matches(&self, card: &Card) -> bool {
        let named = self.address.is_some() || self.id.is_some() || self.model.is_some();
        let slot = |address: &PciAddress| card.has(address) || card.address.same_slot(address);
        (named || self.any)
            && self.address.as_ref().is_none_or(slot)
            && self.id.is_none_or(|id| id == card.id)
            && self.model.as_deref().is_none_or(|model| is_model(&card.name, model))
    }

    /// `model "RTX 3070"`: for messages.
    pub fn described(&self) -> String {
        let parts: Vec<String> = [
            self.address.map(|address| format!("address {}", address.short())),
            self.id.map(|id| format!("id {id}")),
            self.model.as_ref().map(|model| format!("model \"{model}\"")),
        ]
        .into_iter()
        .flatten()
        .collect();
        if parts.is_empty() { "any card".into() } else { parts.join(", ") }
    }

    /// The more exactly a request names its card, the earlier it chooses.
    fn freedom(&self) -> usize {
        [self.address.is_some(), self.id.is_some(), self.model.is_some()]
            .iter()
            .position(|named| *named)
            .unwrap_or(3)
    }
}

/// Whether `model` stands in `name` as whole words, not followed by a word that makes it another model.
pub fn is_model(name: &str, model: &str) -> bool {
    let words = |text: &str| -> Vec<String> {
        text.to_lowercase()
            .split(|c: char| !c.is_alphanumeric() && c != '-')
            .filter(|word| !word.is_empty())
            .map(str::to_string)
            .collect()
    };
    let (name, model) = (words(name), words(model));
    !model.is_empty()
        && name.windows(model.len()).enumerate().any(|(at, window)| {
            let next = name.get(at + model.len());
            window == model && !next.is_some_and(|word| OTHER_MODEL.contains(&word.as_str()))
        })
}

/// Why the cards could not be had. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// No such card on this host.
    #[error("no such card: {wanted}; this host has {}", list(cards))]
    NoSuchCard {
        /// What was asked for.
        wanted: String,
        /// What there is.
        cards: Vec<Card>,
    },
    /// Another run has it.
    #[error("{card} is lent to '{holder}' (process {pid}) since {}", clock::since(*since))]
    AlreadyLeased {
        /// The card.
        card: String,
        /// The name of the run.
        holder: String,
        /// Its process.
        pid: u32,
        /// Seconds since 1970.
        since: u64,
    },
    /// A dead run still has its functions bound.
    #[error(
        "{card} was left behind by '{holder}' (process {pid} is gone) and was not given back yet: recover first"
    )]
    LeftBehind {
        /// The card.
        card: String,
        /// The name of the dead run.
        holder: String,
        /// Its process.
        pid: u32,
    },
    /// The kernel would refuse its group.
    #[error(
        "{card} shares group {group} with {} {name}, which the host uses (driver {driver}): a group goes to one VM as a whole; use another slot, or turn on \"ACS\" in the firmware if it has that switch",
        endpoint.short()
    )]
    NotViable {
        /// The card.
        card: String,
        /// The IOMMU group.
        group: u32,
        /// The function that blocks it.
        endpoint: PciAddress,
        /// What that is.
        name: String,
        /// The driver that uses it.
        driver: String,
    },
    /// There is no IOMMU group.
    #[error("{card} has no IOMMU group: the IOMMU is off or missing; no43 doctor says where to turn it on")]
    NoIommu {
        /// The card.
        card: String,
    },
    /// It shows the host's desktop or console.
    #[error(
        "{card} is the host's own display and is never lent: make another card the primary one in the firmware"
    )]
    HostDisplay {
        /// The card.
        card: String,
    },
    /// Processes use it.
    #[error(
        "{card} is in use by {}: close that first, or keep the card free from boot",
        holders::sentence(holders)
    )]
    InUse {
        /// The card.
        card: String,
        /// Who.
        holders: Vec<Holder>,
    },
    /// It did not come back healthy.
    #[error("{card} is in quarantine since {}: {reason}; way out: {way_out}", clock::since(*since))]
    Quarantined {
        /// The card.
        card: String,
        /// What to do.
        way_out: String,
        /// What was wrong.
        reason: String,
        /// Seconds since 1970.
        since: u64,
    },
    /// There are such cards, and fewer of them are free than asked for.
    #[error("{wanted}: {count} wanted, {} free; this host has {}", free, list(cards))]
    TooFew {
        /// What was asked for.
        wanted: String,
        /// How many.
        count: usize,
        /// How many could be had.
        free: usize,
        /// What there is.
        cards: Vec<Card>,
    },
    /// The state directory failed.
    #[error(transparent)]
    State(#[from] StateError),
    /// The bus could not be read.
    #[error(transparent)]
    Host(#[from] HostError),
}

fn list(cards: &[Card]) -> String {
    let each: Vec<String> = cards.iter().map(|card| format!("{} ({})", card.titled(), card.state)).collect();
    if each.is_empty() { "no graphics card at all".into() } else { each.join("; ") }
}

/// Cards that are ours until given back. Dropped unbound it ends by itself; dropped bound it is left for recovery.
#[derive(Debug)]
#[must_use]
pub struct Lease {
    record: LeaseRecord,
    cards: Vec<Card>,
    state: StateDir,
    roots: Roots,
    limits: Limits,
    bound: bool,
    /// The cards were with vfio-pci and open to this user already: nothing is in the journal.
    reserved: bool,
}

/// Leases every card that the requests ask for, or none. `holder` is the run's name, shown to whoever comes second.
///
/// The cards of the result stand in the order of the requests. Dead leases of which nothing is left to undo are dropped.
pub fn lease(
    inventory: &Inventory,
    requests: &[CardRequest],
    holder: &str,
    state: &StateDir,
    roots: &Roots,
) -> Result<Lease, LeaseError> {
    let _lock = state.lock_leases()?;
    drop_empty_leases(state, roots)?;
    let cards = inventory.cards_now(state, roots);
    let chosen = choose(inventory, &cards, requests)?;
    let record = LeaseRecord {
        id: new_id(),
        holder: holder.to_string(),
        owner: ProcessRef::current(roots),
        boot_id: roots.boot_id(),
        since: clock::now(),
        cards: chosen.iter().map(leased).collect(),
        starting: None,
        machine: None,
    };
    state.write_lease(&record)?;
    Ok(Lease {
        record,
        cards: chosen,
        state: state.clone(),
        roots: roots.clone(),
        limits: Limits::default(),
        bound: false,
        reserved: false,
    })
}

/// Whether this host has a card for every request at all, in use or not: worth asking before hours of other work.
///
/// # Errors
/// [`LeaseError::NoSuchCard`] for the first request that none fits.
pub fn exists(cards: &[Card], requests: &[CardRequest]) -> Result<(), LeaseError> {
    let missing = requests.iter().find(|request| !cards.iter().any(|card| request.matches(card)));
    missing.map_or(Ok(()), |request| {
        Err(LeaseError::NoSuchCard { wanted: request.described(), cards: cards.to_vec() })
    })
}

fn leased(card: &Card) -> LeasedCard {
    LeasedCard {
        name: card.name.clone(),
        address: card.address,
        id: card.id,
        functions: card.functions.clone(),
    }
}

fn new_id() -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    format!("{}-{}-{}", clock::now(), std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed))
}

/// A lease whose run is dead and which has nothing bound was never more than a promise.
fn drop_empty_leases(state: &StateDir, roots: &Roots) -> Result<(), StateError> {
    let journal = state.journal(roots);
    for lease in state.leases(roots) {
        if lease.keeper(roots).is_none() && !journal.iter().any(|entry| entry.lease == lease.id) {
            state.remove_lease(&lease.id)?;
        }
    }
    Ok(())
}

fn choose(inventory: &Inventory, cards: &[Card], requests: &[CardRequest]) -> Result<Vec<Card>, LeaseError> {
    let mut order: Vec<usize> = (0..requests.len()).collect();
    order.sort_by_key(|index| requests[*index].freedom());
    let mut taken: Vec<(usize, &Card)> = Vec::new();
    for index in order {
        let request = &requests[index];
        let matching: Vec<&Card> = cards
            .iter()
            .filter(|card| {
                request.matches(card) && !taken.iter().any(|(_, other)| other.address == card.address)
            })
            .collect();
        // a group that is shared with a card of the same lease is no obstacle: that is judged for all of them below
        let may = |card: &&&Card| {
            card.state.is_ready()
                || (request.address.is_some() && matches!(card.state, CardState::NotViable { .. }))
        };
        let count = request.count.max(1);
        let found: Vec<&Card> = matching.iter().filter(may).take(count).copied().collect();
        if found.len() < count {
            return Err(why_not(request, cards, &matching, found.len()));
        }
        taken.extend(found.into_iter().map(|card| (index, card)));
    }
    taken.sort_by_key(|(index, card)| (*index, card.address));
    let chosen: Vec<Card> = taken.into_iter().map(|(_, card)| card.clone()).collect();
    check_groups(inventory, &chosen)?;
    Ok(chosen)
}

/// The group rule for all cards of a lease together: they go to one VM.
fn check_groups(inventory: &Inventory, chosen: &[Card]) -> Result<(), LeaseError> {
    let functions: Vec<PciAddress> = chosen.iter().flat_map(|card| card.functions.clone()).collect();
    for card in chosen {
        if let Some(neighbour) = inventory.neighbours(&functions, &card.groups).into_iter().find(|n| n.blocks)
        {
            return Err(refusal(card, &CardState::NotViable { endpoint: neighbour }));
        }
    }
    Ok(())
}

fn why_not(request: &CardRequest, all: &[Card], matching: &[&Card], free: usize) -> LeaseError {
    let wanted = request.described();
    match matching {
        [] if !all.iter().any(|card| request.matches(card)) => {
            LeaseError::NoSuchCard { wanted, cards: all.to_vec() }
        }
        [card] if !card.state.is_ready() => refusal(card, &card.state),
        _ => LeaseError::TooFew { wanted, count: request.count.max(1), free, cards: all.to_vec() },
    }
}

/// One card's state as the error that a run ends with.
fn refusal(card: &Card, state: &CardState) -> LeaseError {
    let name = card.titled();
    match state.clone() {
        CardState::Lent { holder, pid, since, alive: true } => {
            LeaseError::AlreadyLeased { card: name, holder, pid, since }
        }
        CardState::Lent { holder, pid, .. } => LeaseError::LeftBehind { card: name, holder, pid },
        CardState::InUse { holders } => LeaseError::InUse { card: name, holders },
        CardState::HostDisplay => LeaseError::HostDisplay { card: name },
        CardState::NoIommu => LeaseError::NoIommu { card: name },
        CardState::NotViable { endpoint } => LeaseError::NotViable {
            card: name,
            group: endpoint.group,
            endpoint: endpoint.address,
            name: endpoint.name,
            driver: endpoint.driver.unwrap_or_default(),
        },
        CardState::Quarantined { reason, since } => {
            LeaseError::Quarantined { card: name, way_out: way_out(&card.address), reason, since }
        }
        CardState::Ready => LeaseError::TooFew { wanted: name, count: 1, free: 0, cards: vec![card.clone()] },
    }
}

impl Lease {
    /// Takes over the lease of a run whose no43 is gone and whose machine still runs.
    ///
    /// `None` where there is no such lease, its owner still lives, or its machine is dead (then recovery has it).
    pub fn adopt(id: &str, state: &StateDir, roots: &Roots) -> Result<Option<Self>, LeaseError> {
        let _lock = state.lock_leases()?;
        let Some(mut record) = state.leases(roots).into_iter().find(|lease| lease.id == id) else {
            return Ok(None);
        };
        let machine = record.living_machine(roots);
        if record.owner.is_alive(roots) || machine.is_none() {
            return Ok(None);
        }
        record.machine = machine;
        record.owner = ProcessRef::current(roots);
        state.write_lease(&record)?;
        let inventory = Inventory::read(roots)?;
        let cards = inventory.cards_now(state, roots);
        let cards = cards.into_iter().filter(|card| record.functions().any(|f| card.has(&f))).collect();
        let (state, roots) = (state.clone(), roots.clone());
        Ok(Some(Lease {
            record,
            cards,
            state,
            roots,
            limits: Limits::default(),
            bound: true,
            reserved: true,
        }))
    }

    /// Lets go of it while a machine has its cards: whoever watches over that machine next adopts it.
    ///
    /// # Errors
    /// If that cannot be written down; the lease is this process's still, until it ends.
    pub fn leave(mut self) -> Result<(), StateError> {
        self.record.owner = ProcessRef::NOBODY;
        self.bound = true; // nothing is removed when this is dropped
        self.state.write_lease(&self.record)
    }

    /// Unique on this host.
    pub fn id(&self) -> &str {
        &self.record.id
    }

    /// The cards, in the order in which they were asked for, as they were when they were leased.
    pub fn cards(&self) -> &[Card] {
        &self.cards
    }

    /// What is on disk about this lease.
    pub fn record(&self) -> &LeaseRecord {
        &self.record
    }

    /// All functions of all cards.
    pub fn functions(&self) -> Vec<PciAddress> {
        self.record.functions().collect()
    }

    /// Other limits than the usual ones, for a host that is known to be slow.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Gives every function to vfio-pci and the group nodes to this user. Where that is so already (a card that is kept
    /// free from boot), nothing is written and no root is needed.
    pub fn bind(&mut self, privilege: &Privilege) -> Result<Vec<VfioNode>, BindError> {
        let functions = self.functions();
        let inventory = Inventory::read(&self.roots).map_err(|e| BindError::State { why: e.to_string() })?;
        self.check_identity(&inventory)?;
        let title = self.cards.iter().map(Card::titled).collect::<Vec<_>>().join(" and ");
        let holders = holders::of_functions(&inventory, &functions, &self.roots);
        if !holders.is_empty() {
            return Err(BindError::InUse { card: title, holders });
        }
        if let Some(nodes) = already_ours(&inventory, &functions, &self.roots) {
            self.reserved = true;
            return Ok(nodes);
        }
        self.bound = true;
        let nodes = privilege.bind(&self.record, &self.place());
        // a refusal leaves nothing behind in the journal; then this lease is a mere promise again
        self.bound = nodes.is_ok() || self.has_journal();
        let nodes = nodes?;
        if let Err(error) = check_access(&nodes) {
            let back = privilege.release(&functions, &self.place())?;
            self.bound = self.has_journal();
            return Err(match back.quarantined {
                Some(reason) => BindError::Refused { why: format!("{error}; and then {reason}") },
                None => error,
            });
        }
        Ok(nodes)
    }

    /// Says which QEMU is about to be started, by its control socket. Its command line must name something in that
    /// socket's directory. From then on a QEMU that this process leaves behind is found, also before it is attached.
    ///
    /// # Errors
    /// [`StateError`] if it cannot be written down.
    pub fn announce_machine(&mut self, qmp: &Path) -> Result<(), StateError> {
        self.record.starting = Some(qmp.to_path_buf());
        self.record.machine = None;
        self.state.write_lease(&self.record)
    }

    /// Tells which QEMU uses the cards, so that a later command finds it and nobody unbinds under it.
    pub fn attach_machine(&mut self, pid: u32, start_time: u64, qmp: &Path) -> Result<(), StateError> {
        let process = ProcessRef { pid, start_time };
        self.record.machine = Some(MachineRef { process, qmp: PathBuf::from(qmp) });
        self.state.write_lease(&self.record)?;
        for mut entry in self.state.journal(&self.roots) {
            if entry.lease == self.record.id {
                entry.machine = Some(process);
                // under sudo the journal is root's; there the open group node tells who uses the card
                let _ = self.state.write_journal(&entry);
            }
        }
        Ok(())
    }

    /// Ends the lease: every function goes back to the driver that it had.
    ///
    /// Refused while a machine has the card open; then the lease stays, on disk at least.
    pub fn give_back(mut self, privilege: &Privilege) -> Result<GivenBack, BindError> {
        let title = self.cards.iter().map(Card::titled).collect::<Vec<_>>().join(" and ");
        let back = match self.has_journal() {
            true => privilege.release(&self.functions(), &self.place()),
            false if self.reserved => self.place().tidy(&self.functions(), &title),
            false => Ok(GivenBack::default()),
        };
        let extras = match self.has_extras() {
            true => privilege.give_back_extras(&self.record.id, &self.state, &self.roots),
            false => Ok(()),
        };
        // a machine that still has a reserved card keeps the lease, too
        self.bound = self.has_journal() || (self.reserved && matches!(back, Err(BindError::InUse { .. })));
        if !self.bound {
            let _lock = self.state.lock_leases()?;
            self.state.remove_lease(&self.record.id)?;
        }
        back.and_then(|back| extras.map(|()| back))
    }

    /// Opens what the guest's network card hangs on, for as long as this lease lasts.
    ///
    /// # Errors
    /// [`NetError`]; nothing is left behind then.
    pub fn open_network(&self, device: &NetDevice, privilege: &Privilege) -> Result<OwnedFd, NetError> {
        privilege.open_network(device, &self.record, &self.state, &self.roots)
    }

    /// Sees to it that this host has huge pages for a guest of so much memory: free ones of its pool, else new ones for as long as
    /// this lease lasts.
    ///
    /// # Errors
    /// Too few pages in one piece, or no way to root.
    pub fn huge_pages(&self, memory_mib: u64, privilege: &Privilege) -> Result<HugePages, BindError> {
        let pages = extras::huge_pages_of(memory_mib);
        if extras::free_huge_pages(&self.roots)? >= pages {
            return Ok(HugePages::FromPool { pages });
        }
        privilege.hugepages(&self.record, pages, &self.state, &self.roots)?;
        Ok(HugePages::Added { pages })
    }

    fn has_extras(&self) -> bool {
        self.state.extras(&self.roots).iter().any(|extra| extra.lease == self.record.id)
    }

    fn place(&self) -> Place<'_> {
        Place { state: &self.state, roots: &self.roots, limits: self.limits }
    }

    fn has_journal(&self) -> bool {
        self.state.journal(&self.roots).iter().any(|entry| entry.lease == self.record.id)
    }

    /// Addresses move when a card is added; binding what is not what was leased would hit something else.
    fn check_identity(&self, inventory: &Inventory) -> Result<(), BindError> {
        let moved = self
            .record
            .cards
            .iter()
            .find(|card| inventory.function(&card.address).is_none_or(|function| function.id != card.id));
        moved.map_or(Ok(()), |card| {
            Err(BindError::Refused { why: format!("{} is no longer at {}", card.name, card.address.short()) })
        })
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if !self.bound {
            // what cannot be removed is dropped by the next lease, which finds its owner dead
            let _ = fs::remove_file(self.state.own().join("leases").join(format!("{}.json", self.record.id)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_not_its_bigger_brother() {
        assert!(is_model("GeForce RTX 3070 (GA104)", "RTX 3070"));
        assert!(is_model("GeForce RTX 3070 (GA104)", "geforce rtx 3070"));
        assert!(is_model("GeForce RTX 3070 Lite Hash Rate (GA104)", "3070"));
        assert!(!is_model("GeForce RTX 3070 Ti (GA104)", "RTX 3070"));
        assert!(is_model("GeForce RTX 3070 Ti (GA104)", "RTX 3070 Ti"));
        assert!(!is_model("GeForce RTX 3070 (GA104)", "RTX 307"));
        assert!(!is_model("GeForce RTX 3070 (GA104)", ""));
        assert!(is_model("QEMU standard VGA", "standard vga"));
    }
}
