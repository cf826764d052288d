mod display;
mod lifecycle;
mod snapshot;

use no43_machine::{Accel, Machine, MachineSpec, StartOptions};
use tempfile::TempDir;

/// A bare machine that sits in SeaBIOS, and the short directory that it runs in.
pub(crate) fn bare(name: &str) -> (MachineSpec, TempDir, StartOptions) {
    let dir = tempfile::Builder::new().prefix("no43-").tempdir_in("/tmp").unwrap();
    let options = StartOptions::new(dir.path().join("m"));
    let spec = MachineSpec { memory_mib: 64, cpu: "qemu64".into(), ..MachineSpec::new(name, Accel::Tcg) };
    (spec, dir, options)
}

pub(crate) fn start(spec: &MachineSpec, options: &StartOptions) -> Machine {
    Machine::start(spec, options).unwrap_or_else(|error| panic!("{error}"))
}
