//! `[[step]]` of a Windows guest: one set-up plan each, which the guest program carries out in a start of the layer below.

use no43_guest::setup::{Action, Codes, SetupPlan, Task};
use serde_json::json;

use super::extra::WindowsSetup;
use super::plan::FileFound;
use crate::diagnostic::{Kind, Problem};
use crate::key::Key;
use crate::plan::{FileIn, FileSource, LayerPlan, LayerWhat, StepPlan};
use crate::recipe::{Recipe, Step};

/// Where files of a step lie below the plan's folder on the set-up disk.
const FILES: &str = "files";
/// For copying; a USB stick of QEMU's gives some tens of MB/s.
const COPY_LIMIT: u64 = 3600;

/// The layer of one step. `what` is what the step would be in any guest, `inputs` what of it counts for the key.
pub(crate) fn step_layer(
    step: &Step,
    what: &StepPlan,
    inputs: &serde_json::Value,
    parent: &LayerPlan,
    recipe: &Recipe,
    guest_program: &str,
) -> Result<LayerPlan, Problem> {
    let (actions, files) = work(step, what)?;
    let id = format!("{}/{}", recipe.guest.os, step.name);
    let setup = SetupPlan { seal: false, ..SetupPlan::new(id, actions) };
    // what the guest program would refuse is refused before anything starts
    SetupPlan::parse(setup.to_json().as_bytes()).map_err(|error| {
        Problem::new(Kind::BadValue, "step", format!("step '{}': {error}", step.name))
            .fix("write paths as Windows does, such as C:\\Games")
    })?;
    let inputs = json!({"kind": "windows-step", "step": inputs, "guest-program": guest_program});
    let setup = WindowsSetup {
        title: in_words(what),
        setup,
        files,
        driver: None,
        guest_program: guest_program.to_owned(),
    };
    Ok(LayerPlan {
        name: step.name.clone(),
        key: Key::of(Some(&parent.key), &inputs),
        parent: Some(parent.key.clone()),
        what: LayerWhat::WindowsSetup(setup),
        inputs,
    })
}

type Files = Vec<(String, FileFound)>;

fn work(step: &Step, what: &StepPlan) -> Result<(Vec<Action>, Files), Problem> {
    let action = |task, limit| Action { limit_seconds: limit, ..Action::new(step.name.clone(), task) };
    let restart = |only_if_needed| Action::new("restart", Task::Restart { only_if_needed });
    match what {
        StepPlan::Run { argv, limit } => {
            let task = Task::Command { run: argv.clone(), codes: Codes::default() };
            Ok((vec![action(task, *limit), restart(true)], Vec::new()))
        }
        StepPlan::Reboot { .. } => Ok((vec![restart(false)], Vec::new())),
        StepPlan::Copy { files } => {
            let mut actions = Vec::new();
            let mut sources = Vec::new();
            for (n, file) in files.iter().enumerate() {
                let from = format!("{FILES}/{n}");
                let to = file.to.replace('/', "\\");
                sources.push((from.clone(), source(step, file)?));
                let task = Task::Copy { from, to: to.clone() };
                actions.push(Action { limit_seconds: COPY_LIMIT, ..Action::new(format!("copy {to}"), task) });
            }
            Ok((actions, sources))
        }
        StepPlan::Install { .. } => {
            Err(refused(step, "install", "copy the installer in, and run it silently"))
        }
        StepPlan::WaitFor { .. } => Err(refused(step, "wait-for", "use run with a program that waits")),
        StepPlan::Driver(_) => Err(refused(step, "driver", "name the package in [driver]")),
    }
}

fn source(step: &Step, file: &FileIn) -> Result<FileFound, Problem> {
    match &file.from {
        FileSource::Path(path) => Ok(FileFound { path: path.clone(), sha256: file.sha256.clone() }),
        FileSource::Text(_) | FileSource::Link(_) => {
            let what =
                format!("step '{}': {} is a symbolic link, and the set-up disk has none", step.name, file.to);
            Err(Problem::new(Kind::NotSupported, "step.copy", what).fix("copy what it leads to"))
        }
    }
}

fn refused(step: &Step, key: &str, fix: &str) -> Problem {
    let what = format!("this version has no '{key}' in Windows guests (step '{}')", step.name);
    Problem::new(Kind::NotSupported, "step", what).fix(fix.to_owned())
}

fn in_words(what: &StepPlan) -> String {
    match what {
        StepPlan::Run { argv, .. } => format!("runs {}", argv.join(" ")),
        StepPlan::Copy { files } => format!("copies {} files in", files.len()),
        _ => "restarts".to_owned(),
    }
}
