//! The kernel's log: read without waiting, and only the lines kept that say something about a card.
//!
//! What a line means is decided by the harness; here it only gets the name of the first row of [`PATTERNS`] that
//! it matches. Without udev and systemd there is no journal, so `/dev/kmsg` is the one source everywhere.

use std::path::Path;

use no43_guest::protocol::{LogLine, Severity};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::Root;

/// Most lines that match a row of [`PATTERNS`] in one report, and most that only name a function.
const LINE_LIMIT: usize = 300;

/// Most characters kept of a line, so that a full report stays below the protocol's limit.
const LENGTH_LIMIT: usize = 400;

/// Most records read; the largest ring (`log_buf_len`) of ordinary kernels has fewer.
const RECORD_LIMIT: usize = 200_000;

struct Pattern {
    /// Name of the row in reports.
    topic: &'static str,
    /// Texts that the line contains, in this order.
    texts: &'static [&'static str],
    severity: Severity,
}

const fn row(topic: &'static str, severity: Severity, texts: &'static [&'static str]) -> Pattern {
    Pattern { topic, texts, severity }
}

use Severity::{Error, Info, Warning};

/// The first match counts, so the special rows come before the general ones.
const PATTERNS: &[Pattern] = &[
    row("nouveau-unknown-chipset", Error, &["nouveau", "unknown chipset"]),
    row("nouveau-error", Error, &["nouveau", "init failed"]),
    row("nvidia-xid", Warning, &["NVRM: Xid ("]), // the number decides; many are the fault of an application
    row("nvidia-adapter-init", Error, &["RmInitAdapter failed"]),
    row("nvidia-adapter-init", Error, &["rm_init_adapter failed"]),
    row("nvidia-off-the-bus", Error, &["fallen off the bus"]),
    row("nvidia-bar-invalid", Error, &["This PCI I/O region assigned to your NVIDIA device is invalid"]),
    row("nvidia-open-unsupported", Error, &["is not supported by open"]),
    row("nvidia-version-mismatch", Error, &["NVRM: API mismatch"]),
    row("nvidia-no-gpu", Error, &["NVRM: No NVIDIA GPU found"]),
    row("nvidia-no-gpu", Error, &["NVRM: None of the NVIDIA devices were initialized"]),
    row("nvidia-loaded", Info, &["NVRM: loading NVIDIA UNIX"]),
    row("amdgpu-init", Error, &["amdgpu", "Fatal error during GPU init"]),
    row("amdgpu-ring-timeout", Error, &["amdgpu", "ring ", " timeout"]),
    row("amdgpu-reset", Warning, &["amdgpu", "GPU reset"]),
    row("drm-error", Error, &["[drm", "*ERROR*"]),
    row("drm-error", Error, &["drm", "*ERROR*"]),
    row("firmware-missing", Warning, &["Direct firmware load for", "failed with error"]),
    row("probe-failed", Error, &["probe of ", " failed with error"]),
    row("probe-failed", Error, &["probe with driver ", " failed with error"]),
    row("d3cold", Error, &["Unable to change power state from D3cold"]),
    row("aer-corrected", Warning, &["PCIe Bus Error: severity=Corrected"]),
    row("aer", Error, &["PCIe Bus Error: severity="]),
    row("bar-no-space", Warning, &["BAR ", ": no space for"]), // a root port without I/O space says it, too
    row("bar-no-space", Warning, &["BAR ", ": failed to assign"]),
    row("audio-no-codec", Warning, &["snd_hda", "no codecs"]),
    row("audio-timeout", Warning, &["azx_get_response timeout"]),
    row("usb-died", Error, &["xhci_hcd", "HC died"]),
    row("bochs-found", Info, &["Found bochs VGA"]),
    row("drm-initialized", Info, &["[drm] Initialized "]),
    row("framebuffer", Info, &["frame buffer device"]),
];

/// Lines of the kernel log that match a pattern or name one of `addresses`. What is missing is said in `unknown`.
pub(crate) fn lines(root: &Root, addresses: &[&str], unknown: &mut Vec<String>) -> Vec<LogLine> {
    let path = root.path("dev/kmsg");
    match records(&path) {
        Ok(records) => select(records.iter().map(String::as_str), addresses, unknown),
        Err(error) => {
            unknown.push(format!("{}: {error}", path.display()));
            Vec::new()
        }
    }
}

/// All records of the ring as they are now; the read of a record that was overwritten meanwhile fails with EPIPE
/// and goes on with the oldest one that is left.
fn records(path: &Path) -> Result<Vec<String>, Errno> {
    let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?;
    let mut records = Vec::new();
    let mut buffer = [0_u8; 8192]; // no record is longer
    for _ in 0..RECORD_LIMIT {
        match rustix::io::read(&file, &mut buffer) {
            Ok(0) | Err(Errno::AGAIN) => break,
            Ok(length) => records.push(String::from_utf8_lossy(&buffer[..length]).into_owned()),
            Err(Errno::PIPE | Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(records)
}

fn select<'a>(
    records: impl Iterator<Item = &'a str>,
    addresses: &[&str],
    unknown: &mut Vec<String>,
) -> Vec<LogLine> {
    let mut kept = Vec::new();
    let (mut matching, mut naming, mut dropped) = (0_usize, 0_usize, 0_usize);
    let mut first = None;
    for (sequence, mut line) in records.filter_map(parse) {
        first.get_or_insert(sequence);
        let pattern = PATTERNS.iter().find(|pattern| contains_in_order(&line.text, pattern.texts));
        if let Some(pattern) = pattern {
            line.topic = Some(pattern.topic.to_owned());
            line.severity = pattern.severity;
        } else if !addresses.iter().any(|address| line.text.contains(address)) {
            continue;
        }
        let count = if line.topic.is_some() { &mut matching } else { &mut naming };
        *count += 1;
        if *count <= LINE_LIMIT {
            kept.push(line);
        } else {
            dropped += 1;
        }
    }
    if let Some(first) = first.filter(|first| *first > 0) {
        unknown.push(format!("kernel log: the first {first} lines are no longer there"));
    }
    if dropped > 0 {
        unknown.push(format!("kernel log: {dropped} further lines about cards left out"));
    }
    kept
}

/// Reads `level,sequence,microseconds,flags[,…];text`; further lines of the record are dictionary entries.
/// The first number is the level in its lower three bits and the facility above. Gives sequence and line.
fn parse(record: &str) -> Option<(u64, LogLine)> {
    let (head, text) = record.split_once(';')?;
    let mut numbers = head.split(',').map(|number| number.parse::<u64>().ok());
    let (level, sequence, time_us) = (numbers.next()??, numbers.next()??, numbers.next()?);
    let text = text.lines().next().unwrap_or_default().chars().take(LENGTH_LIMIT).collect();
    Some((sequence, LogLine { time_us, level: Some((level & 7) as u8), text, ..LogLine::default() }))
}

fn contains_in_order(line: &str, texts: &[&str]) -> bool {
    let mut rest = line;
    texts.iter().all(|text| match rest.find(text) {
        Some(at) => {
            rest = &rest[at + text.len()..];
            true
        }
        None => false,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn selected(records: &[&str], addresses: &[&str]) -> (String, Vec<String>) {
        let mut unknown = Vec::new();
        let lines = select(records.iter().copied(), addresses, &mut unknown);
        let lines: Vec<String> = lines
            .iter()
            .map(|l| {
                let topic = l.topic.as_deref().unwrap_or("-");
                format!("{:?} {:?} {topic} {:?}: {}", l.time_us, l.level, l.severity, l.text)
            })
            .collect();
        (lines.join("\n"), unknown)
    }

    #[test]
    fn lines_about_cards_are_kept_with_their_topic() {
        let (lines, unknown) = selected(
            &[
                "5,0,0,-;Linux version 6.1.0",
                "6,210,1093000,-;pci 0000:01:00.0: [10de:2484] type 00 class 0x038000\n SUBSYSTEM=pci\n",
                "6,211,1093100,-;pci 0000:02:00.0: something else",
                "3,402,8123456,-;nouveau 0000:01:00.0: unknown chipset (00000000)\n SUBSYSTEM=pci",
                "4,403,8123999,-;nouveau: probe of 0000:01:00.0 failed with error -12",
                "3,500,9,-;NVRM: GPU 0000:01:00.0: RmInitAdapter failed! (0x26:0x56:1482)",
                "4,501,9,-;NVRM: Xid (PCI:0000:01:00): 79, GPU has fallen off the bus.",
                "3,502,9,-;[drm:amdgpu_job_timedout [amdgpu]] *ERROR* ring gfx timeout, signaled seq=1",
                "6,503,9,-;[drm] Initialized bochs-drm 1.0.0 20130925 for 0000:01:00.0 on minor 0",
                "12,504,9,-;no43-guest: agent started after 3.1 s",
            ],
            &["0000:01:00.0"],
        );
        insta::assert_snapshot!(lines, @r"
        Some(1093000) Some(6) - Unknown: pci 0000:01:00.0: [10de:2484] type 00 class 0x038000
        Some(8123456) Some(3) nouveau-unknown-chipset Error: nouveau 0000:01:00.0: unknown chipset (00000000)
        Some(8123999) Some(4) probe-failed Error: nouveau: probe of 0000:01:00.0 failed with error -12
        Some(9) Some(3) nvidia-adapter-init Error: NVRM: GPU 0000:01:00.0: RmInitAdapter failed! (0x26:0x56:1482)
        Some(9) Some(4) nvidia-xid Warning: NVRM: Xid (PCI:0000:01:00): 79, GPU has fallen off the bus.
        Some(9) Some(3) amdgpu-ring-timeout Error: [drm:amdgpu_job_timedout [amdgpu]] *ERROR* ring gfx timeout, signaled seq=1
        Some(9) Some(6) drm-initialized Info: [drm] Initialized bochs-drm 1.0.0 20130925 for 0000:01:00.0 on minor 0
        ");
        assert!(unknown.is_empty());
    }

    #[test]
    fn lost_and_dropped_lines_are_said() {
        let record = "6,17,5,-;pci 0000:01:00.0: again";
        let (lines, unknown) = selected(&vec![record; LINE_LIMIT + 5], &["0000:01:00.0"]);
        assert_eq!(lines.lines().count(), LINE_LIMIT);
        insta::assert_snapshot!(unknown.join("\n"), @r"
        kernel log: the first 17 lines are no longer there
        kernel log: 5 further lines about cards left out
        ");
    }

    #[test]
    fn every_row_can_match() {
        for (index, pattern) in PATTERNS.iter().enumerate() {
            let line = pattern.texts.join(" … ");
            let first = PATTERNS.iter().position(|p| contains_in_order(&line, p.texts));
            assert!(first.is_some_and(|first| PATTERNS[first].topic == pattern.topic), "row {index}: {line}");
        }
    }

    proptest! {
        #[test]
        fn any_record_is_parsed(record in "[0-9]{0,25},[0-9]{0,25},[0-9-]{0,25},\\PC{0,20};\\PC{0,30}|\\PC*") {
            let _ = parse(&record);
        }
    }
}
