//! Building and the store, with the real mmdebstrap and the real QEMU: kills, full disks, races, damage.
//!
//! One small image is built once, in a store that the suite's cases then share as a source of copies.

use anyhow::{Context, Result, bail, ensure};
use no43_harness::exit_codes as code;
use no43_tests::Scene;
use no43_tests::expect::{at, full_file, listing};
use no43_tests::run::Running;
use no43_tests::suite::{Case, Images, Order};
use rustix::process::Signal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::OnceLock;

fn main() -> ExitCode {
    let code = no43_tests::suite::main(CASES, Order::Serial, Images::Own);
    if let Some(Ok(built)) = BUILT.get() {
        let _ = std::fs::remove_dir_all(built.path()); // a static is never dropped
    }
    code
}

/// See [`built`].
static BUILT: OnceLock<Result<tempfile::TempDir, String>> = OnceLock::new();

const BUILDS: &[&str] = &["no43", "mmdebstrap"];
const BUILDS_IN_NAMESPACE: &[&str] = &["no43", "mmdebstrap", "mount-namespace"];
const BUILDS_AND_BOOTS: &[&str] = &["no43", "lab"];

static CASES: &[Case] = &[
    Case::new("an-image-is-whole-and-says-what-went-in", whole_image).needs(BUILDS),
    Case::new("an-unchanged-build-starts-no-program", unchanged).needs(BUILDS),
    Case::new("a-recipe-with-another-card-uses-the-same-image", other_card).needs(BUILDS),
    Case::new("a-damaged-image-is-named-by-verify", damaged).needs(BUILDS),
    Case::new("gc-keeps-what-a-recipe-uses-and-drops-the-rest", collected).needs(BUILDS),
    Case::new("a-read-only-store-is-enough-to-look-and-to-reuse", read_only).needs(BUILDS_IN_NAMESPACE),
    Case::new("kill-9-while-building-leaves-nothing-half", killed).needs(BUILDS),
    Case::new("ctrl-c-once-stops-in-order", interrupted).needs(BUILDS),
    Case::new("two-builders-build-a-layer-once", two_builders).needs(BUILDS),
    Case::new("a-disk-too-small-is-said-before-building", small_disk).needs(BUILDS_IN_NAMESPACE),
    Case::new("a-disk-that-fills-up-while-building-loses-nothing-else", full_disk).needs(BUILDS_IN_NAMESPACE),
    Case::new("steps-are-layers-and-a-build-resumes-at-the-last-good-one", steps).needs(BUILDS_AND_BOOTS),
    Case::new("a-qemu-that-dies-at-start-is-quoted", dying_qemu).needs(BUILDS_AND_BOOTS),
];

/// The smallest guest that boots.
const SMALL: &str = r#"
name = "small"

[guest]
os = "debian12"
init = "lean"

[machine]
cpus = 1
memory = "512 MiB"
disk = "2 GiB"
firmware = "bios"
boot = "direct"

[[card]]
any = true
"#;

/// How long the base image may take on a busy small machine; it was seen to take about a minute.
const BUILD_LIMIT: u64 = 900;

/// A folder with a store and the lock that its image was built with, made once for all cases.
fn built() -> Result<&'static Path> {
    let build = || -> Result<tempfile::TempDir> {
        let scene = Scene::new("built once")?;
        scene.write("small.toml", SMALL)?;
        build_ok(&scene, "small.toml")?;
        let kept = tempfile::Builder::new().prefix("n43-built-").tempdir()?;
        std::fs::rename(scene.store(), kept.path().join("store"))
            .or_else(|_| copy(scene.store(), kept.path()))?;
        std::fs::copy(scene.work().join("no43.lock"), kept.path().join("no43.lock"))?;
        scene.end()?;
        Ok(kept)
    };
    let built = BUILT.get_or_init(|| build().map_err(|e| format!("{e:#}")));
    built.as_ref().map(tempfile::TempDir::path).map_err(|e| anyhow::anyhow!("the image for all cases: {e}"))
}

fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    let status = std::process::Command::new("cp").args(["-a", "--reflink=auto"]).args([from, to]).status()?;
    if status.success() { Ok(()) } else { Err(std::io::Error::other(format!("cp ended with {status}"))) }
}

/// Locks and builds; the lock is made when it is not there.
fn build_ok(scene: &Scene, recipe: &str) -> Result<()> {
    if !scene.work().join("no43.lock").exists() {
        scene.no43(&["lock", recipe])?.limit(120).ok()?;
    }
    scene.no43(&["build", recipe])?.limit(BUILD_LIMIT).ok()?;
    Ok(())
}

/// Puts a copy of the built store, the lock and the recipe into the scene.
fn with_built(scene: &Scene) -> Result<()> {
    let built = built()?;
    let parent = scene.store().parent().context("a store lies in a folder")?;
    copy(&built.join("store"), parent)?;
    std::fs::copy(built.join("no43.lock"), scene.work().join("no43.lock"))?;
    scene.write("small.toml", SMALL)?;
    Ok(())
}

/// Only the lock and the recipe: a build starts from nothing.
fn with_lock(scene: &Scene) -> Result<()> {
    std::fs::copy(built()?.join("no43.lock"), scene.work().join("no43.lock"))?;
    scene.write("small.toml", SMALL)?;
    Ok(())
}

fn images(scene: &Scene) -> Result<Vec<PathBuf>> {
    let dir = scene.store().join("images");
    if !dir.exists() {
        return Ok(Vec::new());
    }
    let mut found: Vec<PathBuf> = std::fs::read_dir(dir)?.map(|e| Ok(e?.path())).collect::<Result<_>>()?;
    found.sort();
    Ok(found)
}

fn whole_image(scene: &Scene) -> Result<()> {
    with_built(scene)?;
    let images = images(scene)?;
    ensure!(images.len() == 1, "{images:?}");
    let manifest: serde_json::Value =
        serde_json::from_slice(&std::fs::read(images[0].join("manifest.json"))?)?;
    let key = images[0].file_name().context("a folder's name")?.to_string_lossy().into_owned();
    ensure!(at(&manifest, "/key")? == key.as_str(), "the manifest of {key} says {manifest:#}");
    for file in at(&manifest, "/files")?.as_array().context("a list of files")? {
        full_file(&images[0].join(at(file, "/name")?.as_str().context("a name")?))?;
    }
    scene.no43(&["image", "verify"])?.limit(120).ok()?;
    scene.no43(&["image", "ls"])?.ok()?.must_say(&[&key[..8], "small"])?;
    scene.no43(&["image", "show", &key[..12]])?.ok()?.must_say(&[&key[..8], "linux-image"])?;
    Ok(())
}

fn unchanged(scene: &Scene) -> Result<()> {
    with_built(scene)?;
    let before = listing(scene.store())?;
    // with an empty PATH neither QEMU nor mmdebstrap nor qemu-img could be started
    scene.no43(&["build", "small.toml"])?.env("PATH", "/nowhere").ok()?;
    let images = |files: Vec<(String, u64)>| -> Vec<_> {
        files.into_iter().filter(|f| f.0.starts_with("images")).collect()
    };
    ensure!(images(before) == images(listing(scene.store())?), "an unchanged build changed an image");
    Ok(())
}

fn other_card(scene: &Scene) -> Result<()> {
    with_built(scene)?;
    scene.write(
        "small.toml",
        &SMALL.replace("any = true", "id = \"10de:2484\"").replace("cpus = 1", "cpus = 2"),
    )?;
    scene.no43(&["build", "small.toml"])?.env("PATH", "/nowhere").ok()?;
    ensure!(images(scene)?.len() == 1, "a second image for another card");
    Ok(())
}

fn damaged(scene: &Scene) -> Result<()> {
    with_built(scene)?;
    let image = images(scene)?.remove(0);
    let disk = image.join("disk.qcow2");
    let mut bytes = std::fs::read(&disk)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::remove_file(&disk)?;
    std::fs::write(&disk, bytes)?;
    let key = image.file_name().context("a folder's name")?.to_string_lossy()[..8].to_owned();
    let seen = scene.no43(&["image", "verify"])?.limit(120).done()?;
    seen.must_exit(code::STORE)?.must_say(&[&key, "disk.qcow2"])?;
    Ok(())
}

fn collected(scene: &Scene) -> Result<()> {
    with_built(scene)?;
    scene.no43(&["build", "small.toml"])?.ok()?; // from here on this recipe is a root
    scene.no43(&["image", "gc"])?.ok()?;
    ensure!(images(scene)?.len() == 1, "gc dropped the image of a recipe that is there");
    std::fs::remove_file(scene.work().join("small.toml"))?;
    scene.no43(&["image", "gc"])?.ok()?;
    let left = images(scene)?;
    ensure!(left.is_empty() || roots_elsewhere(scene)?, "gc kept {left:?}");
    Ok(())
}

/// The copy of the store still names the recipe that it was built from; that file is gone too.
fn roots_elsewhere(scene: &Scene) -> Result<bool> {
    let roots = listing(&scene.store().join("roots"))?;
    Ok(!roots.is_empty())
}

fn read_only(scene: &Scene) -> Result<()> {
    with_built(scene)?;
    let prepare = "mount --bind \"$NO43_STORE\" \"$NO43_STORE\"; mount -o remount,bind,ro \"$NO43_STORE\"";
    for command in
        [&["image", "ls"][..], &["image", "verify"], &["plan", "small.toml"], &["build", "small.toml"]]
    {
        scene.no43(command)?.in_namespace(prepare).limit(120).ok()?;
    }
    Ok(())
}

/// Starts a build and returns when its first layer is being made.
fn building(scene: &Scene) -> Result<Running> {
    with_lock(scene)?;
    let mut running = scene.no43(&["build", "small.toml"])?.limit(BUILD_LIMIT).start()?;
    let tmp = scene.store().join("tmp");
    running.wait_until("a layer being built", 60, |_| {
        let works = scene.processes().iter().any(|(_, command)| command.contains("mmdebstrap"));
        works && listing(&tmp).is_ok_and(|files| !files.is_empty())
    })?;
    Ok(running)
}

fn killed(scene: &Scene) -> Result<()> {
    let running = building(scene)?;
    running.signal(Signal::KILL)?;
    let seen = running.done()?;
    ensure!(seen.signal == Some(9), "{seen:?}");
    ensure!(images(scene)?.is_empty(), "a half image was published");
    // looking drops nothing
    let tmp = scene.store().join("tmp");
    let before = listing(&tmp)?.len();
    scene.no43(&["image", "ls"])?.ok()?;
    ensure!(before > 0 && !listing(&tmp)?.is_empty(), "looking dropped what the dead build left");
    // changing does, and says so
    let gc = scene.no43(&["image", "gc"])?.limit(120).ok()?;
    gc.must_say(&["dropped"])?;
    ensure!(listing(&tmp)?.is_empty(), "left in the store: {:?}", listing(&tmp)?);
    Ok(())
}

fn interrupted(scene: &Scene) -> Result<()> {
    let running = building(scene)?;
    running.signal(Signal::INT)?;
    let seen = running.done()?.must_exit(code::INTERRUPTED)?;
    ensure!(seen.time.as_secs() < 120, "it took {:?} to stop", seen.time);
    ensure!(images(scene)?.is_empty(), "a half image was published");
    ensure!(
        listing(&scene.store().join("tmp"))?.is_empty(),
        "left: {:?}",
        listing(&scene.store().join("tmp"))?
    );
    Ok(())
}

fn two_builders(scene: &Scene) -> Result<()> {
    let first = building(scene)?;
    let second = scene.no43(&["build", "small.toml"])?.limit(BUILD_LIMIT).start()?;
    let (first_pid, first) = (first.pid().to_string(), first.done()?.must_exit(0)?);
    let second = second.done()?.must_exit(0)?.must_say(&[&first_pid])?;
    ensure!(images(scene)?.len() == 1, "{:?} after {:?} and {:?}", images(scene)?, first.time, second.time);
    Ok(())
}

fn small_disk(scene: &Scene) -> Result<()> {
    with_lock(scene)?;
    let small = r#"mkdir -p "$NO43_STORE" && mount -t tmpfs -o size=100m none "$NO43_STORE""#;
    let run = scene.no43(&["build", "small.toml"])?.in_namespace(small);
    let seen = run.limit(BUILD_LIMIT).done()?.must_exit(code::STORE)?;
    let seen = seen.must_say(&["disk is full", "free", "needed"])?;
    ensure!(seen.time.as_secs() < 20, "it took {:?} to find out", seen.time);
    Ok(())
}

fn full_disk(scene: &Scene) -> Result<()> {
    with_lock(scene)?;
    // Large enough to begin with; then something else fills it while mmdebstrap works.
    let prepare = r#"
        mkdir -p "$NO43_STORE" && mount -t tmpfs -o size=6g none "$NO43_STORE"
        mkdir -p "$NO43_STORE/images/kept" && echo kept > "$NO43_STORE/images/kept/file"
        (
            until ls "$NO43_STORE"/tmp/*/* > /dev/null 2>&1; do sleep 0.1; done
            dd if=/dev/zero of="$NO43_STORE/filler" bs=1M 2> /dev/null
        ) &
    "#;
    let script = r#""$@"; code=$?
        rm -f "$NO43_STORE/filler"
        echo "published: $(ls "$NO43_STORE/images" | tr '\n' ' ')"
        echo "partial: $(ls "$NO43_STORE/tmp" | tr '\n' ' ')."
        cat "$NO43_STORE/images/kept/file"
        exit $code"#;
    let inner = scene.no43(&["build", "small.toml"])?.below("/bin/sh", ["-c", script, "sh"]);
    let seen = inner.in_namespace(prepare).limit(BUILD_LIMIT).done()?;
    if !matches!(seen.code, Some(5 | 6)) {
        bail!("exit code {:?} on a full disk instead of 5 or 6:\n{}", seen.code, seen.all());
    }
    seen.must_say(&["published: kept ", "partial: .", "kept\n"])?.must_not_say(&["panicked"])?;
    Ok(())
}

fn steps(scene: &Scene) -> Result<()> {
    with_built(scene)?;
    let step = |run: &str| {
        format!("{SMALL}\n[[step]]\nname = \"mark\"\nrun = [\"sh\", \"-c\", \"{run}\"]\nlimit = \"60 s\"\n")
    };
    scene.write("small.toml", &step("echo no such luck >&2; exit 7"))?;
    let seen = scene.no43(&["build", "small.toml"])?.limit(BUILD_LIMIT).done()?.must_exit(code::BUILD)?;
    seen.must_say(&["mark", "7", "no such luck"])?;
    ensure!(images(scene)?.len() == 1, "a failed step was published");
    scene.write("small.toml", &step("echo $((6 * 7)) > /etc/mark"))?;
    let seen = scene.no43(&["build", "small.toml"])?.limit(BUILD_LIMIT).ok()?;
    ensure!(images(scene)?.len() == 2, "{:?}\n{}", images(scene)?, seen.all());
    scene.no43(&["build", "small.toml"])?.env("PATH", "/nowhere").ok()?;
    Ok(())
}

fn dying_qemu(scene: &Scene) -> Result<()> {
    with_built(scene)?;
    scene.write("small.toml", &format!("{SMALL}\n[[step]]\nrun = [\"true\"]\n"))?;
    // The real QEMU with one argument that it refuses.
    let bin = scene.work().join("bin");
    let real = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
        .map(|dir| dir.join("qemu-system-x86_64"))
        .find(|path| path.is_file())
        .context("qemu-system-x86_64 is in PATH")?;
    let wrapper = scene.write(
        "bin/qemu-system-x86_64",
        &format!("#!/bin/sh\nexec {} \"$@\" -no-such-thing\n", real.display()),
    )?;
    std::fs::set_permissions(wrapper, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());
    let seen = scene.no43(&["build", "small.toml"])?.env("PATH", path).limit(300).done()?;
    ensure!(seen.code != Some(0), "a build with a QEMU that does not start");
    seen.must_say(&["no-such-thing"])?.must_not_say(&["panicked"])?;
    ensure!(images(scene)?.len() == 1, "something was published");
    Ok(())
}
