//! A checked recipe as Rust types; only what this version can build has a type here.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::windows::Windows;
use crate::diagnostic::{Kind, Place, Problem};
use crate::driver::Version;
use crate::plan::{
    Boot, CardFunctions, CardRequest, ChecksPlan, DevicesPlan, DiskBus, DisplayPlan, Firmware, IdentityKind,
    Init, NetworkPlan, ParsecTeamPlan, UserPlan,
};

/// What is asked for, checked and complete.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// Part of file names.
    pub name: String,
    /// What runs inside.
    pub guest: Guest,
    /// By name.
    pub inputs: BTreeMap<String, Input>,
    /// CPUs, memory, disk, firmware.
    pub machine: MachineAsk,
    /// Wishes, and what the guest is shown.
    pub cards: Vec<CardAsk>,
    /// Where pictures go.
    pub display: DisplayPlan,
    /// How the guest reaches the world.
    pub network: NetworkPlan,
    /// Disks, shares, USB, sound.
    pub devices: DevicesPlan,
    /// The card's driver.
    pub driver: DriverAsk,
    /// Ways in from other machines.
    pub remote: RemoteAsk,
    /// In order.
    pub steps: Vec<Step>,
    /// What must be proved.
    pub checks: ChecksPlan,
}

/// Where a value was written, for problems that show only later (a file that is not there).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spot {
    /// Dotted path of the key.
    pub key: String,
    /// `None` for a default.
    pub place: Option<Place>,
}

impl Spot {
    /// A problem with this value.
    pub(crate) fn problem(&self, kind: Kind, what: impl Into<String>) -> Problem {
        Problem::new(kind, &self.key, what).at(self.place.clone())
    }
}

/// `[guest]`
#[derive(Clone, Debug)]
pub struct Guest {
    /// Such as `debian12`.
    pub os: String,
    /// What a Windows is asked for; `None` for a Linux guest.
    pub windows: Option<Windows>,
    /// Process 1.
    pub init: Init,
    /// `fr-FR` or `C`.
    pub language: String,
    /// `Europe/Paris`
    pub timezone: String,
    /// Name and where the password comes from.
    pub user: Option<UserPlan>,
    /// The user's further groups.
    pub groups: Vec<String>,
    /// The user may become root without a password.
    pub sudo: bool,
    /// Layout.
    pub keyboard: Option<String>,
    /// Loaded at every boot.
    pub modules: Vec<String>,
    /// Words of the kernel's command line.
    pub kernel_options: Vec<String>,
    /// The recipe's own.
    pub packages: Vec<String>,
    /// What a guest of this kind needs besides.
    pub needs: Vec<String>,
    /// From `<suite>-backports`.
    pub backports: Vec<String>,
    /// Package.
    pub kernel: String,
    /// Code name.
    pub suite: String,
    /// Where packages come from, if the recipe says so.
    pub mirror: Option<String>,
    /// mmdebstrap's variant.
    pub variant: String,
    /// Laid over the base system.
    pub files: Vec<FileAsk>,
    /// Globs.
    pub leave_out: Vec<String>,
    /// Modules.
    pub initrd_modules: Vec<String>,
    /// Of `guest.suite`, for problems with the lock.
    pub suite_spot: Spot,
    /// Of `guest.mirror`, or of the table.
    pub mirror_spot: Spot,
}

/// One of `[[guest.files]]`.
#[derive(Clone, Debug)]
pub struct FileAsk {
    /// What is laid there.
    pub from: CopyFrom,
    /// Absolute path in the guest.
    pub to: String,
    /// Permission bits; `None` means the file's own.
    pub mode: Option<u32>,
    /// `user:group`
    pub owner: String,
    /// Where it was written.
    pub spot: Spot,
}

/// Contents for the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CopyFrom {
    /// A file or folder on this host.
    Path(PathBuf),
    /// An input, by name.
    Input(String),
    /// Written in the recipe.
    Text(String),
    /// A symbolic link's target.
    Link(String),
}

/// One of `[inputs]`.
#[derive(Clone, Debug)]
pub struct Input {
    /// Where it is.
    pub from: InputFrom,
    /// The path or URL as the person wrote it.
    pub written: String,
    /// What the recipe itself says that it hashes to; lower case.
    pub sha256: Option<String>,
    /// Where it was written.
    pub spot: Spot,
}

/// Where an input is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InputFrom {
    /// A file on this host.
    Path(PathBuf),
    /// Fetched once.
    Url(String),
}

/// `[machine]`
#[derive(Clone, Debug)]
pub struct MachineAsk {
    /// `None` means "auto".
    pub cpus: Option<u32>,
    /// `None` means "auto".
    pub memory_mib: Option<u64>,
    /// Virtual size.
    pub disk_bytes: u64,
    /// What starts the guest.
    pub firmware: Firmware,
    /// Where the kernel comes from.
    pub boot: Boot,
    /// The lab's work-round.
    pub uefi_under_lab: bool,
    /// A virtual TPM 2.0.
    pub tpm: bool,
    /// Guest memory in huge pages.
    pub hugepages: bool,
    /// How the system disk is attached.
    pub disk_bus: DiskBus,
    /// Who a machine is that was installed.
    pub identity: IdentityKind,
}

/// One of `[[card]]`.
#[derive(Clone, Debug)]
pub struct CardAsk {
    /// Which cards would do.
    pub request: CardRequest,
    /// Which functions the guest gets.
    pub functions: CardFunctions,
    /// Ids that the guest sees, lower case.
    pub present_as: Option<String>,
}

/// `[driver]`
#[derive(Clone, Debug)]
pub struct DriverAsk {
    /// The name of an input; one that came out of `drivers.toml` is among the inputs, too.
    pub package: Option<String>,
    /// A distribution's own packages, for a Linux guest.
    pub packages: Vec<String>,
    /// What it must be.
    pub version: Option<Version>,
    /// When it goes in.
    pub install: DriverInstall,
    /// Parts of the package beside the display driver.
    pub components: Vec<String>,
    /// The VM hides itself.
    pub legacy: bool,
    /// Drivers that Microsoft has not signed are taken.
    pub test_signed: bool,
    /// Packages that take its place while the card is proved, each once.
    pub others: Vec<OtherDriverAsk>,
    /// Places of the keys.
    pub spots: DriverSpots,
}

/// A package that `checks.lifecycle` names.
#[derive(Clone, Debug)]
pub struct OtherDriverAsk {
    /// The name of an input.
    pub name: String,
    /// Where it is named first.
    pub spot: Spot,
}

/// Places of keys of `[driver]`.
#[derive(Clone, Debug)]
pub struct DriverSpots {
    /// `driver.package`, or `driver.packages`.
    pub package: Spot,
    /// `driver.version`
    pub version: Spot,
    /// `driver.install`
    pub install: Spot,
    /// `driver.components`
    pub components: Spot,
    /// `driver.legacy`
    pub legacy: Spot,
    /// `driver.test-signed`
    pub test_signed: Spot,
}

/// When a driver goes into a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DriverInstall {
    /// Into the driver store of an image that has never seen the card; the first start with the card binds it.
    Staged,
    /// By its own installer, in a build start with the card.
    WithCard,
    /// Not by a build: only checked.
    None,
}

/// `[remote]`: each is off unless named.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RemoteAsk {
    /// Inputs with the installers of these, by the names of [`crate::apps::APPS`], in the order of that table.
    pub apps: Vec<&'static str>,
    /// Sessions of Remote Desktop use the card.
    pub rdp_gpu: bool,
    /// The team that Parsec registers with at an instance's first start.
    pub parsec_team: Option<ParsecTeamPlan>,
}

/// One of `[[step]]`.
#[derive(Clone, Debug)]
pub struct Step {
    /// For people.
    pub name: String,
    /// What to do.
    pub what: StepAsk,
    /// Seconds.
    pub limit: u64,
}

/// What a step does.
#[derive(Clone, Debug)]
pub enum StepAsk {
    /// Program and arguments.
    Run(Vec<String>),
    /// A file or folder.
    Copy(FileAsk),
    /// Packages.
    Install(Vec<String>),
    /// Restart.
    Reboot,
    /// Wait.
    WaitFor(crate::plan::Awaited),
}
