//! `no43 verify`: the proof.

use std::io::{Write, stdout};
use std::path::{Path, PathBuf};
use std::time::Duration;

use no43_harness::evidence::{Event, Record, Sink};
use no43_harness::exit_codes;
use no43_harness::report::terminal::{Live, Style};
use no43_harness::verify::{self, Control, VerifyOptions};

use crate::context::{Context, Done, Failure, print_text};
use crate::prepare::{RecipeArgs, prepare};
use crate::signals::stop_token;
use no43_harness::words::duration;

/// Leases the cards, starts a throw-away machine, asks it, looks at the picture, gives the cards back, writes a report.
///
/// The run's folder holds every event, picture and log. The exit code is the verdict; see `no43 --help`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) recipe: RecipeArgs,
    /// A recipe that must fail, run after the main one: a check that cannot fail proves nothing
    #[arg(long, value_name = "RECIPE", requires = "control_fails_in")]
    pub(crate) control: Option<PathBuf>,
    /// The check in which the control must fail, with all before it green
    #[arg(long, value_name = "CHECK", requires = "control")]
    control_fails_in: Option<String>,
    /// Only these checks, and whether the guest answers at all
    #[arg(long, value_name = "CHECK", value_delimiter = ',')]
    check: Vec<String>,
    /// Not these checks; the report says that they were left out
    #[arg(long, value_name = "CHECK", value_delimiter = ',')]
    skip: Vec<String>,
    /// Where the folders of runs are [default: $NO43_RUNS, else ./runs]
    #[arg(long, value_name = "DIR")]
    runs: Option<PathBuf>,
    /// Do not build: the image must be in the store
    #[arg(long)]
    no_build: bool,
}

impl Args {
    /// The recipes that this command will want images of.
    pub(crate) fn recipes(&self) -> Vec<RecipeArgs> {
        let control =
            self.control.iter().map(|path| RecipeArgs { recipe: path.clone(), ..self.recipe.clone() });
        std::iter::once(self.recipe.clone()).chain(control).collect()
    }
}

pub(crate) fn run(args: Args, context: &Context) -> Done {
    let broken = |error: &dyn std::fmt::Display| Failure::new(exit_codes::HOST_SETUP, error);
    let stop = stop_token().map_err(|error| broken(&error))?;
    let mut options = VerifyOptions::here().map_err(|error| broken(&format!("{error:#}")))?;
    crate::running::tend(&crate::running::runs()?)?;
    options.choice.only = args.check.clone();
    options.choice.skip = args.skip.iter().map(|name| (name.clone(), "--skip".to_owned())).collect();
    let mut ready = Vec::new();
    for recipe in args.recipes() {
        let prepared = prepare(&recipe, context)?;
        let image = match prepared.built()? {
            Some(image) => image,
            None if args.no_build => {
                let what = format!(
                    "the image of {} is not in {}",
                    recipe.recipe.display(),
                    prepared.store.dir().display()
                );
                return Err(Failure::new(
                    exit_codes::STORE,
                    format!("{what}\n  fix   no43 build {}", recipe.recipe.display()),
                ));
            }
            None => {
                verify::cards_exist(&prepared.plan, &options)
                    .map_err(|verdict| Failure::new(exit_codes::of(&verdict), verdict.reason()))?;
                prepared.build(&stop)?.image
            }
        };
        ready.push((prepared.plan, image));
    }
    if let Some(runs) = args.runs {
        options.runs = runs;
    }
    if let Some((plan, _)) = ready.first() {
        let own: Vec<String> = plan.checks.own.iter().map(|check| check.name.clone()).collect();
        if let Some(name) = options.choice.unknown(&own).first() {
            let names = no43_harness::checks::names().into_iter().map(str::to_owned).chain(own);
            let names = names.collect::<Vec<_>>().join(", ");
            return Err(Failure::new(
                exit_codes::USAGE,
                format!("no check is called '{name}'; there are: {names}"),
            ));
        }
    }
    let mut ready = ready.into_iter();
    let (plan, image) = ready.next().ok_or_else(|| broken(&"there is no recipe"))?;
    options.control = ready.next().zip(args.control_fails_in).map(|((plan, image), fails_in)| Control {
        plan,
        image,
        fails_in,
    });

    let verdict = if context.json {
        let mut folder = Folder(None);
        let verdict = verify::verify(&plan, &image, &options, &stop, &mut folder);
        if let Some(text) =
            folder.0.and_then(|folder| std::fs::read_to_string(folder.join("report.json")).ok())
        {
            print_text(&text)?;
        }
        verdict
    } else {
        let style = Style { colour: context.colour_stdout(), phases: false };
        let mut both = Both { results: Live::new(stdout(), style), phase: None };
        verify::verify(&plan, &image, &options, &stop, &mut both)
    };
    Ok(exit_codes::of(&verdict))
}

/// Results on standard output, phases on standard error.
struct Both<W: Write> {
    results: Live<W>,
    /// The phase that runs, and the longest it may take.
    phase: Option<(String, String)>,
}

impl<W: Write> Sink for Both<W> {
    fn event(&mut self, record: &Record) {
        match &record.event {
            Event::PhaseStarted { phase, limit_ms, .. } => {
                let limit = limit_ms.map_or(String::new(), |ms| {
                    format!(" of at most {}", duration(Duration::from_millis(ms)))
                });
                if !limit.is_empty() {
                    eprintln!("  ...      {phase}{}", limit.replacen(" of", ":", 1));
                }
                self.phase = Some((phase.clone(), limit));
            }
            Event::PhaseEnded { phase, took_ms, .. } => {
                let limit = self
                    .phase
                    .take()
                    .filter(|(name, _)| name == phase)
                    .map_or(String::new(), |(_, limit)| limit);
                eprintln!("  {phase:<8} {}{limit}", duration(Duration::from_millis(*took_ms)));
            }
            _ => {}
        }
        self.results.event(record);
    }

    fn folder(&mut self, path: &Path) {
        self.results.folder(path);
    }
}

/// Hears only where the run's folder is.
struct Folder(Option<PathBuf>);

impl Sink for Folder {
    fn event(&mut self, _record: &Record) {}

    fn folder(&mut self, path: &Path) {
        self.0 = Some(path.to_owned());
    }
}
