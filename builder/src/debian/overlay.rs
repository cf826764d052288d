//! Overlay: every file, link and folder that is laid over the packages, as data.

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;

use super::tar::Writer;
use crate::plan::{Boot, DebianBase, FileIn, FileSource, Init};

/// Where our program lies in every guest.
pub(crate) const GUEST_PROGRAM: &str = "/usr/bin/no43-guest";

/// One thing that is laid over the tree, owned by root.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) path: String,
    pub(crate) node: Node,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Node {
    Text {
        mode: u32,
        text: String,
    },
    /// A file of this host, and what it must hash to.
    Copy {
        mode: u32,
        from: PathBuf,
        sha256: String,
    },
    Link(String),
    Folder {
        mode: u32,
    },
}

/// What identifies the file systems inside an image; derived from the key, so that a rebuilt layer has the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DiskIds {
    /// Of the root file system, as blkid writes it.
    pub(crate) root: String,
    /// Of the EFI system partition, 8 hexadecimal digits.
    pub(crate) esp: String,
    /// Of the partition table.
    pub(crate) table: String,
}

/// Files that must be there before the first package is unpacked.
pub(crate) fn early(base: &DebianBase) -> Vec<Entry> {
    let mut entries = vec![
        // Only while building: nothing survives a power cut here anyway, and dpkg is a third faster. Removed at the end.
        text("/etc/dpkg/dpkg.cfg.d/no43-build", 0o644, "force-unsafe-io\nforce-confold\nforce-confdef\n"),
    ];
    if !base.backports.is_empty() {
        entries.push(text("/etc/apt/preferences.d/no43-backports", 0o644, &backports_pin(base)));
    }
    if base.boot == Boot::Disk && !base.initrd_modules.is_empty() {
        entries.push(text("/etc/initramfs-tools/conf.d/no43", 0o644, "MODULES=list\n"));
    }
    entries
}

/// Everything else, laid over the tree once the packages are there.
pub(crate) fn late(base: &DebianBase, guest_program: Node, ids: &DiskIds) -> Vec<Entry> {
    let mut entries = vec![
        Entry { path: GUEST_PROGRAM.to_owned(), node: guest_program },
        text("/etc/hostname", 0o644, &format!("{}\n", base.hostname)),
        text(
            "/etc/hosts",
            0o644,
            &format!("127.0.0.1\tlocalhost\n127.0.1.1\t{}\n::1\tlocalhost ip6-localhost\n", base.hostname),
        ),
        text("/etc/machine-id", 0o444, ""),
        text("/etc/fstab", 0o644, &fstab(base, ids)),
        text("/etc/timezone", 0o644, &format!("{}\n", base.timezone)),
        link("/etc/localtime", &format!("/usr/share/zoneinfo/{}", base.timezone)),
        text("/etc/default/locale", 0o644, &format!("LANG={}\n", base.locale)),
    ];
    if !base.modules.is_empty() {
        entries.push(text("/etc/modules-load.d/no43.conf", 0o644, &lines(&base.modules)));
    }
    if let Some(layout) = &base.keyboard {
        let keyboard = format!(
            "XKBMODEL=\"pc105\"\nXKBLAYOUT=\"{layout}\"\nXKBVARIANT=\"\"\nXKBOPTIONS=\"\"\nBACKSPACE=\"guess\"\n"
        );
        entries.push(text("/etc/default/keyboard", 0o644, &keyboard));
    }
    if let Some(user) = base.user.as_ref().filter(|user| user.sudo) {
        entries.push(text(
            "/etc/sudoers.d/no43-user",
            0o440,
            &format!("{} ALL=(ALL:ALL) NOPASSWD: ALL\n", user.name),
        ));
    }
    match base.init {
        Init::Systemd => entries.extend(systemd()),
        Init::Lean => entries.extend(lean()),
    }
    if base.boot == Boot::Disk {
        entries.extend(grub(base));
    }
    entries.extend(base.files.iter().map(entry_of));
    entries
}

fn systemd() -> Vec<Entry> {
    vec![
        text(
            "/etc/systemd/network/80-no43-dhcp.network",
            0o644,
            // hardware has no kind: bridges, taps and the like are left to whoever made them
            "[Match]\nType=ether\nKind=!*\n\n[Network]\nDHCP=yes\n",
        ),
        // Keys of the SSH server are made at the first start: a key in an image would be the same in every machine.
        text(
            "/etc/systemd/system/no43-ssh-keys.service",
            0o644,
            "[Unit]\nDescription=Make this machine's own SSH host keys\nBefore=ssh.service\n\
             ConditionPathExists=/usr/bin/ssh-keygen\nConditionPathExistsGlob=!/etc/ssh/ssh_host_*_key\n\n\
             [Service]\nType=oneshot\nExecStart=/usr/bin/ssh-keygen -A\n\n[Install]\nWantedBy=multi-user.target\n",
        ),
        link("/etc/systemd/system/multi-user.target.wants/no43-ssh-keys.service", "../no43-ssh-keys.service"),
    ]
}

/// `no43-guest` is process 1, and what the guest agent calls to switch the machine off.
fn lean() -> Vec<Entry> {
    let mut entries: Vec<Entry> = ["shutdown", "poweroff", "reboot", "halt"]
        .iter()
        .map(|name| link(&format!("/usr/sbin/{name}"), GUEST_PROGRAM))
        .collect();
    entries.push(text("/usr/sbin/init", 0o755, &format!("#!/bin/sh\nexec {GUEST_PROGRAM} init\n")));
    entries
}

/// Debian's own settings, so that `update-grub` after a kernel upgrade in the guest writes the same menu that we wrote. No
/// `serial` for GRUB: OVMF has its console there already, and in a machine without a screen the two hang for ever.
fn grub(base: &DebianBase) -> Vec<Entry> {
    let settings = format!(
        "GRUB_DEFAULT=0\nGRUB_TIMEOUT_STYLE=hidden\nGRUB_TIMEOUT=0\nGRUB_DISTRIBUTOR=Debian\nGRUB_DISABLE_OS_PROBER=true\n\
         GRUB_CMDLINE_LINUX_DEFAULT=\"\"\nGRUB_CMDLINE_LINUX=\"{}\"\nGRUB_TERMINAL=console\n",
        console_options(base)
    );
    vec![
        text("/etc/default/grub", 0o644, &settings),
        Entry { path: "/boot/efi".to_owned(), node: Node::Folder { mode: 0o700 } },
    ]
}

/// What follows `root=… ro` on the kernel's command line.
pub(crate) fn console_options(base: &DebianBase) -> String {
    let mut options = vec!["console=tty0", "console=ttyS0,115200"];
    options.extend(base.kernel_options.iter().map(String::as_str));
    options.join(" ")
}

fn fstab(base: &DebianBase, ids: &DiskIds) -> String {
    match base.boot {
        // Checking at every start costs a second under emulation, and the disk is thrown away or rebuilt.
        Boot::Direct => format!("UUID={} / ext4 noatime 0 0\n", ids.root),
        Boot::Disk => format!(
            "UUID={} / ext4 errors=remount-ro 0 1\nUUID={}-{} /boot/efi vfat umask=0077,nofail 0 1\n",
            ids.root,
            &ids.esp[..4],
            &ids.esp[4..]
        ),
    }
}

/// `Pin: release n=…` takes the named packages from backports, now and in later upgrades; everything else there keeps the
/// low priority that the archive itself asks for.
fn backports_pin(base: &DebianBase) -> String {
    let suites = base.sources.iter().filter(|source| source.backports);
    suites
        .map(|source| {
            format!(
                "Package: {}\nPin: release n={}\nPin-Priority: 500\n\n",
                base.backports.join(" "),
                source.suite
            )
        })
        .collect()
}

/// A file of the recipe.
pub(crate) fn entry_of(file: &FileIn) -> Entry {
    let node = match &file.from {
        FileSource::Path(from) => {
            Node::Copy { mode: file.mode, from: from.clone(), sha256: file.sha256.clone() }
        }
        FileSource::Text(text) => Node::Text { mode: file.mode, text: text.clone() },
        FileSource::Link(target) => Node::Link(target.clone()),
    };
    Entry { path: file.to.clone(), node }
}

/// The archive that is unpacked over the tree. Files are hashed first: one that is not what the plan saw is an error.
pub(crate) fn archive(entries: &[Entry], out: impl Write) -> io::Result<()> {
    let mut writer = Writer::new(out);
    for Entry { path, node } in entries {
        match node {
            Node::Text { mode, text } => writer.file(path, *mode, text.len() as u64, &mut text.as_bytes())?,
            Node::Link(target) => writer.link(path, target)?,
            Node::Folder { mode } => writer.folder(path, *mode)?,
            Node::Copy { mode, from, sha256 } => {
                let named =
                    |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", from.display()));
                let (bytes, now) = crate::store::hash_file(from).map_err(named)?;
                if now != *sha256 {
                    return Err(io::Error::other(format!(
                        "{} has changed since the plan was made",
                        from.display()
                    )));
                }
                writer.file(path, *mode, bytes, &mut File::open(from).map_err(named)?)?;
            }
        }
    }
    writer.finish().map(drop)
}

pub(crate) fn text(path: &str, mode: u32, text: &str) -> Entry {
    Entry { path: path.to_owned(), node: Node::Text { mode, text: text.to_owned() } }
}

fn link(path: &str, target: &str) -> Entry {
    Entry { path: path.to_owned(), node: Node::Link(target.to_owned()) }
}

fn lines(items: &[String]) -> String {
    items.iter().map(|item| format!("{item}\n")).collect()
}
