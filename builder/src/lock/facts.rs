//! What a file says about itself, for the lock: its kind, and the label of an ISO.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Offset, bytes there, and what such a file is.
const KINDS: &[(u64, &[u8], &str)] = &[
    (0x8001, b"CD001", "ISO 9660 image"),
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

/// Facts of the file at `path`; nothing is said about a file of no known kind.
pub(super) fn of(path: &Path) -> io::Result<BTreeMap<String, String>> {
    let file = File::open(path)?;
    let mut facts = BTreeMap::new();
    let Some((.., kind)) = KINDS.iter().find(|(at, magic, _)| read_at::<32>(&file, *at).starts_with(magic))
    else {
        return Ok(facts);
    };
    facts.insert("kind".to_owned(), (*kind).to_owned());
    if kind.starts_with("ISO") {
        let label: String = read_at::<32>(&file, LABEL_AT).iter().map(|b| char::from(*b)).collect();
        let label = label.trim();
        if !label.is_empty() && label.chars().all(|c| c.is_ascii_graphic() || c == ' ') {
            facts.insert("label".to_owned(), label.to_owned());
        }
    }
    Ok(facts)
}

/// Bytes past the end are zero.
fn read_at<const N: usize>(file: &File, at: u64) -> [u8; N] {
    let mut bytes = [0; N];
    let _ = file.read_at(&mut bytes, at);
    bytes
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
        assert_eq!(facts(b""), "{}");
    }
}
