//! The gate of a plan: will this package drive the cards that the recipe may get, on this guest, in a VM that it may see?
//!
//! It works both ways: too old for a VM, too new for this Windows or this chip. A card that cannot be named before it is leased
//! is told as a note and never refused.

use std::collections::BTreeMap;

use no43_host::{PciId, device_name, lease};

use super::chips::{self, FIRST_FOR_VMS, NVIDIA};
use super::{Answer, CardIds, DriverFacts, Package, Reason, Signer, Subsystem, System, Version};
use crate::diagnostic::{Kind, Problem, Problems};
use crate::plan::{HostCard, HostFacts, fits};
use crate::recipe::{CardAsk, DriverAsk, Recipe};

/// What to do about a package that does not drive a card.
const OTHER: &str =
    "take another package (no43 driver inspect FILE --card ID tells what one drives), or another card";

/// What the gate looks at.
pub(crate) struct Asked<'a> {
    pub(crate) recipe: &'a Recipe,
    /// Of the package, from the lock; `None` where the recipe names none.
    pub(crate) package: Option<&'a DriverFacts>,
    /// Of the Windows on the medium.
    pub(crate) build: Option<u32>,
    pub(crate) host: Option<&'a HostFacts>,
}

/// What follows for the machine.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Decided {
    /// The VM hides itself.
    pub(crate) hidden: bool,
    /// Ids of every card that the recipe may lease, as far as they are known.
    pub(crate) cards: Vec<PciId>,
    /// What the package's INFs say of each of them: `matches`, `other build`, `needs subsystem`, `not listed`.
    pub(crate) listed: BTreeMap<String, String>,
    /// Of the package, or as the recipe wants it.
    pub(crate) version: Option<Version>,
    /// Sentences for a person.
    pub(crate) notes: Vec<String>,
}

/// A package's answer in the words of the causes; none where it lists no devices at all.
fn listed(package: &Package, card: CardIds, build: Option<u32>) -> Option<&'static str> {
    match package.drives(card, build) {
        Answer::Yes(_) => Some("matches"),
        Answer::No(Reason::WindowsTooOld { .. }) => Some("other build"),
        Answer::No(Reason::OnlyBoards { .. }) => Some("needs subsystem"),
        Answer::No(_) => Some("not listed"),
        Answer::Unlisted => None,
    }
}

/// Lets a plan through, or says why not.
pub(crate) fn decide(asked: &Asked<'_>) -> Result<Decided, Problems> {
    let mut gate = Gate { asked, problems: Problems::default(), decided: Decided::default() };
    let package = asked.package.map(|facts| facts.package(std::path::Path::new("")));
    gate.package_itself();
    for card in &asked.recipe.cards {
        let ids = candidates(card, asked.host, package.as_ref());
        gate.card(card, &ids, package.as_ref());
        gate.decided.cards.extend(ids.into_iter().map(|card| card.id));
    }
    gate.decided.cards.sort();
    gate.decided.cards.dedup();
    gate.hiding();
    gate.decided.version = gate.version();
    gate.problems.sort();
    gate.problems.into_result().map(|()| gate.decided)
}

struct Gate<'a> {
    asked: &'a Asked<'a>,
    problems: Problems,
    decided: Decided,
}

impl Gate<'_> {
    fn ask(&self) -> &DriverAsk {
        &self.asked.recipe.driver
    }

    fn version(&self) -> Option<Version> {
        self.asked.package.and_then(|package| package.version).or(self.ask().version)
    }

    fn note(&mut self, text: impl Into<String>) {
        self.decided.notes.push(text.into());
    }

    /// Version, signature and dates, whatever the card.
    fn package_itself(&mut self) {
        let Some(package) = self.asked.package else { return };
        for contradiction in &package.contradictions {
            self.note(format!("driver: the package contradicts itself: {contradiction}"));
        }
        let spots = &self.asked.recipe.driver.spots;
        if let (Some(wanted), Some(is)) = (self.ask().version, package.version)
            && wanted != is
        {
            let what = format!("the package is {is}, and the recipe wants {wanted}");
            let fix = "name the package of that version, or correct driver.version";
            self.problems.push(spots.version.problem(Kind::Conflict, what).fix(fix));
        }
        if self.ask().test_signed {
            self.note("driver: test signing is on: Windows takes drivers that Microsoft has not signed");
        } else if let Some(signer) = package.signer.filter(|signer| *signer != Signer::Microsoft) {
            let who = if signer == Signer::Nobody { "nobody" } else { "somebody else than Microsoft" };
            let what = format!("the package is signed by {who}: Windows would not load it (code 52)");
            let fix = "take a released package, or set driver.test-signed = true (test signing on, Secure Boot off)";
            self.problems.push(spots.package.problem(Kind::Conflict, what).fix(fix));
        }
        let os = &self.asked.recipe.guest.os;
        let end =
            chips::WINDOWS_ENDS.iter().find(|end| end.os == os && year_month(&package.date) > Some(end.last));
        if let Some(end) = end {
            let (year, month) = end.last;
            self.note(format!(
                "driver: {} was announced to get new drivers until {year}-{month:02} only ({}), and this one is of {}",
                end.name, end.source, package.date
            ));
        }
    }

    /// One `[[card]]` and the ids that it may become.
    fn card(&mut self, card: &CardAsk, ids: &[CardIds], package: Option<&Package>) {
        if ids.is_empty() {
            if package.is_some() {
                let text = format!(
                    "driver: which card it will be is known when it is leased: {} is not checked against the package now",
                    in_words(card)
                );
                self.note(text);
            }
            return;
        }
        let build = self.asked.build;
        for (id, word) in ids.iter().filter_map(|ids| Some((ids.id, listed(package?, *ids, build)?))) {
            self.decided.listed.insert(id.to_string(), word.to_owned());
        }
        let faults: Vec<Option<Problem>> = ids.iter().map(|card| self.fault(*card, package)).collect();
        let all = faults.iter().all(Option::is_some);
        for (card, fault) in ids.iter().zip(faults) {
            match fault {
                // Another card of this host will do: the lease takes one of those that fit.
                Some(fault) if !all => self.note(format!(
                    "driver: {} fits this [[card]] too, and would not work: {}; name the card that is meant",
                    name(card.id),
                    fault.what
                )),
                Some(fault) => self.problems.push(fault),
                None => {}
            }
        }
    }

    /// What speaks against one card.
    fn fault(&mut self, card: CardIds, package: Option<&Package>) -> Option<Problem> {
        self.too_old_for_a_vm(card.id).or_else(|| self.not_driven(card, package?))
    }

    /// A GeForce in a VM that it sees.
    fn too_old_for_a_vm(&self, id: PciId) -> Option<Problem> {
        let version = self.version().filter(|version| *version < FIRST_FOR_VMS)?;
        let linux = self.asked.recipe.guest.windows.is_none();
        if self.ask().legacy || linux || !is_geforce(id) {
            return None;
        }
        let spots = &self.ask().spots;
        let spot = if self.asked.package.is_some() { &spots.package } else { &spots.version };
        let first = FIRST_FOR_VMS.branch;
        let what = format!(
            "driver {version} is older than {first}: {} would end with Code 43 in a VM that it sees",
            name(id)
        );
        let fix = format!(
            "take a package of branch {first} or newer, or set driver.legacy = true: the VM then hides itself, and is slower"
        );
        Some(spot.problem(Kind::Conflict, what).fix(fix))
    }

    /// Why the package does not drive the card on this guest.
    fn not_driven(&mut self, card: CardIds, package: &Package) -> Option<Problem> {
        let (why, fix) = match package.drives(card, self.asked.build) {
            _ if card.id.vendor != NVIDIA && package.system == System::Linux => {
                ("the package is for cards of maker 10de".to_owned(), OTHER)
            }
            Answer::No(reason @ Reason::GenerationEnded { .. }) => {
                (reason.to_string(), "take an older package, or another card")
            }
            Answer::No(reason) => (reason.to_string(), OTHER),
            Answer::Yes(fit) if !fit.closest => {
                let name = name(card.id);
                self.note(format!(
                    "driver: {name} is listed for older builds of Windows only; this one may not take it"
                ));
                return None;
            }
            Answer::Yes(_) | Answer::Unlisted => return None,
        };
        let what = format!("the package does not drive {}: {why}", name(card.id));
        Some(self.ask().spots.package.problem(Kind::Conflict, what).fix(fix))
    }

    /// Hiding is never done without saying so.
    fn hiding(&mut self) {
        if !self.ask().legacy {
            return;
        }
        self.decided.hidden = true;
        let mut note =
            "driver.legacy: the VM hides itself (kvm=off, another vendor id), which makes Windows slower"
                .to_owned();
        if self.version().is_some_and(|version| version >= FIRST_FOR_VMS) {
            note.push_str(&format!("; from {} on no driver needs that", FIRST_FOR_VMS.branch));
        }
        self.note(note);
    }
}

/// Every id that a `[[card]]` may become; nothing where only the lease will tell.
fn candidates(card: &CardAsk, host: Option<&HostFacts>, package: Option<&Package>) -> Vec<CardIds> {
    let ids = |text: &str| text.parse().ok().map(|id| CardIds { id, subsystem: None });
    // What the guest sees is what its driver is chosen by.
    if let Some(shown) = &card.present_as {
        return ids(shown).into_iter().collect();
    }
    let here = host.into_iter().flat_map(|host| &host.cards).filter(|there| fits(&card.request, there));
    let mut found: Vec<CardIds> = here.filter_map(of_host).collect();
    if found.is_empty() {
        found.extend(card.request.id.as_deref().and_then(ids));
    }
    if let (true, Some(model), Some(package)) = (found.is_empty(), &card.request.model, package) {
        let devices = package.devices().into_iter().filter(|device| device.subsystem.is_none());
        let named = devices.filter(|device| lease::is_model(&device.name, model));
        found.extend(named.map(|device| CardIds { id: device.id, subsystem: None }));
    }
    found.sort_by_key(|card| card.id);
    found.dedup();
    found
}

/// With its board: packages for notebooks and complete computers list those.
fn of_host(card: &HostCard) -> Option<CardIds> {
    let board: Option<PciId> = card.board.as_deref().and_then(|board| board.parse().ok());
    let subsystem = board.map(|board| Subsystem { vendor: board.vendor, device: board.device });
    Some(CardIds { id: card.id.parse().ok()?, subsystem })
}

fn in_words(card: &CardAsk) -> String {
    let request = &card.request;
    let model = request.model.as_ref().map(|model| format!("model '{model}'"));
    let place = request.address.as_ref().map(|address| format!("the card at {address}"));
    model.or(place).unwrap_or_else(|| "any card".to_owned())
}

fn name(id: PciId) -> String {
    device_name(id).map_or_else(|| id.to_string(), |name| format!("{id} {name}"))
}

/// Only these were ever refused in VMs; a card that nobody knows is taken for one.
fn is_geforce(id: PciId) -> bool {
    id.vendor == NVIDIA
        && device_name(id)
            .is_none_or(|name| name.contains("GeForce") || name.to_uppercase().contains("TITAN"))
}

/// Year and month of an INF's month/day/year.
fn year_month(date: &str) -> Option<(u16, u8)> {
    let mut parts = date.split('/').map(str::trim);
    let (month, _, year) = (parts.next()?.parse().ok()?, parts.next()?, parts.next()?.parse().ok()?);
    (parts.next().is_none() && (1..=12).contains(&month)).then_some((year, month))
}

#[cfg(test)]
mod tests;
