//! What an answer file of ours says: plain data, complete, with nothing left to decide.

use serde::{Deserialize, Serialize};

use crate::secret::Secret;

/// Everything that Windows Setup is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Of the media.
    pub arch: Arch,
    /// In which language Setup speaks; it must be one of the media's `boot.wim`, or Setup asks.
    pub setup_language: String,
    /// In which language Windows speaks, such as `fr-FR`.
    pub language: String,
    /// Formats, and the language of programs without Unicode.
    pub locale: String,
    /// Such as `040c:0000040c`.
    pub keyboard: String,
    /// A Windows name, such as `Romance Standard Time`.
    pub timezone: String,
    /// Which image of the media is installed.
    pub image: Image,
    /// A public key, where the kind of media wants one.
    pub product_key: Option<String>,
    /// Number of the disk that is wiped and installed to, as Windows counts them.
    pub target_disk: u32,
    /// Setup asks neither for a TPM nor for Secure Boot.
    pub skip_hardware_checks: bool,
    /// At most 15 characters; an instance gets its own.
    pub computer_name: String,
    /// The administrator who is logged on.
    pub user: String,
    /// Of this build only; an instance gets its own.
    pub password: Secret,
    /// How many times Windows logs the user on by itself.
    pub autologons: u32,
    /// Remote Desktop, with its rule of the firewall.
    pub rdp: bool,
    /// What Windows may update by itself.
    pub updates: Updates,
}

/// Processor architecture, as answer files and media write it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Arch {
    /// 64-bit Intel and AMD.
    Amd64,
    /// 64-bit ARM.
    Arm64,
}

impl Arch {
    /// `amd64` or `arm64`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }
}

/// Which image of the media is installed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Image {
    /// `/IMAGE/INDEX`: what is used when the media are known. Names are translated on some of them.
    Index(u32),
    /// `/IMAGE/NAME`: for an answer file that is shown before the media are there.
    Name(String),
}

/// What Windows may update by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Updates {
    /// Windows itself.
    pub system: SystemUpdates,
    /// The card's driver.
    pub driver: DriverUpdates,
}

/// Who may change the card's driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DriverUpdates {
    /// The person; Windows Update offers none.
    Free,
    /// Nobody, once it has bound: Windows is told to install no other for these cards.
    Ours,
    /// Windows Update, too.
    Windows,
}

/// How Windows updates itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SystemUpdates {
    /// Not at all.
    None,
    /// Security updates; a new Windows is put off as long as Windows lets it.
    Security,
    /// As Windows does it.
    All,
}
