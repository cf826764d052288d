//! The gate's messages, for cards that are known and packages in a lock.

use super::*;
use crate::plan::HostCard;
use crate::recipe;

const RECIPE: &str = r#"
[guest]
os = "windows10"
user = { name = "player" }
[inputs]
iso = { path = "iso" }
virtio = { path = "virtio" }
nvidia = { path = "nvidia.exe" }
[driver]
package = "nvidia"
"#;

fn facts(version: &str) -> DriverFacts {
    let package: DriverFacts =
        toml::from_str(include_str!("../../../tests/data/geforce-package.toml")).unwrap();
    DriverFacts { version: Some(version.parse().unwrap()), ..package }
}

/// What the gate says to a recipe with more in it.
fn said_with(more: &str, package: &DriverFacts, build: u32, host: Option<&HostFacts>) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r.toml");
    std::fs::write(&path, format!("{RECIPE}{more}")).unwrap();
    let plain = |text: String| text.replace(&format!("{}/", dir.path().display()), "");
    let resolved = match recipe::load(&path, &[]) {
        Ok(resolved) => resolved,
        Err(problems) => return plain(problems.to_string()),
    };
    let asked = Asked { recipe: &resolved.recipe, package: Some(package), build: Some(build), host };
    match decide(&asked) {
        Ok(decided) => {
            let cards: Vec<String> = decided.cards.iter().map(ToString::to_string).collect();
            let hidden = if decided.hidden { "hidden, " } else { "" };
            format!("{hidden}cards [{}]\n{}", cards.join(" "), decided.notes.join("\n"))
        }
        Err(problems) => plain(problems.to_string()),
    }
}

fn said(more: &str, version: &str) -> String {
    said_with(more, &facts(version), 19045, None)
}

const RTX: &str = "[[card]]\nid = '10de:2484'\n";

#[test]
fn a_geforce_wants_465_or_a_vm_that_hides() {
    insta::assert_snapshot!(said(RTX, "466.11"), @"cards [10de:2484]");
    insta::assert_snapshot!(said(RTX, "461.72"), @"
    r.toml:10:11: driver.package: driver 461.72 is older than 465: 10de:2484 GA104 [GeForce RTX 3070] would end with Code 43 in a VM that it sees
        fix   take a package of branch 465 or newer, or set driver.legacy = true: the VM then hides itself, and is slower
    ");
    insta::assert_snapshot!(said(&format!("legacy = true\n{RTX}"), "461.72"), @"
    hidden, cards [10de:2484]
    driver.legacy: the VM hides itself (kvm=off, another vendor id), which makes Windows slower
    ");
    insta::assert_snapshot!(said(&format!("legacy = true\n{RTX}"), "470.05"), @"
    hidden, cards [10de:2484]
    driver.legacy: the VM hides itself (kvm=off, another vendor id), which makes Windows slower; from 465 on no driver needs that
    ");
}

#[test]
fn too_new_is_refused_as_well() {
    insta::assert_snapshot!(said_with(RTX, &facts("466.11"), 10240, None), @"
    r.toml:10:11: driver.package: the package does not drive 10de:2484 GA104 [GeForce RTX 3070]: it drives this card from Windows build 17098 on, and the guest has build 10240
        fix   take another package (no43 driver inspect FILE --card ID tells what one drives), or another card
    ");
    let mut newer = facts("591.44");
    newer.models[0].devices = "10de:2484".into();
    insta::assert_snapshot!(said_with("[[card]]\nid = '10de:1b80'\n", &newer, 19045, None), @"
    r.toml:10:11: driver.package: the package does not drive 10de:1b80 GP104 [GeForce GTX 1080]: Pascal chips are driven up to branch 582, and this is newer
        fix   take an older package, or another card
    ");
    newer.date = "11/04/2026".into();
    insta::assert_snapshot!(said_with(RTX, &newer, 19045, None), @"
    cards [10de:2484]
    driver: Windows 10 was announced to get new drivers until 2026-10 only (NVIDIA's announcement of 2025-07 for GeForce; not verified), and this one is of 11/04/2026
    ");
}

#[test]
fn cards_are_those_of_this_host_or_of_the_name() {
    let card = |id: &str, name: &str| HostCard {
        name: name.into(),
        address: "0000:01:00".into(),
        id: id.into(),
        board: None,
        ready: true,
        state: String::new(),
    };
    let host = HostFacts {
        cards: vec![card("10de:2486", "GeForce RTX 3060 Ti (GA104)"), card("1002:73bf", "Navi 21")],
        ..HostFacts::default()
    };
    insta::assert_snapshot!(said_with("[[card]]\nany = true\n", &facts("466.11"), 19045, Some(&host)), @"
    cards [1002:73bf 10de:2486]
    driver: 1002:73bf Navi 21 [Radeon RX 6800/6800 XT / 6900 XT] fits this [[card]] too, and would not work: the package does not drive 1002:73bf Navi 21 [Radeon RX 6800/6800 XT / 6900 XT]: the package is for cards of maker 10de; name the card that is meant
    ");
    insta::assert_snapshot!(said("[[card]]\nmodel = 'RTX 3070'\n", "466.11"), @"cards [10de:2484]");
    insta::assert_snapshot!(said("[[card]]\nany = true\n", "466.11"), @"
    cards []
    driver: which card it will be is known when it is leased: any card is not checked against the package now
    ");
    insta::assert_snapshot!(said("[[card]]\nid = '1002:73bf'\npresent-as = '10de:2484'\n", "466.11"), @"cards [10de:2484]");
}

#[test]
fn a_notebook_s_card_is_known_by_its_board() {
    let host = |board: &str| HostFacts {
        cards: vec![HostCard {
            name: "GeForce RTX 3060 Mobile (GA106M)".into(),
            address: "0000:01:00".into(),
            id: "10de:2520".into(),
            board: Some(board.into()),
            ready: true,
            state: String::new(),
        }],
        ..HostFacts::default()
    };
    let of = |board: &str| said_with("[[card]]\nany = true\n", &facts("466.11"), 19045, Some(&host(board)));
    assert_eq!(of("1462:8a13"), "cards [10de:2520]\n");
    insta::assert_snapshot!(of("1043:1468"), @"
    r.toml:10:11: driver.package: the package does not drive 10de:2520 GA106M [GeForce RTX 3060 Mobile / Max-Q]: it drives this chip only on 1 boards of notebooks and complete computers (1462:8a13)
        fix   take another package (no43 driver inspect FILE --card ID tells what one drives), or another card
    ");
}

#[test]
fn versions_signatures_and_contradictions() {
    insta::assert_snapshot!(said(&format!("version = '466.12'\n{RTX}"), "466.11"), @"
    r.toml:11:11: driver.version: the package is 466.11, and the recipe wants 466.12
        fix   name the package of that version, or correct driver.version
    ");
    let mut package = facts("466.11");
    package.signer = Some(Signer::Nobody);
    package.contradictions = vec!["setup.cfg says 465.89, the INF files say 466.11".into()];
    insta::assert_snapshot!(said_with(RTX, &package, 19045, None), @"
    r.toml:10:11: driver.package: the package is signed by nobody: Windows would not load it (code 52)
        fix   take a released package, or set driver.test-signed = true (test signing on, Secure Boot off)
    ");
    insta::assert_snapshot!(said_with(&format!("test-signed = true\n{RTX}"), &package, 19045, None), @"
    cards [10de:2484]
    driver: the package contradicts itself: setup.cfg says 465.89, the INF files say 466.11
    driver: test signing is on: Windows takes drivers that Microsoft has not signed
    ");
    insta::assert_snapshot!(said(&format!("test-signed = true\n[machine]\nfirmware = 'uefi-secure'\n{RTX}"), "466.11"), @r#"
    r.toml:11:15: driver.test-signed: Windows takes no test-signed driver while Secure Boot is on
        fix   set machine.firmware = "uefi", or remove this key
    "#);
}

#[test]
fn what_cannot_be_asked_for_together() {
    insta::assert_snapshot!(said("install = 'with-card'\n", "466.11"), @r#"
    r.toml:11:11: driver.install: there is no card to install the driver with
        fix   add a [[card]], or set install = "staged"
    "#);
    insta::assert_snapshot!(said(&format!("components = ['PhysX']\npackages = ['nvidia-driver']\n{RTX}"), "466.11"), @r#"
    r.toml:11:14: driver.components: only NVIDIA's own installer knows components, and it is not run here
        fix   set install = "with-card", or remove this key
    r.toml:12:12: driver.packages: Windows has no packages of a distribution
        fix   name NVIDIA's .exe as driver.package
    "#);
    insta::assert_snapshot!(said("[remote]\nparsec = true\nrdp-gpu = true\n", "466.11"), @r#"
    r.toml:12:10: remote.parsec: Parsec needs its installer, and no input is called 'parsec'
        fix   add parsec = { url = "https://builds.parsec.app/package/parsec-windows.exe" } to [inputs]; the lock pins it
    r.toml:13:11: remote.rdp-gpu: Remote Desktop is off
        fix   set rdp = true, or remove this key
    "#);
}

#[test]
fn what_the_package_lists_is_kept_for_the_causes() {
    let listed = |id: &str, build: Option<u32>| {
        let ids = CardIds { id: id.parse().unwrap(), subsystem: None };
        listed(&facts("466.11").package(std::path::Path::new("")), ids, build)
    };
    assert_eq!(listed("10de:2484", Some(19045)), Some("matches"));
    assert_eq!(listed("10de:2484", Some(10240)), Some("other build"));
    assert_eq!(listed("1002:67df", Some(19045)), Some("not listed"));
}
