//! The `no43` command: parses arguments, calls the crates, prints. One file per subcommand, no logic.

mod answer;
mod attach;
mod build;
mod completions;
mod context;
mod cp;
mod diagnose;
mod doctor;
mod download;
mod driver;
mod follow;
mod gpus;
mod host;
mod host_verb;
mod image;
mod instance;
mod ip;
mod job;
mod lab;
mod lock;
mod media;
mod plan;
mod prepare;
mod ps;
mod recipe;
mod release;
mod report;
mod run;
mod running;
mod schema;
mod shell;
mod shot;
mod signals;
mod stop;
mod supervise;
mod text;
mod usb;
mod verify;
mod view;

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
    /// Look into a driver package: version, cards, Windows builds
    Driver(driver::Args),
    /// Print what a recipe comes to: layers, machine, card, checks
    Plan(plan::Args),
    /// Print the JSON Schema of recipes, for editors
    Schema(schema::Args),
    /// Build the image of a recipe; what is there already is not built again
    Build(build::Args),
    /// List, show, check and remove built images
    Image(image::Args),
    /// Show the answer file of a Windows recipe, or say what is wrong with any answer file
    Answer(answer::Args),
    /// Prove that the card works in the VM of a recipe
    Verify(verify::Args),
    /// Start an instance of a recipe, made at its first start and kept
    Run(run::Args),
    /// List what is running
    Ps(ps::Args),
    /// Follow a running machine; Ctrl-C asks its guest to shut down
    Attach(attach::Args),
    /// Ask a guest to shut down
    Stop(stop::Args),
    /// Look at the emulated screen of a running machine, with keyboard and mouse
    View(view::Args),
    /// Save a picture of the emulated screen
    Shot(shot::Args),
    /// A shell or one command in a running guest
    Shell(shell::Args),
    /// Copy a file into a running guest, or out of it
    Cp(cp::Args),
    /// Print a running guest's addresses
    Ip(ip::Args),
    /// Lend a USB device of this host to a running guest, and take it back
    Usb(usb::Args),
    /// Run one command in a fresh machine, and throw the machine away
    Job(job::Args),
    /// The instances that are kept: list, rename, renew, snapshot, back up, remove
    Instance(instance::Args),
    /// Make the reports of a kept run again
    Report(report::Args),
    /// Say why a kept run failed: causes with what speaks for and against each, and the fix
    Diagnose(diagnose::Args),
    /// Show the graphics cards of this host and whether they can be lent
    Gpus(gpus::Args),
    /// Find what keeps this host from lending a card, and say how to mend it
    Doctor(doctor::Args),
    /// Set this host up once, so that ordinary users need no root: keep cards free from boot, limits, a helper
    Host(host::Args),
    /// Give back what a run that died has left bound
    Release(release::Args),
    /// Rehearse on an emulated passthrough host, without any of the hardware
    Lab(lab::Args),
    /// Print a completion script for a shell
    Completions(completions::Args),
    /// One privileged change, asked for by no43 itself through sudo
    #[command(hide = true)]
    HostVerb(host_verb::Args),
    /// Watch one running machine; started by no43 itself
    #[command(hide = true)]
    Supervise(supervise::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let context = Context::new(cli.global);
    let done = match cli.command {
        Command::Recipe(args) => recipe::run(args, &context),
        Command::Lock(args) => lock::run(args, &context),
        Command::Media(args) => media::run(args, &context),
        Command::Driver(args) => driver::run(args, &context),
        Command::Plan(args) => plan::run(&args, &context),
        Command::Schema(args) => schema::run(args),
        Command::Build(args) => build::run(&args, &context),
        Command::Image(args) => image::run(args, &context),
        Command::Answer(args) => answer::run(args, &context),
        Command::Verify(args) => verify::run(args, &context),
        Command::Run(args) => run::run(&args, &context),
        Command::Ps(args) => ps::run(&args, &context),
        Command::Attach(args) => attach::run(&args, &context),
        Command::Stop(args) => stop::run(&args, &context),
        Command::View(args) => view::run(&args, &context),
        Command::Shot(args) => shot::run(&args, &context),
        Command::Shell(args) => shell::run(&args, &context),
        Command::Cp(args) => cp::run(&args, &context),
        Command::Ip(args) => ip::run(&args, &context),
        Command::Usb(args) => usb::run(&args, &context),
        Command::Job(args) => job::run(&args, &context),
        Command::Instance(args) => instance::run(args, &context),
        Command::Report(args) => report::run(&args, &context),
        Command::Diagnose(args) => diagnose::run(&args, &context),
        Command::Gpus(args) => gpus::run(args, &context),
        Command::Doctor(args) => doctor::run(&args, &context),
        Command::Host(args) => host::run(&args, &context),
        Command::Release(args) => release::run(&args, &context),
        Command::Lab(args) => lab::run(args, &context),
        Command::Completions(args) => completions::run(&args),
        Command::HostVerb(args) => host_verb::run(&args),
        Command::Supervise(args) => supervise::run(&args),
    };
    context.finish(done)
}
