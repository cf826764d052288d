//! From a recipe's path to its plan: the steps that `plan`, `build`, `verify` and `lab run` share.

use std::path::{Path, PathBuf};
use std::time::Instant;

use no43_builder::build::{self, BuiltImage, Options, Progress};
use no43_builder::guest_program;
use no43_builder::image::Image;
use no43_builder::lock::hashes::HashCache;
use no43_builder::lock::{Lock, Tools, Update};
use no43_builder::plan::{self, HostCard, HostFacts, LayerPlan, Plan};
use no43_builder::recipe::{self, Resolved};
use no43_builder::store::Store;
use no43_harness::exit_codes;
use no43_harness::stop::Stop;
use no43_host::{Inventory, Roots, StateDir, kvm};
use no43_machine::accel;

use crate::context::{Context, Failure, OrExit as _};
use no43_harness::words::duration;

/// A recipe that is named on the command line, and what is changed in it for this run.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct RecipeArgs {
    /// The recipe file
    pub(crate) recipe: PathBuf,
    /// Set a key for this run; may be given again
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) sets: Vec<String>,
    /// Fail instead of locking what the recipe takes and the lock does not have yet
    #[arg(long)]
    pub(crate) locked: bool,
}

/// What only an unattended installation asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Manner {
    pub(crate) patience: f64,
    pub(crate) keep_on_failure: bool,
}

impl Default for Manner {
    fn default() -> Self {
        Self { patience: 1.0, keep_on_failure: false }
    }
}

/// A recipe, resolved as far as this host can.
pub(crate) struct Prepared {
    pub(crate) plan: Plan,
    pub(crate) store: Store,
    guest_program: PathBuf,
}

/// Reads, locks and plans.
pub(crate) fn prepare(args: &RecipeArgs, context: &Context) -> Result<Prepared, Failure> {
    let store = context.store()?;
    let resolved = load(args)?;
    let mut hashes = hashes(&store);
    let lock = locked(&resolved, args.locked, &store)?;
    let guest_program = match resolved.recipe.guest.windows {
        Some(_) => windows_guest_program()?,
        None => guest_program(),
    };
    let mut facts = plan::gather(&resolved, &lock, &guest_program, &inputs(&store), &mut hashes)
        .or_exit(exit_codes::INPUT)?;
    hashes.save();
    facts.host = host_facts();
    let plan = plan::plan(&resolved, &lock, &facts).or_exit(exit_codes::RECIPE)?;
    Ok(Prepared { plan, store, guest_program })
}

/// Reads a recipe with its `--set`s.
pub(crate) fn load(args: &RecipeArgs) -> Result<Resolved, Failure> {
    recipe::load(&args.recipe, &args.sets).or_exit(exit_codes::RECIPE)
}

/// The lock beside the recipe. What it does not have yet is locked now, unless `strict`.
fn locked(resolved: &Resolved, strict: bool, store: &Store) -> Result<Lock, Failure> {
    let mut lock = Lock::load_beside(&resolved.path).or_exit(exit_codes::RECIPE)?;
    if strict {
        return Ok(lock);
    }
    let mut tools = tools(store);
    let changes = lock.resolve(resolved, &Update::Missing, &mut tools).or_exit(exit_codes::INPUT)?;
    if !changes.is_empty() {
        lock.save().or_exit(exit_codes::INPUT)?;
        for change in &changes {
            eprintln!("  lock     {change}");
        }
    }
    Ok(lock)
}

/// What locking needs: where fetched files go, and the remembered hashes.
pub(crate) fn tools(store: &Store) -> Tools {
    Tools::new(inputs(store), hashes(store)).with_progress(crate::download::meter())
}

/// Where fetched files are kept.
pub(crate) fn inputs(store: &Store) -> PathBuf {
    store.dir().join("inputs")
}

fn hashes(store: &Store) -> HashCache {
    HashCache::open(store.dir().join("hashes.json"))
}

/// The guest program for Linux guests: `$NO43_GUEST`, else `no43-guest` beside this executable.
pub(crate) fn guest_program() -> PathBuf {
    let beside = || {
        let exe = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("no43"));
        exe.parent().unwrap_or(Path::new(".")).join("no43-guest")
    };
    std::env::var_os("NO43_GUEST").filter(|value| !value.is_empty()).map_or_else(beside, PathBuf::from)
}

/// The guest program for Windows guests: `$NO43_GUEST_WINDOWS`, else `no43-guest.exe` beside this executable.
pub(crate) fn windows_guest_program() -> Result<PathBuf, Failure> {
    let named =
        std::env::var_os(guest_program::VARIABLE).filter(|value| !value.is_empty()).map(PathBuf::from);
    let exe = std::env::current_exe().unwrap_or_default();
    let found = guest_program::windows(named.as_deref(), exe.parent().unwrap_or(Path::new(".")));
    found.map(|program| program.path).or_exit(exit_codes::INPUT)
}

/// What this host could lend; nothing where it cannot be looked at.
fn host_facts() -> Option<HostFacts> {
    let roots = Roots::real();
    let inventory = Inventory::read(&roots).ok()?;
    let cards = match StateDir::open_default() {
        Ok(state) => inventory.cards_now(&state, &roots),
        Err(_) => inventory.cards(),
    };
    let cards = cards.iter().map(|card| HostCard {
        name: card.name.clone(),
        address: card.address.slot_name(),
        id: card.id.to_string(),
        board: inventory.function(&card.address).and_then(|video| Some(video.subsystem?.to_string())),
        ready: card.state.is_ready(),
        state: card.state.to_string(),
    });
    let (cpus, memory_mib) = no43_host::size(&roots);
    Some(HostFacts { cpus, memory_mib, cards: cards.collect() })
}

impl Prepared {
    /// The image, if every layer is there already; nothing is built.
    pub(crate) fn built(&self) -> Result<Option<Image>, Failure> {
        let top = self.plan.layers.last().map(|layer| layer.key.clone());
        let Some(key) = top else { return Ok(None) };
        self.store.get(&key).or_exit(exit_codes::STORE)
    }

    /// Builds what is missing. An unchanged plan is a look-up: no KVM probe, no VM.
    pub(crate) fn build(&self, stop: &Stop) -> Result<BuiltImage, Failure> {
        self.build_in(Manner::default(), stop)
    }

    /// The same, with what only an installation asks for.
    pub(crate) fn build_in(&self, manner: Manner, stop: &Stop) -> Result<BuiltImage, Failure> {
        let mut options = Options {
            guest_program: self.guest_program.clone(),
            qemu: "qemu-system-x86_64".into(),
            accel: no43_machine::Accel::Tcg,
            patience: manner.patience,
            keep_on_failure: manner.keep_on_failure,
            lender: no43_harness::lender::HostCards::here().ok().map(|cards| std::sync::Arc::new(cards) as _),
            cancel: Some(stop.flag()),
        };
        if self.built()?.is_none() {
            let (chosen, warning) = accel::choose(&kvm::probe());
            options.accel = chosen;
            if let Some(warning) = warning.filter(|_| self.plan.layers.len() > 1 || self.plan.is_installed())
            {
                eprintln!("  note     {warning}");
            }
        }
        let mut progress = Lines { recipe: &self.plan.name, started: Instant::now() };
        build::build(&self.plan, &self.store, &options, &mut progress).map_err(|error| {
            let code = match &error {
                _ if stop.is_set() => exit_codes::INTERRUPTED,
                build::BuildError::Store(_) => exit_codes::STORE,
                _ => exit_codes::BUILD,
            };
            let text = crate::context::with_sources(&error);
            Failure::new(
                code,
                format!("{text}\n  Nothing was published; the next build starts again at this layer."),
            )
        })
    }
}

/// Progress of a build as lines on standard error.
struct Lines<'a> {
    recipe: &'a str,
    started: Instant,
}

impl Lines<'_> {
    fn line(&self, name: &str, text: &str) {
        eprintln!("  {name:<8} {text:<60} {:>8}", duration(self.started.elapsed()));
    }
}

impl Progress for Lines<'_> {
    fn note(&mut self, text: &str) {
        eprintln!("  note     {text}");
    }

    fn layer_reused(&mut self, layer: &LayerPlan) {
        self.line("image", &format!("{} {}: {} is in the store", self.recipe, layer.name, layer.key.short()));
    }

    fn layer_started(&mut self, layer: &LayerPlan, why: &str) {
        self.line("image", &format!("{} {}: building {}, {why}", self.recipe, layer.name, layer.key.short()));
    }

    fn phase(&mut self, text: &str) {
        self.line("", text);
    }

    fn layer_done(&mut self, layer: &LayerPlan, image: &Image, took: std::time::Duration) {
        let size = no43_harness::words::bytes(image.bytes());
        let text = format!(
            "{} {}: {} published, {size}, took {}",
            self.recipe,
            layer.name,
            layer.key.short(),
            duration(took)
        );
        self.line("image", &text);
    }
}
