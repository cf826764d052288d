//! What one machine is made of: a pure description that turns into QEMU's arguments and nothing else.
//!
//! Everything that the guest can see has a fixed PCI address (see [`slots`]), so that adding a card or a disk never moves
//! another device: Windows ties drivers and Linux ties interface names to them.

use std::path::PathBuf;

use no43_host::{PciAddress, PciId};
use serde::{Deserialize, Serialize};

use crate::Accel;

/// The machine type when nothing else is asked for: versioned, because a snapshot, and Windows' idea of "the same
/// computer", outlive a QEMU upgrade. Every QEMU since 7.2 (Debian 12) knows it.
pub const DEFAULT_MACHINE_TYPE: &str = "pc-q35-7.2";

/// The virtio-serial port on which the guest agent listens.
pub const AGENT_PORT: &str = "org.qemu.guest_agent.0";

/// The fixed places on the root bus `pcie.0`. What [`MachineSpec::extra`] adds takes the free ones from below.
pub mod slots {
    /// The emulated screen, if there is one.
    pub const SCREEN: u8 = 0x01;
    /// The virtio-serial controller with the agent's port.
    pub const SERIAL_PORTS: u8 = 0x02;
    /// The network card.
    pub const NETWORK: u8 = 0x03;
    /// The USB controller, if a pointer, a keyboard or a USB device of the host hangs on it.
    pub const USB: u8 = 0x04;
    /// The emulated sound card.
    pub const SOUND: u8 = 0x05;
    /// The first disk or share; the others follow.
    pub const FIRST_DISK: u8 = 0x06;
    /// One past the last disk or share.
    pub const END_DISK: u8 = 0x10;
    /// The root port of the first card; the others follow.
    pub const FIRST_CARD: u8 = 0x10;
    /// One past the last card's root port.
    pub const END_CARD: u8 = 0x18;
    /// The first spare root port for hot-plug; the others follow.
    pub const FIRST_SPARE: u8 = 0x18;
    /// One past the last spare root port.
    pub const END_SPARE: u8 = 0x1f;
}

/// One machine, completely described. [`MachineSpec::new`] gives a bare one; fields are set by name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MachineSpec {
    /// Shown by `ps` and in QEMU's messages; letters, digits, `-`, `_` and `.`.
    pub name: String,
    /// KVM or TCG.
    pub accel: Accel,
    /// A versioned machine type such as `pc-q35-10.0`.
    pub machine_type: String,
    /// QEMU's `-cpu` value: `host` under KVM, `max` under TCG, with further flags.
    pub cpu: String,
    /// The processors that the guest sees.
    pub smp: Smp,
    /// Guest memory in MiB.
    pub memory_mib: u64,
    /// The memory is in huge pages of 2 MiB, all of them taken from the host's pool before the guest runs.
    pub huge_pages: bool,
    /// SeaBIOS or UEFI.
    pub firmware: Firmware,
    /// A kernel that QEMU loads itself instead of booting a disk.
    pub kernel: Option<DirectKernel>,
    /// Disks and CDs, in the order in which the guest sees them.
    pub disks: Vec<Disk>,
    /// Host cards passed through, each behind its own root port.
    pub cards: Vec<PassedCard>,
    /// Virtio-serial ports beside the agent's.
    pub ports: Vec<SerialPort>,
    /// Serial consoles (COM1, COM2 …), each written to a file.
    pub serials: Vec<PathBuf>,
    /// Where a person can sit down at the first serial console (a socket); the file still gets everything.
    pub console: Option<PathBuf>,
    /// Where a person can look at the emulated screen, with keyboard and mouse: a socket that speaks VNC.
    pub vnc: Option<PathBuf>,
    /// A USB controller is there even if nothing hangs on it at the start.
    pub usb_controller: bool,
    /// USB devices of this host, as QEMU's arguments for its bus `usb.0`.
    pub usb_devices: Vec<String>,
    /// An emulated sound card, played by this backend of QEMU's (`pipewire`, `pa`).
    pub audio: Option<String>,
    /// Host directories for the guest.
    pub shares: Vec<Share>,
    /// The guest's network.
    pub network: Network,
    /// The emulated screen. It is not the card's own output.
    pub display: Display,
    /// A fresh GUID here makes a restored guest's kernel reseed its random numbers.
    pub vmgenid: Option<String>,
    /// The SMBIOS UUID of the machine, if it must be the same on every start.
    pub uuid: Option<String>,
    /// What else the machine says about itself in its SMBIOS tables, if not QEMU's own words.
    pub smbios: Option<Smbios>,
    /// The control socket of a running swtpm ([`crate::tpm`]): the machine has a TPM 2.0.
    pub tpm: Option<PathBuf>,
    /// A guest that dies can say so: event `GUEST_PANICKED`. Under KVM Windows' stop codes come with it.
    pub panic_device: bool,
    /// What the guest's own stop does, where it is told.
    pub on_panic: OnPanic,
    /// What the guest finds in its real-time clock.
    pub clock: Clock,
    /// What a reboot by the guest does.
    pub on_reboot: OnReboot,
    /// Empty root ports (`spare0`, `spare1` …) for devices that are plugged in later; at most 7.
    pub spare_ports: u8,
    /// An emulated IOMMU (VT-d with interrupt remapping), for a guest that passes devices on: the lab host.
    pub virtual_iommu: bool,
    /// Start with the CPUs stopped; [`crate::Machine::cont`] lets them go.
    pub paused: bool,
    /// Wait for a saved state instead of booting; see [`crate::snapshot::restore`].
    pub incoming: bool,
    /// QEMU's seccomp sandbox with everything denied. Only for `false` is there ever a reason to look twice.
    pub sandbox: bool,
    /// Further arguments, put last: the lab's own devices.
    pub extra: Vec<String>,
}

impl MachineSpec {
    /// A machine with 1 CPU, 512 MiB, SeaBIOS, the agent's port, the sandbox, and nothing else.
    pub fn new(name: impl Into<String>, accel: Accel) -> Self {
        MachineSpec {
            name: name.into(),
            accel,
            machine_type: DEFAULT_MACHINE_TYPE.into(),
            cpu: accel.default_cpu().into(),
            smp: Smp::cpus(1),
            memory_mib: 512,
            huge_pages: false,
            firmware: Firmware::Bios,
            kernel: None,
            disks: Vec::new(),
            cards: Vec::new(),
            ports: Vec::new(),
            serials: Vec::new(),
            console: None,
            vnc: None,
            usb_controller: false,
            usb_devices: Vec::new(),
            audio: None,
            shares: Vec::new(),
            network: Network::None,
            display: Display::None,
            vmgenid: None,
            uuid: None,
            smbios: None,
            tpm: None,
            panic_device: false,
            on_panic: OnPanic::End,
            clock: Clock::Utc,
            on_reboot: OnReboot::Reset,
            spare_ports: 0,
            virtual_iommu: false,
            paused: false,
            incoming: false,
            sandbox: true,
            extra: Vec::new(),
        }
    }

    /// The place where the guest finds function 0 of card number `index`: behind the root port in slot
    /// `FIRST_CARD + index`. Bus numbers are given by the guest's firmware in the order of slots, so this holds as long as
    /// [`MachineSpec::extra`] adds no bridge.
    pub fn guest_card_address(&self, index: usize) -> PciAddress {
        PciAddress { domain: 0, bus: u8::try_from(index + 1).unwrap_or(u8::MAX), device: 0, function: 0 }
    }

    /// The memory in bytes that must be lockable before QEMU starts, because VFIO pins all of it. `None` if nothing is
    /// pinned.
    pub fn memlock_needed(&self) -> Option<u64> {
        (!self.cards.is_empty()).then(|| no43_host::memlock::needed(self.memory_mib))
    }
}

/// The processors as the guest sees them; `sockets × cores × threads` is the number of CPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Smp {
    /// Processor packages.
    pub sockets: u16,
    /// Cores in each package.
    pub cores: u16,
    /// Threads of each core.
    pub threads: u16,
}

impl Smp {
    /// One package of `count` cores with one thread each.
    pub fn cpus(count: u16) -> Self {
        Smp { sockets: 1, cores: count, threads: 1 }
    }

    /// How many CPUs that makes.
    pub fn count(self) -> u32 {
        u32::from(self.sockets) * u32::from(self.cores) * u32::from(self.threads)
    }
}

/// What a machine says about its maker in SMBIOS table 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Smbios {
    /// Such as `no43`.
    pub manufacturer: String,
    /// Such as `VM`.
    pub product: String,
    /// A number of this machine alone: Windows and its shop tell machines apart by it.
    pub serial: String,
}

/// What starts the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Firmware {
    /// QEMU's own SeaBIOS.
    Bios,
    /// UEFI from two flash files; [`crate::firmware::find`] knows where the distribution keeps them.
    Uefi {
        /// The firmware's code, never written.
        code: FlashFile,
        /// The machine's own copy of the variables, written by the guest at every boot.
        vars: FlashFile,
        /// The code needs System Management Mode (Secure Boot builds do).
        smm: bool,
    },
}

/// One flash image and its format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlashFile {
    /// Where it is.
    pub path: PathBuf,
    /// Fedora ships qcow2, Debian raw.
    pub format: DiskFormat,
}

/// A Linux kernel that QEMU loads itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectKernel {
    /// The `bzImage`.
    pub kernel: PathBuf,
    /// The initial RAM file system.
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    pub cmdline: String,
}

/// A disk or CD.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// The image file.
    pub path: PathBuf,
    /// Named, never guessed: a guest that writes a qcow2 header into a raw disk must not be believed.
    pub format: DiskFormat,
    /// Shown to the guest (`/dev/disk/by-id/…`), at most 20 characters.
    pub serial: Option<String>,
    /// The guest cannot write.
    pub read_only: bool,
    /// How it is attached.
    pub bus: DiskBus,
    /// Place in the boot order, from 1.
    pub boot_index: Option<u32>,
    /// What a full cache of the host may lose.
    pub cache: DiskCache,
}

impl Disk {
    /// A writable virtio disk in qcow2 format.
    pub fn qcow2(path: impl Into<PathBuf>) -> Self {
        Disk {
            path: path.into(),
            format: DiskFormat::Qcow2,
            serial: None,
            read_only: false,
            bus: DiskBus::Virtio,
            boot_index: None,
            cache: DiskCache::WriteBack,
        }
    }

    /// A writable virtio disk in raw format.
    pub fn raw(path: impl Into<PathBuf>) -> Self {
        Disk { format: DiskFormat::Raw, ..Disk::qcow2(path) }
    }

    /// A writable raw disk in a USB stick.
    pub fn usb_stick(path: impl Into<PathBuf>) -> Self {
        Disk { bus: DiskBus::UsbStick, ..Disk::raw(path) }
    }

    /// A CD in a SATA drive.
    pub fn cd(path: impl Into<PathBuf>) -> Self {
        Disk { read_only: true, bus: DiskBus::Cd, ..Disk::raw(path) }
    }
}

/// The format of a disk or flash image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskFormat {
    /// As the guest sees it.
    Raw,
    /// QEMU's format with backing files.
    Qcow2,
}

impl DiskFormat {
    pub(crate) fn name(self) -> &'static str {
        match self {
            DiskFormat::Raw => "raw",
            DiskFormat::Qcow2 => "qcow2",
        }
    }
}

/// How a disk is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskBus {
    /// virtio-blk: quick, needs a driver in Windows.
    Virtio,
    /// SATA disk: every guest has the driver. At most 6 SATA devices.
    Ahci,
    /// SATA CD drive.
    Cd,
    /// NVMe: Windows 10 and newer have the driver.
    Nvme,
    /// A USB stick, removable: where Windows Setup looks for its answer file first.
    UsbStick,
}

/// What QEMU does with the guest's flushes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskCache {
    /// Flushes reach the disk: for anything that is kept.
    WriteBack,
    /// Flushes are ignored: for throw-away overlays and builds that are published whole or not at all.
    Unsafe,
}

/// A card of the host, given to the guest with all its functions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassedCard {
    /// In the order of their function numbers. The guest sees the same numbers as the host.
    pub functions: Vec<PassedFunction>,
}

/// One function of a passed card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassedFunction {
    /// Where it is on the host.
    pub host: PciAddress,
    /// Show other ids to the guest: a negative control, or a known workaround.
    pub present_as: Option<PciId>,
}

/// A virtio-serial port with a Unix socket on our side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialPort {
    /// The name in the guest: `/dev/virtio-ports/<name>`.
    pub name: String,
    /// Where QEMU listens; `None` puts it into the run directory ([`crate::RunDirs::port_socket`]).
    pub socket: Option<PathBuf>,
}

/// A host directory for the guest, by 9p or virtiofs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// The name by which the guest mounts it, and the id of the `-fsdev`; letters, digits and `-`.
    pub tag: String,
    /// The directory.
    pub path: PathBuf,
    /// The guest cannot write. A virtiofsd sees to it itself.
    pub read_only: bool,
    /// Where a virtiofsd serves it; by 9p without one. Guest memory is then shared with that program.
    pub virtiofs: Option<PathBuf>,
    /// From the start, or later by [`crate::hotplug::plug_share`] (a mounted share forbids saving the machine).
    pub attach: Attach,
}

/// When a device appears in the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Attach {
    /// Before the guest starts.
    AtStart,
    /// When it is plugged in.
    Later,
}

/// The guest's network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Network {
    /// No network card.
    None,
    /// Outgoing connections by QEMU's own user-mode stack.
    User {
        /// The card's MAC address; QEMU's default if absent.
        mac: Option<String>,
        /// No way out: only the forwards and the built-in DHCP work.
        restrict: bool,
        /// Ports of 127.0.0.1 on the host that lead into the guest.
        forwards: Vec<Forward>,
    },
    /// Something that was opened for QEMU: [`StartOptions::network`](crate::StartOptions::network).
    Opened {
        /// The card's MAC address.
        mac: String,
        /// What it is.
        what: Opened,
    },
}

/// What was opened for QEMU, on a descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Opened {
    /// A tap or macvtap.
    Tap,
    /// A connected socket: another program (passt) is the guest's network.
    Socket,
}

/// One TCP port of the host that leads into the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forward {
    /// The port on 127.0.0.1 of the host.
    pub host: u16,
    /// The port in the guest.
    pub guest: u16,
}

/// The emulated screen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Display {
    /// No emulated screen (one in [`MachineSpec::extra`] can still be looked at by `screendump`).
    None,
    /// A VGA adapter, looked at by `screendump`.
    Vga,
    /// A VGA adapter, and QEMU's D-Bus display for pushed frames. Needs QEMU's module `ui-dbus`.
    Dbus,
    /// QEMU's D-Bus display for the screens that [`MachineSpec::extra`] adds; no adapter of its own.
    DbusOnly,
}

/// What the guest finds in its real-time clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Clock {
    /// Linux.
    Utc,
    /// Windows.
    LocalTime,
}

/// What a panic of the guest does, or a stop code of Windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnPanic {
    /// QEMU ends.
    End,
    /// The machine goes on: Windows writes a dump then, and restarts by itself. The event comes all the same.
    GoOn,
}

/// What a reboot by the guest does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnReboot {
    /// The machine starts again (event `RESET`).
    Reset,
    /// QEMU ends: a panic of a lean guest is then seen as an end, not as a loop.
    Exit,
}
