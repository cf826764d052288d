//! Reading a run's folder back: finished, still going, or died silently.

use super::event::{Event, Record};
use super::run_dir::{Ended, Started};
use anyhow::{Context as _, Result};
use serde::de::DeserializeOwned;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

/// A line longer than this is not ours.
const MAX_LINE: u64 = 4 << 20;

/// What became of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// It ended in order.
    Finished(Ended),
    /// Its process lives.
    Running,
    /// Its process is gone and left no result: killed, out of memory, power cut.
    DiedSilently {
        /// The phase that was open, or the last event's name.
        last: String,
        /// Milliseconds from the start to the last event.
        ms: u64,
    },
}

/// A run's folder as read from disk.
#[derive(Debug, Clone)]
pub struct Run {
    /// The folder.
    pub path: PathBuf,
    /// Its start marker.
    pub started: Started,
    /// Its events in order; lines that cannot be read are left out.
    pub records: Vec<Record>,
    /// How many lines could not be read. One at the end is usual after a kill.
    pub unreadable: usize,
    /// What became of it.
    pub state: State,
}

impl Run {
    /// Reads a folder.
    ///
    /// # Errors
    /// When it is no run's folder. Damaged lines, a missing result and a missing event file are no errors.
    pub fn open(path: &Path) -> Result<Self> {
        let started: Started = json(&path.join("started.json")).with_context(|| {
            format!("{} is no folder of a run: its started.json cannot be read", path.display())
        })?;
        let (records, unreadable) = records(&path.join("events.jsonl"));
        let state = match json::<Ended>(&path.join("result.json")) {
            Ok(ended) => State::Finished(ended),
            Err(_) if lives(&started) => State::Running,
            Err(_) => died(&records),
        };
        Ok(Self { path: path.to_owned(), started, records, unreadable, state })
    }
}

fn json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let mut text = String::new();
    File::open(path)?.take(MAX_LINE).read_to_string(&mut text)?;
    Ok(serde_json::from_str(&text)?)
}

/// Events of a file that may be cut, damaged or missing.
fn records(path: &Path) -> (Vec<Record>, usize) {
    let Ok(file) = File::open(path) else { return (Vec::new(), 0) };
    let mut reader = BufReader::new(file);
    let (mut records, mut unreadable) = (Vec::new(), 0);
    loop {
        let mut line = Vec::new();
        match reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return (records, unreadable),
            Ok(_) => match serde_json::from_slice(&line) {
                Ok(record) => records.push(record),
                Err(_) => unreadable += 1,
            },
        }
    }
}

fn died(records: &[Record]) -> State {
    let mut open: Vec<&str> = Vec::new();
    for record in records {
        match &record.event {
            Event::PhaseStarted { phase, .. } => open.push(phase),
            Event::PhaseEnded { phase, .. } => open.retain(|name| name != phase),
            _ => {}
        }
    }
    let last = open.last().map_or_else(|| "between two phases".into(), |phase| format!("in phase '{phase}'"));
    State::DiedSilently { last, ms: records.last().map_or(0, |r| r.ms) }
}

/// Does the process that wrote this marker still run?
fn lives(started: &Started) -> bool {
    started.boot == boot_id() && process_start(started.pid).is_some_and(|start| start == started.pid_start)
}

/// The kernel's id of this boot; empty where it cannot be read.
pub(super) fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// Start time of a process in clock ticks since boot; none when it is gone or a zombie.
pub(super) fn process_start(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // the process name may hold blanks and brackets: fields are counted from its last bracket
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::super::{Recorder, RunDir};
    use super::*;
    use crate::verdict::Verdict;

    fn recorder<'a>(root: &Path, sink: &'a mut dyn super::super::Sink) -> Recorder<'a> {
        Recorder::new(RunDir::create(root, "lab-guest").unwrap(), sink)
    }

    #[test]
    fn a_finished_run_reads_back() {
        let root = tempfile::tempdir().unwrap();
        let mut heard = 0;
        let mut sink = |_: &Record| heard += 1;
        let mut rec = recorder(root.path(), &mut sink);
        let phase = rec.begin("agent", None, "");
        rec.end(phase, None);
        let path = rec.finish(&Verdict::Passed).unwrap();
        let run = Run::open(&path).unwrap();
        assert_eq!((run.records.len(), run.unreadable), (5, 0));
        assert!(matches!(run.state, State::Finished(Ended { exit_code: 0, .. })));
        assert_eq!(heard, 5);
    }

    #[test]
    fn a_running_one_is_not_dead() {
        let root = tempfile::tempdir().unwrap();
        let mut sink = |_: &Record| {};
        let rec = recorder(root.path(), &mut sink);
        assert_eq!(Run::open(rec.dir()).unwrap().state, State::Running);
    }

    #[test]
    fn a_killed_run_is_recognised_and_its_cut_line_skipped() {
        let root = tempfile::tempdir().unwrap();
        let mut sink = |_: &Record| {};
        let mut rec = recorder(root.path(), &mut sink);
        let _phase = rec.begin("agent", None, "");
        let path = rec.dir().to_owned();
        let marker = path.join("started.json");
        let mut started: Started = json(&marker).unwrap();
        started.pid_start += 1; // another process has the pid now
        fs::write(&marker, serde_json::to_vec(&started).unwrap()).unwrap();
        let mut text = fs::read(path.join("events.jsonl")).unwrap();
        text.extend_from_slice(br#"{"v":1,"seq":9,"ms":5,"ev"#);
        fs::write(path.join("events.jsonl"), text).unwrap();
        let run = Run::open(&path).unwrap();
        assert_eq!(run.unreadable, 1);
        assert!(
            matches!(run.state, State::DiedSilently { ref last, .. } if last == "in phase 'agent'"),
            "{:?}",
            run.state
        );
    }

    #[test]
    fn equal_frames_are_kept_once() {
        let root = tempfile::tempdir().unwrap();
        let mut sink = |_: &Record| {};
        let mut rec = recorder(root.path(), &mut sink);
        let grey = image::RgbImage::from_pixel(8, 8, image::Rgb([9, 9, 9]));
        let red = image::RgbImage::from_pixel(8, 8, image::Rgb([255, 0, 0]));
        let kept: Vec<String> =
            [&grey, &grey, &red, &red].iter().filter_map(|p| rec.frame("card 01:00", "", p)).collect();
        assert_eq!((&kept[0], &kept[2]), (&kept[1], &kept[3]));
        assert_eq!(fs::read_dir(rec.dir().join("frames")).unwrap().count(), 2);
    }
}
