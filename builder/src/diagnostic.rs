//! Problems with what a person wrote: where, what is wrong, why, and what to do; all of them at once, not one by one.
//!
//! The text follows one order: the answer, the reason, the fix. Problems are data, so that the command line can print
//! them as JSON too, and tests can ask for a kind instead of for words.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

/// A place in a file; lines and columns count from 1, columns in characters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Place {
    /// As the person named it, or as `extends` led to it.
    pub file: PathBuf,
    /// 0 when the file as a whole is meant.
    pub line: usize,
    /// 0 when the file as a whole is meant.
    pub column: usize,
}

impl Place {
    /// The file as a whole.
    pub fn whole(file: impl Into<PathBuf>) -> Self {
        Self { file: file.into(), line: 0, column: 0 }
    }

    /// The place of byte `offset` in `text`; offsets past the end mean the end.
    #[must_use]
    pub fn at(file: &Path, text: &str, offset: usize) -> Self {
        let mut offset = offset.min(text.len());
        while !text.is_char_boundary(offset) {
            offset -= 1;
        }
        let before = &text[..offset];
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        Self {
            file: file.to_owned(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}", self.file.display()),
            line => write!(f, "{}:{}:{}", self.file.display(), line, self.column),
        }
    }
}

/// What kind of problem it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A file that cannot be read.
    File,
    /// Not TOML.
    Syntax,
    /// `extends` leads back to where it came from.
    ExtendsCycle,
    /// A key that no version knows.
    UnknownKey,
    /// A key or value that a later version will know what to do with.
    NotSupported,
    /// A text where a number belongs, and the like.
    WrongType,
    /// The right type, but not something that can be used.
    BadValue,
    /// A key that must be there.
    Missing,
    /// Two keys that contradict each other.
    Conflict,
    /// The lock does not hold what the recipe needs.
    NotLocked,
    /// A file is not the one that was locked.
    WrongHash,
}

/// One thing that a person has to change. Boxed texts keep it small enough to be an error by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// For programs.
    pub kind: Kind,
    /// Where; `None` for what was not written anywhere.
    pub place: Option<Place>,
    /// Dotted path of the key, such as `guest.user.name` or `card.0.id`; empty where no key is meant.
    pub key: String,
    /// What is wrong.
    pub what: Box<str>,
    /// Why it is so, where that is not obvious.
    pub why: Option<Box<str>>,
    /// What to do.
    pub fix: Option<Box<str>>,
}

impl Problem {
    /// A problem without place, reason and fix; add them with the methods below.
    pub fn new(kind: Kind, key: impl Into<String>, what: impl Into<String>) -> Self {
        Self { kind, place: None, key: key.into(), what: what.into().into(), why: None, fix: None }
    }

    /// The same, there.
    #[must_use]
    pub fn at(mut self, place: impl Into<Option<Place>>) -> Self {
        self.place = place.into();
        self
    }

    /// The same, with a reason.
    #[must_use]
    pub fn why(mut self, why: impl Into<String>) -> Self {
        self.why = Some(why.into().into());
        self
    }

    /// The same, with what to do.
    #[must_use]
    pub fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into().into());
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "{place}: ")?;
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.what)?;
        for (label, text) in [("why", &self.why), ("fix", &self.fix)] {
            if let Some(text) = text {
                write!(f, "\n    {label}   {text}")?;
            }
        }
        Ok(())
    }
}

/// One or more problems, in the order of the files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// Adds one, unless exactly the same is already there.
    pub fn push(&mut self, problem: Problem) {
        if !self.0.contains(&problem) {
            self.0.push(problem);
        }
    }

    /// The problems.
    #[must_use]
    pub fn all(&self) -> &[Problem] {
        &self.0
    }

    /// True when there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// `Err(self)` if there are any.
    ///
    /// # Errors
    /// The problems themselves.
    pub fn into_result(self) -> Result<(), Self> {
        if self.0.is_empty() { Ok(()) } else { Err(self) }
    }

    /// Files in the order in which they came up, and within a file from top to bottom.
    pub(crate) fn sort(&mut self) {
        let mut files: Vec<PathBuf> = Vec::new();
        for place in self.0.iter().filter_map(|p| p.place.as_ref()) {
            if !files.contains(&place.file) {
                files.push(place.file.clone());
            }
        }
        self.0.sort_by_key(|problem| {
            let place = problem.place.as_ref();
            let file = place.and_then(|p| files.iter().position(|f| *f == p.file)).unwrap_or(usize::MAX);
            (file, place.map_or((0, 0), |p| (p.line, p.column)))
        });
    }
}

impl From<Problem> for Problems {
    fn from(problem: Problem) -> Self {
        Self(vec![problem])
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, problem) in self.0.iter().enumerate() {
            if n > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// The nearest of `known` to what was written, if it is near enough to be meant.
pub(crate) fn nearest<'a>(written: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|word| (strsim::damerau_levenshtein(written, word), word))
        .filter(|(distance, word)| *distance <= 1 + word.len().min(written.len()) / 4)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, word)| word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_count_characters_not_bytes() {
        let place = Place::at(Path::new("a.toml"), "x = 1\nnäme = 2 # y", 13);
        assert_eq!(place.to_string(), "a.toml:2:7");
        assert_eq!(Place::at(Path::new("a.toml"), "é", 1).column, 1);
        assert_eq!(Place::at(Path::new("a.toml"), "", 99).to_string(), "a.toml:1:1");
    }

    #[test]
    fn the_answer_first_the_reason_next_the_fix_last() {
        let problem = Problem::new(Kind::BadValue, "machine.disk", "'12' has no unit")
            .at(Place::whole("a.toml"))
            .why("12 bytes and 12 GiB are both numbers")
            .fix("write \"12 GiB\"");
        insta::assert_snapshot!(problem, @r#"
        a.toml: machine.disk: '12' has no unit
            why   12 bytes and 12 GiB are both numbers
            fix   write "12 GiB"
        "#);
    }

    #[test]
    fn only_near_words_are_offered() {
        assert_eq!(nearest("pakages", ["packages", "backports"]), Some("packages"));
        assert_eq!(nearest("colour", ["packages", "cpus"]), None);
        assert_eq!(nearest("ox", ["os", "at"]), Some("os"));
    }
}
