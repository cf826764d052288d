//! NVIDIA's packages for Linux: a `.run` file is a shell script with an archive behind it, and says in the script what it is.
//!
//! Written against the script's published form (`label="NVIDIA Accelerated Graphics Driver for …"`, `version_string=`);
//! no real package was at hand when this was written.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::DriverError;
use super::version::Version;

/// The script in front of the archive is about 40 KB.
const SCRIPT_LIMIT: u64 = 256 << 10;

/// The version that a `.run` file installs; `None` if the file is none.
pub(super) fn version_of(path: &Path) -> Result<Option<Version>, DriverError> {
    let failed = |source| DriverError::Io { path: path.to_owned(), source };
    let mut head = Vec::new();
    File::open(path).map_err(failed)?.take(SCRIPT_LIMIT).read_to_end(&mut head).map_err(failed)?;
    Ok(version_in(&head))
}

fn version_in(head: &[u8]) -> Option<Version> {
    if !head.starts_with(b"#!") {
        return None;
    }
    let lines = head.split(|byte| *byte == b'\n').filter_map(|line| std::str::from_utf8(line).ok());
    let values = lines
        .filter_map(|line| line.split_once('='))
        .map(|(key, value)| (key.trim(), value.trim().trim_matches(['"', '\''])));
    let mut label = None;
    for (key, value) in values {
        match key {
            "version_string" | "pkg_version" => {
                if let Ok(version) = value.parse() {
                    return Some(version);
                }
            }
            "label" if value.contains("NVIDIA") => label = value.rsplit(' ').next()?.parse().ok(),
            _ => {}
        }
    }
    label
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_says_the_version() {
        let of = |text: &[u8]| version_in(text).map(|version| version.to_string());
        let label = b"#!/bin/sh\nskip=1030\nlabel=\"NVIDIA Accelerated Graphics Driver for Linux-x86_64 470.57.02\"\n";
        assert_eq!(of(label).as_deref(), Some("470.57.02"));
        assert_eq!(
            of(b"#! /bin/sh\nversion_string=535.216.03\nlabel=\"NVIDIA x 1.2\"\n").as_deref(),
            Some("535.216.03")
        );
        assert_eq!(of(b"#!/bin/sh\nlabel=\"Something 1.2\"\n\xff\xfe"), None);
        assert_eq!(of(b"MZ"), None);
    }
}
