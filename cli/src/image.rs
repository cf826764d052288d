//! `no43 image`: what is in the store.

use clap::Subcommand;
use no43_builder::image::Image;
use no43_builder::store::Store;
use no43_harness::exit_codes;
use serde::Serialize;

use crate::context::{Context, Done, Failure, OrExit as _};
use crate::text::Table;
use no43_harness::words::bytes;

/// Images are named by their key or its first digits, as `ls` prints them.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the images, the newest last
    Ls,
    /// Show one image: what went in, tools, packages, files
    Show {
        /// Key, or its first digits
        image: String,
    },
    /// Remove one image; refuses while another one lies on top of it
    Rm {
        /// Key, or its first digits
        image: String,
    },
    /// Remove every image that no recipe built here needs any more
    Gc {
        /// Say what would go, and touch nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Read every file of an image (of all images, if none is named) and compare it with its manifest
    Verify {
        /// Key, or its first digits
        image: Option<String>,
    },
}

/// One line of `ls`.
#[derive(Serialize)]
struct Row {
    key: String,
    layer: String,
    recipe: String,
    parent: Option<String>,
    bytes: u64,
    created: String,
}

pub(crate) fn run(args: Args, context: &Context) -> Done {
    let store = context.store()?;
    match args.command {
        Command::Ls => ls(&store, context),
        Command::Show { image } => show(&store, &image, context),
        Command::Rm { image } => {
            let key = store.find(&image).or_exit(exit_codes::STORE)?;
            let freed = store.rm(&key).or_exit(exit_codes::STORE)?;
            context.print(&serde_json::json!({"removed": key, "bytes": freed}), |_| {
                format!("removed {}, {} free again\n", key.short(), bytes(freed))
            })?;
            Ok(exit_codes::OK)
        }
        Command::Gc { dry_run } => gc(&store, dry_run, context),
        Command::Verify { image } => verify(&store, image.as_deref(), context),
    }
}

fn ls(store: &Store, context: &Context) -> Done {
    let (images, damaged) = store.images().or_exit(exit_codes::STORE)?;
    let rows: Vec<Row> = images.iter().map(row).collect();
    context.print(&rows, |rows| {
        if rows.is_empty() {
            return format!("no images in {}\n", store.dir().display());
        }
        let mut table = Table::new(&["KEY", "LAYER", "RECIPE", "ON TOP OF", "SIZE", "CREATED"]);
        for row in rows {
            let parent = row.parent.as_deref().unwrap_or("-").chars().take(12).collect();
            let key = row.key.chars().take(12).collect();
            table.row([
                key,
                row.layer.clone(),
                row.recipe.clone(),
                parent,
                bytes(row.bytes),
                row.created.clone(),
            ]);
        }
        table.to_string()
    })?;
    for error in &damaged {
        eprintln!("damaged: {error}");
    }
    Ok(if damaged.is_empty() { exit_codes::OK } else { exit_codes::STORE })
}

fn row(image: &Image) -> Row {
    let manifest = &image.manifest;
    Row {
        key: manifest.key.to_string(),
        layer: manifest.layer.clone(),
        recipe: manifest.recipe.clone(),
        parent: manifest.parent.as_ref().map(ToString::to_string),
        bytes: image.bytes(),
        created: manifest.provenance.created.clone(),
    }
}

fn show(store: &Store, prefix: &str, context: &Context) -> Done {
    let key = store.find(prefix).or_exit(exit_codes::STORE)?;
    let image = store.get(&key).or_exit(exit_codes::STORE)?.ok_or_else(|| {
        Failure::new(
            exit_codes::STORE,
            format!("image {} is there, but a layer below it is not", key.short()),
        )
    })?;
    context.print(&image.manifest, |manifest| {
        let mut text = format!("  folder   {}\n", image.dir.display());
        // The manifest is made to be read: its own form is the best one line by line.
        text.push_str(&serde_json::to_string_pretty(manifest).unwrap_or_default());
        text.push('\n');
        text
    })?;
    Ok(exit_codes::OK)
}

fn gc(store: &Store, dry_run: bool, context: &Context) -> Done {
    if !dry_run {
        for dropped in store.sweep().or_exit(exit_codes::STORE)? {
            eprintln!(
                "dropped what a build of {} that died had left ({})",
                dropped.key.short(),
                bytes(dropped.bytes)
            );
        }
    }
    let collected = store.gc(&[], dry_run).or_exit(exit_codes::STORE)?;
    let removed: Vec<Row> = collected.removed.iter().map(row).collect();
    let value = serde_json::json!({
        "dry_run": dry_run, "removed": removed, "kept": collected.kept, "bytes": collected.bytes,
    });
    context.print(&value, |_| {
        let verb = if dry_run { "would remove" } else { "removed" };
        let mut text = String::new();
        for row in &removed {
            text.push_str(&format!("  {verb}  {:.12}  {} of {}\n", row.key, row.layer, row.recipe));
        }
        text.push_str(&format!(
            "{verb} {} image(s), {}; {} kept\n",
            removed.len(),
            bytes(collected.bytes),
            collected.kept
        ));
        text
    })?;
    Ok(exit_codes::OK)
}

fn verify(store: &Store, prefix: Option<&str>, context: &Context) -> Done {
    let (images, damaged) = store.images().or_exit(exit_codes::STORE)?;
    let keys = match prefix {
        Some(prefix) => vec![store.find(prefix).or_exit(exit_codes::STORE)?],
        None => images.into_iter().map(|image| image.manifest.key).collect(),
    };
    let mut results = Vec::new();
    for key in &keys {
        results.push(store.verify(key).or_exit(exit_codes::STORE)?);
    }
    let whole = damaged.is_empty() && results.iter().all(|result| result.faults.is_empty());
    context.print(&results, |results| {
        let mut text = String::new();
        for result in results {
            let word = if result.faults.is_empty() { "whole  " } else { "damaged" };
            text.push_str(&format!("  {word}  {}  {} read\n", result.key.short(), bytes(result.bytes)));
            for fault in &result.faults {
                text.push_str(&format!("      {}: {}\n", fault.name, fault.what));
            }
        }
        for error in &damaged {
            text.push_str(&format!("  damaged  {error}\n"));
        }
        if !whole {
            text.push_str("  fix   no43 image rm KEY, then build again: what is whole below it is used\n");
        }
        text
    })?;
    Ok(if whole { exit_codes::OK } else { exit_codes::STORE })
}
