//! Verdicts on boards that people posted, laid out as sysfs trees.

mod common;

use common::{FakeHost, Spec};
use no43_host::{CardState, Inventory};

/// What a desktop Linux loads for a class; `-` where it has no driver.
const DRIVERS: &[(&str, &str)] = &[
    ("0106", "ahci"),
    ("0108", "nvme"),
    ("0200", "e1000e"),
    ("0280", "iwlwifi"),
    ("0403", "snd_hda_intel"),
    ("0604", "pcieport"),
    ("0c03", "xhci_hcd"),
];

struct Board {
    name: String,
    functions: Vec<Spec>,
    cards: Vec<Expected>,
}

struct Expected {
    video: String,
    with: Vec<String>,
    beside: Vec<String>,
}

fn boards() -> Vec<Board> {
    let mut boards: Vec<Board> = Vec::new();
    for line in include_str!("topologies.txt").lines().filter(|line| !line.starts_with('#')) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            [] => {}
            ["board", name, _platform] => {
                boards.push(Board { name: name.to_string(), functions: Vec::new(), cards: Vec::new() });
            }
            ["card", video, rest @ ..] => boards.last_mut().unwrap().cards.push(expected(video, rest)),
            [address, class, id, "group", group, "driver", driver, rest @ ..] => {
                boards.last_mut().unwrap().functions.push(function(address, class, id, group, driver, rest));
            }
            odd => panic!("{odd:?}"),
        }
    }
    boards
}

fn expected(video: &str, rest: &[&str]) -> Expected {
    let at = rest.iter().position(|word| *word == "beside").unwrap();
    let list = |words: &[&str]| words.iter().filter(|word| **word != "-").map(ToString::to_string).collect();
    Expected { video: video.into(), with: list(&rest[1..at]), beside: list(&rest[at + 1..]) }
}

fn function(address: &str, class: &str, id: &str, group: &str, driver: &str, rest: &[&str]) -> Spec {
    let after = |word: &str| rest.iter().position(|w| *w == word).map_or(&[][..], |at| &rest[at + 1..]);
    let usual = match (&class[..2], &id[..4]) {
        ("03", "10de") => "nouveau",
        ("03", "8086") => "i915",
        ("03", "1a03") => "ast",
        ("03", _) => "amdgpu",
        _ => DRIVERS.iter().find(|row| row.0 == class).map_or("-", |row| row.1),
    };
    let mut spec = Spec::new(address, class, id, 0, if driver == "-" { usual } else { driver });
    spec.group = group.parse().ok();
    spec.boot_vga = after("boot_vga").first().map(|word| *word == "1");
    spec.below = after("below").iter().map(ToString::to_string).collect();
    spec
}

#[test]
fn every_posted_board_is_judged_as_its_owner_saw_it() {
    let boards = boards();
    assert!(boards.len() > 15, "{} boards", boards.len());
    for board in boards {
        let host = FakeHost::new(&board.functions);
        let inventory = Inventory::read(&host.roots).unwrap();
        assert_eq!(inventory.functions.len(), board.functions.len(), "{}", board.name);
        let cards = inventory.cards();
        for expected in &board.cards {
            let at = format!("{} {}", board.name, expected.video);
            let card = cards.iter().find(|card| card.address.short() == expected.video).expect(&at);
            let mut functions: Vec<String> = expected.with.clone();
            functions.push(expected.video.clone());
            functions.sort();
            assert_eq!(
                card.functions.iter().map(no43_host::PciAddress::short).collect::<Vec<_>>(),
                functions,
                "{at}"
            );
            // the posts judge the video function's group; we judge the groups of all functions of the card
            let group = inventory.function(&card.address).unwrap().group;
            let same_group = card.neighbours.iter().filter(|n| Some(n.group) == group);
            let beside: Vec<String> = same_group.clone().map(|n| n.address.short()).collect();
            assert_eq!(beside, expected.beside, "{at}");
            if !expected.beside.is_empty() {
                assert!(!card.isolated, "{at}");
                let used = same_group.clone().any(|n| n.driver.is_some());
                assert!(!used || !card.viable, "{at}");
            }
            assert_eq!(card.viable, !card.neighbours.iter().any(|n| n.driver.is_some()), "{at}");
        }
    }
}

fn cards_of(name: &str) -> String {
    let board = boards().into_iter().find(|board| board.name == name).unwrap();
    let host = FakeHost::new(&board.functions);
    let cards = Inventory::read(&host.roots).unwrap().cards();
    let rows = no43_host::table::rows(&cards);
    rows.iter().map(|row| row.cells().join(" | ")).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_switch_on_the_card_does_not_hide_its_audio() {
    insta::assert_snapshot!(cards_of("am5-aspeed-two-arc"), @r"
    Intel card 8086:e212 | 03:00 | video audio | 14,15 | i915 | ready to lend
    Arc A310 (DG2) | 09:00 | video audio | 17 | i915 | ready to lend
    ASPEED Graphics Family | 0c:00 | video | 18 | ast | ready to lend
    AMD card 1002:13c0 | 12:00 | video | 24 | amdgpu | ready to lend
    ");
}

#[test]
fn what_shares_a_group_is_named() {
    insta::assert_snapshot!(cards_of("x570-3080-5700-shared-group-example"), @r"
    Radeon RX 5600 OEM/5600 XT / 5700/5700 XT (Navi 10) | 0c:00 | video audio | 30,31 | amdgpu | cannot be lent: shares group 30 with 0d:00.0 GeForce RTX 3080 (GA102), which the host uses (driver nouveau)
    GeForce RTX 3080 (GA102) | 0d:00 | video audio | 30 | nouveau | cannot be lent: shares group 30 with 0c:00.0 Radeon RX 5600 OEM/5600 XT / 5700/5700 XT (Navi 10), which the host uses (driver amdgpu)
    ");
    insta::assert_snapshot!(cards_of("msi-b450m-mortar-max"), @r"
    Radeon HD 7450 (Caicos PRO) | 25:00 | video | 11 | amdgpu | cannot be lent: shares group 11 with 03:00.0 AMD 400 Series Chipset USB 3.1 XHCI Controller, which the host uses (driver xhci_hcd)
    GeForce GTX 960 (GM206) | 26:00 | video audio | 12 | nouveau | ready to lend
    ");
}

#[test]
fn the_first_picture_of_the_host_is_never_lent() {
    insta::assert_snapshot!(cards_of("emu-vtd-acs-on-multifunction"), @"QEMU standard VGA | 02:00 | video | 5 | amdgpu | the host's own display: never lent");
}

#[test]
fn without_an_iommu_nothing_can_be_lent() {
    let mut card = Spec::new("01:00.0", "0300", "10de:2484", 0, "nouveau").below("00:01.0");
    card.group = None;
    let host = FakeHost::new(&[card]);
    let cards = Inventory::read(&host.roots).unwrap().cards();
    assert_eq!(cards[0].state, CardState::NoIommu);
    assert!(!cards[0].viable && !cards[0].isolated);
}

/// Viable and isolated are two facts: a neighbour without a driver does not stop the kernel, and is still in reach.
#[test]
fn a_neighbour_without_driver_is_viable_and_not_isolated() {
    let host = FakeHost::new(&[
        Spec::new("01:00.0", "0300", "10de:2484", 7, "nouveau").below("00:01.0"),
        Spec::new("02:00.0", "0108", "144d:a80a", 7, "-").below("00:02.0"),
    ]);
    let cards = Inventory::read(&host.roots).unwrap().cards();
    assert!(cards[0].viable && !cards[0].isolated);
    assert_eq!(cards[0].state, CardState::Ready);
    insta::assert_snapshot!(cards[0].warning().unwrap(), @"shares group 7 with 02:00.0 Samsung NVMe SSD Controller PM9A1/PM9A3/980PRO, which no driver has: a guest's DMA can reach it");
}
