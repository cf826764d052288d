//! Why it failed: causes as rows of a table, each with what speaks for and against it, and what is missing to decide.
//!
//! One executor ([`diagnose`]) reads all rows; a new cause is a new row in `rows`. A row reads named [`Facts`] and nothing else, so
//! the same table judges a run of a moment ago, one of last week (`no43 diagnose RUN`), and the fixtures that it is measured with.

mod collect;
mod facts;
mod fixtures;
mod patterns;
mod problems;
mod rows;
mod rule;
mod xid;

pub(crate) use collect::{
    add_line, concluded, driver_version, event_words, is_windows, round_word, telling_host_lines,
};
pub use collect::{facts_of_report, facts_of_run};
pub use facts::{Facts, NAMES, Name};
pub use fixtures::{Rate, rate};
pub use patterns::{PATTERNS_SOURCE, Pattern, Side, patterns};
pub use problems::{Explained, explain, explained};
pub(crate) use xid::number_in as xid_in;
pub use xid::{Xid, xid, xids};

use serde::{Deserialize, Serialize};

/// Most causes that a report shows.
const SHOWN: usize = 4;

/// A cause that fits what was seen.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Name of its row, which stays the same between versions.
    #[serde(default)]
    pub id: String,
    /// The cause in one sentence.
    pub cause: String,
    /// What was seen that speaks for it.
    #[serde(default)]
    pub speaks_for: Vec<String>,
    /// What was seen that speaks against it.
    #[serde(default)]
    pub speaks_against: Vec<String>,
    /// What nobody looked at and would decide: what, and how to find out.
    #[serde(default)]
    pub missing: Vec<String>,
    /// What to do: a command or a line of the recipe.
    pub fix: String,
    /// False when more speaks against it than for it.
    pub likely: bool,
    /// Who says that such a cause exists.
    #[serde(default)]
    pub source: String,
}

/// A fact about the run itself that checks notice on their way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// The recipe shows the guest other ids than the card has.
    PresentAs,
    /// A DRM connector of the card was there.
    ConnectorSeen,
    /// The card's output shows QEMU's placeholder: no driver has set a mode.
    Placeholder,
    /// The card's output shows the pattern of an earlier round.
    StalePicture,
    /// The card's output has one colour only.
    BlankPicture,
    /// No hardware acceleration: everything is 10 to 30 times slower.
    NoKvm,
    /// The guest's serial port stayed silent.
    SilentSerial,
    /// The emulated screen did not change any more.
    FrozenScreen,
}

impl Mark {
    /// As a report says it.
    pub fn words(self) -> &'static str {
        match self {
            Self::PresentAs => "the recipe shows the card under other ids",
            Self::ConnectorSeen => "a DRM connector of the card is there",
            Self::Placeholder => "the output says \"Guest has not initialized the display\"",
            Self::StalePicture => "the output still shows an earlier pattern",
            Self::BlankPicture => "the output has one colour only",
            Self::NoKvm => "no KVM here",
            Self::SilentSerial => "the guest's serial port stayed silent",
            Self::FrozenScreen => "the emulated screen did not change any more",
        }
    }
}

/// The causes that fit, the likeliest first; at most four.
pub fn diagnose(facts: &Facts) -> Vec<Finding> {
    let mut found = weigh_all(facts);
    found.truncate(SHOWN);
    found
}

/// All causes that fit, the likeliest first.
pub fn weigh_all(facts: &Facts) -> Vec<Finding> {
    let mut found: Vec<(i32, Finding)> = rows::all().filter_map(|row| row.weigh(facts)).collect();
    found.extend(problems::findings(facts));
    // a stable sort: equal ones stay in the order of the table, which has the usual ones first
    found.sort_by_key(|(score, _)| -score);
    found.into_iter().map(|(_, finding)| finding).collect()
}

#[cfg(test)]
mod tests;
