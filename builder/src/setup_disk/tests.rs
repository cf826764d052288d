//! Disks checked by fsck.fat and read back by mtools.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

fn tool(command: &mut Command) -> String {
    command.env("LC_ALL", "C.UTF-8").env("MTOOLS_SKIP_CHECK", "0").env("MTOOLSRC", "/dev/null");
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {text}{error}");
    text
}

/// fsck.fat knows no partitions: it is given the partition alone.
fn fsck(image: &Path) {
    let partition = image.with_extension("part");
    let mut from = File::open(image).unwrap();
    io::Seek::seek(&mut from, io::SeekFrom::Start(fat::PARTITION)).unwrap();
    io::copy(&mut from, &mut File::create(&partition).unwrap()).unwrap();
    let said = tool(Command::new("fsck.fat").arg("-nv").arg(&partition));
    // -n says 'leaving filesystem unchanged' after it has found something.
    assert!(!said.contains("unchanged") && !said.contains("FATs differ"), "{said}");
    fs::remove_file(partition).unwrap();
}

/// Everything on the disk, copied out by mtools.
fn read_back(image: &Path) -> BTreeMap<String, Vec<u8>> {
    let out = tempfile::tempdir().unwrap();
    let drive = format!("{}@@1M", image.display());
    tool(Command::new("mcopy").args(["-s", "-Q", "-n", "-i", &drive, "::*"]).arg(out.path()));
    let mut found = BTreeMap::new();
    walk(out.path(), out.path(), &mut found);
    found
}

fn walk(root: &Path, folder: &Path, found: &mut BTreeMap<String, Vec<u8>>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            walk(root, &path, found);
        } else {
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            found.insert(name, fs::read(&path).unwrap());
        }
    }
}

fn disk(files: &BTreeMap<String, Vec<u8>>) -> SetupDisk {
    let mut disk = SetupDisk::new("NO43SETUP").unwrap();
    for (name, contents) in files {
        disk.file(name, Source::Bytes(contents.clone())).unwrap();
    }
    disk
}

fn dir() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("setup.img");
    (dir, image)
}

#[test]
fn a_disk_for_windows_setup_is_clean_and_reads_back() {
    let (dir, image) = dir();
    let program = dir.path().join("no43-guest.exe");
    fs::write(&program, vec![0x4d; 300_000]).unwrap();
    let files = [
        ("Autounattend.xml", b"<unattend/>".to_vec()),
        ("$WinPEDriver$/viostor/viostor.inf", b"[Version]".to_vec()),
        ("EMPTY", Vec::new()),
        ("a/b/c/Été 漢字 with a name that is longer than thirteen characters.txt", vec![7; 5000]),
        ("README.TXT", vec![1; 512]),
    ];
    let mut expected: BTreeMap<String, Vec<u8>> =
        files.into_iter().map(|(name, contents)| (name.to_owned(), contents)).collect();
    let mut disk = disk(&expected);
    disk.file("no43/no43-guest.exe", Source::Path(program.clone())).unwrap();
    disk.file("no43/piece.bin", Source::Piece { path: program.clone(), at: 100_000, length: 1000 }).unwrap();
    disk.folder("empty folder").unwrap();
    expected.insert("no43/no43-guest.exe".into(), fs::read(&program).unwrap());
    expected.insert("no43/piece.bin".into(), vec![0x4d; 1000]);
    let written = disk.write(&image).unwrap();
    assert_eq!(written.files, 7);
    assert_eq!(written.bytes, fs::metadata(&image).unwrap().len());
    fsck(&image);
    assert_eq!(read_back(&image), expected);
    let listing = tool(Command::new("mdir").args(["-i", &format!("{}@@1M", image.display()), "::"]));
    assert!(listing.contains("Volume in drive : is NO43SETUP"), "{listing}");
    assert!(listing.contains("2020-01-01   0:00  Autounattend.xml"), "{listing}");
    let table = tool(Command::new("sfdisk").arg("-d").arg(&image));
    assert!(table.contains("start=        2048") && table.contains("type=c"), "{table}");
}

#[test]
fn the_same_contents_give_the_same_bytes_in_any_order() {
    let (dir, image) = dir();
    let names = ["b.txt", "a.txt", "c/d.txt"];
    let write = |order: &[usize]| {
        let mut disk = SetupDisk::new("X").unwrap().with_free(0);
        for n in order {
            disk.file(names[*n], Source::Bytes(names[*n].into())).unwrap();
        }
        disk.write(&image).unwrap();
        fs::read(&image).unwrap()
    };
    assert!(write(&[0, 1, 2]) == write(&[2, 1, 0]), "the image depends on the order");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn names_that_cannot_be_are_refused_and_so_are_two_of_a_kind() {
    let mut disk = SetupDisk::new("X").unwrap();
    disk.file("Autounattend.xml", Source::Bytes(vec![])).unwrap();
    let twice = disk.file("AUTOUNATTEND.XML", Source::Bytes(vec![])).unwrap_err();
    assert!(matches!(twice, SetupDiskError::Twice { .. }), "{twice}");
    assert!(matches!(
        disk.file("autounattend.xml/a", Source::Bytes(vec![])),
        Err(SetupDiskError::Twice { .. })
    ));
    assert!(matches!(disk.file("../a", Source::Bytes(vec![])), Err(SetupDiskError::Name { .. })));
    assert!(matches!(disk.file("", Source::Bytes(vec![])), Err(SetupDiskError::Name { .. })));
    assert!(SetupDisk::new("lower").is_err());
}

#[test]
fn a_source_that_is_gone_or_shorter_leaves_nothing_behind() {
    let (dir, image) = dir();
    let source = dir.path().join("source");
    let mut disk = SetupDisk::new("X").unwrap();
    disk.file("a", Source::Path(source.clone())).unwrap();
    assert!(matches!(disk.write(&image), Err(SetupDiskError::Read { .. })));
    fs::write(&source, [0; 100]).unwrap();
    let mut disk = SetupDisk::new("X").unwrap();
    disk.file("a", Source::Piece { path: source, at: 90, length: 20 }).unwrap();
    let error = disk.write(&image).unwrap_err();
    assert!(matches!(error, SetupDiskError::Changed { expected: 20, found: 10, .. }), "{error}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "only the source is left");
}

#[test]
fn many_names_in_one_folder_and_larger_clusters() {
    let (_dir, image) = dir();
    let mut disk = SetupDisk::new("X").unwrap().with_free(200 << 20);
    let mut expected = BTreeMap::new();
    for n in 0..1500 {
        let name = format!("drivers/a long name, number {n}.txt");
        disk.file(&name, Source::Bytes(n.to_string().into())).unwrap();
        expected.insert(name, n.to_string().into_bytes());
    }
    disk.write(&image).unwrap();
    fsck(&image);
    assert_eq!(read_back(&image), expected);
}

/// Names that differ also without case, some short, some long, some foreign.
fn names() -> impl Strategy<Value = Vec<(String, Vec<u8>)>> {
    let part = "[A-Za-z0-9$é漢~ _.-]{0,20}[A-Za-z0-9é]";
    let path = proptest::collection::vec(part, 1..4).prop_map(|parts| parts.join("/"));
    let contents = proptest::collection::vec(any::<u8>(), 0..3000);
    proptest::collection::vec((path, contents), 0..24)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn whatever_goes_in_comes_out(files in names()) {
        let (_dir, image) = dir();
        let mut disk = SetupDisk::new("NO43").unwrap().with_free(0);
        let mut expected = BTreeMap::new();
        for (name, contents) in files {
            // A name that is a folder or there already is refused; what was taken must come out.
            if disk.file(&name, Source::Bytes(contents.clone())).is_ok() {
                expected.insert(names::folded(&name), contents);
            }
        }
        disk.write(&image).unwrap();
        fsck(&image);
        if !expected.is_empty() {
            let found = read_back(&image);
            let found: BTreeMap<_, _> = found.into_iter().map(|(name, c)| (names::folded(&name), c)).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
