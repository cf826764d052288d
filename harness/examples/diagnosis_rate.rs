//! How often the table of causes names the right one on its fixtures, and how long one diagnosis takes: for `ci/bench`.

use anyhow::{Context as _, Result};
use std::time::Instant;

fn main() -> Result<()> {
    let path = std::env::args().nth(1).context("usage: diagnosis_rate FIXTURES.jsonl")?;
    let text = std::fs::read_to_string(&path).with_context(|| format!("failed to read {path}"))?;
    let began = Instant::now();
    let rate = no43_harness::diagnosis::rate(&text)?;
    let each_us = began.elapsed().as_secs_f64() * 1e6 / (rate.plain + rate.near).max(1) as f64;
    let percent = |part: usize, of: usize| 100.0 * part as f64 / of.max(1) as f64;
    rate.wrong.iter().for_each(|line| eprintln!("{line}"));
    println!(
        "{}",
        serde_json::json!({
            "plain": rate.plain,
            "first_percent": percent(rate.plain_first, rate.plain),
            "near": rate.near,
            "near_in_three_percent": percent(rate.near_found, rate.near),
            "near_first_percent": percent(rate.near_first, rate.near),
            "each_us": each_us,
        })
    );
    Ok(())
}
