//! From a tree whose keys and types are right to a typed recipe: the rules that need more than one key.

mod checks;
mod devices;
mod driver;
mod lifecycle;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::defaults::Defaults;
use super::tree::{Node, Origin, Table, Value};
use super::typed::{
    CardAsk, CopyFrom, FileAsk, Guest, Input, InputFrom, MachineAsk, Recipe, Spot, Step, StepAsk,
};
use super::units;
use super::windows::Release;
use crate::diagnostic::{Kind, Place, Problem, Problems};
use crate::plan::{
    Awaited, Boot, CardFunctions, CardRequest, CardRole, Console, DiskBus, DisplayPlan, Firmware,
    IdentityKind, Init, SecretSource, UserPlan,
};
use crate::schema::Form;
use no43_host::HUGE_PAGE_MIB;

/// Below this, no kernel that we start finds room.
const MIN_MEMORY_MIB: u64 = 128;
/// A minimal Debian with a kernel.
const MIN_DISK: u64 = 1 << 30;

/// The typed recipe; `None` if there are problems, which are then in `problems`.
pub(super) fn recipe(
    tree: &Table,
    path: &Path,
    defaults: &Defaults,
    problems: &mut Problems,
) -> Option<Recipe> {
    let root = At { table: tree, path: String::new(), place: Some(Place::whole(path)) };
    let windows = Release::of(root.child("guest")?.text("os")).is_some();
    let mut rules = Rules { problems, defaults, file: path, windows };
    let name = rules.name(&root);
    let machine = rules.machine(&root.child("machine")?)?;
    let guest = rules.guest(&root, &root.child("guest")?, &machine);
    let mut inputs = rules.inputs(&root);
    let driver = rules.driver(&root, &machine, &mut inputs);
    let remote = rules.remote(&root, &inputs);
    let cards: Vec<CardAsk> = root.items("card").iter().filter_map(|card| rules.card(card)).collect();
    let steps = root.items("step");
    let steps =
        steps.iter().enumerate().filter_map(|(n, step)| rules.step(n, step, &inputs, &guest)).collect();
    let checks = rules.checks(&root, &root.child("checks")?);
    let display = root.child("display")?;
    let console = if display.text("console") == "never" { Console::Never } else { Console::Always };
    let network = rules.network(&root);
    let devices = rules.devices(&root, &network);
    problems.is_empty().then_some(())?;
    Some(Recipe {
        name,
        guest: guest?,
        inputs,
        machine,
        cards,
        display: DisplayPlan { console },
        network,
        devices,
        driver: driver?,
        remote,
        steps,
        checks,
    })
}

/// A table and the dotted path to it.
pub(super) struct At<'a> {
    pub(super) table: &'a Table,
    path: String,
    place: Option<Place>,
}

impl<'a> At<'a> {
    fn key(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    pub(super) fn node(&self, key: &str) -> Option<&'a Node> {
        self.table.get(key)
    }

    /// The place of `key`, or of the table if the key was not written.
    pub(super) fn spot(&self, key: &str) -> Spot {
        let place = self.node(key).and_then(|node| node.origin.place()).or_else(|| self.place.clone());
        Spot { key: self.key(key), place }
    }

    /// The place of the table itself.
    pub(super) fn here(&self) -> Spot {
        Spot { key: self.path.clone(), place: self.place.clone() }
    }

    pub(super) fn child(&self, key: &str) -> Option<Self> {
        let node = self.node(key)?;
        let Value::Table(table) = &node.value else { return None };
        Some(Self { table, path: self.key(key), place: node.origin.place() })
    }

    fn items(&self, key: &str) -> Vec<Self> {
        let Some(Node { value: Value::List(items), .. }) = self.node(key) else { return Vec::new() };
        let item = |(n, node): (usize, &'a Node)| match &node.value {
            Value::Table(table) => {
                Some(Self { table, path: self.key(&format!("{key}.{n}")), place: node.origin.place() })
            }
            _ => None,
        };
        items.iter().enumerate().filter_map(item).collect()
    }

    pub(super) fn opt_text(&self, key: &str) -> Option<&'a str> {
        match &self.node(key)?.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn text(&self, key: &str) -> &'a str {
        self.opt_text(key).unwrap_or_default()
    }

    fn owned(&self, key: &str) -> Option<String> {
        self.opt_text(key).map(str::to_owned)
    }

    pub(super) fn bool(&self, key: &str) -> bool {
        matches!(self.node(key), Some(Node { value: Value::Bool(true), .. }))
    }

    fn int(&self, key: &str) -> Option<u32> {
        match self.node(key)?.value {
            Value::Int(number) => u32::try_from(number).ok(),
            _ => None,
        }
    }

    fn texts(&self, key: &str) -> Vec<String> {
        let Some(Node { value: Value::List(items), .. }) = self.node(key) else { return Vec::new() };
        let text = |node: &Node| match &node.value {
            Value::Text(text) => Some(text.clone()),
            _ => None,
        };
        items.iter().filter_map(text).collect()
    }

    /// Written by a person, not by the defaults.
    pub(super) fn written(&self, key: &str) -> bool {
        self.node(key).is_some_and(|node| !matches!(node.origin, Origin::Default { .. }))
    }

    /// Which of `keys` were written.
    fn present<'k>(&self, keys: &[&'k str]) -> Vec<&'k str> {
        keys.iter().copied().filter(|key| self.node(key).is_some()).collect()
    }

    /// A host path; relative ones count from the file that says so.
    pub(super) fn host_path(&self, key: &str) -> Option<PathBuf> {
        let node = self.node(key)?;
        Some(host_path(self.opt_text(key)?, &node.origin))
    }

    fn seconds(&self, key: &str) -> u64 {
        units::duration(self.text(key)).map_or(0, |limit| limit.as_secs())
    }
}

fn host_path(text: &str, origin: &Origin) -> PathBuf {
    let path = match (text.strip_prefix("~/"), std::env::var_os("HOME")) {
        (Some(rest), Some(home)) => Path::new(&home).join(rest),
        _ => PathBuf::from(text),
    };
    match origin.folder() {
        Some(folder) if path.is_relative() => folder.join(path),
        _ => path,
    }
}

pub(super) struct Rules<'a> {
    problems: &'a mut Problems,
    defaults: &'a Defaults,
    file: &'a Path,
    /// The guest is a Windows: its paths begin with a drive.
    windows: bool,
}

impl Rules<'_> {
    pub(super) fn push(&mut self, problem: Problem) {
        self.problems.push(problem);
    }

    /// Exactly one of `keys` must be there.
    fn one_of<'k>(&mut self, at: &At<'_>, keys: &[&'k str], what_for: &str) -> Option<&'k str> {
        let present = at.present(keys);
        match present[..] {
            [one] => return Some(one),
            [] => {
                let what = format!("it does not say {what_for}");
                self.push(
                    at.here().problem(Kind::Missing, what).fix(format!("add one of: {}", keys.join(", "))),
                );
            }
            [first, second, ..] => {
                let what = format!("'{first}' and '{second}' cannot both be here");
                self.push(at.spot(second).problem(Kind::Conflict, what).fix("keep one of them"));
            }
        }
        None
    }

    fn name(&mut self, root: &At<'_>) -> String {
        if let Some(name) = root.opt_text("name") {
            return name.to_owned();
        }
        let stem = self.file.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        let good = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let usable = stem.starts_with(|c: char| c.is_ascii_alphanumeric()) && stem.chars().all(good);
        if !usable || stem.len() > 64 {
            let what = format!("the file's name '{stem}' cannot be the recipe's");
            let spot = root.spot("name");
            self.push(
                spot.problem(Kind::Missing, what)
                    .fix("add name = \"…\" of letters, digits, '-', '_' and '.'"),
            );
        }
        stem.to_owned()
    }

    fn machine(&mut self, at: &At<'_>) -> Option<MachineAsk> {
        let firmware = match at.text("firmware") {
            "uefi" => Firmware::Uefi,
            "uefi-secure" => Firmware::UefiSecure,
            _ => Firmware::Bios,
        };
        let boot = if at.text("boot") == "direct" { Boot::Direct } else { Boot::Disk };
        let uefi_under_lab = at.bool("uefi-under-lab");
        if uefi_under_lab && firmware == Firmware::Bios {
            let spot = at.spot("uefi-under-lab");
            self.push(
                spot.problem(Kind::Conflict, "the firmware is bios")
                    .fix("set firmware = \"uefi\", or remove this key"),
            );
        }
        let bytes = |key| units::size(at.text(key)).ok();
        let memory_mib = bytes("memory").map(|bytes| bytes >> 20);
        if let Some(mib) = memory_mib.filter(|mib| *mib < MIN_MEMORY_MIB) {
            let what = format!("{mib} MiB is less than any kernel needs");
            let fix = format!("write at least \"{MIN_MEMORY_MIB} MiB\"");
            self.push(at.spot("memory").problem(Kind::BadValue, what).fix(fix));
        }
        let hugepages = at.bool("hugepages");
        if let Some(mib) = memory_mib.filter(|mib| hugepages && mib % HUGE_PAGE_MIB != 0) {
            let what = format!("{mib} MiB is no whole number of huge pages, of {HUGE_PAGE_MIB} MiB each");
            let fix = format!("write \"{} MiB\", or remove hugepages", mib + 1);
            self.push(at.spot("memory").problem(Kind::BadValue, what).fix(fix));
        }
        let disk_bytes = bytes("disk")?;
        if disk_bytes < MIN_DISK || !disk_bytes.is_multiple_of(1 << 20) {
            let what = format!("{} is not a whole number of MiB from 1 GiB on", units::show_size(disk_bytes));
            let fix = "write at least \"1 GiB\"; only what is written takes room";
            self.push(at.spot("disk").problem(Kind::BadValue, what).fix(fix));
        }
        let disk_bus = match at.text("disk-bus") {
            "ahci" => DiskBus::Ahci,
            "nvme" => DiskBus::Nvme,
            _ => DiskBus::Virtio,
        };
        let identity = match at.text("identity") {
            "fresh" => IdentityKind::Fresh,
            "image" => IdentityKind::Image,
            _ => IdentityKind::Own,
        };
        let (cpus, tpm) = (at.int("cpus"), at.bool("tpm"));
        Some(MachineAsk {
            cpus,
            memory_mib,
            disk_bytes,
            firmware,
            boot,
            uefi_under_lab,
            tpm,
            hugepages,
            disk_bus,
            identity,
        })
    }

    fn guest(&mut self, root: &At<'_>, at: &At<'_>, machine: &MachineAsk) -> Option<Guest> {
        let Some(os) = at.owned("os") else {
            let fix = "add os = \"debian12\" to [guest]";
            let mut problem =
                Problem::new(Kind::Missing, "guest.os", "the operating system is missing").fix(fix);
            problem.place = Some(Place::whole(self.file));
            self.push(problem);
            return None;
        };
        let release = Release::of(&os);
        let windows = release.map(|release| self.windows(release, root, at, machine));
        if windows.is_none() {
            self.linux(root, at, machine);
        }
        let init = if at.text("init") == "lean" { Init::Lean } else { Init::Systemd };
        if init == Init::Lean && machine.boot == Boot::Disk {
            let problem = at.spot("init").problem(Kind::Conflict, "a lean guest has no bootloader");
            self.push(problem.fix("set machine.boot = \"direct\", or guest.init = \"systemd\""));
        }
        let language = at.text("language");
        let mut for_what = vec!["always", if init == Init::Lean { "lean" } else { "systemd" }];
        for_what.extend((machine.boot == Boot::Disk).then_some("disk"));
        for_what.extend((language != "C").then_some("locale"));
        let mirror = at.owned("mirror");
        if let Some(mirror) = mirror.as_deref().filter(|mirror| !is_url(mirror)) {
            let what = format!("'{mirror}' is no mirror");
            let fix = "write http://…, https://… or file:/…, or remove the key: this host's own apt sources are used then";
            self.push(at.spot("mirror").problem(Kind::BadValue, what).fix(fix));
        }
        let timezone = at.text("timezone");
        let user_at = at.child("user");
        let user = user_at.as_ref().map(|user| self.user(user));
        Some(Guest {
            needs: self.defaults.needs(&os, &for_what),
            os,
            windows: windows.flatten(),
            init,
            language: language.to_owned(),
            timezone: timezone.to_owned(),
            user: user.flatten(),
            sudo: user_at.as_ref().is_some_and(|user| user.bool("sudo")),
            keyboard: at.owned("keyboard"),
            modules: at.texts("modules"),
            kernel_options: at.texts("kernel-options"),
            groups: user_at.map(|user| user.texts("groups")).unwrap_or_default(),
            packages: at.texts("packages"),
            backports: at.texts("backports"),
            kernel: at.text("kernel").to_owned(),
            suite: at.text("suite").to_owned(),
            mirror,
            variant: at.text("variant").to_owned(),
            files: at.items("files").iter().filter_map(|file| self.file(file)).collect(),
            leave_out: at.texts("leave-out"),
            initrd_modules: at.texts("initrd-modules"),
            suite_spot: at.spot("suite"),
            mirror_spot: at.spot("mirror"),
        })
    }

    /// What a Linux guest does not have, or has in another form than Windows.
    fn linux(&mut self, root: &At<'_>, at: &At<'_>, machine: &MachineAsk) {
        self.only_for_windows(root, at);
        if let Some(machine_at) = root.child("machine") {
            let asked = [
                ("firmware", machine.firmware == Firmware::UefiSecure),
                ("tpm", machine.tpm),
                ("disk-bus", machine.disk_bus != DiskBus::Virtio),
                ("identity", machine.identity != IdentityKind::Own),
            ];
            for (key, _) in asked.into_iter().filter(|(_, asked)| *asked) {
                self.not_yet(&machine_at.spot(key), key);
            }
        }
        let timezone = at.text("timezone");
        if timezone.contains(' ') {
            let what = format!("'{timezone}' is a zone of Windows, and the guest is {}", at.text("os"));
            let fix = "write a zone such as Europe/Paris or Etc/UTC";
            self.push(at.spot("timezone").problem(Kind::BadValue, what).fix(fix));
        }
        let short = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if let Some(layout) =
            at.opt_text("keyboard").filter(|text| text.len() < 2 || !text.bytes().all(short))
        {
            let problem =
                at.spot("keyboard").problem(Kind::BadValue, format!("'{layout}' cannot be used here"));
            self.push(problem.fix("write a layout's short name, such as fr or us"));
        }
        let user = at.child("user");
        if let Some((user, name)) = user.and_then(|user| Some((user.opt_text("name")?, user.spot("name"))))
            && let Err((what, fix)) = Form::UserName.check(user)
        {
            self.push(name.problem(Kind::BadValue, what).fix(fix));
        }
    }

    fn user(&mut self, at: &At<'_>) -> Option<UserPlan> {
        let Some(name) = at.owned("name") else {
            self.push(at.here().problem(Kind::Missing, "the user's name is missing").fix("add name = \"…\""));
            return None;
        };
        let password = at.child("password").and_then(|secret| self.secret(&secret));
        Some(UserPlan { name, password })
    }

    pub(super) fn secret(&mut self, at: &At<'_>) -> Option<SecretSource> {
        Some(match self.one_of(at, &["file", "env", "credential"], "where the secret is read from")? {
            "file" => SecretSource::File(at.host_path("file")?),
            "env" => SecretSource::Env(at.owned("env")?),
            _ => SecretSource::Credential(at.owned("credential")?),
        })
    }

    fn file(&mut self, at: &At<'_>) -> Option<FileAsk> {
        let from = match self.one_of(at, &["from", "text", "link"], "what is laid there")? {
            "from" => CopyFrom::Path(at.host_path("from")?),
            "text" => CopyFrom::Text(at.owned("text")?),
            _ => CopyFrom::Link(at.owned("link")?),
        };
        let key = if at.node("from").is_some() { "from" } else { "to" };
        self.placed(at, from, key)
    }

    /// The parts that `[[guest.files]]` and `step.copy` share.
    fn placed(&mut self, at: &At<'_>, from: CopyFrom, key: &str) -> Option<FileAsk> {
        let Some(to) = at.owned("to") else {
            let problem = at.here().problem(Kind::Missing, "the path in the guest is missing");
            self.push(problem.fix("add to = \"/…\""));
            return None;
        };
        self.guest_path(at, "to", &to);
        Some(FileAsk {
            from,
            to,
            mode: at.opt_text("mode").and_then(|mode| u32::from_str_radix(mode, 8).ok()),
            owner: at.text("owner").to_owned(),
            spot: at.spot(key),
        })
    }

    /// A path of the other kind of system leads nowhere.
    fn guest_path(&mut self, at: &At<'_>, key: &str, path: &str) {
        if path.starts_with('/') == self.windows {
            let (what, like) = match self.windows {
                true => ("a Windows path begins with a drive", "C:\\Games"),
                false => ("a path in this guest begins with '/'", "/opt/games"),
            };
            self.push(
                at.spot(key).problem(Kind::BadValue, what).fix(format!("write a path such as '{like}'")),
            );
        }
    }

    fn inputs(&mut self, root: &At<'_>) -> BTreeMap<String, Input> {
        let Some(at) = root.child("inputs") else { return BTreeMap::new() };
        let names = at.table.0.iter().filter_map(|entry| Some((entry.key.clone(), at.child(&entry.key)?)));
        names.filter_map(|(name, at)| Some((name, self.input(&at)?))).collect()
    }

    fn input(&mut self, at: &At<'_>) -> Option<Input> {
        let from = match self.one_of(at, &["path", "url"], "where the input is")? {
            "path" => InputFrom::Path(at.host_path("path")?),
            _ => InputFrom::Url(at.owned("url")?),
        };
        if let InputFrom::Url(url) = &from
            && !is_url(url)
        {
            let what = format!("'{url}' cannot be fetched");
            self.push(
                at.spot("url").problem(Kind::BadValue, what).fix("write http://…, https://… or file:/…"),
            );
        }
        let key = if at.node("path").is_some() { "path" } else { "url" };
        let sha256 = at.opt_text("sha256").map(str::to_ascii_lowercase);
        Some(Input { from, written: at.text(key).to_owned(), sha256, spot: at.spot(key) })
    }

    fn card(&mut self, at: &At<'_>) -> Option<CardAsk> {
        let any = at.bool("any");
        if !any && at.present(&["model", "id", "address"]).is_empty() {
            let problem = at.here().problem(Kind::Missing, "it does not say which card");
            self.push(
                problem
                    .fix("add model = \"RTX 3070\", id = \"10de:2484\", address = \"01:00\", or any = true"),
            );
            return None;
        }
        let count = at.int("count").unwrap_or(1);
        if count > 1 && at.node("address").is_some() {
            let problem = at.spot("count").problem(Kind::Conflict, "an address names one card");
            self.push(problem.fix("remove 'count', or write one [[card]] for each address"));
        }
        let role = |word: &str| match word {
            "audio" => CardRole::Audio,
            "usb" => CardRole::Usb,
            "ucsi" => CardRole::Ucsi,
            _ => CardRole::Video,
        };
        let only = at.texts("functions");
        let functions = if matches!(at.node("functions"), Some(Node { value: Value::List(_), .. })) {
            let mut roles: Vec<CardRole> = only.iter().map(|word| role(word)).collect();
            roles.dedup();
            if !roles.contains(&CardRole::Video) {
                let problem =
                    at.spot("functions").problem(Kind::BadValue, "a card without its video function is none");
                self.push(problem.fix("add \"video\""));
            }
            CardFunctions::Only(roles)
        } else {
            CardFunctions::All
        };
        let id = at.opt_text("id").map(str::to_ascii_lowercase);
        let address = at.opt_text("address").map(|text| text.trim_end_matches(".0").to_ascii_lowercase());
        let request = CardRequest { address, id, model: at.owned("model"), any, count };
        Some(CardAsk {
            request,
            functions,
            present_as: at.opt_text("present-as").map(str::to_ascii_lowercase),
        })
    }

    fn step(
        &mut self,
        n: usize,
        at: &At<'_>,
        inputs: &BTreeMap<String, Input>,
        guest: &Option<Guest>,
    ) -> Option<Step> {
        let what = match self.one_of(at, &["run", "copy", "install", "reboot", "wait-for"], "what to do")? {
            "run" => StepAsk::Run(self.not_empty(at, "run")?),
            "install" => StepAsk::Install(self.not_empty(at, "install")?),
            "copy" => StepAsk::Copy(self.copy(&at.child("copy")?, inputs)?),
            "reboot" if at.bool("reboot") => StepAsk::Reboot,
            "reboot" => {
                let problem = at.spot("reboot").problem(Kind::BadValue, "a step that does nothing");
                self.push(problem.fix("write reboot = true, or remove the step"));
                return None;
            }
            _ => StepAsk::WaitFor(self.awaited(&at.child("wait-for")?, guest)?),
        };
        let name = at.owned("name").unwrap_or_else(|| format!("step {}", n + 1));
        Some(Step { name, what, limit: at.seconds("limit") })
    }

    fn not_empty(&mut self, at: &At<'_>, key: &str) -> Option<Vec<String>> {
        let texts = at.texts(key);
        if texts.is_empty() {
            self.push(
                at.spot(key).problem(Kind::BadValue, "an empty list").fix("say what, or remove the step"),
            );
            return None;
        }
        Some(texts)
    }

    fn copy(&mut self, at: &At<'_>, inputs: &BTreeMap<String, Input>) -> Option<FileAsk> {
        let key = self.one_of(at, &["from", "input"], "what is copied")?;
        let from = if key == "from" {
            CopyFrom::Path(at.host_path("from")?)
        } else {
            let name = at.owned("input")?;
            if !inputs.contains_key(&name) {
                let what = format!("there is no input '{name}'");
                let fix = match crate::diagnostic::nearest(&name, inputs.keys().map(String::as_str)) {
                    Some(near) => format!("did you mean '{near}'?"),
                    None => format!("add {name} = {{ path = \"…\" }} to [inputs]"),
                };
                self.push(at.spot("input").problem(Kind::Missing, what).fix(fix));
            }
            CopyFrom::Input(name)
        };
        self.placed(at, from, key)
    }

    fn awaited(&mut self, at: &At<'_>, guest: &Option<Guest>) -> Option<Awaited> {
        Some(match self.one_of(at, &["file", "unit", "run"], "what is awaited")? {
            "file" => {
                let path = at.owned("file")?;
                self.guest_path(at, "file", &path);
                Awaited::File(path)
            }
            "unit" => {
                if guest.as_ref().is_some_and(|guest| guest.init == Init::Lean) {
                    let problem = at.spot("unit").problem(Kind::Conflict, "a lean guest has no units");
                    self.push(problem.fix("wait for a file or a program, or set guest.init = \"systemd\""));
                }
                Awaited::Unit(at.owned("unit")?)
            }
            _ => Awaited::Run(self.not_empty(at, "run")?),
        })
    }
}

fn is_url(text: &str) -> bool {
    let has = |scheme: &str| text.strip_prefix(scheme).is_some_and(|rest| !rest.trim_matches('/').is_empty());
    let plain = !text.contains(|c: char| c.is_whitespace() || c.is_control());
    plain && ["http://", "https://", "file:/"].into_iter().any(has)
}
