//! `no43 attach`: follow a machine that was started elsewhere.

use no43_harness::exit_codes;

use crate::context::{Context, Done, OrExit as _};
use crate::follow::{Follow, Until};
use crate::running::{connect, running, runs, tend};
use crate::signals::Interrupts;

/// Shows what has happened and what comes. Ctrl-C asks the guest to shut down, a second one detaches.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The instance
    name: String,
}

pub(crate) fn run(args: &Args, context: &Context) -> Done {
    let runs = runs()?;
    tend(&runs)?;
    running(&runs, &args.name)?;
    let client = connect(&runs, &args.name)?;
    let interrupts = Interrupts::catch_but_hangup().or_exit(exit_codes::HOST_SETUP)?;
    Follow { runs: &runs, name: &args.name, context, until: Until::End }.run(client, &interrupts)
}
