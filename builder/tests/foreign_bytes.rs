//! Whatever is in the files, reading them ends in a recipe, a lock or a list of problems, never in a panic.

use std::fs;
use std::path::Path;

use no43_builder::lock::Lock;
use no43_builder::plan::{Facts, plan};
use no43_builder::{recipe, schema};
use proptest::prelude::*;

/// Every key that the schema knows, at whatever depth.
fn known_keys() -> Vec<String> {
    fn collect(schema: &serde_json::Value, keys: &mut Vec<String>) {
        for (key, value) in schema.as_object().into_iter().flatten() {
            if key == "properties" {
                keys.extend(value.as_object().into_iter().flatten().map(|(key, _)| key.clone()));
            }
            collect(value, keys);
        }
    }
    let mut keys = Vec::new();
    collect(&schema::json(), &mut keys);
    keys
}

fn any_value() -> impl Strategy<Value = toml::Value> {
    static WORDS: [&str; 12] = [
        "debian12",
        "lean",
        "direct",
        "auto",
        "1 GiB",
        "10 min",
        "01:00",
        "10de:2484",
        "/x",
        "none",
        "C",
        "a",
    ];
    let leaf = prop_oneof![
        any::<bool>().prop_map(toml::Value::from),
        any::<i64>().prop_map(toml::Value::from),
        (1..5_i64).prop_map(toml::Value::from),
        any::<f64>().prop_map(toml::Value::from),
        ".{0,8}".prop_map(toml::Value::from),
        prop::sample::select(&WORDS[..]).prop_map(toml::Value::from),
    ];
    leaf.prop_recursive(4, 48, 6, |inner| {
        let key = prop::sample::select(known_keys());
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(toml::Value::from),
            prop::collection::btree_map(key, inner, 0..6)
                .prop_map(|map| toml::Value::Table(map.into_iter().collect())),
        ]
    })
}

fn read(bytes: &[u8], sets: &[String]) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.toml");
    fs::write(&path, bytes).unwrap();
    match recipe::load(&path, sets) {
        Ok(recipe) => {
            let _ = recipe.shown();
            let _ = plan(&recipe, &Lock::default(), &Facts::default());
        }
        Err(problems) => assert!(!problems.to_string().is_empty()),
    }
    let _ = Lock::parse(&String::from_utf8_lossy(bytes), Path::new("no43.lock"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn bytes(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        read(&bytes, &[]);
    }

    #[test]
    fn text(text in "[\\[\\]a-z.=\"'{}#0-9\n -]{0,200}") {
        read(text.as_bytes(), &[]);
    }

    #[test]
    fn values_at_known_keys(
        table in prop::collection::btree_map(prop::sample::select(known_keys()), any_value(), 0..8),
    ) {
        read(toml::to_string(&table).unwrap_or_default().as_bytes(), &[]);
    }

    #[test]
    fn sets(sets in prop::collection::vec(".{0,20}", 1..3), key in prop::sample::select(known_keys()), value in ".{0,20}") {
        let mut sets = sets;
        sets.push(format!("{key}={value}"));
        read(b"guest.os = 'debian12'\n[[card]]\nany = true", &sets);
    }
}

#[test]
fn deep_nesting_is_an_error_not_an_overflow() {
    read(format!("a = {}{}", "[".repeat(50_000), "]".repeat(50_000)).as_bytes(), &[]);
    read(b"", &[format!("a={}", "[".repeat(50_000))]);
    read(b"", &[format!("{}=1", "a.".repeat(20_000) + "a")]);
}

#[test]
fn the_schema_knows_every_table() {
    let schema = schema::json();
    let keys: Vec<&String> = schema["properties"].as_object().unwrap().keys().collect();
    insta::assert_compact_debug_snapshot!(keys);
    insta::assert_snapshot!(serde_json::to_string_pretty(&schema["properties"]["machine"]).unwrap());
}
