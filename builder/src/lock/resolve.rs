//! `no43 lock`: finds out what every input and suite is now, and says what the publisher changed.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::apt::{self, HostSource};
use super::hashes::HashCache;
use super::{InputLock, Lock, SuiteLock, fetch, verify};
use crate::diagnostic::{Kind, Problem, Problems, nearest};
use crate::recipe::{Guest, Input, InputFrom, Resolved};

/// An `InRelease` is 50 to 300 kB.
const MAX_IN_RELEASE: u64 = 16 << 20;

/// What may be resolved anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Update {
    /// Only what the lock does not have yet.
    Missing,
    /// Also these: names of inputs or suites; a release's name means all its suites.
    Names(Vec<String>),
    /// Everything that the recipe takes.
    All,
}

/// What resolving needs besides recipe and lock.
pub struct Tools {
    /// The store's folder of fetched files, by SHA-256; made when needed.
    pub inputs: PathBuf,
    /// Remembered sums.
    pub hashes: HashCache,
    host: OnceLock<Vec<HostSource>>,
}

impl Tools {
    /// Fetched files go to `inputs`.
    #[must_use]
    pub fn new(inputs: PathBuf, hashes: HashCache) -> Self {
        Self { inputs, hashes, host: OnceLock::new() }
    }

    /// As if this host's apt were configured so.
    #[must_use]
    pub fn with_host_sources(self, sources: Vec<HostSource>) -> Self {
        Self { host: OnceLock::from(sources), ..self }
    }

    fn host(&self) -> &[HostSource] {
        self.host.get_or_init(apt::host_sources)
    }
}

/// One entry of the lock that is new or different.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Change {
    /// The input's or suite's name.
    pub name: String,
    /// SHA-256, size and facts before; `None` when it is new.
    pub old: Option<BTreeMap<String, String>>,
    /// The same, now.
    pub new: BTreeMap<String, String>,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(old) = &self.old else {
            let said = ["version", "date", "size"].into_iter().filter_map(|key| self.new.get(key));
            let said: Vec<&str> = said.map(String::as_str).collect();
            return write!(f, "{}: new ({})", self.name, said.join(", "));
        };
        write!(f, "{}: the publisher changed it", self.name)?;
        let mut keys: Vec<&String> = old.keys().chain(self.new.keys()).collect();
        keys.sort();
        keys.dedup();
        for key in keys.into_iter().filter(|key| old.get(*key) != self.new.get(*key)) {
            let show = |facts: &BTreeMap<String, String>| facts.get(key).map_or("(nothing)".to_owned(), Clone::clone);
            write!(f, "\n    {key}   {} → {}", show(old), show(&self.new))?;
        }
        Ok(())
    }
}

/// A suite that a recipe takes packages from.
struct WantedSuite {
    /// The lock's name for it.
    name: String,
    suite: String,
    mirror: Option<String>,
    /// The recipe cannot do without it.
    must: bool,
}

impl Lock {
    /// Brings the lock up to what `recipe` needs; [`Lock::save`] is the caller's.
    ///
    /// # Errors
    /// Everything that could not be found or fetched; the lock may then be changed in part, and is best not saved.
    pub fn resolve(&mut self, recipe: &Resolved, update: &Update, tools: &mut Tools) -> Result<Vec<Change>, Problems> {
        let mut problems = Problems::default();
        let mut changes = Vec::new();
        let guest = &recipe.recipe.guest;
        let wanted = wanted_suites(guest, tools.host());
        if let Err(problem) = check_names(update, recipe, &wanted) {
            return Err(problem.into());
        }
        for suite in wanted {
            let old = self.suites.get(&suite.name);
            if old.is_some() && !update.means(&suite.name) && !update.means(&guest.suite) {
                continue;
            }
            match resolve_suite(&suite, guest, tools) {
                Ok(new) => {
                    push_change(&mut changes, &suite.name, old.map(suite_facts), suite_facts(&new));
                    self.suites.insert(suite.name, new);
                }
                Err(problem) if suite.must => problems.push(problem),
                Err(_) => {}
            }
        }
        let inputs = self.inputs.entry(recipe.recipe.name.clone()).or_default();
        inputs.retain(|name, _| recipe.recipe.inputs.contains_key(name));
        for (name, input) in &recipe.recipe.inputs {
            let old = inputs.get(name).filter(|old| old.source == input.written);
            if old.is_some() && !update.means(name) {
                continue;
            }
            match resolve_input(name, input, tools) {
                Ok(new) => {
                    push_change(&mut changes, name, old.map(input_facts), input_facts(&new));
                    inputs.insert(name.clone(), new);
                }
                Err(problem) => problems.push(problem),
            }
        }
        self.inputs.retain(|_, inputs| !inputs.is_empty());
        problems.into_result().map(|()| changes)
    }

    /// The names that the lock gives to the suites of `guest`, as far as they are locked: the release itself first.
    pub(crate) fn suites_of(&self, guest: &Guest) -> Vec<(&str, &SuiteLock)> {
        let wanted = wanted_suites(guest, &[]);
        let locked = wanted.iter().filter_map(|wanted| self.suites.get_key_value(&wanted.name));
        locked.map(|(name, lock)| (name.split('@').next().unwrap_or(name), lock)).collect()
    }
}

impl Update {
    fn means(&self, name: &str) -> bool {
        match self {
            Self::Missing => false,
            Self::Names(names) => names.iter().any(|wanted| name == wanted || name.split('@').next() == Some(wanted)),
            Self::All => true,
        }
    }
}

/// A name that nothing has is an error, not a silent nothing.
fn check_names(update: &Update, recipe: &Resolved, suites: &[WantedSuite]) -> Result<(), Problem> {
    let Update::Names(names) = update else { return Ok(()) };
    let suites = suites.iter().map(|wanted| wanted.suite.as_str());
    let known: Vec<&str> = suites.chain(recipe.recipe.inputs.keys().map(String::as_str)).collect();
    let Some(unknown) = names.iter().find(|name| !known.contains(&name.split('@').next().unwrap_or(name))) else {
        return Ok(());
    };
    let fix = match nearest(unknown, known.iter().copied()) {
        Some(near) => format!("did you mean '{near}'?"),
        None => format!("it takes: {}", known.join(", ")),
    };
    let what = format!("{} takes nothing called '{unknown}'", recipe.path.display());
    Err(Problem { place: None, ..Problem::new(Kind::BadValue, "", what).fix(fix) })
}

fn wanted_suites(guest: &Guest, host: &[HostSource]) -> Vec<WantedSuite> {
    let release = &guest.suite;
    let all = [("", true, true), ("-updates", false, true), ("-security", false, false), ("-backports", true, true)];
    let asked = all.into_iter().filter(|(part, ..)| *part != "-backports" || !guest.backports.is_empty());
    asked
        .map(|(part, must, in_mirror)| {
            let suite = format!("{release}{part}");
            // Security lives in an archive of its own: a recipe's mirror says nothing about it.
            match guest.mirror.as_ref().filter(|_| in_mirror) {
                Some(mirror) => {
                    let mirror = mirror.trim_end_matches('/').to_owned();
                    WantedSuite { name: format!("{suite}@{mirror}"), suite, mirror: Some(mirror), must }
                }
                None => WantedSuite { name: suite.clone(), mirror: apt::mirror_of(&suite, host), suite, must },
            }
        })
        .collect()
}

fn resolve_suite(wanted: &WantedSuite, guest: &Guest, tools: &mut Tools) -> Result<SuiteLock, Problem> {
    let Some(mirror) = &wanted.mirror else {
        let what = format!("this host's apt knows no Debian archive that could have '{}'", wanted.suite);
        let fix = "set guest.mirror to a Debian mirror";
        return Err(Problem { key: "guest.mirror".to_owned(), ..guest.suite_spot.problem(Kind::Missing, what).fix(fix) });
    };
    let url = format!("{mirror}/dists/{}/InRelease", wanted.suite);
    let path = keep(&url, tools).map_err(|what| {
        guest.suite_spot.problem(Kind::File, what).fix("check the network, the mirror's address and the suite's name")
    })?;
    let failed = |error: std::io::Error| guest.suite_spot.problem(Kind::File, format!("failed to read {url}: {error}"));
    let mut text = String::new();
    let file = fs::File::open(&path).map_err(failed)?;
    file.take(MAX_IN_RELEASE).read_to_string(&mut text).map_err(failed)?;
    let facts = apt::in_release_facts(&text);
    if facts.get("codename").map(|name| name.split('-').next()) != Some(guest.suite.split('-').next()) {
        let found = facts.get("codename").map_or("no codename", String::as_str);
        let what = format!("{url} is not of {}: it says {found}", guest.suite);
        return Err(guest.suite_spot.problem(Kind::BadValue, what).fix("guest.suite takes a code name, such as bookworm"));
    }
    let sum = tools.hashes.sum(&path).map_err(failed)?;
    let components = vec!["main".to_owned()];
    Ok(SuiteLock { mirror: mirror.clone(), components, sha256: sum.sha256, size: sum.size, facts })
}

fn resolve_input(name: &str, input: &Input, tools: &mut Tools) -> Result<InputLock, Problem> {
    let path = match &input.from {
        InputFrom::Path(path) => path.clone(),
        InputFrom::Url(url) => {
            let failed = |what| input.spot.problem(Kind::File, what).fix("check the network and the address");
            keep(url, tools).map_err(failed)?
        }
    };
    let sum = tools.hashes.sum(&path).map_err(|error| verify::missing(name, input, &path, &error))?;
    if let Some(expected) = input.sha256.as_ref().filter(|expected| **expected != sum.sha256) {
        let what = format!("{} is not the file that the recipe means", input.written);
        let why = format!("expected sha256 {expected}, found {} ({} bytes)", sum.sha256, sum.size);
        let fix = "put the right file there, or correct sha256 in the recipe";
        return Err(input.spot.problem(Kind::WrongHash, what).why(why).fix(fix));
    }
    let facts = super::facts::of(&path).unwrap_or_default();
    Ok(InputLock { source: input.written.clone(), sha256: sum.sha256, size: sum.size, facts })
}

/// Fetches `url` into the folder of inputs, under its SHA-256.
fn keep(url: &str, tools: &mut Tools) -> Result<PathBuf, String> {
    use std::os::unix::fs::PermissionsExt;
    let cannot = |error: std::io::Error| format!("failed to keep {url} in {}: {error}", tools.inputs.display());
    fs::create_dir_all(&tools.inputs).map_err(cannot)?;
    let aside = tempfile::Builder::new().prefix(".fetching-").tempdir_in(&tools.inputs).map_err(cannot)?;
    let file = aside.path().join("file");
    fetch::fetch(url, &file)?;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o444)).map_err(cannot)?;
    let mut open = fs::File::open(&file).map_err(cannot)?;
    let sha256 = super::hashes::sha256_of(&mut open).map_err(cannot)?;
    open.sync_all().map_err(cannot)?;
    let kept: PathBuf = Path::new(&tools.inputs).join(sha256);
    fs::rename(&file, &kept).map_err(cannot)?;
    Ok(kept)
}

fn push_change(
    changes: &mut Vec<Change>,
    name: &str,
    old: Option<BTreeMap<String, String>>,
    new: BTreeMap<String, String>,
) {
    if old.as_ref() != Some(&new) {
        changes.push(Change { name: name.to_owned(), old, new });
    }
}

fn suite_facts(lock: &SuiteLock) -> BTreeMap<String, String> {
    let mut facts = all_facts(&lock.facts, &lock.sha256, lock.size);
    facts.insert("mirror".to_owned(), lock.mirror.clone());
    facts
}

fn input_facts(lock: &InputLock) -> BTreeMap<String, String> {
    all_facts(&lock.facts, &lock.sha256, lock.size)
}

fn all_facts(facts: &BTreeMap<String, String>, sha256: &str, size: u64) -> BTreeMap<String, String> {
    let mut facts = facts.clone();
    facts.insert("sha256".to_owned(), sha256.to_owned());
    facts.insert("size".to_owned(), format!("{size} bytes"));
    facts
}
