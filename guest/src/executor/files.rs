//! Copying and removing files and folders, flushed to the disk.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use no43_guest::setup::event::Outcome;

use super::{Done, Failure};

/// Deepest folder that is copied; a loop of links would go on for ever.
const DEPTH: usize = 64;

/// Copies a file or a folder; what is there already is replaced file by file.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<Done, Failure> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent).map_err(|error| Failure::io(parent.display(), &error))?;
    }
    copy_all(from, to, DEPTH)?;
    Ok(Done::now(Outcome::Done))
}

fn copy_all(from: &Path, to: &Path, depth: usize) -> Result<(), Failure> {
    let failure =
        |error: io::Error| Failure::io(format_args!("{} to {}", from.display(), to.display()), &error);
    if !fs::metadata(from).map_err(failure)?.is_dir() {
        fs::copy(from, to).map_err(failure)?;
        return File::options().write(true).open(to).and_then(|file| file.sync_all()).map_err(failure);
    }
    if depth == 0 {
        return Err(failure(io::Error::other(format!("more than {DEPTH} folders deep"))));
    }
    fs::create_dir_all(to).map_err(failure)?;
    for entry in fs::read_dir(from).map_err(failure)? {
        let name = entry.map_err(failure)?.file_name();
        copy_all(&from.join(&name), &to.join(&name), depth - 1)?;
    }
    Ok(())
}

/// Removes a file, or a folder with all that is in it.
pub(crate) fn remove(path: &Path) -> Result<Done, Failure> {
    let failure = |error: io::Error| Failure::io(path.display(), &error);
    let removed = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Done::now(Outcome::Unchanged)),
        Err(error) => Err(error),
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
    };
    removed.map(|()| Done::now(Outcome::Done)).map_err(failure)
}

/// The one line of a file that holds a password.
pub(crate) fn secret(path: &Path) -> Result<String, Failure> {
    use no43_guest::setup::event::Cause;
    let failure = |error: io::Error| Failure::io(path.display(), &error);
    let bad = |why: &str| Failure::new(Cause::Source, format!("{}: {why}", path.display()));
    if fs::metadata(path).map_err(failure)?.len() > 1024 {
        return Err(bad("more than 1024 bytes; a password is one line"));
    }
    let text = String::from_utf8(fs::read(path).map_err(failure)?).map_err(|_| bad("not UTF-8"))?;
    let line = text.strip_suffix('\n').unwrap_or(&text);
    let line = line.strip_suffix('\r').unwrap_or(line);
    if line.is_empty() || line.contains(['\n', '\r', '\0']) {
        return Err(bad("a password is one line that is not empty"));
    }
    Ok(line.to_owned())
}
