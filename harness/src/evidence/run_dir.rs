//! Writing a run's folder.

use super::event::{CheckResult, EVENT_VERSION, Event, Record, Section};
use super::files::{read_log, write_atomic};
use super::frames::{FrameStore, Kept};
use crate::verdict::Verdict;
use crate::{exit_codes, words};
use anyhow::{Context as _, Result};
use image::RgbImage;
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

/// Events beyond this number are counted and left out, so that a guest that reboots for ever fills no disk.
const MAX_EVENTS: u64 = 100_000;

/// `started.json`: written before the body of the run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// The folder's name.
    pub run: String,
    /// Name of the recipe.
    pub recipe: String,
    /// Version of `no43`.
    pub no43: String,
    /// RFC 3339, UTC.
    pub started: String,
    /// Process id of the run.
    pub pid: u32,
    /// Start time of that process in clock ticks since boot, so that a reused pid is not mistaken for it.
    pub pid_start: u64,
    /// The kernel's boot id: after a reboot of the host no run of before still lives.
    pub boot: String,
}

/// `result.json`: written last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// The answer.
    pub answer: Verdict,
    /// Exit code of `no43`.
    pub exit_code: u8,
    /// Duration in milliseconds.
    pub took_ms: u64,
}

/// Who else wants to hear each event: the terminal, a CI runner.
pub trait Sink {
    /// Called with every event after it is in the file.
    fn event(&mut self, record: &Record);

    /// Called once, before the first event, with the run's folder.
    fn folder(&mut self, path: &Path) {
        let _ = path;
    }
}

impl<F: FnMut(&Record)> Sink for F {
    fn event(&mut self, record: &Record) {
        self(record);
    }
}

/// The folder of one run, with its event file open.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    id: String,
    started: Instant,
    events: File,
    seq: u64,
    /// The start, for the one who listens from the beginning.
    first: Option<Record>,
}

impl RunDir {
    /// The folder of runs: `$NO43_RUNS`, else `./runs`.
    pub fn default_root() -> PathBuf {
        std::env::var_os("NO43_RUNS")
            .filter(|v| !v.is_empty())
            .map_or_else(|| PathBuf::from("runs"), PathBuf::from)
    }

    /// Makes a new folder `<date>-<4 hex>` and writes its start marker.
    ///
    /// # Errors
    /// When the folder cannot be made or written to; the message names the path.
    pub fn create(root: &Path, recipe: &str) -> Result<Self> {
        fs::create_dir_all(root).with_context(|| {
            format!("failed to make the folder of runs {} (set NO43_RUNS to another place)", root.display())
        })?;
        let (id, path) = fresh(root)?;
        for sub in ["frames", "logs"] {
            fs::create_dir(path.join(sub))
                .with_context(|| format!("failed to make {}", path.join(sub).display()))?;
        }
        let marker = Started {
            run: id.clone(),
            recipe: words::clean(recipe),
            no43: env!("CARGO_PKG_VERSION").into(),
            started: words::rfc3339(SystemTime::now()),
            pid: std::process::id(),
            pid_start: super::read::process_start(std::process::id()).unwrap_or(0),
            boot: super::read::boot_id(),
        };
        write_atomic(&path.join("started.json"), &pretty(&marker)?)
            .with_context(|| format!("failed to write into {}", path.display()))?;
        let file = path.join("events.jsonl");
        let events = OpenOptions::new()
            .create_new(true)
            .append(true)
            .open(&file)
            .with_context(|| format!("failed to make {}", file.display()))?;
        let mut run = Self { path, id, started: Instant::now(), events, seq: 0, first: None };
        let Started { run: name, recipe, no43, started, pid, .. } = marker;
        run.first =
            Some(run.write(Section::Main, Event::RunStarted { run: name, recipe, no43, started, pid })?);
        Ok(run)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder's name, e.g. "2026-11-22-3f9c".
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Time since the start.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Milliseconds since the start.
    pub fn ms(&self) -> u64 {
        u64::try_from(self.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn write(&mut self, section: Section, event: Event) -> Result<Record> {
        let record = Record { v: EVENT_VERSION, seq: self.seq, ms: self.ms(), section, event };
        self.seq += 1;
        let last_words = matches!(
            record.event,
            Event::Verdict { .. } | Event::RunEnded { .. } | Event::ControlEnded { .. }
        );
        if record.seq < MAX_EVENTS || last_words {
            let mut line = serde_json::to_vec(&record).context("failed to write an event as JSON")?;
            line.push(b'\n');
            // one write per line: after a kill at most the last line is cut
            self.events.write_all(&line).with_context(|| {
                format!("failed to write to {}", self.path.join("events.jsonl").display())
            })?;
        }
        Ok(record)
    }
}

/// Makes the folder; its name is free by the one operation that two processes cannot both win.
fn fresh(root: &Path) -> Result<(String, PathBuf)> {
    let day = words::date(SystemTime::now());
    for _ in 0..200 {
        let id = format!("{day}-{:04x}", random() & 0xffff);
        let path = root.join(&id);
        match fs::create_dir(&path) {
            Ok(()) => return Ok((id, path)),
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(e) => {
                return Err(e).with_context(|| format!("failed to make the run's folder {}", path.display()));
            }
        }
    }
    anyhow::bail!("failed to find a free name in {}: too many runs of {day}", root.display())
}

/// A random number; only names and picture seeds depend on it.
pub(crate) fn random() -> u64 {
    // the standard library keys its hashers from the kernel's random source
    std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), Instant::now())
}

fn pretty<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec_pretty(value).context("failed to write JSON")?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// A phase that was started and must be ended by [`Recorder::end`].
#[derive(Debug)]
#[must_use = "a phase that is not ended has no duration in the report"]
pub struct Phase {
    name: String,
    since: Instant,
    /// The longest it may take.
    pub limit: Option<Duration>,
}

impl Phase {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Time since its start.
    pub fn elapsed(&self) -> Duration {
        self.since.elapsed()
    }
}

/// Writes events of one section and passes them on. A failure to write (full disk) is kept and told at the end: evidence never stops a run from giving a card back.
pub struct Recorder<'a> {
    run: RunDir,
    frames: FrameStore,
    sink: &'a mut dyn Sink,
    section: Section,
    broken: Option<anyhow::Error>,
}

impl std::fmt::Debug for Recorder<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recorder")
            .field("run", &self.run)
            .field("section", &self.section)
            .finish_non_exhaustive()
    }
}

impl<'a> Recorder<'a> {
    /// Records into a folder and tells `sink`.
    pub fn new(mut run: RunDir, sink: &'a mut dyn Sink) -> Self {
        sink.folder(&run.path);
        if let Some(first) = run.first.take() {
            sink.event(&first);
        }
        let frames = FrameStore::new(run.path.join("frames"));
        Self { run, frames, sink, section: Section::Main, broken: None }
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.run.path
    }

    /// The folder's writer.
    pub fn run(&self) -> &RunDir {
        &self.run
    }

    /// From now on events belong to this section.
    pub fn set_section(&mut self, section: Section) {
        self.section = section;
    }

    /// The section that events belong to.
    pub fn section(&self) -> Section {
        self.section
    }

    /// Writes one event.
    pub fn event(&mut self, event: Event) {
        match self.run.write(self.section, event) {
            Ok(record) => self.sink.event(&record),
            Err(error) => self.keep(error),
        }
    }

    fn keep(&mut self, error: anyhow::Error) {
        if self.broken.is_none() {
            self.broken = Some(error);
        }
    }

    /// The first failure to write evidence, if there was one.
    pub fn broken(&self) -> Option<&anyhow::Error> {
        self.broken.as_ref()
    }

    /// Starts a phase.
    pub fn begin(&mut self, name: &str, limit: Option<Duration>, note: &str) -> Phase {
        let limit_ms = limit.and_then(|l| u64::try_from(l.as_millis()).ok());
        self.event(Event::PhaseStarted { phase: name.into(), limit_ms, note: note.into() });
        Phase { name: name.into(), since: Instant::now(), limit }
    }

    /// Ends a phase, with what went wrong if something did.
    pub fn end(&mut self, phase: Phase, problem: Option<&str>) {
        let took_ms = u64::try_from(phase.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.event(Event::PhaseEnded { phase: phase.name, took_ms, problem: problem.map(words::clean) });
    }

    /// A note, or a warning.
    pub fn note(&mut self, text: impl AsRef<str>, warning: bool) {
        self.event(Event::Note { text: words::clean(text.as_ref()), warning });
    }

    /// The answer of a check.
    pub fn check(&mut self, result: CheckResult) {
        self.event(Event::Check { result });
    }

    /// Keeps a picture if it changed; returns the path in the folder of it or of the equal one of before.
    pub fn frame(&mut self, source: &str, caption: &str, picture: &RgbImage) -> Option<String> {
        let source = match self.section {
            Section::Main => source.to_owned(),
            Section::Control => format!("control {source}"),
        };
        match self.frames.add(self.run.ms(), &source, caption, picture) {
            Ok(Kept::New(frame)) => {
                let file = frame.file.clone();
                self.event(Event::FrameAdded { frame });
                Some(file)
            }
            Ok(Kept::Unchanged(file)) => Some(file),
            Ok(Kept::Full) => None,
            Err(error) => {
                self.keep(anyhow::Error::new(error).context(format!("failed to keep a picture of {source}")));
                None
            }
        }
    }

    /// Copies a log file of a daemon or of the guest into `logs/`; of a long one the middle is left out. A log that is not there is no error.
    pub fn log_file(&mut self, name: &str, title: &str, path: &Path) -> Option<String> {
        match read_log(path) {
            Ok((bytes, omitted)) if !bytes.is_empty() => self.log(name, title, &bytes, omitted),
            Ok(_) => None,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
            Err(e) => {
                self.note(format!("failed to read {}: {e}", path.display()), true);
                None
            }
        }
    }

    /// Keeps text as a log.
    pub fn log(&mut self, name: &str, title: &str, bytes: &[u8], omitted: u64) -> Option<String> {
        let stem = match self.section {
            Section::Main => words::file_word(name),
            Section::Control => words::file_word(&format!("control-{name}")),
        };
        let file = format!("logs/{stem}.log");
        match write_atomic(&self.run.path.join(&file), bytes) {
            Ok(()) => {
                self.event(Event::LogAttached {
                    file: file.clone(),
                    title: title.into(),
                    bytes: bytes.len() as u64,
                    omitted,
                });
                Some(file)
            }
            Err(e) => {
                self.keep(anyhow::Error::new(e).context(format!("failed to keep {title}")));
                None
            }
        }
    }

    /// Ends the run: verdict, last event, result marker. Returns the frame of the answer as written.
    ///
    /// # Errors
    /// The first failure to write evidence of the whole run. The verdict is then in no file, or in some only.
    pub fn finish(mut self, answer: &Verdict) -> Result<PathBuf> {
        self.section = Section::Main;
        let (exit_code, took_ms) = (exit_codes::of(answer), self.run.ms());
        self.event(Event::Verdict { answer: answer.clone() });
        self.event(Event::RunEnded { exit_code, took_ms });
        let ended = Ended { answer: answer.clone(), exit_code, took_ms };
        let path = self.run.path.clone();
        if let Err(e) = pretty(&ended).and_then(|bytes| Ok(write_atomic(&path.join("result.json"), &bytes)?))
        {
            self.keep(e.context(format!("failed to write {}", path.join("result.json").display())));
        }
        self.broken.map_or(Ok(path), Err)
    }
}
