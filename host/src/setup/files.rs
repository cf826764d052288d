//! Which files a set-up consists of: one row each, with the text that goes into it.

use crate::card::Card;
use crate::{Inventory, PciAddress, PciId};

/// Who makes this host's initramfs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Initramfs {
    /// Debian and Ubuntu.
    InitramfsTools,
    /// Fedora and others.
    Dracut,
}

impl Initramfs {
    /// The program that tells them apart, and what makes every kernel's initramfs again.
    pub(crate) const TABLE: &[(Initramfs, &str, &[&str])] = &[
        (Initramfs::InitramfsTools, "usr/sbin/update-initramfs", &["update-initramfs", "-u", "-k", "all"]),
        (Initramfs::Dracut, "usr/bin/dracut", &["dracut", "--force", "--regenerate-all"]),
    ];
}

/// A file as it shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct File {
    /// Relative to the root.
    pub(crate) path: &'static str,
    pub(crate) mode: u32,
    pub(crate) text: String,
    /// Part of what the initramfs is made from.
    pub(crate) in_initramfs: bool,
}

/// The list of reserved cards.
pub(crate) const RESERVED: &str = "etc/no43/reserved";

const RESERVE: &str = include_str!("data/reserve.sh");
const HOOK: &str = include_str!("data/initramfs-tools.hook");
const DRACUT: &str = include_str!("data/dracut-module.sh");
const DRACUT_HOOK: &str = include_str!("data/dracut-hook.sh");
const SOCKET: &str = include_str!("data/helper.socket");
const SERVICE: &str = include_str!("data/helper.service");

const fn file(path: &'static str, mode: u32, text: String, in_initramfs: bool) -> File {
    File { path, mode, text, in_initramfs }
}

/// What keeps cards free from boot.
pub(crate) fn reservation(lines: &[String], group: &str, by: Initramfs) -> Vec<File> {
    let head =
        "# Cards that are kept free for virtual machines, one a line: written by no43 host setup --reserve\n";
    let list = format!("{head}{}\n", lines.join("\n"));
    let mut files = vec![
        file(RESERVED, 0o644, list, true),
        file("etc/udev/rules.d/60-no43.rules", 0o644, rules(lines, group), false),
    ];
    files.extend(match by {
        Initramfs::InitramfsTools => vec![
            file("etc/initramfs-tools/hooks/no43-reserve", 0o755, HOOK.into(), true),
            // the name sorts before udev's, which is the order in which they run
            file("etc/initramfs-tools/scripts/init-top/no43-reserve", 0o755, RESERVE.into(), true),
        ],
        Initramfs::Dracut => vec![
            file("usr/lib/dracut/modules.d/75no43/module-setup.sh", 0o755, DRACUT.into(), true),
            file("usr/lib/dracut/modules.d/75no43/no43-hook.sh", 0o755, DRACUT_HOOK.into(), true),
            file("usr/lib/dracut/modules.d/75no43/no43-reserve.sh", 0o755, RESERVE.into(), true),
        ],
    });
    files
}

/// The group's node of a reserved card belongs to the group: nothing needs root when a VM starts.
fn rules(lines: &[String], group: &str) -> String {
    let mut text = String::from(
        "# The VFIO nodes of reserved cards, for members of a group: written by no43 host setup --reserve\n",
    );
    for address in lines.iter().filter_map(|line| line.split('=').next()) {
        text.push_str(&format!(
            "SUBSYSTEM==\"vfio\", KERNEL==\"[0-9]*\", TEST==\"/sys/kernel/iommu_groups/%k/devices/{address}\", GROUP=\"{group}\", MODE=\"0660\"\n"
        ));
    }
    text
}

/// What ordinary users of the group need on top of it.
pub(crate) fn limits(group: &str, memory_kib: u64) -> Vec<File> {
    let memlock = format!(
        "# A VM with a card keeps all its memory locked: written by no43 host setup\n@{group} - memlock {memory_kib}\n"
    );
    let delay = "# Guests are shut down in order before this host: written by no43 host setup\n[Login]\nInhibitDelayMaxSec=120\n";
    // an active session may do this anyway; ssh and services of one's own are none
    let actions = ["inhibit-block-sleep", "inhibit-block-idle", "inhibit-delay-shutdown"];
    let actions = actions.map(|action| format!("\"org.freedesktop.login1.{action}\"")).join(", ");
    let polkit = format!(
        "// Keeping this host awake while a card is lent: written by no43 host setup\n\
         polkit.addRule(function(action, subject) {{\n    \
         if ([{actions}].indexOf(action.id) >= 0 && subject.isInGroup(\"{group}\")) {{ return polkit.Result.YES; }}\n\
         }});\n"
    );
    vec![
        file("etc/polkit-1/rules.d/60-no43.rules", 0o644, polkit, false),
        file("etc/security/limits.d/90-no43.conf", 0o644, memlock, false),
        file("etc/systemd/logind.conf.d/no43.conf", 0o644, delay.into(), false),
    ]
}

/// The helper's units.
pub(crate) fn helper(group: &str, program: &str) -> Vec<File> {
    let fill = |text: &str| text.replace("{group}", group).replace("{program}", program);
    vec![
        file("etc/systemd/system/no43-helper.socket", 0o644, fill(SOCKET), false),
        file("etc/systemd/system/no43-helper.service", 0o644, fill(SERVICE), false),
    ]
}

/// A card's line in the list: every function with the ids that it has now.
pub(crate) fn line(card: &Card, inventory: &Inventory) -> String {
    let functions = card.functions.iter().filter_map(|address| inventory.function(address));
    let each = functions.map(|f| {
        let id = |id: PciId| format!("0x{:04x}:0x{:04x}", id.vendor, id.device);
        let subsystem = f.subsystem.map_or_else(|| "0x0000:0x0000".to_owned(), id);
        format!("{}={}/{subsystem}", f.address, id(f.id))
    });
    each.collect::<Vec<_>>().join(" ")
}

/// The addresses in the list; what is no address is left out.
pub(crate) fn addresses(list: &str) -> Vec<PciAddress> {
    let lines = list.lines().filter(|line| !line.trim_start().starts_with('#'));
    let words = lines.flat_map(str::split_whitespace);
    words.filter_map(|word| word.split('=').next()?.parse().ok()).collect()
}

/// The cards in the list, one line each.
pub(crate) fn lines(list: &str) -> Vec<String> {
    let lines = list.lines().map(str::trim);
    lines.filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned).collect()
}
