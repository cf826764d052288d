//! What a kept machine's network and shares need on this host, opened before QEMU is started.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use no43_builder::plan::{NetworkPlan, Plan};
use no43_host::{Lease, NetDevice, Privilege};
use no43_machine::spec::{Network, Opened};
use no43_machine::{MachineSpec, RunDirs};

use super::companions::{Companions, NotUsed};
use super::host::Refusal;
use super::hub::Hub;
use crate::exit_codes;

/// What was opened for one machine.
#[derive(Debug, Default)]
pub(super) struct Beside {
    pub(super) companions: Companions,
    /// For QEMU's descriptor.
    pub(super) network: Option<Arc<OwnedFd>>,
}

impl Beside {
    /// Opens what `plan` wants for the machine that `spec` describes, and writes it into the description.
    pub(super) fn open(
        plan: &Plan,
        spec: &mut MachineSpec,
        dirs: &RunDirs,
        privilege: &Privilege,
        lease: &Lease,
        hub: &Hub,
    ) -> Result<Self, Refusal> {
        let mut beside = Self::default();
        beside.network(plan, spec, dirs, privilege, lease, hub)?;
        for (number, share) in spec.shares.iter_mut().enumerate() {
            let Some(planned) = plan.devices.shares.iter().find(|one| one.name == share.tag) else {
                continue;
            };
            let socket = dirs.dir().join(format!("share{number}.sock"));
            let log = dirs.dir().join(format!("share{number}.log"));
            match beside.companions.virtiofsd(planned, &socket, &log) {
                Ok(()) => share.virtiofs = Some(socket),
                Err(NotUsed::NotInstalled) => {}
                Err(NotUsed::Failed(why)) => {
                    hub.note(format!("share '{}' goes by 9p, virtiofsd failed: {why}", share.tag));
                }
            }
        }
        Ok(beside)
    }

    fn network(
        &mut self,
        plan: &Plan,
        spec: &mut MachineSpec,
        dirs: &RunDirs,
        privilege: &Privilege,
        lease: &Lease,
        hub: &Hub,
    ) -> Result<(), Refusal> {
        let Network::User { mac: Some(mac), .. } = &spec.network else { return Ok(()) };
        let mac = mac.clone();
        let device = match &plan.network {
            NetworkPlan::None => return Ok(()),
            NetworkPlan::User => {
                match self.companions.passt(&plan.devices.forwards, &dirs.dir().join("passt.log")) {
                    Ok(end) => {
                        self.network = Some(Arc::new(end));
                        spec.network = Network::Opened { mac, what: Opened::Socket };
                    }
                    Err(NotUsed::NotInstalled) => {}
                    Err(NotUsed::Failed(why)) => {
                        hub.note(format!("the network is QEMU's own, passt failed: {why}"));
                    }
                }
                return Ok(());
            }
            NetworkPlan::Bridge(bridge) => NetDevice::Tap { bridge: bridge.clone() },
            NetworkPlan::Macvtap(parent) => NetDevice::Macvtap { parent: parent.clone(), mac: mac.clone() },
        };
        let opened = lease.open_network(&device, privilege);
        let opened = opened.map_err(|error| Refusal::new(exit_codes::HOST_SETUP, error))?;
        self.network = Some(Arc::new(opened));
        spec.network = Network::Opened { mac, what: Opened::Tap };
        Ok(())
    }
}
