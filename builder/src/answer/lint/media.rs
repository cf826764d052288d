//! What the medium at hand does not have.

use super::super::finding::{Finding, shown};
use super::super::read::Element;
use super::super::tables;
use super::structure::placeholder;
use super::{Component, File};
use crate::diagnostic::nearest;
use crate::media::wim::WimImage;
use crate::media::{Channel, Media};

/// Every claim of the file about the medium.
pub(super) fn check(file: &File<'_>, media: &Media, findings: &mut Vec<Finding>) {
    architecture(file, media, findings);
    for setup in file.of_pass("windowsPE", "Setup") {
        let image = chosen(setup, media, findings);
        key(setup, image, media, findings);
        languages(file, image, media, findings);
    }
}

fn architecture(file: &File<'_>, media: &Media, findings: &mut Vec<Finding>) {
    let arch = media.architecture.as_str();
    for component in file.components.iter().filter(|component| component.pass == "windowsPE") {
        let written = component.element.attribute("processorArchitecture").unwrap_or_default();
        let also = |other: &Component<'_>| {
            (other.pass, other.name) == (component.pass, component.name)
                && other
                    .element
                    .attribute("processorArchitecture")
                    .is_some_and(|a| a.eq_ignore_ascii_case(arch))
        };
        if !written.eq_ignore_ascii_case(arch) && !file.components.iter().any(also) {
            let what = format!("{} is for {}, and the medium is {arch}", component.name, shown(written));
            let finding = Finding::error(component.element.at(), "media-architecture", what);
            findings.push(
                finding.why("Setup leaves it out").fix(format!("write processorArchitecture=\"{arch}\"")),
            );
        }
    }
}

/// The image that the file asks for.
fn chosen<'m>(setup: Component<'_>, media: &'m Media, findings: &mut Vec<Finding>) -> Option<&'m WimImage> {
    let images = &media.images;
    let mut found = if images.len() == 1 { images.first() } else { None };
    let from = setup.element.path("ImageInstall/OSImage/InstallFrom");
    for data in from.into_iter().flat_map(|from| from.all("MetaData")) {
        let (key, value) =
            (data.text_at("Key").unwrap_or_default(), data.text_at("Value").unwrap_or_default());
        if placeholder(value) {
            continue;
        }
        let by: fn(&WimImage, &str) -> bool = match key.to_ascii_uppercase().as_str() {
            "/IMAGE/INDEX" => |image, value| value.parse() == Ok(image.index),
            "/IMAGE/NAME" => |image, value| image.name.eq_ignore_ascii_case(value),
            _ => continue,
        };
        found = images.iter().find(|image| by(image, value));
        if found.is_none() {
            missing(data, value, images, findings);
        }
    }
    found
}

fn missing(data: Element<'_>, value: &str, images: &[WimImage], findings: &mut Vec<Finding>) {
    let what = format!("the medium has no image '{}'", shown(value));
    let names: Vec<String> = images.iter().map(|image| format!("{} {}", image.index, image.name)).collect();
    let near = nearest(value, images.iter().map(|image| image.name.as_str()));
    let fix = near
        .map_or_else(|| format!("it has: {}", names.join("; ")), |near| format!("did you mean '{near}'?"));
    findings.push(
        Finding::error(data.at(), "media-image", what).why("Setup stops: no images are available").fix(fix),
    );
}

fn key(setup: Component<'_>, image: Option<&WimImage>, media: &Media, findings: &mut Vec<Finding>) {
    let Some(key) = setup.element.path("UserData/ProductKey/Key").filter(|key| !key.text().is_empty()) else {
        return;
    };
    if media.channel == Channel::Evaluation {
        let finding = Finding::error(key.at(), "media-key", "the medium is an evaluation, and takes no key");
        findings
            .push(finding.why("Setup says that the key does not fit, and stops").fix("remove <ProductKey>"));
        return;
    }
    let of_key = tables::editions()
        .filter(|edition| {
            [edition.install_key, edition.kms_key]
                .into_iter()
                .flatten()
                .any(|known| known.eq_ignore_ascii_case(key.text()))
        })
        .map(|edition| edition.id)
        .collect::<Vec<_>>();
    let Some(edition) = image.and_then(|image| image.edition_id.as_deref()) else { return };
    if !of_key.is_empty() && !of_key.contains(&edition) {
        let what = format!("the key is one of {}, and the image is {edition}", of_key[0]);
        let finding = Finding::error(key.at(), "key-edition", what);
        findings.push(
            finding
                .why("Setup then finds no licence terms and stops")
                .fix(format!("use the public key of {edition}, or none")),
        );
    }
}

fn languages(file: &File<'_>, image: Option<&WimImage>, media: &Media, findings: &mut Vec<Finding>) {
    let has = |list: &[String], language: &str| list.iter().any(|known| known.eq_ignore_ascii_case(language));
    for component in file.of_pass("windowsPE", "International-Core-WinPE") {
        if let Some(setup) =
            component.element.path("SetupUILanguage/UILanguage").filter(|setup| !placeholder(setup.text()))
            && !setup.text().is_empty()
            && !media.setup_languages.is_empty()
            && !has(&media.setup_languages, setup.text())
        {
            let what = format!("Setup on this medium does not speak {}", shown(setup.text()));
            let fix = format!("it speaks: {}", media.setup_languages.join(", "));
            findings.push(
                Finding::error(setup.at(), "media-language", what)
                    .why("Setup asks for a language, and waits")
                    .fix(fix),
            );
        }
    }
    let Some(image) = image.filter(|image| !image.languages.is_empty()) else { return };
    for component in file.of("International-Core-WinPE").chain(file.of("International-Core")) {
        let Some(ui) = component.element.child("UILanguage").filter(|ui| !ui.text().is_empty()) else {
            continue;
        };
        if !placeholder(ui.text()) && !has(&image.languages, ui.text()) {
            let what = format!("the Windows on this medium does not speak {}", shown(ui.text()));
            let fix = format!("it speaks: {}", image.languages.join(", "));
            findings.push(Finding::error(ui.at(), "media-language", what).fix(fix));
        }
    }
}
