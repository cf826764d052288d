//! `no43 lab`: the same no43, on an emulated passthrough host.

use std::ffi::OsString;
use std::io::{stderr, stdout};
use std::path::{Path, PathBuf};

use clap::{Parser as _, Subcommand};
use no43_harness::exit_codes;
use no43_harness::stop::Stop;
use no43_host::{StateDir, kvm};
use no43_lab::{Lab, LabError, LabHost, LabOptions, Profile, RunOptions, Started};
use no43_machine::accel;

use crate::context::{Context, Done, Failure, OrExit as _};
use crate::prepare::{RecipeArgs, guest_program, prepare};
use crate::signals::Interrupts;
use crate::text::Table;
use no43_harness::words::{bytes, duration};

/// A lab is a QEMU with an emulated IOMMU and cards, in which a real Debian lends those cards to guests of its own.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

/// Which lab.
#[derive(Debug, clap::Args)]
struct Which {
    /// A built-in profile (`no43 lab profiles`) or a profile file
    #[arg(long, default_value = "three-cards")]
    profile: String,
    /// The recipe of the lab host [default: lab-host.toml in recipes/, or where no43 is installed]
    #[arg(long, value_name = "RECIPE")]
    host: Option<PathBuf>,
    /// Boot the lab host; neither use nor make a snapshot of it
    #[arg(long)]
    no_snapshot: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Bring a lab up and leave it running
    Up(Which),
    /// Run a no43 command inside: no43 lab run -- verify recipes/lab-guest.toml
    Run {
        #[command(flatten)]
        which: Which,
        /// A lab of its own, even if one with this profile is up
        #[arg(long)]
        private: bool,
        /// Where the folders of runs go; a single run's files go right into it [default: $NO43_RUNS, else ./runs]
        #[arg(long, value_name = "DIR")]
        evidence: Option<PathBuf>,
        /// How often the command is begun again in a fresh lab when the lab itself broke
        #[arg(long, value_name = "N", default_value_t = 1)]
        fault_retries: u32,
        /// NAME=VALUE for the inner command; may be given again
        #[arg(long, value_name = "NAME=VALUE")]
        env: Vec<String>,
        /// The static no43 to run inside [default: this one]
        #[arg(long, value_name = "FILE")]
        no43: Option<PathBuf>,
        /// The command, as it would be typed on that host
        #[arg(last = true, required = true, value_name = "COMMAND")]
        command: Vec<String>,
    },
    /// A shell in a lab that is up, as the user that runs the inner no43
    Shell {
        /// The lab's name, as `lab ls` says
        #[arg(default_value = "three-cards")]
        name: String,
    },
    /// Shut the lab host of a lab that is up down in order, and boot it again with the initrd that it has made meanwhile
    Reboot(Which),
    /// End a lab; its disk is thrown away
    Down {
        /// The lab's name, as `lab ls` says
        #[arg(default_value = "three-cards")]
        name: String,
    },
    /// List the labs that are up
    Ls,
    /// List the built-in profiles
    Profiles,
}

pub(crate) fn run(args: Args, context: &Context) -> Done {
    match args.command {
        Command::Up(which) => up(&which, context),
        Command::Run { which, private, evidence, fault_retries, env, no43, command } => {
            let inner = Inner { no43, evidence, fault_retries, env, command };
            run_inside(&which, private, &inner, context)
        }
        Command::Shell { name } => {
            let lab = attach(&name, context)?;
            let ended = no43_lab::shell(&lab);
            lab.leave_running();
            ended.map_err(|error| failure(&error))
        }
        Command::Reboot(which) => reboot(&which, context),
        Command::Down { name } => {
            Lab::end(&name, &plain_options(context)?).map_err(|error| failure(&error))?;
            context.print(&serde_json::json!({"down": name}), |_| format!("lab '{name}' is down\n"))?;
            Ok(exit_codes::OK)
        }
        Command::Ls => ls(context),
        Command::Profiles => profiles(context),
    }
}

fn up(which: &Which, context: &Context) -> Done {
    let profile = Profile::load(&which.profile).or_exit(exit_codes::RECIPE)?;
    let interrupts = interrupts()?;
    let host = lab_host(which, interrupts.stop(), context)?;
    let options = options(which, interrupts.stop(), context)?;
    let lab = Lab::up(&profile.name, &profile, &host, &options, false, &mut progress)
        .map_err(|error| failure(&error))?;
    let name = lab.name().to_owned();
    tell_start(&lab);
    lab.leave_running();
    context.print(&serde_json::json!({"up": name}), |_| {
        format!("lab '{name}' is up\n  use it    no43 lab run --profile {name} -- gpus\n  end it    no43 lab down {name}\n")
    })?;
    Ok(exit_codes::OK)
}

fn reboot(which: &Which, context: &Context) -> Done {
    let profile = Profile::load(&which.profile).or_exit(exit_codes::RECIPE)?;
    let interrupts = interrupts()?;
    let host = lab_host(which, interrupts.stop(), context)?;
    let options = options(which, interrupts.stop(), context)?;
    let lab = Lab::take_over(&profile.name, &options).map_err(|error| failure(&error))?;
    let lab = lab.reboot(&profile, &host, &options, &mut progress).map_err(|error| failure(&error))?;
    tell_start(&lab);
    lab.leave_running();
    context.print(&serde_json::json!({"rebooted": profile.name}), |_| {
        format!("lab '{}' is up again\n", profile.name)
    })?;
    Ok(exit_codes::OK)
}

/// What `lab run` runs.
struct Inner {
    no43: Option<PathBuf>,
    evidence: Option<PathBuf>,
    fault_retries: u32,
    env: Vec<String>,
    command: Vec<String>,
}

fn run_inside(which: &Which, private: bool, inner: &Inner, context: &Context) -> Done {
    let profile = Profile::load(&which.profile).or_exit(exit_codes::RECIPE)?;
    let interrupts = interrupts()?;
    let command = build_for(&inner.command, interrupts.stop(), context)?;
    let options = options(which, interrupts.stop(), context)?;
    let host = lab_host(which, interrupts.stop(), context)?;
    let guest = guest_program();
    let run = RunOptions {
        no43: inner.no43.clone().map_or_else(own_program, Ok)?,
        guest_program: guest.is_file().then_some(guest),
        evidence: inner.evidence.clone().unwrap_or_else(no43_harness::evidence::RunDir::default_root),
        flat: inner.evidence.is_some(),
        env: inner.env.clone(),
        limit: None,
        interrupts: &|| interrupts.count(),
    };
    for left in (0..=inner.fault_retries).rev() {
        match run_once(&profile, &host, &options, private, &command, &run) {
            // The emulation breaks now and then, and that says nothing about the guest.
            Err(error) if error.is_fault() && left > 0 => {
                progress(&format!("{error}\n  lab      once more, in a fresh lab"));
            }
            ended => return ended.map_err(|error| failure(&error)),
        }
    }
    unreachable!("the last attempt returns")
}

fn run_once(
    profile: &Profile,
    host: &LabHost,
    options: &LabOptions,
    private: bool,
    command: &[String],
    run: &RunOptions<'_>,
) -> Result<u8, LabError> {
    let is_up =
        Lab::all(&options.state).iter().any(|lab| lab.record.name == profile.name && lab.pid.is_some());
    let lab = if is_up && !private {
        Lab::attach(&profile.name, options)?
    } else {
        Lab::up(&no43_lab::private_name(profile), profile, host, options, true, &mut progress)?
    };
    tell_start(&lab);
    let ended = no43_lab::run(&lab, command, run, &mut stdout(), &mut stderr());
    if matches!(lab.started(), Started::WasUp) && !ended.as_ref().is_err_and(LabError::is_fault) {
        lab.leave_running();
    } else {
        lab.down();
    }
    ended.map(|ended| ended.code)
}

fn interrupts() -> Result<Interrupts, Failure> {
    Interrupts::catch().map_err(|error| {
        Failure::new(exit_codes::FAILED_HARNESS, format!("failed to catch signals: {error}"))
    })
}

/// The store is read-only inside: images that the command will want are built here first. A command that is wrong is
/// refused here, before a lab is brought up for it.
fn build_for(command: &[String], stop: &Stop, context: &Context) -> Result<Vec<String>, Failure> {
    let words = std::iter::once(OsString::from("no43")).chain(command.iter().map(OsString::from));
    let parsed = match crate::Cli::try_parse_from(words) {
        Ok(parsed) => parsed,
        // Help and version are for the person who asked, not for the lab.
        Err(error) => error.exit(),
    };
    let mut command = command.to_vec();
    if let crate::Command::Verify(args) = parsed.command {
        for recipe in args.recipes() {
            prepare(&recipe, context)?.build(stop)?;
        }
        // Nothing can be locked or built inside: it has neither network nor a store that it may write.
        for word in ["--no-build", "--locked"] {
            if !command.iter().any(|given| given == word) {
                command.insert(1, word.to_owned());
            }
        }
    }
    Ok(command)
}

fn lab_host(which: &Which, stop: &Stop, context: &Context) -> Result<LabHost, Failure> {
    let recipe = which.host.clone().map_or_else(find_host_recipe, Ok)?;
    let args = RecipeArgs { recipe, sets: Vec::new(), locked: false };
    let built = prepare(&args, context)?.build(stop)?;
    LabHost::of(&built.image).map_err(|error| failure(&error))
}

/// `recipes/` here, `$NO43_RECIPES`, or `share/no43/recipes` where no43 is installed.
fn find_host_recipe() -> Result<PathBuf, Failure> {
    const NAME: &str = "lab-host.toml";
    let installed =
        std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.parent()?.join("share/no43/recipes")));
    let named = std::env::var_os("NO43_RECIPES").map(PathBuf::from);
    let places: Vec<PathBuf> =
        [Some(PathBuf::from("recipes")), named, installed].into_iter().flatten().collect();
    let found = places.iter().map(|place| place.join(NAME)).find(|path| path.is_file());
    found.ok_or_else(|| {
        let looked: Vec<String> = places.iter().map(|place| place.display().to_string()).collect();
        let text = format!(
            "there is no {NAME} in {}\n  fix   name it with --host, or set NO43_RECIPES",
            looked.join(", ")
        );
        Failure::new(exit_codes::USAGE, text)
    })
}

fn own_program() -> Result<PathBuf, Failure> {
    std::env::current_exe().map_err(|error| {
        Failure::new(exit_codes::FAILED_HARNESS, format!("failed to find this program: {error}"))
    })
}

fn options(which: &Which, stop: &Stop, context: &Context) -> Result<LabOptions, Failure> {
    let mut options = plain_options(context)?;
    options.snapshot = !which.no_snapshot;
    options.cancel = Some(stop.flag());
    let (accel, _) = accel::choose(&kvm::probe());
    // KVM that cannot nest would give a lab host without /dev/kvm; TCG emulates SVM with nested paging.
    if kvm_nests() {
        options.accel = accel;
    }
    Ok(options)
}

fn plain_options(context: &Context) -> Result<LabOptions, Failure> {
    let state = StateDir::open_default().or_exit(exit_codes::HOST_SETUP)?;
    Ok(LabOptions::new(context.store()?.dir(), state.own()))
}

fn kvm_nests() -> bool {
    ["kvm_intel", "kvm_amd"].iter().any(|module| {
        let path = Path::new("/sys/module").join(module).join("parameters/nested");
        std::fs::read_to_string(path).is_ok_and(|value| matches!(value.trim(), "1" | "Y"))
    })
}

fn attach(name: &str, context: &Context) -> Result<Lab, Failure> {
    Lab::attach(name, &plain_options(context)?).map_err(|error| failure(&error))
}

fn ls(context: &Context) -> Done {
    let labs = Lab::all(&plain_options(context)?.state);
    context.print(&labs, |labs| {
        if labs.is_empty() {
            return "no lab is up\n".to_owned();
        }
        let mut table = Table::new(&["NAME", "PROFILE", "PROCESS", "STATE"]);
        for lab in labs {
            let state = match (lab.pid, lab.busy) {
                (None, _) => "its QEMU is gone",
                (Some(_), true) => "in use",
                (Some(_), false) => "up",
            };
            let pid = lab.pid.map_or("-".to_owned(), |pid| pid.to_string());
            table.row([lab.record.name.clone(), lab.record.profile.clone(), pid, state.to_owned()]);
        }
        table.to_string()
    })?;
    Ok(exit_codes::OK)
}

fn profiles(context: &Context) -> Done {
    let profiles = Profile::built_in().or_exit(exit_codes::FAILED_HARNESS)?;
    let names: Vec<&String> = profiles.iter().map(|profile| &profile.name).collect();
    context.print(&names, |_| {
        let mut table = Table::new(&["PROFILE", "WHAT IT PRETENDS"]);
        for profile in &profiles {
            table.row([profile.name.clone(), profile.about.clone()]);
        }
        table.to_string()
    })?;
    Ok(exit_codes::OK)
}

fn progress(line: &str) {
    eprintln!("  lab      {line}");
}

fn tell_start(lab: &Lab) {
    progress(&match lab.started() {
        Started::Restored { took, memory } => {
            format!("restored in {}, memory in {}", duration(*took), duration(*memory))
        }
        Started::Booted { took, saved: Some(saved) } => {
            format!("booted in {}, snapshot of {} kept for the next time", duration(*took), bytes(*saved))
        }
        Started::Booted { took, saved: None } => format!("booted in {}", duration(*took)),
        Started::WasUp => "was up".to_owned(),
    });
}

fn failure(error: &LabError) -> Failure {
    let code = match error {
        error if error.is_fault() => exit_codes::LAB_FAULT,
        LabError::Interrupted => exit_codes::INTERRUPTED,
        LabError::Profile(_) | LabError::Carry { .. } => exit_codes::RECIPE,
        LabError::NotUp { .. } | LabError::InUse { .. } | LabError::AlreadyUp { .. } => exit_codes::USAGE,
        _ => exit_codes::HOST_SETUP,
    };
    Failure::new(code, crate::context::with_sources(error))
}
