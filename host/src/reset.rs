//! A card is reset between two tenants, as a whole: nothing of one guest's work, and no half state, reaches the next.
//!
//! Most cards cannot reset one function alone, and a bus reset takes all functions of a slot along. So it is only done when
//! all of them are ours and with vfio-pci. Which ways there are, and in which order they are tried, is the table [`WAYS`].
//! The kernel resets a card of its own accord, too, when a VM lets go of it; that leaves no word about whether it worked.

use std::ffi::CString;
use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::binding::{BindError, Place, VFIO};
use crate::holders::group_node;
use crate::raw::vfio_hot_reset;
use crate::{Inventory, PciAddress};

/// One way of resetting a slot that was tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResetTry {
    /// The slot.
    pub slot: String,
    /// In words.
    pub way: String,
    /// What the kernel said, where it did not work.
    pub refused: Option<String>,
}

impl fmt::Display for ResetTry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.refused {
            None => write!(f, "{} reset {}", self.slot, self.way),
            Some(why) => write!(f, "{} not reset {}: {why}", self.slot, self.way),
        }
    }
}

/// The slot that is to be reset, and what of it is known.
struct Slot<'a> {
    place: &'a Place<'a>,
    inventory: &'a Inventory,
    /// All that is ours, also in other slots.
    ours: &'a [PciAddress],
    functions: Vec<PciAddress>,
}

/// A way to reset a slot: its name, and the writes that it comes to; `None` where it cannot be gone.
struct Way {
    name: &'static str,
    steps: fn(&Slot<'_>) -> Option<Vec<Step>>,
}

/// One thing that is done in a child with a limit.
enum Step {
    /// `1` into this file.
    Write(PathBuf),
    /// VFIO_DEVICE_PCI_HOT_RESET with these groups, asked of this function.
    Vfio { groups: Vec<PathBuf>, function: PciAddress },
}

/// In this order. The first asks the kernel itself whether everything that the reset hits is ours.
const WAYS: &[Way] = &[
    Way { name: "by vfio", steps: by_vfio },
    Way { name: "by the bridge above", steps: by_bridge },
    Way { name: "function by function", steps: by_functions },
];

fn by_vfio(slot: &Slot<'_>) -> Option<Vec<Step>> {
    let Place { roots, .. } = slot.place;
    let mut groups: Vec<u32> = slot.ours.iter().filter_map(|f| slot.inventory.function(f)?.group).collect();
    groups.sort_unstable();
    groups.dedup();
    let nodes: Vec<PathBuf> = groups.iter().map(|group| group_node(*group, roots)).collect();
    let there = roots.is_real() && roots.dev.join("vfio/vfio").exists() && nodes.iter().all(|n| n.exists());
    let function = *slot.functions.first()?;
    there.then(|| vec![Step::Vfio { groups: nodes, function }])
}

/// `reset_subordinate`, where the kernel has it, resets everything below a bridge, so everything below it has to be ours.
fn by_bridge(slot: &Slot<'_>) -> Option<Vec<Step>> {
    let bridge = *slot.inventory.function(slot.functions.first()?)?.bridges.last()?;
    let file = slot.place.roots.device(&bridge).join("reset_subordinate");
    let below = slot.inventory.functions.iter().filter(|f| f.bridges.contains(&bridge));
    let mut strangers = below.filter(|f| !slot.ours.contains(&f.address));
    (file.exists() && strangers.next().is_none()).then(|| vec![Step::Write(file)])
}

/// `reset`, which the kernel shows where `reset_method` names a way.
fn by_functions(slot: &Slot<'_>) -> Option<Vec<Step>> {
    let files: Vec<PathBuf> = slot
        .functions
        .iter()
        .map(|f| slot.place.roots.device(f).join("reset"))
        .filter(|f| f.exists())
        .collect();
    (!files.is_empty()).then(|| files.into_iter().map(Step::Write).collect())
}

impl Place<'_> {
    /// Resets the slots of these functions, if all of them are with vfio-pci.
    ///
    /// A way that the kernel refuses is no error: the next one is tried, and what was tried is told. A reset that hangs is.
    pub(crate) fn reset(&self, functions: &[PciAddress], title: &str) -> Result<Vec<ResetTry>, BindError> {
        // a bus that cannot be read is no reason to keep what is to be given back
        let Ok(inventory) = Inventory::read(self.roots) else { return Ok(Vec::new()) };
        let driver = |f: &PciAddress| inventory.function(f).and_then(|f| f.driver.clone());
        if !functions.iter().all(|f| driver(f).as_deref() == Some(VFIO)) {
            return Ok(Vec::new());
        }
        let mut tried = Vec::new();
        let mut left = functions.to_vec();
        while let Some(first) = left.first().copied() {
            let (of_slot, others) = left.into_iter().partition(|f| f.same_slot(&first));
            left = others;
            let slot = Slot { place: self, inventory: &inventory, ours: functions, functions: of_slot };
            slot.reset(title, &mut tried)?;
        }
        Ok(tried)
    }

    /// One step; the inner error is what the kernel said.
    fn step(&self, step: &Step, title: &str) -> Result<Result<(), String>, BindError> {
        match step {
            Step::Write(path) => match self.write(path, "1", title) {
                Err(BindError::Write { why, .. }) => Ok(Err(why)),
                other => other.map(Ok),
            },
            Step::Vfio { groups, function } => {
                let (container, name) = (self.roots.dev.join("vfio/vfio"), function.to_string());
                let Ok(name) = CString::new(name) else { return Ok(Err("no name".into())) };
                let what = format!("a reset through {}", container.display());
                self.in_kernel(&container, &what, title, || vfio_hot_reset(&container, groups, &name))
                    .map(|result| result.map_err(|e| e.to_string()))
            }
        }
    }
}

impl Slot<'_> {
    fn reset(&self, title: &str, tried: &mut Vec<ResetTry>) -> Result<(), BindError> {
        let name = self.functions.first().map(PciAddress::slot_name).unwrap_or_default();
        for way in WAYS {
            let Some(steps) = (way.steps)(self) else { continue };
            self.place.note_doing(&self.functions, &format!("being reset {}", way.name))?;
            let mut refused = None;
            for step in &steps {
                refused = self.place.step(step, title)?.err().or(refused);
            }
            let works = refused.is_none();
            tried.push(ResetTry { slot: name.clone(), way: way.name.into(), refused });
            if works {
                break;
            }
        }
        Ok(())
    }
}
