//! What is written down about each running machine, and what a later command makes of it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use no43_builder::plan::ForwardPlan;
use no43_host::{ProcessRef, Roots, StateDir};
use no43_machine::RunDirs;
use serde::{Deserialize, Serialize};

use crate::instance::Instances;

const NOTE: &str = "run.json";

/// A supervisor writes down what it does milliseconds after it has made its directory.
const FILLED_LIMIT: Duration = Duration::from_secs(60);

/// How far a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Before QEMU.
    Starting,
    /// The guest runs.
    Running,
    /// The guest was asked to shut down.
    Stopping,
    /// QEMU paused it: the disk is full.
    Paused,
    /// The machine is gone, the cards are on their way back.
    Ending,
}

impl Stage {
    /// As `ps` shows it.
    pub fn word(self) -> &'static str {
        match self {
            Stage::Starting => "starting",
            Stage::Running => "running",
            Stage::Stopping => "stopping",
            Stage::Paused => "paused",
            Stage::Ending => "ending",
        }
    }
}

/// What `run.json` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunNote {
    /// The instance's name.
    pub name: String,
    /// The folder of all instances.
    pub instances: PathBuf,
    /// Who watches it.
    pub supervisor: ProcessRef,
    /// Its lease, once there is one.
    pub lease: Option<String>,
    /// Seconds since 1970.
    pub began: u64,
    /// How far it is.
    pub stage: Stage,
    /// Its disk goes when it ends.
    pub ephemeral: bool,
    /// The command that it was started for and without which it is of no use: a job's.
    pub owner: Option<ProcessRef>,
    /// Name and address of each card.
    pub cards: Vec<String>,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Guest memory.
    pub memory_mib: u64,
    /// Ports of this host's loopback that lead into it.
    pub forwards: Vec<ForwardPlan>,
    /// Programs beside QEMU, which end with it.
    #[serde(default)]
    pub companions: Vec<ProcessRef>,
}

/// Whether somebody watches a machine that was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Left {
    /// Its supervisor runs.
    Watched,
    /// The guest runs and its supervisor is gone: the next command that changes something takes it over.
    Alone,
    /// Both are gone: the next command that changes something puts things right.
    Dead,
}

/// One line of `ps`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Row {
    /// What was written down.
    pub note: RunNote,
    /// QEMU's process.
    pub pid: Option<u32>,
    /// Whether somebody watches it.
    pub left: Left,
}

/// What was done about a machine without a supervisor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adopted {
    /// The machine's name.
    pub name: String,
    /// In words.
    pub what: String,
}

/// Where running machines are.
#[derive(Debug, Clone)]
pub struct Runs {
    dir: PathBuf,
    roots: Roots,
}

impl Runs {
    /// Under a state directory, whose path is short: sockets are in it.
    pub fn under(state: &StateDir, roots: &Roots) -> Self {
        Self { dir: state.own().join("m"), roots: roots.clone() }
    }

    /// The files of one machine.
    pub fn dirs(&self, name: &str) -> RunDirs {
        RunDirs::at(self.dir.join(name))
    }

    pub(super) fn control(&self, name: &str) -> PathBuf {
        self.dir.join(name).join("control.sock")
    }

    /// What was written down about `name`.
    pub fn note(&self, name: &str) -> Option<RunNote> {
        serde_json::from_slice(&fs::read(self.dir.join(name).join(NOTE)).ok()?).ok()
    }

    /// Written aside and renamed. Not synced: after a power cut nothing runs.
    pub(crate) fn write_note(&self, note: &RunNote) -> io::Result<()> {
        let dir = self.dir.join(&note.name);
        let aside = dir.join("run.json.new");
        fs::write(&aside, serde_json::to_vec_pretty(note)?)?;
        fs::rename(aside, dir.join(NOTE))
    }

    /// Forgets a run that is over.
    pub(crate) fn forget(&self, name: &str) {
        let dir = self.dir.join(name);
        super::secrets::destroy(&dir.join(super::secrets::FILE));
        no43_machine::tpm::end_left(&super::spec::tpm_socket(&RunDirs::at(&dir)));
        let _ = fs::remove_file(dir.join(NOTE));
        let _ = fs::remove_dir_all(dir);
    }

    /// Every machine that was started and not yet forgotten. Changes nothing.
    pub fn list(&self) -> Vec<Row> {
        let names = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let mut names: Vec<String> = names.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        names.iter().filter_map(|name| self.row(name)).collect()
    }

    /// One machine; `None` if nothing is written down about it.
    pub fn row(&self, name: &str) -> Option<Row> {
        let note = self.note(name)?;
        let watched = note.supervisor.is_alive(&self.roots);
        let record = self.dirs(name).running_record().ok().filter(no43_machine::RunRecord::is_running);
        let left = match (&record, watched) {
            (_, true) => Left::Watched,
            (Some(_), false) => Left::Alone,
            (None, false) => Left::Dead,
        };
        Some(Row { note, pid: record.map(|record| record.pid), left })
    }

    /// Takes over every machine whose supervisor is gone, and forgets those that are gone themselves. For commands that
    /// change something, before [`no43_host::recovery::recover`].
    pub fn tend(&self, no43: &Path, instances: Option<&Instances>) -> Vec<Adopted> {
        let mut all = Vec::new();
        for row in self.list() {
            let name = row.note.name.clone();
            let what = match row.left {
                Left::Watched => continue,
                Left::Alone => match self.adopt(no43, &name) {
                    Ok(()) => "its no43 was gone and the guest ran on: taken over".to_owned(),
                    Err(why) => {
                        format!("its no43 is gone, the guest runs on, and it could not be taken over: {why}")
                    }
                },
                Left::Dead => match self.bury(&row.note) {
                    Some(what) => what,
                    None => continue,
                },
            };
            all.push(Adopted { name, what });
        }
        for name in instances.map(|instances| self.sweep(instances)).unwrap_or_default() {
            all.push(Adopted {
                name,
                what: "it was never started: its throw-away disk is removed".to_owned(),
            });
        }
        all
    }

    fn machine_runs(&self, name: &str) -> bool {
        self.dirs(name).running_record().is_ok_and(|record| record.is_running())
    }

    /// Throw-away instances whose maker died before they ran.
    fn sweep(&self, instances: &Instances) -> Vec<String> {
        instances.sweep();
        self.sweep_dirs(instances);
        let (all, _) = instances.list().unwrap_or_default();
        let dead = |maker: Option<ProcessRef>| maker.is_none_or(|maker| !maker.is_alive(&self.roots));
        let lost = all
            .into_iter()
            .filter(|one| one.record.ephemeral && dead(one.record.maker) && self.note(one.name()).is_none());
        let lost = lost.filter(|one| !self.machine_runs(one.name()));
        lost.filter_map(|one| {
            let store = no43_builder::store::Store::open(Some(&one.system.store)).ok()?;
            instances.remove(&one, &store).ok()?;
            Some(one.name().to_owned())
        })
        .collect()
    }

    /// Run directories of supervisors that were killed before they wrote anything down. One whose instance somebody holds,
    /// or whose maker lives, is being filled at this moment.
    fn sweep_dirs(&self, instances: &Instances) {
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let Ok(name) = entry.file_name().into_string() else { continue };
            if self.note(&name).is_some() || self.machine_runs(&name) {
                continue;
            }
            let instance = instances.get(&name).ok().flatten();
            let age =
                entry.metadata().and_then(|facts| facts.modified()).ok().and_then(|then| then.elapsed().ok());
            if instance.is_none() && age.is_none_or(|age| age < FILLED_LIMIT) {
                continue; // an instance of another folder may be about to start there
            }
            let made_now = |one: &crate::instance::Instance| {
                one.record.maker.is_some_and(|maker| maker.is_alive(&self.roots))
            };
            let held = instance.as_ref().map(crate::instance::Instance::hold);
            if instance.as_ref().is_some_and(made_now)
                || matches!(held, Some(Err(_)))
                || self.note(&name).is_some()
            {
                continue;
            }
            self.forget(&name);
        }
    }

    /// A supervisor takes it over.
    pub(crate) fn adopt(&self, no43: &Path, name: &str) -> Result<(), String> {
        let request = super::Request::Adopt { name: name.to_owned() };
        super::Launch { no43, runs: self }.launch(&request, name).map(drop).map_err(|refusal| refusal.cause)
    }

    /// The machine is gone and so is its supervisor: what it left is removed. Cards are the recovery's.
    fn bury(&self, note: &RunNote) -> Option<String> {
        let instances = Instances::at(&note.instances);
        let instance = instances.get(&note.name).ok().flatten();
        // a supervisor that starts at this moment holds the instance
        let held = instance.as_ref().map(crate::instance::Instance::hold);
        if matches!(held, Some(Err(_))) || self.row(&note.name)?.left != Left::Dead {
            return None;
        }
        super::companions::bury(&note.companions);
        if let Some(instance) = instance.filter(|_| note.ephemeral) {
            drop(held);
            let store = no43_builder::store::Store::open(Some(&instance.system.store)).ok()?;
            instances.remove(&instance, &store).ok()?;
            self.forget(&note.name);
            return Some("it and its no43 had died: its throw-away disk is removed".to_owned());
        }
        self.forget(&note.name);
        Some("it and its no43 had died: its disk is as the guest left it".to_owned())
    }
}

/// Starts this program again, in the background, with `request` on its standard input.
pub(super) fn spawn(no43: &Path, errors: fs::File) -> io::Result<std::process::Child> {
    Command::new(no43).arg("supervise").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(errors).spawn()
}
