//! What `Machine::start` adds to QEMU's own time from spawn to running guest CPUs, against the least that a program can do.
//!
//! Both sides start the same arguments and end when `query-status` says `running`. "By hand" is a bare socket with three
//! lines written to it: no run directory, no record, no reader thread. Pairs are interleaved and their order alternates, so
//! that what else the host does falls on both alike. Run: `spawn_bench [--pairs N] [--json]`.

use std::error::Error;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use no43_machine::{Accel, Machine, MachineSpec, StartOptions, StopLimits};
use serde_json::{Value, json};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Resamples of the bootstrap.
const RESAMPLES: usize = 4000;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let value = |flag: &str| {
        arguments.iter().position(|argument| argument == flag).and_then(|at| arguments.get(at + 1))
    };
    let pairs: usize = value("--pairs").map_or(Ok(50), |text| text.parse())?;
    let spec = MachineSpec { memory_mib: 128, ..MachineSpec::new("bench", Accel::Tcg) };
    let dir = tempfile::Builder::new().prefix("no43-bench-").tempdir_in(place())?;
    // QEMU's own files into the host's cache.
    ours(&spec, dir.path())?;
    let (mut no43, mut by_hand) = (Vec::new(), Vec::new());
    for pair in 0..pairs {
        if pair % 2 == 0 {
            no43.push(ours(&spec, dir.path())?);
            by_hand.push(hand(&spec, dir.path())?);
        } else {
            by_hand.push(hand(&spec, dir.path())?);
            no43.push(ours(&spec, dir.path())?);
        }
    }
    let [low, high] = interval(&no43, &by_hand);
    let (median_ours, median_hand) = (median(&no43), median(&by_hand));
    let report = json!({
        "pairs": pairs,
        "no43_ms": no43,
        "by_hand_ms": by_hand,
        "no43_median_ms": median_ours,
        "by_hand_median_ms": median_hand,
        "added_ms": median_ours - median_hand,
        "added_95_ms": [low, high],
    });
    if arguments.iter().any(|argument| argument == "--json") {
        println!("{report}");
    } else {
        println!(
            "no43 {median_ours:.2} ms, by hand {median_hand:.2} ms (medians of {pairs} interleaved pairs)"
        );
        println!(
            "added {:.2} ms, 95 % of resamples between {low:.2} and {high:.2} ms",
            median_ours - median_hand
        );
    }
    Ok(())
}

/// Where no43 keeps its run directories: in memory (tmpfs). On a disk both sides would wait for what else is written there.
fn place() -> PathBuf {
    let user = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let in_memory = |dir: &PathBuf| rustix::fs::statfs(dir).is_ok_and(|found| found.f_type == 0x0102_1994);
    let fits = |dir: &PathBuf| in_memory(dir) && tempfile::tempdir_in(dir).is_ok();
    [Some("/run".into()), user, Some("/dev/shm".into())]
        .into_iter()
        .flatten()
        .find(fits)
        .unwrap_or("/tmp".into())
}

/// Milliseconds from the call until the guest's CPUs run, by this crate.
fn ours(spec: &MachineSpec, dir: &Path) -> Result<f64> {
    let options = StartOptions::new(dir.join("m"));
    let began = Instant::now();
    let machine = Machine::start(spec, &options)?;
    let status = machine.qmp().raw("query-status", Value::Null)?;
    let took = began.elapsed();
    if status["running"] != true {
        return Err(format!("the guest's CPUs do not run: {status}").into());
    }
    machine.stop(StopLimits::at_once());
    Ok(took.as_secs_f64() * 1e3)
}

/// The same by hand.
fn hand(spec: &MachineSpec, dir: &Path) -> Result<f64> {
    let options = StartOptions::new(dir.join("m"));
    let argv = spec.argv(&options.dirs);
    let _ = std::fs::remove_file(options.dirs.agent_socket());
    let socket = dir.join("hand.sock");
    let _ = std::fs::remove_file(&socket);
    let began = Instant::now();
    let listener = UnixListener::bind(&socket)?;
    let stream = UnixStream::connect(&socket)?;
    let mut child = Command::new("qemu-system-x86_64")
        .args(&argv)
        .stdin(OwnedFd::from(listener))
        .stdout(Stdio::null())
        .stderr(File::create(dir.join("hand.err"))?)
        .spawn()?;
    let mut writer = stream.try_clone()?;
    let mut lines = BufReader::new(stream).lines();
    let mut next = || lines.next().ok_or("QEMU hung up")?.map_err(Box::<dyn Error>::from);
    next()?;
    writer.write_all(b"{\"execute\": \"qmp_capabilities\"}\n{\"execute\": \"query-status\"}\n")?;
    let running = loop {
        let line: Value = serde_json::from_str(&next()?)?;
        if let Some(running) = line.pointer("/return/running") {
            break running == true;
        }
    };
    let took = began.elapsed();
    writer.write_all(b"{\"execute\": \"quit\"}\n")?;
    child.wait()?;
    if running { Ok(took.as_secs_f64() * 1e3) } else { Err("the guest's CPUs do not run".into()) }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 }
}

/// The middle 95 % of the difference of medians over resampled pairs. The generator is fixed, so the same times always give
/// the same interval.
fn interval(one: &[f64], other: &[f64]) -> [f64; 2] {
    let mut state = 43u64;
    let mut next = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap_or(0) % below
    };
    let mut differences: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let picks: Vec<usize> = one.iter().map(|_| next(one.len())).collect();
            let pick = |values: &[f64]| median(&picks.iter().map(|&index| values[index]).collect::<Vec<_>>());
            pick(one) - pick(other)
        })
        .collect();
    differences.sort_by(f64::total_cmp);
    [differences[RESAMPLES / 40], differences[RESAMPLES - 1 - RESAMPLES / 40]]
}
