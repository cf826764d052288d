//! What a person or a CI machine runs: `ci/demo`, `ci/test`, `ci/bench` are one-line scripts around this program.

mod apt;
mod bench;
mod binaries;
mod demo;
mod fuzz;
mod packages;
mod stats;
mod steps;
mod test;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use packages::{Permission, Tier};
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "ci", about = "Demo, tests and figures of no43", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Do the whole main job in the lab: no graphics card, no KVM, no Windows needed
    Demo(demo::Options),
    /// Run everything that must hold: format, lints, unit tests, docs, end-to-end suites
    Test(test::Options),
    /// Measure the figures, each against a named peer in the same run
    Bench(bench::Options),
    /// Build the guest program for Windows, no43-guest.exe
    Windows,
    /// Install Debian packages that are missing, or list them
    Packages(packages_command::Options),
}

/// What all commands say about installing packages.
#[derive(Args, Clone, Copy)]
struct Install {
    /// Install missing Debian packages without asking (also with CI=1 or CI=true in the environment)
    #[arg(long)]
    yes: bool,
    /// Do not install packages; say what is missing and go on
    #[arg(long, conflicts_with = "yes")]
    no_install: bool,
}

impl Install {
    fn permission(self) -> Permission {
        let ci = std::env::var("CI").is_ok_and(|v| v == "1" || v == "true");
        Permission { yes: self.yes || ci, no_install: self.no_install, dry_run: false }
    }
}

mod packages_command {
    //! `ci packages`: the step on its own.
    use super::{Install, Tier, packages};

    #[derive(clap::Args)]
    pub(crate) struct Options {
        /// Print the table of packages, install nothing
        #[arg(long)]
        list: bool,
        /// Read the package lists and simulate the installation, install nothing
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        install: Install,
    }

    pub(crate) fn run(options: &Options) -> anyhow::Result<bool> {
        if options.list {
            println!("{}", packages::table(Tier::Bench));
        } else {
            let permission =
                packages::Permission { dry_run: options.dry_run, ..options.install.permission() };
            println!("packages: {}", packages::ensure_installed(Tier::Bench, permission)?);
        }
        Ok(true)
    }
}

/// `ci windows`: says where the program is, or what is missing to build it.
fn windows() -> Result<bool> {
    let root = binaries::root()?;
    let sh = xshell::Shell::new()?;
    sh.change_dir(&root);
    let step = steps::Step::run("windows", vec![binaries::windows_build_command(&sh)?])?;
    let program = binaries::Binaries::of(&root, binaries::Profile::Lab).windows_guest;
    if step.outcome == steps::Outcome::Passed {
        println!("{}", program.display());
    }
    Ok(step.outcome == steps::Outcome::Passed)
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome: Result<bool> = match &cli.command {
        Command::Demo(options) => demo::run(options),
        Command::Test(options) => test::run(options),
        Command::Bench(options) => bench::run(options),
        Command::Windows => windows(),
        Command::Packages(options) => packages_command::run(options),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::from(2)
        }
    }
}
