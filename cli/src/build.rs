//! `no43 build`: the image of a recipe.

use no43_harness::exit_codes;

use crate::context::{Context, Done, Failure};
use crate::prepare::{RecipeArgs, prepare};
use crate::signals::stop_token;
use no43_harness::words::bytes;

/// A build goes on at the last layer that is there. Nothing half-done is ever in the store.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    recipe: RecipeArgs,
}

pub(crate) fn run(args: &Args, context: &Context) -> Done {
    let stop = stop_token().map_err(|error| {
        Failure::new(exit_codes::FAILED_HARNESS, format!("failed to catch signals: {error}"))
    })?;
    let built = prepare(&args.recipe, context)?.build(&stop)?;
    let key = &built.image.manifest.key;
    let layers: Vec<_> = built
        .layers
        .iter()
        .map(|layer| {
            serde_json::json!({"name": layer.name, "key": layer.key, "seconds": layer.took.map(|took| took.as_secs_f64())})
        })
        .collect();
    let value = serde_json::json!({"image": key, "folder": built.image.dir, "bytes": built.image.bytes(), "layers": layers});
    context.print(&value, |_| format!("image {key} ({})\n", bytes(built.image.bytes())))?;
    Ok(exit_codes::OK)
}
