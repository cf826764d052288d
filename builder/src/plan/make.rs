//! Recipe, lock and facts in, plan out: a pure function.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{
    AptSource, BaseUser, CardFunctions, CardRequest, CardWish, DebianBase, Facts, FileIn, FileSource,
    GuestPlan, HostCard, HostFacts, LayerPlan, LayerWhat, MachinePlan, Plan, StepPlan,
};
use super::{drivers, fits};
use crate::diagnostic::{Kind, Problem, Problems};
use crate::key::{Key, hex};
use crate::lock::Lock;
use crate::plan::{Awaited, Boot, Firmware};
use crate::recipe::{CardAsk, CopyFrom, FileAsk, Guest, MachineAsk, Recipe, Resolved, Step, StepAsk};

/// The name that every layer has inside; the recipe's own is given when a machine starts.
const HOSTNAME: &str = "no43";

/// What "auto" means where no host was looked at.
const PLAIN_HOST: (u32, u64) = (2, 2048);

/// Resolves everything; looks at nothing but its arguments.
///
/// # Errors
/// What the lock or the facts do not have.
pub fn plan(resolved: &Resolved, lock: &Lock, facts: &Facts) -> Result<Plan, Problems> {
    let recipe = &resolved.recipe;
    crate::lock::check_media(resolved, lock)?;
    let mut notes = Vec::new();
    let driver = drivers::decide(resolved, lock, facts)?;
    let others = drivers::others(resolved, lock, facts, &mut notes)?;
    let machine =
        MachinePlan { hidden: driver.hidden, ..machine(&recipe.machine, facts.host.as_ref(), &mut notes) };
    notes.extend(driver.notes.iter().cloned());
    let base = match crate::windows::plan::base_layer(resolved, lock, facts)? {
        Some(windows) => windows,
        None => debian_layer(recipe, lock, facts, &mut notes)?,
    };
    let mut layers = vec![base];
    if recipe.guest.windows.is_some() {
        layers.extend(crate::windows::layers(recipe, lock, facts, &layers[0])?);
        notes.extend(crate::apps::notes(&recipe.remote.apps, recipe.remote.parsec_team.is_some()));
    }
    if let Some(wanted) = drivers::linux_layer(recipe, lock, facts, driver.version)? {
        let inputs = step_inputs(&wanted, &recipe.machine);
        let parent = layers.last().map(|layer| layer.key.clone());
        let key = Key::of(parent.as_ref(), &inputs);
        layers.push(LayerPlan {
            name: "driver".to_owned(),
            key,
            parent,
            what: LayerWhat::Step(wanted),
            inputs,
        });
    }
    for step in &recipe.steps {
        let layer = step_layer(step, layers.last(), &recipe.machine, lock, resolved, facts)?;
        layers.push(layer);
    }
    Ok(Plan {
        name: recipe.name.clone(),
        recipe_file: resolved.path.clone(),
        guest: GuestPlan {
            os: recipe.guest.os.clone(),
            init: recipe.guest.init,
            user: recipe.guest.user.clone(),
            hostname: recipe.guest.windows.as_ref().and_then(|windows| windows.hostname.clone()),
            product_key: recipe.guest.windows.as_ref().and_then(|windows| windows.product_key.clone()),
            parsec_team: recipe.remote.parsec_team.clone(),
        },
        layers,
        machine,
        cards: cards(&recipe.cards, facts.host.as_ref()),
        checks: recipe.checks.clone(),
        display: recipe.display.clone(),
        network: recipe.network.clone(),
        devices: recipe.devices.clone(),
        driver: drivers::plan(recipe, &driver, others),
        notes,
    })
}

fn debian_layer(
    recipe: &Recipe,
    lock: &Lock,
    facts: &Facts,
    notes: &mut Vec<String>,
) -> Result<LayerPlan, Problems> {
    let base = base(recipe, lock, facts)?;
    if !base.sources.iter().any(|source| source.suite.ends_with("-security")) {
        let note =
            format!("no archive with security updates of {} is locked: the guest has none", base.suite);
        notes.push(note);
    }
    Ok(base_layer(base))
}

fn machine(ask: &MachineAsk, host: Option<&HostFacts>, notes: &mut Vec<String>) -> MachinePlan {
    let (half_cpus, half_memory) = match host {
        Some(host) => ((host.cpus / 2).max(1), (host.memory_mib / 2 / 256 * 256).max(512)),
        None => PLAIN_HOST,
    };
    let of = if host.is_some() { "half of this host's" } else { "no host was looked at" };
    if ask.cpus.is_none() {
        notes.push(format!("machine.cpus = \"auto\": {half_cpus} ({of})"));
    }
    if ask.memory_mib.is_none() {
        notes.push(format!("machine.memory = \"auto\": {half_memory} MiB ({of})"));
    }
    MachinePlan {
        cpus: ask.cpus.unwrap_or(half_cpus),
        memory_mib: ask.memory_mib.unwrap_or(half_memory),
        disk_bytes: ask.disk_bytes,
        firmware: ask.firmware,
        boot: ask.boot,
        uefi_under_lab: ask.uefi_under_lab,
        hugepages: ask.hugepages,
        hidden: false,
        identity: ask.identity,
    }
}

fn base(recipe: &Recipe, lock: &Lock, facts: &Facts) -> Result<DebianBase, Problems> {
    let guest = &recipe.guest;
    let sources = sources(guest, lock)?;
    let backports = sorted(guest.backports.iter().cloned());
    let packages = guest.needs.iter().chain([&guest.kernel]).chain(&guest.packages).cloned();
    let packages = sorted(packages).into_iter().filter(|package| !backports.contains(package)).collect();
    let mut files = Vec::new();
    for file in &guest.files {
        files.extend(files_in(file, recipe, lock, facts)?);
    }
    Ok(DebianBase {
        suite: guest.suite.clone(),
        arch: "amd64".to_owned(),
        sources,
        variant: guest.variant.clone(),
        packages,
        backports,
        kernel: guest.kernel.clone(),
        init: guest.init,
        user: guest.user.as_ref().map(|user| BaseUser {
            name: user.name.clone(),
            groups: sorted(guest.groups.iter().cloned()),
            sudo: guest.sudo,
        }),
        locale: locale(&guest.language),
        timezone: guest.timezone.clone(),
        keyboard: guest.keyboard.clone(),
        hostname: HOSTNAME.to_owned(),
        disk_bytes: recipe.machine.disk_bytes,
        boot: recipe.machine.boot,
        files,
        initrd_modules: guest.initrd_modules.clone(),
        modules: guest.modules.clone(),
        remove: sorted(guest.leave_out.iter().cloned()),
        kernel_options: guest.kernel_options.clone(),
        guest_program: facts.guest_program.clone(),
    })
}

fn sorted(items: impl Iterator<Item = String>) -> Vec<String> {
    let mut all: Vec<String> = items.collect();
    all.sort();
    all.dedup();
    all
}

fn locale(language: &str) -> String {
    format!("{}.UTF-8", language.replace('-', "_"))
}

fn sources(guest: &Guest, lock: &Lock) -> Result<Vec<AptSource>, Problem> {
    let locked = lock.suites_of(guest);
    let must = [
        Some(guest.suite.clone()),
        (!guest.backports.is_empty()).then(|| format!("{}-backports", guest.suite)),
    ];
    if let Some(missing) = must.iter().flatten().find(|suite| !locked.iter().any(|(name, _)| name == *suite))
    {
        let what = format!("'{missing}' is not in {}", lock.path.display());
        return Err(guest.suite_spot.problem(Kind::NotLocked, what).fix("run no43 lock"));
    }
    let source = |(suite, locked): (&str, &crate::lock::SuiteLock)| AptSource {
        suite: suite.to_owned(),
        components: locked.components.clone(),
        mirror: locked.mirror.clone(),
        in_release_sha256: locked.sha256.clone(),
        backports: suite.ends_with("-backports"),
    };
    Ok(locked.into_iter().map(source).collect())
}

/// The files of one `[[guest.files]]` or `copy`, folders expanded.
fn files_in(ask: &FileAsk, recipe: &Recipe, lock: &Lock, facts: &Facts) -> Result<Vec<FileIn>, Problem> {
    // "/opt/" means into that folder, under the file's own name.
    let name = match &ask.from {
        CopyFrom::Path(path) if ask.to.ends_with(['/', '\\']) => {
            path.file_name().and_then(|name| name.to_str())
        }
        CopyFrom::Input(name) if ask.to.ends_with(['/', '\\']) => Some(name.as_str()),
        _ => None,
    };
    let one = |from, sha256, own_mode| FileIn {
        from,
        to: format!("{}{}", ask.to, name.unwrap_or_default()),
        mode: ask.mode.unwrap_or(own_mode),
        owner: ask.owner.clone(),
        sha256,
    };
    let of_text = |text: &str| hex(&Sha256::digest(text.as_bytes()));
    match &ask.from {
        CopyFrom::Text(text) => Ok(vec![one(FileSource::Text(text.clone()), of_text(text), 0o644)]),
        CopyFrom::Link(target) => Ok(vec![one(FileSource::Link(target.clone()), of_text(target), 0o777)]),
        CopyFrom::Input(name) => {
            let input = recipe.inputs.get(name).expect("the recipe's rules know every input");
            let locked = lock.input(&recipe.name, name, input)?;
            let path = facts.inputs.get(name);
            let path = path
                .ok_or_else(|| ask.spot.problem(Kind::File, format!("input '{name}' was not looked at")))?;
            Ok(vec![one(FileSource::Path(path.clone()), locked.sha256.clone(), 0o644)])
        }
        CopyFrom::Path(path) => {
            let missing = || ask.spot.problem(Kind::File, format!("{} was not looked at", path.display()));
            let found = facts.files.get(path).ok_or_else(missing)?;
            Ok(found
                .iter()
                .map(|found| {
                    let from = match &found.link {
                        Some(target) => FileSource::Link(target.clone()),
                        None => FileSource::Path(found.path.clone()),
                    };
                    let mut file = one(from, found.sha256.clone(), found.mode);
                    if !found.below.is_empty() {
                        // A folder's files keep their own bits: one mode for all would make programs of texts.
                        file.mode = found.mode;
                        file.to = format!("{}/{}", ask.to.trim_end_matches(['/', '\\']), found.below);
                    }
                    file
                })
                .collect())
        }
    }
}

fn base_layer(base: DebianBase) -> LayerPlan {
    let inputs = base_inputs(&base);
    LayerPlan {
        name: "base".to_owned(),
        key: Key::of(None, &inputs),
        parent: None,
        what: LayerWhat::Debian(base),
        inputs,
    }
}

/// What goes into the base layer's key. Written out field by field: a new field of the plan is then a decision here.
///
/// Mirrors and host paths are left out, because the sums say what is there. The firmware is left out too: the disk
/// boots with either.
fn base_inputs(base: &DebianBase) -> Value {
    let sources = base.sources.iter().map(|source| {
        json!({
            "suite": source.suite,
            "components": source.components,
            "in-release": source.in_release_sha256,
            "backports": source.backports,
        })
    });
    let user = base.user.as_ref();
    json!({
        "kind": "debian",
        "suite": base.suite,
        "arch": base.arch,
        "sources": sources.collect::<Vec<_>>(),
        "variant": base.variant,
        "packages": base.packages,
        "backports": base.backports,
        "kernel": base.kernel,
        "init": base.init,
        "user": user.map(|user| json!({"name": user.name, "groups": user.groups, "sudo": user.sudo})),
        "locale": base.locale,
        "timezone": base.timezone,
        "keyboard": base.keyboard,
        "hostname": base.hostname,
        "disk-bytes": base.disk_bytes,
        "boot": base.boot,
        "files": file_inputs(&base.files),
        "initrd-modules": base.initrd_modules,
        "modules": base.modules,
        "remove": base.remove,
        "kernel-options": base.kernel_options,
        "guest-program": base.guest_program,
    })
}

fn file_inputs(files: &[FileIn]) -> Value {
    files
        .iter()
        .map(|file| {
            let link = matches!(file.from, FileSource::Link(_));
            let mode = format!("{:04o}", file.mode);
            json!({"to": file.to, "mode": mode, "owner": file.owner, "link": link, "sha256": file.sha256})
        })
        .collect()
}

fn step_layer(
    step: &Step,
    parent: Option<&LayerPlan>,
    machine: &MachineAsk,
    lock: &Lock,
    resolved: &Resolved,
    facts: &Facts,
) -> Result<LayerPlan, Problem> {
    let limit = step.limit;
    let what = match &step.what {
        StepAsk::Run(argv) => StepPlan::Run { argv: argv.clone(), limit },
        StepAsk::Copy(file) => StepPlan::Copy { files: files_in(file, &resolved.recipe, lock, facts)? },
        StepAsk::Install(packages) => StepPlan::Install { packages: sorted(packages.iter().cloned()), limit },
        StepAsk::Reboot => StepPlan::Reboot { limit },
        StepAsk::WaitFor(awaited) => StepPlan::WaitFor { what: awaited.clone(), limit },
    };
    let inputs = step_inputs(&what, machine);
    if let (Some(parent), true) = (parent, resolved.recipe.guest.windows.is_some()) {
        let program = &facts.guest_program;
        return crate::windows::step_layer(step, &what, &inputs, parent, &resolved.recipe, program);
    }
    let parent = parent.map(|parent| parent.key.clone());
    let key = Key::of(parent.as_ref(), &inputs);
    Ok(LayerPlan { name: step.name.clone(), key, parent, what: LayerWhat::Step(what), inputs })
}

/// What goes into a step's key: what it does, and how the machine boots that it runs in, because that leaves traces
/// (UEFI variables are part of an image). Not its name and not its limit, which change no result.
fn step_inputs(step: &StepPlan, machine: &MachineAsk) -> Value {
    let what = match step {
        StepPlan::Run { argv, .. } => json!({"run": argv}),
        StepPlan::Copy { files } => json!({"copy": file_inputs(files)}),
        StepPlan::Install { packages, .. } => json!({"install": packages}),
        StepPlan::Driver(driver) => json!({"driver": {
            "packages": driver.packages,
            "run": driver.run.as_ref().map(|run| &run.sha256),
            "version": driver.version,
        }}),
        StepPlan::Reboot { .. } => json!({"reboot": true}),
        StepPlan::WaitFor { what, .. } => match what {
            Awaited::File(path) => json!({"wait-for": {"file": path}}),
            Awaited::Unit(unit) => json!({"wait-for": {"unit": unit}}),
            Awaited::Run(argv) => json!({"wait-for": {"run": argv}}),
        },
    };
    let firmware = if machine.boot == Boot::Direct { Firmware::Bios } else { machine.firmware };
    json!({"kind": "step", "step": what, "firmware": firmware})
}

fn cards(asks: &[CardAsk], host: Option<&HostFacts>) -> Vec<CardWish> {
    let mut taken: Vec<&HostCard> = Vec::new();
    let mut wishes = Vec::new();
    for ask in asks {
        let here = host.map(|host| would_take(&ask.request, &host.cards, &mut taken));
        wishes.push(CardWish {
            request: ask.request.clone(),
            functions: ask.functions.clone(),
            present_as: ask.present_as.clone(),
            here,
        });
    }
    wishes
}

/// A sentence about what the host would lend; says nothing about what it will be when the lease is taken.
fn would_take<'a>(request: &CardRequest, cards: &'a [HostCard], taken: &mut Vec<&'a HostCard>) -> String {
    let fitting: Vec<&HostCard> = cards.iter().filter(|card| fits(request, card)).collect();
    let free =
        fitting.iter().filter(|card| card.ready && !taken.iter().any(|known| known.address == card.address));
    let chosen: Vec<&HostCard> = free.copied().take(request.count as usize).collect();
    taken.extend(&chosen);
    let short = |card: &HostCard| format!("{} {}", card.name, card.address.trim_start_matches("0000:"));
    if chosen.len() == request.count as usize {
        return chosen.into_iter().map(short).collect::<Vec<_>>().join(", ");
    }
    let others =
        fitting.iter().filter(|card| !card.ready).map(|card| format!("{}: {}", short(card), card.state));
    match others.collect::<Vec<_>>() {
        others if others.is_empty() && fitting.is_empty() => "no such card in this host".to_owned(),
        others if others.is_empty() => "another [[card]] of this recipe takes it".to_owned(),
        others => format!("not ready: {}", others.join("; ")),
    }
}

impl CardFunctions {
    /// "video audio", or nothing for a whole card.
    pub(super) fn show(&self) -> String {
        match self {
            Self::All => String::new(),
            Self::Only(roles) => {
                let words = roles.iter().map(|role| format!("{role:?}").to_lowercase());
                format!(" ({} only)", words.collect::<Vec<_>>().join(" "))
            }
        }
    }
}
