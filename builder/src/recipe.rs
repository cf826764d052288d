//! Recipe: the TOML file a person writes, read, merged with what it extends, filled with defaults and checked.
//!
//! All that is wrong is said at once, each with file, line, column and key, also for lines in a parent recipe.
//! Nothing outside the recipe files is looked at here: whether an input exists is the lock's question.

pub(crate) mod defaults;
mod extends;
mod rules;
mod show;
pub mod tree;
mod typed;
pub(crate) mod units;
mod windows;

use std::path::{Path, PathBuf};

pub use defaults::TEXT as DEFAULTS;
pub use show::Shown;
pub use typed::{
    CardAsk, CopyFrom, DriverAsk, DriverInstall, DriverSpots, FileAsk, Guest, Input, InputFrom, MachineAsk,
    OtherDriverAsk, Recipe, RemoteAsk, Spot, Step, StepAsk,
};
pub use windows::{Release, Windows, WindowsSpots};
pub(crate) use windows::{computer_name_fault, user_name_fault};

use crate::diagnostic::Problems;
use crate::schema;
use tree::Table;

/// A recipe in which nothing is wrong and nothing is left out.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// The file that was asked for.
    pub path: PathBuf,
    /// All files that it is made of, the asked-for one first, then its parents.
    pub files: Vec<PathBuf>,
    /// What it says.
    pub recipe: Recipe,
    /// The same with origins, for [`Resolved::shown`].
    pub tree: Table,
}

/// Reads the recipe at `path`, with `--set KEY=VALUE` on top.
///
/// # Errors
/// Everything that is wrong with it, in the order of the files.
pub fn load(path: &Path, sets: &[String]) -> Result<Resolved, Problems> {
    let loaded = extends::load(path, sets)?;
    let defaults = defaults::Defaults::read();
    let tree = defaults.under(loaded.table);
    let mut problems = loaded.problems;
    schema::check(&tree, schema::RECIPE, &mut problems);
    let recipe =
        if problems.is_empty() { rules::recipe(&tree, path, &defaults, &mut problems) } else { None };
    problems.sort();
    problems.into_result()?;
    let recipe = recipe.expect("a recipe without problems is whole");
    Ok(Resolved { path: path.to_owned(), files: loaded.files, recipe, tree })
}

/// A size as recipes write it ("128 GiB"), in bytes.
///
/// # Errors
/// What is wrong with it, and what to write.
pub fn parse_size(text: &str) -> Result<u64, String> {
    units::size(text).map_err(|(what, fix)| format!("{what}: {fix}"))
}
