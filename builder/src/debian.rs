//! Debian: a base layer out of packages, by `mmdebstrap --mode=unshare`, without loop devices, mounts or root.
//!
//! As an ordinary user the tree belongs to subordinate user ids that cannot look into the user's folders. So everything
//! goes in and out through three doors: an archive that mmdebstrap unpacks, a folder that it copies out, and the disk
//! image, which is its open standard input. As root the same command works without a user namespace.

mod overlay;
mod tar;

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::SystemTime;

pub(crate) use overlay::{DiskIds, Entry, archive, entry_of};
use overlay::{GUEST_PROGRAM, Node};

use crate::build::child::{self, tool};
use crate::build::{BuildError, Context, Made};
use crate::disk::{self, BootFiles, Layout};
use crate::image::{BootKind, DIRECT_NOTE, InRelease, Package, Provenance};
use crate::initrd::Initrd;
use crate::key::Key;
use crate::plan::{Boot, DebianBase, Init};
use crate::store::{Staging, StoreError};

/// The device under which a directly booted kernel finds the disk.
const ROOT_DEVICE: &str = "/dev/vda";
/// Scripts that run with root rights beside or in the tree.
const SCRIPTS: [(&str, &str); 3] = [
    ("check-index.sh", include_str!("debian/check-index.sh")),
    ("configure.sh", include_str!("debian/configure.sh")),
    ("make-disk.sh", include_str!("debian/make-disk.sh")),
];
/// What mmdebstrap says, and what it means for a person who waits.
const PHASES: [(&str, &str); 5] = [
    ("I: running apt-get update", "fetching package lists"),
    ("I: downloading packages with apt", "downloading the essential packages"),
    ("I: extracting archives", "unpacking the essential packages"),
    ("I: installing essential packages", "installing the essential packages"),
    ("I: installing remaining packages", "downloading and installing the other packages"),
];

/// Builds a base layer in `staging`.
pub(crate) fn build(
    base: &DebianBase,
    key: &Key,
    staging: &mut Staging,
    context: &mut Context<'_>,
) -> Result<Made, BuildError> {
    check_user()?;
    let ids = DiskIds::of(key);
    let layout = Layout::of(base.boot, base.disk_bytes)?;
    let work = staging.dir().to_owned();

    let guest =
        Node::Copy { mode: 0o755, from: context.guest_program(base)?, sha256: base.guest_program.clone() };
    write_archive(&work.join("early.tar"), &early(base, &ids, layout))?;
    write_archive(&work.join("late.tar"), &overlay::late(base, guest, &ids))?;
    let raw_path = work.join("private/disk.raw");
    let raw = disk::create(&raw_path, base.disk_bytes)?;
    let tree = tree_place(staging)?;

    let mut command = mmdebstrap(base, &work, &tree, &context.store.apt_cache(&cache_name(base)))?;
    command.stdin(raw.try_clone().map_err(StoreError::io("open", &raw_path))?);
    let cancelled = context.cancelled();
    let result = child::run("mmdebstrap", command, &mut context.log, &cancelled, &mut |line| {
        if let Some(phase) = phase(line) {
            context.progress.phase(phase);
        }
        said_by_us(line)
    });
    result.map_err(|error| context.explain(error))?;
    let out = work.join("out/no43-out");
    let packages = packages(&out.join("packages"))?;
    keep_packages(&work.join("archives"), &context.store.apt_cache(&cache_name(base)), &packages);
    let mut files = vec!["disk.qcow2"];
    let boot = match base.boot {
        Boot::Direct => {
            beside_the_disk(base, &out, &work)?;
            files.extend(["kernel", "initrd"]);
            BootKind::Direct { command_line: command_line(base), note: DIRECT_NOTE.to_owned() }
        }
        Boot::Disk => {
            context.progress.phase("partitions and bootloader");
            disk::make_bootable(&raw, &raw_path, &layout, &ids, &BootFiles::read(&out.join("boot"))?)?;
            BootKind::Disk
        }
    };
    context.progress.phase("writing the disk image");
    drop(raw);
    disk::to_qcow2(&raw_path, &work.join("disk.qcow2")).map_err(|error| context.explain(error))?;
    fs::remove_file(&raw_path).map_err(StoreError::io("remove", &raw_path))?;

    let provenance = Provenance {
        tools: versions(),
        mode: mode().to_owned(),
        in_releases: base
            .sources
            .iter()
            .map(|s| InRelease { suite: s.suite.clone(), sha256: s.in_release_sha256.clone() })
            .collect(),
        packages,
        ..Provenance::default()
    };
    Ok(Made { files, boot, provenance, sealed: None })
}

/// Removes a tree whose files belong to subordinate user ids, as only root of that namespace can.
pub(crate) fn remove_as_namespace_root(path: &Path) -> io::Result<()> {
    let status = Command::new("mmdebstrap")
        .arg("--unshare-helper")
        .args(["rm", "-rf", "--"])
        .arg(path)
        .stdin(Stdio::null())
        .status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other("mmdebstrap --unshare-helper rm failed")) }
}

/// Packages that follow from what the plan asks for.
pub(crate) fn all_packages(base: &DebianBase) -> Vec<String> {
    let asked = base.packages.iter().chain(&base.backports).map(String::as_str);
    let implied = [
        (true, ["kmod"].as_slice()),
        (base.init == Init::Systemd, &["systemd-sysv", "udev", "dbus"]),
        (!is_builtin_locale(&base.locale), &["locales"]),
        (base.keyboard.is_some(), &["keyboard-configuration", "console-setup"]),
        (base.user.as_ref().is_some_and(|user| user.sudo), &["sudo"]),
        (own_initrd(base), &["busybox-static"]),
        (!own_initrd(base), &["initramfs-tools", "zstd"]),
        (base.boot == Boot::Disk, &["grub-cloud-amd64"]),
    ];
    let implied =
        implied.into_iter().filter(|(needed, _)| *needed).flat_map(|(_, packages)| packages.iter().copied());
    let mut all: Vec<String> = Vec::new();
    for package in asked.chain(implied) {
        if !all.iter().any(|there| there == package) {
            all.push(package.to_owned());
        }
    }
    all
}

impl DiskIds {
    /// Ids out of a key: 16 bytes of it, marked as a UUID of version 8 ("custom").
    pub(crate) fn of(key: &Key) -> Self {
        let digits = key.as_str();
        let uuid = |at: usize| {
            let d = &digits[at..at + 32];
            format!("{}-{}-8{}-a{}-{}", &d[..8], &d[8..12], &d[13..16], &d[17..20], &d[20..32])
        };
        Self { root: uuid(0), esp: digits[32..40].to_uppercase(), table: uuid(32) }
    }
}

fn mmdebstrap(base: &DebianBase, work: &Path, tree: &Path, cache: &Path) -> Result<Command, BuildError> {
    let cache = if cache.is_dir() { cache } else { &work.join("no-packages-yet") };
    fs::create_dir_all(cache).map_err(StoreError::io("create", cache))?;
    fs::create_dir_all(work.join("out")).map_err(StoreError::io("create", work))?;
    fs::create_dir_all(work.join("archives")).map_err(StoreError::io("create", work))?;
    let mut command = child::supervised(&tool("mmdebstrap", "mmdebstrap")?);
    // INITRD=No keeps the kernel's package from making an initrd at once: later there is more to put into it, or it is ours.
    command.current_dir(work).env("TMPDIR", tree).env("INITRD", "No").env("LC_ALL", "C.UTF-8");
    command.args(["--mode=unshare", "--format=null"]);
    command.arg(format!("--variant={}", base.variant)).arg(format!("--architectures={}", base.arch));
    command.arg("--skip=essential/unlink,cleanup");
    for glob in &base.remove {
        command.arg(format!("--dpkgopt=path-exclude={glob}"));
    }
    command.arg(format!("--include={}", all_packages(base).join(",")));
    command.arg("--setup-hook=tar-in early.tar /");
    command.arg("--setup-hook=mkdir -p \"$1/var/cache/apt/archives\"");
    command.arg(format!("--setup-hook=sync-in {} /var/cache/apt/archives", shell_word(cache)));
    command.arg("--extract-hook=sh \"$1/tmp/no43/check-index.sh\" \"$1\"");
    command.arg("--customize-hook=sync-out /var/cache/apt/archives archives");
    command.arg("--customize-hook=tar-in late.tar /");
    command.arg("--customize-hook=sh \"$1/tmp/no43/configure.sh\" \"$1\"");
    command.arg("--customize-hook=sh \"$1/tmp/no43/make-disk.sh\" \"$1\"");
    command.arg("--customize-hook=copy-out /tmp/no43-out out");
    command.args([base.suite.as_str(), "/dev/null"]);
    command.args(
        base.sources
            .iter()
            .map(|source| format!("deb {} {} {}", source.mirror, source.suite, source.components.join(" "))),
    );
    Ok(command)
}

/// What the scripts need to know, and the files that must be there before the first package.
fn early(base: &DebianBase, ids: &DiskIds, layout: Layout) -> Vec<Entry> {
    let in_tmp = |name: &str, text: &str| overlay::text(&format!("/tmp/no43/{name}"), 0o644, text);
    let mut entries = overlay::early(base);
    entries.extend(SCRIPTS.map(|(name, script)| in_tmp(name, script)));
    entries.push(in_tmp("grub.cfg", include_str!("debian/grub.cfg")));
    entries.push(in_tmp("settings", &settings(base, ids, layout)));
    entries.push(in_tmp(
        "indexes",
        &base.sources.iter().map(|s| format!("{} {}\n", s.suite, s.in_release_sha256)).collect::<String>(),
    ));
    // Everything in a home is given to its user first, so what is root's there must be said as well.
    let owned = base.files.iter().filter(|file| file.owner != "root:root" || file.to.starts_with("/home/"));
    entries.push(in_tmp(
        "owners",
        &owned.map(|file| format!("{} {}\n", file.owner, file.to)).collect::<String>(),
    ));
    entries
}

fn settings(base: &DebianBase, ids: &DiskIds, layout: Layout) -> String {
    let user = base.user.as_ref();
    let values = [
        ("INIT", if base.init == Init::Systemd { "systemd" } else { "lean" }.to_owned()),
        ("BOOT", if base.boot == Boot::Disk { "disk" } else { "direct" }.to_owned()),
        ("TIMEZONE", base.timezone.clone()),
        ("LOCALE", base.locale.clone()),
        ("USER_NAME", user.map_or(String::new(), |user| user.name.clone())),
        ("USER_GROUPS", user.map_or(String::new(), |user| user.groups.join(" "))),
        ("INITRD_KIND", if own_initrd(base) { "own" } else { "debian" }.to_owned()),
        ("INITRD_MODULES", base.initrd_modules.join(" ")),
        ("KERNEL_OPTIONS", overlay::console_options(base)),
        ("ROOT_UUID", ids.root.clone()),
        ("ROOT_LABEL", "no43-root".to_owned()),
        ("ROOT_OFFSET", layout.root_offset().to_string()),
        ("ROOT_KIB", (layout.root_bytes() / 1024).to_string()),
    ];
    values.map(|(name, value)| format!("{name}={}\n", shell_quoted(&value))).concat()
}

/// Our own initrd: a direct start with a list of modules. Without a list, and for disks that others may boot, Debian's.
fn own_initrd(base: &DebianBase) -> bool {
    base.boot == Boot::Direct && !base.initrd_modules.is_empty()
}

fn is_builtin_locale(locale: &str) -> bool {
    locale == "C" || locale == "POSIX" || locale.starts_with("C.")
}

fn command_line(base: &DebianBase) -> String {
    format!("root={ROOT_DEVICE} rw {}", overlay::console_options(base))
}

/// Kernel and initrd, beside the disk.
fn beside_the_disk(base: &DebianBase, out: &Path, work: &Path) -> Result<(), BuildError> {
    let move_out = |name: &str| {
        let (from, to) = (out.join(name), work.join(name));
        fs::rename(&from, &to).map_err(StoreError::io("move", &from))
    };
    move_out("kernel")?;
    if !own_initrd(base) {
        return Ok(move_out("initrd")?);
    }
    let order = out.join("module-order");
    let order = fs::read_to_string(&order).map_err(StoreError::io("read", &order))?;
    let modules: Vec<PathBuf> = order.lines().map(|name| out.join("modules").join(name)).collect();
    let init: &[&str] = match base.init {
        Init::Lean => &[GUEST_PROGRAM, "init"],
        Init::Systemd => &["/sbin/init"],
    };
    let initrd = Initrd {
        busybox: &out.join("busybox"),
        modules: modules.iter().map(PathBuf::as_path).collect(),
        root_device: ROOT_DEVICE,
        init,
    };
    let path = work.join("initrd");
    let mut file = io::BufWriter::new(File::create(&path).map_err(StoreError::io("create", &path))?);
    initrd.write(&mut file).map_err(StoreError::io("write", &path))?;
    Ok(())
}

fn write_archive(path: &Path, entries: &[Entry]) -> Result<(), BuildError> {
    let file = File::create(path).map_err(StoreError::io("create", path))?;
    archive(entries, io::BufWriter::new(file)).map_err(|source| match source.kind() {
        io::ErrorKind::StorageFull => StoreError::io("write", path)(source).into(),
        _ => BuildError::Inputs(source),
    })
}

/// A folder for the tree: in the staging folder, if root of the namespace can get there, else in `/var/tmp`.
fn tree_place(staging: &mut Staging) -> Result<PathBuf, BuildError> {
    let reachable = |dir: &Path| {
        dir.ancestors()
            .all(|dir| fs::metadata(dir).is_ok_and(|facts| facts.permissions().mode() & 0o001 != 0))
    };
    if is_root() || reachable(staging.dir()) {
        let tree = staging.dir().join("tree");
        fs::create_dir(&tree).map_err(StoreError::io("create", &tree))?;
        return Ok(tree);
    }
    let parent = std::env::var_os("TMPDIR").map_or(PathBuf::from("/var/tmp"), PathBuf::from);
    let tree = parent.join(format!("no43-{}", std::process::id()));
    staging.owns_outside(&tree)?;
    fs::create_dir(&tree).map_err(StoreError::io("create", &tree))?;
    Ok(tree)
}

/// Takes over the packages that were downloaded. Each one is renamed into place, so that another build at the same time
/// never sees half of one; those in use get a new time, by which `gc` knows the others. Failing here costs only the next
/// build's time.
fn keep_packages(from: &Path, cache: &Path, used: &[Package]) {
    let _ = fs::create_dir_all(cache);
    let used: HashSet<String> = used.iter().map(archive_name).collect();
    for entry in fs::read_dir(from).into_iter().flatten().flatten() {
        let (name, to) = (entry.file_name(), cache.join(entry.file_name()));
        if to.extension().is_none_or(|extension| extension != "deb")
            || !entry.metadata().is_ok_and(|facts| facts.is_file())
        {
            continue;
        }
        let before = fs::metadata(&to).and_then(|facts| facts.modified());
        let in_use =
            name.to_string_lossy().rsplit_once('_').is_some_and(|(package, _)| used.contains(package));
        let time = if in_use { Ok(SystemTime::now()) } else { before };
        let _ = fs::rename(entry.path(), &to);
        if let Ok(time) = time {
            let _ = File::options().write(true).open(&to).and_then(|file| file.set_modified(time));
        }
    }
}

/// What apt calls a package's file, without the architecture: `name_version`, a colon written as `%3a`.
fn archive_name(package: &Package) -> String {
    let name = package.name.split(':').next().unwrap_or_default();
    format!("{name}_{}", package.version.replace(':', "%3a"))
}

/// What an ordinary user needs beside the tools; checked first, because mmdebstrap says it in the middle of its own words.
fn check_user() -> Result<(), BuildError> {
    if is_root() {
        return Ok(());
    }
    tool("newuidmap", "uidmap")?;
    let uid = rustix::process::getuid().as_raw().to_string();
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let user = passwd
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields.get(2) == Some(&uid.as_str()));
    let user = user.map_or(uid.clone(), |fields| fields[0].to_owned());
    let has = |path: &str| {
        let text = fs::read_to_string(path).unwrap_or_default();
        text.lines().filter_map(|line| line.split(':').next()).any(|name| name == user || name == uid)
    };
    if has("/etc/subuid") && has("/etc/subgid") { Ok(()) } else { Err(BuildError::NoSubordinateIds { user }) }
}

fn cache_name(base: &DebianBase) -> String {
    format!("{}-{}", base.suite, base.arch)
}

fn phase(line: &str) -> Option<&str> {
    line.strip_prefix("no43: phase ")
        .or_else(|| PHASES.iter().find(|(start, _)| line.starts_with(start)).map(|(_, phase)| *phase))
}

/// Errors that are worth more than a tool's last lines.
fn said_by_us(line: &str) -> Result<(), BuildError> {
    if let Some(rest) = line.strip_prefix("no43: index ")
        && let [suite, locked, now] = rest.split(' ').collect::<Vec<_>>()[..]
    {
        return Err(BuildError::IndexChanged {
            suite: suite.to_owned(),
            locked: locked.to_owned(),
            now: now.to_owned(),
        });
    }
    if let Some(name) = line.trim_start().strip_prefix("E: Unable to locate package ") {
        return Err(BuildError::Recipe(format!(
            "guest.packages: there is no package '{name}' in the suites of this recipe"
        )));
    }
    match line.strip_prefix("no43: failed ") {
        Some(what) => Err(BuildError::Recipe(what.to_owned())),
        None => Ok(()),
    }
}

fn packages(path: &Path) -> Result<Vec<Package>, BuildError> {
    let text = fs::read_to_string(path).map_err(StoreError::io("read", path))?;
    let both = text.lines().filter_map(|line| line.split_once(' '));
    Ok(both.map(|(name, version)| Package { name: name.to_owned(), version: version.to_owned() }).collect())
}

/// Versions of what makes an image; a program that does not say is left out.
fn versions() -> BTreeMap<String, String> {
    [("mmdebstrap", "--version"), ("mke2fs", "-V"), ("qemu-img", "--version")]
        .into_iter()
        .filter_map(|(name, flag)| {
            let output = Command::new(tool(name, "").ok()?).arg(flag).stdin(Stdio::null()).output().ok()?;
            let text = [output.stdout, output.stderr].concat();
            let line = String::from_utf8_lossy(&text).lines().next()?.trim().to_owned();
            Some((name.to_owned(), line))
        })
        .collect()
}

fn mode() -> &'static str {
    if is_root() {
        "unshare, as root: own mount and process namespaces"
    } else {
        "unshare, as an ordinary user: own user namespace"
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn shell_quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// mmdebstrap splits the arguments of its special hooks as a shell would.
fn shell_word(path: &Path) -> String {
    shell_quoted(&path.to_string_lossy())
}

#[cfg(test)]
mod tests;
