//! The machine of an installation: started, watched, its keyboard pressed, its end waited for.

use std::fmt;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use no43_guest::setup::PORT_NAME;
use no43_machine::agent::ShutdownMode;
use no43_machine::spec::{
    Clock, Disk, DiskCache, Display, Firmware, MachineSpec, Network, SerialPort, Smbios, Smp,
};
use no43_machine::tpm::{Swtpm, TpmError};
use no43_machine::{Machine, StartError, StartOptions};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::cause::{self, Cause};
use super::com1;
use super::look;
use super::watch::{Act, Blocks, MEDIUM_SERIAL, Seen, Verdict, Watch};
use super::{Limits, Phase, PhaseTime};

/// How often the disks' counters are looked at; pressed keys look by themselves.
const COUNT_EVERY: Duration = Duration::from_secs(2);
/// How often a picture is taken, only to see whether anything moves and to have a last one.
const PICTURE_EVERY: Duration = Duration::from_secs(5);
/// How often a driver that waits looks whether it was cancelled.
const LOOK_UP: Duration = Duration::from_millis(250);
/// After QEMU's end.
const TPM_LIMIT: Duration = Duration::from_secs(30);
/// The end of COM1's lines in an error.
const COM1_SHOWN: usize = 15;

/// The serial number of the target disk; the answer file's own search may look for it.
pub(crate) const TARGET_SERIAL: &str = "no43-system";
/// The serial number of the set-up disk.
const SETUP_SERIAL: &str = "no43-setup";

/// What makes this machine a certain one; kept beside the image, because Windows ties its licence and its TPM to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// SMBIOS UUID.
    pub uuid: String,
    /// SMBIOS serial number.
    pub serial: String,
}

/// One installation.
pub struct Job<'a> {
    /// Shown by `ps`.
    pub name: String,
    /// The empty target disk, qcow2.
    pub target: &'a Path,
    /// The untouched medium.
    pub medium: &'a Path,
    /// The set-up disk, raw.
    pub setup_disk: &'a Path,
    /// How the target disk is attached.
    pub disk_bus: no43_machine::spec::DiskBus,
    /// UEFI with variables of this machine alone.
    pub firmware: Firmware,
    /// The folder of the TPM's state, if there is to be a TPM.
    pub tpm_state: Option<&'a Path>,
    /// Who the machine is.
    pub identity: &'a Identity,
    /// Virtual CPUs.
    pub cpus: u16,
    /// Guest memory.
    pub memory_mib: u64,
    /// KVM or TCG.
    pub accel: no43_machine::Accel,
    /// QEMU itself.
    pub qemu: &'a Path,
    /// Sockets; short.
    pub run_dir: &'a Path,
    /// Where COM1's lines and the last picture are kept.
    pub evidence: &'a Path,
    /// Deadlines.
    pub limits: Limits,
    /// What each phase took the last time here, for the progress line.
    pub usual: &'a [PhaseTime],
    /// Leave the machine running when it fails.
    pub keep_on_failure: bool,
    /// True once the caller wants to stop.
    pub cancelled: &'a dyn Fn() -> bool,
}

/// A finished installation: QEMU and the TPM have ended.
#[derive(Debug)]
pub struct Installed {
    /// How long each phase took.
    pub phases: Vec<PhaseTime>,
    /// Actions that the guest program refused: above 0 only with the stand-in for Windows Setup.
    pub refused: u32,
}

/// Why it failed, for people and for machines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    /// Where it stood.
    pub phase: Phase,
    /// Seconds since QEMU's start.
    pub seconds: u64,
    /// Why.
    pub cause: Cause,
    /// What was seen.
    pub seen: Vec<String>,
    /// The end of the guest's logs.
    pub logs: Vec<String>,
    /// The end of COM1.
    pub com1: Vec<String>,
    /// The last picture.
    pub screen: Option<PathBuf>,
    /// How to get into the machine that was left running.
    pub kept: Option<String>,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (minutes, seconds) = (self.seconds / 60, self.seconds % 60);
        let (phase, cause) = (self.phase.name(), self.cause.what());
        write!(f, "failed in phase \"{phase}\" after {minutes}:{seconds:02}: {cause}")?;
        let mut part = |label: &str, text: &str| write!(f, "\n      {label:<7} {text}");
        for (n, seen) in self.seen.iter().enumerate() {
            part(if n == 0 { "seen" } else { "" }, seen)?;
        }
        for (n, line) in self.logs.iter().rev().take(10).rev().enumerate() {
            part(if n == 0 { "log" } else { "" }, line)?;
        }
        for (n, line) in self.com1.iter().enumerate() {
            part(if n == 0 { "com1" } else { "" }, line)?;
        }
        if let Some(screen) = &self.screen {
            part("screen", &screen.display().to_string())?;
        }
        part("fix", self.cause.fix())?;
        if let Some(kept) = &self.kept {
            part("kept", kept)?;
        }
        Ok(())
    }
}

/// Why there is no installation.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The machine could not be started.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The TPM could not be started, or did not end.
    #[error(transparent)]
    Tpm(#[from] TpmError),
    /// It failed on its way.
    #[error("{0}")]
    Failed(Box<Failed>),
    /// The caller asked to stop.
    #[error("stopped")]
    Cancelled,
}

/// Installs, from QEMU's start to its end. `say` is told what a person may want to read.
///
/// # Errors
/// [`InstallError`]; unless the machine was to be kept, it is gone then.
pub fn install(job: &Job<'_>, say: &mut dyn FnMut(&str)) -> Result<Installed, InstallError> {
    let socket = job.run_dir.join("tpm.sock");
    let tpm = match job.tpm_state {
        // a machine that is kept needs its TPM as long as it runs
        Some(state) if job.keep_on_failure => Some(Swtpm::start_lasting(state, &socket)?),
        Some(state) => Some(Swtpm::start(state, &socket)?),
        None => None,
    };
    let com1 = job.evidence.join("com1.log");
    let mut spec = spec(job, tpm.as_ref().map(|tpm| tpm.socket().to_owned()), &com1);
    look::attach(&mut spec, job.run_dir);
    let options = StartOptions {
        qemu: job.qemu.to_owned(),
        dies_with_us: !job.keep_on_failure,
        ..StartOptions::new(job.run_dir)
    };
    let machine = Machine::start(&spec, &options)?;
    let mut driver = Driver::new(job, machine, &com1);
    match driver.follow(say) {
        Ok(()) => {
            if let Some(tpm) = tpm {
                tpm.wait_end(TPM_LIMIT)?;
            }
            Ok(Installed { phases: driver.watch.times().to_vec(), refused: driver.watch.refused() })
        }
        Err(Stop::Cancelled) => Err(InstallError::Cancelled),
        Err(Stop::Failed(verdict)) => {
            let failed = driver.failed(*verdict, tpm);
            Err(InstallError::Failed(Box::new(failed)))
        }
    }
}

/// The machine as Windows Setup finds it. The target disk has the first place: while it is empty the firmware falls through
/// to the medium, and afterwards it never asks for a key again. No network: nothing is downloaded behind our back.
fn spec(job: &Job<'_>, tpm: Option<PathBuf>, com1: &Path) -> MachineSpec {
    let serial = |text: &str| Some(text.to_owned());
    let target = Disk {
        serial: serial(TARGET_SERIAL),
        bus: job.disk_bus,
        boot_index: Some(1),
        // Until it is published nobody needs it, and publishing writes everything to the disk.
        cache: DiskCache::Unsafe,
        ..Disk::qcow2(job.target)
    };
    let medium = Disk { serial: serial(MEDIUM_SERIAL), boot_index: Some(2), ..Disk::cd(job.medium) };
    let setup = Disk { serial: serial(SETUP_SERIAL), ..Disk::usb_stick(job.setup_disk) };
    MachineSpec {
        smp: Smp::cpus(job.cpus),
        memory_mib: job.memory_mib,
        firmware: job.firmware.clone(),
        disks: vec![target, medium, setup],
        serials: vec![com1.to_owned()],
        ports: vec![SerialPort { name: PORT_NAME.to_owned(), socket: None }],
        network: Network::None,
        display: Display::Vga,
        uuid: Some(job.identity.uuid.clone()),
        smbios: Some(Smbios {
            manufacturer: "no43".to_owned(),
            product: "VM".to_owned(),
            serial: job.identity.serial.clone(),
        }),
        tpm,
        panic_device: true,
        clock: Clock::LocalTime,
        cpu: windows_cpu(job.accel, job.accel.default_cpu()),
        ..MachineSpec::new(look::machine_name(&job.name), job.accel)
    }
}

/// What KVM offers a Windows guest in Hyper-V's name: clocks, locks and interrupts that know of the hypervisor. Its stop codes
/// come by the crash enlightenment. QEMU 10.0 on a kernel 6.1 takes them all (the lab's host); no Windows has run with them.
const ENLIGHTENMENTS: &str = "hv-relaxed=on,hv-vapic=on,hv-spinlocks=0x1fff,hv-vpindex=on,hv-runtime=on,hv-time=on,hv-synic=on,hv-stimer=on,\
     hv-tlbflush=on,hv-ipi=on,hv-crash=on";

/// The processor as Windows knows it.
pub(crate) fn windows_cpu(accel: no43_machine::Accel, plain: &str) -> String {
    match accel {
        no43_machine::Accel::Kvm => format!("{plain},{ENLIGHTENMENTS}"),
        _ => plain.to_owned(),
    }
}

enum Stop {
    Cancelled,
    Failed(Box<Verdict>),
}

struct Driver<'a> {
    job: &'a Job<'a>,
    machine: Machine,
    watch: Watch,
    started: Instant,
    sender: Sender<Seen>,
    seen: mpsc::Receiver<Seen>,
    stop: Arc<AtomicBool>,
    com1: PathBuf,
    counted: Instant,
    pictured: Instant,
}

impl<'a> Driver<'a> {
    fn new(job: &'a Job<'a>, machine: Machine, com1: &Path) -> Self {
        let (sender, seen) = mpsc::channel();
        let stop = Arc::new(AtomicBool::new(false));
        let events = machine.subscribe();
        let to = sender.clone();
        std::thread::spawn(move || {
            events
                .into_iter()
                .filter_map(|event| of_qemu(&event.name, &event.data))
                .all(|seen| to.send(seen).is_ok())
        });
        let (to, stopped, file) = (sender.clone(), Arc::clone(&stop), com1.to_owned());
        std::thread::spawn(move || com1::follow(&file, &stopped, |seen| to.send(seen).is_ok()));
        let now = Instant::now();
        let watch = Watch::new(job.limits);
        Self {
            job,
            machine,
            watch,
            started: now,
            sender,
            seen,
            stop,
            com1: com1.to_owned(),
            counted: now,
            pictured: now,
        }
    }

    /// Until the watch says that it is over.
    fn follow(&mut self, say: &mut dyn FnMut(&str)) -> Result<(), Stop> {
        say(&format!("{}   (no43 view {} shows it)", self.in_words(Phase::Firmware), self.job.name));
        loop {
            if (self.job.cancelled)() {
                return Err(Stop::Cancelled);
            }
            let seen = match self.seen.recv_timeout(LOOK_UP) {
                Ok(seen) => seen,
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => self.look(),
            };
            let mut acts = self.watch.see(seen, self.started.elapsed());
            while !acts.is_empty() {
                let act = acts.remove(0);
                match act {
                    Act::PressKey => {
                        let count = self.press_key();
                        acts.extend(self.watch.see(count, self.started.elapsed()));
                    }
                    Act::Phase(phase) => say(&self.in_words(phase)),
                    Act::Say(text) => say(&text),
                    Act::AskAgent => self.ask_agent(),
                    Act::ShutDown => self.shut_down(),
                    Act::Done => return Ok(()),
                    Act::Fail(verdict) => return Err(Stop::Failed(verdict)),
                }
            }
        }
    }

    /// Nothing came: is there something to see?
    fn look(&mut self) -> Seen {
        if !self.machine.is_alive() {
            return self.ended();
        }
        if self.counted.elapsed() >= COUNT_EVERY {
            return self.count();
        }
        if self.pictured.elapsed() >= PICTURE_EVERY {
            self.pictured = Instant::now();
            if let Ok(picture) = self.machine.screendump(None) {
                let mut hasher = DefaultHasher::new();
                picture.as_raw().hash(&mut hasher);
                return Seen::Screen(hasher.finish());
            }
        }
        Seen::Tick
    }

    fn count(&mut self) -> Seen {
        self.counted = Instant::now();
        match self.machine.qmp().raw("query-blockstats", Value::Null) {
            Ok(answer) => Seen::Blocks(blocks(&answer)),
            Err(_) => Seen::Tick,
        }
    }

    /// Enter, because space opens a menu in Windows' boot manager. Nobody else types: the keyboard is ours.
    fn press_key(&mut self) -> Seen {
        let _ = self.machine.qmp().raw("send-key", json!({"keys": [{"type": "qcode", "data": "ret"}]}));
        self.count()
    }

    fn ended(&mut self) -> Seen {
        let exit = self.machine.wait_exit(Duration::from_secs(2));
        let orderly = exit.as_ref().is_some_and(|exit| {
            exit.is_orderly()
                && exit.reason.as_deref().is_none_or(|reason| reason.starts_with("guest-shutdown"))
        });
        let how = exit.map_or_else(String::new, |exit| {
            let reason = exit.reason.unwrap_or_else(|| "no reason given".to_owned());
            format!("QEMU ended ({reason}) {}", exit.stderr.lines().last().unwrap_or_default())
        });
        Seen::Ended { orderly, how }
    }

    fn ask_agent(&self) {
        let (agent, sender, limit) =
            (self.machine.agent(), self.sender.clone(), self.job.limits.of(Phase::Agent));
        std::thread::spawn(move || {
            if agent.wait_ready(limit, |_| {}).is_ok() {
                let _ = sender.send(Seen::AgentAnswers);
            }
        });
    }

    fn shut_down(&self) {
        let agent = self.machine.agent();
        if agent.shutdown(ShutdownMode::PowerDown).is_err() {
            let _ = self.machine.qmp().raw("system_powerdown", Value::Null);
        }
    }

    fn in_words(&self, phase: Phase) -> String {
        let usual = self.job.usual.iter().find(|time| time.phase == phase && time.ms >= 1000);
        match usual {
            Some(PhaseTime { ms, .. }) if *ms >= 90_000 => {
                format!("{}   (usually {} min here)", phase.name(), (ms + 30_000) / 60_000)
            }
            Some(PhaseTime { ms, .. }) => format!("{}   (usually {} s here)", phase.name(), ms / 1000),
            None => phase.name().to_owned(),
        }
    }

    /// Collects everything before the machine goes.
    fn failed(&mut self, verdict: Verdict, tpm: Option<Swtpm>) -> Failed {
        let Verdict { phase, mut cause, mut seen, mut logs } = verdict;
        let screen = self.job.evidence.join("last-screen.png");
        let screen = self
            .machine
            .screendump(None)
            .ok()
            .and_then(|picture| picture.save(&screen).ok())
            .map(|()| screen);
        logs.extend(self.guest_logs());
        if matches!(cause, Cause::Still | Cause::TooSlow)
            && let Some((better, line)) = cause::of_logs(logs.iter().map(String::as_str))
        {
            seen.insert(0, line.to_owned());
            cause = better;
        }
        self.stop.store(true, Ordering::Release);
        let text = fs::read(&self.com1).unwrap_or_default();
        let lines: Vec<String> = text
            .split(|byte| matches!(byte, b'\n' | b'\r'))
            .map(com1::plain)
            .filter(|line| !line.is_empty())
            .collect();
        let kept = self.job.keep_on_failure.then(|| self.keep(tpm));
        Failed {
            phase,
            seconds: self.started.elapsed().as_secs(),
            cause,
            seen,
            logs,
            com1: lines[lines.len().saturating_sub(COM1_SHOWN)..].to_vec(),
            screen,
            kept,
        }
    }

    /// The guest's own logs, where an agent gives them.
    fn guest_logs(&self) -> Vec<String> {
        const LOGS: [&str; 3] = [
            r"C:\Windows\Panther\setuperr.log",
            r"C:\Windows\Panther\UnattendGC\setupact.log",
            r"C:\ProgramData\no43\setup.log",
        ];
        let agent = self.machine.agent();
        if !self.machine.is_alive() || agent.ping(Duration::from_secs(2)).is_err() {
            return Vec::new();
        }
        let lines = |path: &&str| {
            let (bytes, _) = agent.read_file_prefix(path, 1 << 20).unwrap_or_default();
            let text: Vec<String> =
                bytes.split(|byte| *byte == b'\n').map(com1::plain).filter(|line| !line.is_empty()).collect();
            text[text.len().saturating_sub(20)..].to_vec()
        };
        LOGS.iter().flat_map(lines).collect()
    }

    fn keep(&mut self, tpm: Option<Swtpm>) -> String {
        self.machine.leave_running();
        // It ends with its machine.
        if let Some(mut tpm) = tpm {
            tpm.leave_running();
        }
        let (pid, name, socket) = (self.machine.pid(), &self.job.name, self.machine.dirs().qmp_socket());
        format!(
            "the machine runs on as process {pid} until the next build: no43 view {name}, no43 shot {name}; its control socket is {}",
            socket.display()
        )
    }
}

impl Drop for Driver<'_> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
    }
}

fn of_qemu(name: &str, data: &Value) -> Option<Seen> {
    match name {
        "RESET" => Some(Seen::Reset),
        "GUEST_PANICKED" => Some(Seen::Panicked(cause::panic_in_words(data))),
        "BLOCK_IO_ERROR" if data.get("nospace").and_then(Value::as_bool) == Some(true) => {
            Some(Seen::HostDiskFull)
        }
        _ => None,
    }
}

/// The counters by the names that [`MachineSpec`] gives its disks, in the order of [`spec`].
fn blocks(answer: &Value) -> Blocks {
    let of = |number: usize, key: &str| {
        let name = format!("disk{number}");
        let is_it = |entry: &&Value| {
            ["node-name", "qdev"].iter().any(|key| {
                entry
                    .get(key)
                    .and_then(Value::as_str)
                    .is_some_and(|text| text.rsplit('/').next() == Some(&name))
            })
        };
        let entry = answer.as_array().into_iter().flatten().find(is_it);
        entry.and_then(|entry| entry.pointer(&format!("/stats/{key}"))).and_then(Value::as_u64).unwrap_or(0)
    };
    Blocks {
        target_read: of(0, "rd_bytes"),
        target_written: of(0, "wr_bytes"),
        medium: of(1, "rd_bytes"),
        setup_disk: of(2, "rd_bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_found_by_their_disk() {
        let entry = |name: &str, qdev: &str, n: u64| json!({"node-name": name, "qdev": qdev, "stats": {"rd_bytes": n, "wr_bytes": n + 1}});
        let answer = json!([
            entry("code", "", 9),
            entry("disk0", "/machine/peripheral/disk0/virtio-backend", 1),
            entry("disk1", "disk1", 3),
            entry("disk2", "disk2", 5)
        ]);
        assert_eq!(blocks(&answer), Blocks { target_read: 1, target_written: 2, medium: 3, setup_disk: 5 });
        assert_eq!(blocks(&json!("?")), Blocks::default());
    }

    #[test]
    fn a_failure_reads_like_this() {
        let failed = Failed {
            phase: Phase::Copying,
            seconds: 52,
            cause: Cause::NoTargetDisk,
            seen: vec![
                "setupact.log: no storage controller driver loaded".into(),
                "read 40 MiB of the medium".into(),
            ],
            logs: vec![],
            com1: vec!["BdsDxe: starting Boot0002".into()],
            screen: Some("/s/last-screen.png".into()),
            kept: None,
        };
        insta::assert_snapshot!(failed, @r#"
        failed in phase "copying files" after 0:52: Windows Setup cannot see the target disk
              seen    setupact.log: no storage controller driver loaded
                      read 40 MiB of the medium
              com1    BdsDxe: starting Boot0002
              screen  /s/last-screen.png
              fix     inputs.virtio: use an ISO with viostor for this Windows, or set machine.disk-bus = "ahci"
        "#);
    }

    #[test]
    fn a_full_disk_of_the_host_is_told_from_other_errors() {
        assert_eq!(of_qemu("BLOCK_IO_ERROR", &json!({"nospace": true})), Some(Seen::HostDiskFull));
        assert_eq!(of_qemu("BLOCK_IO_ERROR", &json!({"nospace": false})), None);
    }
}
