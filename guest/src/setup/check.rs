//! What a set-up plan must satisfy before anything of it is done.

use std::fmt;

use super::{
    ACTION_LIMIT, Action, DriverChange, PLACEHOLDERS, PLAN_LIMIT, RegistryValue, SETUP_VERSION, SetupPlan,
    Task,
};

/// Longest text of a plan in characters; Windows takes command lines of 32767.
const TEXT_LIMIT: usize = 8000;

/// Longest limit of an action: a day.
const LONGEST: u64 = 86_400;

/// Why a plan was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PlanError {
    /// More bytes than [`PLAN_LIMIT`].
    TooLong {
        /// How many.
        bytes: usize,
    },
    /// Not JSON, or JSON of another shape.
    Malformed {
        /// The parser's words with line and column.
        reason: String,
    },
    /// Made for a later program.
    Version {
        /// What it says.
        version: u32,
    },
    /// An action, or the plan itself (`action` is `None`), cannot be carried out as it is.
    Unusable {
        /// Number from 0 and name of the action.
        action: Option<(usize, String)>,
        /// What is wrong, and what would be right.
        reason: String,
    },
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong { bytes } => {
                write!(f, "the set-up plan has {bytes} bytes, more than the {PLAN_LIMIT} that are accepted")
            }
            Self::Malformed { reason } => write!(f, "the set-up plan cannot be read: {reason}"),
            Self::Version { version } => write!(
                f,
                "the set-up plan has version {version}, this program knows {SETUP_VERSION}: \
                 take the guest program that came with the no43 that made the plan"
            ),
            Self::Unusable { action: Some((index, name)), reason } => {
                write!(f, "set-up plan, action {index} ('{name}'): {reason}")
            }
            Self::Unusable { action: None, reason } => write!(f, "set-up plan: {reason}"),
        }
    }
}

impl std::error::Error for PlanError {}

impl SetupPlan {
    /// Looks at every action without doing anything.
    ///
    /// # Errors
    /// The first thing that cannot be carried out.
    pub fn check(&self) -> Result<(), PlanError> {
        if self.version > SETUP_VERSION || self.version == 0 {
            return Err(PlanError::Version { version: self.version });
        }
        let whole = |reason| PlanError::Unusable { action: None, reason };
        text("id", &self.id).map_err(whole)?;
        if self.actions.len() > ACTION_LIMIT {
            let count = self.actions.len();
            return Err(whole(format!("{count} actions, more than {ACTION_LIMIT}")));
        }
        self.secrets.iter().try_for_each(|path| source(path)).map_err(whole)?;
        for (index, action) in self.actions.iter().enumerate() {
            check_action(action).map_err(|reason| {
                let name = action.name.chars().take(100).collect();
                PlanError::Unusable { action: Some((index, name)), reason }
            })?;
        }
        Ok(())
    }
}

fn check_action(action: &Action) -> Result<(), String> {
    text("name", &action.name)?;
    if !(1..=LONGEST).contains(&action.limit_seconds) {
        return Err(format!("limit_seconds is {}, it goes from 1 to {LONGEST}", action.limit_seconds));
    }
    match &action.task {
        Task::Msi { package, properties } => {
            source(package)?;
            properties.iter().try_for_each(|p| property(p))
        }
        Task::Exe { program, arguments, .. } => {
            source(program)?;
            arguments.iter().try_for_each(|a| any_text("argument", a))
        }
        Task::Driver { inf, .. } => source(inf),
        Task::Registry { key, name, value } => {
            registry_key(key)?;
            any_text("name of the value", name)?;
            registry_value(value)
        }
        Task::Service { name, start, state } => {
            text("service", name)?;
            if start.is_none() && state.is_none() {
                return Err("neither start nor state is said: there is nothing to assert".into());
            }
            Ok(())
        }
        Task::Copy { from, to } => source(from).and_then(|()| guest_path(to)),
        Task::Remove { path } => guest_path(path),
        Task::Command { run, .. } => {
            let program = run.first().ok_or("run is empty: it takes a program and its arguments")?;
            text("program", program)?;
            run.iter().try_for_each(|word| any_text("argument", word))
        }
        Task::Password { user, file } => text("user", user).and_then(|()| source(file)),
        Task::Group { user, sid } => {
            text("user", user)?;
            if is_sid(sid) { Ok(()) } else { Err(format!("'{sid}' is no SID as S-1-5-32-544")) }
        }
        Task::ComputerName { name } => computer_name(name),
        Task::Power { scheme, .. } => match scheme {
            Some(scheme) if !is_guid(scheme) => Err(format!("scheme '{scheme}' is no GUID")),
            _ => Ok(()),
        },
        Task::CardDriver { functions, change } => {
            if functions.is_empty() {
                return Err("functions is empty: it takes PCI addresses as 0000:01:00.0".into());
            }
            functions.iter().try_for_each(|address| pci_address(address))?;
            if let DriverChange::Use(inf) = change { source(inf) } else { Ok(()) }
        }
        Task::ScanDevices | Task::Restart { .. } => Ok(()),
    }
}

/// Any text that can be an argument: bounded, and without the character that ends texts in Windows.
fn any_text(what: &str, value: &str) -> Result<(), String> {
    if value.chars().count() > TEXT_LIMIT {
        return Err(format!("{what} has more than {TEXT_LIMIT} characters"));
    }
    if value.contains('\0') { Err(format!("{what} holds a NUL character")) } else { Ok(()) }
}

fn text(what: &str, value: &str) -> Result<(), String> {
    any_text(what, value)?;
    if value.trim().is_empty() { Err(format!("{what} is empty")) } else { Ok(()) }
}

/// A path on the set-up disk, below the plan's folder.
fn source(path: &str) -> Result<(), String> {
    text("path", path)?;
    let odd = path.starts_with('/') || path.contains(['\\', ':']);
    if odd || path.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
        return Err(format!("'{path}' is no path below the plan's folder, written with /"));
    }
    Ok(())
}

fn pci_address(address: &str) -> Result<(), String> {
    let like = |c: u8, pattern: u8| if pattern == b'0' { c.is_ascii_hexdigit() } else { c == pattern };
    let form = b"0000:00:00.0";
    let good = address.len() == form.len() && address.bytes().zip(form).all(|(c, pattern)| like(c, *pattern));
    if good { Ok(()) } else { Err(format!("'{address}' is no PCI address as 0000:01:00.0")) }
}

fn guest_path(path: &str) -> Result<(), String> {
    text("path", path)?;
    let rest = match path.strip_prefix('%').and_then(|rest| rest.split_once('%')) {
        Some((name, rest)) if PLACEHOLDERS.iter().any(|(known, _)| *known == name) => rest,
        Some((name, _)) => {
            let names: Vec<_> = PLACEHOLDERS.iter().map(|(name, _)| *name).collect();
            return Err(format!("%{name}% is not known; there are {}", names.join(", ")));
        }
        None => {
            let drive = path.as_bytes().first().is_some_and(u8::is_ascii_alphabetic);
            path.get(1..).filter(|rest| drive && rest.starts_with(':')).map_or("", |rest| &rest[1..])
        }
    };
    let parts: Vec<&str> = rest.strip_prefix('\\').unwrap_or_default().split('\\').collect();
    let good = |part: &&str| !part.is_empty() && *part != "." && *part != ".." && !part.contains(['/', ':']);
    if parts.iter().all(good) {
        Ok(())
    } else {
        Err(format!(r"'{path}' is no path of the guest as C:\Games or %ProgramData%\x"))
    }
}

/// Passwords do not belong here either, but no name tells; what is checked is the form.
fn property(value: &str) -> Result<(), String> {
    any_text("property", value)?;
    let name = value.split_once('=').map_or("", |(name, _)| name);
    let good = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'.');
    if name.is_empty() || !good { Err(format!("'{value}' is no property as NAME=value")) } else { Ok(()) }
}

fn registry_key(key: &str) -> Result<(), String> {
    any_text("key", key)?;
    let rest = key.strip_prefix(r"HKLM\").or_else(|| key.strip_prefix(r"HKU\.DEFAULT\"));
    if rest.is_some_and(|rest| rest.split('\\').all(|part| !part.is_empty() && part.len() <= 255)) {
        return Ok(());
    }
    let user = if key.starts_with("HKCU") { "; HKCU would depend on who runs the program" } else { "" };
    Err(format!(r"'{key}' is no key below HKLM\ or HKU\.DEFAULT\{user}"))
}

fn registry_value(value: &RegistryValue) -> Result<(), String> {
    match value {
        RegistryValue::String(text) | RegistryValue::ExpandString(text) => any_text("value", text),
        RegistryValue::Strings(list) => list.iter().try_for_each(|item| text("value", item)),
        RegistryValue::Binary(hex) if hex.len() % 2 != 0 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) => {
            Err(format!("'{hex}' is no even number of hexadecimal digits"))
        }
        _ => Ok(()),
    }
}

/// Whether `text` has the form of a security identifier (`S-1-5-32-544`).
#[must_use]
pub fn is_sid(text: &str) -> bool {
    let parts = text.strip_prefix("S-1-").map(|rest| rest.split('-').collect::<Vec<_>>()).unwrap_or_default();
    (2..=16).contains(&parts.len()) && parts.iter().all(|part| part.parse::<u64>().is_ok())
}

fn is_guid(text: &str) -> bool {
    let lengths = [8, 4, 4, 4, 12];
    let parts: Vec<&str> = text.split('-').collect();
    parts.len() == lengths.len()
        && parts.iter().zip(lengths).all(|(p, n)| p.len() == n && p.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// What Windows takes as a computer's name.
pub(super) fn computer_name(name: &str) -> Result<(), String> {
    let good = (1..=15).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        && !name.bytes().all(|b| b.is_ascii_digit())
        && !name.starts_with('-')
        && !name.ends_with('-');
    if good {
        Ok(())
    } else {
        Err(format!("'{name}' is no computer name: 1 to 15 letters, digits, hyphens, not digits alone"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::setup::{Codes, SUPPORT, ServiceState};

    fn reason(task: Task) -> String {
        let plan = SetupPlan::new("p", vec![Action::new("a", task)]);
        plan.check().map_or_else(|error| error.to_string(), |()| "fine".into())
    }

    fn copy_to(to: &str) -> String {
        reason(Task::Copy { from: "files/a".into(), to: to.into() })
    }

    #[test]
    fn paths_of_the_guest() {
        for good in [r"C:\Games", r"%ProgramData%\no43\é x", r"d:\a\b"] {
            assert_eq!(copy_to(good), "fine", "{good}");
        }
        insta::assert_snapshot!(copy_to(r"Games\x"), @r"set-up plan, action 0 ('a'): 'Games\x' is no path of the guest as C:\Games or %ProgramData%\x");
        insta::assert_snapshot!(copy_to(r"%TEMP%\x"), @"set-up plan, action 0 ('a'): %TEMP% is not known; there are SystemDrive, SystemRoot, ProgramFiles, ProgramData, PUBLIC");
        for bad in [r"C:\", r"C:\a\..\b", r"C:\a:b", "/etc/passwd", r"C:", r"%ProgramData%x\y", "é:\\x"] {
            assert_ne!(copy_to(bad), "fine", "{bad}");
        }
    }

    #[test]
    fn what_cannot_be_carried_out_is_said_with_its_place() {
        let table = [
            Task::Msi { package: "../x.msi".into(), properties: vec![] },
            Task::Msi { package: "x.msi".into(), properties: vec!["/qb".into()] },
            Task::Registry {
                key: r"HKCU\Software".into(),
                name: String::new(),
                value: RegistryValue::Dword(1),
            },
            Task::Registry {
                key: r"HKLM\A".into(),
                name: String::new(),
                value: RegistryValue::Binary("abc".into()),
            },
            Task::Service { name: "QEMU-GA".into(), start: None, state: None },
            Task::Command { run: vec![], codes: Codes::default() },
            Task::Group { user: "Élodie".into(), sid: "Administrators".into() },
            Task::ComputerName { name: "12345".into() },
            Task::Power {
                scheme: Some("high".into()),
                screen_minutes: None,
                sleep_minutes: None,
                hibernate: None,
            },
            Task::CardDriver { functions: vec!["01:00.0".into()], change: DriverChange::Restart },
            Task::CardDriver { functions: vec![], change: DriverChange::RollBack },
            Task::CardDriver {
                functions: vec!["0000:01:00.0".into()],
                change: DriverChange::Use(r"C:\x.inf".into()),
            },
        ];
        let said: Vec<String> = table.into_iter().map(reason).collect();
        insta::assert_snapshot!(said.join("\n"), @r"
        set-up plan, action 0 ('a'): '../x.msi' is no path below the plan's folder, written with /
        set-up plan, action 0 ('a'): '/qb' is no property as NAME=value
        set-up plan, action 0 ('a'): 'HKCU\Software' is no key below HKLM\ or HKU\.DEFAULT\; HKCU would depend on who runs the program
        set-up plan, action 0 ('a'): 'abc' is no even number of hexadecimal digits
        set-up plan, action 0 ('a'): neither start nor state is said: there is nothing to assert
        set-up plan, action 0 ('a'): run is empty: it takes a program and its arguments
        set-up plan, action 0 ('a'): 'Administrators' is no SID as S-1-5-32-544
        set-up plan, action 0 ('a'): '12345' is no computer name: 1 to 15 letters, digits, hyphens, not digits alone
        set-up plan, action 0 ('a'): scheme 'high' is no GUID
        set-up plan, action 0 ('a'): '01:00.0' is no PCI address as 0000:01:00.0
        set-up plan, action 0 ('a'): functions is empty: it takes PCI addresses as 0000:01:00.0
        set-up plan, action 0 ('a'): 'C:\x.inf' is no path below the plan's folder, written with /
        ");
    }

    #[test]
    fn a_plan_survives_its_file() {
        let mut plan = SetupPlan::new(
            "windows10/base",
            vec![
                Action::new(
                    "agent",
                    Task::Msi { package: "agent/ga.msi".into(), properties: vec!["A=b c".into()] },
                ),
                Action::new(
                    "running",
                    Task::Service { name: "QEMU-GA".into(), start: None, state: Some(ServiceState::Running) },
                ),
                Action::new(
                    "value",
                    Task::Registry {
                        key: r"HKLM\A\B".into(),
                        name: "n".into(),
                        value: RegistryValue::Strings(vec!["é".into()]),
                    },
                ),
                Action::new(
                    "gone",
                    Task::Registry {
                        key: r"HKLM\A\B".into(),
                        name: "n".into(),
                        value: RegistryValue::Delete,
                    },
                ),
            ],
        );
        plan.secrets = vec!["secret/password".into()];
        assert_eq!(SetupPlan::parse(plan.to_json().as_bytes()), Ok(plan));
    }

    #[test]
    fn another_version_and_unknown_words_are_refused() {
        let error = |text: &str| SetupPlan::parse(text.as_bytes()).unwrap_err().to_string();
        insta::assert_snapshot!(error(r#"{"version":2,"id":"x","actions":[]}"#), @"the set-up plan has version 2, this program knows 1: take the guest program that came with the no43 that made the plan");
        insta::assert_snapshot!(error(r#"{"version":1,"id":"x","actions":[{"name":"a","task":{"do":"format"}}]}"#), @"the set-up plan cannot be read: unknown variant `format`, expected one of `msi`, `exe`, `driver`, `registry`, `service`, `copy`, `remove`, `command`, `password`, `group`, `computer-name`, `power`, `scan-devices`, `card-driver`, `restart` at line 1 column 66");
    }

    #[test]
    fn the_table_names_every_task_once() {
        let text = serde_json::to_string(&SetupPlan::new("x", vec![]))
            .unwrap()
            .replace("[]", r#"[{"name":"a","task":{"do":"?"}}]"#);
        let error = SetupPlan::parse(text.as_bytes()).unwrap_err().to_string();
        let known: Vec<&str> = error.split('`').skip(3).step_by(2).collect(); // the parser lists what it knows
        assert_eq!(known, SUPPORT.iter().map(|row| row.task).collect::<Vec<_>>());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(text in "\\PC*", path in "[a-zé:%\\\\/. ]{0,12}") {
            let _ = SetupPlan::parse(text.as_bytes());
            let _ = (guest_path(&path), source(&path), registry_key(&path), is_sid(&path), is_guid(&path));
        }
    }
}
