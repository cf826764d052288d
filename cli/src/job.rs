//! `no43 job`: one command in a fresh machine, and nothing left of it.

use std::io::{stderr, stdout};
use std::path::PathBuf;
use std::time::Duration;

use no43_harness::instance::random_hex;
use no43_harness::job::{Job, Running};
use no43_harness::running::secrets::{self, Secret};
use no43_harness::running::{Launch, Line, Request, StartRequest};
use no43_harness::{exit_codes, instance};
use no43_host::{ProcessRef, Roots};

use crate::context::{Context, Done, Failure, OrExit as _};
use crate::follow::words;
use crate::prepare::{RecipeArgs, prepare};
use crate::run::make;
use crate::running::{duration, instances, runs, tend, this_program};
use crate::signals::Interrupts;

/// A fresh disk on the recipe's image, a card (waited for at most --wait), the command with its output passed on as it
/// comes, its exit code passed through; then everything is thrown away and the card given back. Also if this command is killed.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// How long to wait for a card that somebody else has
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "10 min")]
    wait: Duration,
    /// How long the command may take
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "1 h")]
    limit: Duration,
    /// Copy a file or folder in; may be given again
    #[arg(long = "in", value_name = "FILE:PATH", value_parser = pair)]
    files_in: Vec<(String, String)>,
    /// Copy a file out afterwards; may be given again
    #[arg(long = "out", value_name = "PATH:FILE", value_parser = pair)]
    files_out: Vec<(String, String)>,
    /// A secret for the command, in $NO43_SECRETS/NAME: NAME=file:PATH, NAME=env:VARIABLE or NAME=credential:NAME
    #[arg(long, value_name = "NAME=FROM")]
    secret: Vec<Secret>,
    /// NAME=VALUE for the command; may be given again. Not for secrets: others can see it
    #[arg(long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// After a failure leave machine and card as they are, and say how to get in
    #[arg(long)]
    keep_on_failure: bool,
    /// The command, without a shell
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// `A:B`, split at the last colon that is not a drive's.
fn pair(text: &str) -> Result<(String, String), String> {
    let wrong = || "write FROM:TO".to_owned();
    let at = text.match_indices(':').map(|(at, _)| at).find(|at| *at != 1 || !text[2..].starts_with('\\'));
    let (from, to) = text.split_at(at.ok_or_else(wrong)?);
    if from.is_empty() || to.len() < 2 { Err(wrong()) } else { Ok((from.to_owned(), to[1..].to_owned())) }
}

pub(crate) fn run(args: &Args, context: &Context) -> Done {
    let runs = runs()?;
    tend(&runs)?;
    let instances = instances()?;
    let prepared = prepare(&args.recipe, context)?;
    let name = format!("job-{:.24}-{}", prepared.plan.name, random_hex(4));
    let made = make(&name, &prepared, true, &instances)?;
    let interrupts = Interrupts::catch().or_exit(exit_codes::HOST_SETUP)?;
    let extra = match args.secret.is_empty() {
        true => Ok(None),
        false => secrets::write(&runs.dirs(&name), &args.secret).map(Some),
    };
    let extra_disks = extra.map_err(|why| {
        let _ = instances.remove(&made, &prepared.store);
        let _ = std::fs::remove_dir_all(runs.dirs(&name).dir());
        Failure::new(exit_codes::INPUT, why)
    })?;
    let request = Request::Start(StartRequest {
        first_start: None, // nobody signs in to the machine of one command
        name: name.clone(),
        instances: instances.dir().to_owned(),
        store: prepared.store.dir().to_owned(),
        plan: prepared.plan,
        owner: Some(ProcessRef::current(&Roots::real())),
        wait_s: args.wait.as_secs(),
        extra_disks: extra_disks.into_iter().collect(),
        qemu: "qemu-system-x86_64".into(),
        last_input: false,
    });
    let job = Job {
        command: args.command.clone(),
        files_in: args.files_in.iter().map(|(from, to)| (PathBuf::from(from), to.clone())).collect(),
        files_out: args.files_out.iter().map(|(from, to)| (from.clone(), PathBuf::from(to))).collect(),
        secrets: !args.secret.is_empty(),
        env: args.env.clone(),
        limit: args.limit,
        keep_on_failure: args.keep_on_failure,
    };
    let no43 = this_program()?;
    let mut heard = |line: &Line| {
        if let Some((label, text, _)) = words(&line.what, &name) {
            eprintln!("  {label:<8} {text}");
        }
    };
    let mut silence = std::io::sink();
    let (mut out, mut err) = (stdout(), stderr());
    let running = Running {
        runs: &runs,
        name: &name,
        stop: interrupts.stop(),
        // with --json standard output is for the result
        stdout: if context.json { &mut silence } else { &mut out },
        stderr: &mut err,
        heard: &mut heard,
    };
    let ended = running.run(&Launch { no43: &no43, runs: &runs }, &request, &job);
    if ended.kept.is_none()
        && let Ok(Some(left)) = instances.get(&name)
    {
        // never started, so nobody else removes it
        let _ = instance::Instances::remove(&instances, &left, &prepared.store);
    }
    if let Some(kept) = &ended.kept {
        eprintln!("{}", crate::text::kept(kept));
    }
    if context.json {
        context.print(&ended, |_| String::new())?;
        return Ok(ended.code);
    }
    match ended.problem {
        Some(problem) => Err(Failure::new(ended.code, problem)),
        None => Ok(ended.code),
    }
}

#[cfg(test)]
mod tests {
    use super::pair;

    #[test]
    fn pairs_are_split_where_a_person_means_it() {
        let split = |text| pair(text).map(|(a, b)| format!("{a} → {b}"));
        assert_eq!(split("a.txt:/srv/a.txt"), Ok("a.txt → /srv/a.txt".into()));
        assert_eq!(split("C:\\out.json:out.json"), Ok("C:\\out.json → out.json".into()));
        assert_eq!(split("bench/:C:\\bench"), Ok("bench/ → C:\\bench".into()));
        assert!(split("nothing").is_err() && split(":x").is_err() && split("x:").is_err());
    }
}
