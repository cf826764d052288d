//! NVIDIA's version numbers: `466.11` as people say it, `27.21.14.6611` as Windows stores it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A version such as 466.11 or 535.216.03; the first number is the branch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// 466 in 466.11; releases of one branch share features, not always the number.
    pub branch: u16,
    /// 11 in 466.11, 216 in 535.216.03.
    pub minor: u16,
    /// 3 in 535.216.03; only Linux packages have it.
    pub patch: Option<u16>,
}

impl Version {
    /// From the four numbers of Windows: the last digit of the third and the four digits of the fourth.
    /// 31.0.15.3667 is 536.67, 32.0.16.123 is 601.23. Intel and AMD number otherwise.
    ///
    /// Pairs of public test data agree with this rule; NVIDIA itself has not written it down.
    pub fn from_driver_ver(text: &str) -> Option<Self> {
        let numbers: Vec<u32> = text.trim().split('.').map(str::parse).collect::<Result<_, _>>().ok()?;
        let [_, _, third, fourth] = numbers[..] else { return None };
        if fourth > 9999 {
            return None;
        }
        let all = third % 10 * 10_000 + fourth;
        Some(Self {
            branch: u16::try_from(all / 100).ok()?,
            minor: u16::try_from(all % 100).ok()?,
            patch: None,
        })
    }

    /// The first version with two numbers that stands in a file name: `466.11-desktop-win10-64bit-….exe`.
    pub fn in_file_name(name: &str) -> Option<Self> {
        let words = name.split(|c: char| !c.is_ascii_digit() && c != '.');
        words.map(|word| word.trim_matches('.')).find_map(|word| {
            let version: Self = word.parse().ok()?;
            (version.branch >= 100).then_some(version)
        })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:02}", self.branch, self.minor)?;
        self.patch.map_or(Ok(()), |patch| write!(f, ".{patch:02}"))
    }
}

/// Why a text is no version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no driver version; they look like 466.11 or 535.216.03")]
pub struct NoVersion(String);

impl FromStr for Version {
    type Err = NoVersion;

    fn from_str(text: &str) -> Result<Self, NoVersion> {
        let wrong = || NoVersion(text.to_owned());
        let number = |part: &str| part.parse::<u16>().map_err(|_| wrong());
        let parts: Vec<&str> = text.split('.').collect();
        let (branch, minor, patch) = match parts[..] {
            [branch, minor] => (branch, minor, None),
            [branch, minor, patch] => (branch, minor, Some(number(patch)?)),
            _ => return Err(wrong()),
        };
        Ok(Self { branch: number(branch)?, minor: number(minor)?, patch })
    }
}

impl Serialize for Version {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Version {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Pairs seen in public data.
    const PAIRS: &[(&str, &str)] = &[
        ("32.0.15.6094", "560.94"),
        ("31.0.15.3667", "536.67"),
        ("32.0.16.1714", "617.14"),
        ("27.21.14.6589", "465.89"),
        ("26.21.14.4166", "441.66"),
        ("30.0.14.7168", "471.68"),
        ("32.0.16.123", "601.23"),
    ];

    #[test]
    fn the_numbers_of_windows_give_those_of_people() {
        for (windows, people) in PAIRS {
            assert_eq!(Version::from_driver_ver(windows).unwrap().to_string(), *people);
        }
        for wrong in ["", "1.2.3", "27.21.14.65890", "a.b.c.d", "1.2.3.4.5"] {
            assert_eq!(Version::from_driver_ver(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn file_names_say_the_version() {
        let of = |name| Version::in_file_name(name).map(|v| v.to_string());
        assert_eq!(of("466.11-desktop-win10-64bit-international-dch-whql.exe").as_deref(), Some("466.11"));
        assert_eq!(of("NVIDIA-Linux-x86_64-535.216.03.run").as_deref(), Some("535.216.03"));
        assert_eq!(of("setup.exe"), None);
        assert_eq!(of("win10.64"), None);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(branch in 100_u16..999, minor in 0_u16..100, patch: Option<u8>) {
            let version = Version { branch, minor, patch: patch.map(u16::from) };
            prop_assert_eq!(version.to_string().parse::<Version>(), Ok(version));
        }

        #[test]
        fn any_text_is_safe(text in ".{0,40}") {
            let _ = Version::from_driver_ver(&text);
            let _ = Version::in_file_name(&text);
        }
    }
}
