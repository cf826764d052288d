//! The life of a running machine, from events: ready, reboots, a full disk, requests to stop, its end.

use std::sync::atomic::Ordering;
use std::sync::mpsc::{RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

use no43_builder::plan::Plan;
use no43_machine::agent::ShutdownMode;
use no43_machine::{AgentError, Event, Machine};
use serde_json::{Value, json};

use super::control::{Shared, Wake};
use super::ending::{Ending, ending, panic_words};
use super::event::{Answer, Ask, Happened};
use super::first_start;
use super::logind::Patience;
use super::note::Stage;
use super::supervisor::Run;
use crate::{driver_lock, words};

/// For the guest when this process is asked to end without a limit: systemd gives a service 90 s.
const SIGNAL_LIMIT: Duration = Duration::from_secs(80);
/// QEMU's own end after `quit`: it writes the disks' caches.
const QUIT_LIMIT: Duration = Duration::from_secs(15);
/// An agent that lives answers within this, also without KVM.
const AGENT_LIMIT: Duration = Duration::from_secs(2);
/// Between two looks whether a full disk has room again: nothing tells it.
const ROOM_PAUSE: Duration = Duration::from_secs(2);
/// As much room as lets a guest go on for a moment.
const ROOM: u64 = 64 << 20;
/// QEMU's process after its last event.
const EXIT_LIMIT: Duration = Duration::from_secs(30);
/// Nothing to wait for but events.
const IDLE: Duration = Duration::from_secs(3600);

/// A machine under watch.
pub(super) struct Watch<'a> {
    run: &'a mut Run,
    machine: &'a Machine,
    /// Until when a shutdown may take, and the limit that it had.
    stopping: Option<(Instant, Duration)>,
    /// After that it is switched off: this host shuts down.
    then_off: bool,
    /// The disk is full.
    full: bool,
    panic: Option<String>,
}

impl<'a> Watch<'a> {
    pub(super) fn new(run: &'a mut Run, machine: &'a Machine) -> Self {
        Self { run, machine, stopping: None, then_off: false, full: false, panic: None }
    }

    /// Watches until QEMU is gone.
    pub(super) fn until_the_end(mut self, ready_limit: Option<Duration>) -> Ending {
        self.forward_events();
        if let Some(limit) = ready_limit {
            self.await_agent(limit);
        }
        loop {
            match self.run.woken.recv_timeout(self.patience()) {
                Ok(Wake::Gone) => break,
                Ok(Wake::Qmp(event)) => self.event(&event),
                Ok(Wake::Ask(ask, reply)) => self.ask(ask, &reply),
                Ok(Wake::Ready(after)) => self.ready(after, ready_limit),
                Ok(Wake::OwnerGone) if self.run.note.owner.is_none() => {}
                Ok(Wake::OwnerGone) => {
                    self.run.hub().note("the command that it was started for is gone: it is switched off");
                    self.switch_off();
                }
                Ok(Wake::Signal) => self.ask_guest(SIGNAL_LIMIT),
                Ok(Wake::HostShutdown(patience)) => self.host_shutdown(patience),
                Err(RecvTimeoutError::Timeout) => self.overdue(),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        // QEMU's last event comes a moment before its end
        let exit = loop {
            if let Some(exit) = self.machine.wait_exit(EXIT_LIMIT) {
                break exit;
            }
            self.run.hub().warn("QEMU's control connection ended and QEMU did not: waiting for its end");
        };
        ending(&exit, self.panic.as_deref())
    }

    fn patience(&self) -> Duration {
        let until_deadline =
            self.stopping.map(|(deadline, _)| deadline.saturating_duration_since(Instant::now()));
        let until_look = self.full.then_some(ROOM_PAUSE);
        until_deadline.into_iter().chain(until_look).min().unwrap_or(IDLE)
    }

    /// QEMU's events and its end, into the one queue that is waited on.
    fn forward_events(&self) {
        let events = self.machine.subscribe();
        let wake = self.run.shared.wake.clone();
        let forward = move || {
            while let Ok(event) = events.recv() {
                if wake.send(Wake::Qmp(event)).is_err() {
                    return;
                }
            }
            let _ = wake.send(Wake::Gone);
        };
        if std::thread::Builder::new().name("events".into()).stack_size(128 << 10).spawn(forward).is_err() {
            let _ = self.run.shared.wake.send(Wake::Gone);
        }
    }

    /// On a thread, with a connection to the agent that is closed afterwards: others want it then.
    fn await_agent(&mut self, limit: Duration) {
        let (agent, shared) = (self.machine.new_agent(), std::sync::Arc::clone(&self.run.shared));
        let first = self.run.first_start.take().map(|request| {
            let instance = self.run.instance.clone();
            first_start::Giving { request, instance, events: self.machine.subscribe(), limit }
        });
        let keep_driver = self.run.keep_driver.take();
        let kept = self.run.instance.record.disks.iter().filter(|disk| disk.path.is_none());
        let kept: Vec<(String, String)> = kept.map(|disk| (disk.serial.clone(), disk.name.clone())).collect();
        let shares: Vec<_> = self.run.shares.iter().filter(|share| share.to.is_some()).cloned().collect();
        let wait = move || {
            let after = match agent.wait_ready(limit, |_| ()) {
                Ok(after) => Some(u64::try_from(after.as_millis()).unwrap_or(u64::MAX)),
                Err(AgentError::MachineGone { .. }) => return,
                Err(_) => None,
            };
            // where a drive of Windows goes is that guest's own business
            let linux = || agent.is_windows().is_ok_and(|windows| !windows);
            let mounts = !kept.is_empty() || !shares.is_empty();
            if after.is_some() && mounts && linux() {
                for (serial, name) in &kept {
                    if let Err(why) = super::kept_disks::prepare(&agent, serial, name) {
                        shared.hub.warn(format!("disk '{name}' is not mounted in the guest: {why}"));
                    }
                }
                for share in &shares {
                    if let Err(why) = super::shares::mount(&agent, share) {
                        let name = &share.name;
                        shared.hub.warn(format!("share '{name}' is not mounted in the guest: {why}"));
                    }
                }
            }
            if let Some(first) = first.filter(|_| after.is_some()) {
                first.to(&agent, &shared);
            }
            if let Some(plan) = keep_driver.filter(|_| after.is_some()) {
                keep(&agent, &plan, &shared);
            }
            drop(agent);
            let _ = shared.wake.send(Wake::Ready(after));
        };
        let _ = std::thread::Builder::new().name("agent".into()).stack_size(256 << 10).spawn(wait);
    }

    fn ready(&self, after: Option<u64>, limit: Option<Duration>) {
        let limit_s = limit.unwrap_or_default().as_secs();
        self.run.hub().say(match after {
            Some(after_ms) => Happened::Ready { after_ms },
            None => Happened::NotReady { limit_s },
        });
    }

    fn event(&mut self, event: &Event) {
        match event.name.as_str() {
            "RESET" if event.data.get("guest").and_then(Value::as_bool) != Some(false) => {
                self.panic = None; // Windows restarts after a stop code: what ends it later is something else
                self.run.hub().say(Happened::Rebooted);
            }
            "GUEST_PANICKED" => {
                let what = panic_words(&event.data);
                self.run.hub().say(Happened::Panicked { what: what.clone() });
                self.panic = Some(what);
            }
            "BLOCK_IO_ERROR" => self.disk_error(event),
            "RESUME" if self.full => {
                self.full = false;
                self.run.set_stage(Stage::Running);
                self.run.hub().say(Happened::Resumed);
            }
            _ => {}
        }
    }

    /// QEMU's own policy: a full disk pauses the guest, any other error is the guest's to handle.
    fn disk_error(&mut self, event: &Event) {
        let is_full = event.data.get("nospace").and_then(Value::as_bool) == Some(true);
        if !is_full {
            let reason = words::clean_to(event.text("reason").unwrap_or("no reason"), 200);
            self.run.hub().warn(format!("a disk of this host failed under the guest: {reason}"));
            return;
        }
        if !self.full {
            self.full = true;
            self.run.set_stage(Stage::Paused);
            let dir = self.run.instance.dir.display().to_string();
            let why = format!(
                "the disk under {dir} is full ({} free): it goes on by itself when there is room",
                words::bytes(self.free())
            );
            self.run.hub().say(Happened::Paused { why });
        }
    }

    fn free(&self) -> u64 {
        rustix::fs::statvfs(&self.run.instance.dir)
            .map_or(0, |facts| facts.f_bavail.saturating_mul(facts.f_frsize))
    }

    fn overdue(&mut self) {
        if self.full && self.free() >= ROOM {
            let _ = self.machine.cont(); // the event RESUME tells the rest
        }
        let over = self.stopping.filter(|(deadline, _)| *deadline <= Instant::now());
        if let Some((_, limit)) = over {
            self.stopping = None;
            if self.then_off {
                let limit = limit.as_secs();
                self.run.hub().warn(format!(
                    "the guest did not shut down within {limit} s and this host does: it is switched off"
                ));
                return self.switch_off();
            }
            self.run.set_stage(Stage::Running);
            self.run.hub().say(Happened::StillRunning { limit_s: limit.as_secs() });
        }
    }

    fn ask(&mut self, ask: Ask, reply: &SyncSender<Answer>) {
        let answer = match ask {
            Ask::Stop { force: true, .. } => {
                let _ = reply.try_send(Answer::Ok);
                return self.switch_off();
            }
            Ask::Stop { limit_s, .. } => {
                let _ = reply.try_send(Answer::Ok);
                return self.ask_guest(Duration::from_secs(limit_s));
            }
            Ask::Shot { path } => self.qmp("screendump", json!({ "filename": path })),
            Ask::Usb { id, plug: Some(mut properties) } => {
                properties.insert("id".into(), id.into());
                self.qmp("device_add", Value::Object(properties))
            }
            Ask::Usb { id, plug: None } => self.qmp("device_del", json!({ "id": id })),
            Ask::Untie => {
                self.run.disown();
                Answer::Ok
            }
            Ask::Follow { .. } => Answer::No("answered elsewhere".into()),
        };
        let _ = reply.try_send(answer);
    }

    fn qmp(&self, command: &str, arguments: Value) -> Answer {
        match self.machine.qmp().raw(command, arguments) {
            Ok(_) => Answer::Ok,
            Err(error) => Answer::No(error.to_string()),
        }
    }

    /// Asks the guest to shut down, by its agent if that answers, else by the power button.
    fn ask_guest(&mut self, limit: Duration) {
        if self.stopping.is_some() {
            return;
        }
        let agent = self.machine.new_agent();
        let by_agent = agent.ping(AGENT_LIMIT).is_ok() && agent.shutdown(ShutdownMode::PowerDown).is_ok();
        drop(agent);
        if !by_agent {
            let _ = self.machine.qmp().raw("system_powerdown", Value::Null);
        }
        let how = if by_agent { "its agent" } else { "the power button" };
        self.stopping = Some((Instant::now() + limit, limit));
        self.run.set_stage(Stage::Stopping);
        self.run.hub().say(Happened::Stopping { limit_s: limit.as_secs(), how: how.into() });
    }

    /// The guest goes first, then the cards, then the host. A shutdown that was asked for before goes on with less time.
    fn host_shutdown(&mut self, patience: Patience) {
        self.then_off = patience.then_off;
        let limit = patience.limit;
        self.run.hub().note(format!("this host shuts down: the guest has {} s", limit.as_secs()));
        match &mut self.stopping {
            Some((deadline, _)) => *deadline = (*deadline).min(Instant::now() + limit),
            None => self.ask_guest(limit),
        }
    }

    /// Ends QEMU without asking the guest; the disks' caches are written.
    fn switch_off(&mut self) {
        self.run.shared.give_up.store(true, Ordering::SeqCst);
        let quit = self.machine.quit().is_ok() && self.machine.wait_exit(QUIT_LIMIT).is_some();
        if !quit && !self.machine.kill() {
            self.run.hub().warn("QEMU's process cannot be killed: a device hangs in the kernel");
        }
    }
}

/// Keeps the guest's driver as it is, once it has bound; a guest without one goes on.
fn keep(agent: &no43_machine::Agent, plan: &Plan, shared: &Shared) {
    let stop = || shared.give_up.load(Ordering::SeqCst);
    match driver_lock::keep(agent, plan, &stop) {
        None => {}
        Some(Ok(done)) => {
            shared.hub.note(format!("Windows installs no other driver for {}", done.kept.join(", ")));
        }
        Some(Err(why)) => {
            let why = words::clean_to(&why, 400);
            shared.hub.warn(format!("updates.driver = \"ours\": Windows may install another driver: {why}"));
        }
    }
}
