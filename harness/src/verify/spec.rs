//! From plan, image and leased cards to the machine: pure, so that a dry run can print it and a test can compare it.

use anyhow::{Context as _, Result, bail};
use no43_builder::plan::{CardFunctions, CardRole, Console, Firmware as PlannedFirmware, NetworkPlan, Plan};
use no43_guest::protocol::BELL_PORT;
use no43_host::card::Role;
use no43_host::{Card, Inventory, PciAddress, PciId};
use no43_machine::spec::{
    DirectKernel, Disk, DiskCache, Display, Firmware, Network, OnPanic, PassedCard, PassedFunction,
    SerialPort, Smp,
};
use no43_machine::{Accel, MachineSpec, RunDirs};
use std::path::{Path, PathBuf};

use crate::checks::{Subject, SubjectFunction};

/// A card that the host has lent, and how the plan shows it to the guest.
#[derive(Debug, Clone)]
pub(crate) struct Borrowed {
    /// The card.
    pub(crate) card: Card,
    /// The functions that the guest gets, in address order, with their roles.
    pub(crate) functions: Vec<(PciAddress, Role)>,
    /// The ids shown on the video function, if not its own.
    pub(crate) present_as: Option<PciId>,
}

impl Borrowed {
    /// What the plan wishes, applied to a lent card.
    pub(crate) fn new(card: Card, which: &CardFunctions, present_as: Option<&str>) -> Result<Self> {
        let present_as = present_as
            .map(|text| text.parse().with_context(|| format!("present-as = \"{text}\"")))
            .transpose()?;
        let functions = card
            .functions
            .iter()
            .copied()
            .zip(card.roles.iter().copied())
            .filter(|(_, role)| wanted(which, *role))
            .collect();
        Ok(Self { card, functions, present_as })
    }

    fn shown(&self, address: PciAddress) -> Option<PciId> {
        self.present_as.filter(|_| address == self.card.address)
    }
}

fn wanted(which: &CardFunctions, role: Role) -> bool {
    match which {
        CardFunctions::All => true,
        CardFunctions::Only(roles) => roles.iter().any(|wish| {
            matches!(
                (wish, role),
                (CardRole::Video, Role::Video)
                    | (CardRole::Audio, Role::Audio)
                    | (CardRole::Usb, Role::Usb)
                    | (CardRole::Ucsi, Role::Ucsi)
            )
        }),
    }
}

/// Files of one machine, all on a local disk: sockets and qcow2 overlays do not work on 9p.
#[derive(Debug, Clone)]
pub(crate) struct Scratch {
    /// Sockets, QEMU's error output, its record.
    pub(crate) machine: PathBuf,
    /// The throw-away overlay on the image's disk.
    pub(crate) disk: PathBuf,
    /// What the guest writes to its first serial port.
    pub(crate) serial: PathBuf,
    /// UEFI variables of this run.
    pub(crate) vars: PathBuf,
    /// The state of this run's TPM, a folder.
    pub(crate) tpm: PathBuf,
    /// Where its swtpm listens.
    pub(crate) tpm_socket: PathBuf,
}

impl Scratch {
    pub(crate) fn at(dir: &Path) -> Self {
        Self {
            machine: dir.join("m"),
            disk: dir.join("disk.qcow2"),
            serial: dir.join("serial.log"),
            vars: dir.join("vars.fd"),
            tpm: dir.join("tpm"),
            tpm_socket: dir.join("tpm.sock"),
        }
    }
}

/// Describes the machine. `uefi` is the firmware found on this host, for plans that want UEFI.
pub(crate) fn machine_spec(
    plan: &Plan,
    kernel: Option<no43_builder::image::DirectKernel>,
    cards: &[Borrowed],
    accel: Accel,
    scratch: &Scratch,
    uefi: Option<Firmware>,
) -> Result<MachineSpec> {
    let mut spec = MachineSpec::new(&plan.name, accel);
    spec.smp = Smp::cpus(
        u16::try_from(plan.machine.cpus).context("machine.cpus: more CPUs than a machine can have")?,
    );
    spec.memory_mib = plan.machine.memory_mib;
    spec.huge_pages = plan.machine.hugepages;
    spec.disks = vec![Disk { boot_index: Some(1), cache: DiskCache::Unsafe, ..Disk::qcow2(&scratch.disk) }];
    spec.serials = vec![scratch.serial.clone()];
    spec.kernel = kernel.map(|direct| DirectKernel {
        kernel: direct.kernel,
        initrd: Some(direct.initrd),
        cmdline: direct.command_line,
    });
    spec.firmware = match (plan.machine.firmware, uefi) {
        (PlannedFirmware::Bios, _) => Firmware::Bios,
        (_, Some(firmware)) => firmware,
        (_, None) => bail!(
            "machine.firmware = \"uefi\", and no UEFI firmware was found on this host: install the package ovmf"
        ),
    };
    spec.network = match plan.network {
        NetworkPlan::None => Network::None,
        // a throw-away machine needs a way out, not a place in this host's network
        NetworkPlan::User | NetworkPlan::Bridge(_) | NetworkPlan::Macvtap(_) => {
            Network::User { mac: None, restrict: false, forwards: Vec::new() }
        }
    };
    spec.display = match plan.display.console {
        Console::Always => Display::Vga,
        Console::Never => Display::None,
    };
    spec.cards = cards.iter().map(passed).collect();
    let bell = RunDirs::at(&scratch.machine).bell_socket();
    spec.ports = vec![SerialPort { name: BELL_PORT.into(), socket: Some(bell) }];
    spec.panic_device = true;
    if plan.is_installed() {
        spec.on_panic = OnPanic::GoOn; // Windows writes its dump after it has told of its stop
    }
    if plan.machine.hidden {
        spec.cpu.push_str(no43_builder::plan::HIDDEN);
    }
    Ok(spec)
}

pub(crate) fn passed(borrowed: &Borrowed) -> PassedCard {
    let functions = borrowed
        .functions
        .iter()
        .map(|(host, _)| PassedFunction { host: *host, present_as: borrowed.shown(*host) });
    PassedCard { functions: functions.collect() }
}

/// What the checks expect of each card: the host's facts, the plan's ids, the machine's places.
pub(crate) fn subjects(
    spec: &MachineSpec,
    cards: &[Borrowed],
    inventory: &Inventory,
) -> Result<Vec<Subject>> {
    cards.iter().enumerate().map(|(index, borrowed)| subject(spec, index, borrowed, inventory)).collect()
}

fn subject(spec: &MachineSpec, index: usize, borrowed: &Borrowed, inventory: &Inventory) -> Result<Subject> {
    let slot = spec.guest_card_address(index);
    let mut functions = Vec::new();
    for (host, role) in &borrowed.functions {
        let there = inventory
            .function(host)
            .with_context(|| format!("{host} has left the bus since it was leased"))?;
        functions.push(SubjectFunction {
            host: *host,
            guest: PciAddress { function: host.function, ..slot }.to_string(),
            role: role.to_string(),
            id: there.id,
            shown_as: borrowed.shown(*host).unwrap_or(there.id),
            bars: there.bars.iter().map(|bar| (bar.index, bar.size)).collect(),
        });
    }
    // the video function first, whatever its number
    functions.sort_by_key(|f| (f.host != borrowed.card.address, f.host));
    if functions.first().is_none_or(|f| f.host != borrowed.card.address) {
        bail!("[[card]] functions leaves out the video function of {}", borrowed.card.titled());
    }
    let given = |address: &PciAddress| functions.iter().any(|f| f.host == *address);
    let whole = borrowed.card.functions.iter().zip(&borrowed.card.roles);
    let left_out =
        whole.filter(|(address, _)| !given(address)).map(|(a, role)| (*a, role.to_string())).collect();
    let link = inventory.function(&borrowed.card.address).and_then(|f| f.link.as_ref());
    Ok(Subject {
        compared: true,
        name: borrowed.card.name.clone(),
        slot: borrowed.card.address.slot_name(),
        left_out,
        link_width: link.and_then(|link| link.width).filter(|width| *width > 0).map(u32::from),
        functions,
    })
}
