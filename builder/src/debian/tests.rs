//! What goes into a tree, without making one.

use std::process::Command;

use super::*;
use crate::plan::{AptSource, BaseUser, FileIn, FileSource};

fn base() -> DebianBase {
    let source = |suite: &str, backports| AptSource {
        suite: suite.into(),
        components: vec!["main".into()],
        mirror: "http://mirror.invalid/debian".into(),
        in_release_sha256: "ab".repeat(32),
        backports,
    };
    DebianBase {
        suite: "bookworm".into(),
        arch: "amd64".into(),
        sources: vec![source("bookworm", false), source("bookworm-backports", true)],
        variant: "minbase".into(),
        packages: vec!["linux-image-amd64".into(), "qemu-guest-agent".into()],
        backports: vec!["qemu-system-x86".into()],
        kernel: "linux-image-amd64".into(),
        init: Init::Systemd,
        user: Some(BaseUser { name: "demo".into(), groups: vec!["kvm".into()], sudo: true }),
        locale: "fr_FR.UTF-8".into(),
        timezone: "Europe/Paris".into(),
        keyboard: Some("fr".into()),
        hostname: "no43".into(),
        disk_bytes: 2 << 30,
        boot: Boot::Disk,
        files: vec![
            FileIn {
                from: FileSource::Text("hello\n".into()),
                to: "/home/demo/hello".into(),
                mode: 0o600,
                owner: "demo:demo".into(),
                sha256: String::new(),
            },
            FileIn {
                from: FileSource::Link("hello".into()),
                to: "/home/demo/link".into(),
                mode: 0o777,
                owner: "root:root".into(),
                sha256: String::new(),
            },
        ],
        initrd_modules: Vec::new(),
        modules: vec!["kvm_amd".into()],
        remove: vec!["/usr/share/doc/*".into()],
        kernel_options: vec!["quiet".into()],
        guest_program: String::new(),
    }
}

fn shown(entries: &[Entry]) -> String {
    let line = |entry: &Entry| match &entry.node {
        Node::Text { mode, text } => {
            format!("{} {mode:o} {}", entry.path, text.escape_debug().to_string().replace("\\n", "⏎"))
        }
        Node::Copy { mode, .. } => format!("{} {mode:o} a file", entry.path),
        Node::Link(target) => format!("{} → {target}", entry.path),
        Node::Folder { mode } => format!("{}/ {mode:o}", entry.path),
    };
    entries.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn late(base: &DebianBase) -> String {
    let program = Node::Copy { mode: 0o755, from: "no43-guest".into(), sha256: String::new() };
    shown(&overlay::late(base, program, &DiskIds::of(&Key::of(None, &1.into()))))
}

#[test]
fn a_whole_debian() {
    insta::assert_snapshot!(shown(&overlay::early(&base())), @r"
    /etc/dpkg/dpkg.cfg.d/no43-build 644 force-unsafe-io⏎force-confold⏎force-confdef⏎
    /etc/apt/preferences.d/no43-backports 644 Package: qemu-system-x86⏎Pin: release n=bookworm-backports⏎Pin-Priority: 500⏎⏎
    ");
    insta::assert_snapshot!(late(&base()), @r#"
    /usr/bin/no43-guest 755 a file
    /etc/hostname 644 no43⏎
    /etc/hosts 644 127.0.0.1\tlocalhost⏎127.0.1.1\tno43⏎::1\tlocalhost ip6-localhost⏎
    /etc/machine-id 444 
    /etc/fstab 644 UUID=579a2673-fce0-8b29-a9ec-8d4c616717b3 / ext4 errors=remount-ro 0 1⏎UUID=6B93-C3F4 /boot/efi vfat umask=0077,nofail 0 1⏎
    /etc/timezone 644 Europe/Paris⏎
    /etc/localtime → /usr/share/zoneinfo/Europe/Paris
    /etc/default/locale 644 LANG=fr_FR.UTF-8⏎
    /etc/modules-load.d/no43.conf 644 kvm_amd⏎
    /etc/default/keyboard 644 XKBMODEL=\"pc105\"⏎XKBLAYOUT=\"fr\"⏎XKBVARIANT=\"\"⏎XKBOPTIONS=\"\"⏎BACKSPACE=\"guess\"⏎
    /etc/sudoers.d/no43-user 440 demo ALL=(ALL:ALL) NOPASSWD: ALL⏎
    /etc/systemd/network/80-no43-dhcp.network 644 [Match]⏎Type=ether⏎Kind=!*⏎⏎[Network]⏎DHCP=yes⏎
    /etc/systemd/system/no43-ssh-keys.service 644 [Unit]⏎Description=Make this machine\'s own SSH host keys⏎Before=ssh.service⏎ConditionPathExists=/usr/bin/ssh-keygen⏎ConditionPathExistsGlob=!/etc/ssh/ssh_host_*_key⏎⏎[Service]⏎Type=oneshot⏎ExecStart=/usr/bin/ssh-keygen -A⏎⏎[Install]⏎WantedBy=multi-user.target⏎
    /etc/systemd/system/multi-user.target.wants/no43-ssh-keys.service → ../no43-ssh-keys.service
    /etc/default/grub 644 GRUB_DEFAULT=0⏎GRUB_TIMEOUT_STYLE=hidden⏎GRUB_TIMEOUT=0⏎GRUB_DISTRIBUTOR=Debian⏎GRUB_DISABLE_OS_PROBER=true⏎GRUB_CMDLINE_LINUX_DEFAULT=\"\"⏎GRUB_CMDLINE_LINUX=\"console=tty0 console=ttyS0,115200 quiet\"⏎GRUB_TERMINAL=console⏎
    /boot/efi/ 700
    /home/demo/hello 600 hello⏎
    /home/demo/link → hello
    "#);
    insta::assert_snapshot!(all_packages(&base()).join(" "), @"linux-image-amd64 qemu-guest-agent qemu-system-x86 kmod systemd-sysv udev dbus locales keyboard-configuration console-setup sudo initramfs-tools zstd grub-cloud-amd64");
}

#[test]
fn a_lean_guest() {
    let lean = DebianBase {
        init: Init::Lean,
        boot: Boot::Direct,
        user: None,
        keyboard: None,
        locale: "C.UTF-8".into(),
        backports: Vec::new(),
        initrd_modules: vec!["virtio_pci".into(), "ext4".into()],
        ..base()
    };
    insta::assert_snapshot!(late(&lean), @r"
    /usr/bin/no43-guest 755 a file
    /etc/hostname 644 no43⏎
    /etc/hosts 644 127.0.0.1\tlocalhost⏎127.0.1.1\tno43⏎::1\tlocalhost ip6-localhost⏎
    /etc/machine-id 444 
    /etc/fstab 644 UUID=579a2673-fce0-8b29-a9ec-8d4c616717b3 / ext4 noatime 0 0⏎
    /etc/timezone 644 Europe/Paris⏎
    /etc/localtime → /usr/share/zoneinfo/Europe/Paris
    /etc/default/locale 644 LANG=C.UTF-8⏎
    /etc/modules-load.d/no43.conf 644 kvm_amd⏎
    /usr/sbin/shutdown → /usr/bin/no43-guest
    /usr/sbin/poweroff → /usr/bin/no43-guest
    /usr/sbin/reboot → /usr/bin/no43-guest
    /usr/sbin/halt → /usr/bin/no43-guest
    /usr/sbin/init 755 #!/bin/sh⏎exec /usr/bin/no43-guest init⏎
    /home/demo/hello 600 hello⏎
    /home/demo/link → hello
    ");
    insta::assert_snapshot!(all_packages(&lean).join(" "), @"linux-image-amd64 qemu-guest-agent kmod busybox-static");
    insta::assert_snapshot!(command_line(&lean), @"root=/dev/vda rw console=tty0 console=ttyS0,115200 quiet");
}

#[test]
fn ids_come_from_the_key_and_are_uuids() {
    let ids = DiskIds::of(&Key::of(None, &1.into()));
    assert_eq!(ids, DiskIds::of(&Key::of(None, &1.into())));
    assert_ne!(ids.root, DiskIds::of(&Key::of(None, &2.into())).root);
    for uuid in [&ids.root, &ids.table] {
        assert_eq!(uuid.split('-').map(str::len).collect::<Vec<_>>(), [8, 4, 4, 4, 12], "{uuid}");
    }
}

#[test]
fn the_scripts_are_shell_and_the_settings_cannot_break_out() {
    let dir = tempfile::tempdir().unwrap();
    let hostile = DebianBase { timezone: "x'; touch /tmp/owned; '".into(), ..base() };
    let layout = Layout::of(Boot::Disk, 2 << 30).unwrap();
    let settings = settings(&hostile, &DiskIds::of(&Key::of(None, &1.into())), layout);
    let path = dir.path().join("settings");
    fs::write(&path, settings).unwrap();
    let echo = Command::new("sh")
        .arg("-c")
        .arg(". \"$1\"; printf %s \"$TIMEZONE $ROOT_OFFSET\"")
        .arg("sh")
        .arg(&path)
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&echo.stdout), "x'; touch /tmp/owned; ' 69206016");
    for (name, script) in SCRIPTS {
        let path = dir.path().join(name);
        fs::write(&path, script).unwrap();
        assert!(Command::new("sh").arg("-n").arg(&path).status().unwrap().success(), "{name}");
    }
}

#[test]
fn an_index_that_differs_from_the_lock_ends_the_build() {
    let tree = tempfile::tempdir().unwrap();
    let lists = tree.path().join("var/lib/apt/lists");
    fs::create_dir_all(&lists).unwrap();
    fs::create_dir_all(tree.path().join("tmp/no43")).unwrap();
    fs::write(lists.join("mirror.invalid_debian_dists_bookworm_InRelease"), "signed\n").unwrap();
    let (_, sum) =
        crate::store::hash_file(&lists.join("mirror.invalid_debian_dists_bookworm_InRelease")).unwrap();
    let check = |locked: &str| {
        fs::write(tree.path().join("tmp/no43/indexes"), format!("bookworm {locked}\n")).unwrap();
        let output =
            Command::new("sh").arg("-c").arg(SCRIPTS[0].1).arg("sh").arg(tree.path()).output().unwrap();
        String::from_utf8(output.stderr).unwrap().lines().try_for_each(said_by_us)
    };
    check(&sum).unwrap();
    let error = check(&"0".repeat(64)).unwrap_err().to_string();
    let expected = format!(
        "the package index of bookworm has changed since it was locked (locked 000000000000, now {}): \
         run `no43 lock --update bookworm`, then build again",
        &sum[..12]
    );
    assert_eq!(error, expected);
}

#[test]
fn what_mmdebstrap_says_becomes_phases_and_errors() {
    assert_eq!(phase("I: running apt-get update..."), Some("fetching package lists"));
    assert_eq!(phase("no43: phase tidying up"), Some("tidying up"));
    assert_eq!(phase("I: success in 3 seconds"), None);
    assert!(said_by_us("no43: index too few").is_ok());
    assert_eq!(
        said_by_us("no43: failed guest.locale: no such").unwrap_err().to_string(),
        "guest.locale: no such"
    );
    assert_eq!(
        said_by_us("E: Unable to locate package frobnicate").unwrap_err().to_string(),
        "guest.packages: there is no package 'frobnicate' in the suites of this recipe"
    );
}

#[test]
fn a_file_that_changed_since_the_plan_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    fs::write(&path, "now").unwrap();
    let entry =
        Entry { path: "/x".into(), node: Node::Copy { mode: 0o644, from: path, sha256: "0".repeat(64) } };
    let error = archive(&[entry], Vec::new()).unwrap_err().to_string();
    assert!(error.ends_with("has changed since the plan was made"), "{error}");
}

#[test]
fn packages_in_use_look_new_and_the_others_keep_their_age() {
    let dir = tempfile::tempdir().unwrap();
    let (from, cache) = (dir.path().join("from"), dir.path().join("cache"));
    fs::create_dir_all(&from).unwrap();
    fs::create_dir_all(&cache).unwrap();
    let (used, other) = ("libc6_1%3a2.36-9_amd64.deb", "vim_9.0_amd64.deb");
    let long_ago = SystemTime::UNIX_EPOCH;
    for folder in [&from, &cache] {
        for name in [used, other] {
            fs::write(folder.join(name), "package").unwrap();
            File::options().write(true).open(folder.join(name)).unwrap().set_modified(long_ago).unwrap();
        }
    }
    fs::create_dir(from.join("partial")).unwrap();
    keep_packages(&from, &cache, &[Package { name: "libc6:amd64".into(), version: "1:2.36-9".into() }]);
    let age = |name: &str| fs::metadata(cache.join(name)).unwrap().modified().unwrap();
    assert!(age(used) > long_ago && age(other) == long_ago);
    assert!(!cache.join("partial").exists());
}
