//! Kills and silences: who gives the card back, and what is said.

use anyhow::{Context, Result, ensure};
use no43_harness::exit_codes as code;
use no43_tests::{LabHost, Scene};
use rustix::process::{Pid, Signal};

/// In scripts: the card's video function, and what its binding must be.
const CARD: &str = r#"
for d in /sys/bus/pci/devices/*; do [ "$(cat $d/class)" = 0x038000 ] && card=${d##*/}; done
lent() { is "$card" vfio-pci && is "$(audio "$card")" vfio-pci; }
back() { is "$card" bochs-drm && is "$(audio "$card")" snd_hda_intel && [ "$(cat /sys/bus/pci/devices/$card/driver_override)" = "(null)" ]; }
says() { grep -qF -- "$2" "$1" || { cat "$1"; fail "$1 does not say: $2"; }; }
"#;

fn script(scene: &Scene, seconds: u64, script: &str) -> Result<()> {
    let host = LabHost::up(scene, "one-card")?;
    host.script(seconds, &format!("{CARD}\n{script}"))?;
    host.down()
}

pub(crate) fn killed_while_bound(scene: &Scene) -> Result<()> {
    let body = r#"
        verify; within 60 running
        kill -9 $inner $(qemu)
        within 20 ended
        lent || fail "the card is not bound any more, so this shows nothing"
        no43 gpus > gpus.log 2>&1; no43 doctor > doctor.log 2>&1
        lent || fail "a command that only looks gave the card back"
        no43 release > release.log 2>&1 || { cat release.log; fail "release failed"; }
        back || fail "after release: $(driver $card) and $(driver $(audio $card))"
        says release.log "${card#0000:}"
        no43 release > again.log 2>&1 || fail "a second release failed"
        back || fail "the second release changed something"
    "#;
    script(scene, 240, body)
}

/// The moments reach from before the lease to a guest that boots: 0.1 s, 0.2 s, 0.4 s, … 3.2 s, three times.
pub(crate) fn killed_at_any_moment(scene: &Scene) -> Result<()> {
    let body = r#"
        for round in 1 2 3; do
            for moment in 0.1 0.2 0.4 0.8 1.6 3.2; do
                verify; sleep $moment
                pkill -9 -u lab -x no43; pkill -9 -u lab -x qemu-system-x86
                within 20 ended
                no43 release > release.log 2>&1 || { cat release.log; fail "release failed after a kill at $moment s"; }
                back || fail "killed at $moment s, after release: $(driver $card) and $(driver $(audio $card))"
            done
        done
    "#;
    script(scene, 400, body)
}

pub(crate) fn killed_while_running(scene: &Scene) -> Result<()> {
    let body = r#"
        verify; within 60 running
        machine=$(qemu)
        kill -9 $inner
        within 20 ended
        no43 gpus > gpus.log 2>&1
        no43 release > release.log 2>&1
        [ "$(qemu)" = "$machine" ] || fail "the living QEMU was killed"
        lent || fail "the card was taken from a living QEMU"
        no43 verify --no-build --locked "$work/recipes/lab-guest.toml" > second.log 2>&1; code=$?
        [ $code = 7 ] || { cat second.log; fail "a second verify ended with $code instead of 7"; }
        [ "$(qemu)" = "$machine" ] || fail "the second verify killed the living QEMU"
        kill -9 $machine
        within 20 eval '! running'
        no43 release > release.log 2>&1 || { cat release.log; fail "release failed"; }
        back || fail "after release: $(driver $card) and $(driver $(audio $card))"
    "#;
    script(scene, 240, body)
}

pub(crate) fn interrupted(scene: &Scene) -> Result<()> {
    let body = r#"
        verify; within 60 running
        kill -INT $inner
        within 60 ended
        [ "$(cat verify.code)" = 130 ] || { cat verify.log; fail "exit code $(cat verify.code) instead of 130"; }
        ! running || fail "QEMU still runs"
        back || fail "after Ctrl-C: $(driver $card) and $(driver $(audio $card))"
    "#;
    script(scene, 240, body)
}

pub(crate) fn interrupted_twice(scene: &Scene) -> Result<()> {
    let body = r#"
        verify; within 60 running
        kill -INT $inner; sleep 0.3; kill -INT $inner
        within 5 ended
        [ "$(cat verify.code)" = 130 ] || { cat verify.log; fail "exit code $(cat verify.code) instead of 130"; }
        says verify.log "no43 release"
        pkill -9 -u lab -x qemu-system-x86
        within 20 eval '! running'
        no43 release > release.log 2>&1 || { cat release.log; fail "release failed"; }
        back || fail "after release: $(driver $card) and $(driver $(audio $card))"
    "#;
    script(scene, 240, body)
}

pub(crate) fn qemu_killed(scene: &Scene) -> Result<()> {
    let body = r#"
        verify; within 60 running
        sleep 2
        kill -9 $(qemu)
        within 60 ended
        [ "$(cat verify.code)" != 0 ] || fail "passed without a machine"
        says verify.log "QEMU"
        says verify.log "signal"
        back || fail "after QEMU's death: $(driver $card) and $(driver $(audio $card))"
    "#;
    script(scene, 240, body)
}

pub(crate) fn silent_agent(scene: &Scene) -> Result<()> {
    let body = r#"
        verify --set "checks.ready=4 s" --set display.console=always; within 120 ended
        [ "$(cat verify.code)" != 0 ] || fail "an agent within 4 s, in a lab?"
        says verify.log "agent"
        says verify.log "4 s"
        find /home/lab/runs -name '*.png' | grep -q . || fail "no last screen in the evidence"
        back || fail "afterwards: $(driver $card) and $(driver $(audio $card))"
    "#;
    script(scene, 300, body)
}

pub(crate) fn lab_fault(scene: &Scene) -> Result<()> {
    scene.shipped_recipes()?;
    // without retries: else the run would begin again in a fresh lab, and pass
    let lab = ["lab", "run", "--fault-retries", "0", "--profile", "one-card"];
    let run = [&lab[..], &["--", "verify", "recipes/lab-guest.toml"]].concat();
    let mut running = scene.no43(&run)?.limit(300).start()?;
    let outer = || scene.processes().into_iter().find(|(_, command)| command.contains("qemu-system-x86_64"));
    running.wait_until("the lab's QEMU", 120, |_| outer().is_some())?;
    std::thread::sleep(std::time::Duration::from_secs(5)); // somewhere within the inner run
    let (pid, _) = outer().context("the lab's QEMU runs")?;
    rustix::process::kill_process(Pid::from_raw(pid).context("a process id is not 0")?, Signal::KILL)?;
    let seen = running.done()?.must_exit(code::LAB_FAULT)?.must_say(&["lab fault"])?;
    ensure!(!seen.all().contains("FAILED (guest)"), "a verdict about the guest:\n{}", seen.all());
    Ok(())
}
