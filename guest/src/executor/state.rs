//! What survives a restart: how far the plan is, and a copy of the plan, in a folder of the guest.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use no43_guest::setup::event::Cause;
use no43_guest::setup::{PLAN_LIMIT, SetupPlan};
use serde::{Deserialize, Serialize};

use super::place::Place;
use super::{Failure, Request};

const STATE: &str = "setup.json";
const PLAN: &str = "plan.json";

/// How far a plan is. It is written before an action begins, and after it ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct State {
    /// Starts of the program for this plan.
    pub(super) runs: u32,
    /// The action that comes next, from 0.
    pub(super) next: u32,
    /// The action that was running when this was written.
    pub(super) running: Option<Running>,
    /// Restarts that the plan wanted.
    pub(super) restarts: u32,
    /// Who needs a restart that is not due yet.
    pub(super) restart_needed: Option<String>,
    /// Actions that were refused.
    pub(super) refused: u32,
    /// Milliseconds of all runs that ended.
    pub(super) ms: u64,
    /// Set when everything is done.
    pub(super) finished: Option<Finish>,
    /// Folder of the plan on the set-up disk when it was last seen.
    pub(super) media: PathBuf,
    /// Name of the plan file in it.
    pub(super) plan_file: String,
}

/// An action that has begun and not ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Running {
    pub(super) action: u32,
    /// Counts from 1.
    pub(super) attempt: u32,
}

/// What a finished plan says again when somebody asks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Finish {
    pub(super) ms: u64,
    pub(super) image_state: Option<String>,
}

/// Makes the folder and takes the lock of it; `None` if another process has it.
pub(super) fn lock(dir: &Path) -> Result<Option<File>, Failure> {
    let failure = |error: &io::Error| Failure::io(dir.display(), error);
    fs::create_dir_all(dir).map_err(|e| failure(&e))?;
    let open = OpenOptions::new().create(true).truncate(false).write(true).open(dir.join("lock"));
    let file = open.map_err(|e| failure(&e))?;
    // A program that another thread is just starting holds it, too, for the moment between fork and exec.
    for _ in 0..20 {
        match file.try_lock() {
            Ok(()) => return Ok(Some(file)),
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(10)),
            Err(TryLockError::Error(error)) => return Err(failure(&error)),
        }
    }
    Ok(None)
}

/// Reads plan and state, and counts this run. A plan that is given must be the one that was begun, if one was.
pub(super) fn begin(request: &Request) -> Result<(SetupPlan, Place, State), Failure> {
    let dir = &request.state;
    let mut state = State::load(dir)?;
    let copy = read(&dir.join(PLAN), PLAN_LIMIT)?;
    let bytes = match (&request.plan, copy) {
        (Some(path), copy) => {
            let given = given(path)?;
            if copy.is_some_and(|copy| state.runs > 0 && copy != given) {
                let text = format!(
                    "{} is another plan than the one that was begun; remove {} to begin anew",
                    path.display(),
                    dir.display()
                );
                return Err(Failure::new(Cause::Plan, text));
            }
            state.media = folder(path)?;
            state.plan_file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            write_whole(&dir.join(PLAN), &given)?;
            given
        }
        (None, Some(copy)) => copy,
        (None, None) => {
            let text = format!("no plan was begun in {}: give one with --plan FILE", dir.display());
            return Err(Failure::new(Cause::Plan, text));
        }
    };
    let plan = SetupPlan::parse(&bytes).map_err(|error| Failure::new(Cause::Plan, error.to_string()))?;
    state.runs += 1;
    state.save(dir)?;
    let place =
        Place::new(dir, &state.media, request.drive_c.clone()).find_media(state.plan_file.as_ref(), &bytes);
    Ok((plan, place, state))
}

/// The folder of a plan file, with its drive or from the root.
fn folder(plan: &Path) -> Result<PathBuf, Failure> {
    let whole = std::path::absolute(plan).map_err(|error| Failure::io(plan.display(), &error))?;
    Ok(whole.parent().unwrap_or(Path::new(".")).to_owned())
}

fn given(path: &Path) -> Result<Vec<u8>, Failure> {
    let missing = || Failure::new(Cause::Plan, format!("{}: no such plan file", path.display()));
    read(path, PLAN_LIMIT)?.ok_or_else(missing)
}

impl State {
    /// A state that cannot be read is an error and no fresh start: a plan that begins again could loop for ever.
    fn load(dir: &Path) -> Result<Self, Failure> {
        let path = dir.join(STATE);
        let Some(bytes) = read(&path, PLAN_LIMIT)? else { return Ok(Self::default()) };
        serde_json::from_slice(&bytes).map_err(|error| {
            Failure::new(Cause::Plan, format!("{}: {error}; remove it to begin anew", path.display()))
        })
    }

    pub(super) fn save(&self, dir: &Path) -> Result<(), Failure> {
        let bytes = serde_json::to_vec(self).map_err(|e| Failure::new(Cause::System, e.to_string()))?;
        write_whole(&dir.join(STATE), &bytes)
    }
}

fn read(path: &Path, limit: usize) -> Result<Option<Vec<u8>>, Failure> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(|error| Failure::io(path.display(), &error))?,
    };
    let mut bytes = Vec::new();
    let limit = limit as u64 + 1; // one more, so that the reader sees that it is too long
    file.take(limit).read_to_end(&mut bytes).map_err(|error| Failure::io(path.display(), &error))?;
    Ok(Some(bytes))
}

/// Writes a file so that a power cut leaves either the old or the new one.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let aside = path.with_extension("new");
    let write = || {
        let mut file = File::create(&aside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        drop(file);
        fs::rename(&aside, path)
    };
    write().map_err(|error| Failure::io(path.display(), &error))
}
