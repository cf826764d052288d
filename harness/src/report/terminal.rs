//! The run as a person watches it, and as `no43 report RUN` prints it again: the same lines from the same events.

use crate::diagnosis::Finding;
use crate::evidence::read::Run;
use crate::evidence::{CardFacts, CheckResult, Event, Outcome, Record, Round, Section, Sink};
use crate::verdict::Verdict;
use crate::words;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

/// How lines are painted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Style {
    /// With ANSI colours.
    pub colour: bool,
    /// Progress (phases with durations) is printed, too.
    pub phases: bool,
}

impl Style {
    /// Colour where `stream` is a terminal and `NO_COLOR` is not set.
    pub fn for_stream(stream: &impl IsTerminal) -> Self {
        let plain = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty())
            || std::env::var_os("TERM").is_some_and(|t| t == "dumb");
        Self { colour: stream.is_terminal() && !plain, phases: false }
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

const GREEN: &str = "32";
const RED: &str = "31";
const YELLOW: &str = "33";
const DIM: &str = "2";
const BOLD_GREEN: &str = "1;32";
const BOLD_RED: &str = "1;31";
const BOLD_YELLOW: &str = "1;33";

/// Prints a run while it happens.
pub struct Live<W: Write> {
    out: W,
    style: Style,
    /// Passed checks of a repeated round, told in one line.
    again: Vec<String>,
    again_after: String,
    /// Check, card and reason of what was skipped and told.
    skipped: Vec<(String, String, String)>,
    causes: usize,
    /// A check has told why the run fails.
    told: bool,
    /// Was work skipped, and was any done?
    work: (bool, bool),
    report: Option<String>,
}

impl<W: Write> std::fmt::Debug for Live<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Live").field("style", &self.style).finish_non_exhaustive()
    }
}

impl<W: Write> Live<W> {
    /// Prints to `out`.
    pub fn new(out: W, style: Style) -> Self {
        Self {
            out,
            style,
            again: Vec::new(),
            again_after: String::new(),
            skipped: Vec::new(),
            causes: 0,
            told: false,
            work: (false, false),
            report: None,
        }
    }

    fn line(&mut self, text: &str) {
        let _ = writeln!(self.out, "  {text}"); // a closed pipe must not end a run that holds a card
    }

    /// One row: a mark, a name in a column of 10, the rest.
    fn row(&mut self, mark: (&str, &str), name: &str, text: &str) {
        let mark = self.style.paint(mark.1, mark.0);
        self.line(&format!("{mark} {name:<10} {text}"));
    }

    fn check(&mut self, result: &CheckResult, section: Section) {
        if section == Section::Control {
            return; // its checks are red on purpose; its one line comes at its end
        }
        if result.round.is_again() && result.passed() {
            let after = result.round.suffix().trim_start_matches(" again ").to_owned();
            if after != self.again_after {
                self.flush_again();
                self.again_after = after;
            }
            if !self.again.contains(&result.check) {
                self.again.push(result.check.clone());
            }
            return;
        }
        // what the first round had no answer to has none later either: said once
        if let Outcome::Skipped { reason } = &result.answer {
            let told = (result.check.clone(), result.card.clone(), reason.clone());
            if matches!(result.round, Round::Cycle(_)) || self.skipped.contains(&told) {
                return;
            }
            self.skipped.push(told);
        }
        self.flush_again();
        if result.check == "work" {
            self.work = (self.work.0 || !result.passed(), self.work.1 || result.passed());
        }
        match &result.answer {
            Outcome::Passed => self.row(("✔", GREEN), &result.check, &result.seen),
            Outcome::Skipped { reason } => {
                self.row(("–", YELLOW), &result.full_name(), &format!("skipped: {reason}"));
            }
            Outcome::Failed => self.failed(result),
        }
    }

    fn failed(&mut self, result: &CheckResult) {
        self.told = true;
        self.row(("✘", RED), &result.full_name(), &result.seen);
        self.line(&format!("    expected  {}", result.expected));
        for line in result.guest_lines.iter().take(5) {
            self.line(&format!("    guest     {line}"));
        }
        for file in result.evidence.iter().take(3) {
            self.line(&format!("    see       {file}"));
        }
    }

    fn flush_again(&mut self) {
        if !self.again.is_empty() {
            let text = format!("{}: {}", self.again_after, self.again.join(", "));
            self.again.clear();
            self.row(("✔", GREEN), "again", &text);
        }
    }

    fn card(&mut self, card: &CardFacts) {
        let text =
            format!("{}  {} ({})  → {}", card.name, card.slot, card.roles.join(" "), whose(card.stays));
        self.line(&format!("card     {text}"));
    }

    fn cause(&mut self, finding: &Finding) {
        self.causes += 1;
        let number = self.causes;
        let list = |l: &[String]| if l.is_empty() { "–".to_owned() } else { l.join("; ") };
        self.line(&format!("    {number}  {}", finding.cause));
        self.line(&format!(
            "       for: {}   against: {}",
            list(&finding.speaks_for),
            list(&finding.speaks_against)
        ));
        if finding.likely {
            self.line(&format!("       fix   {}", finding.fix));
            if let Some(missing) = finding.missing.first() {
                let more = finding.missing.len() - 1;
                let more =
                    if more > 0 { format!(" and {more} more: no43 diagnose RUN") } else { String::new() };
                self.line(&format!("       unknown  {missing}{more}"));
            }
        } else {
            self.line("       not likely");
        }
    }

    fn control(&mut self, fails_in: &str, as_it_must: bool, line: &str) {
        let text = if as_it_must {
            format!("failed in '{fails_in}' as it must ({line})")
        } else {
            self.style.paint(RED, &format!("did not fail as it must: {line}"))
        };
        self.line(&format!("control  {text}"));
    }

    fn verdict(&mut self, answer: &Verdict, ms: u64) {
        let colour = match answer {
            Verdict::Passed => BOLD_GREEN,
            Verdict::Failed { .. } => BOLD_RED,
            _ => BOLD_YELLOW,
        };
        let headline = super::model::headline(answer, self.work == (true, false));
        let headline = self.style.paint(colour, &headline);
        // that a check failed was told; that it had held before was not
        let told = self.told && !matches!(answer, Verdict::Unstable { .. });
        if !answer.reason().is_empty() && !told {
            let mark = if matches!(answer, Verdict::Failed { .. }) { ("✘", RED) } else { ("–", YELLOW) };
            self.row(mark, "run", answer.reason());
        }
        let code = match crate::exit_codes::of(answer) {
            0 => String::new(),
            code => format!("   exit code {code}"),
        };
        let report = self.report.as_ref().map(|path| format!("      report: {path}")).unwrap_or_default();
        self.line(&format!("{headline} in {}{code}{report}", words::duration(Duration::from_millis(ms))));
    }
}

impl<W: Write> Sink for Live<W> {
    fn folder(&mut self, path: &Path) {
        self.report = Some(path.join("report.html").display().to_string());
    }

    fn event(&mut self, record: &Record) {
        let round_over =
            matches!(&record.event, Event::PhaseEnded { phase, .. } if phase.starts_with("checks"));
        if round_over
            || matches!(
                record.event,
                Event::Diagnosis { .. } | Event::ControlEnded { .. } | Event::Verdict { .. }
            )
        {
            self.flush_again();
        }
        match &record.event {
            Event::Card { card } if record.section == Section::Main => self.card(card),
            Event::Check { result } => self.check(result, record.section),
            Event::DumpKept { file, bytes, stop } => {
                self.row(("!", YELLOW), "dump", &format!("{file} ({}): {stop}", words::bytes(*bytes)));
            }
            Event::Note { text, warning: true } => self.row(("!", YELLOW), "note", text),
            Event::Note { text, warning: false } if self.style.phases => {
                let text = self.style.paint(DIM, text);
                self.line(&text);
            }
            Event::PhaseEnded { phase, took_ms, problem } if self.style.phases => {
                let whose = if record.section == Section::Control { "control: " } else { "" };
                let took = words::duration(Duration::from_millis(*took_ms));
                let problem = problem.as_ref().map(|p| format!("  {p}")).unwrap_or_default();
                let text =
                    self.style.paint(DIM, &format!("{:<12} {took}{problem}", format!("{whose}{phase}")));
                self.line(&text);
            }
            Event::ControlEnded { fails_in, as_it_must, line } => self.control(fails_in, *as_it_must, line),
            Event::Diagnosis { cause } if record.section == Section::Main => self.cause(cause),
            Event::Verdict { answer } => self.verdict(answer, record.ms),
            _ => {}
        }
        let _ = self.out.flush();
    }
}

/// Prints a run that is over.
pub(super) fn replay(run: &Run, style: Style, out: &mut Vec<u8>) {
    let mut live = Live::new(out, style);
    live.folder(&run.path);
    for record in &run.records {
        live.event(record);
    }
    let answered = run.records.iter().any(|r| matches!(r.event, Event::Verdict { .. }));
    if !answered {
        let model = super::Model::of(run);
        live.verdict(&model.answer, model.took_ms);
    }
}

/// What becomes of a card.
fn whose(stays: bool) -> &'static str {
    if stays { "stays in the VM that runs" } else { "VM, given back afterwards" }
}
