//! What a new instance costs against `qemu-img create` of its overlay alone, in alternation: for `ci/bench`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use no43_builder::lock::Lock;
use no43_builder::lock::hashes::HashCache;
use no43_builder::plan::{self, Plan};
use no43_builder::recipe;
use no43_builder::store::Store;
use no43_harness::instance::{Instances, NewInstance, Origin};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [recipe, guest, rounds] = arguments.as_slice() else {
        anyhow::bail!("usage: instance_bench RECIPE GUEST-PROGRAM ROUNDS");
    };
    let store = Store::open(None)?;
    let plan = planned(Path::new(recipe), Path::new(guest), &store)?;
    let top = plan.layers.last().context("a recipe without an image")?;
    let image = store.get(&top.key)?.context("the recipe's image is not built")?;
    let dir = tempfile::tempdir_in(Path::new(recipe).parent().unwrap_or(Path::new(".")))?;
    let instances = Instances::at(dir.path().join("instances"));
    let (mut ours, mut peer) = (Vec::new(), Vec::new());
    // the first pair warms up
    for round in 0..=rounds.parse()? {
        let new = NewInstance {
            name: "bench",
            plan: &plan,
            origin: Origin { image: &image, store: &store },
            ephemeral: false,
        };
        let began = Instant::now();
        let made = instances.create(&new)?;
        let created = began.elapsed();
        instances.remove(&made, &store)?;
        let by_hand = qemu_img(&image.disk(), &dir.path().join("by-hand.qcow2"))?;
        if round > 0 {
            ours.push(created.as_secs_f64() * 1000.0);
            peer.push(by_hand);
        }
    }
    println!("{}", serde_json::json!({ "no43_ms": ours, "qemu_img_ms": peer }));
    Ok(())
}

fn planned(path: &Path, guest: &Path, store: &Store) -> Result<Plan> {
    let resolved = recipe::load(path, &[])?;
    let lock = Lock::load_beside(&resolved.path)?;
    let inputs: PathBuf = store.dir().join("inputs");
    let mut hashes = HashCache::open(store.dir().join("hashes.json"));
    let facts = plan::gather(&resolved, &lock, guest, &inputs, &mut hashes)?;
    Ok(plan::plan(&resolved, &lock, &facts)?)
}

/// Milliseconds; the overlay is removed again.
fn qemu_img(base: &Path, at: &Path) -> Result<f64> {
    let began = Instant::now();
    let mut create = Command::new("qemu-img");
    create.args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"]).arg(base).arg(at);
    let status = create.stdin(Stdio::null()).status().context("failed to start qemu-img")?;
    let time = began.elapsed();
    ensure!(status.success(), "qemu-img ended with {status}");
    std::fs::remove_file(at)?;
    Ok(time.as_secs_f64() * 1000.0)
}
