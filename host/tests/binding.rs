//! Leasing, binding, giving back and recovering on a host made of files.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::{FakeHost, Mood, Spec};
use no43_host::recovery::{self, Left};
use no43_host::{
    BindError, CardRequest, CardState, Inventory, Lease, LeaseError, Limits, Privilege, ProcessRef, lease,
};

const QUICK: Limits = Limits { write: Duration::from_secs(10), settle: Duration::from_secs(10) };
/// For tests where something never happens.
const IMPATIENT: Limits = Limits { write: Duration::from_millis(200), settle: Duration::from_millis(200) };

fn take(host: &FakeHost, request: CardRequest, limits: Limits) -> Result<Lease, LeaseError> {
    let inventory = Inventory::read(&host.roots)?;
    let mut lease = lease(&inventory, &[request], "a test", &host.state, &host.roots)?;
    lease.set_limits(limits);
    Ok(lease)
}

fn card(host: &FakeHost, address: &str) -> no43_host::Card {
    let inventory = Inventory::read(&host.roots).unwrap();
    let cards = inventory.cards_now(&host.state, &host.roots);
    cards.into_iter().find(|card| card.address.short() == address).unwrap()
}

/// A process that stands for a QEMU or a dead no43.
struct Sleeper(Child);

impl Sleeper {
    fn new() -> Self {
        Self::running("sleep", &["60"])
    }

    fn running(program: &str, arguments: &[&str]) -> Self {
        let child = Command::new(program).args(arguments).stdin(Stdio::null()).spawn().unwrap();
        // the kernel says that the program was started before its command line can be read
        let line = format!("/proc/{}/cmdline", child.id());
        while fs::read(&line).unwrap().is_empty() {
            std::thread::yield_now();
        }
        Sleeper(child)
    }

    /// One that keeps a file open.
    fn holding(path: &std::path::Path) -> Self {
        let file = fs::File::open(path).unwrap();
        Sleeper(Command::new("sleep").arg("60").stdin(file).spawn().unwrap())
    }

    fn process(&self, host: &FakeHost) -> ProcessRef {
        ProcessRef::of(self.0.id(), &host.roots).unwrap()
    }

    fn end(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        self.end();
    }
}

#[test]
fn a_card_goes_to_vfio_and_comes_back_whole() {
    let mut host = FakeHost::lab();
    host.start_kernel(Mood::Obedient);
    let before = host.picture();
    let mut lease = take(&host, CardRequest::at("01:00".parse().unwrap()), QUICK).unwrap();
    assert_eq!(lease.functions().len(), 2);
    let nodes = lease.bind(&Privilege::Root).unwrap();
    assert_eq!(nodes.iter().map(|node| node.group).collect::<Vec<_>>(), [4, 4]);
    assert_eq!(fs::metadata(&nodes[0].path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(host.driver("01:00.0").as_deref(), Some("vfio-pci"));
    assert_eq!(host.driver("01:00.1").as_deref(), Some("vfio-pci"));
    assert_eq!(host.driver("02:00.0").as_deref(), Some("bochs-drm"));
    assert!(matches!(card(&host, "01:00.0").state, CardState::Lent { alive: true, .. }));
    let journal = host.state.journal(&host.roots);
    assert_eq!(journal[1].driver_before.as_deref(), Some("snd_hda_intel"));

    let back = lease.give_back(&Privilege::Root).unwrap();
    assert!(back.is_complete(), "{back:?}");
    assert_eq!(back.functions[0].driver_now.as_deref(), Some("bochs-drm"));
    assert!(host.state.journal(&host.roots).is_empty() && host.state.leases(&host.roots).is_empty());
    let mut after = host.picture();
    after.retain(|path, _| !path.ends_with("leases.lock") && !path.ends_with("host.lock"));
    assert_eq!(after, before, "the host is as it was");
}

#[test]
fn a_card_that_is_kept_free_from_boot_needs_no_write() {
    let host = FakeHost::new(&[Spec::new("01:00.0", "0300", "10de:2484", 4, "vfio-pci").below("00:02.0")]);
    fs::write(host.roots.dev.join("vfio/4"), "").unwrap();
    let mut lease = take(&host, CardRequest::any(), IMPATIENT).unwrap();
    // no kernel runs here, and no root is asked for: any write would show
    assert_eq!(lease.bind(&Privilege::None).unwrap().len(), 1);
    assert!(lease.give_back(&Privilege::None).unwrap().is_complete());
    assert!(host.state.leases(&host.roots).is_empty());
}

#[test]
fn an_open_node_stops_everything_and_names_the_process() {
    let mut host = FakeHost::lab();
    host.start_kernel(Mood::Obedient);
    let node = host.add_drm("01:00.0", "card1");
    let mut lease = take(&host, CardRequest::at("01:00".parse().unwrap()), QUICK).unwrap();
    let mut sleeper = Sleeper::holding(&node);
    let before = host.picture();
    let error = lease.bind(&Privilege::Root).unwrap_err();
    let text = error.to_string();
    assert!(text.contains(&format!("sleep ({}, {})", sleeper.0.id(), node.display())), "{text}");
    assert_eq!(host.picture(), before, "nothing was written");
    drop(lease);
    let refused = take(&host, CardRequest::at("01:00".parse().unwrap()), QUICK).unwrap_err();
    assert!(
        matches!(refused, LeaseError::InUse { ref holders, .. } if holders[0].name == "sleep"),
        "{refused}"
    );
    sleeper.end();
    assert!(card(&host, "01:00.0").state.is_ready());
}

#[test]
fn a_machine_that_has_the_card_open_is_never_disturbed() {
    let mut host = FakeHost::lab();
    host.start_kernel(Mood::Obedient);
    let mut lease = take(&host, CardRequest::at("01:00".parse().unwrap()), QUICK).unwrap();
    let nodes = lease.bind(&Privilege::Root).unwrap();
    let mut qemu = Sleeper::holding(&nodes[0].path);
    let error = lease.give_back(&Privilege::Root).unwrap_err();
    assert!(matches!(error, BindError::InUse { .. }), "{error}");
    assert_eq!(host.driver("01:00.0").as_deref(), Some("vfio-pci"));
    assert_eq!(host.state.leases(&host.roots).len(), 1, "the lease is kept for recovery");
    qemu.end();
}

#[test]
fn when_vfio_refuses_the_drivers_come_back() {
    let mut host = FakeHost::lab();
    host.start_kernel(Mood::VfioRefuses);
    let mut lease = take(
        &host,
        CardRequest::at("01:00".parse().unwrap()),
        Limits { settle: Duration::from_millis(300), ..QUICK },
    )
    .unwrap();
    let error = lease.bind(&Privilege::Root).unwrap_err();
    insta::assert_snapshot!(error.to_string(), @"0000:01:00.0 was offered to vfio-pci and is with no driver now: dmesg says why; error -22 there means that the IOMMU is off (no43 doctor)");
    assert_eq!(host.driver("01:00.0").as_deref(), Some("bochs-drm"));
    assert_eq!(host.driver("01:00.1").as_deref(), Some("snd_hda_intel"));
    assert!(host.state.journal(&host.roots).is_empty());
    drop(lease);
    assert!(card(&host, "01:00.0").state.is_ready());
}

#[test]
fn a_driver_that_does_not_come_back_means_quarantine() {
    let mut host = FakeHost::lab();
    host.start_kernel(Mood::Obedient);
    let mut lease = take(&host, CardRequest::at("01:00".parse().unwrap()), QUICK).unwrap();
    let _ = lease.bind(&Privilege::Root).unwrap();
    host.start_kernel(Mood::DriverSulks);
    lease.set_limits(Limits { settle: Duration::from_millis(300), ..QUICK });
    let back = lease.give_back(&Privilege::Root).unwrap();
    assert!(!back.is_complete());
    insta::assert_snapshot!(back.quarantined.unwrap(), @"01:00.0 had driver bochs-drm and came back with no driver: dmesg says why");
    let refused = take(&host, CardRequest::at("01:00".parse().unwrap()), QUICK).unwrap_err();
    assert!(matches!(refused, LeaseError::Quarantined { .. }), "{refused}");
    // the others go on
    let other = take(&host, CardRequest::any(), QUICK).unwrap();
    assert_eq!(other.cards()[0].address.short(), "02:00.0");
    assert!(host.state.end_quarantine(&"01:00.0".parse().unwrap(), &host.roots).unwrap());
    assert!(!matches!(card(&host, "01:00.0").state, CardState::Quarantined { .. }));
}

#[test]
fn a_card_that_answers_all_ones_is_quarantined() {
    let mut host = FakeHost::lab();
    host.start_kernel(Mood::Obedient);
    let mut lease = take(&host, CardRequest::at("01:00".parse().unwrap()), QUICK).unwrap();
    let _ = lease.bind(&Privilege::Root).unwrap();
    fs::write(host.device("01:00.0").join("config"), [0xff; 64]).unwrap();
    let back = lease.give_back(&Privilege::Root).unwrap();
    insta::assert_snapshot!(back.quarantined.unwrap(), @"01:00.0 answers nothing (its configuration space is all ones): it needs a cold start of the host");
}

#[test]
fn a_dead_card_is_not_offered_to_its_driver() {
    let mut host = FakeHost::lab();
    host.start_kernel(Mood::Obedient);
    let mut lease = take(&host, CardRequest::at("01:00".parse().unwrap()), QUICK).unwrap();
    let _ = lease.bind(&Privilege::Root).unwrap();
    fs::write(host.device("01:00.1").join("config"), [0xff; 64]).unwrap();
    let back = lease.give_back(&Privilege::Root).unwrap();
    assert!(back.quarantined.unwrap().starts_with("01:00.1 answers nothing"));
    assert_eq!(host.driver("01:00.0").as_deref(), Some("vfio-pci"), "nothing was tried with it");
    assert!(host.state.journal(&host.roots).is_empty());
}

#[test]
fn a_card_that_dies_while_it_is_taken_goes_into_quarantine_and_others_go_on() {
    let mut host = FakeHost::lab();
    host.start_kernel(Mood::Obedient);
    fs::create_dir_all(host.device("01:00.0").join("power")).unwrap();
    fs::write(host.device("01:00.0").join("power_state"), "D3cold\n").unwrap();
    fs::write(host.device("01:00.0").join("power/runtime_status"), "active\n").unwrap();
    let mut lease = take(&host, CardRequest::at("01:00".parse().unwrap()), QUICK).unwrap();
    let error = lease.bind(&Privilege::Root).unwrap_err();
    insta::assert_snapshot!(error.to_string(), @"QEMU standard VGA at 01:00 is of no use and in quarantine now: 01:00.0 is stuck in D3cold although it should be awake: it needs a cold start of the host");
    drop(lease);
    let refused = take(&host, CardRequest::at("01:00".parse().unwrap()), QUICK).unwrap_err();
    assert!(refused.to_string().ends_with("way out: reboot the host (a card that hangs may need a cold start); when it is well again without one: sudo no43 release --end-quarantine 01:00.0"), "{refused}");
    let mut other = take(&host, CardRequest::any(), QUICK).unwrap();
    assert_eq!(other.bind(&Privilege::Root).unwrap().len(), 2);
    assert!(other.give_back(&Privilege::Root).unwrap().is_complete());
}

/// Lends the first card, gives it back, and says which ways of a reset were tried.
fn resets(host: &mut FakeHost) -> String {
    host.start_kernel(Mood::Obedient);
    let mut lease = take(host, CardRequest::at("01:00".parse().unwrap()), QUICK).unwrap();
    let _ = lease.bind(&Privilege::Root).unwrap();
    let back = lease.give_back(&Privilege::Root).unwrap();
    assert!(back.is_complete(), "{back}");
    back.resets.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

#[test]
fn a_slot_is_reset_by_its_bridge_when_all_below_is_ours() {
    let mut host = FakeHost::lab();
    let bridge = host.device("00:02.0").join("reset_subordinate");
    fs::write(&bridge, "").unwrap();
    assert_eq!(resets(&mut host), "01:00 reset by the bridge above");
    assert_eq!(fs::read_to_string(&bridge).unwrap(), "1");
}

#[test]
fn a_bridge_with_a_stranger_below_is_left_alone() {
    let mut host = FakeHost::new(&[
        Spec::new("00:02.0", "0604", "1b36:000c", 2, "pcieport"),
        Spec::new("01:00.0", "0380", "1234:1111", 4, "bochs-drm").below("00:02.0"),
        Spec::new("01:01.0", "0108", "1b36:0010", 5, "nvme").below("00:02.0"),
    ]);
    let bridge = host.device("00:02.0").join("reset_subordinate");
    fs::write(&bridge, "").unwrap();
    fs::write(host.device("01:00.0").join("reset"), "").unwrap();
    assert_eq!(resets(&mut host), "01:00 reset function by function");
    assert_eq!(fs::read_to_string(&bridge).unwrap(), "");
    assert_eq!(fs::read_to_string(host.device("01:00.0").join("reset")).unwrap(), "1");
}

#[test]
fn a_card_that_cannot_be_reset_is_given_back_all_the_same() {
    let mut host = FakeHost::lab();
    assert_eq!(resets(&mut host), "");
}

#[test]
fn a_reset_that_hangs_means_quarantine_and_the_journal_said_what_was_done() {
    let mut host = FakeHost::lab();
    let bridge = host.device("00:02.0").join("reset_subordinate");
    assert!(Command::new("mkfifo").arg(&bridge).status().unwrap().success());
    host.start_kernel(Mood::Obedient);
    let mut lease = take(&host, CardRequest::at("01:00".parse().unwrap()), QUICK).unwrap();
    let _ = lease.bind(&Privilege::Root).unwrap();
    lease.set_limits(IMPATIENT);
    let error = lease.give_back(&Privilege::Root).unwrap_err();
    assert!(matches!(error, BindError::Hung { .. }), "{error}");
    assert!(matches!(card(&host, "01:00.0").state, CardState::Quarantined { .. }));
    assert_eq!(host.driver("01:00.0").as_deref(), Some("vfio-pci"));
}

#[test]
fn a_card_that_was_pulled_out_is_told() {
    let mut host = FakeHost::lab();
    host.start_kernel(Mood::Obedient);
    let mut lease = take(&host, CardRequest::at("01:00".parse().unwrap()), QUICK).unwrap();
    let _ = lease.bind(&Privilege::Root).unwrap();
    for function in ["01:00.0", "01:00.1"] {
        fs::remove_file(host.device(function)).unwrap();
    }
    let back = lease.give_back(&Privilege::Root).unwrap();
    assert!(back.functions.iter().all(|function| function.driver_now.is_none()));
    assert!(back.quarantined.unwrap().contains("left the bus"));
    assert!(host.state.journal(&host.roots).is_empty());
}

#[test]
fn a_write_that_hangs_is_left_alone_and_not_tried_again() {
    let host = FakeHost::lab();
    // a pipe without a reader: whoever opens it to write waits for ever
    let unbind = host.roots.sys.join("bus/pci/drivers/bochs-drm/unbind");
    fs::remove_file(&unbind).unwrap();
    assert!(Command::new("mkfifo").arg(&unbind).status().unwrap().success());
    let mut lease = take(&host, CardRequest::at("01:00".parse().unwrap()), IMPATIENT).unwrap();
    let error = lease.bind(&Privilege::Root).unwrap_err();
    assert!(matches!(error, BindError::Hung { .. }), "{error}");
    drop(lease);
    assert!(matches!(card(&host, "01:00.0").state, CardState::Quarantined { .. }));
    assert!(host.state.journal(&host.roots).is_empty(), "recovery must not try again");
}

#[test]
fn half_a_card_the_host_display_and_bridges_are_refused() {
    let mut host = FakeHost::lab();
    host.start_kernel(Mood::Obedient);
    let display = take(&host, CardRequest::at("00:01.0".parse().unwrap()), QUICK).unwrap_err();
    assert!(matches!(display, LeaseError::HostDisplay { .. }));
    let bridge = take(&host, CardRequest::at("00:02.0".parse().unwrap()), QUICK).unwrap_err();
    insta::assert_snapshot!(bridge.to_string(), @"no such card: address 00:02.0; this host has QEMU standard VGA at 00:01 (the host's own display: never lent); QEMU standard VGA at 01:00 (ready to lend); QEMU standard VGA at 02:00 (ready to lend)");
}

#[test]
fn cards_that_share_a_group_go_together_or_not_at_all() {
    let mut host = FakeHost::new(&[
        Spec::new("01:00.0", "0380", "1234:1111", 4, "bochs-drm").below("00:02.0"),
        Spec::new("02:00.0", "0380", "1234:1111", 4, "bochs-drm").below("00:03.0"),
    ]);
    host.start_kernel(Mood::Obedient);
    let one = take(&host, CardRequest::at("01:00".parse().unwrap()), QUICK).unwrap_err();
    insta::assert_snapshot!(one.to_string(), @r#"QEMU standard VGA at 01:00 shares group 4 with 02:00.0 QEMU standard VGA, which the host uses (driver bochs-drm): a group goes to one VM as a whole; use another slot, or turn on "ACS" in the firmware if it has that switch"#);
    let inventory = Inventory::read(&host.roots).unwrap();
    let both = ["02:00", "01:00"].map(|slot| CardRequest::at(slot.parse().unwrap()));
    let mut lease = lease(&inventory, &both, "both", &host.state, &host.roots).unwrap();
    assert_eq!(lease.cards()[0].address.short(), "02:00.0", "in the order of the requests");
    assert_eq!(lease.bind(&Privilege::Root).unwrap().len(), 2);
    assert!(lease.give_back(&Privilege::Root).unwrap().is_complete());
}

#[test]
fn exact_wishes_choose_before_loose_ones_and_all_or_nothing() {
    let host = FakeHost::lab();
    let inventory = Inventory::read(&host.roots).unwrap();
    let requests = [CardRequest::any(), CardRequest::at("01:00".parse().unwrap())];
    let both = lease(&inventory, &requests, "two", &host.state, &host.roots).unwrap();
    assert_eq!(both.cards()[0].address.short(), "02:00.0");
    drop(both);
    let three = CardRequest { count: 3, ..CardRequest::any() };
    let error = lease(&inventory, &[three], "three", &host.state, &host.roots).unwrap_err();
    assert!(matches!(error, LeaseError::TooFew { count: 3, free: 2, .. }), "{error}");
    assert!(host.state.leases(&host.roots).is_empty());
}

#[test]
fn of_two_racing_leases_one_wins_and_the_other_is_told_who() {
    let host = FakeHost::lab();
    for _ in 0..20 {
        let barrier = std::sync::Barrier::new(8);
        let results: Vec<Result<Lease, LeaseError>> = std::thread::scope(|scope| {
            let racers: Vec<_> = (0..8)
                .map(|number| {
                    let (host, barrier) = (&host, &barrier);
                    scope.spawn(move || {
                        let inventory = Inventory::read(&host.roots).unwrap();
                        let request = [CardRequest::at("01:00".parse().unwrap())];
                        barrier.wait();
                        lease(&inventory, &request, &format!("racer-{number}"), &host.state, &host.roots)
                    })
                })
                .collect();
            racers.into_iter().map(|racer| racer.join().unwrap()).collect()
        });
        let (won, lost): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
        assert_eq!(won.len(), 1);
        let winner = won.into_iter().next().unwrap().unwrap();
        for error in lost {
            let Err(LeaseError::AlreadyLeased { holder, pid, .. }) = error else { panic!("{error:?}") };
            assert_eq!((holder.as_str(), pid), (winner.record().holder.as_str(), std::process::id()));
        }
    }
}

/// Writes the lease and the journal of a run as if another process had made them.
fn as_if_by(host: &FakeHost, owner: ProcessRef) {
    for file in ["leases", "journal"]
        .iter()
        .flat_map(|kind| fs::read_dir(host.state.own().join(kind)).unwrap().flatten())
    {
        let mut json: serde_json::Value = serde_json::from_slice(&fs::read(file.path()).unwrap()).unwrap();
        json["owner"] = serde_json::to_value(owner).unwrap();
        fs::write(file.path(), json.to_string()).unwrap();
    }
}

/// A bound card whose no43 was killed.
fn killed_while_bound(host: &FakeHost) {
    let mut no43 = Sleeper::new();
    let mut lease = take(host, CardRequest::at("01:00".parse().unwrap()), QUICK).unwrap();
    let _ = lease.bind(&Privilege::Root).unwrap();
    drop(lease);
    as_if_by(host, no43.process(host));
    assert!(recovery::pending(&host.state, &host.roots).is_empty(), "its owner still lives");
    no43.end();
}

#[test]
fn after_a_kill_looking_only_tells_and_the_next_change_puts_it_right() {
    let mut host = FakeHost::lab();
    host.start_kernel(Mood::Obedient);
    killed_while_bound(&host);
    let before = host.picture();
    let pending = recovery::pending(&host.state, &host.roots);
    assert!(
        matches!(&pending[0].left, Left::BoundFunctions { functions } if functions.len() == 2),
        "{pending:?}"
    );
    assert!(matches!(card(&host, "01:00.0").state, CardState::Lent { alive: false, .. }));
    assert_eq!(host.picture(), before, "looking changed nothing");
    let refused = take(&host, CardRequest::at("01:00".parse().unwrap()), QUICK).unwrap_err();
    assert!(matches!(refused, LeaseError::LeftBehind { .. }), "{refused}");

    let recovered = recovery::recover(&host.state, &host.roots, &Privilege::Root).unwrap();
    assert_eq!(recovered.given_back[0].0, "a test");
    assert!(recovered.given_back[0].1.is_complete() && recovered.problems.is_empty());
    assert_eq!(host.driver("01:00.0").as_deref(), Some("bochs-drm"));
    assert!(card(&host, "01:00.0").state.is_ready());
    assert!(recovery::recover(&host.state, &host.roots, &Privilege::Root).unwrap().is_empty());
}

#[test]
fn a_machine_that_outlives_its_no43_is_adopted_and_never_unbound() {
    let mut host = FakeHost::lab();
    host.start_kernel(Mood::Obedient);
    let (mut qemu, mut no43) = (Sleeper::new(), Sleeper::new());
    let mut lease = take(&host, CardRequest::at("01:00".parse().unwrap()), QUICK).unwrap();
    let _ = lease.bind(&Privilege::Root).unwrap();
    let process = qemu.process(&host);
    lease.attach_machine(process.pid, process.start_time, "/run/x/qmp".as_ref()).unwrap();
    let id = lease.id().to_string();
    drop(lease);
    as_if_by(&host, no43.process(&host));
    no43.end();

    let recovered = recovery::recover(&host.state, &host.roots, &Privilege::Root).unwrap();
    assert!(recovered.given_back.is_empty());
    assert!(
        matches!(&recovered.running[0].left, Left::RunningMachine { machine } if machine.qmp.ends_with("qmp"))
    );
    assert_eq!(host.driver("01:00.0").as_deref(), Some("vfio-pci"));
    let other = take(&host, CardRequest::at("01:00".parse().unwrap()), QUICK).unwrap_err();
    assert!(matches!(other, LeaseError::AlreadyLeased { pid, .. } if pid == process.pid), "{other}");

    let lease = Lease::adopt(&id, &host.state, &host.roots).unwrap().unwrap();
    assert!(Lease::adopt(&id, &host.state, &host.roots).unwrap().is_none(), "only one adopts it");
    qemu.end();
    assert!(lease.give_back(&Privilege::Root).unwrap().is_complete());
    assert_eq!(host.driver("01:00.1").as_deref(), Some("snd_hda_intel"));
}

#[test]
fn a_machine_whose_no43_died_before_it_was_written_down_is_found() {
    let mut host = FakeHost::lab();
    host.start_kernel(Mood::Obedient);
    let mut no43 = Sleeper::new();
    let mut lease = take(&host, CardRequest::at("01:00".parse().unwrap()), QUICK).unwrap();
    let _ = lease.bind(&Privilege::Root).unwrap();
    let dir = host.dir.path().join("m");
    lease.announce_machine(&dir.join("qmp.sock")).unwrap();
    let id = lease.id().to_string();
    drop(lease);
    as_if_by(&host, no43.process(&host));
    no43.end();
    let agent = dir.join("ga.sock");
    fs::create_dir(&dir).unwrap();
    fs::write(&agent, "").unwrap();
    // the TPM of a machine names its directory too, and is not the machine
    let mut tpm = Sleeper::running("tail", &["-f", agent.to_str().unwrap()]);
    let mut qemu = Sleeper::running("tail", &["-f", agent.to_str().unwrap(), "--", "-nodefaults"]);

    let recovered = recovery::recover(&host.state, &host.roots, &Privilege::Root).unwrap();
    assert!(recovered.given_back.is_empty(), "{recovered:?}");
    let process = qemu.process(&host);
    assert!(
        matches!(&recovered.running[0].left, Left::RunningMachine { machine } if machine.process == process)
    );
    let lease = Lease::adopt(&id, &host.state, &host.roots).unwrap().unwrap();
    qemu.end();
    tpm.end();
    assert!(lease.give_back(&Privilege::Root).unwrap().is_complete());
}

#[test]
fn a_kill_in_the_middle_of_binding_is_recovered_too() {
    let mut host = FakeHost::lab();
    host.start_kernel(Mood::Obedient);
    killed_while_bound(&host);
    // as if it had been killed between the two functions: the second was never touched
    let audio = host.device("01:00.1");
    fs::write(host.roots.sys.join("bus/pci/drivers/vfio-pci/unbind"), "0000:01:00.1").unwrap();
    fs::write(audio.join("driver_override"), "\n").unwrap();
    while host.driver("01:00.1").is_some() {
        std::thread::yield_now();
    }
    let recovered = recovery::recover(&host.state, &host.roots, &Privilege::Root).unwrap();
    assert!(recovered.given_back[0].1.is_complete(), "{recovered:?}");
    assert_eq!(host.driver("01:00.1").as_deref(), Some("snd_hda_intel"));
}

#[test]
fn another_boot_leaves_nothing_to_undo() {
    let mut host = FakeHost::lab();
    host.start_kernel(Mood::Obedient);
    killed_while_bound(&host);
    let later = host.dir.path().join("later");
    fs::create_dir_all(later.join("sys/kernel/random")).unwrap();
    fs::write(later.join("sys/kernel/random/boot_id"), "another\n").unwrap();
    host.roots.proc_ = later;
    assert!(recovery::pending(&host.state, &host.roots).is_empty());
}

#[test]
fn damaged_state_is_told() {
    let host = FakeHost::lab();
    let journal = host.state.system().join("journal");
    fs::create_dir_all(&journal).unwrap();
    fs::write(journal.join("0000:01:00.0.json"), "{\"address\":").unwrap();
    assert_eq!(host.state.damaged(), [journal.join("0000:01:00.0.json")]);
    let findings = no43_host::doctor::examine(&host.roots, &host.state, None).unwrap();
    assert!(findings.iter().any(|finding| finding.subject == "State"), "{findings:#?}");
}

#[test]
fn a_user_sees_what_root_s_journal_says_of_others() {
    let mut host = FakeHost::lab();
    host.start_kernel(Mood::Obedient);
    let mut lease = take(&host, CardRequest::at("01:00".parse().unwrap()), QUICK).unwrap();
    let _ = lease.bind(&Privilege::Root).unwrap();
    let other = no43_host::StateDir::with_system(&host.dir.path().join("other user"), host.state.system());
    let inventory = Inventory::read(&host.roots).unwrap();
    let request = [CardRequest::at("01:00".parse().unwrap())];
    let error = no43_host::lease(&inventory, &request, "other", &other, &host.roots).unwrap_err();
    assert!(matches!(error, LeaseError::AlreadyLeased { ref holder, .. } if holder == "a test"), "{error}");
    assert!(lease.give_back(&Privilege::Root).unwrap().is_complete());
}
