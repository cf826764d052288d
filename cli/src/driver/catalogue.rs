//! `no43 driver ls|add|fetch|find`: the packages of `drivers.toml`, and NVIDIA's download service for who wants to ask it.

use std::path::{Path, PathBuf};

use no43_builder::driver::catalogue::{Catalogue, Entry, Origin};
use no43_builder::driver::{Package, Version, lookup};
use no43_harness::exit_codes;
use no43_harness::words::{bytes, clean};
use serde::Serialize;

use crate::context::{Context, Done, Failure, OrExit as _};
use crate::prepare;

/// One line of the list.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Row {
    #[serde(flatten)]
    entry: Entry,
    /// The file is on this host.
    here: bool,
}

fn load(list: &Path) -> Result<Catalogue, Failure> {
    let list = std::path::absolute(list).or_exit(exit_codes::INPUT)?;
    Catalogue::load(&list).map_err(|problem| Failure::new(exit_codes::RECIPE, problem))
}

/// Where the package of an entry is, or would be once it is fetched.
fn place(entry: &Entry, context: &Context) -> Result<PathBuf, Failure> {
    Ok(match &entry.from {
        Origin::Path(path) => path.clone(),
        Origin::Url(_) => prepare::inputs(&context.store()?).join(&entry.sha256),
    })
}

pub(super) fn ls(list: &Path, context: &Context) -> Done {
    let catalogue = load(list)?;
    let mut rows = Vec::new();
    for entry in catalogue.entries {
        let here = place(&entry, context)?.is_file();
        rows.push(Row { entry, here });
    }
    context.print(&rows, |rows| {
        if rows.is_empty() {
            return format!("{} lists nothing; add a package with: no43 driver add FILE\n", list.display());
        }
        rows.iter().map(line).collect()
    })?;
    Ok(exit_codes::OK)
}

fn line(row: &Row) -> String {
    let entry = &row.entry;
    let state = match (row.here, &entry.from) {
        (true, _) => "here",
        (false, Origin::Path(_)) => "not there",
        (false, Origin::Url(_)) => "to fetch",
    };
    let from = match &entry.from {
        Origin::Path(path) => path.display().to_string(),
        Origin::Url(url) => url.clone(),
    };
    let hidden =
        if entry.version < no43_builder::driver::FIRST_FOR_VMS { "   needs driver.legacy" } else { "" };
    format!(
        "  {:<14} {:<12} {state:<9} {}{hidden}\n",
        clean(&entry.name),
        entry.version.to_string(),
        clean(&from)
    )
}

pub(super) fn add(package: &str, name: Option<&str>, list: &Path, context: &Context) -> Done {
    let mut catalogue = load(list)?;
    let mut tools = prepare::tools(&context.store()?);
    let (path, from, sha256) = if package.contains("://") {
        let (path, sha256) = tools.fetch(package).map_err(|why| Failure::new(exit_codes::INPUT, why))?;
        (path, Origin::Url(package.to_owned()), sha256)
    } else {
        let path = std::path::absolute(package).or_exit(exit_codes::INPUT)?;
        let sum = tools.hashes.sum(&path);
        let sum = sum.map_err(|error| Failure::new(exit_codes::INPUT, format!("{package}: {error}")))?;
        (path.clone(), Origin::Path(path), sum.sha256)
    };
    let read = Package::read(&path).or_exit(exit_codes::INPUT)?;
    for contradiction in &read.contradictions {
        eprintln!("  !        {}", clean(contradiction));
    }
    let name =
        catalogue.add(&read, name, from, sha256).map_err(|why| Failure::new(exit_codes::INPUT, why))?;
    catalogue.save().or_exit(exit_codes::INPUT)?;
    let version = read.version;
    context.print(&Added { name, version }, |added| {
        format!(
            "  {} is in {}; recipes take it by driver.package = \"{}\"\n",
            added.name,
            list.display(),
            added.name
        )
    })?;
    Ok(exit_codes::OK)
}

#[derive(Serialize)]
struct Added {
    name: String,
    version: Option<Version>,
}

pub(super) fn fetch(names: &[String], list: &Path, context: &Context) -> Done {
    let catalogue = load(list)?;
    let mut wanted: Vec<&Entry> = Vec::new();
    for name in names {
        let entry = catalogue.find(name);
        let known = || catalogue.names().collect::<Vec<_>>().join(", ");
        wanted.push(entry.ok_or_else(|| {
            Failure::new(
                exit_codes::INPUT,
                format!("{} has no '{name}'; it has: {}", list.display(), known()),
            )
        })?);
    }
    if names.is_empty() {
        wanted.extend(&catalogue.entries);
    }
    let mut tools = prepare::tools(&context.store()?);
    let mut rows = Vec::new();
    for entry in wanted {
        if let (Origin::Url(url), false) = (&entry.from, place(entry, context)?.is_file()) {
            let (_, sha256) = tools.fetch(url).map_err(|why| Failure::new(exit_codes::INPUT, why))?;
            if sha256 != entry.sha256 {
                let what = format!("{url} has sha256 {sha256}, and {} says {}", list.display(), entry.sha256);
                return Err(Failure::new(exit_codes::INPUT, what));
            }
        }
        rows.push(Row { entry: entry.clone(), here: place(entry, context)?.is_file() });
    }
    let missing = rows.iter().any(|row| !row.here);
    context.print(&rows, |rows| rows.iter().map(line).collect())?;
    Ok(if missing { exit_codes::INPUT } else { exit_codes::OK })
}

pub(super) fn find(card: &str, guest: &str, most: u8, context: &Context) -> Done {
    let mut tools = prepare::tools(&context.store()?);
    let mut get = |url: &str| {
        let (path, _) = tools.fetch(url)?;
        std::fs::read(&path).map_err(|error| format!("failed to read {}: {error}", path.display()))
    };
    let found = lookup::find(card, guest, most, &mut get);
    let found = found.map_err(|why| Failure::new(exit_codes::INPUT, why))?;
    context.print(&found, |found| {
        if found.is_empty() {
            return format!("  NVIDIA's service knows no driver for {card} on {guest}\n");
        }
        found.iter().map(shown).collect()
    })?;
    Ok(exit_codes::OK)
}

fn shown(one: &lookup::Found) -> String {
    let size = one.bytes.map(bytes).unwrap_or_default();
    format!("  {:<10} {:<20} {size:<9} {}\n", one.version.to_string(), clean(&one.date), clean(&one.url))
}
