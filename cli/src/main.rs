//! The `no43` command: parses arguments, calls the crates, prints. One file per subcommand, no logic.

mod build;
mod completions;
mod context;
mod doctor;
mod gpus;
mod host_verb;
mod image;
mod lab;
mod lock;
mod media;
mod plan;
mod prepare;
mod recipe;
mod release;
mod report;
mod schema;
mod signals;
mod text;
mod verify;

use clap::{Parser, Subcommand};
use context::{Context, Global};
use std::process::ExitCode;

/// One recipe gives a VM that owns a graphics card, and proves that it works.
///
/// Results go to standard output, progress to standard error. The exit codes are listed below.
#[derive(Debug, Parser)]
#[command(name = "no43", version, after_help = context::exit_codes_help())]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check a recipe, or show it with every value and where it comes from
    Recipe(recipe::Args),
    /// Pin every input of the recipes in a directory: size, SHA-256 and facts
    Lock(lock::Args),
    /// Look into an installation medium: editions, languages, build, keys
    Media(media::Args),
    /// Print what a recipe comes to: layers, machine, card, checks
    Plan(plan::Args),
    /// Print the JSON Schema of recipes, for editors
    Schema(schema::Args),
    /// Build the image of a recipe; what is there already is not built again
    Build(build::Args),
    /// List, show, check and remove built images
    Image(image::Args),
    /// Prove that the card works in the VM of a recipe
    Verify(verify::Args),
    /// Make the reports of a kept run again
    Report(report::Args),
    /// Show the graphics cards of this host and whether they can be lent
    Gpus(gpus::Args),
    /// Find what keeps this host from lending a card, and say how to mend it
    Doctor(doctor::Args),
    /// Give back what a run that died has left bound
    Release(release::Args),
    /// Rehearse on an emulated passthrough host, without any of the hardware
    Lab(lab::Args),
    /// Print a completion script for a shell
    Completions(completions::Args),
    /// One privileged change, asked for by no43 itself through sudo
    #[command(hide = true)]
    HostVerb(host_verb::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let context = Context::new(cli.global);
    let done = match cli.command {
        Command::Recipe(args) => recipe::run(args, &context),
        Command::Lock(args) => lock::run(args, &context),
        Command::Media(args) => media::run(args, &context),
        Command::Plan(args) => plan::run(&args, &context),
        Command::Schema(args) => schema::run(args),
        Command::Build(args) => build::run(&args, &context),
        Command::Image(args) => image::run(args, &context),
        Command::Verify(args) => verify::run(args, &context),
        Command::Report(args) => report::run(&args, &context),
        Command::Gpus(args) => gpus::run(args, &context),
        Command::Doctor(args) => doctor::run(&args, &context),
        Command::Release(args) => release::run(&args, &context),
        Command::Lab(args) => lab::run(args, &context),
        Command::Completions(args) => completions::run(&args),
        Command::HostVerb(args) => host_verb::run(&args),
    };
    context.finish(done)
}
