//! Building a Windows base layer: set-up disk, installation, and what is sealed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use no43_machine::firmware;

use super::plan::{self, VirtioFound, WindowsBase};
use super::seal::{self, Sealed, TPM, VARS};
use crate::answer::{self, BuildOnly, ERROR_HANDLER, FILE_NAME, FOLDER};
use crate::build::child::{self, tool};
use crate::build::{BuildError, Context, Made};
use crate::image::{BootKind, DISK, Provenance};
use crate::install::{self, Identity, InstallError, Job, Limits, PhaseTime};
use crate::media::SYSTEMS;
use crate::plan::{LayerPlan, Plan};
use crate::setup_disk::{SetupDisk, Source};
use crate::step;
use crate::store::{Staging, StoreError, hash_file};
use crate::virtio::{Driver, DriverError, GUEST_AGENT, VirtioWin, WINPE_DRIVERS};

/// The set-up disk's label.
pub(super) const LABEL: &str = "NO43-SETUP";

/// Builds the layer in `staging`.
pub(crate) fn build(
    base: &WindowsBase,
    layer: &LayerPlan,
    plan: &Plan,
    staging: &mut Staging,
    context: &mut Context<'_>,
) -> Result<Made, BuildError> {
    let dir = staging.dir().to_owned();
    let program = guest_program(&base.guest_program, context)?;
    let disk = dir.join(DISK);
    let mut create = child::command(&tool("qemu-img", "qemu-utils")?);
    create.args(["create", "-q", "-f", "qcow2"]).arg(&disk).arg(base.disk_bytes.to_string());
    child::output("qemu-img", create)?;
    context.progress.phase("writing the set-up disk");
    let setup_disk = dir.join("setup.img");
    write_setup_disk(base, &program, &setup_disk)?;
    let found = firmware::find(seal::wanted(base.firmware), no43_machine::spec::DEFAULT_MACHINE_TYPE)
        .map_err(|error| BuildError::Recipe(format!("machine.firmware: {error}")))?;
    let vars = dir.join(VARS);
    let firmware = found.with_own_vars(&vars).map_err(StoreError::io("copy", &found.vars_template.path))?;
    let tpm_state = base.tpm.then(|| dir.join("tpm"));
    let identity = new_identity().map_err(BuildError::Inputs)?;
    let evidence = evidence_folder(&context.store.failed_log(&layer.key))?;
    let run_dir = step::run_dir(staging)?;
    fs::create_dir_all(&run_dir).map_err(StoreError::io("create", &run_dir))?;
    let usual = usual_times(base, context);
    let cancelled = context.cancelled();
    let job = Job {
        name: plan.name.clone(),
        target: &disk,
        medium: &base.iso.path,
        setup_disk: &setup_disk,
        disk_bus: seal::disk_bus(base.disk_bus),
        firmware,
        tpm_state: tpm_state.as_deref(),
        identity: &identity,
        cpus: plan.machine.cpus.clamp(1, 64) as u16,
        memory_mib: plan.machine.memory_mib,
        accel: context.options.accel,
        qemu: &context.options.qemu,
        run_dir: &run_dir,
        evidence: &evidence,
        limits: Limits { patience: context.options.patience },
        usual: &usual,
        keep_on_failure: context.options.keep_on_failure,
        cancelled: &cancelled,
    };
    let installed =
        install::install(&job, &mut |text| context.progress.phase(text)).map_err(|error| match error {
            InstallError::Cancelled => BuildError::Cancelled,
            source => BuildError::Install { source: Box::new(source) },
        })?;
    let _ = fs::remove_dir_all(&run_dir);
    let _ = fs::remove_dir_all(&evidence);
    let mut files = vec![DISK, VARS];
    if let Some(state) = &tpm_state {
        let to = dir.join(TPM);
        fs::rename(state.join(TPM), &to).map_err(StoreError::io("keep", &to))?;
        files.push(TPM);
    }
    let sealed = Sealed {
        firmware: base.firmware,
        vars_format: found.vars_template.format,
        tpm: base.tpm,
        disk_bus: base.disk_bus,
        identity,
        phases: installed.phases,
        refused_actions: installed.refused,
    };
    let provenance = Provenance { tools: step::versions(&context.options.qemu), ..Provenance::default() };
    Ok(Made { files, boot: BootKind::Disk, provenance, sealed: Some(sealed) })
}

/// The program of the plan, if it is still that.
pub(super) fn guest_program(planned: &str, context: &Context<'_>) -> Result<PathBuf, BuildError> {
    let path = context.options.guest_program.clone();
    let (_, now) = hash_file(&path).map_err(StoreError::io("read", &path))?;
    if now == planned {
        return Ok(path);
    }
    Err(BuildError::OtherGuestProgram { path, now, planned: planned.to_owned() })
}

/// One disk with everything: exactly one answer file, the drivers that Windows Setup loads, and what the guest program needs.
fn write_setup_disk(base: &WindowsBase, program: &Path, to: &Path) -> Result<(), BuildError> {
    let answer = match &base.answer_file {
        Some(own) => fs::read(&own.path).map_err(BuildError::Inputs)?,
        None => {
            let build = BuildOnly::random().map_err(BuildError::Inputs)?;
            base.answer.settings(build).render().into_bytes()
        }
    };
    let failed = |error: crate::setup_disk::SetupDiskError| BuildError::Inputs(io::Error::other(error));
    let mut disk = SetupDisk::new(LABEL).map_err(failed)?;
    disk.file(FILE_NAME, Source::Bytes(answer)).map_err(failed)?;
    disk.file(&format!("{FOLDER}/no43-guest.exe"), Source::Path(program.to_owned())).map_err(failed)?;
    disk.file(&format!("{FOLDER}/plan.json"), Source::Bytes(base.setup.to_json().into_bytes()))
        .map_err(failed)?;
    disk.file(ERROR_HANDLER, Source::Bytes(answer::error_handler().into_bytes())).map_err(failed)?;
    if let Some(virtio) = &base.virtio {
        put_drivers(virtio, &base.os, &mut disk)
            .map_err(|error| BuildError::Inputs(io::Error::other(error)))?;
    }
    disk.write(to).map_err(failed)?;
    // It holds this build's password.
    fs::set_permissions(to, std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .map_err(StoreError::io("protect", to))?;
    Ok(())
}

fn put_drivers(virtio: &VirtioFound, os: &str, disk: &mut SetupDisk) -> Result<(), DriverError> {
    let iso = VirtioWin::open(&virtio.path)?;
    let system = SYSTEMS
        .iter()
        .find(|system| system.os == os)
        .expect("the medium's system was looked up when it was planned");
    let of = |folders: &[String]| -> Vec<&Driver> {
        let all = [plan::MUST, plan::IN_SETUP, plan::LATER].concat();
        all.into_iter().filter(|driver| folders.iter().any(|folder| folder == driver.folder)).collect()
    };
    iso.put(disk, WINPE_DRIVERS, &of(&virtio.in_setup), system)?;
    iso.put(disk, &format!("{FOLDER}/{}", plan::DRIVER_FOLDER), &of(&virtio.later), system)?;
    if let Some(agent) = iso.file(GUEST_AGENT)? {
        disk.file(&format!("{FOLDER}/{}", plan::AGENT_FILE), agent)?;
    }
    Ok(())
}

/// COM1's lines and the last picture outlive a failed build here; a new one begins with an empty folder.
fn evidence_folder(log: &Path) -> Result<PathBuf, BuildError> {
    let folder = log.with_extension("");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).map_err(StoreError::io("create", &folder))?;
    Ok(folder)
}

/// What the last installation of the same system took here.
fn usual_times(base: &WindowsBase, context: &Context<'_>) -> Vec<PhaseTime> {
    let (images, _) = context.store.images().unwrap_or_default();
    let same = images.into_iter().rev().find(|image| {
        image.manifest.sealed.is_some()
            && image.manifest.inputs.get("os").and_then(serde_json::Value::as_str) == Some(&base.os)
    });
    same.and_then(|image| image.manifest.sealed).map(|sealed| sealed.phases).unwrap_or_default()
}

/// Fresh for every build: machines that share an identity are refused by Microsoft's services.
fn new_identity() -> io::Result<Identity> {
    let random = || fs::read_to_string("/proc/sys/kernel/random/uuid").map(|text| text.trim().to_owned());
    Ok(Identity { uuid: random()?, serial: random()?.replace('-', "").chars().take(20).collect() })
}
