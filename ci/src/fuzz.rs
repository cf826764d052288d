//! The stage `fuzz`: every property test of every crate, each for its share of the time, with ever more cases and a new seed each round.
//!
//! A property test is a function inside of `proptest!`; all parsers of foreign bytes have one. The stage finds them in the sources, and the
//! test programs by cargo, so that a new one is fuzzed without being named anywhere.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read as _, Seek as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use xshell::{Shell, cmd};

use crate::steps::{Counts, Outcome, Step, seconds};

/// How long all tests together take, unless `--fuzz-seconds` says otherwise.
pub(crate) const SECONDS: u64 = 600;
/// Cases of the first round: proptest's own default.
const FIRST: u64 = 256;
/// Most cases of a round.
const MOST: u64 = 20_000_000;
/// A round that takes so much longer than the ones before let expect hangs.
const HANGS: u32 = 10;
/// For the start of a program on a busy machine.
const SLACK: Duration = Duration::from_secs(60);
/// Between two looks at a program.
const LOOK: Duration = Duration::from_millis(20);

/// One property test.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Test {
    /// The test program.
    program: PathBuf,
    /// Its package's folder.
    folder: PathBuf,
    /// The test's full name.
    name: String,
}

/// What came of a test.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// So many rounds, without a finding.
    Quiet { rounds: u32, time: Duration },
    /// What was found, and how it is found again.
    Found(String),
}

/// Fuzzes for `total`, on every processor; only the tests whose name holds `only`.
pub(crate) fn run(sh: &Shell, root: &Path, total: Duration, only: Option<&str>) -> Result<Step> {
    eprintln!("── fuzz");
    let began = Instant::now();
    let mut tests = tests(sh, root)?;
    tests.retain(|test| only.is_none_or(|only| test.name.contains(only)));
    ensure!(!tests.is_empty(), "no property test of that name");
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(tests.len());
    let share = total * threads as u32 / tests.len() as u32;
    let base = seed();
    eprintln!(
        "  {} property tests, {} each, {threads} at a time, first seed {base}",
        tests.len(),
        seconds(share)
    );
    let (queue, seeds) = (Mutex::new(tests.iter()), AtomicU64::new(base));
    let ends = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(test) = queue.lock().ok().and_then(|mut queue| queue.next()) {
                    let end = fuzz(test, share, &seeds);
                    match &end {
                        End::Found(what) => println!("  FAILED {}\n{what}", test.name),
                        // its first round alone is longer
                        End::Quiet { time, .. } if *time > share * 3 / 2 => {
                            println!("  {} took {} instead", test.name, seconds(*time));
                        }
                        End::Quiet { .. } => {}
                    }
                    if let Ok(mut ends) = ends.lock() {
                        ends.push(end);
                    }
                }
            });
        }
    });
    let ends = ends.into_inner().unwrap_or_default();
    let failed = ends.iter().filter(|end| matches!(end, End::Found(_))).count();
    let rounds: u32 =
        ends.iter().map(|end| if let End::Quiet { rounds, .. } = end { *rounds } else { 0 }).sum();
    let time = began.elapsed();
    println!(
        "  {rounds} rounds in {}, {failed} findings, last seed {}",
        seconds(time),
        seeds.load(Ordering::Relaxed)
    );
    let outcome = if failed == 0 { Outcome::Passed } else { Outcome::Failed };
    let counts = Counts { passed: tests.len() - failed, failed, skipped: 0 };
    Ok(Step { name: "fuzz".to_owned(), outcome, time, counts })
}

/// From the clock: each run looks elsewhere.
fn seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    now.as_secs() * 1_000_000
}

/// Every property test of the workspace.
fn tests(sh: &Shell, root: &Path) -> Result<Vec<Test>> {
    let mut names = BTreeSet::new();
    sources(root, &mut names)?;
    let built = cmd!(sh, "cargo test -q --workspace --no-run --message-format=json").read()?;
    let mut tests = Vec::new();
    for (program, folder) in built.lines().filter_map(program) {
        let list = Command::new(&program)
            .args(["--list", "--format", "terse"])
            .current_dir(&folder)
            .output()
            .with_context(|| format!("failed to start {}", program.display()))?;
        for line in String::from_utf8_lossy(&list.stdout).lines() {
            let Some(name) = line.strip_suffix(": test") else { continue };
            if names.contains(name.rsplit("::").next().unwrap_or(name)) {
                tests.push(Test { program: program.clone(), folder: folder.clone(), name: name.to_owned() });
            }
        }
    }
    Ok(tests)
}

/// A test program, from a line of cargo's, with its package's folder.
fn program(line: &str) -> Option<(PathBuf, PathBuf)> {
    let value: Value = serde_json::from_str(line).ok()?;
    let is_test = value["profile"]["test"].as_bool()?;
    let program = value["executable"].as_str().filter(|_| is_test)?;
    let folder = Path::new(value["manifest_path"].as_str()?).parent()?;
    Some((program.into(), folder.to_owned()))
}

/// Names of the functions inside of `proptest!`, in all sources below a folder.
fn sources(folder: &Path, names: &mut BTreeSet<String>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("failed to read {}", folder.display()))? {
        let path = entry?.path();
        let hidden = path
            .file_name()
            .is_some_and(|name| name == "target" || name.as_encoded_bytes().starts_with(b"."));
        if path.is_dir() && !hidden && !path.is_symlink() {
            sources(&path, names)?;
        } else if path.extension().is_some_and(|end| end == "rs") {
            names.extend(properties(&fs::read_to_string(&path)?));
        }
    }
    Ok(())
}

/// The same in one source as rustfmt writes it: the macro ends with a brace as far in as it began.
fn properties(source: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut end: Option<String> = None;
    for line in source.lines() {
        let text = line.trim_start();
        match &end {
            None if ["proptest! {", "proptest::proptest! {"].contains(&text) => {
                end = Some(line.replace(text, "}"));
            }
            Some(brace) if line == brace => end = None,
            Some(_) => {
                let name = text.strip_prefix("fn ").and_then(|rest| rest.split_once('('));
                names.extend(name.map(|(name, _)| name.trim().to_owned()));
            }
            None => {}
        }
    }
    names
}

/// Rounds of one test until its share is over.
fn fuzz(test: &Test, share: Duration, seeds: &AtomicU64) -> End {
    let (mut cases, mut rounds, mut used) = (FIRST, 0, Duration::ZERO);
    loop {
        let seed = seeds.fetch_add(1, Ordering::Relaxed);
        let left = share.saturating_sub(used);
        match round(test, cases, seed, SLACK + left * HANGS) {
            Ok(took) => {
                rounds += 1;
                used += took;
                let Some(more) = next(cases, took, share.saturating_sub(used)) else {
                    return End::Quiet { rounds, time: used };
                };
                cases = more;
            }
            Err(what) => {
                let again = format!(
                    "  again: cd {} && PROPTEST_CASES={cases} PROPTEST_RNG_SEED={seed} {} --exact {}",
                    test.folder.display(),
                    test.program.display(),
                    test.name
                );
                return End::Found(format!("{what}\n{again}"));
            }
        }
    }
}

/// Cases of the next round, so that it fills what is left; `None`: not worth another.
fn next(cases: u64, took: Duration, left: Duration) -> Option<u64> {
    if left < took {
        return None;
    }
    // The start of a process is in it; more than sixteenfold at once would be a guess.
    let times = (0.8 * left.as_secs_f64() / took.as_secs_f64().max(0.001)).clamp(1.0, 16.0);
    Some(((cases as f64 * times) as u64).min(MOST))
}

/// One round; the error is the end of what it printed.
fn round(test: &Test, cases: u64, seed: u64, limit: Duration) -> Result<Duration, String> {
    let failed = |error: std::io::Error| format!("  {}: {error}", test.program.display());
    let mut output = tempfile::tempfile().map_err(failed)?;
    let copy = |file: &File| file.try_clone().map(Stdio::from);
    let began = Instant::now();
    let mut child = Command::new(&test.program)
        .args(["--exact", &test.name, "--test-threads", "1"])
        .current_dir(&test.folder)
        .env("PROPTEST_CASES", cases.to_string())
        .env("PROPTEST_RNG_SEED", seed.to_string())
        // strategies that filter reject more when there are more cases
        .env("PROPTEST_MAX_GLOBAL_REJECTS", u32::MAX.to_string())
        .env("PROPTEST_MAX_LOCAL_REJECTS", u32::MAX.to_string())
        .env("PROPTEST_DISABLE_FAILURE_PERSISTENCE", "1")
        .stdin(Stdio::null())
        .stdout(copy(&output).map_err(failed)?)
        .stderr(copy(&output).map_err(failed)?)
        .spawn()
        .map_err(failed)?;
    let status = loop {
        match child.try_wait().map_err(failed)? {
            Some(status) => break status,
            None if began.elapsed() > limit => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("  it did not end within {}: a case hangs", seconds(limit)));
            }
            None => std::thread::sleep(LOOK),
        }
    };
    if status.success() {
        return Ok(began.elapsed());
    }
    let mut text = Vec::new();
    let _ = output.rewind();
    let _ = output.read_to_end(&mut text);
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).take(40).collect();
    Err(format!("  {status}\n  {}", lines.join("\n  ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn property_tests_are_found_by_their_macro() {
        let source = "fn helper() {}\n    proptest! {\n        #![proptest_config(x)]\n        #[test]\n        fn one(a in 0..3) {\n            if x {\n            }\n        }\n\n        #[test]\n        fn two(\n            b in 1..2\n        ) {}\n    }\n\n    fn three() {}\n";
        assert_eq!(properties(source), ["one", "two"]);
        assert_eq!(properties(&source.replace("proptest!", "proptest::proptest!")), ["one", "two"]);
        let line = r#"{"reason":"compiler-artifact","manifest_path":"/r/guest/Cargo.toml","profile":{"test":true},"executable":"/t/guest-1"}"#;
        assert_eq!(program(line), Some(("/t/guest-1".into(), "/r/guest".into())));
        assert_eq!(program(&line.replace("true", "false")), None);
    }

    #[test]
    fn rounds_grow_to_what_is_left() {
        let (ms, left) = (Duration::from_millis, Duration::from_secs(10));
        assert_eq!(next(256, ms(10), left), Some(4096));
        assert_eq!(next(4096, ms(4000), left), Some(8192));
        assert_eq!(next(4096, ms(9000), left), Some(4096));
        assert_eq!(next(4096, ms(11_000), left), None);
        assert_eq!(next(MOST, ms(1), left), Some(MOST));
        assert_eq!(next(256, ms(1), Duration::ZERO), None);
    }

    #[test]
    fn a_finding_is_told_with_its_seed_and_a_hang_is_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let script = |name: &str, text: &str| {
            let program = folder.path().join(name);
            fs::write(&program, format!("#!/bin/sh\n{text}\n")).expect("a file");
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("a program");
            Test { program, folder: folder.path().to_owned(), name: "x::any_bytes".into() }
        };
        // finds something from the second seed on
        let bad = script(
            "bad",
            "test $PROPTEST_RNG_SEED = 70 && exit 0; echo \"$2 panicked at $PROPTEST_CASES\"; exit 101",
        );
        let End::Found(what) = fuzz(&bad, Duration::from_secs(5), &AtomicU64::new(70)) else {
            panic!("nothing found")
        };
        assert!(
            what.contains("x::any_bytes panicked at 4096") && what.contains("PROPTEST_RNG_SEED=71 "),
            "{what}"
        );
        let hangs = script("hangs", "exec sleep 100");
        let what = round(&hangs, 1, 1, Duration::from_millis(200)).expect_err("it hangs");
        assert!(what.contains("a case hangs"), "{what}");
    }
}
