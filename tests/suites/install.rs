//! A whole unattended installation, driven by `no43 build` against the stand-in for Windows Setup (`setup-stand-in/`), and
//! its faults, each of which must be named rightly. No Windows is involved; README.md there says what is real.

use anyhow::{Context, Result, ensure};
use no43_harness::exit_codes as code;
use no43_tests::expect::{at, full_file, listing};
use no43_tests::stand_in::{Medium, Payload};
use no43_tests::suite::{Case, Images, Order};
use no43_tests::{Run, Scene};
use serde_json::Value;
use sevenz_rust2::{ArchiveEntry, ArchiveWriter};
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

fn main() -> ExitCode {
    let code = no43_tests::suite::main(CASES, Order::ACoreEach, Images::Own);
    if let Some(Ok(payload)) = PAYLOAD.get() {
        payload.remove(); // a static is never dropped
    }
    code
}

const NEEDS: &[&str] = &["no43", "stand-in"];
const NEEDS_TPM: &[&str] = &["no43", "stand-in", "swtpm"];
const SOAK: &[&str] = &["no43", "stand-in", "soak"];

static CASES: &[Case] = &[
    Case::new("a-step-that-fails-in-windows-says-code-and-log", bad_step).needs(SOAK),
    Case::new("a-windows-goes-from-recipe-to-sealed-image", whole).needs(NEEDS),
    Case::new("french-with-elodie-secure-boot-and-tpm", french).needs(NEEDS_TPM),
    Case::new("a-prompt-without-a-key-is-named", no_key).needs(NEEDS),
    Case::new("a-medium-that-secure-boot-refuses-is-named", refused).needs(NEEDS),
    Case::new("a-target-disk-that-setup-does-not-see-is-named", no_disk).needs(NEEDS),
    Case::new("an-answer-file-that-setup-refuses-is-named", bad_answer).needs(NEEDS),
    Case::new("a-target-disk-that-does-not-start-is-named", no_boot).needs(NEEDS),
    Case::new("a-panic-is-named", panic).needs(NEEDS),
    Case::new("an-answer-file-that-setup-does-not-find-is-named", no_answer).needs(SOAK),
    Case::new("a-hang-is-named-and-the-machine-can-be-kept", hang).needs(SOAK),
    Case::new("a-boot-loop-is-named", boot_loop).needs(SOAK),
    Case::new("a-language-that-setup-does-not-have-is-named", no_language).needs(SOAK),
    Case::new("an-edition-that-setup-does-not-find-is-named", no_edition).needs(SOAK),
    Case::new("a-full-target-disk-is-named", no_room).needs(SOAK),
    Case::new("an-update-that-restarts-the-guest-is-named", update).needs(SOAK),
    Case::new("an-agent-that-stays-silent-is-named", agent_silent).needs(SOAK),
];

/// An installation takes 2 min on two cores without KVM; a busy machine four times that.
const LIMIT: u64 = 600;

static PAYLOAD: OnceLock<Result<Payload, String>> = OnceLock::new();

/// Made once, from the person's own store.
fn payload() -> Result<&'static Payload> {
    let make = || Payload::make(&Scene::new("payload")?.with_shared_store());
    let payload = PAYLOAD.get_or_init(|| make().map_err(|error| format!("{error:#}")));
    payload.as_ref().map_err(|error| anyhow::anyhow!("failed to make the stand-in: {error}"))
}

/// Medium, drivers and recipe in the scene's work folder.
fn prepare(scene: &Scene, medium: &Medium, recipe: &str) -> Result<()> {
    payload()?.medium(medium, &scene.work().join("medium.iso"))?;
    virtio_iso(scene)?;
    scene.write("stand-in.toml", recipe)?;
    Ok(())
}

fn recipe(language: &str, user: &str, machine: &str) -> String {
    format!(
        r#"
name = "stand-in"

[guest]
os       = "windows10"
edition  = "Professional"
language = "{language}"
timezone = "Europe/Paris"
user     = {{ name = "{user}", password = {{ env = "STAND_IN_PASSWORD" }} }}

[inputs]
iso    = {{ path = "medium.iso" }}
virtio = {{ path = "virtio.iso" }}

[machine]
cpus   = 2
memory = "2 GiB"
disk   = "32 GiB"
{machine}
"#
    )
}

fn english() -> String {
    recipe("en-US", "demo", "firmware = \"uefi\"")
}

/// The shape of a virtio-win ISO; the drivers in it are names only.
fn virtio_iso(scene: &Scene) -> Result<()> {
    let tree = scene.work().join("virtio");
    for (driver, file, ids) in [
        ("viostor", "viostor", "DEV_1001"),
        ("vioserial", "vioser", "DEV_1003"),
        ("NetKVM", "netkvm", "DEV_1000"),
    ] {
        let folder = tree.join(driver).join("w10/amd64");
        fs::create_dir_all(&folder)?;
        let inf = format!(
            "[Version]\r\nClass=SCSIAdapter\r\n[Manufacturer]\r\n%V%=V,NTamd64\r\n[V.NTamd64]\r\n%D%=i, PCI\\VEN_1AF4&{ids}&SUBSYS_00021AF4&REV_00\r\n"
        );
        fs::write(folder.join(format!("{file}.inf")), inf)?;
        fs::write(folder.join(format!("{file}.sys")), "no driver")?;
    }
    fs::create_dir_all(tree.join("guest-agent"))?;
    fs::write(tree.join("guest-agent/qemu-ga-x86_64.msi"), "no installer")?;
    let mut make = Command::new("genisoimage");
    make.args(["-quiet", "-J", "-r", "-V", "virtio-win-0.1.285", "-o"])
        .arg(scene.work().join("virtio.iso"))
        .arg(&tree);
    ensure!(make.status()?.success(), "genisoimage failed");
    Ok(())
}

/// `no43` with a guest program for Windows: the real one where it is built, else a file that says that it is one. The stand-in
/// runs the Linux build either way. The secrets that recipes name are not there: no build reads them.
fn no43(scene: &Scene, args: &[&str]) -> Result<Run> {
    let program = scene.work().join("no43-guest.exe");
    if !program.exists() {
        match no43_tests::programs::windows_guest() {
            Ok(built) => drop(fs::copy(built, &program)?),
            Err(_) => {
                fs::write(
                    &program,
                    format!("MZ {}", no43_guest::identity::TEXT.replace("linux", "windows")),
                )?;
            }
        }
    }
    Ok(scene.no43(args)?.env("NO43_GUEST_WINDOWS", &program).limit(LIMIT))
}

fn image(scene: &Scene, built: &Value) -> Result<(std::path::PathBuf, Value)> {
    let folder = Path::new(at(built, "/folder")?.as_str().context("no folder")?).to_path_buf();
    ensure!(folder.starts_with(scene.store()), "the image is in another store");
    let manifest = serde_json::from_slice(&fs::read(folder.join("manifest.json"))?)?;
    Ok((folder, manifest))
}

/// Every phase, in order, with a time.
fn all_phases(manifest: &Value) -> Result<String> {
    let phases = at(manifest, "/sealed/phases")?.as_array().context("a list")?;
    let of = |phase: &Value| {
        format!(
            "{} {:.1} s",
            phase["phase"].as_str().unwrap_or("?"),
            phase["ms"].as_f64().unwrap_or(0.0) / 1000.0
        )
    };
    let text = phases.iter().map(of).collect::<Vec<_>>().join(", ");
    let names: Vec<&str> = phases.iter().filter_map(|phase| phase["phase"].as_str()).collect();
    let wanted = ["firmware", "boot-prompt", "copying", "specialize", "oobe", "first-logon", "agent", "seal"];
    ensure!(names == wanted, "other phases: {text}");
    Ok(text)
}

fn whole(scene: &Scene) -> Result<()> {
    prepare(scene, &Medium::default(), &english())?;
    let plan = no43(scene, &["plan", "stand-in.toml"])?.ok()?;
    plan.must_say(&["windows10", "Windows 10 Pro en-US build 19045, 3 drivers", "to build"])?;
    let built = no43(scene, &["--json", "build", "--patience", "3", "stand-in.toml"])?.ok()?;
    built.clone().must_say(&[
        "firmware",
        "copying files",
        "specialize",
        "oobe",
        "first logon",
        "refused, not done: guest agent",
    ])?;
    let (folder, manifest) = image(scene, &built.json()?)?;
    eprintln!("phases: {}", all_phases(&manifest)?);
    for file in ["disk.qcow2", "vars.fd"] {
        full_file(&folder.join(file))?;
    }
    ensure!(
        at(&manifest, "/sealed/refused_actions")?.as_u64() > Some(0),
        "the stand-in refuses what is Windows' own"
    );
    // The set-up disk holds this build's password, and COM1's log the guest's words: neither is part of an image.
    let names: Vec<String> = listing(&folder)?.into_iter().map(|(name, _)| name).collect();
    ensure!(names == ["build.log", "disk.qcow2", "manifest.json", "vars.fd"], "other files: {names:?}");
    let again = Instant::now();
    no43(scene, &["build", "stand-in.toml"])?.ok()?.must_say(&["is in the store"])?;
    ensure!(again.elapsed().as_secs() < 10, "an unchanged build took {:?}", again.elapsed());
    // Another password makes the same image: it is in no layer.
    let other = english().replace("STAND_IN_PASSWORD", "ANOTHER");
    scene.write("other.toml", &other)?;
    no43(scene, &["plan", "other.toml"])?.ok()?.must_say(&["nothing to build"])?;
    thrown_away(scene, &folder)?;
    driver_layer(scene)
}

/// `verify` and `job` on the sealed image: machines of which nothing is left, and an image that stays as it was sealed.
fn thrown_away(scene: &Scene, image: &Path) -> Result<()> {
    let parts = || -> Result<Vec<Vec<u8>>> {
        ["vars.fd", "manifest.json"].iter().map(|name| Ok(fs::read(image.join(name))?)).collect()
    };
    let (sealed, files) = (parts()?, listing(image)?);
    let begun = Instant::now();
    // the stand-in has no card, so nothing is proved beyond the guest's answer
    let seen = no43(scene, &["verify", "stand-in.toml"])?.done()?.must_exit(code::SKIPPED)?;
    seen.must_say(&["✔ agent", "nothing was proved: the recipe asks for no check of a card"])?;
    eprintln!("verify of the sealed image took {:.0} s", begun.elapsed().as_secs_f64());
    scene.write("in.txt", "from the host")?;
    let begun = Instant::now();
    let wanted = ["busybox", "sh", "-c", "cat /c/in.txt; cat /c/in.txt > /c/out.txt; exit 7"];
    let files_of = ["--in", "in.txt:/c/in.txt", "--out", "/c/out.txt:out.txt"];
    let job = [&["job"], &files_of[..], &["stand-in.toml", "--"], &wanted[..]].concat();
    let seen = no43(scene, &job)?.done()?.must_exit(7)?;
    ensure!(seen.stdout == "from the host", "the command's words: {:?}", seen.stdout);
    eprintln!("a job took {:.0} s", begun.elapsed().as_secs_f64());
    let left: Vec<_> =
        scene.processes().into_iter().filter(|(_, line)| line.contains("qemu-system")).collect();
    ensure!(left.is_empty(), "a machine was left: {left:?}");
    ensure!(parts()? == sealed && listing(image)? == files, "the image is not as it was sealed");
    Ok(())
}

/// A package in NVIDIA's layout, put together here: a program, and behind it a 7z archive. Nothing of NVIDIA's is in it.
fn driver_package(scene: &Scene, version: &str, driver_ver: &str) -> Result<()> {
    let inf = format!(
        "[Version]\r\nSignature=\"$Windows NT$\"\r\nClass=Display\r\nProvider=\"NVIDIA\"\r\nDriverVer=03/17/2021,{driver_ver}\r\n\
         CatalogFile=NV_DISP.CAT\r\n[Manufacturer]\r\n%N%=NV,NTamd64.10.0...14393\r\n[NV.NTamd64.10.0...14393]\r\n\
         %D%=Section001,PCI\\VEN_10DE&DEV_2484\r\n[Strings]\r\nN=\"NVIDIA\"\r\nD=\"NVIDIA GeForce RTX 3070\"\r\n"
    );
    let utf16: Vec<u8> =
        std::iter::once(0xfeff).chain(inf.encode_utf16()).flat_map(u16::to_le_bytes).collect();
    let setup = format!("<setup title=\"Graphics Driver {version}\"/>\r\n");
    let binary = vec![7; 3 << 20];
    let files: [(&str, &[u8]); 9] = [
        ("setup.exe", b"MZ"),
        ("setup.cfg", setup.as_bytes()),
        ("ListDevices.txt", b"DEV_2484 NVIDIA GeForce RTX 3070\r\n"),
        ("NVI2/NVI2.dll", b"the installer"),
        ("Display.Driver/nv_dispi.inf", &utf16),
        ("Display.Driver/NV_DISP.CAT", b"Microsoft Windows Hardware Compatibility Publisher"),
        ("Display.Driver/nvlddmkm.sys", &binary),
        ("HDAudio/nvhda.inf", b"[Version]\r\nClass=MEDIA\r\n"),
        ("GFExperience/gfe.exe", b"nobody asked for this"),
    ];
    let mut archive = ArchiveWriter::new(std::io::Cursor::new(Vec::new()))?;
    for (name, bytes) in files {
        archive.push_archive_entry(ArchiveEntry::new_file(name), Some(bytes))?;
    }
    let mut package = b"MZ".to_vec();
    package.resize(100_000, 0x90);
    package.extend(archive.finish()?.into_inner());
    fs::write(scene.work().join(format!("{version}-desktop-win10-64bit-dch-whql.exe")), package)?;
    Ok(())
}

/// On the Windows that is there, from the package's file to the guest's driver store, as far as the stand-in goes: it is offered
/// the INF, and tells that it is no Windows.
fn driver_layer(scene: &Scene) -> Result<()> {
    driver_package(scene, "461.72", "27.21.14.6172")?;
    driver_package(scene, "466.11", "27.21.14.6611")?;
    let with = |version: &str| {
        let input =
            format!("nvidia = {{ path = \"{version}-desktop-win10-64bit-dch-whql.exe\" }}\n\n[machine]");
        let card = "[[card]]\nid = \"10de:2484\"\n[driver]\npackage = \"nvidia\"\n";
        english().replacen("\n[machine]", &input, 1) + card
    };
    scene.write("old.toml", &with("461.72"))?;
    no43(scene, &["plan", "old.toml"])?.done()?.must_exit(code::RECIPE)?.must_say(&[
        "older than 465",
        "Code 43",
        "legacy = true",
    ])?;
    scene.write("driver.toml", &with("466.11"))?;
    no43(scene, &["plan", "driver.toml"])?.ok()?.must_say(&["driver 466.11, staged", "to build"])?;
    let begun = Instant::now();
    let built = no43(scene, &["--json", "build", "--patience", "3", "driver.toml"])?.ok()?;
    eprintln!("the driver's layer took {:.0} s", begun.elapsed().as_secs_f64());
    // lifted first, and refused because the stand-in has no registry
    built.clone().must_say(&[
        "unpacking the driver",
        "refused, not done: lets the driver change",
        "refused, not done: driver 466.11",
    ])?;
    let (folder, manifest) = image(scene, &built.json()?)?;
    ensure!(
        at(&manifest, "/layer")? == "driver" && at(&manifest, "/sealed/firmware")? == "uefi",
        "{manifest}"
    );
    let log = fs::read_to_string(folder.join("build.log"))?;
    // Two files of the display driver besides its INF; audio, GeForce Experience and the installer stay behind.
    for wanted in ["unpacked 3 files", "INF files there: 1"] {
        ensure!(log.contains(wanted), "no '{wanted}' in the layer's log:\n{log}");
    }
    for file in ["disk.qcow2", "vars.fd"] {
        full_file(&folder.join(file))?;
    }
    let lock = fs::read_to_string(scene.work().join("no43.lock"))?;
    ensure!(lock.contains("version = \"466.11\"") && lock.contains("devices = \"10de:2484\""), "{lock}");
    Ok(())
}

fn french(scene: &Scene) -> Result<()> {
    snakeoil(scene)?;
    let medium = Medium { language: "fr-FR", signed: true, ..Medium::default() };
    let own = "hostname = \"ELODIE-PC\"\nproduct-key = { env = \"STAND_IN_KEY\" }\ntimezone";
    let french = recipe("fr-FR", "Élodie", "firmware = \"uefi-secure\"\ntpm = true");
    scene.write("game/é.txt", "from the host")?;
    let parsec = "[inputs]\nparsec = { path = \"parsec.exe\" }\n";
    scene.write("parsec.exe", "an installer")?;
    let french = french.replacen("timezone", own, 1).replacen("[inputs]\n", parsec, 1);
    prepare(scene, &medium, &(french + STEPS))?;
    let built = no43(scene, &["--json", "build", "--patience", "3", "stand-in.toml"])?.ok()?;
    let (folder, manifest) = image(scene, &built.json()?)?;
    ensure!(at(&manifest, "/layer")? == "after it", "another layer is on top");
    for file in ["disk.qcow2", "vars.fd", "tpm2-00.permall"] {
        full_file(&folder.join(file))?;
    }
    let disk = folder.join("disk.qcow2");
    ensure!(text_on_disk(scene, &disk, "Games/é.txt")? == "from the host", "the step copied nothing");
    ensure!(on_disk(scene, &disk, "Users")?.contains("Élodie"), "no folder of Élodie on C:");
    let kept = text_on_disk(scene, &disk, "Program Files/no43/parsec-windows.exe")?;
    ensure!(kept == "an installer", "the image has no installer for a team: {kept:?}");
    built.must_not_say(&["refused, not done: after it", "refused, not done: copy"])?;
    let ran = text_on_disk(scene, &disk, "ran.txt")?;
    used(scene, &folder)?;
    ensure!(ran == "ran\n", "the step wrote {ran:?}");
    Ok(())
}

/// Two layers above the installation; the stand-in truly carries both out. Nothing of Windows is called.
const STEPS: &str = r#"
[remote]
parsec = true
parsec-team = { id = "1or58", key = { env = "STAND_IN_TEAM" } }

[[step]]
name = "game"
copy = { from = "game", to = 'C:\Games' }

[[step]]
name = "after it"
run  = ["busybox", "sh", "-c", "test -e /c/Games/é.txt && echo ran > /c/ran.txt"]
"#;

const PASSWORD: &str = "correct horse é <>&\"'%^";
const TEAM_KEY: &str = "tapi_1or58.YmM3ZDc1ZDM2";
const PRODUCT_KEY: &str = "AAAAA-BBBBB-CCCCC-DDDDD-EEEEE";

/// A kept machine from the image: its own variables, TPM and identity, the recipe's secrets at its first start, and a
/// supervisor that may be killed.
fn used(scene: &Scene, image: &Path) -> Result<()> {
    no_secret_in(image)?;
    let run = || no43(scene, &["run", "--detach", "stand-in.toml"]);
    run()?.done()?.must_exit(code::INPUT)?.must_say(&["STAND_IN_PASSWORD is not set"])?;
    let run = run()?.env("STAND_IN_PASSWORD", PASSWORD).env("STAND_IN_KEY", PRODUCT_KEY);
    let run = run.env("STAND_IN_TEAM", TEAM_KEY);
    let seen = run.ok()?.must_say(&[
        "first start: the guest has its password, computer name",
        "did not take its product key: a product key is Windows' own",
        "did not take its parsec team: Parsec for a team is Windows' own",
        "the guest restarts once",
        "ready",
    ])?;
    let shown = |secret: &str| seen.all().contains(secret);
    ensure!(!["correct horse", PRODUCT_KEY, TEAM_KEY].into_iter().any(shown), "a secret is shown");
    let pids = || -> Vec<(i32, String)> {
        scene
            .processes()
            .into_iter()
            .filter(|(_, line)| line.contains("swtpm socket") || line.contains("qemu-system"))
            .collect()
    };
    let before = pids();
    ensure!(before.len() == 2, "QEMU and swtpm, and nothing else: {before:?}");
    let supervisor = scene.processes().into_iter().find(|(_, line)| line.trim_end().ends_with(" supervise"));
    let (supervisor, _) = supervisor.context("no supervisor")?;
    let supervisor = rustix::process::Pid::from_raw(supervisor).context("a pid is not 0")?;
    rustix::process::kill_process(supervisor, rustix::process::Signal::KILL)?;
    // a kill takes effect when the kernel next looks at the process
    let end = Instant::now() + Duration::from_secs(10);
    while !no43(scene, &["ps"])?.ok()?.stdout.contains("alone") {
        ensure!(Instant::now() < end, "the supervisor lives on after kill -9");
        std::thread::sleep(Duration::from_millis(50));
    }
    no43(scene, &["release"])?.ok()?.must_say(&["taken over"])?;
    ensure!(pids() == before, "QEMU or its TPM went with their supervisor: {:?}, before {before:?}", pids());
    no43(scene, &["stop", "stand-in", "--limit", "3 min"])?.ok()?;
    ensure!(pids().is_empty(), "something runs on: {:?}", pids());
    let system = scene.work().join("../home/.local/share/no43/instances/stand-in/system");
    for (own, images) in [("vars.fd", "vars.fd"), ("tpm/tpm2-00.permall", "tpm2-00.permall")] {
        let (own, images) = (fs::read(system.join(own))?, fs::read(image.join(images))?);
        ensure!(own != images && !own.is_empty(), "{images:.0?} of the start is the image's own");
    }
    let disk = system.join("disk.qcow2");
    ensure!(text_on_disk(scene, &disk, "Windows/etc/hostname")? == "ELODIE-PC\n", "another computer name");
    let hash = text_on_disk(scene, &disk, "Windows/shadow.txt")?;
    let salted = Command::new("openssl").args(["passwd", "-6", "-salt", "standinsalt", PASSWORD]).output()?;
    ensure!(
        hash == format!("Élodie:{}", String::from_utf8_lossy(&salted.stdout)),
        "another password: {hash}"
    );
    together(scene, &system)
}

/// Disk, variables and TPM are saved and brought back as one.
fn together(scene: &Scene, system: &Path) -> Result<()> {
    no43(scene, &["instance", "snapshot", "stand-in", "good"])?.ok()?;
    let parts = ["vars.fd", "tpm/tpm2-00.permall"].map(|name| system.join(name));
    let before: Vec<Vec<u8>> = parts.iter().map(fs::read).collect::<Result<_, _>>()?;
    for part in &parts {
        fs::write(part, "changed since")?;
    }
    no43(scene, &["instance", "restore", "stand-in", "good"])?.ok()?;
    for (part, before) in parts.iter().zip(&before) {
        ensure!(&fs::read(part)? == before, "{} was not brought back", part.display());
    }
    no43(scene, &["instance", "backup", "stand-in", "kept"])?.ok()?;
    for name in ["vars.fd", "tpm/tpm2-00.permall", "disk.qcow2"] {
        full_file(&scene.work().join("kept/system").join(name))?;
    }
    brought_back(scene, system)
}

/// A backup becomes an instance again, beside the first one: with its variables and TPM, and it starts from them.
fn brought_back(scene: &Scene, system: &Path) -> Result<()> {
    no43(scene, &["instance", "import", "kept", "--name", "again"])?.ok()?.must_say(&["new identity"])?;
    let again = system.join("../../again/system");
    let parts = ["vars.fd", "tpm/tpm2-00.permall"];
    for name in parts {
        ensure!(fs::read(again.join(name))? == fs::read(system.join(name))?, "{name} is not the backup's");
    }
    let run = no43(scene, &["run", "--detach", "again"])?.env("STAND_IN_KEY", PRODUCT_KEY);
    let run = run.env("STAND_IN_TEAM", TEAM_KEY);
    let seen = run.ok()?.must_say(&["ready"])?;
    // it was given its secrets before it was backed up, but for the keys, which a stand-in never takes
    ensure!(!seen.all().contains("has its password"), "it was given a password once more");
    no43(scene, &["stop", "again", "--limit", "3 min"])?.ok()?;
    let name = parts[1];
    ensure!(
        fs::read(again.join(name))? != fs::read(system.join(name))?,
        "its TPM did not run on the backup's state"
    );
    Ok(())
}

/// The recipe's own words, in every form in which they could lie in a file.
fn no_secret_in(image: &Path) -> Result<()> {
    let mut forms: Vec<Vec<u8>> = Vec::new();
    for word in ["correct horse", PRODUCT_KEY, TEAM_KEY, "1or58", "ELODIE-PC"] {
        forms.push(word.as_bytes().to_vec());
        forms.push(word.encode_utf16().flat_map(u16::to_le_bytes).collect());
    }
    // the hidden form of answer files: base64 of UTF-16, from the text's beginning
    forms.push(b"YwBvAHIAcgBlAGMAdA".to_vec());
    let regex = |form: &Vec<u8>| form.iter().map(|byte| format!("\\x{byte:02x}")).collect::<String>();
    let regex = forms.iter().map(regex).collect::<Vec<_>>().join("|");
    let files = listing(image)?.into_iter().map(|(name, _)| image.join(name));
    // clusters of a qcow2 disk lie in its file as they are
    let found = Command::new("grep").env("LC_ALL", "C").args(["-lUaP", &regex]).args(files).output()?;
    ensure!(
        found.status.code() == Some(1),
        "a word of the recipe is in {}",
        String::from_utf8_lossy(&found.stdout)
    );
    // and the search finds what is there
    let known = ["-lUaP", r"\xc3\x89lodie"];
    let there = Command::new("grep").env("LC_ALL", "C").args(known).arg(image.join("disk.qcow2")).output()?;
    ensure!(there.status.success(), "the search does not find the user's folder");
    Ok(())
}

/// Firmware that trusts ovmf's snakeoil key, chosen as a person would: by a descriptor of one's own.
fn snakeoil(scene: &Scene) -> Result<()> {
    let flash = |name: &str| format!(r#"{{"filename": "/usr/share/OVMF/{name}", "format": "raw"}}"#);
    let descriptor = format!(
        r#"{{"description": "OVMF with the snakeoil key", "interface-types": ["uefi"],
        "mapping": {{"device": "flash", "executable": {}, "nvram-template": {}}},
        "targets": [{{"architecture": "x86_64", "machines": ["pc-q35-*"]}}],
        "features": ["acpi-s3", "enrolled-keys", "requires-smm", "secure-boot", "verbose-dynamic"], "tags": []}}"#,
        flash("OVMF_CODE_4M.secboot.fd"),
        flash("OVMF_VARS_4M.snakeoil.fd")
    );
    scene.write("../home/.config/qemu/firmware/10-snakeoil.json", &descriptor)?;
    Ok(())
}

/// The step's own exit code and words are the error; the installation below it stays.
fn bad_step(scene: &Scene) -> Result<()> {
    let step =
        "\n[[step]]\nname = \"bad\"\nrun = [\"busybox\", \"sh\", \"-c\", \"echo no such game; exit 42\"]\n";
    prepare(scene, &Medium::default(), &(english() + step))?;
    let seen = no43(scene, &["build", "--patience", "3", "stand-in.toml"])?.done()?.must_exit(code::BUILD)?;
    seen.must_say(&["step 'bad' failed", "(code 42)", "no such game"])?;
    no43(scene, &["plan", "stand-in.toml"])?.ok()?.must_say(&["there", "bad", "to build"])?;
    Ok(())
}

/// Names in a folder of the stand-in's C:, which is FAT.
fn on_disk(scene: &Scene, disk: &Path, folder: &str) -> Result<String> {
    drive_c(scene, disk, &["mdir", "-b"], folder)
}

/// A file's text there.
fn text_on_disk(scene: &Scene, disk: &Path, file: &str) -> Result<String> {
    drive_c(scene, disk, &["mtype"], file)
}

fn drive_c(scene: &Scene, disk: &Path, tool: &[&str], path: &str) -> Result<String> {
    let raw = scene.work().join("disk.raw");
    let convert = Command::new("qemu-img").args(["convert", "-O", "raw"]).args([disk, &raw]).status()?;
    ensure!(convert.success(), "qemu-img convert failed");
    // The third partition follows 1 MiB, an EFI partition of 260 MiB and 16 MiB.
    let place = format!("{}@@{}", raw.display(), (1 + 260 + 16) << 20);
    let said = Command::new(tool[0])
        .env("LC_ALL", "C.UTF-8")
        .args(&tool[1..])
        .args(["-i", &place, &format!("::{path}")])
        .output()?;
    fs::remove_file(&raw)?;
    let why = String::from_utf8_lossy(&said.stderr);
    ensure!(said.status.success(), "{} of C:\\{path} failed: {}", tool[0], why.trim());
    Ok(String::from_utf8_lossy(&said.stdout).into_owned())
}

/// Builds with a fault, and wants the phase and the cause in the error.
fn fault(scene: &Scene, medium: &Medium, recipe: &str, options: &[&str], wanted: &[&str]) -> Result<()> {
    prepare(scene, medium, recipe)?;
    let args = [&["build", "stand-in.toml"], options].concat();
    let seen = no43(scene, &args)?.done()?.must_exit(code::BUILD)?.must_say(wanted)?;
    seen.clone().must_say(&["fix ", "Nothing was published"])?;
    let line = seen
        .stderr
        .lines()
        .find(|line| line.contains("failed in phase"))
        .unwrap_or_default()
        .trim()
        .to_owned();
    eprintln!("named: {line}");
    let images = scene.store().join("images");
    ensure!(listing(&images)?.is_empty(), "something was published");
    let failed = listing(&scene.store().join("failed"))?;
    ensure!(
        failed.iter().any(|(name, size)| name.ends_with("com1.log") && *size > 0),
        "no COM1 log was kept: {failed:?}"
    );
    Ok(())
}

fn playing(fault: &'static str) -> Medium {
    Medium { fault, ..Medium::default() }
}

fn no_key(scene: &Scene) -> Result<()> {
    fault(
        scene,
        &playing("no-key"),
        &english(),
        &[],
        &["failed in phase \"boot prompt\"", "no boot key was taken", "Time out"],
    )
}

/// Nothing is signed, and the firmware wants Microsoft's signature.
fn refused(scene: &Scene) -> Result<()> {
    let secure = recipe("en-US", "demo", "firmware = \"uefi-secure\"");
    fault(
        scene,
        &Medium::default(),
        &secure,
        &[],
        &["failed in phase \"firmware\"", "Secure Boot refuses this medium", "Access Denied"],
    )
}

fn no_disk(scene: &Scene) -> Result<()> {
    let wanted = [
        "failed in phase \"copying files\"",
        "cannot see the target disk",
        "no storage controller driver loaded",
        "machine.disk-bus",
        "no43 view stand-in",
    ];
    // told by the guest program that watches Setup's log; Setup itself stands still
    fault(scene, &playing("no-disk"), &english(), &["--patience", "0.5", "--keep-on-failure"], &wanted)?;
    // the machine stands as it was left, and can be looked at
    no43(scene, &["shot", "stand-in", "screen.png"])?.ok()?;
    full_file(&scene.work().join("screen.png"))?;
    no43(scene, &["view", "stand-in", "--print"])?.ok()?.must_say(&["vnc.sock"])?;
    scene.kill_all();
    Ok(())
}

fn bad_answer(scene: &Scene) -> Result<()> {
    let wanted = ["failed in phase \"copying files\"", "refused the answer file", "could not be parsed"];
    fault(scene, &playing("bad-answer"), &english(), &[], &wanted)
}

/// Nobody tells of it: the watcher of Setup's log is started by the answer file itself. The set-up disk was hardly read.
fn no_answer(scene: &Scene) -> Result<()> {
    let wanted = ["failed in phase \"copying files\"", "did not find the answer file", "of the set-up disk"];
    fault(scene, &playing("no-answer"), &english(), &["--patience", "0.25"], &wanted)
}

fn no_boot(scene: &Scene) -> Result<()> {
    let wanted = ["failed in phase \"specialize\"", "the target disk does not start", "no43-media"];
    fault(scene, &playing("no-boot"), &english(), &[], &wanted)
}

fn panic(scene: &Scene) -> Result<()> {
    let wanted = ["failed in phase \"specialize\"", "stopped itself", "panic device"];
    fault(scene, &playing("panic"), &english(), &[], &wanted)
}

fn hang(scene: &Scene) -> Result<()> {
    let options = ["--patience", "0.25", "--keep-on-failure"];
    let wanted = [
        "failed in phase \"copying files\"",
        "nothing happens any more",
        "nothing changed for",
        "the machine runs on as process",
    ];
    fault(scene, &playing("hang"), &english(), &options, &wanted)?;
    let running = scene.processes();
    ensure!(
        running.iter().any(|(_, command)| command.contains("install-stand-in")),
        "the machine was not kept: {running:?}"
    );
    // The next build sweeps it away; a plain medium would take minutes, so another fault ends it.
    payload()?.medium(&playing("no-key"), &scene.work().join("medium.iso"))?;
    no43(scene, &["lock", "--update", "iso", "stand-in.toml"])?.ok()?;
    no43(scene, &["build", "stand-in.toml"])?
        .done()?
        .must_exit(code::BUILD)?
        .must_say(&["dropped the unfinished layer", "no boot key"])?;
    Ok(())
}

/// What Setup's own log says, where the medium's facts promised something else.
fn no_language(scene: &Scene) -> Result<()> {
    let wanted = [
        "copying files",
        "language is not on the medium",
        "language en-US is not available",
        "guest.language",
    ];
    fault(scene, &playing("no-language"), &english(), &["--patience", "0.5"], &wanted)
}

fn no_edition(scene: &Scene) -> Result<()> {
    let wanted = ["copying files", "the edition is not on the medium", "not found", "guest.edition"];
    fault(scene, &playing("no-edition"), &english(), &["--patience", "0.5"], &wanted)
}

fn no_room(scene: &Scene) -> Result<()> {
    let wanted = ["copying files", "no room left on the disk", "0x80070070", "machine.disk"];
    fault(scene, &playing("no-room"), &english(), &["--patience", "0.5"], &wanted)
}

fn update(scene: &Scene) -> Result<()> {
    let wanted = ["failed in phase \"first logon\"", "an update took over", "updates.windows"];
    fault(scene, &playing("update"), &english(), &[], &wanted)
}

fn boot_loop(scene: &Scene) -> Result<()> {
    let wanted = ["boot loop", "restarts that nobody announced"];
    fault(scene, &playing("boot-loop"), &english(), &[], &wanted)
}

fn agent_silent(scene: &Scene) -> Result<()> {
    let wanted = ["failed in phase \"agent\"", "the guest agent does not answer", "inputs.virtio"];
    fault(scene, &playing("agent-silent"), &english(), &["--patience", "0.4"], &wanted)
}
