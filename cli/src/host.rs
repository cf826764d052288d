//! `no43 host`: what root sets up once, and the helper that runs as root for a group.

use std::io::{BufRead as _, IsTerminal as _};
use std::path::PathBuf;
use std::process::{Command as Process, Stdio};

use clap::Subcommand;
use no43_harness::exit_codes;
use no43_host::helper::{self, Helper};
use no43_host::setup::{self, Change, Plan, System, Wanted};
use no43_host::{PciAddress, groups};

use crate::context::{Context, Done, Failure, OrExit as _};

/// Ordinary users reach a card in one of three ways: it is kept free from boot (nothing needs root then), by the helper, or by
/// sudo. `no43 doctor` says which one this host has.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show what is to be written for a group of users, then write it; --undo takes all of it back
    ///
    /// Without an option: the group, its limit for locked memory, and time for guests when this host shuts down.
    Setup(SetupArgs),
    /// Serve bind, release, hugepages and tap to one group, as root; systemd starts it, or a person
    Helper(HelperArgs),
    /// Send the helper one request as it is; for looking at what it answers
    #[command(hide = true)]
    Ask { request: String },
}

#[derive(Debug, clap::Args)]
struct SetupArgs {
    /// Keep the card at this address free from boot, before any driver of this host takes it; may be given again
    #[arg(long, value_name = "ADDRESS")]
    reserve: Vec<PciAddress>,
    /// Install the helper, so that cards that are not kept free can be bound, too
    #[arg(long)]
    helper: bool,
    /// Take back everything that was ever set up here
    #[arg(long, conflicts_with_all = ["reserve", "helper"])]
    undo: bool,
    /// The group that may use cards and helper
    #[arg(long, default_value = setup::GROUP)]
    group: String,
    /// The user to put into that group [default: who called sudo]
    #[arg(long)]
    user: Option<String>,
    /// Only show it
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(long, visible_alias = "apply")]
    yes: bool,
}

#[derive(Debug, clap::Args)]
struct HelperArgs {
    /// Whose members may ask
    #[arg(long, default_value = setup::GROUP)]
    group: String,
    /// The socket, if systemd does not hand one over
    #[arg(long, value_name = "PATH", default_value = helper::SOCKET)]
    socket: PathBuf,
}

pub(crate) fn run(args: &Args, context: &Context) -> Done {
    match &args.command {
        Command::Setup(args) if args.undo => undo(args, context),
        Command::Setup(args) => set_up(args, context),
        Command::Helper(args) => serve(args),
        Command::Ask { request } => {
            let limit = std::time::Duration::from_secs(300);
            let answer = helper::ask(&helper::socket(), request, limit).or_exit(exit_codes::HOST_SETUP)?;
            crate::context::print_text(&format!("{answer}\n"))?;
            Ok(exit_codes::OK)
        }
    }
}

fn set_up(args: &SetupArgs, context: &Context) -> Done {
    let system = System::here();
    let user = args.user.clone().or_else(|| std::env::var("SUDO_USER").ok());
    let program = std::env::current_exe().or_exit(exit_codes::HOST_SETUP)?;
    let wanted = Wanted {
        reserve: args.reserve.clone(),
        group: args.group.clone(),
        user,
        helper: args.helper.then_some(program),
    };
    let plan = setup::plan(&wanted, &system).or_exit(exit_codes::HOST_SETUP)?;
    if context.json {
        context.print(&plan, |_| String::new())?;
    } else {
        eprint!("{}", shown(&plan));
    }
    if plan.is_empty() || args.dry_run {
        return Ok(exit_codes::OK);
    }
    may_write(args)?;
    setup::apply(&plan, &system, &mut run_command).or_exit(exit_codes::HOST_SETUP)?;
    if !context.json {
        println!("  done     no43 host setup --undo takes all of it back");
    }
    Ok(exit_codes::OK)
}

fn undo(args: &SetupArgs, context: &Context) -> Done {
    let system = System::here();
    if args.dry_run {
        return Err(Failure::new(
            exit_codes::USAGE,
            "--undo puts back what was before; there is no dry run of it",
        ));
    }
    may_write(args)?;
    let undone = setup::undo(&system, &mut run_command).or_exit(exit_codes::HOST_SETUP)?;
    context.print(&undone, |undone| {
        let mut text = String::new();
        undone.restored.iter().for_each(|path| text.push_str(&format!("  as before  {}\n", path.display())));
        for path in &undone.left {
            text.push_str(&format!("  left       {} (somebody has changed it since)\n", path.display()));
        }
        undone.failed.iter().for_each(|what| text.push_str(&format!("  failed     {what}\n")));
        if text.is_empty() { "nothing was set up here\n".into() } else { text }
    })?;
    Ok(if undone.failed.is_empty() { exit_codes::OK } else { exit_codes::HOST_SETUP })
}

/// Root, and a person who has seen what is written.
fn may_write(args: &SetupArgs) -> Result<(), Failure> {
    let refuse = |why: &str| Err(Failure::new(exit_codes::HOST_SETUP, why));
    if no43_host::Privilege::detect() != no43_host::Privilege::Root {
        return refuse("this writes to /etc: run it with sudo (--dry-run shows it without)");
    }
    if args.yes || args.undo {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        return refuse("nobody is there to agree: add --yes");
    }
    eprint!("  Do this? [y/N] ");
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).or_exit(exit_codes::HOST_SETUP)?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => refuse("nothing was changed"),
    }
}

fn shown(plan: &Plan) -> String {
    let mut text = String::new();
    for change in &plan.changes {
        match change {
            Change::Write { path, mode, text: content, before } => {
                let word = if before.is_some() { "replaces" } else { "writes" };
                text.push_str(&format!("  {word:<8} {} ({mode:o})\n", path.display()));
                content.lines().for_each(|line| text.push_str(&format!("           | {line}\n")));
            }
            Change::Run { command, why, .. } => {
                text.push_str(&format!("  runs     {:<44} {why}\n", command.join(" ")));
            }
        }
    }
    plan.notes.iter().for_each(|note| text.push_str(&format!("  note     {note}\n")));
    if plan.is_empty() { "  everything is as wanted already\n".into() } else { text }
}

fn run_command(command: &[String]) -> Result<(), String> {
    eprintln!("  runs     {}", command.join(" "));
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let output = Process::new(&command[0])
        .args(&command[1..])
        .env("PATH", path)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("it could not be run: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => {
            let said = String::from_utf8_lossy(&output.stderr);
            let last = said.lines().rev().map(str::trim).find(|line| !line.is_empty());
            Err(last.map_or_else(|| format!("it ended with {}", output.status), str::to_owned))
        }
    }
}

fn serve(args: &HelperArgs) -> Done {
    if no43_host::Privilege::detect() != no43_host::Privilege::Root {
        return Err(Failure::new(
            exit_codes::HOST_SETUP,
            "the helper is what runs as root: start it with sudo",
        ));
    }
    let list = std::fs::read_to_string("/etc/group").unwrap_or_default();
    let group = groups::number(&list, &args.group).ok_or_else(|| {
        Failure::new(exit_codes::HOST_SETUP, format!("/etc/group has no group '{}'", args.group))
    })?;
    let (listener, by_systemd) = helper::listener(&args.socket, group).or_exit(exit_codes::HOST_SETUP)?;
    let helper = Helper::of_this_host(group, by_systemd);
    // standard error is the journal under systemd
    helper::serve(&listener, &helper, &|line| eprintln!("no43-helper: {line}"))
        .or_exit(exit_codes::HOST_SETUP)?;
    Ok(exit_codes::OK)
}
