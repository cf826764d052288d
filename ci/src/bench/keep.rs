//! Kept machines: from `no43 run` to running guest CPUs against QEMU by hand, what watches over a machine, what a new
//! instance costs, and what a job costs beyond its guest.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::{Value, json};
use xshell::cmd;

use super::{Bench, Figure, agent, columns, timed};

/// A guest without a card, so that no lab is needed.
const RECIPE: &str = "extends = \"lab-guest.toml\"\ncard = []\n[checks]\ncard = false\ndriver = false\nconnector = false\npicture = false\nlifecycle = []\n";
/// Pairs of a start by us and one by hand.
const STARTS: usize = 50;
/// In so many of them the supervisor comes to rest, and its memory is measured.
const RESTS: usize = 10;
const ROUNDS: usize = 20;
const JOBS: usize = 5;
/// What a person writes to QEMU to know that the guest runs.
const ASK: &[u8] = b"{\"execute\":\"qmp_capabilities\"}\n{\"execute\":\"query-status\"}\n";
/// For a supervisor to come to rest after the start.
const REST: Duration = Duration::from_secs(2);

pub(super) fn keep(b: &Bench<'_>) -> Result<Vec<Figure>> {
    let scratch = tempfile::Builder::new().prefix("n43-").tempdir()?;
    // a person's state is in $XDG_RUNTIME_DIR, which is memory; another file system would add its syncs
    let memory = Path::new("/dev/shm");
    let memory = if memory.is_dir() { memory } else { scratch.path() };
    let state = tempfile::Builder::new().prefix("n43-").tempdir_in(memory)?;
    let machines = Machines::new(b, scratch.path(), state.path())?;
    let mut figures = starts(&machines)?;
    figures.push(machines.instances()?);
    figures.push(machines.jobs()?);
    Ok(figures)
}

/// What is asked of a guest that runs, without KVM where this host has none.
pub(super) fn asked(b: &Bench<'_>) -> Result<Vec<Figure>> {
    let scratch = tempfile::Builder::new().prefix("n43-").tempdir()?;
    let state = tempfile::Builder::new().prefix("n43-").tempdir()?;
    let machines = Machines::new(b, scratch.path(), state.path())?;
    machines.with_guest(|| agent::agent(b, &state.path().join("m/hand")))
}

fn starts(machines: &Machines<'_>) -> Result<Vec<Figure>> {
    let (mut ours, mut peer, mut memory) = (Vec::new(), Vec::new(), Vec::new());
    // the first pair warms up
    for round in 0..=STARTS {
        let run = machines.run(if (1..=RESTS).contains(&round) { REST } else { Duration::ZERO })?;
        let by_hand = machines.by_hand(&run.argv)?;
        if round > 0 {
            ours.push(run.started_ms);
            peer.push(by_hand);
        }
        if (1..=RESTS).contains(&round) {
            memory.push(run.supervisor_mib);
        }
    }
    Ok(vec![
        Figure {
            name: "no43 run to guest CPUs running",
            ours,
            peer: Some(("the same QEMU by hand", peer)),
            unit: "ms",
            aim: "at most 10 ms added",
        },
        Figure { name: "memory of a supervisor", ours: memory, peer: None, unit: "MiB", aim: "under 15 MB" },
    ])
}

struct Machines<'a> {
    b: &'a Bench<'a>,
    dir: &'a Path,
    state: &'a Path,
}

/// One run, from the command to the end of its machine.
struct Run {
    /// From the start of the command to the event that tells of running CPUs.
    started_ms: f64,
    supervisor_mib: f64,
    /// What QEMU was started with.
    argv: Vec<String>,
}

impl<'a> Machines<'a> {
    /// With the recipes in `dir`, and the guest's image built.
    fn new(b: &'a Bench<'a>, dir: &'a Path, state: &'a Path) -> Result<Self> {
        let recipes = dir.join("recipes");
        std::fs::create_dir(&recipes)?;
        for file in
            std::fs::read_dir(b.root.join("recipes"))?.flatten().filter(|entry| entry.path().is_file())
        {
            std::fs::copy(file.path(), recipes.join(file.file_name()))?;
        }
        std::fs::write(recipes.join("keep.toml"), RECIPE)?;
        let machines = Self { b, dir, state };
        timed(&mut machines.no43(&["build", "recipes/keep.toml"]))
            .context("failed to build the guest's image")?;
        Ok(machines)
    }

    fn no43(&self, args: &[&str]) -> Command {
        let mut command = self.b.no43(args);
        command.current_dir(self.dir).env("NO43_STATE", self.state);
        command.env("NO43_INSTANCES", self.dir.join("instances"));
        command
    }

    /// With a pause before the memory is measured.
    fn run(&self, rest: Duration) -> Result<Run> {
        let began = Instant::now();
        let mut command = self.no43(&["--json", "run", "--name", "keep", "recipes/keep.toml"]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let measured = self.measure(&mut child, began, rest);
        timed(&mut self.no43(&["stop", "--force", "keep"])).context("failed to stop the machine")?;
        child.wait()?;
        measured
    }

    fn measure(&self, child: &mut Child, began: Instant, rest: Duration) -> Result<Run> {
        let lines = BufReader::new(child.stdout.take().context("no output to read")?).lines();
        let started = lines.map_while(std::io::Result::ok).find(|line| line.contains("\"started\""));
        let started_ms = began.elapsed().as_secs_f64() * 1000.0;
        let line = started.context("no43 run did not tell of a start")?;
        std::thread::sleep(rest);
        let event: Value = serde_json::from_str(&line)?;
        let qemu = event.get("pid").and_then(Value::as_u64).with_context(|| format!("no pid in {line}"))?;
        let note = self.state.join("m/keep/run.json");
        let note: Value = serde_json::from_slice(&std::fs::read(note)?)?;
        let supervisor = note.pointer("/supervisor/pid").and_then(Value::as_u64).context("no supervisor")?;
        let argv = std::fs::read(format!("/proc/{qemu}/cmdline"))?;
        let argv = argv.split(|byte| *byte == 0).filter(|word| !word.is_empty());
        Ok(Run {
            started_ms,
            supervisor_mib: resident_mib(supervisor)?,
            argv: argv.map(|word| String::from_utf8_lossy(word).into_owned()).collect(),
        })
    }

    /// The example measures both sides itself: a command would count its own start and a plan.
    fn instances(&self) -> Result<Figure> {
        let (sh, guest, rounds) = (self.b.sh, &self.b.guest, ROUNDS.to_string());
        let recipe = self.dir.join("recipes/keep.toml");
        let command = cmd!(
            sh,
            "cargo run -q --release -p no43-harness --example instance_bench -- {recipe} {guest} {rounds}"
        );
        let [ours, peer] = columns(command, ["no43_ms", "qemu_img_ms"])?;
        Ok(Figure {
            name: "a new instance",
            ours,
            peer: Some(("qemu-img create of its overlay", peer)),
            unit: "ms",
            aim: "at most 10 ms added",
        })
    }

    /// Of a job that does nothing, all that is not its guest's boot.
    fn jobs(&self) -> Result<Figure> {
        let (mut ours, mut peer) = (Vec::new(), Vec::new());
        for _ in 0..JOBS {
            peer.push(self.command_by_hand()?);
            let began = Instant::now();
            let output = self.no43(&["--json", "job", "recipes/keep.toml", "--", "true"]).output()?;
            let whole = began.elapsed().as_secs_f64() * 1000.0;
            ensure!(output.status.success(), "the job failed: {}", String::from_utf8_lossy(&output.stderr));
            let ended: Value = serde_json::from_slice(&output.stdout)?;
            let boot =
                ended.get("boot_ms").and_then(Value::as_f64).context("no boot_ms in a job's result")?;
            ours.push(whole - boot);
        }
        Ok(Figure {
            name: "a job, beyond its guest's boot",
            ours,
            peer: Some(("its command, asked of the agent by hand", peer)),
            unit: "ms",
            aim: "under 300 ms added",
        })
    }

    /// The job's command as the first one of a guest that has just started, where each program is still read from the disk.
    fn command_by_hand(&self) -> Result<f64> {
        self.with_guest(|| self.true_by_hand())
    }

    /// Something with a guest called 'hand' that has just started.
    fn with_guest<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let mut command = self.no43(&["--json", "run", "--name", "hand", "recipes/keep.toml"]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let mut lines = BufReader::new(child.stdout.take().context("no output to read")?).lines();
        let ready = lines.by_ref().map_while(std::io::Result::ok).any(|line| line.contains("\"ready\""));
        let time = if ready { work() } else { Err(anyhow!("the guest did not answer")) };
        let stopped =
            timed(&mut self.no43(&["stop", "--force", "hand"])).context("failed to stop the machine");
        child.wait()?;
        let removed = timed(&mut self.no43(&["instance", "rm", "--yes", "hand"]));
        // why there was no time says more than that there was nothing to stop
        time.and_then(|time| stopped.and(removed).map(|_| time))
    }

    /// From the question to the answer that tells of the program's end, in milliseconds.
    fn true_by_hand(&self) -> Result<f64> {
        let mut agent = UnixStream::connect(self.state.join("m/hand/ga.sock"))?;
        let mut answers = BufReader::new(agent.try_clone()?).lines();
        let mut ask = |question: Value| -> Result<Value> {
            agent.write_all(format!("{question}\n").as_bytes())?;
            let answer: Value = serde_json::from_str(&answers.next().context("the agent hung up")??)?;
            answer.get("return").cloned().with_context(|| format!("the agent answered {answer}"))
        };
        ask(json!({"execute": "guest-sync", "arguments": {"id": 43}}))?;
        let began = Instant::now();
        let program = json!({"path": "true"});
        let pid = ask(json!({"execute": "guest-exec", "arguments": program}))?["pid"].clone();
        while ask(json!({"execute": "guest-exec-status", "arguments": {"pid": pid}}))?["exited"] != true {
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(began.elapsed().as_secs_f64() * 1000.0)
    }

    /// The same arguments, until QEMU says over QMP that the guest's CPUs run; then it is killed.
    fn by_hand(&self, argv: &[String]) -> Result<f64> {
        let (program, arguments) = argv.split_first().context("no program")?;
        std::fs::create_dir_all(self.state.join("m/keep"))?;
        let by_stdio = |word: &String| word.replace("socket,id=qmp,fd=0,server=on,wait=off", "stdio,id=qmp");
        let began = Instant::now();
        let mut command = Command::new(program);
        command.args(arguments.iter().map(by_stdio));
        let mut qemu = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let asked = qemu.stdin.as_mut().context("no input")?.write_all(ASK);
        let lines = BufReader::new(qemu.stdout.take().context("no output to read")?).lines();
        let runs = lines.map_while(std::io::Result::ok).any(|line| line.contains("\"running\": true"));
        let time = began.elapsed().as_secs_f64() * 1000.0;
        qemu.kill()?;
        qemu.wait()?;
        asked?;
        ensure!(runs, "QEMU by hand ended before its guest ran");
        Ok(time)
    }
}

fn resident_mib(pid: u64) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").trim().parse()?;
    Ok(kib / 1024.0)
}
