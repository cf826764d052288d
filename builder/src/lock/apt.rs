//! Package archives: which one this host uses, and what an `InRelease` says about itself.
//!
//! No mirror is named in our source: it comes from the recipe or from this host's own apt configuration.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};

/// Facts of `InRelease` that the lock keeps, by the name that the lock gives them.
const FACTS: &[(&str, &str)] = &[
    ("Origin", "origin"),
    ("Suite", "suite"),
    ("Codename", "codename"),
    ("Version", "version"),
    ("Date", "date"),
    ("Valid-Until", "valid-until"),
];

/// One archive that this host's apt uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostSource {
    /// The suite's directory under `dists/`, such as `bookworm-updates`.
    pub release: String,
    /// Such as `Debian`.
    pub origin: String,
    /// Without a trailing slash.
    pub mirror: String,
}

/// The archives that this host's apt uses; empty where there is no apt.
#[must_use]
pub fn host_sources() -> Vec<HostSource> {
    let format = "$(CREATED_BY)\t$(RELEASE)\t$(ORIGIN)\t$(REPO_URI)";
    let output =
        Command::new("apt-get").args(["indextargets", "--format", format]).stdin(Stdio::null()).output();
    output.map(|output| parse_index_targets(&String::from_utf8_lossy(&output.stdout))).unwrap_or_default()
}

fn parse_index_targets(text: &str) -> Vec<HostSource> {
    let mut sources: Vec<HostSource> = Vec::new();
    for line in text.lines() {
        let [created_by, release, origin, mirror] = line.split('\t').collect::<Vec<_>>()[..] else {
            continue;
        };
        let source = HostSource {
            release: release.to_owned(),
            origin: origin.to_owned(),
            mirror: mirror.trim_end_matches('/').to_owned(),
        };
        if created_by == "Packages" && !sources.iter().any(|known| known.release == source.release) {
            sources.push(source);
        }
    }
    sources
}

/// Where `suite` of Debian is, as far as this host knows.
///
/// A suite that the host does not use itself (backports, another release) is looked for where the host has the main
/// archive of its own release; security lives in an archive of its own and is only taken where it is named.
#[must_use]
pub fn mirror_of(suite: &str, sources: &[HostSource]) -> Option<String> {
    if let Some(source) = sources.iter().find(|source| source.release == suite) {
        return Some(source.mirror.clone());
    }
    let separate = |release: &str| release.ends_with("-security");
    if separate(suite) {
        return None;
    }
    let main = sources.iter().find(|source| source.origin == "Debian" && !separate(&source.release));
    main.map(|source| source.mirror.clone())
}

/// What an `InRelease` (signed or not) says about itself; only lines of its own header, never of its file lists.
#[must_use]
pub fn in_release_facts(text: &str) -> BTreeMap<String, String> {
    let body = text
        .lines()
        .skip_while(|line| line.starts_with("-----") || line.starts_with("Hash:") || line.is_empty());
    let mut facts = BTreeMap::new();
    for line in body.take_while(|line| !line.starts_with("-----")) {
        let Some((key, value)) = line.split_once(':') else { continue };
        if let Some((_, name)) = FACTS.iter().find(|(field, _)| *field == key) {
            let value: String = value.trim().chars().filter(|c| !c.is_control()).take(200).collect();
            facts.entry((*name).to_owned()).or_insert(value);
        }
    }
    facts
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TARGETS: &str = "DEP-11\tbookworm\tDebian\thttp://mirror.invalid/debian/\n\
        Packages\tbookworm\tDebian\thttp://mirror.invalid/debian/\n\
        Packages\tbookworm-security\tDebian\thttp://mirror.invalid/debian-security/\n\
        Packages\tstable\tOther\thttp://other.invalid/deb/\n";

    #[test]
    fn the_mirror_is_the_hosts_own() {
        let sources = parse_index_targets(TARGETS);
        let mirror = |suite| mirror_of(suite, &sources);
        assert_eq!(mirror("bookworm").as_deref(), Some("http://mirror.invalid/debian"));
        assert_eq!(mirror("bookworm-security").as_deref(), Some("http://mirror.invalid/debian-security"));
        assert_eq!(mirror("bookworm-backports").as_deref(), Some("http://mirror.invalid/debian"));
        assert_eq!(mirror("trixie-security"), None);
        assert_eq!(mirror_of("bookworm", &[]), None);
    }

    #[test]
    fn facts_of_an_in_release() {
        let text = "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\nOrigin: Debian\nSuite: oldstable\n\
            Version: 12.15\nCodename: bookworm\nDate: Sat, 11 Jul 2026 09:00:00 UTC\nSHA256:\n abc 1 main/x\n\
            -----BEGIN PGP SIGNATURE-----\nVersion: not this one\n";
        insta::assert_debug_snapshot!(in_release_facts(text), @r#"
        {
            "codename": "bookworm",
            "date": "Sat, 11 Jul 2026 09:00:00 UTC",
            "origin": "Debian",
            "suite": "oldstable",
            "version": "12.15",
        }
        "#);
    }

    proptest! {
        #[test]
        fn foreign_text_never_panics(text in "\\PC*") {
            let _ = (in_release_facts(&text), parse_index_targets(&text));
        }
    }
}
