//! What an installation medium holds, read in place: no mount, no extraction, a few hundred kilobytes of reads.
//!
//! Microsoft's media are UDF; their ISO 9660 side holds nothing but a readme, so only UDF is looked at. The facts go
//! into the lock, and what a recipe asks for is checked against them ([`Media::check`]) before anything starts.

mod check;
pub(crate) mod inspect;
mod secure_boot;
pub(crate) mod source;
pub(crate) mod systems;
pub(crate) mod udf;
pub mod wim;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use check::{Mismatch, Wanted};
pub use inspect::{inspect, inspect_counted};
pub use secure_boot::SecureBoot;
pub use systems::{SYSTEMS, System};
use wim::{WimError, WimImage};

/// Why a medium cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MediaError {
    /// The file cannot be opened or read.
    #[error("failed to read {path}: {source}")]
    Io {
        /// The medium.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The file is something else.
    #[error("{path} is not a Windows ISO, but {what}\n    fix   {fix}")]
    NotADisc {
        /// The medium.
        path: PathBuf,
        /// What it is, as far as its first bytes tell.
        what: String,
        /// What to do.
        fix: &'static str,
    },
    /// A disc, but not one that installs Windows.
    #[error(
        "{path} installs no Windows: the disc '{label}' has no sources/install.wim, install.esd or install.swm; at its \
         top are {found}\n    fix   name the ISO as Microsoft ships it"
    )]
    NotWindows {
        /// The medium.
        path: PathBuf,
        /// Its volume's name.
        label: String,
        /// Names in the root folder.
        found: String,
    },
    /// A medium of the creation tool for two architectures.
    #[error(
        "{path} holds Windows for more than one architecture ({}), which Setup only offers in a menu\n    \
         fix   make or fetch the ISO for one architecture: x64",
        found.join(", ")
    )]
    SeveralArchitectures {
        /// The medium.
        path: PathBuf,
        /// Folders with an installation each.
        found: Vec<String>,
    },
    /// The file ends before the disc does.
    #[error(
        "{path} is cut off: {what} reaches to byte {needed}, and the file has {bytes}\n    \
         fix   fetch it again, and compare its SHA-256 with the publisher's"
    )]
    Truncated {
        /// The medium.
        path: PathBuf,
        /// The file or structure that is not whole.
        what: String,
        /// Where that ends.
        needed: u64,
        /// Size of the medium.
        bytes: u64,
    },
    /// The disc's structures are damaged.
    #[error(
        "the UDF volume on {path} cannot be read: {why}\n    fix   fetch it again, and compare its SHA-256"
    )]
    Damaged {
        /// The medium.
        path: PathBuf,
        /// What the reader found.
        why: String,
    },
    /// Split images without the rest.
    #[error("{path} holds part {part} of {parts} as {file}, and {missing} is not there")]
    MissingPart {
        /// The medium.
        path: PathBuf,
        /// The file that is there.
        file: String,
        /// Its number.
        part: u16,
        /// How many there are.
        parts: u16,
        /// The first that is not.
        missing: String,
    },
    /// An image file on the disc is damaged.
    #[error("{file} on {path} {source}")]
    Wim {
        /// The medium.
        path: PathBuf,
        /// The file on it.
        file: String,
        /// What is wrong.
        source: WimError,
    },
}

/// What a Windows installation medium holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Media {
    /// The volume's name, such as `CCCOMA_X64FRE_FR-FR_DV9`.
    pub label: String,
    /// Size of the medium.
    pub bytes: u64,
    /// Such as `amd64`: what an answer file for it must say.
    pub architecture: String,
    /// How the medium is sold.
    pub channel: Channel,
    /// For how many days an evaluation runs, counted from its installation; `None` for others, and where it is unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evaluation_days: Option<u32>,
    /// The file that is installed from, such as `sources/install.wim`.
    pub install_file: String,
    /// Compressed as a whole (ESD); Setup takes it, offline tools often do not.
    pub esd: bool,
    /// Languages that Setup itself can speak, from `boot.wim`: `SetupUILanguage` must be one of these.
    pub setup_languages: Vec<String>,
    /// The authorities that issued the certificates of the boot manager's signatures; empty where it has none.
    pub boot_signers: Vec<String>,
    /// The editions that can be installed, in the order of the file.
    #[serde(rename = "image")]
    pub images: Vec<WimImage>,
}

/// How a medium is sold: it decides about the product key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Channel {
    /// No key belongs into the answer file.
    Evaluation,
    /// The public install key chooses the edition.
    Retail,
    /// A volume (KMS client) key, or none.
    Volume,
    /// The medium does not say.
    Unknown,
}

/// The authority that signed the medium's boot manager; firmware must hold its certificate for Secure Boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BootAuthority {
    /// Microsoft Windows Production PCA 2011, which expires in 2026.
    Windows2011,
    /// Windows UEFI CA 2023.
    Windows2023,
}

/// The newer one first: where a program has both signatures, it counts.
const AUTHORITIES: &[(&str, BootAuthority)] = &[
    ("Windows UEFI CA 2023", BootAuthority::Windows2023),
    ("Microsoft Windows Production PCA 2011", BootAuthority::Windows2011),
];

impl Media {
    /// Who signed the boot manager; `None` for a stranger, or where there is no signature.
    #[must_use]
    pub fn boot_authority(&self) -> Option<BootAuthority> {
        let signed = |name: &str| self.boot_signers.iter().any(|signer| signer == name);
        AUTHORITIES.iter().find(|(name, _)| signed(name)).map(|(_, authority)| *authority)
    }

    /// Which Windows it is; build included, as a person would say it: `Windows 10 (19045)`.
    #[must_use]
    pub fn title(&self) -> String {
        let name = self.system().map_or("Windows", |system| system.name);
        let build = self.images.first().and_then(|image| image.version.as_deref());
        format!("{name} ({})", build.unwrap_or("unknown build"))
    }

    /// The system that recipes name;  `None` for one that this version does not know. All images of a medium are of one system.
    #[must_use]
    pub fn system(&self) -> Option<&'static System> {
        let image = self.images.first()?;
        systems::of(image.is_server(), image.build()?)
    }

    /// The image with this edition id, compared without case. Servers have two with the same id: without a desktop
    /// ("Server Core") and with one, which is preferred.
    #[must_use]
    pub fn image(&self, edition: &str) -> Option<&WimImage> {
        let fits = |image: &&WimImage| {
            image.edition_id.as_deref().is_some_and(|found| found.eq_ignore_ascii_case(edition))
        };
        let with_desktop = |image: &&WimImage| image.installation_type.as_deref() != Some("Server Core");
        let mut fitting = self.images.iter().filter(fits);
        fitting.clone().find(with_desktop).or_else(|| fitting.next())
    }
}
