//! Making a layer on top of an installed Windows: the layer below is started with a set-up disk, the guest program carries the
//! disk's plan out, and disk, UEFI variables and TPM state are sealed again.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use no43_guest::protocol::Report;
use no43_guest::setup::event::What;
use no43_guest::setup::{PORT_NAME, WINDOWS_PROGRAM, WINDOWS_STATE, first_logon_command};
use no43_machine::spec::{Disk, DiskCache, Display, MachineSpec, PassedCard, SerialPort, Smp};
use no43_machine::tpm::Swtpm;
use no43_machine::{Agent, Machine, StartOptions};

use super::change;
use super::extra::{DRIVER, DriverIn, WindowsSetup};
use super::make::{LABEL, guest_program};
use super::seal::{Private, Sealed, TPM, VARS, Who};
use crate::answer::FOLDER;
use crate::build::{BuildError, Context, Lent, Made};
use crate::driver::{self, Package, Version};
use crate::image::{BootKind, DISK, Image, Provenance};
use crate::install::com1;
use crate::install::watch::Seen;
use crate::plan::{HIDDEN, LayerPlan, Plan};
use crate::recipe::DriverInstall;
use crate::setup_disk::{SetupDisk, Source};
use crate::step::{self, StepError};
use crate::store::{Staging, StoreError};

/// A Windows with a new driver is slower than any Linux, and without KVM slower still.
const READY_LIMIT: Duration = Duration::from_secs(900);
/// From the start of the guest program to its first event.
const FIRST_EVENT_LIMIT: Duration = Duration::from_secs(120);
/// A restart in the middle of a plan, from one event to the next, besides the action's own limit.
const RESTART_LIMIT: Duration = Duration::from_secs(900);
/// For swtpm, which ends with QEMU.
const TPM_LIMIT: Duration = Duration::from_secs(30);
/// How often the machine is looked at while no event comes.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// A report of the guest program.
const REPORT_LIMIT: Duration = Duration::from_secs(120);

/// Builds the layer in `staging`.
pub(crate) fn build(
    setup: &WindowsSetup,
    layer: &LayerPlan,
    plan: &Plan,
    below: &Image,
    staging: &mut Staging,
    context: &mut Context<'_>,
) -> Result<Made, BuildError> {
    let dir = staging.dir().to_owned();
    let sealed = below.manifest.sealed.clone();
    let sealed =
        sealed.ok_or_else(|| BuildError::Recipe("driver: the layer below is no Windows".to_owned()))?;
    context.progress.phase("writing the set-up disk");
    let setup_disk = dir.join("setup.img");
    write_setup_disk(setup, &dir, &setup_disk, context)?;
    let disk = dir.join(DISK);
    step::create_overlay(&disk, below)?;
    let private = below.private_parts(&dir, Who::default()).map_err(StoreError::io("copy", &below.dir))?;
    let private =
        private.ok_or_else(|| BuildError::Recipe("driver: the layer below is no Windows".to_owned()))?;
    let lent = lend(setup, plan, context)?;
    let run_dir = step::run_dir(staging)?;
    fs::create_dir_all(&run_dir).map_err(StoreError::io("create", &run_dir))?;
    let tpm = match &private.tpm_state {
        Some(state) => Some(
            Swtpm::start(state, &run_dir.join("tpm.sock"))
                .map_err(|error| BuildError::Recipe(error.to_string()))?,
        ),
        None => None,
    };
    let com1 = dir.join("console.log");
    let parts =
        Attached { disk: &disk, setup_disk: &setup_disk, com1: &com1, private: &private, tpm: tpm.as_ref() };
    let cards = lent.as_ref().map(|lent| lent.cards()).unwrap_or_default();
    let spec = machine(plan, &parts, cards, context);
    let options = StartOptions {
        qemu: context.options.qemu.clone(),
        dies_with_us: true,
        ..StartOptions::new(&run_dir)
    };
    let result = in_machine(setup, &spec, &options, &com1, &sealed, context);
    // its state is at rest only after its own end
    let tpm_ended = match (&result, tpm) {
        (Ok(_), Some(tpm)) => tpm.wait_end(TPM_LIMIT),
        (_, tpm) => {
            drop(tpm);
            Ok(())
        }
    };
    drop(lent);
    let _ = fs::remove_dir_all(&run_dir);
    let _ = fs::remove_file(&setup_disk);
    if context.cancelled()() {
        return Err(BuildError::Cancelled);
    }
    let refused =
        result.map_err(|source| BuildError::Step { step: layer.name.clone(), source: Box::new(source) })?;
    tpm_ended.map_err(|error| BuildError::Recipe(error.to_string()))?;
    step::rebase(&disk, Path::new("..").join(below.manifest.key.as_str()).join(DISK).as_path())?;
    let mut files = vec![DISK, VARS];
    if let Some(state) = &private.tpm_state {
        let to = dir.join(TPM);
        fs::rename(state.join(TPM), &to).map_err(StoreError::io("keep", &to))?;
        files.push(TPM);
    }
    let sealed = Sealed { refused_actions: sealed.refused_actions + refused, phases: Vec::new(), ..sealed };
    let provenance = Provenance { tools: step::versions(&context.options.qemu), ..Provenance::default() };
    Ok(Made { files, boot: BootKind::Disk, provenance, sealed: Some(sealed) })
}

/// The cards that the driver's own installer wants to see.
fn lend(
    setup: &WindowsSetup,
    plan: &Plan,
    context: &mut Context<'_>,
) -> Result<Option<Box<dyn Lent>>, BuildError> {
    let with_card = setup.driver.as_ref().is_some_and(|driver| driver.install == DriverInstall::WithCard);
    if !with_card {
        return Ok(None);
    }
    let Some(lender) = context.options.lender.clone() else {
        let what = "driver.install = \"with-card\": nobody lends a card to this build";
        return Err(BuildError::Recipe(what.to_owned()));
    };
    context.progress.phase("leasing the card");
    lender
        .lend(plan)
        .map(Some)
        .map_err(|why| BuildError::Recipe(format!("driver.install = \"with-card\": {why}")))
}

/// The plan, the guest program, installers, and of the driver package only what is needed.
fn write_setup_disk(
    setup: &WindowsSetup,
    dir: &Path,
    to: &Path,
    context: &mut Context<'_>,
) -> Result<(), BuildError> {
    let failed = |error: crate::setup_disk::SetupDiskError| BuildError::Inputs(std::io::Error::other(error));
    let program = guest_program(&setup.guest_program, context)?;
    let mut disk = SetupDisk::new(LABEL).map_err(failed)?;
    disk.file(&format!("{FOLDER}/no43-guest.exe"), Source::Path(program)).map_err(failed)?;
    disk.file(&format!("{FOLDER}/plan.json"), Source::Bytes(setup.setup.to_json().into_bytes()))
        .map_err(failed)?;
    for (path, file) in &setup.files {
        disk.file(&format!("{FOLDER}/{path}"), Source::Path(file.path.clone())).map_err(failed)?;
    }
    let unpacked = dir.join("driver");
    if let Some(driver) = &setup.driver {
        unpack(driver, &unpacked, context)?;
        disk.host_folder(&format!("{FOLDER}/{DRIVER}"), &unpacked).map_err(failed)?;
    }
    disk.write(to).map_err(failed)?;
    if setup.driver.is_some() {
        fs::remove_dir_all(&unpacked).map_err(StoreError::io("remove", &unpacked))?;
    }
    Ok(())
}

fn unpack(wanted: &DriverIn, to: &Path, context: &mut Context<'_>) -> Result<(), BuildError> {
    context.progress.phase("unpacking the driver");
    let failed = |error: driver::DriverError| BuildError::Inputs(std::io::Error::other(error));
    fs::create_dir_all(to).map_err(StoreError::io("create", to))?;
    let package = Package::read(&wanted.package.path).map_err(failed)?;
    let unpacked = driver::unpack(&package, change::parts(wanted), to).map_err(failed)?;
    context.log_line(&format!(
        "unpacked {} files, {} bytes of the driver package",
        unpacked.files, unpacked.bytes
    ));
    Ok(())
}

/// What a machine is made of besides the plan.
struct Attached<'a> {
    disk: &'a Path,
    setup_disk: &'a Path,
    com1: &'a Path,
    private: &'a Private,
    tpm: Option<&'a Swtpm>,
}

/// As it was installed, without the medium; no network: nothing is downloaded behind our back.
fn machine(plan: &Plan, parts: &Attached<'_>, cards: Vec<PassedCard>, context: &Context<'_>) -> MachineSpec {
    let serial = |text: &str| Some(text.to_owned());
    let system = Disk { serial: serial("no43-system"), cache: DiskCache::Unsafe, ..Disk::qcow2(parts.disk) };
    let setup = Disk { serial: serial("no43-setup"), ..Disk::usb_stick(parts.setup_disk) };
    let mut spec = MachineSpec {
        smp: Smp::cpus(plan.machine.cpus.clamp(1, 64) as u16),
        memory_mib: plan.machine.memory_mib,
        disks: vec![system, setup],
        serials: vec![parts.com1.to_owned()],
        ports: vec![SerialPort { name: PORT_NAME.to_owned(), socket: None }],
        display: Display::Vga,
        cards,
        tpm: parts.tpm.map(|tpm| tpm.socket().to_owned()),
        ..MachineSpec::new(format!("build-{}", plan.name), context.options.accel)
    };
    parts.private.apply(&mut spec);
    if plan.machine.hidden {
        spec.cpu.push_str(HIDDEN);
    }
    spec
}

/// Gives how many actions the guest refused.
fn in_machine(
    setup: &WindowsSetup,
    spec: &MachineSpec,
    options: &StartOptions,
    com1: &Path,
    sealed: &Sealed,
    context: &mut Context<'_>,
) -> Result<u32, StepError> {
    context.progress.phase("starting the machine");
    let machine = Machine::start(spec, options)?;
    let agent = machine.agent();
    step::wait_ready(
        &machine,
        &agent,
        READY_LIMIT.mul_f64(context.options.patience.max(1.0)),
        com1,
        context,
    )?;
    let stop = Arc::new(AtomicBool::new(false));
    let (sender, events) = channel();
    let follower = {
        let (path, stop) = (com1.to_owned(), Arc::clone(&stop));
        std::thread::spawn(move || com1::follow(&path, &stop, |seen| sender.send(seen).is_ok()))
    };
    let run = carry_out(setup, &machine, &agent, &events, com1, context);
    stop.store(true, Ordering::Release);
    let _ = follower.join();
    let refused = run?;
    // Only the stand-in for Windows Setup refuses anything, and it says so from the start.
    if refused > 0 && sealed.refused_actions == 0 {
        return Err(StepError::Guest {
            what: format!("the guest refused {refused} actions of the plan"),
            log: Vec::new(),
        });
    }
    if let Some(driver) = setup.driver.as_ref().filter(|driver| driver.install == DriverInstall::WithCard) {
        bound(driver, &agent, context)?;
    }
    context.progress.phase("shutting the guest down");
    step::shut_down(&machine, &agent, com1)?;
    Ok(refused)
}

/// Starts the guest program with the disk's plan and follows what it tells until it is done.
fn carry_out(
    setup: &WindowsSetup,
    machine: &Machine,
    agent: &Agent,
    events: &Receiver<Seen>,
    com1: &Path,
    context: &mut Context<'_>,
) -> Result<u32, StepError> {
    let state = format!(r"{WINDOWS_STATE}\{}", setup.setup.id.replace(['/', ' '], "-"));
    let line = format!("{} --state {state}", first_logon_command(FOLDER));
    let words: Vec<&str> = line.splitn(3, ' ').collect();
    let pid = agent
        .spawn(&words)
        .map_err(|error| StepError::Agent { what: "starting the set-up plan".to_owned(), error })?;
    let mut limit = FIRST_EVENT_LIMIT;
    let mut last = Instant::now();
    let patience = context.options.patience.max(1.0);
    let mut foreign = false;
    loop {
        let seen = match events.recv_timeout(LOOK_AGAIN) {
            Ok(Seen::Guest(event)) => event,
            Ok(_) => continue,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                if context.cancelled()() {
                    return Err(StepError::Gone { what: "the build was stopped".to_owned() });
                }
                if !machine.is_alive() {
                    return Err(StepError::Gone {
                        what: "it ended in the middle of the set-up plan".to_owned(),
                    });
                }
                if last.elapsed() > limit.mul_f64(patience) {
                    let ended = agent.ended(pid).ok().flatten();
                    let ended =
                        ended.map_or_else(String::new, |end| format!("; the guest program ended: {end:?}"));
                    let what = format!(
                        "nothing of the set-up plan was heard for {} s{ended}",
                        last.elapsed().as_secs()
                    );
                    return Err(StepError::Guest { what, log: step::tail_of_file(com1) });
                }
                continue;
            }
        };
        // a plan of an earlier layer that goes on after all tells of itself, and its end is not this one's
        if let What::Started { plan, .. } = &seen.what {
            foreign = *plan != setup.setup.id;
        }
        if foreign {
            continue;
        }
        last = Instant::now();
        match seen.what {
            What::Begun { action, name } => {
                limit = RESTART_LIMIT;
                if let Some(action) = setup.setup.actions.get(action as usize) {
                    limit += Duration::from_secs(action.limit_seconds);
                }
                context.progress.phase(&step::clean(&name));
            }
            What::Ended { name, outcome, note, .. } => {
                let note = note.map_or_else(String::new, |note| format!(": {note}"));
                context.log_line(&step::clean(&format!("{name}: {outcome:?}{note}")));
                if outcome == no43_guest::setup::event::Outcome::Refused {
                    context.progress.phase(&step::clean(&format!("refused, not done: {name}")));
                }
            }
            What::Restarting { reason, .. } => {
                limit = RESTART_LIMIT;
                context.progress.phase(&step::clean(&format!("the guest restarts for '{reason}'")));
            }
            What::Failed { name, text, code, log, .. } => {
                let code = code.map_or_else(String::new, |code| format!(" (code {code})"));
                let what = step::clean(&format!("'{name}' failed{code}: {text}"));
                return Err(StepError::Guest {
                    what,
                    log: log.iter().map(|line| step::clean(line)).collect(),
                });
            }
            What::Finished { refused, .. } => return Ok(refused),
            _ => {}
        }
    }
}

/// The card's driver is the one that was installed, and Windows has no complaint about it.
fn bound(driver: &DriverIn, agent: &Agent, context: &mut Context<'_>) -> Result<(), StepError> {
    context.progress.phase("looking whether the driver has bound");
    let output = step::exec_plain(agent, &[WINDOWS_PROGRAM, "report", "--json"], REPORT_LIMIT, context)?;
    let report: Report = serde_json::from_slice(&output.stdout).map_err(|error| StepError::Guest {
        what: format!("the guest program's report cannot be read: {error}"),
        log: Vec::new(),
    })?;
    not_bound(&report, driver.version)
        .map_or(Ok(()), |what| Err(StepError::Guest { what: step::clean(&what), log: Vec::new() }))
}

/// Why a report does not show the driver at work; `None` if it does.
fn not_bound(report: &Report, wanted: Option<Version>) -> Option<String> {
    let nvidia = |id: &Option<String>| id.as_ref().is_some_and(|id| id.starts_with("10de:"));
    let display = |class: &Option<String>| class.as_ref().is_some_and(|class| class.starts_with("03"));
    let mut cards =
        report.functions.iter().filter(|there| nvidia(&there.id) && display(&there.class)).peekable();
    if cards.peek().is_none() {
        return Some("the guest sees no card of NVIDIA's".to_owned());
    }
    cards.find_map(|card| {
        let id = card.id.as_deref().unwrap_or_default();
        if let Some(problem) =
            card.node.as_ref().and_then(|node| node.problem).filter(|problem| *problem != 0)
        {
            return Some(format!("{id} has problem code {problem}"));
        }
        let Some(is) = &card.driver_version else { return Some(format!("no driver has bound to {id}")) };
        let version = Version::from_driver_ver(is).or_else(|| is.parse().ok());
        (wanted.is_some() && version != wanted).then(|| {
            let version = version.map_or_else(|| is.clone(), |version| version.to_string());
            format!("driver {version} has bound to {id}, and not the package's")
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use no43_guest::protocol::{DevNode, GuestFunction};

    fn report(version: Option<&str>, problem: u32) -> Report {
        let card = GuestFunction {
            id: Some("10de:2484".into()),
            class: Some("030000".into()),
            driver_version: version.map(str::to_owned),
            node: Some(DevNode { problem: Some(problem), ..DevNode::default() }),
            ..GuestFunction::default()
        };
        Report { functions: vec![card], ..Report::default() }
    }

    #[test]
    fn a_driver_has_bound_or_it_is_said_why_not() {
        let wanted = "466.11".parse().ok();
        assert_eq!(not_bound(&report(Some("27.21.14.6611"), 0), wanted), None);
        let why = |version, problem| not_bound(&report(version, problem), wanted).unwrap();
        assert_eq!(
            why(Some("27.21.14.6172"), 0),
            "driver 461.72 has bound to 10de:2484, and not the package's"
        );
        assert_eq!(why(None, 0), "no driver has bound to 10de:2484");
        assert_eq!(why(Some("27.21.14.6611"), 43), "10de:2484 has problem code 43");
        assert_eq!(not_bound(&Report::default(), wanted).unwrap(), "the guest sees no card of NVIDIA's");
    }
}
