//! What a kept machine's network and shares need on this host, opened before QEMU is started.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use no43_builder::plan::{NetworkPlan, Plan};
use no43_host::net::macvtap_name;
use no43_host::{Lease, NetDevice};
use no43_machine::spec::{Network, Opened};
use no43_machine::{MachineSpec, RunDirs};

use super::companions::{Companions, NotUsed};
use super::host::{Host, Refusal};
use super::hub::Hub;
use crate::exit_codes;

/// What was opened for one machine.
#[derive(Debug, Default)]
pub(super) struct Beside {
    pub(super) companions: Companions,
    /// For QEMU's descriptor.
    pub(super) network: Option<Arc<OwnedFd>>,
    /// A link that somebody has to remove afterwards.
    pub(super) link: Option<String>,
}

impl Beside {
    /// Opens what `plan` wants for the machine that `spec` describes, and writes it into the description.
    pub(super) fn open(
        plan: &Plan,
        spec: &mut MachineSpec,
        dirs: &RunDirs,
        host: &Host,
        lease: &Lease,
        hub: &Hub,
    ) -> Result<Self, Refusal> {
        let mut beside = Self::default();
        beside.network(plan, spec, dirs, host, lease, hub)?;
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
        host: &Host,
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
            NetworkPlan::Macvtap(parent) => NetDevice::Macvtap {
                parent: parent.clone(),
                name: macvtap_name(&spec.name),
                mac: mac.clone(),
            },
        };
        let opened = host.privilege.open_net(&device, lease.record(), &host.state, &host.roots);
        let opened = opened.map_err(|error| Refusal::new(exit_codes::HOST_SETUP, error))?;
        if let NetDevice::Macvtap { name, .. } = device {
            self.link = Some(name);
        }
        self.network = Some(Arc::new(opened));
        spec.network = Network::Opened { mac, what: Opened::Tap };
        Ok(())
    }
}

/// Mounts the shares of a Linux guest where the recipe wants them.
pub(super) mod mounts {
    use std::time::Duration;

    use no43_builder::plan::SharePlan;
    use no43_machine::agent::{Agent, ExecLimits};

    use crate::words;

    const LIMIT: Duration = Duration::from_secs(60);

    /// virtiofs where the guest finds the tag there, else 9p: which of the two it is was decided on the host.
    const SCRIPT: &str = r#"
mkdir -p "$2" || exit 1
grep -q " $2 " /proc/mounts && exit 0
modprobe -q virtiofs; modprobe -q 9p; modprobe -q 9pnet_virtio
mount -t virtiofs "$1" "$2" 2>/dev/null && exit 0
exec mount -t 9p -o trans=virtio,version=9p2000.L "$1" "$2"
"#;

    /// Mounts one; `Err` says why it is not mounted.
    pub(in super::super) fn mount(agent: &Agent, share: &SharePlan) -> Result<(), String> {
        let Some(to) = &share.to else { return Ok(()) };
        let command = ["/bin/sh", "-c", SCRIPT, "no43-share", &share.name, to];
        let output = agent.exec(&command, &ExecLimits::within(LIMIT)).map_err(|error| error.to_string())?;
        if output.success() { Ok(()) } else { Err(words::clean_to(&output.stderr_text(), 300)) }
    }
}
