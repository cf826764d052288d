//! `no43-guest`: the one small program inside the guest.
//!
//! It is called by the harness through the guest agent, by the answer file at the first logon of a new Windows, by
//! the kernel as PID 1 of a lean Linux guest, and there, through links, as `shutdown` and its relatives. Answers go to
//! standard output as JSON, reasons to standard error; the exit code is 0, 1 if something failed, 2 if the command
//! line was wrong, 3 if a restart is due and `--no-restart` was given.

#[cfg(not(any(target_os = "linux", windows)))]
compile_error!("the guest program exists for Linux and Windows guests only; its library is portable");

mod bell;
mod check;
#[cfg(any(windows, test))]
mod devnodes;
#[cfg(any(windows, test))]
mod event_log;
mod executor;
mod gpu;
mod hand_over;
#[cfg(target_os = "linux")]
mod linux;
#[expect(unsafe_code, reason = "calls of drivers' libraries, each wrapped in a safe function here")]
mod native;
mod setup_command;
mod setup_watch;
mod smi;
#[cfg(windows)]
mod windows;
mod xml;

#[cfg(target_os = "linux")]
use linux as system;
#[cfg(windows)]
use windows as system;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use bell::RingAtEnd;
use check::Check;
use clap::{Parser, Subcommand};
use no43_guest::identity;
use no43_guest::protocol::PROTOCOL_VERSION;
use setup_command::{Channels, Setup};
use setup_watch::WatchSetup;

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
    /// With --version: as JSON
    #[arg(long)]
    json: bool,
    #[command(subcommand)]
    command: Option<Task>,
}

#[derive(Subcommand)]
enum Task {
    /// Carry out a set-up plan, or go on with it after a restart
    Setup(Setup),
    /// Tell that Windows Setup failed, with the ends of its logs (called by ErrorHandler.cmd)
    SetupFailed(Channels),
    /// Tell the errors of Windows Setup's logs while they grow (started in Windows PE by the answer file)
    WatchSetup(WatchSetup),
    /// Apply the password, computer name and product key that an instance is given; read from standard input
    FirstStart {
        /// Read them from this file, and remove it
        #[arg(long, value_name = "FILE")]
        from: Option<PathBuf>,
    },
    /// Do GPU work with known answers on a card, and say how each piece ended
    Work {
        #[command(flatten)]
        options: gpu::Options,
    },
    /// Say what NVIDIA's library NVML says about its driver and cards, as JSON
    Nvml,
    /// Say what NVIDIA's program nvidia-smi says about its driver and cards, in the same form
    NvidiaSmi,
    /// Tell the host when a process ends, by the port of its bell
    #[command(hide = true)]
    RingAtEnd(RingAtEnd),
    /// Run the command of a check of a recipe's own, and tell how it ended
    #[command(hide = true)]
    Check(Check),
    #[command(hide = true)]
    WorkItem {
        #[command(flatten)]
        item: gpu::Item,
    },
    #[command(flatten)]
    System(system::Task),
}

fn main() -> ExitCode {
    #[cfg(target_os = "linux")]
    if let Some(result) = linux::called_by_another_name() {
        return code(result.map(|()| 0));
    }
    code(run(Cli::parse()))
}

fn code(result: Result<u8>) -> ExitCode {
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("no43-guest: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<u8> {
    match cli.command {
        None if cli.json => println!("{}", identity::TEXT.trim_start_matches(|c| c != '{')),
        None => {
            println!("no43-guest {} (protocol {PROTOCOL_VERSION})", env!("CARGO_PKG_VERSION"));
            if !cli.version {
                println!("what it can do is listed by: no43-guest --help");
            }
        }
        Some(Task::Setup(setup)) => return setup.run(),
        Some(Task::SetupFailed(channels)) => setup_command::setup_failed(&channels),
        Some(Task::WatchSetup(watch)) => watch.run(),
        Some(Task::FirstStart { from }) => {
            return Ok(if setup_command::first_start(from.as_deref())? { 0 } else { 1 });
        }
        Some(Task::Work { options }) => {
            return Ok(if options.run(&system::functions())? { 0 } else { 1 });
        }
        Some(Task::RingAtEnd(ring)) => ring.run()?,
        Some(Task::Check(check)) => check.run()?,
        Some(Task::Nvml) => {
            return gpu::print_nvml();
        }
        Some(Task::NvidiaSmi) => return gpu::print_nvidia_smi(),
        Some(Task::WorkItem { item }) => item.run(&system::functions())?,
        Some(Task::System(task)) => task.run()?,
    }
    Ok(0)
}
