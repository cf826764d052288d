//! Steps with times, and the counts that test programs print.

use anyhow::{Context, Result};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use xshell::Cmd;

/// Tests that ran, and how they ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Ended well.
    pub(crate) passed: usize,
    /// Ended badly.
    pub(crate) failed: usize,
    /// Did not run, with a reason in the output.
    pub(crate) skipped: usize,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, more: Self) {
        self.passed += more.passed;
        self.failed += more.failed;
        self.skipped += more.skipped;
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// How a step ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// All of it held.
    Passed,
    /// Something did not.
    Failed,
    /// It did not run, and why.
    Skipped(String),
}

/// A step that was run.
#[derive(Debug)]
pub(crate) struct Step {
    /// One word.
    pub(crate) name: String,
    /// How it ended.
    pub(crate) outcome: Outcome,
    /// Wall time.
    pub(crate) time: Duration,
    /// Tests inside; a step without tests of its own counts as one.
    pub(crate) counts: Counts,
}

impl Step {
    /// A step that is left out.
    pub(crate) fn skipped(name: &str, reason: &str) -> Self {
        let counts = Counts { skipped: 1, ..Counts::default() };
        Self {
            name: name.to_owned(),
            outcome: Outcome::Skipped(reason.to_owned()),
            time: Duration::ZERO,
            counts,
        }
    }

    /// Runs commands in order until one fails, passing their output through and counting the tests in it.
    pub(crate) fn run(name: &str, commands: Vec<Cmd<'_>>) -> Result<Self> {
        eprintln!("── {name}");
        let start = Instant::now();
        let (mut ok, mut counts) = (true, Counts::default());
        for command in commands {
            let (success, found) = stream(command)?;
            ok &= success;
            counts += found;
            if !ok {
                break;
            }
        }
        if counts.failed == 0 && !ok {
            counts.failed = 1; // it did not get as far as its tests
        } else if counts == Counts::default() {
            counts.passed = 1;
        }
        let outcome = if ok { Outcome::Passed } else { Outcome::Failed };
        Ok(Self { name: name.to_owned(), outcome, time: start.elapsed(), counts })
    }
}

/// Runs a command, shows its standard output line by line, and sums up the result lines in it.
fn stream(command: Cmd<'_>) -> Result<(bool, Counts)> {
    let shown = command.to_string();
    eprintln!("$ {shown}");
    let mut command: Command = command.into();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("failed to start {shown}"))?;
    let mut counts = Counts::default();
    if let Some(out) = child.stdout.take() {
        for line in BufReader::new(out).split(b'\n') {
            let line = line?;
            let line = String::from_utf8_lossy(&line);
            println!("{line}");
            counts += result_line(&line).unwrap_or_default();
        }
    }
    Ok((child.wait()?.success(), counts))
}

/// Reads `test result: ok. 3 passed; 1 failed; 2 ignored; 0 measured; …`.
pub(crate) fn result_line(line: &str) -> Option<Counts> {
    let (_, rest) = line.trim().strip_prefix("test result: ")?.split_once(". ")?;
    let mut counts = Counts::default();
    for part in rest.split(';') {
        let Some((number, word)) = part.trim().split_once(' ') else { continue };
        let Ok(number) = number.parse::<usize>() else { continue };
        match word {
            "passed" => counts.passed = number,
            "failed" => counts.failed = number,
            "ignored" => counts.skipped = number,
            _ => {}
        }
    }
    Some(counts)
}

/// The summary of all steps, one line each.
pub(crate) fn summary(steps: &[Step]) -> String {
    let line = |s: &Step| match &s.outcome {
        Outcome::Skipped(reason) => format!("  - {:<10} skipped: {reason}", s.name),
        Outcome::Passed => format!("  ✔ {:<10} {:>8}  {}", s.name, seconds(s.time), s.counts),
        Outcome::Failed => format!("  ✘ {:<10} {:>8}  {}", s.name, seconds(s.time), s.counts),
    };
    steps.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// A duration as people read it: `0.4 s`, `41.2 s`, `2:41 min`.
pub(crate) fn seconds(time: Duration) -> String {
    if time < Duration::from_secs(100) {
        format!("{:.1} s", time.as_secs_f64())
    } else {
        let whole = time.as_secs();
        format!("{}:{:02} min", whole / 60, whole % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines_of_cargo_and_libtest_mimic_are_read() {
        let cargo =
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.02s";
        let mimic = "test result: FAILED. 1 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out; finished in 1.00s";
        assert_eq!(result_line(cargo), Some(Counts { passed: 12, failed: 0, skipped: 1 }));
        assert_eq!(result_line(mimic), Some(Counts { passed: 1, failed: 1, skipped: 2 }));
        assert_eq!(result_line("test store::kill … ok"), None);
        assert_eq!(result_line("test result: nonsense"), None);
    }

    #[test]
    fn a_summary_names_the_reason_of_a_skip() {
        let steps = [
            Step {
                name: "unit".into(),
                outcome: Outcome::Passed,
                time: Duration::from_millis(161_500),
                counts: Counts { passed: 230, failed: 0, skipped: 2 },
            },
            Step::skipped("nix", "nix-instantiate is not here (package nix-bin)"),
        ];
        insta::assert_snapshot!(summary(&steps), @r"
          ✔ unit       2:41 min  230 passed, 0 failed, 2 skipped
          - nix        skipped: nix-instantiate is not here (package nix-bin)
        ");
    }

    #[test]
    fn a_failing_command_fails_its_step_even_without_tests() {
        let sh = xshell::Shell::new().expect("a shell");
        let step =
            Step::run("false", vec![xshell::cmd!(sh, "false"), xshell::cmd!(sh, "true")]).expect("it starts");
        assert_eq!((step.outcome, step.counts.failed), (Outcome::Failed, 1));
        let step = Step::run("echo", vec![xshell::cmd!(sh, "echo hello")]).expect("it starts");
        assert_eq!((step.outcome, step.counts.passed), (Outcome::Passed, 1));
    }
}
