//! What a file says about itself, for the lock: its kind, and the label of an ISO.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

/// Offset, bytes there, and what such a file is.
const KINDS: &[(u64, &[u8], &str)] = &[
    (0x8001, b"CD001", "ISO 9660 image"),
    (0x8001, b"BEA01", "UDF image"),
    (0, b"!<arch>\ndebian-binary", "Debian package"),
    (0, b"QFI\xfb", "qcow2 image"),
    (0, b"MSWIM\0\0\0", "WIM archive"),
    (0, b"MSCF", "cabinet archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "7z archive"),
    (0, b"PK\x03\x04", "zip archive"),
    (0, b"\x1f\x8b", "gzip file"),
    (0, b"\xfd7zXZ\0", "xz file"),
    (0, b"\x28\xb5\x2f\xfd", "zstd file"),
    (0, b"\x7fELF", "Linux program"),
    (0, b"MZ", "Windows program"),
    (0, b"#!", "script"),
];

/// The volume label in an ISO's primary descriptor: 32 bytes, filled with spaces.
const LABEL_AT: u64 = 0x8028;

/// HTML and XML pages begin with one of these, after white space and in any case.
const PAGES: &[&str] = &["<!doctype html", "<html", "<head", "<?xml", "<!--", "<script", "<body", "<title"];

/// What a file is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct FileKind {
    /// For people, without an article.
    pub(crate) name: &'static str,
    /// Of an ISO.
    pub(crate) label: Option<String>,
}

impl FileKind {
    pub(crate) fn is(&self, name: &str) -> bool {
        self.name == name
    }
}

/// What a file is whose first bytes are these; [`KIND_BYTES`] of them are enough.
pub(crate) fn kind_of(head: &[u8]) -> Option<FileKind> {
    let from = |at: u64| usize::try_from(at).ok().and_then(|at| head.get(at..)).unwrap_or_default();
    let known = KINDS.iter().find(|(at, magic, _)| from(*at).starts_with(magic)).map(|(.., name)| *name);
    let name = known.or_else(|| is_page(head).then_some("HTML page"))?;
    let label = name.starts_with("ISO").then(|| label(from(LABEL_AT))).flatten();
    Some(FileKind { name, label })
}

fn is_page(head: &[u8]) -> bool {
    let text = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head).trim_ascii_start();
    let begins =
        |start: &str| text.get(..start.len()).is_some_and(|head| head.eq_ignore_ascii_case(start.as_bytes()));
    PAGES.iter().any(|start| begins(start))
}

fn label(field: &[u8]) -> Option<String> {
    let label: String = field.iter().take(32).map(|b| char::from(*b)).collect();
    let label = label.trim();
    let plain = !label.is_empty() && label.chars().all(|c| c.is_ascii_graphic() || c == ' ');
    plain.then(|| label.to_owned())
}

/// So many bytes tell what a file is.
pub(crate) const KIND_BYTES: usize = 0x8800;

/// Facts of the file at `path`; nothing is said about a file of no known kind.
pub(super) fn of(path: &Path) -> io::Result<BTreeMap<String, String>> {
    let mut head = Vec::new();
    File::open(path)?.take(KIND_BYTES as u64).read_to_end(&mut head)?;
    let mut facts = BTreeMap::new();
    if let Some(kind) = kind_of(&head) {
        facts.insert("kind".to_owned(), kind.name.to_owned());
        facts.extend(kind.label.map(|label| ("label".to_owned(), label)));
    }
    Ok(facts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_and_labels() {
        let dir = tempfile::tempdir().unwrap();
        let facts = |bytes: &[u8]| {
            let path = dir.path().join("file");
            std::fs::write(&path, bytes).unwrap();
            format!("{:?}", of(&path).unwrap())
        };
        let mut iso = vec![0; 0x9000];
        iso[0x8001..0x8006].copy_from_slice(b"CD001");
        iso[0x8028..0x8048].copy_from_slice(b"CCCOMA_X64FRE_FR-FR_DV9         ");
        assert_eq!(facts(&iso), r#"{"kind": "ISO 9660 image", "label": "CCCOMA_X64FRE_FR-FR_DV9"}"#);
        assert_eq!(facts(b"#!/bin/sh"), r#"{"kind": "script"}"#);
        assert_eq!(facts(b"\xef\xbb\xbf \n<!DOCTYPE HTML><title>Sign in"), r#"{"kind": "HTML page"}"#);
        assert_eq!(facts(b""), "{}");
    }
}
