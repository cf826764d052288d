//! A lab host that starts again from its own disk: what was set up in it, its initrd too, is tried the way a reboot would.

use std::time::{Duration, Instant};

use no43_machine::agent::ExecLimits;

use super::{BOOT_LIMIT, Lab, LabOptions, Start, Started, inside, script_on};
use crate::error::{LabError, Trouble};
use crate::image::LabHost;
use crate::profile::Profile;

/// For a guest of its own to be shut down, and systemd's 90 s for what does not end.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(240);

impl Lab {
    /// Shuts the lab host down in order and boots it again on the same disk, with the initrd that it has made for itself.
    ///
    /// # Errors
    /// A lab fault; then the lab is gone.
    pub fn reboot(
        self,
        profile: &Profile,
        host: &LabHost,
        options: &LabOptions,
        progress: &mut dyn FnMut(&str),
    ) -> Result<Lab, LabError> {
        let began = Instant::now();
        progress("shutting the lab host down");
        self.script("looking for an initrd", inside::BRING_OUT_INITRD, &[])?;
        let agent = self.machine.agent();
        let asked = agent.exec(&["systemctl", "--no-block", "poweroff"], &ExecLimits::within(SHUTDOWN_LIMIT));
        // the agent may be gone before its answer is here
        drop(asked);
        if self.machine.wait_exit(SHUTDOWN_LIMIT).is_none() {
            let why = format!("the lab host did not shut down within {} s", SHUTDOWN_LIMIT.as_secs());
            let error = self.fault("shutting the lab host down", &Trouble::Said(why));
            self.down();
            return Err(error);
        }
        let Lab { machine, place, store, .. } = self;
        drop(machine);
        let mut host = host.clone();
        let initrd = place.share().join("initrd");
        if initrd.is_file() {
            host.kernel.initrd = Some(initrd);
        }
        progress("booting the lab host again");
        let private = place.record.private;
        let start = Start { profile, host: &host, options, place: &place, private };
        let machine = start.start(&start.spec(place.overlay(), false))?;
        let ready = machine.agent().wait_ready(BOOT_LIMIT, |_| {});
        let prepared =
            ready.map_err(Trouble::from).and_then(|_| script_on(&machine, inside::MAKE_READY, &[]));
        if let Err(trouble) = prepared {
            return Err(start.give_up(&machine, "booting the lab host again", &trouble));
        }
        start.wake(&machine)?;
        let started = Started::Booted { took: began.elapsed(), saved: None };
        Ok(Lab { machine, place, store, started })
    }
}
