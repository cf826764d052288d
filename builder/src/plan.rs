//! Plan: recipe, lock and host resolved; nothing is left to decide, so it can be printed, compared and snapshot-tested.
//!
//! Two halves that never mix: `layers` say what the image is made of and carry the keys; everything else (`machine`,
//! `cards`, `user`, `display`, `network`, `checks`) is given when the machine starts and never enters a key.

mod devices;
mod drivers;
mod gather;
mod make;
mod show;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::driver::Version;
use crate::key::Key;
use crate::windows::{DriverIn, WindowsBase, WindowsSetup};

pub use devices::{AudioPlan, DevicesPlan, DiskPlan, ForwardPlan, SharePlan, UsbPlan};
pub(crate) use gather::fits;
pub use gather::{Facts, FoundFile, HostCard, HostFacts, gather};
pub use make::plan;

/// Everything that building, starting and verifying need to know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The recipe's name; letters, digits, `-`, `_` and `.`, so it can be part of a file name.
    pub name: String,
    /// The recipe that was loaded (not its `extends` parents).
    pub recipe_file: PathBuf,
    /// What runs inside.
    pub guest: GuestPlan,
    /// From the base upward, never empty; each one's parent is the one before it.
    pub layers: Vec<LayerPlan>,
    /// CPUs, memory, firmware.
    pub machine: MachinePlan,
    /// The cards that a run leases, in the order of the recipe.
    pub cards: Vec<CardWish>,
    /// What `verify` must prove.
    pub checks: ChecksPlan,
    /// Where pictures go.
    pub display: DisplayPlan,
    /// How the guest reaches the world.
    pub network: NetworkPlan,
    /// Disks, shares, USB, sound.
    #[serde(default)]
    pub devices: DevicesPlan,
    /// The card's driver, as far as the recipe says something about it.
    #[serde(default)]
    pub driver: DriverPlan,
    /// Sentences for a person who reads the plan: what was decided by itself and why.
    pub notes: Vec<String>,
}

/// What is expected of the card's driver, and who may change it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DriverPlan {
    /// The version that must run, such as `466.11`.
    pub version: Option<String>,
    /// Windows takes drivers that Microsoft has not signed: every report says so.
    pub test_signed: bool,
    /// `updates.driver = "ours"`: once the driver has bound, Windows is told to install no other for `cards`.
    pub keep: bool,
    /// Ids of every card that the recipe may lease, as far as they are known, such as `10de:2484`.
    pub cards: Vec<String>,
    /// What the package's INFs say of them: `matches`, `other build`, `needs subsystem` or `not listed`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub listed: BTreeMap<String, String>,
    /// Packages that take its place while the card is proved.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<OtherDriver>,
}

impl DriverPlan {
    /// The package of that name.
    #[must_use]
    pub fn other(&self, name: &str) -> Option<&OtherDriver> {
        self.others.iter().find(|one| one.name == name)
    }
}

/// A package that takes the place of the guest's driver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OtherDriver {
    /// The name of an input.
    pub name: String,
    /// What runs afterwards, such as `472.12`.
    pub version: Version,
    /// How it goes in.
    pub source: DriverSource,
}

/// How a driver goes into a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DriverSource {
    /// From a set-up disk.
    Windows(DriverIn),
    /// By the steps of a layer.
    Linux(LinuxDriver),
}

/// What runs inside the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestPlan {
    /// An id such as `debian12`.
    pub os: String,
    /// What is process 1.
    pub init: Init,
    /// The user that the guest gets; its password is set when a machine starts and is in no layer.
    pub user: Option<UserPlan>,
    /// A Windows computer's name, given at an instance's first start; `None`: made from the instance's name.
    #[serde(default)]
    pub hostname: Option<String>,
    /// Where a Windows' own product key comes from; given at an instance's first start.
    #[serde(default)]
    pub product_key: Option<SecretSource>,
    /// The team that Parsec registers with at an instance's first start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parsec_team: Option<ParsecTeamPlan>,
}

/// A team of Parsec's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParsecTeamPlan {
    /// Its id.
    pub id: String,
    /// Where its computer key comes from; never the key.
    pub key: SecretSource,
}

/// What is process 1 in a Linux guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Init {
    /// A whole Debian: services, logins, a network that is configured.
    Systemd,
    /// `no43-guest init`: mounts, drivers, the guest agent, nothing else. A third of systemd's time to the agent.
    Lean,
}

/// The guest's user, as it is applied when a machine starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserPlan {
    /// The login name; it is in the base layer's key.
    pub name: String,
    /// Where the password comes from; never the password.
    pub password: Option<SecretSource>,
}

/// Where a secret is read from, at the moment when it is needed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SecretSource {
    /// The first line of a file.
    File(PathBuf),
    /// An environment variable.
    Env(String),
    /// A systemd credential: a file in `$CREDENTIALS_DIRECTORY`.
    Credential(String),
}

/// How the system disk is attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskBus {
    /// virtio-blk: quick; Windows needs a driver for it.
    #[default]
    Virtio,
    /// SATA: every system has a driver.
    Ahci,
    /// NVMe: Windows 10 and newer have a driver.
    Nvme,
}

impl DiskBus {
    /// Does Windows Setup see such a disk only after a driver was loaded?
    #[must_use]
    pub fn needs_driver(self) -> bool {
        self == Self::Virtio
    }
}

/// One layer of the image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerPlan {
    /// "base", or the step's name; for people, not part of the key.
    pub name: String,
    /// Hash of `parent` and `inputs`.
    pub key: Key,
    /// The layer below; `None` for the base.
    pub parent: Option<Key>,
    /// What to do.
    pub what: LayerWhat,
    /// Exactly what was hashed together with the parent's key; for the manifest, and to say what changed.
    pub inputs: Value,
}

/// How a layer is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LayerWhat {
    /// A Debian system from packages, onto an empty disk.
    Debian(DebianBase),
    /// A Windows, installed from its original medium onto an empty disk.
    Windows(WindowsBase),
    /// What the guest program makes of an installed Windows, onto the layer below.
    WindowsSetup(WindowsSetup),
    /// A step in the running machine, onto the layer below.
    Step(StepPlan),
}

/// A Debian base layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DebianBase {
    /// The release's code name, such as `bookworm`.
    pub suite: String,
    /// `amd64`.
    pub arch: String,
    /// Where packages come from, the release itself first.
    pub sources: Vec<AptSource>,
    /// mmdebstrap's variant: `minbase`, `apt`, `important`, …
    pub variant: String,
    /// Packages on top of the variant, kernel included; sorted, none twice.
    pub packages: Vec<String>,
    /// Packages that come from `<suite>-backports`, with what they need from there; not repeated in `packages`.
    pub backports: Vec<String>,
    /// The kernel's package; also in `packages` or `backports`.
    pub kernel: String,
    /// What is process 1.
    pub init: Init,
    /// Made with a locked password.
    pub user: Option<BaseUser>,
    /// Such as `en_US.UTF-8` or `C.UTF-8`.
    pub locale: String,
    /// Such as `Europe/Paris` or `Etc/UTC`.
    pub timezone: String,
    /// A console keyboard layout such as `fr`; `None` leaves Debian's.
    pub keyboard: Option<String>,
    /// The same constant for everyone; the recipe's name is given when a machine starts.
    pub hostname: String,
    /// The disk's virtual size.
    pub disk_bytes: u64,
    /// Bootloader and kernel from inside the image, or kernel and initrd beside it.
    pub boot: Boot,
    /// Files laid over the system, in this order.
    pub files: Vec<FileIn>,
    /// Modules that the initrd holds; empty means Debian's own choice ("most").
    pub initrd_modules: Vec<String>,
    /// Modules loaded at every boot.
    pub modules: Vec<String>,
    /// Trees left out, as dpkg path-exclude globs such as `/usr/share/doc/*`.
    pub remove: Vec<String>,
    /// Added to the kernel's command line at every boot.
    pub kernel_options: Vec<String>,
    /// SHA-256 of the `no43-guest` that is laid into the image.
    pub guest_program: String,
}

/// One package source, pinned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AptSource {
    /// Such as `bookworm` or `bookworm-backports`.
    pub suite: String,
    /// Such as `main`.
    pub components: Vec<String>,
    /// Where this host fetches from; not part of the key, because the signed InRelease says what is there.
    pub mirror: String,
    /// What `dists/<suite>/InRelease` must hash to.
    pub in_release_sha256: String,
    /// Only the packages in `DebianBase::backports` are taken from here.
    pub backports: bool,
}

/// The user inside a base layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseUser {
    /// Login name; the home is `/home/<name>`.
    pub name: String,
    /// Further groups; they must exist once the packages are there, except for system groups that are made.
    pub groups: Vec<String>,
    /// May become root by `sudo` without a password.
    pub sudo: bool,
}

/// A file that is laid into the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileIn {
    /// Where it comes from on this host.
    pub from: FileSource,
    /// Absolute path in the guest.
    pub to: String,
    /// Permission bits, such as `0o644`.
    pub mode: u32,
    /// `user:group` in the guest.
    pub owner: String,
    /// Of the contents (of the target's text for a link).
    pub sha256: String,
}

/// Where a file's contents come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileSource {
    /// A file on this host; the path is not part of the key, the contents are.
    Path(PathBuf),
    /// Written in the recipe.
    Text(String),
    /// A symbolic link with this target.
    Link(String),
}

/// A `[[step]]`, carried out through the guest agent in a running machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StepPlan {
    /// Run a program; it must end with 0.
    Run {
        /// Program and arguments, no shell.
        argv: Vec<String>,
        /// Seconds.
        limit: u64,
    },
    /// Copy files in; folders are already expanded, in a fixed order.
    Copy {
        /// What goes where.
        files: Vec<FileIn>,
    },
    /// Install packages by the guest's own package manager.
    Install {
        /// Package names.
        packages: Vec<String>,
        /// Seconds.
        limit: u64,
    },
    /// Put NVIDIA's driver into a Linux guest.
    Driver(LinuxDriver),
    /// Restart the guest and wait for its agent.
    Reboot {
        /// Seconds.
        limit: u64,
    },
    /// Wait until something holds.
    WaitFor {
        /// What is awaited.
        what: Awaited,
        /// Seconds.
        limit: u64,
    },
}

/// NVIDIA's driver for a Linux guest: packages, or a `.run` file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinuxDriver {
    /// The distribution's own packages; empty with a `.run` file.
    pub packages: Vec<String>,
    /// NVIDIA's own installer.
    pub run: Option<RunFile>,
    /// What the module must say; its beginning is enough.
    pub version: Option<String>,
    /// Seconds.
    pub limit: u64,
}

/// NVIDIA's installer for Linux.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunFile {
    /// Where it is.
    pub path: PathBuf,
    /// Of the contents.
    pub sha256: String,
    /// Its size.
    pub bytes: u64,
}

/// What a step can wait for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Awaited {
    /// A file exists in the guest.
    File(String),
    /// A systemd unit is active.
    Unit(String),
    /// A program ends with 0.
    Run(Vec<String>),
}

/// Added to the CPU of a machine that hides: neither KVM's signature nor Microsoft's, because a GeForce driver older than
/// branch 465 looks for both. Any 12 letters do.
pub const HIDDEN: &str = ",kvm=off,hv-vendor-id=no43-no43-43";

/// The machine's size and kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachinePlan {
    /// Virtual CPUs.
    pub cpus: u32,
    /// Guest memory.
    pub memory_mib: u64,
    /// The system disk's virtual size.
    pub disk_bytes: u64,
    /// What starts the guest.
    pub firmware: Firmware,
    /// Where the kernel comes from.
    pub boot: Boot,
    /// UEFI under the lab's emulated KVM kills the outer QEMU after 19 to 32 s, all of 7.2, 10.0 and 11.1: a nested CR8
    /// write raises an interrupt without its lock. The only other way, an interrupt controller outside of KVM, is gone
    /// since QEMU 8. So such a guest runs by TCG; VFIO does not mind.
    pub uefi_under_lab: bool,
    /// Guest memory in huge pages of [`no43_host::HUGE_PAGE_MIB`].
    #[serde(default)]
    pub hugepages: bool,
    /// The guest is not shown that it runs under KVM: for GeForce drivers older than branch 465.
    #[serde(default)]
    pub hidden: bool,
    /// Who a machine is that was installed.
    #[serde(default)]
    pub identity: IdentityKind,
}

/// Who the machine of an installed image is: Windows ties its licence and its keys to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IdentityKind {
    /// A kept one has a UUID and a serial number of its own, and begins with a copy of the image's TPM; a throw-away one is
    /// the machine that was installed.
    #[default]
    Own,
    /// UUID and serial number of its own and an empty TPM, for throw-away ones too.
    Fresh,
    /// The machine that was installed. Only one kept instance of an image can be that.
    Image,
}

/// What starts the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Firmware {
    /// SeaBIOS.
    Bios,
    /// OVMF without Secure Boot.
    Uefi,
    /// OVMF with Secure Boot and Microsoft's keys.
    UefiSecure,
}

/// Where the guest's kernel comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Boot {
    /// Bootloader and kernel inside the image: a kernel upgrade counts, other hypervisors can boot it.
    Disk,
    /// Kernel and initrd beside the disk, given to QEMU (`-kernel`): the lab host and the lab guest.
    Direct,
}

/// One `[[card]]`: what is asked for. Which card it becomes is decided by the lease, atomically.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CardWish {
    /// Which cards would do.
    pub request: CardRequest,
    /// Which functions the machine gets.
    pub functions: CardFunctions,
    /// The ids that the guest sees on the video function, as `vendor:device` in hexadecimal, such as `10de:2484`.
    pub present_as: Option<String>,
    /// A sentence: what this host would lend now; `None` when the plan was made without looking at a host.
    pub here: Option<String>,
}

/// Which cards would do. Every part that is there must hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CardRequest {
    /// As lspci writes it: `01:00` or `0000:01:00`.
    pub address: Option<String>,
    /// `vendor:device` of the video function.
    pub id: Option<String>,
    /// A part of the card's name, such as `RTX 3070`.
    pub model: Option<String>,
    /// Any card that is ready.
    pub any: bool,
    /// How many of them.
    pub count: u32,
}

/// Which of a card's functions the machine gets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CardFunctions {
    /// All of them, which is what a driver expects.
    All,
    /// Only these; the others are bound and leased all the same, so that nobody else uses half a card.
    Only(Vec<CardRole>),
}

/// What a function of a card is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CardRole {
    /// The graphics processor.
    Video,
    /// Sound over HDMI or DisplayPort.
    Audio,
    /// The VirtualLink socket's USB controller.
    Usb,
    /// The controller of that socket.
    Ucsi,
}

/// What `verify` must prove.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChecksPlan {
    /// Every function is there with the presented ids and the host's BAR sizes.
    pub card: bool,
    /// A driver is bound to the video function.
    pub driver: bool,
    /// A DRM connector of the card is there.
    pub connector: bool,
    /// A pattern painted in the guest is on the card's own output.
    pub picture: bool,
    /// No complaint of the kernel about the card, on either side.
    pub quiet: bool,
    /// Work that the card must do; `None` for none.
    #[serde(default)]
    pub work: Option<WorkWish>,
    /// The driver version that must be running: the recipe's `driver.version`.
    #[serde(default)]
    pub driver_version: Option<String>,
    /// Checks that are left out, each with its reason.
    #[serde(default)]
    pub skip: BTreeMap<String, String>,
    /// Checks of the recipe's own.
    #[serde(default)]
    pub own: Vec<OwnCheck>,
    /// After each of these, all of it still holds.
    pub lifecycle: Vec<Lifecycle>,
    /// How long the guest may take until its agent answers, in seconds.
    pub ready_limit: u64,
}

/// One `[[check]]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnCheck {
    /// What the report calls it.
    pub name: String,
    /// Files and folders of this host that go in, under their own names.
    pub copy: Vec<PathBuf>,
    /// Program and arguments, no shell.
    pub run: Vec<String>,
    /// Who runs it.
    pub session: Session,
    /// Seconds.
    pub limit: u64,
    /// The exit code that it must end with.
    pub exit: i64,
    /// A text that must be in its output.
    pub says: Option<String>,
    /// A JSON file that it leaves in the guest; its numbers are kept.
    pub metrics: Option<String>,
    /// PNG files that it leaves in the guest.
    pub pictures: Vec<String>,
    /// Once for each card instead of once.
    pub each_card: bool,
}

/// Who runs a check of one's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Session {
    /// The guest's user.
    User,
    /// The system: root, or a service of Windows.
    Service,
}

/// Which work.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WorkWish {
    /// What the guest program's table says for this guest and card; what cannot be tried is skipped.
    #[default]
    Usual,
    /// These kinds, such as `cuda` or `d3d11`, each of which must have been done.
    Only(Vec<String>),
}

/// Something that a working card survives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Lifecycle {
    /// The guest restarts; QEMU stays.
    Reboot,
    /// The machine is switched off and started again.
    ColdStart,
    /// The cards are taken out of the running guest and plugged in again.
    Replug,
    /// The cards' driver changes in the running guest.
    Driver(DriverStep),
}

/// What happens to the driver of a running guest's cards.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DriverStep {
    /// It lets go of its cards and takes them again; no file changes.
    Reload,
    /// It is taken out of the guest and put in again.
    Reinstall,
    /// The driver of another package takes its place, newer or older: the one of [`DriverPlan::others`] with this name.
    Package(String),
    /// Windows goes back to the driver before.
    Rollback,
}

impl fmt::Display for Lifecycle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reboot => f.write_str("reboot"),
            Self::ColdStart => f.write_str("cold start"),
            Self::Replug => f.write_str("replug"),
            Self::Driver(step) => step.fmt(f),
        }
    }
}

impl fmt::Display for DriverStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reload => f.write_str("reload of the driver"),
            Self::Reinstall => f.write_str("reinstallation of the driver"),
            Self::Package(name) => write!(f, "installation of driver {name}"),
            Self::Rollback => f.write_str("rollback of the driver"),
        }
    }
}

/// Where pictures go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DisplayPlan {
    /// The emulated screen.
    pub console: Console,
}

/// The emulated screen beside the card.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Console {
    /// There from start to end.
    Always,
    /// Not there: the card is the only screen.
    Never,
}

/// How the guest reaches the world.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetworkPlan {
    /// No network card.
    None,
    /// A user network: out, but not in.
    User,
    /// One more machine in the network of a bridge of this host.
    Bridge(String),
    /// One more machine beside an interface of this host.
    Macvtap(String),
}

impl Plan {
    /// The first layer that is not there yet, and that a build would therefore start with; `None` when all are there.
    ///
    /// A later layer that exists does not help: a build resumes at the last good layer *below* a missing one, so the
    /// topmost layer is looked at first, and a whole image needs only that one to exist.
    pub fn first_rebuilt(&self, exists: impl Fn(&Key) -> bool) -> Option<&LayerPlan> {
        let built = self.layers.iter().rposition(|layer| exists(&layer.key));
        self.layers.get(built.map_or(0, |at| at + 1))
    }

    /// Its base is installed in a machine, from a medium.
    #[must_use]
    pub fn is_installed(&self) -> bool {
        self.layers.iter().any(|layer| matches!(layer.what, LayerWhat::Windows(_)))
    }

    /// The key of the whole image: its topmost layer's.
    ///
    /// # Panics
    /// Never for a plan that [`plan()`] made: it has a base.
    #[must_use]
    pub fn image_key(&self) -> &Key {
        &self.layers.last().expect("a plan has at least its base layer").key
    }
}
