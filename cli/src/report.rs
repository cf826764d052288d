//! `no43 report`: the reports of a kept run, made again from its events.

use std::path::PathBuf;

use no43_harness::exit_codes;
use no43_harness::report::{self, terminal::Style};

use crate::context::{Context, Done, Failure, print_text};

/// Nothing is asked of host or guest again: a report says what was seen then.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The run's folder
    run: PathBuf,
}

pub(crate) fn run(args: &Args, context: &Context) -> Done {
    let failed = |error: anyhow::Error| Failure::new(exit_codes::USAGE, format!("{error:#}"));
    let files = report::write(&args.run).map_err(failed)?;
    if context.json {
        let text = std::fs::read_to_string(&files.json).map_err(|error| failed(error.into()))?;
        print_text(&text)?;
    } else {
        print_text(
            &report::terminal(&args.run, Style { colour: context.colour_stdout(), phases: true })
                .map_err(failed)?,
        )?;
        print_text(&format!("  report   {}\n", files.html.display()))?;
    }
    Ok(exit_codes::OK)
}
