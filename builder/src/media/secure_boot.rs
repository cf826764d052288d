//! Whether a firmware with Secure Boot starts a medium: the signers of its boot manager against the firmware's keys.

use std::path::PathBuf;

use no43_machine::firmware::keys::{self, KeysError};
use no43_machine::spec::FlashFile;
use serde::Serialize;

use super::{BootAuthority, Media};

/// What a firmware's keys say about a medium.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct SecureBoot {
    /// The store of variables whose keys were compared.
    pub variables: PathBuf,
    /// The firmware starts this medium.
    pub boots: bool,
    /// Why, and what to do if it does not.
    pub sentence: String,
}

impl Media {
    /// Compares the boot manager's signers with the keys in `variables`.
    ///
    /// # Errors
    /// The keys cannot be read.
    pub fn secure_boot(&self, variables: &FlashFile) -> Result<SecureBoot, KeysError> {
        let keys = keys::read(variables)?;
        let boots = keys.boots(&self.boot_signers);
        let signers = self.boot_signers.join(" and ");
        let refused = self.boot_signers.iter().find(|signer| keys.refused.contains(signer));
        let sentence = match refused {
            _ if boots => format!("trusts {signers}"),
            None if keys.trusted.is_empty() => {
                "has no keys: Secure Boot is off with it, and anything boots".to_owned()
            }
            _ if self.boot_signers.is_empty() => {
                "would refuse the medium: its boot manager is not signed; write firmware = \"uefi\""
                    .to_owned()
            }
            Some(refused) => format!("refuses {refused} by its dbx; take a newer ISO"),
            None => format!("does not trust {signers}; {}", self.fix_for_unknown_signer()),
        };
        Ok(SecureBoot {
            variables: variables.path.clone(),
            boots: boots || keys.trusted.is_empty(),
            sentence,
        })
    }

    fn fix_for_unknown_signer(&self) -> &'static str {
        match self.boot_authority() {
            Some(BootAuthority::Windows2023) => {
                "take firmware with Microsoft's keys of 2023 (a newer 'ovmf'), or an ISO that is signed with those of 2011"
            }
            Some(BootAuthority::Windows2011) => {
                "take firmware that still has Microsoft's keys of 2011, or a newer ISO"
            }
            None => "name the ISO as Microsoft ships it, or write firmware = \"uefi\"",
        }
    }
}

#[cfg(test)]
mod tests {
    use no43_machine::spec::DiskFormat;

    use crate::media::check::tests::media;

    fn said(template: &str, signers: &[&str]) -> (bool, String) {
        let mut media = media();
        media.boot_signers = signers.iter().map(|&signer| signer.to_owned()).collect();
        let path = format!("/usr/share/OVMF/{template}").into();
        let check = media.secure_boot(&no43_machine::spec::FlashFile { path, format: DiskFormat::Raw });
        let check = check.expect("package ovmf has this template");
        (check.boots, check.sentence)
    }

    #[test]
    fn debians_templates_answer_for_each_kind_of_medium() {
        let ms = "OVMF_VARS_4M.ms.fd";
        let (boots, sentence) = said(ms, &["Microsoft Windows Production PCA 2011"]);
        assert!(boots && sentence == "trusts Microsoft Windows Production PCA 2011", "{sentence}");
        let (boots, sentence) = said(ms, &["Somebody"]);
        assert!(!boots && sentence.starts_with("does not trust Somebody; name the ISO"), "{sentence}");
        let (boots, sentence) = said(ms, &[]);
        assert!(!boots && sentence.contains("is not signed"), "{sentence}");
        let (boots, sentence) = said("OVMF_VARS_4M.fd", &[]);
        assert!(boots && sentence.starts_with("has no keys"), "{sentence}");
    }
}
