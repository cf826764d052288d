//! Layers above an installed Windows: remote play, drivers, steps.

use no43_builder::diagnostic::Problems;
use no43_builder::driver::DriverFacts;
use no43_builder::lock::InputLock;
use no43_builder::plan::{Facts, LayerWhat, Plan, SecretSource, plan};
use no43_builder::windows::{VirtioFound, WindowsFacts};

use crate::common::{Folder, keys, lock, media_for};

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
    let package: DriverFacts = toml::from_str(include_str!("../data/geforce-package.toml")).unwrap();
    let driver = |version: &str| DriverFacts { version: Some(version.parse().unwrap()), ..package.clone() };
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
                "zero" => Some(driver("461.72")),
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
    layers   0ad2f68014a6  base               Windows 10 Professional fr-FR build 19045, 2 drivers, 3 set…
             5eb39fd32510  remote play        Parsec
             b4a6031334a5  driver             driver 472.12, staged
    machine  2 CPUs, 4 GiB memory, 64 GiB disk, UEFI, boots from its disk, user network
    card     10de:2484
    checks   agent, card, driver, connector, work, quiet, rdp, parsec
    note     a session of Remote Desktop takes the screen away from Parsec until somebody logs on at the console again: use one at a time
    note     Parsec: installed, not signed in: do it once with no43 view
    ");
    let LayerWhat::WindowsSetup(driver) = &new.layers[2].what else { panic!("another layer") };
    insta::assert_snapshot!(serde_json::to_string(&driver.setup.actions).unwrap(), @r#"[{"name":"lets the driver change","task":{"do":"registry","key":"HKLM\\SOFTWARE\\Policies\\Microsoft\\Windows\\DeviceInstall\\Restrictions","name":"DenyDeviceIDs","value":"delete"},"limit_seconds":60,"restart":"later"},{"name":"driver 472.12 Display.Driver","task":{"do":"driver","inf":"driver/Display.Driver","install":false},"limit_seconds":2400,"restart":"later"},{"name":"restart","task":{"do":"restart","only_if_needed":true},"limit_seconds":1200,"restart":"later"}]"#);
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
    assert_eq!(checks.own[1].run, ["sc.exe", "query", "Parsec"]);
    let rdp = &checks.own[0];
    assert_eq!((rdp.run[4].as_str(), rdp.says.as_deref()), ("fDenyTSConnections", Some("0x0")));
    assert!(!checks.skip.contains_key("rdp"), "nothing is left to do by hand for it");
    assert_eq!(checks.skip["parsec"], "installed, not signed in: do it once with no43 view");
    let own = of(&["check=[{ name = 'parsec', run = ['C:\\own.exe'] }]"]).checks;
    assert_eq!((own.own.len(), own.own[0].run[0].as_str(), own.skip.len()), (2, "C:\\own.exe", 0));
    let without = of(&["remote.parsec=false", "remote.rdp-gpu=true", "driver.install=none"]);
    assert!(without.checks.own.len() == 1 && without.checks.skip.is_empty());
    let LayerWhat::WindowsSetup(remote) = &without.layers[1].what else { panic!("another layer") };
    assert_eq!((without.layers.len(), remote.title.as_str()), (2, "Remote Desktop's policies"));
    // Remote Desktop itself is the answer file's: no start is made for it
    assert_eq!(of(&["remote.parsec=false", "driver.install=none"]).layers.len(), 1);
}

/// The image has Parsec's installer and nothing of the team; who registers is an instance.
#[test]
fn a_team_of_parsecs_is_joined_by_an_instance() {
    let folder = Folder::with(&[("games.toml", WINDOWS_DRIVER)]);
    let team = "remote.parsec-team={ id = '1or58', key = { file = '/keys/team' } }";
    let plan = windows_plan(&folder, &[team]).unwrap_or_else(|problems| panic!("{problems}"));
    let LayerWhat::WindowsSetup(remote) = &plan.layers[1].what else { panic!("another layer") };
    insta::assert_snapshot!(serde_json::to_string(&remote.setup.actions[0]).unwrap(), @r#"{"name":"Parsec: its installer","task":{"do":"copy","from":"apps/parsec-windows.exe","to":"C:\\Program Files\\no43\\parsec-windows.exe"},"limit_seconds":1200,"restart":"later"}"#);
    assert_eq!((remote.title.as_str(), remote.files.len()), ("Parsec's installer", 1));
    let what = serde_json::to_string(&plan.layers).unwrap();
    assert!(!what.contains("1or58") && !what.contains("/keys/team"), "a layer knows the team: {what}");
    let joins = plan.guest.parsec_team.as_ref().unwrap();
    assert_eq!((joins.id.as_str(), &joins.key), ("1or58", &SecretSource::File("/keys/team".into())));
    assert_eq!(plan.checks.skip["parsec"], no43_builder::apps::AT_FIRST_START);
    assert!(plan.notes.iter().any(|note| note.contains("registers with its team")), "{:?}", plan.notes);
    let again: Plan = serde_json::from_str(&serde_json::to_string(&plan).unwrap()).unwrap();
    assert_eq!(again, plan, "a plan survives JSON");
}

#[test]
fn a_team_of_parsecs_needs_both_parts_and_parsec() {
    let folder = Folder::with(&[("games.toml", WINDOWS_DRIVER)]);
    folder.write("games.toml", WINDOWS_DRIVER.replace("parsec = true", "parsec-team = { id = 'x' }"));
    insta::assert_snapshot!(folder.complaint("games.toml", &[]), @r#"
    games.toml:20:15: remote.parsec-team: Parsec is off
        fix   set parsec = true, or remove this table
    games.toml:20:15: remote.parsec-team: a team of Parsec's needs its key
        fix   add key = { file = "…" }: a file with the team's computer key
    "#);
    folder.write(
        "games.toml",
        WINDOWS_DRIVER.replace("parsec = true", "parsec = true\nparsec-team = { key = 'hunter2' }"),
    );
    insta::assert_snapshot!(folder.complaint("games.toml", &[]), @r#"
    games.toml:21:23: remote.parsec-team.key: a table is needed here, and this is a text
        why   recipes are shared, copied and shown: they hold no secrets
        fix   write { file = "~/.config/no43/password" }, { env = "NAME" } or { credential = "name" }
    "#);
}

#[test]
fn a_layer_with_a_driver_lifts_the_list_against_drivers_and_never_sets_it() {
    let folder = Folder::with(&[("games.toml", WINDOWS_DRIVER)]);
    let of = |sets: &[&str]| {
        let plan = windows_plan(&folder, sets).unwrap_or_else(|problems| panic!("{problems}"));
        let LayerWhat::WindowsSetup(layer) = &plan.layers[2].what else { panic!("another layer") };
        let first = serde_json::to_string(&layer.setup.actions[0].task).unwrap();
        assert!(first.contains(r#""name":"DenyDeviceIDs","value":"delete""#), "{first}");
        let actions = serde_json::to_string(&layer.setup.actions).unwrap();
        assert_eq!(actions.matches("DenyDeviceIDs").count(), 1, "{actions}");
        (plan.layers[2].key.clone(), plan.driver, actions)
    };
    // The list is a run's: the image is the same whoever may change the driver, and whatever cards the recipe names.
    let (free, ours) = (of(&[]), of(&["updates.driver=ours"]));
    assert_eq!((free.1.keep, ours.1.keep, ours.1.cards), (false, true, vec!["10de:2484".to_owned()]));
    let (_, _, actions) = of(&["driver.install=with-card", "driver.components=['PhysX']"]);
    assert!(actions.contains(r#""-clean","Display.Driver","PhysX""#), "{actions}");
    let (_, _, actions) = of(&["driver.test-signed=true"]);
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
fn a_card_is_proved_under_other_drivers_too() {
    let folder = Folder::with(&[("games.toml", WINDOWS_DRIVER)]);
    let of = |sets: &[&str]| windows_plan(&folder, sets);
    let asked =
        "checks.lifecycle=['driver:old', 'driver-rollback', 'driver-reinstall', 'driver:new', 'driver:old']";
    let plan = of(&["driver.package=new", asked]).unwrap_or_else(|problems| panic!("{problems}"));
    // what is proved afterwards never makes another image
    assert_eq!(keys(&plan), keys(&of(&[]).unwrap()));
    let others: Vec<_> =
        plan.driver.others.iter().map(|one| (one.name.as_str(), one.version.to_string())).collect();
    assert_eq!(others, [("old", "466.11".to_owned()), ("new", "472.12".to_owned())]);
    let again: Plan = serde_json::from_str(&serde_json::to_string(&plan).unwrap()).unwrap();
    assert_eq!(again, plan, "a plan survives JSON");
    let said = plan.to_string();
    let line = said.lines().find(|line| line.contains("again after")).unwrap_or_default();
    insta::assert_snapshot!(line.trim(), @"checks   agent, card, driver, connector, work, quiet, rdp, parsec, again after installation of driver old, again after rollback of the driver, again after reinstallation of the driver, again after installation of driver new, again after installation of driver old");
    // the gate is the same as for the recipe's own driver
    let zero = r#"inputs.zero={ path = "zero.exe" }"#;
    let refused = of(&[zero, "checks.lifecycle=['driver:zero']"]).unwrap_err().to_string();
    insta::assert_snapshot!(refused.replace(&folder.path("").display().to_string(), ""), @"
    --set: checks.lifecycle.0: driver 461.72 is older than 465: 10de:2484 GA104 [GeForce RTX 3070] would end with Code 43 in a VM that it sees
        fix   take a package of branch 465 or newer, or set driver.legacy = true: the VM then hides itself, and is slower
    ");
}

#[test]
fn what_no_driver_can_do_is_said_before_anything_starts() {
    let linux = "guest.os = 'debian12'\n[[card]]\nany = true\n[checks]\nlifecycle = ['driver-reload', 'driver-reinstall', 'driver-rollback', 'driver:nvidia', 'driver:']\n";
    let lean = "guest = { os = 'debian12', init = 'lean' }\nmachine.boot = 'direct'\n[checks]\nlifecycle = ['driver-reload']\n";
    let windows = WINDOWS_DRIVER.to_owned()
        + "[checks]\nlifecycle = ['driver-rollback', 'driver:old', 'driver-rollback', 'driver-rollback']\n";
    let folder = Folder::with(&[("linux.toml", linux), ("lean.toml", lean), ("games.toml", &windows)]);
    insta::assert_snapshot!(folder.complaint("linux.toml", &[]), @"
    linux.toml:5:87: checks.lifecycle.4: 'driver:' cannot be used here
        fix   behind 'driver:': use letters, digits, '-', '_' and '.', starting with a letter or digit
    ");
    insta::assert_snapshot!(folder.complaint("linux.toml", &["checks.lifecycle.4=reboot"]), @r#"
    linux.toml:5:31: checks.lifecycle.1: the driver is the kernel's own
        fix   ask for driver-reload, or name driver.package
    linux.toml:5:51: checks.lifecycle.2: only Windows keeps the driver before
        fix   name the package: driver:NAME
    linux.toml:5:70: checks.lifecycle.3: there is no input 'nvidia', and drivers.toml lists none
        fix   add "nvidia" = { path = "…" } to [inputs], or run no43 driver add FILE
    "#);
    insta::assert_snapshot!(folder.complaint("lean.toml", &[]), @"
    lean.toml:4:14: checks.lifecycle.0: there is no card whose driver could change
        fix   add a [[card]], or leave this out
    ");
    insta::assert_snapshot!(folder.complaint("games.toml", &[]), @"
    games.toml:23:14: checks.lifecycle.0: there is no driver before to go back to
        fix   put driver:NAME before it
    games.toml:23:66: checks.lifecycle.3: there is no driver before to go back to
        fix   put driver:NAME before it
    ");
    insta::assert_snapshot!(folder.complaint("games.toml", &["driver.install=with-card"]), @r#"
    games.toml:23:14: checks.lifecycle.0: NVIDIA's installer is told to leave nothing of the driver before
        fix   name the package: driver:NAME, or set driver.install = "staged"
    games.toml:23:47: checks.lifecycle.2: NVIDIA's installer is told to leave nothing of the driver before
        fix   name the package: driver:NAME, or set driver.install = "staged"
    games.toml:23:66: checks.lifecycle.3: NVIDIA's installer is told to leave nothing of the driver before
        fix   name the package: driver:NAME, or set driver.install = "staged"
    "#);
}

#[test]
fn a_check_in_somebodys_session_needs_somebody_who_can_be_logged_on() {
    let check = "[[check]]\nname = 'looks'\nrun = ['bench\\run.exe']\nsession = 'user'\n";
    let windows = WINDOWS_DRIVER.to_owned() + check;
    let well = windows.replace(r#"name = "player""#, r#"name = "player", password = { env = "PASSWORD" }"#);
    let nobody = format!("guest.os = 'debian12'\n{check}");
    let folder = Folder::with(&[("games.toml", &windows), ("well.toml", &well), ("nobody.toml", &nobody)]);
    insta::assert_snapshot!(folder.complaint("games.toml", &[]), @r#"
    games.toml:25:11: check.0.session: nobody can be logged on: the guest's user has no password
        fix   add guest.user.password, or write session = "service"
    "#);
    insta::assert_snapshot!(folder.complaint("nobody.toml", &[]), @r#"
    nobody.toml:5:11: check.0.session: this guest has no user
        fix   add guest.user, or write session = "service"
    "#);
    folder.load("well.toml", &[]).unwrap();
}
