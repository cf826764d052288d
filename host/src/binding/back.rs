//! Giving back: what the journal says is undone, and a card that is not as it was goes into quarantine.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{BindError, Place, VFIO, set_owner};
use crate::health::ailment;
use crate::holders::{self, Holder, group_node};
use crate::reset::ResetTry;
use crate::state::{JournalEntry, QuarantineEntry};
use crate::{PciAddress, clock};

/// One function after its card was given back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionBack {
    /// The function.
    pub address: PciAddress,
    /// The driver that it was taken from.
    pub driver_before: Option<String>,
    /// The driver that has it now.
    pub driver_now: Option<String>,
}

/// What became of the cards of a lease.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[must_use]
pub struct GivenBack {
    /// Every function that had been taken.
    pub functions: Vec<FunctionBack>,
    /// Why the card is in quarantine now; `None` when all is well.
    pub quarantined: Option<String>,
    /// How the card was reset between its tenants.
    #[serde(default)]
    pub resets: Vec<ResetTry>,
}

impl fmt::Display for GivenBack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |driver: &Option<String>| driver.clone().unwrap_or_else(|| "no driver".into());
        for (n, back) in self.functions.iter().enumerate() {
            let comma = if n == 0 { "" } else { ", " };
            write!(f, "{comma}{} {}", back.address.short(), name(&back.driver_now))?;
            if back.driver_now != back.driver_before {
                write!(f, " (had {})", name(&back.driver_before))?;
            }
        }
        for tried in &self.resets {
            write!(f, "; {tried}")?;
        }
        match &self.quarantined {
            Some(why) => write!(f, "; in quarantine: {why}"),
            None => Ok(()),
        }
    }
}

impl GivenBack {
    /// Every function has the driver that it had before, and the card is healthy.
    pub fn is_complete(&self) -> bool {
        self.quarantined.is_none() && self.functions.iter().all(|f| f.driver_before == f.driver_now)
    }
}

impl Place<'_> {
    /// Gives functions back to the drivers that the journal names.
    pub(crate) fn release(&self, functions: &[PciAddress], uid: u32) -> Result<GivenBack, BindError> {
        let _lock = self.state.lock_host()?;
        let mut entries = self.state.journal(self.roots);
        entries.retain(|entry| functions.contains(&entry.address));
        // the owner's own user, root, and anybody once the owner is dead: the next run cleans up
        let stranger = entries.iter().find(|e| uid != 0 && uid != e.uid && e.owner.is_alive(self.roots));
        if let Some(entry) = stranger {
            return Err(BindError::Refused {
                why: format!("{} is lent to '{}' of user {}", entry.address, entry.holder, entry.uid),
            });
        }
        let nodes: Vec<PathBuf> = entries.iter().flat_map(|entry| self.nodes(entry)).collect();
        let mut holders = holders::of_nodes(&nodes, self.roots);
        let machines = entries.iter().filter_map(|entry| entry.machine).filter(|m| m.is_alive(self.roots));
        holders.extend(machines.map(|machine| Holder {
            pid: machine.pid,
            name: machine.name(self.roots).unwrap_or_else(|| "the machine".into()),
            node: nodes.first().cloned().unwrap_or_default(),
        }));
        if !holders.is_empty() {
            return Err(BindError::InUse { card: self.title(&entries), holders });
        }
        let title = self.title(&entries);
        let ours: Vec<PciAddress> = entries.iter().map(|entry| entry.address).collect();
        match self.reset(&ours, &title).and_then(|resets| self.put_back(&entries, resets)) {
            Err(error @ BindError::Hung { .. }) => {
                self.give_up(&entries, &error.to_string())?;
                Err(error)
            }
            done => done,
        }
    }

    /// A reserved card stays with vfio-pci and needs no root: it is only reset and looked at.
    pub(crate) fn tidy(&self, functions: &[PciAddress], name: &str) -> Result<GivenBack, BindError> {
        let inventory = self.inventory()?;
        let holders = holders::of_functions(&inventory, functions, self.roots);
        if !holders.is_empty() {
            return Err(BindError::InUse { card: name.into(), holders });
        }
        let resets = self.reset(functions, name)?;
        let reason = functions.iter().find_map(|f| ailment(f, self.roots, self.limits.write));
        if let Some(reason) = &reason {
            self.quarantine(name, functions, reason)?;
        }
        let vfio = || Some(VFIO.to_string());
        let back = |address: &PciAddress| FunctionBack {
            address: *address,
            driver_before: vfio(),
            driver_now: self.driver(address),
        };
        Ok(GivenBack { functions: functions.iter().map(back).collect(), quarantined: reason, resets })
    }

    /// Undoes what `entries` say, as far as it was done. Also right after half a bind.
    ///
    /// A card that answers nothing is not offered to its driver, which might hang with it.
    pub(super) fn put_back(
        &self,
        entries: &[JournalEntry],
        resets: Vec<ResetTry>,
    ) -> Result<GivenBack, BindError> {
        if entries.is_empty() {
            return Ok(GivenBack::default());
        }
        let title = self.title(entries);
        let dead = entries.iter().find_map(|e| ailment(&e.address, self.roots, self.limits.write));
        if let Some(reason) = dead {
            self.give_up(entries, &reason)?;
            return Ok(GivenBack {
                functions: self.functions_back(entries),
                quarantined: Some(reason),
                resets,
            });
        }
        let undone = entries
            .iter()
            .try_for_each(|entry| self.let_go(entry, &title))
            .and_then(|()| entries.iter().try_for_each(|entry| self.reprobe(entry, &title)));
        if let Err(error) = undone {
            self.give_up(entries, &error.to_string())?;
            return Err(error);
        }
        let reason = entries.iter().find_map(|entry| self.not_as_before(entry));
        match &reason {
            Some(reason) => self.give_up(entries, reason)?,
            None => entries.iter().try_for_each(|entry| self.state.remove_journal(&entry.address))?,
        }
        Ok(GivenBack { functions: self.functions_back(entries), quarantined: reason, resets })
    }

    fn functions_back(&self, entries: &[JournalEntry]) -> Vec<FunctionBack> {
        let back = |entry: &JournalEntry| FunctionBack {
            address: entry.address,
            driver_before: entry.driver_before.clone(),
            driver_now: self.driver(&entry.address),
        };
        entries.iter().map(back).collect()
    }

    /// Clears the override and takes the function from vfio-pci, if that had it only because of us.
    fn let_go(&self, entry: &JournalEntry, title: &str) -> Result<(), BindError> {
        let device = self.roots.device(&entry.address);
        if !device.exists() {
            return Ok(());
        }
        if entry.driver_before.as_deref() == Some(VFIO) {
            if let (Some(owner), Some(group)) = (entry.node_before, entry.group) {
                // the node may be gone with its card; then nobody can use it either
                let _ = set_owner(&group_node(group, self.roots), owner);
            }
            return Ok(());
        }
        let before = entry.override_before.as_deref().unwrap_or("\n");
        self.write(&device.join("driver_override"), before, title)?;
        if self.driver(&entry.address).as_deref() == Some(VFIO) {
            self.write(&device.join("driver/unbind"), &entry.address.to_string(), title)?;
            self.wait_for_driver(&entry.address, None);
        }
        Ok(())
    }

    fn reprobe(&self, entry: &JournalEntry, title: &str) -> Result<(), BindError> {
        let wanted = entry.driver_before.as_deref();
        let there = self.roots.device(&entry.address).exists();
        if !there || wanted.is_none() || self.driver(&entry.address).as_deref() == wanted {
            return Ok(());
        }
        let probe = self.roots.sys.join("bus/pci/drivers_probe");
        match self.write(&probe, &entry.address.to_string(), title) {
            // a driver that refuses shows below as "did not come back", with the better words
            Ok(()) | Err(BindError::Write { .. }) => {
                self.wait_for_driver(&entry.address, wanted);
                Ok(())
            }
            Err(hung) => Err(hung),
        }
    }

    /// What is wrong with a function that was given back.
    fn not_as_before(&self, entry: &JournalEntry) -> Option<String> {
        let address = entry.address.short();
        let now = self.driver(&entry.address);
        (now != entry.driver_before).then(|| {
            let name =
                |driver: Option<&str>| driver.map_or("no driver".to_string(), |d| format!("driver {d}"));
            format!(
                "{address} had {} and came back with {}: dmesg says why",
                name(entry.driver_before.as_deref()),
                name(now.as_deref())
            )
        })
    }

    /// Quarantine instead of a second try.
    pub(super) fn give_up(&self, entries: &[JournalEntry], reason: &str) -> Result<(), BindError> {
        let functions: Vec<PciAddress> = entries.iter().map(|entry| entry.address).collect();
        self.quarantine(&self.title(entries), &functions, reason)?;
        entries.iter().try_for_each(|entry| self.state.remove_journal(&entry.address))?;
        Ok(())
    }

    fn quarantine(&self, name: &str, functions: &[PciAddress], reason: &str) -> Result<(), BindError> {
        let (functions, boot_id) = (functions.to_vec(), self.roots.boot_id());
        let entry = QuarantineEntry {
            name: name.into(),
            functions,
            reason: reason.into(),
            since: clock::now(),
            boot_id,
        };
        Ok(self.state.put_in_quarantine(&entry)?)
    }
}
