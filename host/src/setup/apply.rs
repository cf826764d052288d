//! Making the changes of a plan, and undoing them: the record of what was before is on disk first.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Change, Plan, SetupError, System};

/// Where it is written down what was before. It outlives boots.
const RECORD: &str = "var/lib/no43/setup.json";

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Record {
    /// What was done, oldest first; a file only once, with what it held before the first time.
    done: Vec<Change>,
    /// The initramfs was to be made again, and nothing says that it was.
    #[serde(default)]
    initramfs_old: bool,
}

/// What was undone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Undone {
    /// Files that are as they were before.
    pub restored: Vec<PathBuf>,
    /// Files that somebody has changed since: left as they are.
    pub left: Vec<PathBuf>,
    /// Commands that failed, with what they said.
    pub failed: Vec<String>,
}

fn failed<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> SetupError + 'a {
    move |source| SetupError::File { doing, path: path.to_path_buf(), source }
}

/// The last time the initramfs could not be made again.
pub(super) fn initramfs_is_old(system: &System) -> bool {
    read(&system.root).initramfs_old
}

/// Makes the changes. `run` runs a command and says what it said when it fails; then all of this plan is undone.
///
/// # Errors
/// [`SetupError`]; after a failed command nothing of the plan is left.
pub fn apply(
    plan: &Plan,
    system: &System,
    run: &mut dyn FnMut(&[String]) -> Result<(), String>,
) -> Result<(), SetupError> {
    let before = read(&system.root);
    let mut record = before.clone();
    record.initramfs_old |= plan.changes.iter().any(is_initramfs);
    for change in &plan.changes {
        record.note(change);
        write_record(&system.root, &record)?;
        let done = match change {
            Change::Write { path, mode, text, .. } => write(path, *mode, text),
            Change::Run { command, .. } => {
                run(command).map_err(|why| SetupError::Command { command: command.join(" "), why })
            }
        };
        if let Err(error) = done {
            take_back(plan, change, run);
            write_record(&system.root, &before)?;
            return Err(error);
        }
    }
    record.initramfs_old = false;
    write_record(&system.root, &record)
}

/// Undoes everything that any [`apply`] has done, newest first.
///
/// # Errors
/// The record cannot be written. What could not be undone is in the result.
pub fn undo(
    system: &System,
    run: &mut dyn FnMut(&[String]) -> Result<(), String>,
) -> Result<Undone, SetupError> {
    let record = read(&system.root);
    let mut undone = Undone::default();
    // services stop before their units go; the initramfs is made again, and units are read again, after it
    let (first, last): (Vec<&Change>, Vec<&Change>) =
        record.done.iter().rev().filter(|c| matches!(c, Change::Run { .. })).partition(|c| !is_afterwards(c));
    first.iter().for_each(|change| undone.run(change, run));
    for change in record.done.iter().rev() {
        if let Change::Write { path, mode, text, before } = change {
            undone.file(path, *mode, text, before.as_deref())?;
        }
    }
    last.iter().for_each(|change| undone.run(change, run));
    let path = system.root.join(RECORD);
    match undone.failed.is_empty() {
        true => fs::remove_file(&path).or_else(|e| match e.kind() {
            io::ErrorKind::NotFound => Ok(()),
            _ => Err(failed("remove", &path)(e)),
        })?,
        // what failed can be tried again
        false => {
            let runs = record.done.into_iter().filter(|c| matches!(c, Change::Run { .. })).collect();
            write_record(&system.root, &Record { done: runs, initramfs_old: false })?;
        }
    }
    Ok(undone)
}

impl Undone {
    fn run(&mut self, change: &Change, run: &mut dyn FnMut(&[String]) -> Result<(), String>) {
        if let Change::Run { undo, .. } = change
            && !undo.is_empty()
            && let Err(why) = run(undo)
        {
            self.failed.push(format!("{}: {why}", undo.join(" ")));
        }
    }

    fn file(&mut self, path: &Path, mode: u32, text: &str, before: Option<&str>) -> Result<(), SetupError> {
        match fs::read_to_string(path) {
            Ok(now) if now == text => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound && before.is_none() => return Ok(()),
            _ => {
                self.left.push(path.into());
                return Ok(());
            }
        }
        match before {
            Some(before) => write(path, mode, before)?,
            None => remove(path)?,
        }
        self.restored.push(path.into());
        Ok(())
    }
}

fn is_initramfs(change: &Change) -> bool {
    matches!(change, Change::Run { command, .. } if command[0] == "update-initramfs" || command[0] == "dracut")
}

fn is_afterwards(change: &Change) -> bool {
    is_initramfs(change)
        || matches!(change, Change::Run { command, .. } if command.iter().any(|w| w == "daemon-reload"))
}

/// A plan that failed at `last`: files as they were, commands undone.
fn take_back(plan: &Plan, last: &Change, run: &mut dyn FnMut(&[String]) -> Result<(), String>) {
    let begun = plan.changes.iter().position(|change| change == last).map_or(0, |n| n + 1);
    for change in plan.changes[..begun].iter().rev() {
        // what cannot be put back now is still in the way of nothing: the record of before says what it was
        match change {
            Change::Write { path, mode, before: Some(before), .. } => drop(write(path, *mode, before)),
            Change::Write { path, .. } => drop(remove(path)),
            Change::Run { undo, .. } if change != last && !undo.is_empty() => drop(run(undo)),
            Change::Run { .. } => {}
        }
    }
}

impl Record {
    fn note(&mut self, change: &Change) {
        let same = |known: &&mut Change| match (&**known, change) {
            (Change::Write { path, .. }, Change::Write { path: new, .. }) => path == new,
            (known, new) => *known == *new,
        };
        match (self.done.iter_mut().find(same), change) {
            // what was there before us stays what was there before us
            (Some(Change::Write { text, mode, .. }), Change::Write { text: new, mode: new_mode, .. }) => {
                (*text, *mode) = (new.clone(), *new_mode);
            }
            (Some(_), _) => {}
            (None, _) => self.done.push(change.clone()),
        }
    }
}

fn read(root: &Path) -> Record {
    fs::read(root.join(RECORD)).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
}

fn write_record(root: &Path, record: &Record) -> Result<(), SetupError> {
    let text = serde_json::to_string_pretty(record).unwrap_or_default();
    write(&root.join(RECORD), 0o600, &text)
}

/// Aside, synced, renamed: the file is there whole, or as it was.
fn write(path: &Path, mode: u32, text: &str) -> Result<(), SetupError> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(dir).map_err(failed("make", dir))?;
    // not beside it under a name that the directory's readers would take for one of theirs
    let aside = dir.join(".no43-new~");
    let written = (|| {
        match fs::remove_file(&aside) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&aside)?;
        file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(mode))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&aside, path)?;
        fs::File::open(dir)?.sync_all()
    })();
    written.map_err(|e| {
        let _ = fs::remove_file(&aside);
        failed("write", path)(e)
    })
}

/// A folder that was made for it goes with it, if it is empty and named after us.
fn remove(path: &Path) -> Result<(), SetupError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed("remove", path)(e)),
        _ => {}
    }
    if let Some(dir) = path
        .parent()
        .filter(|dir| dir.file_name().is_some_and(|name| name.to_string_lossy().contains("no43")))
    {
        let _ = fs::remove_dir(dir);
    }
    Ok(())
}
