//! What happens to the driver while a card is proved: reload, reinstallation, another package, the driver before.

use super::lifecycle::Stand;
use super::{Failure, Run};
use crate::checks::{Guest as _, Subject};
use crate::evidence::Round;
use crate::verdict::FailureKind;
use crate::verify::driver_change::{INSTALL_LIMIT, RELOAD_LIMIT, Work, carry_out, change, reinstall};
use crate::verify::guest::{LiveGuest, over};
use crate::verify::spec::Scratch;
use no43_builder::driver::{CardIds, Subsystem};
use no43_builder::plan::{DriverSource, DriverStep, LayerWhat, Lifecycle, LinuxDriver, Plan, StepPlan};
use no43_builder::recipe::DriverInstall;
use no43_builder::step::{driver_command, driver_disk};
use no43_builder::windows::{CardThere, DriverIn, DriverOnDisk, driver_folder, write_driver_disk};
use no43_guest::setup::DriverChange;
use no43_host::Inventory;
use no43_machine::spec::Disk;
use no43_machine::{Machine, MachineSpec};

/// The folder on the disk for the image's own package; no input can have this name.
const OWN: &str = "_image";

/// The drivers that a run needs a disk for.
struct Needed<'a> {
    windows: Vec<DriverOnDisk<'a>>,
    linux: Vec<&'a LinuxDriver>,
}

impl<'a> Needed<'a> {
    fn of(plan: &'a Plan) -> Self {
        let steps = &plan.checks.lifecycle;
        let mut needed = Self { windows: Vec::new(), linux: Vec::new() };
        for one in &plan.driver.others {
            match &one.source {
                DriverSource::Windows(driver) => {
                    needed.windows.push(DriverOnDisk { name: &one.name, driver });
                }
                DriverSource::Linux(driver) => needed.linux.push(driver),
            }
        }
        if steps.contains(&Lifecycle::Driver(DriverStep::Reinstall)) {
            needed.windows.extend(own_installer(plan).map(|driver| DriverOnDisk { name: OWN, driver }));
            let there = |driver: &&LinuxDriver| !needed.linux.iter().any(|one| one.run == driver.run);
            needed.linux.extend(own_linux(plan).filter(there));
        }
        needed
    }
}

/// The driver that the image of a Windows has, if its own installer put it there.
fn own_installer(plan: &Plan) -> Option<&DriverIn> {
    let own = plan.layers.iter().find_map(|layer| match &layer.what {
        LayerWhat::WindowsSetup(setup) => setup.driver.as_ref(),
        _ => None,
    });
    own.filter(|driver| driver.install == DriverInstall::WithCard)
}

/// The driver that the image of a Linux has.
fn own_linux(plan: &Plan) -> Option<&LinuxDriver> {
    plan.layers.iter().find_map(|layer| match &layer.what {
        LayerWhat::Step(StepPlan::Driver(driver)) => Some(driver),
        _ => None,
    })
}

impl Run<'_, '_> {
    /// Disks with the drivers that take the image's place, or nothing where there is none.
    pub(super) fn driver_disks(
        &mut self,
        spec: &mut MachineSpec,
        subjects: &[Subject],
        inventory: &Inventory,
        scratch: &Scratch,
    ) -> Result<(), Failure> {
        let needed = Needed::of(self.plan);
        spec.disks.extend(needed.linux.iter().filter_map(|driver| driver.run.as_ref()).map(driver_disk));
        if needed.windows.is_empty() {
            return Ok(());
        }
        let names: Vec<&str> = needed.windows.iter().map(|one| one.name).collect();
        let what = format!("a disk with what Windows needs of {}", names.join(" and "));
        let phase = self.recorder.begin("drivers", None, &what);
        let (work, to) = (scratch.disk.with_file_name("drivers"), scratch.disk.with_file_name("drivers.img"));
        let written = write_driver_disk(&needed.windows, &there(subjects, inventory), &work, &to);
        self.recorder.end(phase, written.as_ref().err().map(String::as_str));
        written.map_err(|cause| Failure::new("drivers", FailureKind::HostSetup, cause))?;
        let serial = Some("no43-drivers".to_owned());
        spec.disks.push(Disk { serial, ..Disk::usb_stick(to) });
        Ok(())
    }

    /// Changes the driver as `step` says, and asks everything again.
    pub(super) fn change_driver(
        &mut self,
        machine: &Machine,
        stand: Stand<'_>,
        step: &DriverStep,
    ) -> Result<(), Failure> {
        let (place, limit, round) = match step {
            DriverStep::Reload => ("driver reload", RELOAD_LIMIT, Round::AfterReload),
            DriverStep::Reinstall => ("driver reinstallation", INSTALL_LIMIT, Round::AfterReinstall),
            DriverStep::Rollback => ("driver rollback", INSTALL_LIMIT, Round::AfterRollback),
            DriverStep::Package(name) => {
                let round = self.plan.driver.other(name).map(|one| Round::WithDriver(one.version));
                // a plan has every package that it names
                ("driver change", INSTALL_LIMIT, round.unwrap_or(Round::AfterReinstall))
            }
        };
        let phase = self.recorder.begin(place, Some(limit), &format!("{step}, in the running guest"));
        let agent = machine.agent();
        let over = over(machine, self.stop);
        let done =
            self.driver_work(machine, stand, step).and_then(|work| carry_out(&agent, &work, limit, &over));
        self.recorder.end(phase, done.as_ref().err().map(String::as_str));
        self.stopped(place)?;
        let restart = done.map_err(|cause| {
            let kind = machine.exit().as_ref().map_or(FailureKind::Guest, super::blame);
            Failure::new(place, kind, format!("{step}: {cause}"))
        })?;
        if restart {
            self.restart(machine)?;
        }
        self.version.after(step, self.plan);
        self.again(machine, stand, round)
    }

    fn driver_work(&self, machine: &Machine, stand: Stand<'_>, step: &DriverStep) -> Result<Work, String> {
        let windows = machine.agent().is_windows().map_err(|error| error.to_string())?;
        let functions: Vec<String> = stand.subjects.iter().map(|one| one.video().guest.clone()).collect();
        match step {
            DriverStep::Reload => Ok(Work::Plan(change("reload", functions, DriverChange::Restart, false))),
            DriverStep::Rollback => {
                Ok(Work::Plan(change("rollback", functions, DriverChange::RollBack, true)))
            }
            DriverStep::Package(name) => match self.plan.driver.other(name).map(|one| &one.source) {
                Some(DriverSource::Windows(_)) => Ok(Work::OnDisk(driver_folder(name))),
                Some(DriverSource::Linux(driver)) => Ok(Work::Program(driver_command(driver, true))),
                None => Err(format!("the plan has no package '{name}'")),
            },
            DriverStep::Reinstall if !windows => {
                let own = own_linux(self.plan).ok_or("the image has no driver of its own")?;
                Ok(Work::Program(driver_command(own, true)))
            }
            DriverStep::Reinstall if own_installer(self.plan).is_some() => {
                Ok(Work::OnDisk(driver_folder(OWN)))
            }
            DriverStep::Reinstall => {
                let mut guest = LiveGuest::new(machine, stand.limits.program);
                let report = guest.report().map_err(|error| format!("{error:#}"))?;
                reinstall(&report, functions).map(Work::Plan)
            }
        }
    }
}

/// Which cards the guest has, for a package that must drive them.
fn there(subjects: &[Subject], inventory: &Inventory) -> Vec<CardThere> {
    let board = |subject: &Subject| {
        let id = inventory.function(&subject.video().host)?.subsystem?;
        Some(Subsystem { vendor: id.vendor, device: id.device })
    };
    let card = |subject: &Subject| CardThere {
        function: subject.video().guest.clone(),
        ids: CardIds { id: subject.video().shown_as, subsystem: board(subject) },
    };
    subjects.iter().map(card).collect()
}
