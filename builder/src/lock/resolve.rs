//! `no43 lock`: finds out what every input and suite is now, and says what the publisher changed.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::apt::{self, HostSource};
use super::download::{self, Progress};
use super::fetch::{FetchError, fetch};
use super::hashes::HashCache;
use super::{InputLock, Lock, SuiteLock, driver, media, verify};
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
    progress: Box<dyn Fn(Progress<'_>)>,
}

impl Tools {
    /// Fetched files go to `inputs`.
    #[must_use]
    pub fn new(inputs: PathBuf, hashes: HashCache) -> Self {
        Self { inputs, hashes, host: OnceLock::new(), progress: Box::new(|_| {}) }
    }

    /// Tells how far a download is, many times a second.
    #[must_use]
    pub fn with_progress(self, progress: impl Fn(Progress<'_>) + 'static) -> Self {
        Self { progress: Box::new(progress), ..self }
    }

    /// As if this host's apt were configured so.
    #[must_use]
    pub fn with_host_sources(self, sources: Vec<HostSource>) -> Self {
        Self { host: OnceLock::from(sources), ..self }
    }

    /// Fetches an address into the folder of inputs, where it is kept under its SHA-256.
    ///
    /// # Errors
    /// A sentence.
    pub fn fetch(&mut self, url: &str) -> Result<(PathBuf, String), String> {
        let path = keep(url, self).map_err(FetchError::sentence)?;
        let sha256 = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        Ok((path, sha256))
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
    /// A file of this host, which nobody publishes.
    pub own_file: bool,
    /// SHA-256, size and facts before; `None` when it is new.
    pub old: Option<BTreeMap<String, String>>,
    /// The same, now.
    pub new: BTreeMap<String, String>,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(old) = &self.old else {
            let said = ["windows", "virtio-win", "driver", "version", "date", "size"]
                .into_iter()
                .filter_map(|key| self.new.get(key));
            let said: Vec<&str> = said.map(String::as_str).collect();
            return write!(f, "{}: new ({})", self.name, said.join(", "));
        };
        let who = if self.own_file { "the file is another one" } else { "the publisher changed it" };
        write!(f, "{}: {who}", self.name)?;
        let mut keys: Vec<&String> = old.keys().chain(self.new.keys()).collect();
        keys.sort();
        keys.dedup();
        for key in keys.into_iter().filter(|key| old.get(*key) != self.new.get(*key)) {
            let show = |facts: &BTreeMap<String, String>| {
                facts.get(key).map_or("(nothing)".to_owned(), Clone::clone)
            };
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
    /// What follows the release's name.
    part: &'static str,
    /// The recipe's own.
    mirror: Option<String>,
}

impl WantedSuite {
    /// The recipe cannot do without it.
    fn must(&self) -> bool {
        matches!(self.part, "" | "-backports")
    }
}

impl Lock {
    /// Brings the lock up to what `recipe` needs; [`Lock::save`] is the caller's.
    ///
    /// # Errors
    /// Everything that could not be found or fetched; the lock may then be changed in part, and is best not saved.
    pub fn resolve(
        &mut self,
        recipe: &Resolved,
        update: &Update,
        tools: &mut Tools,
    ) -> Result<Vec<Change>, Problems> {
        let mut problems = Problems::default();
        let mut changes = Vec::new();
        let guest = &recipe.recipe.guest;
        let wanted = wanted_suites(guest);
        check_names(update, recipe, &wanted)?;
        let release_is_locked =
            wanted.iter().any(|suite| suite.part.is_empty() && self.suites.contains_key(&suite.name));
        for suite in wanted {
            let old = self.suites.get(&suite.name);
            // A suite that is optional and was not there when the release was locked is not asked for again each time.
            let settled = old.is_some() || (release_is_locked && !suite.must());
            if settled && !update.means(&suite.name) && !update.means(&guest.suite) {
                continue;
            }
            match resolve_suite(&suite, guest, tools) {
                Ok(Some(new)) => {
                    push_change(&mut changes, &suite.name, false, old.map(suite_facts), suite_facts(&new));
                    self.suites.insert(suite.name, new);
                }
                Ok(None) => {}
                Err(problem) => problems.push(problem),
            }
        }
        let inputs = self.inputs.entry(recipe.recipe.name.clone()).or_default();
        inputs.retain(|name, _| recipe.recipe.inputs.contains_key(name));
        for (name, input) in &recipe.recipe.inputs {
            let old = inputs.get(name).filter(|old| old.source == input.written);
            if old.is_some() && !update.means(name) {
                continue;
            }
            match resolve_input(recipe, name, input, tools) {
                Ok(new) => {
                    let own_file = matches!(input.from, InputFrom::Path(_));
                    push_change(&mut changes, name, own_file, old.map(input_facts), input_facts(&new));
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
        let wanted = wanted_suites(guest);
        let locked = wanted.iter().filter_map(|wanted| self.suites.get_key_value(&wanted.name));
        locked.map(|(name, lock)| (name.split('@').next().unwrap_or(name), lock)).collect()
    }
}

impl Update {
    fn means(&self, name: &str) -> bool {
        match self {
            Self::Missing => false,
            Self::Names(names) => {
                names.iter().any(|wanted| name == wanted || name.split('@').next() == Some(wanted))
            }
            Self::All => true,
        }
    }
}

/// A name that nothing has is an error, not a silent nothing.
fn check_names(update: &Update, recipe: &Resolved, suites: &[WantedSuite]) -> Result<(), Problem> {
    let Update::Names(names) = update else { return Ok(()) };
    let suites = suites.iter().map(|wanted| wanted.suite.as_str());
    let known: Vec<&str> = suites.chain(recipe.recipe.inputs.keys().map(String::as_str)).collect();
    let Some(unknown) = names.iter().find(|name| !known.contains(&name.split('@').next().unwrap_or(name)))
    else {
        return Ok(());
    };
    let fix = match nearest(unknown, known.iter().copied()) {
        Some(near) => format!("did you mean '{near}'?"),
        None => format!("it takes: {}", known.join(", ")),
    };
    let what = format!("{} takes nothing called '{unknown}'", recipe.path.display());
    Err(Problem { place: None, ..Problem::new(Kind::BadValue, "", what).fix(fix) })
}

fn wanted_suites(guest: &Guest) -> Vec<WantedSuite> {
    if guest.windows.is_some() {
        return Vec::new();
    }
    let parts = ["", "-updates", "-security", "-backports"].into_iter();
    let parts = parts.filter(|part| *part != "-backports" || !guest.backports.is_empty());
    let wanted = |part| {
        let suite = format!("{}{part}", guest.suite);
        // Security lives in an archive of its own: a recipe's mirror says nothing about it.
        let mirror = guest.mirror.as_ref().filter(|_| part != "-security");
        let mirror = mirror.map(|mirror| mirror.trim_end_matches('/').to_owned());
        let name = mirror.as_ref().map_or_else(|| suite.clone(), |mirror| format!("{suite}@{mirror}"));
        WantedSuite { name, suite, part, mirror }
    };
    parts.map(wanted).collect()
}

/// The suite as it is now; `None` if it is optional and does not exist.
fn resolve_suite(
    wanted: &WantedSuite,
    guest: &Guest,
    tools: &mut Tools,
) -> Result<Option<SuiteLock>, Problem> {
    let mirror = wanted.mirror.clone().or_else(|| apt::mirror_of(&wanted.suite, tools.host()));
    let Some(mirror) = mirror else {
        if !wanted.must() {
            return Ok(None);
        }
        let what = format!("this host's apt knows no Debian archive that could have '{}'", wanted.suite);
        let problem = guest.mirror_spot.problem(Kind::Missing, what);
        return Err(problem.fix("set guest.mirror to a Debian mirror"));
    };
    let spot = if wanted.mirror.is_some() { &guest.mirror_spot } else { &guest.suite_spot };
    let url = format!("{mirror}/dists/{}/InRelease", wanted.suite);
    let path = match keep(&url, tools) {
        Ok(path) => path,
        Err(FetchError::NotThere(_)) if !wanted.must() => return Ok(None),
        Err(error) => {
            let fix = "check the network, the mirror's address and the suite's name";
            return Err(spot.problem(Kind::File, error.sentence()).fix(fix));
        }
    };
    let failed = |error: std::io::Error| spot.problem(Kind::File, format!("failed to read {url}: {error}"));
    let mut text = String::new();
    let file = fs::File::open(&path).map_err(failed)?;
    file.take(MAX_IN_RELEASE).read_to_string(&mut text).map_err(failed)?;
    let facts = apt::in_release_facts(&text);
    if facts.get("codename").map(|name| name.split('-').next()) != Some(guest.suite.split('-').next()) {
        let found = facts.get("codename").map_or("no codename", String::as_str);
        let what = format!("{url} is not of {}: it says {found}", guest.suite);
        return Err(spot
            .problem(Kind::BadValue, what)
            .fix("guest.suite takes a code name, such as bookworm"));
    }
    let sum = tools.hashes.sum(&path).map_err(failed)?;
    let components = vec!["main".to_owned()];
    Ok(Some(SuiteLock { mirror, components, sha256: sum.sha256, size: sum.size, facts }))
}

fn resolve_input(
    recipe: &Resolved,
    name: &str,
    input: &Input,
    tools: &mut Tools,
) -> Result<InputLock, Problem> {
    let path = match &input.from {
        InputFrom::Path(path) => path.clone(),
        InputFrom::Url(url) => {
            let failed = |error: FetchError| {
                input.spot.problem(Kind::File, error.sentence()).fix("check the network and the address")
            };
            keep(url, tools).map_err(failed)?
        }
    };
    // Looked at before it is hashed: minutes are saved when a page or a Linux disc was named.
    let (media, mut facts) = media::look_into(recipe, name, input, &path)?;
    let driver = driver::look_into(recipe, name, input, &path)?;
    facts.extend(driver.iter().flat_map(driver::said));
    let sum = tools.hashes.sum(&path).map_err(|error| verify::missing(name, input, &path, &error))?;
    if let Some(expected) = input.sha256.as_ref().filter(|expected| **expected != sum.sha256) {
        let what = format!("{} is not the file that the recipe means", input.written);
        let why = format!("expected sha256 {expected}, found {} ({} bytes)", sum.sha256, sum.size);
        let fix = "put the right file there, or correct sha256 in the recipe";
        return Err(input.spot.problem(Kind::WrongHash, what).why(why).fix(fix));
    }
    Ok(InputLock { source: input.written.clone(), sha256: sum.sha256, size: sum.size, facts, media, driver })
}

/// Fetches `url` into the folder of inputs, under its SHA-256, which is remembered.
fn keep(url: &str, tools: &mut Tools) -> Result<PathBuf, FetchError> {
    use std::os::unix::fs::PermissionsExt;
    let inputs = tools.inputs.clone();
    let cannot = |error: std::io::Error| {
        FetchError::Failed(format!("failed to keep {url} in {}: {error}", inputs.display()))
    };
    fs::create_dir_all(&tools.inputs).map_err(cannot)?;
    let aside = tempfile::Builder::new().prefix(".fetching-").tempdir_in(&tools.inputs).map_err(cannot)?;
    let file = match url.starts_with("file:") || url.ends_with("/InRelease") {
        // Suites are apt's own business.
        true => {
            let file = aside.path().join("file");
            fetch(url, &file)?;
            file
        }
        false => download::download(url, &tools.inputs, &*tools.progress)?,
    };
    fs::set_permissions(&file, fs::Permissions::from_mode(0o444)).map_err(cannot)?;
    let mut open = fs::File::open(&file).map_err(cannot)?;
    let sha256 = super::hashes::sha256_of(&mut open).map_err(cannot)?;
    open.sync_all().map_err(cannot)?;
    let kept: PathBuf = Path::new(&tools.inputs).join(&sha256);
    fs::rename(&file, &kept).map_err(cannot)?;
    tools.hashes.learn(&kept, &sha256).map_err(cannot)?;
    Ok(kept)
}

fn push_change(
    changes: &mut Vec<Change>,
    name: &str,
    own_file: bool,
    old: Option<BTreeMap<String, String>>,
    new: BTreeMap<String, String>,
) {
    if old.as_ref() != Some(&new) {
        changes.push(Change { name: name.to_owned(), own_file, old, new });
    }
}

fn suite_facts(lock: &SuiteLock) -> BTreeMap<String, String> {
    let mut facts = all_facts(&lock.facts, &lock.sha256, lock.size);
    facts.insert("mirror".to_owned(), lock.mirror.clone());
    facts
}

fn input_facts(lock: &InputLock) -> BTreeMap<String, String> {
    let mut facts = all_facts(&lock.facts, &lock.sha256, lock.size);
    if let Some(media) = &lock.media {
        facts.extend(media::facts(media));
    }
    facts
}

fn all_facts(facts: &BTreeMap<String, String>, sha256: &str, size: u64) -> BTreeMap<String, String> {
    let mut facts = facts.clone();
    facts.insert("sha256".to_owned(), sha256.to_owned());
    facts.insert("size".to_owned(), format!("{size} bytes"));
    facts
}
