//! `no43 completions SHELL`.

use crate::context::Done;
use clap::CommandFactory as _;
use no43_harness::exit_codes;

/// Prints a completion script.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The shell to write it for
    shell: clap_complete::Shell,
}

pub(crate) fn run(args: &Args) -> Done {
    clap_complete::generate(args.shell, &mut crate::Cli::command(), "no43", &mut std::io::stdout());
    Ok(exit_codes::OK)
}
