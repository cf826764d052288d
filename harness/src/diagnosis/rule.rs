//! A row of the table of causes, and how it is weighed.

use super::Finding;
use super::facts::{self, Facts};

/// One cause.
#[derive(Debug)]
pub(super) struct Row {
    /// Stays the same between versions.
    pub(super) id: &'static str,
    /// The row is looked at only if one of these is seen.
    pub(super) when: &'static [Sign],
    pub(super) cause: &'static str,
    pub(super) fix: &'static str,
    pub(super) speaks_for: &'static [Sign],
    pub(super) speaks_against: &'static [Sign],
    /// What it weighs before anything is seen: above 0 for usual causes, which are listed without a sign.
    pub(super) usual: i32,
    /// Who says so.
    pub(super) source: &'static str,
}

/// One thing to look for in one fact.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sign {
    pub(super) fact: &'static str,
    test: Test,
    weight: i32,
}

#[derive(Debug, Clone, Copy)]
enum Test {
    /// One of these values, whatever the case.
    Is(&'static [&'static str]),
    /// One of these texts (lower case) inside a value.
    Says(&'static [&'static str]),
    /// A version with points below this one.
    Below(&'static str),
    /// A version with points that is this one or above.
    AtLeast(&'static str),
    /// A number of at least this.
    Number(u64),
    /// Known, and not `none`.
    Some,
    /// Looked at, and nothing is there.
    None,
    /// Both facts are known and have no value in common.
    Differs(&'static str),
    /// Both facts are numbers, and this one is smaller.
    Less(&'static str),
}

impl Sign {
    /// What it weighs; 2 unless said.
    pub(super) const fn weighs(mut self, weight: i32) -> Self {
        self.weight = weight;
        self
    }
}

const fn sign(fact: &'static str, test: Test) -> Sign {
    Sign { fact, test, weight: 2 }
}

pub(super) const fn is(fact: &'static str, values: &'static [&'static str]) -> Sign {
    sign(fact, Test::Is(values))
}

pub(super) const fn says(fact: &'static str, texts: &'static [&'static str]) -> Sign {
    sign(fact, Test::Says(texts))
}

pub(super) const fn below(fact: &'static str, version: &'static str) -> Sign {
    sign(fact, Test::Below(version))
}

pub(super) const fn at_least(fact: &'static str, version: &'static str) -> Sign {
    sign(fact, Test::AtLeast(version))
}

pub(super) const fn number(fact: &'static str, least: u64) -> Sign {
    sign(fact, Test::Number(least))
}

pub(super) const fn some(fact: &'static str) -> Sign {
    sign(fact, Test::Some)
}

pub(super) const fn none(fact: &'static str) -> Sign {
    sign(fact, Test::None)
}

pub(super) const fn differs(fact: &'static str, other: &'static str) -> Sign {
    sign(fact, Test::Differs(other))
}

pub(super) const fn less(fact: &'static str, other: &'static str) -> Sign {
    sign(fact, Test::Less(other))
}

impl Row {
    /// Score and finding, if the row has anything to say about these facts.
    pub(super) fn weigh(&self, facts: &Facts) -> Option<(i32, Finding)> {
        if !self.when.iter().any(|sign| sign.seen(facts).is_some()) {
            return None;
        }
        let (plus, speaks_for) = sum(self.speaks_for, facts);
        let (minus, speaks_against) = sum(self.speaks_against, facts);
        if speaks_for.is_empty() && self.usual <= 0 {
            return None;
        }
        let score = self.usual + plus - minus;
        let finding = Finding {
            id: self.id.into(),
            cause: self.cause.into(),
            speaks_for,
            speaks_against,
            missing: self.missing(facts),
            fix: self.fix.into(),
            likely: score >= 0,
            source: self.source.into(),
        };
        Some((score, finding))
    }

    /// Every fact that the row reads.
    #[cfg(test)]
    pub(super) fn reads(&self) -> impl Iterator<Item = &'static str> {
        let signs = self.when.iter().chain(self.speaks_for).chain(self.speaks_against);
        signs.flat_map(|sign| [Some(sign.fact), sign.test.other()].into_iter().flatten())
    }

    fn missing(&self, facts: &Facts) -> Vec<String> {
        let mut missing = Vec::new();
        for sign in self.speaks_for.iter().chain(self.speaks_against) {
            for name in [Some(sign.fact), sign.test.other()].into_iter().flatten() {
                let Some(row) = facts::row(name).filter(|row| !row.title.is_empty()) else { continue };
                let line = format!("{} ({})", row.title, row.how);
                if !facts.knows(name) && !missing.contains(&line) {
                    missing.push(line);
                }
            }
        }
        missing
    }
}

/// The weight of the signs that are seen, and their words; a line that shows several of them counts once.
fn sum(signs: &[Sign], facts: &Facts) -> (i32, Vec<String>) {
    let (mut weight, mut all) = (0, Vec::new());
    for sign in signs {
        if let Some(words) = sign.seen(facts)
            && !all.contains(&words)
        {
            weight += sign.weight;
            all.push(words);
        }
    }
    (weight, all)
}

impl Sign {
    /// The words that show it, as a report quotes them.
    pub(super) fn seen(&self, facts: &Facts) -> Option<String> {
        let values = facts.get(self.fact);
        let (value, more) = match self.test {
            Test::Is(wanted) => {
                (values.iter().find(|v| wanted.iter().any(|w| v.eq_ignore_ascii_case(w)))?, String::new())
            }
            Test::Says(texts) => {
                let has = |v: &&String| texts.iter().any(|text| v.to_lowercase().contains(text));
                (values.iter().find(has)?, String::new())
            }
            Test::Below(version) => {
                let old = |v: &&String| compare(v, version).is_some_and(std::cmp::Ordering::is_lt);
                (values.iter().find(old)?, format!(" (below {version})"))
            }
            Test::AtLeast(version) => {
                let new = |v: &&String| compare(v, version).is_some_and(std::cmp::Ordering::is_ge);
                (values.iter().find(new)?, format!(" ({version} or newer)"))
            }
            Test::Number(least) => {
                (values.iter().find(|v| v.parse::<u64>().is_ok_and(|n| n >= least))?, String::new())
            }
            Test::Some => (values.iter().find(|v| *v != "none")?, String::new()),
            Test::None => (values.iter().find(|v| *v == "none")?, String::new()),
            Test::Differs(other) => {
                let others = facts.get(other);
                let first = others.first()?;
                let same = values.iter().any(|v| others.iter().any(|o| v.eq_ignore_ascii_case(o)));
                (values.first().filter(|_| !same)?, format!(", and {}: {first}", title(other)))
            }
            Test::Less(other) => {
                let limit = facts.get(other).first()?;
                let number: u64 = limit.parse().ok()?;
                let small = |v: &&String| v.parse::<u64>().is_ok_and(|n| n < number);
                (values.iter().find(small)?, format!(", and {}: {limit}", title(other)))
            }
        };
        let title = title(self.fact);
        Some(if title.is_empty() { format!("{value}{more}") } else { format!("{title}: {value}{more}") })
    }
}

impl Test {
    fn other(self) -> Option<&'static str> {
        match self {
            Self::Differs(other) | Self::Less(other) => Some(other),
            _ => None,
        }
    }
}

fn title(fact: &str) -> &'static str {
    facts::row(fact).map_or("", |row| row.title)
}

/// Compares versions with points number by number; none if one of them is no such version.
fn compare(a: &str, b: &str) -> Option<std::cmp::Ordering> {
    let numbers =
        |text: &str| -> Option<Vec<u64>> { text.split('.').map(|part| part.parse().ok()).collect() };
    Some(numbers(a)?.cmp(&numbers(b)?))
}
