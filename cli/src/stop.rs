//! `no43 stop`: ask a guest to shut down, or switch it off.

use std::time::Duration;

use no43_harness::exit_codes;
use no43_harness::running::Ask;

use crate::context::{Context, Done, OrExit as _};
use crate::follow::{Follow, Until};
use crate::running::{client_failure, connect, duration, running, runs, tend};
use crate::signals::Interrupts;

/// A guest that does not shut down in time runs on: only --force switches it off.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The instance
    name: String,
    /// Switch it off without asking; what the guest has not written is lost
    #[arg(long)]
    force: bool,
    /// How long the guest may take
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "90 s")]
    limit: Duration,
}

pub(crate) fn run(args: &Args, context: &Context) -> Done {
    let runs = runs()?;
    tend(&runs)?;
    running(&runs, &args.name)?;
    let interrupts = Interrupts::catch_but_hangup().or_exit(exit_codes::HOST_SETUP)?;
    // followed from before it is asked, so that nothing is missed
    let client = connect(&runs, &args.name)?.follow(false).map_err(|error| client_failure(&error))?;
    let ask = Ask::Stop { limit_s: args.limit.as_secs(), force: args.force };
    connect(&runs, &args.name)?.ask(&ask).map_err(|error| client_failure(&error))?;
    let follow = Follow { runs: &runs, name: &args.name, context, until: Until::Stopped };
    let code = follow.go_on(client, &interrupts)?;
    // how the guest had fared before is not this command's failure
    Ok(if code == exit_codes::FAILED_GUEST && runs.row(&args.name).is_some() { code } else { exit_codes::OK })
}
