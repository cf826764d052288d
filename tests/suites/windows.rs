//! The guest program for Windows, truly run: under Wine, with its registry, services, installer and serial port.
//!
//! Wine is no Windows. What it only pretends (group membership, shutdown, drivers) is named where a case meets it.

use anyhow::{Context, Result, ensure};
use no43_builder::driver::updates;
use no43_guest::identity::Identity;
use no43_guest::setup::event::{Cause, Event, Outcome, What};
use no43_guest::setup::{
    Action, Codes, DriverChange, RegistryValue, RestartWhen, ServiceState, SetupPlan, Task,
};
use no43_guest::work::{WorkCause, WorkOutcome, WorkResult};
use no43_tests::suite::{Case, Images, Order};
use no43_tests::{Scene, Screen, Wine, programs};
use rustix::fs::{Mode, OFlags};
use rustix::process::Signal;
use rustix::pty::OpenptFlags;
use serde_json::json;
use std::fs;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

fn main() -> ExitCode {
    let code = no43_tests::suite::main(CASES, Order::Serial, Images::Own);
    Wine::clean_up();
    code
}

const WINE: &[&str] = &["wine"];

static CASES: &[Case] = &[
    Case::new("the-program-says-who-it-is-also-without-running", identity).needs(WINE),
    Case::new("it-is-small-and-needs-only-what-every-windows-has", frugal).needs(WINE),
    Case::new("a-set-up-plan-is-carried-out-and-told", plan_carried_out).needs(WINE),
    Case::new("a-set-up-plan-survives-a-power-cut-and-goes-on-as-a-service", power_cut).needs(WINE),
    Case::new("the-answer-files-one-command-and-the-error-handler-find-the-set-up-disk", found).needs(WINE),
    Case::new("a-driver-is-offered-to-windows-and-the-list-against-others-is-set-and-lifted", driver)
        .needs(WINE),
    Case::new("the-driver-of-a-card-that-is-there-is-changed", card_driver).needs(WINE),
    Case::new("a-failing-action-is-told-with-its-code-and-log", failing).needs(WINE),
    Case::new("events-come-over-the-serial-port", serial).needs(WINE),
    Case::new("a-windows-installer-package-is-installed", msi).needs(&["wine", "wixl"]),
    Case::new("a-failed-setup-tells-the-ends-of-its-logs", setup_failed).needs(WINE),
    Case::new("a-first-start-takes-secrets-from-standard-input-or-a-file-that-it-removes", first_start)
        .needs(WINE),
    Case::new("direct3d-renders-a-scene-that-is-compared-and-wines-card-is-never-taken-for-one", direct3d)
        .needs(&["wine", "xvfb"]),
    Case::new("parsec-is-installed-for-a-team-and-its-key-stays-nowhere", parsec_team).needs(WINE),
    Case::new("nvidias-libraries-are-called-as-windows-calls-frames-are-read-and-rays-compared", nvidia)
        .needs(WINE),
    Case::new("a-report-names-the-card-its-driver-and-its-problem-code", report).needs(WINE),
];

const KEY: &str = r"HKLM\SOFTWARE\no43 é";

fn identity(scene: &Scene) -> Result<()> {
    let said = Wine::of(scene)?.guest(&["--version", "--json"])?.ok()?.json()?;
    let file = fs::read(programs::windows_guest()?)?;
    let found = Identity::find(&file).context("no mark in the file")?;
    ensure!(serde_json::to_value(&found)? == said, "{found:?} in the file, {said} said");
    ensure!(found == Identity { os: "windows".into(), ..Identity::own() }, "{found:?}");
    Ok(())
}

/// The libraries that a plain Windows 10 has, Windows' own start system (WinPE) included.
const LIBRARIES: &[&str] = &[
    "advapi32.dll",
    "api-ms-win-core-synch-l1-2-0.dll",
    "cfgmgr32.dll",
    "kernel32.dll",
    "msvcrt.dll",
    "netapi32.dll",
    "ntdll.dll",
    "setupapi.dll",
];

fn frugal(_: &Scene) -> Result<()> {
    let file = fs::read(programs::windows_guest()?)?;
    ensure!(file.len() < 1_000_000, "{} bytes, the limit is 1 MB", file.len());
    let mut names = imports(&file).context("the import table cannot be read")?;
    names.iter_mut().for_each(|name| name.make_ascii_lowercase());
    names.sort();
    names.dedup();
    let odd: Vec<_> = names.iter().filter(|name| !LIBRARIES.contains(&name.as_str())).collect();
    ensure!(odd.is_empty() && !names.is_empty(), "libraries {odd:?}; all: {names:?}");
    println!("  no43-guest.exe: {} KB, {} libraries", file.len() / 1000, names.len());
    Ok(())
}

/// Names in the import table of a 64-bit PE file.
fn imports(file: &[u8]) -> Option<Vec<String>> {
    let u16_at = |at: usize| Some(usize::from(u16::from_le_bytes(file.get(at..at + 2)?.try_into().ok()?)));
    let u32_at = |at: usize| Some(u32::from_le_bytes(file.get(at..at + 4)?.try_into().ok()?) as usize);
    let header = u32_at(0x3c)?;
    let (sections, optional) = (u16_at(header + 6)?, u16_at(header + 20)?);
    let table = header + 24 + optional;
    let place = |address: usize| {
        (0..sections).map(|n| table + n * 40).find_map(|row| {
            let (size, start, raw) = (u32_at(row + 8)?, u32_at(row + 12)?, u32_at(row + 20)?);
            (start..start + size).contains(&address).then(|| address - start + raw)
        })
    };
    let first = place(u32_at(header + 24 + 112 + 8)?)?; // second data directory
    let mut names = Vec::new();
    for row in (first..).step_by(20) {
        let Some(name) = u32_at(row + 12).filter(|address| *address != 0) else { break };
        let bytes = file.get(place(name)?..)?;
        names.push(bytes.iter().take_while(|byte| **byte != 0).map(|byte| char::from(*byte)).collect());
    }
    Some(names)
}

fn command(name: &str, words: &[&str]) -> Action {
    let run = words.iter().map(|word| (*word).to_owned()).collect();
    Action::new(name, Task::Command { run, codes: Codes::default() })
}

fn registry(name: &str, value: RegistryValue) -> Action {
    Action::new(name, Task::Registry { key: KEY.into(), name: name.into(), value })
}

/// Puts the plan on the set-up disk, which is `F:\disk`.
fn disk(scene: &Scene, plan: &SetupPlan) -> Result<()> {
    scene.write("disk/plan.json", &plan.to_json())?;
    scene.write("events", "").map(drop)
}

/// Arguments of `setup` with a state folder of the case's own, which is Unicode.
const SETUP: &[&str] =
    &["setup", "--plan", r"F:\disk\plan.json", "--state", r"F:\Élodie's state", "--channel", r"F:\events"];

/// What was told, as the host reads it.
fn events(scene: &Scene) -> Result<Vec<Event>> {
    let bytes = fs::read(scene.work().join("events"))?;
    let found = bytes.split(|byte| *byte == b'\n').filter_map(Event::find);
    found.map(|event| event.map_err(|damaged| anyhow::anyhow!("{damaged:?}"))).collect()
}

fn outcomes(events: &[Event]) -> Vec<(String, Outcome, Option<i64>)> {
    let ended = events.iter().filter_map(|event| match &event.what {
        What::Ended { name, outcome, code, .. } => Some((name.clone(), *outcome, *code)),
        _ => None,
    });
    ended.collect()
}

fn plan_carried_out(scene: &Scene) -> Result<()> {
    let wine = Wine::of(scene)?;
    scene.write("disk/files/in/deep é.txt", "content")?;
    scene.write("disk/secret", "hunter2")?;
    let group = Task::Group { user: "root".into(), sid: "S-1-5-32-544".into() };
    let service = Task::Service { name: "Winmgmt".into(), start: None, state: Some(ServiceState::Running) };
    let profile = r"C:\users\Élodie d'Arc\files";
    let mut plan = SetupPlan::new(
        "test/whole",
        vec![
            registry("number", RegistryValue::Dword(43)),
            registry("again", RegistryValue::Qword(1 << 40)),
            registry("texts", RegistryValue::Strings(vec!["a b".into(), "Élodie".into()])),
            registry("bytes", RegistryValue::Binary("00ff7f".into())),
            registry("path", RegistryValue::ExpandString(r"%SystemRoot%\x".into())),
            registry("number", RegistryValue::Dword(43)),
            registry("never there", RegistryValue::Delete),
            Action::new("files", Task::Copy { from: "files".into(), to: profile.into() }),
            command("quotes", &["cmd.exe", "/c", "echo", "a \"b\" c"]),
            Action::new("group", group),
            Action::new("service", service),
            Action { restart: RestartWhen::Now, ..command("reboots", &["cmd.exe", "/c", "exit 3010"]) },
            Action::new("remove", Task::Remove { path: format!(r"{profile}\in") }),
            Action::new("name", Task::ComputerName { name: "PC-43".into() }),
        ],
    );
    plan.secrets = vec!["secret".into()];
    disk(scene, &plan)?;
    wine.guest(&[SETUP, &["--no-restart"]].concat())?.done()?.must_exit(3)?;
    let copied = wine.drive_c("users/Élodie d'Arc/files/in/deep é.txt");
    ensure!(fs::read_to_string(&copied)? == "content", "{}", copied.display());
    // Two more starts, because the computer's name wants a restart, too. Nobody logs on: it goes on as a service.
    for run in 2..=3 {
        wine.cut_power()?;
        wine.wine(["cmd", "/c", "exit"]).ok()?;
        wait("the service has ended its run", || {
            let ended = |e: &Event| matches!(e.what, What::Restarting { .. } | What::Finished { .. });
            events(scene).is_ok_and(|told| told.iter().any(|event| event.run == run && ended(event)))
        })?;
    }
    ensure!(!copied.exists() && !scene.work().join("disk/secret").exists());
    for (name, value) in [
        ("number", "number REG_DWORD 0x2b"),
        ("bytes", "bytes REG_BINARY 00FF7F"),
        ("path", r"path REG_EXPAND_SZ %SystemRoot%\x"),
    ] {
        let found = wine.registry(KEY, name)?;
        ensure!(found == value, "{found}");
    }
    let events = events(scene)?;
    let (done, unchanged) = (Outcome::Done, Outcome::Unchanged);
    let expected = [done, done, done, done, done, unchanged, unchanged, done, done, done, done];
    let outcomes = outcomes(&events);
    let first: Vec<Outcome> = outcomes.iter().take(expected.len()).map(|(_, outcome, _)| *outcome).collect();
    ensure!(first == expected, "{outcomes:?}");
    ensure!(outcomes[11] == ("reboots".into(), Outcome::RestartNeeded, Some(3010)), "{outcomes:?}");
    let last = events.last().context("nothing was told")?;
    ensure!(matches!(last.what, What::Finished { restarts: 2, refused: 0, .. }) && last.run == 3, "{last:?}");
    // nothing is left that would start it again
    ensure!(wine.registry(r"HKLM\SYSTEM\CurrentControlSet\Services\no43-setup", "Start")? == "not there");
    let log = fs::read_to_string(scene.work().join("Élodie's state/logs/quotes.log"))?;
    ensure!(log.contains(r#"a \"b\" c"#) || log.contains("a \"b\" c"), "{log}");
    Ok(())
}

fn power_cut(scene: &Scene) -> Result<()> {
    let wine = Wine::of(scene)?;
    let plan = SetupPlan::new(
        "test/power-cut",
        vec![
            registry("before", RegistryValue::Dword(1)),
            command("long", &["cmd.exe", "/c", r"if exist F:\powered (exit 0) else (ping -n 100 127.0.0.1)"]),
            Action::new("copy", Task::Copy { from: "source".into(), to: r"C:\copied".into() }),
            registry("after", RegistryValue::Dword(1)),
        ],
    );
    disk(scene, &plan)?;
    fs::rename(scene.work().join("disk/plan.json"), scene.work().join("disk/another name.json"))?;
    scene.write("disk/source", "content")?;
    let words: Vec<_> = SETUP.iter().map(|word| word.replace("plan.json", "another name.json")).collect();
    let mut running = wine.start_guest(&words.iter().map(String::as_str).collect::<Vec<_>>())?;
    running.wait_until("the long action begins", 60, |r| r.stderr().contains(r#""begun","action":1"#))?;
    running.signal(Signal::KILL)?;
    wine.cut_power()?;
    drop(running);
    scene.write("powered", "")?;
    // The set-up disk has another letter now.
    fs::create_dir(scene.work().join("g"))?;
    fs::rename(scene.work().join("disk"), scene.work().join("g/disk"))?;
    wine.map_drive("g:", &scene.work().join("g"))?;
    // Wine's services start with the first program, as Windows' own do with the machine.
    wine.wine(["cmd", "/c", "exit"]).ok()?;
    let finished = || events(scene).is_ok_and(|e| e.iter().any(|e| matches!(e.what, What::Finished { .. })));
    wait("the service has finished the plan", finished)?;
    let events = events(scene)?;
    let started = events.iter().rfind(|e| matches!(e.what, What::Started { .. })).context("no start")?;
    ensure!(started.run == 2 && matches!(started.what, What::Started { from: 1, .. }), "{started:?}");
    ensure!(wine.registry(KEY, "after")? == "after REG_DWORD 0x1");
    Ok(())
}

fn found(scene: &Scene) -> Result<()> {
    let wine = Wine::of(scene)?;
    let line = no43_guest::setup::first_logon_command("no43");
    fs::create_dir(scene.work().join("no43"))?;
    fs::copy(programs::windows_guest()?, scene.work().join("no43/no43-guest.exe"))?;
    let plan = SetupPlan::new("test/found", vec![registry("found", RegistryValue::Dword(1))]);
    scene.write("no43/plan.json", &plan.to_json())?;
    let state = wine.drive_c("ProgramData/no43");
    let _ = fs::remove_dir_all(&state); // of a case before
    wine.wine(line.split(' ')).ok()?.must_say(&[r#""event":"finished""#])?;
    ensure!(wine.registry(KEY, "found")? == "found REG_DWORD 0x1");
    // A second logon changes nothing, and a failed Setup finds the same disk.
    wine.wine(line.split(' ')).ok()?.must_say(&[r#""run":2"#, r#""event":"finished""#])?;
    scene.write("ErrorHandler.cmd", &no43_guest::setup::error_handler_cmd("no43"))?;
    wine.wine(["cmd.exe", "/c", r"F:\ErrorHandler.cmd"]).ok()?.must_say(&[r#""event":"setup-failed""#])?;
    fs::remove_dir_all(&state)?;
    Ok(())
}

fn wait(what: &str, holds: impl Fn() -> bool) -> Result<()> {
    let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !holds() {
        ensure!(std::time::Instant::now() < end, "60 s without: {what}");
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    Ok(())
}

const CLASS: &str = r"HKLM\SYSTEM\CurrentControlSet\Control\Class\{4D36E968-E325-11CE-BFC1-08002BE10318}";

const INF: &str = "[Version]\r\nSignature=\"$Windows NT$\"\r\nClass=Display\r\nClassGUID={4D36E968-E325-11CE-BFC1-08002BE10318}\r\n\
    Provider=\"NVIDIA\"\r\nDriverVer=03/17/2021,27.21.14.6611\r\n[Manufacturer]\r\n\"N\"=NV,NTamd64\r\n[NV.NTamd64]\r\n\
    \"RTX 3070\"=Section001,PCI\\VEN_10DE&DEV_2484\r\n[Section001]\r\n";

/// Wine's SetupAPI and newdev are called for real; what Wine answers is told, and never taken for what Windows would.
fn card_driver(scene: &Scene) -> Result<()> {
    let wine = Wine::of(scene)?;
    put_card(scene, &wine)?;
    scene.write("disk/kept/nv_dispi.inf", INF)?;
    let change = |change: DriverChange, address: &str| -> Result<Option<What>> {
        let _ = fs::remove_dir_all(scene.work().join("Élodie's state"));
        let task = Task::CardDriver { functions: vec![address.into()], change };
        let plan =
            SetupPlan { seal: false, ..SetupPlan::new("test/change", vec![Action::new("change", task)]) };
        disk(scene, &plan)?;
        wine.guest(&[SETUP, &["--no-restart"]].concat())?.done()?;
        Ok(events(scene)?.pop().map(|event| event.what))
    };
    let failed = |what: &Option<What>, words: &str| match what {
        Some(What::Failed { text, .. }) if text.contains(words) => Ok(()),
        what => Err(anyhow::anyhow!("not '{words}': {what:?}")),
    };
    let card = "0000:01:00.0";
    wine.wine(["reg", "query", &format!(r"{CLASS}\0001")]).done()?.must_exit(1)?;
    let used = change(DriverChange::Use("kept".into()), card)?;
    ensure!(matches!(used, Some(What::Finished { refused: 0, .. })), "{used:?}");
    // Wine's installation ends with the driver's key, the second beside its own adapter's
    wine.wine(["reg", "query", &format!(r"{CLASS}\0001")]).ok()?;
    failed(&change(DriverChange::Restart, "0000:02:00.0")?, "nothing is at 0000:02:00.0")?;
    scene.write("disk/kept/other.inf", INF)?;
    failed(&change(DriverChange::Use("kept".into()), card)?, "more than one INF file")?;
    put_card(scene, &wine)?; // Wine's services have forgotten it meanwhile
    // Wine restarts no device, and has no way back to an earlier driver: its stub of that ends the program.
    failed(&change(DriverChange::Restart, card)?, "restarting 0000:01:00.0")?;
    let ended = change(DriverChange::RollBack, card)?;
    ensure!(!matches!(ended, Some(What::Finished { .. })), "{ended:?}");
    wine.wine(["reg", "delete", &DEVICE.replace("HKEY_LOCAL_MACHINE", "HKLM"), "/f"]).done()?;
    Ok(())
}

/// Wine has no `pnputil`: the plan comes to it and says so. The policy is registry, and real.
fn driver(scene: &Scene) -> Result<()> {
    let wine = Wine::of(scene)?;
    scene.write("disk/driver/Display.Driver/nv_dispi.inf", INF)?;
    let task = Task::Driver { inf: "driver/Display.Driver".into(), install: false };
    let staged = SetupPlan {
        seal: false,
        ..SetupPlan::new("windows10/driver 466.11", vec![Action::new("driver 466.11", task)])
    };
    disk(scene, &staged)?;
    let run = wine.guest(SETUP)?.done()?;
    let told = events(scene)?;
    println!("  pnputil under Wine: exit code {:?}, {:?}", run.code, told.last().map(|event| &event.what));
    let as_here = told.iter().any(|event| match &event.what {
        What::Failed { text, .. } => text.contains("pnputil.exe"),
        What::Ended { name, .. } => name == "driver 466.11",
        _ => false,
    });
    ensure!(as_here, "neither staged nor told that there is no pnputil: {told:?}");
    ensure!(
        told.iter().any(|event| matches!(&event.what, What::Begun { name, .. } if name == "driver 466.11"))
    );

    let ids = ["10de:2484", "10de:2504"].map(|id| id.parse()).into_iter().collect::<Result<Vec<_>, _>>()?;
    const KEY: &str = r"HKLM\SOFTWARE\Policies\Microsoft\Windows\DeviceInstall\Restrictions";
    let lift = SetupPlan { seal: false, ..SetupPlan::new("test/lift", vec![updates::lift()]) };
    let (none, both) = (json!([]), json!([r"PCI\VEN_10DE&DEV_2484", r"PCI\VEN_10DE&DEV_2504"]));
    for (plan, on, first, reported) in [
        (updates::lock(&ids), "0x1", r"PCI\VEN_10DE&DEV_2484", &both),
        (lift, "not there", r"PCI\VEN_10DE&DEV_2484", &none),
        (updates::lock(&ids[1..]), "0x1", r"PCI\VEN_10DE&DEV_2504", &json!([r"PCI\VEN_10DE&DEV_2504"])),
        // lifts it as unlock does, and then looks for devices
        (updates::retry(), "0x0", "not there", &none),
    ] {
        let _ = fs::remove_dir_all(scene.work().join("Élodie's state"));
        disk(scene, &plan)?;
        wine.guest(SETUP)?.done()?;
        let told = events(scene)?;
        let last = told.last().map(|event| &event.what);
        // Wine refuses the look for devices behind the registry's part, and that must be told.
        let refused = matches!(last, Some(What::Failed { name, text, .. }) if plan.id == "driver/retry"
            && name == "looks for devices again" && text.contains("configuration manager"));
        ensure!(refused || matches!(last, Some(What::Finished { refused: 0, .. })), "{last:?}");
        let value = wine.registry(KEY, "DenyDeviceIDs")?;
        ensure!(value.contains(on), "the switch is {value}");
        let list =
            wine.registry(&format!(r"{KEY}\DenyDeviceIDs"), "1").unwrap_or_else(|error| format!("{error:#}"));
        ensure!(list.contains(first), "the first entry is {list}");
        let report = wine.guest(&["report", "--json"])?.ok()?.json()?;
        ensure!(report["windows"]["install_denied"] == *reported, "{}", report["windows"]);
    }
    Ok(())
}

fn failing(scene: &Scene) -> Result<()> {
    let wine = Wine::of(scene)?;
    let table: &[(Task, Cause, Option<i64>)] = &[
        (command("", &["cmd.exe", "/c", "echo oh nö& exit 77"]).task, Cause::ExitCode, Some(77)),
        (command("", &["no-such-program.exe"]).task, Cause::NotStarted, None),
        (
            Task::Service { name: "NoSuchService".into(), start: None, state: Some(ServiceState::Running) },
            Cause::NotSo,
            None,
        ),
        (Task::Msi { package: "not there.msi".into(), properties: vec![] }, Cause::Source, None),
    ];
    for (task, cause, code) in table {
        let _ = fs::remove_dir_all(scene.work().join("Élodie's state"));
        disk(scene, &SetupPlan::new("test/fails", vec![Action::new("it", task.clone())]))?;
        wine.guest(SETUP)?.done()?.must_exit(1)?;
        let events = events(scene)?;
        let last = events.last().context("nothing was told")?;
        let What::Failed { action: Some(0), cause: told, code: number, log, .. } = &last.what else {
            anyhow::bail!("{last:?}");
        };
        ensure!(told == cause && (code.is_none() || number == code), "{last:?}");
        ensure!(*cause != Cause::ExitCode || log.concat().contains("oh n"), "{last:?}");
    }
    Ok(())
}

/// A serial port whose other end is ours.
fn port() -> Result<(OwnedFd, PathBuf)> {
    let master = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
    rustix::pty::grantpt(&master)?;
    rustix::pty::unlockpt(&master)?;
    let slave = PathBuf::from(rustix::pty::ptsname(&master, Vec::new())?.into_string()?);
    let flags = rustix::fs::fcntl_getfl(&master)?;
    rustix::fs::fcntl_setfl(&master, flags | OFlags::NONBLOCK)?;
    // held open, so that what was written is there when the program has ended
    let held = rustix::fs::open(&slave, OFlags::RDWR | OFlags::NOCTTY, Mode::empty())?;
    let mut raw = rustix::termios::tcgetattr(&held)?;
    raw.make_raw();
    rustix::termios::tcsetattr(&held, rustix::termios::OptionalActions::Now, &raw)?;
    std::mem::forget(held); // until the test program ends
    Ok((master, slave))
}

fn serial(scene: &Scene) -> Result<()> {
    let wine = Wine::of(scene)?;
    let ((first, one), (second, two)) = (port()?, port()?);
    wine.map_ports(&[("COM1", &one), ("COM2", &two)])?;
    disk(scene, &SetupPlan::new("test/serial", vec![command("é", &["cmd.exe", "/c", "exit"])]))?;
    // The ordinary channels, one of which is not there; then two of our choice.
    let plain = ["setup", "--plan", r"F:\disk\plan.json", "--state", r"F:\one"];
    wine.guest(&plain)?.ok()?;
    let told = read_events(first)?;
    ensure!(told.len() == 4 && matches!(told[3].what, What::Finished { .. }), "{told:?}");
    ensure!(matches!(&told[1].what, What::Begun { name, .. } if name == "é"), "{told:?}");
    let chosen = [
        "setup",
        "--plan",
        r"F:\disk\plan.json",
        "--state",
        r"F:\two",
        "--channel",
        r"\\.\COM2",
        "--channel",
        r"\\.\COM9",
    ];
    wine.guest(&chosen)?.ok()?;
    ensure!(read_events(second)?.len() == 4);
    Ok(())
}

fn read_events(port: OwnedFd) -> Result<Vec<Event>> {
    let mut bytes = Vec::new();
    let _ = fs::File::from(port).read_to_end(&mut bytes); // ends with "try again" when all is read
    let lines = bytes.split(|byte| *byte == b'\n').filter_map(Event::find);
    lines.map(|event| event.map_err(|damaged| anyhow::anyhow!("{damaged:?}"))).collect()
}

/// A package that sets one value of the registry.
const PACKAGE: &str = r#"<?xml version="1.0" encoding="utf-8"?>
<Wix xmlns="http://schemas.microsoft.com/wix/2006/wi">
  <Product Id="*" UpgradeCode="12345678-1234-1234-1234-111111111143" Name="Test" Version="1.0.0" Manufacturer="no43" Language="1033">
    <Package InstallerVersion="200" Compressed="yes" InstallScope="perMachine"/>
    <Media Id="1" Cabinet="test.cab" EmbedCab="yes"/>
    <Property Id="WORD" Value="unset"/>
    <Directory Id="TARGETDIR" Name="SourceDir">
      <Component Id="Value" Win64="yes" Guid="12345678-1234-1234-1234-222222222243">
        <RegistryKey Root="HKLM" Key="SOFTWARE\no43-msi"><RegistryValue Type="string" Name="word" Value="[WORD]" KeyPath="yes"/></RegistryKey>
      </Component>
    </Directory>
    <Feature Id="All" Level="1"><ComponentRef Id="Value"/></Feature>
  </Product>
</Wix>
"#;

fn msi(scene: &Scene) -> Result<()> {
    let wine = Wine::of(scene)?;
    scene.write("test.wxs", PACKAGE)?;
    scene.write("disk/broken.msi", "no package")?;
    scene.run("wixl").args(["-a", "x64", "-o", "disk/a package.msi", "test.wxs"]).ok()?;
    let package = |name: &str| {
        let properties = vec!["WORD=said aloud, twice".to_owned()];
        Action::new(name, Task::Msi { package: name.to_owned(), properties })
    };
    disk(scene, &SetupPlan::new("test/msi", vec![package("a package.msi"), package("broken.msi")]))?;
    wine.guest(SETUP)?.done()?.must_exit(1)?;
    let events = events(scene)?;
    ensure!(outcomes(&events) == [("a package.msi".into(), Outcome::Done, Some(0))], "{events:?}");
    let last = events.last().context("nothing was told")?;
    ensure!(
        matches!(&last.what, What::Failed { cause: Cause::ExitCode, code: Some(code), .. } if *code != 0),
        "{last:?}"
    );
    let value = wine.registry(r"HKLM\SOFTWARE\no43-msi", "word")?;
    ensure!(value == "word REG_SZ said aloud, twice", "{value}");
    Ok(())
}

fn setup_failed(scene: &Scene) -> Result<()> {
    let wine = Wine::of(scene)?;
    scene.write("events", "")?;
    let panther = wine.drive_c("windows/Panther");
    fs::create_dir_all(&panther)?;
    let text: Vec<u8> =
        "\u{feff}2026, Error no licence é\r\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    fs::write(panther.join("setuperr.log"), text)?;
    wine.guest(&["setup-failed", "--channel", r"F:\events"])?.ok()?;
    let events = events(scene)?;
    let Some(What::SetupFailed { logs }) = events.first().map(|event| &event.what) else {
        anyhow::bail!("{events:?}");
    };
    ensure!(logs.len() == 1 && logs[0].lines == ["2026, Error no licence é"], "{logs:?}");
    fs::remove_dir_all(panther)?;
    Ok(())
}

fn first_start(scene: &Scene) -> Result<()> {
    let wine = Wine::of(scene)?;
    let request = r#"{"version":1,"computer_name":"PC-1","autologon":false}"#;
    let file = scene.write("request.json", request)?;
    let answer = wine.guest(&["first-start", "--from", r"F:\request.json"])?.ok()?.json()?;
    ensure!(!file.exists(), "such a file may hold a password");
    let steps = answer["steps"].as_array().context("no steps")?;
    let said: Vec<_> = steps.iter().map(|s| (s["field"].as_str().unwrap_or(""), s["done"] == true)).collect();
    ensure!(said == [("computer_name", true), ("autologon", true)], "{answer}");
    ensure!(answer["restart_needed"] == true, "{answer}");
    let logon =
        |name: &str| wine.registry(r"HKLM\SOFTWARE\Microsoft\Windows NT\CurrentVersion\Winlogon", name);
    ensure!(
        logon("AutoAdminLogon")? == "AutoAdminLogon REG_SZ 0" && logon("DefaultPassword")? == "not there"
    );
    let file = scene.write("request.json", r#"{"version":1,"password":"hunter2"}"#)?;
    let seen = wine.guest(&["first-start", "--from", r"F:\request.json"])?.done()?.must_exit(1)?;
    seen.must_say(&["a password without the user"])?.must_not_say(&["hunter2"])?;
    ensure!(!file.exists());
    // Standard input is empty here: that is no request.
    wine.guest(&["first-start"])?.done()?.must_exit(1)?.must_say(&["no JSON"]).map(drop)
}

/// A stand-in for Parsec's installer, which a compiler makes here: it writes down what it was called with, prints it, and
/// leaves a service that runs, unless it is told to fail.
fn parsec_team(scene: &Scene) -> Result<()> {
    let wine = Wine::of(scene)?;
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("suites/windows/installer.c");
    let installer = wine.drive_c("Program Files/no43/parsec-windows.exe");
    let request = |key: &str| {
        let team = format!(r#"{{"version":1,"parsec_team":{{"id":"1or58","key":"{key}"}}}}"#);
        scene.write("request.json", &team)?;
        wine.guest(&["first-start", "--from", r"F:\request.json"])?.done()
    };
    let none = request("tapi_hunter2")?.must_exit(1)?;
    none.must_say(&["parsec_team", "build it with remote.parsec-team"])?.must_not_say(&["hunter2"])?;
    fs::create_dir_all(installer.parent().context("a folder")?)?;
    let make = || {
        let compiler = scene.run("x86_64-w64-mingw32-gcc").args(["-O1", "-s", "-o"]);
        compiler.args([&installer, &source, Path::new("-ladvapi32")]).ok()
    };
    make()?;
    let failed = request("tapi_fail")?.must_exit(1)?;
    failed.must_say(&["parsec-windows.exe ended with 2"])?.must_not_say(&["tapi_fail"])?;
    ensure!(installer.is_file(), "the installer is gone before it did its work");
    let answer = request("tapi_hunter2")?.must_exit(0)?.must_not_say(&["hunter2"])?.json()?;
    ensure!(answer["steps"][0]["field"] == "parsec_team" && answer["steps"][0]["done"] == true, "{answer}");
    ensure!(!installer.exists(), "the installer stays");
    let called = fs::read_to_string(wine.drive_c("called.txt"))?;
    let words = "/silent /percomputer /norun /vdd /team_id=1or58 /team_computer_key=tapi_hunter2";
    ensure!(called.trim_end().ends_with(words), "{called}");
    // only the installer's own note has the key
    let left = scene.run("grep").args(["-rl", "hunter2"]).args([wine.drive_c(".."), scene.work()]).done()?;
    let left: Vec<&str> = left.stdout.lines().collect();
    ensure!(left.len() == 1 && left[0].ends_with("called.txt"), "the key is in {left:?}");
    let service = wine.registry(r"HKLM\SYSTEM\CurrentControlSet\Services\Parsec", "Start")?;
    ensure!(service.ends_with("0x2"), "{service}");
    wine.wine(["sc", "stop", "Parsec"]).done()?;
    wine.wine(["sc", "delete", "Parsec"]).done()?;
    Ok(())
}

/// A device as Windows' registry holds it; Wine makes a node of it.
const DEVICE: &str =
    r"HKEY_LOCAL_MACHINE\SYSTEM\CurrentControlSet\Enum\PCI\VEN_10DE&DEV_2484&SUBSYS_146B10DE&REV_A1\4&1&0&08";

/// Categories of devpkey.h and the numbers in them, with type (devpropdef.h) and value.
fn properties() -> Vec<(&'static str, u32, u32, Vec<u8>)> {
    let text = |text: &str| text.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
    let number = |number: u32| number.to_le_bytes().to_vec();
    let (device, driver) =
        ("{A45C254E-DF1C-4EFD-8020-67D146A850E0}", "{A8B865DD-2E3D-4094-AD97-E593A70C75D6}");
    vec![
        (device, 3, 0x2012, text("PCI\\VEN_10DE&DEV_2484&SUBSYS_146B10DE&REV_A1\0")),
        (device, 4, 0x2012, text("PCI\\VEN_10DE&CC_030000\0PCI\\CC_030000\0")),
        (device, 6, 0x12, text("nvlddmkm")),
        (device, 23, 7, number(1)),
        (device, 30, 7, number(0)),
        ("{4340A6C5-93FA-4706-972C-7B648008A5A7}", 3, 6, number(43)),
        ("{4340A6C5-93FA-4706-972C-7B648008A5A7}", 12, 0x18, number(0xC000_009A)),
        (driver, 3, 0x12, text("32.0.15.6094")),
        (driver, 5, 0x12, text("oem4.inf")),
    ]
}

/// What is done for a card of NVIDIA's.
const DEFAULT_WORK: &[&str] = &[
    "cuda-checksum",
    "cuda-memory",
    "cuda-copy",
    "vulkan-compute",
    "nvenc-frame",
    "d3d11-scene",
    "d3d12-scene",
];

/// Wine's Direct3D, on Mesa's OpenGL and Vulkan: both render on the processor, and Wine names its adapter after some card.
fn direct3d(scene: &Scene) -> Result<()> {
    let wine = Wine::of(scene)?;
    wine.cut_power()?; // what runs already knows no screen
    let screen = Screen::start()?;
    let work = |words: &[&str]| -> Result<Vec<WorkResult>> {
        let both = ["work", "--json", "--only", "d3d11-scene", "--only", "d3d12-scene"];
        let seen = screen.of(wine.guest(&[&both, words].concat())?).ok()?;
        Ok(no43_guest::work::parse_work(seen.stdout.as_bytes())?.results)
    };
    let mut shown = None;
    for seed in ["43", "4294967295"] {
        for result in work(&["--adapter", "software", "--seed", seed])? {
            let metric = |name: &str| result.metrics.iter().find(|m| m.name == name).map_or(0, |m| m.value);
            let (pixels, off) = (metric("pixels"), metric("largest-difference"));
            println!("  {}: {} ms, {pixels} pixels, off by {off} at most", result.name, result.duration_ms);
            ensure!(result.outcome == WorkOutcome::Passed && pixels > 60_000 && off <= 3, "{result:?}");
            let adapter = result.adapter.context("no adapter")?;
            ensure!(adapter.software == Some(true) && adapter.name.ends_with("(by Wine)"), "{adapter:?}");
            shown = adapter.id;
        }
    }
    desktop(scene, &wine, &screen)?;
    // Asked for as the card that it says it is.
    let results = work(&["--adapter", &shown.context("no id")?])?;
    let soft = |r: &WorkResult| (r.outcome, r.cause) == (WorkOutcome::Skipped, Some(WorkCause::OnlySoftware));
    ensure!(results.len() == 2 && results.iter().all(soft), "{results:?}");
    Ok(())
}

/// Libraries that the test compiles, in the system's folder, where the program looks for them first.
const NVIDIA: &[(&str, &str)] =
    &[("cuda.c", "nvcuda.dll"), ("nvenc.c", "nvEncodeAPI64.dll"), ("optix.c", "nvoptix.dll")];

fn nvidia(scene: &Scene) -> Result<()> {
    let wine = Wine::of(scene)?;
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../guest/tests/fake");
    for (source, library) in NVIDIA {
        let compiler = scene.run("x86_64-w64-mingw32-gcc").args(["-shared", "-O1", "-s", "-o"]);
        compiler.args([wine.drive_c("windows/system32").join(library), sources.join(source)]).ok()?;
    }
    let work = |name: &str, defect: &str| -> Result<WorkResult> {
        let words = ["work", "--json", "--adapter", "10de:2484@0000:01:00.0", "--only", name];
        let run = wine.guest(&words)?.env("FAKE_ADDRESS", "0000:01:00.0");
        let run = run.env("FAKE_NVENC", defect).env("FAKE_OPTIX", defect);
        let mut results = no43_guest::work::parse_work(run.done()?.stdout.as_bytes())?.results;
        results.pop().context("no result")
    };
    for name in ["cuda-checksum", "nvenc-frame", "optix-trace"] {
        let result = work(name, "nothing")?;
        println!("  {name}: {} ms", result.duration_ms);
        ensure!(result.outcome == WorkOutcome::Passed, "{result:?}");
        ensure!(result.adapter.is_some_and(|adapter| adapter.name == "Fake GeForce"), "{name}");
    }
    for (name, defect) in [("nvenc-frame", "frozen"), ("optix-trace", "first")] {
        let result = work(name, defect)?;
        ensure!(result.cause == Some(WorkCause::WrongAnswer), "{result:?}");
    }
    driver_store(&wine, &|| work("optix-trace", "nothing"))?;
    for (_, library) in &NVIDIA[..2] {
        fs::remove_file(wine.drive_c("windows/system32").join(library))?; // the prefix is the suite's
    }
    Ok(())
}

/// Drivers of today keep OptiX in a folder of their own, which the registry tells by the library of OpenGL.
fn driver_store(wine: &Wine<'_>, trace: &dyn Fn() -> Result<WorkResult>) -> Result<()> {
    let folder = "windows/system32/DriverStore/FileRepository/nv_no43.inf_amd64_1";
    fs::create_dir_all(wine.drive_c(folder))?;
    let library = wine.drive_c(folder).join("nvoptix.dll");
    fs::rename(wine.drive_c("windows/system32/nvoptix.dll"), &library)?;
    let nowhere = trace()?;
    ensure!(nowhere.cause == Some(WorkCause::NoLibrary), "{nowhere:?}");
    let (guid, number) = ("{4D36E968-E325-11CE-BFC1-08002BE10318}", "0043");
    let device = DEVICE.replace("HKEY_LOCAL_MACHINE", "HKLM");
    let class = format!(r"HKLM\SYSTEM\CurrentControlSet\Control\Class\{guid}\{number}");
    let opengl = format!(r"C:\{}\nvoglv64.dll", folder.replace('/', r"\"));
    for (key, name, kind, value) in [
        (&device, "ClassGUID", "REG_SZ", guid),
        (&device, "Driver", "REG_SZ", &format!(r"{guid}\{number}")),
        (&class, "OpenGLDriverName", "REG_MULTI_SZ", &opengl),
    ] {
        wine.wine(["reg", "add", key, "/v", name, "/t", kind, "/d", value, "/f"]).ok()?;
    }
    let found = trace()?;
    println!("  optix-trace from the driver store: {} ms", found.duration_ms);
    ensure!(found.outcome == WorkOutcome::Passed, "{found:?}");
    fs::remove_file(library)?;
    for key in [&device, &class] {
        wine.wine(["reg", "delete", key, "/f"]).ok()?;
    }
    Ok(())
}

/// The screen's woven ground as a picture; and what is said where the picture has to be taken in another session.
fn desktop(scene: &Scene, wine: &Wine<'_>, screen: &Screen) -> Result<()> {
    let work = |words: &[&str]| -> Result<WorkResult> {
        let all = ["work", "--json", "--adapter", "software", "--only", "desktop-picture", "--out", r"F:\"];
        let seen = screen.of(wine.guest(&[&all, words].concat())?).done()?;
        let mut results = no43_guest::work::parse_work(seen.stdout.as_bytes())?.results;
        results.pop().with_context(|| format!("no result: {seen:?}"))
    };
    let result = work(&[])?;
    println!("  {}: {} ms, {:?}", result.name, result.duration_ms, result.metrics);
    ensure!(
        result.outcome == WorkOutcome::Passed && result.picture.as_deref() == Some("desktop.png"),
        "{result:?}"
    );
    let picture = image::open(scene.work().join("desktop.png"))?.into_rgb8();
    let mut shades = picture.pixels().map(|pixel| pixel.0).collect::<Vec<_>>();
    shades.sort_unstable();
    shades.dedup();
    ensure!(picture.dimensions() == (640, 480) && shades == [[0; 3], [255; 3]], "{shades:?}");
    // Wine's scheduler takes the task, and never runs any.
    let handed = work(&["--hand-over", "--limit-seconds", "4"])?;
    println!("  handed over: {:?}", handed.reason);
    ensure!((handed.outcome, handed.cause) == (WorkOutcome::Failed, Some(WorkCause::TimedOut)), "{handed:?}");
    let left = fs::read_dir(wine.drive_c("ProgramData/no43"))?.flatten().map(|entry| entry.file_name());
    let left: Vec<_> = left.filter(|name| name.to_string_lossy().starts_with("no43-hand-over")).collect();
    ensure!(left.is_empty(), "{left:?} is left of a task");
    Ok(())
}

/// Puts a card with code 43 into Wine's registry, where its SetupAPI finds it.
fn put_card(scene: &Scene, wine: &Wine<'_>) -> Result<()> {
    let mut file = format!("Windows Registry Editor Version 5.00\r\n\r\n[{DEVICE}]\r\n");
    file += "\"ClassGUID\"=\"{4D36E968-E325-11CE-BFC1-08002BE10318}\"\r\n";
    // the first property once more, where Wine looks for devices that an INF is for; bytes, because the file is not UTF-16
    let ids: Vec<String> = b"PCI\\VEN_10DE&DEV_2484&SUBSYS_146B10DE&REV_A1\0PCI\\VEN_10DE&DEV_2484\0\0"
        .map(|byte| format!("{byte:02x}"))
        .into();
    file += &format!("\"HardwareID\"=hex(7):{}\r\n", ids.join(","));
    for (category, number, kind, bytes) in properties() {
        let hex: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        file += &format!(
            "\r\n[{DEVICE}\\Properties\\{category}\\{number:04X}]\r\n@=hex(ffff{kind:04x}):{}\r\n",
            hex.join(",")
        );
    }
    file += &format!(
        "\r\n[{DEVICE}\\Device Parameters\\Interrupt Management\\MessageSignaledInterruptProperties]\r\n\
         \"MSISupported\"=dword:00000001\r\n"
    );
    scene.write("card.reg", &file)?;
    wine.wine(["regedit", "/S", r"F:\card.reg"]).ok().map(drop)
}

fn report(scene: &Scene) -> Result<()> {
    let wine = Wine::of(scene)?;
    put_card(scene, &wine)?;
    let seen = wine.guest(&["report", "--json"])?.ok()?;
    println!("  report: {} ms with the start of Wine", seen.time.as_millis());
    let report = no43_guest::protocol::parse_report(seen.stdout.as_bytes())?;
    let card = report.function("0000:01:00.0").with_context(|| format!("no card in {}", seen.stdout))?;
    ensure!(
        card.id.as_deref() == Some("10de:2484") && card.subsystem.as_deref() == Some("10de:146b"),
        "{card:?}"
    );
    ensure!(
        card.class.as_deref() == Some("030000") && card.driver.as_deref() == Some("nvlddmkm"),
        "{card:?}"
    );
    ensure!(card.driver_version.as_deref() == Some("32.0.15.6094") && card.msi == Some(true), "{card:?}");
    let node = card.node.as_ref().context("no node")?;
    ensure!(node.problem == Some(43) && node.problem_status == Some(0xC000_009A), "{node:?}");
    ensure!(node.inf.as_deref() == Some("oem4.inf") && node.flags.is_some(), "{node:?}");
    ensure!(report.machine.is_some_and(|machine| machine.hypervisor_present.is_some()));
    ensure!(
        report.windows.is_some_and(|windows| windows.build.is_some() && windows.vbs_configured.is_none())
    );
    ensure!(report.unknown.iter().any(|text| text.contains("UEFISecureBootEnabled")), "{:?}", report.unknown);
    let log = report.unknown.iter().find(|text| text.starts_with("event log: "));
    println!(
        "  Wine's event log: {} entries, {}",
        report.events.len(),
        log.map_or("no word", String::as_str)
    );
    ensure!(report.events.is_empty() && log.is_none_or(|text| text.len() > 15), "{:?}", report.events);
    // The card has NVIDIA's driver, whose libraries Wine does not have.
    let unknown = &report.unknown;
    ensure!(report.nvml.is_none() && unknown.iter().any(|t| t.starts_with("NVML: nvml.dll")), "{unknown:?}");
    let told = |text: &String| text.starts_with("nvidia-smi: its process did not start");
    ensure!(report.nvidia_smi.is_none() && unknown.iter().any(told), "{unknown:?}");
    let text = wine.guest(&["report"])?.ok()?;
    text.must_say(&[
        "0000:01:00.0 10de:2484 class 030000: nvlddmkm 32.0.15.6094, code 43 (FAILED_POST_START)",
    ])?;
    wine.wine(["reg", "delete", &DEVICE.replace("HKEY_LOCAL_MACHINE", "HKLM"), "/f"]).ok()?;
    // By what is told: Wine's services forget such a device after a while anyway.
    let seen = wine.guest(&["work", "--json", "--adapter", "10de:2484@0000:01:00.0"])?.ok()?;
    let work = no43_guest::work::parse_work(seen.stdout.as_bytes())?;
    let names: Vec<_> = work.results.iter().map(|result| result.name.as_str()).collect();
    ensure!(names == DEFAULT_WORK, "{names:?}");
    let skipped = work.results.iter().all(|r| r.outcome == WorkOutcome::Skipped && r.reason.is_some());
    ensure!(skipped && work.results[0].cause == Some(WorkCause::NoLibrary), "{:?}", work.results);
    Ok(())
}
