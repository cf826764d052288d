//! The guest agent: found its port, started, and started again when it dies.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::WaitStatus;

use super::log::Log;
use super::processes::{Processes, in_words};
use crate::linux::ports::{self, ports};
use crate::linux::{Root, names};

/// Name of the agent's port, agreed upon by QEMU and the agent.
const PORT: &str = "org.qemu.guest_agent.0";

/// Where Debian and others put the agent.
const PROGRAMS: &[&str] = &["usr/sbin/qemu-ga", "usr/bin/qemu-ga"];

/// Pause between two looks for a port that was not there at boot.
const PORT_PAUSE: Duration = Duration::from_millis(200);

/// Pause before the first restart; doubled each time the agent dies young.
const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// Longest pause before a restart.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// An agent that lived so long did not die young.
const OLD: Duration = Duration::from_secs(60);

/// How long the main loop may sleep while there is nothing to do for the agent.
const IDLE: Duration = Duration::from_secs(3600);

/// The agent's process and when to look after it next.
pub(super) struct Agent {
    root: Root,
    running: Option<(u32, Instant)>,
    due: Instant,
    deaths: u32,
    said_missing: bool,
}

impl Agent {
    pub(super) fn new(root: &Root) -> Self {
        Self { root: root.clone(), running: None, due: Instant::now(), deaths: 0, said_missing: false }
    }

    /// Process id while it runs.
    pub(super) fn pid(&self) -> Option<u32> {
        self.running.map(|(pid, _)| pid)
    }

    /// Starts the agent if that is due. Gives the time until the next call is needed.
    pub(super) fn tend(&mut self, processes: &Processes, log: &Log) -> Duration {
        let now = Instant::now();
        if self.running.is_some() {
            return IDLE;
        }
        if now < self.due {
            return self.due - now;
        }
        match self.start(processes) {
            Ok(pid) => {
                self.running = Some((pid, now));
                log.say("agent started");
                IDLE
            }
            Err(reason) => {
                if !self.said_missing {
                    log.say(&format!("agent not started: {reason}"));
                }
                self.said_missing = true;
                self.due = now + PORT_PAUSE;
                PORT_PAUSE
            }
        }
    }

    /// To be told of every child that died.
    pub(super) fn note_end(&mut self, pid: u32, status: WaitStatus, log: &Log) {
        let Some((_, since)) = self.running.take_if(|(running, _)| *running == pid) else { return };
        let pause = self.pause_after(since.elapsed());
        self.due = Instant::now() + pause;
        self.said_missing = false;
        log.say(&format!("agent ended ({}; next start in {} ms)", in_words(status), pause.as_millis()));
    }

    fn pause_after(&mut self, lived: Duration) -> Duration {
        if lived >= OLD {
            self.deaths = 0;
        }
        let pause = FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(self.deaths)).min(LONGEST_PAUSE);
        self.deaths = self.deaths.saturating_add(1);
        pause
    }

    fn start(&self, processes: &Processes) -> Result<u32, String> {
        let port = port(&self.root).ok_or_else(|| format!("there is no port {PORT}"))?;
        let program = program(&self.root).ok_or("qemu-ga is not installed")?;
        link_ports(&self.root);
        let console = || match OpenOptions::new().write(true).open(self.root.path("dev/console")) {
            Ok(console) => Stdio::from(console),
            Err(_) => Stdio::null(),
        };
        let mut command = Command::new(program);
        command.args(["-m", "virtio-serial", "-p"]).arg(port);
        command.stdin(Stdio::null()).stdout(console()).stderr(console());
        processes.spawn(&mut command).map_err(|error| error.to_string())
    }
}

/// Whether the process has the agent's port open, which is when it begins to answer.
pub(super) fn listens(root: &Root, pid: u32) -> bool {
    let Some(port) = port(root) else { return false };
    let fds = root.path("proc").join(pid.to_string()).join("fd");
    names(&fds)
        .unwrap_or_default()
        .iter()
        .any(|fd| fs::read_link(fds.join(fd)).is_ok_and(|target| target == port))
}

/// Makes `/dev/virtio-ports/<name>` for all ports, as udev does.
pub(super) fn link_ports(root: &Root) {
    let dir = root.path("dev/virtio-ports");
    for (device, name) in ports(root) {
        let is_file_name = Path::new(&name).file_name().is_some_and(|file| file == name.as_str());
        if is_file_name && fs::create_dir_all(&dir).is_ok() {
            let _ = symlink(format!("../{device}"), dir.join(name)); // there already, perhaps
        }
    }
}

/// Device node of the agent's port.
pub(super) fn port(root: &Root) -> Option<PathBuf> {
    ports::port(root, PORT)
}

fn program(root: &Root) -> Option<PathBuf> {
    PROGRAMS.iter().map(|program| root.path(program)).find(|path| path.exists())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::report::tests::FakeGuest;

    #[test]
    fn ports_are_found_and_linked() {
        let guest = FakeGuest::new();
        guest.write("sys/class/virtio-ports/vport1p1/name", "org.no43.lab\n");
        guest.write("sys/class/virtio-ports/vport2p1/name", "org.qemu.guest_agent.0\n");
        guest.write("sys/class/virtio-ports/vport2p2/name", "../../etc/passwd\n");
        guest.write("sys/class/virtio-ports/vport2p3/name", "\n");
        let root = guest.root();
        assert_eq!(port(&root), Some(root.path("dev/vport2p1")));
        link_ports(&root);
        link_ports(&root);
        let links = names(&root.path("dev/virtio-ports")).unwrap();
        assert_eq!(links, ["org.no43.lab", PORT]);
        assert_eq!(
            fs::read_link(root.path("dev/virtio-ports/org.no43.lab")).unwrap(),
            Path::new("../vport1p1")
        );
    }

    #[test]
    fn an_agent_that_dies_young_is_started_less_and_less_often() {
        let mut agent = Agent::new(&FakeGuest::new().root());
        let young = Duration::from_secs(1);
        let pauses: Vec<u128> = (0..10).map(|_| agent.pause_after(young).as_millis()).collect();
        assert_eq!(pauses, [200, 400, 800, 1600, 3200, 6400, 12800, 25600, 30000, 30000]);
        assert_eq!(agent.pause_after(OLD), FIRST_PAUSE);
    }

    #[test]
    fn without_a_port_or_a_program_it_is_tried_again_later() {
        let guest = FakeGuest::new();
        let log = Log::open(&guest.root());
        let mut agent = Agent::new(&guest.root());
        assert_eq!(agent.tend(&Processes::default(), &log), PORT_PAUSE);
        assert_eq!(agent.start(&Processes::default()), Err(format!("there is no port {PORT}")));
        guest.write("sys/class/virtio-ports/vport1p1/name", PORT);
        assert_eq!(agent.start(&Processes::default()), Err("qemu-ga is not installed".into()));
        assert_eq!(agent.pid(), None);
    }
}
