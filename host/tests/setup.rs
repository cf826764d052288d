//! `host setup` over a host made of files: what is written, that twice is once, and that undoing leaves nothing.

mod common;

use std::fs;
use std::path::PathBuf;

use common::FakeHost;
use no43_host::setup::{Change, Plan, SetupError, System, Wanted, apply, plan, reserved, undo};

struct Host {
    fake: FakeHost,
    system: System,
    commands: Vec<String>,
    /// A command that fails.
    broken: Option<&'static str>,
}

impl Host {
    fn new(initramfs: &str) -> Self {
        let fake = FakeHost::lab();
        let root = fake.dir.path().join("root");
        for dir in ["etc", "usr/sbin", "usr/bin", "run/systemd/system"] {
            fs::create_dir_all(root.join(dir)).unwrap();
        }
        fs::write(root.join("etc/group"), "root:x:0:\nkvm:x:105:\n").unwrap();
        if !initramfs.is_empty() {
            fs::write(root.join(initramfs), "").unwrap();
        }
        let system = System { root, roots: fake.roots.clone() };
        Host { fake, system, commands: Vec::new(), broken: None }
    }

    fn plan(&self, reserve: &[&str]) -> Result<Plan, SetupError> {
        let reserve = reserve.iter().map(|a| a.parse().unwrap()).collect();
        plan(&Wanted { reserve, group: "no43".into(), user: Some("lab".into()), helper: None }, &self.system)
    }

    fn apply(&mut self, plan: &Plan) -> Result<(), SetupError> {
        let (commands, broken) = (&mut self.commands, self.broken);
        apply(plan, &self.system, &mut |command| {
            commands.push(command.join(" "));
            if broken.is_some_and(|b| command[0] == b) { Err("no space left".into()) } else { Ok(()) }
        })
    }

    /// What is written, without paths that differ from run to run.
    fn files(&self) -> Vec<(PathBuf, String)> {
        let mut all: Vec<(PathBuf, String)> = Vec::new();
        let mut dirs =
            vec![self.system.root.join("etc"), self.system.root.join("usr"), self.system.root.join("var")];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
                match entry.file_type().unwrap().is_dir() {
                    true => dirs.push(entry.path()),
                    false => all.push((
                        entry.path().strip_prefix(&self.system.root).unwrap().into(),
                        fs::read_to_string(entry.path()).unwrap(),
                    )),
                }
            }
        }
        all.sort();
        all
    }
}

#[test]
fn a_reservation_on_debian_is_written_once_and_undone_as_a_whole() {
    let mut host = Host::new("usr/sbin/update-initramfs");
    let before = host.files();
    let plan = host.plan(&["01:00"]).unwrap();
    assert_eq!(host.files(), before, "a plan changes nothing");
    host.apply(&plan).unwrap();
    let files = host.files();
    let names: Vec<String> = files.iter().map(|(path, _)| path.display().to_string()).collect();
    insta::assert_snapshot!(names.join("\n"), @r"
    etc/group
    etc/initramfs-tools/hooks/no43-reserve
    etc/initramfs-tools/scripts/init-top/no43-reserve
    etc/no43/reserved
    etc/polkit-1/rules.d/60-no43.rules
    etc/security/limits.d/90-no43.conf
    etc/systemd/logind.conf.d/no43.conf
    etc/udev/rules.d/60-no43.rules
    usr/sbin/update-initramfs
    var/lib/no43/setup.json
    ");
    let text = |name: &str| files.iter().find(|(path, _)| path.ends_with(name)).unwrap().1.clone();
    insta::assert_snapshot!(text("etc/no43/reserved"), @r"
    # Cards that are kept free for virtual machines, one a line: written by no43 host setup --reserve
    0000:01:00.0=0x1234:0x1111/0x1af4:0x1100 0000:01:00.1=0x8086:0x2668/0x1af4:0x1100
    ");
    insta::assert_snapshot!(text("udev/rules.d/60-no43.rules"), @r#"
    # The VFIO nodes of reserved cards, for members of a group: written by no43 host setup --reserve
    SUBSYSTEM=="vfio", KERNEL=="[0-9]*", TEST=="/sys/kernel/iommu_groups/%k/devices/0000:01:00.0", GROUP="no43", MODE="0660"
    "#);
    insta::assert_snapshot!(host.commands.join("\n"), @r"
    groupadd --system no43
    usermod -a -G no43 lab
    usermod -a -G kvm lab
    update-initramfs -u -k all
    ");
    assert_eq!(reserved(&host.system.root).len(), 2);

    // the group is there now, as groupadd would have left it
    fs::write(host.system.root.join("etc/group"), "root:x:0:\nkvm:x:105:lab\nno43:x:999:lab\n").unwrap();
    assert!(host.plan(&["01:00.1"]).unwrap().is_empty(), "a second time changes nothing");
    let second = host.plan(&["02:00"]).unwrap();
    host.apply(&second).unwrap();
    assert_eq!(reserved(&host.system.root).len(), 4, "one more card");

    host.commands.clear();
    let commands = &mut host.commands;
    let undone = undo(&host.system, &mut |command| {
        commands.push(command.join(" "));
        Ok(())
    })
    .unwrap();
    assert!(undone.left.is_empty() && undone.failed.is_empty(), "{undone:?}");
    insta::assert_snapshot!(host.commands.join("\n"), @r"
    gpasswd -d lab kvm
    gpasswd -d lab no43
    groupdel no43
    update-initramfs -u -k all
    ");
    fs::write(host.system.root.join("etc/group"), "root:x:0:\nkvm:x:105:\n").unwrap();
    assert_eq!(host.files(), before, "nothing is left");
}

#[test]
fn a_file_that_was_there_comes_back_and_one_that_somebody_changed_is_left() {
    let mut host = Host::new("usr/sbin/update-initramfs");
    let limits = host.system.root.join("etc/security/limits.d/90-no43.conf");
    fs::create_dir_all(limits.parent().unwrap()).unwrap();
    fs::write(&limits, "mine\n").unwrap();
    let plan = host.plan(&["01:00"]).unwrap();
    host.apply(&plan).unwrap();
    let rules = host.system.root.join("etc/udev/rules.d/60-no43.rules");
    fs::write(&rules, "edited\n").unwrap();
    let undone = undo(&host.system, &mut |_| Ok(())).unwrap();
    assert_eq!(undone.left, std::slice::from_ref(&rules));
    assert_eq!(fs::read_to_string(&rules).unwrap(), "edited\n");
    assert_eq!(fs::read_to_string(&limits).unwrap(), "mine\n");
}

#[test]
fn an_initramfs_that_cannot_be_made_leaves_nothing_behind() {
    let mut host = Host::new("usr/sbin/update-initramfs");
    let before = host.files();
    host.broken = Some("update-initramfs");
    let plan = host.plan(&["01:00"]).unwrap();
    let error = host.apply(&plan).unwrap_err();
    insta::assert_snapshot!(error.to_string(), @"'update-initramfs -u -k all' failed, and what had been written is undone: no space left");
    assert_eq!(host.commands.last().map(String::as_str), Some("groupdel no43"));
    fs::remove_dir_all(host.system.root.join("var")).unwrap();
    assert_eq!(host.files(), before);
}

#[test]
fn a_kill_in_the_middle_is_undone_from_the_record() {
    let mut host = Host::new("usr/sbin/update-initramfs");
    let before = host.files();
    let whole = host.plan(&["01:00"]).unwrap();
    for cut in 0..whole.changes.len() {
        // the process ends in the midst of the change after `cut` others: its record is written, its work is not
        let part = Plan { changes: whole.changes[..cut].to_vec(), notes: Vec::new() };
        host.apply(&part).unwrap();
        let undone = undo(&host.system, &mut |_| Ok(())).unwrap();
        assert!(undone.left.is_empty() && undone.failed.is_empty(), "{undone:?}");
        assert_eq!(host.files(), before, "after {cut} changes");
    }
}

#[test]
fn dracut_gets_its_module() {
    let host = Host::new("usr/bin/dracut");
    let plan = host.plan(&["01:00"]).unwrap();
    let paths: Vec<String> = plan
        .changes
        .iter()
        .map(|change| match change {
            Change::Write { path, .. } => path.strip_prefix(&host.system.root).unwrap().display().to_string(),
            Change::Run { command, .. } => command.join(" "),
        })
        .filter(|line| line.contains("dracut"))
        .collect();
    insta::assert_snapshot!(paths.join("\n"), @r"
    usr/lib/dracut/modules.d/75no43/module-setup.sh
    usr/lib/dracut/modules.d/75no43/no43-hook.sh
    usr/lib/dracut/modules.d/75no43/no43-reserve.sh
    dracut --force --regenerate-all
    ");
    // dracut sources its hooks: an 'exit' in one is the end of the whole initramfs
    let hook = plan.changes.iter().find_map(|change| match change {
        Change::Write { path, text, .. } if path.ends_with("no43-hook.sh") => Some(text.clone()),
        _ => None,
    });
    assert!(!hook.unwrap().contains("exit"));
}

#[test]
fn what_cannot_be_reserved_is_refused_before_anything_is_written() {
    let host = Host::new("usr/sbin/update-initramfs");
    let why = |reserve: &[&str]| host.plan(reserve).unwrap_err().to_string();
    insta::assert_snapshot!(why(&["00:01"]), @"QEMU standard VGA at 00:01 is the host's own display: never lent");
    assert!(
        why(&["00:02.0"])
            .starts_with("00:02.0 is no graphics card; this host has QEMU standard VGA at 00:01")
    );
    let none = Host::new("");
    assert!(none.plan(&["01:00"]).unwrap_err().to_string().contains("neither initramfs-tools nor dracut"));
    let odd = Wanted { group: "a b; rm".into(), ..Wanted::default() };
    assert!(plan(&odd, &host.system).is_err());
}

#[test]
fn a_helper_that_others_could_replace_is_refused() {
    let host = Host::new("usr/sbin/update-initramfs");
    let wanted =
        |program: PathBuf| Wanted { group: "no43".into(), helper: Some(program), ..Wanted::default() };
    let open = host.fake.dir.path().join("no43");
    fs::write(&open, "").unwrap();
    fs::set_permissions(&open, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let error = plan(&wanted(open), &host.system).unwrap_err().to_string();
    assert!(error.contains("can be replaced by others than root"), "{error}");
    let plan = plan(&wanted("/bin/true".into()), &host.system).unwrap();
    let commands: Vec<String> = plan
        .changes
        .iter()
        .filter_map(|c| match c {
            Change::Run { command, .. } => Some(command.join(" ")),
            Change::Write { .. } => None,
        })
        .collect();
    insta::assert_snapshot!(commands.join("\n"), @r"
    groupadd --system no43
    systemctl daemon-reload
    systemctl enable --now no43-helper.socket
    ");
}
