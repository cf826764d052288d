//! The syntax of INF files: sections, entries, quoted and unquoted values, `%strings%`, comments, continued lines.
//!
//! Rules as in Microsoft's "General Syntax Rules for INF Files". Names of sections and keys know no case; sections of the
//! same name are one section. `Include` and `Needs` are not followed: what a display driver is for stands in its own file.

use std::cell::Cell;
use std::collections::HashMap;

/// Most bytes that strings may add to a file in all. The largest INF of NVIDIA's has 3,000 devices with names of 40 letters; a file
/// made to harm names one long string a million times.
const MOST_EXPANDED: usize = 16 << 20;

/// One entry: `key = value, value` or only `value, value`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// What stands before `=`, unquoted and with its strings put in; empty where there is no `=`.
    pub(super) key: String,
    /// The values, unquoted and with their strings put in.
    pub(super) values: Vec<String>,
}

/// A file that was read.
#[derive(Debug, Default)]
pub(super) struct Inf {
    sections: HashMap<String, Vec<Raw>>,
    strings: HashMap<String, String>,
    /// What is left of [`MOST_EXPANDED`].
    left: Cell<usize>,
}

/// An entry as it stands there.
#[derive(Debug)]
struct Raw {
    key: Option<String>,
    values: Vec<String>,
}

impl Inf {
    /// Reads a text. Nothing in it is an error: what makes no sense is not there.
    pub(super) fn parse(text: &str) -> Self {
        let mut inf = Self { left: Cell::new(MOST_EXPANDED), ..Self::default() };
        let mut section: Option<String> = None;
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            let mut line = uncommented(line).trim().to_owned();
            while line.ends_with('\\') {
                line.pop();
                match lines.next() {
                    Some(more) => line.push_str(uncommented(more).trim()),
                    None => break,
                }
            }
            if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
                let name = name.trim().to_lowercase();
                inf.sections.entry(name.clone()).or_default();
                section = Some(name);
            } else if let (Some(name), false) = (&section, line.is_empty()) {
                inf.sections.entry(name.clone()).or_default().push(raw(&line));
            }
        }
        inf.strings = inf.strings();
        inf
    }

    /// The neutral strings, then those of US English, which win: the names that people know are English.
    fn strings(&self) -> HashMap<String, String> {
        let sections = ["strings", "strings.0409"].iter().filter_map(|name| self.sections.get(*name));
        sections
            .flatten()
            .filter_map(|raw| Some((raw.key.as_ref()?.to_lowercase(), raw.values.first()?.clone())))
            .collect()
    }

    /// The entries of a section; empty where there is none.
    pub(super) fn section(&self, name: &str) -> impl Iterator<Item = Entry> + '_ {
        self.sections.get(&name.to_lowercase()).into_iter().flatten().map(|raw| Entry {
            key: self.expand(raw.key.as_deref().unwrap_or_default()),
            values: raw.values.iter().map(|value| self.expand(value)).collect(),
        })
    }

    /// Whether there is such a section.
    pub(super) fn has(&self, name: &str) -> bool {
        self.sections.contains_key(&name.to_lowercase())
    }

    /// The first entry of a section with this key.
    pub(super) fn values(&self, section: &str, key: &str) -> Option<Vec<String>> {
        self.section(section).find(|entry| entry.key.eq_ignore_ascii_case(key)).map(|entry| entry.values)
    }

    /// Whether any entry of the file has a value that holds this word, whatever its case.
    pub(super) fn mentions(&self, word: &str) -> bool {
        let word = word.to_lowercase();
        self.sections.values().flatten().flat_map(|raw| &raw.values).any(|v| v.to_lowercase().contains(&word))
    }

    /// `%name%` by its string, `%%` by a percent sign; once only, so that no loop can be written. It stays as it stands where
    /// no such string is, and when [`MOST_EXPANDED`] is used up.
    fn expand(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('%') {
            out.push_str(before);
            match after.split_once('%') {
                Some(("", behind)) => {
                    out.push('%');
                    rest = behind;
                }
                Some((name, behind)) => {
                    let string = self.strings.get(&name.to_lowercase());
                    let left = string.and_then(|string| self.left.get().checked_sub(string.len()));
                    match string.zip(left) {
                        Some((string, left)) => {
                            self.left.set(left);
                            out.push_str(string);
                        }
                        None => out.extend(["%", name, "%"]),
                    }
                    rest = behind;
                }
                None => {
                    out.push('%');
                    rest = after;
                }
            }
        }
        out + rest
    }
}

/// The line up to a `;` that is not within quotes.
fn uncommented(line: &str) -> &str {
    let mut quoted = false;
    for (at, c) in line.char_indices() {
        match c {
            '"' => quoted = !quoted,
            ';' if !quoted => return &line[..at],
            _ => {}
        }
    }
    line
}

fn raw(line: &str) -> Raw {
    let parts = split(line, '=', 2);
    match parts.as_slice() {
        [key, values] => Raw { key: Some(unquoted(key)), values: fields(values) },
        _ => Raw { key: None, values: fields(line) },
    }
}

fn fields(text: &str) -> Vec<String> {
    split(text, ',', usize::MAX).into_iter().map(unquoted).collect()
}

/// Splits at a character that is not within quotes, into at most `most` parts.
fn split(text: &str, at: char, most: usize) -> Vec<&str> {
    let (mut parts, mut start, mut quoted) = (Vec::new(), 0, false);
    for (index, c) in text.char_indices() {
        match c {
            '"' => quoted = !quoted,
            c if c == at && !quoted && parts.len() + 1 < most => {
                parts.push(&text[start..index]);
                start = index + at.len_utf8();
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

/// Without the quotes around it; two quotes inside are one.
fn unquoted(text: &str) -> String {
    let text = text.trim();
    match text.strip_prefix('"') {
        Some(inner) => inner.strip_suffix('"').unwrap_or(inner).replace("\"\"", "\""),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TEXT: &str = r#"
; a comment
[Version]
Signature = "$Windows NT$"   ; another
DriverVer = 01/25/2024, 31.0.15.5153
Provider=%NV%
[Models] ; continued and split
%A% = Section001, \
      PCI\VEN_10DE&DEV_2484
[MODELS]
"%A%;b" = "x, ""y""", z%%, %unknown%, 100%
lonely
[Strings]
NV = "NVIDIA"
a = "GeForce %NV%"
[strings.0409]
A = "GeForce RTX 3070"
"#;

    #[test]
    fn sections_strings_quotes_and_continuations() {
        let inf = Inf::parse(TEXT);
        assert_eq!(inf.values("version", "SIGNATURE").unwrap(), ["$Windows NT$"]);
        assert_eq!(inf.values("Version", "driverver").unwrap(), ["01/25/2024", "31.0.15.5153"]);
        assert_eq!(inf.values("version", "provider").unwrap(), ["NVIDIA"]);
        let models: Vec<Entry> = inf.section("models").collect();
        assert_eq!(models[0].key, "GeForce RTX 3070");
        assert_eq!(models[0].values, ["Section001", r"PCI\VEN_10DE&DEV_2484"]);
        assert_eq!(models[1].key, "GeForce RTX 3070;b");
        assert_eq!(models[1].values, ["x, \"y\"", "z%", "%unknown%", "100%"]);
        assert_eq!((models[2].key.as_str(), models[2].values.as_slice()), ("", &["lonely".to_owned()][..]));
        assert!(inf.has("Strings.0409") && !inf.has("nothing") && inf.mentions("section001"));
    }

    #[test]
    fn strings_that_name_each_other_end() {
        let inf = Inf::parse("[a]\nx=%p%\n[Strings]\np=\"%q%\"\nq=\"%p%\"\n");
        assert_eq!(inf.values("a", "x").unwrap(), ["%q%"]);
    }

    #[test]
    fn one_long_string_named_often_is_put_in_a_bounded_number_of_times() {
        let text = format!("[a]\nk={}\n[Strings]\ns=\"{}\"\n", "%s%,".repeat(100_000), "x".repeat(1 << 20));
        let values = Inf::parse(&text).values("a", "k").unwrap();
        let bytes: usize = values.iter().map(String::len).sum();
        assert!(
            values[0].len() == 1 << 20 && values[99_999] == "%s%",
            "the first is put in, the last is not"
        );
        assert!(bytes < MOST_EXPANDED + text.len(), "{bytes} bytes");
    }

    #[test]
    fn a_line_of_ten_megabytes_and_a_backslash_at_the_end() {
        let line = "x".repeat(10 << 20);
        let inf = Inf::parse(&format!("[a]\nkey={line}\\"));
        assert_eq!(inf.values("a", "key").unwrap()[0].len(), 10 << 20);
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in "(\\[[a-z]{0,3}\\]?|[a-z]{0,3}|%|\"|;|=|,|\\\\|\n| ){0,60}") {
            let inf = Inf::parse(&text);
            for name in inf.sections.keys().cloned().collect::<Vec<_>>() {
                prop_assert!(inf.section(&name).all(|entry| entry.values.len() <= text.len() + 1));
            }
        }

        #[test]
        fn a_quoted_value_comes_out_as_it_went_in(value in "[^\"\r\n%\\\\]{0,20}") {
            let inf = Inf::parse(&format!("[a]\nk = \"{value}\", 2\n"));
            prop_assert_eq!(inf.values("a", "k").unwrap(), [value, "2".into()]);
        }
    }
}
