//! What a recipe says now and did not say when an instance's system disk was made.

use no43_builder::plan::Plan;
use serde::Serialize;
use serde_json::Value;

use super::Instance;

/// One thing that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// What, as a person reads it.
    pub what: String,
    /// Only a new system disk brings it; everything else is taken over by the next start.
    pub needs_renew: bool,
}

/// What differs between the instance and the recipe's plan of now. Empty means: nothing that a start or a renew would change.
pub fn differences(instance: &Instance, plan: &Plan) -> Vec<Difference> {
    let mut all = Vec::new();
    if instance.system.image.as_ref() != Some(plan.image_key()) {
        all.extend(
            layers(&instance.record.plan, plan)
                .into_iter()
                .map(|what| Difference { what, needs_renew: true }),
        );
    }
    let now = serde_json::to_value(plan).unwrap_or_default();
    for part in ["machine", "cards", "display", "network", "devices"] {
        let (before, now) = (&instance.record.plan[part], &now[part]);
        changes(part, before, now, &mut all);
    }
    all
}

/// Names the layers that are new or made otherwise.
fn layers(before: &Value, plan: &Plan) -> Vec<String> {
    let known = before["layers"].as_array().cloned().unwrap_or_default();
    let key_of = |index: usize| known.get(index).and_then(|layer| layer["key"].as_str());
    let differs =
        plan.layers.iter().enumerate().find(|(index, layer)| key_of(*index) != Some(layer.key.as_str()));
    match differs {
        Some((index, layer)) => {
            let word = if index < known.len() { "is another one" } else { "is new" };
            let more = plan.layers.len() - index - 1;
            let after = if more > 0 { format!(", and {more} on top of it") } else { String::new() };
            vec![format!("layer '{}' {word}{after} (image {} now)", layer.name, plan.image_key().short())]
        }
        None if known.len() > plan.layers.len() => vec!["the recipe has fewer layers".into()],
        None => vec![format!("image {} now", plan.image_key().short())],
    }
}

/// Every leaf that differs, by its dotted name.
fn changes(name: &str, before: &Value, now: &Value, all: &mut Vec<Difference>) {
    if before == now || name.ends_with(".here") {
        return; // what the host would lend at the moment is no wish
    }
    if let (Value::Object(before), Value::Object(now)) = (before, now) {
        for (key, value) in now {
            changes(&format!("{name}.{key}"), before.get(key).unwrap_or(&Value::Null), value, all);
        }
        return;
    }
    if let (Value::Array(before), Value::Array(now)) = (before, now)
        && before.len() == now.len()
    {
        for (n, (before, now)) in before.iter().zip(now).enumerate() {
            changes(&format!("{name}.{n}"), before, now, all);
        }
        return;
    }
    let short = |value: &Value| match value {
        Value::Null => "nothing".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => format!("{} of them", items.len()),
        Value::Object(_) => "another".to_owned(),
        other => other.to_string(),
    };
    all.push(Difference {
        what: format!("{name}: {} instead of {}", short(now), short(before)),
        needs_renew: false,
    });
}
