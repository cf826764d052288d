//! Reports of a run, all made from its events: terminal, `report.json`, `junit.xml`, `report.html`.

mod anonymise;
mod html;
mod junit;
mod model;
pub mod terminal;

pub use anonymise::{HandIn, Names, anonymise, scrub};
pub use model::{ControlModel, Model, PhaseModel, SectionModel};

use crate::evidence::{read::Run, write_atomic};
use anyhow::{Context as _, Result};
use std::path::{Path, PathBuf};

/// The report files of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// Everything as JSON.
    pub json: PathBuf,
    /// For test systems.
    pub junit: PathBuf,
    /// For people: one file, pictures inside.
    pub html: PathBuf,
}

/// Reads a run's folder and writes its three report files into it.
///
/// # Errors
/// When the folder is no run's, or cannot be written to.
pub fn write(run_folder: &Path) -> Result<Files> {
    let run = Run::open(run_folder)?;
    let model = Model::of(&run);
    let files = Files {
        json: run_folder.join("report.json"),
        junit: run_folder.join("junit.xml"),
        html: run_folder.join("report.html"),
    };
    let mut json = serde_json::to_vec_pretty(&model).context("failed to write the report as JSON")?;
    json.push(b'\n');
    save(&files.json, &json)?;
    save(&files.junit, junit::render(&model, run_folder)?.as_bytes())?;
    save(&files.html, html::render(&model, run_folder)?.as_bytes())?;
    Ok(files)
}

/// The terminal view of a finished or broken run, as `no43 report RUN` prints it.
///
/// # Errors
/// When the folder is no run's.
pub fn terminal(run_folder: &Path, style: terminal::Style) -> Result<String> {
    let run = Run::open(run_folder)?;
    let mut out = Vec::new();
    terminal::replay(&run, style, &mut out);
    Ok(String::from_utf8_lossy(&out).into_owned())
}

fn save(path: &Path, bytes: &[u8]) -> Result<()> {
    write_atomic(path, bytes).with_context(|| format!("failed to write {}", path.display()))
}

#[cfg(test)]
mod tests;
