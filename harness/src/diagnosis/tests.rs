//! The table of causes against its fixtures and its own rules.

use super::*;
use std::collections::BTreeSet;

const FIXTURES: &str = include_str!("../../fixtures/diagnosis.jsonl");

fn facts(values: &[(&str, &str)]) -> Facts {
    let mut facts = Facts::default();
    values.iter().for_each(|(name, value)| facts.add(name, value));
    facts
}

fn say(facts: &Facts) -> String {
    let lines = diagnose(facts).into_iter().map(|f| {
        format!(
            "{} | for: {} | against: {} | {}",
            f.id,
            f.speaks_for.join("; "),
            f.speaks_against.join("; "),
            if f.likely { "likely" } else { "not likely" }
        )
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn the_right_cause_comes_first_and_near_misses_do_not() {
    let rate = rate(FIXTURES).unwrap();
    assert!(rate.wrong.is_empty(), "{}", rate.wrong.join("\n"));
    assert_eq!((rate.plain, rate.near), (rate.plain_first, rate.near_found));
}

#[test]
fn every_row_has_evidence_that_makes_it_first_and_a_near_miss_that_does_not() {
    let rate = rate(FIXTURES).unwrap();
    let rows: BTreeSet<&str> = rows::all().map(|row| row.id).collect();
    let of = |list: &[String]| -> Vec<String> {
        let have: BTreeSet<&str> = list.iter().map(String::as_str).collect();
        rows.iter().filter(|id| !have.contains(**id)).map(|id| (*id).to_owned()).collect()
    };
    assert_eq!(of(&rate.covered.0), Vec::<String>::new(), "without evidence of their own");
    assert_eq!(of(&rate.covered.1), Vec::<String>::new(), "without a near miss");
}

#[test]
fn rows_read_known_facts_have_ids_of_their_own_and_a_source() {
    let mut ids = BTreeSet::new();
    for row in rows::all() {
        assert!(ids.insert(row.id), "{} is there twice", row.id);
        assert!(!row.source.is_empty() && !row.fix.is_empty() && !row.cause.ends_with('.'), "{}", row.id);
        for name in row.reads() {
            assert!(facts::row(name).is_some(), "{} reads '{name}', which no fact is called", row.id);
        }
    }
}

#[test]
fn no_advice_for_code_43_below_another_code() {
    let about_43: BTreeSet<&str> = rows::all()
        .filter(|row| row.source.contains("D0") || row.id.contains("465"))
        .map(|row| row.id)
        .collect();
    assert!(about_43.contains("driver-older-than-465"));
    for code in [1, 3, 14, 22, 28, 31, 37, 39, 45, 52] {
        let all = facts(&[
            ("guest.os", "windows"),
            ("run.failed", "no code"),
            ("guest.code", &code.to_string()),
            ("guest.driver-version", "461.72"),
            ("guest.hypervisor", "KVMKVMKVM"),
            ("guest.own-hypervisor", "yes"),
            ("host.framebuffer", "BOOTFB"),
            ("host.rom", "unreadable"),
            ("machine.firmware", "bios"),
            ("guest.card-kind", "mobile"),
        ]);
        let of_43 = [
            "driver-older-than-465",
            "guest-runs-a-hypervisor",
            "host-framebuffer",
            "rom-shadowed",
            "legacy-firmware",
            "mobile-card-without-battery",
            "code-43",
        ];
        let wrong: Vec<String> =
            weigh_all(&all).into_iter().map(|f| f.id).filter(|id| of_43.contains(&id.as_str())).collect();
        assert!(wrong.is_empty(), "code {code}: {wrong:?}");
    }
}

#[test]
fn what_nobody_looked_at_is_named() {
    let found = diagnose(&facts(&[("guest.code", "43"), ("guest.driver-version", "461.72")]));
    assert_eq!(found[0].id, "driver-older-than-465");
    insta::assert_snapshot!(found[0].missing.join("\n"), @"
    hypervisor seen by the guest (no43-guest report in the guest)
    hypervisor hidden from the guest (no43 plan)
    ");
}

#[test]
fn an_unknown_chipset_is_blamed_on_the_driver_and_not_on_a_missing_one() {
    let seen = facts(&[
        ("run.failed", "driver"),
        ("guest.says", "nouveau 0000:01:00.0: unknown chipset (00000000)"),
        ("recipe.present-as", "10de:2484"),
    ]);
    insta::assert_snapshot!(say(&seen), @"
    driver-does-not-know-card | for: nouveau 0000:01:00.0: unknown chipset (00000000); the recipe shows the card as: 10de:2484 | against:  | likely
    no-driver-installed | for:  | against: nouveau 0000:01:00.0: unknown chipset (00000000) | not likely
    ");
}

#[test]
fn a_failure_without_any_row_has_no_cause() {
    assert!(diagnose(&facts(&[("run.failed", "weather")])).is_empty());
}

#[test]
fn hostile_values_are_bounded_and_cleaned() {
    let mut facts = Facts::default();
    for n in 0..10_000 {
        facts.add("guest.says", format!("{n} \u{1b}[2J {}", "x".repeat(5000)));
    }
    let kept = facts.get("guest.says");
    assert!(kept.len() <= 60 && kept.iter().all(|line| line.len() < 2000 && !line.contains('\u{1b}')));
}

#[test]
fn a_run_keeps_its_facts() {
    let text = serde_json::to_string(&facts(&[("guest.code", "43")])).unwrap();
    insta::assert_snapshot!(text, @r#"{"guest.code":["43"]}"#);
    assert_eq!(serde_json::from_str::<Facts>(&text).unwrap().get("guest.code"), ["43"]);
}

/// Facts that rows read and that no code of this version finds out, each with its reason.
const NOBODY_LOOKS: &[(&str, &str)] = &[(
    "host.rom",
    "reading it needs root and switches the card's decoder on; kernel and QEMU say it themselves (host.says, qemu.says)",
)];

/// Names of facts that this crate's own sources add, tests left out.
fn filled() -> BTreeSet<String> {
    fn walk(dir: &std::path::Path, found: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
            let path = entry.path();
            if path.is_dir() {
                walk(&path, found);
                continue;
            }
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if !name.ends_with(".rs") || name.contains("tests") || name == "facts.rs" {
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            let text = text.split("#[cfg(test)]").next().unwrap();
            for call in [".add(", ".maybe(", ".all("] {
                let after = text.split(call).skip(1).filter_map(|rest| rest.trim_start().strip_prefix('"'));
                found.extend(after.filter_map(|rest| Some(rest.split_once('"')?.0.to_owned())));
            }
        }
    }
    let mut found = BTreeSet::new();
    walk(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    found
}

#[test]
fn what_rows_read_is_found_out_by_somebody() {
    let filled = filled();
    let excused: BTreeSet<&str> = NOBODY_LOOKS.iter().map(|(name, _)| *name).collect();
    let read: BTreeSet<&str> = rows::all().flat_map(rule::Row::reads).collect();
    let unseen: Vec<&&str> =
        read.iter().filter(|name| !filled.contains(**name) && !excused.contains(**name)).collect();
    assert!(unseen.is_empty(), "rows wait for facts that nobody finds out: {unseen:?}");
    let idle: Vec<&&str> =
        excused.iter().filter(|name| filled.contains(**name) || !read.contains(**name)).collect();
    assert!(idle.is_empty(), "excused without need: {idle:?}");
    let empty = |row: &&Name| !filled.contains(row.name) && !excused.contains(row.name);
    let names: Vec<&str> = NAMES.iter().filter(empty).map(|row| row.name).collect();
    assert!(names.is_empty(), "names without a source: {names:?}");
}

/// Every `a.b` and every `[[table]] key` of a text.
fn keys_in(text: &str) -> Vec<Vec<String>> {
    let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '[' | ']' | '_');
    let words: Vec<&str> = text.split(|c: char| !word(c)).filter(|word| !word.is_empty()).collect();
    let mut keys = Vec::new();
    for (n, word) in words.iter().enumerate() {
        if let Some(table) = word.strip_prefix("[[").and_then(|word| word.strip_suffix("]]")) {
            keys.push(vec![table.to_owned()]);
            let before = n.checked_sub(2).filter(|_| words[n - 1] == "from").map(|at| words[at]);
            let after = words.get(n + 1).filter(|_| text.contains(&format!("[[{table}]] {}", words[n + 1])));
            keys.extend(before.or(after.copied()).map(|key| vec![table.to_owned(), key.to_owned()]));
        } else if word.trim_end_matches('.').contains('.') {
            keys.push(word.trim_end_matches('.').split('.').map(str::to_owned).collect());
        }
    }
    keys
}

#[test]
fn fixes_name_keys_that_a_recipe_has() {
    let schema = no43_builder::schema::json();
    let tables: BTreeSet<&str> =
        schema["properties"].as_object().unwrap().keys().map(String::as_str).collect();
    let mut seen = 0;
    for row in rows::all() {
        for key in keys_in(row.fix) {
            if !tables.contains(key[0].as_str()) {
                assert!(key.len() > 1, "{}: no recipe has a table [[{}]]", row.id, key[0]);
                continue; // a file's name, a version
            }
            let mut at = &schema["properties"][&key[0]];
            for part in &key[1..] {
                let at_table = if at["items"].is_object() { &at["items"] } else { at };
                at = &at_table["properties"][part];
                assert!(at.is_object(), "{}: no recipe has a key {}", row.id, key.join("."));
                seen += 1;
            }
        }
    }
    assert!(seen > 10, "only {seen} keys were found in fixes");
}

#[test]
fn a_card_is_a_laptops_or_virtual_by_what_names_it() {
    use crate::checks::{Subject, SubjectFunction};
    use no43_guest::nvidia::{NvidiaCard, NvidiaFacts};
    use no43_guest::protocol::Report;
    let kind = |name: &str, id: &str, told: Option<(&str, &str)>| {
        let function = SubjectFunction {
            host: "01:00.0".parse().unwrap(),
            guest: "0000:01:00.0".into(),
            role: "video".into(),
            id: id.parse().unwrap(),
            shown_as: id.parse().unwrap(),
            bars: Vec::new(),
        };
        let subject = Subject {
            compared: true,
            name: name.into(),
            slot: "01:00".into(),
            functions: vec![function],
            left_out: Vec::new(),
            link_width: None,
        };
        let nvml = told.map(|(name, mode)| NvidiaFacts {
            cards: vec![NvidiaCard {
                address: Some("0000:01:00.0".into()),
                name: Some(name.into()),
                virtualization: Some(mode.into()),
                ..NvidiaCard::default()
            }],
            ..NvidiaFacts::default()
        });
        let facts = facts_of_report(&Report { nvml, ..Report::default() }, &[subject]);
        facts.get("guest.card-kind").join(",")
    };
    assert_eq!(kind("GeForce RTX 3070 (GA104)", "10de:2484", None), "desktop");
    assert_eq!(kind("GeForce RTX 3070 Mobile / Max-Q (GA104M)", "10de:249d", None), "mobile");
    assert_eq!(kind("GeForce GTX 960M (GM107M)", "10de:139b", None), "mobile");
    assert_eq!(kind("Quadro M2000 (GM206GL)", "10de:1430", None), "desktop");
    assert_eq!(kind("A16", "10de:25b6", Some(("NVIDIA A16-2Q", "vgpu"))), "vgpu");
    assert_eq!(kind("", "10de:2520", Some(("NVIDIA GeForce RTX 3060 Laptop GPU", "pass-through"))), "mobile");
    assert_eq!(kind("Radeon RX 480", "1002:67df", None), "");
}

#[test]
fn the_driver_that_was_asked_for_came_from_the_package() {
    let seen = facts(&[("guest.driver-version", "466.11"), ("recipe.driver-version", "466.11")]);
    assert_eq!(concluded(&seen).get("guest.driver-source"), ["package"]);
    let other = facts(&[("guest.driver-version", "456.71"), ("recipe.driver-version", "466.11")]);
    assert!(!concluded(&other).knows("guest.driver-source"));
}
