//! Every shipped recipe becomes a plan; what changes a key and what does not; and what a person is told about mistakes.

use std::fs;
use std::path::{Path, PathBuf};

use no43_builder::answer;
use no43_builder::diagnostic::{Kind, Problems};
use no43_builder::driver::{DriverFacts, ModelFacts, Signer, System};
use no43_builder::key::Key;
use no43_builder::lock::hashes::HashCache;
use no43_builder::lock::{InputLock, Lock, SuiteLock};
use no43_builder::media::wim::WimImage;
use no43_builder::media::{Channel, Media};
use no43_builder::plan::{Facts, HostCard, HostFacts, LayerWhat, Plan, gather, plan};
use no43_builder::recipe::{self, Resolved};
use no43_builder::windows::{VirtioFound, WindowsFacts};

const RECIPES: &str = "../recipes";

/// A folder with files in it.
struct Folder(tempfile::TempDir);

impl Folder {
    fn with(files: &[(&str, &str)]) -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        for (name, text) in files {
            folder.write(name, text);
        }
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        fs::write(self.path(name), text).unwrap();
    }

    fn load(&self, name: &str, sets: &[&str]) -> Result<Resolved, Problems> {
        recipe::load(&self.path(name), &sets.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    /// What `load` complains about, without the folder's own name.
    fn complaint(&self, name: &str, sets: &[&str]) -> String {
        self.plain(&self.load(name, sets).expect_err("something should be wrong with it"))
    }

    fn plain(&self, text: &impl ToString) -> String {
        text.to_string().replace(&format!("{}/", self.0.path().display()), "")
    }
}

/// A lock in which everything that the shipped recipes need is pinned.
fn lock() -> Lock {
    let suite = |name: &str, n: u8| {
        let archive = if name.ends_with("-security") { "debian-security" } else { "debian" };
        let suite = SuiteLock {
            mirror: format!("http://mirror.invalid/{archive}"),
            components: vec!["main".to_owned()],
            sha256: format!("{n:02x}").repeat(32),
            size: 1000,
            facts: [("codename".to_owned(), name.to_owned())].into(),
        };
        (name.to_owned(), suite)
    };
    let names = ["bookworm", "bookworm-updates", "bookworm-security", "bookworm-backports"];
    let suites = names.into_iter().zip(1..).map(|(name, n)| suite(name, n)).collect();
    Lock { path: "no43.lock".into(), suites, ..Lock::default() }
}

fn facts(recipe: &Resolved, lock: &Lock) -> Facts {
    let folder = Folder::with(&[("no43-guest", "a guest program")]);
    gather(recipe, lock, &folder.path("no43-guest"), Path::new("/nowhere"), &mut HashCache::in_memory())
        .unwrap()
}

fn plan_of(recipe: &Resolved) -> Plan {
    plan(recipe, &lock(), &facts(recipe, &lock())).unwrap()
}

fn keys(plan: &Plan) -> Vec<&Key> {
    plan.layers.iter().map(|layer| &layer.key).collect()
}

#[test]
fn every_shipped_recipe_becomes_a_plan() {
    let mut paths: Vec<PathBuf> = fs::read_dir(RECIPES).unwrap().map(|entry| entry.unwrap().path()).collect();
    let windows = |path: &Path| path.to_string_lossy().contains("/windows1");
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "toml") && !windows(path));
    paths.sort();
    assert!(paths.len() >= 4);
    for path in paths {
        let plan = plan_of(&recipe::load(&path, &[]).unwrap_or_else(|problems| panic!("{problems}")));
        let mut shown = format!("{plan}\n");
        for layer in &plan.layers {
            shown += &format!("{}: {}\n", layer.name, serde_json::to_string_pretty(&layer.inputs).unwrap());
        }
        insta::assert_snapshot!(plan.name.clone(), shown);
        let again: Plan = serde_json::from_str(&serde_json::to_string(&plan).unwrap()).unwrap();
        assert_eq!(again, plan, "a plan survives JSON");
    }
}

/// A medium that holds what the shipped recipe asks for.
fn media_for(windows: &recipe::Windows) -> Media {
    let image = |(index, edition): (u32, &str)| WimImage {
        index,
        name: format!("{} {edition}", windows.release.product()),
        edition_id: Some(edition.to_owned()),
        installation_type: Some("Client".to_owned()),
        version: Some(
            if windows.release == recipe::Release::Windows11 { "10.0.26200.1" } else { "10.0.19045.1" }
                .to_owned(),
        ),
        languages: vec!["fr-FR".to_owned()],
        default_language: Some("fr-FR".to_owned()),
        ..WimImage::default()
    };
    Media {
        label: "TEST".to_owned(),
        bytes: 5 << 30,
        architecture: "amd64".to_owned(),
        channel: Channel::Retail,
        evaluation_days: None,
        install_file: "sources/install.wim".to_owned(),
        esd: false,
        setup_languages: vec!["fr-FR".to_owned()],
        boot_signers: Vec::new(),
        images: [(1, "Core"), (6, "Professional")].map(image).into(),
    }
}

#[test]
fn every_shipped_windows_recipe_becomes_an_answer_file_without_a_finding() {
    let names = ["windows10-gaming", "windows10-ci", "windows11-gaming", "windows11-ci"];
    for name in names {
        let path = Path::new(RECIPES).join(format!("{name}.toml"));
        let recipe = recipe::load(&path, &[]).unwrap_or_else(|problems| panic!("{problems}")).recipe;
        let windows = recipe.guest.windows.as_ref().expect("a Windows");
        assert!(recipe.guest.user.as_ref().is_some_and(|user| user.password.is_some()), "{name}");
        let media = media_for(windows);
        for media in [Some(&media), None] {
            let build = answer::BuildOnly::random().unwrap();
            let settings =
                answer::settings_for(&recipe, media, build).unwrap_or_else(|problems| panic!("{problems}"));
            for text in [settings.render(), settings.render_shown()] {
                let findings = answer::lint(&text, media);
                assert!(findings.is_empty(), "{name}: {}", findings[0]);
                // Windows 11 is not told to look away where the machine has what it asks for.
                assert!(!text.contains("LabConfig"), "{name}");
            }
        }
    }
}

const GUEST: &str = r#"
name = "guest"
[guest]
os = "debian12"
user = { name = "joe", password = { file = "password" } }
[[card]]
any = true
[[step]]
name = "one"
install = ["vim", "cowsay"]
[[step]]
name = "two"
run = ["/bin/true"]
[[step]]
copy = { from = "notes.txt", to = "/etc/" }
"#;

/// The keys of `GUEST` with `sets`.
fn changed(sets: &[&str]) -> Vec<Key> {
    let folder = Folder::with(&[("guest.toml", GUEST), ("notes.txt", "hello")]);
    keys(&plan_of(&folder.load("guest.toml", sets).unwrap())).into_iter().cloned().collect()
}

/// How many layers keep their key.
fn kept(sets: &[&str]) -> usize {
    changed(&[]).iter().zip(changed(sets)).take_while(|(before, after)| *before == after).count()
}

#[test]
fn what_is_given_at_the_start_is_in_no_key() {
    for set in [
        "name=other",
        "card=[{ model = 'RTX 3070', count = 2, present-as = '10de:2484', functions = ['video'] }]",
        "card=[]",
        "machine.cpus=7",
        "machine.memory=\"3 GiB\"",
        "guest.user.password={ env = 'SECRET' }",
        "display.console=never",
        "display.output=none",
        "network.mode=none",
        "checks={ ready = '9 min', lifecycle = ['reboot', 'cold-start'], picture = true }",
        // Names and limits of steps, and the order in which packages were written, change no result.
        "step.0.name=\"another name\"",
        "step.0.limit=\"3 h\"",
        "step.0.install=['cowsay', 'vim', 'vim']",
    ] {
        assert_eq!(kept(&[set]), 4, "{set} changed a key");
    }
}

#[test]
fn two_recipes_that_differ_only_in_card_cpus_and_password_share_every_layer() {
    let other = GUEST
        .replace("name = \"guest\"", "name = \"other\"\nmachine.cpus = 5")
        .replace("file = \"password\"", "credential = \"joe\"")
        .replace("any = true", "id = \"10de:2484\"");
    let folder = Folder::with(&[("a.toml", GUEST), ("b.toml", &other), ("notes.txt", "hello")]);
    let [a, b] = ["a.toml", "b.toml"].map(|name| plan_of(&folder.load(name, &[]).unwrap()));
    assert_ne!(a.machine, b.machine);
    assert_ne!(a.cards, b.cards);
    assert_ne!(a.guest, b.guest);
    assert_eq!(keys(&a), keys(&b));
}

#[test]
fn a_changed_step_keeps_what_is_below_it() {
    assert_eq!(kept(&["step.1.run=['/bin/false']"]), 2);
    assert_eq!(kept(&["step.0.install=['vim']"]), 1);
    assert_eq!(kept(&["step.2.copy.mode=\"0600\""]), 3);
    // The disk boots with either firmware; what a step leaves behind may depend on it.
    assert_eq!(kept(&["machine.firmware=uefi"]), 1);
}

#[test]
fn what_changes_the_base_changes_its_key() {
    for set in [
        "guest.packages=['vim']",
        "guest.backports=['vim']",
        "guest.language=fr-FR",
        "guest.timezone=Europe/Paris",
        "guest.keyboard=fr",
        "guest.user.name=jane",
        "guest.user.groups=['video']",
        "guest.user.sudo=true",
        "guest.kernel=linux-image-cloud-amd64",
        "guest.variant=important",
        "guest.files=[{ text = 'hi', to = '/etc/motd' }]",
        "guest.leave-out=['/usr/share/doc/*']",
        "guest.initrd-modules=['ext4']",
        "guest.modules=['dummy']",
        "guest.kernel-options=['quiet']",
        "machine.disk=\"5 GiB\"",
        "machine.boot=direct",
    ] {
        assert_eq!(kept(&[set]), 0, "{set} changed no key");
    }
}

#[test]
fn files_count_by_contents_and_mirrors_by_what_they_serve() {
    let folder = Folder::with(&[("guest.toml", GUEST), ("notes.txt", "hello")]);
    let recipe = folder.load("guest.toml", &[]).unwrap();
    let before = plan_of(&recipe);
    let mut elsewhere = lock();
    elsewhere.suites.values_mut().for_each(|suite| suite.mirror = "https://other.invalid/debian".to_owned());
    let after = plan(&recipe, &elsewhere, &facts(&recipe, &elsewhere)).unwrap();
    assert_eq!(keys(&before), keys(&after));

    folder.write("notes.txt", "bye");
    assert_eq!(keys(&plan_of(&recipe))[..3], keys(&before)[..3]);
    assert_ne!(keys(&plan_of(&recipe))[3], keys(&before)[3]);

    let mut newer = lock();
    newer.suites.get_mut("bookworm-security").unwrap().sha256 = "ff".repeat(32);
    assert_ne!(plan(&recipe, &newer, &facts(&recipe, &newer)).unwrap().layers[0].key, before.layers[0].key);
}

#[test]
fn a_build_resumes_at_the_last_good_layer() {
    let folder = Folder::with(&[("guest.toml", GUEST), ("notes.txt", "hello")]);
    let plan = plan_of(&folder.load("guest.toml", &[]).unwrap());
    let there =
        |n: usize| plan.first_rebuilt(|key| *key == plan.layers[n].key).map(|layer| layer.name.as_str());
    assert_eq!(plan.first_rebuilt(|_| false).unwrap().name, "base");
    assert_eq!(there(0), Some("one"));
    assert_eq!(there(2), Some("step 3"));
    assert_eq!(there(3), None);
    assert_eq!(plan.image_key(), &plan.layers[3].key);
    let shown = plan.show_with(&|key| *key == plan.layers[1].key);
    assert_eq!(shown.matches("   there").count(), 2);
    assert_eq!(shown.matches("   to build").count(), 2);
}

#[test]
fn the_plan_says_which_card_would_be_taken() {
    let card = |name: &str, address: &str, ready| HostCard {
        name: name.to_owned(),
        address: address.to_owned(),
        id: "10de:2484".to_owned(),
        ready,
        state: if ready { "ready to lend" } else { "lent to 'ci-2' since 10:42" }.to_owned(),
    };
    let cards = vec![
        card("GeForce RTX 3070 (GA104)", "0000:01:00", false),
        card("GeForce RTX 3070 Ti (GA104)", "0000:02:00", true),
    ];
    let host = HostFacts { cpus: 8, memory_mib: 15_900, cards };
    let here = |asked: &str| {
        let folder = Folder::with(&[("a.toml", &format!("guest.os = 'debian12'\n{asked}"))]);
        let recipe = folder.load("a.toml", &[]).unwrap();
        let facts = Facts { host: Some(host.clone()), ..facts(&recipe, &lock()) };
        let plan = plan(&recipe, &lock(), &facts).unwrap();
        assert_eq!((plan.machine.cpus, plan.machine.memory_mib), (4, 7936));
        plan.cards.iter().map(|card| card.here.clone().unwrap()).collect::<Vec<_>>().join(" | ")
    };
    insta::assert_snapshot!(here("[[card]]\nmodel = 'RTX 3070'"), @"not ready: GeForce RTX 3070 (GA104) 01:00: lent to 'ci-2' since 10:42");
    insta::assert_snapshot!(here("[[card]]\nany = true"), @"GeForce RTX 3070 Ti (GA104) 02:00");
    insta::assert_snapshot!(here("[[card]]\naddress = '02:00.0'\n[[card]]\nid = '10DE:2484'\naddress = '0000:02:00'"), @"GeForce RTX 3070 Ti (GA104) 02:00 | another [[card]] of this recipe takes it");
    insta::assert_snapshot!(here("[[card]]\nid = '1002:73bf'"), @"no such card in this host");
}

#[test]
fn mistakes_are_named_all_at_once() {
    let folder = Folder::with(&[(
        "typos.toml",
        r#"nmae = "x"
[guest]
os = "debian21"
pakages = ["vim"]
packages = "vim"
language = "french"
user = { name = "joe", password = "hunter2" }

[machine]
cpus = 0
memory = 512
disk = "128"
firmware = "eufi"

[[card]]
modle = "RTX 3070"
id = "10de-2484"

[card2]

[[step]]
run = ["ls", 5]
limit = "10 m"

[checks]
lifecycle = ["restart", 2026-01-01]
"#,
    )]);
    let complaint = folder.complaint("typos.toml", &["machine.boot=dsk", "nonsense"]);
    assert!(!complaint.contains("hunter2"), "a password was repeated");
    insta::assert_snapshot!(complaint);
}

#[test]
fn keys_that_contradict_each_other_are_named() {
    let folder = Folder::with(&[(
        "rules.toml",
        r#"
[guest]
os = "debian12"
init = "lean"
timezone = "Romance Standard Time"
mirror = "ftp.example"
user = { password = { file = "a", env = "b" } }
[[guest.files]]
from = "a"
text = "b"
to = "/etc/x"
[[guest.files]]
link = "a"

[machine]
memory = "1 MiB"
disk = "10 MiB"
uefi-under-lab = true

[inputs]
nothing = {}
gopher = { url = "gopher://x" }

[[card]]
count = 2
[[card]]
address = "01:00"
count = 2
functions = ["audio"]

[[step]]
[[step]]
run = []
[[step]]
run = ["a"]
install = ["bb"]
[[step]]
reboot = false
[[step]]
copy = { input = "gophr", to = "/x" }
[[step]]
wait-for = { unit = "x" }
"#,
    )]);
    insta::assert_snapshot!(folder.complaint("rules.toml", &[]));
}

#[test]
fn a_check_of_a_card_needs_a_card() {
    let folder = Folder::with(&[("a.toml", "guest.os = 'debian12'\nchecks.picture = true")]);
    insta::assert_snapshot!(folder.complaint("a.toml", &[]), @r"
    a.toml:2:18: checks.picture: there is no card to check
        fix   add a [[card]], or remove this key
    ");
    // The defaults ask for nothing that is not there.
    let folder = Folder::with(&[("a.toml", "guest.os = 'debian12'")]);
    assert!(!plan_of(&folder.load("a.toml", &[]).unwrap()).checks.driver);
}

/// The player's recipe as it is meant to be: every table that there is.
const EVERYTHING: &str = r#"
[guest]
os       = "windows10"
edition  = "Professional"
language = "fr-FR"
timezone = "Romance Standard Time"
keyboard = "fr"
user     = { name = "joueur", password = { file = "~/.config/no43/password" } }

[inputs]
iso    = { path = "~/iso/windows.iso" }

[machine]
cpus     = "auto"
memory   = "auto"
disk     = "128 GiB"
firmware = "uefi"
tpm      = false

[[card]]
model = "RTX 3070"
count = 1
functions = ["video", "audio"]

[display]
output  = "looking-glass"
console = "until-ready"

[[usb]]
port = "1-4"

[[pci]]
address = "03:00.0"
vf = 2

[[pci]]
mdev = "nvidia-35"

[network]
mode = "bridge"
bridge = "br0"

[audio]
to = "card"

[[share]]
name = "work"
path = "~/work"

[[disk]]
name = "games"
size = "1 TiB"
keep = true

[driver]
package = "nvidia"
install = "staged"

[remote]
parsec = true

[updates]
windows = "security"

[[step]]
name = "games folder"
run  = ["cmd", "/c", "mkdir C:\\Games"]

[[check]]
name    = "blender"
copy    = ["bench/"]
run     = ["C:\\bench\\run.cmd"]
session = "user"
limit   = "10 min"
metrics = "C:\\bench\\out.json"
each    = "card"

[checks]
card      = true
work      = ["d3d11", "cuda"]
quiet     = true
skip      = { picture = "no capture card here" }
lifecycle = ["reboot", "cold-start"]
"#;

#[test]
fn what_is_not_built_yet_is_never_called_unknown() {
    let folder = Folder::with(&[("player.toml", EVERYTHING)]);
    let problems = folder.load("player.toml", &[]).unwrap_err();
    for problem in problems.all() {
        assert_eq!(problem.kind, Kind::NotSupported, "{problem}");
    }
    insta::assert_snapshot!(folder.complaint("player.toml", &[]));
}

#[test]
fn a_key_that_is_not_built_may_ask_for_nothing() {
    let folder = Folder::with(&[(
        "a.toml",
        "audio.to = 'none'\nusb = []\nremote.parsec = false\n[guest]\nos = 'debian12'\n[machine]\ntpm = false\n[checks]\nwork = []",
    )]);
    folder.load("a.toml", &[]).unwrap();
    folder.write("a.toml", "remote.parsek = false\nguest.os = 'debian12'\nremote.ssh = true");
    insta::assert_snapshot!(folder.complaint("a.toml", &[]), @r"
    a.toml:1:8: remote.parsek: unknown key
        fix   did you mean 'parsec'?
    a.toml:3:8: remote.ssh: not supported by this version
        fix   leave 'ssh' out
    ");
}

#[test]
fn tables_merge_lists_replace_and_lines_are_those_of_the_parent() {
    let base = "name = \"base\"\n[guest]\nos = \"debian12\"\npackages = [\"vim\", \"git\"]\n[machine]\ncpus = 2\nmemory = \"1 GiB\"\n[[card]]\nid = \"10de:2484\"\n";
    let folder = Folder::with(&[
        ("base.toml", base),
        (
            "child.toml",
            "extends = \"base.toml\"\n[guest]\npackages = [\"less\"]\n[machine]\ncpus = 4\n[[card]]\nany = true\n",
        ),
    ]);
    let child = folder.load("child.toml", &["machine.memory=2 GiB", "card.0.count=3"]).unwrap();
    assert_eq!(child.recipe.name, "child");
    assert_eq!(child.files, [folder.path("child.toml"), folder.path("base.toml")]);
    let shown: Vec<String> = child.shown().iter().map(ToString::to_string).collect();
    let shown = folder.plain(&shown.join("\n"));
    let interesting =
        |line: &&str| ["guest.os", "guest.pack", "machine.", "card."].iter().any(|key| line.starts_with(key));
    insta::assert_snapshot!(shown.lines().filter(interesting).collect::<Vec<_>>().join("\n"));

    folder.write("base.toml", base.replace("cpus = 2", "cpsu = 2"));
    insta::assert_snapshot!(folder.complaint("child.toml", &[]), @r"
    base.toml:6:1: machine.cpsu: unknown key
        fix   did you mean 'cpus'?
    ");
}

#[test]
fn circles_missing_parents_and_files_that_are_no_recipes() {
    let folder = Folder::with(&[
        ("a.toml", "extends = \"b.toml\""),
        ("b.toml", "name = \"b\"\nextends = \"./c.toml\""),
        ("c.toml", "extends = \"a.toml\""),
        ("orphan.toml", "extends = \"nobody.toml\""),
        ("list.toml", "extends = [\"a.toml\"]"),
        ("syntax.toml", "[guest]\nos = debian12\n"),
        ("twice.toml", "[guest]\nos = 'a'\nos = 'b'\n"),
    ]);
    folder.write("binary.toml", b"name = \"\xff\"");
    let names = ["a", "orphan", "list", "syntax", "twice", "binary", "nothing"];
    let all: Vec<String> = names.iter().map(|name| folder.complaint(&format!("{name}.toml"), &[])).collect();
    insta::assert_snapshot!(all.join("\n"));
    assert_eq!(folder.load("", &[]).unwrap_err().all()[0].kind, Kind::File);
}

#[test]
fn set_takes_values_and_bare_texts() {
    let folder = Folder::with(&[("a.toml", "guest.os = 'debian12'\n[[card]]\nany = true")]);
    let sets = [
        "card.0.address=01:00",
        "machine.cpus = 3",
        "guest.packages=['vim']",
        "machine.memory=2 GiB",
        "network.mode=\"none\"",
    ];
    let recipe = folder.load("a.toml", &sets).unwrap().recipe;
    assert_eq!(recipe.cards[0].request.address.as_deref(), Some("01:00"));
    assert_eq!((recipe.machine.cpus, recipe.machine.memory_mib), (Some(3), Some(2048)));
    assert_eq!(recipe.guest.packages, ["vim"]);
    let all = [
        "card.1.id=10de:2484",
        "name.x=1",
        "cpus",
        "=3",
        "extends=b.toml",
        "machine.cpus=many",
        "guest.oss=debian12",
    ]
    .map(|set| folder.complaint("a.toml", &[set]));
    insta::assert_snapshot!(all.join("\n"));
}

#[test]
fn a_plan_without_a_lock_says_what_to_run() {
    let folder = Folder::with(&[("a.toml", "[guest]\nos = 'debian12'\nbackports = ['vim']")]);
    let recipe = folder.load("a.toml", &[]).unwrap();
    let mut lock = lock();
    lock.suites.remove("bookworm-backports");
    let problems = folder.plain(&plan(&recipe, &lock, &Facts::default()).unwrap_err());
    insta::assert_snapshot!(problems, @r"
    a.toml:1:1: guest.suite: 'bookworm-backports' is not in no43.lock
        fix   run no43 lock
    ");
}

#[test]
fn files_that_are_not_there_are_named_with_the_line_that_wants_them() {
    let folder = Folder::with(&[(
        "a.toml",
        "[guest]\nos = 'debian12'\n[[guest.files]]\nfrom = 'nothing'\nto = '/x'\n[[step]]\ncopy = { from = 'folder', to = '/y' }",
    )]);
    fs::create_dir(folder.path("folder")).unwrap();
    folder.write("folder/b", "b");
    fs::create_dir(folder.path("folder/a")).unwrap();
    folder.write("folder/a/run.sh", "#!/bin/sh");
    std::os::unix::fs::symlink("b", folder.path("folder/link")).unwrap();
    let recipe = folder.load("a.toml", &[]).unwrap();
    let missing = gather(
        &recipe,
        &lock(),
        &folder.path("no43-guest"),
        Path::new("/nowhere"),
        &mut HashCache::in_memory(),
    );
    insta::assert_snapshot!(folder.plain(&missing.unwrap_err()));

    folder.write("nothing", "now it is there");
    let plan = plan_of(&recipe);
    let inputs = serde_json::to_value(&plan.layers[1].inputs).unwrap();
    let to: Vec<&str> =
        inputs["step"]["copy"].as_array().unwrap().iter().map(|file| file["to"].as_str().unwrap()).collect();
    assert_eq!(to, ["/y/a/run.sh", "/y/b", "/y/link"]);
}

#[test]
fn a_recipe_that_holds_all_defaults_means_the_same_as_one_that_holds_none() {
    let (defaults, _) = recipe::DEFAULTS.split_once("# For each item").unwrap();
    let folder = Folder::with(&[("all.toml", defaults), ("none.toml", "")]);
    let [all, none] = ["all", "none"].map(|name| {
        plan_of(
            &folder
                .load(&format!("{name}.toml"), &["guest.os=debian12", "name=x", "card=[{ any = true }]"])
                .unwrap(),
        )
    });
    assert_eq!(keys(&all), keys(&none));
    assert_eq!(
        (all.machine, all.checks, all.display, all.network),
        (none.machine, none.checks, none.display, none.network)
    );
}

const WINDOWS_DRIVER: &str = r#"
name = "games"
[guest]
os = "windows10"
user = { name = "player" }
[inputs]
iso = { path = "iso" }
virtio = { path = "virtio" }
old = { path = "old.exe" }
new = { path = "new.exe" }
parsec = { path = "parsec.exe" }
[machine]
cpus = 2
memory = "4 GiB"
[[card]]
id = "10de:2484"
[driver]
package = "new"
[remote]
parsec = true
rdp = true
"#;

/// A plan of a Windows whose inputs are only named: what they hold is said here.
fn windows_plan(folder: &Folder, sets: &[&str]) -> Result<Plan, Problems> {
    let recipe = folder.load("games.toml", sets)?;
    let windows = recipe.recipe.guest.windows.as_ref().unwrap();
    let media = media_for(windows);
    let driver = |version: &str| DriverFacts {
        system: System::Windows,
        version: Some(version.parse().unwrap()),
        date: "03/17/2021".into(),
        dch: true,
        form: None,
        signer: Some(Signer::Microsoft),
        files: 3000,
        bytes: 1 << 30,
        contradictions: Vec::new(),
        models: vec![ModelFacts {
            inf: "Display.Driver/nv_dispi.inf".into(),
            section: "NVIDIA_Devices.NTamd64.10.0...17098".into(),
            devices: "10de:2484".into(),
        }],
    };
    let mut lock = lock();
    let mut facts = Facts { guest_program: "00".repeat(32), ..Facts::default() };
    for (n, (name, input)) in recipe.recipe.inputs.iter().enumerate() {
        let entry = InputLock {
            source: input.written.clone(),
            sha256: format!("{n:02x}").repeat(32),
            size: 1,
            facts: std::collections::BTreeMap::from([
                ("viostor".into(), "w10".into()),
                ("NetKVM".into(), "w10".into()),
            ]),
            media: (name == "iso").then(|| media.clone()),
            driver: match name.as_str() {
                "old" => Some(driver("466.11")),
                "new" => Some(driver("472.12")),
                _ => None,
            },
        };
        lock.inputs.entry("games".into()).or_default().insert(name.clone(), entry);
        facts.inputs.insert(name.clone(), folder.path(name));
    }
    let virtio = VirtioFound {
        path: "virtio".into(),
        sha256: "11".repeat(32),
        in_setup: vec!["viostor".into()],
        later: vec!["vioserial".into()],
        agent: true,
    };
    facts.windows = Some(WindowsFacts { media, virtio: Some(virtio), answer_file: None });
    plan(&recipe, &lock, &facts)
}

#[test]
fn another_driver_is_one_new_layer() {
    let folder = Folder::with(&[("games.toml", WINDOWS_DRIVER)]);
    let of = |sets: &[&str]| windows_plan(&folder, sets).unwrap_or_else(|problems| panic!("{problems}"));
    let new = of(&[]);
    let (one, other) = (keys(&new), of(&["driver.package=old"]));
    let other = keys(&other);
    assert_eq!(one.len(), 3);
    assert_eq!((one[0], one[1]), (other[0], other[1]));
    assert_ne!(one[2], other[2]);
    insta::assert_snapshot!(new.to_string().replace(&folder.path("").display().to_string(), ""), @"
    games   windows10   from games.toml
    layers   36a35c310522  base               Windows 10 Professional fr-FR build 19045, 2 drivers, 3 set…
             fb5cc253c09c  remote play        Parsec
             3fa823bb79e0  driver             driver 472.12, staged
    machine  2 CPUs, 4 GiB memory, 64 GiB disk, UEFI, boots from its disk, user network
    card     10de:2484
    checks   agent, card, driver, connector, work, quiet, parsec
    note     a session of Remote Desktop takes the screen away from Parsec until somebody logs on at the console again: use one at a time
    note     Parsec: installed, not signed in: do it once with no43 view
    ");
    let LayerWhat::WindowsSetup(driver) = &new.layers[2].what else { panic!("another layer") };
    insta::assert_snapshot!(serde_json::to_string(&driver.setup.actions).unwrap(), @r#"[{"name":"driver 472.12 Display.Driver","task":{"do":"driver","inf":"driver/Display.Driver","install":false},"limit_seconds":2400,"restart":"later"},{"name":"restart","task":{"do":"restart","only_if_needed":true},"limit_seconds":1200,"restart":"later"}]"#);
    assert_eq!(of(&["driver.install=none"]).layers.len(), 2);
    // The card may be another one without a new layer, and so may everything else that a machine is started with.
    assert_eq!(keys(&of(&["machine.cpus=4"])), one);
    let again: Plan = serde_json::from_str(&serde_json::to_string(&new).unwrap()).unwrap();
    assert_eq!(again, new, "a plan survives JSON");
}

#[test]
fn remote_play_leaves_a_check_out_and_policies_alone_are_a_layer() {
    let folder = Folder::with(&[("games.toml", WINDOWS_DRIVER)]);
    let of = |sets: &[&str]| windows_plan(&folder, sets).unwrap_or_else(|problems| panic!("{problems}"));
    let checks = of(&[]).checks;
    assert_eq!(checks.own[0].run, ["sc.exe", "query", "Parsec"]);
    assert_eq!(checks.skip["parsec"], "installed, not signed in: do it once with no43 view");
    let own = of(&["check=[{ name = 'parsec', run = ['C:\\own.exe'] }]"]).checks;
    assert_eq!((own.own.len(), own.own[0].run[0].as_str(), own.skip.len()), (1, "C:\\own.exe", 0));
    let without = of(&["remote.parsec=false", "remote.rdp-gpu=true", "driver.install=none"]);
    assert!(without.checks.own.is_empty() && without.checks.skip.is_empty());
    let LayerWhat::WindowsSetup(remote) = &without.layers[1].what else { panic!("another layer") };
    assert_eq!((without.layers.len(), remote.title.as_str()), (2, "Remote Desktop's policies"));
    // Remote Desktop itself is the answer file's: no start is made for it
    assert_eq!(of(&["remote.parsec=false", "driver.install=none"]).layers.len(), 1);
}

#[test]
fn a_driver_that_is_installed_with_the_card_is_kept_as_it_is_where_that_is_asked_for() {
    let folder = Folder::with(&[("games.toml", WINDOWS_DRIVER)]);
    let deny = |sets: &[&str]| {
        let plan = windows_plan(&folder, sets).unwrap_or_else(|problems| panic!("{problems}"));
        let LayerWhat::WindowsSetup(layer) = &plan.layers[2].what else { panic!("another layer") };
        let actions = serde_json::to_string(&layer.setup.actions).unwrap();
        (layer.driver.as_ref().unwrap().deny.join(" "), actions)
    };
    assert_eq!(deny(&["updates.driver=ours"]).0, "", "a staged driver has not bound yet");
    let (ids, actions) =
        deny(&["updates.driver=ours", "driver.install=with-card", "driver.components=['PhysX']"]);
    assert_eq!(ids, "10de:2484");
    assert!(actions.contains(r#""-clean","Display.Driver","PhysX""#), "{actions}");
    assert_eq!(deny(&["driver.install=with-card"]).0, "");
    let (_, actions) = deny(&["driver.test-signed=true"]);
    assert!(
        actions.contains("testsigning") && actions.find("testsigning") < actions.find("driver 472.12"),
        "{actions}"
    );
}

#[test]
fn a_step_in_a_windows_is_a_layer_that_the_guest_program_makes() {
    let folder = Folder::with(&[("games.toml", WINDOWS_DRIVER)]);
    let of = |sets: &[&str]| windows_plan(&folder, sets);
    let run = "step=[{ name = 'unpack', run = ['C:\\Games\\setup.exe', '/silent'] }, { reboot = true }, { copy = { input = 'parsec', to = 'C:\\Apps\\' } }]";
    let plan = of(&[run]).unwrap_or_else(|problems| panic!("{problems}"));
    let layers: Vec<String> = plan.layers[3..]
        .iter()
        .map(|layer| match &layer.what {
            LayerWhat::WindowsSetup(step) => {
                let files: Vec<&str> = step.files.iter().map(|(to, _)| to.as_str()).collect();
                format!(
                    "{}: {} {files:?} seal {}",
                    layer.name,
                    serde_json::to_string(&step.setup.actions).unwrap(),
                    step.setup.seal
                )
            }
            other => format!("{other:?}"),
        })
        .collect();
    insta::assert_snapshot!(layers.join("\n"), @r##"
unpack: [{"name":"unpack","task":{"do":"command","run":["C:\\Games\\setup.exe","/silent"],"codes":{"done":[0],"restart":[3010,1641],"unchanged":[]}},"limit_seconds":600,"restart":"later"},{"name":"restart","task":{"do":"restart","only_if_needed":true},"limit_seconds":1200,"restart":"later"}] [] seal false
step 2: [{"name":"restart","task":{"do":"restart","only_if_needed":false},"limit_seconds":1200,"restart":"later"}] [] seal false
step 3: [{"name":"copy C:\\Apps\\parsec","task":{"do":"copy","from":"files/0","to":"C:\\Apps\\parsec"},"limit_seconds":3600,"restart":"later"}] ["files/0"] seal false
"##);
    let refused = |step: &str| of(&[step]).expect_err("no such step in Windows").to_string();
    insta::assert_snapshot!(refused("step=[{ install = ['vim'] }]"), @r"
step: this version has no 'install' in Windows guests (step 'step 1')
    fix   copy the installer in, and run it silently
");
    insta::assert_snapshot!(refused("step=[{ wait-for = { file = 'C:\\x' } }]"), @r"
step: this version has no 'wait-for' in Windows guests (step 'step 1')
    fix   use run with a program that waits
");
    let other = of(&[&run.replace("/silent", "/S")]).unwrap();
    assert_eq!(keys(&plan)[..3], keys(&other)[..3]);
    assert_ne!(keys(&plan)[3], keys(&other)[3]);
}

#[test]
fn a_linux_guest_s_driver_is_a_layer_between_base_and_steps() {
    let guest = "[guest]\nos = 'debian12'\n[[step]]\nrun = ['true']\n";
    let text = format!("{guest}[driver]\npackages = ['nvidia-driver']\nversion = '535.216'\n");
    let folder = Folder::with(&[("plain.toml", guest), ("driver.toml", &text)]);
    let plan = |name: &str, sets: &[&str]| {
        plan_of(&folder.load(name, sets).unwrap_or_else(|problems| panic!("{problems}")))
    };
    let (plain, driver) = (plan("plain.toml", &[]), plan("driver.toml", &[]));
    assert_eq!(driver.layers.len(), plain.layers.len() + 1);
    assert_eq!(keys(&plain)[0], keys(&driver)[0]);
    assert_eq!(driver.layers[1].name, "driver");
    assert_eq!(driver.driver.version.as_deref(), Some("535.216"));
    let other = plan("driver.toml", &["driver.version=550.54"]);
    assert_ne!(keys(&other)[1], keys(&driver)[1]);
    let lean = plan_of_lean(&folder, "driver.toml");
    assert!(lean.contains("a lean guest has no package manager"), "{lean}");
}

fn plan_of_lean(folder: &Folder, name: &str) -> String {
    let recipe = folder.load(name, &["guest.init=lean", "machine.boot=direct"]).unwrap();
    plan(&recipe, &lock(), &facts(&recipe, &lock()))
        .map_or_else(|problems| problems.to_string(), |plan| plan.to_string())
}
