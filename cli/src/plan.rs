//! `no43 plan`: everything decided, nothing done.

use no43_builder::build;
use no43_harness::exit_codes;

use crate::context::{Context, Done, OrExit as _};
use crate::prepare::{RecipeArgs, prepare};
use no43_harness::words::bytes;

/// Looks and prints; builds nothing, leases nothing.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    recipe: RecipeArgs,
}

pub(crate) fn run(args: &Args, context: &Context) -> Done {
    let prepared = prepare(&args.recipe, context)?;
    let store = &prepared.store;
    let exists = |key: &no43_builder::key::Key| store.get(key).is_ok_and(|image| image.is_some());
    let needed = build::needed_bytes(&prepared.plan, store).or_exit(exit_codes::STORE)?;
    let free = store.free_bytes();
    let value = serde_json::json!({
        "plan": prepared.plan,
        "first_layer_to_build": prepared.plan.layers.iter().find(|layer| !exists(&layer.key)).map(|layer| &layer.name),
        "bytes_needed": needed,
        "bytes_free": free,
    });
    context.print(&value, |_| {
        let mut text = prepared.plan.show_with(&exists);
        if !text.ends_with('\n') {
            text.push('\n');
        }
        let wanted = if needed == 0 { "nothing".to_owned() } else { format!("about {}", bytes(needed)) };
        text.push_str(&format!(
            "  space    {wanted} to build, {} free in {}\n",
            bytes(free),
            store.dir().display()
        ));
        text
    })?;
    Ok(exit_codes::OK)
}
