//! Builds a recipe without the command line tool: `build RECIPE NO43-GUEST [STORE]`.
//!
//! Locks what is not locked yet, plans, builds, and prints what each layer took.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use no43_builder::build::{Options, Progress, build};
use no43_builder::image::Image;
use no43_builder::lock::hashes::HashCache;
use no43_builder::lock::{Lock, Tools, Update};
use no43_builder::plan::{self, LayerPlan};
use no43_builder::recipe;
use no43_builder::store::Store;
use no43_machine::Accel;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [recipe_file, guest_program, rest @ ..] = &arguments[..] else {
        return Err("usage: build RECIPE NO43-GUEST [STORE]".into());
    };
    let store = Store::open(rest.first().map(PathBuf::as_path))?;
    let plan = planned(recipe_file, guest_program, &store)?;
    let options = Options {
        guest_program: guest_program.clone(),
        qemu: "qemu-system-x86_64".into(),
        accel: Accel::Tcg,
        patience: 1.0,
        keep_on_failure: false,
        lender: None,
        cancel: None,
    };
    let started = Instant::now();
    let built = build(&plan, &store, &options, &mut Lines(Instant::now()))?;
    for layer in &built.layers {
        let took = layer.took.map_or("there".to_owned(), |took| format!("{:.1} s", took.as_secs_f64()));
        println!("{:<20} {} {took}", layer.name, layer.key.short());
    }
    println!("{} in {:.4} s", built.image.dir.display(), started.elapsed().as_secs_f64());
    Ok(())
}

fn planned(recipe_file: &Path, guest_program: &Path, store: &Store) -> Result<plan::Plan, Box<dyn Error>> {
    let resolved = recipe::load(recipe_file, &[])?;
    let mut lock = Lock::load_beside(recipe_file)?;
    let inputs = store.dir().join("inputs");
    let mut tools = Tools::new(inputs.clone(), HashCache::in_memory());
    if !lock.resolve(&resolved, &Update::Missing, &mut tools)?.is_empty() {
        lock.save()?;
    }
    let facts = plan::gather(&resolved, &lock, guest_program, &inputs, &mut HashCache::in_memory())?;
    Ok(plan::plan(&resolved, &lock, &facts)?)
}

/// One line per event, with the time since the start.
struct Lines(Instant);

impl Lines {
    fn say(&self, text: &str) {
        eprintln!("{:7.1}  {text}", self.0.elapsed().as_secs_f64());
    }
}

impl Progress for Lines {
    fn note(&mut self, text: &str) {
        self.say(text);
    }

    fn layer_started(&mut self, layer: &LayerPlan, why: &str) {
        self.say(&format!("{}: {why}", layer.name));
    }

    fn phase(&mut self, text: &str) {
        self.say(&format!("  {text}"));
    }

    fn layer_done(&mut self, layer: &LayerPlan, image: &Image, took: Duration) {
        self.say(&format!("{}: {} MiB in {:.1} s", layer.name, image.bytes() >> 20, took.as_secs_f64()));
    }
}
