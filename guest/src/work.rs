//! GPU work with known answers: what `no43-guest work --json` prints, and which work is done by default.

use crate::protocol::{MessageError, parse};
use serde::{Deserialize, Serialize};

/// What `no43-guest work --json` prints.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkReport {
    /// [`crate::protocol::PROTOCOL_VERSION`] of the guest program; 0 if it did not say.
    pub version: u32,
    /// What the adapter was asked for by: a PCI address, an id as `10de:2484`, or `software`.
    pub wanted: String,
    /// One result per piece of work, in the order in which they were done.
    pub results: Vec<WorkResult>,
    /// What could not be found out, with the reason.
    pub unknown: Vec<String>,
}

/// How one piece of work ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkResult {
    /// Name of the row in [`WORK`], as `cuda-checksum`.
    pub name: String,
    /// How it ended.
    pub outcome: WorkOutcome,
    /// Why it did not pass, as a word that programs compare; see [`WorkCause`].
    pub cause: Option<WorkCause>,
    /// The same in a sentence, with numbers.
    pub reason: Option<String>,
    /// What the work ran on. `None` if it did not get so far.
    pub adapter: Option<WorkAdapter>,
    /// What was measured.
    pub metrics: Vec<Metric>,
    /// How long it took, in milliseconds, with the start of its process.
    pub duration_ms: u64,
    /// A picture that it left in the folder of `--out`: only the file's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub picture: Option<String>,
}

/// The kinds of ends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WorkOutcome {
    /// The answer was the known one, on the adapter that was asked for.
    Passed,
    /// It was not, or the work could not be done although all for it is there.
    Failed,
    /// It could not be tried; says nothing about the card.
    Skipped,
    /// Not said, or a word of a later version.
    #[default]
    #[serde(other)]
    Unknown,
}

/// Why work did not pass.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WorkCause {
    /// Skipped: the library of the interface is not on this system.
    NoLibrary,
    /// Skipped: no device of the interface is the card that was asked for, as with a card that cannot compute.
    NoComputeDevice,
    /// Skipped: the interface offers software renderers only, which are never counted as the card.
    OnlySoftware,
    /// Skipped: nobody is logged on, or this process may not work in their session.
    NoSession,
    /// Skipped: this version of the program, the library or the card cannot do it.
    NotSupported,
    /// Failed: a call of the interface failed; the sentence names it with its number.
    CallFailed,
    /// Failed: all calls succeeded and the answer is wrong.
    WrongAnswer,
    /// Failed: it did not end within its limit and was ended.
    TimedOut,
    /// Failed: its process ended by itself without an answer, as by a crash inside a driver's library.
    Crashed,
    /// Not said, or a word of a later version.
    #[default]
    #[serde(other)]
    Unknown,
}

impl WorkCause {
    /// Whether work with this cause counts as not tried.
    #[must_use]
    pub fn skips(self) -> bool {
        matches!(
            self,
            Self::NoLibrary
                | Self::NoComputeDevice
                | Self::OnlySoftware
                | Self::NoSession
                | Self::NotSupported
        )
    }
}

/// What work ran on, as its own interface names it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkAdapter {
    /// Name, as `NVIDIA GeForce RTX 3070`.
    pub name: String,
    /// PCI address in the guest, if the interface says it.
    pub address: Option<String>,
    /// Vendor and device, as `10de:2484`.
    pub id: Option<String>,
    /// Whether it is a renderer on the processor (WARP, llvmpipe, lavapipe). `None`: not known.
    pub software: Option<bool>,
    /// Version of the driver in the interface's own form.
    pub driver: Option<String>,
    /// Its own memory in bytes.
    pub memory_bytes: Option<u64>,
}

/// One number that was measured.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Metric {
    /// What, as `copy-to-card`.
    pub name: String,
    /// How much.
    pub value: u64,
    /// Of what: `bytes`, `bytes/s`, `us` (microseconds), `ppm` (millionths), `count`.
    pub unit: String,
}

/// Reads what `no43-guest work --json` printed.
///
/// # Errors
/// If it is longer than [`crate::protocol::MESSAGE_LIMIT`] or not such an answer.
pub fn parse_work(bytes: &[u8]) -> Result<WorkReport, MessageError> {
    parse(bytes)
}

/// A piece of work that the program can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Work {
    /// Its name in results and on the command line.
    pub name: &'static str,
    /// What it shows when it passes.
    pub shows: &'static str,
    /// Guests whose program has it: `linux`, `windows`.
    pub guests: &'static [&'static str],
    /// Vendor ids of cards for which it is done without being asked for; empty: for every card.
    pub vendors: &'static [u16],
    /// Done only when asked for by name.
    pub on_request: bool,
    /// Needs the session of a logged-on user in Windows.
    pub session: bool,
    /// Most seconds it may take.
    pub limit_seconds: u64,
}

const NVIDIA: &[u16] = &[0x10de];
const BOTH: &[&str] = &["linux", "windows"];
const WINDOWS: &[&str] = &["windows"];

const fn work(name: &'static str, guests: &'static [&'static str], shows: &'static str) -> Work {
    Work { name, shows, guests, vendors: &[], on_request: false, session: false, limit_seconds: 60 }
}

/// All work, in the order in which it is done. Which of it is the default for a guest and a card follows from the
/// columns `guests` and `vendors`.
pub const WORK: &[Work] = &[
    Work { vendors: NVIDIA, ..work("cuda-checksum", BOTH, "a CUDA kernel computes what it must") },
    Work {
        vendors: NVIDIA,
        limit_seconds: 180,
        ..work("cuda-memory", BOTH, "a share of the video memory keeps a pattern")
    },
    Work {
        vendors: NVIDIA,
        ..work("cuda-copy", BOTH, "bytes go to the card and come back unchanged, how fast")
    },
    work("vulkan-compute", BOTH, "a Vulkan compute shader computes what it must"),
    Work {
        vendors: NVIDIA,
        ..work("nvenc-frame", BOTH, "the video encoder makes H.264 frames of what it is given")
    },
    work("d3d11-scene", WINDOWS, "Direct3D 11 renders a scene as it must"),
    work("d3d12-scene", WINDOWS, "Direct3D 12 renders a scene as it must"),
    Work {
        session: true,
        on_request: true,
        ..work("desktop-picture", WINDOWS, "the card shows the desktop, as a picture")
    },
    Work {
        vendors: NVIDIA,
        on_request: true, // not yet known by default: no card was ever asked
        ..work("optix-trace", BOTH, "OptiX finds the nearest triangle on the way of each ray")
    },
];

/// The work that is done without being asked for: for a guest (`linux` or `windows`) and a card of `vendor`.
pub fn default_work(guest: &str, vendor: Option<u16>) -> impl Iterator<Item = &'static Work> {
    WORK.iter().filter(move |row| {
        let of_vendor = row.vendors.is_empty() || vendor.is_some_and(|id| row.vendors.contains(&id));
        row.guests.contains(&guest) && of_vendor && !row.on_request
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_done_by_default() {
        let names = |guest, vendor| default_work(guest, vendor).map(|w| w.name).collect::<Vec<_>>().join(" ");
        insta::assert_snapshot!(names("linux", Some(0x10de)), @"cuda-checksum cuda-memory cuda-copy vulkan-compute nvenc-frame");
        insta::assert_snapshot!(names("windows", Some(0x10de)), @"cuda-checksum cuda-memory cuda-copy vulkan-compute nvenc-frame d3d11-scene d3d12-scene");
        insta::assert_snapshot!(names("linux", Some(0x1234)), @"vulkan-compute");
        insta::assert_snapshot!(names("windows", None), @"vulkan-compute d3d11-scene d3d12-scene");
    }

    #[test]
    fn an_answer_looks_like_this() {
        let report = WorkReport {
            version: 1,
            wanted: "0000:01:00.0".into(),
            results: vec![WorkResult {
                name: "vulkan-compute".into(),
                outcome: WorkOutcome::Skipped,
                cause: Some(WorkCause::NoComputeDevice),
                reason: Some("no Vulkan device is 0000:01:00.0".into()),
                metrics: vec![Metric { name: "x".into(), value: 1, unit: "us".into() }],
                duration_ms: 31,
                ..WorkResult::default()
            }],
            unknown: vec![],
        };
        let text = serde_json::to_string(&report).unwrap();
        insta::assert_snapshot!(text, @r#"{"version":1,"wanted":"0000:01:00.0","results":[{"name":"vulkan-compute","outcome":"skipped","cause":"no-compute-device","reason":"no Vulkan device is 0000:01:00.0","adapter":null,"metrics":[{"name":"x","value":1,"unit":"us"}],"duration_ms":31}],"unknown":[]}"#);
        assert_eq!(parse_work(text.as_bytes()), Ok(report));
    }

    #[test]
    fn words_of_a_later_version_are_no_error() {
        let later =
            br#"{"results":[{"outcome":"half","cause":"moon","adapter":{"name":"x\u001b"},"more":1}]}"#;
        let report = parse_work(later).unwrap();
        assert_eq!(report.results[0].outcome, WorkOutcome::Unknown);
        assert_eq!(report.results[0].cause, Some(WorkCause::Unknown));
        assert_eq!(report.results[0].adapter.as_ref().unwrap().name, "x\u{fffd}");
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_work(&bytes);
        }
    }
}
