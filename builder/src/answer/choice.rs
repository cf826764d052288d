//! From recipe and media to settings: which image, which language, which key; all of it before anything is started.

use super::settings::{Arch, Image, Settings};
use super::tables;
use crate::diagnostic::{Kind, Problem, Problems};
use crate::media::wim::WimImage;
use crate::media::{Channel, Media, Mismatch, Wanted};
use crate::plan::DiskBus;
use crate::recipe::{MachineAsk, Recipe, Windows};
use crate::secret::Secret;

/// What belongs to one build only, and to no recipe: an instance gets its own.
#[derive(Clone, Debug)]
pub struct BuildOnly {
    /// Random.
    pub password: Secret,
    /// At most 15 characters.
    pub computer_name: String,
}

impl BuildOnly {
    /// A new one.
    ///
    /// # Errors
    /// When the system has no random bytes.
    pub fn random() -> std::io::Result<Self> {
        let name = Secret::throw_away()?.reveal()[2..10].to_ascii_uppercase();
        Ok(Self { password: Secret::throw_away()?, computer_name: format!("NO43-{name}") })
    }
}

/// How many times Windows logs on by itself: once for each restart that a set-up plan may take, and one more. The guest
/// program ends it when the plan is done.
const AUTOLOGONS: u32 = 20;
/// Where no media are known, this is what Setup speaks.
const FALLBACK_LANGUAGE: &str = "en-US";

/// Everything that the answer file of `recipe` says; `media` is what [`crate::media::inspect()`] found, or `None` to see a
/// draft: then the image is chosen by its name, and the language is the recipe's or English.
///
/// # Errors
/// What the media do not have, with the line of the recipe that asks for it. [`Kind::Conflict`] without a place if the recipe
/// is not one of a Windows guest.
pub fn settings_for(recipe: &Recipe, media: Option<&Media>, build: BuildOnly) -> Result<Settings, Problems> {
    let Some(windows) = &recipe.guest.windows else {
        let what = format!("{} is installed without an answer file", recipe.guest.os);
        return Err(Problem::new(Kind::Conflict, "guest.os", what)
            .fix("only Windows guests have one")
            .into());
    };
    let Some(user) = &recipe.guest.user else {
        return Err(Problem::new(Kind::Missing, "guest.user", "Windows needs a user").into());
    };
    let image = match media {
        Some(media) => image(windows, media)?,
        None => None,
    };
    let language = language(windows, image);
    let locale = windows.locale.clone().unwrap_or_else(|| language.clone());
    let asked = windows.keyboard.as_deref().unwrap_or(&locale);
    let keyboard = tables::input_locale(asked, &locale).unwrap_or_else(|| locale.clone());
    Ok(Settings {
        arch: match media.map(|media| media.architecture.as_str()) {
            Some("arm64") => Arch::Arm64,
            _ => Arch::Amd64,
        },
        setup_language: setup_language(&language, media),
        locale,
        keyboard,
        timezone: windows.timezone.clone(),
        image: match image {
            Some(image) => Image::Index(image.index),
            None => Image::Name(image_name(windows)),
        },
        product_key: product_key(windows, media),
        target_disk: target_disk(&recipe.machine),
        skip_hardware_checks: skip_hardware_checks(windows, &recipe.machine),
        language,
        computer_name: build.computer_name,
        user: user.name.clone(),
        password: build.password,
        autologons: AUTOLOGONS,
        rdp: windows.rdp,
        updates: windows.updates,
    })
}

/// The image that the recipe asks for, and everything that the medium cannot give.
fn image<'m>(windows: &Windows, media: &'m Media) -> Result<Option<&'m WimImage>, Problems> {
    let wanted = Wanted {
        os: Some(windows.release.word()),
        edition: Some(&windows.edition),
        language: windows.language.as_deref(),
        product_key: windows.product_key.is_some(),
    };
    let mut problems = Problems::default();
    for Mismatch { key, what, fix } in media.check(wanted) {
        let spots = &windows.spots;
        let spot = [&spots.os, &spots.edition, &spots.language, &spots.product_key, &spots.iso];
        let place = spot.into_iter().find(|spot| spot.key == key).and_then(|spot| spot.place.clone());
        problems.push(Problem::new(Kind::Conflict, key, what).at(place).fix(fix));
    }
    problems.into_result()?;
    Ok(media.image(&windows.edition))
}

fn language(windows: &Windows, image: Option<&WimImage>) -> String {
    let first =
        |image: &WimImage| image.default_language.clone().or_else(|| image.languages.first().cloned());
    let asked = windows.language.clone().or_else(|| image.and_then(first));
    asked.unwrap_or_else(|| FALLBACK_LANGUAGE.to_owned())
}

/// Setup must be told a language that it has, or it asks.
fn setup_language(language: &str, media: Option<&Media>) -> String {
    let has = media.map_or(&[][..], |media| &media.setup_languages);
    let same = has.iter().find(|has| has.eq_ignore_ascii_case(language));
    same.or(has.first()).cloned().unwrap_or_else(|| language.to_owned())
}

fn image_name(windows: &Windows) -> String {
    let suffix = windows
        .release
        .editions()
        .find(|edition| edition.id == windows.edition)
        .map(|edition| edition.suffix);
    format!("{} {}", windows.release.product(), suffix.unwrap_or(&windows.edition))
}

/// Evaluation media want no key at all; retail media want the public install key, or Setup asks which edition is meant;
/// volume media take the public client key, or none.
fn product_key(windows: &Windows, media: Option<&Media>) -> Option<String> {
    let edition =
        windows.release.editions().find(|edition| edition.id.eq_ignore_ascii_case(&windows.edition))?;
    let key = match media.map_or(Channel::Unknown, |media| media.channel) {
        Channel::Evaluation => None,
        Channel::Volume => edition.kms_key,
        Channel::Retail | Channel::Unknown => edition.install_key.or(edition.kms_key),
    };
    key.map(str::to_owned)
}

/// The number that Windows gives to the disk that is installed to.
///
/// WinPE counts disks in the order in which their drivers start. It has drivers for SATA, NVMe and USB, and SATA and NVMe
/// start before USB: the target is 0 and the set-up disk (USB) is 1. A virtio disk shows itself only after its driver was
/// loaded from the set-up disk, so it comes last: 1. Not verified with a real Windows. The set-up disk is writable, because
/// Setup looks at writable removable media first and the guest program removes secrets from it; it is made anew for each
/// build, so a wrong number costs a failed installation and nothing else.
fn target_disk(machine: &MachineAsk) -> u32 {
    match machine.disk_bus {
        DiskBus::Virtio => 1,
        DiskBus::Ahci | DiskBus::Nvme => 0,
    }
}

/// Only Windows 11 and its relatives ask; and only a machine that has no TPM or no Secure Boot needs the bypass.
fn skip_hardware_checks(windows: &Windows, machine: &MachineAsk) -> bool {
    let secure = machine.firmware == crate::plan::Firmware::UefiSecure;
    windows.release == crate::recipe::Release::Windows11 && !(machine.tpm && secure)
}
