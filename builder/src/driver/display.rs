//! What a display INF is for: which devices on which builds of Windows.
//!
//! `[Manufacturer]` names sections of models, once for each range of Windows builds; each model names the hardware ids that
//! it drives (Microsoft, "INF Manufacturer section", "INF Models section", "Combining platform extensions with operating
//! system versions").

use std::collections::HashSet;
use std::fmt;

use no43_host::PciId;
use serde::Serialize;

use super::inf::Inf;
use super::text::{Encoding, decode};
use super::version::Version;

/// A display INF of a package.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct DisplayInf {
    /// Its path in the package.
    pub path: String,
    /// Who provides it.
    pub provider: String,
    /// As the INF writes it: month/day/year.
    pub date: String,
    /// The four numbers of Windows.
    pub driver_ver: String,
    /// NVIDIA's version by those numbers.
    pub version: Option<Version>,
    /// The driver of the Store kind, whose control panel comes apart from it.
    pub dch: bool,
    /// How the file is written.
    pub encoding: Encoding,
    /// The signed list of its files, beside it.
    pub catalogue: Option<String>,
    /// Its models by Windows build, as listed.
    pub models: Vec<Models>,
}

/// The devices for one range of Windows builds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Models {
    /// The section's name.
    pub section: String,
    /// Where it counts.
    pub target: Target,
    /// What it drives.
    pub devices: Vec<Device>,
}

/// Which Windows a section of models is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Target {
    /// `amd64`, `arm64`, `x86`; `None` is any.
    pub architecture: Option<String>,
    /// Windows' own version from which on it counts: (10, 0) for Windows 10 and 11.
    pub windows: (u32, u32),
    /// The build from which on it counts.
    pub build: u32,
}

/// One device that a package drives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Device {
    /// Vendor and device.
    pub id: PciId,
    /// Only boards of this maker and model: subsystem device and vendor as `DDDDVVVV`, as INF files write it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subsystem: Option<Subsystem>,
    /// As it will be called.
    pub name: String,
    /// The section that installs it.
    pub install: String,
}

/// A board's maker and model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Subsystem {
    /// The maker.
    pub vendor: u16,
    /// The model.
    pub device: u16,
}

impl fmt::Display for Subsystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:04x}", self.vendor, self.device)
    }
}

impl Serialize for Subsystem {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// More devices than any INF has: NVIDIA's largest lists 3,000.
const MOST_DEVICES: usize = 200_000;
/// More sections of models than any INF has: NVIDIA's have under ten.
const MOST_SECTIONS: usize = 1_000;

/// Reads a display INF; `None` for INF files of other classes.
pub(super) fn read(path: &str, bytes: &[u8]) -> Option<DisplayInf> {
    let (text, encoding) = decode(bytes);
    let inf = Inf::parse(&text);
    let version = |key| inf.values("Version", key).unwrap_or_default();
    let is_display = version("Class").first().is_some_and(|class| class.eq_ignore_ascii_case("Display"))
        || version("ClassGUID").first().is_some_and(|guid| guid.eq_ignore_ascii_case(DISPLAY_CLASS));
    if !is_display {
        return None;
    }
    let mut driver_ver = version("DriverVer").into_iter();
    let (date, driver_ver) = (driver_ver.next().unwrap_or_default(), driver_ver.next().unwrap_or_default());
    let mut left = MOST_DEVICES;
    let models = manufacturers(&inf).into_iter().filter_map(|name| models(&inf, &name, &mut left)).collect();
    Some(DisplayInf {
        path: path.to_owned(),
        provider: version("Provider").into_iter().next().unwrap_or_default(),
        version: Version::from_driver_ver(&driver_ver),
        date,
        driver_ver,
        // what a live system is told apart by; a DCH package writes it when it is installed
        dch: inf.mentions("DCHUVen"),
        encoding,
        catalogue: catalogue(&inf),
        models,
    })
}

/// `CatalogFile`, or `CatalogFile.NTamd64` and the like, which counts more.
fn catalogue(inf: &Inf) -> Option<String> {
    let named = |entry: &super::inf::Entry| entry.key.to_ascii_lowercase().starts_with("catalogfile");
    let all = inf.section("Version").filter(named);
    all.max_by_key(|entry| entry.key.len()).and_then(|entry| entry.values.into_iter().next())
}

impl DisplayInf {
    /// One that says nothing yet.
    pub(super) fn empty(path: &str) -> Self {
        Self {
            path: path.to_owned(),
            provider: String::new(),
            date: String::new(),
            driver_ver: String::new(),
            version: None,
            dch: false,
            encoding: Encoding::Utf8,
            catalogue: None,
            models: Vec::new(),
        }
    }
}

/// The set-up class of display adapters.
const DISPLAY_CLASS: &str = "{4d36e968-e325-11ce-bfc1-08002be10318}";

/// Every section of models that `[Manufacturer]` names, undecorated ones included.
fn manufacturers(inf: &Inf) -> Vec<String> {
    let (mut names, mut known) = (Vec::new(), HashSet::new());
    for entry in inf.section("Manufacturer") {
        let Some((section, targets)) = entry.values.split_first() else { continue };
        let decorated = targets.iter().map(|target| format!("{section}.{target}"));
        for name in std::iter::once(section.clone()).chain(decorated).filter(|name| inf.has(name)) {
            // a section that is named a million times is read once
            if names.len() < MOST_SECTIONS && known.insert(name.to_lowercase()) {
                names.push(name);
            }
        }
    }
    names
}

fn models(inf: &Inf, section: &str, left: &mut usize) -> Option<Models> {
    let decoration = section.split_once('.').map_or("", |(_, decoration)| decoration);
    let mut devices = Vec::new();
    for entry in inf.section(section) {
        let Some((install, ids)) = entry.values.split_first() else { continue };
        for (id, subsystem) in ids.iter().filter_map(|id| hardware_id(id)) {
            if *left == 0 {
                break;
            }
            *left -= 1;
            devices.push(Device { id, subsystem, name: entry.key.clone(), install: install.clone() });
        }
    }
    Some(Models { section: section.to_owned(), target: Target::parse(decoration)?, devices })
}

impl Target {
    /// Reads a decoration: `NT[arch][.[major][.[minor][.[product type][.[suite][.[build]]]]]]`; `None` if it is none.
    pub(super) fn parse(decoration: &str) -> Option<Self> {
        if decoration.is_empty() {
            return Some(Self { architecture: None, windows: (0, 0), build: 0 });
        }
        let mut parts = decoration.split('.');
        let first = parts.next()?.to_ascii_lowercase();
        let architecture = first.strip_prefix("nt")?;
        let number = |part: Option<&str>| part.and_then(|part| part.trim().parse().ok()).unwrap_or(0);
        let (major, minor) = (number(parts.next()), number(parts.next()));
        let build = number(parts.nth(2));
        Some(Self {
            architecture: Some(architecture).filter(|a| !a.is_empty()).map(str::to_owned),
            windows: (major, minor),
            build,
        })
    }

    /// Whether a 64-bit Windows 10, 11 or Server of this build may use it.
    pub fn covers(&self, build: u32) -> bool {
        self.architecture.as_deref().is_none_or(|a| a == "amd64")
            && self.windows <= (10, 0)
            && self.build <= build
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let architecture = self.architecture.as_deref().unwrap_or("any architecture");
        match (self.windows, self.build) {
            ((0, 0), _) => write!(f, "any Windows, {architecture}"),
            ((major, minor), 0) => write!(f, "Windows {major}.{minor} on, {architecture}"),
            ((major, minor), build) => write!(f, "Windows {major}.{minor} build {build} on, {architecture}"),
        }
    }
}

/// Reads `PCI\VEN_10DE&DEV_2484&SUBSYS_146710DE`; other kinds of id are not cards.
fn hardware_id(text: &str) -> Option<(PciId, Option<Subsystem>)> {
    let text = text.to_ascii_uppercase();
    let mut parts = text.strip_prefix("PCI\\")?.split('&');
    let number = |part: Option<&str>, name: &str| u16::from_str_radix(part?.strip_prefix(name)?, 16).ok();
    let vendor = number(parts.next(), "VEN_")?;
    let device = number(parts.next(), "DEV_")?;
    let subsystem = parts.find_map(|part| u32::from_str_radix(part.strip_prefix("SUBSYS_")?, 16).ok());
    let subsystem = subsystem.map(|both| {
        let [a, b, c, d] = both.to_be_bytes();
        Subsystem { device: u16::from_be_bytes([a, b]), vendor: u16::from_be_bytes([c, d]) }
    });
    Some((PciId { vendor, device }, subsystem))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ids_with_and_without_a_board() {
        let (id, board) = hardware_id(r"pci\ven_10de&dev_2520&SUBSYS_8a131462").unwrap();
        assert_eq!((id.to_string(), board.unwrap().to_string()), ("10de:2520".into(), "1462:8a13".into()));
        assert_eq!(hardware_id(r"PCI\VEN_10DE&DEV_2484&REV_A1").unwrap().1, None);
        for other in ["", "PCI\\", r"PCI\VEN_10DE", r"USB\VID_0955", r"PCI\VEN_XXXX&DEV_0001", "PCI\\CC_0300"]
        {
            assert_eq!(hardware_id(other), None, "{other}");
        }
    }

    #[test]
    fn decorations_say_from_which_build_on() {
        let target = |text| Target::parse(text);
        assert_eq!(target("NTamd64.10.0...14393").unwrap().to_string(), "Windows 10.0 build 14393 on, amd64");
        assert!(target("NTamd64.10.0...17098").unwrap().covers(19045));
        assert!(!target("NTamd64.10.0...22000").unwrap().covers(19045));
        assert!(!target("NTarm64.10.0").unwrap().covers(19045));
        assert!(target("NTamd64.6.1").unwrap().covers(19045));
        assert!(target("").unwrap().covers(10240) && target("NT").unwrap().covers(10240));
        assert_eq!(target("strings"), None);
    }

    #[test]
    fn other_classes_are_left_out() {
        assert_eq!(read("a.inf", b"[Version]\nClass=Net\n"), None);
        assert_eq!(read("a.inf", b""), None);
        let by_guid = "[version]\nClassGuid={4D36E968-E325-11CE-BFC1-08002BE10318}\n";
        assert!(read("a.inf", by_guid.as_bytes()).is_some_and(|inf| inf.models.is_empty()));
    }

    proptest! {
        #[test]
        fn any_id_is_safe(text in "(PCI|pci|\\\\|VEN_|DEV_|SUBSYS_|&|[0-9A-F]{0,9}){0,12}") {
            let _ = hardware_id(&text);
        }

        #[test]
        fn any_decoration_is_safe(text in "(NT|amd64|\\.|[0-9]{0,12}){0,12}") {
            let _ = Target::parse(&text).map(|target| target.covers(19045));
        }
    }
}
