//! What a recipe asks for against what the medium holds; each mismatch says what there is instead.

use super::wim::WimImage;
use super::{Channel, Media, systems};
use crate::diagnostic::nearest;

/// What a recipe asks of a medium; what is `None` was not asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted<'a> {
    /// `guest.os`, such as `windows10`.
    pub os: Option<&'a str>,
    /// `guest.edition`, an edition id.
    pub edition: Option<&'a str>,
    /// `guest.language`, such as `fr-FR`.
    pub language: Option<&'a str>,
    /// The recipe has a product key of its own.
    pub product_key: bool,
}

/// One thing that the medium cannot give.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// The recipe's key that asks for it.
    pub key: &'static str,
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub fix: String,
}

/// Machines of this version have this architecture, as Windows names it.
const ARCHITECTURE: &str = "amd64";

impl Media {
    /// Everything of `wanted` that this medium cannot give.
    #[must_use]
    pub fn check(&self, wanted: Wanted<'_>) -> Vec<Mismatch> {
        let image = wanted.edition.and_then(|edition| self.image(edition));
        let found = [
            self.wrong_architecture(),
            wanted.os.and_then(|os| self.wrong_system(os)),
            wanted.edition.filter(|_| image.is_none()).map(|edition| self.no_edition(edition)),
            wanted.language.and_then(|language| self.no_language(language, image)),
            wanted.product_key.then(|| self.no_key()).flatten(),
        ];
        found.into_iter().flatten().collect()
    }

    fn wrong_architecture(&self) -> Option<Mismatch> {
        let what = format!("the media is Windows for {}, the machine is {ARCHITECTURE}", self.architecture);
        let fix = "take the ISO for x64".to_owned();
        (self.architecture != ARCHITECTURE).then_some(Mismatch { key: "inputs.iso", what, fix })
    }

    fn wrong_system(&self, os: &str) -> Option<Mismatch> {
        let wanted = systems::named(os)?;
        let build = self.images.first().and_then(WimImage::build).unwrap_or(0);
        let (name, fix) = match self.system() {
            Some(found) if found == wanted => return None,
            Some(found) => {
                (found.name.to_owned(), format!("write os = \"{}\", or take another ISO", found.os))
            }
            None => ("a Windows that this version does not know".to_owned(), "take another ISO".to_owned()),
        };
        let what = format!("the recipe says {}, the media is {name} (build {build})", wanted.name);
        Some(Mismatch { key: "guest.os", what, fix })
    }

    fn no_edition(&self, edition: &str) -> Mismatch {
        let ids = || self.images.iter().filter_map(|image| image.edition_id.as_deref());
        let held: Vec<String> = self.images.iter().map(WimImage::to_string).collect();
        let what = format!("the media has no edition '{edition}'; it holds {}", held.join(", "));
        let by_name = self.images.iter().find(|image| image.name.eq_ignore_ascii_case(edition));
        let near = by_name.and_then(|image| image.edition_id.as_deref());
        let fix = match near.or_else(|| nearest(edition, ids())).or_else(|| ids().next()) {
            Some(near) => format!("write edition = \"{near}\", or take another ISO"),
            None => "take another ISO".to_owned(),
        };
        Mismatch { key: "guest.edition", what, fix }
    }

    fn no_language(&self, language: &str, image: Option<&WimImage>) -> Option<Mismatch> {
        let holds = |languages: &[String]| languages.iter().any(|held| held.eq_ignore_ascii_case(language));
        let (whose, held) = match image.or(self.images.first()) {
            Some(image) if !holds(&image.languages) => (image.to_string(), &image.languages),
            _ if !holds(&self.setup_languages) => ("Setup".to_owned(), &self.setup_languages),
            _ => return None,
        };
        let said = if held.is_empty() { "no language".to_owned() } else { held.join(", ") };
        let what = format!("{language} is not on the media: {whose} has {said}");
        let fix = match held.first() {
            Some(first) => format!("write language = \"{first}\", or take the ISO in {language}"),
            None => format!("take the ISO in {language}"),
        };
        Some(Mismatch { key: "guest.language", what, fix })
    }

    fn no_key(&self) -> Option<Mismatch> {
        let what = "the media is an evaluation, which accepts no product key".to_owned();
        let fix = "remove the key, or take the retail or volume ISO that it is for".to_owned();
        (self.channel == Channel::Evaluation).then_some(Mismatch { key: "guest.product-key", what, fix })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn image(index: u32, name: &str, edition: &str) -> WimImage {
        WimImage {
            index,
            name: name.into(),
            edition_id: Some(edition.into()),
            languages: vec!["fr-FR".into()],
            version: Some("10.0.19045.2965".into()),
            ..WimImage::default()
        }
    }

    pub(in crate::media) fn media() -> Media {
        Media {
            label: "CCCOMA_X64FRE_FR-FR_DV9".into(),
            bytes: 6_000_000_000,
            architecture: "amd64".into(),
            channel: Channel::Retail,
            evaluation_days: None,
            install_file: "sources/install.wim".into(),
            esd: false,
            setup_languages: vec!["fr-FR".into()],
            boot_signers: vec![],
            images: vec![
                image(1, "Windows 10 Famille", "Core"),
                image(6, "Windows 10 Professionnel", "Professional"),
            ],
        }
    }

    fn said(media: &Media, wanted: Wanted<'_>) -> String {
        let lines = media.check(wanted);
        let lines = lines.iter().map(|line| format!("{}: {}\n  fix {}", line.key, line.what, line.fix));
        lines.collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn what_is_there_is_no_mismatch() {
        let wanted = Wanted {
            os: Some("windows10"),
            edition: Some("professional"),
            language: Some("fr-FR"),
            product_key: true,
        };
        assert_eq!(media().check(wanted), []);
        assert_eq!(media().image("PROFESSIONAL").map(|image| image.index), Some(6));
    }

    #[test]
    fn what_is_not_there_is_named_with_what_is() {
        let mut media = media();
        media.channel = Channel::Evaluation;
        media.architecture = "arm64".into();
        let wanted = Wanted {
            os: Some("windows11"),
            edition: Some("Windows 10 Professionnel"),
            language: Some("de-DE"),
            product_key: true,
        };
        insta::assert_snapshot!(said(&media, wanted), @r#"
        inputs.iso: the media is Windows for arm64, the machine is amd64
          fix take the ISO for x64
        guest.os: the recipe says Windows 11, the media is Windows 10 (build 19045)
          fix write os = "windows10", or take another ISO
        guest.edition: the media has no edition 'Windows 10 Professionnel'; it holds Core ("Windows 10 Famille"), Professional ("Windows 10 Professionnel")
          fix write edition = "Professional", or take another ISO
        guest.language: de-DE is not on the media: Core ("Windows 10 Famille") has fr-FR
          fix write language = "fr-FR", or take the ISO in de-DE
        guest.product-key: the media is an evaluation, which accepts no product key
          fix remove the key, or take the retail or volume ISO that it is for
        "#);
    }

    #[test]
    fn a_language_that_only_setup_lacks_is_said_so() {
        let mut media = media();
        media.setup_languages = vec!["en-US".into()];
        let wanted = Wanted { language: Some("fr-FR"), ..Wanted::default() };
        insta::assert_snapshot!(said(&media, wanted), @r#"
        guest.language: fr-FR is not on the media: Setup has en-US
          fix write language = "en-US", or take the ISO in fr-FR
        "#);
    }

    #[test]
    fn a_server_with_a_desktop_is_preferred_to_one_without() {
        let mut media = media();
        media.images = vec![image(1, "Core", "ServerStandard"), image(2, "Desktop", "ServerStandard")];
        media.images[0].installation_type = Some("Server Core".into());
        media.images[1].installation_type = Some("Server".into());
        assert_eq!(media.image("ServerStandard").map(|image| image.index), Some(2));
    }
}
