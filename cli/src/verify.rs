//! `no43 verify`: the proof.

use std::io::stdout;
use std::path::PathBuf;

use no43_harness::evidence::{Record, Sink};
use no43_harness::exit_codes;
use no43_harness::report::terminal::{Live, Style};
use no43_harness::verify::{self, Control, VerifyOptions};

use crate::context::{Context, Done, Failure, print_text};
use crate::prepare::{RecipeArgs, prepare};
use crate::signals::stop_token;

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
            None => prepared.build(&stop)?.image,
        };
        ready.push((prepared.plan, image));
    }
    let mut options = VerifyOptions::here().map_err(|error| broken(&format!("{error:#}")))?;
    if let Some(runs) = args.runs {
        options.runs = runs;
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
        let style = Style { colour: context.colour_stdout(), phases: true };
        verify::verify(&plan, &image, &options, &stop, &mut Live::new(stdout(), style))
    };
    Ok(exit_codes::of(&verdict))
}

/// Hears only where the run's folder is.
struct Folder(Option<PathBuf>);

impl Sink for Folder {
    fn event(&mut self, _record: &Record) {}

    fn folder(&mut self, path: &std::path::Path) {
        self.0 = Some(path.to_owned());
    }
}
