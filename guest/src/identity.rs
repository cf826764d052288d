//! Who a built guest program is, told without running it: a mark inside the file.
//!
//! The host cannot start a Windows program, so it looks for the mark in the bytes; the Linux program has one, too.

use serde::{Deserialize, Serialize};

use crate::protocol::{PROTOCOL_VERSION, bound_text};
use crate::setup::SETUP_VERSION;

/// What a program file says about itself; `no43-guest --version --json` prints the same.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Identity {
    /// Version of the program, as `0.1.0`.
    pub version: String,
    /// [`PROTOCOL_VERSION`] that it was built with.
    pub protocol: u32,
    /// [`SETUP_VERSION`] that it was built with.
    pub setup: u32,
    /// `windows` or `linux`.
    pub os: String,
}

/// What stands before the object in the file.
const MARK: &[u8] = b"no43-guest identity ";

/// Longest object behind the mark.
const LENGTH: usize = 256;

#[cfg(windows)]
macro_rules! os {
    () => {
        "windows"
    };
}

#[cfg(not(windows))]
macro_rules! os {
    () => {
        "linux"
    };
}

/// The mark that the program prints, so that it is in its file. Numbers are literal because a constant text is made
/// of literals only; a test compares.
pub const TEXT: &str = concat!(
    "no43-guest identity {\"version\":\"",
    env!("CARGO_PKG_VERSION"),
    "\",\"protocol\":1,\"setup\":1,\"os\":\"",
    os!(),
    "\"}"
);

impl Identity {
    /// This build's own.
    #[must_use]
    pub fn own() -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            protocol: PROTOCOL_VERSION,
            setup: SETUP_VERSION,
            os: std::env::consts::OS.to_owned(),
        }
    }

    /// Looks for the mark in a program file.
    #[must_use]
    pub fn find(file: &[u8]) -> Option<Self> {
        // A program that can look for the mark holds its text twice, so what does not parse is passed over.
        let places = file.windows(MARK.len()).enumerate().filter(|(_, window)| *window == MARK);
        let mut identity = places.map(|(at, _)| at + MARK.len()).find_map(|at| {
            let rest = &file[at..file.len().min(at + LENGTH)];
            serde_json::Deserializer::from_slice(rest).into_iter::<Self>().next()?.ok()
        })?;
        [&mut identity.version, &mut identity.os].into_iter().for_each(bound_text);
        Some(identity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_mark_says_what_this_build_is() {
        assert_eq!(Identity::find(TEXT.as_bytes()), Some(Identity::own()));
    }

    #[test]
    fn the_mark_is_found_between_other_bytes() {
        let file = [b"MZ\x90no43-guest identity \0\xff", TEXT.as_bytes(), b"\0no43-guest identity "].concat();
        assert_eq!(Identity::find(&file), Some(Identity::own()));
        assert_eq!(Identity::find(b"MZ no43-guest identity"), None);
        assert_eq!(Identity::find(&[]), None);
    }

    proptest! {
        #[test]
        fn any_file_is_searched(parts in proptest::collection::vec("no43-guest identity |\\{|\\}|\"version\":\"|\",|[\\x00-\\x7fé]{0,6}", 0..40)) {
            if let Some(identity) = Identity::find(parts.concat().as_bytes()) {
                prop_assert!(identity.version.chars().count() <= 1024);
            }
        }

        #[test]
        fn a_damaged_mark_is_read_or_passed_over(at in proptest::collection::vec((any::<usize>(), any::<u8>()), 0..6)) {
            let mut bytes = TEXT.as_bytes().to_vec();
            for (at, value) in at {
                let at = at % bytes.len();
                bytes[at] = value;
            }
            let _ = Identity::find(&bytes);
        }
    }
}
