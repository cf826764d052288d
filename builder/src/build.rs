//! Build: from a plan to an image. Layers that the store has are used; the first one that it lacks, and all above, are made.
//!
//! An unchanged build reads one small manifest per layer and starts nothing.

pub(crate) mod child;
mod why;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};
use std::{io, process};

use no43_machine::Accel;
use no43_machine::spec::PassedCard;

use crate::image::{self, BootKind, Image, Manifest, Provenance};
use crate::install::InstallError;
use crate::key::Key;
use crate::plan::{Boot, DebianBase, LayerPlan, LayerWhat, Plan, StepPlan};
use crate::store::{Staging, Store, StoreError, hash_file};
use crate::windows::{self, Sealed};
use crate::{debian, step};

/// What a build needs beside the plan and the store.
#[derive(Clone, Debug)]
pub struct Options {
    /// The `no43-guest` for the guest; it must be the one that the plan names.
    pub guest_program: PathBuf,
    /// QEMU; looked up in `PATH` if it has no slash.
    pub qemu: PathBuf,
    /// What runs the machine of a step.
    pub accel: Accel,
    /// Multiplies the deadlines of an installation; 1 is for KVM and an SSD.
    pub patience: f64,
    /// An installation that fails leaves its machine running, until the next build.
    pub keep_on_failure: bool,
    /// Who lends cards to a layer that needs them; without it such a layer cannot be built.
    pub lender: Option<Arc<dyn Lender>>,
    /// Set to true, the build stops at the next moment and publishes nothing more.
    pub cancel: Option<Arc<AtomicBool>>,
}

/// Lends the cards of a plan to a build: a driver's own installer wants to see its card.
pub trait Lender: std::fmt::Debug + Send + Sync {
    /// Leases and binds every card of the plan.
    ///
    /// # Errors
    /// A sentence: which card is not there or in use.
    fn lend(&self, plan: &Plan) -> Result<Box<dyn Lent>, String>;
}

/// Cards that are lent until this is dropped.
pub trait Lent {
    /// As the machine gets them.
    fn cards(&self) -> Vec<PassedCard>;
}

/// Told what happens, as it happens. Every method may stay as it is.
pub trait Progress {
    /// Something a person should know: what a dead build left behind, who else is building.
    fn note(&mut self, _text: &str) {}
    /// The store has this layer.
    fn layer_reused(&mut self, _layer: &LayerPlan) {}
    /// This layer is being made, and why.
    fn layer_started(&mut self, _layer: &LayerPlan, _why: &str) {}
    /// What is being done now.
    fn phase(&mut self, _text: &str) {}
    /// The layer is published.
    fn layer_done(&mut self, _layer: &LayerPlan, _image: &Image, _took: Duration) {}
}

/// Tells nobody.
impl Progress for () {}

/// The image of a plan.
#[derive(Clone, Debug)]
pub struct BuiltImage {
    /// The uppermost layer.
    pub image: Image,
    /// From the base upward.
    pub layers: Vec<BuiltLayer>,
}

/// What happened to one layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuiltLayer {
    /// Its name.
    pub name: String,
    /// Its key.
    pub key: Key,
    /// How long it took; `None` if it was there.
    pub took: Option<Duration>,
}

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A program that we need is not installed.
    #[error("{name} is not installed: sudo apt install {package}")]
    MissingTool {
        /// The program.
        name: &'static str,
        /// The Debian package that has it.
        package: &'static str,
    },
    /// A user has no ids for the tree's other users.
    #[error(
        "user {user} has no subordinate ids, which a build as an ordinary user needs: \
         sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}"
    )]
    NoSubordinateIds {
        /// The login name.
        user: String,
    },
    /// A program could not be started or waited for.
    #[error("failed to run {program}: {source}")]
    Spawn {
        /// The program.
        program: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A program failed.
    #[error("{program} failed ({ending}):{tail}", tail = indented(tail))]
    Failed {
        /// The program.
        program: &'static str,
        /// Exit code or signal.
        ending: String,
        /// The last lines that it printed.
        tail: Vec<String>,
    },
    /// The publisher has changed a package index since the lock was written.
    #[error(
        "the package index of {suite} has changed since it was locked (locked {locked}, now {now}): \
         run `no43 lock --update {suite}`, then build again",
        locked = short(locked), now = short(now)
    )]
    IndexChanged {
        /// Such as `bookworm-updates`.
        suite: String,
        /// What the lock says.
        locked: String,
        /// What the mirror has.
        now: String,
    },
    /// The recipe asks for something that turned out not to exist; the text begins with the recipe's key.
    #[error("{0}")]
    Recipe(String),
    /// A file that goes into the image cannot be read or has changed.
    #[error("failed to collect the files for the image: {0}")]
    Inputs(#[source] io::Error),
    /// Another `no43-guest` than the plan's.
    #[error(
        "{path} is not the no43-guest that the plan names (it has {now}, the plan {planned}): plan again",
        path = path.display(), now = short(now), planned = short(planned)
    )]
    OtherGuestProgram {
        /// What was given.
        path: PathBuf,
        /// Its SHA-256.
        now: String,
        /// The plan's.
        planned: String,
    },
    /// A step failed in the guest.
    #[error("step '{step}' failed: {source}")]
    Step {
        /// The step's name.
        step: String,
        /// How.
        source: Box<step::StepError>,
    },
    /// An unattended installation failed.
    #[error("{source}")]
    Install {
        /// Phase, cause and what was seen.
        source: Box<InstallError>,
    },
    /// The caller asked to stop.
    #[error("stopped; finished layers stay in the store, the next build goes on from there")]
    Cancelled,
}

impl BuildError {
    pub(crate) fn spawn(program: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Spawn { program, source }
    }

    pub(crate) fn failed(
        program: &'static str,
        status: process::ExitStatus,
        tail: impl IntoIterator<Item = String>,
    ) -> Self {
        Self::Failed { program, ending: child::ending(status), tail: tail.into_iter().collect() }
    }
}

/// What the makers of layers share.
pub(crate) struct Context<'a> {
    pub(crate) store: &'a Store,
    pub(crate) options: &'a Options,
    pub(crate) progress: &'a mut dyn Progress,
    /// Everything that the tools print.
    pub(crate) log: File,
    /// Bytes that this layer needs on its way.
    needed: u64,
}

impl Context<'_> {
    /// True once the caller wants the build to stop.
    pub(crate) fn cancelled(&self) -> impl Fn() -> bool + use<> {
        let cancel = self.options.cancel.clone();
        move || cancel.as_ref().is_some_and(|cancel| cancel.load(Ordering::Relaxed))
    }

    /// A full disk shows itself in many tools' words; this turns them into the one error that says what to do.
    pub(crate) fn explain(&self, error: BuildError) -> BuildError {
        match error {
            BuildError::Failed { ref tail, .. } if tail.iter().any(|line| is_full(line)) => self.full(),
            BuildError::Store(StoreError::Full { .. }) => self.full(),
            other => other,
        }
    }

    /// A line for the layer's log.
    pub(crate) fn log_line(&mut self, text: &str) {
        use std::io::Write as _;
        let _ = writeln!(self.log, "{text}");
    }

    pub(crate) fn guest_program(&self, base: &DebianBase) -> Result<PathBuf, BuildError> {
        let path = &self.options.guest_program;
        let (_, now) = hash_file(path).map_err(StoreError::io("read", path))?;
        if now == base.guest_program {
            return Ok(path.clone());
        }
        Err(BuildError::OtherGuestProgram { path: path.clone(), now, planned: base.guest_program.clone() })
    }

    fn full(&self) -> BuildError {
        StoreError::Full {
            path: self.store.dir().to_owned(),
            free: self.store.free_bytes(),
            needed: self.needed,
        }
        .into()
    }
}

/// Builds what is missing and returns the image.
///
/// # Errors
/// Nothing of the failed layer is published then; the layers below stay.
pub fn build(
    plan: &Plan,
    store: &Store,
    options: &Options,
    progress: &mut dyn Progress,
) -> Result<BuiltImage, BuildError> {
    let top = plan.layers.last().expect("a plan has at least its base layer");
    let mut layers: Vec<BuiltLayer> = plan
        .layers
        .iter()
        .map(|layer| BuiltLayer { name: layer.name.clone(), key: layer.key.clone(), took: None })
        .collect();
    if let Some(image) = store.get(&top.key)? {
        plan.layers.iter().for_each(|layer| progress.layer_reused(layer));
        // Not worth failing for: a store that is read-only, or was built from another copy of the recipe.
        let _ = store.keep_for(&plan.recipe_file, &keys(plan), false);
        return Ok(BuiltImage { image, layers });
    }
    for dropped in store.sweep()? {
        progress.note(&dropped.to_string());
    }
    store.keep_for(&plan.recipe_file, &keys(plan), true)?;
    let mut below: Option<Image> = None;
    for (layer, built) in plan.layers.iter().zip(&mut layers) {
        let started = Instant::now();
        let (image, made) = match there(layer, store, progress)? {
            Some(image) => (image, false),
            None => make(plan, layer, below.as_ref(), store, options, progress)?,
        };
        if made {
            built.took = Some(started.elapsed());
            progress.layer_done(layer, &image, started.elapsed());
        } else {
            progress.layer_reused(layer);
        }
        below = Some(image);
    }
    store.keep_for(&plan.recipe_file, &keys(plan), false)?;
    Ok(BuiltImage { image: below.expect("a plan has at least its base layer"), layers })
}

/// Bytes that building the missing layers needs, roughly: the tree, the raw file system and the finished disk of a base
/// exist side by side for a moment. Zero if nothing is missing.
///
/// # Errors
/// When the store cannot be read.
pub fn needed_bytes(plan: &Plan, store: &Store) -> Result<u64, StoreError> {
    let mut sum = 0;
    for layer in &plan.layers {
        if store.get(&layer.key)?.is_none() {
            sum += needed(layer);
        }
    }
    Ok(sum)
}

/// From measured builds (see `ci/bench`), rounded up: a lean Debian with its kernel takes 1.8 GiB on the way.
fn needed(layer: &LayerPlan) -> u64 {
    const MIB: u64 = 1 << 20;
    match &layer.what {
        LayerWhat::Debian(base) => {
            let system = if base.boot == Boot::Disk { 2500 } else { 2000 };
            (system + 30 * base.packages.len() as u64) * MIB
        }
        // What the image says of itself, unpacked, beside page file and logs.
        LayerWhat::Windows(base) => base.image_bytes + 3000 * MIB,
        // A driver is unpacked, put onto the set-up disk, and copied into the guest's own store of drivers.
        LayerWhat::WindowsSetup(setup) => {
            if setup.driver.is_some() {
                8000 * MIB
            } else {
                2000 * MIB
            }
        }
        LayerWhat::Step(StepPlan::Install { packages, .. }) => (300 + 200 * packages.len() as u64) * MIB,
        LayerWhat::Step(StepPlan::Driver(_)) => 4000 * MIB,
        LayerWhat::Step(StepPlan::Copy { files }) => 300 * MIB + 2 * files.len() as u64 * MIB,
        LayerWhat::Step(_) => 500 * MIB,
    }
}

/// The layer, if the store has it. A damaged one counts as missing and is made again, which is said.
fn there(layer: &LayerPlan, store: &Store, progress: &mut dyn Progress) -> Result<Option<Image>, BuildError> {
    match store.get(&layer.key) {
        Err(StoreError::Damaged { key, what }) => {
            progress.note(&format!("image {} is damaged ({what}); it is made again", key.short()));
            Ok(None)
        }
        other => Ok(other?),
    }
}

/// Makes one layer; `false` beside it if another process made it while we waited.
fn make(
    plan: &Plan,
    layer: &LayerPlan,
    below: Option<&Image>,
    store: &Store,
    options: &Options,
    progress: &mut dyn Progress,
) -> Result<(Image, bool), BuildError> {
    let why = why::rebuilt(plan, layer, store);
    let cancelled = || options.cancel.as_ref().is_some_and(|cancel| cancel.load(Ordering::Relaxed));
    let mut waiting = |pid| {
        progress.note(&format!(
            "another no43 (process {pid}) is building layer '{}'; waiting for it",
            layer.name
        ));
    };
    let begun = store.begin(&layer.key, &mut waiting, &cancelled);
    let mut staging = match begun {
        Ok(Some(staging)) => staging,
        Ok(None) => {
            let image = store
                .get(&layer.key)?
                .ok_or_else(|| StoreError::NoSuchImage(layer.key.short().to_owned()))?;
            return Ok((image, false));
        }
        Err(_) if cancelled() => return Err(BuildError::Cancelled),
        Err(error) => return Err(error.into()),
    };
    progress.layer_started(layer, &why);
    let log_path = staging.dir().join("build.log");
    let log = File::create(&log_path).map_err(StoreError::io("create", &log_path))?;
    let (free, needed) = (store.free_bytes(), needed(layer));
    if free < needed {
        return Err(StoreError::Full { path: store.dir().to_owned(), free, needed }.into());
    }
    let mut context = Context { store, options, progress, log, needed };
    let made = make_and_publish(plan, layer, below, &mut staging, &mut context);
    match made {
        Ok((files, manifest)) => {
            context.progress.phase("publishing");
            let image = staging.publish(&files, manifest).map_err(|error| context.explain(error.into()))?;
            Ok((image, true))
        }
        Err(error) => {
            keep_log(&log_path, &store.failed_log(&layer.key));
            let error = context.explain(error);
            if options.keep_on_failure && matches!(error, BuildError::Install { .. }) {
                staging.leave();
            }
            Err(error)
        }
    }
}

/// Everything up to the rename.
fn make_and_publish(
    plan: &Plan,
    layer: &LayerPlan,
    below: Option<&Image>,
    staging: &mut Staging,
    context: &mut Context<'_>,
) -> Result<(Vec<&'static str>, Manifest), BuildError> {
    let started = Instant::now();
    let mut made = match (&layer.what, below) {
        (LayerWhat::Debian(base), _) => debian::build(base, &layer.key, staging, context)?,
        (LayerWhat::Windows(base), _) => windows::build(base, layer, plan, staging, context)?,
        (LayerWhat::WindowsSetup(setup), Some(below)) => {
            windows::set_up(setup, layer, plan, below, staging, context)?
        }
        (LayerWhat::Step(step), Some(below)) => step::build(step, layer, plan, below, staging, context)?,
        (LayerWhat::Step(_) | LayerWhat::WindowsSetup(_), None) => {
            return Err(BuildError::Recipe("step: there is no base layer below it".to_owned()));
        }
    };
    made.files.push("build.log");
    let provenance = Provenance {
        created: image::rfc3339(SystemTime::now()),
        milliseconds: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
        no43: env!("CARGO_PKG_VERSION").to_owned(),
        ..made.provenance
    };
    let manifest = Manifest {
        format: image::FORMAT,
        key: layer.key.clone(),
        parent: layer.parent.clone(),
        layer: layer.name.clone(),
        recipe: plan.name.clone(),
        inputs: layer.inputs.clone(),
        boot: made.boot,
        provenance,
        sealed: made.sealed,
        files: Vec::new(),
    };
    Ok((made.files, manifest))
}

/// What a layer's maker hands over.
pub(crate) struct Made {
    /// Files of the staging folder that belong to the image.
    pub(crate) files: Vec<&'static str>,
    pub(crate) boot: BootKind,
    pub(crate) provenance: Provenance,
    /// Of an image with UEFI variables and TPM.
    pub(crate) sealed: Option<Sealed>,
}

fn keys(plan: &Plan) -> Vec<Key> {
    plan.layers.iter().map(|layer| layer.key.clone()).collect()
}

/// The log of a failed build outlives its staging folder; not being able to keep it must not hide the failure itself.
fn keep_log(from: &Path, to: &Path) {
    let _ = to.parent().map(fs::create_dir_all);
    let _ = fs::copy(from, to);
}

fn is_full(line: &str) -> bool {
    line.contains("No space left on device")
        || line.contains("Disk quota exceeded")
        || line.contains("You don't have enough free space")
}

fn indented(lines: &[String]) -> String {
    lines.iter().map(|line| format!("\n  {line}")).collect()
}

fn short(hash: &str) -> &str {
    hash.get(..12).unwrap_or(hash)
}
