//! `no43-guest watch-setup`: in Windows PE, tells the errors of Windows Setup's own logs while they grow, since a Setup that
//! waits for an answer says nothing to anybody outside.
//!
//! A line counts by its level, which is English in every Windows (`2026-11-22 20:00:09, Error   IBS   …`), and every line of
//! `setuperr.log` counts. What it means is decided outside.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::PathBuf;
use std::time::Duration;

use no43_guest::setup::event::What;

use crate::setup_command::Channels;

/// How often the logs are looked at.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Most bytes of one look; the rest comes with the next.
const CHUNK: u64 = 256 << 10;
/// Most lines in all: an error that repeats for ever must not fill COM1.
const LINES: usize = 400;
/// Characters of a line.
const LENGTH: usize = 300;
/// Lines of one event.
const AT_ONCE: usize = 10;

/// `no43-guest watch-setup`
#[derive(clap::Args)]
pub(crate) struct WatchSetup {
    /// A log that is watched, instead of those of Windows Setup; may be given again
    #[arg(long = "log", value_name = "FILE")]
    logs: Vec<PathBuf>,
    #[command(flatten)]
    channels: Channels,
}

impl WatchSetup {
    /// Watches until the machine restarts; ends by itself only after [`LINES`].
    pub(crate) fn run(&self) {
        let logs = if self.logs.is_empty() { usual() } else { self.logs.clone() };
        let mut logs: Vec<Log> = logs.into_iter().map(Log::new).collect();
        let (mut told, mut teller) = (BTreeSet::new(), self.channels.teller());
        while told.len() < LINES {
            for log in &mut logs {
                let mut lines = log.errors();
                lines.retain(|line| told.len() < LINES && told.insert(line.clone()));
                for lines in lines.chunks(AT_ONCE) {
                    let file = log.path.display().to_string();
                    teller.tell(0, What::SetupLog { file, lines: lines.to_vec() });
                }
            }
            std::thread::sleep(LOOK_AGAIN);
        }
        teller.end();
    }
}

/// Before Setup has a disk its logs are in Windows PE; afterwards on that disk, whose letter is not known.
fn usual() -> Vec<PathBuf> {
    let folders = ["X:\\Windows\\Panther".to_owned()]
        .into_iter()
        .chain(('C'..='F').map(|letter| format!("{letter}:\\$WINDOWS.~BT\\Sources\\Panther")));
    folders
        .flat_map(|folder| {
            ["setuperr.log", "setupact.log"].map(|name| PathBuf::from(format!("{folder}\\{name}")))
        })
        .collect()
}

/// One log, and how far it was read.
struct Log {
    path: PathBuf,
    at: u64,
    all_count: bool,
    part: Vec<u8>,
}

impl Log {
    fn new(path: PathBuf) -> Self {
        let all_count = path.to_string_lossy().to_ascii_lowercase().ends_with("setuperr.log");
        Self { path, at: 0, all_count, part: Vec::new() }
    }

    /// Whole lines that were not there before, and count.
    fn errors(&mut self) -> Vec<String> {
        let Ok(mut file) = File::open(&self.path) else { return Vec::new() };
        if file.metadata().is_ok_and(|facts| facts.len() < self.at) {
            (self.at, self.part) = (0, Vec::new()); // another log under the same name
        }
        let mut bytes = Vec::new();
        if file.seek(SeekFrom::Start(self.at)).is_err() || file.take(CHUNK).read_to_end(&mut bytes).is_err() {
            return Vec::new();
        }
        self.at += bytes.len() as u64;
        self.part.extend(bytes);
        let end = self.part.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let whole: Vec<u8> = self.part.drain(..end).collect();
        if self.part.len() as u64 > CHUNK {
            self.part.clear();
        }
        let text = String::from_utf8_lossy(&whole);
        text.lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && (self.all_count || is_error(line)))
            .map(short)
            .collect()
    }
}

/// The second field of a log's line is its level.
fn is_error(line: &str) -> bool {
    let level = line.split_once(", ").map_or("", |(_, rest)| rest).split_whitespace().next();
    level.is_some_and(|level| level.eq_ignore_ascii_case("error") || level.eq_ignore_ascii_case("fatal"))
}

fn short(line: &str) -> String {
    line.chars().filter(|c| !c.is_control()).take(LENGTH).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write as _;

    use super::*;
    use proptest::prelude::*;

    #[test]
    fn errors_are_told_once_they_are_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("setupact.log");
        let mut log = Log::new(path.clone());
        assert!(log.errors().is_empty(), "no log yet");
        let mut file = File::create(&path).unwrap();
        file.write_all(
            b"2026-11-22 20:00:01, Info   IBS  an error in words only\r\n2026-11-22 20:00:09, Err",
        )
        .unwrap();
        assert!(log.errors().is_empty());
        file.write_all(b"or   IBS  no disk\x07\r\n").unwrap();
        assert_eq!(log.errors(), ["2026-11-22 20:00:09, Error   IBS  no disk"]);
        assert!(log.errors().is_empty());
        fs::write(&path, "x, Error y\n").unwrap();
        assert_eq!(log.errors(), ["x, Error y"], "it begins anew");
    }

    #[test]
    fn every_line_of_the_log_of_errors_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("setuperr.log");
        fs::write(&path, "one\r\n\r\ntwo\r\n").unwrap();
        assert_eq!(Log::new(path).errors(), ["one", "two"]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn a_log_that_grows_by_any_bytes_is_read(
            parts in proptest::collection::vec(prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..50),
                Just(b"2026-11-22 20:00:09, Error   IBS  x\r\n".to_vec()),
            ], 0..8)
        ) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("setupact.log");
            let mut log = Log::new(path.clone());
            let mut file = File::create(&path).unwrap();
            for part in parts {
                file.write_all(&part).unwrap();
                for line in log.errors() {
                    prop_assert!(line.chars().count() <= LENGTH && !line.contains(char::is_control));
                }
            }
        }
    }
}
