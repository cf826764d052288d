//! What of a set-up plan Windows does, and what it is given at an instance's first start.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use no43_guest::protocol::DevNode;
use no43_guest::setup::event::{Cause, Outcome};
use no43_guest::setup::first_start::{FirstStart, FirstStarted, ParsecTeam, Step};
use no43_guest::setup::{
    Action, Codes, DriverChange, PARSEC_ARGUMENTS, PARSEC_INSTALLER, PARSEC_SERVICE, RegistryValue,
    SETUP_VERSION, ServiceStart, ServiceState, Task, WINDOWS_PROGRAM,
};
use windows_sys::Win32::System::Services::{
    SERVICE_AUTO_START, SERVICE_DEMAND_START, SERVICE_DISABLED, SERVICE_RUNNING, SERVICE_STOPPED,
};

use super::api::registry::{self, Raw};
use super::api::{account, devices, drivers, machine, service::Service};
use super::service;
use crate::devnodes;
use crate::executor::place::Place;
use crate::executor::process::{Argument, Program};
use crate::executor::{Actor, Done, Failure, files};

const WINLOGON: &str = r"HKLM\SOFTWARE\Microsoft\Windows NT\CurrentVersion\Winlogon";
const SETUP_STATE: &str = r"HKLM\SOFTWARE\Microsoft\Windows\CurrentVersion\Setup\State";

/// An installer takes minutes on a slow disk, and registers over the network.
const PARSEC_LIMIT: Duration = Duration::from_secs(600);
/// From the end of Parsec's installer to its service.
const PARSEC_START_LIMIT: Duration = Duration::from_secs(60);

/// Windows Installer is busy with another package.
const INSTALLER_BUSY: i64 = 1618;

/// Copies of the answer file that Windows Setup leaves, below the system's folder.
const ANSWER_FILES: &[&str] = &[
    r"Panther\unattend.xml",
    r"Panther\autounattend.xml",
    r"Panther\Unattend\unattend.xml",
    r"Panther\Unattend\autounattend.xml",
    r"System32\Sysprep\unattend.xml",
    r"System32\Sysprep\Panther\unattend.xml",
];

/// This system, for the executor.
pub(crate) struct Windows {
    state: PathBuf,
    channels: Vec<PathBuf>,
    /// The service was registered in this run.
    registered: bool,
}

impl Windows {
    pub(crate) fn new(state: &Path, channels: &[PathBuf]) -> Self {
        Self { state: state.to_owned(), channels: channels.to_vec(), registered: false }
    }
}

impl Actor for Windows {
    fn perform(&mut self, action: &Action, place: &Place) -> Result<Done, Failure> {
        let limit = Duration::from_secs(action.limit_seconds);
        match &action.task {
            Task::Msi { package, properties } => {
                msi(&place.source(package)?, properties, place.log(&action.name)?, limit)
            }
            Task::Exe { program, arguments, codes } => {
                let own_log = place.log(&format!("{}-own", action.name))?;
                let words =
                    arguments.iter().map(|word| word.replace("{log}", &own_log.display().to_string()));
                let arguments = words.map(|word| Argument::Word(word.into())).collect();
                let program =
                    Program::new(place.source(program)?, arguments, place.log(&action.name)?, limit);
                Program { own_log: Some(own_log), ..program }.run(codes)
            }
            Task::Driver { inf, install } => {
                driver(&place.source(inf)?, *install, place.log(&action.name)?, limit)
            }
            Task::Registry { key, name, value } => set_registry(key, name, value),
            Task::Service { name, start, state } => assert_service(name, *start, *state, limit),
            Task::Copy { from, to } => files::copy(&place.source(from)?, &place.guest(to)?),
            Task::Remove { path } => files::remove(&place.guest(path)?),
            Task::Command { run, codes } => {
                let (program, words) =
                    run.split_first().ok_or_else(|| Failure::new(Cause::Plan, "run is empty"))?;
                let arguments = words.iter().map(|word| Argument::Word(word.into())).collect();
                Program::new(program.into(), arguments, place.log(&action.name)?, limit).run(codes)
            }
            Task::Password { user, file } => {
                let password = files::secret(&place.source(file)?)?;
                done(account::set_password(user, &password), format_args!("password of '{user}'"))
            }
            Task::Group { user, sid } => {
                let joined = account::join_group(user, sid)
                    .map_err(|error| Failure::io(format_args!("'{user}' into the group {sid}"), &error))?;
                Ok(Done::now(if joined { Outcome::Done } else { Outcome::Unchanged }))
            }
            Task::ComputerName { name } => {
                let named = machine::set_computer_name(name);
                done(named, format_args!("computer name '{name}'"))?;
                Ok(Done::now(Outcome::RestartNeeded))
            }
            Task::Power { scheme, screen_minutes, sleep_minutes, hibernate } => {
                let minutes = |name: &str, value: &Option<u32>| {
                    value.map(|value| vec!["/change".to_owned(), name.to_owned(), value.to_string()])
                };
                let steps = [
                    scheme.as_ref().map(|scheme| vec!["/setactive".to_owned(), scheme.clone()]),
                    minutes("monitor-timeout-ac", screen_minutes),
                    minutes("standby-timeout-ac", sleep_minutes),
                    hibernate.map(|on| vec!["/hibernate".into(), if on { "on" } else { "off" }.into()]),
                ];
                let log = place.log(&action.name)?;
                steps.into_iter().flatten().try_for_each(|words| powercfg(words, &log, limit))?;
                Ok(Done::now(Outcome::Done))
            }
            Task::ScanDevices => done(devices::scan(), "looking for devices again"),
            Task::CardDriver { functions, change } => change_driver(functions, change, place),
            Task::Restart { .. } => Ok(Done::now(Outcome::Done)), // the executor's own business
        }
    }

    /// The program copies itself to where it stays, because the set-up disk may be gone after a restart.
    fn stay(&mut self, _: &Place) -> Result<(), Failure> {
        if self.registered {
            return Ok(());
        }
        let own = std::env::current_exe().map_err(|error| Failure::io("the program's own path", &error))?;
        let program = Path::new(WINDOWS_PROGRAM);
        if own != program && !same_bytes(&own, program) {
            files::copy(&own, program)?;
        }
        service::register(program, &self.state, &self.channels)
            .map_err(|error| Failure::io("the service no43-setup, which goes on after a restart", &error))?;
        self.registered = true;
        Ok(())
    }

    fn leave(&mut self) -> Result<(), Failure> {
        service::unregister().map_err(|error| Failure::io("the service no43-setup", &error))
    }

    fn seal(&mut self) -> Result<Option<String>, Failure> {
        let failure = |what: &str, error: io::Error| Failure::io(what, &error);
        registry::set(WINLOGON, "AutoAdminLogon", &Raw::text("0"))
            .map_err(|e| failure("AutoAdminLogon", e))?;
        for name in ["DefaultPassword", "AutoLogonCount", "AutoLogonSID"] {
            registry::delete(WINLOGON, name).map_err(|error| failure(name, error))?;
        }
        account::set_autologon_secret(None).map_err(|error| failure("the secret of autologon", error))?;
        registry::delete(r"HKLM\SYSTEM\Setup", "UnattendFile").map_err(|e| failure("UnattendFile", e))?;
        let root = PathBuf::from(std::env::var_os("SystemRoot").unwrap_or_else(|| r"C:\Windows".into()));
        for file in ANSWER_FILES {
            files::remove(&root.join(file))?;
        }
        let state = registry::get(SETUP_STATE, "ImageState").map_err(|e| failure("ImageState", e))?;
        Ok(state.and_then(|state| state.as_text()))
    }
}

fn same_bytes(a: &Path, b: &Path) -> bool {
    fs::read(a).is_ok_and(|a| fs::read(b).is_ok_and(|b| a == b))
}

fn done(result: io::Result<()>, what: impl std::fmt::Display) -> Result<Done, Failure> {
    result.map(|()| Done::now(Outcome::Done)).map_err(|error| Failure::io(what, &error))
}

/// Windows Installer takes its command line apart by its own rules, so it is put together by them.
fn msi(package: &Path, properties: &[String], log: PathBuf, limit: Duration) -> Result<Done, Failure> {
    let mut line = format!("/i \"{}\" /qn /norestart /l*v \"{}\"", package.display(), log.display());
    for property in properties {
        let (name, value) = property.split_once('=').unwrap_or((property, ""));
        line += &format!(" {name}=\"{}\"", value.replace('"', "\"\""));
    }
    let end = Instant::now() + limit;
    loop {
        let left = end.saturating_duration_since(Instant::now()).max(Duration::from_secs(1));
        let output = log.with_extension("out");
        let arguments = vec![Argument::Raw(line.clone())];
        let program = Program {
            own_log: Some(log.clone()),
            ..Program::new("msiexec.exe".into(), arguments, output, left)
        };
        match program.run(&Codes::default()) {
            // Windows itself installs things after a first logon; it is soon done.
            Err(failure) if failure.code == Some(INSTALLER_BUSY) && Instant::now() < end => {
                std::thread::sleep(Duration::from_secs(5));
            }
            Err(failure) => {
                let name = failure.code.and_then(installer_error).map(|name| format!(" ({name})"));
                let text = format!("{}: {}{}", package.display(), failure.text, name.unwrap_or_default());
                return Err(Failure { text, ..failure });
            }
            done => return done,
        }
    }
}

/// The codes of Windows Installer that users meet, in its own names.
fn installer_error(code: i64) -> Option<&'static str> {
    let table = [
        (1601, "ERROR_INSTALL_SERVICE_FAILURE"),
        (1602, "ERROR_INSTALL_USEREXIT"),
        (1603, "ERROR_INSTALL_FAILURE: the log says which action"),
        (1618, "ERROR_INSTALL_ALREADY_RUNNING"),
        (1619, "ERROR_INSTALL_PACKAGE_OPEN_FAILED"),
        (1620, "ERROR_INSTALL_PACKAGE_INVALID"),
        (1622, "ERROR_INSTALL_LOG_FAILURE"),
        (1625, "ERROR_INSTALL_PACKAGE_REJECTED: forbidden by policy"),
        (1632, "ERROR_INSTALL_TEMP_UNWRITABLE"),
        (1633, "ERROR_INSTALL_PLATFORM_UNSUPPORTED"),
        (1638, "ERROR_PRODUCT_VERSION: another version is installed"),
        (1639, "ERROR_INVALID_COMMAND_LINE"),
    ];
    table.iter().find(|(number, _)| *number == code).map(|(_, name)| *name)
}

/// 259 (no more items) is not documented for pnputil; builders see it when the same driver is there already.
fn driver(inf: &Path, install: bool, output: PathBuf, limit: Duration) -> Result<Done, Failure> {
    let is_folder = inf.is_dir();
    let what = if is_folder { inf.join("*.inf") } else { inf.to_owned() };
    let mut words = vec!["/add-driver".into(), what.into_os_string()];
    words.extend(is_folder.then(|| "/subdirs".into()));
    words.extend(install.then(|| "/install".into()));
    let codes = Codes { unchanged: vec![259], ..Codes::default() };
    let arguments = words.into_iter().map(Argument::Word).collect();
    Program::new("pnputil.exe".into(), arguments, output, limit).run(&codes)
}

/// What one function of a card is changed by; whether Windows must restart.
type Change<'a> = dyn Fn(&DevNode) -> io::Result<bool> + 'a;

fn change_driver(functions: &[String], change: &DriverChange, place: &Place) -> Result<Done, Failure> {
    let inf = match change {
        DriverChange::Use(inf) => Some(only_inf(place.source(inf)?)?),
        _ => None,
    };
    let change: (&str, &Change<'_>) = match (change, &inf) {
        (DriverChange::Restart, _) => ("restarting", &|node| drivers::restart(&node.instance)),
        (DriverChange::RollBack, _) => ("the driver before for", &|node| drivers::roll_back(&node.instance)),
        (DriverChange::Use(_), inf) => ("another driver for", &|node| {
            let id = node.hardware_ids.first().map(String::as_str).unwrap_or_default();
            drivers::use_driver(id, inf.as_deref().unwrap_or(Path::new("")))
        }),
    };
    let nodes = devices::pci_nodes().map_err(|error| Failure::io("device nodes", &error))?;
    let there = devnodes::functions(&nodes, &mut Vec::new());
    let mut restart = false;
    for address in functions {
        let node = there.iter().find(|one| one.address == *address).and_then(|one| one.node.as_ref());
        let node = node.ok_or_else(|| Failure::new(Cause::NotSo, format!("nothing is at {address}")))?;
        restart |=
            (change.1)(node).map_err(|error| Failure::io(format_args!("{} {address}", change.0), &error))?;
    }
    Ok(Done::now(if restart { Outcome::RestartNeeded } else { Outcome::Done }))
}

/// The file itself, or the only `.inf` of a folder, as `pnputil /export-driver` leaves it.
fn only_inf(source: PathBuf) -> Result<PathBuf, Failure> {
    if source.is_file() {
        return Ok(source);
    }
    let entries = fs::read_dir(&source).map_err(|error| Failure::io(source.display(), &error))?;
    let is_inf =
        |path: &PathBuf| path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("inf"));
    let mut infs = entries.filter_map(|entry| Some(entry.ok()?.path())).filter(is_inf);
    match (infs.next(), infs.next()) {
        (Some(inf), None) => Ok(inf),
        (None, _) => Err(Failure::new(Cause::Source, format!("{}: no INF file is in it", source.display()))),
        (Some(_), Some(_)) => {
            Err(Failure::new(Cause::Source, format!("{}: more than one INF file is in it", source.display())))
        }
    }
}

fn powercfg(words: Vec<String>, output: &Path, limit: Duration) -> Result<(), Failure> {
    let arguments = words.into_iter().map(|word| Argument::Word(word.into())).collect();
    let program = Program::new("powercfg.exe".into(), arguments, output.to_owned(), limit);
    program.run(&Codes::default()).map(drop)
}

fn set_registry(key: &str, name: &str, value: &RegistryValue) -> Result<Done, Failure> {
    let failure = |error: io::Error| Failure::io(format_args!(r"{key}\{name}"), &error);
    let raw = match value {
        RegistryValue::Dword(number) => Raw::dword(*number),
        RegistryValue::Qword(number) => Raw::qword(*number),
        RegistryValue::String(text) => Raw::text(text),
        RegistryValue::ExpandString(text) => Raw::expand_text(text),
        RegistryValue::Strings(list) => Raw::texts(list),
        RegistryValue::Binary(hex) => Raw::binary(from_hex(hex)),
        RegistryValue::KeyOnly => {
            return registry::ensure_key(key).map(|()| Done::now(Outcome::Done)).map_err(failure);
        }
        RegistryValue::Delete => {
            let was_there = registry::delete(key, name).map_err(failure)?;
            return Ok(Done::now(if was_there { Outcome::Done } else { Outcome::Unchanged }));
        }
    };
    if registry::get(key, name).map_err(failure)?.as_ref() == Some(&raw) {
        return Ok(Done::now(Outcome::Unchanged));
    }
    registry::set(key, name, &raw).map_err(failure)?;
    // Policies and redirections can swallow a write without a word.
    match registry::get(key, name).map_err(failure)? {
        Some(read) if read == raw => Ok(Done::now(Outcome::Done)),
        read => {
            let text = format!(r"{key}\{name} was set and is {read:?} now");
            Err(Failure::new(Cause::NotSo, text))
        }
    }
}

/// The plan was checked: an even number of hexadecimal digits.
fn from_hex(hex: &str) -> Vec<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).unwrap_or_default() as u8;
    hex.as_bytes().chunks_exact(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
}

fn assert_service(
    name: &str,
    start: Option<ServiceStart>,
    state: Option<ServiceState>,
    limit: Duration,
) -> Result<Done, Failure> {
    let failure = |error: io::Error| Failure::io(format_args!("service '{name}'"), &error);
    let missing = || Failure::new(Cause::NotSo, format!("there is no service '{name}'"));
    let service = Service::open(name).map_err(failure)?.ok_or_else(missing)?;
    let mut changed = false;
    let wanted = start.map(|start| match start {
        ServiceStart::Auto => SERVICE_AUTO_START,
        ServiceStart::Manual => SERVICE_DEMAND_START,
        ServiceStart::Disabled => SERVICE_DISABLED,
    });
    if let Some(wanted) = wanted
        && service.start_type().map_err(failure)? != wanted
    {
        service.configure(wanted, None).map_err(failure)?;
        changed = true;
    }
    if let Some(state) = state {
        changed |= reach(&service, state, Instant::now() + limit)
            .map_err(|failure| Failure { text: format!("service '{name}': {}", failure.text), ..failure })?;
    }
    Ok(Done::now(if changed { Outcome::Done } else { Outcome::Unchanged }))
}

/// Asks once, then waits. Gives whether there was anything to ask.
fn reach(service: &Service, state: ServiceState, end: Instant) -> Result<bool, Failure> {
    let failure = |error: io::Error| Failure::io("the service manager", &error);
    let wanted = match state {
        ServiceState::Running => SERVICE_RUNNING,
        ServiceState::Stopped => SERVICE_STOPPED,
    };
    let mut asked = false;
    loop {
        let (now, exit_code) = service.status().map_err(failure)?;
        if now == wanted {
            return Ok(asked);
        }
        let at_rest = [SERVICE_RUNNING, SERVICE_STOPPED].contains(&now);
        if at_rest && asked && state == ServiceState::Running {
            let code = Some(i64::from(exit_code));
            let text = format!("it was started and stopped again with {exit_code}");
            return Err(Failure { code, ..Failure::new(Cause::NotSo, text) });
        }
        if at_rest && !asked {
            match state {
                ServiceState::Running => service.start(),
                ServiceState::Stopped => service.stop(),
            }
            .map_err(failure)?;
            asked = true;
        }
        if Instant::now() >= end {
            return Err(Failure::new(
                Cause::TimedOut,
                format!("it stays in state {now}, {wanted} was wanted"),
            ));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Applies what an instance is given: each field for itself, so that one refusal does not hide the others.
pub(super) fn first_start(request: &FirstStart) -> FirstStarted {
    let mut steps = Vec::new();
    let mut step = |field: &str, result: io::Result<()>| {
        let (code, reason) = match &result {
            Ok(()) => (None, None),
            Err(error) => (error.raw_os_error().map(i64::from), Some(error.to_string())),
        };
        steps.push(Step { field: field.to_owned(), done: result.is_ok(), code, reason });
        result.is_ok()
    };
    if let (Some(user), Some(password)) = (&request.user, &request.password) {
        step("password", account::set_password(user, &password.0));
    }
    let mut restart_needed = false;
    if let Some(name) = &request.computer_name {
        restart_needed = step("computer_name", machine::set_computer_name(name));
    }
    if let Some(key) = &request.product_key {
        step("product_key", machine::install_product_key(&key.0));
    }
    if let Some(on) = request.autologon {
        let password = request.password.as_ref().filter(|_| on).map(|password| password.0.as_str());
        step("autologon", autologon(request.user.as_deref(), password));
    }
    if let Some(team) = &request.parsec_team {
        let failure = parsec(team).err();
        steps.push(Step {
            field: "parsec_team".to_owned(),
            done: failure.is_none(),
            code: failure.as_ref().and_then(|failure| failure.code),
            reason: failure.map(|failure| failure.text),
        });
    }
    FirstStarted { version: SETUP_VERSION, steps, restart_needed }
}

/// Installs Parsec for a team. Its installer takes the key as an argument and nowhere else, so every process of this guest
/// can read it while it runs; what it prints goes nowhere, and the installer goes when it is done.
fn parsec(team: &ParsecTeam) -> Result<(), Failure> {
    let path = PathBuf::from(PARSEC_INSTALLER);
    if !path.is_file() {
        let text = format!("this image has no {PARSEC_INSTALLER}: build it with remote.parsec-team");
        return Err(Failure::new(Cause::NotSo, text));
    }
    let own = [format!("/team_id={}", team.id), format!("/team_computer_key={}", team.key.0)];
    let words = PARSEC_ARGUMENTS.iter().map(|word| (*word).to_owned()).chain(own);
    let arguments = words.map(|word| Argument::Word(word.into())).collect();
    let program = Program::new(path, arguments, "NUL".into(), PARSEC_LIMIT);
    program.run(&Codes { restart: vec![3010, 1641], ..Codes::default() })?;
    assert_service(
        PARSEC_SERVICE,
        Some(ServiceStart::Auto),
        Some(ServiceState::Running),
        PARSEC_START_LIMIT,
    )?;
    let _ = fs::remove_file(PARSEC_INSTALLER); // it holds no secret; one that stays only takes room
    Ok(())
}

/// The password goes where only the system reads it; the values are those that Winlogon looks for.
fn autologon(user: Option<&str>, password: Option<&str>) -> io::Result<()> {
    account::set_autologon_secret(password)?;
    registry::delete(WINLOGON, "DefaultPassword")?;
    registry::delete(WINLOGON, "AutoLogonCount")?;
    if let (Some(user), Some(_)) = (user, password) {
        registry::set(WINLOGON, "DefaultUserName", &Raw::text(user))?;
        registry::set(WINLOGON, "DefaultDomainName", &Raw::text("."))?;
    }
    registry::set(WINLOGON, "AutoAdminLogon", &Raw::text(if password.is_some() { "1" } else { "0" }))
}
