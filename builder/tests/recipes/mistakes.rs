//! What a person is told about mistakes: all at once, each with its line and a way out.

use std::fs;
use std::path::Path;

use no43_builder::lock::hashes::HashCache;
use no43_builder::plan::{Facts, gather, plan};

use crate::common::{Folder, lock, plan_of};

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
fn huge_pages_are_whole() {
    let folder = Folder::with(&[(
        "a.toml",
        "guest.os = 'debian12'\nmachine = { memory = '257 MiB', hugepages = true }",
    )]);
    insta::assert_snapshot!(folder.complaint("a.toml", &[]), @r#"
    a.toml:2:22: machine.memory: 257 MiB is no whole number of huge pages, of 2 MiB each
        fix   write "258 MiB", or remove hugepages
    "#);
    let folder = Folder::with(&[(
        "a.toml",
        "guest.os = 'debian12'\nmachine = { memory = '258 MiB', hugepages = true }",
    )]);
    assert!(plan_of(&folder.load("a.toml", &[]).unwrap()).machine.hugepages);
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
