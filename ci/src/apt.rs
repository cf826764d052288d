//! What Debian's package tools say, as data: source lists, offers, installed packages, version order.
//!
//! Nothing here runs a program. All parsers take what the tools print, so that tests feed them recorded text.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// One enabled binary-package source: one address and one suite.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Source {
    /// The mirror's address, as the system's own list writes it.
    pub(crate) uri: String,
    /// The suite, for example `bookworm-security`.
    pub(crate) suite: String,
    /// Components in order, for example `main`.
    pub(crate) components: Vec<String>,
    /// `Signed-By` as written: a key file, a fingerprint or an embedded key (which has several lines).
    pub(crate) signed_by: Option<String>,
}

/// A package version that a suite offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Offer {
    /// Package name.
    pub(crate) package: String,
    /// Debian version.
    pub(crate) version: String,
    /// The suite that has it.
    pub(crate) suite: String,
}

/// Reads the one-line format (`sources.list`); lines that are not binary sources are left out.
pub(crate) fn parse_one_line(text: &str) -> Vec<Source> {
    let mut found = Vec::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        let Some(rest) = line.strip_prefix("deb ").or_else(|| line.strip_prefix("deb\t")) else { continue };
        let rest = rest.trim_start();
        let (options, rest) = match rest.strip_prefix('[').and_then(|r| r.split_once(']')) {
            Some((options, rest)) => (options, rest),
            None => ("", rest),
        };
        let mut words = rest.split_whitespace().map(str::to_owned);
        let (Some(uri), Some(suite)) = (words.next(), words.next()) else { continue };
        let signed_by =
            options.split_whitespace().find_map(|o| o.strip_prefix("signed-by=")).map(str::to_owned);
        found.push(Source { uri, suite, components: words.collect(), signed_by });
    }
    found
}

/// Reads deb822 stanzas (`*.sources`): one [`Source`] for each pair of address and suite; disabled ones are left out.
pub(crate) fn parse_deb822(text: &str) -> Vec<Source> {
    stanzas(text).iter().flat_map(sources_of_stanza).collect()
}

fn stanzas(text: &str) -> Vec<BTreeMap<String, String>> {
    let mut all = Vec::new();
    let mut current: BTreeMap<String, String> = BTreeMap::new();
    let mut last_key: Option<String> = None;
    for line in text.lines().filter(|l| !l.starts_with('#')).chain([""]) {
        if line.trim().is_empty() {
            if !current.is_empty() {
                all.push(std::mem::take(&mut current));
            }
            last_key = None;
        } else if line.starts_with([' ', '\t']) {
            if let Some(value) = last_key.as_ref().and_then(|k| current.get_mut(k)) {
                value.push('\n');
                value.push_str(line);
            }
        } else if let Some((key, value)) = line.split_once(':') {
            let key = key.trim().to_ascii_lowercase();
            current.insert(key.clone(), value.trim().to_owned());
            last_key = Some(key);
        }
    }
    all
}

fn sources_of_stanza(stanza: &BTreeMap<String, String>) -> Vec<Source> {
    let words = |key: &str| -> Vec<String> {
        stanza.get(key).map(|v| v.split_whitespace().map(str::to_owned).collect()).unwrap_or_default()
    };
    let off = stanza
        .get("enabled")
        .is_some_and(|v| matches!(v.to_ascii_lowercase().as_str(), "no" | "false" | "0"));
    if off || !words("types").iter().any(|t| t == "deb") {
        return Vec::new();
    }
    let (components, signed_by) = (words("components"), stanza.get("signed-by").cloned());
    let suites = words("suites");
    let one = |uri: &String, suite: &String| Source {
        uri: uri.clone(),
        suite: suite.clone(),
        components: components.clone(),
        signed_by: signed_by.clone(),
    };
    words("uris")
        .iter()
        .flat_map(|uri| suites.iter().map(move |suite| (uri, suite)))
        .map(|(u, s)| one(u, s))
        .collect()
}

/// The sources that belong to the release `codename` (its own suite, updates, security, backports), other parties'
/// left out, with `<codename>-backports` added from the same mirror where it is not enabled. `None` where the
/// system has no source for the release itself.
pub(crate) fn with_backports(sources: &[Source], codename: &str) -> Option<Vec<Source>> {
    let backports = format!("{codename}-backports");
    let of_release = |s: &&Source| s.suite == codename || s.suite.starts_with(&format!("{codename}-"));
    let mut kept: Vec<Source> = sources.iter().filter(of_release).cloned().collect();
    let base = sources.iter().find(|s| s.suite == codename && s.components.iter().any(|c| c == "main"))?;
    if !kept.iter().any(|s| s.suite == backports) {
        kept.push(Source { suite: backports, components: vec!["main".to_owned()], ..base.clone() });
    }
    Some(kept)
}

/// Writes sources as deb822 stanzas.
pub(crate) fn render_deb822(sources: &[Source]) -> String {
    let mut text = String::new();
    for s in sources {
        let _ = writeln!(text, "Types: deb\nURIs: {}\nSuites: {}", s.uri, s.suite);
        if !s.components.is_empty() {
            let _ = writeln!(text, "Components: {}", s.components.join(" "));
        }
        if let Some(key) = &s.signed_by {
            let _ = writeln!(text, "Signed-By: {key}");
        }
        text.push('\n');
    }
    text
}

/// Reads `apt-cache madison`: `name | version | address suite/component arch Packages`.
pub(crate) fn parse_madison(text: &str) -> Vec<Offer> {
    let offer = |line: &str| -> Option<Offer> {
        let mut columns = line.split('|').map(str::trim);
        let (package, version, origin) = (columns.next()?, columns.next()?, columns.next()?);
        let mut words = origin.split_whitespace();
        let (_uri, suite) = (words.next()?, words.next()?);
        if words.last() != Some("Packages") || package.is_empty() || version.is_empty() {
            return None;
        }
        let suite = suite.split('/').next()?;
        Some(Offer { package: package.to_owned(), version: version.to_owned(), suite: suite.to_owned() })
    };
    text.lines().filter_map(offer).collect()
}

/// The format string whose output [`parse_dpkg`] reads.
pub(crate) const DPKG_FORMAT: &str = "${Package}\\t${Version}\\t${db:Status-Abbrev}\\n";

/// Reads `dpkg-query -W -f` [`DPKG_FORMAT`]: name to version of what is fully installed.
pub(crate) fn parse_dpkg(text: &str) -> BTreeMap<String, String> {
    let one = |line: &str| -> Option<(String, String)> {
        let mut columns = line.split('\t');
        let (name, version, status) = (columns.next()?, columns.next()?, columns.next()?);
        (status.trim_end().len() == 2 && status.as_bytes()[1] == b'i')
            .then(|| (name.to_owned(), version.to_owned()))
    };
    text.lines().filter_map(one).collect()
}

/// The value of `key` in `/etc/os-release`, quotes taken off.
pub(crate) fn os_release<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix('=')).map(|v| v.trim_matches(['"', '\'']))
}

/// Debian's order of versions: epoch, upstream part, revision; `~` sorts before the end.
pub(crate) fn compare_versions(a: &str, b: &str) -> Ordering {
    let split = |v: &str| -> (u64, String, String) {
        let (epoch, rest) = v.split_once(':').unwrap_or(("0", v));
        let (upstream, revision) = rest.rsplit_once('-').unwrap_or((rest, "0"));
        (epoch.parse().unwrap_or(0), upstream.to_owned(), revision.to_owned())
    };
    let (a, b) = (split(a), split(b));
    a.0.cmp(&b.0).then_with(|| compare_part(&a.1, &b.1)).then_with(|| compare_part(&a.2, &b.2))
}

/// Compares by turns a run of non-digits (letters before signs, `~` before all) and a number.
fn compare_part(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    let weight = |c: Option<&u8>| match c {
        Some(b'~') => -1,
        None => 0,
        Some(c) if c.is_ascii_digit() => 0,
        Some(c) if c.is_ascii_alphabetic() => i32::from(*c),
        Some(c) => i32::from(*c) + 256,
    };
    while !a.is_empty() || !b.is_empty() {
        loop {
            let (wa, wb) = (weight(a.first()), weight(b.first()));
            match wa.cmp(&wb) {
                Ordering::Equal if wa == 0 => break,
                Ordering::Equal => (a, b) = (&a[1..], &b[1..]),
                unequal => return unequal,
            }
        }
        let number = |s: &[u8]| s.iter().take_while(|c| c.is_ascii_digit()).count();
        let (na, nb) = (number(a), number(b));
        let trimmed = |s: &[u8]| s.iter().position(|c| *c != b'0').map_or(Vec::new(), |p| s[p..].to_vec());
        let (da, db) = (trimmed(&a[..na]), trimmed(&b[..nb]));
        match da.len().cmp(&db.len()).then_with(|| da.cmp(&db)) {
            Ordering::Equal => (a, b) = (&a[na..], &b[nb..]),
            unequal => return unequal,
        }
    }
    Ordering::Equal
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEB822: &str = "\
Types: deb deb-src
# a snapshot was used once
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mQINBF

Enabled: no
Types: deb
URIs: http://mirror.example/off
Suites: bookworm
Components: main
";

    #[test]
    fn backports_come_from_the_mirror_that_the_system_uses() {
        let sources = with_backports(&parse_deb822(DEB822), "bookworm").expect("a source for the release");
        insta::assert_snapshot!(render_deb822(&sources), @r"
        Types: deb
        URIs: http://mirror.example/debian
        Suites: bookworm
        Components: main
        Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

        Types: deb
        URIs: http://mirror.example/debian
        Suites: bookworm-updates
        Components: main
        Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

        Types: deb
        URIs: http://mirror.example/debian-security
        Suites: bookworm-security
        Components: main
        Signed-By: 
         -----BEGIN PGP PUBLIC KEY BLOCK-----
         .
         mQINBF

        Types: deb
        URIs: http://mirror.example/debian
        Suites: bookworm-backports
        Components: main
        Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
        ");
    }

    #[test]
    fn one_line_lists_are_read_and_other_parties_left_out() {
        let text = "# deb http://off.example/ bookworm main\n\
            deb [arch=amd64 signed-by=/etc/key.gpg] http://mirror.example/debian bookworm main contrib # why\n\
            deb-src http://mirror.example/debian bookworm main\n\
            deb http://vendor.example/apt stable main\n\
            deb http://mirror.example/debian bookworm-backports main\n";
        let sources = with_backports(&parse_one_line(text), "bookworm").expect("a source for the release");
        let short: Vec<String> = sources
            .iter()
            .map(|s| format!("{} {} {:?}", s.suite, s.components.join("+"), s.signed_by))
            .collect();
        insta::assert_snapshot!(short.join("\n"), @r#"
        bookworm main+contrib Some("/etc/key.gpg")
        bookworm-backports main None
        "#);
        assert_eq!(with_backports(&parse_one_line("deb http://v.example stable main"), "bookworm"), None);
    }

    #[test]
    fn madison_names_the_suite_of_every_offer() {
        let text = "qemu-utils | 1:7.2+dfsg-7+deb12u18 | http://mirror.example/debian bookworm/main amd64 Packages\n\
            qemu-utils | 1:7.2+dfsg-7 | http://mirror.example/debian bookworm/main Sources\nW: noise\n";
        let offers = parse_madison(text);
        assert_eq!(offers.len(), 1);
        assert_eq!(
            (offers[0].version.as_str(), offers[0].suite.as_str()),
            ("1:7.2+dfsg-7+deb12u18", "bookworm")
        );
    }

    #[test]
    fn only_whole_installations_count() {
        let text = "gcc\t4:12.2.0-3\tii \nremoved\t1\trc \nhalf\t1\tiU \nheld\t2\thi \n";
        assert_eq!(parse_dpkg(text).into_keys().collect::<Vec<_>>(), ["gcc", "held"]);
    }

    #[test]
    fn versions_sort_as_debian_sorts_them() {
        let rising = [
            "1.0~rc1",
            "1.0",
            "1.0-1",
            "1.0-1+b3",
            "1.0-1.1",
            "1.0+dfsg-1",
            "1.9",
            "1.10",
            "2.0",
            "1:0.1",
            "1:7.2+dfsg-7+deb12u18",
            "1:10.0.2+ds-2+deb13u1~bpo12+1",
            "1:10.0.2+ds-2+deb13u1",
        ];
        for (i, a) in rising.iter().enumerate() {
            for (j, b) in rising.iter().enumerate() {
                assert_eq!(compare_versions(a, b), i.cmp(&j), "{a} against {b}");
            }
        }
        assert_eq!(compare_versions("1.00", "1.0"), Ordering::Equal);
    }

    proptest::proptest! {
        #[test]
        fn foreign_text_never_panics(text in "[ -~\t\n|:\\[\\]#~é]{0,200}") {
            parse_one_line(&text);
            parse_deb822(&text);
            parse_madison(&text);
            parse_dpkg(&text);
            let (a, b) = text.split_at(text.char_indices().nth(text.chars().count() / 2).map_or(0, |(i, _)| i));
            proptest::prop_assert_eq!(compare_versions(a, b), compare_versions(b, a).reverse());
        }
    }
}
