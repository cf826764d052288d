//! The store without any building: publishing, looking, waiting, sweeping, collecting.

use std::os::unix::fs::PermissionsExt;

use serde_json::json;

use super::*;
use crate::image::{BootKind, FORMAT, Provenance};

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(Some(&dir.path().join("store"))).unwrap();
    (dir, store)
}

fn manifest(key: &Key, parent: Option<&Key>, created: &str) -> Manifest {
    Manifest {
        format: FORMAT,
        key: key.clone(),
        parent: parent.cloned(),
        layer: "base".into(),
        recipe: "demo".into(),
        inputs: json!({}),
        boot: BootKind::Disk,
        sealed: None,
        provenance: Provenance { created: created.into(), ..Provenance::default() },
        files: Vec::new(),
    }
}

fn key(number: u32) -> Key {
    Key::of(None, &json!(number))
}

fn begin(store: &Store, key: &Key) -> Option<Staging> {
    store.begin(key, &mut |_| {}, &|| false).unwrap()
}

fn publish(store: &Store, number: u32, parent: Option<&Key>) -> Image {
    let staging = begin(store, &key(number)).unwrap();
    fs::write(staging.dir().join("disk.qcow2"), format!("contents {number}")).unwrap();
    fs::write(staging.dir().join("leftover"), "not part of the image").unwrap();
    staging.publish(&["disk.qcow2"], manifest(&key(number), parent, &format!("2026-01-{number:02}"))).unwrap()
}

fn tree(store: &Store) -> Vec<String> {
    let mut names: Vec<String> =
        ["images", "tmp"].iter().flat_map(|name| names_in(&store.dir().join(name)).unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_key_exists_only_when_the_image_is_whole() {
    let (_dir, store) = store();
    assert!(store.get(&key(1)).unwrap().is_none());
    let staging = begin(&store, &key(1)).unwrap();
    fs::write(staging.dir().join("disk.qcow2"), "half").unwrap();
    assert!(store.get(&key(1)).unwrap().is_none());
    drop(staging);
    assert_eq!(tree(&store), [""; 0]);

    let image = publish(&store, 1, None);
    let got = store.get(&key(1)).unwrap().unwrap();
    assert_eq!((&got.manifest, &got.dir), (&image.manifest, &image.dir));
    assert_eq!(names_in(&got.dir).unwrap(), ["disk.qcow2", "manifest.json"]);
    for name in ["disk.qcow2", "manifest.json"] {
        assert_eq!(fs::metadata(got.dir.join(name)).unwrap().permissions().mode() & 0o777, 0o444);
    }
    assert_eq!(tree(&store), [key(1).to_string()]);
    assert!(begin(&store, &key(1)).is_none(), "what is there is not built again");
}

#[test]
fn a_layer_without_its_parent_is_not_there() {
    let (_dir, store) = store();
    let base = publish(&store, 1, None);
    publish(&store, 2, Some(&key(1)));
    assert!(store.get(&key(2)).unwrap().is_some());
    fs::remove_dir_all(base.dir).unwrap();
    assert!(store.get(&key(2)).unwrap().is_none());
    assert_eq!(store.verify(&key(2)).unwrap().faults.len(), 1);
}

#[test]
fn damage_is_named_and_made_good_by_building_again() {
    let (_dir, store) = store();
    let image = publish(&store, 1, None);
    let disk = image.disk();
    fs::remove_file(&disk).unwrap();
    fs::write(&disk, "contents X").unwrap();
    let verified = store.verify(&key(1)).unwrap();
    assert_eq!(
        verified.faults,
        [Fault {
            name: "disk.qcow2".into(),
            what: "its contents have changed since it was published".into()
        }]
    );

    fs::write(&disk, "cut").unwrap();
    let error = store.get(&key(1)).unwrap_err().to_string();
    assert!(error.contains("is damaged: disk.qcow2 has 3 bytes instead of 10; `no43 image rm"), "{error}");
    assert_eq!(store.images().unwrap().1.len(), 1);
}

#[test]
fn foreign_manifests_are_errors_never_paths_outside() {
    let (_dir, store) = store();
    let image = publish(&store, 1, None);
    let path = image.dir.join("manifest.json");
    let good = fs::read_to_string(&path).unwrap();
    fs::remove_file(&path).unwrap();
    for (text, says) in [
        ("{", "cannot be read"),
        (&good.replace("\"disk.qcow2\"", "\"../../x\""), "strange file"),
        (&good.replace("\"format\": 1", "\"format\": 99"), "format 99"),
        (&good.replace(key(1).as_str(), key(2).as_str()), "that of"),
    ] {
        fs::write(&path, text).unwrap();
        let error = store.get(&key(1)).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn the_second_builder_of_a_layer_waits_and_takes_the_firsts() {
    let (_dir, store) = store();
    let first = begin(&store, &key(1)).unwrap();
    fs::write(first.dir().join("disk.qcow2"), "of the first").unwrap();
    let second = std::thread::spawn({
        let store = store.clone();
        move || {
            let mut told = Vec::new();
            let staging = store.begin(&key(1), &mut |pid| told.push(pid), &|| false).unwrap();
            (staging.is_none(), told)
        }
    });
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert!(store.sweep().unwrap().is_empty(), "a living builder's folder is left alone");
    first.publish(&["disk.qcow2"], manifest(&key(1), None, "")).unwrap();
    assert_eq!(second.join().unwrap(), (true, vec![std::process::id()]));
}

#[test]
fn waiting_can_be_stopped() {
    let (_dir, store) = store();
    let _first = begin(&store, &key(1)).unwrap();
    assert!(store.begin(&key(1), &mut |_| {}, &|| true).is_err());
}

#[test]
fn what_a_dead_builder_left_is_swept_and_said() {
    let (dir, store) = store();
    let (folder, outside) = (store.dir().join("tmp").join(key(1).as_str()), dir.path().join("outside"));
    fs::create_dir_all(&folder).unwrap();
    fs::create_dir_all(outside.join("tree")).unwrap();
    fs::write(folder.join("disk.raw"), vec![1; 3 << 20]).unwrap();
    let owner = json!({"pid": 4_000_000, "outside": outside}).to_string();
    fs::write(store.dir().join(format!("tmp/{}.lock", key(1))), owner).unwrap();
    assert_eq!(store.leavings().unwrap(), [key(1)]);

    let dropped = store.sweep().unwrap();
    assert_eq!(dropped.len(), 1);
    let said = dropped[0].to_string();
    assert!(said.contains("that process 4000000 was building when it died (4 MiB freed)"), "{said}");
    assert!(tree(&store).is_empty() && !outside.exists());
    assert!(store.sweep().unwrap().is_empty());
}

#[test]
fn gc_keeps_what_recipes_that_exist_were_built_from() {
    let (dir, store) = store();
    for (number, parent) in [(1, None), (2, Some(key(1))), (3, Some(key(1))), (4, None)] {
        publish(&store, number, parent.as_ref());
    }
    let recipe = dir.path().join("demo.toml");
    fs::write(&recipe, "").unwrap();
    store.keep_for(&recipe, &[key(1), key(2)], false).unwrap();
    assert!(matches!(store.rm(&key(1)), Err(StoreError::HasChildren { .. })));

    let removed = |collected: &Collected| {
        collected.removed.iter().map(|image| image.manifest.key.clone()).collect::<Vec<_>>()
    };
    let would = store.gc(&[key(4)], true).unwrap();
    assert_eq!((removed(&would), would.kept), (vec![key(3)], 3));
    assert_eq!(store.images().unwrap().0.len(), 4);

    // A new image of the same recipe is being built: the old one stays until it is there.
    store.keep_for(&recipe, &[key(9)], true).unwrap();
    assert_eq!(removed(&store.gc(&[key(4)], false).unwrap()), [key(3)]);
    fs::remove_file(&recipe).unwrap();
    let collected = store.gc(&[], false).unwrap();
    assert_eq!((collected.removed.len(), collected.kept), (3, 0));
    assert_eq!(tree(&store), [""; 0]);
}

#[test]
fn of_several_recipes_with_an_image_the_last_comes_first_and_instances_are_none() {
    let (dir, store) = store();
    publish(&store, 1, None);
    let files = ["b.toml", "a.toml", "instance.json", "c.toml"].map(|name| dir.path().join(name));
    files.iter().for_each(|file| fs::write(file, "x").unwrap());
    let [first, last, record, other] = &files;
    store.keep_for(first, &[key(1)], false).unwrap();
    store.keep_for_instance("play", record, &[key(1)]).unwrap();
    store.keep_for(other, &[key(2)], false).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(20)); // a file system's clock is coarse
    store.keep_for(last, &[key(1)], false).unwrap();
    let found = store.recipes_of(&key(1)).unwrap();
    let names: Vec<_> = found.iter().filter_map(|path| path.file_name()?.to_str()).collect();
    assert_eq!(names, ["a.toml", "b.toml"]);
}

#[test]
fn keys_can_be_abbreviated() {
    let (_dir, store) = store();
    publish(&store, 1, None);
    publish(&store, 2, None);
    assert_eq!(store.find(&key(1).as_str()[..10]).unwrap(), key(1));
    assert!(matches!(store.find("zz"), Err(StoreError::NoSuchImage(_))));
    assert!(matches!(store.find(""), Err(StoreError::Ambiguous { .. })));
}

#[test]
fn sizes_for_people() {
    assert_eq!(
        [0, 1, 1 << 20, 1500 << 20, 64 << 30].map(gib),
        ["0 MiB", "1 MiB", "1 MiB", "1.4 GiB", "64.0 GiB"]
    );
}

#[test]
fn looking_at_a_store_that_is_not_there_makes_nothing() {
    let (_dir, store) = store();
    assert!(
        store.get(&key(1)).unwrap().is_none()
            && store.images().unwrap().0.is_empty()
            && store.sweep().unwrap().is_empty()
    );
    assert!(!store.dir().exists());
    assert!(store.free_bytes() > 0);
}

/// Runs this very test again in a mount namespace with a store on a file system of 2 MiB.
#[test]
fn a_full_disk_is_said_and_nothing_is_published() {
    const INSIDE: &str = "NO43_TEST_SMALL_STORE";
    if let Some(dir) = std::env::var_os(INSIDE) {
        return fill(&Store::open(Some(Path::new(&dir))).unwrap());
    }
    let dir = tempfile::tempdir().unwrap();
    let script = "mount -t tmpfs -o size=2m tmpfs \"$1\" || exit 77; shift; exec \"$@\"";
    let ended = std::process::Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"])
        .arg(dir.path())
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "store::tests::a_full_disk_is_said_and_nothing_is_published"])
        .env(INSIDE, dir.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ended.stdout).into_owned() + &String::from_utf8_lossy(&ended.stderr);
    if ended.status.code() == Some(77) || said.contains("unshare failed") {
        eprintln!("skipped: this system gives an ordinary user no mount namespace: {said}");
        return;
    }
    assert!(ended.status.success(), "{said}");
    assert!(said.contains("1 passed"), "{said}");
}

fn fill(store: &Store) {
    publish(store, 1, None);
    let staging = begin(store, &key(2)).unwrap();
    let disk = staging.dir().join("disk.qcow2");
    let error = fs::write(&disk, vec![1; 4 << 20]).map_err(StoreError::io("write", &disk)).unwrap_err();
    let said = error.to_string();
    assert!(said.starts_with("the disk is full: 0 MiB free where the store is"), "{said}");
    // The manifest is what does not fit any more.
    let error = staging.publish(&["disk.qcow2"], manifest(&key(2), None, "")).unwrap_err();
    assert!(matches!(error, StoreError::Full { .. }), "{error}");
    assert!(store.get(&key(2)).unwrap().is_none());
    assert!(store.verify(&key(1)).unwrap().faults.is_empty());
    assert_eq!(tree(store), [key(1).to_string()]);
}
