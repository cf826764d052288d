//! The drivers of a plan: the one that the image has, and those that take its place while the card is proved.

use super::{DriverPlan, DriverSource, Facts, Init, LinuxDriver, OtherDriver, RunFile, StepPlan};
use crate::answer::DriverUpdates;
use crate::diagnostic::{Kind, Problem, Problems};
use crate::driver::gate::{self, Asked, Decided};
use crate::driver::{DriverFacts, Version};
use crate::lock::Lock;
use crate::recipe::{DriverAsk, DriverInstall, OtherDriverAsk, Recipe, Resolved, Spot};
use crate::windows::{DriverIn, FileFound};

/// A module is built on a machine without KVM in 20 minutes.
const LINUX_DRIVER_LIMIT: u64 = 3600;

/// The driver's layer of a Linux guest.
pub(super) fn linux_layer(
    recipe: &Recipe,
    lock: &Lock,
    facts: &Facts,
    version: Option<Version>,
) -> Result<Option<StepPlan>, Problem> {
    let ask = &recipe.driver;
    let nothing = ask.package.is_none() && ask.packages.is_empty();
    if recipe.guest.windows.is_some() || nothing || ask.install == DriverInstall::None {
        return Ok(None);
    }
    if recipe.guest.init == Init::Lean {
        let what = "a lean guest has no package manager to build a driver's module with";
        return Err(ask.spots.package.problem(Kind::Conflict, what).fix("set guest.init = \"systemd\""));
    }
    let run = ask.package.as_ref().map(|name| run_file(recipe, lock, facts, name, &ask.spots.package));
    let mut packages = ask.packages.clone();
    packages.sort();
    packages.dedup();
    Ok(Some(StepPlan::Driver(LinuxDriver {
        packages,
        run: run.transpose()?,
        version: version.as_ref().map(ToString::to_string),
        limit: LINUX_DRIVER_LIMIT,
    })))
}

fn run_file(
    recipe: &Recipe,
    lock: &Lock,
    facts: &Facts,
    name: &str,
    spot: &Spot,
) -> Result<RunFile, Problem> {
    let FileFound { path, sha256 } = found(recipe, lock, facts, name, spot)?;
    let bytes = lock.input(&recipe.name, name, &recipe.inputs[name])?.size;
    Ok(RunFile { path, sha256, bytes })
}

fn found(recipe: &Recipe, lock: &Lock, facts: &Facts, name: &str, spot: &Spot) -> Result<FileFound, Problem> {
    let locked = lock.input(&recipe.name, name, &recipe.inputs[name])?;
    let unseen = || spot.problem(Kind::File, format!("input '{name}' was not looked at"));
    let path = facts.inputs.get(name).cloned().ok_or_else(unseen)?;
    Ok(FileFound { path, sha256: locked.sha256.clone() })
}

pub(super) fn plan(recipe: &Recipe, decided: &Decided, others: Vec<OtherDriver>) -> DriverPlan {
    let windows = recipe.guest.windows.as_ref();
    DriverPlan {
        version: decided.version.as_ref().map(ToString::to_string),
        test_signed: recipe.driver.test_signed,
        keep: windows.is_some_and(|windows| windows.updates.driver == DriverUpdates::Ours),
        cards: decided.cards.iter().map(ToString::to_string).collect(),
        listed: decided.listed.clone(),
        others,
    }
}

/// The gate of the image's driver.
pub(super) fn decide(resolved: &Resolved, lock: &Lock, facts: &Facts) -> Result<Decided, Problems> {
    let recipe = &resolved.recipe;
    let package = match &recipe.driver.package {
        None => None,
        Some(name) => Some(locked(recipe, lock, name, &recipe.driver.spots.package)?),
    };
    gate(resolved, recipe, package, lock, facts)
}

/// The same gate for each package that `checks.lifecycle` names, whose notes are told once.
pub(super) fn others(
    resolved: &Resolved,
    lock: &Lock,
    facts: &Facts,
    notes: &mut Vec<String>,
) -> Result<Vec<OtherDriver>, Problems> {
    let mut others = Vec::new();
    for ask in &resolved.recipe.driver.others {
        let recipe = with_package(&resolved.recipe, ask);
        let package = locked(&recipe, lock, &ask.name, &ask.spot)?;
        let decided = gate(resolved, &recipe, Some(package), lock, facts)?;
        let Some(version) = package.version else {
            let what = format!("the package '{}' does not say which version it is", ask.name);
            let fix = "name a package of NVIDIA's: what runs afterwards must be known";
            return Err(ask.spot.problem(Kind::Conflict, what).fix(fix).into());
        };
        for note in decided.notes {
            let note = format!("{}: {note}", ask.name);
            if !notes.contains(&note) {
                notes.push(note);
            }
        }
        others.push(OtherDriver {
            name: ask.name.clone(),
            version,
            source: source(&recipe, lock, facts, ask, version)?,
        });
    }
    Ok(others)
}

/// The recipe as if that package were its driver.
fn with_package(recipe: &Recipe, other: &OtherDriverAsk) -> Recipe {
    let mut recipe = recipe.clone();
    let ask = &mut recipe.driver;
    let mut spots = ask.spots.clone();
    spots.package = other.spot.clone();
    let install = if ask.install == DriverInstall::None { DriverInstall::Staged } else { ask.install };
    let package = Some(other.name.clone());
    *ask = DriverAsk { package, packages: Vec::new(), version: None, install, spots, ..ask.clone() };
    recipe
}

fn source(
    recipe: &Recipe,
    lock: &Lock,
    facts: &Facts,
    ask: &OtherDriverAsk,
    version: Version,
) -> Result<DriverSource, Problem> {
    if recipe.guest.windows.is_none() {
        return Ok(DriverSource::Linux(LinuxDriver {
            packages: Vec::new(),
            run: Some(run_file(recipe, lock, facts, &ask.name, &ask.spot)?),
            version: Some(version.to_string()),
            limit: LINUX_DRIVER_LIMIT,
        }));
    }
    Ok(DriverSource::Windows(DriverIn {
        package: found(recipe, lock, facts, &ask.name, &ask.spot)?,
        version: Some(version),
        install: recipe.driver.install,
        components: recipe.driver.components.clone(),
    }))
}

/// What the lock says of a package.
fn locked<'a>(recipe: &Recipe, lock: &'a Lock, name: &str, spot: &Spot) -> Result<&'a DriverFacts, Problem> {
    let locked = lock.input(&recipe.name, name, &recipe.inputs[name])?;
    locked.driver.as_ref().ok_or_else(|| {
        let what = "the lock does not say what this package holds";
        spot.problem(Kind::NotLocked, what).fix(format!("run no43 lock --update {name}"))
    })
}

fn gate(
    resolved: &Resolved,
    recipe: &Recipe,
    package: Option<&DriverFacts>,
    lock: &Lock,
    facts: &Facts,
) -> Result<Decided, Problems> {
    let edition = recipe.guest.windows.as_ref().map(|windows| windows.edition.as_str());
    let build = edition.and_then(|edition| lock.media(resolved)?.image(edition)?.build());
    gate::decide(&Asked { recipe, package, build, host: facts.host.as_ref() })
}
