//! A lab that is up, with a shell in it: for cases that kill, hold and race inside the lab host.
//!
//! `no43 lab run` is the way in for people. These cases need to act *beside* the inner `no43`, so they send scripts
//! through the lab host's guest agent, as root, to functions that `PRELUDE` defines.

use crate::expect::listing;
use crate::programs;
use crate::run::Seen;
use crate::scene::Scene;
use anyhow::{Context, Result};
use no43_machine::agent::{Agent, ExecLimits};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Restoring takes under a second; the first time on a machine builds the lab host and boots it.
const UP_LIMIT: u64 = 1200;

/// More output than this says nothing that its beginning does not say.
const OUTPUT_LIMIT: u64 = 1 << 20;

/// What every script starts with. `no43` runs as the ordinary user `lab`, as in `no43 lab run`.
const PRELUDE: &str = r#"
set -u
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
work=/no43/share/work
cd /home/lab
fail() { tail -n 20 verify.log 2>/dev/null; echo "$*" >&2; exit 1; }
rm -f verify.log verify.code
memlock=unlimited
no43() {
    prlimit --memlock=$memlock:$memlock -- setpriv --reuid=lab --regid=lab --init-groups --inh-caps=-all -- \
        env -i NO43_GUEST="$work/no43-guest" PATH="$PATH" HOME=/home/lab USER=lab NO_COLOR=1 NO43_STORE=/no43/store NO43_STATE=/run/no43-lab \
        "$work/no43" "$@"
}
driver() { basename "$(readlink -f "/sys/bus/pci/devices/$1/driver" 2>/dev/null)"; }
# within SECONDS COMMAND...: waits until it holds
within() {
    local end=$((SECONDS + $1)); shift
    until "$@"; do [ $SECONDS -lt $end ] || fail "not within the limit: $*"; sleep 0.1; done
}
is() { [ "$(driver "$1")" = "$2" ]; }
qemu() { pgrep -u lab -x 'qemu-system-x86' | head -n 1; }
running() { [ -n "$(qemu)" ]; }
# runs `no43 verify` in the background; its pid is in $inner, its output in verify.log, its exit code in verify.code
verify() {
    rm -f verify.log verify.code
    ( no43 verify --no-build --locked --runs /home/lab/runs --set checks.picture=false "$@" \
        "$work/recipes/${recipe:-lab-guest}.toml" > verify.log 2>&1; echo $? > verify.code ) &
    within 20 begun
    inner=$(pgrep -u lab -o -x no43)
}
begun() { ended || pgrep -u lab -x no43 > /dev/null; }
ended() { [ -s verify.code ]; }
audio() { echo "${1%.*}.1"; }
"#;

/// What stands still in a lab host whose script did not end: its words so far, the processes, and where the kernel holds ours.
const STANDING: &str = r#"
for f in /tmp/tmp.*/out /tmp/tmp.*/err; do [ -s "$f" ] && echo "-- $f" && tail -n 20 "$f"; done
for f in /home/lab/*.log; do [ -s "$f" ] && echo "-- $f" && tail -n 3 "$f"; done
ps axww -o pid,ppid,stat,etimes,wchan:24,args | grep -v '\]$' | cut -c 1-300
for p in $(pgrep -x no43) $(pgrep -x qemu-system-x86); do
    for t in /proc/$p/task/*; do echo "-- $p $(cat $t/comm)"; cat $t/syscall $t/stack; done
done
ls -lR /run/no43-lab /run/no43 | grep -v '^total'
"#;

/// What [`STANDING`] says; an agent that is gone as well says nothing.
fn standing(agent: &Agent) -> String {
    let limits = ExecLimits::within(Duration::from_secs(30));
    match agent.exec(&["/bin/sh", "-c", STANDING], &limits) {
        Ok(out) => out.stdout_text(),
        Err(error) => format!("nobody inside can be asked: {error}"),
    }
}

/// A lab that is up.
#[derive(Debug)]
pub struct LabHost<'s> {
    scene: &'s Scene,
    profile: &'static str,
    agent_socket: PathBuf,
    console: PathBuf,
    share: PathBuf,
    is_up: bool,
}

impl<'s> LabHost<'s> {
    /// Brings the lab up, and carries `no43`, the guest program, the recipes and their lock into it. The lab guest's
    /// image is built before, because the store is read-only inside.
    pub fn up(scene: &'s Scene, profile: &'static str) -> Result<Self> {
        scene.shipped_recipes()?;
        scene.no43(&["build", "recipes/lab-guest.toml"])?.limit(UP_LIMIT).ok()?;
        scene.no43(&["lab", "up", "--profile", profile])?.limit(UP_LIMIT).ok()?;
        let dir = scene.state().join("labs").join(profile);
        let record = std::fs::read(dir.join("lab.json")).context("failed to read the lab's record")?;
        let record: Value = serde_json::from_slice(&record)?;
        let work =
            record.get("work").and_then(Value::as_str).context("the lab's record names no work folder")?;
        let host = Self {
            scene,
            profile,
            agent_socket: dir.join("ga.sock"),
            console: Path::new(work).join("console.log"),
            share: Path::new(work).join("share"),
            is_up: true,
        };
        host.carry(&programs::no43()?, "no43")?;
        host.carry(&programs::guest()?, "no43-guest")?;
        for (name, _) in listing(&scene.work().join("recipes"))? {
            host.carry(&scene.work().join("recipes").join(&name), &format!("recipes/{name}"))?;
        }
        Ok(host)
    }

    /// Copies a file into the folder that scripts call `$work`; everybody inside may read it.
    pub fn carry(&self, from: &Path, to: &str) -> Result<()> {
        let to = self.share.join("work").join(to);
        std::fs::create_dir_all(to.parent().context("a file lies in a folder")?)?;
        std::fs::copy(from, &to)
            .with_context(|| format!("failed to carry {} into the lab", from.display()))?;
        Ok(())
    }

    /// Asks the lab's own QEMU: to plug something into the lab host, or to break it.
    pub fn outer(&self, command: &str, arguments: Value) -> Result<Value> {
        let socket = self.agent_socket.with_file_name("qmp.sock");
        let qmp = no43_machine::qmp::Qmp::connect(&socket, Duration::from_secs(10))?;
        Ok(qmp.raw(command, arguments)?)
    }

    /// Runs a bash script inside, as root, after the prelude; it must end with 0 within `seconds`.
    pub fn script(&self, seconds: u64, script: &str) -> Result<Seen> {
        let whole = format!("{PRELUDE}\n{script}");
        let start = Instant::now();
        let argv = ["/bin/bash", "-c", whole.as_str()];
        let limits = ExecLimits::within(Duration::from_secs(seconds));
        // A connection for each script: QEMU serves one at a time, and `no43 lab down` wants it too.
        let agent = Agent::on_socket(&self.agent_socket);
        let out = agent.exec_saved(&argv, &limits, OUTPUT_LIMIT).with_context(|| {
            let (console, inside) = (self.last_words(), standing(&agent));
            format!("failed to run a script in the lab, whose console {console}\n{inside}")
        })?;
        drop(agent);
        let seen = Seen {
            command: format!("script in the lab {}", self.profile),
            code: out.code.and_then(|c| i32::try_from(c).ok()),
            signal: None,
            stdout: out.stdout_text(),
            stderr: out.stderr_text(),
            time: start.elapsed(),
        };
        seen.must_exit(0)
    }

    /// What tells a panic of the lab host from a hang, and where it was.
    fn last_words(&self) -> String {
        let console = std::fs::read(&self.console).unwrap_or_default();
        let console = String::from_utf8_lossy(&console);
        match console.lines().find(|line| line.contains("BUG: ") || line.contains("panic")) {
            Some(line) => format!("says: {line}"),
            None => "shows no panic".to_owned(),
        }
    }

    /// Shuts the lab host down in order and boots it again, from its own disk and with its own initrd.
    pub fn reboot(&self) -> Result<()> {
        self.scene.no43(&["lab", "reboot", "--profile", self.profile])?.limit(UP_LIMIT).ok().map(drop)
    }

    /// Takes the lab down.
    pub fn down(mut self) -> Result<()> {
        self.is_up = false;
        self.scene.no43(&["lab", "down", self.profile])?.limit(60).ok()?;
        Ok(())
    }
}

impl Drop for LabHost<'_> {
    /// A case that failed: the lab's overlay lies in the shared store, where killing QEMU alone would leave it.
    fn drop(&mut self) {
        if self.is_up
            && let Ok(down) = self.scene.no43(&["lab", "down", self.profile])
        {
            let _ = down.limit(60).done();
        }
    }
}
