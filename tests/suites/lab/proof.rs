//! What `verify` proves, and that its proof can fail.

use anyhow::{Context, Result, ensure};
use no43_harness::exit_codes as code;
use no43_tests::expect::{at, full_file};
use no43_tests::{LabHost, Run, Scene};
use serde_json::{Value, json};

/// A verify of a recipe of this repository in a lab with one card; evidence is in the scene's `evidence` folder.
fn verify(scene: &Scene, recipe: &str, more: &[&str]) -> Result<Run> {
    scene.shipped_recipes()?;
    let recipe = format!("recipes/{recipe}");
    let start = ["lab", "run", "--profile", "one-card", "--evidence", "evidence", "--", "verify", &recipe];
    Ok(scene.no43(&start)?.args(more).limit(1200))
}

fn report(scene: &Scene) -> Result<Value> {
    let dir = scene.work().join("evidence");
    for file in ["report.html", "report.json", "junit.xml"] {
        full_file(&dir.join(file))?;
    }
    Ok(serde_json::from_slice(&std::fs::read(dir.join("report.json"))?)?)
}

/// Every check of a report in order: its name and whether it passed.
fn checks(report: &Value) -> Result<Vec<(String, bool)>> {
    let list = at(report, "/main/checks")?.as_array().context("checks is a list")?;
    let one = |check: &Value| -> Result<(String, bool)> {
        let name = at(check, "/check")?.as_str().context("a name is text")?.to_owned();
        Ok((name, at(check, "/answer/outcome")? == "passed"))
    };
    list.iter().map(one).collect::<Result<_>>()
}

pub(crate) fn one_card(scene: &Scene) -> Result<()> {
    let again = ["--set", "checks.lifecycle=[\"reboot\", \"replug\", \"driver-reload\"]"];
    let seen = verify(scene, "lab-guest.toml", &again)?.ok()?.must_say(&["PASSED", "report.html"])?;
    let checks = checks(&report(scene)?)?;
    // what the lab's cards cannot show is skipped: they have no link, and compute nothing
    let bad = |c: &&(String, bool)| !c.1 && !["link", "work"].contains(&c.0.as_str());
    ensure!(checks.iter().find(bad).is_none(), "passed, although: {checks:?}");
    let seen = seen.must_say(&["PASSED without work"])?;
    for name in ["present", "driver", "connector", "picture"] {
        let times = checks.iter().filter(|c| c.0 == name).count();
        ensure!(
            times == 4,
            "'{name}' was asked {times} times instead of first, after reboot, replug and reload\n{}",
            seen.all()
        );
    }
    let html = std::fs::read_to_string(scene.work().join("evidence/report.html"))?;
    ensure!(html.contains("data:image/png;base64,"), "the report has no picture");
    for outside in ["src=\"http", "href=\"http", "<script src", "url(http"] {
        ensure!(!html.contains(outside), "the report fetches something: {outside}");
    }
    Ok(())
}

/// A guest that breaks at its third start, as a card does that its host cannot reset.
pub(crate) fn cycles(scene: &Scene) -> Result<()> {
    let recipe = r#"
extends = "lab-guest.toml"

[checks]
lifecycle = []
picture   = false

[[check]]
name = "third-time"
run  = ["/bin/sh", "-c", "echo start >> /root/starts; [ $(grep -c . /root/starts) -lt 3 ]"]
"#;
    scene.shipped_recipes()?;
    scene.write("recipes/lab-cycles.toml", recipe)?;
    let seen = verify(scene, "lab-cycles.toml", &["--cycles", "3"])?.done()?.must_exit(code::UNSTABLE)?;
    seen.must_say(&["UNSTABLE", "right 2 times, then not after power cycle 2 of 3", "third-time"])?;
    let checks = checks(&report(scene)?)?;
    ensure!(checks.iter().filter(|c| c.0 == "driver" && c.1).count() == 3, "{checks:?}");
    Ok(())
}

pub(crate) fn negative_control(scene: &Scene) -> Result<()> {
    let seen = verify(scene, "lab-control.toml", &[])?.done()?.must_exit(code::FAILED_GUEST)?;
    seen.must_say(&["FAILED", "unknown chipset"])?;
    let checks = checks(&report(scene)?)?;
    let failed = checks.iter().position(|c| !c.1 && c.0 != "link").context("something failed")?;
    ensure!(checks[failed].0 == "driver", "it failed in {:?} of {checks:?}", checks[failed]);
    ensure!(failed > 0, "nothing was green before the driver: {checks:?}");
    Ok(())
}

/// In scripts: one guest in use, and a check of it whose verdict and first cause are known beforehand.
const CONTROLS: &str = r#"
for d in /sys/bus/pci/devices/*; do [ "$(cat $d/class)" = 0x038000 ] && card=${d##*/}; done
inside() { no43 shell play -- sh -c "$*" > inside.log 2>&1 || { cat inside.log; fail "in the guest: $*"; }; }
ready() { grep -q '"ready"' /run/no43-lab/m/play/events.jsonl; }
asked() { name=$1; shift; no43 verify --running play --runs /home/lab/runs "$@" > $name.log 2>&1; echo $? > $name.code; }
# red NAME CODE CHECK CAUSE: how it ended, what is red first, and the cause that stands first
red() {
    [ "$(cat $1.code)" = "$2" ] || { cat $1.log; fail "$1 ended with $(cat $1.code) instead of $2"; }
    grep -m 1 '✘' $1.log | grep -q "✘ $3" || { cat $1.log; fail "$1: '$3' is not what is red first"; }
    grep -m 1 ' 1  ' $1.log | grep -qF -- "$4" || { cat $1.log; fail "$1: the first cause is not: $4"; }
}
"#;

/// Faults in one guest, one after the other, each red in its own check with its own cause: a function that the recipe leaves out, also
/// where the guest is somebody else's VM, and a driver that the guest forbids.
pub(crate) fn controls(scene: &Scene) -> Result<()> {
    let host = LabHost::up(scene, "one-card")?;
    let script = |seconds, body: &str| host.script(seconds, &format!("{CONTROLS}\n{body}")).map(drop);
    script(
        200,
        r#"
        rm -rf /home/lab/.local/share/no43/instances
        printf 'extends = "lab-guest.toml"\n[[card]]\nany = true\nfunctions = ["video"]\n' > $work/recipes/lab-video-only.toml
        no43 run --detach --locked --name play $work/recipes/lab-video-only.toml > run.log 2>&1 || { cat run.log; fail "no machine"; }
        within 180 ready
        asked audio
        red audio 10 audio "the machine is not given all functions of the card"

        # the same guest as somebody else's VM: its own program is not used, and only the card's name on this host tells what must be there
        strange() { name=$1; shift; no43 verify --agent /run/no43-lab/m/play/ga.sock --runs /home/lab/runs "$@" > $name.log 2>&1; echo $? > $name.code; }
        strange other --card ${card#0000:}
        red other 10 present "the machine is not given all functions of the card"
        inside 'ls -A /var/tmp'; grep -q no43 inside.log && fail "the guest program was left in the guest"
        strange well --card ${card#0000:} --check driver,quiet
        [ "$(cat well.code)" = 0 ] || { cat well.log; fail "a card that works was not proved through its agent"; }
        strange alone
        [ "$(cat alone.code)" = 10 ] && grep -qF "no graphics card of its own; its displays: 0000:01:00.0 1234:1111" alone.log || { cat alone.log; fail "an emulated adapter counts as a card"; }

        inside 'echo "blacklist bochs" > /etc/modprobe.d/no.conf; echo 0000:01:00.0 > /sys/bus/pci/devices/0000:01:00.0/driver/unbind'
        asked forbidden --skip audio
        red forbidden 10 driver "the guest's own settings forbid the card's driver (blacklist)"
        grep -qF "bochs (/etc/modprobe.d/no.conf)" forbidden.log || { cat forbidden.log; fail "the line that forbids it is not named"; }
        "#,
    )?;
    host.down()
}

/// What happens to a card while it is asked about: an error on the bus above it, and a card that leaves. Without a driver the check of it
/// waits, and that is when it happens.
pub(crate) fn while_asked(scene: &Scene) -> Result<()> {
    let host = LabHost::up(scene, "one-card")?;
    let script =
        |seconds, body: &str| host.script(seconds, &format!("{CONTROLS}\n{WAITING}\n{body}")).map(drop);
    script(
        200,
        r#"
        rm -rf /home/lab/.local/share/no43/instances
        no43 run --detach --locked --name play $work/recipes/lab-guest.toml > run.log 2>&1 || { cat run.log; fail "no machine"; }
        within 180 ready
        # the agent serves the check alone, so the driver's return is arranged before
        waiting aer '(sleep 15; echo 0000:01:00.0 > /sys/bus/pci/drivers/bochs-drm/bind) > /dev/null 2>&1 < /dev/null &'
        "#,
    )?;
    let error = json!({ "command-line": "pcie_aer_inject_error port-left-port COMP_TIME" });
    let said = host.outer("human-monitor-command", error)?.to_string();
    ensure!(said.contains("OK id: port-left-port"), "the monitor says {said}");
    script(
        120,
        r#"
        within 90 test -s aer.code
        red aer 11 quiet "the PCI Express link to the card makes errors"
        waiting gone :
        "#,
    )?;
    host.outer("device_del", json!({ "id": "card-left" }))?;
    script(
        120,
        r#"
        within 100 test -s gone.code
        red gone 11 driver "the card left the host's bus while the machine ran"
        "#,
    )?;
    host.down()
}

/// In scripts: a check of the guest that waits for a driver, in the background.
const WAITING: &str = r#"
waiting() {
    # drivers of cards come a little after the agent
    inside 'd=/sys/bus/pci/devices/0000:01:00.0/driver; until [ -e $d/unbind ]; do sleep 0.2; done; echo 0000:01:00.0 > $d/unbind;' "$2"
    export -f asked no43; export work memlock
    setsid bash -c "asked $1" > /dev/null 2>&1 < /dev/null &
    within 60 grep -q present $1.log
}
"#;

/// `recipes/debian.toml` asks for no card; this one does.
/// A whole systemd in the lab took 3 min on a machine that was busy with another lab besides.
const WITH_CARD: &str = r#"
extends = "debian.toml"

[[card]]
any = true

[checks]
ready = "15 min"
"#;

fn whole_debian(scene: &Scene, sets: &[&str]) -> Result<()> {
    scene.shipped_recipes()?;
    scene.write("recipes/debian-with-card.toml", WITH_CARD)?;
    verify(scene, "debian-with-card.toml", sets)?.limit(2400).ok()?.must_say(&["PASSED"])?;
    Ok(())
}

pub(crate) fn debian(scene: &Scene) -> Result<()> {
    whole_debian(scene, &["--set", "checks.lifecycle=[]"])
}

/// As its recipe has it; each start takes minutes.
pub(crate) fn debian_restarts(scene: &Scene) -> Result<()> {
    whole_debian(scene, &[])
}

/// OVMF under the lab's emulated KVM kills the outer QEMU, so this guest is emulated inside the emulation: 3 minutes to its
/// agent on a quiet machine.
pub(crate) fn uefi(scene: &Scene) -> Result<()> {
    let uefi = ["machine.firmware=uefi", "machine.uefi-under-lab=true", "checks.ready=30 min"];
    let sets = uefi.iter().flat_map(|set| ["--set", set]).collect::<Vec<_>>();
    verify(scene, "lab-guest.toml", &sets)?.limit(3600).ok()?.must_say(&["PASSED"])?;
    Ok(())
}

/// What must be the same, and what must not, in two restores of one snapshot.
const STATE: &str = r#"
find /usr/bin /usr/sbin /etc -xdev -type f -not -name resolv.conf -print0 | sort -z | xargs -0 sha256sum | sha256sum | cut -c1-64
cat /proc/sys/kernel/random/uuid
cat /proc/sys/kernel/random/boot_id
mktemp -u
date +%s
"#;

pub(crate) fn restored_twice(scene: &Scene) -> Result<()> {
    let mut seen: Vec<Vec<String>> = Vec::new();
    for _ in 0..2 {
        let host = LabHost::up(scene, "one-card")?;
        let lines: Vec<String> = host.script(120, STATE)?.stdout.lines().map(str::to_owned).collect();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
        let time: u64 = lines.get(4).context("five lines")?.parse()?;
        ensure!(now.abs_diff(time) <= 5, "the lab's clock is {} s off", now.abs_diff(time));
        host.down()?;
        seen.push(lines);
    }
    let (a, b) = (&seen[0], &seen[1]);
    ensure!(a[0] == b[0], "files differ between two restores");
    for (what, n) in [("random/uuid", 1), ("boot_id", 2), ("mktemp", 3)] {
        ensure!(a[n] != b[n], "{what} is {} after both restores", a[n]);
    }
    Ok(())
}
