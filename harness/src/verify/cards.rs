//! The host's part of a run: recover, lease, bind, give back, each as a phase of the report.

use super::VerifyOptions;
use super::run::Failure;
use super::spec::Borrowed;
use crate::checks::Returned;
use crate::diagnosis::{self, Facts};
use crate::evidence::{CardFacts, CheckResult, Event, Fact, Recorder};
use crate::verdict::FailureKind;
use crate::words;
use no43_builder::plan::{CardWish, Plan};
use no43_host::lease::{LeaseError, exists};
use no43_host::{BindError, Card, CardRequest, Inventory, Lease, PciAddress, lease, memlock, recovery};
use no43_machine::{MachineSpec, RunDirs, RunRecord};

/// The cards of a run, and what the host looked like before.
pub(super) struct Held {
    lease: Lease,
    /// As the plan wishes them, in the order in which the guest gets them.
    pub(super) borrowed: Vec<Borrowed>,
    /// Every function with the driver that it had.
    before: Vec<(PciAddress, Option<String>)>,
    bound: bool,
}

impl Held {
    pub(super) fn lease_id(&self) -> &str {
        self.lease.id()
    }

    /// The machine keeps them, without this process.
    pub(super) fn leave(self) -> Result<(), no43_host::StateError> {
        self.lease.leave()
    }
}

/// Puts right what dead runs left behind, and leases all cards of the plan or none.
pub(super) fn take(
    plan: &Plan,
    options: &VerifyOptions,
    recorder: &mut Recorder<'_>,
) -> Result<Held, Failure> {
    recover(options, recorder)?;
    let phase = recorder.begin("lease", None, "all cards of the plan, or none");
    let held = lease_all(plan, options, recorder);
    recorder.end(phase, held.as_ref().err().map(|f| f.cause.as_str()));
    held
}

/// Whether this host has every card of the plan, in use or not.
pub(super) fn exist(plan: &Plan, options: &VerifyOptions) -> Result<(), Failure> {
    let requests = plan.cards.iter().map(request).collect::<Result<Vec<_>, _>>()?;
    let inventory = Inventory::read(&options.roots)
        .map_err(|e| Failure::new("lease", FailureKind::Host, e.to_string()))?;
    exists(&inventory.cards_now(&options.state, &options.roots), &requests).map_err(|e| refused(&e))
}

/// Says what it puts right; does nothing where nothing is pending.
fn recover(options: &VerifyOptions, recorder: &mut Recorder<'_>) -> Result<(), Failure> {
    if recovery::pending(&options.state, &options.roots).is_empty() {
        return Ok(());
    }
    let phase = recorder.begin("recover", None, "what dead runs left bound is given back first");
    let recovered = recovery::recover(&options.state, &options.roots, &options.privilege);
    recorder.end(phase, recovered.as_ref().err().map(ToString::to_string).as_deref());
    let recovered = recovered.map_err(|e| Failure::new("recover", FailureKind::Host, e.to_string()))?;
    for (holder, back) in &recovered.given_back {
        recorder
            .note(format!("run '{holder}' had died with cards bound: gave back {}", functions(back)), true);
    }
    for left in &recovered.running {
        recorder.note(
            format!(
                "the machine of '{}' still runs without its no43 and keeps {}",
                left.holder,
                left.cards.join(", ")
            ),
            true,
        );
    }
    for problem in &recovered.problems {
        recorder.note(format!("could not be put right: {problem}"), true);
    }
    Ok(())
}

fn functions(back: &no43_host::GivenBack) -> String {
    let each = back
        .functions
        .iter()
        .map(|f| format!("{} to {}", f.address.short(), f.driver_now.as_deref().unwrap_or("no driver")));
    each.collect::<Vec<_>>().join(", ")
}

fn lease_all(plan: &Plan, options: &VerifyOptions, recorder: &mut Recorder<'_>) -> Result<Held, Failure> {
    let host = |e: &dyn std::fmt::Display| Failure::new("lease", FailureKind::Host, e.to_string());
    let requests = plan.cards.iter().map(request).collect::<Result<Vec<_>, _>>()?;
    let inventory = Inventory::read(&options.roots).map_err(|e| host(&e))?;
    let holder = format!("{} {}", plan.name, recorder.run().id());
    let lease =
        lease(&inventory, &requests, &holder, &options.state, &options.roots).map_err(|e| refused(&e))?;
    let borrowed = as_wished(plan, lease.cards())?;
    let before = lease
        .functions()
        .into_iter()
        .map(|a| (a, inventory.function(&a).and_then(|f| f.driver.clone())))
        .collect();
    for one in &borrowed {
        recorder.event(Event::Card { card: card_facts(one, &inventory) });
    }
    Ok(Held { lease, borrowed, before, bound: false })
}

/// Leased cards as the plan shows them. They stand in the order of the requests, so each wish has its own.
pub(super) fn as_wished(plan: &Plan, cards: &[Card]) -> Result<Vec<Borrowed>, Failure> {
    let wishes =
        plan.cards.iter().flat_map(|wish| std::iter::repeat_n(wish, wish.request.count.max(1) as usize));
    let wished = cards.iter().zip(wishes).map(|(card, wish)| {
        Borrowed::new(card.clone(), &wish.functions, wish.present_as.as_deref())
            .map_err(|e| Failure::new("lease", FailureKind::Harness, format!("{e:#}")))
    });
    wished.collect()
}

/// What a failed check tells the table of causes.
pub(super) fn fact_of(failed: &CheckResult, facts: &mut Facts) {
    facts.add("run.round", diagnosis::round_word(failed.round));
    failed.guest_lines.iter().for_each(|line| diagnosis::add_line(facts, line));
}

pub(crate) fn request(wish: &CardWish) -> Result<CardRequest, Failure> {
    let wrong = |what: &str, e: &dyn std::fmt::Display| {
        Failure::new("lease", FailureKind::Harness, format!("[[card]] {what}: {e}"))
    };
    Ok(CardRequest {
        address: wish
            .request
            .address
            .as_deref()
            .map(str::parse)
            .transpose()
            .map_err(|e| wrong("address", &e))?,
        id: wish.request.id.as_deref().map(str::parse).transpose().map_err(|e| wrong("id", &e))?,
        model: wish.request.model.clone(),
        any: wish.request.any,
        count: wish.request.count.max(1) as usize,
    })
}

fn refused(error: &LeaseError) -> Failure {
    let kind = match error {
        LeaseError::State(_) | LeaseError::Host(_) => FailureKind::Host,
        _ => FailureKind::NotLent,
    };
    Failure::new("lease", kind, error.to_string())
}

pub(super) fn card_facts(borrowed: &Borrowed, inventory: &Inventory) -> CardFacts {
    let card = &borrowed.card;
    let mut facts = Vec::new();
    for (address, role) in &borrowed.functions {
        let Some(function) = inventory.function(address) else { continue };
        let bars = function
            .bars
            .iter()
            .filter(|bar| bar.index < 6)
            .map(|bar| format!("BAR{} {}", bar.index, words::bytes(bar.size)));
        let bars = bars.collect::<Vec<_>>().join(", ");
        let driver = function.driver.as_deref().unwrap_or("no driver");
        facts.push(Fact::new(
            role.to_string(),
            format!("{} {} ({driver}) {bars}", address.short(), function.id),
        ));
    }
    if let Some(id) = borrowed.present_as {
        facts.push(Fact::new("shown as", id.to_string()));
    }
    if let Some(link) = inventory.function(&card.address).and_then(|f| f.link.as_ref()) {
        facts.push(Fact::new(
            "link",
            format!(
                "{} GT/s x{} of {} GT/s x{}",
                or_unknown(link.speed),
                or_unknown(link.width),
                or_unknown(link.max_speed),
                or_unknown(link.max_width)
            ),
        ));
    }
    facts.push(Fact::new(
        "IOMMU group",
        card.groups.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    ));
    let roles = borrowed.functions.iter().map(|(_, role)| role.to_string()).collect();
    CardFacts { name: words::clean(&card.name), slot: card.address.slot_name(), roles, facts, stays: false }
}

fn or_unknown<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "?".into(), |v| v.to_string())
}

/// Locked memory is asked for before anything is bound: QEMU's own error for it is a bare -12.
pub(super) fn check_memlock(spec: &MachineSpec, options: &VerifyOptions) -> Result<(), Failure> {
    if spec.memlock_needed().is_none() || options.run_as.is_some() {
        return Ok(()); // nothing is pinned, or root lifts the limit for another user
    }
    memlock::check(spec.memory_mib).map_err(|e| Failure::new("memory", FailureKind::HostSetup, e.to_string()))
}

/// Huge pages, for as long as the lease lasts.
pub(super) fn huge_pages(held: &Held, spec: &MachineSpec, options: &VerifyOptions) -> Result<(), Failure> {
    if !spec.huge_pages {
        return Ok(());
    }
    let pages = held.lease.huge_pages(spec.memory_mib, &options.privilege);
    pages.map(drop).map_err(|e| Failure::new("memory", FailureKind::HostSetup, e.to_string()))
}

/// Gives every function to vfio-pci.
pub(super) fn bind(
    held: &mut Held,
    options: &VerifyOptions,
    recorder: &mut Recorder<'_>,
) -> Result<(), Failure> {
    if held.borrowed.is_empty() {
        return Ok(());
    }
    let phase = recorder.begin(
        "bind",
        None,
        "every function of the cards to vfio-pci; written into the journal first",
    );
    // even a refused bind may have changed something before it was refused
    held.bound = true;
    let nodes = held.lease.bind(&options.privilege);
    recorder.end(phase, nodes.as_ref().err().map(ToString::to_string).as_deref());
    let nodes = nodes.map_err(|e| Failure::new("bind", kind_of(&e), e.to_string()))?;
    for node in nodes {
        let before = held
            .before
            .iter()
            .find(|(address, _)| *address == node.address)
            .and_then(|(_, driver)| driver.as_deref());
        recorder.event(Event::HostChange {
            target: node.address.to_string(),
            before: before.unwrap_or("no driver").into(),
            after: "vfio-pci".into(),
        });
    }
    Ok(())
}

fn kind_of(error: &BindError) -> FailureKind {
    match error {
        BindError::InUse { .. } => FailureKind::NotLent,
        BindError::NoVfio { .. } | BindError::Privilege { .. } => FailureKind::HostSetup,
        _ => FailureKind::Host,
    }
}

/// Tells the lease where a QEMU is about to be, so that it is found if we die before [`attach`].
pub(super) fn announce(held: &mut Held, dirs: &RunDirs, recorder: &mut Recorder<'_>) {
    if let Err(e) = held.lease.announce_machine(&dirs.qmp_socket()) {
        recorder.note(format!("failed to write down which QEMU will use the cards: {e}"), true);
    }
}

/// Tells the lease which QEMU has the cards, so that nobody unbinds under it if we die.
pub(super) fn attach(held: &mut Held, machine: &RunRecord, recorder: &mut Recorder<'_>) {
    if let Err(e) = held.lease.attach_machine(machine.pid, machine.start_time, &machine.qmp_socket) {
        recorder.note(format!("failed to write down which QEMU uses the cards: {e}"), true);
    }
}

/// Ends the lease and compares the host with what it was. What went wrong on the way is returned in words.
pub(super) fn give_back(
    held: Held,
    options: &VerifyOptions,
    recorder: &mut Recorder<'_>,
) -> (Vec<Returned>, Option<String>) {
    let Held { lease, before, bound, .. } = held;
    let phase = recorder.begin("give back", None, "every function to the driver that it had");
    let back = lease.give_back(&options.privilege);
    let problem = match &back {
        Ok(back) => back.quarantined.as_ref().map(|why| format!("the card is in quarantine: {why}")),
        Err(e) => Some(e.to_string()),
    };
    let now = Inventory::read(&options.roots);
    recorder.end(phase, problem.as_deref());
    let problem = problem.or_else(|| now.as_ref().err().map(ToString::to_string));
    let driver_now = |address: &PciAddress| {
        now.as_ref().ok().and_then(|i| i.function(address)).and_then(|f| f.driver.clone())
    };
    let returned: Vec<Returned> = before
        .iter()
        .map(|(address, driver)| Returned {
            address: address.to_string(),
            before: driver.clone(),
            now: driver_now(address),
        })
        .collect();
    if bound {
        for one in &returned {
            let word = |driver: &Option<String>| driver.clone().unwrap_or_else(|| "no driver".into());
            recorder.event(Event::HostChange {
                target: one.address.clone(),
                before: "vfio-pci".into(),
                after: word(&one.now),
            });
        }
    }
    (returned, problem)
}
