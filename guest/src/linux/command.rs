//! The commands that only the Linux program has, and its answers to those that both have.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Subcommand;
use no43_guest::protocol::{BELL_PORT, GuestFunction};
use no43_guest::setup::first_start::{FirstStart, FirstStarted};

use super::power::{self, Ending};
use super::setup::Linux;
use super::{Root, init, paint, pci, ports, report};
use crate::setup_command::RESTART_DUE;

#[derive(Subcommand)]
pub(crate) enum Task {
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
pub(crate) struct Picture {
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

/// As `/sbin/init`, `shutdown` and its relatives; `None` if it was called by its own name.
pub(crate) fn called_by_another_name() -> Option<Result<()>> {
    let mut words = std::env::args_os().map(|word| word.to_string_lossy().into_owned());
    let called = words.next().unwrap_or_default();
    let name = called.rsplit('/').next().unwrap_or_default();
    match power::requested(name, &words.collect::<Vec<_>>()) {
        Some(ending) => Some(ending.and_then(power::ask)),
        // The kernel starts /sbin/init without arguments.
        None => (name == "init").then(init::run),
    }
}

impl Task {
    pub(crate) fn run(self) -> Result<()> {
        let root = Root::real();
        match self {
            Self::Report { json, settle_seconds } => {
                report::wait_settled(&root, Duration::from_secs(settle_seconds));
                let report = report::report(&root);
                if json {
                    println!("{}", serde_json::to_string(&report)?);
                } else {
                    print!("{}", report::human(&report));
                }
            }
            Self::Paint { picture: Picture { card, seed, hold_seconds } } => {
                let painted = paint::paint(&root, &card, seed, Duration::from_secs(hold_seconds))?;
                println!("{}", serde_json::to_string(&painted)?);
            }
            Self::HoldPicture { picture: Picture { card, seed, hold_seconds } } => {
                paint::hold(&root, &card, seed, Duration::from_secs(hold_seconds))?;
            }
            Self::Unpaint { card } => {
                for address in paint::unpaint(&root, card.as_deref())? {
                    println!("{address}");
                }
            }
            Self::Init => init::run()?,
        }
        Ok(())
    }
}

/// The functions of this guest's cards; what cannot be read is not there.
pub(crate) fn functions() -> Vec<GuestFunction> {
    pci::functions(&Root::real(), &mut Vec::new())
}

/// What carries out set-up plans here.
pub(crate) fn actor(_: &Path, _: &[PathBuf]) -> Linux {
    Linux { root: Root::real() }
}

/// Applies what an instance is given at its first start.
pub(crate) fn first_start(request: &FirstStart) -> FirstStarted {
    Linux { root: Root::real() }.first_start(request)
}

/// Logs of an installer that failed; in Linux there is none.
pub(crate) fn setup_logs() -> Vec<PathBuf> {
    Vec::new()
}

/// The port on which the host is told of the ends of programs.
pub(crate) fn bell_port() -> Option<PathBuf> {
    ports::port(&Root::real(), BELL_PORT)
}

/// Whether another one has the port open.
pub(crate) fn is_busy(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::ResourceBusy
}

/// Restarts a guest whose PID 1 is this program. Where it is another, the caller of `setup` does it: exit code 3.
pub(crate) fn restart() -> Result<u8> {
    end(Ending::Reboot)
}

/// Switches such a guest off.
pub(crate) fn power_off() -> Result<u8> {
    end(Ending::PowerOff)
}

fn end(ending: Ending) -> Result<u8> {
    match power::ask(ending) {
        Ok(()) => Ok(0),
        Err(error) if std::process::id() == 1 => bail!(error),
        Err(_) => Ok(RESTART_DUE),
    }
}
