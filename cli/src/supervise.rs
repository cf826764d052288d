//! `no43 supervise`: the process that watches one running machine. Started by no43 itself.

use std::io::{Read as _, Write as _};

use no43_harness::exit_codes;
use no43_harness::running::{Refusal, Request, Supervisor, supervise};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::context::{Done, Failure, OrExit as _};

/// A plan of a hundred layers has some 100 KiB.
const REQUEST_MAX: u64 = 16 << 20;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

pub(crate) fn run(_: &Args) -> Done {
    let mut text = Vec::new();
    std::io::stdin().take(REQUEST_MAX).read_to_end(&mut text).or_exit(exit_codes::USAGE)?;
    let request: Request = serde_json::from_slice(&text).map_err(|error| {
        Failure::new(exit_codes::USAGE, format!("supervise is started by no43 itself: {error}"))
    })?;
    drop(text);
    let supervisor = Supervisor::default();
    let stop = supervisor.stopper();
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).or_exit(exit_codes::HOST_SETUP)?;
    std::thread::spawn(move || {
        // a terminal's Ctrl-C and hang-up are not for us; a service manager's request is
        signals.forever().filter(|signal| *signal == SIGTERM).for_each(|_| stop());
    });
    let mut told = |answer: Result<(), Refusal>| {
        let mut text = serde_json::to_string(&answer).unwrap_or_default();
        text.push('\n');
        // whoever asked may be gone; the machine is started all the same
        let _ = std::io::stdout().write_all(text.as_bytes()).and_then(|()| std::io::stdout().flush());
    };
    Ok(supervise(supervisor, &request, &mut told))
}
