//! Kept machines without a card, so that no lab is needed: instances, their life, snapshots, jobs. Real guests, by TCG if
//! there is no KVM.

use anyhow::{Context, Result, ensure};
use no43_harness::exit_codes as code;
use no43_tests::logind::MockLogind;
use no43_tests::suite::{Case, Images, Order};
use no43_tests::{Run, Scene};
use rustix::process::{Pid, Signal, kill_process};
use std::process::ExitCode;
use std::time::{Duration, Instant};

fn main() -> ExitCode {
    no43_tests::suite::main(CASES, Order::Serial, Images::Shared)
}

static CASES: &[Case] = &[
    Case::new("a-snapshot-and-a-renew-keep-what-they-promise", states),
    Case::new("a-machine-outlives-terminal-and-supervisor", outlives),
    Case::new("a-host-that-shuts-down-waits-for-its-guest", host_shutdown).needs(&["logind-mock"]),
    Case::new("a-job-leaves-its-result-and-nothing-else", job),
    Case::new("an-image-is-verified-as-its-recipe-says", image_verified),
    Case::new("a-full-disk-pauses-the-guest-until-there-is-room", full_disk)
        .needs(&["no43", "mount-namespace"]),
    Case::new("bad-names-and-second-starts-are-refused-before-anything-is-made", refusals),
];

/// A guest that boots in seconds even without KVM.
const PLAY: &str = r#"
extends = "lab-guest.toml"
card    = []

[checks]
card      = false
driver    = false
connector = false
picture   = false
lifecycle = []
"#;

/// A build, and a start, on a busy machine without KVM.
const LIMIT: u64 = 600;

fn no43(scene: &Scene, args: &[&str]) -> Result<Run> {
    Ok(scene.no43(args)?.env("NO43_INSTANCES", scene.work().join("instances")).limit(LIMIT))
}

fn prepare(scene: &Scene, more: &str) -> Result<()> {
    scene.shipped_recipes()?;
    scene.write("recipes/play.toml", &format!("{PLAY}\n{more}"))?;
    no43(scene, &["build", "recipes/play.toml"])?.limit(1200).ok()?;
    Ok(())
}

fn start(scene: &Scene) -> Result<()> {
    no43(scene, &["run", "--detach", "recipes/play.toml"])?.ok()?.must_say(&["the guest answers"])?;
    Ok(())
}

fn inside(scene: &Scene, script: &str) -> Result<String> {
    Ok(no43(scene, &["shell", "play", "--", "sh", "-c", script])?.ok()?.stdout.trim().to_owned())
}

fn stop(scene: &Scene) -> Result<()> {
    no43(scene, &["stop", "play"])?.ok()?.must_say(&["the guest shut down"])?;
    Ok(())
}

/// A number in a file of the running machine.
fn pid_in(scene: &Scene, file: &str, pointer: &str) -> Result<i32> {
    let path = scene.state().join("m/play").join(file);
    let value: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&path).with_context(|| path.display().to_string())?)?;
    let pid = value.pointer(pointer).and_then(serde_json::Value::as_i64).context("a pid is a number")?;
    Ok(i32::try_from(pid)?)
}

fn within(seconds: u64, what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(seconds);
    while !holds()? {
        ensure!(Instant::now() < end, "not within {seconds} s: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

const GAMES: &str = "[[disk]]\nname = \"games\"\nsize = \"64 MiB\"\nkeep = true\n";

fn states(scene: &Scene) -> Result<()> {
    prepare(scene, GAMES)?;
    start(scene)?;
    inside(scene, "echo first > /root/state; echo saved > /mnt/games/save; sync")?;
    let identity = inside(scene, "cat /sys/class/dmi/id/product_uuid")?;
    stop(scene)?;
    no43(scene, &["instance", "snapshot", "play", "good"])?.ok()?;
    start(scene)?;
    inside(scene, "rm -rf /root/state /usr/share; echo damaged > /root/damaged; sync")?;
    no43(scene, &["instance", "restore", "play", "good"])?
        .done()?
        .must_exit(code::INSTANCE)?
        .must_say(&["is running"])?;
    stop(scene)?;
    no43(scene, &["instance", "restore", "play", "good"])?.ok()?;
    start(scene)?;
    let seen =
        inside(scene, "cat /root/state; ls /root; cat /mnt/games/save; cat /sys/class/dmi/id/product_uuid")?;
    ensure!(
        seen.contains("first") && !seen.contains("damaged") && seen.contains("saved"),
        "after the restore: {seen}"
    );
    ensure!(seen.ends_with(&identity), "another identity after the restore: {seen}");
    stop(scene)?;
    no43(scene, &["instance", "renew", "play"])?.ok()?.must_say(&["the old one is kept"])?;
    start(scene)?;
    let seen = inside(scene, "ls /root; cat /mnt/games/save; cat /sys/class/dmi/id/product_uuid")?;
    ensure!(
        !seen.contains("state") && seen.contains("saved") && seen.ends_with(&identity),
        "after the renew: {seen}"
    );
    no43(scene, &["stop", "play", "--force"])?.ok()?;
    no43(scene, &["instance", "renew", "play", "--undo"])?.ok()?;
    let image = no43(scene, &["instance", "ls", "--json"])?.ok()?.json()?;
    let key =
        image.pointer("/0/image").and_then(serde_json::Value::as_str).context("it has an image")?.to_owned();
    no43(scene, &["image", "rm", &key])?
        .done()?
        .must_exit(code::STORE)?
        .must_say(&["is below the disk of instance", "play"])?;
    no43(scene, &["instance", "rm", "--yes", "play"])?.ok()?;
    Ok(())
}

const DEAF: &str = "for b in /sys/bus/acpi/drivers/button/PNP0C0C* /sys/bus/acpi/drivers/button/LNXPWRBN*; do \
    echo ${b##*/} > /sys/bus/acpi/drivers/button/unbind; done; \
    (sleep 1; a=$(pidof qemu-ga); kill -STOP $a; sleep 8; kill -CONT $a) > /dev/null 2>&1 < /dev/null &";

fn outlives(scene: &Scene) -> Result<()> {
    prepare(scene, "")?;
    let mut attached = no43(scene, &["run", "recipes/play.toml"])?.start()?;
    within(300, "the guest answers", || {
        Ok(std::fs::read_to_string(scene.state().join("m/play/events.jsonl"))
            .unwrap_or_default()
            .contains("\"ready\""))
    })?;
    let machine = pid_in(scene, "machine.json", "/pid")?;
    // the terminal closes
    attached.signal(Signal::HUP)?;
    attached.wait_until("its end", 20, |_| false).err().context("a closed terminal ends the command")?;
    no43(scene, &["ps"])?.ok()?.must_say(&["play", "running"])?;
    for round in 0..3 {
        let supervisor =
            Pid::from_raw(pid_in(scene, "run.json", "/supervisor/pid")?).context("a pid is not 0")?;
        kill_process(supervisor, Signal::KILL)?;
        within(10, "the kill is seen", || Ok(no43(scene, &["ps"])?.ok()?.stdout.contains("alone")))?;
        no43(scene, &["release"])?.ok()?.must_say(&["taken over"])?;
        no43(scene, &["ps"])?.ok()?.must_say(&["running"])?.must_not_say(&["alone"])?;
        ensure!(pid_in(scene, "machine.json", "/pid")? == machine, "round {round}: another QEMU");
    }
    no43(scene, &["shot", "play", "shot.png"])?.done()?.must_exit(code::INSTANCE)?; // console = "never": nothing to see
    scene.write("note.txt", "from outside")?;
    no43(scene, &["cp", "note.txt", "play:/root/note.txt"])?.ok()?;
    ensure!(inside(scene, "cat /root/note.txt")? == "from outside");
    no43(scene, &["cp", "play:/root/note.txt", "back.txt"])?.ok()?;
    ensure!(std::fs::read_to_string(scene.work().join("back.txt"))? == "from outside");
    // deaf for a while: the agent stands still, and the power button has no driver
    no43(scene, &["shell", "play", "--", "sh", "-c", DEAF])?.done()?;
    std::thread::sleep(Duration::from_secs(3));
    let seen = no43(scene, &["stop", "play", "--limit", "3 s"])?.done()?.must_exit(code::FAILED_GUEST)?;
    seen.must_say(&["did not shut down within 3 s and runs on", "--force"])?;
    ensure!(pid_in(scene, "machine.json", "/pid")? == machine, "a guest was switched off without --force");
    within(120, "the agent answers again", || Ok(inside(scene, "true").is_ok()))?;
    // Ctrl-C asks the guest
    let attached = no43(scene, &["attach", "play"])?.start()?;
    std::thread::sleep(Duration::from_secs(1));
    attached.signal(Signal::INT)?;
    attached.done()?.must_exit(0)?.must_say(&["asking the guest to shut down", "the guest shut down"])?;
    no43(scene, &["ps"])?.ok()?.must_say(&["nothing is running"])?;
    Ok(())
}

fn host_shutdown(scene: &Scene) -> Result<()> {
    prepare(scene, "")?;
    let with = |args: &[&str], bus: &str| {
        Ok::<_, anyhow::Error>(no43(scene, args)?.env("DBUS_SYSTEM_BUS_ADDRESS", bus))
    };
    // without logind it is said, and the guest runs
    let soon = ["run", "--detach", "recipes/play.toml", "--set", "checks.ready=1 s"];
    with(&soon, "unix:path=/nonexistent")?.ok()?.must_say(&["no logind here"])?;
    no43(scene, &["stop", "play", "--force"])?.ok()?;

    let logind = MockLogind::start(scene, 120)?;
    let mut attached = with(&["run", "recipes/play.toml"], &logind.address)?.start()?;
    attached.wait_until("the guest answers", 300, |_| {
        let events = std::fs::read_to_string(scene.state().join("m/play/events.jsonl"));
        events.is_ok_and(|text| text.contains("\"ready\""))
    })?;
    let held = logind.inhibitors()?;
    ensure!(held.contains("\"shutdown\"") && held.contains("\"delay\""), "no delay of the shutdown: {held}");
    ensure!(!held.contains("sleep"), "the host is kept awake without a card: {held}");
    logind.shut_down()?;
    attached
        .done()?
        .must_exit(0)?
        .must_say(&["this host shuts down: the guest has 110 s", "the guest shut down"])?;
    within(10, "the lock is let go of", || Ok(!logind.inhibitors()?.contains("delay")))?;
    no43(scene, &["instance", "show", "play"])?.ok()?.must_say(&["the guest shut down"])?;
    Ok(())
}

fn job(scene: &Scene) -> Result<()> {
    prepare(scene, "")?;
    scene.write("token", "hunter2")?;
    scene.write("in/a.txt", "one")?;
    let script = "cat /root/in/a.txt; cat $NO43_SECRETS/token | wc -c; echo result > /root/r; echo to stderr >&2; exit 7";
    let options = ["--in", "in:/root/in", "--out", "/root/r:r.txt", "--secret", "token=file:token"];
    let seen =
        no43(scene, &["job", "recipes/play.toml"])?.args(options).args(["--", "sh", "-c", script]).done()?;
    let seen = seen.must_exit(7)?;
    ensure!(seen.stdout == "one7\n" && seen.stderr.contains("to stderr"), "{seen:?}");
    ensure!(std::fs::read_to_string(scene.work().join("r.txt"))? == "result\n");
    // killed in the middle: the supervisor sees it and cleans up
    let mut killed = no43(scene, &["job", "recipes/play.toml", "--", "sleep", "1000"])?.start()?;
    killed.wait_until("the machine's start", 120, |run| run.stderr().contains("the guest runs"))?;
    killed.signal(Signal::KILL)?;
    drop(killed);
    let left = |dir: &std::path::Path| {
        std::fs::read_dir(dir).map_or(0, |entries| entries.flatten().filter(|e| e.path().is_dir()).count())
    };
    within(60, "nothing is left", || {
        Ok(left(&scene.state().join("m")) + left(&scene.work().join("instances")) == 0)
    })?;
    within(20, "no process is left", || Ok(scene.processes().is_empty()))
}

fn image_verified(scene: &Scene) -> Result<()> {
    prepare(scene, "[[check]]\nname = \"own\"\nrun = [\"true\"]\n")?;
    let built = no43(scene, &["build", "recipes/play.toml"])?.ok()?.stdout;
    let key = built.split_whitespace().find(|word| word.len() == 64).context("a build tells its image")?;
    // a card is what makes it a pass
    let seen = no43(scene, &["verify", &key[..12]])?.done()?.must_exit(code::SKIPPED)?;
    seen.must_say(&["play.toml: how image", "own", "it ended with 0", "asks for no check of a card"])?;
    let unknown = no43(scene, &["verify", "recipes/play.toml", "--image", "ffffffffffff"])?.done()?;
    unknown.must_exit(code::STORE)?.must_say(&["no image ffffffffffff in the store"])?;
    Ok(())
}

/// The instance is on a small file system; its guest writes more than there is room for.
fn full_disk(scene: &Scene) -> Result<()> {
    prepare(scene, "")?;
    let small = r#"mkdir -p "$NO43_INSTANCES" && mount -t tmpfs -o size=100m none "$NO43_INSTANCES""#;
    let script = r#"
        no43() { "$program" "$@" || { echo "no43 $* ended with $?"; exit 1; }; }
        says() { n=0; until grep -q "$1" "$NO43_STATE/m/play/events.jsonl"; do
            n=$((n + 1)); [ $n -lt 600 ] || { cat "$NO43_STATE/m/play/events.jsonl"; echo "never: $1"; exit 1; }; sleep 0.1; done; }
        program=$1
        no43 run --detach recipes/play.toml
        no43 shell play -- sh -c 'dd if=/dev/zero of=/root/more bs=1M count=160 > /root/dd.log 2>&1 < /dev/null & sync'
        says '"paused"'
        no43 ps
        mount -o remount,size=400m "$NO43_INSTANCES"
        says '"resumed"'
        no43 shell play -- sh -c 'while pidof dd > /dev/null; do sleep 0.2; done; sync; cat /root/dd.log; wc -c < /root/more'
        no43 stop play"#;
    let seen = no43(scene, &[])?.below("/bin/sh", ["-c", script, "sh"]).in_namespace(small).done()?;
    seen.must_exit(0)?
        .must_say(&["paused", "167772160", "the guest shut down"])?
        .must_not_say(&["No space"])?;
    Ok(())
}

fn refusals(scene: &Scene) -> Result<()> {
    prepare(scene, "")?;
    let long = "x".repeat(300);
    for (name, why) in [("a/b", "holds a '/'"), (long.as_str(), "too long"), (".x", "does not begin")] {
        let seen = no43(scene, &["run", "recipes/play.toml", "--name", name])?.done()?;
        seen.must_exit(code::INSTANCE)?.must_say(&[why])?;
    }
    no43(scene, &["run", "nothing"])?
        .done()?
        .must_exit(code::INSTANCE)?
        .must_say(&["there is no instance 'nothing'"])?;
    no43(scene, &["stop", "nothing"])?.done()?.must_exit(code::INSTANCE)?.must_say(&["nothing runs"])?;
    ensure!(!scene.work().join("instances").exists(), "something was made for a bad name");
    Ok(())
}
