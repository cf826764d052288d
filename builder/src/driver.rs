//! Driver packages: what a package is for, known before a VM is started.
//!
//! A package is read in place ([`Package::read`]): NVIDIA's self-extracting 7z for Windows, an unpacked folder, a `.run`
//! file for Linux, or a package of Debian's. [`Package::drives`] answers for one card on one Windows, with the nearest reason
//! where the answer is no.

mod archive;
pub mod catalogue;
mod chips;
#[cfg(test)]
mod corpus;
mod deb;
mod display;
mod facts;
pub(crate) mod gate;
mod inf;
mod linux;
pub mod lookup;
mod text;
mod unpack;
pub mod updates;
mod version;

use std::path::{Path, PathBuf};

use no43_host::PciId;
use serde::{Deserialize, Serialize};

pub use chips::{
    BRANCHES, Branch, FIRST_FOR_VMS, GENERATIONS, Generation, NVIDIA, WINDOWS_ENDS, WindowsEnd, branch_of,
    generation_of,
};
pub use display::{Device, DisplayInf, Models, Subsystem, Target};
pub use facts::{DriverFacts, ModelFacts, Signer};
pub use text::Encoding;
pub use unpack::{Parts, Unpacked, unpack};
pub use version::{NoVersion, Version};

/// Why a package cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The file cannot be opened or read.
    #[error("failed to read {path}: {source}")]
    Io {
        /// The package, or a file of it.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The file is something else.
    #[error(
        "{path} is no driver package, but {what}\n    fix   name NVIDIA's .exe for Windows as it was downloaded, a folder \
         into which it was unpacked, or a .run or .deb file for Linux"
    )]
    NotAPackage {
        /// The file.
        path: PathBuf,
        /// What it is, as far as its first bytes tell.
        what: String,
    },
    /// It is a package, and cut short, or made to harm.
    #[error("{path} is damaged: {why}\n    fix   download it again, and compare its SHA-256")]
    Damaged {
        /// The package.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// Nothing in it is for a display.
    #[error("{path} holds no display driver: none of its {infs} INF files is of class Display")]
    NoDisplay {
        /// The package.
        path: PathBuf,
        /// How many INF files were looked at.
        infs: usize,
    },
}

/// For which system a package is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum System {
    /// Windows.
    Windows,
    /// Linux.
    Linux,
}

/// For which computers its INF files are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Form {
    /// Any board with a listed chip.
    Desktop,
    /// Only boards of listed makers: notebooks and complete computers.
    Notebook,
    /// Some of both.
    Mixed,
}

/// What a package says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Package {
    /// Where it lies.
    pub path: PathBuf,
    /// For which system.
    pub system: System,
    /// The name of a package of Debian's, such as `nvidia-driver`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub debian: Option<String>,
    /// NVIDIA's version, by the newest INF; `None` for packages of other makers.
    pub version: Option<Version>,
    /// Display drivers of the Store kind.
    pub dch: bool,
    /// For which computers; `None` where it lists no devices.
    pub form: Option<Form>,
    /// Who signed the catalogues of its display drivers; `None` for Linux.
    pub signer: Option<Signer>,
    /// How many files it holds.
    pub files: usize,
    /// Their size, unpacked.
    pub bytes: u64,
    /// Its display INF files.
    pub infs: Vec<DisplayInf>,
    /// Where the package contradicts itself.
    pub contradictions: Vec<String>,
}

impl Package {
    /// Reads a package file or an unpacked folder.
    ///
    /// At most 32 MiB of one text file, 256 MiB of all, and a decoder's dictionary of at most 256 MiB are held in memory.
    ///
    /// # Errors
    /// [`DriverError`].
    pub fn read(path: &Path) -> Result<Self, DriverError> {
        if path.is_dir() {
            return Self::of_windows(path, &archive::of_folder(path)?);
        }
        if let Some(version) = linux::version_of(path)? {
            return Ok(Self::of_linux(path, version));
        }
        if let Some(deb) = deb::read(path)? {
            return Self::of_debian(path, &deb);
        }
        Self::of_windows(path, &archive::of_file(path)?)
    }

    fn of_debian(path: &Path, deb: &deb::Deb) -> Result<Self, DriverError> {
        let Some(version) = deb.driver() else {
            let what =
                format!("the Debian package '{}' {}, which is no driver of NVIDIA's", deb.name, deb.version);
            return Err(DriverError::NotAPackage { path: path.to_owned(), what });
        };
        let mut package = Self::of_linux(path, version);
        package.debian = Some(deb.name.clone());
        Ok(package)
    }

    fn of_linux(path: &Path, version: Version) -> Self {
        let mut package = Self::empty(path, System::Linux);
        package.version = Some(version);
        package.compare_file_name();
        package
    }

    fn empty(path: &Path, system: System) -> Self {
        Self {
            path: path.to_owned(),
            system,
            debian: None,
            version: None,
            dch: false,
            form: None,
            signer: None,
            files: 0,
            bytes: 0,
            infs: Vec::new(),
            contradictions: Vec::new(),
        }
    }

    fn of_windows(path: &Path, contents: &archive::Contents) -> Result<Self, DriverError> {
        let is_inf = |member: &&archive::Member| member.path.to_ascii_lowercase().ends_with(".inf");
        let members: Vec<&archive::Member> = contents.texts.iter().filter(is_inf).collect();
        let infs: Vec<DisplayInf> =
            members.iter().filter_map(|member| display::read(&member.path, &member.bytes)).collect();
        if infs.is_empty() {
            return Err(DriverError::NoDisplay { path: path.to_owned(), infs: members.len() });
        }
        let mut package = Self::empty(path, System::Windows);
        package.version = infs.iter().filter(|inf| is_nvidia(inf)).filter_map(|inf| inf.version).max();
        package.dch = infs.iter().any(|inf| inf.dch);
        package.form = form_of(&infs);
        package.signer = infs.iter().map(|inf| signer(inf, &contents.texts)).max();
        (package.files, package.bytes) = (contents.files, contents.bytes);
        package.infs = infs;
        package.compare_infs();
        package.compare_setup(&contents.texts);
        package.compare_file_name();
        Ok(package)
    }

    /// Every INF of one package must be of one version.
    fn compare_infs(&mut self) {
        let Some(newest) = self.version else { return };
        for inf in self.infs.iter().filter(|inf| inf.version.is_some_and(|version| version != newest)) {
            let version = inf.version.map(|version| version.to_string()).unwrap_or_default();
            self.contradictions.push(format!("{} is of version {version}, others are of {newest}", inf.path));
        }
    }

    /// `setup.cfg` names the version that the installer shows.
    fn compare_setup(&mut self, texts: &[archive::Member]) {
        let setup = texts.iter().find(|member| member.path.to_ascii_lowercase().ends_with("setup.cfg"));
        let (Some(setup), Some(ours)) = (setup, self.version) else { return };
        let (text, _) = text::decode(&setup.bytes);
        let said = text.split(|c: char| !c.is_ascii_digit() && c != '.').find_map(|word| {
            let version: Version = word.parse().ok()?;
            (version.branch >= 100 && version.patch.is_none()).then_some(version)
        });
        if let Some(said) = said.filter(|said| *said != ours) {
            self.contradictions.push(format!("{} says {said}, the INF files say {ours}", setup.path));
        }
    }

    fn compare_file_name(&mut self) {
        let name = self.path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let (Some(said), Some(ours)) = (Version::in_file_name(&name), self.version) else { return };
        if said != ours {
            self.contradictions.push(format!("the file is named {said}, and holds {ours}"));
        }
        let says_dch = name.to_ascii_lowercase().split(['-', '.', '_']).any(|word| word == "dch");
        if self.system == System::Windows && says_dch && !self.dch {
            self.contradictions.push("the file is named DCH, and no INF in it is of that kind".to_owned());
        }
    }

    /// Every device, once, with its name: the same device stands in many sections.
    pub fn devices(&self) -> Vec<&Device> {
        let mut devices: Vec<&Device> =
            self.infs.iter().flat_map(|inf| &inf.models).flat_map(|models| &models.devices).collect();
        devices.sort_by_key(|device| (device.id, device.subsystem));
        devices.dedup_by_key(|device| (device.id, device.subsystem));
        devices
    }

    /// Whether this package drives a card, on a Windows of this build where one is given.
    pub fn drives(&self, card: CardIds, build: Option<u32>) -> Answer {
        if self.system == System::Linux {
            return self.by_generation(card).map_or(Answer::Unlisted, Answer::No);
        }
        let rows = || self.infs.iter().flat_map(|inf| inf.models.iter().map(move |models| (inf, models)));
        let here = |target: &Target| build.is_none_or(|build| target.covers(build));
        let mut fits: Vec<Fit> = Vec::new();
        for (inf, models) in rows().filter(|(_, models)| here(&models.target)) {
            // Windows takes the newest section that its build may use, and only that one
            let closest = newest(inf, build);
            for device in models.devices.iter().filter(|device| device.id == card.id) {
                let exact = device.subsystem.is_some() && device.subsystem == card.subsystem;
                if device.subsystem.is_none() || exact {
                    fits.push(Fit::new(inf, models, device, exact, closest == Some(&models.target)));
                }
            }
        }
        fits.sort_by_key(|fit| (!fit.board, !fit.closest, fit.section.clone()));
        match fits.into_iter().next() {
            Some(fit) => Answer::Yes(fit),
            None => Answer::No(self.why_not(card, build)),
        }
    }

    fn why_not(&self, card: CardIds, build: Option<u32>) -> Reason {
        let makers: Vec<u16> = self.devices().iter().map(|device| device.id.vendor).collect();
        if !makers.contains(&card.id.vendor) {
            return Reason::OtherMaker { makers: unique(makers) };
        }
        let rows = self.infs.iter().flat_map(|inf| &inf.models);
        let listed: Vec<(&Models, &Device)> = rows
            .flat_map(|models| models.devices.iter().map(move |device| (models, device)))
            .filter(|(_, device)| device.id == card.id)
            .collect();
        let suits = |device: &Device| device.subsystem.is_none() || device.subsystem == card.subsystem;
        let needed =
            listed.iter().filter(|(_, device)| suits(device)).map(|(models, _)| models.target.build).min();
        if let (Some(needed), Some(build)) = (needed, build) {
            return Reason::WindowsTooOld { build, needed };
        }
        if !listed.is_empty() {
            let boards: Vec<String> = listed
                .iter()
                .filter_map(|(_, device)| device.subsystem)
                .map(|board| board.to_string())
                .collect();
            return Reason::OnlyBoards { boards: unique(boards) };
        }
        self.by_generation(card).unwrap_or_else(|| self.not_listed(card))
    }

    fn not_listed(&self, card: CardIds) -> Reason {
        let nearest = self.devices().into_iter().filter(|device| device.id.vendor == card.id.vendor);
        let nearest = nearest.min_by_key(|device| device.id.device.abs_diff(card.id.device));
        Reason::NotListed { nearest: nearest.map(|device| (device.id, device.name.clone())) }
    }

    /// What the tables know about the card's generation, if it speaks against this version.
    fn by_generation(&self, card: CardIds) -> Option<Reason> {
        let (version, generation) = (self.version?, generation_of(card.id)?);
        match (generation.last_branch, generation.first_branch) {
            (Some(last), _) if version.branch > last => {
                Some(Reason::GenerationEnded { generation: generation.name, last })
            }
            (_, Some(first)) if version.branch < first => {
                Some(Reason::GenerationNewer { generation: generation.name, first })
            }
            _ => None,
        }
    }

    /// Whether a GeForce with this driver works in a VM that does not hide itself.
    pub fn works_in_a_vm(&self) -> Option<bool> {
        self.version.map(|version| version >= FIRST_FOR_VMS)
    }
}

/// A card as a driver sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct CardIds {
    /// Vendor and device.
    pub id: PciId,
    /// Its board, where that is known.
    pub subsystem: Option<Subsystem>,
}

/// Whether a package drives a card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "answer")]
pub enum Answer {
    /// Yes, by this entry.
    Yes(Fit),
    /// No, because.
    No(Reason),
    /// The package lists no devices, and nothing known speaks against it.
    Unlisted,
}

/// The entry that drives a card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Fit {
    /// The INF file.
    pub inf: String,
    /// Its section of models.
    pub section: String,
    /// The section that installs the device.
    pub install: String,
    /// As the card will be called.
    pub name: String,
    /// The entry names this very board.
    pub board: bool,
    /// The section is the one that this Windows takes; otherwise only one for older builds lists the card.
    pub closest: bool,
}

impl Fit {
    fn new(inf: &DisplayInf, models: &Models, device: &Device, board: bool, closest: bool) -> Self {
        Self {
            inf: inf.path.clone(),
            section: models.section.clone(),
            install: device.install.clone(),
            name: device.name.clone(),
            board,
            closest,
        }
    }
}

/// Why a package does not drive a card: the nearest miss.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "reason")]
pub enum Reason {
    /// It is for cards of others.
    OtherMaker {
        /// Their vendor ids.
        makers: Vec<u16>,
    },
    /// The card is listed for a newer Windows.
    WindowsTooOld {
        /// The guest's build.
        build: u32,
        /// The first build that would do.
        needed: u32,
    },
    /// The chip is listed for certain boards only.
    OnlyBoards {
        /// Maker and model of each.
        boards: Vec<String>,
    },
    /// Newer branches do not drive this generation any more.
    GenerationEnded {
        /// Its name.
        generation: &'static str,
        /// The last branch that does.
        last: u16,
    },
    /// The branch is older than the generation.
    GenerationNewer {
        /// Its name.
        generation: &'static str,
        /// The first branch that knows it.
        first: u16,
    },
    /// The card's id stands nowhere in it.
    NotListed {
        /// The listed device whose number is nearest.
        nearest: Option<(PciId, String)>,
    },
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::OtherMaker { makers } => {
                let makers: Vec<String> = makers.iter().map(|maker| format!("{maker:04x}")).collect();
                write!(f, "the package is for cards of maker {}", makers.join(" and "))
            }
            Self::WindowsTooOld { build, needed } => {
                write!(
                    f,
                    "it drives this card from Windows build {needed} on, and the guest has build {build}"
                )
            }
            Self::OnlyBoards { boards } => {
                let shown = boards.iter().take(3).cloned().collect::<Vec<_>>().join(", ");
                write!(
                    f,
                    "it drives this chip only on {} boards of notebooks and complete computers ({shown}",
                    boards.len()
                )?;
                f.write_str(if boards.len() > 3 { ", …)" } else { ")" })
            }
            Self::GenerationEnded { generation, last } => {
                write!(f, "{generation} chips are driven up to branch {last}, and this is newer")
            }
            Self::GenerationNewer { generation, first } => {
                write!(f, "{generation} chips are driven from branch {first} on, and this is older")
            }
            Self::NotListed { nearest: Some((id, name)) } => {
                write!(f, "no INF in it lists this card; the nearest id is {id} ({name})")
            }
            Self::NotListed { nearest: None } => f.write_str("no INF in it lists any card"),
        }
    }
}

/// Who signed the catalogue that an INF names; it lies beside the INF.
fn signer(inf: &DisplayInf, members: &[archive::Member]) -> Signer {
    let folder = inf.path.rsplit_once('/').map_or("", |(folder, _)| folder);
    let beside = |name: &String| {
        let path = if folder.is_empty() { name.clone() } else { format!("{folder}/{name}") };
        members.iter().find(|member| member.path.eq_ignore_ascii_case(&path))
    };
    let found = inf.catalogue.as_ref().and_then(beside);
    found.map_or(Signer::Nobody, |member| facts::signer_of(&member.bytes))
}

fn is_nvidia(inf: &DisplayInf) -> bool {
    inf.models.iter().flat_map(|models| &models.devices).any(|device| device.id.vendor == NVIDIA)
        || inf.provider.eq_ignore_ascii_case("nvidia")
}

/// The newest target of an INF that a build may use; all are asked where no build is given.
fn newest(inf: &DisplayInf, build: Option<u32>) -> Option<&Target> {
    let targets = inf.models.iter().map(|models| &models.target);
    let usable = targets.filter(|target| build.is_none_or(|build| target.covers(build)));
    usable.max_by_key(|target| (target.architecture.is_some(), target.windows, target.build))
}

fn form_of(infs: &[DisplayInf]) -> Option<Form> {
    let devices = || infs.iter().flat_map(|inf| &inf.models).flat_map(|models| &models.devices);
    match (devices().any(|d| d.subsystem.is_none()), devices().any(|d| d.subsystem.is_some())) {
        (true, false) => Some(Form::Desktop),
        (false, true) => Some(Form::Notebook),
        (true, true) => Some(Form::Mixed),
        (false, false) => None,
    }
}

fn unique<T: Ord>(mut values: Vec<T>) -> Vec<T> {
    values.sort();
    values.dedup();
    values
}

#[cfg(test)]
mod tests;
