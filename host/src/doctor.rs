//! What stands between this host and a VM with a card, one finding each: what is, why it matters, what to do.

use std::fs;

use serde::{Deserialize, Serialize};

use crate::binding::already_ours;
use crate::card::{Card, CardState};
use crate::health::way_out;
use crate::inventory::{HostError, Inventory, IommuFacts};
use crate::recovery::{self, Left};
use crate::roots::read_line;
use crate::state::StateDir;
use crate::{KvmVerdict, Privilege, Roots, kvm, memlock};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Works, with a catch.
    Warn,
    /// Does not work until it is fixed.
    Problem,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// What was looked at: `IOMMU`, or a card with its address.
    pub subject: String,
    /// What was seen.
    pub text: String,
    /// What to do.
    pub fix: Option<String>,
    /// Why it matters.
    pub why: Option<String>,
}

impl Finding {
    fn new(level: Level, subject: impl Into<String>, text: impl Into<String>) -> Self {
        Finding { level, subject: subject.into(), text: text.into(), fix: None, why: None }
    }

    fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into());
        self
    }

    fn why(mut self, why: impl Into<String>) -> Self {
        self.why = Some(why.into());
        self
    }
}

/// Looks at everything; changes nothing but the remembered result of the KVM probe. `vm_mib` is the memory of the VM
/// that is planned, where one is.
pub fn examine(roots: &Roots, state: &StateDir, vm_mib: Option<u64>) -> Result<Vec<Finding>, HostError> {
    let inventory = Inventory::read(roots)?;
    let cards = inventory.cards_now(state, roots);
    let mut findings =
        vec![virtualisation(roots, &kvm::probe_cached(roots, state)), iommu(roots, &inventory.iommu)];
    findings.extend(interrupt_remapping(roots, &inventory.iommu));
    findings.extend(cards.iter().map(card));
    if cards.is_empty() {
        findings.push(Finding::new(Level::Problem, "Cards", "this host has no graphics card"));
    }
    findings.extend(memory(vm_mib));
    findings.extend(left_behind(roots, state));
    findings.push(privilege(Privilege::detect(), &inventory, &cards, roots));
    Ok(findings)
}

fn virtualisation(roots: &Roots, verdict: &KvmVerdict) -> Finding {
    const SUBJECT: &str = "CPU virtualisation";
    let cpuinfo = fs::read_to_string(roots.proc_.join("cpuinfo")).unwrap_or_default();
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap_or("");
    let has = |flag: &str| flags.split_whitespace().any(|word| word == flag);
    let extension = match () {
        () if has("vmx") => "VT-x",
        () if has("svm") => "AMD-V",
        () => "no VT-x or AMD-V",
    };
    let text = format!("{extension}, {verdict}");
    let slow = "without KVM a VM runs in emulation, ten to fifty times slower";
    match verdict {
        KvmVerdict::Usable { .. } => Finding::new(Level::Ok, SUBJECT, text),
        KvmVerdict::Broken { .. } => Finding::new(Level::Warn, SUBJECT, text)
            .fix("use a host with VT-x or AMD-V, or turn nested virtualisation on for this VM")
            .why(slow),
        KvmVerdict::Absent { .. } if has("vmx") || has("svm") => Finding::new(Level::Warn, SUBJECT, text)
            .fix("sudo modprobe kvm_intel or kvm_amd, and add your user to the group kvm")
            .why(slow),
        KvmVerdict::Absent { .. } => Finding::new(Level::Warn, SUBJECT, text)
            .fix("turn on VT-x (Intel) or SVM (AMD) in the firmware")
            .why(slow),
    }
}

fn iommu(roots: &Roots, facts: &IommuFacts) -> Finding {
    const SUBJECT: &str = "IOMMU";
    let why = "without it a card cannot be given to a VM: its DMA would reach all of this host's memory";
    let name = match facts.tables.first().map(String::as_str) {
        Some("DMAR") => "VT-d",
        Some("IVRS") => "AMD-Vi",
        _ => "IOMMU",
    };
    let cmdline = read_line(&roots.proc_.join("cmdline")).unwrap_or_default();
    match (facts.tables.is_empty(), facts.groups) {
        (_, groups) if groups > 0 => Finding::new(Level::Ok, SUBJECT, format!("{name} on, {groups} groups")),
        (false, _) => {
            let off = cmdline.split(' ').find(|word| word.contains("iommu=off"));
            let word = if name == "VT-d" { "intel_iommu=on" } else { "amd_iommu=on" };
            let text = match off {
                Some(off) => format!("{name} is there, and {off} on the kernel command line turns it off"),
                None => format!("{name} is there, and the kernel does not use it"),
            };
            Finding::new(Level::Problem, SUBJECT, text)
                .fix(format!("put {word} on the kernel command line and reboot"))
                .why(why)
        }
        (true, _) => {
            Finding::new(Level::Problem, SUBJECT, "the firmware describes none (no DMAR or IVRS table)")
                .fix("turn on VT-d (Intel) or IOMMU (AMD) in the firmware")
                .why(why)
        }
    }
}

/// `/proc/interrupts` names remapped controllers `IR-…`; the kernel log would tell more and is often not readable.
fn interrupt_remapping(roots: &Roots, facts: &IommuFacts) -> Option<Finding> {
    const SUBJECT: &str = "Interrupt remapping";
    if facts.groups == 0 {
        return None;
    }
    let interrupts = fs::read_to_string(roots.proc_.join("interrupts")).ok()?;
    if interrupts.contains("IR-") {
        return Some(Finding::new(Level::Ok, SUBJECT, "on"));
    }
    let unsafe_file = roots.sys.join("module/vfio_iommu_type1/parameters/allow_unsafe_interrupts");
    if read_line(&unsafe_file).is_ok_and(|text| text == "Y") {
        let finding = Finding::new(
            Level::Warn,
            SUBJECT,
            "off, and vfio is told to go on without (allow_unsafe_interrupts)",
        );
        return Some(finding.why("a guest can send this host interrupts that it should not get"));
    }
    Some(
        Finding::new(Level::Warn, SUBJECT, "not seen in /proc/interrupts")
            .fix("turn on x2APIC or interrupt remapping in the firmware")
            .why("vfio refuses cards without it"),
    )
}

fn card(card: &Card) -> Finding {
    let subject = format!("{} {}", card.name, card.address.slot_name());
    let finding = |level, text: String| Finding::new(level, subject.clone(), text);
    match &card.state {
        CardState::Ready => match card.warning() {
            Some(warning) => finding(Level::Warn, format!("ready to lend; {warning}")),
            None => finding(Level::Ok, "ready to lend, alone in its group".into()),
        },
        CardState::Lent { alive: true, .. } | CardState::HostDisplay => {
            finding(Level::Ok, card.state.to_string())
        }
        CardState::Lent { .. } => finding(Level::Warn, card.state.to_string()),
        CardState::InUse { .. } => finding(Level::Warn, card.state.to_string())
            .fix(format!(
                "close it, or keep the card free from boot: sudo no43 host setup --reserve {}",
                card.address.slot_name()
            ))
            .why("a driver that is unbound under its users may hang for ever"),
        CardState::NoIommu => finding(Level::Problem, "is in no IOMMU group".into()).fix("see IOMMU above"),
        CardState::NotViable { endpoint } => finding(Level::Problem, endpoint.to_string())
            .fix("move the card to another slot, or turn on \"ACS\" in the firmware if it has that switch")
            .why("a group goes to one VM as a whole; giving it away would take that device too"),
        CardState::Quarantined { .. } => {
            finding(Level::Problem, card.state.to_string()).fix(way_out(&card.address))
        }
    }
}

fn memory(vm_mib: Option<u64>) -> Option<Finding> {
    const SUBJECT: &str = "Memory";
    let limit = memlock::limit();
    if memlock::may_exceed() || limit.is_none() {
        return Some(Finding::new(Level::Ok, SUBJECT, "no limit for locked memory"));
    }
    let limit = limit?;
    match vm_mib.map(|mib| (mib, memlock::check(mib))) {
        Some((_, Err(e))) => Some(
            Finding::new(
                Level::Problem,
                SUBJECT,
                format!(
                    "limit for locked memory is {}, this VM needs {}",
                    memlock::size(e.limit),
                    memlock::size(e.needed)
                ),
            )
            .fix(format!(
                "sudo no43 host setup (shows the change first), or put \"{} - memlock {}\" into /etc/security/limits.d/no43.conf; then log in again",
                e.user,
                e.needed.div_ceil(1024)
            ))
            .why("a VM with a card keeps all its memory locked"),
        ),
        Some((mib, Ok(()))) => Some(Finding::new(
            Level::Ok,
            SUBJECT,
            format!("limit for locked memory is {}, enough for {mib} MiB", memlock::size(limit)),
        )),
        // no VM runs in less than 256 MiB
        None if limit < memlock::needed(256) => Some(
            Finding::new(
                Level::Warn,
                SUBJECT,
                format!("limit for locked memory is {}, too little for any VM with a card", memlock::size(limit)),
            )
            .fix("sudo no43 host setup (shows the change first), or put \"<user> - memlock <KiB>\" with the VM's memory and 256 MiB more into /etc/security/limits.d/no43.conf; then log in again")
            .why("a VM with a card keeps all its memory locked"),
        ),
        None => {
            Some(Finding::new(Level::Ok, SUBJECT, format!("limit for locked memory is {}", memlock::size(limit))))
        }
    }
}

fn left_behind(roots: &Roots, state: &StateDir) -> Vec<Finding> {
    let pending = recovery::pending(state, roots).into_iter().filter_map(|pending| {
        let cards = pending.cards.join(", ");
        let text = match &pending.left {
            Left::Nothing => return None,
            Left::RunningMachine { machine } => {
                format!(
                    "'{}' still runs (QEMU {}) without a no43 and has {cards}",
                    pending.holder, machine.process.pid
                )
            }
            Left::BoundFunctions { .. } => {
                format!("'{}' is dead and left {cards} with vfio-pci", pending.holder)
            }
        };
        let fix = "the next command that uses a card puts it right";
        Some(Finding::new(Level::Warn, "Left behind", text).fix(fix))
    });
    let damaged = state.damaged().into_iter().map(|path| {
        Finding::new(Level::Problem, "State", format!("{} cannot be read", path.display()))
            .fix("look at it, then remove it")
            .why("it says what is to be given back after a crash")
    });
    pending.chain(damaged).collect()
}

/// Which of the three ways to root this machine has: cards kept free from boot, the helper, sudo; and the next step.
fn privilege(way: Privilege, inventory: &Inventory, cards: &[Card], roots: &Roots) -> Finding {
    const SUBJECT: &str = "Root";
    const WHY: &str = "only binding a card and giving it back need root; the VM never does";
    let open = |card: &&Card| already_ours(inventory, &card.functions, roots).is_some();
    let free: Vec<String> = cards.iter().filter(open).map(|card| card.address.slot_name()).collect();
    let lendable = |card: &&Card| !matches!(card.state, CardState::HostDisplay | CardState::NoIommu);
    let all_free = !free.is_empty() && cards.iter().filter(lendable).all(|card| open(&card));
    let reserved = (!free.is_empty()).then(|| format!("{} kept free from boot and yours", free.join(", ")));
    let other = match (way, way.works()) {
        (Privilege::Root, _) => return Finding::new(Level::Ok, SUBJECT, "running as root"),
        // sudo or a helper that does not answer is of no interest where nothing needs it
        (_, _) if all_free => None,
        (Privilege::Helper, Ok(())) => Some("the helper answers".to_owned()),
        (Privilege::Sudo, Ok(())) => Some("sudo, without a password".to_owned()),
        (_, Ok(())) => None,
        (_, Err(why)) => {
            let address =
                cards.iter().find(lendable).map_or("ADDRESS".into(), |card| card.address.slot_name());
            let text = match reserved {
                Some(reserved) => format!("{reserved}; other cards cannot be bound from here: {why}"),
                None => format!("cards cannot be bound from here: {why}"),
            };
            let level = if free.is_empty() { Level::Warn } else { Level::Ok };
            return Finding::new(level, SUBJECT, text)
                .fix(format!(
                    "keep the card free from boot: sudo no43 host setup --reserve {address}; or a helper for your group: \
                     sudo no43 host setup --helper; or sudo -v first, or a line in /etc/sudoers.d for this program's host-verb"
                ))
                .why(WHY);
        }
    };
    let ways: Vec<String> = reserved.into_iter().chain(other).collect();
    let finding = Finding::new(Level::Ok, SUBJECT, ways.join("; "));
    match way {
        Privilege::Sudo if !all_free => finding.why(
            "a card that is kept free from boot never has to be taken from its driver: sudo no43 host setup --reserve",
        ),
        _ => finding,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(table: Option<&str>, cmdline: &str, groups: usize) -> String {
        let dir = tempfile::tempdir().unwrap();
        let roots = Roots::under(dir.path());
        fs::create_dir_all(&roots.proc_).unwrap();
        fs::write(roots.proc_.join("cmdline"), cmdline).unwrap();
        let tables = table.into_iter().map(str::to_string).collect();
        let found = iommu(&roots, &IommuFacts { tables, units: Vec::new(), groups });
        format!("{:?}: {} -> {}", found.level, found.text, found.fix.unwrap_or_default())
    }

    #[test]
    fn an_iommu_that_is_off_says_where_to_turn_it_on() {
        let seen = [
            verdict(Some("DMAR"), "quiet", 52),
            verdict(Some("DMAR"), "quiet intel_iommu=off", 0),
            verdict(Some("DMAR"), "quiet", 0),
            verdict(Some("IVRS"), "quiet", 0),
            verdict(None, "quiet", 0),
        ];
        insta::assert_snapshot!(seen.join("\n"), @r"
        Ok: VT-d on, 52 groups -> 
        Problem: VT-d is there, and intel_iommu=off on the kernel command line turns it off -> put intel_iommu=on on the kernel command line and reboot
        Problem: VT-d is there, and the kernel does not use it -> put intel_iommu=on on the kernel command line and reboot
        Problem: AMD-Vi is there, and the kernel does not use it -> put amd_iommu=on on the kernel command line and reboot
        Problem: the firmware describes none (no DMAR or IVRS table) -> turn on VT-d (Intel) or IOMMU (AMD) in the firmware
        ");
    }
}
