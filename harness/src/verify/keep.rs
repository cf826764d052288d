//! A machine that stays after a failed verdict: its disk is a throw-away instance's, and a supervisor takes it over.

use no43_builder::plan::Plan;
use no43_builder::store::Store;
use no43_host::{ProcessRef, Roots};
use no43_machine::spec::SerialPort;
use no43_machine::{Machine, MachineSpec};
use std::io;
use std::path::Path;

use super::cards::Held;
use super::spec::Scratch;
use crate::instance::{Instance, Instances, now};
use crate::running::{self, RunNote, Runs, Stage};

/// Where the machine of a run is if a failure keeps it.
#[derive(Debug, Clone)]
pub struct Keep {
    /// Where running machines are.
    pub runs: Runs,
    /// Where instances are.
    pub instances: Instances,
    /// A throw-away instance of the image, made for this run.
    pub instance: Instance,
}

impl Keep {
    /// Like a kept machine's, but with UEFI variables and a TPM as any other run of `verify` has them.
    pub(super) fn scratch(&self) -> io::Result<Scratch> {
        let dirs = self.runs.dirs(self.instance.name());
        dirs.create()?;
        let own = self.instance.dir.join("verify");
        std::fs::create_dir_all(&own)?;
        Ok(Scratch {
            machine: dirs.dir().to_owned(),
            disk: self.instance.disk(),
            serial: running::serial_log(&dirs),
            vars: own.join("vars.fd"),
            tpm: own.join("tpm"),
            tpm_socket: running::tpm_socket(&dirs),
        })
    }

    /// What `shell`, `attach` and `view` come in by.
    pub(super) fn open_doors(&self, spec: &mut MachineSpec) {
        let dirs = self.runs.dirs(self.instance.name());
        self.instance.name().clone_into(&mut spec.name);
        spec.console = Some(running::console_socket(&dirs));
        spec.vnc = (spec.display != no43_machine::spec::Display::None).then(|| running::vnc_socket(&dirs));
        let socket = Some(running::shell_socket(&dirs));
        spec.ports.push(SerialPort { name: running::SHELL_PORT.into(), socket });
    }

    /// Lets go of the machine, and writes it down as one that this process watches: nobody else takes it over before its
    /// cards' lease is free, unless this process dies.
    pub(super) fn leave(
        &self,
        machine: &mut Machine,
        held: &Held,
        plan: &Plan,
        roots: &Roots,
    ) -> io::Result<()> {
        self.runs.write_note(&RunNote {
            name: self.instance.name().to_owned(),
            instances: self.instances.dir().to_owned(),
            supervisor: ProcessRef::current(roots),
            lease: Some(held.lease_id().to_owned()),
            began: now(),
            stage: Stage::Running,
            ephemeral: true,
            owner: None,
            cards: held.borrowed.iter().map(|one| one.card.titled()).collect(),
            cpus: plan.machine.cpus,
            memory_mib: plan.machine.memory_mib,
            forwards: Vec::new(),
            companions: Vec::new(),
        })?;
        machine.leave_running();
        Ok(())
    }

    /// After the run: the name of the machine that was left, which a supervisor has taken over. Otherwise the throw-away
    /// instance is removed.
    ///
    /// # Errors
    /// Why nobody could take the machine over; it runs on, and the next command that changes something tries again.
    pub fn settle(self, no43: &Path, store: &Store) -> Result<Option<String>, String> {
        let name = self.instance.name().to_owned();
        if self.runs.note(&name).is_none() {
            self.runs.forget(&name);
            self.instances.remove(&self.instance, store).map_err(|error| error.to_string())?;
            return Ok(None);
        }
        match self.runs.adopt(no43, &name) {
            Ok(()) => Ok(Some(name)),
            Err(why) => Err(format!("'{name}' runs on and nobody watches it: {why}")),
        }
    }
}
