//! `no43 build`: the image of a recipe.

use no43_harness::exit_codes;

use crate::context::{Context, Done, Failure};
use crate::prepare::{Manner, RecipeArgs, prepare};
use crate::signals::stop_token;
use no43_harness::words::bytes;

/// A build goes on at the last layer that is there. Nothing half-done is ever in the store.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Multiply the deadlines of an unattended installation; 1 is for KVM and an SSD
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0, value_parser = patience)]
    patience: f64,
    /// Leave the machine running when an installation fails, until the next build
    #[arg(long)]
    keep_on_failure: bool,
}

fn patience(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(factor) if (0.01..=1000.0).contains(&factor) => Ok(factor),
        _ => Err("a number from 0.01 to 1000 was expected".to_owned()),
    }
}

pub(crate) fn run(args: &Args, context: &Context) -> Done {
    let stop = stop_token().map_err(|error| {
        Failure::new(exit_codes::FAILED_HARNESS, format!("failed to catch signals: {error}"))
    })?;
    let manner = Manner { patience: args.patience, keep_on_failure: args.keep_on_failure };
    let built = prepare(&args.recipe, context)?.build_in(manner, &stop)?;
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
