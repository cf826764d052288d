//! `no43 lock`: pins what recipes take from outside.

use std::path::PathBuf;

use no43_builder::lock::{Lock, Update};
use no43_harness::exit_codes;

use crate::context::{Context, Done, OrExit as _};
use crate::prepare::{self, RecipeArgs};

/// Writes no43.lock beside the recipes. What is pinned already stays, unless --update names it.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Recipe files; they share the lock of their folder
    #[arg(required = true)]
    recipes: Vec<PathBuf>,
    /// Pin this input or suite anew, and say what the publisher changed; without a name: everything
    #[arg(long, value_name = "NAME", num_args = 0..=1, default_missing_value = "")]
    update: Vec<String>,
}

pub(crate) fn run(args: Args, context: &Context) -> Done {
    let store = context.store()?;
    let update = match args.update.as_slice() {
        [] => Update::Missing,
        names if names.iter().any(String::is_empty) => Update::All,
        names => Update::Names(names.to_vec()),
    };
    let mut changes = Vec::new();
    for path in args.recipes {
        let recipe = prepare::load(&RecipeArgs { recipe: path, sets: Vec::new(), locked: false })?;
        let mut lock = Lock::load_beside(&recipe.path).or_exit(exit_codes::RECIPE)?;
        let mut tools = prepare::tools(&store);
        let changed = lock.resolve(&recipe, &update, &mut tools).or_exit(exit_codes::INPUT)?;
        if !changed.is_empty() {
            lock.save().or_exit(exit_codes::INPUT)?;
        }
        changes.extend(changed);
    }
    context.print(&changes, |changes| match changes.as_slice() {
        [] => "nothing to change: everything is locked\n".to_owned(),
        changes => changes.iter().map(|change| format!("  {change}\n")).collect(),
    })?;
    Ok(exit_codes::OK)
}
