//! From an instance, its plan and its cards to the machine.

use std::path::{Path, PathBuf};

use no43_builder::image::{DirectKernel, Image};
use no43_builder::plan::{AudioPlan, Firmware as PlannedFirmware, Plan, UsbPlan};
use no43_machine::firmware::{self, Wanted};
use no43_machine::spec::{Attach, Disk, DiskCache, Firmware, FlashFile, Forward, Network, SerialPort, Share};
use no43_machine::{Accel, MachineSpec, RunDirs};

use crate::exit_codes;
use crate::instance::Instance;
use crate::verify::spec::{Borrowed, Scratch, machine_spec};

use super::host::Refusal;

/// Everything that a kept machine is made of.
pub(super) struct Parts<'a> {
    pub(super) plan: &'a Plan,
    pub(super) instance: &'a Instance,
    pub(super) image: Option<&'a Image>,
    pub(super) cards: &'a [Borrowed],
    pub(super) accel: Accel,
    pub(super) dirs: &'a RunDirs,
    /// Read-only raw disks of one run: a job's secrets.
    pub(super) extra_disks: &'a [PathBuf],
}

/// The port on which a Linux guest's shell is served.
pub const SHELL_PORT: &str = "org.no43.shell";

/// Its socket on this side.
pub fn shell_socket(dirs: &RunDirs) -> PathBuf {
    dirs.dir().join("shell.sock")
}

/// Where a person sits down at the first serial console.
pub fn console_socket(dirs: &RunDirs) -> PathBuf {
    dirs.dir().join("console.sock")
}

/// Where the emulated screen is, in the protocol of VNC.
pub fn vnc_socket(dirs: &RunDirs) -> PathBuf {
    dirs.dir().join("vnc.sock")
}

/// The serial log of a running machine.
pub(crate) fn serial_log(dirs: &RunDirs) -> PathBuf {
    dirs.dir().join("serial.log")
}

/// Where swtpm listens for the machine.
pub(crate) fn tpm_socket(dirs: &RunDirs) -> PathBuf {
    dirs.dir().join("tpm.sock")
}

/// The machine, and the folder of its TPM's state if it has a TPM.
pub(super) fn describe(parts: &Parts<'_>) -> Result<(MachineSpec, Option<PathBuf>), Refusal> {
    let Parts { plan, instance, dirs, .. } = parts;
    let setup = |error: String| Refusal::new(exit_codes::HOST_SETUP, error);
    let scratch = Scratch {
        machine: dirs.dir().to_owned(),
        disk: instance.disk(),
        serial: serial_log(dirs),
        vars: instance.vars(),
        tpm: instance.tpm(),
        tpm_socket: tpm_socket(dirs),
    };
    let kernel = parts.image.map_or_else(|| own_kernel(instance), Image::direct_kernel);
    let private =
        instance.private_parts().map_err(|error| Refusal::new(exit_codes::INSTANCE, error.to_string()))?;
    let uefi = match &private {
        Some(private) => Some(private.firmware.clone()),
        None => uefi(plan, &instance.vars()).map_err(setup)?,
    };
    let mut spec = machine_spec(plan, kernel, parts.cards, parts.accel, &scratch, uefi)
        .map_err(|error| setup(format!("{error:#}")))?;
    instance.name().clone_into(&mut spec.name);
    spec.uuid = Some(instance.record.uuid.clone());
    if let Some(system) = spec.disks.first_mut() {
        system.serial = Some(instance.record.serial.clone());
        system.cache = if instance.record.ephemeral { DiskCache::Unsafe } else { DiskCache::WriteBack };
    }
    for kept in &instance.record.disks {
        let file = instance.kept_disk(kept);
        let disk = if kept.path.is_some() && !is_qcow2(&file) { Disk::raw(file) } else { Disk::qcow2(file) };
        spec.disks.push(Disk { serial: Some(kept.serial.clone()), ..disk });
    }
    for (n, file) in parts.extra_disks.iter().enumerate() {
        let serial = Some(if n == 0 { "no43-secrets".to_owned() } else { format!("no43-extra{n}") });
        spec.disks.push(Disk { serial, read_only: true, ..Disk::raw(file) });
    }
    if let Network::User { mac, forwards, .. } = &mut spec.network {
        *mac = Some(instance.record.mac.clone());
        forwards.extend(plan.devices.forwards.iter().map(|one| Forward { host: one.host, guest: one.guest }));
    }
    devices(plan, &mut spec);
    spec.console = Some(console_socket(dirs));
    spec.vnc = (spec.display != no43_machine::spec::Display::None).then(|| vnc_socket(dirs));
    spec.ports.push(SerialPort { name: SHELL_PORT.into(), socket: Some(shell_socket(dirs)) });
    spec.panic_device = true;
    let Some(private) = private else { return Ok((spec, None)) };
    private.apply(&mut spec);
    spec.tpm = private.tpm_state.as_ref().map(|_| tpm_socket(dirs));
    Ok((spec, private.tpm_state))
}

/// Shares, USB devices and sound.
fn devices(plan: &Plan, spec: &mut MachineSpec) {
    for share in &plan.devices.shares {
        let (tag, path, read_only) = (share.name.clone(), share.path.clone(), share.read_only);
        spec.shares.push(Share { tag, path, read_only, virtiofs: None, attach: Attach::AtStart });
    }
    spec.usb_controller = true;
    spec.usb_devices.extend(plan.devices.usb.iter().filter_map(super::usb::at_start));
    for (n, usb) in plan.devices.usb.iter().enumerate() {
        if let UsbPlan::Evdev { path, toggle } = usb {
            let path = path.display().to_string().replace(',', ",,");
            let object =
                format!("input-linux,id=evdev{n},evdev={path},grab_all=on,repeat=on,grab-toggle={toggle}");
            spec.extra.extend(["-object".to_owned(), object]);
        }
    }
    spec.audio = match plan.devices.audio {
        AudioPlan::Pipewire => Some("pipewire".to_owned()),
        AudioPlan::Pulse => Some("pa".to_owned()),
        AudioPlan::Card | AudioPlan::None => None,
    };
}

/// A file of the person's own is raw unless its name says otherwise; its contents are the guest's and not believed.
fn is_qcow2(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "qcow2")
}

/// Kernel and initrd of a disk that stands alone.
fn own_kernel(instance: &Instance) -> Option<DirectKernel> {
    let dir = instance.disk().parent()?.to_owned();
    let command_line = instance.system.direct.clone()?;
    Some(DirectKernel { kernel: dir.join("kernel"), initrd: dir.join("initrd"), command_line })
}

/// This host's firmware with the instance's own variables, which are made at its first start.
fn uefi(plan: &Plan, vars: &Path) -> Result<Option<Firmware>, String> {
    let wanted = match plan.machine.firmware {
        PlannedFirmware::Bios => return Ok(None),
        PlannedFirmware::Uefi => Wanted::Plain,
        PlannedFirmware::UefiSecure => Wanted::SecureBoot,
    };
    let found = firmware::find(wanted, no43_machine::spec::DEFAULT_MACHINE_TYPE)
        .map_err(|error| error.to_string())?;
    if !vars.exists() {
        return found
            .with_own_vars(vars)
            .map(Some)
            .map_err(|error| format!("failed to make {}: {error}", vars.display()));
    }
    let vars = FlashFile { path: vars.to_owned(), format: found.vars_template.format };
    Ok(Some(Firmware::Uefi { code: found.code, vars, smm: found.smm }))
}
