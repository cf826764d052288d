//! Answer files from recipes and media: what is in them, what is not, and what the media forbid.

use std::fs;

use proptest::prelude::*;

use super::*;
use crate::diagnostic::Problems;
use crate::media::wim::WimImage;
use crate::media::{Channel, Media};
use crate::recipe::{self, Recipe};
use crate::secret::Secret;

pub(super) const PLAYER: &str = r#"
name = "player"
[guest]
os       = "windows10"
language = "fr-FR"
timezone = "Europe/Paris"
hostname = "SALON"
user     = { name = "Élodie", password = { env = "NO43_TEST_PASSWORD" } }
product-key = { env = "NO43_TEST_KEY" }
[inputs]
iso    = { path = "win10.iso" }
virtio = { path = "virtio-win.iso" }
"#;

pub(super) fn load(text: &str, sets: &[&str]) -> Result<Recipe, Problems> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("player.toml");
    fs::write(&path, text).unwrap();
    let sets: Vec<String> = sets.iter().map(ToString::to_string).collect();
    recipe::load(&path, &sets).map(|resolved| resolved.recipe)
}

fn complaint(text: &str, sets: &[&str]) -> String {
    plain(&load(text, sets).expect_err("something should be wrong with it"))
}

/// Without the temporary folder's name.
fn plain(problems: &Problems) -> String {
    let text = problems.to_string();
    let line = |line: &str| match line.find("/player.toml:") {
        Some(at) => line[at + 1..].to_owned(),
        None => line.to_owned(),
    };
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

pub(super) fn media(product: &str, build: u32, language: &str, editions: &[(&str, &str)]) -> Media {
    let image = |(n, (id, suffix)): (usize, &(&str, &str))| WimImage {
        index: u32::try_from(n).unwrap() + 1,
        name: format!("{product} {suffix}"),
        edition_id: Some((*id).to_owned()),
        installation_type: Some(if product.contains("Server") { "Server" } else { "Client" }.to_owned()),
        arch: Some("amd64".to_owned()),
        version: Some(format!("10.0.{build}.1")),
        languages: vec![language.to_owned()],
        default_language: Some(language.to_owned()),
        bytes: None,
    };
    Media {
        label: "TEST".to_owned(),
        bytes: 5 << 30,
        architecture: "amd64".to_owned(),
        channel: Channel::Retail,
        evaluation_days: None,
        install_file: "sources/install.wim".to_owned(),
        esd: false,
        setup_languages: vec![language.to_owned()],
        boot_signers: Vec::new(),
        images: editions.iter().enumerate().map(image).collect(),
    }
}

pub(super) fn windows10() -> Media {
    media(
        "Windows 10",
        19045,
        "fr-FR",
        &[("Core", "Famille"), ("CoreN", "Famille N"), ("Professional", "Professionnel")],
    )
}

pub(super) fn build_only() -> BuildOnly {
    BuildOnly { password: Secret::new("N-test".to_owned()), computer_name: "NO43-TEST".to_owned() }
}

fn settings(sets: &[&str], media: &Media) -> Settings {
    settings_for(&load(PLAYER, sets).unwrap_or_else(|p| panic!("{p}")), Some(media), build_only())
        .unwrap_or_else(|p| panic!("{p}"))
}

fn refused(sets: &[&str], media: &Media) -> String {
    let recipe = load(PLAYER, sets).unwrap_or_else(|p| panic!("{p}"));
    plain(&settings_for(&recipe, Some(media), build_only()).unwrap_err())
}

#[test]
fn the_whole_answer_file_of_a_player() {
    insta::assert_snapshot!(settings(&["remote.rdp=true"], &windows10()).render_shown());
}

#[test]
fn nothing_of_the_recipes_own_secrets_and_name_is_in_it() {
    let settings = settings(&[], &windows10());
    let text = settings.render();
    assert!(!text.contains("SALON") && text.contains("NO43-TEST"));
    // The password is the build's own, hidden as Windows hides it, and the key is the public one.
    assert!(text.contains(&password::encode("N-test", "Password")));
    assert!(text.contains("VK7JG-NPHTM-C97JM-9MPGT-3V66T"));
    assert!(!settings.render_shown().contains(&password::encode("N-test", "Password")));
    assert!(!format!("{settings:?}").contains("N-test"));
    let [a, b] = [BuildOnly::random().unwrap(), BuildOnly::random().unwrap()];
    assert!(a.password != b.password && a.computer_name != b.computer_name);
    assert_eq!(recipe::computer_name_fault(&a.computer_name), None);
}

#[test]
fn the_key_follows_the_kind_of_media() {
    let key = |channel, sets: &[&str], media: Media| {
        settings(sets, &Media { channel, ..media }).product_key.unwrap_or("none".to_owned())
    };
    assert_eq!(key(Channel::Retail, &["guest.edition=Core"], windows10()), "YTMG3-N6DKC-DKB77-7M9GH-8HVX7");
    assert_eq!(key(Channel::Unknown, &[], windows10()), "VK7JG-NPHTM-C97JM-9MPGT-3V66T");
    assert_eq!(key(Channel::Volume, &[], windows10()), "W269N-WFGWX-YVC9B-4J6C9-T83GX");
    assert_eq!(key(Channel::Volume, &["guest.edition=Core"], windows10()), "none");
    let mut evaluation = media("Windows 10", 19045, "fr-FR", &[("EnterpriseEval", "Enterprise Evaluation")]);
    evaluation.channel = Channel::Evaluation;
    let sets = ["guest.edition=EnterpriseEval"];
    assert!(refused(&sets, &evaluation).contains("guest.product-key"));
    let no_key = PLAYER.replace("product-key", "# product-key");
    let recipe = load(&no_key, &sets).unwrap_or_else(|p| panic!("{p}"));
    assert_eq!(settings_for(&recipe, Some(&evaluation), build_only()).unwrap().product_key, None);
    let server = media("Windows Server 2022", 20348, "fr-FR", &[("ServerStandard", "Standard")]);
    assert_eq!(
        key(Channel::Retail, &["guest.os=windows-server-2022"], server),
        "VDYBN-27WPP-V4HQT-9VMD4-VMK7H"
    );
}

#[test]
fn a_server_with_a_desktop_before_one_without() {
    let mut server = media(
        "Windows Server 2022",
        20348,
        "fr-FR",
        &[("ServerStandard", "Core"), ("ServerStandard", "Desktop")],
    );
    server.images[0].installation_type = Some("Server Core".to_owned());
    assert_eq!(settings(&["guest.os=windows-server-2022"], &server).image, Image::Index(2));
}

#[test]
fn the_target_and_the_bypass_follow_the_machine() {
    let windows11 = media("Windows 11", 26200, "fr-FR", &[("Professional", "Pro")]);
    let of = |sets: &[&str]| {
        let settings = settings(&[&["guest.os=windows11"], sets].concat(), &windows11);
        (settings.target_disk, settings.skip_hardware_checks, settings.render().contains("LabConfig"))
    };
    assert_eq!(of(&[]), (1, false, false));
    assert_eq!(of(&["machine.tpm=false"]), (1, true, true));
    assert_eq!(of(&["machine.firmware=uefi"]), (1, true, true));
    assert_eq!(of(&["machine.disk-bus=ahci"]), (0, false, false));
    assert_eq!(of(&["machine.disk-bus=nvme"]), (0, false, false));
    assert!(!settings(&["machine.tpm=false"], &windows10()).skip_hardware_checks);
}

#[test]
fn updates_and_remote_desktop_are_off_unless_asked_for() {
    let text = |sets: &[&str]| settings(sets, &windows10()).render();
    let none = text(&[]);
    assert!(none.contains("NoAutoUpdate") && none.contains("DontSearchWindowsUpdate"));
    assert!(!none.contains("fDenyTSConnections") && !none.contains("FirewallGroup"));
    let all = text(&["updates.windows=all", "updates.driver=windows", "remote.rdp=true"]);
    assert!(!all.contains("NoAutoUpdate") && !all.contains("DontSearchWindowsUpdate"));
    assert!(all.contains("fDenyTSConnections"));
    assert!(text(&["updates.windows=security"]).contains("DeferFeatureUpdatesPeriodInDays"));
}

#[test]
fn what_the_medium_does_not_hold_is_named_before_anything_starts() {
    let eval = media("Windows 10", 19045, "fr-FR", &[("EnterpriseEval", "Entreprise")]);
    let windows11 = media("Windows 11", 26200, "fr-FR", &[("Professional", "Pro")]);
    let all = [
        refused(&["guest.edition=Enterprise"], &windows10()),
        refused(&["guest.edition=Enterprise"], &eval),
        refused(&["guest.language=de-DE"], &windows10()),
        refused(&[], &windows11),
        refused(&["guest.os=windows-server-2025"], &windows11),
    ];
    insta::assert_snapshot!(all.join("\n"));
}

#[test]
fn one_of_several_languages_of_a_medium() {
    let mut several = windows10();
    several.images[2].languages.push("de-DE".to_owned());
    several.setup_languages.push("de-DE".to_owned());
    let settings = settings(&["guest.language=de-DE", "guest.keyboard=de-CH"], &several);
    assert_eq!((settings.setup_language.as_str(), settings.language.as_str()), ("de-DE", "de-DE"));
    assert_eq!((settings.locale.as_str(), settings.keyboard.as_str()), ("de-DE", "0807:00000807"));
}

#[test]
fn without_media_a_draft_goes_by_names() {
    let recipe = load(PLAYER, &[]).unwrap();
    let draft = settings_for(&recipe, None, build_only()).unwrap();
    assert_eq!(draft.image, Image::Name("Windows 10 Pro".to_owned()));
    assert_eq!(draft.timezone, "Romance Standard Time");
}

#[test]
fn mistakes_in_a_windows_recipe_are_named_with_the_nearest_word() {
    let sets = [
        "guest.edition=Profesional",
        "guest.language=fr-FX",
        "guest.locale=fr-RF",
        "guest.keyboard=frFR",
        "guest.timezone=Europe/Pari",
        "guest.user.name=me<&>",
        "guest.hostname=a-very-long-name",
        "guest.packages=['vim']",
        "guest.user.sudo=true",
        "machine.disk=3 GiB",
        "machine.memory=512 MiB",
        "machine.firmware=bios",
        "machine.boot=direct",
    ];
    insta::assert_snapshot!(complaint(PLAYER, &sets));
    let bare = "guest.os = 'windows11'\nguest.edition = 'pro'\nmachine.disk-bus = 'ahci'";
    insta::assert_snapshot!(complaint(bare, &[]));
}

#[test]
fn names_that_windows_does_not_take() {
    let long = "x".repeat(21);
    let bad = ["", " ", "a/b", "a@b", "50%", "\"q\"", "a.", "Administrator", "NUL", &long, "a\u{7}b"];
    assert_eq!(bad.into_iter().filter(|name| recipe::user_name_fault(name).is_none()).count(), 0);
    for good in ["joueur", "Élodie", "O'Neill & Co", "名前", "a.b", "a^b"] {
        assert_eq!(recipe::user_name_fault(good), None);
    }
    for bad in ["", "SALON DE JEU", "12345", "-a", "a-", "é", "sixteen-letters-", "a_b"] {
        assert!(recipe::computer_name_fault(bad).is_some(), "{bad}");
    }
}

#[test]
fn keys_of_windows_are_refused_in_a_linux_recipe() {
    let text = "[guest]\nos = 'debian12'\nedition = 'Professional'\nhostname = 'x'\n[machine]\ntpm = true\nfirmware = 'uefi-secure'\ndisk-bus = 'nvme'\n[remote]\nrdp = true\n[updates]\nwindows = 'all'\n";
    insta::assert_snapshot!(complaint(text, &[]));
}

#[test]
fn paths_in_the_guest_are_of_its_kind() {
    let step = |to: &str| {
        format!(
            "\n[[step]]\ncopy = {{ from = 'x', to = '{to}' }}\n[[step]]\nwait-for = {{ file = '{to}' }}\n"
        )
    };
    load(&format!("{PLAYER}{}", step("C:\\Games\\x")), &[]).unwrap_or_else(|p| panic!("{p}"));
    let linux = "guest.os = 'debian12'".to_owned();
    load(&format!("{linux}{}", step("/opt/x")), &[]).unwrap_or_else(|p| panic!("{p}"));
    let wrong =
        [complaint(&format!("{PLAYER}{}", step("/opt/x")), &[]), complaint(&(linux + &step("C:\\x")), &[])];
    insta::assert_snapshot!(wrong.join("\n"));
}

/// The text of every element called `name`, as a reader of XML finds it.
fn texts(xml: &str, name: &str) -> Vec<String> {
    fn walk(element: read::Element<'_>, name: &str, found: &mut Vec<String>) {
        if element.name() == name {
            found.push(element.raw_text().to_owned());
        }
        element.children().for_each(|child| walk(child, name, found));
    }
    let (document, findings) = read::read(xml, Some(false));
    assert_eq!(findings, []);
    let mut found = Vec::new();
    walk(document.root().unwrap(), name, &mut found);
    found
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn what_goes_into_the_file_comes_out_equal(
        user in "[ -~<>&\"'%^\\]]{1,20}|\\PC{1,20}",
        word in "[<>&\"'%^;]{1,10}|\\PC{0,30}|[\\x00-\\x1f]{1,3}",
    ) {
        let mut settings = settings(&[], &windows10());
        settings.user = user.clone();
        settings.password = Secret::new(word.clone());
        let text = settings.render();
        prop_assert_eq!(texts(&text, "Name"), vec![user.clone()]);
        prop_assert_eq!(texts(&text, "Username"), vec![user]);
        let passwords = texts(&text, "Value");
        // The first Value is the image's index.
        for value in &passwords[1..] {
            prop_assert_eq!(password::decode(value, "Password"), Ok(word.clone()));
        }
        prop_assert_eq!(passwords.len(), 3);
    }
}
