//! `ci/bench`: figures as ratios against a named peer, measured in the same run in alternation.

mod agent;
mod diagnosis;
mod driver;
mod keep;
mod media;

use crate::binaries::{self, Binaries, Profile};
use crate::stats::{median, median_interval};
use crate::steps::seconds;
use crate::{Install, Tier, packages};
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use xshell::{Shell, cmd};

/// The recipe whose image is built and asked for.
const RECIPE: &str = "recipes/lab-guest.toml";

/// Options of `ci/bench`.
#[derive(clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    install: Install,
    /// Only these figures; may be given again (build, spawn, keep, gpus, media, setup-disk, memory, driver, diagnosis, image, demo)
    #[arg(long, value_name = "FIGURE")]
    only: Vec<String>,
    /// Measure the warm demo too (minutes)
    #[arg(long)]
    demo: bool,
    /// Print JSON on standard output instead of the table
    #[arg(long)]
    json: bool,
    /// How often the guest image and its peer are built
    #[arg(long, default_value_t = 1, value_name = "N")]
    image_pairs: usize,
}

/// What a figure is measured with.
struct Bench<'a> {
    sh: &'a Shell,
    root: PathBuf,
    no43: PathBuf,
    guest: PathBuf,
    image_pairs: usize,
}

/// A measured figure.
struct Figure {
    name: &'static str,
    /// What is compared: ours and the peer, in milliseconds unless `unit` says otherwise.
    ours: Vec<f64>,
    peer: Option<(&'static str, Vec<f64>)>,
    unit: &'static str,
    aim: &'static str,
}

/// Name, and how it is measured.
type Row = (&'static str, fn(&Bench<'_>) -> Result<Vec<Figure>>);

const FIGURES: &[Row] = &[
    ("build", unchanged_build),
    ("spawn", spawn),
    ("keep", keep::keep),
    ("agent", keep::asked),
    ("gpus", gpus),
    ("media", media::inspect),
    ("setup-disk", media::setup_disk),
    ("memory", memory),
    ("driver", driver::driver),
    ("diagnosis", diagnosis::diagnosis),
    ("image", image),
    ("demo", demo),
];

/// Measures and prints; a figure that cannot be measured is named and makes the result `false`.
pub(crate) fn run(options: &Options) -> Result<bool> {
    for name in &options.only {
        let names: Vec<_> = FIGURES.iter().map(|f| f.0).collect();
        ensure!(names.contains(&name.as_str()), "no figure '{name}'; there are {}", names.join(", "));
    }
    eprintln!("  packages   {}", packages::ensure_installed(Tier::Bench, options.install.permission())?);
    let (root, sh) = (binaries::root()?, Shell::new()?);
    sh.change_dir(&root);
    let binaries = Binaries::of(&root, Profile::Release);
    binaries.announce(&sh);
    for command in binaries::build_commands(&sh, Profile::Release) {
        command.run().context("failed to build what is measured")?;
    }
    let bench = Bench {
        sh: &sh,
        root: root.clone(),
        no43: binaries.no43,
        guest: binaries.guest,
        image_pairs: options.image_pairs.max(1),
    };

    let wanted = |name: &str| match options.only.is_empty() {
        true => name != "demo" || options.demo,
        false => options.only.iter().any(|o| o == name),
    };
    let (mut figures, mut failures) = (Vec::new(), Vec::new());
    for (name, measure) in FIGURES.iter().filter(|f| wanted(f.0)) {
        eprintln!("── {name}");
        match measure(&bench) {
            Ok(found) => figures.extend(found),
            Err(error) => failures.push(format!("{name}: {error:#}")),
        }
    }
    if options.json {
        let rows: Vec<Value> = figures.iter().map(Figure::json).collect();
        println!("{:#}", json!({ "figures": rows, "failures": failures }));
    } else {
        println!("{}", table(&figures));
        failures.iter().for_each(|f| println!("  not measured: {f}"));
    }
    Ok(failures.is_empty())
}

/// Runs a program to its end with its output thrown away; milliseconds.
fn timed(command: &mut Command) -> Result<f64> {
    let start = Instant::now();
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    let time = start.elapsed();
    let status = status.with_context(|| format!("failed to start {command:?}"))?;
    ensure!(status.success(), "{command:?} ended with {status}");
    Ok(time.as_secs_f64() * 1000.0)
}

/// Alternates two measurements, so that whatever else the machine does meets both; the first pair warms up.
fn pairs(
    n: usize,
    mut a: impl FnMut() -> Result<f64>,
    mut b: impl FnMut() -> Result<f64>,
) -> Result<(Vec<f64>, Vec<f64>)> {
    a()?;
    b()?;
    let (mut ours, mut peer) = (Vec::with_capacity(n), Vec::with_capacity(n));
    for _ in 0..n {
        ours.push(a()?);
        peer.push(b()?);
    }
    Ok((ours, peer))
}

impl Bench<'_> {
    fn no43(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.no43);
        command.args(args).current_dir(&self.root).env("NO43_GUEST", &self.guest);
        command
    }
}

fn unchanged_build(b: &Bench<'_>) -> Result<Vec<Figure>> {
    timed(&mut b.no43(&["build", RECIPE])).context("the image must be there before it can be unchanged")?;
    let (ours, peer) =
        pairs(20, || timed(&mut b.no43(&["build", RECIPE])), || timed(&mut b.no43(&["--version"])))?;
    Ok(vec![Figure {
        name: "unchanged no43 build",
        ours,
        peer: Some(("no43 --version", peer)),
        unit: "ms",
        aim: "under 10 ms",
    }])
}

/// Lists of numbers that an example prints as JSON.
fn columns<const N: usize>(command: xshell::Cmd<'_>, keys: [&str; N]) -> Result<[Vec<f64>; N]> {
    let shown = command.to_string();
    let text = command.quiet().read().with_context(|| format!("failed to run {shown}"))?;
    let measured: Value =
        serde_json::from_str(text.trim()).with_context(|| format!("{shown} printed no JSON"))?;
    let mut lists = keys.map(|_| Vec::new());
    for (key, list) in keys.iter().zip(&mut lists) {
        let printed = measured.get(key).and_then(Value::as_array);
        let printed = printed.with_context(|| format!("{shown} printed no {key}"))?;
        list.extend(printed.iter().filter_map(Value::as_f64));
    }
    Ok(lists)
}

/// The example measures both sides itself, since only it sees when the guest's CPUs run.
fn spawn(b: &Bench<'_>) -> Result<Vec<Figure>> {
    let sh = b.sh;
    let features = "--no-default-features";
    let command = cmd!(
        sh,
        "cargo run -q --release -p no43-machine {features} --example spawn_bench -- --pairs 50 --json"
    );
    let [ours, peer] = columns(command, ["no43_ms", "by_hand_ms"])?;
    Ok(vec![Figure {
        name: "spawn to guest CPUs running",
        ours,
        peer: Some(("the same QEMU by hand over QMP", peer)),
        unit: "ms",
        aim: "at most 10 ms added",
    }])
}

fn gpus(b: &Bench<'_>) -> Result<Vec<Figure>> {
    let lspci = || timed(Command::new("lspci").arg("-nnk"));
    let (ours, peer) = pairs(50, || timed(&mut b.no43(&["gpus"])), lspci)?;
    Ok(vec![Figure {
        name: "no43 gpus",
        ours,
        peer: Some(("lspci -nnk", peer)),
        unit: "ms",
        aim: "not slower",
    }])
}

/// The largest resident memory of one run of `no43`, in MiB.
fn memory(b: &Bench<'_>) -> Result<Vec<Figure>> {
    let rows: [(&'static str, &[&str]); 4] = [
        ("memory of no43 gpus", &["gpus"]),
        ("memory of no43 plan", &["plan", RECIPE]),
        ("memory of no43 build (unchanged)", &["build", RECIPE]),
        ("memory of no43 image verify", &["image", "verify"]),
    ];
    let figure = |(name, args): (&'static str, &[&str])| -> Result<Figure> {
        let mut command = Command::new("/usr/bin/time");
        command.args(["-f", "%M"]).arg(&b.no43).args(args);
        Ok(Figure { name, ours: vec![peak(b, &mut command)?], peer: None, unit: "MiB", aim: "" })
    };
    let mut figures: Vec<Figure> = rows.into_iter().map(figure).collect::<Result<_>>()?;
    figures.extend(lab_memory(b)?);
    Ok(figures)
}

/// A whole rehearsal: the outer `no43 lab run`, and the `no43 verify` inside, which says itself what it took.
fn lab_memory(b: &Bench<'_>) -> Result<Vec<Figure>> {
    let scratch = tempfile::tempdir()?;
    let evidence = scratch.path().join("evidence");
    let mut command = b.no43(&["lab", "run", "--profile", "one-card", "--evidence"]);
    command.arg(&evidence).args(["--", "verify", RECIPE]);
    let outer = own_peak(&mut command)?;
    let report: Value = serde_json::from_slice(&std::fs::read(evidence.join("report.json"))?)?;
    let inner = fact(&report, "memory at most").context("the report names no memory")?;
    let inner = mib(inner).with_context(|| format!("'{inner}' is no amount of memory"))?;
    let figure = |name, value| Figure { name, ours: vec![value], peer: None, unit: "MiB", aim: "" };
    Ok(vec![figure("memory of no43 lab run", outer), figure("memory of no43 verify", inner)])
}

/// The value of the first fact of this name, in depth.
fn fact<'a>(value: &'a Value, name: &str) -> Option<&'a str> {
    match value {
        Value::Object(map) if map.get("name").is_some_and(|n| n == name) => map.get("value")?.as_str(),
        Value::Object(map) => map.values().find_map(|v| fact(v, name)),
        Value::Array(list) => list.iter().find_map(|v| fact(v, name)),
        _ => None,
    }
}

/// `7.3 MiB` as a number.
fn mib(text: &str) -> Option<f64> {
    text.strip_suffix(" MiB")?.parse().ok()
}

/// Runs a program and looks ten times a second how much memory it has had at most, in MiB: `time` would count its QEMU too.
fn own_peak(command: &mut Command) -> Result<f64> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().with_context(|| format!("failed to start {command:?}"))?;
    let status = format!("/proc/{}/status", child.id());
    let mut kib = 0.0_f64;
    loop {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let peak = text.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
        kib = kib.max(peak.and_then(|peak| peak.parse().ok()).unwrap_or(0.0));
        if let Some(ended) = child.try_wait()? {
            ensure!(ended.success(), "{command:?} ended with {ended}");
            return Ok(kib / 1024.0);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Runs `time -f %M PROGRAM …`; the largest resident memory in MiB.
fn peak(b: &Bench<'_>, command: &mut Command) -> Result<f64> {
    command.stdin(Stdio::null()).current_dir(&b.root).env("NO43_GUEST", &b.guest);
    let out = command.output().context("failed to start /usr/bin/time (package time)")?;
    let text = String::from_utf8_lossy(&out.stderr);
    ensure!(out.status.success(), "{command:?} ended with {}:\n{text}", out.status);
    let kib: f64 =
        text.lines().last().unwrap_or_default().trim().parse().context("time printed no number")?;
    Ok(kib / 1024.0)
}

/// Our image in an empty store against mmdebstrap and `mke2fs -d` with the same packages; both fetch everything.
fn image(b: &Bench<'_>) -> Result<Vec<Figure>> {
    let plan = b.no43(&["plan", "--json", RECIPE]).output()?;
    let plan: Value = serde_json::from_slice(&plan.stdout).context("no43 plan --json printed no JSON")?;
    let peer = PlainImage::of(&plan)?;
    let scratch = tempfile::Builder::new().prefix("no43-bench-").tempdir()?;
    let (mut ours, mut plain) = (Vec::new(), Vec::new());
    for n in 0..b.image_pairs {
        let store = scratch.path().join(format!("store-{n}"));
        ours.push(timed(b.no43(&["build", RECIPE]).env("NO43_STORE", &store))?);
        let _ = std::fs::remove_dir_all(&store);
        plain.push(peer.build(scratch.path())?);
    }
    Ok(vec![Figure {
        name: "guest image build",
        ours,
        peer: Some(("mmdebstrap + mke2fs -d", plain)),
        unit: "ms",
        aim: "at most 1.3 times",
    }])
}

/// What a person without no43 would type for the same packages.
struct PlainImage {
    suite: String,
    variant: String,
    packages: String,
}

impl PlainImage {
    /// Reads suite, variant and packages of the first layer, wherever in it they are.
    fn of(plan: &Value) -> Result<Self> {
        let layer = find(plan, "layers").and_then(|l| l.get(0)).context("the plan has no layers")?;
        let text = |key| find(layer, key).and_then(Value::as_str).map(str::to_owned);
        let packages =
            find(layer, "packages").and_then(Value::as_array).context("the first layer has no packages")?;
        let kernel = find(layer, "kernel");
        let packages: Vec<&str> = packages.iter().chain(kernel).filter_map(Value::as_str).collect();
        Ok(Self {
            suite: text("suite").context("the first layer names no suite")?,
            variant: text("variant").unwrap_or_else(|| "minbase".to_owned()),
            packages: packages.join(","),
        })
    }

    fn build(&self, scratch: &Path) -> Result<f64> {
        let (tree, disk) = (scratch.join("plain"), scratch.join("plain.ext4"));
        let mut mmdebstrap = Command::new("mmdebstrap");
        let (variant, include) =
            (format!("--variant={}", self.variant), format!("--include={}", self.packages));
        mmdebstrap.args([variant.as_str(), include.as_str(), "--aptopt=APT::Install-Recommends \"false\""]);
        let tree_time = timed(mmdebstrap.arg(&self.suite).arg(&tree))?;
        let mut mke2fs = Command::new("mke2fs");
        let disk_time = timed(mke2fs.args(["-q", "-t", "ext4", "-d"]).args([&tree, &disk]).arg("4G"))?;
        std::fs::remove_dir_all(&tree)?;
        std::fs::remove_file(&disk)?;
        Ok(tree_time + disk_time)
    }
}

/// The first value with this key, in depth.
fn find<'a>(value: &'a Value, key: &str) -> Option<&'a Value> {
    match value {
        Value::Object(map) => map.get(key).or_else(|| map.values().find_map(|v| find(v, key))),
        Value::Array(list) => list.iter().find_map(|v| find(v, key)),
        _ => None,
    }
}

fn demo(b: &Bench<'_>) -> Result<Vec<Figure>> {
    let one = || -> Result<f64> {
        let out = Command::new(b.root.join("ci/demo"))
            .args(["--no-install", "--json"])
            .stdin(Stdio::null())
            .output()?;
        if !out.status.success() {
            bail!("ci/demo failed:\n{}", String::from_utf8_lossy(&out.stderr));
        }
        let text = String::from_utf8_lossy(&out.stdout);
        let last = text.lines().last().unwrap_or_default();
        let result: Value = serde_json::from_str(last).context("ci/demo --json printed no JSON")?;
        result
            .get("seconds")
            .and_then(Value::as_f64)
            .context("ci/demo --json names no seconds")
            .map(|s| s * 1000.0)
    };
    one().context("the demo that warms up")?;
    Ok(vec![Figure { name: "ci/demo, warm", ours: vec![one()?], peer: None, unit: "ms", aim: "under 4 min" }])
}

impl Figure {
    /// Differences within pairs, when both sides were measured equally often.
    fn added(&self) -> Option<Vec<f64>> {
        let (_, peer) = self.peer.as_ref()?;
        (peer.len() == self.ours.len()).then(|| self.ours.iter().zip(peer).map(|(a, b)| a - b).collect())
    }

    /// Ratios within pairs.
    fn ratios(&self) -> Option<Vec<f64>> {
        let (_, peer) = self.peer.as_ref()?;
        (peer.len() == self.ours.len()).then(|| self.ours.iter().zip(peer).map(|(a, b)| a / b).collect())
    }

    fn json(&self) -> Value {
        let part = |values: &[f64]| json!({ "median": median(values), "interval95": median_interval(values), "n": values.len() });
        json!({
            "name": self.name, "unit": self.unit, "aim": self.aim, "ours": part(&self.ours),
            "peer": self.peer.as_ref().map(|(name, values)| json!({ "name": name, "figures": part(values) })),
            "added": self.added().map(|v| part(&v)), "ratio": self.ratios().map(|v| part(&v)),
        })
    }
}

/// A number with its unit: `4.2 ms`, `81.3 s`, `12.0 MiB`.
fn shown(value: f64, unit: &str) -> String {
    match unit {
        "ms" if value.abs() >= 10_000.0 => seconds(Duration::from_secs_f64(value.abs() / 1000.0)),
        "ms" if value.abs() < 100.0 => format!("{value:.2} ms"),
        _ => format!("{value:.1} {unit}"),
    }
}

fn interval(values: &[f64], show: impl Fn(f64) -> String) -> String {
    match (median(values), median_interval(values)) {
        (Some(m), Some((low, high))) if values.len() > 1 => {
            format!("{} ({} to {})", show(m), show(low), show(high))
        }
        (Some(m), _) => show(m),
        _ => "nothing".to_owned(),
    }
}

/// Every figure in two or three lines: ours, the peer, how they compare and what is aimed at.
fn table(figures: &[Figure]) -> String {
    let mut lines = vec!["  medians with 95 % intervals, from pairs measured in alternation".to_owned()];
    for f in figures {
        let unit = |v| shown(v, f.unit);
        lines.push(format!("  {:<34} {}   n={}", f.name, interval(&f.ours, unit), f.ours.len()));
        if let Some((name, values)) = &f.peer {
            lines.push(format!("    {name:<32} {}", interval(values, unit)));
        }
        if let (Some(added), Some(ratios)) = (f.added(), f.ratios()) {
            let ratio = interval(&ratios, |v| format!("{v:.2}"));
            lines.push(format!("    {:<32} {}, ratio {ratio}", "added", interval(&added, unit)));
        }
        if !f.aim.is_empty() {
            lines.push(format!("    {:<32} {}", "aim", f.aim));
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_shows_both_sides_and_how_they_compare() {
        let paired = Figure {
            name: "no43 gpus",
            ours: vec![2.0, 2.0, 2.0],
            peer: Some(("lspci -nnk", vec![4.0, 4.0, 4.0])),
            unit: "ms",
            aim: "not slower",
        };
        let single = Figure {
            name: "ci/demo, warm",
            ours: vec![161_000.0],
            peer: None,
            unit: "ms",
            aim: "under 4 min",
        };
        insta::assert_snapshot!(table(&[paired, single]), @r"
        medians with 95 % intervals, from pairs measured in alternation
        no43 gpus                          2.00 ms (2.00 ms to 2.00 ms)   n=3
          lspci -nnk                       4.00 ms (4.00 ms to 4.00 ms)
          added                            -2.00 ms (-2.00 ms to -2.00 ms), ratio 0.50 (0.50 to 0.50)
          aim                              not slower
        ci/demo, warm                      2:41 min   n=1
          aim                              under 4 min
        ");
    }

    #[test]
    fn the_peer_reads_the_first_layer_of_the_plan() {
        let plan = json!({ "plan": { "layers": [{ "what": { "debian": { "suite": "bookworm", "variant": "minbase", "packages": ["a", "b"] } } }] } });
        let peer = PlainImage::of(&plan).expect("all is there");
        assert_eq!((peer.suite.as_str(), peer.packages.as_str()), ("bookworm", "a,b"));
        assert!(PlainImage::of(&json!({ "layers": [] })).is_err());
    }
}
