//! The diagnosis on its fixtures: how often the right cause comes first.

use super::{Bench, Figure};
use anyhow::{Context, Result};
use serde_json::Value;
use xshell::cmd;

pub(super) fn diagnosis(b: &Bench<'_>) -> Result<Vec<Figure>> {
    let sh = b.sh;
    let fixtures = b.root.join("harness/fixtures/diagnosis.jsonl");
    let command = cmd!(sh, "cargo run -q -p no43-harness --example diagnosis_rate -- {fixtures}");
    let text = command.quiet().read().context("failed to run harness's diagnosis_rate")?;
    let measured: Value = serde_json::from_str(text.trim()).context("diagnosis_rate printed no JSON")?;
    let number = |key: &str| -> Result<f64> {
        measured.get(key).and_then(Value::as_f64).with_context(|| format!("diagnosis_rate printed no {key}"))
    };
    let figure = |name, key, aim| -> Result<Figure> {
        Ok(Figure { name, ours: vec![number(key)?], peer: None, unit: "%", aim })
    };
    Ok(vec![
        figure("diagnosis: right cause first", "first_percent", "100 %")?,
        figure("diagnosis: near miss, right cause in three", "near_in_three_percent", "100 %")?,
        figure("diagnosis: near miss, right cause first", "near_first_percent", "as high as can be")?,
    ])
}
