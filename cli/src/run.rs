//! `no43 run`: a recipe's machine, to be used and kept.

use std::path::PathBuf;
use std::time::Duration;

use no43_builder::image::Image;
use no43_builder::plan::Plan;
use no43_builder::store::Store;
use no43_harness::exit_codes;
use no43_harness::instance::{Instance, Instances, NewInstance, Origin, differences, random_hex};
use no43_harness::running::first_start;
use no43_harness::running::{Launch, Left, Request, Runs, StartRequest};
use no43_harness::verify::{self, VerifyOptions};

use crate::context::{Context, Done, Failure, OrExit as _};
use crate::follow::{Follow, Until};
use crate::prepare::{Prepared, RecipeArgs, prepare};
use crate::running::{duration, instances, refused, runs, tend, this_program};
use crate::signals::{Interrupts, stop_token};

/// The first run makes the instance, later ones start the same one again: its disk, its saves and sign-ins are kept.
///
/// A recipe that has changed never touches an instance's disk: what differs is said, and `no43 instance renew` gives it a
/// new one. The machine outlives this command and its terminal. Ctrl-C asks the guest to shut down, a second one detaches.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// The instance's name [default: the recipe's]
    #[arg(long, conflicts_with = "ephemeral")]
    name: Option<String>,
    /// Keep nothing: the disk is thrown away when the machine ends
    #[arg(long)]
    ephemeral: bool,
    /// Return as soon as the guest answers
    #[arg(long)]
    detach: bool,
    /// Give the guest this host's last keyboard or pointer if the recipe says so, instead of sharing it
    #[arg(long)]
    yes: bool,
    /// How long to wait for a card that somebody else has, such as "10 min"
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "0 s")]
    wait: Duration,
}

pub(crate) fn run(args: &Args, context: &Context) -> Done {
    let runs = runs()?;
    tend(&runs)?;
    let instances = instances()?;
    let ready = ready(args, &instances, &runs, context)?;
    let interrupts = Interrupts::catch_but_hangup().or_exit(exit_codes::HOST_SETUP)?;
    let name = ready.instance.name().to_owned();
    let first_start =
        first_start::wanted(&ready.plan, &ready.instance).or_exit(exit_codes::INPUT).inspect_err(|_| {
            if args.ephemeral {
                let _ = instances.remove(&ready.instance, &ready.store);
            }
        })?;
    let request = Request::Start(StartRequest {
        name: name.clone(),
        instances: instances.dir().to_owned(),
        store: ready.store.dir().to_owned(),
        plan: ready.plan,
        owner: None,
        first_start,
        wait_s: args.wait.as_secs(),
        extra_disks: Vec::new(),
        qemu: "qemu-system-x86_64".into(),
        last_input: args.yes,
    });
    let no43 = this_program()?;
    let launched = Launch { no43: &no43, runs: &runs }.launch(&request, &name);
    let client = launched.map_err(|refusal| {
        if args.ephemeral {
            let _ = instances.remove(&ready.instance, &ready.store);
        }
        refused(&refusal)
    })?;
    let until = if args.detach { Until::Ready } else { Until::End };
    let done = Follow { runs: &runs, name: &name, context, until }.run(client, &interrupts)?;
    if args.detach && !context.json && runs.row(&name).is_some() {
        println!("  running  {name}: no43 attach {name}, no43 stop {name}");
    }
    Ok(done)
}

/// An instance that can be started, and what it is to be.
struct Ready {
    instance: Instance,
    plan: Plan,
    store: Store,
}

fn ready(args: &Args, instances: &Instances, runs: &Runs, context: &Context) -> Result<Ready, Failure> {
    if let Some(kept) = kept_by_name(args, instances)? {
        not_running(runs, kept.name())?;
        let plan = kept.plan().or_exit(exit_codes::INSTANCE)?;
        return Ok(Ready { instance: kept, plan, store: context.store()? });
    }
    let prepared = prepare(&args.recipe, context)?;
    let name = match (&args.name, args.ephemeral) {
        (Some(name), _) => name.clone(),
        (None, false) => prepared.plan.name.clone(),
        (None, true) => format!("{:.31}-{}", prepared.plan.name, random_hex(4)),
    };
    let instance = match instances.get(&name).or_exit(exit_codes::INSTANCE)? {
        Some(instance) => {
            not_running(runs, &name)?;
            again(instance, &prepared, args)?
        }
        None => make(&name, &prepared, args.ephemeral, instances)?,
    };
    Ok(Ready { instance, plan: prepared.plan, store: prepared.store })
}

/// `no43 run NAME`: an instance whose recipe need not be there any more.
fn kept_by_name(args: &Args, instances: &Instances) -> Result<Option<Instance>, Failure> {
    let given: &PathBuf = &args.recipe.recipe;
    let plain = given.to_str().filter(|text| !text.contains('/') && !given.exists());
    match plain {
        Some(name) if !name.ends_with(".toml") => {
            instances.find(name).map(Some).or_exit(exit_codes::INSTANCE)
        }
        _ => Ok(None),
    }
}

fn not_running(runs: &Runs, name: &str) -> Result<(), Failure> {
    match runs.row(name).filter(|row| row.left != Left::Dead) {
        Some(row) => Err(Failure::new(
            exit_codes::INSTANCE,
            format!(
                "'{name}' runs already ({}): no43 attach {name} follows it, no43 stop {name} ends it",
                row.note.stage.word()
            ),
        )),
        None => Ok(()),
    }
}

/// A new instance on the recipe's image, which is built if it is not there.
pub(crate) fn make(
    name: &str,
    prepared: &Prepared,
    ephemeral: bool,
    instances: &Instances,
) -> Result<Instance, Failure> {
    no43_harness::instance::check_name(name).or_exit(exit_codes::INSTANCE)?;
    let image = match prepared.built()? {
        Some(image) => image,
        None => {
            let options = VerifyOptions::here()
                .map_err(|error| Failure::new(exit_codes::HOST_SETUP, format!("{error:#}")))?;
            verify::cards_exist(&prepared.plan, &options)
                .map_err(|verdict| Failure::new(exit_codes::of(&verdict), verdict.reason()))?;
            prepared.build(&stop_token().or_exit(exit_codes::HOST_SETUP)?)?.image
        }
    };
    make_of(&image, name, prepared, ephemeral, instances)
}

/// The same of an image that need not be the recipe's own.
pub(crate) fn make_of(
    image: &Image,
    name: &str,
    prepared: &Prepared,
    ephemeral: bool,
    instances: &Instances,
) -> Result<Instance, Failure> {
    let origin = Origin { image, store: &prepared.store };
    let new = NewInstance { name, plan: &prepared.plan, origin, ephemeral };
    let instance = instances.create(&new).or_exit(exit_codes::INSTANCE)?;
    let fate = if ephemeral { "thrown away when it ends" } else { "kept" };
    eprintln!("  instance {name}: made from image {}, {fate}", image.manifest.key.short());
    Ok(instance)
}

/// An instance that is there: what the recipe says differently now is said, and its disk is left alone.
fn again(mut instance: Instance, prepared: &Prepared, args: &Args) -> Result<Instance, Failure> {
    let (made_from, now) = (instance.record.recipe.clone(), std::path::absolute(&prepared.plan.recipe_file));
    if made_from.exists() && now.is_ok_and(|now| now.canonicalize().ok() != made_from.canonicalize().ok()) {
        return Err(Failure::new(
            exit_codes::INSTANCE,
            format!(
                "instance '{}' belongs to another recipe ({}): choose another --name",
                instance.name(),
                made_from.display()
            ),
        ));
    }
    let all = differences(&instance, &prepared.plan);
    for difference in &all {
        let word = if difference.needs_renew { "not in this instance" } else { "from now on" };
        eprintln!("  differs  {} ({word})", difference.what);
    }
    if all.iter().any(|difference| difference.needs_renew) {
        eprintln!(
            "  note     the instance keeps its system disk; a new one: no43 instance renew {} {}",
            instance.name(),
            args.recipe.recipe.display()
        );
    }
    instance.follow(&prepared.plan).or_exit(exit_codes::INSTANCE)?;
    eprintln!("  instance {}: as it was left", instance.name());
    Ok(instance)
}
