//! A new instance: its folder made aside, whole, and then renamed to its name.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use no43_builder::image::Image;
use no43_builder::install::Identity;
use no43_builder::plan::{DiskPlan, IdentityKind, Plan};
use no43_builder::store::Store;
use no43_builder::windows::{Sealed, Who};

use super::error::{InstanceError, file_error};
use super::record::{self, KeptDisk, Record, System};
use super::{Instance, Instances, check_name, disk};

/// What a new instance is made from.
#[derive(Debug, Clone, Copy)]
pub struct NewInstance<'a> {
    /// Its name.
    pub name: &'a str,
    /// What it is to run.
    pub plan: &'a Plan,
    /// The image below it.
    pub origin: Origin<'a>,
    /// Removed when its run ends.
    pub ephemeral: bool,
}

/// Where a system disk comes from.
#[derive(Debug, Clone, Copy)]
pub struct Origin<'a> {
    /// The image.
    pub image: &'a Image,
    /// The store that it is in.
    pub store: &'a Store,
}

impl Instances {
    /// Makes an instance: an overlay on the image, an identity, and its kept disks.
    ///
    /// # Errors
    /// If the name is taken or can be none, or a file cannot be made. Nothing is left behind then.
    pub fn create(&self, new: &NewInstance<'_>) -> Result<Instance, InstanceError> {
        check_name(new.name)?;
        let dir = self.dir().join(new.name);
        let exists = || InstanceError::Exists { name: new.name.to_owned(), dir: dir.clone() };
        if dir.exists() {
            return Err(exists());
        }
        fs::create_dir_all(self.dir()).map_err(file_error("make", self.dir()))?;
        let aside = self.aside();
        private_dir(&aside)?;
        let made = fill(&aside, new).and_then(|()| {
            disk::rename_new(&aside, &dir).map_err(|error| match error.kind() {
                io::ErrorKind::AlreadyExists => exists(),
                _ => file_error("make", &dir)(error),
            })
        });
        if let Err(error) = made {
            let _ = fs::remove_dir_all(&aside);
            return Err(error);
        }
        let instance = Instance::open(&dir)?;
        instance.protect(new.origin.store)?;
        Ok(instance)
    }
}

fn fill(dir: &Path, new: &NewInstance<'_>) -> Result<(), InstanceError> {
    let machine = &new.plan.machine;
    make_system(&dir.join(record::SYSTEM), &new.origin, machine.identity)?;
    let disks = new_disks(dir, &new.plan.devices.disks, &[])?;
    let plan = serde_json::to_value(new.plan)
        .map_err(|error| InstanceError::Damaged { path: dir.join(record::RECORD), why: error.to_string() })?;
    let installed = new.origin.image.manifest.sealed.as_ref().map(|sealed| sealed.identity.clone());
    let Identity { uuid, serial } = match (machine.identity, installed) {
        (IdentityKind::Image, Some(installed)) => installed,
        _ => Identity { uuid: record::new_uuid(), serial: record::new_serial() },
    };
    Record {
        format: record::FORMAT,
        name: new.name.to_owned(),
        uuid,
        mac: new.plan.devices.mac.clone().unwrap_or_else(record::new_mac),
        serial,
        host: record::this_host(),
        recipe: std::path::absolute(&new.plan.recipe_file).unwrap_or_else(|_| new.plan.recipe_file.clone()),
        created: record::now(),
        ephemeral: new.ephemeral,
        maker: new.ephemeral.then(|| no43_host::ProcessRef::current(&no43_host::Roots::real())),
        plan,
        disks,
    }
    .write(dir)
}

/// Makes a system folder: an overlay on the image, and copies of the image's UEFI variables and TPM where it has them.
pub(super) fn make_system(
    dir: &Path,
    origin: &Origin<'_>,
    identity: IdentityKind,
) -> Result<(), InstanceError> {
    private_dir(dir)?;
    disk::overlay_on(&origin.image.disk(), &dir.join(record::DISK), None)?;
    let who = Who { identity: None, empty_tpm: identity == IdentityKind::Fresh };
    origin.image.private_parts(dir, who).map_err(file_error("fill", dir))?;
    let sealed = origin.image.manifest.sealed.clone();
    System {
        format: record::FORMAT,
        image: Some(origin.image.manifest.key.clone()),
        below: disks_below(origin)?,
        store: origin.store.dir().to_owned(),
        direct: None,
        created: record::now(),
        snapshots: Vec::new(),
        restoring: None,
        // how long its installation took is the image's business
        sealed: sealed.map(|sealed| Sealed { phases: Vec::new(), ..sealed }),
        given: Vec::new(),
    }
    .write(dir)
}

/// SHA-256 of the disks of an image and all below it, from their manifests.
pub(super) fn disks_below(origin: &Origin<'_>) -> Result<Vec<String>, InstanceError> {
    let mut image = origin.image.clone();
    let mut sums = Vec::new();
    loop {
        let disk = image.manifest.files.iter().find(|file| file.name == record::DISK);
        sums.extend(disk.map(|file| file.sha256.clone()));
        let Some(parent) = image.manifest.parent.clone() else { return Ok(sums) };
        let short = parent.short().to_owned();
        image = origin
            .store
            .get(&parent)?
            .ok_or_else(|| InstanceError::Refused(format!("image {short} is not in the store")))?;
    }
}

/// Makes the files of those disks that are not in `known` yet.
pub(super) fn new_disks(
    dir: &Path,
    wanted: &[DiskPlan],
    known: &[KeptDisk],
) -> Result<Vec<KeptDisk>, InstanceError> {
    let mut disks = known.to_vec();
    for plan in wanted.iter().filter(|plan| !known.iter().any(|disk| disk.name == plan.name)) {
        // QEMU cuts serials at 20 characters, and the guest finds the disk by it
        let serial = format!("{:.13}-{}", plan.name.replace('.', "-"), record::random_hex(3));
        let disk = KeptDisk {
            name: plan.name.clone(),
            serial,
            bytes: plan.bytes.unwrap_or(0),
            path: plan.path.clone(),
        };
        if let Some(path) = &plan.path {
            fs::metadata(path).map_err(file_error("find the disk", path))?;
        } else {
            private_dir(&dir.join(record::DISKS))?;
            disk::blank(&dir.join(record::DISKS).join(format!("{}.qcow2", plan.name)), disk.bytes)?;
        }
        disks.push(disk);
    }
    Ok(disks)
}

/// Makes a folder for its owner only, unless it is there.
pub(super) fn private_dir(dir: &Path) -> Result<(), InstanceError> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(file_error("make", dir))
}

impl Instance {
    /// Takes over what a changed recipe says about the machine, and makes disks that it asks for now. The system disk is
    /// not touched, and no disk is ever removed.
    ///
    /// # Errors
    /// If a disk cannot be made or the record cannot be written.
    pub fn follow(&mut self, plan: &Plan) -> Result<(), InstanceError> {
        let disks = new_disks(&self.dir, &plan.devices.disks, &self.record.disks)?;
        let mut value = serde_json::to_value(plan).map_err(|error| InstanceError::Damaged {
            path: self.dir.join(record::RECORD),
            why: error.to_string(),
        })?;
        // what the system disk is made of does not change with the recipe
        if self.system.image.as_ref() != Some(plan.image_key()) {
            value["layers"] = self.record.plan["layers"].clone();
        }
        let recipe = std::path::absolute(&plan.recipe_file).unwrap_or_else(|_| plan.recipe_file.clone());
        let mac = plan.devices.mac.clone().unwrap_or_else(|| self.record.mac.clone());
        if (&disks, &value, &recipe, &mac)
            != (&self.record.disks, &self.record.plan, &self.record.recipe, &self.record.mac)
        {
            (self.record.disks, self.record.plan, self.record.recipe, self.record.mac) =
                (disks, value, recipe, mac);
            self.save()?;
        }
        Ok(())
    }

    /// The plan of its last start.
    ///
    /// # Errors
    /// If this version cannot read it any more: then the recipe says it again.
    pub fn plan(&self) -> Result<Plan, InstanceError> {
        serde_json::from_value(self.record.plan.clone()).map_err(|error| {
            InstanceError::Refused(format!(
                "the plan that instance '{}' was last started with cannot be read by this version ({error}): no43 run {}",
                self.name(),
                self.record.recipe.display()
            ))
        })
    }

    /// Whether it can be started: it belongs to this host, nobody else has its identity, and the very image that its disk
    /// was made on is there. Where the store has moved, the disk learns the new place.
    ///
    /// # Errors
    /// What is in the way, and what to do.
    pub fn ready(&self, all: &Instances, store: &Store) -> Result<Option<Image>, InstanceError> {
        self.finish_restore()?;
        if self.record.host != record::this_host() {
            return Err(InstanceError::OtherHost { name: self.name().to_owned(), dir: self.dir.clone() });
        }
        let (others, _) = all.list()?;
        if let Some(other) =
            others.iter().find(|other| other.dir != self.dir && other.record.uuid == self.record.uuid)
        {
            let (name, other) = (self.name().to_owned(), other.name().to_owned());
            return Err(InstanceError::SameIdentity { name, other });
        }
        self.image(store)
    }

    fn image(&self, store: &Store) -> Result<Option<Image>, InstanceError> {
        let Some(key) = &self.system.image else { return Ok(None) };
        let (name, short) = (self.name().to_owned(), key.short().to_owned());
        let own = Store::open(Some(&self.system.store))?;
        let places = if own.dir() == store.dir() { vec![store.clone()] } else { vec![own, store.clone()] };
        let mut found = None;
        for place in places {
            if let Some(image) = place.get(key)? {
                found = Some((image, place));
                break;
            }
        }
        let Some((image, place)) = found else {
            return Err(InstanceError::NoImage { name, key: short, store: self.system.store.clone() });
        };
        if disks_below(&Origin { image: &image, store: &place })? != self.system.below {
            return Err(InstanceError::OtherBytes { name, key: short });
        }
        if place.dir() != self.system.store {
            // the same bytes in another place: only the name in the overlay's header changes
            disk::rebase(&self.disk(), &image.disk())?;
            let system = System { store: place.dir().to_owned(), ..self.system.clone() };
            system.write(&self.dir.join(record::SYSTEM))?;
        }
        Ok(Some(image))
    }
}
