//! The command line of `work`, the choice of what is done, and one process per piece with its limit.

use std::ffi::OsStr;
use std::io::Read as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use no43_guest::nvidia::NvidiaFacts;
use no43_guest::protocol::{GuestFunction, PROTOCOL_VERSION};
use no43_guest::work::{WORK, Work, WorkCause, WorkOutcome, WorkReport, WorkResult, default_work};

use super::target::Target;
use crate::hand_over;
use crate::native::nvml;
use crate::smi;

use super::{PROGRAMS, Stop, Task};

/// Most bytes that a piece of work may answer with.
const ANSWER_LIMIT: u64 = 64 << 10;

/// Most bytes that `nvidia-smi` may print; each card has some 25 KB.
const PROGRAM_LIMIT: u64 = 1 << 20;

/// Options of `work`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// The card: its PCI address in the guest, its ids as 10de:2484, or `software` to try the programs without a
    /// card; without it the first card that is there
    #[arg(long, value_name = "ADAPTER")]
    adapter: Option<String>,
    /// Only this work; may be given again. Without it, what the table says for this guest and card
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Percent of the free video memory that the memory test takes
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u8).range(1..=95))]
    memory_percent: u8,
    /// Picks the numbers that are worked on
    #[arg(long, value_name = "N", default_value_t = 43)]
    seed: u32,
    /// End a piece of work after so long instead of its own limit
    #[arg(long, value_name = "N")]
    limit_seconds: Option<u64>,
    /// Print JSON for the harness instead of text for a person
    #[arg(long)]
    json: bool,
    /// Folder for pictures that work leaves
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Hand work that needs a desktop over to the session of whoever is logged on, also from that session
    #[arg(long, hide = true)]
    hand_over: bool,
    /// List the work that there is and what it shows
    #[arg(long, conflicts_with = "only")]
    list: bool,
}

/// Options of the process that does one piece.
#[derive(clap::Args)]
pub(crate) struct Item {
    name: String,
    #[arg(long)]
    adapter: String,
    #[arg(long)]
    memory_percent: u8,
    #[arg(long)]
    seed: u32,
    #[arg(long)]
    out: Option<PathBuf>,
    /// A file for the answer instead of standard output, which a scheduled task does not have
    #[arg(long)]
    answer: Option<PathBuf>,
}

/// `linux` or `windows`.
const GUEST: &str = if cfg!(windows) { "windows" } else { "linux" };

impl Options {
    /// Does the work and prints how it ended; `false`: something failed.
    pub(crate) fn run(&self, functions: &[GuestFunction]) -> Result<bool> {
        if self.list {
            for row in WORK.iter().filter(|row| row.guests.contains(&GUEST)) {
                println!("{:<16} {}", row.name, row.shows);
            }
            return Ok(true);
        }
        let report = self.work(functions)?;
        if self.json {
            println!("{}", serde_json::to_string(&report)?);
        } else {
            report.results.iter().for_each(|result| println!("{}", human(result)));
        }
        Ok(report.results.iter().all(|result| result.outcome != WorkOutcome::Failed))
    }

    fn work(&self, functions: &[GuestFunction]) -> Result<WorkReport> {
        let adapter = match &self.adapter {
            Some(adapter) => adapter.as_str(),
            None => Target::choose(functions).context("this guest has no display function on PCI")?,
        };
        let target = Target::resolve(adapter, functions).map_err(anyhow::Error::msg)?;
        let rows = self.chosen(&target)?;
        let program = std::env::current_exe().context("failed to find this program's own file")?;
        let results = rows.iter().map(|row| self.one(&program, row, adapter)).collect();
        Ok(WorkReport { version: PROTOCOL_VERSION, wanted: adapter.to_owned(), results, unknown: Vec::new() })
    }

    fn chosen(&self, target: &Target) -> Result<Vec<&'static Work>> {
        if self.only.is_empty() {
            return Ok(default_work(GUEST, target.vendor()).collect());
        }
        let row = |name: &String| match WORK.iter().find(|row| row.name == name) {
            Some(row) if row.guests.contains(&GUEST) => Ok(row),
            Some(_) => bail!("{name} is no work for {GUEST} guests"),
            None => {
                let names: Vec<_> = WORK.iter().map(|row| row.name).collect();
                bail!("no work is called {name:?}; there is {}", names.join(", "))
            }
        };
        self.only.iter().map(row).collect()
    }

    /// In the session of the logged-on user, if this one has no desktop; `None`: it has.
    #[cfg(windows)]
    fn handed_over(&self, words: Vec<String>, limit: Duration) -> Option<Result<Vec<u8>, Stop>> {
        if !self.hand_over && !hand_over::is_needed() {
            return None;
        }
        Some(hand_over::run(words, limit, self.out.as_deref()).map_err(|why| no_answer(why, limit)))
    }

    /// Linux has no such sessions.
    #[cfg(not(windows))]
    fn handed_over(&self, _: Vec<String>, _: Duration) -> Option<Result<Vec<u8>, Stop>> {
        None
    }

    /// One piece in its own process.
    fn one(&self, program: &std::path::Path, row: &Work, adapter: &str) -> WorkResult {
        let start = Instant::now();
        let limit = Duration::from_secs(self.limit_seconds.unwrap_or(row.limit_seconds));
        let (percent, seed) = (self.memory_percent.to_string(), self.seed.to_string());
        let words =
            ["work-item", row.name, "--adapter", adapter, "--memory-percent", &percent, "--seed", &seed];
        let here = || {
            let mut command = Command::new(program);
            command.args(words);
            command.args(self.out.iter().flat_map(|out| [OsStr::new("--out"), out.as_os_str()]));
            answer(command, limit, Until::Line)
        };
        let words = words.map(str::to_owned).to_vec();
        let handed = if row.session { self.handed_over(words, limit) } else { None };
        let mut result = handed
            .unwrap_or_else(here)
            .and_then(|bytes| read(&bytes))
            .unwrap_or_else(|stop| ended(row.name, Err(stop)));
        result.name = row.name.to_owned();
        result.duration_ms = start.elapsed().as_millis() as u64;
        result
    }
}

/// What a handed-over piece of work that gave no answer counts as.
#[cfg(windows)]
fn no_answer(why: hand_over::NoAnswer, limit: Duration) -> Stop {
    let cause = match why {
        hand_over::NoAnswer::Overdue => WorkCause::TimedOut,
        _ => WorkCause::NoSession,
    };
    Stop::new(cause, why.text(limit))
}

/// Reads the answer of a process of this same program. Not by way of `serde_json::Value`, whose maps need random numbers
/// from a library that Wine and old Windows lack; whoever receives the report bounds it.
fn read<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, Stop> {
    serde_json::from_slice(bytes)
        .map_err(|error| Stop::new(WorkCause::Crashed, format!("its answer cannot be read: {error}")))
}

/// What NVML says, asked in a process of its own; `None` where no function is driven by NVIDIA's driver. Why it says
/// nothing is added to `unknown`.
pub(crate) fn nvml(functions: &[GuestFunction], unknown: &mut Vec<String>) -> Option<NvidiaFacts> {
    const LIMIT: Duration = Duration::from_secs(10); // the first start of a card's driver takes seconds
    if !is_driven(functions) {
        return None;
    }
    let mut command = Command::new(std::env::current_exe().ok()?);
    command.arg("nvml");
    let facts: Result<NvidiaFacts, Stop> = answer(command, LIMIT, Until::Line).and_then(|bytes| read(&bytes));
    let mut facts = facts.map_err(|stop| unknown.push(format!("NVML: {}", stop.reason))).ok()?;
    if facts.driver_version.is_some() || !facts.cards.is_empty() {
        return Some(facts);
    }
    unknown.extend(facts.unknown.drain(..).map(|reason| format!("NVML: {reason}")));
    None
}

/// What `nvidia-smi` says, where a function is driven by NVIDIA's driver, like [`nvml`].
pub(crate) fn nvidia_smi(functions: &[GuestFunction], unknown: &mut Vec<String>) -> Option<NvidiaFacts> {
    if !is_driven(functions) {
        return None;
    }
    smi_facts().map_err(|reason| unknown.push(format!("nvidia-smi: {reason}"))).ok()
}

/// Asks `nvidia-smi`; the error is why it says nothing.
fn smi_facts() -> Result<NvidiaFacts, String> {
    const LIMIT: Duration = Duration::from_secs(15); // it starts the driver, if nobody else has
    let mut command = Command::new(smi_program());
    command.args(["-q", "-x"]);
    let bytes = answer(command, LIMIT, Until::End).map_err(|stop| stop.reason)?;
    smi::parse(&String::from_utf8_lossy(&bytes))
}

/// Where the driver puts it: in Windows beside the system's own programs, and nowhere else is it looked for.
fn smi_program() -> PathBuf {
    if cfg!(windows) {
        let root = std::env::var_os("SystemRoot").unwrap_or_else(|| r"C:\Windows".into());
        std::path::Path::new(&root).join(r"System32\nvidia-smi.exe")
    } else {
        "nvidia-smi".into()
    }
}

/// Prints what `nvidia-smi` says, or why it says nothing; the exit code is 1 then.
pub(crate) fn print_nvidia_smi() -> Result<u8> {
    print_facts(smi_facts())
}

/// Prints what NVML says, or why it says nothing; the exit code is 1 then.
pub(crate) fn print_nvml() -> Result<u8> {
    print_facts(nvml::facts())
}

fn print_facts(facts: Result<NvidiaFacts, String>) -> Result<u8> {
    let code = u8::from(facts.is_err());
    let facts =
        facts.unwrap_or_else(|reason| NvidiaFacts { unknown: vec![reason], ..NvidiaFacts::default() });
    println!("{}", serde_json::to_string(&facts)?);
    Ok(code)
}

/// Whether NVIDIA's own driver has one of these.
fn is_driven(functions: &[GuestFunction]) -> bool {
    functions.iter().any(|f| matches!(f.driver.as_deref(), Some("nvidia" | "nvlddmkm")))
}

/// What a process answers with.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Until {
    /// One line: it may be ended as soon as that is there.
    Line,
    /// All that it prints.
    End,
}

/// Runs a process to its end or to `limit`, and reads its answer.
fn answer(mut command: Command, limit: Duration, until: Until) -> Result<Vec<u8>, Stop> {
    let failed =
        |what: &str, error: std::io::Error| Stop::new(WorkCause::Crashed, format!("{what}: {error}"));
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null()) // drivers' libraries write there whatever they like
        .spawn()
        .map_err(|error| failed("its process did not start", error))?;
    let stdout = child.stdout.take();
    // Whoever inherited the output may hold it open, so a thread reads and nobody waits for it after the limit.
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(stdout) = stdout {
            let most = if until == Until::Line { ANSWER_LIMIT } else { PROGRAM_LIMIT };
            let mut stdout = std::io::BufReader::new(stdout.take(most));
            let _ = match until {
                Until::Line => std::io::BufRead::read_until(&mut stdout, b'\n', &mut bytes),
                Until::End => stdout.read_to_end(&mut bytes),
            };
            let _ = sender.send(bytes);
            let _ = std::io::copy(&mut stdout.into_inner().into_inner(), &mut std::io::sink());
        }
    });
    let bytes = receiver.recv_timeout(limit);
    if bytes.is_err() {
        let _ = child.kill();
    }
    let whole = |bytes: &Vec<u8>| bytes.ends_with(b"\n") || until == Until::End && !bytes.is_empty();
    let told = bytes.as_ref().is_ok_and(whole);
    if told {
        let _ = child.kill(); // the answer is all that was wanted; some drivers hang at the end of a process
    }
    let status = child.wait().map_err(|error| failed("its process is lost", error))?;
    match bytes {
        Err(_) => Err(Stop::new(
            WorkCause::TimedOut,
            format!("it did not end within {} s and was ended", limit.as_secs()),
        )),
        Ok(bytes) if told => Ok(bytes),
        Ok(_) => Err(Stop::new(WorkCause::Crashed, format!("its process ended without an answer: {status}"))),
    }
}

impl Item {
    /// Does one piece and prints its result as one line.
    pub(crate) fn run(&self, functions: &[GuestFunction]) -> Result<()> {
        let target = Target::resolve(&self.adapter, functions).map_err(anyhow::Error::msg)?;
        let task =
            Task { target, memory_percent: self.memory_percent, seed: self.seed, out: self.out.clone() };
        let mut result = WorkResult::default();
        let program = PROGRAMS.iter().find(|(name, _)| *name == self.name).map(|(_, program)| *program);
        let done = match program {
            Some(program) => program(&task, &mut result),
            None => Err(Stop::new(WorkCause::NotSupported, "this version of the program does not have it")),
        };
        let outcome = ended(&self.name, done);
        result = WorkResult {
            adapter: result.adapter,
            metrics: result.metrics,
            picture: result.picture,
            ..outcome
        };
        let line = format!("{}\n", serde_json::to_string(&result)?);
        hand_over::leave(line.as_bytes(), self.answer.as_deref())
    }
}

fn ended(name: &str, done: Result<(), Stop>) -> WorkResult {
    let (outcome, cause, reason) = match done {
        Ok(()) => (WorkOutcome::Passed, None, None),
        Err(stop) if stop.cause.skips() => (WorkOutcome::Skipped, Some(stop.cause), Some(stop.reason)),
        Err(stop) => (WorkOutcome::Failed, Some(stop.cause), Some(stop.reason)),
    };
    WorkResult { name: name.to_owned(), outcome, cause, reason, ..WorkResult::default() }
}

/// One line for a person.
fn human(result: &WorkResult) -> String {
    let word = match result.outcome {
        WorkOutcome::Passed => "passed ",
        WorkOutcome::Failed => "FAILED ",
        WorkOutcome::Skipped => "skipped",
        WorkOutcome::Unknown => "unknown",
    };
    let mut line = format!("{word} {:<16} {:>6} ms", result.name, result.duration_ms);
    if let Some(adapter) = &result.adapter {
        let software = if adapter.software == Some(true) { " (software)" } else { "" };
        line += &format!("  {}{software}", adapter.name);
    }
    for m in &result.metrics {
        line += &match m.unit.as_str() {
            "bytes" => format!("  {} {:.1} GiB", m.name, m.value as f64 / 1_073_741_824.0),
            "bytes/s" => format!("  {} {:.1} GB/s", m.name, m.value as f64 / 1e9),
            unit => format!("  {} {} {unit}", m.name, m.value),
        };
    }
    line + &result.reason.as_ref().map(|reason| format!("  {reason}")).unwrap_or_default()
}
