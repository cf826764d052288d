//! QEMU's arguments for a [`MachineSpec`]: pure, so that a plan can print them and tests can compare them.

use std::fmt::Write as _;
use std::path::Path;

use no43_host::{HUGE_PAGE_MIB, PciAddress, PciId};

use crate::rundir::{RunDirs, SOCKET_PATH_MAX};
use crate::spec::{
    AGENT_PORT, Attach, Clock, Disk, DiskBus, DiskCache, Display, Firmware, FlashFile, MachineSpec, Network,
    OnPanic, OnReboot, Opened, PassedCard, Share, Smbios, slots,
};

const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

/// SATA ports of the q35 chipset.
const SATA_PORTS: usize = 6;

/// A description that no QEMU can run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// A name with characters that mean something to QEMU, or to the file system.
    #[error("{what} '{name}' may only hold letters, digits, '-', '_' and '.', and not be empty")]
    Name {
        /// Whose name.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// More of a thing than there are places.
    #[error("{count} {what} are too many: there are places for {max}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many are asked for.
        count: usize,
        /// How many there may be.
        max: usize,
    },
    /// The run directory is too deep.
    #[error(
        "the socket path {path} has {length} bytes; the kernel takes {SOCKET_PATH_MAX}: use a shorter run directory"
    )]
    SocketPath {
        /// The path.
        path: String,
        /// Its length in bytes.
        length: usize,
    },
    /// Two functions of a card would be one in the guest.
    #[error(
        "card {card}: two of its functions have the same number {function}; give each device as a card of its own"
    )]
    SameFunction {
        /// The card's place in the list, from 0.
        card: usize,
        /// The function's number.
        function: u8,
    },
    /// A card without functions.
    #[error("card {card} has no functions")]
    EmptyCard {
        /// The card's place in the list, from 0.
        card: usize,
    },
}

/// QEMU's standard output, on which it says nothing: like its standard input, a descriptor that a child gets without unsafe
/// code and without leaking it into other children.
const NETWORK_FD: u32 = 1;

impl MachineSpec {
    /// Whether [`MachineSpec::argv`] makes sense.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self, dirs: &RunDirs) -> Result<(), SpecError> {
        check_name("machine name", &self.name)?;
        self.ports.iter().try_for_each(|port| check_name("port name", &port.name))?;
        self.shares.iter().try_for_each(|share| check_name("share tag", &share.tag))?;
        let on_slots =
            self.disks.iter().filter(|disk| matches!(disk.bus, DiskBus::Virtio | DiskBus::Nvme)).count()
                + self.shares.iter().filter(|share| share.attach == Attach::AtStart).count();
        let places = [
            ("disks and shares", on_slots, usize::from(slots::END_DISK - slots::FIRST_DISK)),
            ("SATA disks and CDs", self.disks.iter().filter(|disk| on_sata(disk)).count(), SATA_PORTS),
            ("cards", self.cards.len(), usize::from(slots::END_CARD - slots::FIRST_CARD)),
            (
                "spare ports",
                usize::from(self.spare_ports),
                usize::from(slots::END_SPARE - slots::FIRST_SPARE),
            ),
        ];
        for (what, count, max) in places {
            if count > max {
                return Err(SpecError::TooMany { what, count, max });
            }
        }
        if let Some(Smbios { manufacturer, product, serial }) = &self.smbios {
            [manufacturer, product, serial]
                .into_iter()
                .try_for_each(|text| check_name("SMBIOS text", text))?;
        }
        self.cards.iter().enumerate().try_for_each(|(index, card)| check_card(index, card))?;
        self.sockets(dirs).iter().try_for_each(|path| check_socket(path))
    }

    /// Every socket on which QEMU will listen.
    pub(crate) fn sockets(&self, dirs: &RunDirs) -> Vec<std::path::PathBuf> {
        let ports = self.ports.iter().map(|port| dirs.port_socket_of(port));
        let people = self.console.iter().chain(&self.vnc).cloned();
        [dirs.qmp_socket(), dirs.agent_socket()].into_iter().chain(people).chain(ports).collect()
    }

    /// QEMU's arguments without QEMU itself. The control socket is descriptor 0, a listening socket that
    /// [`crate::Machine::start`] provides.
    pub fn argv(&self, dirs: &RunDirs) -> Vec<String> {
        let mut argv = Argv::default();
        self.put_base(&mut argv);
        self.put_firmware(&mut argv);
        self.put_control(&mut argv, dirs);
        put_display(&mut argv, self.display);
        self.put_people(&mut argv);
        let mut slot = slots::FIRST_DISK;
        let mut sata = 0;
        for (index, disk) in self.disks.iter().enumerate() {
            put_disk(&mut argv, index, disk, &mut slot, &mut sata);
        }
        for share in &self.shares {
            put_share(&mut argv, share, &mut slot);
        }
        put_network(&mut argv, &self.network);
        for (index, card) in self.cards.iter().enumerate() {
            put_card(&mut argv, index, card);
        }
        for index in 0..self.spare_ports {
            let (slot, chassis) = (slots::FIRST_SPARE + index, 101 + u16::from(index));
            argv.device(format!(
                "pcie-root-port,id=spare{index},bus=pcie.0,addr={slot:#x},chassis={chassis}"
            ));
        }
        if self.incoming {
            argv.pair("-incoming", "defer");
        }
        if self.paused {
            argv.flag("-S");
        }
        argv.0.extend(self.extra.iter().cloned());
        argv.0
    }

    fn put_base(&self, argv: &mut Argv) {
        argv.pair("-name", format!("guest={},debug-threads=on", self.name));
        argv.flag("-nodefaults");
        argv.flag("-no-user-config");
        if self.sandbox {
            argv.pair("-sandbox", SANDBOX);
        }
        let mut machine = format!("{},vmport=off,dump-guest-core=off", self.machine_type);
        if self.virtual_iommu && self.accel == crate::Accel::Kvm {
            machine.push_str(",kernel-irqchip=split");
        }
        if let Firmware::Uefi { smm, .. } = &self.firmware {
            let _ = write!(machine, ",smm={},pflash0=code,pflash1=vars", on_off(*smm));
        }
        // virtiofsd reads and writes the guest's memory itself
        let shared = self.shares.iter().any(|share| share.virtiofs.is_some());
        if shared || self.huge_pages {
            // taken at once: a page that is missing later would kill the guest
            let pages = format!(",hugetlb=on,hugetlbsize={HUGE_PAGE_MIB}M,prealloc=on");
            let pages = if self.huge_pages { pages.as_str() } else { "" };
            let (size, share) = (self.memory_mib, on_off(shared));
            argv.pair("-object", format!("memory-backend-memfd,id=ram,size={size}M,share={share}{pages}"));
            machine.push_str(",memory-backend=ram");
        }
        argv.pair("-machine", machine);
        argv.pair("-accel", self.accel.argument());
        argv.pair("-cpu", self.cpu.clone());
        let smp = self.smp;
        let (count, sockets, cores, threads) = (smp.count(), smp.sockets, smp.cores, smp.threads);
        argv.pair("-smp", format!("{count},sockets={sockets},cores={cores},threads={threads}"));
        argv.pair("-m", format!("{}M", self.memory_mib));
        argv.pair("-rtc", if self.clock == Clock::Utc { "base=utc" } else { "base=localtime,driftfix=slew" });
        if let Some(uuid) = &self.uuid {
            argv.pair("-uuid", uuid.clone());
        }
        if let Some(Smbios { manufacturer, product, serial }) = &self.smbios {
            argv.pair(
                "-smbios",
                format!("type=1,manufacturer={manufacturer},product={product},serial={serial}"),
            );
        }
        if self.on_panic == OnPanic::GoOn {
            argv.pair("-action", "panic=none");
        }
        if self.on_reboot == OnReboot::Exit {
            argv.flag("-no-reboot");
        }
        if let Some(guid) = &self.vmgenid {
            argv.device(format!("vmgenid,guid={guid}"));
        }
        // First of all PCI devices: those that come before it would bypass it.
        if self.virtual_iommu {
            argv.device("intel-iommu,intremap=on,caching-mode=on");
        }
    }

    fn put_firmware(&self, argv: &mut Argv) {
        if let Firmware::Uefi { code, vars, smm } = &self.firmware {
            argv.flash("code", code, true);
            argv.flash("vars", vars, false);
            if *smm {
                argv.pair("-global", "driver=cfi.pflash01,property=secure,value=on");
            }
        }
        if let Some(kernel) = &self.kernel {
            argv.pair("-kernel", kernel.kernel.display().to_string());
            if let Some(initrd) = &kernel.initrd {
                argv.pair("-initrd", initrd.display().to_string());
            }
            argv.pair("-append", kernel.cmdline.clone());
        }
    }

    /// The USB controller, and what is there for people who look at the emulated screen.
    fn put_people(&self, argv: &mut Argv) {
        let wants_usb = self.usb_controller || self.vnc.is_some() || !self.usb_devices.is_empty();
        if wants_usb || self.disks.iter().any(|disk| disk.bus == DiskBus::UsbStick) {
            argv.device(format!("qemu-xhci,id=usb,bus=pcie.0,addr={:#x}", slots::USB));
        }
        if let Some(socket) = &self.vnc {
            argv.pair("-vnc", format!("unix:{}", escaped(socket)));
            // absolute positions: a viewer's pointer is where the guest's is
            argv.device("usb-tablet,bus=usb.0");
        }
        for device in &self.usb_devices {
            argv.device(format!("{device},bus=usb.0"));
        }
        if let Some(backend) = &self.audio {
            argv.pair("-audiodev", format!("{backend},id=sound"));
            argv.device(format!("ich9-intel-hda,id=sound,bus=pcie.0,addr={:#x}", slots::SOUND));
            argv.device("hda-duplex,bus=sound.0,audiodev=sound");
        }
    }

    fn put_control(&self, argv: &mut Argv, dirs: &RunDirs) {
        argv.pair("-chardev", "socket,id=qmp,fd=0,server=on,wait=off");
        argv.pair("-mon", "chardev=qmp,mode=control");
        for (index, file) in self.serials.iter().enumerate() {
            let file = escaped(file);
            let backend = match self.console.as_deref().filter(|_| index == 0) {
                Some(socket) => {
                    let socket = escaped(socket);
                    format!("socket,id=serial0,path={socket},server=on,wait=off,logfile={file},logappend=on")
                }
                None => format!("file,id=serial{index},path={file}"),
            };
            argv.pair("-chardev", backend);
            argv.pair("-serial", format!("chardev:serial{index}"));
        }
        if let Some(socket) = &self.tpm {
            argv.pair("-chardev", format!("socket,id=tpm,path={}", escaped(socket)));
            argv.pair("-tpmdev", "emulator,id=tpm,chardev=tpm");
            argv.device("tpm-crb,tpmdev=tpm");
        }
        if self.panic_device {
            argv.device("pvpanic");
        }
        argv.device(format!("virtio-serial-pci,id=ports,bus=pcie.0,addr={:#x}", slots::SERIAL_PORTS));
        let agent = (AGENT_PORT.to_owned(), dirs.agent_socket());
        let others = self.ports.iter().map(|port| (port.name.clone(), dirs.port_socket_of(port)));
        for (index, (name, socket)) in std::iter::once(agent).chain(others).enumerate() {
            let path = escaped(&socket);
            argv.pair("-chardev", format!("socket,id=port{index},path={path},server=on,wait=off"));
            // Port 0 is kept for consoles.
            let number = index + 1;
            argv.device(format!(
                "virtserialport,id=port{index},bus=ports.0,nr={number},chardev=port{index},name={name}"
            ));
        }
    }
}

impl RunDirs {
    pub(crate) fn port_socket_of(&self, port: &crate::spec::SerialPort) -> std::path::PathBuf {
        port.socket.clone().unwrap_or_else(|| self.port_socket(&port.name))
    }
}

/// QEMU's arguments in the making.
#[derive(Default)]
struct Argv(Vec<String>);

impl Argv {
    fn flag(&mut self, flag: &str) {
        self.0.push(flag.to_owned());
    }

    fn pair(&mut self, flag: &str, value: impl Into<String>) {
        self.0.extend([flag.to_owned(), value.into()]);
    }

    fn device(&mut self, value: impl Into<String>) {
        self.pair("-device", value);
    }

    fn flash(&mut self, name: &str, file: &FlashFile, read_only: bool) {
        let (path, format, lock) = (escaped(&file.path), file.format.name(), on_off(read_only));
        self.pair("-blockdev", format!("driver=file,node-name={name}-file,filename={path},read-only={lock}"));
        self.pair("-blockdev", format!("driver={format},node-name={name},file={name}-file,read-only={lock}"));
    }
}

fn put_display(argv: &mut Argv, display: Display) {
    let dbus = matches!(display, Display::Dbus | Display::DbusOnly);
    argv.pair("-display", if dbus { "dbus,p2p=on" } else { "none" });
    if matches!(display, Display::Vga | Display::Dbus) {
        argv.device(format!("VGA,id=screen,bus=pcie.0,addr={:#x}", slots::SCREEN));
    }
}

fn put_disk(argv: &mut Argv, index: usize, disk: &Disk, slot: &mut u8, sata: &mut usize) {
    let (path, lock, format) = (escaped(&disk.path), on_off(disk.read_only), disk.format.name());
    let cache = match disk.cache {
        DiskCache::WriteBack => "",
        DiskCache::Unsafe => ",cache.no-flush=on",
    };
    let common = format!("read-only={lock}{cache}");
    // Discards go down to the file, so that a guest that trims its disk gives space back to the host.
    argv.pair(
        "-blockdev",
        format!("driver=file,node-name=disk{index}-file,filename={path},discard=unmap,{common}"),
    );
    argv.pair(
        "-blockdev",
        format!("driver={format},node-name=disk{index},file=disk{index}-file,discard=unmap,{common}"),
    );
    let mut place = |kind: &str| {
        let device = format!("{kind},bus=pcie.0,addr={:#x}", *slot);
        *slot += 1;
        device
    };
    let mut next_sata = |kind: &str| {
        let device = format!("{kind},bus=ide.{sata}");
        *sata += 1;
        device
    };
    let mut device = match disk.bus {
        DiskBus::Virtio => place("virtio-blk-pci"),
        DiskBus::Nvme => place("nvme"),
        DiskBus::Ahci => next_sata("ide-hd"),
        DiskBus::Cd => next_sata("ide-cd"),
        DiskBus::UsbStick => "usb-storage,bus=usb.0,removable=on".to_owned(),
    };
    let _ = write!(device, ",id=disk{index},drive=disk{index}");
    match (&disk.serial, disk.bus) {
        (Some(serial), _) => drop(write!(device, ",serial={serial}")),
        // NVMe does not start without one.
        (None, DiskBus::Nvme) => drop(write!(device, ",serial=disk{index}")),
        (None, _) => {}
    }
    if let Some(boot_index) = disk.boot_index {
        let _ = write!(device, ",bootindex={boot_index}");
    }
    argv.device(device);
}

fn put_share(argv: &mut Argv, share: &Share, slot: &mut u8) {
    let tag = &share.tag;
    if let Some(socket) = &share.virtiofs {
        argv.pair("-chardev", format!("socket,id=share-{tag},path={}", escaped(socket)));
        argv.device(format!(
            "vhost-user-fs-pci,id=share-{tag},bus=pcie.0,addr={slot:#x},chardev=share-{tag},tag={tag}"
        ));
        *slot += 1;
        return;
    }
    let (path, lock) = (escaped(&share.path), on_off(share.read_only));
    // security_model=none: files get the owner that QEMU's user can give them. multidevs=remap: inode numbers of several
    // file systems below the directory cannot clash.
    argv.pair(
        "-fsdev",
        format!("local,id={tag},path={path},security_model=none,multidevs=remap,readonly={lock}"),
    );
    if share.attach == Attach::AtStart {
        argv.device(format!(
            "virtio-9p-pci,id=share-{tag},bus=pcie.0,addr={slot:#x},fsdev={tag},mount_tag={tag}"
        ));
        *slot += 1;
    }
}

fn put_network(argv: &mut Argv, network: &Network) {
    let (netdev, mac) = match network {
        Network::None => return,
        Network::User { mac, restrict, forwards } => {
            let mut netdev = format!("user,id=net0,restrict={}", on_off(*restrict));
            for forward in forwards {
                let _ = write!(netdev, ",hostfwd=tcp:127.0.0.1:{}-:{}", forward.host, forward.guest);
            }
            (netdev, mac.as_ref())
        }
        Network::Opened { mac, what: Opened::Tap } => (format!("tap,id=net0,fd={NETWORK_FD}"), Some(mac)),
        Network::Opened { mac, what: Opened::Socket } => {
            (format!("stream,id=net0,server=off,addr.type=fd,addr.str={NETWORK_FD}"), Some(mac))
        }
    };
    argv.pair("-netdev", netdev);
    // No option ROM: a machine with an empty disk should say so at once instead of trying PXE.
    let mut device =
        format!("virtio-net-pci,id=net0,bus=pcie.0,addr={:#x},netdev=net0,romfile=", slots::NETWORK);
    if let Some(mac) = mac {
        let _ = write!(device, ",mac={mac}");
    }
    argv.device(device);
}

fn put_card(argv: &mut Argv, index: usize, card: &PassedCard) {
    let (slot, chassis) = (usize::from(slots::FIRST_CARD) + index, index + 1);
    let port = card_port(index);
    argv.device(format!("pcie-root-port,id={port},bus=pcie.0,addr={slot:#x},chassis={chassis}"));
    let several = card.functions.len() > 1;
    for function in functions(index, card) {
        let PluggedFunction { id, host, number, .. } = function;
        let mut device = format!("vfio-pci,id={id},host={host},bus={port},addr=0x0.{number:#x}");
        if several && number == 0 {
            device.push_str(",multifunction=on");
        }
        if let Some(id) = function.present_as {
            let _ = write!(device, ",x-pci-vendor-id={:#06x},x-pci-device-id={:#06x}", id.vendor, id.device);
        }
        argv.device(device);
    }
}

/// The root port of a card.
pub(crate) fn card_port(index: usize) -> String {
    format!("card{index}")
}

/// A function as QEMU has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PluggedFunction {
    /// The device's name.
    pub(crate) id: String,
    /// Where it is on this host.
    pub(crate) host: PciAddress,
    /// Its number in the guest.
    pub(crate) number: u8,
    /// The ids that the guest sees instead of its own.
    pub(crate) present_as: Option<PciId>,
}

/// A card's functions as QEMU has them, in the card's order.
pub(crate) fn functions(index: usize, card: &PassedCard) -> Vec<PluggedFunction> {
    let numbered = card.functions.iter().zip(function_numbers(card));
    let plugged = numbered.map(|(function, number)| PluggedFunction {
        id: format!("{}f{number}", card_port(index)),
        host: function.host,
        number,
        present_as: function.present_as,
    });
    plugged.collect()
}

/// The host's function numbers. A guest looks at the others only if there is a function 0, so a card without one (a virtual
/// function, say) starts there.
fn function_numbers(card: &PassedCard) -> Vec<u8> {
    let mut numbers: Vec<u8> = card.functions.iter().map(|function| function.host.function).collect();
    if !numbers.contains(&0)
        && let Some(first) = numbers.first_mut()
    {
        *first = 0;
    }
    numbers
}

fn check_card(index: usize, card: &PassedCard) -> Result<(), SpecError> {
    if card.functions.is_empty() {
        return Err(SpecError::EmptyCard { card: index });
    }
    let mut seen = [false; 256];
    for function in function_numbers(card) {
        if std::mem::replace(&mut seen[usize::from(function)], true) {
            return Err(SpecError::SameFunction { card: index, function });
        }
    }
    Ok(())
}

fn check_name(what: &'static str, name: &str) -> Result<(), SpecError> {
    let fine = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if !name.is_empty() && name.bytes().all(fine) {
        return Ok(());
    }
    Err(SpecError::Name { what, name: name.to_owned() })
}

fn check_socket(path: &Path) -> Result<(), SpecError> {
    let length = path.as_os_str().len();
    if length <= SOCKET_PATH_MAX {
        return Ok(());
    }
    Err(SpecError::SocketPath { path: path.display().to_string(), length })
}

fn on_sata(disk: &Disk) -> bool {
    matches!(disk.bus, DiskBus::Ahci | DiskBus::Cd)
}

fn on_off(value: bool) -> &'static str {
    if value { "on" } else { "off" }
}

/// QEMU splits option values at commas; a doubled one stands for itself.
fn escaped(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

#[cfg(test)]
mod tests;
