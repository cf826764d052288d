//! Where things lie: sources on the set-up disk, paths of the guest, logs.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use no43_guest::setup::PLACEHOLDERS;
use no43_guest::setup::event::Cause;

use super::Failure;

/// How long a USB disk may take to appear after Windows has started; it was not measured on a real one.
const DISK_LIMIT: Duration = Duration::from_secs(60);

/// The folders that a plan works with.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    state: PathBuf,
    media: PathBuf,
    drive_c: Option<PathBuf>,
}

impl Place {
    pub(super) fn new(state: &Path, media: &Path, drive_c: Option<PathBuf>) -> Self {
        Self { state: state.to_owned(), media: media.to_owned(), drive_c }
    }

    /// Folder of the state file.
    pub(crate) fn state(&self) -> &Path {
        &self.state
    }

    /// The disk may have another letter after a restart: then it is the one on which the plan file lies. A service
    /// may start before it has any, so a disk that is not there is waited for, at most [`DISK_LIMIT`].
    pub(super) fn find_media(mut self, file: &OsStr, plan: &[u8]) -> Self {
        let is_it = |folder: &Path| fs::read(folder.join(file)).is_ok_and(|bytes| bytes == plan);
        let below: PathBuf = self.media.components().skip(1).collect(); // without the letter
        let end = Instant::now() + DISK_LIMIT;
        while cfg!(windows) && !is_it(&self.media) {
            let mut others = ('C'..='Z').map(|letter| Path::new(&format!("{letter}:")).join(&below));
            match others.find(|folder| is_it(folder)) {
                Some(found) => self.media = found,
                None if Instant::now() >= end => break, // whoever needs a source says that it is not there
                None => std::thread::sleep(Duration::from_millis(500)),
            }
        }
        self
    }

    /// A file or folder on the set-up disk.
    pub(crate) fn source(&self, path: &str) -> Result<PathBuf, Failure> {
        let whole = path.split('/').fold(self.media.clone(), |folder, part| folder.join(part));
        match fs::symlink_metadata(&whole) {
            Ok(_) => Ok(whole),
            Err(error) if self.media.is_dir() => {
                let text = format!(
                    "{}: {error}: the set-up disk does not hold what the plan names",
                    whole.display()
                );
                Err(Failure::new(Cause::Source, text))
            }
            Err(_) => {
                let text = format!("{}: the set-up disk is gone", self.media.display());
                Err(Failure::new(Cause::Source, text))
            }
        }
    }

    /// A path of the guest, which the plan writes as Windows does.
    pub(crate) fn guest(&self, path: &str) -> Result<PathBuf, Failure> {
        let whole = resolve(path);
        if cfg!(windows) {
            return Ok(PathBuf::from(whole));
        }
        let refused = |text: String| Failure::new(Cause::Refused, text);
        let drive_c = self.drive_c.as_ref().ok_or_else(|| {
            refused(format!("{path} is a path of Windows; --drive-c FOLDER says what C: is here"))
        })?;
        let (drive, rest) = whole.split_at(whole.find(':').map_or(0, |colon| colon + 1));
        if !drive.eq_ignore_ascii_case("C:") {
            return Err(refused(format!("{path}: there is no drive {drive} here")));
        }
        let parts = rest.split('\\').filter(|part| !part.is_empty());
        Ok(parts.fold(drive_c.clone(), |folder, part| folder.join(part)))
    }

    /// File for the log of an action, in a folder that exists.
    pub(crate) fn log(&self, name: &str) -> Result<PathBuf, Failure> {
        let folder = self.state.join("logs");
        fs::create_dir_all(&folder).map_err(|error| Failure::io(folder.display(), &error))?;
        let word = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
        let stem: String = name.chars().take(60).map(word).collect();
        Ok(folder.join(stem + ".log"))
    }

    /// Removes the files that hold secrets. The disk may be gone already, which serves as well.
    pub(super) fn remove_secrets(&self, secrets: &[String]) -> Result<(), Failure> {
        for secret in secrets {
            let path = secret.split('/').fold(self.media.clone(), |folder, part| folder.join(part));
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound && self.media.is_dir() => {
                    return Err(Failure::io(path.display(), &error));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Puts what Windows says, else the ordinary value, for a placeholder at the beginning.
fn resolve(path: &str) -> String {
    let split = path.strip_prefix('%').and_then(|rest| rest.split_once('%'));
    let known = split.and_then(|(name, rest)| {
        let (_, ordinary) = PLACEHOLDERS.iter().find(|(known, _)| *known == name)?;
        let said = if cfg!(windows) { std::env::var(name).ok() } else { None };
        Some(said.unwrap_or_else(|| (*ordinary).to_owned()) + rest)
    });
    known.unwrap_or_else(|| path.to_owned())
}
