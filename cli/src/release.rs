//! `no43 release`: gives back what a run that died has left bound.

use no43_harness::exit_codes;
use no43_host::{Privilege, Roots, StateDir, recovery};

use crate::context::{Context, Done, OrExit as _};

/// A machine that still runs is never touched. Quarantine is only ended for the card that is named.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// End the quarantine of this card, after it was reset or the cause was mended
    #[arg(long, value_name = "ADDRESS")]
    end_quarantine: Option<no43_host::PciAddress>,
}

pub(crate) fn run(args: &Args, context: &Context) -> Done {
    let roots = Roots::real();
    let state = StateDir::open_default().or_exit(exit_codes::HOST_SETUP)?;
    if let Some(address) = &args.end_quarantine {
        let ended = state.end_quarantine(address, &roots).or_exit(exit_codes::HOST_SETUP)?;
        let word = if ended { "is no longer in quarantine" } else { "was not in quarantine" };
        context.print(&serde_json::json!({"card": address, "ended": ended}), |_| {
            format!("{address} {word}\n")
        })?;
        return Ok(exit_codes::OK);
    }
    crate::running::tend(&crate::running::runs()?)?;
    let recovered =
        recovery::recover(&state, &roots, &Privilege::detect()).or_exit(exit_codes::HOST_SETUP)?;
    context.print(&recovered, |recovered| {
        let mut text = String::new();
        if recovered.is_empty() {
            text.push_str("nothing is left behind\n");
        }
        for (holder, back) in &recovered.given_back {
            text.push_str(&format!("given back, left behind by '{holder}': {back}\n"));
        }
        for left in &recovered.running {
            text.push_str(&format!("not touched: {left}\n"));
        }
        for problem in &recovered.problems {
            text.push_str(&format!("not given back: {problem}\n"));
        }
        text
    })?;
    Ok(if recovered.problems.is_empty() { exit_codes::OK } else { exit_codes::FAILED_HOST })
}
