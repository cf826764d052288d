//! How well the table of causes knows: each fixture is evidence with the cause that must come first, or a near miss.

use super::{Facts, weigh_all};
use anyhow::{Context as _, Result};
use serde::Deserialize;

/// One line of `fixtures/diagnosis.jsonl`.
#[derive(Debug, Deserialize)]
struct Fixture {
    /// The right cause.
    cause: String,
    /// The cause that is near, and must not come first: only in near misses.
    #[serde(default)]
    not: Option<String>,
    facts: std::collections::BTreeMap<String, OneOrMany>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl Fixture {
    fn facts(&self) -> Facts {
        let mut facts = Facts::default();
        for (name, values) in &self.facts {
            match values {
                OneOrMany::One(value) => facts.add(name, value),
                OneOrMany::Many(values) => values.iter().for_each(|value| facts.add(name, value)),
            }
        }
        facts
    }
}

/// How often the right cause was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rate {
    /// Fixtures that show one cause.
    pub plain: usize,
    /// Of these: the right cause came first.
    pub plain_first: usize,
    /// Near misses.
    pub near: usize,
    /// Of these: the right cause was among the first three, and the near one not before it.
    pub near_found: usize,
    /// Of these: the right cause came first.
    pub near_first: usize,
    /// What was wrong, a line for each.
    pub wrong: Vec<String>,
    /// Causes with a fixture of their own, and causes with a near miss that must not be them.
    pub covered: (Vec<String>, Vec<String>),
}

/// Judges every line of a file of fixtures.
///
/// # Errors
/// When a line is no fixture; its number is named.
pub fn rate(lines: &str) -> Result<Rate> {
    let mut rate = Rate::default();
    for (n, line) in lines.lines().enumerate() {
        let fixture: Fixture =
            serde_json::from_str(line).with_context(|| format!("line {} is no fixture", n + 1))?;
        let found: Vec<String> = weigh_all(&fixture.facts()).into_iter().map(|finding| finding.id).collect();
        let place = |id: &str| found.iter().position(|one| one == id).unwrap_or(usize::MAX);
        let right = place(&fixture.cause);
        let good = match &fixture.not {
            None => {
                rate.plain += 1;
                rate.plain_first += usize::from(right == 0);
                rate.covered.0.push(fixture.cause.clone());
                right == 0
            }
            Some(near) => {
                let good = right < 3 && place(near) != 0 && right < place(near);
                rate.near += 1;
                rate.near_first += usize::from(right == 0);
                rate.near_found += usize::from(good);
                rate.covered.1.push(near.clone());
                good
            }
        };
        if !good {
            rate.wrong.push(format!(
                "line {}: {} expected, found {}",
                n + 1,
                fixture.cause,
                found.join(", ")
            ));
        }
    }
    Ok(rate)
}
