//! Packages made here, in NVIDIA's layout: answers for cards and builds, contradictions, and what is refused.

use std::fs;
use std::path::{Path, PathBuf};

use insta::assert_snapshot;
use proptest::prelude::*;
use sevenz_rust2::{ArchiveEntry, ArchiveWriter};

use super::*;

/// A desktop INF as NVIDIA lays it out: two sections by build, ids with and without a board.
const DESKTOP: &str = r#"
[Version]
Signature   = "$Windows NT$"
Provider    = %NVIDIA%
ClassGUID   = {4D36E968-E325-11CE-BFC1-08002BE10318}
Class       = Display
DriverVer   = 03/17/2021, 27.21.14.6611
CatalogFile = NV_DISP.CAT

[Manufacturer]
%NVIDIA_A% = NVIDIA_Devices,NTamd64.10.0...14393,NTamd64.10.0...17098

[NVIDIA_Devices.NTamd64.10.0...14393]
%NVIDIA_DEV.1B80% = Section001, PCI\VEN_10DE&DEV_1B80
%NVIDIA_DEV.2484% = Section002, PCI\VEN_10DE&DEV_2484

[NVIDIA_Devices.NTamd64.10.0...17098]
%NVIDIA_DEV.2484% = Section003, PCI\VEN_10DE&DEV_2484
%NVIDIA_DEV.2520.1% = Section004, PCI\VEN_10DE&DEV_2520&SUBSYS_8A131462
%NVIDIA_DEV.2520.2% = Section004, PCI\VEN_10DE&DEV_2520&SUBSYS_14681043

[nv_commonBase_AddReg]
HKR,,DCHUVen,0x00010001,0x10DE

[Strings]
NVIDIA = "NVIDIA"
NVIDIA_A = "NVIDIA"
NVIDIA_DEV.1B80 = "NVIDIA GeForce GTX 1080"
NVIDIA_DEV.2484 = "NVIDIA GeForce RTX 3070"
NVIDIA_DEV.2520.1 = "NVIDIA GeForce RTX 3060 Laptop GPU"
NVIDIA_DEV.2520.2 = "NVIDIA GeForce RTX 3060 Laptop GPU"
"#;

const SETUP: &str = r#"<?xml version="1.0"?><setup title="NVIDIA Graphics Driver 466.11"></setup>"#;

/// A program in front, as a self-extractor has one; the signature stands in it as a constant, too.
fn stub() -> Vec<u8> {
    let mut stub = b"MZ".to_vec();
    stub.resize(70_000, 0x90);
    stub[65_530..65_536].copy_from_slice(b"7z\xbc\xaf\x27\x1c");
    stub
}

fn package(dir: &Path, name: &str, files: &[(&str, &[u8])]) -> PathBuf {
    let path = dir.join(name);
    let mut writer = ArchiveWriter::new(std::io::Cursor::new(Vec::new())).unwrap();
    for (name, bytes) in files {
        writer.push_archive_entry(ArchiveEntry::new_file(name), Some(*bytes)).unwrap();
    }
    let archive = writer.finish().unwrap().into_inner();
    fs::write(&path, [stub(), archive].concat()).unwrap();
    path
}

fn ordinary(dir: &Path) -> Package {
    let utf16: Vec<u8> =
        std::iter::once(0xfeff).chain(DESKTOP.encode_utf16()).flat_map(u16::to_le_bytes).collect();
    let files: &[(&str, &[u8])] = &[
        ("setup.cfg", SETUP.as_bytes()),
        ("Display.Driver/nv_dispi.inf", &utf16),
        ("Display.Driver/nvlddmkm.sy_", &[7; 300_000]),
        ("HDAudio/nvhda.inf", b"[Version]\nClass=MEDIA\n"),
    ];
    let path = package(dir, "466.11-desktop-win10-64bit-international-dch-whql.exe", files);
    Package::read(&path).unwrap()
}

fn ids(id: &str) -> CardIds {
    CardIds { id: id.parse().unwrap(), subsystem: None }
}

fn answer(package: &Package, card: CardIds, build: u32) -> String {
    match package.drives(card, Some(build)) {
        Answer::Yes(fit) => {
            format!("yes: {} by {} of {}, closest {}", fit.name, fit.install, fit.section, fit.closest)
        }
        Answer::No(reason) => format!("no: {reason}"),
        Answer::Unlisted => "not listed".to_owned(),
    }
}

#[test]
fn a_package_says_what_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let package = ordinary(dir.path());
    assert_eq!(package.version.unwrap().to_string(), "466.11");
    assert_eq!((package.files, package.dch, package.form), (4, true, Some(Form::Mixed)));
    assert_eq!(package.infs.len(), 1);
    assert_eq!((package.infs[0].encoding, package.infs[0].date.as_str()), (Encoding::Utf16Le, "03/17/2021"));
    assert_eq!(package.devices().len(), 4);
    assert_eq!(package.contradictions, [""; 0]);
    assert_eq!(package.works_in_a_vm(), Some(true));
}

#[test]
fn a_card_and_a_build_get_an_answer_with_the_nearest_reason() {
    let dir = tempfile::tempdir().unwrap();
    let package = ordinary(dir.path());
    assert_snapshot!(answer(&package, ids("10de:2484"), 19045), @"yes: NVIDIA GeForce RTX 3070 by Section003 of NVIDIA_Devices.NTamd64.10.0...17098, closest true");
    assert_snapshot!(answer(&package, ids("10de:2484"), 15063), @"yes: NVIDIA GeForce RTX 3070 by Section002 of NVIDIA_Devices.NTamd64.10.0...14393, closest true");
    assert_snapshot!(answer(&package, ids("10de:1b80"), 19045), @"yes: NVIDIA GeForce GTX 1080 by Section001 of NVIDIA_Devices.NTamd64.10.0...14393, closest false");
    assert_snapshot!(answer(&package, ids("10de:2484"), 10240), @"no: it drives this card from Windows build 14393 on, and the guest has build 10240");
    assert_snapshot!(answer(&package, ids("10de:2520"), 19045), @"no: it drives this chip only on 2 boards of notebooks and complete computers (1043:1468, 1462:8a13)");
    let board = CardIds { subsystem: Some(Subsystem { vendor: 0x1462, device: 0x8a13 }), ..ids("10de:2520") };
    assert_snapshot!(answer(&package, board, 19045), @"yes: NVIDIA GeForce RTX 3060 Laptop GPU by Section004 of NVIDIA_Devices.NTamd64.10.0...17098, closest true");
    assert_snapshot!(answer(&package, ids("10de:2684"), 19045), @"no: Ada chips are driven from branch 522 on, and this is older");
    assert_snapshot!(answer(&package, ids("10de:1f82"), 19045), @"no: no INF in it lists this card; the nearest id is 10de:1b80 (NVIDIA GeForce GTX 1080)");
    assert_snapshot!(answer(&package, ids("1002:73bf"), 19045), @"no: the package is for cards of maker 10de");
    assert!(matches!(package.drives(ids("10de:2484"), None), Answer::Yes(fit) if fit.closest));
}

#[test]
fn an_unpacked_folder_is_the_same_package() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("Display.Driver")).unwrap();
    fs::write(dir.path().join("Display.Driver/nv_dispi.inf"), DESKTOP).unwrap();
    fs::write(dir.path().join("setup.cfg"), SETUP).unwrap();
    let package = Package::read(dir.path()).unwrap();
    assert_eq!((package.version.unwrap().to_string().as_str(), package.files), ("466.11", 2));
    assert!(matches!(package.drives(ids("10de:2484"), Some(19045)), Answer::Yes(_)));
}

#[test]
fn contradictions_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let older = DESKTOP.replace("27.21.14.6611", "27.21.14.6172").replace("DCHUVen", "Other");
    let newer = DESKTOP.replace("DCHUVen", "Other");
    let setup = SETUP.replace("466.11", "465.89");
    let files: &[(&str, &[u8])] = &[
        ("Display.Driver/nv_dispi.inf", newer.as_bytes()),
        ("Display.Driver/nvdmi.inf", older.as_bytes()),
        ("setup.cfg", setup.as_bytes()),
    ];
    let package = Package::read(&package(dir.path(), "470.05-win10-dch.exe", files)).unwrap();
    assert_snapshot!(package.contradictions.join("\n"), @"
    Display.Driver/nvdmi.inf is of version 461.72, others are of 466.11
    setup.cfg says 465.89, the INF files say 466.11
    the file is named 470.05, and holds 466.11
    the file is named DCH, and no INF in it is of that kind
    ");
}

#[test]
fn a_linux_package_says_its_version() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("NVIDIA-Linux-x86_64-595.45.04.run");
    fs::write(&path, "#!/bin/sh\nversion_string=595.45.04\n").unwrap();
    let package = Package::read(&path).unwrap();
    assert_eq!((package.system, package.contradictions.len()), (System::Linux, 0));
    assert_eq!(package.drives(ids("10de:2484"), None), Answer::Unlisted);
    assert_snapshot!(answer(&package, ids("10de:1b80"), 0), @"no: Pascal chips are driven up to branch 582, and this is newer");
}

#[test]
fn a_package_of_debian_s_says_its_version() {
    let dir = tempfile::tempdir().unwrap();
    let of = |file: &str, control: &str| {
        let path = dir.path().join(file);
        fs::write(&path, deb::tests::package(control)).unwrap();
        Package::read(&path)
            .map_err(|error| error.to_string().replace(&format!("{}/", dir.path().display()), ""))
    };
    let file = "nvidia-driver_535.216.01-1~deb12u1_amd64.deb";
    let package = of(file, "Package: nvidia-driver\nVersion: 535.216.01-1~deb12u1\n").unwrap();
    assert_eq!((package.system, package.debian.as_deref()), (System::Linux, Some("nvidia-driver")));
    assert_eq!(
        (package.version.unwrap().to_string(), package.contradictions.len()),
        ("535.216.01".into(), 0)
    );
    assert_snapshot!(answer(&package, ids("10de:2b85"), 0), @"no: Blackwell chips are driven from branch 572 on, and this is older");
    let other = of(file, "Package: nvidia-driver\nVersion: 470.256.02-2\n").unwrap();
    assert_snapshot!(other.contradictions.join("\n"), @"the file is named 535.216.01, and holds 470.256.02");
    assert_snapshot!(of("bash.deb", "Package: bash\nVersion: 5.2\n").unwrap_err(), @"
    bash.deb is no driver package, but the Debian package 'bash' 5.2, which is no driver of NVIDIA's
        fix   name NVIDIA's .exe for Windows as it was downloaded, a folder into which it was unpacked, or a .run or .deb file for Linux
    ");
}

/// Everything that a package of NVIDIA's has, by name.
fn whole(dir: &Path, cat: &[u8]) -> PathBuf {
    let cfg = b"<setup>\n<file name=\"${EulaHtmlFile}\"/>\n<file name=\"${FunctionalConsentFile}\"/>\n<keep/>\n</setup>\n";
    let files: &[(&str, &[u8])] = &[
        ("setup.exe", b"MZ"),
        ("setup.cfg", cfg),
        ("EULA.txt", b"agree"),
        ("ListDevices.txt", b"DEV_2484"),
        ("NVI2/NVI2.dll", b"installer"),
        ("Display.Driver/nv_dispi.inf", DESKTOP.as_bytes()),
        ("Display.Driver/NV_DISP.CAT", cat),
        ("Display.Driver/nvlddmkm.sy_", &[7; 300_000]),
        ("HDAudio/nvhda.inf", b"[Version]\nClass=MEDIA\n"),
        ("GFExperience/gfe.exe", &[1; 100_000]),
    ];
    package(dir, "466.11-desktop-win10-64bit-international-dch-whql.exe", files)
}

const SIGNED: &[u8] = b"0\x82 Microsoft Windows Hardware Compatibility PCA";

#[test]
fn only_what_is_needed_is_unpacked() {
    let dir = tempfile::tempdir().unwrap();
    let package = Package::read(&whole(dir.path(), SIGNED)).unwrap();
    let unpacked = |parts: Parts<'_>, name: &str| {
        let to = dir.path().join(name);
        fs::create_dir(&to).unwrap();
        let result = unpack(&package, parts, &to).map_err(|error| error.to_string());
        result.map(|unpacked| (unpacked, archive::of_folder(&to).unwrap().files, to))
    };
    let (staged, files, _) = unpacked(Parts::Staged, "staged").unwrap();
    assert_eq!((staged.files, files, &staged.infs[..]), (3, 3, &["Display.Driver".to_owned()][..]));
    let components = ["HDAudio".to_owned()];
    let (_, files, to) = unpacked(Parts::Installer(&components), "installer").unwrap();
    assert_eq!(files, 9);
    assert!(!to.join("GFExperience").exists());
    assert_eq!(fs::read_to_string(to.join("setup.cfg")).unwrap(), "<setup>\n<keep/>\n</setup>\n");
    let missing = unpacked(Parts::Installer(&["PhysX".to_owned()]), "missing").unwrap_err();
    assert!(missing.contains("has no component 'PhysX'"), "{missing}");
    // the same from an unpacked folder
    let folder = Package::read(&to).unwrap();
    fs::create_dir(dir.path().join("again")).unwrap();
    assert_eq!(unpack(&folder, Parts::Staged, &dir.path().join("again")).unwrap().files, 3);
}

#[test]
fn the_lock_keeps_what_a_package_drives_and_who_signed_it() {
    let dir = tempfile::tempdir().unwrap();
    let package = Package::read(&whole(dir.path(), SIGNED)).unwrap();
    let facts = DriverFacts::of(&package);
    assert_eq!((facts.signer, facts.models.len()), (Some(Signer::Microsoft), 2));
    let text = toml::to_string(&facts).unwrap();
    let again: DriverFacts = toml::from_str(&text).unwrap();
    assert_eq!(again, facts);
    let again = again.package(&package.path);
    for (card, build) in
        [("10de:2484", 19045), ("10de:2484", 10240), ("10de:2520", 19045), ("10de:1f82", 19045)]
    {
        let drives = |package: &Package| match package.drives(ids(card), Some(build)) {
            Answer::Yes(fit) => format!("{} {}", fit.section, fit.closest),
            // names come from the PCI id list then
            Answer::No(reason) => format!("{:?}", std::mem::discriminant(&reason)),
            Answer::Unlisted => String::new(),
        };
        assert_eq!(drives(&again), drives(&package), "{card} {build}");
    }
    let other = tempfile::tempdir().unwrap();
    let unsigned = Package::read(&whole(other.path(), b"somebody")).unwrap();
    assert_eq!(unsigned.signer, Some(Signer::Other));
    assert_eq!(ordinary(dir.path()).signer, Some(Signer::Nobody));
}

fn refused(path: &Path) -> String {
    let dir = path.parent().unwrap().display().to_string();
    Package::read(path).unwrap_err().to_string().replace(&dir, "…")
}

#[test]
fn what_is_no_package_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        refused(&path)
    };
    assert_snapshot!(file("page.exe", b"<!DOCTYPE html>"), @"
    …/page.exe is no driver package, but a web page: the download was not the package
        fix   name NVIDIA's .exe for Windows as it was downloaded, a folder into which it was unpacked, or a .run or .deb file for Linux
    ");
    assert!(file("a.exe", &stub()).contains("no 7z self-extractor"));
    assert!(file("empty.exe", b"").contains("an empty file"));
    assert!(file("a.zip", b"PK\x03\x04").contains("a ZIP archive"));
    let other = package(dir.path(), "other.exe", &[("a/net.inf", b"[Version]\nClass=Net\n")]);
    assert_snapshot!(refused(&other), @"…/other.exe holds no display driver: none of its 1 INF files is of class Display");
    assert!(refused(&dir.path().join("nothing.exe")).contains("failed to read …/nothing.exe"));
}

#[test]
fn an_archive_made_to_harm_is_refused_by_its_directory() {
    let dir = tempfile::tempdir().unwrap();
    for (name, why) in
        [("../../etc/x.inf", "leads out"), ("C:\\x.inf", "is absolute"), ("/x.inf", "is absolute")]
    {
        let path = package(dir.path(), "harm.exe", &[(name, b"x")]);
        assert!(refused(&path).contains(why), "{name}: {}", refused(&path));
    }
    // a file of zeros packs to nothing; what counts is what it unpacks to
    let bomb = vec![0; usize::try_from(archive::MOST_TEXT).unwrap() + 1];
    let path = package(dir.path(), "bomb.exe", &[("bomb.inf", &bomb)]);
    assert!(refused(&path).contains("more than 33554432"), "{}", refused(&path));
}

#[test]
fn a_package_cut_short_is_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let path = ordinary(dir.path()).path;
    let whole = fs::read(&path).unwrap();
    for end in [70_010, 70_040, whole.len() - 200, whole.len() - 1] {
        fs::write(&path, &whole[..end]).unwrap();
        assert!(refused(&path).contains("is damaged"), "{end}: {}", refused(&path));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn mutated_packages_end_in_an_answer_or_an_error(
        at in proptest::collection::vec((0_usize..4000, any::<u8>()), 1..20),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("466.11.exe");
        let files: &[(&str, &[u8])] = &[("Display.Driver/nv_dispi.inf", DESKTOP.as_bytes())];
        let mut bytes = fs::read(package(dir.path(), "whole.exe", files)).unwrap().split_off(70_000);
        for (at, value) in at {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        fs::write(&path, bytes).unwrap();
        let _ = Package::read(&path);
    }

}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn mutated_infs_are_read_at_once(
        at in proptest::collection::vec((0_usize..8000, any::<u8>()), 0..40),
        wide: bool,
        cut in 0_usize..8000,
    ) {
        let utf16 = || std::iter::once(0xfeff).chain(DESKTOP.encode_utf16()).flat_map(u16::to_le_bytes);
        let mut bytes: Vec<u8> = if wide { utf16().collect() } else { DESKTOP.as_bytes().to_vec() };
        for (at, value) in at {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        bytes.truncate(cut.max(1));
        // this thread's own time: on a busy machine a second of the clock says nothing
        let time = || {
            let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
            now.tv_sec * 1_000_000_000 + now.tv_nsec
        };
        let begun = time();
        let _ = display::read("x.inf", &bytes);
        prop_assert!(time() - begun < 1_000_000_000, "it took a second");
    }
}

#[test]
fn infs_made_to_harm_end_soon_and_with_what_is_readable() {
    let begun = std::time::Instant::now();
    let read = |text: &[u8]| display::read("x.inf", text);
    // a manufacturer that names itself, and strings that name each other
    let circle =
        b"[Version]\nClass=Display\n[Manufacturer]\n%a%=Manufacturer,NTamd64\n[Strings]\na=%b%\nb=%a%\n";
    assert!(read(circle).is_some_and(|inf| inf.models.iter().all(|models| models.devices.is_empty())));
    // one line of 10 MB, one of ten million continuations, sections that are named and not there
    let long = format!("[Version]\nClass=Display\n[Manufacturer]\nA=B,{}\n", "NTamd64,".repeat(1_200_000));
    assert!(read(long.as_bytes()).is_some_and(|inf| inf.models.is_empty()));
    let continued = format!("[Version]\nClass=Display\n[Manufacturer]\nA=B\\\n{}", "\\\n".repeat(1_000_000));
    assert!(read(continued.as_bytes()).is_some());
    assert!(read(b"[Version]\nClass=Display\n[Manufacturer]\nA=Gone,NTamd64\n").is_some());
    // thousands of manufacturers that all name the same thousands of models, none of them a card
    let (many, models) = ("m=B,NTamd64\n".repeat(20_000), "d=i,USB\\X\n".repeat(20_000));
    let squared = format!("[Version]\nClass=Display\n[Manufacturer]\n{many}[B.NTamd64]\n{models}");
    assert!(read(squared.as_bytes()).is_some_and(|inf| inf.models.len() == 1));
    // a file that changes its encoding in the middle, as appending editors leave it
    let mut mixed = DESKTOP.as_bytes().to_vec();
    mixed.extend("\n[More]\nx=é\n".encode_utf16().flat_map(u16::to_le_bytes));
    mixed.extend(b"\nname=\xe9\xff\n");
    assert!(read(&mixed).is_some_and(|inf| inf.models.len() == 2 && inf.version.is_some()));
    assert!(begun.elapsed().as_secs() < 20, "it took {:?}", begun.elapsed());
}
