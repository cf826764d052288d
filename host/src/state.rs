//! What must survive a crash: leases, the journal of changes to the host, the quarantine.
//!
//! Two places. *Own* holds what this user's commands keep: leases and the lock that makes them atomic. *System* holds the
//! journal and the quarantine; whoever changes bindings writes it, so under sudo it is root's (`/run/no43`), readable by
//! all, and a user cannot make root undo something that root never did. For root both are the same directory.
//!
//! Every file is one JSON value, written aside, synced and renamed. Commands that only look write nothing here but what a
//! probe remembers.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::extras::Extra;
use crate::process::ProcessRef;
use crate::{PciAddress, PciId, Roots};

/// Where root keeps the journal.
const SYSTEM: &str = "/run/no43";

/// For another no43 that holds the lock: binding a card takes seconds, and nobody holds it longer than one card takes.
const LOCK_LIMIT: Duration = Duration::from_secs(120);

/// Why the state directory could not be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A file or directory could not be read or written.
    #[error("failed to {doing} {path}: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Somebody else made the directory.
    #[error(
        "the state directory {path} belongs to user {uid}, not to this one: remove it, or set NO43_STATE to another directory"
    )]
    NotOurs {
        /// The directory.
        path: PathBuf,
        /// Its owner.
        uid: u32,
    },
    /// Another command kept the lock too long.
    #[error("waited {} s for {path}: another no43 command has it (fuser -v {path} says which)", LOCK_LIMIT.as_secs())]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
}

fn io_error<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> StateError + 'a {
    move |source| StateError::Io { doing, path: path.to_path_buf(), source }
}

/// The directories described above.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateDir {
    own: PathBuf,
    system: PathBuf,
}

/// Cards promised to a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRecord {
    /// Unique on this host.
    pub id: String,
    /// The name of the run, for people.
    pub holder: String,
    /// The no43 process that made it, or the last one that adopted it.
    pub owner: ProcessRef,
    /// The boot in which it was made: after another boot nothing is left to undo.
    pub boot_id: String,
    /// Seconds since 1970.
    pub since: u64,
    /// The cards.
    pub cards: Vec<LeasedCard>,
    /// The control socket of the QEMU that is about to be started for them. It stands here before there is a process, so
    /// that a no43 that dies in between does not lose it.
    #[serde(default)]
    pub starting: Option<PathBuf>,
    /// The QEMU that uses them, once it runs.
    pub machine: Option<MachineRef>,
}

/// A card as it was when it was leased.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeasedCard {
    /// `GeForce RTX 3070 (GA104)`
    pub name: String,
    /// Its video function.
    pub address: PciAddress,
    /// Vendor and device of the video function, to notice a card that was moved.
    pub id: PciId,
    /// All functions.
    pub functions: Vec<PciAddress>,
}

/// A running QEMU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineRef {
    /// Its process.
    pub process: ProcessRef,
    /// Its QMP socket, by which a later command can talk to it.
    pub qmp: PathBuf,
}

impl LeaseRecord {
    /// All functions of all cards.
    pub fn functions(&self) -> impl Iterator<Item = PciAddress> {
        self.cards.iter().flat_map(|card| card.functions.iter().copied())
    }

    /// The QEMU that uses the cards, if it lives: the one that was written down, or the one that was to be.
    pub fn living_machine(&self, roots: &Roots) -> Option<MachineRef> {
        let known = self.machine.clone().filter(|machine| machine.process.is_alive(roots));
        known.or_else(|| {
            let qmp = self.starting.clone()?;
            let process = ProcessRef::qemu_that_names(qmp.parent()?, roots)?;
            Some(MachineRef { process, qmp })
        })
    }

    /// The process that keeps the lease alive: the machine's, else no43's. `None` means that it is dead.
    pub fn keeper(&self, roots: &Roots) -> Option<ProcessRef> {
        let machine = self.living_machine(roots).map(|machine| machine.process);
        machine.or_else(|| Some(self.owner).filter(|owner| owner.is_alive(roots)))
    }
}

/// One function that is, or may be, in another driver's hands because of us.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalEntry {
    /// The function.
    pub address: PciAddress,
    /// What sat there when it was taken.
    pub id: PciId,
    /// The lease that it was taken for.
    pub lease: String,
    /// The name of the run.
    pub holder: String,
    /// The no43 process that asked.
    pub owner: ProcessRef,
    /// The QEMU that uses it, where that is known here.
    pub machine: Option<ProcessRef>,
    /// The user that asked.
    pub uid: u32,
    /// The boot in which it was taken.
    pub boot_id: String,
    /// Seconds since 1970.
    pub since: u64,
    /// The driver to give it back to.
    pub driver_before: Option<String>,
    /// What `driver_override` said before.
    pub override_before: Option<String>,
    /// Its IOMMU group.
    pub group: Option<u32>,
    /// Who owned the group's node before, where it was there already.
    pub node_before: Option<NodeOwner>,
    /// What was being done to it beyond binding, for example a reset: whoever finds it after a crash knows what hung.
    #[serde(default)]
    pub doing: Option<String>,
}

impl JournalEntry {
    fn as_card(&self) -> LeasedCard {
        LeasedCard {
            name: crate::names::card(self.id),
            address: self.address,
            id: self.id,
            functions: vec![self.address],
        }
    }

    /// All that is known here of another user's lease.
    fn as_lease(&self) -> LeaseRecord {
        LeaseRecord {
            id: self.lease.clone(),
            holder: self.holder.clone(),
            owner: self.owner,
            boot_id: self.boot_id.clone(),
            since: self.since,
            cards: vec![self.as_card()],
            starting: None,
            machine: self.machine.map(|process| MachineRef { process, qmp: PathBuf::new() }),
        }
    }
}

/// Owner and permissions of a device node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeOwner {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits.
    pub mode: u32,
}

/// A card that is not lent until it is healthy again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuarantineEntry {
    /// What the card is called.
    pub name: String,
    /// Its functions.
    pub functions: Vec<PciAddress>,
    /// What was wrong.
    pub reason: String,
    /// Seconds since 1970.
    pub since: u64,
    /// A reboot of the host ends it.
    pub boot_id: String,
}

/// A lock that is held until this is dropped. The kernel lets go of it if we die.
#[derive(Debug)]
#[must_use]
pub struct LockGuard(#[expect(dead_code, reason = "the open file is the lock")] File);

impl StateDir {
    /// `$NO43_STATE`, else `/run/no43` where this user may write to it, else `$XDG_RUNTIME_DIR/no43`, else
    /// `/tmp/no43-<uid>`.
    pub fn open_default() -> Result<Self, StateError> {
        let root = rustix::process::geteuid().is_root();
        let own = match std::env::var_os("NO43_STATE").filter(|dir| !dir.is_empty()) {
            Some(dir) => PathBuf::from(dir),
            None if root || is_writable(Path::new(SYSTEM)) => PathBuf::from(SYSTEM),
            None => match std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| Path::new(dir).is_dir()) {
                Some(dir) => Path::new(&dir).join("no43"),
                None => PathBuf::from(format!("/tmp/no43-{}", rustix::process::getuid().as_raw())),
            },
        };
        check_owner(&own)?;
        let system = if root { own.clone() } else { PathBuf::from(SYSTEM) };
        Ok(StateDir { own, system })
    }

    /// The state of root's own verbs: nothing that a caller says can move it.
    pub(crate) fn of_system() -> Self {
        StateDir { own: SYSTEM.into(), system: SYSTEM.into() }
    }

    /// One directory for everything.
    pub fn at(dir: &Path) -> Self {
        StateDir { own: dir.to_path_buf(), system: dir.to_path_buf() }
    }

    /// An own and a system directory, as an ordinary user has them.
    pub fn with_system(own: &Path, system: &Path) -> Self {
        StateDir { own: own.to_path_buf(), system: system.to_path_buf() }
    }

    /// Where leases are.
    pub fn own(&self) -> &Path {
        &self.own
    }

    /// Where the journal and the quarantine are.
    pub fn system(&self) -> &Path {
        &self.system
    }

    /// One lease at a time is made or ended.
    pub(crate) fn lock_leases(&self) -> Result<LockGuard, StateError> {
        lock(&self.own, "leases.lock")
    }

    /// One command at a time changes bindings.
    pub(crate) fn lock_host(&self) -> Result<LockGuard, StateError> {
        lock(&self.system, "host.lock")
    }

    /// This user's leases of this boot, oldest first.
    pub fn leases(&self, roots: &Roots) -> Vec<LeaseRecord> {
        let mut leases: Vec<LeaseRecord> = read_all(&self.own.join("leases"));
        let boot_id = roots.boot_id();
        leases.retain(|lease| lease.boot_id == boot_id);
        leases.sort_by(|a, b| (a.since, &a.id).cmp(&(b.since, &b.id)));
        leases
    }

    /// What was changed on this host and is not yet undone.
    pub fn journal(&self, roots: &Roots) -> Vec<JournalEntry> {
        let mut entries: Vec<JournalEntry> = read_all(&self.system.join("journal"));
        let boot_id = roots.boot_id();
        entries.retain(|entry| entry.boot_id == boot_id);
        entries.sort_by_key(|entry| entry.address);
        entries
    }

    /// Cards that are not lent.
    pub fn quarantine(&self, roots: &Roots) -> Vec<QuarantineEntry> {
        let mut entries: Vec<QuarantineEntry> = read_all(&self.system.join("quarantine"));
        if self.own != self.system {
            entries.extend(read_all(&self.own.join("quarantine")));
        }
        let boot_id = roots.boot_id();
        entries.retain(|entry| entry.boot_id == boot_id);
        entries
    }

    /// Files that are there and cannot be understood: damage that a person should know of.
    pub fn damaged(&self) -> Vec<PathBuf> {
        let own = [self.own.join("leases"), self.own.join("quarantine")];
        let system = [self.system.join("journal"), self.system.join("quarantine")];
        let mut files: Vec<PathBuf> = own
            .iter()
            .chain(&system)
            .flat_map(|dir| json_files(dir))
            .filter(|path| is_damaged(path))
            .collect();
        files.sort();
        files.dedup();
        files
    }

    /// Who has which cards: this user's leases, and what the journal knows of other users'.
    pub fn holdings(&self, roots: &Roots) -> Vec<LeaseRecord> {
        let mut holdings = self.leases(roots);
        for entry in self.journal(roots) {
            if holdings
                .iter()
                .any(|lease| lease.id == entry.lease && lease.functions().any(|f| f == entry.address))
            {
                continue;
            }
            let lease = match holdings.iter().position(|lease| lease.id == entry.lease) {
                Some(index) => &mut holdings[index],
                None => {
                    holdings.push(entry.as_lease());
                    continue;
                }
            };
            // the journal knows functions; those of one slot are one card
            match lease.cards.iter_mut().find(|card| card.address.same_slot(&entry.address)) {
                Some(card) => card.functions.push(entry.address),
                None => lease.cards.push(entry.as_card()),
            }
        }
        holdings
    }

    pub(crate) fn write_lease(&self, lease: &LeaseRecord) -> Result<(), StateError> {
        write(&self.own, "leases", &lease.id, lease)
    }

    pub(crate) fn remove_lease(&self, id: &str) -> Result<(), StateError> {
        remove(&self.own, "leases", id)
    }

    pub(crate) fn write_journal(&self, entry: &JournalEntry) -> Result<(), StateError> {
        write(&self.system, "journal", &entry.address.to_string(), entry)
    }

    pub(crate) fn remove_journal(&self, address: &PciAddress) -> Result<(), StateError> {
        remove(&self.system, "journal", &address.to_string())
    }

    /// Huge pages and taps of leases of this boot.
    pub(crate) fn extras(&self, roots: &Roots) -> Vec<Extra> {
        let mut extras: Vec<Extra> = read_all(&self.system.join("extras"));
        let boot_id = roots.boot_id();
        extras.retain(|extra| extra.boot_id == boot_id);
        extras
    }

    pub(crate) fn write_extra(&self, extra: &Extra) -> Result<(), StateError> {
        write(&self.system, "extras", &extra.file(), extra)
    }

    pub(crate) fn remove_extra(&self, extra: &Extra) -> Result<(), StateError> {
        remove(&self.system, "extras", &extra.file())
    }

    /// Takes a card out of circulation until the host was rebooted or a person says that it is healthy.
    pub fn put_in_quarantine(&self, entry: &QuarantineEntry) -> Result<(), StateError> {
        let name = entry.functions.first().map_or_else(|| "unknown".to_string(), ToString::to_string);
        // what only root may write is kept beside the leases, so that this user at least knows
        let dir = if is_writable(&self.system) || !self.system.exists() { &self.system } else { &self.own };
        write(dir, "quarantine", &name, entry).or_else(|e| match dir == &self.own {
            true => Err(e),
            false => write(&self.own, "quarantine", &name, entry),
        })
    }

    /// Lends a card again after a person made sure that it is healthy.
    pub fn end_quarantine(&self, address: &PciAddress, roots: &Roots) -> Result<bool, StateError> {
        let mut ended = false;
        for entry in self.quarantine(roots) {
            if entry.functions.contains(address) {
                let name = entry.functions[0].to_string();
                remove(&self.system, "quarantine", &name)?;
                remove(&self.own, "quarantine", &name)?;
                ended = true;
            }
        }
        Ok(ended)
    }

    pub(crate) fn remembered<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        read(&self.own.join("cache").join(format!("{name}.json")))
    }

    pub(crate) fn remember<T: Serialize>(&self, name: &str, value: &T) -> Result<(), StateError> {
        write(&self.own, "cache", name, value)
    }
}

fn is_writable(dir: &Path) -> bool {
    rustix::fs::access(dir, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK).is_ok()
}

/// `/tmp` is everybody's: a directory that another user put there is not used.
fn check_owner(dir: &Path) -> Result<(), StateError> {
    let uid = rustix::process::geteuid().as_raw();
    match fs::symlink_metadata(dir) {
        Ok(found) if found.is_symlink() && dir.starts_with("/tmp") => {
            Err(StateError::NotOurs { path: dir.into(), uid: found.uid() })
        }
        Ok(found) if uid != 0 && found.uid() != uid && dir.starts_with("/tmp") => {
            Err(StateError::NotOurs { path: dir.into(), uid: found.uid() })
        }
        _ => Ok(()),
    }
}

fn make_dir(dir: &Path) -> Result<(), StateError> {
    // root's state is readable by all, so that every user sees what is lent; a user's own is private
    let mode = if rustix::process::geteuid().is_root() { 0o755 } else { 0o700 };
    fs::DirBuilder::new().recursive(true).mode(mode).create(dir).map_err(io_error("create", dir))?;
    check_owner(dir)
}

fn lock(dir: &Path, name: &str) -> Result<LockGuard, StateError> {
    make_dir(dir)?;
    let path = dir.join(name);
    let open = File::options().read(true).append(true).create(true).open(&path);
    let file = open.map_err(io_error("open", &path))?;
    let deadline = Instant::now() + LOCK_LIMIT;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(LockGuard(file)),
            Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(StateError::Locked { path }),
            Err(e) => return Err(io_error("lock", &path)(e.into())),
        }
    }
}

fn json_files(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|e| e == "json"))
        .collect()
}

fn read<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

fn read_all<T: DeserializeOwned>(dir: &Path) -> Vec<T> {
    json_files(dir).iter().filter_map(|path| read(path)).collect()
}

fn is_damaged(path: &Path) -> bool {
    let kind = path.parent().and_then(Path::file_name).and_then(|name| name.to_str());
    match kind {
        Some("leases") => read::<LeaseRecord>(path).is_none(),
        Some("journal") => read::<JournalEntry>(path).is_none(),
        _ => read::<QuarantineEntry>(path).is_none(),
    }
}

/// Writes aside, syncs, renames, syncs the directory: after that the file is there whole, power cut or not.
fn write<T: Serialize>(dir: &Path, kind: &str, name: &str, value: &T) -> Result<(), StateError> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let dir = dir.join(kind);
    make_dir(&dir)?;
    let path = dir.join(format!("{name}.json"));
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let aside = dir.join(format!(".{name}.{}.{number}.tmp", std::process::id()));
    let written = (|| {
        let mut text = serde_json::to_vec_pretty(value)?;
        text.push(b'\n');
        let mut file = File::create(&aside)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&aside, &path)?;
        File::open(&dir)?.sync_all()
    })();
    written.map_err(|source| {
        let _ = fs::remove_file(&aside);
        io_error("write", &path)(source)
    })
}

fn remove(dir: &Path, kind: &str, name: &str) -> Result<(), StateError> {
    let path = dir.join(kind).join(format!("{name}.json"));
    match fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(io_error("remove", &path)(e)),
        _ => Ok(()),
    }
}
