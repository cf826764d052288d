//! What a person types and reads: help, exit codes, errors in recipes, JSON. Builds nothing.

use anyhow::{Context, Result, ensure};
use no43_harness::exit_codes as code;
use no43_tests::expect::{at, listing};
use no43_tests::programs;
use no43_tests::suite::{Case, Images, Order};
use no43_tests::{Scene, Seen};
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    no43_tests::suite::main(CASES, Order::Parallel, Images::Own)
}

static CASES: &[Case] = &[
    Case::new("help-names-every-command-and-exit-code", help),
    Case::new("an-unknown-command-or-option-is-a-usage-error", usage),
    Case::new("every-shipped-recipe-is-right", shipped_recipes),
    Case::new("a-typo-is-named-with-file-line-and-nearest-key", typo),
    Case::new("a-planned-key-is-not-called-unknown", planned_key),
    Case::new("broken-toml-is-named-with-its-line", syntax),
    Case::new("a-recipe-that-is-not-there-is-named", no_recipe),
    Case::new("a-missing-input-is-named", missing_input),
    Case::new("a-wrong-hash-shows-both-hashes", wrong_hash),
    Case::new("extends-in-a-circle-is-named", circle),
    Case::new("set-and-extends-show-where-a-value-comes-from", origins),
    Case::new("recipes-that-differ-in-card-cpus-or-password-share-all-layers", shared_layers),
    Case::new("a-changed-package-changes-the-first-layer", changed_layer),
    Case::new("the-schema-is-json-schema", schema),
    Case::new("json-is-json-also-for-errors", json_errors),
    Case::new("looking-changes-nothing", looking),
    Case::new("gpus-lists-what-sysfs-has", gpus),
    Case::new("no-such-card-is-refused-and-lists-what-there-is", no_such_card),
    Case::new("a-vm-is-asked-by-its-agents-socket-and-left-as-it-was", by_agent).needs(&["no43", "qemu-ga"]),
    Case::new("a-driver-package-says-whether-it-drives-a-card", driver_package),
    Case::new("an-iso-is-looked-into-and-a-recipe-is-checked-against-it", windows_disc),
    Case::new("an-answer-file-is-shown-and-faults-in-one-are-named", answer_file),
    Case::new("a-reader-that-goes-away-is-no-error", closed_pipe),
    Case::new("gpus-knows-the-nvidia-card", nvidia).needs(&["no43", "nvidia-card"]),
    Case::new("doctor-says-that-kvm-runs-guest-code", kvm).needs(&["no43", "kvm"]),
];

/// A recipe with nothing wrong in it.
const GOOD: &str = r#"
name = "good"

[guest]
os = "debian12"
user = { name = "player", password = { env = "PLAYER_PASSWORD" } }

[machine]
cpus = 1
memory = "512 MiB"
disk = "4 GiB"

[[card]]
any = true
"#;

fn help(scene: &Scene) -> Result<()> {
    let help = scene.no43(&["--help"])?.ok()?;
    let commands = [
        "recipe", "lock", "media", "driver", "plan", "schema", "build", "image", "answer", "verify",
        "report", "gpus", "doctor", "release", "lab",
    ];
    for command in commands {
        scene.no43(&[command, "--help"])?.ok()?.must_say(&["Usage: no43"])?;
    }
    let codes: Vec<String> =
        code::TABLE.iter().map(|(number, name, _)| format!("{number:>3}  {name}")).collect();
    let texts: Vec<&str> = commands.into_iter().chain(codes.iter().map(String::as_str)).collect();
    help.must_say(&texts)?.must_not_say(&["host-verb"])?;
    Ok(())
}

/// A real qemu-ga stands for a guest: this host itself, so that what it has decides whether there is a card.
fn by_agent(scene: &Scene) -> Result<()> {
    let nothing = scene.no43(&["verify", "--agent", "nothing.sock"])?.done()?;
    nothing.must_exit(code::USAGE)?.must_say(&["nothing.sock"])?;
    let socket = scene.work().join("ga.sock");
    let state = scene.work();
    let agent = scene.run("/usr/sbin/qemu-ga").args(["-m", "unix-listen", "-p"]).args([&socket]);
    let mut agent = agent.args(["-t"]).args([&state]).start()?;
    agent.wait_until("the agent's socket", 20, |_| socket.exists())?;
    let ours = || -> Result<Vec<String>> {
        let all = listing(Path::new("/var/tmp"))?.into_iter().map(|(name, _)| name);
        Ok(all.filter(|name| name.starts_with("no43-") && name.ends_with("/no43-guest")).collect())
    };
    let before = ours()?;
    let seen = scene.no43(&["verify", "--agent", "ga.sock"])?.limit(600).done()?;
    let said = seen.all();
    ensure!(
        said.contains("no graphics card of its own") || said.contains("✔ agent"),
        "the guest program was not asked: {said}"
    );
    ensure!(said.contains("report.html"), "no report: {said}");
    ensure!(ours()? == before, "something was left in /var/tmp: {:?}", ours()?);
    agent.signal(rustix::process::Signal::TERM)?;
    agent.done().map(drop)
}

/// As NVIDIA lays it out, with one card.
const INF: &str = r#"
[Version]
Provider  = "NVIDIA"
Class     = Display
DriverVer = 01/07/2021, 27.21.14.6172
[Manufacturer]
"NVIDIA" = Devices,NTamd64.10.0...14393
[Devices.NTamd64.10.0...14393]
"GeForce RTX 3070" = Section001, PCI\VEN_10DE&DEV_2484
"#;

fn driver_package(scene: &Scene) -> Result<()> {
    scene.write("461.72/Display.Driver/nv_dispi.inf", INF)?;
    let inspect = |more: &[&str]| scene.no43(&["driver", "inspect", "461.72"])?.args(more).done();
    let seen = inspect(&["--card", "10de:2484", "--guest", "10240"])?.must_exit(code::INPUT)?;
    seen.must_say(&["461.72", "Code 43", "from Windows build 14393 on"])?;
    inspect(&["--card", "10de:2484", "--guest", "windows10"])?
        .must_exit(code::OK)?
        .must_say(&["Section001"])?;
    inspect(&["--card", "10de:1b80"])?.must_exit(code::INPUT)?.must_say(&["10de:2484"])?;
    inspect(&["--card", "one"])?.must_exit(code::USAGE)?;
    let json = serde_json::from_str::<serde_json::Value>(&inspect(&["--json"])?.must_exit(code::OK)?.stdout)?;
    ensure!(at(&json, "/works-in-a-vm")? == false && at(&json, "/version")? == "461.72", "{json}");
    scene.write("page.exe", "<!DOCTYPE html>")?;
    scene
        .no43(&["driver", "inspect", "page.exe"])?
        .done()?
        .must_exit(code::INPUT)?
        .must_say(&["a web page"])?;
    Ok(())
}

/// A disc in the shape of Microsoft's, with one edition of Windows 10.
fn windows_iso(scene: &Scene) -> Result<()> {
    scene.write("disc/README.TXT", "This disc contains a UDF file system.")?;
    scene.write("tree/readme.txt", "a small image")?;
    std::fs::create_dir_all(scene.work().join("disc/sources"))?;
    let wim = "disc/sources/install.wim";
    let capture = ["capture", "tree", wim, "Windows 10 Professionnel"];
    scene.run("wimlib-imagex").args(capture).dir(&scene.work()).ok()?;
    let facts = ["ARCH=9", "EDITIONID=Professional", "INSTALLATIONTYPE=Client", "LANGUAGES/LANGUAGE=fr-FR"];
    let version = ["VERSION/MAJOR=10", "VERSION/MINOR=0", "VERSION/BUILD=19045", "VERSION/SPBUILD=2965"];
    let property = |fact: &&str| format!("--image-property=WINDOWS/{fact}");
    let describe = scene.run("wimlib-imagex").args(["info", wim, "1"]).dir(&scene.work());
    describe.args(facts.iter().chain(&version).map(property)).ok()?;
    std::fs::copy(scene.work().join(wim), scene.work().join("disc/sources/boot.wim"))?;
    let disc =
        ["-quiet", "-udf", "-hide", "sources", "-V", "CCCOMA_X64FRE_FR-FR_DV9", "-o", "win.iso", "disc"];
    scene.run("genisoimage").args(disc).dir(&scene.work()).ok()?;
    Ok(())
}

const WINDOWS: &str = r#"
[guest]
os = "windows10"
edition = "Professional"
language = "fr-FR"
user = { name = "joueur", password = { env = "PLAYER_PASSWORD" } }

[machine]
firmware = "uefi"
disk = "64 GiB"
disk-bus = "ahci"
memory = "4 GiB"

[inputs]
iso = { path = "win.iso" }
"#;

fn windows_disc(scene: &Scene) -> Result<()> {
    windows_iso(scene)?;
    let seen = scene.no43(&["media", "inspect", "win.iso"])?.done()?.must_exit(code::OK)?;
    seen.must_say(&["Windows 10 (10.0.19045.2965)", "amd64", "Professional", "fr-FR", "not signed"])?;
    let json = scene.no43(&["media", "inspect", "--json", "win.iso"])?.done()?.must_exit(code::OK)?.json()?;
    ensure!(
        at(&json, "/os")? == "windows10" && at(&json, "/image/0/edition-id")? == "Professional",
        "{json}"
    );
    ensure!(at(&json, "/bytes-read")?.as_u64().is_some_and(|read| read < 2_000_000), "{json}");

    scene.write("recipe.toml", WINDOWS)?;
    let locked = scene.no43(&["lock", "recipe.toml"])?.done()?.must_exit(code::OK)?;
    locked.must_say(&["iso: new"])?;
    scene.write(
        "recipe.toml",
        &WINDOWS.replace("\"Professional\"", "\"Enterprise\"").replace("fr-FR", "de-DE"),
    )?;
    let seen = scene.no43(&["plan", "recipe.toml"])?.done()?.must_exit(code::RECIPE)?;
    seen.must_say(&[
        "recipe.toml:4:",
        "no edition 'Enterprise'",
        "recipe.toml:5:",
        "de-DE is not on the media",
    ])?;

    scene.write("win.iso", "<!DOCTYPE html><title>Sign in</title>")?;
    let seen = scene.no43(&["media", "inspect", "win.iso"])?.done()?.must_exit(code::INPUT)?;
    seen.must_say(&["an HTML page", "Sign in"])?;
    let seen = scene.no43(&["lock", "--update", "iso", "recipe.toml"])?.done()?.must_exit(code::INPUT)?;
    seen.must_say(&["inputs.iso", "is an HTML page"])?;
    Ok(())
}

fn answer_file(scene: &Scene) -> Result<()> {
    scene.write("recipe.toml", WINDOWS)?;
    let show =
        |recipe: &str| scene.no43(&["answer", "show", recipe])?.env("PLAYER_PASSWORD", "hunter2").done();
    let seen = show("recipe.toml")?.must_exit(code::OK)?;
    let seen = seen.must_say(&["<Name>joueur</Name>", "Windows 10 Pro"])?.must_not_say(&["hunter2"])?;
    scene.write("debian.toml", GOOD)?;
    show("debian.toml")?.must_exit(code::RECIPE)?.must_say(&["without an answer file"])?;

    let lint = |text: &str, more: &[&str]| {
        scene.write("own.xml", text)?;
        scene.no43(&["answer", "lint", "own.xml"])?.args(more).done()
    };
    lint(&seen.stdout, &["--recipe", "recipe.toml"])?.must_exit(code::OK)?.must_say(&["nothing wrong"])?;
    let wrong = seen.stdout.replace("joueur", "Hans").replace("HideEULAPage", "HideEulaPage");
    lint(&wrong, &["--recipe", "recipe.toml"])?.must_exit(code::RECIPE)?.must_say(&[
        "own.xml:",
        "did you mean 'HideEULAPage'?",
        "guest.user.name is 'joueur'",
    ])?;
    let json = lint(&wrong, &["--json"])?.must_exit(code::RECIPE)?.json()?;
    ensure!(at(&json, "/errors")? == 1 && at(&json, "/findings/0/rule")? == "spelling", "{json}");
    lint("<unattend", &[])?.must_exit(code::RECIPE)?.must_say(&["not well-formed"])?;
    scene
        .no43(&["answer", "lint", "nowhere.xml"])?
        .done()?
        .must_exit(code::INPUT)?
        .must_say(&["nowhere.xml"])?;
    Ok(())
}

fn usage(scene: &Scene) -> Result<()> {
    scene.no43(&["gpu"])?.done()?.must_exit(code::USAGE)?.must_say(&["gpus"])?;
    scene.no43(&["gpus", "--colour-blind"])?.done()?.must_exit(code::USAGE)?;
    scene.no43(&["build"])?.done()?.must_exit(code::USAGE)?.must_say(&["RECIPE"])?;
    Ok(())
}

fn shipped_recipes(scene: &Scene) -> Result<()> {
    let mut count = 0;
    for entry in std::fs::read_dir(programs::root().join("recipes"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "toml") {
            let path = path.to_str().context("a path in this repository is UTF-8")?;
            scene.no43(&["recipe", "check", path])?.ok()?;
            scene.no43(&["recipe", "show", "--resolved", path])?.ok()?;
            count += 1;
        }
    }
    ensure!(count >= 3, "only {count} recipes are shipped");
    Ok(())
}

fn check(scene: &Scene, text: &str) -> Result<Seen> {
    scene.write("recipe.toml", text)?;
    scene.no43(&["recipe", "check", "recipe.toml"])?.done()
}

fn typo(scene: &Scene) -> Result<()> {
    check(scene, GOOD)?.must_exit(0)?;
    let seen = check(scene, &GOOD.replace("memory =", "memmory ="))?.must_exit(code::RECIPE)?;
    seen.must_say(&["recipe.toml:10:", "memmory", "memory"])?;
    let seen = check(scene, &GOOD.replace("debian12", "debain12"))?.must_exit(code::RECIPE)?;
    seen.must_say(&["recipe.toml:5:", "guest.os", "debian12"])?;
    // all problems at once, not one after the other
    let seen = check(scene, &GOOD.replace("memory =", "memmory =").replace("any =", "anny ="))?;
    seen.must_exit(code::RECIPE)?.must_say(&["recipe.toml:10:", "recipe.toml:14:"])?;
    Ok(())
}

fn planned_key(scene: &Scene) -> Result<()> {
    let planned =
        ["[[pci]]\naddress = \"01:00.0\"", "[remote]\nssh = true", "[[usb]]\ncontroller = \"00:14.0\""];
    for table in planned {
        let seen = check(scene, &format!("{GOOD}\n{table}\n"))?.must_exit(code::RECIPE)?;
        seen.must_say(&["not supported by this version"])?.must_not_say(&["unknown key"])?;
    }
    Ok(())
}

fn syntax(scene: &Scene) -> Result<()> {
    let seen = check(scene, &GOOD.replace("cpus = 1", "cpus = ="))?;
    seen.must_exit(code::RECIPE)?.must_say(&["recipe.toml:9:"])?.must_not_say(&["panicked"])?;
    check(scene, "\u{0}\u{1}")?.must_exit(code::RECIPE)?.must_not_say(&["panicked"])?;
    Ok(())
}

fn no_recipe(scene: &Scene) -> Result<()> {
    for command in [&["recipe", "check"][..], &["plan"], &["build"], &["verify"], &["lock"]] {
        let seen = scene.no43(command)?.args(["nowhere.toml"]).done()?;
        seen.must_exit(code::RECIPE)?.must_say(&["nowhere.toml"])?;
    }
    Ok(())
}

fn missing_input(scene: &Scene) -> Result<()> {
    scene.write(
        "recipe.toml",
        &format!("{GOOD}\n[[step]]\ncopy = {{ from = \"tools/\", to = \"/opt/tools\" }}\n"),
    )?;
    let seen = scene.no43(&["plan", "recipe.toml"])?.done()?;
    ensure!(seen.code != Some(0), "a plan with a folder that is not there");
    seen.must_say(&["recipe.toml:", "tools"])?;
    scene.write("recipe.toml", &format!("{GOOD}\n[inputs]\nbench = {{ path = \"bench.tar\" }}\n"))?;
    let seen = scene.no43(&["lock", "recipe.toml"])?.done()?;
    ensure!(seen.code != Some(0), "a lock without its input");
    seen.must_say(&["inputs.bench", "bench.tar"])?;
    Ok(())
}

fn wrong_hash(scene: &Scene) -> Result<()> {
    scene.write("bench.tar", "what came\n")?;
    let (asked, came) = ("0".repeat(64), "717d11d9"); // the second: first digits of sha256("what came\n")
    let input = format!("[inputs]\nbench = {{ path = \"bench.tar\", sha256 = \"{asked}\" }}\n");
    scene.write("recipe.toml", &format!("{GOOD}\n{input}"))?;
    let seen = scene.no43(&["lock", "recipe.toml"])?.done()?;
    ensure!(matches!(seen.code, Some(3 | 4)), "exit code {:?} instead of 3 or 4", seen.code);
    seen.must_say(&["bench", &asked[..8], came])?;
    Ok(())
}

fn circle(scene: &Scene) -> Result<()> {
    scene.write("a.toml", "extends = \"b.toml\"\n")?;
    scene.write("b.toml", "extends = \"a.toml\"\n")?;
    let seen = scene.no43(&["recipe", "check", "a.toml"])?.done()?;
    seen.must_exit(code::RECIPE)?.must_say(&["a.toml", "b.toml", "extends"])?;
    Ok(())
}

fn origins(scene: &Scene) -> Result<()> {
    scene.write("base.toml", GOOD)?;
    scene.write("recipe.toml", "extends = \"base.toml\"\n[machine]\nmemory = \"700 MiB\"\n")?;
    let shown =
        scene.no43(&["recipe", "show", "--resolved", "recipe.toml", "--set", "machine.cpus=2"])?.ok()?;
    shown.must_say(&["base.toml", "recipe.toml", "--set", "700 MiB"])?;
    let seen = scene.no43(&["recipe", "check", "recipe.toml", "--set", "machine.cpsu=2"])?.done()?;
    seen.must_exit(code::RECIPE)?.must_say(&["cpsu", "cpus"])?;
    Ok(())
}

/// The keys of a recipe's layers.
fn layer_keys(scene: &Scene, text: &str) -> Result<Vec<String>> {
    scene.write("recipe.toml", text)?;
    let plan = scene.no43(&["plan", "--json", "recipe.toml"])?.env("PLAYER_PASSWORD", "secret-1").ok()?;
    let layers = plan.json()?;
    let layers = at(&layers, "/plan/layers")?.as_array().context("layers is a list")?.clone();
    layers.iter().map(|l| Ok(at(l, "/key")?.as_str().context("a key is text")?.to_owned())).collect()
}

fn shared_layers(scene: &Scene) -> Result<()> {
    let keys = layer_keys(scene, GOOD)?;
    ensure!(!keys.is_empty(), "a plan without layers");
    for (what, from, to) in [
        ("card", "any = true", "id = \"10de:2484\""),
        ("CPUs", "cpus = 1", "cpus = 2"),
        ("memory", "512 MiB", "768 MiB"),
        ("password", "PLAYER_PASSWORD", "OTHER_PASSWORD"),
        ("name", "name = \"good\"", "name = \"better\""),
    ] {
        ensure!(GOOD.contains(from), "the recipe has no {from}");
        let other = layer_keys(scene, &GOOD.replacen(from, to, 1))?;
        ensure!(other == keys, "another {what} changes the layers: {keys:?} and {other:?}");
    }
    Ok(())
}

fn changed_layer(scene: &Scene) -> Result<()> {
    let keys = layer_keys(scene, GOOD)?;
    let other =
        layer_keys(scene, &GOOD.replace("os = \"debian12\"", "os = \"debian12\"\npackages = [\"hello\"]"))?;
    ensure!(keys[0] != other[0], "one more package and the same key");
    let step = layer_keys(scene, &format!("{GOOD}\n[[step]]\nrun = [\"true\"]\n"))?;
    ensure!(
        step.len() == keys.len() + 1 && step[..keys.len()] == keys[..],
        "a step leaves the layers below as they are"
    );
    Ok(())
}

fn schema(scene: &Scene) -> Result<()> {
    let schema = scene.no43(&["schema"])?.ok()?.json()?;
    at(&schema, "/$schema")?;
    for table in ["guest", "machine", "card", "usb", "checks"] {
        at(&schema, &format!("/properties/{table}"))?;
    }
    Ok(())
}

fn json_errors(scene: &Scene) -> Result<()> {
    let seen = scene.no43(&["--json", "plan", "nowhere.toml"])?.done()?.must_exit(code::RECIPE)?;
    let error = seen.json()?;
    ensure!(at(&error, "/exit_code")? == code::RECIPE, "{error}");
    for command in [&["gpus", "--json"][..], &["doctor", "--json"], &["image", "ls", "--json"]] {
        scene.no43(command)?.done()?.json()?;
    }
    Ok(())
}

/// Leases, journal, images and recipes; remembered hashes and the remembered KVM probe are not counted.
fn state_of(scene: &Scene) -> Result<Vec<(String, u64)>> {
    let mut files = listing(&scene.work())?;
    files.extend(listing(scene.store())?);
    files.extend(listing(&scene.state())?);
    files.retain(|(name, _)| !name.starts_with("cache/") && name != "hashes.json");
    Ok(files)
}

fn looking(scene: &Scene) -> Result<()> {
    scene.write("recipe.toml", GOOD)?;
    scene.no43(&["lock", "recipe.toml"])?.limit(120).ok()?;
    let before = state_of(scene)?;
    let commands = [
        &["gpus"][..],
        &["doctor"],
        &["plan", "recipe.toml"],
        &["image", "ls"],
        &["recipe", "check", "recipe.toml"],
    ];
    for command in commands {
        scene.no43(command)?.env("PLAYER_PASSWORD", "x").done()?;
        let after = state_of(scene)?;
        ensure!(before == after, "no43 {} changed files: {before:?} and {after:?}", command.join(" "));
    }
    Ok(())
}

/// How many PCI functions of the display class (03xx) this machine has.
fn displays_in_sysfs() -> usize {
    let class =
        |dir: std::fs::DirEntry| std::fs::read_to_string(dir.path().join("class")).unwrap_or_default();
    let devices = std::fs::read_dir("/sys/bus/pci/devices").into_iter().flatten().filter_map(Result::ok);
    devices.map(class).filter(|c| c.starts_with("0x03")).count()
}

fn gpus(scene: &Scene) -> Result<()> {
    let seen = scene.no43(&["gpus", "--json"])?.ok()?.json()?;
    let cards = at(&seen, "/cards")?.as_array().context("cards is a list")?;
    ensure!(cards.len() == displays_in_sysfs(), "{} cards, sysfs has {}", cards.len(), displays_in_sysfs());
    scene.no43(&["gpus"])?.ok()?;
    Ok(())
}

fn no_such_card(scene: &Scene) -> Result<()> {
    scene.write("recipe.toml", &GOOD.replace("any = true", "address = \"fe:1d\""))?;
    let seen = scene.no43(&["verify", "recipe.toml"])?.env("PLAYER_PASSWORD", "x").done()?;
    seen.must_exit(code::NOT_LENT)?.must_say(&["fe:1d"])?;
    ensure!(
        listing(&scene.store().join("images"))?.is_empty(),
        "an image was built for a card that is not there"
    );
    Ok(())
}

fn closed_pipe(scene: &Scene) -> Result<()> {
    let no43 = programs::no43()?;
    let script = r#"set -o pipefail; "$1" schema | head -c 10 > /dev/null"#;
    let seen = scene.run("/bin/bash").args(["-c", script, "bash"]).args([&no43]).done()?;
    seen.must_exit(0)?.must_not_say(&["panicked"])?;
    Ok(())
}

fn nvidia(scene: &Scene) -> Result<()> {
    let cards = scene.no43(&["gpus", "--json"])?.ok()?.json()?;
    let text = cards.to_string();
    ensure!(text.contains("10de:"), "no card of vendor 10de in {text}");
    Ok(())
}

fn kvm(scene: &Scene) -> Result<()> {
    scene.no43(&["doctor"])?.done()?.must_say(&["KVM runs guest code"])?;
    Ok(())
}
