//! What root sets up once, so that ordinary users need root for nothing afterwards: cards that are kept free from boot,
//! limits, and the helper. Shown before it is written, written down before it is changed, and undone as a whole.

mod apply;
pub(crate) mod files;

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::card::CardState;
use crate::inventory::HostError;
use crate::roots::read_small;
use crate::{Inventory, PciAddress, Roots};

pub use apply::{Undone, apply, undo};
use files::{File, Initramfs};

/// The group that may use reserved cards and the helper, unless another one is named.
pub const GROUP: &str = "no43";

/// Why a host cannot be set up so. Nothing was changed, unless the text says so.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// Not possible on this host.
    #[error("{0}")]
    Refused(String),
    /// A file could not be read or written.
    #[error("failed to {doing} {}: {source}", path.display())]
    File {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A command failed, and everything was put back.
    #[error("'{command}' failed, and what had been written is undone: {why}")]
    Command {
        /// The command.
        command: String,
        /// What it said.
        why: String,
    },
    /// The bus could not be read.
    #[error(transparent)]
    Host(#[from] HostError),
}

/// What is asked for.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Cards to keep free from boot, by the address of any of their functions.
    pub reserve: Vec<PciAddress>,
    /// The group that may use them.
    pub group: String,
    /// A user to put into it.
    pub user: Option<String>,
    /// The helper, and the program that it is.
    pub helper: Option<PathBuf>,
}

/// Where everything is: `/`, or a tree that a test laid out.
#[derive(Clone, Debug)]
pub struct System {
    /// The root of the file system.
    pub root: PathBuf,
    /// sysfs, proc and dev.
    pub roots: Roots,
}

impl System {
    /// This machine.
    pub fn here() -> Self {
        System { root: "/".into(), roots: Roots::real() }
    }
}

/// One change, in the order in which they are made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "kebab-case")]
pub enum Change {
    /// A file gets a content.
    Write {
        /// The file.
        path: PathBuf,
        /// Permission bits.
        mode: u32,
        /// Its whole content.
        text: String,
        /// What it held before.
        before: Option<String>,
    },
    /// A command is run, and another one undoes it.
    Run {
        /// The command.
        command: Vec<String>,
        /// What undoes it; empty where nothing does.
        undo: Vec<String>,
        /// What for.
        why: String,
    },
}

/// All that is to be done; empty where everything is as wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// In this order.
    pub changes: Vec<Change>,
    /// What a person should know before.
    pub notes: Vec<String>,
}

/// What is to be changed. Changes nothing.
///
/// # Errors
/// [`SetupError::Refused`]: no such card, the host's own display, nothing that makes an initramfs, a program that others
/// could replace.
pub fn plan(wanted: &Wanted, system: &System) -> Result<Plan, SetupError> {
    let mut plan = Plan::default();
    check_name(&wanted.group)?;
    plan.group(wanted, system)?;
    let mut files = files::limits(&wanted.group, memory_kib(&system.roots));
    let mut initramfs = None;
    if !wanted.reserve.is_empty() {
        let by = initramfs_of(&system.root)?;
        let lines = reserved_lines(wanted, system, &mut plan.notes)?;
        files.extend(files::reservation(&lines, &wanted.group, by.0));
        initramfs = Some(by);
    }
    if let Some(program) = &wanted.helper {
        check_program(program)?;
        files.extend(files::helper(&wanted.group, &program.display().to_string()));
    }
    let mut again = false;
    for file in files {
        again |= plan.file(file, &system.root)?;
    }
    if let Some((_, _, command)) = initramfs.filter(|_| again || apply::initramfs_is_old(system)) {
        plan.run(command, command, "every kernel's initramfs takes the reservation in");
        plan.notes
            .push("the cards are free from the next boot on; until then they stay with their drivers".into());
    }
    if wanted.helper.is_some() && plan.writes("no43-helper") {
        plan.helper(system);
    }
    if plan.writes("logind.conf.d") {
        plan.notes.push("logind waits up to 120 s for guests from the next boot on".into());
    }
    Ok(plan)
}

impl Plan {
    /// Nothing is to be done.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    fn writes(&self, part: &str) -> bool {
        let is = |change: &Change| matches!(change, Change::Write { path, .. } if path.to_string_lossy().contains(part));
        self.changes.iter().any(is)
    }

    fn run(&mut self, command: &[&str], undo: &[&str], why: &str) {
        let words = |words: &[&str]| words.iter().map(ToString::to_string).collect();
        self.changes.push(Change::Run { command: words(command), undo: words(undo), why: why.into() });
    }

    /// Whether the initramfs has to be made again for it.
    fn file(&mut self, file: File, root: &Path) -> Result<bool, SetupError> {
        let path = root.join(file.path);
        let before = match fs::read_to_string(&path) {
            Ok(text) => Some(text),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
            Err(source) => return Err(SetupError::File { doing: "read", path, source }),
        };
        if before.as_ref() == Some(&file.text) {
            return Ok(false);
        }
        self.changes.push(Change::Write { path, mode: file.mode, text: file.text, before });
        Ok(file.in_initramfs)
    }

    /// The group, and a user in it and in kvm.
    fn group(&mut self, wanted: &Wanted, system: &System) -> Result<(), SetupError> {
        let list = fs::read_to_string(system.root.join("etc/group")).unwrap_or_default();
        let group = wanted.group.as_str();
        if crate::groups::members(&list, group).is_none() {
            self.run(&["groupadd", "--system", group], &["groupdel", group], "the group that may use cards");
        }
        let Some(user) = wanted.user.as_deref().filter(|user| *user != "root") else { return Ok(()) };
        check_name(user)?;
        for (group, why) in [(group, "may use the cards"), ("kvm", "may use /dev/kvm")] {
            let members = crate::groups::members(&list, group);
            let wants = group != "kvm" || members.is_some();
            if wants && !members.is_some_and(|members| members.iter().any(|member| member == user)) {
                let why = format!("{user} {why}, after the next log-in");
                self.run(&["usermod", "-a", "-G", group, user], &["gpasswd", "-d", user, group], &why);
            }
        }
        Ok(())
    }

    fn helper(&mut self, system: &System) {
        if !system.root.join("run/systemd/system").is_dir() {
            self.notes.push(format!(
                "this host does not run systemd: start the helper by hand or by your own init: sudo no43 host helper --group {GROUP}"
            ));
            return;
        }
        let unit = "no43-helper.socket";
        self.run(&["systemctl", "daemon-reload"], &["systemctl", "daemon-reload"], "systemd reads the units");
        let stop = ["systemctl", "disable", "--now", unit, "no43-helper.service"];
        self.run(&["systemctl", "enable", "--now", unit], &stop, "the helper answers from now on");
    }
}

/// The list as it shall be: what was reserved before, and these.
fn reserved_lines(
    wanted: &Wanted,
    system: &System,
    notes: &mut Vec<String>,
) -> Result<Vec<String>, SetupError> {
    let refuse = |why: String| Err(SetupError::Refused(why));
    let inventory = Inventory::read(&system.roots)?;
    let cards = inventory.cards();
    let list = fs::read_to_string(system.root.join(files::RESERVED)).unwrap_or_default();
    let mut lines = files::lines(&list);
    for address in &wanted.reserve {
        let Some(card) = cards.iter().find(|card| card.has(address) || card.address.same_slot(address))
        else {
            let there: Vec<String> = cards.iter().map(crate::Card::titled).collect();
            return refuse(format!(
                "{} is no graphics card; this host has {}",
                address.short(),
                there.join("; ")
            ));
        };
        match &card.state {
            CardState::HostDisplay => return refuse(format!("{} is {}", card.titled(), card.state)),
            CardState::NoIommu | CardState::NotViable { .. } => {
                notes.push(format!("{} is kept free and still {}", card.titled(), card.state));
            }
            _ => {}
        }
        // a line of this slot is replaced: the ids are checked anew each time
        lines.retain(|line| !files::addresses(line).iter().any(|a| card.has(a)));
        lines.push(files::line(card, &inventory));
    }
    lines.sort();
    Ok(lines)
}

fn initramfs_of(root: &Path) -> Result<(Initramfs, &'static str, &'static [&'static str]), SetupError> {
    let found = Initramfs::TABLE.iter().find(|(_, program, _)| root.join(program).exists());
    found.copied().ok_or_else(|| {
        SetupError::Refused(
            "neither initramfs-tools nor dracut is here, so nothing can keep a card free before its driver comes; with another \
             initramfs: load vfio-pci first, with a driver_override for the card's addresses"
                .into(),
        )
    })
}

/// Names of users and groups end up in files and commands.
fn check_name(name: &str) -> Result<(), SetupError> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    match (1..=32).contains(&name.len()) && name.chars().all(good) && !name.starts_with('-') {
        true => Ok(()),
        false => Err(SetupError::Refused(format!("'{}' is no name of a user or group", name.escape_debug()))),
    }
}

/// Root runs this program for others: nobody else may be able to replace it.
fn check_program(program: &Path) -> Result<(), SetupError> {
    use std::os::unix::fs::MetadataExt;
    let refuse = |why: String| Err(SetupError::Refused(why));
    if !program.is_absolute() || program.to_string_lossy().contains(|c: char| c.is_whitespace() || c == '%') {
        return refuse(format!("the path {} cannot stand in a unit of systemd", program.display()));
    }
    let Ok(real) = program.canonicalize() else {
        return refuse(format!("there is no program {}", program.display()));
    };
    for part in real.ancestors() {
        let facts = fs::metadata(part).map_err(|source| SetupError::File {
            doing: "look at",
            path: part.into(),
            source,
        })?;
        let sticky = facts.is_dir() && facts.mode() & 0o1000 != 0;
        if facts.uid() != 0 || (facts.mode() & 0o022 != 0 && !sticky) {
            return refuse(format!(
                "{} can be replaced by others than root ({}), so root must not run it for them: sudo install -m 755 {} /usr/local/bin/no43, and use that one",
                real.display(),
                part.display(),
                real.display()
            ));
        }
    }
    Ok(())
}

fn memory_kib(roots: &Roots) -> u64 {
    let text = read_small(&roots.proc_.join("meminfo")).unwrap_or_default();
    let total = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?.trim().parse().ok());
    total.unwrap_or(64 << 20)
}

/// The cards that this host keeps free from boot, by its list.
pub fn reserved(root: &Path) -> Vec<PciAddress> {
    files::addresses(&fs::read_to_string(root.join(files::RESERVED)).unwrap_or_default())
}
