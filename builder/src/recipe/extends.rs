//! Reads a recipe, its chain of parents, and `--set`, into one tree.

use std::fs;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use super::tree::{self, Entry, Node, Origin, Table, Value};
use crate::diagnostic::{Kind, Place, Problem, Problems};

/// No recipe is longer; a disk image given by mistake is not read into memory.
const MAX_BYTES: u64 = 1 << 20;

/// A merged tree, not yet checked.
pub(crate) struct Loaded {
    pub(crate) table: Table,
    pub(crate) files: Vec<PathBuf>,
    pub(crate) problems: Problems,
}

/// Reads `path`, what it extends, and lays `sets` over it.
pub(crate) fn load(path: &Path, sets: &[String]) -> Result<Loaded, Problems> {
    let mut chain = Chain::default();
    let mut table = chain.read(path, None)?;
    let mut problems = Problems::default();
    for set in sets {
        if let Err(problem) = apply_set(&mut table, set) {
            problems.push(problem.at(Place::whole("--set")));
        }
    }
    Ok(Loaded { table, files: chain.files, problems })
}

#[derive(Default)]
struct Chain {
    files: Vec<PathBuf>,
    /// The same files, with links followed.
    real: Vec<PathBuf>,
}

impl Chain {
    /// `from`: where the file is named by `extends`.
    fn read(&mut self, path: &Path, from: Option<&Origin>) -> Result<Table, Problem> {
        let place = || from.and_then(Origin::place).unwrap_or_else(|| Place::whole(path));
        let key = if from.is_some() { "extends" } else { "" };
        let real = fs::canonicalize(path).map_err(|error| cannot_read(path, key, &error).at(place()))?;
        if let Some(at) = self.real.iter().position(|known| *known == real) {
            return Err(cycle(&self.files[at..], path).at(place()));
        }
        let text = read_text(path).map_err(|problem| match problem.place {
            Some(_) => problem,
            None => Problem { key: key.to_owned(), ..problem }.at(place()),
        })?;
        let mut table = tree::parse(&text, &Arc::from(path))?;
        self.files.push(path.to_owned());
        self.real.push(real);
        match table.take("extends") {
            None => Ok(table),
            Some(Node { value: Value::Text(parent), origin }) => {
                let folder = path.parent().unwrap_or(Path::new(""));
                let mut below = self.read(&tidy(&folder.join(parent)), Some(&origin))?;
                // The parent's name is its own: a variant is called after its file.
                below.take("name");
                below.lay_over(table);
                Ok(below)
            }
            Some(Node { value, origin }) => {
                let what = format!("the path of one recipe is needed here, and this is {}", value.kind());
                Err(Problem::new(Kind::WrongType, "extends", what).at(origin.place()))
            }
        }
    }
}

/// `a/./b` and `a/../b` as `a/b` and `b`, for shorter messages; never touches a leading `..`.
fn tidy(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir if matches!(out.components().next_back(), Some(Component::Normal(_))) => {
                out.pop();
            }
            other => out.push(other),
        }
    }
    out
}

fn cannot_read(path: &Path, key: &str, error: &std::io::Error) -> Problem {
    let what = match error.kind() {
        std::io::ErrorKind::NotFound if key.is_empty() => "there is no such file".to_owned(),
        std::io::ErrorKind::NotFound => format!("there is no file {}", path.display()),
        _ => format!("failed to read {}: {error}", path.display()),
    };
    Problem::new(Kind::File, key, what)
}

/// The file's text; a problem with a place lies inside the file.
fn read_text(path: &Path) -> Result<String, Problem> {
    let failed = |error: &std::io::Error| cannot_read(path, "", error);
    let meta = fs::metadata(path).map_err(|error| failed(&error))?;
    if !meta.is_file() {
        let what = format!("{} is not a file", path.display());
        return Err(
            Problem::new(Kind::File, "", what).fix("name the recipe itself, such as recipes/debian.toml")
        );
    }
    if meta.len() > MAX_BYTES {
        let what = format!("{} has {} bytes, a recipe at most {MAX_BYTES}", path.display(), meta.len());
        return Err(Problem::new(Kind::File, "", what).fix("is it a recipe at all?"));
    }
    let bytes = fs::read(path).map_err(|error| failed(&error))?;
    String::from_utf8(bytes).map_err(|error| {
        let good = error.utf8_error().valid_up_to();
        let text = String::from_utf8_lossy(&error.as_bytes()[..good]).into_owned();
        let problem = Problem::new(Kind::Syntax, "", "not UTF-8 text").fix("save the file as UTF-8");
        problem.at(Place::at(path, &text, good))
    })
}

fn cycle(chain: &[PathBuf], back_to: &Path) -> Problem {
    let mut names: Vec<String> = chain.iter().map(|file| file.display().to_string()).collect();
    names.push(back_to.display().to_string());
    Problem::new(Kind::ExtendsCycle, "extends", format!("a circle: {}", names.join(" extends ")))
        .fix("a recipe cannot be its own parent: remove one 'extends' of this chain")
}

/// Lays one `KEY=VALUE` over the recipe; numbers in the key's path mean items of a list.
fn apply_set(table: &mut Table, set: &str) -> Result<(), Problem> {
    let usage =
        || Problem::new(Kind::BadValue, set, "not of the form KEY=VALUE").fix("write --set machine.cpus=4");
    let (path, value) = set.split_once('=').ok_or_else(usage)?;
    let (path, value) = (path.trim(), value.trim());
    let parts: Vec<&str> = path.split('.').map(str::trim).collect();
    // No key of a recipe is deeper than a handful; a text of a thousand points would be a thousand tables.
    if parts.iter().any(|part| part.is_empty()) || parts.len() > 16 {
        return Err(usage());
    }
    if parts[0] == "extends" {
        return Err(Problem::new(Kind::BadValue, "extends", "only a recipe can say what it extends"));
    }
    let origin = Origin::Set(set.into());
    let value = tree::parse_set_value(value, &origin);
    put(table, &parts, value, &origin).map_err(|what| Problem::new(Kind::BadValue, path, what))
}

fn put(table: &mut Table, parts: &[&str], value: Node, origin: &Origin) -> Result<(), String> {
    let (part, rest) = (parts[0], &parts[1..]);
    if table.entry(part).is_none() {
        let node = Node { value: Value::Table(Table::default()), origin: origin.clone() };
        table.0.push(Entry { key: part.to_owned(), key_origin: origin.clone(), node });
    }
    let entry = table.entry_mut(part).expect("it was just put there");
    if rest.is_empty() {
        entry.key_origin = origin.clone();
        entry.node = value;
        return Ok(());
    }
    put_below(&mut entry.node, rest, value, origin)
}

fn put_below(node: &mut Node, parts: &[&str], value: Node, origin: &Origin) -> Result<(), String> {
    match &mut node.value {
        Value::Table(table) => put(table, parts, value, origin),
        Value::List(items) => {
            let len = items.len();
            let item = parts[0].parse::<usize>().ok().and_then(|n| items.get_mut(n));
            let item = item
                .ok_or_else(|| format!("the list has {len} items, counted from 0, and no '{}'", parts[0]))?;
            match &parts[1..] {
                [] => {
                    *item = value;
                    Ok(())
                }
                rest => put_below(item, rest, value, origin),
            }
        }
        other => Err(format!("there is {} above '{}', not a table", other.kind(), parts[0])),
    }
}
