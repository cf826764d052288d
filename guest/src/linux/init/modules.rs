//! Loading of kernel modules.
//!
//! The few that the agent needs are loaded by this process itself: one `modprobe` costs as much as everything
//! else up to the agent together. All others are left to `modprobe`, which knows aliases, options, blacklists
//! and compression, in one call for many devices.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::io::Errno;

use super::log::Log;
use super::processes::{Processes, in_words};
use crate::linux::{Root, names, read_text};

/// How long one call of `modprobe` may take. A driver that hangs in its probe function is left alone then.
const LIMIT: Duration = Duration::from_secs(120);

/// A new driver can bring new devices (a virtio bus, the codecs of a sound card); no chain is longer.
const ROUNDS: usize = 4;

/// Devices whose modules only cost time in a guest that runs checks: every CPU feature loads its own cipher,
/// and each of these tests itself.
const SKIPPED: &[&str] = &["cpu:"];

/// What a card consists of, in the words of its modaliases: these devices get their drivers first, because that
/// is what checks wait for.
const OF_CARDS: &[(&str, &str)] = &[
    ("pci:", "bc03"),
    ("pci:", "bc04"),
    ("pci:", "bc0Csc03"),
    ("pci:", "bc0Csc80"),
    ("hdaudio:", ""),
    ("virtio:d00000010", ""),
];

/// Flag of finit_module(2): the file is compressed, the kernel is to unpack it.
const COMPRESSED: i32 = 4;

/// Loads modules by name, and first what they depend on. One that is loaded or built in is fine.
pub(super) fn load(root: &Root, wanted: &[&str]) -> Result<()> {
    let wanted: Vec<&str> =
        wanted.iter().copied().filter(|name| !root.path("sys/module").join(name).exists()).collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let release =
        read_text(&root.path("proc/sys/kernel/osrelease")).context("failed to ask for the kernel")?;
    let dir = root.path("lib/modules").join(release);
    let table = dir.join("modules.dep");
    let table =
        std::fs::read_to_string(&table).with_context(|| format!("failed to read {}", table.display()))?;
    for name in wanted {
        for file in files_in_order(&table, name) {
            load_file(&dir.join(file))?;
        }
    }
    Ok(())
}

/// Loads the modules of the devices that can belong to cards. Gives the number of different devices.
pub(super) fn load_for_cards(root: &Root, processes: &Processes, log: &Log) -> usize {
    load_for(root, processes, log, |alias| {
        OF_CARDS.iter().any(|(start, part)| alias.starts_with(start) && alias.contains(part))
    })
}

/// Loads the modules of all devices. Gives the number of different devices.
pub(super) fn load_for_all(root: &Root, processes: &Processes, log: &Log) -> usize {
    load_for(root, processes, log, |_| true)
}

/// Loads modules with one `modprobe` per round.
fn load_for(root: &Root, processes: &Processes, log: &Log, wanted: impl Fn(&str) -> bool) -> usize {
    let mut known = BTreeSet::new();
    for _ in 0..ROUNDS {
        let found: BTreeSet<String> = aliases(root).into_iter().filter(|alias| wanted(alias)).collect();
        let new: Vec<&String> = found.difference(&known).collect();
        if new.is_empty() {
            break;
        }
        let mut command = Command::new("modprobe");
        command.args(["-qab", "--"]).args(new).stdin(Stdio::null());
        match processes.run(&mut command, LIMIT) {
            // 1 only says that some device has no module, which is so in every machine.
            Ok(status) if matches!(status.exit_status(), Some(0 | 1)) => {}
            Ok(status) => log.say(&format!("modprobe ended with {}", in_words(status))),
            Err(error) => {
                log.say(&format!("modprobe failed: {error}"));
                break;
            }
        }
        known = found;
    }
    known.len()
}

/// What all devices say about themselves, each only once. Devices on a bus have it there; input devices, of
/// which the power button is one, only in their class.
fn aliases(root: &Root) -> BTreeSet<String> {
    let buses = root.path("sys/bus");
    let buses = names(&buses).unwrap_or_default().into_iter().map(|bus| buses.join(bus).join("devices"));
    let mut found = BTreeSet::new();
    for dir in buses.chain([root.path("sys/class/input")]) {
        for device in names(&dir).unwrap_or_default() {
            if let Ok(alias) = read_text(&dir.join(device).join("modalias"))
                && !alias.is_empty()
                && !SKIPPED.iter().any(|prefix| alias.starts_with(prefix))
            {
                found.insert(alias);
            }
        }
    }
    found
}

/// Files of the module and of what it depends on, in the order of loading. Lines of `modules.dep` are
/// `file: dependency dependency …`, the innermost dependency last. Empty if it is not there (or built in).
fn files_in_order<'a>(table: &'a str, name: &str) -> Vec<&'a str> {
    let line = table.lines().find_map(|line| {
        let (file, dependencies) = line.split_once(':')?;
        (module_name(file) == name).then_some((file, dependencies))
    });
    line.map(|(file, dependencies)| dependencies.split_whitespace().rev().chain([file]).collect())
        .unwrap_or_default()
}

/// `kernel/drivers/char/hw_random/virtio-rng.ko.xz` → `virtio_rng`
fn module_name(file: &str) -> String {
    let file = file.rsplit('/').next().unwrap_or_default();
    file.split('.').next().unwrap_or_default().replace('-', "_")
}

fn load_file(path: &Path) -> Result<()> {
    let file = File::open(path).with_context(|| format!("failed to open {}", path.display()))?;
    let flags = if path.extension().is_some_and(|extension| extension == "ko") { 0 } else { COMPRESSED };
    match rustix::system::finit_module(&file, c"", flags) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("failed to load {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::linux::report::tests::FakeGuest;

    const TABLE: &str = "kernel/drivers/char/virtio_console.ko: kernel/drivers/virtio/virtio_ring.ko kernel/drivers/virtio/virtio.ko\n\
                         kernel/drivers/char/hw_random/virtio-rng.ko.xz:\n";

    #[test]
    fn what_a_module_needs_is_loaded_before_it() {
        assert_eq!(
            files_in_order(TABLE, "virtio_console"),
            [
                "kernel/drivers/virtio/virtio.ko",
                "kernel/drivers/virtio/virtio_ring.ko",
                "kernel/drivers/char/virtio_console.ko"
            ]
        );
        assert_eq!(files_in_order(TABLE, "virtio_rng"), ["kernel/drivers/char/hw_random/virtio-rng.ko.xz"]);
        assert!(files_in_order(TABLE, "ext4").is_empty());
    }

    #[test]
    fn a_loaded_module_is_not_looked_for() {
        let guest = FakeGuest::new();
        guest.write("sys/module/virtio_console/initstate", "live\n");
        assert!(load(&guest.root(), &["virtio_console"]).is_ok());
        assert!(load(&guest.root(), &["virtio_console", "virtio_pci"]).is_err());
    }

    #[test]
    fn every_kind_of_device_is_asked_for_once() {
        let guest = FakeGuest::new();
        guest.function("0000:01:00.0", &[("modalias", "pci:v00001234d00001111sv0sd0bc03sc80i00")]);
        guest.function("0000:02:00.0", &[("modalias", "pci:v00001234d00001111sv0sd0bc03sc80i00")]);
        guest
            .write("sys/bus/cpu/devices/cpu0/modalias", "cpu:type:x86,ven0002fam0017mod0001:feature:,0000\n");
        guest.write("sys/bus/acpi/devices/LNXPWRBN:00/modalias", "acpi:LNXPWRBN:\n");
        guest.write("sys/bus/acpi/devices/device:00/modalias", "\n");
        guest.write("sys/class/input/input0/modalias", "input:b0019v0000p0001e0000-e0,1,k74,ramlsfw\n");
        let aliases: Vec<String> = aliases(&guest.root()).into_iter().collect();
        insta::assert_snapshot!(aliases.join("\n"), @r"
        acpi:LNXPWRBN:
        input:b0019v0000p0001e0000-e0,1,k74,ramlsfw
        pci:v00001234d00001111sv0sd0bc03sc80i00
        ");
    }

    proptest! {
        #[test]
        fn any_table_is_read(table in "([a-z/.:_ -]{0,40}\n){0,8}|\\PC*") {
            let _ = files_in_order(&table, "a");
        }
    }
}
