//! The language of recipes: every key, defaults, `extends`, `--set`.

use no43_builder::diagnostic::Kind;
use no43_builder::recipe;

use crate::common::{Folder, keys, plan_of};

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
