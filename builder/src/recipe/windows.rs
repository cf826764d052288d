//! What `[guest]` says of a Windows: the rules that only such a guest has, and the typed result.

use std::path::PathBuf;

use super::rules::{At, Rules};
use super::tree::Origin;
use super::typed::{MachineAsk, Spot};
use super::units;
use crate::answer::{DriverUpdates, SystemUpdates, Updates, tables};
use crate::diagnostic::{Kind, nearest};
use crate::media::SYSTEMS;
use crate::plan::{Boot, Firmware, SecretSource};

/// A Windows as the recipe asks for it.
#[derive(Clone, Debug)]
pub struct Windows {
    /// Which one.
    pub release: Release,
    /// Edition id, such as `Professional`.
    pub edition: String,
    /// `None`: the media's own.
    pub language: Option<String>,
    /// Formats; `None`: those of the language.
    pub locale: Option<String>,
    /// As the recipe writes it; `None`: the locale's.
    pub keyboard: Option<String>,
    /// As Windows calls it.
    pub timezone: String,
    /// Given when an instance starts; `None`: made from the instance's name.
    pub hostname: Option<String>,
    /// Given when an instance starts.
    pub product_key: Option<SecretSource>,
    /// Remote Desktop.
    pub rdp: bool,
    /// What it may update by itself.
    pub updates: Updates,
    /// The person's own answer file, used instead of ours.
    pub answer_file: Option<PathBuf>,
    /// Where these were written, for problems that only the media show.
    pub spots: WindowsSpots,
}

/// Places of keys.
#[derive(Clone, Debug)]
pub struct WindowsSpots {
    /// `guest.os`
    pub os: Spot,
    /// `guest.edition`
    pub edition: Spot,
    /// `guest.language`
    pub language: Spot,
    /// `guest.answer-file`
    pub answer_file: Spot,
    /// `guest.product-key`
    pub product_key: Spot,
    /// `inputs.iso`
    pub iso: Spot,
}

/// The releases that can be installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// Windows 10.
    Windows10,
    /// Windows 11.
    Windows11,
    /// Windows Server 2019.
    Server2019,
    /// Windows Server 2022.
    Server2022,
    /// Windows Server 2025.
    Server2025,
}

/// The recipe's word, the family in the table of editions, and what Microsoft asks for: memory in MiB and disk in GiB.
struct ReleaseFacts {
    release: Release,
    word: &'static str,
    family: &'static str,
    memory_mib: u64,
    disk_gib: u64,
}

#[rustfmt::skip]
const RELEASES: &[ReleaseFacts] = &[
    ReleaseFacts { release: Release::Windows10, word: "windows10", family: "client", memory_mib: 2048, disk_gib: 32 },
    ReleaseFacts { release: Release::Windows11, word: "windows11", family: "client", memory_mib: 4096, disk_gib: 64 },
    ReleaseFacts { release: Release::Server2019, word: "windows-server-2019", family: "server-2019", memory_mib: 2048, disk_gib: 32 },
    ReleaseFacts { release: Release::Server2022, word: "windows-server-2022", family: "server-2022", memory_mib: 2048, disk_gib: 32 },
    ReleaseFacts { release: Release::Server2025, word: "windows-server-2025", family: "server-2025", memory_mib: 2048, disk_gib: 32 },
];

impl Release {
    /// From the recipe's word, such as `windows10`; `None` for another system.
    #[must_use]
    pub fn of(os: &str) -> Option<Self> {
        RELEASES.iter().find(|facts| facts.word == os).map(|facts| facts.release)
    }

    fn facts(self) -> &'static ReleaseFacts {
        RELEASES.iter().find(|facts| facts.release == self).expect("the table has every release")
    }

    /// As recipes write it.
    #[must_use]
    pub fn word(self) -> &'static str {
        self.facts().word
    }

    /// The product's name, as it begins the names of images.
    #[must_use]
    pub fn product(self) -> &'static str {
        SYSTEMS.iter().find(|system| system.os == self.word()).map_or("Windows", |system| system.name)
    }

    /// The editions that are known of it.
    pub fn editions(self) -> impl Iterator<Item = tables::Edition> {
        tables::editions().filter(move |edition| edition.family == self.facts().family)
    }
}

/// Keys of `[guest]` that mean something to a Linux guest only.
const LINUX_KEYS: &[&str] = &[
    "init",
    "packages",
    "backports",
    "kernel",
    "suite",
    "mirror",
    "variant",
    "files",
    "leave-out",
    "modules",
    "kernel-options",
    "initrd-modules",
];
/// And those that mean something to Windows only.
pub(super) const WINDOWS_KEYS: &[&str] = &["edition", "locale", "hostname", "product-key", "answer-file"];

/// Names that Windows keeps for itself.
const RESERVED_NAMES: &[&str] = &[
    "administrator",
    "guest",
    "defaultaccount",
    "wdagutilityaccount",
    "system",
    "local service",
    "network service",
    "none",
    "everyone",
    "con",
    "prn",
    "aux",
    "nul",
];
const BAD_IN_NAMES: &str = "/\\[]:;|=,+*?<>%@\"";
const USER_LIMIT: usize = 20;
const HOSTNAME_LIMIT: usize = 15;

impl Rules<'_> {
    /// The Windows in `[guest]`; problems are pushed.
    pub(super) fn windows(
        &mut self,
        release: Release,
        root: &At<'_>,
        at: &At<'_>,
        machine: &MachineAsk,
    ) -> Option<Windows> {
        self.not_for_windows(at);
        self.windows_machine(release, root, machine);
        self.windows_inputs(root, machine);
        let edition = self.edition(release, at);
        let language = self.locale_name(at, "language", true);
        let locale = self.locale_name(at, "locale", false);
        let keyboard = self.windows_keyboard(at, locale.as_deref().or(language.as_deref()));
        let timezone = self.windows_zone(at);
        let user = at.child("user").and_then(|user| self.windows_user(&user));
        let hostname = self.hostname(at, user.as_deref());
        let product_key = at.child("product-key").and_then(|secret| self.secret(&secret));
        let remote = root.child("remote");
        let updates = root.child("updates");
        let system = match updates.as_ref().map(|updates| updates.text("windows")) {
            Some("security") => SystemUpdates::Security,
            Some("all") => SystemUpdates::All,
            _ => SystemUpdates::None,
        };
        let driver = match updates.as_ref().map(|updates| updates.text("driver")) {
            Some("windows") => DriverUpdates::Windows,
            Some("ours") => DriverUpdates::Ours,
            _ => DriverUpdates::Free,
        };
        Some(Windows {
            release,
            edition: edition?,
            language,
            locale,
            keyboard,
            timezone: timezone?,
            hostname,
            product_key,
            rdp: remote.is_some_and(|remote| remote.bool("rdp")),
            updates: Updates { system, driver },
            answer_file: at.host_path("answer-file"),
            spots: WindowsSpots {
                os: at.spot("os"),
                edition: at.spot("edition"),
                language: at.spot("language"),
                answer_file: at.spot("answer-file"),
                product_key: at.spot("product-key"),
                iso: root.child("inputs").map_or_else(|| root.here(), |inputs| inputs.spot("iso")),
            },
        })
    }

    /// Keys that a person wrote for another kind of guest.
    fn not_for_windows(&mut self, at: &At<'_>) {
        for key in LINUX_KEYS.iter().filter(|key| at.written(key)) {
            let what = format!("'{key}' is for Linux guests, and this is {}", at.text("os"));
            self.push(at.spot(key).problem(Kind::Conflict, what).fix("remove this key"));
        }
        let Some(user) = at.child("user") else {
            let problem = at.here().problem(Kind::Missing, "Windows needs a user to set itself up with");
            self.push(problem.fix("add user = { name = \"…\", password = { file = \"…\" } }"));
            return;
        };
        for key in ["sudo", "groups"].into_iter().filter(|key| user.node(key).is_some()) {
            let problem =
                user.spot(key).problem(Kind::Conflict, "a Windows user is always an administrator here");
            self.push(problem.fix("remove this key"));
        }
    }

    fn windows_machine(&mut self, release: Release, root: &At<'_>, machine: &MachineAsk) {
        let Some(at) = root.child("machine") else { return };
        let facts = release.facts();
        if machine.firmware == Firmware::Bios {
            let problem = at.spot("firmware").problem(Kind::Conflict, "Windows is installed for UEFI only");
            self.push(problem.fix("set firmware = \"uefi\" or \"uefi-secure\""));
        }
        if machine.boot == Boot::Direct {
            let problem = at.spot("boot").problem(Kind::Conflict, "Windows starts from its own disk");
            self.push(problem.fix("remove this key"));
        }
        if machine.disk_bytes < facts.disk_gib << 30 {
            let shown = units::show_size(machine.disk_bytes);
            let what =
                format!("{} needs {} GiB of disk, and this is {shown}", release.product(), facts.disk_gib);
            let fix = format!("write at least \"{} GiB\"; only what is written takes room", facts.disk_gib);
            self.push(at.spot("disk").problem(Kind::BadValue, what).fix(fix));
        }
        if let Some(mib) = machine.memory_mib.filter(|mib| *mib < facts.memory_mib) {
            let what =
                format!("{} needs {} MiB of memory, and this is {mib}", release.product(), facts.memory_mib);
            let fix = format!("write at least \"{} MiB\"", facts.memory_mib);
            self.push(at.spot("memory").problem(Kind::BadValue, what).fix(fix));
        }
    }

    /// The media, and the drivers for a disk that Windows has none for.
    fn windows_inputs(&mut self, root: &At<'_>, machine: &MachineAsk) {
        let inputs = root.child("inputs");
        let has = |name: &str| inputs.as_ref().is_some_and(|inputs| inputs.node(name).is_some());
        let here =
            || inputs.as_ref().map_or_else(|| Spot { key: "inputs".to_owned(), ..root.here() }, At::here);
        if !has("iso") {
            let problem = here().problem(Kind::Missing, "the installation medium is missing");
            self.push(problem.fix("add iso = { path = \"…\" } to [inputs]: the ISO as Microsoft ships it"));
        }
        if machine.disk_bus.needs_driver() && !has("virtio") {
            let problem = here().problem(Kind::Missing, "Windows has no driver for a virtio disk");
            self.push(problem.fix(
                "add virtio = { path = \"…/virtio-win.iso\" } to [inputs], or set machine.disk-bus = \"ahci\"",
            ));
        }
    }

    fn edition(&mut self, release: Release, at: &At<'_>) -> Option<String> {
        let edition = at.text("edition");
        let plain = edition.strip_suffix("Eval").unwrap_or(edition);
        if release.editions().any(|known| known.id == plain) {
            return Some(edition.to_owned());
        }
        let spot = at.spot("edition");
        let by_suffix = release.editions().find(|known| known.suffix.eq_ignore_ascii_case(plain));
        let near =
            by_suffix.map(|known| known.id).or_else(|| nearest(plain, release.editions().map(|e| e.id)));
        if let Some(near) = near {
            let what = format!("'{edition}' is no edition id of {}", release.product());
            self.push(spot.problem(Kind::BadValue, what).fix(format!("did you mean '{near}'?")));
            return None;
        }
        // There are more editions than any table knows; the media have the last word.
        if edition.is_empty() || !edition.chars().all(|c| c.is_ascii_alphanumeric()) {
            let known: Vec<&str> = release.editions().map(|known| known.id).collect();
            let problem = spot.problem(Kind::BadValue, format!("'{edition}' cannot be an edition id"));
            self.push(problem.fix(format!("write an id, such as {}", known.join(", "))));
            return None;
        }
        Some(edition.to_owned())
    }

    /// A language or locale in its usual spelling.
    fn locale_name(&mut self, at: &At<'_>, key: &str, ui: bool) -> Option<String> {
        if ui && !at.written(key) {
            return None; // the default is Linux's "C"
        }
        let asked = at.opt_text(key)?;
        if let Some(locale) = tables::locale(asked).filter(|locale| locale.ui || !ui) {
            return Some(locale.name.to_owned());
        }
        let names = || tables::locales().filter(|locale| locale.ui || !ui).map(|locale| locale.name);
        let what = match ui {
            true => format!("Windows is not made in '{asked}'"),
            false => format!("Windows has no locale '{asked}'"),
        };
        let problem = at.spot(key).problem(Kind::BadValue, what);
        self.push(match nearest(asked, names()) {
            Some(near) => problem.fix(format!("did you mean '{near}'?")),
            None => problem.fix("write language and region, such as fr-FR"),
        });
        None
    }

    fn windows_keyboard(&mut self, at: &At<'_>, beside: Option<&str>) -> Option<String> {
        let asked = at.opt_text("keyboard")?;
        if tables::input_locale(asked, beside.unwrap_or("en-US")).is_none() {
            let what = format!("Windows has no keyboard '{asked}'");
            let known = tables::locales().map(|locale| locale.name).chain(tables::keyboard_names());
            let problem = at.spot("keyboard").problem(Kind::BadValue, what);
            self.push(match nearest(asked, known) {
                Some(near) => problem.fix(format!("did you mean '{near}'?")),
                None => problem.fix("write a locale (fr-FR), or the layout's number (0000040c)"),
            });
        }
        Some(asked.to_owned())
    }

    fn windows_zone(&mut self, at: &At<'_>) -> Option<String> {
        let asked = at.text("timezone");
        let zone = tables::time_zone(asked).map(str::to_owned);
        if zone.is_none() {
            let problem =
                at.spot("timezone").problem(Kind::BadValue, format!("there is no time zone '{asked}'"));
            self.push(match nearest(asked, tables::time_zone_names()) {
                Some(near) => problem.fix(format!("did you mean '{near}'?")),
                None => problem.fix("write Europe/Paris, or as Windows does: Romance Standard Time"),
            });
        }
        zone
    }

    /// The user's name, checked as Windows would.
    fn windows_user(&mut self, at: &At<'_>) -> Option<String> {
        let name = at.opt_text("name")?;
        if let Some(what) = user_name_fault(name) {
            let problem = at.spot("name").problem(Kind::BadValue, what);
            let fix = format!("use at most {USER_LIMIT} characters, and none of {BAD_IN_NAMES}");
            self.push(problem.fix(fix));
        }
        Some(name.to_owned())
    }

    fn hostname(&mut self, at: &At<'_>, user: Option<&str>) -> Option<String> {
        let name = at.opt_text("hostname")?;
        let mut fault = computer_name_fault(name);
        if user.is_some_and(|user| user.eq_ignore_ascii_case(name)) {
            fault = Some("the computer cannot be called like its user".to_owned());
        }
        if let Some(what) = fault {
            let fix = format!("use letters, digits and '-', at most {HOSTNAME_LIMIT}, not only digits");
            self.push(at.spot("hostname").problem(Kind::BadValue, what).fix(fix));
        }
        Some(name.to_owned())
    }

    /// Keys and tables that only Windows guests have, in a recipe of another one.
    pub(super) fn only_for_windows(&mut self, root: &At<'_>, at: &At<'_>) {
        for key in WINDOWS_KEYS.iter().filter(|key| at.written(key)) {
            self.not_yet(&at.spot(key), key);
        }
        for table in ["remote", "updates"] {
            let Some(child) = root.child(table) else { continue };
            for entry in
                child.table.0.iter().filter(|entry| !matches!(entry.key_origin, Origin::Default { .. }))
            {
                let nothing =
                    !child.bool(&entry.key) && matches!(child.text(&entry.key), "" | "none" | "free");
                if !nothing {
                    self.not_yet(&child.spot(&entry.key), &entry.key);
                }
            }
        }
    }

    pub(super) fn not_yet(&mut self, spot: &Spot, key: &str) {
        let what = "supported for Windows guests only by this version";
        self.push(spot.problem(Kind::NotSupported, what).fix(format!("leave '{key}' out")));
    }
}

/// What Windows would not take in the name of a user.
#[must_use]
pub(crate) fn user_name_fault(name: &str) -> Option<String> {
    let length = name.encode_utf16().count();
    if name.trim().is_empty() {
        return Some("a user needs a name".to_owned());
    }
    if length > USER_LIMIT {
        return Some(format!("'{name}' has {length} characters, and Windows takes {USER_LIMIT}"));
    }
    if let Some(bad) = name.chars().find(|c| BAD_IN_NAMES.contains(*c) || c.is_control()) {
        return Some(format!("Windows takes no '{}' in a user's name", bad.escape_default()));
    }
    if name.ends_with('.') || name.starts_with(' ') || name.ends_with(' ') {
        return Some(format!("'{name}' begins or ends with a sign that Windows drops"));
    }
    let lower = name.to_lowercase();
    RESERVED_NAMES.contains(&lower.as_str()).then(|| format!("'{name}' is a name of Windows' own"))
}

/// What Windows would not take as the name of a computer.
#[must_use]
pub(crate) fn computer_name_fault(name: &str) -> Option<String> {
    let length = name.chars().count();
    if length == 0 || length > HOSTNAME_LIMIT {
        return Some(format!(
            "'{name}' has {length} characters, and a computer's name 1 to {HOSTNAME_LIMIT}"
        ));
    }
    if let Some(bad) = name.chars().find(|c| !c.is_ascii_alphanumeric() && *c != '-') {
        return Some(format!("'{}' cannot be in a computer's name", bad.escape_default()));
    }
    if name.starts_with('-') || name.ends_with('-') {
        return Some(format!("'{name}' begins or ends with '-'"));
    }
    name.chars().all(|c| c.is_ascii_digit()).then(|| "a computer's name needs a letter".to_owned())
}
