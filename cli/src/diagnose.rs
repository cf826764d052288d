//! `no43 diagnose`: why a kept run failed, judged anew from what it saw.

use std::path::PathBuf;

use no43_harness::diagnosis::{self, Facts, Finding};
use no43_harness::evidence::read::Run;
use no43_harness::exit_codes;
use serde::Serialize;

use crate::context::{Context, Done, Failure};

/// Nothing is asked of host or guest again. A newer version may know more causes than the one that ran.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The run's folder
    run: PathBuf,
    /// Every cause that fits, also those that are not likely, and every fact
    #[arg(long)]
    all: bool,
}

#[derive(Serialize)]
struct Diagnosis {
    causes: Vec<Finding>,
    facts: Facts,
}

pub(crate) fn run(args: &Args, context: &Context) -> Done {
    let run = Run::open(&args.run).map_err(|error| Failure::new(exit_codes::USAGE, format!("{error:#}")))?;
    let facts = diagnosis::facts_of_run(&run);
    let causes = if args.all { diagnosis::weigh_all(&facts) } else { diagnosis::diagnose(&facts) };
    context.print(&Diagnosis { causes, facts }, |found| text(found, args.all))?;
    Ok(exit_codes::OK)
}

fn text(found: &Diagnosis, all: bool) -> String {
    let mut out = String::new();
    if found.causes.is_empty() {
        out.push_str("  no cause that this version knows fits what was seen\n");
    }
    for (n, cause) in found.causes.iter().enumerate() {
        let unlikely = if cause.likely { "" } else { "   (not likely)" };
        out.push_str(&format!("  {}  {}{unlikely}\n", n + 1, cause.cause));
        rows(&mut out, "for", &cause.speaks_for);
        rows(&mut out, "against", &cause.speaks_against);
        if cause.likely {
            rows(&mut out, "fix", std::slice::from_ref(&cause.fix));
            rows(&mut out, "unknown", &cause.missing);
        }
    }
    if all {
        out.push_str("  facts\n");
        for (name, values) in found.facts.iter() {
            rows(&mut out, name, values);
        }
    }
    out
}

fn rows(out: &mut String, name: &str, lines: &[String]) {
    for (n, line) in lines.iter().enumerate() {
        out.push_str(&format!("     {:<8} {line}\n", if n == 0 { name } else { "" }));
    }
}
