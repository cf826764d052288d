//! What an installation medium holds, read in place: no mount, no extraction, a few hundred kilobytes of reads.
//!
//! Microsoft's media are UDF; their ISO 9660 side holds nothing but a readme, so only UDF is looked at.

pub mod wim;

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use isomage::TreeNode;
use serde::{Deserialize, Serialize};

use wim::{Wim, WimError};

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
    #[error(
        "{path} is not a UDF disc image: {why}\n  fix   name the ISO as the publisher ships it; its first bytes are {first}"
    )]
    NotUdf {
        /// The medium.
        path: PathBuf,
        /// What the reader found.
        why: String,
        /// The first bytes, as text where they are text: an HTML page shows itself.
        first: String,
    },
    /// A disc, but not one that installs Windows.
    #[error("{path} installs no Windows: there is no sources/install.wim, install.esd or install.swm on it")]
    NotWindows {
        /// The medium.
        path: PathBuf,
    },
    /// An image file on the disc is damaged.
    #[error("{file} on {path} {source}")]
    Wim {
        /// The medium.
        path: PathBuf,
        /// The file on it.
        file: &'static str,
        /// What is wrong.
        source: WimError,
    },
}

/// What a Windows installation medium holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MediaFacts {
    /// Size of the medium.
    pub bytes: u64,
    /// The file that is installed from, such as `sources/install.wim`.
    pub install_file: String,
    /// What it holds.
    pub install: Wim,
    /// Languages that Setup itself can speak, from `boot.wim`: `SetupUILanguage` must be one of these.
    pub setup_languages: Vec<String>,
    /// How the medium is sold.
    pub channel: Channel,
    /// Who signed the boot manager; `None` where it could not be read.
    pub boot_authority: Option<BootAuthority>,
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

/// In this order; only one of them is on a medium.
const INSTALL_FILES: &[&str] = &["sources/install.wim", "sources/install.esd", "sources/install.swm"];
const BOOT_WIM: &str = "sources/boot.wim";
const CHANNEL_FILE: &str = "sources/ei.cfg";
const BOOT_MANAGERS: &[&str] = &["efi/boot/bootx64.efi", "efi/boot/bootaa64.efi"];
/// Larger than any boot manager seen (2.6 MB).
const BOOT_MANAGER_LIMIT: u64 = 16 << 20;
const CHANNEL_LIMIT: u64 = 4096;
const AUTHORITIES: &[(&str, BootAuthority)] = &[
    ("Windows UEFI CA 2023", BootAuthority::Windows2023),
    ("Microsoft Windows Production PCA 2011", BootAuthority::Windows2011),
];

/// Reads what a Windows installation medium holds.
///
/// # Errors
/// When the file cannot be read, is no UDF disc, installs no Windows, or is damaged.
pub fn inspect(path: &Path) -> Result<MediaFacts, MediaError> {
    let io = |source| MediaError::Io { path: path.to_owned(), source };
    let mut disc = Disc::open(path)?;
    let bytes = disc.file.seek(SeekFrom::End(0)).map_err(io)?;
    let install_file = INSTALL_FILES.iter().copied().find(|name| disc.find(name).is_some());
    let install_file = install_file.ok_or_else(|| MediaError::NotWindows { path: path.to_owned() })?;
    let install = disc.wim(install_file)?;
    let boot = if disc.find(BOOT_WIM).is_some() { Some(disc.wim(BOOT_WIM)?) } else { None };
    let mut setup_languages: Vec<String> =
        boot.into_iter().flat_map(|wim| wim.images).flat_map(|i| i.languages).collect();
    setup_languages.sort();
    setup_languages.dedup();
    let channel = channel(&install, disc.small_file(CHANNEL_FILE, CHANNEL_LIMIT).map_err(io)?.as_deref());
    let mut boot_authority = None;
    for name in BOOT_MANAGERS {
        if let Some(program) = disc.small_file(name, BOOT_MANAGER_LIMIT).map_err(io)? {
            boot_authority = authority(&program);
        }
    }
    Ok(MediaFacts {
        bytes,
        install_file: install_file.to_owned(),
        install,
        setup_languages,
        channel,
        boot_authority,
    })
}

/// An open medium with its directory tree.
struct Disc {
    path: PathBuf,
    file: BufReader<File>,
    root: TreeNode,
}

impl Disc {
    fn open(path: &Path) -> Result<Self, MediaError> {
        let io = |source| MediaError::Io { path: path.to_owned(), source };
        let mut file = BufReader::new(File::open(path).map_err(io)?);
        let mut first = [0; 48];
        let length = file.read(&mut first).map_err(io)?;
        let root = isomage::udf::parse_udf(&mut file).map_err(|why| MediaError::NotUdf {
            path: path.to_owned(),
            why: why.to_string(),
            first: first[..length].escape_ascii().to_string(),
        })?;
        Ok(Self { path: path.to_owned(), file, root })
    }

    /// A file's place and length; names are compared without case, as Windows does.
    fn find(&self, name: &str) -> Option<(u64, u64)> {
        let mut node = &self.root;
        for part in name.split('/') {
            node = node.children.iter().find(|child| child.name.eq_ignore_ascii_case(part))?;
        }
        Some((node.file_location?, node.file_length?))
    }

    fn wim(&mut self, name: &'static str) -> Result<Wim, MediaError> {
        let error = |source| MediaError::Wim { path: self.path.clone(), file: name, source };
        let (start, length) =
            self.find(name).ok_or_else(|| error(WimError::Truncated { what: "the file" }))?;
        wim::read(&mut self.file, start, length).map_err(|source| MediaError::Wim {
            path: self.path.clone(),
            file: name,
            source,
        })
    }

    /// A file's contents, if it is there and not larger than `limit`.
    fn small_file(&mut self, name: &str, limit: u64) -> std::io::Result<Option<Vec<u8>>> {
        let Some((start, length)) = self.find(name).filter(|(_, length)| *length <= limit) else {
            return Ok(None);
        };
        self.file.seek(SeekFrom::Start(start))?;
        let mut contents = Vec::new();
        (&mut self.file).take(length).read_to_end(&mut contents)?;
        Ok(Some(contents))
    }
}

/// Evaluation editions say so in their edition id; otherwise `ei.cfg` does, with a line below `[Channel]` or `[VL]`.
fn channel(install: &Wim, ei_cfg: Option<&[u8]>) -> Channel {
    let editions = || install.images.iter().filter_map(|image| image.edition_id.as_deref());
    if editions().next().is_some() && editions().all(|edition| edition.ends_with("Eval")) {
        return Channel::Evaluation;
    }
    let text = String::from_utf8_lossy(ei_cfg.unwrap_or_default()).to_lowercase();
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let below = |section: &str| {
        let at = lines.iter().position(|line| *line == section)?;
        lines.get(at + 1).copied()
    };
    match (below("[channel]"), below("[vl]")) {
        (Some("volume"), _) | (_, Some("1")) => Channel::Volume,
        (Some("eval"), _) => Channel::Evaluation,
        (Some(_), _) => Channel::Retail,
        (None, _) => Channel::Unknown,
    }
}

/// Certificates hold the names of their issuers as plain text, so the signature need not be taken apart to tell two
/// authorities apart. It is not verified here: firmware does that.
fn authority(program: &[u8]) -> Option<BootAuthority> {
    let holds = |name: &str| program.windows(name.len()).any(|window| window == name.as_bytes());
    AUTHORITIES.iter().find(|(name, _)| holds(name)).map(|(_, authority)| *authority)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wim(editions: &[&str]) -> Wim {
        let image =
            |edition: &&str| wim::WimImage { edition_id: Some((*edition).to_owned()), ..Default::default() };
        Wim { esd: false, part: (1, 1), images: editions.iter().map(image).collect() }
    }

    #[test]
    fn the_channel_comes_from_the_editions_and_from_ei_cfg() {
        let retail = b"[EditionID]\r\n\r\n[Channel]\r\nRetail\r\n[VL]\r\n0\r\n";
        assert_eq!(channel(&wim(&["Professional"]), Some(retail)), Channel::Retail);
        assert_eq!(channel(&wim(&["Professional"]), Some(b"[Channel]\r\nVolume\r\n")), Channel::Volume);
        assert_eq!(channel(&wim(&["EnterpriseEval"]), Some(retail)), Channel::Evaluation);
        assert_eq!(channel(&wim(&["Professional"]), None), Channel::Unknown);
    }

    #[test]
    fn the_newer_authority_wins_where_both_are_named() {
        assert_eq!(authority(b"..Microsoft Windows Production PCA 2011.."), Some(BootAuthority::Windows2011));
        assert_eq!(
            authority(b"Microsoft Windows Production PCA 2011 Windows UEFI CA 2023"),
            Some(BootAuthority::Windows2023)
        );
        assert_eq!(authority(b"nothing"), None);
    }

    #[test]
    fn an_html_page_with_the_name_of_an_iso_shows_itself() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), "<!DOCTYPE html><title>Sign in</title>").expect("written");
        let error = inspect(file.path()).expect_err("not a disc").to_string();
        assert!(error.contains("not a UDF disc image") && error.contains("<!DOCTYPE html>"), "{error}");
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = inspect(Path::new("/nowhere/win.iso")).expect_err("not there").to_string();
        assert!(error.contains("/nowhere/win.iso"), "{error}");
    }
}
