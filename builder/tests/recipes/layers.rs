//! What changes a layer's key, what does not, and what a plan takes.

use no43_builder::plan::{Facts, HostCard, HostFacts, plan};

use crate::common::{Folder, GUEST, facts, kept, keys, lock, plan_of};

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
        board: None,
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
