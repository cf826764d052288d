//! `no43 instance`: what is kept.

use std::path::PathBuf;

use clap::Subcommand;
use no43_builder::store::Store;
use no43_harness::exit_codes;
use no43_harness::instance::{Instance, Instances, Origin, Renewed};
use no43_harness::running::{Autostart, Left, Runs};
use serde::Serialize;

use crate::context::{Context, Done, Failure, OrExit as _};
use crate::prepare::{RecipeArgs, prepare};
use crate::running::{instances, runs, tend};
use crate::signals::stop_token;
use crate::text::Table;
use no43_harness::words::bytes;

/// An instance is the one thing here that cannot be made again: only `rm` deletes it.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the instances
    Ls,
    /// Show one: identity, image, disks, snapshots, how its last run ended
    Show { name: String },
    /// Delete one with everything in it, kept disks too; there is no way back
    Rm {
        name: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Give one another name; its identity stays
    Rename { name: String, to: String },
    /// Give one a new system disk from its recipe's image of now; kept disks stay, the old one is kept until confirmed
    Renew {
        name: String,
        /// The recipe [default: the one that it was made from]
        recipe: Option<PathBuf>,
        /// The new disk is good: remove the old one
        #[arg(long, conflicts_with_all = ["undo", "recipe"])]
        confirm: bool,
        /// Go back to the old one
        #[arg(long, conflicts_with = "recipe")]
        undo: bool,
    },
    /// Save disk, UEFI variables and TPM of a stopped instance
    Snapshot {
        name: String,
        snapshot: String,
        /// Remove that snapshot instead
        #[arg(long)]
        rm: bool,
    },
    /// Go back to a snapshot; what was written since is gone
    Restore { name: String, snapshot: String },
    /// Write a copy that needs neither store nor image
    Backup { name: String, to: PathBuf },
    /// Take in a backup, or a folder that was copied from another host
    Import {
        from: PathBuf,
        #[arg(long)]
        name: Option<String>,
    },
    /// Start one with this host: a unit of systemd, in your own manager (of the system for root)
    Autostart {
        name: String,
        /// Not any more
        #[arg(long)]
        off: bool,
        /// Only print the unit
        #[arg(long)]
        print: bool,
    },
    /// Make the system disk, or a kept one, larger
    Resize {
        name: String,
        /// The new size, such as "200 GiB"
        size: String,
        /// A kept disk instead of the system's
        #[arg(long)]
        disk: Option<String>,
    },
}

/// One line of `ls`.
#[derive(Serialize)]
struct Row {
    name: String,
    running: bool,
    image: Option<String>,
    recipe: PathBuf,
    bytes: u64,
    disks: Vec<String>,
    snapshots: Vec<String>,
    old_system: bool,
}

pub(crate) fn run(args: Args, context: &Context) -> Done {
    let (all, runs) = (instances()?, runs()?);
    let store = context.store()?;
    if !matches!(args.command, Command::Ls | Command::Show { .. }) {
        tend(&runs)?;
    }
    match args.command {
        Command::Ls => ls(&all, &runs, context),
        Command::Show { name } => show(&all, &name, context),
        Command::Rm { name, yes } => remove(&all, &name, yes, &store, context),
        Command::Rename { name, to } => {
            let instance = find(&all, &name)?;
            idle(&runs, &name)?;
            all.rename(&instance, &to, &store).or_exit(exit_codes::INSTANCE)?;
            say(context, &format!("{name} is called {to} now"))
        }
        Command::Renew { name, recipe, confirm, undo } => {
            idle(&runs, &name)?;
            renew(&mut find(&all, &name)?, recipe, (confirm, undo), &store, context)
        }
        Command::Snapshot { name, snapshot, rm } => {
            let mut instance = find(&all, &name)?;
            idle(&runs, &name)?;
            let done = if rm { instance.drop_snapshot(&snapshot) } else { instance.snapshot(&snapshot) };
            done.or_exit(exit_codes::INSTANCE)?;
            say(
                context,
                &format!("snapshot {snapshot} of {name} is {}", if rm { "removed" } else { "saved" }),
            )
        }
        Command::Restore { name, snapshot } => {
            idle(&runs, &name)?;
            find(&all, &name)?.restore(&snapshot).or_exit(exit_codes::INSTANCE)?;
            say(context, &format!("{name} is as it was in {snapshot}"))
        }
        Command::Backup { name, to } => {
            let instance = find(&all, &name)?;
            idle(&runs, &name)?;
            let image = instance.ready(&all, &store).or_exit(exit_codes::INSTANCE)?;
            let moved = instance.backup(&to, image.as_ref()).or_exit(exit_codes::INSTANCE)?;
            context.print(&moved, |moved| {
                format!(
                    "{name} is backed up in {}: {} disk(s), {}\n",
                    to.display(),
                    moved.disks,
                    bytes(moved.bytes)
                )
            })?;
            Ok(exit_codes::OK)
        }
        Command::Import { from, name } => {
            let imported = all.import(&from, name.as_deref(), &store).or_exit(exit_codes::INSTANCE)?;
            let identity = if imported.new_identity {
                "a new identity: another instance here has the old one"
            } else {
                "its own identity"
            };
            say(context, &format!("{} is here, with {identity}", imported.instance.name()))
        }
        Command::Autostart { name, off, print } => {
            find(&all, &name)?;
            autostart(&name, off, print, context)
        }
        Command::Resize { name, size, disk } => {
            idle(&runs, &name)?;
            let wanted = no43_builder::recipe::parse_size(&size)
                .map_err(|why| Failure::new(exit_codes::USAGE, why))?;
            let before = find(&all, &name)?.resize(disk.as_deref(), wanted).or_exit(exit_codes::INSTANCE)?;
            say(
                context,
                &format!(
                    "{} instead of {}; the guest grows its file system at its next start",
                    bytes(wanted),
                    bytes(before)
                ),
            )
        }
    }
}

fn autostart(name: &str, off: bool, print: bool, context: &Context) -> Done {
    let units = Autostart::of_this_user().or_exit(exit_codes::HOST_SETUP)?;
    let no43 = crate::running::this_program()?;
    let systemd = std::path::Path::new("/run/systemd/system").is_dir();
    if print || (!systemd && !off) {
        crate::context::print_text(&units.unit(&no43))?;
        if !print {
            let what =
                format!("no systemd runs here: start it from what starts things here: no43 run {name}");
            return Err(Failure::new(exit_codes::HOST_SETUP, what));
        }
        return Ok(exit_codes::OK);
    }
    let done = if off { units.off(name) } else { units.on(name, &no43) };
    done.or_exit(exit_codes::HOST_SETUP)?;
    let root = no43_host::Privilege::detect() == no43_host::Privilege::Root;
    let manager: &[&str] = if root { &["daemon-reload"] } else { &["--user", "daemon-reload"] };
    // a manager that does not run reads it at its start
    let _ =
        std::process::Command::new("systemctl").args(manager).stderr(std::process::Stdio::null()).status();
    let linger =
        if root { "" } else { "\n  also     loginctl enable-linger, so that it starts before you log in" };
    match off {
        true => say(context, &format!("{name} does not start with this host any more")),
        false => say(context, &format!("{name} starts with this host (no43@{name}.service){linger}")),
    }
}

fn find(all: &Instances, name: &str) -> Result<Instance, Failure> {
    all.find(name).or_exit(exit_codes::INSTANCE)
}

/// The kernel's lock would say the same; this says it before anything is looked at.
fn idle(runs: &Runs, name: &str) -> Result<(), Failure> {
    match runs.row(name).filter(|row| row.left != Left::Dead) {
        Some(_) => {
            Err(Failure::new(exit_codes::INSTANCE, format!("'{name}' is running: no43 stop {name} first")))
        }
        None => Ok(()),
    }
}

fn say(context: &Context, text: &str) -> Done {
    context.print(&serde_json::json!({"done": text}), |_| format!("{text}\n"))?;
    Ok(exit_codes::OK)
}

fn ls(all: &Instances, runs: &Runs, context: &Context) -> Done {
    let (whole, damaged) = all.list().or_exit(exit_codes::INSTANCE)?;
    let row = |instance: &Instance| Row {
        name: instance.name().to_owned(),
        running: runs.row(instance.name()).is_some_and(|row| row.left != Left::Dead),
        image: instance.system.image.as_ref().map(ToString::to_string),
        recipe: instance.record.recipe.clone(),
        bytes: instance.bytes(),
        disks: instance.record.disks.iter().map(|disk| disk.name.clone()).collect(),
        snapshots: instance.system.snapshots.iter().map(|snapshot| snapshot.name.clone()).collect(),
        old_system: instance.has_old(),
    };
    let rows: Vec<Row> = whole.iter().map(row).collect();
    context.print(&rows, |rows| {
        if rows.is_empty() {
            return format!("no instances in {}; no43 run RECIPE makes one\n", all.dir().display());
        }
        let mut table = Table::new(&["NAME", "STATE", "SIZE", "IMAGE", "DISKS", "SNAPSHOTS", "RECIPE"]);
        for row in rows {
            let list = |items: &[String]| if items.is_empty() { "-".to_owned() } else { items.join(" ") };
            let state = match (row.running, row.old_system) {
                (true, _) => "running",
                (false, true) => "renewed, to be confirmed",
                (false, false) => "stopped",
            };
            table.row([
                row.name.clone(),
                state.to_owned(),
                bytes(row.bytes),
                row.image.as_deref().map_or_else(|| "-".to_owned(), |key| key.chars().take(12).collect()),
                list(&row.disks),
                list(&row.snapshots),
                row.recipe.display().to_string(),
            ]);
        }
        table.to_string()
    })?;
    for error in &damaged {
        eprintln!("damaged: {error}");
    }
    Ok(if damaged.is_empty() { exit_codes::OK } else { exit_codes::INSTANCE })
}

fn show(all: &Instances, name: &str, context: &Context) -> Done {
    let instance = find(all, name)?;
    let value = serde_json::json!({
        "name": instance.name(), "folder": instance.dir, "uuid": instance.record.uuid, "mac": instance.record.mac,
        "serial": instance.record.serial, "recipe": instance.record.recipe, "system": instance.system,
        "disks": instance.record.disks, "last_run": instance.last_run(), "bytes": instance.bytes(), "old_system": instance.has_old(),
    });
    context.print(&value, |_| {
        let mut text = format!(
            "  folder     {}\n  identity   UUID {}, MAC {}, disk {}\n  recipe     {}\n",
            instance.dir.display(),
            instance.record.uuid,
            instance.record.mac,
            instance.record.serial,
            instance.record.recipe.display()
        );
        let image = instance
            .system
            .image
            .as_ref()
            .map_or("none: it stands alone".to_owned(), |key| key.short().to_owned());
        text.push_str(&format!("  image      {image}\n  size       {}\n", bytes(instance.bytes())));
        for disk in &instance.record.disks {
            text.push_str(&format!(
                "  disk       {}  {}  serial {}  {}\n",
                disk.name,
                bytes(disk.bytes),
                disk.serial,
                instance.kept_disk(disk).display()
            ));
        }
        for snapshot in &instance.system.snapshots {
            text.push_str(&format!("  snapshot   {}\n", snapshot.name));
        }
        if let Some(last) = instance.last_run() {
            text.push_str(&format!("  last run   {}\n", last.how));
        }
        if instance.has_old() {
            text.push_str(&format!(
                "  renewed    the old system disk is kept: no43 instance renew {name} --confirm, or --undo\n"
            ));
        }
        text
    })?;
    Ok(exit_codes::OK)
}

fn remove(all: &Instances, name: &str, yes: bool, store: &Store, context: &Context) -> Done {
    let instance = find(all, name)?;
    if !yes {
        let disks: Vec<&str> = instance.record.disks.iter().map(|disk| disk.name.as_str()).collect();
        let more =
            if disks.is_empty() { String::new() } else { format!(", kept disks ({})", disks.join(", ")) };
        let what = format!(
            "{name} has {} of disk{more}: with --yes it is deleted, and there is no way back",
            bytes(instance.bytes())
        );
        return Err(Failure::new(exit_codes::USAGE, what));
    }
    all.remove(&instance, store).or_exit(exit_codes::INSTANCE)?;
    say(context, &format!("{name} is gone"))
}

fn renew(
    instance: &mut Instance,
    recipe: Option<PathBuf>,
    (confirm, undo): (bool, bool),
    store: &Store,
    context: &Context,
) -> Done {
    let name = instance.name().to_owned();
    let renewed = if confirm {
        instance.confirm(store).or_exit(exit_codes::INSTANCE)?
    } else if undo {
        instance.undo_renew(store).or_exit(exit_codes::INSTANCE)?
    } else {
        let recipe = recipe.unwrap_or_else(|| instance.record.recipe.clone());
        let args = RecipeArgs { recipe, sets: Vec::new(), locked: false };
        let prepared = prepare(&args, context)?;
        let stop = stop_token().or_exit(exit_codes::HOST_SETUP)?;
        let image = prepared.build(&stop)?.image;
        let done = instance
            .renew(&Origin { image: &image, store: &prepared.store }, prepared.plan.machine.identity)
            .or_exit(exit_codes::INSTANCE)?;
        instance.follow(&prepared.plan).or_exit(exit_codes::INSTANCE)?;
        done
    };
    let text = match renewed {
        Renewed::New => format!(
            "{name} has a new system disk; kept disks stay, and the old one is kept\n  try it   no43 run {name}\n  then     no43 instance renew {name} --confirm   (or --undo to go back)"
        ),
        Renewed::Confirmed => format!("the old system disk of {name} is gone"),
        Renewed::Undone => format!("{name} is back on its old system disk"),
    };
    say(context, &text)
}
