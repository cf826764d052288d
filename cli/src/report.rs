//! `no43 report`: the reports of a kept run, made again from its events, or a bundle of it to hand in.

use std::io::{IsTerminal as _, Write as _, stdin, stdout};
use std::path::PathBuf;

use no43_harness::exit_codes;
use no43_harness::report::{self, Names, terminal::Style};

use crate::context::{Context, Done, Failure, print_text};

/// Nothing is asked of host or guest again: a report says what was seen then.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The run's folder
    run: PathBuf,
    /// Make one file to hand in: facts, checks, causes, times; without serial numbers, names, addresses and keys. It is
    /// shown before it is written
    #[arg(long)]
    anonymise: bool,
    /// Where the file to hand in goes [default: RUN.hand-in.json beside the run's folder]
    #[arg(long, value_name = "FILE", requires = "anonymise")]
    out: Option<PathBuf>,
    /// A further name that must not be in it
    #[arg(long, value_name = "NAME", requires = "anonymise")]
    hide: Vec<String>,
    /// A picture of the run that goes in too, as frames/0048.120-screen.png; look at it first
    #[arg(long, value_name = "PICTURE", requires = "anonymise")]
    frame: Vec<String>,
    /// No pictures at all
    #[arg(long, requires = "anonymise", conflicts_with = "frame")]
    no_frames: bool,
    /// Write it without asking
    #[arg(long, requires = "anonymise")]
    yes: bool,
}

pub(crate) fn run(args: &Args, context: &Context) -> Done {
    let failed = |error: anyhow::Error| Failure::new(exit_codes::USAGE, format!("{error:#}"));
    if args.anonymise {
        return hand_in(args);
    }
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

/// Shows what would be handed in, asks, and writes it.
fn hand_in(args: &Args) -> Done {
    let failed = |error: anyhow::Error| Failure::new(exit_codes::USAGE, format!("{error:#}"));
    let mut names = Names::here();
    args.hide.iter().for_each(|name| names.add(name, "<name>"));
    let bundle = report::anonymise(&args.run, &names, !args.no_frames, &args.frame).map_err(failed)?;
    print_text(&format!("{:#}\n", bundle.shown))?;
    let out = args.out.clone().unwrap_or_else(|| args.run.with_extension("hand-in.json"));
    let size = bundle.file().len();
    eprintln!("  this, and the contents of {} pictures, is {size} bytes", bundle.pictures.len());
    if !args.yes && !agreed(&out)? {
        eprintln!("  nothing was written");
        return Ok(exit_codes::OK);
    }
    std::fs::write(&out, bundle.file()).map_err(|error| {
        Failure::new(exit_codes::USAGE, format!("failed to write {}: {error}", out.display()))
    })?;
    eprintln!("  written  {}", out.display());
    Ok(exit_codes::OK)
}

/// Asks on a terminal; elsewhere nobody can have looked.
fn agreed(out: &std::path::Path) -> Result<bool, Failure> {
    if !stdin().is_terminal() {
        return Err(Failure::new(
            exit_codes::USAGE,
            "nobody was asked, since this is no terminal\n  fix   read it above, then add --yes",
        ));
    }
    eprint!("  write it to {}? [y/N] ", out.display());
    let _ = stdout().flush();
    let mut answer = String::new();
    let read = stdin().read_line(&mut answer);
    Ok(read.is_ok() && matches!(answer.trim(), "y" | "Y" | "yes"))
}
