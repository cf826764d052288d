//! Looks at the host for a plan: sums of files that go in, and what this host could lend. Planning itself looks at
//! nothing, so that it can be tested and repeated.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::CardRequest;
use crate::diagnostic::{Kind, Place, Problem, Problems};
use crate::key::hex;
use crate::lock::hashes::HashCache;
use crate::lock::{Lock, input_path};
use crate::recipe::{CopyFrom, FileAsk, Recipe, Resolved, StepAsk};
use crate::windows::{self, WindowsFacts};
use sha2::{Digest, Sha256};

/// A folder with more files than this is a mistake, such as a home directory.
const MAX_FILES: usize = 20_000;

/// What planning needs to know of the host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// SHA-256 of the `no43-guest` for the guest's system.
    pub guest_program: String,
    /// What was found at each path that the recipe copies in.
    pub files: BTreeMap<PathBuf, Vec<FoundFile>>,
    /// Where each input's file is.
    pub inputs: BTreeMap<String, PathBuf>,
    /// Of a Windows guest.
    pub windows: Option<WindowsFacts>,
    /// What this host could lend, if it was looked at.
    pub host: Option<HostFacts>,
}

/// One file that is copied in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoundFile {
    /// Where it is.
    pub path: PathBuf,
    /// Below the path of the recipe; empty for a single file.
    pub below: String,
    /// 0o755 or 0o644: finer differences come from somebody's umask.
    pub mode: u32,
    /// Of the contents; of the target's text for a link.
    pub sha256: String,
    /// The target of a symbolic link.
    pub link: Option<String>,
}

/// What this host could lend.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostFacts {
    /// CPUs that are online.
    pub cpus: u32,
    /// Memory in all.
    pub memory_mib: u64,
    /// Its cards.
    pub cards: Vec<HostCard>,
}

/// A card of this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostCard {
    /// Such as `GeForce RTX 3070 (GA104)`.
    pub name: String,
    /// As lspci writes it, with domain: `0000:01:00`.
    pub address: String,
    /// Of the video function.
    pub id: String,
    /// Maker and model of its board, where it says so: `1462:8a13`. Packages for notebooks list boards.
    #[serde(default)]
    pub board: Option<String>,
    /// It could be leased now.
    pub ready: bool,
    /// A sentence about its state.
    pub state: String,
}

/// Everything that a `[[card]]` asks for holds for a card of this host.
pub(crate) fn fits(request: &CardRequest, card: &HostCard) -> bool {
    let short = |address: &str| address.trim_start_matches("0000:").trim_end_matches(".0").to_owned();
    request.address.as_deref().is_none_or(|address| short(address) == short(&card.address))
        && request.id.as_deref().is_none_or(|id| id.eq_ignore_ascii_case(&card.id))
        && request.model.as_deref().is_none_or(|model| no43_host::lease::is_model(&card.name, model))
}

/// Looks up everything that a plan for `recipe` needs from the file system; checks its inputs against the lock.
///
/// `guest_program` is the executable for the guest, `inputs` the store's folder of fetched files.
///
/// # Errors
/// Files that are not there, inputs that are not what was locked: all of them.
pub fn gather(
    recipe: &Resolved,
    lock: &Lock,
    guest_program: &Path,
    inputs: &Path,
    hashes: &mut HashCache,
) -> Result<Facts, Problems> {
    let mut problems = match lock.verify(recipe, inputs, hashes) {
        Ok(_) => Problems::default(),
        Err(problems) => problems,
    };
    let mut facts = Facts::default();
    for file in copied(&recipe.recipe) {
        let CopyFrom::Path(path) = &file.from else { continue };
        match find(path, hashes) {
            Ok(found) => drop(facts.files.insert(path.clone(), found)),
            Err(what) => {
                let problem = file.spot.problem(Kind::File, what);
                problems.push(problem.fix("put the file there, or write where it is"));
            }
        }
    }
    for (name, input) in &recipe.recipe.inputs {
        if let Ok(locked) = lock.input(&recipe.recipe.name, name, input) {
            facts.inputs.insert(name.clone(), input_path(input, locked, inputs));
        }
    }
    facts.windows = windows::plan::gather(&recipe.recipe, &facts.inputs, lock, hashes, &mut problems);
    match hashes.sum(guest_program) {
        Ok(sum) => facts.guest_program = sum.sha256,
        Err(error) => {
            let what = format!("failed to read the guest program: {error}");
            let fix = "it is installed beside no43 as no43-guest; a build from source makes it with cargo build -p no43-guest";
            problems.push(Problem::new(Kind::File, "", what).at(Place::whole(guest_program)).fix(fix));
        }
    }
    problems.sort();
    problems.into_result().map(|()| facts)
}

/// Everything that the recipe copies in.
fn copied(recipe: &Recipe) -> impl Iterator<Item = &FileAsk> {
    let of_steps = recipe.steps.iter().filter_map(|step| match &step.what {
        StepAsk::Copy(file) => Some(file),
        _ => None,
    });
    recipe.guest.files.iter().chain(of_steps)
}

/// The file at `path`, or all files below it in a fixed order; the error is a sentence.
fn find(path: &Path, hashes: &mut HashCache) -> Result<Vec<FoundFile>, String> {
    let failed = |path: &Path, error: &std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => format!("there is no file {}", path.display()),
        _ => format!("failed to read {}: {error}", path.display()),
    };
    let meta = fs::metadata(path).map_err(|error| failed(path, &error))?;
    if !meta.is_dir() {
        let sum = hashes.sum(path).map_err(|error| failed(path, &error))?;
        let mode = mode_of(&meta);
        return Ok(vec![FoundFile {
            path: path.to_owned(),
            below: String::new(),
            mode,
            sha256: sum.sha256,
            link: None,
        }]);
    }
    let mut found = Vec::new();
    let mut folders = vec![(path.to_owned(), String::new())];
    while let Some((folder, below)) = folders.pop() {
        for entry in fs::read_dir(&folder).map_err(|error| failed(&folder, &error))? {
            let entry = entry.map_err(|error| failed(&folder, &error))?;
            let path = entry.path();
            let name =
                entry.file_name().into_string().map_err(|_| format!("{} is not UTF-8", path.display()))?;
            if name.contains(char::is_control) {
                return Err(format!("{} has a control character in its name", path.display()));
            }
            let below = if below.is_empty() { name } else { format!("{below}/{name}") };
            let meta = entry.metadata().map_err(|error| failed(&path, &error))?;
            if meta.is_dir() {
                folders.push((path, below));
                continue;
            }
            let (sha256, link, mode) = if meta.is_symlink() {
                let target = fs::read_link(&path).map_err(|error| failed(&path, &error))?;
                let target = target.into_os_string().into_string();
                let target = target.map_err(|_| format!("the target of {} is not UTF-8", path.display()))?;
                (hex(&Sha256::digest(target.as_bytes())), Some(target), 0o777)
            } else {
                (hashes.sum(&path).map_err(|error| failed(&path, &error))?.sha256, None, mode_of(&meta))
            };
            found.push(FoundFile { path, below, mode, sha256, link });
            if found.len() > MAX_FILES {
                return Err(format!("there are more than {MAX_FILES} files in it"));
            }
        }
    }
    found.sort_by(|a, b| a.below.cmp(&b.below));
    Ok(found)
}

fn mode_of(meta: &fs::Metadata) -> u32 {
    if meta.permissions().mode() & 0o111 == 0 { 0o644 } else { 0o755 }
}
