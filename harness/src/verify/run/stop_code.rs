//! A Windows that stops with a code while it is asked: what that means for the verdict, and the dump that it leaves.

use super::{Failure, Run};
use crate::evidence::Event;
use crate::verdict::FailureKind;
use crate::verify::dumps::{self, DUMP_LIMIT, RESTART_LIMIT, Stops};
use crate::verify::guest::over;
use no43_machine::Machine;
use std::time::{Duration, Instant};

impl Run<'_, '_> {
    /// Whether QEMU has told of a stop in the machine that runs.
    pub(super) fn has_stopped(&mut self) -> bool {
        self.stops.as_mut().and_then(Stops::first).is_some()
    }

    /// A Windows that has stopped with a code has failed, whatever it answered before or after.
    pub(super) fn with_stop_code(&mut self, asked: Result<(), Failure>) -> Result<(), Failure> {
        let Some(stop) = self.stops.as_mut().and_then(Stops::first) else { return asked };
        match asked {
            Ok(()) => {
                Err(Failure::new("machine", FailureKind::Guest, format!("Windows stopped with {stop}")))
            }
            Err(failure) if failure.kind == FailureKind::Guest => {
                Err(Failure { cause: format!("Windows stopped with {stop}; {}", failure.cause), ..failure })
            }
            Err(failure) => Err(failure),
        }
    }

    /// After a stop code: Windows writes its dump, starts again, and is asked for the file.
    pub(super) fn keep_dump(&mut self, machine: &Machine) {
        let Some(mut stops) = self.stops.take() else { return };
        if stops.first().is_some() && machine.is_alive() && !self.stop.is_set() {
            let ready = Duration::from_secs(self.plan.checks.ready_limit);
            let why = "Windows writes a dump, restarts, and is asked for it";
            let phase = self.recorder.begin("dump", Some(RESTART_LIMIT + ready + DUMP_LIMIT), why);
            let kept = self.dump(machine, &mut stops, ready);
            self.recorder.end(phase, kept.as_ref().err().map(String::as_str));
            if let Err(why) = kept {
                self.recorder.note(format!("no dump of the stop was kept: {why}"), true);
            }
        }
        self.stops = Some(stops);
    }

    fn dump(&mut self, machine: &Machine, stops: &mut Stops, ready: Duration) -> Result<(), String> {
        let over = over(machine, self.stop);
        stops.wait_restart(RESTART_LIMIT, &over)?;
        let agent = machine.agent();
        let began = Instant::now();
        while let Err(error) = agent.wait_ready(Duration::from_secs(1), |_| ()) {
            if let Some(why) = over() {
                return Err(why);
            }
            if began.elapsed() > ready {
                return Err(format!("Windows restarted, and its agent did not answer: {error}"));
            }
        }
        let folder = self.recorder.dir().join("dumps");
        let dump = dumps::fetch(&agent, stops, &folder, DUMP_LIMIT, &over)?;
        let file = format!("dumps/{}", dump.name);
        self.recorder.event(Event::DumpKept { file, bytes: dump.bytes, stop: dump.stop.to_string() });
        Ok(())
    }
}
