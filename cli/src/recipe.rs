//! `no43 recipe`: is it right, and what does it say?

use clap::Subcommand;
use no43_harness::exit_codes;

use crate::context::{Context, Done};
use crate::prepare::{RecipeArgs, load};
use crate::text::Table;

/// A recipe is a TOML file; `no43 schema` has every key.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Say everything that is wrong with a recipe, with file, line and key
    Check(RecipeArgs),
    /// Print every value with where it comes from
    Show {
        #[command(flatten)]
        recipe: RecipeArgs,
        /// With what `extends`, the defaults and --set give (this is the only form there is)
        #[arg(long)]
        resolved: bool,
    },
}

pub(crate) fn run(args: Args, context: &Context) -> Done {
    match args.command {
        Command::Check(args) => {
            let resolved = load(&args)?;
            let value =
                serde_json::json!({"recipe": resolved.recipe.name, "files": resolved.files, "problems": []});
            context.print(&value, |_| format!("{}: nothing wrong\n", args.recipe.display()))?;
        }
        Command::Show { recipe, resolved: _ } => {
            let shown = load(&recipe)?.shown();
            context.print(&shown, |shown| {
                let mut table = Table::new(&["KEY", "VALUE", "FROM"]);
                for value in shown {
                    table.row([value.key.clone(), value.value.clone(), value.origin.clone()]);
                }
                table.to_string()
            })?;
        }
    }
    Ok(exit_codes::OK)
}
