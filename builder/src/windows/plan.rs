//! Planning a Windows base layer: what the answer file says, what the set-up disk holds, what the guest program does.

use std::path::{Path, PathBuf};

use no43_guest::setup::{Action, ServiceStart, ServiceState, SetupPlan, Task};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::answer::{Arch, BuildOnly, Image, Settings, Updates, settings_for};
use crate::diagnostic::{Kind, Problems};
use crate::key::{Key, hex};
use crate::lock::Lock;
use crate::lock::hashes::HashCache;
use crate::media::wim::WimImage;
use crate::media::{self, Media, System};
use crate::plan::{DiskBus, Facts, Firmware, LayerPlan, LayerWhat};
use crate::recipe::{Recipe, Resolved};
use crate::secret::Secret;
use crate::virtio::{self, Driver, DriverError, VirtioWin};
use sha2::{Digest, Sha256};

/// Recipes name the installation medium and the drivers by these.
const ISO: &str = "iso";
const VIRTIO: &str = "virtio";
/// Where drivers, and the agent, lie below the plan's folder on the set-up disk.
pub(super) const DRIVER_FOLDER: &str = "drivers";
pub(super) const AGENT_FILE: &str = "agent/qemu-ga-x86_64.msi";
/// An answer file of one's own is read up to here.
const ANSWER_LIMIT: u64 = 4 << 20;

/// What planning a Windows needs to know of this host's files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowsFacts {
    /// What the medium holds.
    pub media: Media,
    /// What is taken from the virtio-win ISO.
    pub virtio: Option<VirtioFound>,
    /// The person's own answer file.
    pub answer_file: Option<FileFound>,
}

/// A virtio-win ISO, and what a guest takes of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtioFound {
    /// Where it is.
    pub path: PathBuf,
    /// Of the whole file.
    pub sha256: String,
    /// Folders of the drivers that Windows Setup loads.
    pub in_setup: Vec<String>,
    /// Folders of those that are installed after the first logon: a second copy of a driver in `$WinPEDriver$` gets the first
    /// marked as bad, so none is in both.
    pub later: Vec<String>,
    /// The guest agent's installer is there.
    pub agent: bool,
}

/// A file of this host and its contents' sum.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileFound {
    /// Where it is.
    pub path: PathBuf,
    /// Of the contents.
    pub sha256: String,
}

/// Settings of the answer file but for what belongs to one build only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields are those of answer::Settings, where they are described")]
pub struct AnswerPlan {
    pub arch: Arch,
    pub setup_language: String,
    pub language: String,
    pub locale: String,
    pub keyboard: String,
    pub timezone: String,
    pub image: Image,
    pub product_key: Option<String>,
    pub target_disk: u32,
    pub skip_hardware_checks: bool,
    pub user: String,
    pub autologons: u32,
    pub rdp: bool,
    pub updates: Updates,
}

impl AnswerPlan {
    fn of(settings: Settings) -> Self {
        // Taken apart by name: a new setting is then a decision here.
        let Settings {
            arch,
            setup_language,
            language,
            locale,
            keyboard,
            timezone,
            image,
            product_key,
            target_disk,
            skip_hardware_checks,
            computer_name: _,
            user,
            password: _,
            autologons,
            rdp,
            updates,
        } = settings;
        Self {
            arch,
            setup_language,
            language,
            locale,
            keyboard,
            timezone,
            image,
            product_key,
            target_disk,
            skip_hardware_checks,
            user,
            autologons,
            rdp,
            updates,
        }
    }

    /// With what this one build has for itself.
    #[must_use]
    pub fn settings(&self, build: BuildOnly) -> Settings {
        let own = self.clone();
        Settings {
            arch: own.arch,
            setup_language: own.setup_language,
            language: own.language,
            locale: own.locale,
            keyboard: own.keyboard,
            timezone: own.timezone,
            image: own.image,
            product_key: own.product_key,
            target_disk: own.target_disk,
            skip_hardware_checks: own.skip_hardware_checks,
            computer_name: build.computer_name,
            user: own.user,
            password: build.password,
            autologons: own.autologons,
            rdp: own.rdp,
            updates: own.updates,
        }
    }

    /// What is the same for every build of it, for the layer's key.
    fn sum(&self) -> String {
        let build =
            BuildOnly { password: Secret::new("of this build".to_owned()), computer_name: "NO43".to_owned() };
        hex(&Sha256::digest(self.settings(build).render_shown().as_bytes()))
    }
}

/// A Windows base layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowsBase {
    /// Such as `windows10`.
    pub os: String,
    /// For people, such as `Windows 10 Pro fr-FR build 19045`.
    pub title: String,
    /// The untouched medium.
    pub iso: FileFound,
    /// Drivers and agent.
    pub virtio: Option<VirtioFound>,
    /// What the answer file says.
    pub answer: AnswerPlan,
    /// The person's own answer file, used instead.
    pub answer_file: Option<FileFound>,
    /// What the guest program does at the first logon.
    pub setup: SetupPlan,
    /// UEFI, with Secure Boot or without.
    pub firmware: Firmware,
    /// A virtual TPM 2.0.
    pub tpm: bool,
    /// How the target disk is attached.
    pub disk_bus: DiskBus,
    /// Its virtual size.
    pub disk_bytes: u64,
    /// What the medium says that the installed files take.
    pub image_bytes: u64,
    /// SHA-256 of the guest program for Windows.
    pub guest_program: String,
}

/// Looks at media and drivers; part of [`crate::plan::gather()`].
pub(crate) fn gather(
    recipe: &Recipe,
    inputs: &std::collections::BTreeMap<String, PathBuf>,
    lock: &Lock,
    hashes: &mut HashCache,
    problems: &mut Problems,
) -> Option<WindowsFacts> {
    let windows = recipe.guest.windows.as_ref()?;
    let spot = &windows.spots.iso;
    let iso = inputs.get(ISO)?;
    let media = media::inspect(iso)
        .map_err(|error| problems.push(spot.problem(Kind::File, error.to_string())))
        .ok()?;
    let virtio = inputs.get(VIRTIO).zip(media.system()).and_then(|(path, system)| {
        let input = &recipe.inputs[VIRTIO];
        let sha256 = lock.input(&recipe.name, VIRTIO, input).map(|locked| locked.sha256.clone());
        let found = virtio(path, sha256.unwrap_or_default(), system, recipe.machine.disk_bus);
        found.map_err(|error| problems.push(input.spot.problem(Kind::File, error.to_string()))).ok()
    });
    let answer_file = windows.answer_file.as_ref().and_then(|path| {
        let spot = &windows.spots.answer_file;
        let size = std::fs::metadata(path).map_or(0, |meta| meta.len());
        let sum =
            if size > ANSWER_LIMIT { Err(std::io::ErrorKind::FileTooLarge.into()) } else { hashes.sum(path) };
        match sum {
            Ok(sum) => {
                own_answer_file(recipe, path, &media, problems);
                Some(FileFound { path: path.clone(), sha256: sum.sha256 })
            }
            Err(error) => {
                problems
                    .push(spot.problem(Kind::File, format!("failed to read {}: {error}", path.display())));
                None
            }
        }
    });
    Some(WindowsFacts { media, virtio, answer_file })
}

/// A file that Setup would stop at, or that contradicts the recipe, is refused before anything starts.
fn own_answer_file(recipe: &Recipe, path: &Path, media: &Media, problems: &mut Problems) {
    let build = BuildOnly { password: Secret::new(String::new()), computer_name: "NO43".to_owned() };
    // What the medium does not have is said by whoever plans the layer.
    let Ok(settings) = settings_for(recipe, Some(media), build) else { return };
    let bytes = std::fs::read(path).unwrap_or_default();
    for problem in crate::answer::own_file(path, &bytes, &settings, media) {
        problems.push(problem);
    }
}

/// Drivers of a machine of ours: what Windows Setup must have, what it may have, and what can wait. The network is off until
/// all are in.
pub(super) const MUST: &[&Driver] = &[&virtio::DISK];
pub(super) const IN_SETUP: &[&Driver] = &[&virtio::NETWORK];
pub(super) const LATER: &[&Driver] = &[&virtio::SERIAL, &virtio::BALLOON, &virtio::RANDOM, &virtio::PANIC];

fn virtio(path: &Path, sha256: String, system: &System, disk: DiskBus) -> Result<VirtioFound, DriverError> {
    let iso = VirtioWin::open(path)?;
    let mut in_setup = Vec::new();
    for driver in MUST.iter().filter(|_| disk.needs_driver()) {
        iso.driver(driver, system)?;
        in_setup.push(driver.folder.to_owned());
    }
    let there = |list: &[&Driver]| -> Vec<String> {
        list.iter()
            .filter(|driver| iso.driver(driver, system).is_ok())
            .map(|driver| driver.folder.to_owned())
            .collect()
    };
    in_setup.extend(there(IN_SETUP));
    let agent = iso.file(virtio::GUEST_AGENT)?.is_some();
    Ok(VirtioFound { path: path.to_owned(), sha256, in_setup, later: there(LATER), agent })
}

/// The base layer of a Windows guest; `None` for another guest.
pub(crate) fn base_layer(
    resolved: &Resolved,
    lock: &Lock,
    facts: &Facts,
) -> Result<Option<LayerPlan>, Problems> {
    let recipe = &resolved.recipe;
    let Some(windows) = &recipe.guest.windows else { return Ok(None) };
    let spot = &windows.spots.iso;
    let unseen = |what: &str| spot.problem(Kind::File, format!("{what} was not looked at"));
    let found = facts.windows.as_ref().ok_or_else(|| unseen("the medium"))?;
    let input = recipe.inputs.get(ISO).ok_or_else(|| unseen("inputs.iso"))?;
    let sha256 = lock.input(&recipe.name, ISO, input)?.sha256.clone();
    let iso = FileFound { path: facts.inputs.get(ISO).cloned().ok_or_else(|| unseen("inputs.iso"))?, sha256 };
    if !found.virtio.as_ref().is_some_and(|virtio| virtio.agent) {
        let what =
            "Windows has no guest agent of its own, and a build needs it to shut the guest down in order";
        let fix =
            "add virtio = { path = \"…/virtio-win.iso\" } to [inputs]; the agent lies on it in guest-agent/";
        return Err(spot.problem(Kind::Missing, what).fix(fix).into());
    }
    if recipe.machine.firmware == Firmware::Bios {
        let what = "a Windows guest is installed by UEFI only";
        return Err(windows
            .spots
            .os
            .problem(Kind::Conflict, what)
            .fix("set machine.firmware = \"uefi\"")
            .into());
    }
    let build = BuildOnly { password: Secret::new(String::new()), computer_name: "NO43".to_owned() };
    let answer = AnswerPlan::of(settings_for(recipe, Some(&found.media), build)?);
    let base = WindowsBase {
        os: recipe.guest.os.clone(),
        title: title(&found.media, &windows.edition, &answer),
        iso,
        setup: setup_plan(&recipe.guest.os, found.virtio.as_ref()),
        virtio: found.virtio.clone(),
        answer,
        answer_file: found.answer_file.clone(),
        firmware: recipe.machine.firmware,
        tpm: recipe.machine.tpm,
        disk_bus: recipe.machine.disk_bus,
        disk_bytes: recipe.machine.disk_bytes,
        image_bytes: found.media.image(&windows.edition).and_then(|image| image.bytes).unwrap_or(16 << 30),
        guest_program: facts.guest_program.clone(),
    };
    let inputs = inputs(&base);
    Ok(Some(LayerPlan {
        name: "base".to_owned(),
        key: Key::of(None, &inputs),
        parent: None,
        what: LayerWhat::Windows(base),
        inputs,
    }))
}

fn title(media: &Media, edition: &str, answer: &AnswerPlan) -> String {
    let image = media.image(edition);
    let name = image.map_or_else(|| edition.to_owned(), |image| image.name.clone());
    let build = image.and_then(WimImage::build).map(|build| format!(" build {build}"));
    format!("{name} {}{}", answer.language, build.unwrap_or_default())
}

/// What goes into the key, field by field. Host paths are left out, because the sums say what is there.
fn inputs(base: &WindowsBase) -> Value {
    let setup: Value = serde_json::from_str(&base.setup.to_json()).unwrap_or_default();
    json!({
        "kind": "windows",
        "os": base.os,
        "iso": base.iso.sha256,
        "virtio": base.virtio.as_ref().map(|virtio| &virtio.sha256),
        "answer": match &base.answer_file {
            Some(own) => own.sha256.clone(),
            None => base.answer.sum(),
        },
        "setup": setup,
        "firmware": base.firmware,
        "tpm": base.tpm,
        "disk-bus": base.disk_bus,
        "disk-bytes": base.disk_bytes,
        "guest-program": base.guest_program,
    })
}

/// Drivers first: the agent's port needs one. Then the agent, and the proof that it runs.
fn setup_plan(os: &str, virtio: Option<&VirtioFound>) -> SetupPlan {
    let mut actions = Vec::new();
    for name in virtio.into_iter().flat_map(|virtio| &virtio.later) {
        let inf = format!("{DRIVER_FOLDER}/{name}");
        actions.push(Action::new(format!("driver {name}"), Task::Driver { inf, install: true }));
    }
    let msi = Task::Msi { package: AGENT_FILE.to_owned(), properties: Vec::new() };
    actions.push(Action::new("guest agent", msi));
    let service = Task::Service {
        name: "QEMU-GA".to_owned(),
        start: Some(ServiceStart::Auto),
        state: Some(ServiceState::Running),
    };
    actions.push(Action::new("guest agent runs", service));
    SetupPlan::new(format!("{os}/base"), actions)
}
