//! What is carried into the lab for a run: the programs, and the directories of the recipes that the command names.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use crate::error::LabError;

/// A recipe's directory is small; whoever keeps recipes beside disk images is told so.
const BYTES_MAX: u64 = 64 << 20;
const FILES_MAX: usize = 2000;
/// Never part of a recipe, and large.
const LEFT_OUT: &[&str] = &["target", "node_modules"];

/// Copies a program, executable for everybody.
pub(crate) fn program(from: &Path, to: &Path) -> Result<(), LabError> {
    fs::copy(from, to).map_err(LabError::file("copy the program", from))?;
    fs::set_permissions(to, fs::Permissions::from_mode(0o755)).map_err(LabError::file("change", to))
}

/// Copies the directory of every recipe in `args` below `work`, and returns the arguments as they are there. A relative
/// path stays what it is; others become `carried/<n>/<file>`.
pub(crate) fn recipes(args: &[String], work: &Path) -> Result<Vec<String>, LabError> {
    let mut carried: Vec<PathBuf> = Vec::new();
    args.iter().map(|arg| recipe_of(arg, work, &mut carried)).collect()
}

fn recipe_of(arg: &str, work: &Path, carried: &mut Vec<PathBuf>) -> Result<String, LabError> {
    // "--control=recipes/x.toml"
    let (option, value) = match arg.split_once('=') {
        Some((option, value)) if option.starts_with("--") => (format!("{option}="), value),
        _ => (String::new(), arg),
    };
    let path = Path::new(value);
    if path.extension().is_none_or(|extension| extension != "toml") || !path.is_file() {
        return Ok(arg.to_owned());
    }
    let dir = path.parent().unwrap_or(Path::new(""));
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    let known = carried.iter().position(|other| other == dir);
    let index = known.unwrap_or(carried.len());
    let inside = if is_plain(path) {
        path.to_owned()
    } else {
        Path::new("carried").join(index.to_string()).join(path.file_name().unwrap_or_default())
    };
    if known.is_none() {
        carried.push(dir.to_owned());
        let target = work.join(inside.parent().unwrap_or(Path::new("")));
        copy_tree(dir, &target, &mut Budget { root: dir.to_owned(), bytes: BYTES_MAX, files: FILES_MAX })?;
    }
    Ok(format!("{option}{}", inside.display()))
}

/// Relative, and never upward.
fn is_plain(path: &Path) -> bool {
    path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
}

struct Budget {
    root: PathBuf,
    bytes: u64,
    files: usize,
}

impl Budget {
    fn take(&mut self, bytes: u64) -> Result<(), LabError> {
        match (self.bytes.checked_sub(bytes), self.files.checked_sub(1)) {
            (Some(bytes), Some(files)) => {
                (self.bytes, self.files) = (bytes, files);
                Ok(())
            }
            _ => Err(LabError::Carry {
                path: self.root.clone(),
                why: format!(
                    "the recipe's folder holds more than {} MiB or {FILES_MAX} files; put the recipe into a folder of its own",
                    BYTES_MAX >> 20
                ),
            }),
        }
    }
}

/// Files and folders; links are followed to files and left out otherwise, and so is what is hidden. The copies may be
/// changed by the lab host's user: a lock is written beside its recipe.
fn copy_tree(from: &Path, to: &Path, budget: &mut Budget) -> Result<(), LabError> {
    fs::create_dir_all(to).map_err(LabError::file("make", to))?;
    fs::set_permissions(to, fs::Permissions::from_mode(0o777)).map_err(LabError::file("change", to))?;
    for entry in fs::read_dir(from).map_err(LabError::file("list", from))? {
        let entry = entry.map_err(LabError::file("list", from))?;
        let (path, name) = (entry.path(), entry.file_name());
        if name.as_encoded_bytes().starts_with(b".") || LEFT_OUT.iter().any(|out| name == *out) {
            continue;
        }
        let kind = entry.file_type().map_err(LabError::file("look at", &path))?;
        let Ok(facts) = fs::metadata(&path) else { continue };
        if facts.is_file() {
            budget.take(facts.len())?;
            let target = to.join(&name);
            fs::copy(&path, &target).map_err(LabError::file("copy", &path))?;
            let mode = 0o666 | (facts.permissions().mode() & 0o111);
            fs::set_permissions(&target, fs::Permissions::from_mode(mode))
                .map_err(LabError::file("change", &target))?;
        } else if kind.is_dir() {
            budget.take(0)?;
            copy_tree(&path, &to.join(&name), budget)?;
        }
    }
    Ok(())
}

/// Moves everything of one directory into another, on any file system; what is there already gets a number. Returns where
/// things are now.
pub(crate) fn move_all(from: &Path, to: &Path) -> Result<Vec<PathBuf>, LabError> {
    let mut moved = Vec::new();
    let mut entries: Vec<PathBuf> = fs::read_dir(from)
        .map_err(LabError::file("list", from))?
        .flatten()
        .map(|entry| entry.path())
        .collect();
    entries.sort();
    fs::create_dir_all(to).map_err(LabError::file("make", to))?;
    for path in entries {
        let target = free_name(&to.join(path.file_name().unwrap_or_default()));
        if fs::rename(&path, &target).is_err() {
            copy_out(&path, &target)?;
        }
        moved.push(target);
    }
    Ok(moved)
}

/// The name itself, or the first numbered one that is free.
pub(crate) fn free_name(wanted: &Path) -> PathBuf {
    let numbered = (2..).map(|number| PathBuf::from(format!("{}-{number}", wanted.display())));
    std::iter::once(wanted.to_owned())
        .chain(numbered)
        .find(|path| path.symlink_metadata().is_err())
        .unwrap_or_default()
}

/// Only files and folders: nothing else comes out of a lab.
fn copy_out(from: &Path, to: &Path) -> Result<(), LabError> {
    let kind = from.symlink_metadata().map_err(LabError::file("look at", from))?.file_type();
    if kind.is_file() {
        fs::copy(from, to).map_err(LabError::file("copy", from))?;
    } else if kind.is_dir() {
        fs::create_dir_all(to).map_err(LabError::file("make", to))?;
        for entry in fs::read_dir(from).map_err(LabError::file("list", from))?.flatten() {
            copy_out(&entry.path(), &to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn recipes_are_carried_with_their_folder_and_the_rest_of_the_words_stay() {
        let dir = tempfile::tempdir().unwrap();
        let recipes_dir = dir.path().join("recipes");
        write(&recipes_dir.join("a.toml"), "a");
        write(&recipes_dir.join("files/x.sh"), "x");
        write(&recipes_dir.join(".git/config"), "secret");
        write(&recipes_dir.join("target/huge"), "huge");
        let (a, work) = (recipes_dir.join("a.toml").display().to_string(), dir.path().join("work"));
        let args = ["verify".to_owned(), a.clone(), format!("--control={a}"), "no-such.toml".to_owned()];
        let inside = recipes(&args, &work).unwrap();
        assert_eq!(inside, ["verify", "carried/0/a.toml", "--control=carried/0/a.toml", "no-such.toml"]);
        assert_eq!(fs::read_to_string(work.join("carried/0/files/x.sh")).unwrap(), "x");
        assert!(!work.join("carried/0/.git").exists());
        assert!(!work.join("carried/0/target").exists());
    }

    #[test]
    fn paths_that_stay_below_are_plain() {
        for (path, plain) in
            [("recipes/a.toml", true), ("./a.toml", true), ("../a.toml", false), ("/a.toml", false)]
        {
            assert_eq!(is_plain(Path::new(path)), plain, "{path}");
        }
    }

    #[test]
    fn a_folder_with_a_disk_image_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("disk.qcow2");
        fs::File::create(&file).unwrap().set_len(BYTES_MAX + 1).unwrap();
        write(&dir.path().join("a.toml"), "a");
        let args = [dir.path().join("a.toml").display().to_string()];
        let error = recipes(&args, &dir.path().join("work")).unwrap_err().to_string();
        assert!(error.ends_with("put the recipe into a folder of its own"), "{error}");
    }

    #[test]
    fn what_is_there_already_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        write(&dir.path().join("runs/one/report.html"), "new");
        write(&dir.path().join("evidence/one/report.html"), "old");
        let moved = move_all(&dir.path().join("runs"), &dir.path().join("evidence")).unwrap();
        assert_eq!(moved, [dir.path().join("evidence/one-2")]);
        assert_eq!(fs::read_to_string(dir.path().join("evidence/one/report.html")).unwrap(), "old");
        let copied = dir.path().join("copied");
        copy_out(&moved[0], &copied).unwrap();
        assert_eq!(fs::read_to_string(copied.join("report.html")).unwrap(), "new");
    }
}
