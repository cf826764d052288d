//! Start, stop, death and adoption.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::time::{Duration, Instant};

use no43_machine::firmware::{self, Wanted};
use no43_machine::qmp::wait_event;
use no43_machine::spec::{
    Attach, Clock, Disk, DiskBus, DiskCache, Display, Network, OnPanic, OnReboot, PassedCard, PassedFunction,
    SerialPort, Share, Smp,
};
use no43_machine::{AdoptError, Machine, RunAs, StartError, StopLimits, StoppedBy};
use serde_json::{Value, json};

use super::{bare, start};

const SECONDS: Duration = Duration::from_secs(10);

#[test]
fn it_starts_runs_and_quits() {
    let (spec, _dir, options) = bare("plain");
    let machine = start(&spec, &options);
    assert!(machine.is_alive());
    assert_eq!(machine.qmp().raw("query-status", Value::Null).unwrap()["status"], "running");
    assert!(machine.qmp().version().0 >= 7);
    let record = machine.dirs().read_record().unwrap();
    assert_eq!((record.pid, record.start_time), (machine.pid(), machine.start_time()));
    let stopped = machine.stop(StopLimits::at_once());
    assert_eq!((stopped.by, stopped.gone), (StoppedBy::Quit, true));
    assert!(stopped.exit.is_orderly());
    assert_eq!(stopped.exit.reason.as_deref(), Some("host-qmp-quit"));
    assert!(!record.is_running());
}

#[test]
fn a_paused_machine_waits_for_cont() {
    let (mut spec, _dir, options) = bare("paused");
    spec.paused = true;
    let machine = start(&spec, &options);
    let events = machine.subscribe();
    assert_eq!(machine.qmp().raw("query-status", Value::Null).unwrap()["running"], false);
    machine.cont().unwrap();
    assert!(wait_event(&events, SECONDS, |event| (event.name == "RESUME").then_some(())).is_some());
}

#[test]
fn everything_that_can_be_described_is_accepted_by_qemu() {
    let (mut spec, dir, options) = bare("full");
    options.dirs.create().unwrap();
    let file = |name: &str| dir.path().join(name);
    // A comma in a path is nothing special.
    let (raw, qcow2) = (file("a,b.img"), file("c.qcow2"));
    fs::write(&raw, vec![0; 1 << 20]).unwrap();
    let made = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2"])
        .arg(&qcow2)
        .arg("64M")
        .status()
        .unwrap();
    assert!(made.success());
    let found = firmware::find(Wanted::Plain, &spec.machine_type).unwrap();
    spec.firmware = found.with_own_vars(&options.dirs.vars()).unwrap();
    let other = |bus| Disk { bus, cache: DiskCache::Unsafe, ..Disk::raw(&raw) };
    let locked = |disk| Disk { read_only: true, ..disk };
    spec.disks = vec![
        Disk { serial: Some("system".into()), boot_index: Some(1), ..Disk::qcow2(&qcow2) },
        Disk::cd(&raw),
        locked(other(DiskBus::Virtio)),
        locked(other(DiskBus::Nvme)),
    ];
    let share = |tag: &str, attach| Share {
        tag: tag.into(),
        path: dir.path().to_owned(),
        read_only: true,
        virtiofs: None,
        attach,
    };
    spec.shares = vec![share("now", Attach::AtStart), share("later", Attach::Later)];
    spec.ports = vec![SerialPort { name: "org.no43.lab".into(), socket: None }];
    spec.serials = vec![file("com1"), file("com2")];
    spec.network = Network::User { mac: Some("52:54:00:12:34:56".into()), restrict: true, forwards: vec![] };
    spec.display = Display::Dbus;
    spec.vmgenid = Some("324e6eaf-d1d1-4bf6-bf41-b9bb6c91fb87".into());
    spec.uuid = Some("6a6f7565-7572-4000-8000-000000000001".into());
    spec.clock = Clock::LocalTime;
    spec.smp = Smp { sockets: 1, cores: 2, threads: 2 };
    spec.spare_ports = 7;
    spec.virtual_iommu = true;
    spec.extra =
        ["-audiodev", "none,id=quiet", "-device", "intel-hda", "-device", "hda-duplex,audiodev=quiet"]
            .map(String::from)
            .to_vec();
    let machine = start(&spec, &options);
    assert_eq!(machine.qmp().raw("query-status", Value::Null).unwrap()["status"], "running");
    let blocks = machine.qmp().raw("query-block", Value::Null).unwrap();
    assert_eq!(blocks.as_array().unwrap().len(), 4 + 2, "four disks and two flash parts");
    // OVMF mirrors its console on COM1.
    let deadline = Instant::now() + Duration::from_secs(60);
    while !fs::read(file("com1")).unwrap().windows(3).any(|bytes| bytes == b"Bds") {
        assert!(Instant::now() < deadline && machine.is_alive(), "the firmware should come up");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_wrong_argument_is_shown_in_qemus_words_and_at_once() {
    let (mut spec, _dir, options) = bare("wrong");
    spec.extra = vec!["-device".into(), "no-such-device".into()];
    let began = Instant::now();
    let error = Machine::start(&spec, &options).unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(5));
    assert!(matches!(&error, StartError::Died { .. }), "{error}");
    assert!(
        error.to_string().contains("exit code 1") && error.to_string().contains("no-such-device"),
        "{error}"
    );
}

#[test]
fn a_missing_qemu_is_named() {
    let (spec, _dir, mut options) = bare("missing");
    options.qemu = "qemu-of-nowhere".into();
    let error = Machine::start(&spec, &options).unwrap_err().to_string();
    assert!(error.contains("start qemu-of-nowhere"), "{error}");
}

#[test]
fn a_card_that_is_not_there_is_qemus_error() {
    let (mut spec, _dir, options) = bare("no-card");
    let functions = vec![PassedFunction { host: "ff:1f.7".parse().unwrap(), present_as: None }];
    spec.cards = vec![PassedCard { functions }];
    let error = Machine::start(&spec, &options).unwrap_err();
    assert!(matches!(&error, StartError::Died { stderr, .. } if stderr.contains("0000:ff:1f.7")), "{error}");
}

#[test]
fn a_killed_machine_is_gone_with_its_reason_unknown() {
    let (spec, _dir, options) = bare("killed");
    let machine = start(&spec, &options);
    assert!(machine.kill());
    let exit = machine.wait_exit(SECONDS).unwrap();
    assert_eq!((exit.status.signal, exit.reason), (Some(9), None));
    let error = machine.qmp().raw("query-status", Value::Null).unwrap_err();
    assert!(matches!(error, no43_machine::QmpError::Gone { .. }), "{error}");
    assert_eq!(machine.stop(StopLimits::default()).by, StoppedBy::Itself);
}

#[test]
fn a_machine_that_dies_with_us_goes_with_the_thread_that_started_it() {
    let (spec, _dir, mut options) = bare("tied");
    options.dies_with_us = true;
    options.outlives = true;
    let machine = std::thread::spawn(move || start(&spec, &options)).join().unwrap();
    let exit = machine.wait_exit(SECONDS).expect("the kernel killed it");
    assert_eq!(exit.status.signal, Some(9));
}

#[test]
fn the_last_way_out_kills_what_would_not_outlive() {
    let (spec, _dir, options) = bare("own");
    let machine = start(&spec, &options);
    // only this one: other tests of this process have machines of their own
    assert!(no43_machine::process::is_own(machine.pid()));
    assert!(machine.kill());
    assert!(!no43_machine::process::is_own(machine.pid()));
}

#[test]
fn dropping_kills_unless_it_outlives() {
    let (spec, _dir, mut options) = bare("dropped");
    let machine = start(&spec, &options);
    let record = machine.dirs().read_record().unwrap();
    drop(machine);
    assert!(!record.is_running());

    options.outlives = true;
    let machine = start(&spec, &options);
    let record = machine.dirs().read_record().unwrap();
    // A second machine in the same directory would take over its sockets.
    let error = Machine::start(&spec, &options).unwrap_err().to_string();
    assert!(error.contains("still runs there"), "{error}");
    drop(machine);
    assert!(record.is_running());

    let adopted = Machine::adopt(options.dirs.dir()).unwrap();
    assert_eq!((adopted.pid(), adopted.name()), (record.pid, "dropped"));
    assert_eq!(adopted.qmp().raw("query-status", Value::Null).unwrap()["running"], true);
    // Who holds it keeps it.
    assert!(matches!(Machine::adopt(options.dirs.dir()), Err(AdoptError::Silent { .. })));
    let stopped = adopted.stop(StopLimits::at_once());
    assert_eq!((stopped.by, stopped.gone), (StoppedBy::Quit, true));
    assert!(matches!(Machine::adopt(options.dirs.dir()), Err(AdoptError::Dead { .. })));
}

#[test]
fn a_guest_without_an_agent_is_stopped_all_the_same() {
    let (mut spec, _dir, options) = bare("stubborn");
    spec.ports = vec![SerialPort { name: "org.no43.lab".into(), socket: None }];
    let machine = start(&spec, &options);
    assert!(machine.dirs().port_socket("org.no43.lab").exists());
    // SeaBIOS neither has an agent nor looks at the power button.
    let limits = StopLimits { guest: Duration::from_millis(300), ..StopLimits::default() };
    assert_eq!(machine.stop(limits).by, StoppedBy::Quit);
}

#[test]
fn a_stopped_qemu_is_killed() {
    let (spec, _dir, options) = bare("frozen");
    let machine = start(&spec, &options);
    let pid = rustix::process::Pid::from_raw(i32::try_from(machine.pid()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    let short = Duration::from_millis(200);
    let error = machine.qmp().raw_within("query-status", Value::Null, short).unwrap_err();
    assert!(matches!(error, no43_machine::QmpError::TimedOut { .. }), "{error}");
    assert!(machine.kill());
}

#[test]
fn a_reset_is_counted_and_may_be_the_end() {
    let (mut spec, _dir, options) = bare("reset");
    let machine = start(&spec, &options);
    let events = machine.subscribe();
    machine.qmp().raw("system_reset", Value::Null).unwrap();
    assert!(wait_event(&events, SECONDS, |event| (event.name == "RESET").then_some(())).is_some());
    assert_eq!(machine.qmp().resets(), 1);
    drop(machine);

    spec.on_reboot = OnReboot::Exit;
    let machine = start(&spec, &options);
    machine.qmp().raw("system_reset", Value::Null).unwrap();
    assert_eq!(machine.wait_exit(SECONDS).unwrap().reason.as_deref(), Some("host-qmp-system-reset"));
}

/// A boot sector that tells of a panic at pvpanic's port, and then restarts by the port 0xcf9.
fn panicking_boot_sector() -> Vec<u8> {
    let code = [
        0xba, 0x05, 0x05, // mov dx, 0x505
        0xb0, 0x01, // mov al, 1: PVPANIC_PANICKED
        0xee, // out dx, al
        0xba, 0xf9, 0x0c, // mov dx, 0xcf9
        0xb0, 0x06, // mov al, 6: reset the CPU and the board
        0xee, // out dx, al
        0xf4, 0xeb, 0xfd, // hlt; jmp to it
    ];
    let mut sector = vec![0; 1 << 20];
    sector[..code.len()].copy_from_slice(&code);
    sector[510..512].copy_from_slice(&[0x55, 0xaa]);
    sector
}

#[test]
fn a_guest_that_panics_ends_or_goes_on() {
    let (mut spec, dir, options) = bare("panic");
    let disk = dir.path().join("boot.img");
    fs::write(&disk, panicking_boot_sector()).unwrap();
    spec.disks = vec![Disk::raw(&disk)];
    spec.panic_device = true;
    spec.paused = true;
    let action = |machine: &Machine| {
        let events = machine.subscribe();
        machine.cont().unwrap();
        let told = wait_event(&events, SECONDS, |event| {
            (event.name == "GUEST_PANICKED").then(|| event.data["action"].as_str().unwrap_or("").to_owned())
        });
        (told, events)
    };
    let machine = start(&spec, &options);
    assert_eq!(action(&machine).0.as_deref(), Some("poweroff"));
    assert_eq!(machine.wait_exit(SECONDS).unwrap().reason.as_deref(), Some("guest-panic"));
    drop(machine);

    spec.on_panic = OnPanic::GoOn;
    let machine = start(&spec, &options);
    let (told, events) = action(&machine);
    assert_eq!(told.as_deref(), Some("run"));
    assert!(wait_event(&events, SECONDS, |event| (event.name == "RESET").then_some(())).is_some());
    assert!(machine.is_alive());
}

#[test]
fn an_absent_agent_is_a_limit_and_a_death_is_not() {
    let (spec, _dir, options) = bare("silent");
    let machine = start(&spec, &options);
    let mut seen = 0;
    let error = machine.agent().wait_ready(Duration::from_millis(1300), |_| seen += 1).unwrap_err();
    assert!(matches!(error, no43_machine::AgentError::TimedOut { .. }), "{error}");
    assert_eq!(seen, 1);
    let agent = machine.agent();
    let waiting = std::thread::spawn(move || {
        let began = Instant::now();
        (agent.wait_ready(Duration::from_secs(60), |_| {}).unwrap_err(), began.elapsed())
    });
    std::thread::sleep(Duration::from_millis(100));
    machine.quit().unwrap();
    let (error, took) = waiting.join().unwrap();
    assert!(error.is_machine_gone(), "{error}");
    assert!(took < SECONDS, "{took:?}");
}

#[test]
fn another_user_runs_it_without_capabilities() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let (mut spec, _dir, mut options) = bare("nobody");
    spec.display = Display::Vga;
    // "nobody" of every Debian.
    options.run_as = Some(RunAs { uid: 65534, gid: 65534 });
    let machine = start(&spec, &options);
    let status = fs::read_to_string(format!("/proc/{}/status", machine.pid())).unwrap();
    let line = |key: &str| {
        status.lines().find(|line| line.starts_with(key)).unwrap().split_whitespace().nth(1).unwrap()
    };
    assert_eq!((line("Uid:"), line("CapEff:"), line("NoNewPrivs:")), ("65534", "0000000000000000", "1"));
    assert_eq!(line("Seccomp:"), "2");
    assert_eq!(fs::metadata(machine.dirs().dir()).unwrap().uid(), 65534);
    machine.screendump(None).unwrap();
}

#[test]
fn an_event_that_nobody_knows_and_a_typed_command() {
    let (spec, _dir, options) = bare("typed");
    let machine = start(&spec, &options);
    let status = machine.qmp().execute(&qapi::qmp::query_status {}).unwrap();
    assert!(status.running);
    let error = machine.qmp().raw("no-such-command", json!({})).unwrap_err();
    assert!(error.is_refusal() && error.to_string().contains("CommandNotFound"), "{error}");
    // The run directory is private.
    let listing = Command::new("stat").args(["-c", "%a"]).arg(machine.dirs().dir()).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&listing.stdout).trim(), "700");
}
