//! `no43 answer`: what Windows Setup is told, and what is wrong with an answer file.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use no43_builder::answer::{self, BuildOnly, Finding, Severity};
use no43_builder::media::{self, Media};
use no43_builder::recipe::{InputFrom, Resolved};
use no43_harness::exit_codes;
use serde::Serialize;

use crate::context::{Context, Done, Failure, OrExit as _};
use crate::prepare::{RecipeArgs, load};

/// An answer file (Autounattend.xml) answers the questions of Windows Setup.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print the answer file of a recipe; passwords are placeholders
    ///
    /// The image, the key and the languages depend on the ISO. Without one, a draft is printed that goes by names.
    Show {
        #[command(flatten)]
        recipe: RecipeArgs,
        /// The ISO [default: the recipe's input 'iso', if it is there]
        #[arg(long, value_name = "ISO")]
        media: Option<PathBuf>,
    },
    /// Say what is wrong with any answer file: line, what, why, fix; exit code 3 if Setup would stop, ask or leave something out
    Lint {
        /// The answer file; '-' reads standard input
        file: PathBuf,
        /// Compare with this ISO too: image, edition, key, languages, architecture
        #[arg(long, value_name = "ISO")]
        media: Option<PathBuf>,
        /// Say where the file contradicts this recipe
        #[arg(long, value_name = "RECIPE")]
        recipe: Option<PathBuf>,
    },
}

/// What `lint` prints as JSON.
#[derive(Serialize)]
struct Linted<'a> {
    file: &'a Path,
    errors: usize,
    warnings: usize,
    notes: usize,
    findings: Vec<Finding>,
}

pub(crate) fn run(args: Args, context: &Context) -> Done {
    match args.command {
        Command::Show { recipe, media } => show(&recipe, media.as_deref(), context),
        Command::Lint { file, media, recipe } => lint(&file, media.as_deref(), recipe, context),
    }
}

fn show(args: &RecipeArgs, iso: Option<&Path>, context: &Context) -> Done {
    let resolved = load(args)?;
    let media = media_of(&resolved, iso)?;
    if media.is_none() {
        eprintln!(
            "no43: the ISO is not there: this draft chooses the image by its English name and takes a retail key"
        );
    }
    let settings = settings(&resolved, media.as_ref())?;
    let value = serde_json::json!({"recipe": resolved.recipe.name, "draft": media.is_none(), "xml": settings.render_shown()});
    context.print(&value, |_| settings.render_shown())?;
    Ok(exit_codes::OK)
}

fn settings(resolved: &Resolved, media: Option<&Media>) -> Result<answer::Settings, Failure> {
    let build = BuildOnly::random().or_exit(exit_codes::FAILED_HARNESS)?;
    answer::settings_for(&resolved.recipe, media, build).or_exit(exit_codes::RECIPE)
}

/// What the ISO holds: the one that is named, or the recipe's own where it lies on this host.
fn media_of(resolved: &Resolved, iso: Option<&Path>) -> Result<Option<Media>, Failure> {
    let own = resolved.recipe.inputs.get("iso").and_then(|input| match &input.from {
        InputFrom::Path(path) => Some(path.as_path()).filter(|path| path.exists()),
        InputFrom::Url(_) => None,
    });
    iso.or(own).map(|iso| media::inspect(iso).or_exit(exit_codes::INPUT)).transpose()
}

fn lint(file: &Path, iso: Option<&Path>, recipe: Option<PathBuf>, context: &Context) -> Done {
    let bytes = answer::read_file(file).or_exit(exit_codes::INPUT)?;
    let media = iso.map(|iso| media::inspect(iso).or_exit(exit_codes::INPUT)).transpose()?;
    let mut findings = answer::lint_bytes(&bytes, media.as_ref());
    if let Some(recipe) = recipe {
        let resolved = load(&RecipeArgs { recipe, sets: Vec::new(), locked: false })?;
        let settings = settings(&resolved, media.as_ref())?;
        findings.extend(answer::conflicts(&bytes, &settings));
    }
    let number = |severity| findings.iter().filter(|finding| finding.severity == severity).count();
    let (errors, warnings, notes) =
        (number(Severity::Error), number(Severity::Warning), number(Severity::Note));
    let linted = Linted { file, errors, warnings, notes, findings };
    context.print(&linted, |linted| {
        let name = linted.file.display();
        let mut text: String = linted.findings.iter().map(|finding| format!("{name}:{finding}\n")).collect();
        text += &match (errors, warnings, notes) {
            (0, 0, 0) => format!("{name}: nothing wrong\n"),
            _ => format!(
                "{name}: {}, {}, {}\n",
                many(errors, "error"),
                many(warnings, "warning"),
                many(notes, "note")
            ),
        };
        text
    })?;
    Ok(if errors > 0 { exit_codes::RECIPE } else { exit_codes::OK })
}

fn many(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}
