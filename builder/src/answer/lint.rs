//! The linter: what Windows Setup would stop at, ask about, or leave out, found before an hour is spent on it.
//!
//! It takes anybody's file. What is legal is never an error; what no table here knows is not complained about, except
//! where it is nearly a word that Setup knows. No finding repeats a password.

mod accounts;
mod commands;
mod disks;
mod languages;
mod media;
mod structure;
#[cfg(test)]
mod tests;

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::finding::{At, Finding, Severity};
use super::read::{self, BYTES_LIMIT, Element};
use super::tables;
use crate::diagnostic::nearest;
use crate::media::Media;

/// More help nobody.
const FINDINGS_LIMIT: usize = 200;

/// Everything that is wrong with an answer file, from top to bottom; with `media`, also what they do not have.
#[must_use]
pub fn lint(text: &str, media: Option<&Media>) -> Vec<Finding> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.len() > BYTES_LIMIT {
        return vec![too_large(text.len())];
    }
    tidy(check(text, None, media))
}

/// The same for the bytes of a file: also says what is wrong with their encoding.
#[must_use]
pub fn lint_bytes(bytes: &[u8], media: Option<&Media>) -> Vec<Finding> {
    if bytes.len() > BYTES_LIMIT {
        return vec![too_large(bytes.len())];
    }
    let decoded = read::decode(bytes);
    let mut findings = check(&decoded.text, Some(decoded.wide), media);
    findings.extend(decoded.finding);
    tidy(findings)
}

/// Does Setup stop, ask, or leave out what is asked for?
#[must_use]
pub fn has_errors(findings: &[Finding]) -> bool {
    findings.iter().any(|finding| finding.severity == Severity::Error)
}

/// Reads an answer file (`-` is standard input), no further than the linter would.
///
/// # Errors
/// When it cannot be read, or is a folder.
pub fn read_file(path: &Path) -> Result<Vec<u8>, ReadError> {
    let failed = |source| ReadError { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let limit = BYTES_LIMIT as u64 + 1;
    if path == Path::new("-") {
        io::stdin().lock().take(limit).read_to_end(&mut bytes).map_err(failed)?;
    } else {
        std::fs::File::open(path)
            .and_then(|file| file.take(limit).read_to_end(&mut bytes))
            .map_err(failed)?;
    }
    Ok(bytes)
}

/// An answer file that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("failed to read {path}: {source}")]
pub struct ReadError {
    path: PathBuf,
    source: io::Error,
}

fn too_large(bytes: usize) -> Finding {
    let what = format!("{bytes} bytes; at most {BYTES_LIMIT} are read");
    Finding::error(At { line: 1, column: 1 }, "limits", what).fix("is it an answer file at all?")
}

fn tidy(mut findings: Vec<Finding>) -> Vec<Finding> {
    findings.sort_by(|a, b| (a.line, a.column, b.severity).cmp(&(b.line, b.column, a.severity)));
    findings.dedup();
    if findings.len() > FINDINGS_LIMIT {
        let more = findings.len() - FINDINGS_LIMIT;
        let last = findings[FINDINGS_LIMIT].clone();
        findings.truncate(FINDINGS_LIMIT);
        let at = At { line: last.line, column: last.column };
        findings.push(Finding::new(at, last.severity, "limits", format!("and {more} more findings")));
    }
    findings
}

fn check(text: &str, wide: Option<bool>, media: Option<&Media>) -> Vec<Finding> {
    let (document, mut findings) = read::read(text, wide);
    // Half a tree would make a hundred findings of one.
    let whole = !findings.iter().any(|finding| matches!(finding.rule, "xml" | "limits"));
    let Some(root) = document.root().filter(|_| whole) else { return findings };
    let Some(file) = structure::file(root, &mut findings) else { return findings };
    for rule in RULES {
        rule(&file, &mut findings);
    }
    if let Some(media) = media {
        media::check(&file, media, &mut findings);
    }
    findings
}

/// The components of a file, whatever else is wrong with it.
pub(super) fn file_of(root: Element<'_>) -> Option<File<'_>> {
    structure::file(root, &mut Vec::new())
}

/// What looks at a whole file.
type Rule = fn(&File<'_>, &mut Vec<Finding>);

const RULES: &[Rule] = &[
    structure::components,
    structure::settings,
    structure::lists,
    languages::languages,
    languages::time_zones,
    disks::disks,
    disks::image,
    disks::user_data,
    disks::product_keys,
    accounts::names,
    accounts::passwords,
    accounts::autologon,
    commands::commands,
];

/// A file with its components laid out.
pub(super) struct File<'d> {
    pub(super) components: Vec<Component<'d>>,
}

/// One component in one pass.
#[derive(Clone, Copy)]
pub(super) struct Component<'d> {
    pub(super) pass: &'d str,
    /// In the listed spelling, where it is listed.
    pub(super) name: &'d str,
    pub(super) element: Element<'d>,
}

impl<'d> File<'d> {
    /// Components of that name, which is given without "Microsoft-Windows-", in any pass.
    pub(super) fn of(&self, short: &str) -> impl Iterator<Item = Component<'d>> {
        let short = short.to_owned();
        self.components.iter().copied().filter(move |component| {
            component.name.strip_prefix("Microsoft-Windows-").unwrap_or(component.name) == short
        })
    }

    /// The same in one pass.
    pub(super) fn of_pass(&self, pass: &str, short: &str) -> impl Iterator<Item = Component<'d>> {
        let pass = pass.to_owned();
        self.of(short).filter(move |component| component.pass == pass)
    }
}

/// `did you mean …`, where something is near.
fn meant<'a>(written: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    nearest(written, known).map(|near| format!("did you mean '{near}'?"))
}

/// `true` and `false` in the forms that Windows takes.
pub(super) fn truth(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" => Some(true),
        "false" | "0" => Some(false),
        _ => None,
    }
}

/// The passes, for messages.
fn passes(list: &[&str]) -> String {
    list.join(", ")
}

/// A pass in its usual spelling.
fn pass_name(text: &str) -> Option<&'static str> {
    tables::PASSES.into_iter().find(|pass| *pass == text)
}
