//! `ci/test`: everything that must hold, in order of price.

use crate::binaries::{self, Binaries, Profile};
use crate::steps::{Counts, Outcome, Step, seconds, summary};
use crate::{Install, Tier, fuzz, packages};
use anyhow::{Result, ensure};
use std::time::{Duration, Instant};
use xshell::{Cmd, Shell, cmd};

/// Options of `ci/test`.
#[derive(clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    install: Install,
    /// Only these stages; may be given again (fmt, clippy, unit, docs, nix, fuzz, windows, cli, store, run, install, lab)
    #[arg(long, value_name = "STAGE")]
    only: Vec<String>,
    /// Run the long cases too, and fuzz every parser
    #[arg(long)]
    soak: bool,
    /// How long the stage fuzz takes, all property tests together
    #[arg(long, value_name = "N", default_value_t = fuzz::SECONDS)]
    fuzz_seconds: u64,
    /// Only cases whose name holds this (end-to-end suites, fuzz)
    #[arg(long, value_name = "TEXT")]
    case: Option<String>,
}

/// One stage: a name and the commands to run.
struct Stage {
    name: &'static str,
    commands: for<'a> fn(&'a Shell, &[String]) -> Vec<Cmd<'a>>,
}

/// All stages. An end-to-end suite is a test program of `tests/`; they run one after the other because the lab
/// fills both cores of a small machine.
const STAGES: &[Stage] = &[
    Stage { name: "fmt", commands: |sh, _| vec![cmd!(sh, "cargo fmt --all --check -- -l")] },
    Stage {
        name: "clippy",
        commands: |sh, _| vec![cmd!(sh, "cargo clippy -q --workspace --all-targets -- -D warnings")],
    },
    Stage { name: "unit", commands: |sh, _| vec![cmd!(sh, "cargo test -q --workspace --no-fail-fast")] },
    Stage {
        name: "docs",
        commands: |sh, _| {
            vec![
                cmd!(sh, "cargo doc -q --workspace --no-deps --document-private-items")
                    .env("RUSTDOCFLAGS", "-D warnings"),
            ]
        },
    },
    Stage {
        name: "nix",
        commands: |sh, _| {
            let script = "nix-instantiate --parse flake.nix > /dev/null"; // it prints the whole syntax tree
            vec![cmd!(sh, "sh -c {script}")]
        },
    },
    // Has no commands of its own: see the module.
    Stage { name: FUZZ, commands: |_, _| Vec::new() },
    Stage { name: "windows", commands: |sh, more| suite(sh, "windows", more) },
    Stage { name: "cli", commands: |sh, more| suite(sh, "cli", more) },
    Stage { name: "store", commands: |sh, more| suite(sh, "store", more) },
    Stage { name: "run", commands: |sh, more| suite(sh, "run", more) },
    Stage { name: "install", commands: |sh, more| suite(sh, "install", more) },
    Stage { name: "lab", commands: |sh, more| suite(sh, "lab", more) },
];

/// Only with `--soak`, or by name.
const FUZZ: &str = "fuzz";

const SUITES: &[&str] = &["cli", "store", "run", "install", "lab"];

fn suite<'a>(sh: &'a Shell, name: &str, more: &[String]) -> Vec<Cmd<'a>> {
    // The whole workspace is named, so that what the unit stage compiled is used: with one package other features are on.
    vec![cmd!(sh, "cargo test --workspace --test {name} -- {more...}")]
}

/// Builds the guest program for Windows, then runs it under Wine.
fn windows(sh: &Shell, binaries: &Binaries, suite: Vec<Cmd<'_>>) -> Result<Step> {
    let built = match binaries::windows_build_command(sh) {
        Ok(command) => Step::run("windows", vec![command])?,
        Err(reason) => return Ok(Step::skipped("windows", &format!("{reason:#}"))),
    };
    if built.outcome != Outcome::Passed {
        return Ok(built);
    }
    let size = std::fs::metadata(&binaries.windows_guest)?.len();
    eprintln!("  no43-guest.exe has {} KB, built in {}", size / 1000, seconds(built.time));
    binaries.announce(sh);
    let mut step = Step::run("windows", suite)?;
    step.time += built.time;
    Ok(step)
}

/// Runs the stages; `false` means that one failed. All run, so that one report names everything.
pub(crate) fn run(options: &Options) -> Result<bool> {
    for name in &options.only {
        let names: Vec<_> = STAGES.iter().map(|s| s.name).collect();
        ensure!(names.contains(&name.as_str()), "no stage '{name}'; there are {}", names.join(", "));
    }
    let start = Instant::now();
    eprintln!("  packages   {}", packages::ensure_installed(Tier::Test, options.install.permission())?);
    let root = binaries::root()?;
    let sh = Shell::new()?;
    sh.change_dir(&root);
    sh.set_var("INSTA_UPDATE", "no");
    if options.soak {
        sh.set_var("NO43_SOAK", "1");
    }
    let binaries = Binaries::of(&root, Profile::Lab);
    binaries.announce(&sh);

    let usual = |s: &Stage| options.only.is_empty() && (s.name != FUZZ || options.soak);
    let chosen = |s: &&Stage| usual(s) || options.only.iter().any(|o| o == s.name);
    let more: Vec<String> = options.case.iter().cloned().collect();
    let mut steps: Vec<Step> = Vec::new();
    let mut built = None;
    for stage in STAGES.iter().filter(chosen) {
        if SUITES.contains(&stage.name) && built.is_none() {
            let step = Step::run("build", binaries::build_commands(&sh, Profile::Lab))?;
            built = Some(step.outcome == Outcome::Passed);
            steps.push(step);
        }
        steps.push(match stage.name {
            "nix" if cmd!(sh, "nix-instantiate --version").quiet().ignore_stderr().read().is_err() => {
                Step::skipped("nix", "nix-instantiate is not here (package nix-bin)")
            }
            name if SUITES.contains(&name) && built == Some(false) => {
                Step::skipped(name, "its programs were not built")
            }
            FUZZ => {
                fuzz::run(&sh, &root, Duration::from_secs(options.fuzz_seconds), options.case.as_deref())?
            }
            "windows" => windows(&sh, &binaries, (stage.commands)(&sh, &more))?,
            name => Step::run(name, (stage.commands)(&sh, &more))?,
        });
    }
    let mut counts = Counts::default();
    steps.iter().for_each(|s| counts += s.counts);
    println!("\n{}\n  in {}", summary(&steps), seconds(start.elapsed()));
    println!("{counts}");
    Ok(steps.iter().all(|s| s.outcome != Outcome::Failed))
}
