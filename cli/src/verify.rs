//! `no43 verify`: the proof.

use std::io::{Write, stdout};
use std::path::{Path, PathBuf};
use std::time::Duration;

use no43_builder::image::Image;
use no43_builder::plan::Plan;
use no43_harness::evidence::{Event, Record, Sink};
use no43_harness::exit_codes;
use no43_harness::instance::{Instances, random_hex};
use no43_harness::report::terminal::{Live, Style};
use no43_harness::stop::Stop;
use no43_harness::verdict::Verdict;
use no43_harness::verify::{self, Control, Elsewhere, InUse, Keep, VerifyOptions};
use no43_host::PciAddress;

use crate::context::{Context, Done, Failure, OrExit as _, print_text};
use crate::prepare::{Prepared, RecipeArgs, guest_program, prepare, windows_guest_program};
use crate::running::this_program;
use crate::signals::stop_token;
use no43_harness::words::duration;

/// Leases the cards, starts a throw-away machine, asks it, looks at the picture, gives the cards back, writes a report.
///
/// The run's folder holds every event, picture and log. The exit code is the verdict; see `no43 --help`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) recipe: RecipeArgs,
    /// RECIPE is the name of a machine that runs: it is asked as it is, and goes on running
    #[arg(long, conflicts_with_all = ["control", "no_build", "cycles"])]
    running: bool,
    /// RECIPE is the socket of a guest agent: a VM that somebody else built or runs is asked as it is. The guest program is
    /// copied in, and removed afterwards
    #[arg(long, conflicts_with_all = ["running", "control", "no_build", "cycles"])]
    agent: bool,
    /// With --agent: the card's address on this host, to compare the guest's view with
    #[arg(long, value_name = "ADDRESS", requires = "agent")]
    card: Option<PciAddress>,
    /// A recipe that must fail, run after the main one: a check that cannot fail proves nothing
    #[arg(long, value_name = "RECIPE", requires = "control_fails_in")]
    pub(crate) control: Option<PathBuf>,
    /// The check in which the control must fail, with all before it green
    #[arg(long, value_name = "CHECK", requires = "control")]
    control_fails_in: Option<String>,
    /// This image of the store instead of the recipe's own: key, or its first digits. In place of RECIPE, it is asked as the
    /// recipe that it was built from says
    #[arg(long, value_name = "KEY", conflicts_with_all = ["running", "agent", "no_build"])]
    image: Option<String>,
    /// Only these checks, and whether the guest answers at all
    #[arg(long, value_name = "CHECK", value_delimiter = ',')]
    check: Vec<String>,
    /// Not these checks; the report says that they were left out
    #[arg(long, value_name = "CHECK", value_delimiter = ',')]
    skip: Vec<String>,
    /// Switch the machine off and on so often after everything else: faults of a card's reset show only then
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=1000))]
    cycles: u32,
    /// After a failure leave machine and card as they are, and say how to get in
    #[arg(long, conflicts_with_all = ["running", "agent", "control"])]
    keep_on_failure: bool,
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
        if self.running || self.agent {
            return Vec::new();
        }
        let control =
            self.control.iter().map(|path| RecipeArgs { recipe: path.clone(), ..self.recipe.clone() });
        std::iter::once(self.recipe.clone()).chain(control).collect()
    }
}

pub(crate) fn run(args: Args, context: &Context) -> Done {
    let broken = |error: &dyn std::fmt::Display| Failure::new(exit_codes::HOST_SETUP, error);
    let stop = stop_token().map_err(|error| broken(&error))?;
    let mut options = VerifyOptions::here().map_err(|error| broken(&format!("{error:#}")))?;
    options.choice.only = args.check.clone();
    options.choice.skip = args.skip.iter().map(|name| (name.clone(), "--skip".to_owned())).collect();
    options.cycles = args.cycles;
    if args.running {
        let machine = in_use(&args.recipe)?;
        known(&options, &machine.plan)?;
        options.runs = args.runs.unwrap_or(options.runs);
        return heard(context, |sink| verify::verify_in_use(&machine, &options, &stop, sink));
    }
    if args.agent {
        let vm = elsewhere(&args)?;
        let mistake = options.choice.mistake(&verify::checks_elsewhere());
        mistake.map_or(Ok(()), |mistake| Err(Failure::new(exit_codes::USAGE, mistake)))?;
        options.runs = args.runs.unwrap_or(options.runs);
        return heard(context, |sink| verify::verify_elsewhere(&vm, &options, &stop, sink));
    }
    crate::running::tend(&crate::running::runs()?)?;
    let mut ready = Vec::new();
    let mut keep = None;
    let mut chosen = chosen(&args, context)?;
    for mut recipe in args.recipes() {
        let image = chosen.take().map(|chosen| {
            recipe.recipe = chosen.recipe;
            chosen.image
        });
        let prepared = prepare(&recipe, context)?;
        let image = match image {
            Some(image) => fitting(image, &prepared.plan)?,
            None => own_image(&prepared, &recipe, args.no_build, &options, &stop)?,
        };
        if args.keep_on_failure {
            let instances = crate::running::instances()?;
            let name = format!("verify-{:.24}-{}", prepared.plan.name, random_hex(4));
            let instance = crate::run::make_of(&image, &name, &prepared, true, &instances)?;
            let runs = crate::running::runs()?;
            keep = Some((Keep { runs, instances, instance }, prepared.store));
        }
        ready.push((prepared.plan, image));
    }
    if let Some(runs) = args.runs {
        options.runs = runs;
    }
    if let Some((plan, _)) = ready.first() {
        known(&options, plan)?;
    }
    let mut ready = ready.into_iter();
    let (plan, image) = ready.next().ok_or_else(|| broken(&"there is no recipe"))?;
    options.control = ready.next().zip(args.control_fails_in).map(|((plan, image), fails_in)| Control {
        plan,
        image,
        fails_in,
    });
    options.keep = keep.as_ref().map(|(keep, _)| keep.clone());
    let code = heard(context, |sink| verify::verify(&plan, &image, &options, &stop, sink));
    if let Some((keep, store)) = keep {
        let kept = keep.settle(&this_program()?, &store);
        let kept = kept.map_err(|why| Failure::new(exit_codes::FAILED_HOST, why))?;
        kept.into_iter().for_each(|name| eprintln!("{}", crate::text::kept(&name)));
    }
    code
}

/// The recipe's image; built if it is not there yet.
fn own_image(
    prepared: &Prepared,
    recipe: &RecipeArgs,
    no_build: bool,
    options: &VerifyOptions,
    stop: &Stop,
) -> Result<Image, Failure> {
    if let Some(image) = prepared.built()? {
        return Ok(image);
    }
    let (recipe, store) = (recipe.recipe.display(), prepared.store.dir().display());
    if no_build {
        let what = format!("the image of {recipe} is not in {store}\n  fix   no43 build {recipe}");
        return Err(Failure::new(exit_codes::STORE, what));
    }
    verify::cards_exist(&prepared.plan, options)
        .map_err(|verdict| Failure::new(exit_codes::of(&verdict), verdict.reason()))?;
    Ok(prepared.build(stop)?.image)
}

/// An image that is not the one that its recipe has now.
struct Chosen {
    /// Says how it is started and what is asked.
    recipe: PathBuf,
    image: Image,
}

/// The least of a key that is taken for one where a recipe is expected.
const KEY_DIGITS: usize = 6;

/// The image that `--image` names, or whose key stands where a recipe is expected and is none.
fn chosen(args: &Args, context: &Context) -> Result<Option<Chosen>, Failure> {
    let named = args.recipe.recipe.to_string_lossy();
    let is_key =
        named.len() >= KEY_DIGITS && named.chars().all(|c| c.is_ascii_digit() || ('a'..='f').contains(&c));
    let alone = is_key && !args.recipe.recipe.exists();
    let prefix = match &args.image {
        Some(_) if alone => {
            return Err(Failure::new(exit_codes::USAGE, "two images are named: leave out --image"));
        }
        Some(key) => key.clone(),
        None if alone => named.into_owned(),
        None => return Ok(None),
    };
    let store = context.store()?;
    let key = store.find(&prefix).or_exit(exit_codes::STORE)?;
    let gone = || Failure::new(exit_codes::STORE, format!("image {} has just been removed", key.short()));
    let image = store.get(&key).or_exit(exit_codes::STORE)?.ok_or_else(gone)?;
    if !alone {
        return Ok(Some(Chosen { recipe: args.recipe.recipe.clone(), image }));
    }
    let mut recipes = store.recipes_of(&key).or_exit(exit_codes::STORE)?.into_iter();
    let Some(recipe) = recipes.next() else {
        let (short, of) = (key.short(), &image.manifest.recipe);
        let what = format!(
            "no recipe that is here has image {short} as its newest (its recipe was called '{of}')\n  fix   no43 verify RECIPE --image {short}"
        );
        return Err(Failure::new(exit_codes::STORE, what));
    };
    eprintln!("  recipe   {}: how image {} is started and what is asked", recipe.display(), key.short());
    if let Some(other) = recipes.next() {
        eprintln!(
            "           others have this image, too, such as {}: no43 verify RECIPE --image KEY",
            other.display()
        );
    }
    Ok(Some(Chosen { recipe, image }))
}

/// A Linux image cannot be started by a recipe of Windows, nor the other way round.
fn fitting(image: Image, plan: &Plan) -> Result<Image, Failure> {
    let (windows, recipe) = (image.manifest.sealed.is_some(), plan.guest.os.starts_with("windows"));
    if windows == recipe {
        return Ok(image);
    }
    let what = |windows| if windows { "Windows" } else { "Linux" };
    let short = image.manifest.key.short();
    let why = format!("image {short} has {}, and the recipe is of {}", what(windows), what(recipe));
    Err(Failure::new(exit_codes::STORE, why))
}

/// The machine of that name, as it was started.
fn in_use(named: &RecipeArgs) -> Result<InUse, Failure> {
    let runs = crate::running::runs()?;
    let name = named.recipe.to_string_lossy();
    if !named.sets.is_empty() {
        let what =
            format!("--set changes nothing in a machine that runs: '{name}' is checked as it was started");
        return Err(Failure::new(exit_codes::USAGE, what));
    }
    let row = crate::running::running(&runs, &name)?;
    let instance = Instances::at(&row.note.instances).find(&name).or_exit(exit_codes::INSTANCE)?;
    Ok(InUse {
        plan: instance.plan().or_exit(exit_codes::INSTANCE)?,
        dirs: runs.dirs(&name),
        lease: row.note.lease,
        name: name.into_owned(),
    })
}

/// Somebody else's VM, by its agent's socket.
fn elsewhere(args: &Args) -> Result<Elsewhere, Failure> {
    let usage = |what: String| Failure::new(exit_codes::USAGE, what);
    if !args.recipe.sets.is_empty() {
        return Err(usage("--set changes nothing in a machine that runs: it is checked as it is".into()));
    }
    verify::is_socket(&args.recipe.recipe).map_err(usage)?;
    Ok(Elsewhere {
        agent: args.recipe.recipe.clone(),
        card: args.card,
        linux_program: guest_program(),
        windows_program: windows_guest_program().map_err(Failure::into_message),
    })
}

/// Whether there are checks of the names that were given.
fn known(options: &VerifyOptions, plan: &Plan) -> Result<(), Failure> {
    let mistake = options.choice.mistake(&plan.checks);
    mistake.map_or(Ok(()), |mistake| Err(Failure::new(exit_codes::USAGE, mistake)))
}

/// Runs it with somebody who hears, and prints what is asked for.
fn heard(context: &Context, verify: impl FnOnce(&mut dyn Sink) -> Verdict) -> Done {
    let verdict = if context.json {
        let mut folder = Folder(None);
        let verdict = verify(&mut folder);
        if let Some(text) =
            folder.0.and_then(|folder| std::fs::read_to_string(folder.join("report.json")).ok())
        {
            print_text(&text)?;
        }
        verdict
    } else {
        let style = Style { colour: context.colour_stdout(), phases: false };
        verify(&mut Both { results: Live::new(stdout(), style), phase: None })
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
