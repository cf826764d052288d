//! `no43 schema`: the JSON Schema of recipes.

use crate::context::{Done, print_text};
use no43_harness::exit_codes;

/// Prints it; save it and name it in an editor's TOML settings.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

pub(crate) fn run(_args: Args) -> Done {
    print_text(&format!("{:#}\n", no43_builder::schema::json()))?;
    Ok(exit_codes::OK)
}
