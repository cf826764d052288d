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
    ("0300", "amdgpu"),
    ("0302", "nouveau"),
    ("0380", "amdgpu"),
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
    let usual = DRIVERS.iter().find(|row| row.0 == class).map_or("-", |row| row.1);
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
            assert_eq!(card.functions.iter().map(|f| f.short()).collect::<Vec<_>>(), functions, "{at}");
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
    insta::assert_snapshot!(cards_of("am5-aspeed-two-arc"), @"");
}

#[test]
fn what_shares_a_group_is_named() {
    insta::assert_snapshot!(cards_of("x570-3080-5700-shared-group-example"), @"");
    insta::assert_snapshot!(cards_of("msi-b450m-mortar-max"), @"");
}

#[test]
fn the_first_picture_of_the_host_is_never_lent() {
    insta::assert_snapshot!(cards_of("emu-vtd-acs-on-multifunction"), @"");
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
    insta::assert_snapshot!(cards[0].warning().unwrap(), @"");
}
