//! `no43 shell`: a shell or one command in a running guest.

use std::io::{Write as _, stderr, stdout};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use no43_harness::exit_codes;
use no43_harness::running::{SHELL_PORT, console_socket, shell_socket};
use no43_machine::agent::ExecLimits;
use no43_machine::terminal::{LEAVE, RawTerminal, carry};

use crate::context::{Context, Done, Failure, OrExit as _};
use crate::running::{agent, duration, running, runs};

/// In a Linux guest: a terminal on a port of its own. At its end it says Ctrl-] itself, which ends this side.
const SERVE: &str = r#"
port=/dev/virtio-ports/$1; export TERM=$2 HOME=/root
[ -e "$port" ] || port=$(grep -lx "$1" /sys/class/virtio-ports/*/name | sed 's,/sys/class/virtio-ports/\(.*\)/name,/dev/\1,')
{ setsid script --quiet --command 'cd; exec ${SHELL:-/bin/bash} -l' /dev/null; printf '\035'; } <> "$port" >&0 2>&1
"#;

/// With a command: runs it by the guest's agent, as root or SYSTEM, and ends with its exit code. Without: a shell in a Linux
/// guest, or with --console the serial console of any guest. Ctrl-] leaves.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The instance
    name: String,
    /// The serial console instead of a shell of one's own: also for a guest whose agent does not answer
    #[arg(long, conflicts_with = "command")]
    console: bool,
    /// How long the command may take
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "10 min")]
    limit: Duration,
    /// The command, without a shell
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

pub(crate) fn run(args: &Args, _context: &Context) -> Done {
    let runs = runs()?;
    running(&runs, &args.name)?;
    let dirs = runs.dirs(&args.name);
    if !args.command.is_empty() {
        return one(args, &agent(&runs, &args.name)?);
    }
    let socket = if args.console { console_socket(&dirs) } else { shell_socket(&dirs) };
    let port = UnixStream::connect(&socket).or_exit(exit_codes::INSTANCE)?;
    if !args.console {
        let agent = agent(&runs, &args.name)?;
        let term = std::env::var("TERM").unwrap_or_else(|_| "dumb".to_owned());
        agent
            .spawn(&["/bin/sh", "-c", SERVE, "no43-shell", SHELL_PORT, &term])
            .or_exit(exit_codes::FAILED_GUEST)?;
    }
    eprintln!("  shell    {}: Ctrl-] leaves", args.name);
    let raw = RawTerminal::set();
    let end = (!args.console).then_some(LEAVE);
    let carried = carry(&port, end, || runs.row(&args.name).is_none_or(|row| row.pid.is_none()));
    drop(raw);
    carried.or_exit(exit_codes::FAILED_HOST)?;
    Ok(exit_codes::OK)
}

fn one(args: &Args, agent: &no43_machine::Agent) -> Done {
    let argv: Vec<&str> = args.command.iter().map(String::as_str).collect();
    let output = agent.exec(&argv, &ExecLimits::within(args.limit)).or_exit(exit_codes::FAILED_GUEST)?;
    let _ = stdout().write_all(&output.stdout);
    let _ = stderr().write_all(&output.stderr);
    if output.truncated {
        eprintln!("  warning  the command wrote more than is shown here");
    }
    match (output.code.and_then(|code| u8::try_from(code).ok()), output.signal) {
        (Some(code), _) => Ok(code),
        (None, signal) => Err(Failure::new(
            exit_codes::FAILED_GUEST,
            format!("the command was ended by signal {}", signal.unwrap_or(0)),
        )),
    }
}
