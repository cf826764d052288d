//! Graphics cards: which functions belong together, and whether they may be lent.
//!
//! "Same slot" is not enough: cards with a switch of their own (AMD Navi, Intel Arc) put their audio function on another
//! bus. So a card is the slot of its video function plus every companion below the topmost bridge that holds only it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::holders::{self, Holder};
use crate::inventory::Function;
use crate::state::{LeaseRecord, StateDir};
use crate::{Inventory, PciAddress, PciId, Roots, clock, names};

/// A graphics card with all its functions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Card {
    /// `GeForce RTX 3070 (GA104)`
    pub name: String,
    /// Its video function.
    pub address: PciAddress,
    /// Vendor and device of the video function.
    pub id: PciId,
    /// All functions, in the order of their addresses.
    pub functions: Vec<PciAddress>,
    /// What each of `functions` does, in the same order.
    pub roles: Vec<Role>,
    /// IOMMU groups that its functions are in; empty without an IOMMU.
    pub groups: Vec<u32>,
    /// The driver that has the video function now.
    pub driver: Option<String>,
    /// No function of another device shares its groups: a guest's DMA reaches nothing else.
    pub isolated: bool,
    /// The kernel would hand its groups out: nothing else in them has a host driver.
    pub viable: bool,
    /// Functions of other devices in its groups.
    pub neighbours: Vec<Neighbour>,
    /// Whether it can be had.
    pub state: CardState,
}

/// A function of another device in a card's IOMMU group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Neighbour {
    /// Where it sits.
    pub address: PciAddress,
    /// What it is.
    pub name: String,
    /// The host driver that uses it.
    pub driver: Option<String>,
    /// The group that it shares.
    pub group: u32,
    /// Whether the kernel refuses the group because of it.
    pub blocks: bool,
}

/// What a function of a card does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Draws and shows pictures.
    Video,
    /// Sound over HDMI and DisplayPort.
    Audio,
    /// USB of a VirtualLink or USB-C socket.
    Usb,
    /// USB-C power and mode negotiation.
    Ucsi,
    /// Anything else in the slot.
    Other,
}

impl Role {
    /// Class and subclass decide: `0x0300` is a VGA controller.
    pub fn of_class(class: u16) -> Self {
        match class {
            0x0300..=0x03ff => Role::Video,
            0x0401 | 0x0403 => Role::Audio,
            0x0c03 => Role::Usb,
            0x0c80 => Role::Ucsi,
            _ => Role::Other,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Video => "video",
            Role::Audio => "audio",
            Role::Usb => "usb",
            Role::Ucsi => "ucsi",
            Role::Other => "other",
        })
    }
}

/// Whether a card can be had, and why not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "kebab-case")]
pub enum CardState {
    /// It can be lent now.
    Ready,
    /// A run has it.
    Lent {
        /// The name of the run.
        holder: String,
        /// The process that keeps the lease: the machine's if it runs, else no43's.
        pid: u32,
        /// Seconds since 1970.
        since: u64,
        /// Whether that process is still there; if not, the next command that changes something gives the card back.
        alive: bool,
    },
    /// Processes have its device nodes open.
    InUse {
        /// Who.
        holders: Vec<Holder>,
    },
    /// The firmware showed its first picture here, and so does the host.
    HostDisplay,
    /// There is no IOMMU group to lend it in.
    NoIommu,
    /// Something else in its group has a host driver.
    NotViable {
        /// The first such function.
        endpoint: Neighbour,
    },
    /// It did not come back healthy from an earlier run.
    Quarantined {
        /// What was wrong.
        reason: String,
        /// Seconds since 1970.
        since: u64,
    },
}

impl CardState {
    /// Whether it can be lent now.
    pub fn is_ready(&self) -> bool {
        *self == CardState::Ready
    }
}

impl fmt::Display for CardState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CardState::Ready => f.write_str("ready to lend"),
            CardState::Lent { holder, since, alive: true, .. } => {
                write!(f, "lent to '{holder}' since {}", clock::since(*since))
            }
            CardState::Lent { holder, pid, .. } => {
                write!(
                    f,
                    "left behind by '{holder}' (process {pid} is gone): the next run gives it back first"
                )
            }
            CardState::InUse { holders } => {
                write!(
                    f,
                    "in use by {}: close that first, or keep the card free from boot (no43 host setup --reserve)",
                    holders::sentence(holders)
                )
            }
            CardState::HostDisplay => f.write_str("the host's own display: never lent"),
            CardState::NoIommu => f.write_str("no IOMMU group: no43 doctor says why"),
            CardState::NotViable { endpoint } => write!(f, "cannot be lent: {endpoint}"),
            CardState::Quarantined { reason, since } => {
                write!(f, "in quarantine since {}: {reason}", clock::since(*since))
            }
        }
    }
}

impl fmt::Display for Neighbour {
    /// `shares group 30 with 4e:00.2 Samsung NVMe SSD Controller, which the host uses (nvme)`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "shares group {} with {} {}", self.group, self.address.short(), self.name)?;
        match &self.driver {
            Some(driver) => write!(f, ", which the host uses (driver {driver})"),
            None => f.write_str(", which no driver has"),
        }
    }
}

impl Card {
    /// `0000:01:00.0` belongs to it?
    pub fn has(&self, address: &PciAddress) -> bool {
        self.functions.contains(address)
    }

    /// `GeForce RTX 3070 (GA104) at 01:00`
    pub fn titled(&self) -> String {
        format!("{} at {}", self.name, self.address.slot_name())
    }

    /// What is worth knowing about a card that can be lent: a neighbour that a guest's DMA would reach.
    pub fn warning(&self) -> Option<String> {
        let neighbour = self.neighbours.first().filter(|_| self.viable && !self.isolated)?;
        Some(format!("{neighbour}: a guest's DMA can reach it"))
    }
}

impl Inventory {
    /// The graphics cards, judged by the bus alone: nothing is known about leases and open device nodes.
    pub fn cards(&self) -> Vec<Card> {
        group_functions(&self.functions).iter().map(|functions| self.card(functions)).collect()
    }

    /// The graphics cards as they are now: the bus, the leases, the quarantine, and who has their device nodes open.
    pub fn cards_now(&self, state: &StateDir, roots: &Roots) -> Vec<Card> {
        let mut cards = self.cards();
        let leases = state.holdings(roots);
        let quarantine = state.quarantine(roots);
        for card in &mut cards {
            let quarantined = quarantine.iter().find(|entry| entry.functions.iter().any(|f| card.has(f)));
            if let Some(entry) = quarantined {
                card.state = CardState::Quarantined { reason: entry.reason.clone(), since: entry.since };
            } else if let Some(lease) = leases.iter().find(|lease| lease.functions().any(|f| card.has(&f))) {
                card.state = lent(lease, roots);
            } else if card.state.is_ready() || matches!(card.state, CardState::NotViable { .. }) {
                let holders = holders::of_functions(self, &card.functions, roots);
                if !holders.is_empty() {
                    card.state = CardState::InUse { holders };
                }
            }
        }
        cards
    }

    fn card(&self, addresses: &[PciAddress]) -> Card {
        let functions: Vec<&Function> = addresses.iter().filter_map(|a| self.function(a)).collect();
        // the caller made the list from a display function, so there is one
        let video = functions.iter().find(|f| f.is_display()).copied().unwrap_or(functions[0]);
        let mut groups: Vec<u32> = functions.iter().filter_map(|f| f.group).collect();
        groups.sort_unstable();
        groups.dedup();
        let neighbours = self.neighbours(addresses, &groups);
        let boot_vga = functions.iter().any(|f| f.boot_vga == Some(true));
        let blocking = neighbours.iter().find(|n| n.blocks).cloned();
        let has_groups = functions.iter().all(|f| f.group.is_some());
        Card {
            name: names::card(video.id),
            address: video.address,
            id: video.id,
            functions: addresses.to_vec(),
            roles: functions.iter().map(|f| Role::of_class(f.class16())).collect(),
            groups,
            driver: video.driver.clone(),
            isolated: has_groups && neighbours.is_empty(),
            viable: has_groups && blocking.is_none(),
            neighbours,
            state: match blocking {
                _ if boot_vga => CardState::HostDisplay,
                _ if !has_groups => CardState::NoIommu,
                Some(endpoint) => CardState::NotViable { endpoint },
                None => CardState::Ready,
            },
        }
    }

    /// Functions of other devices in `groups`. Bridges do not count, and a host bridge only when a driver has it.
    pub(crate) fn neighbours(&self, own: &[PciAddress], groups: &[u32]) -> Vec<Neighbour> {
        let foreign = self
            .functions
            .iter()
            .filter_map(|f| Some((f, f.group?)))
            .filter(|(f, group)| groups.contains(group) && !own.contains(&f.address) && !f.is_bridge());
        let blocks = |f: &Function| f.driver.as_deref().is_some_and(|driver| !is_harmless(driver));
        foreign
            .filter(|(f, _)| !f.is_host_bridge() || blocks(f))
            .map(|(f, group)| Neighbour {
                address: f.address,
                name: f.described(),
                driver: f.driver.clone(),
                group,
                blocks: blocks(f),
            })
            .collect()
    }
}

/// Drivers that do not stop the kernel from handing a group out.
fn is_harmless(driver: &str) -> bool {
    matches!(driver, "pci-stub" | "pcieport") || driver.contains("vfio")
}

fn lent(lease: &LeaseRecord, roots: &Roots) -> CardState {
    let keeper = lease.keeper(roots);
    CardState::Lent {
        holder: lease.holder.clone(),
        pid: keeper.unwrap_or(lease.owner).pid,
        since: lease.since,
        alive: keeper.is_some(),
    }
}

/// The functions of each card, the cards in the order of their video functions.
pub(crate) fn group_functions(functions: &[Function]) -> Vec<Vec<PciAddress>> {
    let mut cards: Vec<Vec<PciAddress>> = Vec::new();
    for video in functions.iter().filter(|f| f.is_display()) {
        if cards.iter().any(|card| card.contains(&video.address)) {
            continue;
        }
        let mut card = companions(functions, video);
        card.extend(functions.iter().map(|f| f.address).filter(|a| a.same_slot(&video.address)));
        card.sort_unstable();
        card.dedup();
        let is_bridge =
            |address: &PciAddress| functions.iter().any(|f| f.address == *address && f.is_bridge());
        card.retain(|address| !is_bridge(address));
        cards.push(card);
    }
    cards
}

/// Everything below the topmost bridge above `video` that holds only this card.
fn companions(functions: &[Function], video: &Function) -> Vec<PciAddress> {
    // a companion in another slot comes from the same maker and does what cards do; a disk or a network card below
    // the same bridge says that the bridge is the board's, not the card's
    let belongs = |f: &Function| {
        f.address.same_slot(&video.address)
            || (f.id.vendor == video.id.vendor
                && matches!(Role::of_class(f.class16()), Role::Audio | Role::Usb | Role::Ucsi))
    };
    let below = |bridge: &PciAddress| {
        functions.iter().filter(|f| !f.is_bridge() && f.bridges.contains(bridge)).collect::<Vec<_>>()
    };
    video
        .bridges
        .iter()
        .map(below)
        .find(|endpoints| endpoints.iter().all(|f| belongs(f)))
        .map(|endpoints| endpoints.iter().map(|f| f.address).collect())
        .unwrap_or_default()
}
