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
