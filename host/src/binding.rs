//! Takes functions from their drivers, gives them to vfio-pci, and puts everything back: the only writes to sysfs.
//!
//! The order per function is override, unbind, probe; `new_id` is never used, it would catch every card of the model. All
//! journal entries are on disk before the first write. Each write runs in a child with a limit: a driver that hangs in
//! unbind never comes back, so its card goes into quarantine and nothing is tried a second time.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::health::ailment;
use crate::holders::{self, group_node};
use crate::process::ProcessRef;
use crate::raw::{in_child, tell};
use crate::roots::link_name;
use crate::state::{JournalEntry, NodeOwner, StateDir};
use crate::{Card, CardState, Inventory, PciAddress, Roots, clock, names};

mod back;
mod error;

pub use back::{FunctionBack, GivenBack};
pub use error::BindError;

pub(crate) const VFIO: &str = "vfio-pci";

/// How long the kernel may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// One write to sysfs. A driver may need ten seconds to shut a big card down; one that needs thirty never returns.
    pub write: Duration,
    /// From a write that returned to its effect. Drivers that probe in the background need a moment, udev too.
    pub settle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { write: Duration::from_secs(30), settle: Duration::from_secs(10) }
    }
}

/// The device node by which QEMU reaches a function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VfioNode {
    /// The function.
    pub address: PciAddress,
    /// Its IOMMU group.
    pub group: u32,
    /// `/dev/vfio/<group>`
    pub path: PathBuf,
}

/// What is to be taken, and for whom.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Job {
    pub(crate) functions: Vec<PciAddress>,
    pub(crate) lease: String,
    pub(crate) holder: String,
    pub(crate) owner: ProcessRef,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// Where things are, and how long they may take.
pub(crate) struct Place<'a> {
    pub(crate) state: &'a StateDir,
    pub(crate) roots: &'a Roots,
    pub(crate) limits: Limits,
}

impl Place<'_> {
    /// Gives the functions of whole cards to vfio-pci and their group nodes to a user.
    pub(crate) fn bind(&self, job: &Job) -> Result<Vec<VfioNode>, BindError> {
        let _lock = self.state.lock_host()?;
        let inventory = self.inventory()?;
        let title = self.check_request(&inventory, job)?;
        let holders = holders::of_functions(&inventory, &job.functions, self.roots);
        if !holders.is_empty() {
            return Err(BindError::InUse { card: title, holders });
        }
        self.load_vfio()?;
        let entries = self.journal(&inventory, job)?;
        let nodes = entries
            .iter()
            .try_for_each(|entry| self.take(entry, &title))
            .and_then(|()| self.check_health(&entries, &title))
            .and_then(|()| entries.iter().map(|entry| self.hand_out(entry, job)).collect());
        match nodes {
            Err(error @ (BindError::Hung { .. } | BindError::Dead { .. })) => {
                self.give_up(&entries, &error.to_string())?;
                Err(error)
            }
            Err(error) => {
                let back = self.put_back(&entries, Vec::new())?;
                Err(match back.quarantined {
                    Some(reason) => BindError::Refused { why: format!("{error}; and then {reason}") },
                    None => error,
                })
            }
            nodes => nodes,
        }
    }

    /// A function that says nothing after vfio-pci took it is of no use to anybody.
    fn check_health(&self, entries: &[JournalEntry], title: &str) -> Result<(), BindError> {
        let ill = entries.iter().find_map(|e| ailment(&e.address, self.roots, self.limits.write));
        ill.map_or(Ok(()), |why| Err(BindError::Dead { card: title.into(), why }))
    }

    /// Writes down what is about to be done to functions that are in the journal.
    pub(crate) fn note_doing(&self, functions: &[PciAddress], what: &str) -> Result<(), BindError> {
        for mut entry in self.state.journal(self.roots) {
            if functions.contains(&entry.address) {
                entry.doing = Some(what.into());
                self.state.write_journal(&entry)?;
            }
        }
        Ok(())
    }

    pub(crate) fn inventory(&self) -> Result<Inventory, BindError> {
        Inventory::read(self.roots).map_err(|e| BindError::State { why: e.to_string() })
    }

    /// Only whole cards, never the host's display, never what is lent, never a group that the kernel would refuse.
    fn check_request(&self, inventory: &Inventory, job: &Job) -> Result<String, BindError> {
        let refuse = |why: String| Err(BindError::Refused { why });
        let cards: Vec<Card> = inventory
            .cards()
            .into_iter()
            .filter(|card| card.functions.iter().any(|f| job.functions.contains(f)))
            .collect();
        if let Some(address) = job.functions.iter().find(|f| !cards.iter().any(|card| card.has(f))) {
            return refuse(format!("{address} is not a function of a graphics card on this host"));
        }
        for card in &cards {
            if let Some(left_out) = card.functions.iter().find(|f| !job.functions.contains(f)) {
                return refuse(format!("{left_out} belongs to {} too: a card is lent whole", card.titled()));
            }
            if matches!(card.state, CardState::HostDisplay | CardState::NoIommu) {
                return refuse(format!("{}: {}", card.titled(), card.state));
            }
        }
        let quarantine = self.state.quarantine(self.roots);
        if let Some(entry) = quarantine.iter().find(|e| e.functions.iter().any(|f| job.functions.contains(f)))
        {
            return refuse(format!("{} is in quarantine: {}", entry.name, entry.reason));
        }
        let mut groups: Vec<u32> = cards.iter().flat_map(|card| card.groups.clone()).collect();
        groups.sort_unstable();
        if let Some(neighbour) = inventory.neighbours(&job.functions, &groups).iter().find(|n| n.blocks) {
            return refuse(format!("{} {neighbour}", cards[0].titled()));
        }
        let taken = self.state.journal(self.roots).into_iter().find(|e| job.functions.contains(&e.address));
        if let Some(entry) = taken {
            return refuse(format!(
                "{} is lent to '{}' (process {}) since {}",
                entry.address,
                entry.holder,
                entry.owner.pid,
                clock::since(entry.since)
            ));
        }
        Ok(cards.iter().map(Card::titled).collect::<Vec<_>>().join(" and "))
    }

    fn load_vfio(&self) -> Result<(), BindError> {
        let driver = self.roots.sys.join("bus/pci/drivers").join(VFIO);
        if driver.exists() {
            return Ok(());
        }
        if !self.roots.is_real() {
            return Err(BindError::NoVfio { why: format!("no {}", driver.display()) });
        }
        // sudo's PATH may lack it
        let program = ["/usr/sbin/modprobe", "/sbin/modprobe"].into_iter().find(|p| Path::new(p).exists());
        let output = Command::new(program.unwrap_or("modprobe")).arg(VFIO).stdin(Stdio::null()).output();
        match output {
            Ok(_) if driver.exists() => Ok(()),
            Ok(output) => {
                Err(BindError::NoVfio { why: String::from_utf8_lossy(&output.stderr).trim().to_string() })
            }
            Err(e) => Err(BindError::NoVfio { why: format!("modprobe could not be run: {e}") }),
        }
    }

    /// Writes down every function before the first one is touched.
    fn journal(&self, inventory: &Inventory, job: &Job) -> Result<Vec<JournalEntry>, BindError> {
        let functions = job.functions.iter().filter_map(|address| inventory.function(address));
        let entries: Vec<JournalEntry> = functions
            .map(|f| JournalEntry {
                address: f.address,
                id: f.id,
                lease: job.lease.clone(),
                holder: job.holder.clone(),
                owner: job.owner,
                machine: None,
                uid: job.uid,
                boot_id: self.roots.boot_id(),
                since: clock::now(),
                driver_before: f.driver.clone(),
                override_before: f.driver_override.clone(),
                group: f.group,
                node_before: f.group.and_then(|group| owner_of(&group_node(group, self.roots))),
                doing: None,
            })
            .collect();
        for entry in &entries {
            if let Err(e) = self.state.write_journal(entry) {
                entries.iter().for_each(|entry| drop(self.state.remove_journal(&entry.address)));
                return Err(e.into());
            }
        }
        Ok(entries)
    }

    fn take(&self, entry: &JournalEntry, title: &str) -> Result<(), BindError> {
        let device = self.roots.device(&entry.address);
        if self.driver(&entry.address).as_deref() == Some(VFIO) {
            return Ok(());
        }
        let address = entry.address.to_string();
        self.write(&device.join("driver_override"), VFIO, title)?;
        if self.driver(&entry.address).is_some() {
            self.write(&device.join("driver/unbind"), &address, title)?;
            self.wait_for_driver(&entry.address, None);
        }
        self.write(&self.roots.sys.join("bus/pci/drivers_probe"), &address, title)?;
        if self.wait_for_driver(&entry.address, Some(VFIO)) {
            return Ok(());
        }
        Err(BindError::NotTaken {
            address: entry.address,
            now: self.driver(&entry.address),
            hint: "dmesg says why; error -22 there means that the IOMMU is off (no43 doctor)".into(),
        })
    }

    fn hand_out(&self, entry: &JournalEntry, job: &Job) -> Result<VfioNode, BindError> {
        let group = entry
            .group
            .ok_or_else(|| BindError::Refused { why: format!("{} has no IOMMU group", entry.address) })?;
        let path = group_node(group, self.roots);
        let wrong = |why: String| BindError::Node { path: path.clone(), why };
        if !self.wait_until(|| path.exists()) {
            return Err(wrong("it did not appear after vfio-pci took the card".into()));
        }
        let owner = NodeOwner { uid: job.uid, gid: job.gid, mode: 0o600 };
        set_owner(&path, owner).map_err(|e| wrong(format!("its owner cannot be set: {e}")))?;
        Ok(VfioNode { address: entry.address, group, path })
    }

    fn title(&self, entries: &[JournalEntry]) -> String {
        let Some(first) = entries.first() else { return "the card".into() };
        format!("{} at {}", names::card(first.id), first.address.slot_name())
    }

    fn nodes(&self, entry: &JournalEntry) -> Vec<PathBuf> {
        let devices = fs::read_dir(self.roots.device(&entry.address).join("vfio-dev"));
        let names = devices.into_iter().flatten().flatten().map(|device| device.file_name());
        let nodes = names.map(|name| self.roots.dev.join("vfio/devices").join(name));
        nodes.chain(entry.group.map(|group| group_node(group, self.roots))).collect()
    }

    fn driver(&self, address: &PciAddress) -> Option<String> {
        link_name(&self.roots.device(address).join("driver"))
    }

    fn wait_for_driver(&self, address: &PciAddress, wanted: Option<&str>) -> bool {
        self.wait_until(|| self.driver(address).as_deref() == wanted)
    }

    fn wait_until(&self, condition: impl Fn() -> bool) -> bool {
        let deadline = Instant::now() + self.limits.settle;
        loop {
            match condition() {
                true => return true,
                false if Instant::now() >= deadline => return false,
                false => std::thread::sleep(Duration::from_millis(2)),
            }
        }
    }

    /// One write to sysfs, in a child with a limit.
    pub(crate) fn write(&self, path: &Path, text: &str, card: &str) -> Result<(), BindError> {
        // no create and no truncate: a file that sysfs does not have must stay an error
        let write = || File::options().write(true).open(path).and_then(|mut f| f.write_all(text.as_bytes()));
        let written = self.in_kernel(path, text.trim(), card, write)?;
        written.map_err(|e| BindError::Write {
            path: path.into(),
            text: text.trim().into(),
            why: e.to_string(),
        })
    }

    /// Something that may hang in the kernel, in a child with a limit. The outer error is [`BindError::Hung`].
    pub(crate) fn in_kernel(
        &self,
        path: &Path,
        what: &str,
        card: &str,
        work: impl FnOnce() -> io::Result<()>,
    ) -> Result<io::Result<()>, BindError> {
        let end = in_child(self.limits.write, |pipe| {
            let number = work().err().map_or(0, |e| e.raw_os_error().unwrap_or(-1));
            tell(pipe, &number.to_string());
        });
        let end = match end {
            Ok(end) => end,
            Err(e) => return Ok(Err(io::Error::other(format!("no child could be started: {e}")))),
        };
        if let Some(pid) = end.hangs {
            return Err(BindError::Hung {
                card: card.into(),
                path: path.into(),
                text: what.into(),
                limit_s: self.limits.write.as_secs(),
                pid,
            });
        }
        Ok(match String::from_utf8_lossy(&end.said).parse() {
            Ok(0) => Ok(()),
            Ok(number) => Err(io::Error::from_raw_os_error(number)),
            Err(_) => Err(io::Error::other("the child that did it died")),
        })
    }
}

fn owner_of(path: &Path) -> Option<NodeOwner> {
    let found = fs::metadata(path).ok()?;
    Some(NodeOwner { uid: found.uid(), gid: found.gid(), mode: found.mode() & 0o777 })
}

fn set_owner(path: &Path, owner: NodeOwner) -> io::Result<()> {
    if owner_of(path) == Some(owner) {
        return Ok(());
    }
    std::os::unix::fs::chown(path, Some(owner.uid), Some(owner.gid))?;
    fs::set_permissions(path, Permissions::from_mode(owner.mode))
}

/// The nodes of functions that are with vfio-pci already and open for this user: nothing to do, no root needed.
pub(crate) fn already_ours(
    inventory: &Inventory,
    functions: &[PciAddress],
    roots: &Roots,
) -> Option<Vec<VfioNode>> {
    let usable = |address: &PciAddress| {
        let function = inventory.function(address).filter(|f| f.driver.as_deref() == Some(VFIO))?;
        let path = group_node(function.group?, roots);
        let access = rustix::fs::Access::READ_OK | rustix::fs::Access::WRITE_OK;
        rustix::fs::access(&path, access).ok()?;
        Some(VfioNode { address: *address, group: function.group?, path })
    };
    functions.iter().map(usable).collect()
}

/// Why a bound card would not work for this user, in words.
pub(crate) fn check_access(nodes: &[VfioNode]) -> Result<(), BindError> {
    let access = rustix::fs::Access::READ_OK | rustix::fs::Access::WRITE_OK;
    let shut = nodes.iter().find_map(|node| Some((node, rustix::fs::access(&node.path, access).err()?)));
    shut.map_or(Ok(()), |(node, e)| {
        Err(BindError::Node {
            path: node.path.clone(),
            why: format!("it was handed over and still does not open: {e}"),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(owner: ProcessRef, uid: u32, roots: &Roots) -> JournalEntry {
        JournalEntry {
            address: "01:00.0".parse().unwrap(),
            id: "10de:2484".parse().unwrap(),
            lease: "1-2-3".into(),
            holder: "alice".into(),
            owner,
            machine: None,
            uid,
            boot_id: roots.boot_id(),
            since: 0,
            driver_before: None,
            override_before: None,
            group: None,
            node_before: None,
            doing: None,
        }
    }

    #[test]
    fn a_stranger_gives_back_only_what_the_dead_left() {
        let dir = tempfile::tempdir().unwrap();
        let (state, roots) =
            (StateDir::at(dir.path()), Roots { proc_: "/proc".into(), ..Roots::under(dir.path()) });
        let place = Place { state: &state, roots: &roots, limits: Limits::default() };
        let functions = ["01:00.0".parse().unwrap()];
        let living = ProcessRef::current(&roots);
        state.write_journal(&entry(living, 1000, &roots)).unwrap();
        let refused = place.release(&functions, 1001).unwrap_err();
        assert_eq!(refused.to_string(), "refused: 0000:01:00.0 is lent to 'alice' of user 1000");
        state.write_journal(&entry(ProcessRef { start_time: 1, ..living }, 1000, &roots)).unwrap();
        assert_eq!(place.release(&functions, 1001).unwrap().functions.len(), 1);
        assert!(state.journal(&roots).is_empty());
    }

    #[test]
    fn what_was_never_taken_is_not_given_back() {
        let dir = tempfile::tempdir().unwrap();
        let (state, roots) = (StateDir::at(dir.path()), Roots::under(dir.path()));
        let place = Place { state: &state, roots: &roots, limits: Limits::default() };
        assert_eq!(place.release(&["01:00.0".parse().unwrap()], 0).unwrap(), GivenBack::default());
    }
}
