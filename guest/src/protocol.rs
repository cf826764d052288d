//! What the guest program prints, as types and as bounded parsing.
//!
//! Rules of the protocol: a missing field means *unknown* and is never an error, an additional field is ignored,
//! so that a guest program of another version still serves. What could not be read in the guest is listed with
//! its reason in [`Report::unknown`] instead of being guessed. All texts that come out of [`parse_report`] and
//! [`parse_painted`] are free of control characters and bounded in number and length, because the guest is
//! hostile and its words end up in terminals and HTML.

use crate::nvidia::NvidiaFacts;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fmt;

/// Version of these types and of [`crate::pattern`]; `no43-guest --version` says it.
pub const PROTOCOL_VERSION: u32 = 1;

/// Size limit in bytes of anything that the guest program prints. A report of an ordinary guest has 5 to 30 KB.
pub const MESSAGE_LIMIT: usize = 1 << 20;

/// Name of the virtio port on which this program tells that another program of the guest ended; only that, and no answer.
pub const BELL_PORT: &str = "org.no43.bell.0";

/// Most elements of any one list of a parsed message; what is beyond is dropped.
pub const LIST_LIMIT: usize = 1024;

/// Most characters of any one text of a parsed message; what is beyond is cut.
pub const TEXT_LIMIT: usize = 1024;

/// What `no43-guest report --json` prints: the guest as it sees itself at this moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// [`PROTOCOL_VERSION`] of the guest program; 0 if it did not say.
    pub version: u32,
    /// Name of the operating system, as `Debian GNU/Linux 12 (bookworm)`.
    pub os: Option<String>,
    /// Kernel release, as `6.1.0-40-amd64`.
    pub kernel: Option<String>,
    /// A random id of this boot: another one means that the guest was restarted in between.
    pub boot_id: Option<String>,
    /// Milliseconds since the kernel started.
    pub uptime_ms: Option<u64>,
    /// What the guest runs on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub machine: Option<GuestMachine>,
    /// What only a Windows can say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub windows: Option<WindowsFacts>,
    /// Display, audio, USB and UCSI functions, and all further functions that share a slot with a display
    /// function; ordered by address.
    pub functions: Vec<GuestFunction>,
    /// Connectors of all display drivers, ordered by card and name.
    pub connectors: Vec<Connector>,
    /// Lines of the kernel log that say something about a card, oldest first.
    pub log: Vec<LogLine>,
    /// Device nodes of the display drivers; Linux.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub drm: Vec<DrmNode>,
    /// What NVIDIA's library NVML says; `None` if it is not there, or says nothing (then `unknown` tells why).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nvml: Option<NvidiaFacts>,
    /// The same from `nvidia-smi -q -x`, as a second source.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nvidia_smi: Option<NvidiaFacts>,
    /// Entries of Windows' event log about displays and their drivers, newest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub events: Vec<SystemEvent>,
    /// Installations of display and audio drivers that Windows logged (`setupapi.dev.log`), oldest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub driver_installs: Vec<DriverInstall>,
    /// What could not be read, with the reason; the fields concerned are empty.
    pub unknown: Vec<String>,
}

/// A device node of a display driver.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DrmNode {
    /// The kernel's name, as `card0` or `renderD128`.
    pub name: String,
    /// PCI address of the card it belongs to; `None` for a display without a PCI parent.
    pub pci: Option<String>,
}

/// One entry of Windows' event log.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SystemEvent {
    /// Who wrote it, as `nvlddmkm` or `Display`.
    pub provider: String,
    /// Number of the event, as 4101 (a display driver stopped responding and was restarted).
    pub id: Option<u32>,
    /// 1 critical, 2 error, 3 warning, 4 information.
    pub level: Option<u32>,
    /// When, in UTC, as `2026-11-22T23:59:01.1234567Z`.
    pub time: Option<String>,
    /// Number of the record in its log.
    pub record: Option<u64>,
    /// What the event carries, untranslated; its sentence is made from these in the language of the guest.
    pub data: Vec<String>,
}

/// One installation of a driver for a device, as `setupapi.dev.log` tells it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DriverInstall {
    /// The device, as `PCI\\VEN_10DE&DEV_2484&…`.
    pub device: String,
    /// When it began, in the guest's local time, as `2026/11/22 23:59:01.123`.
    pub started: Option<String>,
    /// The INF that was chosen, as `oem4.inf`.
    pub inf: Option<String>,
    /// The name that the INF had in its package, as `nv_dispi.inf`.
    pub original_inf: Option<String>,
    /// Where the chosen INF lies: in the driver store, as `…\\FileRepository\\nv_dispi.inf_amd64_…\\nv_dispi.inf`.
    pub from: Option<String>,
    /// Version of the driver, as `32.0.15.6094`.
    pub version: Option<String>,
    /// Section of the INF.
    pub section: Option<String>,
    /// Every INF that would have fitted, in the order in which Windows told them.
    pub candidates: Vec<String>,
    /// How it ended: true for success.
    pub success: Option<bool>,
    /// The log's own word for it, as `SUCCESS` or `FAILURE(0xe0000219)`.
    pub status: Option<String>,
}

/// One PCI function as the guest sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GuestFunction {
    /// PCI address in the guest, as `0000:01:00.0`; in general not the host's address.
    pub address: String,
    /// Vendor and device, as `10de:2484`.
    pub id: Option<String>,
    /// Vendor and device of the subsystem, as `1af4:1100`.
    pub subsystem: Option<String>,
    /// Base class, subclass and interface in six hexadecimal digits, as `030000`.
    pub class: Option<String>,
    /// Name of the driver that is bound; `None` if none is (or if `unknown` names it).
    pub driver: Option<String>,
    /// Base address registers (0 to 5) and the ROM (6) that have a size.
    pub bars: Vec<GuestBar>,
    /// The kernel's own description of the function, which modules are matched against.
    pub modalias: Option<String>,
    /// Version of the driver that is bound, as `580.95.05` or `32.0.15.6094`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver_version: Option<String>,
    /// The PCI Express link as the guest sees it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub link: Option<GuestLink>,
    /// Whether message-signalled interrupts are in use (Linux) or switched on for the driver (Windows).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub msi: Option<bool>,
    /// The device node of Windows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<DevNode>,
}

/// A PCI Express link. Speeds are generations: 1 is 2.5 GT/s, 4 is 16 GT/s.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GuestLink {
    /// Generation now; idle cards go down to 1.
    pub speed: Option<u32>,
    /// Lanes now.
    pub width: Option<u32>,
    /// Highest generation of the card.
    pub max_speed: Option<u32>,
    /// Most lanes of the card.
    pub max_width: Option<u32>,
}

/// What Windows knows about one device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DevNode {
    /// Its instance, as `PCI\VEN_10DE&DEV_2484&SUBSYS_146B10DE&REV_A1\4&1A2B&0&0008`.
    pub instance: String,
    /// Problem code; 0 means that PnP sees none, see [`crate::problem`]. `None`: not known.
    pub problem: Option<u32>,
    /// NTSTATUS that belongs to the problem code and says why; Windows 8 and later.
    pub problem_status: Option<u32>,
    /// Status flags (`DN_…` of cfg.h).
    pub flags: Option<u32>,
    /// Device class, as `Display`.
    pub class: Option<String>,
    /// Hardware ids, most special first.
    pub hardware_ids: Vec<String>,
    /// Where it is, as `PCIROOT(0)#PCI(0100)#PCI(0000)`.
    pub location_paths: Vec<String>,
    /// Date of the driver, as `2025-09-30`.
    pub driver_date: Option<String>,
    /// Name of the installed INF, as `oem4.inf`.
    pub inf: Option<String>,
    /// Section of it.
    pub inf_section: Option<String>,
    /// Who provided the driver.
    pub provider: Option<String>,
    /// The id in the INF that matched.
    pub matching_id: Option<String>,
}

/// What the guest runs on, as it sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GuestMachine {
    /// Whether the processor says that there is a hypervisor.
    pub hypervisor_present: Option<bool>,
    /// What the hypervisor calls itself, as `KVMKVMKVM` or `Microsoft Hv`.
    pub hypervisor: Option<String>,
    /// Whether Secure Boot is on.
    pub secure_boot: Option<bool>,
}

/// What only a Windows can say.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct WindowsFacts {
    /// Build number, as 19045.
    pub build: Option<u32>,
    /// Revision of the build, the number behind its point.
    pub revision: Option<u32>,
    /// Edition id, as `Professional`.
    pub edition: Option<String>,
    /// Release, as `22H2`.
    pub release: Option<String>,
    /// Whether virtualisation-based security is asked for in the registry (not whether it runs).
    pub vbs_configured: Option<bool>,
    /// Whether memory integrity is asked for in the registry.
    pub memory_integrity_configured: Option<bool>,
    /// Whether memory integrity is at work now.
    pub memory_integrity: Option<bool>,
    /// Whether virtualisation-based security is at work now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vbs: Option<bool>,
    /// `hypervisorlaunchtype` of the default boot entry: `off`, `auto`, or a number that has no name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hypervisor_launch_type: Option<String>,
    /// Hardware ids for which Windows' policy (`DenyDeviceIDs`) lets no driver be installed; none where the policy is off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub install_denied: Option<Vec<String>>,
}

/// One base address register as the guest's kernel sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GuestBar {
    /// 0 to 5, and 6 for the expansion ROM.
    pub index: u8,
    /// Size in bytes.
    pub size: u64,
    /// What it decodes.
    pub kind: BarKind,
    /// Whether firmware or kernel gave it an address; a BAR without one does not work.
    pub assigned: Option<bool>,
}

/// What a base address register decodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BarKind {
    /// I/O ports.
    Io,
    /// Memory with side effects.
    Memory,
    /// Memory that may be prefetched: usually the video memory.
    Prefetchable,
    /// Not said, or a word of a later version.
    #[default]
    #[serde(other)]
    Unknown,
}

/// One output of a display driver.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Connector {
    /// PCI address of the card it belongs to; `None` for a display without a PCI parent.
    pub pci: Option<String>,
    /// The kernel's name of the display device, as `card0`.
    pub card: String,
    /// The kernel's name of the connector, as `HDMI-A-1` or `Virtual-1`.
    pub name: String,
    /// `connected`, `disconnected` or `unknown`.
    pub status: Option<String>,
    /// Resolutions, the preferred one first, as `1280x800`, without repetitions.
    pub modes: Vec<String>,
}

/// One line of the guest's kernel log.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LogLine {
    /// Microseconds since the kernel started.
    pub time_us: Option<u64>,
    /// Level of the kernel: 0 (emergency) to 7 (debug).
    pub level: Option<u8>,
    /// The text without time and level.
    pub text: String,
    /// Name of the row of the guest program's table that it matched, as `nouveau-unknown-chipset`; `None` if it
    /// is here because it names a function of the report.
    pub topic: Option<String>,
    /// What that row says about it.
    pub severity: Severity,
}

/// How bad a line of the kernel log is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Worth showing, nothing wrong.
    Info,
    /// May explain an error.
    Warning,
    /// The card or its driver does not work.
    Error,
    /// No row of the table judged it.
    #[default]
    #[serde(other)]
    Unknown,
}

/// What `no43-guest paint` prints once the picture is on the screen.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Painted {
    /// [`PROTOCOL_VERSION`] of the guest program; 0 if it did not say.
    pub version: u32,
    /// PCI address of the card in the guest.
    pub address: String,
    /// The kernel's name of the connector, as `Virtual-1`.
    pub connector: String,
    /// Width of the picture in pixels.
    pub width: u32,
    /// Height of the picture in pixels.
    pub height: u32,
    /// Seed of the pattern.
    pub seed: u64,
    /// Process in the guest that holds the picture on the screen.
    pub pid: u32,
}

/// Why a message of the guest program was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MessageError {
    /// More bytes than [`MESSAGE_LIMIT`].
    TooLong {
        /// How many.
        bytes: usize,
    },
    /// Not JSON, or JSON of another shape; the text says where.
    Malformed {
        /// The parser's words, bounded and free of control characters.
        reason: String,
    },
}

impl fmt::Display for MessageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong { bytes } => write!(
                f,
                "the guest program's answer has {bytes} bytes, more than the {MESSAGE_LIMIT} that are accepted"
            ),
            Self::Malformed { reason } => write!(f, "the guest program's answer cannot be read: {reason}"),
        }
    }
}

impl std::error::Error for MessageError {}

/// Reads what `no43-guest report --json` printed.
///
/// # Errors
/// If it is longer than [`MESSAGE_LIMIT`] or no report.
pub fn parse_report(bytes: &[u8]) -> Result<Report, MessageError> {
    parse(bytes)
}

/// Reads what `no43-guest paint` printed.
///
/// # Errors
/// If it is longer than [`MESSAGE_LIMIT`] or not such an answer.
pub fn parse_painted(bytes: &[u8]) -> Result<Painted, MessageError> {
    parse(bytes)
}

impl Report {
    /// The function at `address` (with domain, as `0000:01:00.0`).
    #[must_use]
    pub fn function(&self, address: &str) -> Option<&GuestFunction> {
        self.functions.iter().find(|function| function.address == address)
    }

    /// The connectors of the card at `address`.
    pub fn connectors_of<'a>(&'a self, address: &'a str) -> impl Iterator<Item = &'a Connector> {
        self.connectors.iter().filter(move |connector| connector.pci.as_deref() == Some(address))
    }
}

/// Reads any message: every text and list in it is bounded before it becomes a `T`, so a new field cannot be forgotten.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, MessageError> {
    if bytes.len() > MESSAGE_LIMIT {
        return Err(MessageError::TooLong { bytes: bytes.len() });
    }
    let malformed = |error: serde_json::Error| {
        let mut reason = error.to_string(); // quotes the guest's own words
        bound_text(&mut reason);
        MessageError::Malformed { reason }
    };
    let mut value: Value = serde_json::from_slice(bytes).map_err(malformed)?;
    bound_value(&mut value);
    T::deserialize(value).map_err(malformed)
}

/// Bounds every text and list, however deep; the parser has a limit of its own for the depth.
fn bound_value(value: &mut Value) {
    match value {
        Value::String(text) => bound_text(text),
        Value::Array(list) => {
            list.truncate(LIST_LIMIT);
            list.iter_mut().for_each(bound_value);
        }
        Value::Object(map) => map.values_mut().for_each(bound_value),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

pub(crate) fn bound_list(list: &mut Vec<String>) {
    list.truncate(LIST_LIMIT);
    list.iter_mut().for_each(bound_text);
}

pub(crate) fn bound_text(text: &mut String) {
    if text.len() <= TEXT_LIMIT && !text.chars().any(is_unprintable) {
        return;
    }
    *text = text.chars().take(TEXT_LIMIT).map(|c| if is_unprintable(c) { '\u{fffd}' } else { c }).collect();
}

/// Control characters, and the marks that change the direction of the text around them.
fn is_unprintable(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn example() -> Report {
        Report {
            version: PROTOCOL_VERSION,
            os: Some("Debian GNU/Linux 12 (bookworm)".into()),
            kernel: Some("6.1.0-40-amd64".into()),
            boot_id: Some("0d5a7d6e-0b34-4d1b-9a3b-3c6f4b3f5a11".into()),
            uptime_ms: Some(9120),
            functions: vec![GuestFunction {
                address: "0000:01:00.0".into(),
                id: Some("1234:1111".into()),
                subsystem: Some("1af4:1100".into()),
                class: Some("038000".into()),
                driver: Some("bochs-drm".into()),
                bars: vec![GuestBar {
                    index: 0,
                    size: 16 << 20,
                    kind: BarKind::Prefetchable,
                    assigned: Some(true),
                }],
                modalias: Some("pci:v00001234d00001111sv00001AF4sd00001100bc03sc80i00".into()),
                ..GuestFunction::default()
            }],
            connectors: vec![Connector {
                pci: Some("0000:01:00.0".into()),
                card: "card0".into(),
                name: "Virtual-1".into(),
                status: Some("connected".into()),
                modes: vec!["1280x800".into(), "1024x768".into()],
            }],
            log: vec![LogLine {
                time_us: Some(2_500_123),
                level: Some(6),
                text: "[drm] Initialized bochs-drm 1.0.0 20130925 for 0000:01:00.0 on minor 0".into(),
                topic: Some("drm-initialized".into()),
                severity: Severity::Info,
            }],
            unknown: vec!["/sys/bus/pci/devices/0000:01:00.0/resource: permission denied".into()],
            ..Report::default()
        }
    }

    #[test]
    fn a_report_looks_like_this() {
        insta::assert_snapshot!(serde_json::to_string_pretty(&example()).unwrap(), @r#"
        {
          "version": 1,
          "os": "Debian GNU/Linux 12 (bookworm)",
          "kernel": "6.1.0-40-amd64",
          "boot_id": "0d5a7d6e-0b34-4d1b-9a3b-3c6f4b3f5a11",
          "uptime_ms": 9120,
          "functions": [
            {
              "address": "0000:01:00.0",
              "id": "1234:1111",
              "subsystem": "1af4:1100",
              "class": "038000",
              "driver": "bochs-drm",
              "bars": [
                {
                  "index": 0,
                  "size": 16777216,
                  "kind": "prefetchable",
                  "assigned": true
                }
              ],
              "modalias": "pci:v00001234d00001111sv00001AF4sd00001100bc03sc80i00"
            }
          ],
          "connectors": [
            {
              "pci": "0000:01:00.0",
              "card": "card0",
              "name": "Virtual-1",
              "status": "connected",
              "modes": [
                "1280x800",
                "1024x768"
              ]
            }
          ],
          "log": [
            {
              "time_us": 2500123,
              "level": 6,
              "text": "[drm] Initialized bochs-drm 1.0.0 20130925 for 0000:01:00.0 on minor 0",
              "topic": "drm-initialized",
              "severity": "info"
            }
          ],
          "unknown": [
            "/sys/bus/pci/devices/0000:01:00.0/resource: permission denied"
          ]
        }
        "#);
    }

    #[test]
    fn painted_looks_like_this() {
        let painted = Painted {
            version: PROTOCOL_VERSION,
            address: "0000:01:00.0".into(),
            connector: "Virtual-1".into(),
            width: 1280,
            height: 800,
            seed: u64::MAX,
            pid: 312,
        };
        let text = serde_json::to_string(&painted).unwrap();
        insta::assert_snapshot!(text, @r#"{"version":1,"address":"0000:01:00.0","connector":"Virtual-1","width":1280,"height":800,"seed":18446744073709551615,"pid":312}"#);
        assert_eq!(parse_painted(text.as_bytes()), Ok(painted));
    }

    #[test]
    fn a_report_survives_the_wire() {
        assert_eq!(parse_report(&serde_json::to_vec(&example()).unwrap()), Ok(example()));
    }

    #[test]
    fn missing_and_additional_fields_are_fine() {
        assert_eq!(parse_report(b"{}"), Ok(Report::default()));
        let text = json!({
            "version": 9,
            "moon": {"phase": 3},
            "functions": [{"address": "0000:01:00.0", "link": {"width": 16}, "bars": [{"index": 0, "kind": "cxl"}]}],
            "log": [{"text": "x", "severity": "doom"}],
        });
        let report = parse_report(text.to_string().as_bytes()).unwrap();
        assert_eq!(report.version, 9);
        assert_eq!(report.functions[0].bars[0].kind, BarKind::Unknown);
        assert_eq!(report.functions[0].driver, None);
        assert_eq!(report.log[0].severity, Severity::Unknown);
    }

    #[test]
    fn too_much_is_refused_or_cut() {
        assert_eq!(
            parse_report(&vec![b' '; MESSAGE_LIMIT + 1]),
            Err(MessageError::TooLong { bytes: MESSAGE_LIMIT + 1 })
        );
        let text = json!({"os": "x".repeat(5000), "unknown": vec!["y"; 5000]}).to_string();
        let report = parse_report(text.as_bytes()).unwrap();
        assert_eq!(report.os.unwrap().len(), TEXT_LIMIT);
        assert_eq!(report.unknown.len(), LIST_LIMIT);
    }

    #[test]
    fn escapes_and_direction_marks_do_not_reach_the_terminal() {
        let text = json!({"os": "a\u{1b}[2Jb\u{202e}c\n"}).to_string();
        assert_eq!(parse_report(text.as_bytes()).unwrap().os.unwrap(), "a\u{fffd}[2Jb\u{fffd}c\u{fffd}");
        let error = parse_report(br#"{"version": "\u001b[2J"}"#).unwrap_err().to_string();
        assert!(!error.contains('\u{1b}'), "{error:?}");
    }

    #[test]
    fn deep_nesting_is_an_error_and_no_stack_overflow() {
        let text = format!("{{\"moon\": {}", "[".repeat(100_000));
        assert!(matches!(parse_report(text.as_bytes()), Err(MessageError::Malformed { .. })));
    }

    fn is_bounded(text: &str) -> bool {
        text.chars().count() <= TEXT_LIMIT && !text.chars().any(is_unprintable)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn foreign_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = parse_report(&bytes);
            let _ = parse_painted(&bytes);
        }

        #[test]
        fn a_damaged_report_never_panics(at in 0_usize..1500, with: u8, cut in 0_usize..1500) {
            let mut bytes = serde_json::to_vec(&example()).unwrap();
            let length = bytes.len();
            bytes[at % length] = with;
            bytes.truncate(length - cut % length);
            if let Ok(report) = parse_report(&bytes) {
                prop_assert!(report.functions.iter().all(|f| is_bounded(&f.address)));
            }
        }

        #[test]
        fn every_text_is_bounded(text in "\\PC{0,20}|[\u{0}-\u{1f}\u{7f}-\u{9f}]{0,20}|.{1000,1100}") {
            let bytes = json!({
                "os": &text, "unknown": [&text],
                "functions": [{"address": &text, "driver": &text}],
                "connectors": [{"name": &text, "modes": [&text]}],
                "log": [{"text": &text, "topic": &text}],
            });
            let report = parse_report(bytes.to_string().as_bytes()).unwrap();
            let texts = [
                report.os.as_ref().unwrap(), &report.unknown[0],
                &report.functions[0].address, report.functions[0].driver.as_ref().unwrap(),
                &report.connectors[0].name, &report.connectors[0].modes[0],
                &report.log[0].text, report.log[0].topic.as_ref().unwrap(),
            ];
            prop_assert!(texts.into_iter().all(|text| is_bounded(text)));
        }
    }
}
