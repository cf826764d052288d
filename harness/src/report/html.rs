//! The report as one file that a person looks at: no script, no other file needed, pictures inside.
//!
//! The template escapes every value by itself (its name ends in `.html`); nothing here is marked as safe except the pictures' own base64.

use super::model::{Model, PhaseModel, SectionModel};
use crate::evidence::{CheckResult, Round};
use crate::words;
use anyhow::{Context as _, Result};
use base64::Engine as _;
use minijinja::value::Serde;
use minijinja::{Environment, context};
use serde::Serialize;
use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

const TEMPLATE: &str = include_str!("report.html");

/// Pictures beyond this sum stay files beside the report.
const MAX_PICTURES: u64 = 24 << 20;
/// A log's text beyond this stays in its file; its end is shown.
const MAX_LOG_TEXT: usize = 48 << 10;

/// The whole page.
pub(super) fn render(model: &Model, folder: &Path) -> Result<String> {
    let mut environment = Environment::new();
    environment.add_template("report.html", TEMPLATE).context("failed to read the report's template")?;
    environment.add_filter("duration", |ms: u64| words::duration(Duration::from_millis(ms)));
    environment.add_filter("limit", |ms: u64| words::limit(Duration::from_millis(ms)));
    environment.add_filter("bytes", words::bytes);
    let mut pictures = Pictures { folder, left: MAX_PICTURES, made: HashMap::new() };
    let main = View::of(&model.main, model.took_ms, &mut pictures);
    let control = model.control.as_ref().map(|c| View::of(c, model.took_ms, &mut pictures));
    let page = environment.get_template("report.html").context("failed to find the report's template")?;
    page.render(context! { model => Serde(model), main => Serde(main), control => Serde(control), tone => tone(model) }).context("failed to fill the report's template")
}

/// The colour of the head.
fn tone(model: &Model) -> &'static str {
    use crate::verdict::Verdict;
    match model.answer {
        Verdict::Passed => "good",
        Verdict::Failed { .. } => "bad",
        Verdict::Skipped { .. } | Verdict::Unstable { .. } => "unsure",
    }
}

/// What the template shows of a section.
#[derive(Serialize)]
struct View<'a> {
    section: &'a SectionModel,
    checks: Vec<CheckView<'a>>,
    phases: Vec<PhaseView<'a>>,
    screens: Vec<PictureView>,
    logs: Vec<LogView<'a>>,
}

#[derive(Serialize)]
struct CheckView<'a> {
    /// Stands above the first check of a repeated round.
    heading: String,
    name: &'a str,
    mark: &'static str,
    tone: &'static str,
    result: &'a CheckResult,
    reason: &'a str,
    pictures: Vec<PictureView>,
    files: Vec<&'a str>,
}

#[derive(Serialize)]
struct PhaseView<'a> {
    phase: &'a PhaseModel,
    left: f64,
    width: f64,
}

#[derive(Serialize, Clone)]
struct PictureView {
    file: String,
    caption: String,
    size: String,
    /// Time from the start of the run, "0:48".
    at: String,
    /// A data URI; empty when the picture is not inside.
    uri: String,
}

#[derive(Serialize)]
struct LogView<'a> {
    file: &'a str,
    title: &'a str,
    bytes: u64,
    omitted: u64,
    text: String,
    cut: bool,
}

impl<'a> View<'a> {
    fn of(section: &'a SectionModel, total_ms: u64, pictures: &mut Pictures<'_>) -> Self {
        let mut round = Round::First;
        let checks = section.checks.iter().map(|check| {
            let heading = if check.round == round { String::new() } else { heading(check.round) };
            round = check.round;
            check_view(section, check, heading, pictures)
        });
        let checks: Vec<_> = checks.collect();
        let shown: Vec<&str> = section.checks.iter().flat_map(|c| &c.evidence).map(String::as_str).collect();
        let screens =
            section.frames.iter().filter(|f| !shown.contains(&f.file.as_str())).map(|f| f.file.as_str());
        let screens = screens
            .collect::<Vec<_>>()
            .into_iter()
            .filter_map(|file| picture(section, file, pictures))
            .collect();
        let whole = total_ms.max(1) as f64;
        let phases = section.phases.iter().map(|phase| {
            let took = phase.took_ms.unwrap_or(total_ms.saturating_sub(phase.from_ms));
            PhaseView {
                phase,
                left: 100.0 * phase.from_ms as f64 / whole,
                width: (100.0 * took as f64 / whole).max(0.3),
            }
        });
        let logs = section.logs.iter().map(|(file, title, bytes, omitted)| {
            let (text, cut) = log_text(pictures.folder, file);
            LogView { file, title, bytes: *bytes, omitted: *omitted, text, cut }
        });
        Self { section, checks, phases: phases.collect(), screens, logs: logs.collect() }
    }
}

fn heading(round: Round) -> String {
    match round {
        Round::First => String::new(),
        Round::AfterReboot => "After a reboot of the guest".into(),
        Round::AfterColdStart => "After a cold start".into(),
        Round::AfterReplug => "After the card was taken out and plugged in again".into(),
        Round::AfterReload => "After a reload of the driver".into(),
        Round::AfterReinstall => "After a reinstallation of the driver".into(),
        Round::WithDriver(version) => format!("With driver {version}"),
        Round::AfterRollback => "After a rollback of the driver".into(),
        Round::Cycle(number) => format!("After power cycle {number}"),
        Round::AfterRun => "After the run".into(),
    }
}

fn check_view<'a>(
    section: &'a SectionModel,
    result: &'a CheckResult,
    heading: String,
    pictures: &mut Pictures<'_>,
) -> CheckView<'a> {
    use crate::evidence::Outcome;
    let (mark, tone, reason) = match &result.answer {
        Outcome::Passed => ("✔", "good", ""),
        Outcome::Failed => ("✘", "bad", ""),
        Outcome::Skipped { reason } => ("–", "unsure", reason.as_str()),
    };
    let (shown, files): (Vec<_>, Vec<_>) = result.evidence.iter().partition(|file| file.ends_with(".png"));
    let pictures = shown.into_iter().filter_map(|file| picture(section, file, pictures)).collect();
    CheckView {
        heading,
        name: &result.check,
        mark,
        tone,
        result,
        reason,
        pictures,
        files: files.into_iter().map(String::as_str).collect(),
    }
}

fn picture(section: &SectionModel, file: &str, pictures: &mut Pictures<'_>) -> Option<PictureView> {
    let frame = section.frames.iter().find(|frame| frame.file == file)?;
    let caption = if frame.caption.is_empty() { frame.source.clone() } else { frame.caption.clone() };
    Some(PictureView {
        file: file.into(),
        caption,
        size: format!("{}×{}", frame.width, frame.height),
        at: taken_at(file).unwrap_or_default(),
        uri: pictures.uri(file),
    })
}

/// "0:48" from "frames/0048.120-screen.png".
fn taken_at(file: &str) -> Option<String> {
    let seconds: u64 = file.strip_prefix("frames/")?.split_once('.')?.0.parse().ok()?;
    Some(words::clock(seconds.checked_mul(1000)?))
}

/// Pictures as data URIs, each read once, until the page is large enough.
struct Pictures<'a> {
    folder: &'a Path,
    left: u64,
    made: HashMap<String, String>,
}

impl Pictures<'_> {
    fn uri(&mut self, file: &str) -> String {
        if let Some(made) = self.made.get(file) {
            return made.clone();
        }
        let uri = self.read(file).unwrap_or_default();
        self.made.insert(file.into(), uri.clone());
        uri
    }

    fn read(&mut self, file: &str) -> Option<String> {
        // a name from an event file that somebody edited must not lead out of the run's folder
        let name = file.strip_prefix("frames/").filter(|name| plain(name))?;
        let picture = File::open(self.folder.join("frames").join(name)).ok()?;
        let size = picture.metadata().ok()?.len();
        self.left = self.left.checked_sub(size)?;
        let mut bytes = Vec::new();
        picture.take(size).read_to_end(&mut bytes).ok()?;
        Some(format!("data:image/png;base64,{}", base64::engine::general_purpose::STANDARD.encode(&bytes)))
    }
}

/// A file name without any path in it.
fn plain(name: &str) -> bool {
    !name.starts_with('.') && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-'))
}

/// The end of a log as cleaned text, and whether its beginning is left out.
fn log_text(folder: &Path, file: &str) -> (String, bool) {
    let Some(name) = file.strip_prefix("logs/").filter(|name| plain(name)) else {
        return (String::new(), false);
    };
    let text = std::fs::read(folder.join("logs").join(name)).unwrap_or_default();
    let from = text.len().saturating_sub(MAX_LOG_TEXT);
    (words::clean_block(&String::from_utf8_lossy(&text[from..]), 2 * MAX_LOG_TEXT), from > 0)
}
