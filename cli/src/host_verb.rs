//! `no43 host-verb`: the half of no43 that runs as root, asked for by the other half through sudo.

use no43_harness::exit_codes;

use crate::context::{Done, print_text};

/// One request in JSON; every part of it is checked by the side that is root.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The request
    request: String,
}

pub(crate) fn run(args: &Args) -> Done {
    print_text(&format!("{}\n", no43_host::privilege::run_verb(&args.request)))?;
    Ok(exit_codes::OK)
}
