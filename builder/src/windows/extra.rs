//! Layers on top of an installed Windows that the guest program makes by a set-up plan: remote play, and the card's driver.
//!
//! The order is fixed: remote play below, the driver above it, so that another driver is one new layer.

use std::collections::BTreeMap;
use std::path::PathBuf;

use no43_guest::setup::{Action, Codes, RestartWhen, SetupPlan, Task};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::plan::FileFound;
use crate::apps;
use crate::diagnostic::Problem;
use crate::driver::{DriverFacts, Version, updates};
use crate::key::Key;
use crate::lock::Lock;
use crate::plan::{Facts, Firmware, LayerPlan, LayerWhat};
use crate::recipe::{DriverInstall, Recipe};

/// Where a driver package's parts lie below the plan's folder on the set-up disk.
pub(super) const DRIVER: &str = "driver";
/// Where installers lie.
const APPS: &str = "apps";

/// A layer that the guest program makes in a start of the layer below.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowsSetup {
    /// For people, such as `driver 466.11, staged`.
    pub title: String,
    /// What the guest program does.
    pub setup: SetupPlan,
    /// Files of the set-up disk, by their path below the plan's folder.
    pub files: Vec<(String, FileFound)>,
    /// A driver package, of which the needed part goes onto the set-up disk.
    pub driver: Option<DriverIn>,
    /// SHA-256 of the guest program for Windows.
    pub guest_program: String,
}

/// A driver that goes in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriverIn {
    /// The package.
    pub package: FileFound,
    /// NVIDIA's version.
    pub version: Option<Version>,
    /// Staged, or by its own installer with the card.
    pub install: DriverInstall,
    /// Beside the display driver.
    pub components: Vec<String>,
}

/// NVIDIA's installer: silent, no restart of its own, nothing of an earlier driver kept. As public scripts call it (ZenitH-AT/nvidia-update,
/// NVCleanstall's documentation); not run here.
const SETUP_ARGUMENTS: &[&str] = &["-s", "-noreboot", "-noeula", "-nofinish", "-clean"];
/// The component that every installation has.
const DISPLAY: &str = "Display.Driver";
/// 1 is what administrators report for 'done, restart needed'; NVIDIA documents no list.
const RESTART_CODES: &[i64] = &[1, 3010, 1641];
/// The longest known installation took five minutes on a disk without cache.
pub(super) const DRIVER_LIMIT: u64 = 2400;

/// Layers that the recipe asks for on top of `base`.
pub(crate) fn layers(
    recipe: &Recipe,
    lock: &Lock,
    facts: &Facts,
    base: &LayerPlan,
) -> Result<Vec<LayerPlan>, Problem> {
    let mut parent = base.key.clone();
    let mut layers = Vec::new();
    let asked = [remote(recipe, lock, facts)?, driver(recipe, lock, facts)?];
    for (name, setup) in asked.into_iter().flatten() {
        let inputs = inputs(&setup, recipe);
        let key = Key::of(Some(&parent), &inputs);
        let below = std::mem::replace(&mut parent, key.clone());
        let what = LayerWhat::WindowsSetup(setup);
        layers.push(LayerPlan { name: name.to_owned(), key, parent: Some(below), what, inputs });
    }
    Ok(layers)
}

fn found(
    recipe: &Recipe,
    lock: &Lock,
    paths: &BTreeMap<String, PathBuf>,
    name: &str,
) -> Result<FileFound, Problem> {
    let input = &recipe.inputs[name];
    let sha256 = lock.input(&recipe.name, name, input)?.sha256.clone();
    let path = paths.get(name).cloned();
    let path = path.ok_or_else(|| {
        input.spot.problem(crate::diagnostic::Kind::File, format!("input '{name}' was not looked at"))
    })?;
    Ok(FileFound { path, sha256 })
}

fn remote(
    recipe: &Recipe,
    lock: &Lock,
    facts: &Facts,
) -> Result<Option<(&'static str, WindowsSetup)>, Problem> {
    let (mut actions, mut files, mut titles) = (Vec::new(), Vec::new(), Vec::new());
    if recipe.remote.rdp_gpu {
        actions.extend(apps::rdp_gpu());
    }
    for app in recipe.remote.apps.iter().filter_map(|name| apps::named(name)) {
        // Remote Desktop alone is Windows' own, switched on by the answer file: no start is made for it.
        let Some(file) = app.file else { continue };
        // A team's key is an instance's: no image is registered, and none has the key.
        let team = app.wants_sign_in && recipe.remote.parsec_team.is_some();
        if team {
            actions.extend(app.kept(APPS));
        } else {
            actions.extend(app.actions(APPS));
        }
        files.push((format!("{APPS}/{file}"), found(recipe, lock, &facts.inputs, app.name)?));
        titles.push(if team { "Parsec's installer" } else { app.title });
    }
    if actions.is_empty() {
        return Ok(None);
    }
    if titles.is_empty() {
        titles.push("Remote Desktop's policies");
    }
    let restart = Task::Restart { only_if_needed: true };
    actions.push(Action::new("restart", restart));
    let setup = SetupPlan { seal: false, ..SetupPlan::new(format!("{}/remote", recipe.guest.os), actions) };
    let guest_program = facts.guest_program.clone();
    Ok(Some((
        "remote play",
        WindowsSetup { title: titles.join(", "), setup, files, driver: None, guest_program },
    )))
}

fn driver(
    recipe: &Recipe,
    lock: &Lock,
    facts: &Facts,
) -> Result<Option<(&'static str, WindowsSetup)>, Problem> {
    let ask = &recipe.driver;
    let Some(name) = ask.package.as_ref().filter(|_| ask.install != DriverInstall::None) else {
        return Ok(None);
    };
    let package = found(recipe, lock, &facts.inputs, name)?;
    let locked = lock.input(&recipe.name, name, &recipe.inputs[name])?.driver.as_ref();
    let version = locked.and_then(|locked| locked.version);
    let shown = version.map_or_else(|| name.clone(), |version| version.to_string());
    // Whoever made the layer below may have told Windows to refuse other drivers.
    let mut actions = vec![updates::lift()];
    if ask.test_signed {
        let run = ["bcdedit.exe", "/set", "testsigning", "on"].map(str::to_owned).to_vec();
        actions.push(Action::new("test signing", Task::Command { run, codes: Codes::default() }));
        actions.push(Action::new("restart", Task::Restart { only_if_needed: false }));
    }
    let with_card = ask.install == DriverInstall::WithCard;
    match with_card {
        true => actions.push(installer(&shown, &ask.components)),
        false => actions.extend(staged(&shown, locked)),
    }
    actions.push(Action::new("restart", Task::Restart { only_if_needed: true }));
    let driver = DriverIn { package, version, install: ask.install, components: ask.components.clone() };
    let title = format!("driver {shown}, {}", if with_card { "with the card" } else { "staged" });
    let setup =
        SetupPlan { seal: false, ..SetupPlan::new(format!("{}/driver {shown}", recipe.guest.os), actions) };
    let guest_program = facts.guest_program.clone();
    Ok(Some((
        "driver",
        WindowsSetup { title, setup, files: Vec::new(), driver: Some(driver), guest_program },
    )))
}

/// One action for each folder with display INF files.
fn staged(shown: &str, facts: Option<&DriverFacts>) -> Vec<Action> {
    let infs = facts.into_iter().flat_map(|facts| &facts.models).map(|models| models.inf.as_str());
    let mut folders: Vec<&str> =
        infs.map(|inf| inf.rsplit_once('/').map_or("", |(folder, _)| folder)).collect();
    folders.sort_unstable();
    folders.dedup();
    let action = |folder: &str| {
        let inf = if folder.is_empty() { DRIVER.to_owned() } else { format!("{DRIVER}/{folder}") };
        Action {
            limit_seconds: DRIVER_LIMIT,
            ..Action::new(format!("driver {shown} {folder}").trim(), Task::Driver { inf, install: false })
        }
    };
    folders.into_iter().map(action).collect()
}

pub(super) fn installer(shown: &str, components: &[String]) -> Action {
    let words = SETUP_ARGUMENTS.iter().chain([&DISPLAY]).map(|word| (*word).to_owned());
    let task = Task::Exe {
        program: format!("{DRIVER}/setup.exe"),
        arguments: words.chain(components.iter().cloned()).collect(),
        codes: Codes { done: vec![0], restart: RESTART_CODES.to_vec(), unchanged: Vec::new() },
    };
    Action {
        limit_seconds: DRIVER_LIMIT,
        restart: RestartWhen::Now,
        ..Action::new(format!("driver {shown}"), task)
    }
}

/// What goes into the key, field by field. Which card a with-card installation sees is left out, as everywhere.
fn inputs(setup: &WindowsSetup, recipe: &Recipe) -> Value {
    let plan: Value = serde_json::from_str(&setup.setup.to_json()).unwrap_or_default();
    let firmware: Firmware = recipe.machine.firmware;
    json!({
        "kind": "windows-setup",
        "setup": plan,
        "files": setup.files.iter().map(|(to, file)| json!({"to": to, "sha256": file.sha256})).collect::<Vec<_>>(),
        "driver": setup.driver.as_ref().map(|driver| json!({
            "sha256": driver.package.sha256,
            "install": driver.install,
            "components": driver.components,
        })),
        "firmware": firmware,
        "guest-program": setup.guest_program,
    })
}
