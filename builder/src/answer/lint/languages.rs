//! Languages, formats, keyboards, time zones.

use super::super::finding::{Finding, shown};
use super::super::read::Element;
use super::super::tables;
use super::structure::placeholder;
use super::{File, meant};

/// Languages of both international components; and whether Setup would ask for its own.
pub(super) fn languages(file: &File<'_>, findings: &mut Vec<Finding>) {
    for component in file.of("International-Core-WinPE").chain(file.of("International-Core")) {
        for setting in ["UILanguage", "UILanguageFallback", "SetupUILanguage/UILanguage"] {
            component.element.path(setting).into_iter().for_each(|element| ui_language(element, findings));
        }
        for setting in ["SystemLocale", "UserLocale"] {
            component.element.child(setting).into_iter().for_each(|element| locale(element, findings));
        }
        component.element.child("InputLocale").into_iter().for_each(|element| keyboards(element, findings));
    }
    let winpe: Vec<_> = file.of_pass("windowsPE", "International-Core-WinPE").collect();
    let setup = file.of_pass("windowsPE", "Setup").next();
    let told = winpe.iter().any(|component| {
        component.element.text_at("SetupUILanguage/UILanguage").is_some_and(|text| !text.is_empty())
    });
    if let Some(place) = winpe.first().copied().or(setup).filter(|_| !told) {
        findings.push(
            Finding::note(place.element.at(), "setup-asks", "SetupUILanguage is not given")
                .why("Setup asks for its own language, and waits")
                .fix("add SetupUILanguage/UILanguage to Microsoft-Windows-International-Core-WinPE"),
        );
    }
}

fn ui_language(element: Element<'_>, findings: &mut Vec<Finding>) {
    let text = element.text();
    if text.is_empty() || placeholder(text) || tables::locale(text).is_some_and(|locale| locale.ui) {
        return;
    }
    let what = format!("Windows is not made in '{}'", shown(text));
    let names = || tables::locales().filter(|locale| locale.ui).map(|locale| locale.name);
    findings.push(match meant(text, names()) {
        Some(fix) if tables::locale(text).is_none() => {
            Finding::error(element.at(), "language", what).fix(fix)
        }
        // Language packs exist for more languages than media do.
        _ => Finding::warning(element.at(), "language", what)
            .fix("write a language of the medium, such as en-US"),
    });
}

fn locale(element: Element<'_>, findings: &mut Vec<Finding>) {
    let text = element.text();
    if text.is_empty() || placeholder(text) || tables::locale(text).is_some() || is_input_locale(text) {
        return;
    }
    let what = format!("there is no locale '{}'", shown(text));
    let fix = meant(text, tables::locales().map(|locale| locale.name));
    let fix = fix.unwrap_or_else(|| "write language and region, such as en-US".to_owned());
    findings.push(Finding::error(element.at(), "locale", what).fix(fix));
}

/// One or more, with ';' between.
fn keyboards(element: Element<'_>, findings: &mut Vec<Finding>) {
    let text = element.text();
    if placeholder(text) {
        return;
    }
    for part in text.split(';').map(str::trim).filter(|part| !part.is_empty()) {
        if tables::locale(part).is_some() || is_input_locale(part) {
            continue;
        }
        let what = format!("'{}' is no keyboard", shown(part));
        let fix = meant(part, tables::locales().map(|locale| locale.name));
        let fix = fix
            .unwrap_or_else(|| "write a locale (en-US), or language and layout (0409:00000409)".to_owned());
        findings.push(Finding::error(element.at(), "keyboard", what).fix(fix));
    }
}

/// `0409:00000409`, or an input method: `0411:{…}{…}`. A layout that the table does not have may be newer than it.
fn is_input_locale(text: &str) -> bool {
    let Some((language, layout)) = text.split_once(':') else {
        return text.len() == 4 && text.bytes().all(|b| b.is_ascii_hexdigit());
    };
    let hex = |part: &str, len| part.len() == len && part.bytes().all(|b| b.is_ascii_hexdigit());
    hex(language, 4) && (hex(layout, 8) || (layout.starts_with('{') && layout.ends_with('}')))
}

/// Names of time zones, in any pass.
pub(super) fn time_zones(file: &File<'_>, findings: &mut Vec<Finding>) {
    for zone in file.of("Shell-Setup").filter_map(|component| component.element.child("TimeZone")) {
        let text = zone.text();
        let plain = text.strip_suffix("_dstoff").unwrap_or(text);
        if text.is_empty() || placeholder(text) || tables::is_windows_zone(plain) {
            continue;
        }
        let what = format!("Windows has no time zone '{}'", shown(text));
        let fix = match tables::time_zone(text) {
            Some(windows) => format!("write {windows}"),
            None => {
                meant(text, tables::windows_zones()).unwrap_or_else(|| "write one of `tzutil /l`".to_owned())
            }
        };
        findings.push(Finding::error(zone.at(), "time-zone", what).fix(fix));
    }
}
