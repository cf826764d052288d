//! `ci/demo`: packages, build, then the whole main job in the lab.

use crate::binaries::{self, Binaries, Profile};
use crate::steps::{Counts, Outcome, Step, seconds, summary};
use crate::{Install, Tier, packages};
use anyhow::{Context, Result};
use std::path::Path;
use std::time::Instant;
use xshell::{Shell, cmd};

/// The one place that knows the demo's command.
const MAIN_JOB: &[&str] = &[
    "lab",
    "run",
    "--profile",
    "three-cards",
    "--evidence",
    "demo",
    "--",
    "verify",
    "recipes/lab-guest.toml",
    "--control",
    "recipes/lab-control.toml",
    "--control-fails-in",
    "driver",
];

/// Where the main job leaves its evidence, from the repository's root.
pub(crate) const EVIDENCE: &str = "demo";

/// Options of `ci/demo`.
#[derive(clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) install: Install,
    /// Print the result as JSON on standard output
    #[arg(long)]
    pub(crate) json: bool,
    /// Leave the evidence of earlier demos where it is (default: the folder demo/ is emptied first)
    #[arg(long)]
    pub(crate) keep: bool,
}

/// Runs the demo; `false` means that a step failed.
pub(crate) fn run(options: &Options) -> Result<bool> {
    let start = Instant::now();
    let root = binaries::root()?;
    let packages = packages::ensure_installed(Tier::Demo, options.install.permission())?;
    eprintln!("  packages   {packages}");

    let sh = Shell::new()?;
    sh.change_dir(&root);
    let binaries = Binaries::of(&root, Profile::Lab);
    binaries.announce(&sh);
    if !options.keep {
        sh.remove_path(EVIDENCE).with_context(|| format!("failed to empty {EVIDENCE}/"))?;
    }
    let mut steps = vec![Step::run("build", binaries::build_commands(&sh, Profile::Lab))?];
    if steps[0].outcome == Outcome::Passed {
        let no43 = &binaries.no43;
        steps.push(Step::run("main job", vec![cmd!(sh, "{no43} {MAIN_JOB...}")])?);
    }
    let report = root.join(EVIDENCE).join("report.html");
    let passed = steps.iter().all(|s| s.outcome == Outcome::Passed) && report.is_file();
    if options.json {
        println!("{}", json(&steps, passed, &report, start.elapsed().as_secs_f64()));
    } else {
        println!("{}", summary(&steps));
        println!("  {} in {}", if passed { "PASSED" } else { "FAILED" }, seconds(start.elapsed()));
        if report.is_file() {
            println!("  report     {}", report.display());
        } else {
            println!("  no report  {} is not there", report.display());
        }
        println!("{}", Counts { passed: usize::from(passed), failed: usize::from(!passed), skipped: 0 });
    }
    Ok(passed)
}

fn json(steps: &[Step], passed: bool, report: &Path, seconds: f64) -> serde_json::Value {
    let steps: Vec<_> = steps
        .iter()
        .map(|s| {
            serde_json::json!({
                "name": s.name, "passed": s.outcome == Outcome::Passed, "seconds": s.time.as_secs_f64(),
            })
        })
        .collect();
    serde_json::json!({ "passed": passed, "seconds": seconds, "report": report, "steps": steps })
}
