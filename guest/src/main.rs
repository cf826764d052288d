//! `no43-guest`: the one small program inside the guest.
//!
//! It is called by the harness through the guest agent, by the kernel as PID 1 of a lean guest, and, through
//! links, as `shutdown` and its relatives. Answers go to standard output as JSON, reasons to standard error; the
//! exit code is 0, 1 if something failed, 2 if the command line was wrong.

#[cfg(not(target_os = "linux"))]
compile_error!("the guest program exists for Linux guests only; its library is portable");

mod linux;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand};
use linux::power::{self, Ending};
use linux::{Root, init, paint, report};
use no43_guest::protocol::PROTOCOL_VERSION;

#[derive(Parser)]
#[command(
    name = "no43-guest",
    about = "Answers the harness's questions inside the guest",
    disable_version_flag = true
)]
struct Cli {
    /// Print the version of the program and of the protocol it speaks
    #[arg(short = 'V', long)]
    version: bool,
    #[command(subcommand)]
    command: Option<Task>,
}

#[derive(Subcommand)]
enum Task {
    /// Say what the guest sees: PCI functions of cards, connectors, lines of the kernel log
    Report {
        /// Print JSON for the harness instead of text for a person
        #[arg(long)]
        json: bool,
        /// Wait at most so long for the drivers to be loaded; 0 asks at once
        #[arg(long, value_name = "N", default_value_t = 30)]
        settle_seconds: u64,
    },
    /// Show the test picture on a card's own connector and leave it there
    Paint {
        #[command(flatten)]
        picture: Picture,
    },
    /// Take the picture off again; without --card all of them
    Unpaint {
        /// PCI address of the card in the guest, as 0000:01:00.0
        #[arg(long, value_name = "ADDRESS")]
        card: Option<String>,
    },
    /// Be PID 1 of a lean guest
    Init,
    #[command(hide = true)]
    HoldPicture {
        #[command(flatten)]
        picture: Picture,
    },
}

#[derive(clap::Args)]
struct Picture {
    /// PCI address of the card in the guest, as 0000:01:00.0
    #[arg(long, value_name = "ADDRESS")]
    card: String,
    /// Seed of the picture: a new one for every run
    #[arg(long, value_name = "N")]
    seed: u64,
    /// Take the picture off by itself after so long
    #[arg(long, value_name = "N", default_value_t = 600, value_parser = clap::value_parser!(u64).range(..=86400))]
    hold_seconds: u64,
}

fn main() -> ExitCode {
    let mut words = std::env::args_os().map(|word| word.to_string_lossy().into_owned());
    let called = words.next().unwrap_or_default();
    let name = called.rsplit('/').next().unwrap_or_default();
    let result = match power::requested(name, &words.collect::<Vec<_>>()) {
        Some(ending) => ending.and_then(end_machine),
        // The kernel starts /sbin/init without arguments.
        None if name == "init" => init::run(),
        None => run(Cli::parse()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("no43-guest: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn end_machine(ending: Ending) -> Result<()> {
    power::ask(ending)
}

fn run(cli: Cli) -> Result<()> {
    let root = Root::real();
    match cli.command {
        None => {
            println!("no43-guest {} (protocol {PROTOCOL_VERSION})", env!("CARGO_PKG_VERSION"));
            if !cli.version {
                println!("what it can do is listed by: no43-guest --help");
            }
        }
        Some(Task::Report { json, settle_seconds }) => {
            report::wait_settled(&root, Duration::from_secs(settle_seconds));
            let report = report::report(&root);
            if json {
                println!("{}", serde_json::to_string(&report)?);
            } else {
                print!("{}", report::human(&report));
            }
        }
        Some(Task::Paint { picture: Picture { card, seed, hold_seconds } }) => {
            let painted = paint::paint(&root, &card, seed, Duration::from_secs(hold_seconds))?;
            println!("{}", serde_json::to_string(&painted)?);
        }
        Some(Task::HoldPicture { picture: Picture { card, seed, hold_seconds } }) => {
            paint::hold(&root, &card, seed, Duration::from_secs(hold_seconds))?;
        }
        Some(Task::Unpaint { card }) => {
            for address in paint::unpaint(&root, card.as_deref())? {
                println!("{address}");
            }
        }
        Some(Task::Init) => init::run()?,
    }
    Ok(())
}
