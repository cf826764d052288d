//! The outer machine: the lab host, restored from its snapshot or booted, with its two shares mounted.
//!
//! Order of a start: QEMU with a fresh overlay and a fresh generation id, memory from the snapshot, the shares plugged in
//! (a mounted share could not be saved), then inside the clock before anything else, then a boot id and the mounts.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use no43_machine::agent::ExecLimits;
use no43_machine::spec::{Attach, Disk, DiskCache, OnReboot, SerialPort, Share};
use no43_machine::{Accel, Machine, MachineSpec, RunDirs, StartOptions, StopLimits, hotplug, snapshot};

use crate::devices;
use crate::error::{LabError, Trouble, tail};
use crate::image::LabHost;
use crate::inside;
use crate::profile::Profile;
use crate::running::{Place, Places, Running, make_dir};
use crate::snapshot::{self as pairs, About, Pair, Snapshots};

/// The port on which an inner no43 asks the lab.
pub(crate) const LAB_PORT: &str = "org.no43.lab";
/// The port of `lab shell`.
pub(crate) const SHELL_PORT: &str = "org.no43.shell";

/// How the share keeps owners and modes; what is brought out of it is readable like any other file.
const MAPPED: &str = "security_model=mapped-xattr,fmode=0644,dmode=0755";

/// From QEMU's start to the agent of a booted lab host: 24 s were measured on two cores without KVM; a machine with
/// everything else to do takes several times as long.
const BOOT_LIMIT: Duration = Duration::from_secs(300);
/// How often a QEMU that dies while the lab host boots is started.
const BOOT_ATTEMPTS: u32 = 3;
/// For the agent of a restored one: 0.1 s were measured.
const WAKE_LIMIT: Duration = Duration::from_secs(60);
/// For one script inside: 3 s were measured for the longest.
const SCRIPT_LIMIT: Duration = Duration::from_secs(120);
/// For QEMU to write its caches and end.
const QUIT_LIMIT: Duration = Duration::from_secs(30);

/// Where labs live and what they run on.
#[derive(Debug, Clone)]
pub struct LabOptions {
    /// The store: images are shared with the lab host read-only, snapshots and overlays are kept under `labs/`.
    pub store: PathBuf,
    /// The state directory: sockets and records; a short path.
    pub state: PathBuf,
    /// QEMU itself.
    pub qemu: PathBuf,
    /// TCG, unless KVM was seen to work and to nest.
    pub accel: Accel,
    /// Restore a saved lab host, and save one after a boot.
    pub snapshot: bool,
    /// Set by whoever wants a lab that is still coming up to be given up.
    pub cancel: Option<Arc<AtomicBool>>,
}

impl LabOptions {
    /// The usual ones: `qemu-system-x86_64`, TCG, snapshots.
    pub fn new(store: impl Into<PathBuf>, state: impl Into<PathBuf>) -> Self {
        LabOptions {
            store: store.into(),
            state: state.into(),
            qemu: "qemu-system-x86_64".into(),
            accel: Accel::Tcg,
            snapshot: true,
            cancel: None,
        }
    }
}

/// How a lab came up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Started {
    /// From its snapshot.
    Restored {
        /// Until everything was mounted.
        took: Duration,
        /// QEMU's part of it: reading the memory.
        memory: Duration,
    },
    /// By booting.
    Booted {
        /// Until everything was mounted.
        took: Duration,
        /// Bytes of the snapshot that was made, if one was.
        saved: Option<u64>,
    },
    /// It was up already.
    WasUp,
}

/// A running lab, used by this process.
#[derive(Debug)]
pub struct Lab {
    pub(crate) machine: Machine,
    pub(crate) place: Place,
    pub(crate) store: PathBuf,
    started: Started,
}

impl Lab {
    /// Brings a lab up. `name` is the profile's for `lab up`, or made by [`private_name`] for a run's own one, which is
    /// ended when this process is done with it. `progress` gets one line for each longer step.
    ///
    /// # Errors
    /// [`LabError`]; nothing is left running then.
    pub fn up(
        name: &str,
        profile: &Profile,
        host: &LabHost,
        options: &LabOptions,
        private: bool,
        progress: &mut dyn FnMut(&str),
    ) -> Result<Lab, LabError> {
        let places = Places::under(&options.state);
        places.sweep().iter().for_each(|said| progress(said));
        let place = places.create(name, &profile.name, private, &options.store)?;
        let share = place.share();
        make_dir(&share)?;
        // The lab host's ordinary user must get in; outside, the directory above lets nobody else through.
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(&share, open).map_err(LabError::file("change", &share))?;
        check_readable(&options.store)?;
        let start = Start { profile, host, options, place: &place, private };
        match start.run(progress) {
            Ok((machine, started)) => Ok(Lab { machine, place, store: options.store.clone(), started }),
            Err(error) => {
                place.remove();
                Err(error)
            }
        }
    }

    /// Takes over a lab that is up.
    ///
    /// # Errors
    /// [`LabError::NotUp`], [`LabError::InUse`], or a lab fault if its QEMU is gone.
    pub fn attach(name: &str, options: &LabOptions) -> Result<Lab, LabError> {
        let lab = Lab::adopt(name, options)?;
        lab.script("looking for new images", inside::STORE_AGAIN, &[])?;
        Ok(lab)
    }

    /// Takes over a lab that is up as it is, whatever runs in it.
    ///
    /// # Errors
    /// [`LabError::NotUp`], or [`LabError::InUse`].
    pub fn take_over(name: &str, options: &LabOptions) -> Result<Lab, LabError> {
        Lab::adopt(name, options)
    }

    /// Ends the lab with this name. Its lab host is not asked: one that hangs can be ended, too.
    ///
    /// # Errors
    /// [`LabError::NotUp`], or [`LabError::InUse`] while another no43 uses it.
    pub fn end(name: &str, options: &LabOptions) -> Result<(), LabError> {
        Lab::adopt(name, options).map(Lab::down)
    }

    fn adopt(name: &str, options: &LabOptions) -> Result<Lab, LabError> {
        let place = Places::under(&options.state).open(name)?;
        let machine = match Machine::adopt(place.dirs.dir()) {
            Ok(machine) => machine,
            Err(no43_machine::AdoptError::Dead { .. } | no43_machine::AdoptError::NoRecord { .. }) => {
                return Err(LabError::NotUp { name: name.to_owned() });
            }
            Err(error) => return Err(error.into()),
        };
        Ok(Lab { machine, place, store: options.store.clone(), started: Started::WasUp })
    }

    /// All labs of this state directory.
    pub fn all(state: &Path) -> Vec<Running> {
        Places::under(state).all()
    }

    /// The lab's name.
    pub fn name(&self) -> &str {
        &self.place.record.name
    }

    /// How it came up.
    pub fn started(&self) -> &Started {
        &self.started
    }

    /// Its QEMU.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// The directory that lab host and outside share.
    pub fn share(&self) -> PathBuf {
        self.place.share()
    }

    /// Lets it run on when this process ends.
    pub fn leave_running(mut self) {
        self.machine.leave_running();
    }

    /// Ends it. Its disk is a throw-away overlay, so the guest is not asked.
    pub fn down(self) {
        self.machine.stop(StopLimits::at_once());
        self.place.remove();
    }

    /// Runs a command as root in the lab host and returns what it wrote; for tests and for looking around.
    ///
    /// # Errors
    /// A lab fault if the lab host does not answer or the command fails.
    pub fn script(&self, phase: &str, script: &str, arguments: &[&str]) -> Result<String, LabError> {
        script_on(&self.machine, script, arguments).map_err(|trouble| self.fault(phase, &trouble))
    }

    pub(crate) fn fault(&self, phase: &str, trouble: &Trouble) -> LabError {
        fault(&self.machine, &self.place.console(), phase, trouble)
    }
}

/// The name of a lab that belongs to this process alone.
pub fn private_name(profile: &Profile) -> String {
    format!("{}-{}", profile.name, std::process::id())
}

/// The paths that go into the arguments.
struct Paths {
    overlay: PathBuf,
    console: PathBuf,
    share: PathBuf,
    store: PathBuf,
}

/// Everything that a start needs.
struct Start<'a> {
    profile: &'a Profile,
    host: &'a LabHost,
    options: &'a LabOptions,
    place: &'a Place,
    private: bool,
}

impl Start<'_> {
    fn run(&self, progress: &mut dyn FnMut(&str)) -> Result<(Machine, Started), LabError> {
        let began = Instant::now();
        if !self.options.snapshot {
            let machine = self.boot(&self.place.overlay(), progress)?;
            self.wake(&machine)?;
            return Ok((machine, Started::Booted { took: began.elapsed(), saved: None }));
        }
        let snapshots = Snapshots::in_store(&self.options.store);
        let about = About {
            profile: self.profile.name.clone(),
            image: self.host.key.clone(),
            qemu: pairs::qemu_version(&self.options.qemu)?,
        };
        let key =
            pairs::key(&about, &template(self.profile, self.host, self.options.accel), inside::MAKE_READY);
        let mut saved = None;
        for attempt in 1..=2 {
            let pair = match snapshots.find(&key) {
                Some(pair) => pair,
                None => {
                    let pair = self.save(&snapshots, &key, &about, progress)?;
                    saved = Some(pair.bytes());
                    pair
                }
            };
            match self.restore(&pair) {
                Ok((machine, memory)) => {
                    self.wake(&machine)?;
                    let took = began.elapsed();
                    let booted = saved.is_some();
                    let started = if booted {
                        Started::Booted { took, saved }
                    } else {
                        Started::Restored { took, memory }
                    };
                    return Ok((machine, started));
                }
                Err(error) if attempt == 2 => return Err(error),
                Err(error) => {
                    progress(&format!("the saved lab host cannot be restored and is made again: {error}"));
                    snapshots.remove(&pair);
                }
            }
        }
        unreachable!("the second attempt returns")
    }

    fn spec(&self, overlay: PathBuf, incoming: bool) -> MachineSpec {
        let paths = Paths {
            overlay,
            console: self.place.console(),
            share: self.place.share(),
            store: self.options.store.clone(),
        };
        let mut spec = spec(self.profile, self.host, self.options.accel, &paths);
        spec.vmgenid = Some(fresh_uuid());
        spec.incoming = incoming;
        spec
    }

    fn start(&self, spec: &MachineSpec) -> Result<Machine, LabError> {
        let mut options = StartOptions::new(self.place.dirs.dir());
        options.qemu.clone_from(&self.options.qemu);
        options.outlives = !self.private;
        Ok(Machine::start(spec, &options)?)
    }

    /// Boots on a fresh `overlay` until everything is ready that a run needs. A QEMU that dies meanwhile is started again:
    /// under TCG with several CPUs it sometimes fails an assertion of its own (`iotlb_to_section`) when the kernel moves PCI
    /// windows, which it does hundreds of times while it boots.
    fn boot(&self, overlay: &Path, progress: &mut dyn FnMut(&str)) -> Result<Machine, LabError> {
        for attempt in 1.. {
            match self.boot_once(overlay, progress) {
                Err(error @ LabError::Died { .. }) if attempt < BOOT_ATTEMPTS => {
                    progress(&format!("booting again: {error}"));
                }
                other => return other,
            }
        }
        unreachable!("the last attempt returns")
    }

    fn boot_once(&self, overlay: &Path, progress: &mut dyn FnMut(&str)) -> Result<Machine, LabError> {
        progress("booting the lab host");
        let _ = std::fs::remove_file(overlay);
        pairs::make_overlay(overlay, &self.host.disk)?;
        let machine = self.start(&self.spec(overlay.to_owned(), false))?;
        let mut told = 0;
        let ready = machine.agent().wait_ready(BOOT_LIMIT, |waited| {
            if self.is_cancelled() {
                machine.kill();
            }
            if waited.as_secs() >= told + 10 {
                told = waited.as_secs();
                progress(&format!("booting the lab host: {told} s"));
            }
        });
        let prepared =
            ready.map_err(Trouble::from).and_then(|_| script_on(&machine, inside::MAKE_READY, &[]));
        match prepared {
            Ok(_) => Ok(machine),
            Err(_) if self.is_cancelled() => Err(LabError::Interrupted),
            Err(trouble) => Err(self.give_up(&machine, "booting the lab host", &trouble)),
        }
    }

    fn is_cancelled(&self) -> bool {
        self.options.cancel.as_ref().is_some_and(|cancel| cancel.load(Ordering::SeqCst))
    }

    /// Boots once and saves; what is saved has no shares and belongs to no run.
    fn save(
        &self,
        snapshots: &Snapshots,
        key: &str,
        about: &About,
        progress: &mut dyn FnMut(&str),
    ) -> Result<Pair, LabError> {
        let staging = snapshots.begin(key)?;
        if let Some(pair) = snapshots.find(key) {
            return Ok(pair);
        }
        let machine = self.boot(&staging.disk(), progress)?;
        progress("saving the lab host for the next time");
        let saved = snapshot::save(&machine, &staging.state(), snapshot::LIMIT);
        if let Err(error) = saved {
            return Err(self.give_up(&machine, "saving the lab host", &Trouble::Said(error.to_string())));
        }
        let ended = machine.quit().is_ok() && machine.wait_exit(QUIT_LIMIT).is_some();
        if !ended {
            let trouble = Trouble::Said(format!("QEMU did not end within {} s", QUIT_LIMIT.as_secs()));
            return Err(self.give_up(&machine, "saving the lab host", &trouble));
        }
        drop(machine);
        staging.publish(snapshots, about)
    }

    fn restore(&self, pair: &Pair) -> Result<(Machine, Duration), LabError> {
        let overlay = self.place.overlay();
        let _ = std::fs::remove_file(&overlay);
        pairs::make_overlay(&overlay, &pair.frozen())?;
        let machine = self.start(&self.spec(overlay, true))?;
        let memory = snapshot::restore(&machine, &pair.state(), snapshot::LIMIT);
        let awake = memory.map_err(|error| Trouble::Said(error.to_string())).and_then(|memory| {
            machine.agent().wait_ready(WAKE_LIMIT, |_| {})?;
            Ok(memory)
        });
        match awake {
            Ok(memory) => Ok((machine, memory)),
            Err(trouble) => Err(self.give_up(&machine, "restoring the lab host", &trouble)),
        }
    }

    /// Clock, shares, boot id, mounts.
    fn wake(&self, machine: &Machine) -> Result<(), LabError> {
        let plug = |(tag, spare)| {
            hotplug::plug_share(machine, tag, spare).map_err(|error| Trouble::Said(error.to_string()))
        };
        let awake = machine
            .agent()
            .set_time()
            .map_err(Trouble::from)
            .and_then(|()| [inside::STORE_TAG, inside::SHARE_TAG].into_iter().zip(0..).try_for_each(plug))
            .and_then(|()| script_on(machine, inside::WAKE, &[&fresh_uuid()]));
        awake.map(drop).map_err(|trouble| self.give_up(machine, "waking the lab host", &trouble))
    }

    /// Names the fault first: a QEMU that we end ourselves has not died.
    fn give_up(&self, machine: &Machine, phase: &str, trouble: &Trouble) -> LabError {
        let error = fault(machine, &self.place.console(), phase, trouble);
        machine.kill();
        error
    }
}

/// Inside, files keep the modes that they have here, and their owner there is nobody's.
fn check_readable(store: &Path) -> Result<(), LabError> {
    for dir in [store.to_owned(), store.join("images")] {
        let Ok(facts) = std::fs::metadata(&dir) else { continue };
        if facts.permissions().mode() & 0o005 != 0o005 {
            return Err(LabError::Store { path: dir });
        }
    }
    Ok(())
}

/// The whole machine, but for what is new at every start.
fn spec(profile: &Profile, host: &LabHost, accel: Accel, paths: &Paths) -> MachineSpec {
    let mut spec = MachineSpec::new(format!("lab-{}", profile.name), accel);
    spec.kernel = Some(host.boot());
    spec.disks = vec![Disk { cache: DiskCache::Unsafe, ..Disk::qcow2(&paths.overlay) }];
    spec.ports =
        [LAB_PORT, SHELL_PORT].map(|name| SerialPort { name: name.to_owned(), socket: None }).to_vec();
    spec.serials = vec![paths.console.clone()];
    spec.shares = vec![Share {
        tag: inside::STORE_TAG.to_owned(),
        path: paths.store.clone(),
        read_only: true,
        virtiofs: None,
        attach: Attach::Later,
    }];
    spec.spare_ports = 2;
    spec.on_reboot = OnReboot::Exit;
    // nothing hangs on it: things are plugged in to be lent further
    spec.usb_controller = true;
    devices::install(profile, &mut spec);
    // Mapped: owner and mode of what the lab host writes are kept beside the file, so that its user "lab" need not be a
    // user here, and a link made inside is a plain file here and leads nowhere.
    let path = paths.share.display().to_string().replace(',', ",,");
    spec.extra.extend([
        "-fsdev".to_owned(),
        format!("local,id={},path={path},multidevs=remap,{MAPPED}", inside::SHARE_TAG),
    ]);
    spec
}

/// The arguments with every path replaced: what the snapshot's key is made of.
fn template(profile: &Profile, host: &LabHost, accel: Accel) -> Vec<String> {
    let paths = Paths { overlay: "O".into(), console: "C".into(), share: "E".into(), store: "S".into() };
    let mut spec = spec(profile, host, accel, &paths);
    // The image's key stands for its kernel's content.
    if let Some(kernel) = &mut spec.kernel {
        (kernel.kernel, kernel.initrd) = ("K".into(), Some("I".into()));
    }
    spec.name = "lab".to_owned();
    spec.argv(&RunDirs::at("R"))
}

fn script_on(machine: &Machine, script: &str, arguments: &[&str]) -> Result<String, Trouble> {
    let mut argv = vec!["/bin/sh", "-c", script, "no43-lab"];
    argv.extend_from_slice(arguments);
    let output = machine.agent().exec(&argv, &ExecLimits::within(SCRIPT_LIMIT))?;
    if output.success() {
        return Ok(output.stdout_text());
    }
    let said = output.stderr_text();
    let said = said.trim();
    let code = output.code.map_or("a signal".to_owned(), |code| format!("code {code}"));
    Err(Trouble::Said(if said.is_empty() {
        format!("the lab host's script ended with {code}")
    } else {
        said.to_owned()
    }))
}

/// What really happened: a QEMU that is gone explains every other failure.
fn fault(machine: &Machine, console: &Path, phase: &str, trouble: &Trouble) -> LabError {
    let gone = matches!(trouble, Trouble::Agent(error) if error.is_machine_gone())
        || matches!(trouble, Trouble::Qmp(no43_machine::QmpError::Gone { .. }));
    let patience = if gone { Duration::from_secs(5) } else { Duration::from_millis(100) };
    let messages = tail(console, 6);
    match machine.wait_exit(patience) {
        None => LabError::Broken { phase: phase.to_owned(), why: trouble.to_string(), messages },
        Some(exit) => {
            let by = match (exit.status.code, exit.status.signal) {
                (Some(code), _) => format!("exit code {code}"),
                (_, Some(signal)) => format!("signal {signal}"),
                _ => "exit code unknown".to_owned(),
            };
            let how = exit.reason.map_or(by.clone(), |reason| format!("{by}, {reason}"));
            let messages =
                [exit.stderr, messages].into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>();
            LabError::Died { phase: phase.to_owned(), how, messages: messages.join("\n") }
        }
    }
}

/// A random UUID from the kernel.
fn fresh_uuid() -> String {
    let read = std::fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap_or_default();
    let uuid = read.trim();
    if uuid.len() == 36 {
        uuid.to_owned()
    } else {
        format!("00000000-0000-4000-8000-{:012x}", std::process::id())
    }
}

mod reboot;
#[cfg(test)]
mod tests;
