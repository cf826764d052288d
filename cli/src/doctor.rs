//! `no43 doctor`: what stands between this host and a VM with a card.

use no43_harness::exit_codes;
use no43_host::doctor::{self, Finding, Level};
use no43_host::{Roots, StateDir};

use crate::context::{Context, Done, OrExit as _};

/// Looks only. The exit code says whether a card can be lent as things are.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Memory of the VM that is planned, in MiB: is enough of it allowed to be locked?
    #[arg(long, value_name = "MIB")]
    memory: Option<u64>,
}

pub(crate) fn run(args: &Args, context: &Context) -> Done {
    let roots = Roots::real();
    let state = StateDir::open_default().or_exit(exit_codes::HOST_SETUP)?;
    let findings = doctor::examine(&roots, &state, args.memory).or_exit(exit_codes::HOST_SETUP)?;
    let colour = context.colour_stdout();
    context.print(&findings, |findings| {
        let mut text: String = findings.iter().map(|finding| shown(finding, colour)).collect();
        text.push_str(&format!("  {}\n", summary(findings)));
        text
    })?;
    let worst = findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok);
    Ok(if worst == Level::Problem { exit_codes::HOST_SETUP } else { exit_codes::OK })
}

fn shown(finding: &Finding, colour: bool) -> String {
    let (mark, code) = match finding.level {
        Level::Ok => ("✔", 32),
        Level::Warn => ("!", 33),
        Level::Problem => ("✘", 31),
    };
    let mark = if colour { format!("\x1b[{code}m{mark}\x1b[0m") } else { mark.to_owned() };
    let mut text = format!("  {mark} {:<22}  {}\n", finding.subject, finding.text);
    for (word, line) in [("fix", &finding.fix), ("why", &finding.why)] {
        if let Some(line) = line {
            text.push_str(&format!("      {word}   {line}\n"));
        }
    }
    text
}

fn summary(findings: &[Finding]) -> String {
    let count = |level| findings.iter().filter(|finding| finding.level == level).count();
    let plural = |count, word: &str| format!("{count} {word}{}", if count == 1 { "" } else { "s" });
    format!("{}, {}", plural(count(Level::Problem), "problem"), plural(count(Level::Warn), "warning"))
}
