//! Why a layer is made: what differs from the last one of the same name that this recipe had.

use serde_json::Value;

use crate::plan::{LayerPlan, Plan};
use crate::store::Store;

/// Longest list of differences that is still read.
const SHOWN: usize = 4;

/// One sentence's end, such as `packages: +vim` or `not built before`.
pub(super) fn rebuilt(plan: &Plan, layer: &LayerPlan, store: &Store) -> String {
    let (images, _) = store.images().unwrap_or_default();
    let same = images
        .iter()
        .rev()
        .find(|image| image.manifest.recipe == plan.name && image.manifest.layer == layer.name);
    let Some(before) = same else { return "not built before".to_owned() };
    let changes = differences(&before.manifest.inputs, &layer.inputs);
    match changes.len() {
        0 if before.manifest.parent != layer.parent => "the layer below has changed".to_owned(),
        0 => "its image is gone".to_owned(),
        n if n > SHOWN => format!("changed: {}, and {} more", changes[..SHOWN].join("; "), n - SHOWN),
        _ => format!("changed: {}", changes.join("; ")),
    }
}

/// What changed between two layers' inputs, one short text per key.
fn differences(before: &Value, now: &Value) -> Vec<String> {
    let mut changes = Vec::new();
    compare("", before, now, &mut changes);
    changes
}

fn compare(path: &str, before: &Value, now: &Value, changes: &mut Vec<String>) {
    match (before, now) {
        (a, b) if a == b => {}
        (Value::Object(a), Value::Object(b)) => {
            let mut names: Vec<&String> = a.keys().chain(b.keys()).collect();
            names.sort();
            names.dedup();
            for name in names {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                compare(
                    &path,
                    a.get(name).unwrap_or(&Value::Null),
                    b.get(name).unwrap_or(&Value::Null),
                    changes,
                );
            }
        }
        (Value::Array(a), Value::Array(b)) if a.iter().chain(b).all(Value::is_string) => {
            let sign = |sign, these: &[Value], others: &[Value]| -> Vec<String> {
                let only = these.iter().filter(|item| !others.contains(item));
                only.map(|item| format!("{sign}{}", item.as_str().unwrap_or_default())).collect()
            };
            let words = [sign('+', b, a), sign('-', a, b)].concat();
            let words = if words.is_empty() { "another order".to_owned() } else { words.join(" ") };
            changes.push(format!("{path} {words}"));
        }
        (a, b) if is_short(a) && is_short(b) => changes.push(format!("{path} {} → {}", plain(a), plain(b))),
        _ => changes.push(path.to_owned()),
    }
}

fn is_short(value: &Value) -> bool {
    !value.is_object() && !value.is_array() && plain(value).len() <= 40
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "none".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn differences_are_short() {
        let before = json!({"suite": "bookworm", "packages": ["a", "b"], "user": {"name": "demo", "sudo": true}, "files": [{"to": "/x"}]});
        let now = json!({"suite": "trixie", "packages": ["b", "vim"], "user": {"name": "demo", "sudo": false}, "files": [{"to": "/y"}], "locale": "C"});
        insta::assert_snapshot!(differences(&before, &now).join("\n"), @r"
        files
        locale none → C
        packages +vim -a
        suite bookworm → trixie
        user.sudo true → false
        ");
    }
}
