//! What the program does for a card: drivers, the list against others, and the report.

use anyhow::{Context, Result, ensure};
use no43_builder::driver::updates;
use no43_guest::setup::event::What;
use no43_guest::setup::{Action, DriverChange, SetupPlan, Task};
use no43_guest::work::{WorkCause, WorkOutcome};
use no43_tests::{Scene, Wine};
use serde_json::json;
use std::fs;

use crate::work::DEFAULT_WORK;
use crate::{SETUP, disk, events};

const CLASS: &str = r"HKLM\SYSTEM\CurrentControlSet\Control\Class\{4D36E968-E325-11CE-BFC1-08002BE10318}";

const INF: &str = "[Version]\r\nSignature=\"$Windows NT$\"\r\nClass=Display\r\nClassGUID={4D36E968-E325-11CE-BFC1-08002BE10318}\r\n\
    Provider=\"NVIDIA\"\r\nDriverVer=03/17/2021,27.21.14.6611\r\n[Manufacturer]\r\n\"N\"=NV,NTamd64\r\n[NV.NTamd64]\r\n\
    \"RTX 3070\"=Section001,PCI\\VEN_10DE&DEV_2484\r\n[Section001]\r\n";

/// Wine's SetupAPI and newdev are called for real; what Wine answers is told, and never taken for what Windows would.
pub(crate) fn card_driver(scene: &Scene) -> Result<()> {
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
pub(crate) fn driver(scene: &Scene) -> Result<()> {
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

    let ids = ["10de:2484", "10de:2504"].map(str::parse).into_iter().collect::<Result<Vec<_>, _>>()?;
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

/// A device as Windows' registry holds it; Wine makes a node of it.
pub(crate) const DEVICE: &str =
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

pub(crate) fn report(scene: &Scene) -> Result<()> {
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
