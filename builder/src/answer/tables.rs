//! The tables under `data/`: which component is legal where, and what Windows calls time zones, locales, keyboards and editions.
//!
//! Each file names its source and date. They are small, and searched line by line.

use std::sync::LazyLock;

/// The configuration passes, in the order in which Setup runs them.
pub const PASSES: [&str; 7] =
    ["windowsPE", "offlineServicing", "generalize", "specialize", "auditSystem", "auditUser", "oobeSystem"];

/// Rows of a table: comments and the head left out.
type Rows = Vec<Vec<&'static str>>;

fn rows(text: &'static str) -> Rows {
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).skip(1);
    lines.map(|line| line.split('\t').collect()).collect()
}

macro_rules! table {
    ($name:ident, $file:literal) => {
        static $name: LazyLock<Rows> = LazyLock::new(|| rows(include_str!(concat!("data/", $file))));
    };
}

table!(COMPONENTS, "components.tsv");
table!(TIME_ZONES, "timezones.tsv");
table!(IANA, "iana.tsv");
table!(LOCALES, "locales.tsv");
table!(KEYBOARDS, "keyboards.tsv");
table!(EDITIONS, "editions.tsv");
table!(REGISTRY, "registry.tsv");
table!(SETTINGS, "settings.tsv");

fn find(rows: &'static Rows, name: &str) -> Option<&'static [&'static str]> {
    rows.iter().find(|row| row[0].eq_ignore_ascii_case(name)).map(Vec::as_slice)
}

/// A component with its listed spelling and the passes in which it is legal; names are compared without case, because public
/// files have both `PnpSysprep` and `PnPSysprep`.
pub(super) fn component(name: &str) -> Option<(&'static str, Vec<&'static str>)> {
    find(&COMPONENTS, name).map(|row| (row[0], row[1].split(',').collect()))
}

/// All components.
pub(super) fn component_names() -> impl Iterator<Item = &'static str> {
    COMPONENTS.iter().map(|row| row[0])
}

/// Components that only Windows 8.1 and older have: nothing to complain about in a file for such a Windows.
const OLD_COMPONENTS: &[&str] = &[
    "Microsoft-Windows-Security-Licensing-SLC",
    "Microsoft-Windows-Security-Licensing-SLC-UX",
    "Microsoft-Windows-MultilingualUserInterface",
    "Microsoft-Windows-Sidebar",
    "Microsoft-Windows-WindowsMediaPlayer-Core",
    "Microsoft-Windows-Games-Explorer",
];

pub(super) fn is_old_component(name: &str) -> bool {
    OLD_COMPONENTS.iter().any(|old| old.eq_ignore_ascii_case(name))
}

/// One setting of a component.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Setting {
    pub(super) component: &'static str,
    /// `DiskConfiguration/Disk/DiskID`
    pub(super) path: &'static str,
    /// As `settings.tsv` explains.
    pub(super) kind: &'static str,
    /// Empty: wherever the component is legal.
    pub(super) passes: Vec<&'static str>,
    /// Empty: it is not.
    pub(super) deprecated: &'static str,
}

impl Setting {
    /// An item of a list, of which there may be several.
    pub(super) fn is_item(&self) -> bool {
        self.kind == "*"
    }

    /// The last part of the path.
    pub(super) fn last(&self) -> &'static str {
        self.path.rsplit('/').next().unwrap_or(self.path)
    }
}

static ALL_SETTINGS: LazyLock<Vec<Setting>> = LazyLock::new(|| {
    let setting = |row: &Vec<&'static str>| Setting {
        component: row[0],
        path: row[1],
        kind: row[2],
        passes: row[3].split(',').filter(|pass| !pass.is_empty()).collect(),
        deprecated: row[4],
    };
    SETTINGS.iter().map(setting).collect()
});

/// Every setting in the table.
pub(super) fn all_settings() -> impl Iterator<Item = &'static Setting> {
    ALL_SETTINGS.iter()
}

/// Those of one component.
pub(super) fn settings_of(component: &str) -> impl Iterator<Item = &'static Setting> {
    all_settings().filter(move |setting| setting.component == component)
}

/// One setting.
pub(super) fn setting(component: &str, path: &str) -> Option<&'static Setting> {
    settings_of(component).find(|setting| setting.path == path)
}

/// The Windows name of a time zone, given that name or an IANA one such as `Europe/Paris`.
#[must_use]
pub fn time_zone(name: &str) -> Option<&'static str> {
    find(&TIME_ZONES, name).map(|row| row[0]).or_else(|| find(&IANA, name).map(|row| row[1]))
}

/// Is this a name that Windows itself takes?
pub(super) fn is_windows_zone(name: &str) -> bool {
    find(&TIME_ZONES, name).is_some()
}

/// The names that Windows itself takes.
pub(super) fn windows_zones() -> impl Iterator<Item = &'static str> {
    TIME_ZONES.iter().map(|row| row[0])
}

/// Every name of a time zone that [`time_zone`] takes.
pub fn time_zone_names() -> impl Iterator<Item = &'static str> {
    TIME_ZONES.iter().chain(IANA.iter()).map(|row| row[0])
}

/// What Windows knows about a locale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Locale {
    /// Such as `fr-FR`, in the usual spelling.
    pub name: &'static str,
    /// Four hexadecimal digits; `None` where Windows has no number of its own for it.
    pub lcid: Option<&'static str>,
    /// The keyboard that comes with it.
    pub keyboard: Option<&'static str>,
    /// Windows itself is sold in this language.
    pub ui: bool,
}

/// A locale by its name.
#[must_use]
pub fn locale(name: &str) -> Option<Locale> {
    find(&LOCALES, name).map(locale_of)
}

/// All locales.
pub fn locales() -> impl Iterator<Item = Locale> {
    LOCALES.iter().map(|row| locale_of(row))
}

fn locale_of(row: &[&'static str]) -> Locale {
    let filled = |text: &'static str| Some(text).filter(|text| !text.is_empty());
    Locale { name: row[0], lcid: filled(row[1]), keyboard: filled(row[2]), ui: row[3] == "ui" }
}

/// Is this the number of a keyboard layout, such as `0000040c`?
pub(super) fn is_keyboard(id: &str) -> bool {
    find(&KEYBOARDS, id).is_some()
}

/// The keyboards' names.
pub fn keyboard_names() -> impl Iterator<Item = &'static str> {
    KEYBOARDS.iter().map(|row| row[1])
}

/// What an answer file calls a keyboard: from a locale (`fr-FR`), a layout's number (`0000040c`) or name, or the full
/// `040c:0000040c`. `beside` is the locale that it stands beside.
#[must_use]
pub fn input_locale(asked: &str, beside: &str) -> Option<String> {
    let lcid = locale(beside).and_then(|locale| locale.lcid);
    let with = |layout: &str| Some(format!("{}:{layout}", lcid.unwrap_or(&layout[4..])));
    if let Some(locale) = locale(asked) {
        return Some(match (locale.lcid, locale.keyboard) {
            (Some(lcid), Some(keyboard)) => format!("{lcid}:{keyboard}"),
            _ => locale.name.to_owned(),
        });
    }
    if let Some((lcid, layout)) = asked.split_once(':') {
        let good = lcid.len() == 4 && lcid.bytes().all(|b| b.is_ascii_hexdigit());
        return (good && is_keyboard(layout)).then(|| asked.to_ascii_lowercase());
    }
    let row = KEYBOARDS
        .iter()
        .find(|row| row[0].eq_ignore_ascii_case(asked) || row[1].eq_ignore_ascii_case(asked))?;
    with(row[0])
}

/// One edition of one release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edition {
    /// `client`, or such as `server-2022`.
    pub family: &'static str,
    /// Such as `Professional`.
    pub id: &'static str,
    /// What follows the product's name in an image's name, such as `Pro`.
    pub suffix: &'static str,
    /// Chooses this edition in Setup; activates nothing.
    pub install_key: Option<&'static str>,
    /// For activation by a company's own server.
    pub kms_key: Option<&'static str>,
}

/// All editions.
pub fn editions() -> impl Iterator<Item = Edition> {
    let filled = |text: &'static str| Some(text).filter(|text| !text.is_empty());
    EDITIONS.iter().map(move |row| Edition {
        family: row[0],
        id: row[1],
        suffix: row[2],
        install_key: filled(row[3]),
        kms_key: filled(row[4]),
    })
}

/// The edition of an image with an English name such as `Windows 10 Pro` or `Windows Server 2022 SERVERSTANDARD`.
pub(super) fn edition_of_image(name: &str) -> Option<Edition> {
    let lower = name.to_ascii_lowercase();
    let families = [
        ("windows 10 ", "client"),
        ("windows 11 ", "client"),
        ("windows server 2019 ", "server-2019"),
        ("windows server 2022 ", "server-2022"),
        ("windows server 2025 ", "server-2025"),
    ];
    let (rest, family) =
        families.into_iter().find_map(|(product, family)| Some((lower.strip_prefix(product)?, family)))?;
    let fits = |edition: &Edition| {
        let suffix = edition.suffix.to_ascii_lowercase();
        // "Enterprise LTSC 2021", "Standard (Desktop Experience)", "SERVERSTANDARDCORE".
        rest == suffix
            || rest.strip_prefix(&suffix).is_some_and(|more| more.trim_start().starts_with(['(', '2']))
            || rest
                .strip_prefix(&edition.id.to_ascii_lowercase())
                .is_some_and(|more| matches!(more, "" | "core"))
    };
    editions().filter(|edition| edition.family == family).find(fits)
}

/// Client keys of releases that have no row (Windows 7 to 8.1, older servers), as public answer files use them.
#[rustfmt::skip]
const OLD_PUBLIC_KEYS: &[&str] = &[
    "33PXH-7Y6KF-2VJC9-XBBR8-HVTHH", "D2N9P-3P6X9-2R39C-7RTCD-MDVJX", "GCRJD-8NW9H-F2CDX-CCM8D-9D6T9",
    "MHF9N-XY6XB-WVXMC-BTDCT-MKKG7", "XC9B7-NBPP2-83J2H-RHMBY-92BT4", "YC6KT-GKW9T-YTKYR-T4X34-R7VHC",
    "WC2BQ-8NRM3-FDDYY-2BFGV-KHKQY", "CB7KF-BWN84-R7R2Y-793K2-8XDDG",
];

pub(super) fn is_public_key(key: &str) -> bool {
    OLD_PUBLIC_KEYS.iter().any(|known| known.eq_ignore_ascii_case(key))
}

/// One registry value that the answer file sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RegistryValue {
    pub(super) key: &'static str,
    pub(super) value: &'static str,
    pub(super) kind: &'static str,
    pub(super) data: &'static str,
    pub(super) why: &'static str,
}

/// The values of one group, such as `always`.
pub(super) fn registry(group: &str) -> impl Iterator<Item = RegistryValue> {
    REGISTRY.iter().filter(move |row| row[0] == group).map(|row| RegistryValue {
        key: row[1],
        value: row[2],
        kind: row[3],
        data: row[4],
        why: row[5],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_has_all_its_columns_and_no_name_is_there_twice() {
        let tables: [(&Rows, usize); 8] = [
            (&COMPONENTS, 2),
            (&TIME_ZONES, 2),
            (&IANA, 2),
            (&LOCALES, 5),
            (&KEYBOARDS, 2),
            (&EDITIONS, 5),
            (&REGISTRY, 7),
            (&SETTINGS, 5),
        ];
        for (table, columns) in tables {
            assert!(table.len() > 15);
            assert!(table.iter().all(|row| row.len() == columns && !row[0].is_empty()), "{:?}", table[0]);
        }
        for table in [&COMPONENTS, &TIME_ZONES, &IANA, &LOCALES, &KEYBOARDS] {
            let mut names: Vec<String> = table.iter().map(|row| row[0].to_lowercase()).collect();
            names.sort();
            assert_eq!(names.windows(2).find(|pair| pair[0] == pair[1]), None);
        }
    }

    #[test]
    fn tables_agree_with_each_other() {
        assert_eq!(IANA.iter().find(|row| !is_windows_zone(row[1])), None);
        assert!(locales().all(|locale| locale.keyboard.is_none_or(is_keyboard)));
        let passes = COMPONENTS.iter().flat_map(|row| row[1].split(','));
        assert_eq!(passes.into_iter().find(|pass| !PASSES.contains(pass)), None);
        assert_eq!(locales().filter(|locale| locale.ui).count(), 38);
    }

    #[test]
    fn time_zones_by_either_name() {
        assert_eq!(time_zone("Europe/Paris"), Some("Romance Standard Time"));
        assert_eq!(time_zone("romance standard time"), Some("Romance Standard Time"));
        assert_eq!(time_zone("Etc/UTC"), Some("UTC"));
        // Renamed in 2026; an ISO of 2023 knows only the older name.
        assert_eq!(time_zone("America/Vancouver"), Some("Pacific Standard Time"));
        assert_eq!(time_zone("Europe/Pariss"), None);
    }

    #[test]
    fn keyboards_by_locale_number_or_name() {
        let keyboard = |asked| input_locale(asked, "fr-FR");
        assert_eq!(keyboard("fr-FR").as_deref(), Some("040c:0000040c"));
        assert_eq!(keyboard("de-CH").as_deref(), Some("0807:00000807"));
        assert_eq!(keyboard("00000409").as_deref(), Some("040c:00000409"));
        assert_eq!(keyboard("French (Standard, BÉPO)").as_deref(), Some("040c:0002040c"));
        assert_eq!(keyboard("0409:0000040C").as_deref(), Some("0409:0000040c"));
        assert_eq!(keyboard("sr-Latn-RS").as_deref(), Some("sr-Latn-RS"));
        assert_eq!(keyboard("fr"), None);
        assert_eq!(keyboard("0409:99999999"), None);
    }
}
