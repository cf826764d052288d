//! `no43-guest report` on Windows: the guest as it sees itself.

use std::fmt::Write as _;
use std::io::{Read as _, Seek as _, SeekFrom};

use no43_guest::driver_log;
use no43_guest::problem::problem;
use no43_guest::protocol::{
    DriverInstall, GuestFunction, GuestMachine, PROTOCOL_VERSION, Report, SystemEvent, WindowsFacts,
};

use super::api::{devices, events as api_events, facts, registry};
use crate::{devnodes, event_log, gpu};

const CURRENT: &str = r"HKLM\SOFTWARE\Microsoft\Windows NT\CurrentVersion";
const SECURE_BOOT: &str = r"HKLM\SYSTEM\CurrentControlSet\Control\SecureBoot\State";
const DEVICE_GUARD: &str = r"HKLM\SYSTEM\CurrentControlSet\Control\DeviceGuard";
const MEMORY_INTEGRITY: &str =
    r"HKLM\SYSTEM\CurrentControlSet\Control\DeviceGuard\Scenarios\HypervisorEnforcedCodeIntegrity";

/// The policy against drivers for certain hardware ids: its key, its switch (and the key of its list), most entries looked at.
const RESTRICTIONS: &str = r"HKLM\SOFTWARE\Policies\Microsoft\Windows\DeviceInstall\Restrictions";
const DENIED: &str = "DenyDeviceIDs";
const DENIED_MOST: u32 = 64;

/// Everything that the guest can say about its cards.
pub(super) fn report() -> Report {
    // Said once and not guessed: this version has no source for them in Windows.
    let mut unknown: Vec<String> =
        ["BARs", "connectors", "boot id"].map(|what| format!("{what}: not read in Windows")).into();
    let nodes = devices::pci_nodes().unwrap_or_else(|error| {
        unknown.push(format!("device nodes: {error}"));
        Vec::new()
    });
    let mut functions = devnodes::functions(&nodes, &mut unknown);
    functions.iter_mut().for_each(|function| function.msi = msi(function));
    let mut values = Values { unknown: &mut unknown };
    let build = values.text(CURRENT, "CurrentBuildNumber").and_then(|text| text.parse().ok());
    let windows = WindowsFacts {
        build,
        revision: values.number(CURRENT, "UBR"),
        edition: values.text(CURRENT, "EditionID"),
        release: values.text(CURRENT, "DisplayVersion"),
        vbs_configured: values.flag(DEVICE_GUARD, "EnableVirtualizationBasedSecurity"),
        memory_integrity_configured: values.flag(MEMORY_INTEGRITY, "Enabled"),
        memory_integrity: facts::memory_integrity(),
        // Memory integrity is a part of it; without that, Windows tells it only through WMI.
        vbs: facts::memory_integrity().filter(|on| *on),
        hypervisor_launch_type: launch_type(&mut values),
        install_denied: install_denied().map_err(|e| values.unknown.push(format!("{DENIED}: {e}"))).ok(),
    };
    let version = values.version();
    let (present, hypervisor) = facts::hypervisor();
    let secure_boot = values.flag(SECURE_BOOT, "UEFISecureBootEnabled");
    if windows.vbs.is_none() {
        unknown.push("vbs: not read in Windows where memory integrity is off".into());
    }
    if windows.memory_integrity.is_none() {
        unknown.push("memory integrity: Windows does not say".into());
    }
    Report {
        version: PROTOCOL_VERSION,
        os: Some(os_name(&windows)),
        kernel: version.zip(windows.build).map(|(version, build)| format!("{version}.{build}")),
        boot_id: None,
        uptime_ms: Some(facts::uptime_ms()),
        machine: Some(GuestMachine { hypervisor_present: Some(present), hypervisor, secure_boot }),
        windows: Some(windows),
        events: events(&mut unknown),
        driver_installs: driver_installs(&functions, &mut unknown),
        nvml: gpu::nvml(&functions, &mut unknown),
        nvidia_smi: gpu::nvidia_smi(&functions, &mut unknown),
        functions,
        unknown,
        ..Report::default()
    }
}

/// Whether message-signalled interrupts are switched on for the driver of a function, by what its INF wrote (Microsoft,
/// "Enabling Message-Signaled Interrupts in the Registry").
fn msi(function: &GuestFunction) -> Option<bool> {
    const VALUES: &str = r"Device Parameters\Interrupt Management\MessageSignaledInterruptProperties";
    let instance = &function.node.as_ref()?.instance;
    let key = format!(r"HKLM\SYSTEM\CurrentControlSet\Enum\{instance}\{VALUES}");
    registry::get(&key, "MSISupported").ok().flatten()?.as_dword().map(|number| number != 0)
}

/// What Windows logged about displays since it started.
fn events(unknown: &mut Vec<String>) -> Vec<SystemEvent> {
    // Entries of the start itself are stamped before the clock of the uptime runs.
    let since = facts::uptime_ms().saturating_add(60_000);
    let found = match api_events::newest("System", &event_log::query(since), event_log::MOST) {
        Ok(found) => found,
        Err(error) => {
            unknown.push(format!("event log: {error}"));
            return Vec::new();
        }
    };
    let entry = |text: &String| {
        event_log::entry(text)
            .map_err(|reason| unknown.push(format!("an entry of the event log: {reason}")))
            .ok()
    };
    found.iter().filter_map(entry).collect()
}

/// What Windows logged about the drivers of these functions.
fn driver_installs(functions: &[GuestFunction], unknown: &mut Vec<String>) -> Vec<DriverInstall> {
    let root = std::env::var_os("SystemRoot").unwrap_or_else(|| r"C:\Windows".into());
    let path = std::path::Path::new(&root).join(r"INF\setupapi.dev.log");
    let tail = || -> std::io::Result<Vec<u8>> {
        let mut file = std::fs::File::open(&path)?;
        let start = file.metadata()?.len().saturating_sub(driver_log::LOG_TAIL);
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        file.take(driver_log::LOG_TAIL).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = match tail() {
        Ok(bytes) => bytes,
        Err(error) => {
            unknown.push(format!("driver installations: {}: {error}", path.display()));
            return Vec::new();
        }
    };
    let ids: Vec<String> = functions
        .iter()
        .filter_map(|function| function.id.as_ref()?.split_once(':'))
        .map(|(vendor, device)| format!(r"PCI\VEN_{vendor}&DEV_{device}").to_ascii_uppercase())
        .collect();
    let mut found = driver_log::installs(&bytes);
    found.retain(|install| {
        let device = install.device.to_ascii_uppercase();
        ids.iter().any(|id| device.starts_with(id.as_str()))
    });
    found
}

/// `hypervisorlaunchtype` of the default boot entry. The boot store lies in the registry, where administrators may read
/// it; its numbers are those of the documented BCD classes (default object, `HypervisorLaunchType`).
fn launch_type(values: &mut Values<'_>) -> Option<String> {
    const OBJECTS: &str = r"HKLM\BCD00000000\Objects";
    const BOOT_MANAGER: &str = "{9dea862c-5cdd-4e70-acc1-f32b344d4795}";
    let element = |object: &str, number: &str| format!(r"{OBJECTS}\{object}\Elements\{number}");
    let entry = values.text(&element(BOOT_MANAGER, "23000003"), "Element")?;
    let bytes = values.get(&element(&entry, "250000f0"), "Element")?.bytes;
    devnodes::launch_type(&bytes)
}

/// Hardware ids for which no driver is installed; the entries are numbered, by us and by Windows' own editor of policies.
fn install_denied() -> std::io::Result<Vec<String>> {
    let on = registry::get(RESTRICTIONS, DENIED)?.and_then(|value| value.as_dword());
    let mut ids = Vec::new();
    for n in 1..=DENIED_MOST {
        if on.is_none_or(|on| on == 0) {
            break;
        }
        ids.extend(
            registry::get(&format!(r"{RESTRICTIONS}\{DENIED}"), &n.to_string())?.and_then(|id| id.as_text()),
        );
    }
    Ok(ids)
}

/// From the build number, because `ProductName` says "Windows 10" in a Windows 11, too.
fn os_name(windows: &WindowsFacts) -> String {
    let words = [Some("Windows"), windows.edition.as_deref(), windows.release.as_deref()];
    words.into_iter().flatten().collect::<Vec<_>>().join(" ")
}

/// Reads the registry; an error is told, an absent value is just unknown.
struct Values<'a> {
    unknown: &'a mut Vec<String>,
}

impl Values<'_> {
    fn get(&mut self, key: &str, name: &str) -> Option<registry::Raw> {
        match registry::get(key, name) {
            Ok(value) => {
                if value.is_none() {
                    self.unknown.push(format!("{name}: not in the registry"));
                }
                value
            }
            Err(error) => {
                self.unknown.push(format!(r"{key}\{name}: {error}"));
                None
            }
        }
    }

    /// Two numbers since Windows 10; before, and for old programs since, a text that ends with 6.3.
    fn version(&mut self) -> Option<String> {
        let part = |name| registry::get(CURRENT, name).ok().flatten().and_then(|value| value.as_dword());
        match (part("CurrentMajorVersionNumber"), part("CurrentMinorVersionNumber")) {
            (Some(major), Some(minor)) => Some(format!("{major}.{minor}")),
            _ => self.text(CURRENT, "CurrentVersion"),
        }
    }

    fn text(&mut self, key: &str, name: &str) -> Option<String> {
        self.get(key, name)?.as_text()
    }

    fn number(&mut self, key: &str, name: &str) -> Option<u32> {
        self.get(key, name)?.as_dword()
    }

    fn flag(&mut self, key: &str, name: &str) -> Option<bool> {
        self.number(key, name).map(|number| number != 0)
    }
}

/// The report for a person in the guest.
pub(super) fn human(report: &Report) -> String {
    let or_unknown = |text: &Option<String>| text.clone().unwrap_or_else(|| "unknown".into());
    let mut out = format!("{}, build {}\n", or_unknown(&report.os), or_unknown(&report.kernel));
    for f in &report.functions {
        let driver = f.driver.as_deref().unwrap_or("no driver");
        let version = f.driver_version.as_deref().unwrap_or("unknown version");
        let code = f.node.as_ref().and_then(|node| node.problem);
        let name = code.and_then(problem).map(|row| format!(" ({})", row.name)).unwrap_or_default();
        let code = code.map_or_else(|| "unknown".into(), |code| code.to_string());
        let (id, class) = (or_unknown(&f.id), or_unknown(&f.class));
        let _ = writeln!(out, "{} {id} class {class}: {driver} {version}, code {code}{name}", f.address);
    }
    for text in &report.unknown {
        let _ = writeln!(out, "unknown: {text}");
    }
    out
}
