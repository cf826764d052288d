//! The set-up plan: what the guest program does in a new Windows, from the first logon until the image is sealed.
//!
//! The plan is made on the host, lies on the set-up disk, and is carried out by `no43-guest setup --plan FILE`. It
//! holds no secret: passwords are named as files that are read, and removed when the plan ends. Restarts in between
//! are part of it: the program keeps its own state and goes on where it was ([`event`] says how it tells).
//!
//! Paths come in two kinds. *Sources* lie on the set-up disk, are written with `/`, and are relative to the folder
//! of the plan file. *Guest paths* are Windows paths with a drive (`C:\Games`), and may begin with one of
//! [`PLACEHOLDERS`] (`%ProgramData%\x`).

mod check;
pub mod event;
pub mod first_start;

use serde::{Deserialize, Serialize};

pub use check::{PlanError, is_sid};

/// Version of the types in this module; a program refuses a plan of a later version.
pub const SETUP_VERSION: u32 = 1;

/// Most bytes of a plan file.
pub const PLAN_LIMIT: usize = 1 << 20;

/// Most actions of a plan.
pub const ACTION_LIMIT: usize = 1000;

/// The name that the set-up port of the machine has; in Windows it is `\\.\Global\org.no43.setup.0`, in Linux
/// `/dev/virtio-ports/org.no43.setup.0`.
pub const PORT_NAME: &str = "org.no43.setup.0";

/// Where the program puts itself in a Windows guest, and stays.
pub const WINDOWS_PROGRAM: &str = r"C:\Program Files\no43\no43-guest.exe";

/// How Parsec's installer is called: for every user of the computer (`shared` before), with its virtual display.
pub const PARSEC_ARGUMENTS: &[&str] = &["/silent", "/percomputer", "/norun", "/vdd"];

/// Parsec's service.
pub const PARSEC_SERVICE: &str = "Parsec";

/// Where an image keeps Parsec's installer for an instance's first start, which alone has the team's key.
pub const PARSEC_INSTALLER: &str = r"C:\Program Files\no43\parsec-windows.exe";

/// Where state, logs and the copy of the plan lie in a Windows guest.
pub const WINDOWS_STATE: &str = r"C:\ProgramData\no43";

/// Where they lie in a Linux guest.
pub const LINUX_STATE: &str = "/var/lib/no43";

/// What a guest path may begin with, between per cent signs, and what it stands for where Windows does not say.
pub const PLACEHOLDERS: &[(&str, &str)] = &[
    ("SystemDrive", r"C:"),
    ("SystemRoot", r"C:\Windows"),
    ("ProgramFiles", r"C:\Program Files"),
    ("ProgramData", r"C:\ProgramData"),
    ("PUBLIC", r"C:\Users\Public"),
];

/// Everything that is done between first logon and seal, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetupPlan {
    /// [`SETUP_VERSION`].
    pub version: u32,
    /// A short name that is in every report, as `windows10-gaming/base`.
    pub id: String,
    /// What to do.
    pub actions: Vec<Action>,
    /// Sources that hold secrets; they are removed when the plan has ended well.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<String>,
    /// Whether autologon, its password and the copies of the answer file are removed at the end.
    #[serde(default = "yes")]
    pub seal: bool,
    /// What the guest does when everything is done.
    #[serde(default)]
    pub end: End,
}

/// What the guest does when the plan is done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum End {
    /// Goes on running.
    #[default]
    Stay,
    /// Restarts once more.
    Restart,
    /// Switches itself off.
    PowerOff,
}

/// One step of the plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Action {
    /// What a person calls it, as `guest agent`.
    pub name: String,
    /// What is done.
    pub task: Task,
    /// Longest time in seconds; then it is ended, and the plan has failed.
    #[serde(default = "limit_seconds")]
    pub limit_seconds: u64,
    /// When the guest restarts if the task says that it must.
    #[serde(default)]
    pub restart: RestartWhen,
}

/// When a restart that an installer asks for takes place.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartWhen {
    /// At the next [`Task::Restart`], or at the end.
    #[default]
    Later,
    /// Before the next action.
    Now,
}

/// What an action does. Each may be done twice without harm, because a guest can die in the middle of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Task {
    /// Install a Windows Installer package, silently, with a log.
    Msi {
        /// Source of the `.msi`.
        package: String,
        /// `NAME=value` each, as `ADDLOCAL=FE_qxl`.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        properties: Vec<String>,
    },
    /// Run an installer of another kind.
    Exe {
        /// Source of the program.
        program: String,
        /// What it takes to be silent; `{log}` stands for a file that the program may write its log to.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        arguments: Vec<String>,
        /// Its exit codes.
        #[serde(default)]
        codes: Codes,
    },
    /// Put a driver package into the driver store.
    Driver {
        /// Source of the `.inf`, or of a folder in which every `.inf` is taken.
        inf: String,
        /// Also install it on devices that are there.
        #[serde(default)]
        install: bool,
    },
    /// Set or delete a value of the registry.
    Registry {
        /// `HKLM\…` or `HKU\.DEFAULT\…`.
        key: String,
        /// Name of the value; empty is the key's default value.
        #[serde(default)]
        name: String,
        /// What is in it afterwards.
        value: RegistryValue,
    },
    /// Make sure that a service exists and is as it should be, and wait for it.
    Service {
        /// Its name, as `QEMU-GA`: never the translated one that is shown.
        name: String,
        /// How it starts.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        start: Option<ServiceStart>,
        /// Whether it runs now.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        state: Option<ServiceState>,
    },
    /// Copy a file or a folder from the set-up disk.
    Copy {
        /// Source.
        from: String,
        /// Guest path of the copy itself, not of the folder around it.
        to: String,
    },
    /// Remove a file or a folder; one that is not there is fine.
    Remove {
        /// Guest path.
        path: String,
    },
    /// Run a program of the guest.
    Command {
        /// Program and arguments; never a secret, because every process can read them.
        run: Vec<String>,
        /// Its exit codes.
        #[serde(default)]
        codes: Codes,
    },
    /// Give a user a password.
    Password {
        /// The user's name.
        user: String,
        /// Source that holds it: one line of UTF-8. It belongs in [`SetupPlan::secrets`], too.
        file: String,
    },
    /// Put a user into a group.
    Group {
        /// The user's name.
        user: String,
        /// The group by its identifier, as `S-1-5-32-544`: names of groups are translated.
        sid: String,
    },
    /// Name the computer; the name counts from the next restart on.
    ComputerName {
        /// At most 15 letters, digits and hyphens, not digits alone.
        name: String,
    },
    /// Choose the power plan.
    Power {
        /// Scheme by its identifier, as `8c5e7fda-e8bf-4a96-9a85-a6e23a8c635c` (high performance).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        scheme: Option<String>,
        /// Minutes until the screen goes dark; 0 is never.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        screen_minutes: Option<u32>,
        /// Minutes until it sleeps; 0 is never.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sleep_minutes: Option<u32>,
        /// Whether hibernation (and with it fast start-up) is possible.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        hibernate: Option<bool>,
    },
    /// Look for devices again, and try drivers again where none could be installed.
    ScanDevices,
    /// Change the driver of a card that is there.
    CardDriver {
        /// PCI addresses in the guest, as `0000:01:00.0`.
        functions: Vec<String>,
        /// What happens to it.
        change: DriverChange,
    },
    /// Restart the guest, then go on.
    Restart {
        /// Only if an action before asked for it.
        #[serde(default)]
        only_if_needed: bool,
    },
}

/// What happens to the driver of a card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DriverChange {
    /// It lets go of the card and takes it again; no file changes.
    Restart,
    /// The driver of this source, an `.inf` or a folder with one, takes its place, also where Windows has a newer one.
    Use(String),
    /// The driver before comes back.
    RollBack,
}

/// What the exit code of a program means. A code that is in no list is a failure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Codes {
    /// Done.
    pub done: Vec<i64>,
    /// Done, and Windows must restart before it counts.
    pub restart: Vec<i64>,
    /// There was nothing to do.
    pub unchanged: Vec<i64>,
}

impl Default for Codes {
    fn default() -> Self {
        // 3010 and 1641 are Windows Installer's, and what other installers answer by convention.
        Self { done: vec![0], restart: vec![3010, 1641], unchanged: vec![] }
    }
}

/// A value of the registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RegistryValue {
    /// 32 bits.
    Dword(u32),
    /// 64 bits.
    Qword(u64),
    /// Text.
    String(String),
    /// Text with `%NAME%` in it that readers resolve.
    ExpandString(String),
    /// Several texts.
    Strings(Vec<String>),
    /// Bytes, as hexadecimal digits.
    Binary(String),
    /// The key exists; no value is set.
    KeyOnly,
    /// The value is gone; one that is not there is fine.
    Delete,
}

/// How a service starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServiceStart {
    /// With Windows.
    Auto,
    /// When somebody asks for it.
    Manual,
    /// Not at all.
    Disabled,
}

/// Whether a service runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServiceState {
    /// It runs.
    Running,
    /// It does not.
    Stopped,
}

/// One row of [`SUPPORT`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Support {
    /// Name of the task in a plan, as `registry`.
    pub task: &'static str,
    /// What the Windows build does.
    pub windows: &'static str,
    /// What the Linux build does; `None` means that it refuses the task as Windows-only.
    pub linux: Option<&'static str>,
}

const fn row(task: &'static str, windows: &'static str, linux: Option<&'static str>) -> Support {
    Support { task, windows, linux }
}

/// Which build does what. The Linux build carries out plans only for the stand-in of Windows Setup; what it does not
/// truly do it refuses, and a refused action is told as such and never as done.
pub const SUPPORT: &[Support] = &[
    row("msi", "msiexec /i … /qn /norestart /l*v", None),
    row("exe", "runs it", None),
    row("driver", "pnputil /add-driver", None),
    row("registry", "writes it, reads it back", None),
    row("service", "the service manager", None),
    row("copy", "copies, with flush", Some("copies; C: is the folder given with --drive-c")),
    row("remove", "removes", Some("removes; C: is the folder given with --drive-c")),
    row("command", "runs it", Some("runs it, if there is a program of that name")),
    row("password", "NetUserSetInfo", Some("chpasswd, through its standard input")),
    row("group", "NetLocalGroupAddMembers, by SID", None),
    row("computer-name", "SetComputerNameEx", Some("/etc/hostname")),
    row("power", "powercfg", None),
    row("scan-devices", "CM_Reenumerate_DevNode, with another try of failed installations", None),
    row(
        "card-driver",
        "DIF_PROPERTYCHANGE, UpdateDriverForPlugAndPlayDevices, or DiRollbackDriver",
        Some("takes the driver's module out and loads it again; other changes are Windows' own"),
    ),
    row("restart", "restarts, goes on as a service", Some("restarts; whoever starts it again lets it go on")),
];

impl Task {
    /// The name of the task in a plan, and in [`SUPPORT`].
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Msi { .. } => "msi",
            Self::Exe { .. } => "exe",
            Self::Driver { .. } => "driver",
            Self::Registry { .. } => "registry",
            Self::Service { .. } => "service",
            Self::Copy { .. } => "copy",
            Self::Remove { .. } => "remove",
            Self::Command { .. } => "command",
            Self::Password { .. } => "password",
            Self::Group { .. } => "group",
            Self::ComputerName { .. } => "computer-name",
            Self::Power { .. } => "power",
            Self::ScanDevices => "scan-devices",
            Self::CardDriver { .. } => "card-driver",
            Self::Restart { .. } => "restart",
        }
    }
}

impl Action {
    /// An action with the ordinary limit, whose restart can wait.
    #[must_use]
    pub fn new(name: impl Into<String>, task: Task) -> Self {
        Self { name: name.into(), task, limit_seconds: limit_seconds(), restart: RestartWhen::default() }
    }
}

impl SetupPlan {
    /// A plan of this version that seals, and leaves the guest running.
    #[must_use]
    pub fn new(id: impl Into<String>, actions: Vec<Action>) -> Self {
        Self { version: SETUP_VERSION, id: id.into(), actions, secrets: vec![], seal: true, end: End::Stay }
    }

    /// Reads and checks a plan.
    ///
    /// # Errors
    /// If it is too long, no JSON of this shape, of a later version, or says something that cannot be carried out.
    pub fn parse(bytes: &[u8]) -> Result<Self, PlanError> {
        if bytes.len() > PLAN_LIMIT {
            return Err(PlanError::TooLong { bytes: bytes.len() });
        }
        let plan: Self = serde_json::from_slice(bytes)
            .map_err(|error| PlanError::Malformed { reason: error.to_string() })?;
        plan.check()?;
        Ok(plan)
    }

    /// The file's text.
    #[must_use]
    pub fn to_json(&self) -> String {
        // Only maps with odd keys or a failing writer make this fail; there is neither.
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }
}

/// The one command of the answer file's `FirstLogonCommands`: it looks for the set-up disk on every drive, because
/// nobody knows its letter beforehand, and starts the program with the plan that lies beside it.
/// `folder` is where both lie on that disk, as `no43`.
#[must_use]
pub fn first_logon_command(folder: &str) -> String {
    let letters: Vec<String> = ('D'..='Z').chain(['C']).map(|c| c.to_string()).collect();
    format!(
        r"cmd.exe /c for %d in ({}) do if exist %d:\{folder}\no43-guest.exe %d:\{folder}\no43-guest.exe setup --plan %d:\{folder}\plan.json",
        letters.join(" ")
    )
}

/// Says on which disk of a running Windows a folder with a plan lies: a line with the letter for each.
#[must_use]
pub fn find_plan_command(folder: &str) -> [String; 4] {
    let letters: Vec<String> = ('C'..='Z').map(|c| c.to_string()).collect();
    let line = format!(r"for %d in ({}) do @if exist %d:\{folder}\plan.json @echo %d", letters.join(" "));
    ["cmd.exe".to_owned(), "/d".to_owned(), "/c".to_owned(), line]
}

/// A command of the answer file's windowsPE pass: the same search, then the watcher of Setup's logs, beside which Setup goes
/// on. At most 259 characters.
#[must_use]
pub fn watch_command(folder: &str) -> String {
    let letters: Vec<String> = ('C'..='W').map(|c| c.to_string()).collect();
    format!(
        r#"cmd.exe /c for %d in ({}) do if exist %d:\{folder}\no43-guest.exe start "" /b %d:\{folder}\no43-guest.exe watch-setup"#,
        letters.join(" ")
    )
}

/// Text of `ErrorHandler.cmd`, which Windows Setup runs after a fatal error: the same search, then the report.
#[must_use]
pub fn error_handler_cmd(folder: &str) -> String {
    let letters: Vec<String> = ('C'..='Z').map(|c| c.to_string()).collect();
    format!(
        "@echo off\r\nfor %%d in ({}) do if exist %%d:\\{folder}\\no43-guest.exe %%d:\\{folder}\\no43-guest.exe setup-failed\r\n",
        letters.join(" ")
    )
}

const fn yes() -> bool {
    true
}

/// Twenty minutes: the longest installers (graphics drivers) take five on a slow disk.
const fn limit_seconds() -> u64 {
    1200
}
