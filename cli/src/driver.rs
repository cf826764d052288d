//! `no43 driver`: what a driver package is for, the catalogue of packages, and a running guest's driver.

mod catalogue;

use std::path::{Path, PathBuf};

use clap::Subcommand;
use no43_builder::driver::{self, Answer, CardIds, Fit, Form, Package, Signer, Subsystem};
use no43_builder::media::{SYSTEMS, System};
use no43_harness::words::{bytes, clean};
use no43_harness::{driver_lock, exit_codes};
use no43_host::{Inventory, PciAddress, PciId, Roots, device_name};
use serde::Serialize;

use crate::context::{Context, Done, Failure, OrExit as _};
use crate::running::{agent, instances, runs};

/// The package is read in place; nothing is unpacked to disk.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Say which driver a package holds, and whether it drives a card on a Windows
    ///
    /// With --card the exit code is 0 if it does and 4 if it does not.
    Inspect {
        /// NVIDIA's .exe or .run as downloaded, a folder into which it was unpacked, or a .deb of Debian's
        package: PathBuf,
        /// A card of this host (01:00.0), or the ids of one (10de:2484, with its board 10de:2484/1462:3901)
        #[arg(long, value_name = "ADDRESS|ID")]
        card: Option<String>,
        /// The guest: a build number (19045), or a system as recipes name it, in its newest build (windows10)
        #[arg(long, value_name = "BUILD|OS")]
        guest: Option<String>,
        /// List every device
        #[arg(long)]
        devices: bool,
    },
    /// List the packages of drivers.toml
    Ls {
        /// The catalogue
        #[arg(long, value_name = "FILE", default_value = "drivers.toml")]
        list: PathBuf,
    },
    /// Read a package, and write version, place and SHA-256 into drivers.toml
    Add {
        /// A package file of this host, or an address that it is fetched from
        package: String,
        /// What recipes call it [default: its version]
        #[arg(long)]
        name: Option<String>,
        /// The catalogue
        #[arg(long, value_name = "FILE", default_value = "drivers.toml")]
        list: PathBuf,
    },
    /// Fetch packages of drivers.toml that are addresses, and check their SHA-256
    Fetch {
        /// Names or versions; all when absent
        names: Vec<String>,
        /// The catalogue
        #[arg(long, value_name = "FILE", default_value = "drivers.toml")]
        list: PathBuf,
    },
    /// Ask NVIDIA's download service for the packages of a card; nothing else ever asks it
    Find {
        /// The card as it is sold, such as "GeForce RTX 3070"
        card: String,
        /// The guest's system, as recipes name it
        #[arg(long, value_name = "OS", default_value = "windows10")]
        guest: String,
        /// How many, the newest first
        #[arg(long, value_name = "N", default_value_t = 5)]
        most: u8,
    },
    /// Keep the driver of a running Windows guest as it is: Windows installs no other for its cards
    Lock {
        /// The machine
        name: String,
    },
    /// Let the driver of a running Windows guest be changed again
    Unlock {
        /// The machine
        name: String,
    },
}

/// What is printed.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Shown {
    #[serde(flatten)]
    package: Package,
    works_in_a_vm: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    card: Option<Asked>,
    #[serde(skip)]
    devices: bool,
}

/// The card that was asked for, and the answer.
#[derive(Serialize)]
struct Asked {
    ids: CardIds,
    name: Option<String>,
    build: Option<u32>,
    #[serde(flatten)]
    answer: Answer,
}

pub(crate) fn run(args: Args, context: &Context) -> Done {
    match args.command {
        Command::Inspect { package, card, guest, devices } => {
            inspect(&package, card.as_deref(), guest.as_deref(), devices, context)
        }
        Command::Ls { list } => catalogue::ls(&list, context),
        Command::Add { package, name, list } => catalogue::add(&package, name.as_deref(), &list, context),
        Command::Fetch { names, list } => catalogue::fetch(&names, &list, context),
        Command::Find { card, guest, most } => catalogue::find(&card, &guest, most, context),
        Command::Lock { name } => keep(&name, true, context),
        Command::Unlock { name } => keep(&name, false, context),
    }
}

/// Sets or lifts Windows' policy in a running guest.
fn keep(name: &str, on: bool, context: &Context) -> Done {
    let runs = runs()?;
    let agent = agent(&runs, name)?;
    // What the recipe may lease besides; a machine without an instance has only what it has.
    let plan = instances().ok().and_then(|instances| instances.find(name).ok()?.plan().ok());
    let also = plan.map(|plan| plan.driver.cards).unwrap_or_default();
    let done = match on {
        true => driver_lock::lock(&agent, &also),
        false => driver_lock::unlock(&agent),
    };
    let done = done.map_err(|why| Failure::new(exit_codes::FAILED_GUEST, format!("{name}: {why}")))?;
    context.print(&done, kept)?;
    Ok(exit_codes::OK)
}

fn kept(done: &driver_lock::Done) -> String {
    let mut text = String::new();
    for card in &done.cards {
        let version = card.version.as_deref().unwrap_or("no driver");
        let problem = card.problem.map(|code| format!(", problem code {code}")).unwrap_or_default();
        let came = card.came.as_deref().map(|came| format!("   {came}")).unwrap_or_default();
        text.push_str(&format!("  {:<9} {version}{problem}{came}\n", card.id));
    }
    match done.kept.as_slice() {
        [] => text.push_str("  any driver may be installed\n"),
        ids => text.push_str(&format!("  no other driver is installed for {}\n", ids.join(", "))),
    }
    text
}

fn inspect(
    package: &Path,
    card: Option<&str>,
    guest: Option<&str>,
    devices: bool,
    context: &Context,
) -> Done {
    let ids = card.map(card_ids).transpose()?;
    let build = guest.map(build_of).transpose()?;
    let package = Package::read(package).or_exit(exit_codes::INPUT)?;
    let card =
        ids.map(|ids| Asked { ids, name: device_name(ids.id), build, answer: package.drives(ids, build) });
    let refused = matches!(&card, Some(Asked { answer: Answer::No(_), .. }));
    let shown = Shown { works_in_a_vm: package.works_in_a_vm(), package, card, devices };
    context.print(&shown, text)?;
    Ok(if refused { exit_codes::INPUT } else { exit_codes::OK })
}

/// A card by its place in this host, or by its ids.
fn card_ids(text: &str) -> Result<CardIds, Failure> {
    if let Ok(address) = text.parse::<PciAddress>() {
        let inventory = Inventory::read(&Roots::real()).or_exit(exit_codes::HOST_SETUP)?;
        let function = inventory.function(&address).ok_or_else(|| {
            Failure::new(
                exit_codes::NOT_LENT,
                format!("this host has no PCI function {address}; see: no43 gpus"),
            )
        })?;
        let subsystem = function.subsystem.map(|id| Subsystem { vendor: id.vendor, device: id.device });
        return Ok(CardIds { id: function.id, subsystem });
    }
    let wrong = || {
        Failure::new(
            exit_codes::USAGE,
            format!("--card {text}: neither an address like 01:00.0 nor an id like 10de:2484"),
        )
    };
    let (id, board) = text.split_once('/').map_or((text, None), |(id, board)| (id, Some(board)));
    let id: PciId = id.parse().map_err(|_| wrong())?;
    let board: Option<PciId> = board.map(|board| board.parse().map_err(|_| wrong())).transpose()?;
    Ok(CardIds { id, subsystem: board.map(|id| Subsystem { vendor: id.vendor, device: id.device }) })
}

/// A build number, or the newest one of a system.
fn build_of(text: &str) -> Result<u32, Failure> {
    let named = SYSTEMS.iter().find(|system| system.os == text).map(System::newest_build);
    named.or_else(|| text.parse().ok()).ok_or_else(|| {
        let names: Vec<&str> = SYSTEMS.iter().map(|system| system.os).collect();
        let message =
            format!("--guest {text}: neither a build number like 19045 nor one of {}", names.join(", "));
        Failure::new(exit_codes::USAGE, message)
    })
}

fn text(shown: &Shown) -> String {
    let package = &shown.package;
    let mut text = format!("{}\n", title(package));
    let mut row = |label: &str, value: &str| text.push_str(&format!("  {label:<9} {value}\n"));
    if package.system == driver::System::Windows {
        row("holds", &format!("{} files, {} unpacked", package.files, bytes(package.bytes)));
        row("drives", &format!("{} devices{}", package.devices().len(), form(package)));
    }
    for inf in &package.infs {
        let windows: Vec<String> = inf.models.iter().map(|models| models.target.to_string()).collect();
        row("inf", &clean(&format!("{}, {}, {}", inf.path, inf.driver_ver, windows.join("; "))));
    }
    match shown.works_in_a_vm {
        Some(true) => row("in a VM", "works without hiding the VM (465 and newer)"),
        Some(false) => {
            row("in a VM", "Code 43 with a GeForce: older than 465, which refuses to work in a VM it sees");
        }
        None => {}
    }
    if let Some(branch) = package.version.and_then(driver::branch_of) {
        let until =
            branch.until.map_or_else(|| "no longer updated".to_owned(), |until| format!("until {until}"));
        row("branch", &format!("{}, {}, {until}", branch.branch, branch.kind));
    }
    match package.signer {
        Some(Signer::Other) => {
            row("!", "not signed by Microsoft: a test or beta package (driver.test-signed)");
        }
        Some(Signer::Nobody) => row("!", "no signed catalogue beside its INF (driver.test-signed)"),
        Some(Signer::Microsoft) | None => {}
    }
    for contradiction in &package.contradictions {
        row("!", &clean(contradiction));
    }
    if let Some(card) = &shown.card {
        text.push_str(&answer(card));
    }
    if shown.devices {
        for device in package.devices() {
            let board = device.subsystem.map(|board| format!("/{board}")).unwrap_or_default();
            text.push_str(&format!("  {:<19} {}\n", format!("{}{board}", device.id), clean(&device.name)));
        }
    }
    text
}

fn title(package: &Package) -> String {
    let version =
        package.version.map_or_else(|| "of another maker".to_owned(), |version| version.to_string());
    let system = match package.system {
        driver::System::Windows => "Windows",
        driver::System::Linux => "Linux",
    };
    let kind = match (package.system, package.dch) {
        (driver::System::Linux, _) => "",
        (driver::System::Windows, true) => ", DCH",
        (driver::System::Windows, false) => ", Standard",
    };
    let date = package.infs.first().map(|inf| format!(", {}", clean(&inf.date))).unwrap_or_default();
    let of =
        package.debian.as_ref().map(|name| format!(", Debian's package {}", clean(name))).unwrap_or_default();
    format!("display driver {version} for {system}{kind}{date}{of}")
}

fn form(package: &Package) -> &'static str {
    match package.form {
        Some(Form::Desktop) => ", on any board",
        Some(Form::Notebook) => ", only on boards of notebooks and complete computers",
        Some(Form::Mixed) => ", some only on boards of notebooks and complete computers",
        None => "",
    }
}

fn answer(card: &Asked) -> String {
    let name = card.name.as_deref().map(|name| format!(" {}", clean(name))).unwrap_or_default();
    let guest = card.build.map(|build| format!(" on Windows build {build}")).unwrap_or_default();
    let (mark, words) = match &card.answer {
        Answer::Yes(fit) => ("✔", yes(fit)),
        Answer::No(reason) => ("✘", clean(&reason.to_string())),
        Answer::Unlisted => {
            ("–", "the package lists no cards; nothing known speaks against this one".to_owned())
        }
    };
    format!("  {mark} {}{name}{guest}: {words}\n", card.ids.id)
}

fn yes(fit: &Fit) -> String {
    let board = if fit.board { ", by this very board" } else { "" };
    let older = if fit.closest {
        ""
    } else {
        "; a section for older builds lists it, so this Windows may not take it"
    };
    clean(&format!("driven as \"{}\" by {} ({}){board}{older}", fit.name, fit.inf, fit.install))
}
