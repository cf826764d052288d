//! What this host says about the cards of a run: sysfs before and after, PCIe error counters, and the kernel's log where it may be read.

use crate::checks::{Complaints, HostEye};
use crate::diagnosis::{Facts, telling_host_lines};
use crate::words;
use no43_host::{Inventory, PciAddress, Roots};
use rustix::fs::{Mode, OFlags, SeekFrom};
use std::collections::BTreeMap;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// Most lines of the kernel's log that one look reads; a flood ends the look, not the run.
const MAX_LINES: usize = 20_000;

/// The three counters of each function that has them (Linux 4.19 and newer).
const COUNTERS: [(&str, &str); 3] =
    [("aer_dev_correctable", "correctable"), ("aer_dev_nonfatal", "non-fatal"), ("aer_dev_fatal", "fatal")];

/// One run's cards as this host sees them.
#[derive(Debug)]
pub(crate) struct Witness {
    roots: Roots,
    functions: Vec<PciAddress>,
    /// The functions, and the bridges above them.
    places: Vec<PciAddress>,
    errors_before: BTreeMap<(PciAddress, &'static str), u64>,
    log: Result<OwnedFd, String>,
    lines: Vec<String>,
}

impl HostEye for Witness {
    fn complaints(&mut self) -> Complaints {
        self.read_log();
        let (mut errors, mut corrected) = (Vec::new(), Vec::new());
        for ((address, kind), count) in self.errors() {
            let more = count.saturating_sub(self.errors_before.get(&(address, kind)).copied().unwrap_or(0));
            if more > 0 {
                let list = if kind == "correctable" { &mut corrected } else { &mut errors };
                list.push(format!("{address}: {more} {kind}"));
            }
        }
        let gone = self.functions.iter().filter(|address| !self.device(address).exists());
        Complaints {
            lines: self.lines.clone(),
            errors,
            corrected,
            gone: gone.map(ToString::to_string).collect(),
            log_unreadable: self.log.as_ref().err().cloned(),
        }
    }
}

impl Witness {
    /// Begins to look: what was counted and said before is not this run's.
    pub(crate) fn begin(roots: &Roots, functions: &[PciAddress], inventory: &Inventory) -> Self {
        let mut places: Vec<PciAddress> = functions.to_vec();
        for bridge in functions.iter().filter_map(|a| inventory.function(a)).flat_map(|f| &f.bridges) {
            if !places.contains(bridge) {
                places.push(*bridge);
            }
        }
        let mut witness = Self {
            roots: roots.clone(),
            functions: functions.to_vec(),
            places,
            errors_before: BTreeMap::new(),
            log: open_at_end(&roots.dev.join("kmsg")),
            lines: Vec::new(),
        };
        witness.errors_before = witness.errors();
        witness
    }

    /// What is known about the cards whatever happens.
    pub(crate) fn standing(&self, inventory: &Inventory) -> Facts {
        let mut facts = Facts::default();
        let Some(video) = self.functions.first().and_then(|a| inventory.function(a)) else { return facts };
        facts.maybe("host.boot-vga", video.boot_vga.map(|yes| if yes { "1" } else { "0" }));
        facts.maybe("host.bar-largest", video.bars.iter().map(|bar| bar.size).max().map(|n| n.to_string()));
        if let Some(methods) = &video.reset_methods {
            facts.all("host.reset-methods", methods);
        }
        facts.maybe("host.subsystem", video.subsystem.map(|id| id.to_string()));
        if let Some(link) = &video.link {
            facts.maybe("host.link-width", link.width.filter(|w| *w > 0).map(|w| w.to_string()));
            facts.maybe("host.link-width-max", link.max_width.filter(|w| *w > 0).map(|w| w.to_string()));
        }
        let same = inventory.functions.iter().filter(|f| f.id == video.id && f.address != video.address);
        facts.all("host.same-id", same.map(|f| f.address.to_string()));
        facts.all("host.iommu", &inventory.iommu.units);
        facts.maybe("host.chassis", self.line(&self.roots.sys.join("class/dmi/id/chassis_type")));
        if let Some(options) = self.line(&self.roots.proc_.join("cmdline")) {
            let ids = options.split_whitespace().filter_map(|word| word.strip_prefix("vfio-pci.ids="));
            facts.all("host.vfio-ids", ids);
        }
        facts.maybe("host.phys-bits", self.address_bits());
        facts.maybe(
            "host.interrupt-remapping",
            self.interrupt_remapping().map(|on| if on { "on" } else { "off" }),
        );
        facts.merge(&self.framebuffer(video.address));
        facts
    }

    /// `address sizes\t: 39 bits physical, 48 bits virtual`.
    fn address_bits(&self) -> Option<String> {
        let text = self.beginning(&self.roots.proc_.join("cpuinfo"))?;
        let line = text.lines().find_map(|line| line.strip_prefix("address sizes"))?;
        let number = line.trim_start_matches([' ', '\t', ':']).split_whitespace().next()?;
        number.parse::<u8>().ok().map(|bits| bits.to_string())
    }

    /// The kernel writes `IR-` before the names of controllers whose interrupts are remapped.
    fn interrupt_remapping(&self) -> Option<bool> {
        let text = std::fs::read_to_string(self.roots.proc_.join("interrupts")).ok()?;
        let plain = ["IO-APIC", "PCI-MSI"].iter().any(|name| text.contains(name));
        if text.contains("IR-") { Some(true) } else { plain.then_some(false) }
    }

    /// Which of these functions a driver of the host has, although they were given away. For a machine that runs.
    pub(crate) fn not_bound(&self, functions: impl IntoIterator<Item = PciAddress>) -> Facts {
        let mut facts = Facts::default();
        let there = functions.into_iter().filter(|address| self.device(address).exists());
        let kept = there.filter_map(|address| {
            let link = std::fs::read_link(self.device(&address).join("driver")).ok()?;
            let driver = link.file_name()?.to_string_lossy().into_owned();
            (driver != "vfio-pci").then(|| format!("{address} {driver}"))
        });
        facts.all("host.not-bound", kept);
        facts
    }

    /// Who of the host's display still sits inside the card's memory; ordinary users see zeros in `iomem`, which says nothing.
    fn framebuffer(&self, card: PciAddress) -> Facts {
        let mut facts = Facts::default();
        let Ok(text) = std::fs::read_to_string(self.roots.proc_.join("iomem")) else { return facts };
        let range = |line: &str| line.split_once(" : ").map_or(String::new(), |(range, _)| range.to_owned());
        if text.lines().all(|line| range(line).bytes().all(|b| matches!(b, b'0' | b'-' | b' '))) {
            return facts;
        }
        let mut below: Option<usize> = None;
        let mut found = Vec::new();
        for line in text.lines() {
            let depth = line.len() - line.trim_start().len();
            let name = line.split_once(" : ").map_or("", |(_, name)| name);
            if below.is_some_and(|at| depth <= at) {
                below = None;
            }
            if name == card.to_string() {
                below = Some(depth);
            } else if below.is_some()
                && ["BOOTFB", "efifb", "vesafb", "simplefb", "simpledrm"].contains(&name)
            {
                found.push(name.to_owned());
            }
        }
        facts.all("host.framebuffer", found);
        facts
    }

    /// What happened since the run began, as facts, with the state of the cards now.
    pub(crate) fn facts(&mut self) -> Facts {
        let seen = self.complaints();
        let mut facts = Facts::default();
        facts.all("host.aer", seen.errors.iter().chain(&seen.corrected));
        facts.all("host.gone", &seen.gone);
        if seen.log_unreadable.is_none() {
            seen.lines.iter().for_each(|line| facts.add("host.says", line));
        }
        if let Some(video) = self.functions.first() {
            facts.maybe("host.power-state", self.line(&self.device(video).join("power_state")));
        }
        facts
    }

    fn device(&self, address: &PciAddress) -> PathBuf {
        self.roots.sys.join("bus/pci/devices").join(address.to_string())
    }

    fn line(&self, path: &Path) -> Option<String> {
        Some(self.beginning(path)?.trim().to_owned()).filter(|text| !text.is_empty())
    }

    fn beginning(&self, path: &Path) -> Option<String> {
        let mut bytes = Vec::new();
        std::fs::File::open(path).ok()?.take(4096).read_to_end(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn errors(&self) -> BTreeMap<(PciAddress, &'static str), u64> {
        let mut all = BTreeMap::new();
        for place in &self.places {
            for (file, kind) in COUNTERS {
                if let Some(total) = self.line(&self.device(place).join(file)).and_then(|text| total(&text)) {
                    all.insert((*place, kind), total);
                }
            }
        }
        all
    }

    fn read_log(&mut self) {
        let Ok(log) = &self.log else { return };
        let mut text = Vec::new();
        let mut buffer = [0_u8; 8192]; // no record is longer
        for _ in 0..MAX_LINES {
            match rustix::io::read(log, &mut buffer) {
                Ok(0) | Err(rustix::io::Errno::AGAIN) => break,
                Ok(n) => text.push(String::from_utf8_lossy(&buffer[..n]).into_owned()),
                // records were overwritten: the next read goes on with the oldest one that is left
                Err(rustix::io::Errno::PIPE | rustix::io::Errno::INTR) => {}
                Err(error) => {
                    self.log = Err(error.to_string());
                    return;
                }
            }
        }
        let places: Vec<String> =
            self.places.iter().flat_map(|a| [a.to_string(), format!("[{}]", a.short())]).collect();
        let lines = text.iter().flat_map(|record| record.lines()).filter_map(message);
        let ours = lines.filter(|line| places.iter().any(|place| line.contains(place)));
        let telling: Vec<String> =
            telling_host_lines(ours).into_iter().map(|l| words::clean_to(l, 400)).collect();
        self.lines.extend(telling);
        self.lines.truncate(200);
    }
}

/// The text of a record of `/dev/kmsg`: `6,1234,5678,-;text`. Lines that begin with a blank are its dictionary.
fn message(line: &str) -> Option<&str> {
    if line.starts_with(' ') {
        return None;
    }
    Some(line.split_once(';').map_or(line, |(_, text)| text))
}

/// `TOTAL_ERR_COR 3` at the end of a counter file.
fn total(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("TOTAL_ERR_")?.split_whitespace().nth(1)?.parse().ok())
}

fn open_at_end(path: &Path) -> Result<OwnedFd, String> {
    let opened = rustix::fs::open(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty());
    let file = opened.map_err(|error| format!("{}: {error}", path.display()))?;
    rustix::fs::seek(&file, SeekFrom::End(0)).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn at(text: &str) -> PciAddress {
        text.parse().unwrap()
    }

    fn host() -> (tempfile::TempDir, Roots) {
        let dir = tempfile::tempdir().unwrap();
        let roots = Roots::under(dir.path());
        for path in ["sys/bus/pci/devices/0000:01:00.0", "proc", "dev"] {
            std::fs::create_dir_all(dir.path().join(path)).unwrap();
        }
        let card = dir.path().join("sys/bus/pci/devices/0000:01:00.0");
        std::fs::write(card.join("aer_dev_nonfatal"), "Undefined 0\nTOTAL_ERR_NONFATAL 2\n").unwrap();
        std::fs::write(
            dir.path().join("dev/kmsg"),
            "3,1,1,-;vfio-pci 0000:01:00.0: PCIe Bus Error: severity=Uncorrectable (Fatal)\n",
        )
        .unwrap();
        (dir, roots)
    }

    fn inventory() -> Inventory {
        Inventory { functions: Vec::new(), iommu: no43_host::inventory::IommuFacts::default() }
    }

    #[test]
    fn only_what_happens_during_the_run_counts() {
        let (dir, roots) = host();
        let mut witness = Witness::begin(&roots, &[at("0000:01:00.0")], &inventory());
        let before = witness.complaints();
        assert!(before.lines.is_empty() && before.errors.is_empty() && before.gone.is_empty(), "{before:?}");

        let card = dir.path().join("sys/bus/pci/devices/0000:01:00.0");
        std::fs::write(card.join("aer_dev_nonfatal"), "Undefined 0\nTOTAL_ERR_NONFATAL 3\n").unwrap();
        let mut log = std::fs::OpenOptions::new().append(true).open(dir.path().join("dev/kmsg")).unwrap();
        writeln!(log, "3,2,2,-;vfio-pci 0000:01:00.0: PCIe Bus Error: severity=Uncorrectable (Non-Fatal)\n DEVICE=+pci:0000:01:00.0").unwrap();
        writeln!(log, "3,3,3,-;pcieport 0000:09:00.0: PCIe Bus Error: severity=Uncorrectable (Fatal)")
            .unwrap();
        let after = witness.complaints();
        assert_eq!(after.errors, ["0000:01:00.0: 1 non-fatal"]);
        assert_eq!(
            after.lines,
            ["vfio-pci 0000:01:00.0: PCIe Bus Error: severity=Uncorrectable (Non-Fatal)"]
        );

        std::fs::remove_dir_all(card).unwrap();
        assert_eq!(witness.facts().get("host.gone"), ["0000:01:00.0"]);
    }

    #[test]
    fn a_log_that_may_not_be_read_is_said_and_not_taken_for_silence() {
        let (dir, roots) = host();
        std::fs::remove_file(dir.path().join("dev/kmsg")).unwrap();
        let mut witness = Witness::begin(&roots, &[at("0000:01:00.0")], &inventory());
        assert!(witness.complaints().log_unreadable.unwrap().contains("kmsg"));
        assert!(!witness.facts().knows("host.says"));
    }

    #[test]
    fn what_the_host_is_like_is_read_and_what_is_not_told_stays_unknown() {
        let (dir, roots) = host();
        let witness = Witness::begin(&roots, &[at("0000:01:00.0")], &inventory());
        assert_eq!((witness.address_bits(), witness.interrupt_remapping()), (None, None));
        let put = |file: &str, text: &str| std::fs::write(dir.path().join("proc").join(file), text).unwrap();
        put("cpuinfo", "flags\t\t: fpu\naddress sizes\t: 39 bits physical, 48 bits virtual\n");
        assert_eq!(witness.address_bits().as_deref(), Some("39"));
        put("interrupts", "  9:  0  IO-APIC   9-fasteoi   acpi\n");
        assert_eq!(witness.interrupt_remapping(), Some(false));
        put("interrupts", "  9:  0  IR-IO-APIC   9-fasteoi   acpi\n");
        assert_eq!(witness.interrupt_remapping(), Some(true));
        let bound_to = |driver: &str| {
            let link = dir.path().join("sys/bus/pci/devices/0000:01:00.0/driver");
            let _ = std::fs::remove_file(&link);
            std::os::unix::fs::symlink(format!("../../../../bus/pci/drivers/{driver}"), &link).unwrap();
            witness.not_bound([at("0000:01:00.0"), at("0000:01:00.1")]).get("host.not-bound").to_vec()
        };
        assert_eq!(bound_to("vfio-pci"), ["none"]);
        assert_eq!(bound_to("snd_hda_intel"), ["0000:01:00.0 snd_hda_intel"]);
    }

    #[test]
    fn a_framebuffer_inside_the_card_is_found_and_zeros_say_nothing() {
        let (dir, roots) = host();
        let witness = Witness::begin(&roots, &[at("0000:01:00.0")], &inventory());
        let see = |text: &str| {
            std::fs::write(dir.path().join("proc/iomem"), text).unwrap();
            witness.framebuffer(at("0000:01:00.0")).get("host.framebuffer").to_vec()
        };
        let tree = "e0000000-efffffff : PCI Bus 0000:01\n  e0000000-efffffff : 0000:01:00.0\n    e0000000-e02fffff : BOOTFB\nf0000000-f1ffffff : 0000:00:02.0\n  f0000000-f1ffffff : efifb\n";
        assert_eq!(see(tree), ["BOOTFB"]);
        assert_eq!(see(&tree.replace("BOOTFB", "vfio")), ["none"]);
        assert!(see("00000000-00000000 : PCI Bus 0000:01\n  00000000-00000000 : 0000:01:00.0\n").is_empty());
    }
}
