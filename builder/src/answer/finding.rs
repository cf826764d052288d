//! One thing that is wrong with an answer file: line, what, why, what to do.

use std::fmt;

use serde::Serialize;

/// How much it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// It works; a person may want to know.
    Note,
    /// It may do something else than what is meant.
    Warning,
    /// Setup stops, asks, or leaves out what is asked for.
    Error,
}

impl Severity {
    /// `error`, `warning` or `note`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// A place in an answer file; both count from 1, columns in characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct At {
    pub(super) line: usize,
    pub(super) column: usize,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// How much it matters.
    pub severity: Severity,
    /// A name for programs, such as `component-pass`; it does not change between versions.
    pub rule: &'static str,
    /// What is wrong; never holds a password.
    pub what: String,
    /// Why it matters.
    pub why: Option<String>,
    /// What to do.
    pub fix: Option<String>,
}

impl Finding {
    pub(super) fn new(at: At, severity: Severity, rule: &'static str, what: impl Into<String>) -> Self {
        Self { line: at.line, column: at.column, severity, rule, what: what.into(), why: None, fix: None }
    }

    pub(super) fn error(at: At, rule: &'static str, what: impl Into<String>) -> Self {
        Self::new(at, Severity::Error, rule, what)
    }

    pub(super) fn warning(at: At, rule: &'static str, what: impl Into<String>) -> Self {
        Self::new(at, Severity::Warning, rule, what)
    }

    pub(super) fn note(at: At, rule: &'static str, what: impl Into<String>) -> Self {
        Self::new(at, Severity::Note, rule, what)
    }

    pub(super) fn why(mut self, why: impl Into<String>) -> Self {
        self.why = Some(why.into());
        self
    }

    pub(super) fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into());
        self
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}: {}", self.line, self.column, self.severity.name(), self.what)?;
        for (label, text) in [("why", &self.why), ("fix", &self.fix)] {
            if let Some(text) = text {
                write!(f, "\n    {label}   {text}")?;
            }
        }
        write!(f, "\n    rule  {}", self.rule)
    }
}

/// What a file says, made fit for a message: one line, cut where it is long.
pub(super) fn shown(text: &str) -> String {
    const LIMIT: usize = 60;
    let mut out: String = text.chars().take(LIMIT).flat_map(char::escape_debug).collect::<String>();
    out = out.replace("\\'", "'").replace("\\\"", "\"").replace("\\\\", "\\");
    if text.chars().nth(LIMIT).is_some() {
        out.push('…');
    }
    out
}
