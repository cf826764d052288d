//! The guest program for Windows, truly run: under Wine, with its registry, services, installer and serial port.
//!
//! Wine is no Windows. What it only pretends (group membership, shutdown, drivers) is named where a case meets it.

mod bell;
mod cards;
mod check;
mod work;

use anyhow::{Context, Result, ensure};
use no43_guest::identity::Identity;
use no43_guest::setup::event::{Cause, Event, Outcome, What};
use no43_guest::setup::{Action, Codes, RegistryValue, RestartWhen, ServiceState, SetupPlan, Task};
use no43_tests::suite::{Case, Images, Order};
use no43_tests::{Scene, Wine, programs};
use rustix::fs::{Mode, OFlags};
use rustix::process::Signal;
use rustix::pty::OpenptFlags;
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
    Case::new("a-driver-is-offered-to-windows-and-the-list-against-others-is-set-and-lifted", cards::driver)
        .needs(WINE),
    Case::new("the-driver-of-a-card-that-is-there-is-changed", cards::card_driver).needs(WINE),
    Case::new("a-failing-action-is-told-with-its-code-and-log", failing).needs(WINE),
    Case::new("events-come-over-the-serial-port", serial).needs(WINE),
    Case::new("a-windows-installer-package-is-installed", msi).needs(&["wine", "wixl"]),
    Case::new("a-failed-setup-tells-the-ends-of-its-logs", setup_failed).needs(WINE),
    Case::new("a-first-start-takes-secrets-from-standard-input-or-a-file-that-it-removes", first_start)
        .needs(WINE),
    Case::new(
        "direct3d-renders-a-scene-that-is-compared-and-wines-card-is-never-taken-for-one",
        work::direct3d,
    )
    .needs(&["wine", "xvfb"]),
    Case::new("parsec-is-installed-for-a-team-and-its-key-stays-nowhere", parsec_team).needs(WINE),
    Case::new(
        "nvidias-libraries-are-called-as-windows-calls-frames-are-read-and-rays-compared",
        work::nvidia,
    )
    .needs(WINE),
    Case::new("the-end-of-another-program-is-told-by-a-port", bell::bell).needs(WINE),
    Case::new("a-check-of-ones-own-runs-in-its-folder-and-ends-in-time", check::check).needs(WINE),
    Case::new("a-report-names-the-card-its-driver-and-its-problem-code", cards::report).needs(WINE),
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

/// Until there is power.
const LONG: &str = r"if exist F:\powered (exit 0) else (echo. > F:\pinging & ping -n 100 127.0.0.1)";

fn power_cut(scene: &Scene) -> Result<()> {
    let wine = Wine::of(scene)?;
    let plan = SetupPlan::new(
        "test/power-cut",
        vec![
            registry("before", RegistryValue::Dword(1)),
            command("long", &["cmd.exe", "/c", LONG]),
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
    // A process that is only just being made is not known to Wine's server, and would outlive its end.
    wait("its program runs", || scene.work().join("pinging").exists())?;
    std::thread::sleep(std::time::Duration::from_secs(1));
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
