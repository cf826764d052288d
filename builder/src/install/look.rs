//! Looking at an installation while it runs, from another no43: its screen by VNC, and pictures by a second control socket,
//! since QEMU's first one belongs to whoever installs.

use std::fs;
use std::path::{Path, PathBuf};

use no43_machine::spec::MachineSpec;
use no43_machine::{RunDirs, RunRecord};

use crate::step;

/// An installation's machine that runs now, or was left running after a failure.
#[derive(Clone, Debug)]
pub struct Installation {
    /// QEMU's process and sockets.
    pub record: RunRecord,
    /// Its screen, with keyboard and mouse.
    pub vnc: PathBuf,
    /// A control socket that nobody else uses.
    pub control: PathBuf,
    /// Its run directory.
    pub dir: PathBuf,
}

/// Gives the machine what [`running`] finds.
pub(super) fn attach(spec: &mut MachineSpec, run_dir: &Path) {
    spec.vnc = Some(vnc(run_dir));
    let path = control(run_dir).display().to_string().replace(',', ",,");
    let chardev = format!("socket,id=look,path={path},server=on,wait=off");
    spec.extra.extend(["-chardev", &chardev, "-mon", "chardev=look,mode=control"].map(str::to_owned));
}

fn vnc(run_dir: &Path) -> PathBuf {
    run_dir.join("vnc.sock")
}

fn control(run_dir: &Path) -> PathBuf {
    run_dir.join("look.sock")
}

/// The name of an installation's machine.
pub(super) fn machine_name(recipe: &str) -> String {
    format!("install-{recipe}")
}

/// The installation of the recipe with this name, on this host, by this user.
#[must_use]
pub fn running(recipe: &str) -> Option<Installation> {
    let wanted = machine_name(recipe);
    step::run_dir_places()
        .into_iter()
        .flat_map(|place| fs::read_dir(place).into_iter().flatten().flatten())
        .find_map(|entry| {
            let is_it = entry.file_name().to_string_lossy().starts_with(step::RUN_DIR_PREFIX);
            let dir = is_it.then(|| entry.path())?;
            let record = RunDirs::at(&dir).read_record().ok()?;
            (record.name == wanted && record.is_running()).then(|| Installation {
                record,
                vnc: vnc(&dir),
                control: control(&dir),
                dir,
            })
        })
}
