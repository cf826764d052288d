//! What asking a guest costs: a sign of life, a report, and the pauses between questions whether it is there.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;
use xshell::cmd;

use super::{Bench, Figure};

const ROUNDS: &str = "30";

/// Of a running guest, by its machine's folder.
pub(super) fn agent(b: &Bench<'_>, machine: &Path) -> Result<Vec<Figure>> {
    let sh = b.sh;
    let command =
        cmd!(sh, "cargo run -q --release -p no43-machine --example agent_bench -- {machine} {ROUNDS}");
    let text = command.quiet().read().context("failed to run machine's agent_bench")?;
    let measured: Value = serde_json::from_str(text.trim()).context("agent_bench printed no JSON")?;
    let list = |key: &str| -> Result<Vec<f64>> {
        let list = measured.pointer(&format!("/{key}")).and_then(Value::as_array);
        let list = list.with_context(|| format!("agent_bench printed no {key}"))?;
        Ok(list.iter().filter_map(Value::as_f64).collect())
    };
    Ok(vec![
        Figure {
            name: "guest agent's sign of life",
            ours: list("ping")?,
            peer: None,
            unit: "ms",
            aim: "at most 1 ms",
        },
        Figure {
            name: "report of the guest program",
            ours: list("report")?,
            peer: Some(("the program's start alone", list("start")?)),
            unit: "ms",
            aim: "under 300 ms added",
        },
        Figure {
            name: "report, asked for with pauses",
            ours: list("report")?,
            peer: Some(("asked all the time", list("busy")?)),
            unit: "ms",
            aim: "not slower",
        },
        Figure {
            name: "a program's end until it is known, with the bell",
            ours: list("ends/bell")?,
            peer: Some(("asked all the time", list("ends/busy")?)),
            unit: "ms",
            aim: "at most 5 ms added",
        },
        Figure {
            name: "the same in a guest without a bell",
            ours: list("ends/pauses")?,
            peer: Some(("asked all the time", list("ends/busy")?)),
            unit: "ms",
            aim: "at most 200 ms added",
        },
    ])
}
