use std::path::Path;

use no43_builder::image::{BootKind, FORMAT, FileFact, Image, Manifest, Provenance};
use no43_builder::plan::{DiskPlan, IdentityKind, Plan};
use no43_builder::store::{Store, StoreError};
use proptest::prelude::*;
use serde_json::json;

use super::*;

struct World {
    _dir: tempfile::TempDir,
    store: Store,
    instances: Instances,
    image: Image,
}

/// A store with one published image, as `publish` leaves it.
fn image(store: &Store, name: &str, contents: &[u8]) -> Image {
    let key = no43_builder::key::Key::of(None, &json!({"name": name}));
    let dir = store.dir().join("images").join(key.as_str());
    fs::create_dir_all(&dir).unwrap();
    let disk = dir.join("disk.qcow2");
    disk::blank(&disk, 16 << 20).unwrap();
    let sha256: String = contents.iter().map(|byte| format!("{byte:02x}")).collect();
    let bytes = fs::metadata(&disk).unwrap().len();
    let manifest = Manifest {
        format: FORMAT,
        key,
        parent: None,
        layer: "base".into(),
        recipe: name.into(),
        inputs: json!({}),
        boot: BootKind::Disk,
        sealed: None,
        provenance: Provenance::default(),
        files: vec![FileFact { name: "disk.qcow2".into(), bytes, sha256 }],
    };
    fs::write(dir.join("manifest.json"), serde_json::to_vec(&manifest).unwrap()).unwrap();
    Image { dir, manifest }
}

/// `None` where there is no `qemu-img`: then nothing here can run.
fn world() -> Option<World> {
    if std::process::Command::new("qemu-img").arg("--version").output().is_err() {
        eprintln!("skipped: no qemu-img on this host (package qemu-utils)");
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(Some(&dir.path().join("store"))).unwrap();
    let image = image(&store, "one", &[1; 32]);
    Some(World { store, image, instances: Instances::at(dir.path().join("instances")), _dir: dir })
}

fn plan(image: &Image) -> Plan {
    let mut plan = crate::verify::plan_for_tests(Vec::new());
    let layer = serde_json::from_value(json!({
        "name": "base", "key": image.manifest.key, "parent": null,
        "what": {"step": {"reboot": {"limit": 1}}}, "inputs": {},
    }));
    plan.layers = vec![layer.unwrap()];
    plan
}

impl World {
    fn make(&self, name: &str) -> Result<Instance, InstanceError> {
        self.make_with(name, &plan(&self.image))
    }

    fn make_with(&self, name: &str, plan: &Plan) -> Result<Instance, InstanceError> {
        let origin = Origin { image: &self.image, store: &self.store };
        self.instances.create(&NewInstance { name, plan, origin, ephemeral: false })
    }
}

fn games() -> DiskPlan {
    DiskPlan { name: "games".into(), bytes: Some(8 << 20), keep: true, path: None }
}

/// What a guest would have written.
fn scribble(disk: &Path, byte: u8) {
    let command = format!("write -P {byte} 0 64k");
    let done = std::process::Command::new("qemu-io")
        .args(["-f", "qcow2", "-c", &command])
        .arg(disk)
        .output()
        .unwrap();
    assert!(done.status.success(), "{done:?}");
}

fn holds(disk: &Path, byte: u8) -> bool {
    let command = format!("read -P {byte} 0 64k");
    let done = std::process::Command::new("qemu-io")
        .args(["-r", "-f", "qcow2", "-c", &command])
        .arg(disk)
        .output()
        .unwrap();
    done.status.success() && !String::from_utf8_lossy(&done.stdout).contains("failed")
}

#[test]
fn names_that_cannot_be_are_refused_with_the_reason() {
    let long = "x".repeat(300);
    for (name, why) in [
        ("a/b", "'/'"),
        ("../etc", "'/'"),
        (long.as_str(), "too long"),
        ("", "empty"),
        (".hidden", "begin"),
        ("a b", "other characters"),
        ("a\nb", "other characters"),
    ] {
        let error = check_name(name).unwrap_err().to_string();
        assert!(error.contains(why) && error.len() < 250, "{error}");
    }
    assert!(check_name("windows10-gaming_2.1").is_ok());
}

#[test]
fn an_identity_is_made_once_and_is_each_instance_s_own() {
    let Some(world) = world() else { return };
    let (a, b) = (world.make("a").unwrap(), world.make("b").unwrap());
    assert_ne!(
        (&a.record.uuid, &a.record.mac, &a.record.serial),
        (&b.record.uuid, &b.record.mac, &b.record.serial)
    );
    let again = world.instances.find("a").unwrap();
    assert_eq!(again.record, a.record);
    let error = world.make("a").unwrap_err().to_string();
    assert!(error.starts_with("instance 'a' is there already"), "{error}");
    let error = world.instances.find("c").unwrap_err().to_string();
    assert_eq!(error, "there is no instance 'c'; there are: a, b");
    assert!(world.instances.list().unwrap().1.is_empty(), "nothing half-made is left");
}

#[test]
fn an_image_below_an_instance_cannot_be_removed_and_its_users_are_named() {
    let Some(world) = world() else { return };
    let key = world.image.manifest.key.clone();
    let a = world.make("a").unwrap();
    world.make("b").unwrap();
    let error = world.store.rm(&key).unwrap_err().to_string();
    assert!(error.contains("below the disk of instance a, b"), "{error}");
    assert_eq!(world.store.gc(&[], false).unwrap().removed.len(), 0, "a root of the garbage collection");
    let a = world.instances.rename(&a, "renamed", &world.store).unwrap();
    assert!(matches!(world.store.rm(&key), Err(StoreError::Used { users, .. }) if users == "b, renamed"));
    world.instances.remove(&a, &world.store).unwrap();
    world.instances.remove(&world.instances.find("b").unwrap(), &world.store).unwrap();
    world.store.rm(&key).unwrap();
}

#[test]
fn a_missing_image_and_one_that_was_built_again_are_named_before_a_start() {
    let Some(world) = world() else { return };
    let instance = world.make("a").unwrap();
    assert!(instance.ready(&world.instances, &world.store).unwrap().is_some());
    image(&world.store, "one", &[2; 32]);
    let error = instance.ready(&world.instances, &world.store).unwrap_err().to_string();
    assert!(error.contains("built again since and has other bytes"), "{error}");
    fs::remove_dir_all(&world.image.dir).unwrap();
    let error = instance.ready(&world.instances, &world.store).unwrap_err().to_string();
    let short = world.image.manifest.key.short();
    assert!(error.contains(&format!("lies on image {short}, which is not in")), "{error}");
}

#[test]
fn a_store_that_moved_is_found_again() {
    let Some(world) = world() else { return };
    let instance = world.make("a").unwrap();
    scribble(&instance.disk(), 7);
    let moved = world.store.dir().with_file_name("elsewhere");
    fs::rename(world.store.dir(), &moved).unwrap();
    let store = Store::open(Some(&moved)).unwrap();
    instance.ready(&world.instances, &store).unwrap();
    let facts = disk::facts(&instance.disk()).unwrap();
    assert!(facts.backing_filename.unwrap().starts_with(&moved));
    assert!(holds(&instance.disk(), 7));
}

#[test]
fn only_one_process_has_an_instance() {
    let Some(world) = world() else { return };
    let mut instance = world.make("a").unwrap();
    let held = instance.hold().unwrap();
    assert!(matches!(instance.hold(), Err(InstanceError::Busy { .. })));
    assert!(matches!(world.instances.remove(&instance, &world.store), Err(InstanceError::Busy { .. })));
    assert!(matches!(instance.snapshot("s"), Err(InstanceError::Busy { .. })));
    drop(held);
    instance.snapshot("s").unwrap();
}

#[test]
fn a_snapshot_brings_back_disk_variables_and_tpm_together() {
    let Some(world) = world() else { return };
    let mut instance = world.make("a").unwrap();
    let write = |instance: &Instance, byte: u8| {
        scribble(&instance.disk(), byte);
        fs::write(instance.vars(), [byte]).unwrap();
        fs::create_dir_all(instance.tpm()).unwrap();
        fs::write(instance.tpm().join("state"), [byte]).unwrap();
    };
    write(&instance, 1);
    instance.snapshot("good").unwrap();
    assert!(instance.snapshot("good").is_err(), "a name is used once");
    write(&instance, 2);
    fs::write(instance.tpm().join("more"), "x").unwrap();
    instance.restore("good").unwrap();
    let is_one = |instance: &Instance| {
        holds(&instance.disk(), 1)
            && fs::read(instance.vars()).unwrap() == [1]
            && fs::read(instance.tpm().join("state")).unwrap() == [1]
            && !instance.tpm().join("more").exists()
    };
    assert!(is_one(&instance));
    // a kill in the middle: noted as begun, the next start finishes it
    write(&instance, 3);
    let system = System { restoring: Some("good".into()), ..instance.system.clone() };
    system.write(&instance.dir.join(record::SYSTEM)).unwrap();
    let instance = world.instances.find("a").unwrap();
    instance.ready(&world.instances, &world.store).unwrap();
    assert!(is_one(&instance));
    let mut instance = world.instances.find("a").unwrap();
    assert_eq!(instance.system.restoring, None);
    let error = instance.restore("bad").unwrap_err().to_string();
    assert_eq!(error, "instance 'a' has no snapshot 'bad'; it has: good");
    instance.drop_snapshot("good").unwrap();
    assert!(instance.restore("good").is_err());
}

#[test]
fn a_renew_keeps_kept_disks_and_the_old_system_until_confirmed() {
    let Some(world) = world() else { return };
    let with_disk = Plan {
        devices: no43_builder::plan::DevicesPlan { disks: vec![games()], ..Default::default() },
        ..plan(&world.image)
    };
    let mut instance = world.make_with("a", &with_disk).unwrap();
    let games = instance.kept_disk(&instance.record.disks[0]);
    scribble(&games, 9);
    scribble(&instance.disk(), 1);
    let newer = image(&world.store, "two", &[3; 32]);
    let origin = Origin { image: &newer, store: &world.store };
    instance.renew(&origin, IdentityKind::Own).unwrap();
    assert!(!holds(&instance.disk(), 1) && holds(&games, 9), "a new system, the same games");
    assert!(instance.renew(&origin, IdentityKind::Own).is_err(), "the first one is not confirmed yet");
    assert!(
        matches!(world.store.rm(&world.image.manifest.key), Err(StoreError::Used { .. })),
        "the old one needs its image"
    );
    instance.undo_renew(&world.store).unwrap();
    assert!(holds(&instance.disk(), 1) && holds(&games, 9));
    assert!(instance.confirm(&world.store).is_err(), "nothing to confirm");
    instance.renew(&origin, IdentityKind::Own).unwrap();
    instance.confirm(&world.store).unwrap();
    world.store.rm(&world.image.manifest.key).unwrap();
    assert!(instance.ready(&world.instances, &world.store).unwrap().is_some());
}

#[test]
fn a_changed_recipe_is_said_and_touches_no_disk() {
    let Some(world) = world() else { return };
    let mut instance = world.make("a").unwrap();
    assert_eq!(differences(&instance, &plan(&world.image)), []);
    let newer = image(&world.store, "two", &[3; 32]);
    let mut changed = plan(&newer);
    changed.machine.cpus = 7;
    let all = differences(&instance, &changed);
    assert_eq!(all.len(), 2, "{all:?}");
    assert!(all[0].needs_renew && all[0].what.starts_with("layer 'base' is another one"), "{all:?}");
    assert!(!all[1].needs_renew && all[1].what.starts_with("machine.cpus: 7 instead of "), "{all:?}");
    let before = instance.system.clone();
    changed.devices.disks = vec![games()];
    instance.follow(&changed).unwrap();
    let instance = world.instances.find("a").unwrap();
    assert_eq!(instance.system, before);
    assert_eq!(instance.record.disks.len(), 1);
    assert_eq!(instance.plan().unwrap().machine.cpus, 7);
}

#[test]
fn a_backup_stands_alone_and_a_copy_gets_an_identity_of_its_own() {
    let Some(world) = world() else { return };
    let instance = world.make("a").unwrap();
    scribble(&instance.disk(), 5);
    let to = world.store.dir().with_file_name("backup");
    instance.backup(&to, None).unwrap();
    assert!(instance.backup(&to, None).is_err(), "never over something");
    // on another host there is no such image
    fs::remove_dir_all(world.store.dir()).unwrap();
    let imported = world.instances.import(&to, Some("b"), &world.store).unwrap();
    assert!(imported.new_identity && imported.instance.record.uuid != instance.record.uuid);
    assert!(holds(&imported.instance.disk(), 5));
    assert_eq!(imported.instance.ready(&world.instances, &world.store).unwrap().map(|_| ()), None);
}

#[test]
fn a_folder_from_another_host_or_a_copy_is_not_started() {
    let Some(world) = world() else { return };
    let mut instance = world.make("a").unwrap();
    disk::copy_dir(&instance.dir, &world.instances.dir().join("copy")).unwrap();
    let error = instance.ready(&world.instances, &world.store).unwrap_err().to_string();
    assert!(error.contains("'a' and 'copy' have the same UUID"), "{error}");
    fs::remove_dir_all(world.instances.dir().join("copy")).unwrap();
    instance.record.host = "0123".into();
    instance.save().unwrap();
    let error = instance.ready(&world.instances, &world.store).unwrap_err().to_string();
    assert!(error.contains("was made on another host") && error.contains("no43 instance import"), "{error}");
}

#[test]
fn a_disk_from_elsewhere_cannot_name_a_file_of_this_host() {
    let Some(world) = world() else { return };
    let instance = world.make("a").unwrap();
    let to = world.store.dir().with_file_name("backup");
    instance.backup(&to, None).unwrap();
    let (evil, host_file) = (to.join("system/disk.qcow2"), world.instances.dir().join("a/instance.json"));
    let args = ["rebase", "-u", "-F", "raw", "-b"].map(std::ffi::OsStr::new);
    disk::qemu_img("prepare", args.into_iter().chain([host_file.as_os_str(), evil.as_os_str()])).unwrap();
    let error = world.instances.import(&to, Some("b"), &world.store).unwrap_err().to_string();
    assert!(error.contains("stands alone"), "{error}");
    assert_eq!(world.instances.list().unwrap().0.len(), 1);
}

#[test]
fn disks_only_grow() {
    let Some(world) = world() else { return };
    let mut instance = world.make("a").unwrap();
    let error = instance.resize(None, 1 << 20).unwrap_err().to_string();
    assert!(error.contains("has 16 MiB already"), "{error}");
    instance.resize(None, 64 << 20).unwrap();
    assert_eq!(disk::facts(&instance.disk()).unwrap().virtual_size, 64 << 20);
}

#[test]
fn a_removal_that_was_interrupted_leaves_nothing_that_is_found() {
    let Some(world) = world() else { return };
    let instance = world.make("a").unwrap();
    fs::rename(&instance.dir, world.instances.dir().join(".removed-a-1")).unwrap();
    assert!(world.instances.list().unwrap().0.is_empty());
    world.make("a").unwrap();
}

#[test]
fn what_a_killed_command_was_making_is_swept_and_what_a_living_one_makes_is_not() {
    let Some(world) = world() else { return };
    let kept = world.make("a").unwrap();
    let mine = world.instances.aside();
    let dead = world.instances.dir().join(".new-4194305-1-00000000"); // no kernel gives such a number
    fs::create_dir_all(&mine).unwrap();
    fs::create_dir_all(&dead).unwrap();
    world.instances.sweep();
    assert!(mine.exists() && !dead.exists() && kept.dir.exists());
}

proptest! {
    #[test]
    fn no_record_breaks_the_reader(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(record::RECORD), bytes).unwrap();
        let _ = Instance::open(dir.path());
    }

    #[test]
    fn a_good_name_is_never_a_path(name in any::<String>()) {
        if check_name(&name).is_ok() {
            prop_assert_eq!(Path::new(&name).components().count(), 1);
            prop_assert!(!name.starts_with('.') && name.len() <= record::NAME_MAX);
        }
    }
}
