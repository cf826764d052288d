//! Real INF files, which are not in the repository: `NO43_INF_CORPUS` names a folder of them, and what is known of NVIDIA's branches is
//! held against what is read. Without it, nothing is asked, and that is said.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{Answer, CardIds, FIRST_FOR_VMS, Package, Version};

const FOLDER: &str = "NO43_INF_CORPUS";
/// For each file; NVIDIA's largest has 2 MB.
const LIMIT: Duration = Duration::from_secs(1);
/// The first branch that surely lists every RTX 3070, and the card.
const LISTS_RTX_3070: u16 = 470;
const RTX_3070: &str = "10de:2484";
/// A Windows 10 that all branches from 355 on know.
const BUILD: u32 = 19045;

/// Every `.inf` below a folder, at most four levels deep.
fn infs(folder: &Path, depth: u8, found: &mut Vec<PathBuf>) {
    for path in fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()) {
        if path.is_dir() && depth < 4 {
            infs(&path, depth + 1, found);
        } else if path.extension().is_some_and(|own| own.eq_ignore_ascii_case("inf")) {
            found.push(path);
        }
    }
}

/// What is wrong with a driver's answer; `None` if it is as NVIDIA's branches are known to be.
fn judged(version: Version, package: &Package) -> Option<String> {
    let works = package.works_in_a_vm();
    if works != Some(version >= FIRST_FOR_VMS) {
        return Some(format!("{version}: works in a VM: {works:?}"));
    }
    // notebooks' and makers' INF files list boards only; the desktop's is called so in every branch
    let desktop = |path: &str| path.to_ascii_lowercase().rsplit('/').next() == Some("nv_dispi.inf");
    if version.branch < LISTS_RTX_3070 || !package.infs.iter().any(|inf| desktop(&inf.path)) {
        return None;
    }
    let card = CardIds { id: RTX_3070.parse().ok()?, subsystem: None };
    match package.drives(card, Some(BUILD)) {
        Answer::Yes(_) => None,
        other => Some(format!("{version}: an RTX 3070: {other:?}")),
    }
}

/// Reads every file on its own, then judges those of one version as one package.
fn check(folder: &Path) -> (usize, Vec<String>) {
    let (mut paths, mut wrong) = (Vec::new(), Vec::new());
    infs(folder, 0, &mut paths);
    let mut packages: BTreeMap<String, (Version, Package)> = BTreeMap::new();
    for path in &paths {
        let bytes = fs::read(path).unwrap_or_default();
        let name = path.strip_prefix(folder).unwrap_or(path).display().to_string();
        let begun = Instant::now();
        let inf = super::display::read(&name, &bytes);
        if begun.elapsed() > LIMIT {
            wrong.push(format!("{name}: took {:?}", begun.elapsed()));
        }
        let Some((inf, version)) = inf.and_then(|inf| inf.version.map(|version| (inf, version))) else {
            continue;
        };
        let empty = || {
            (version, Package { version: Some(version), ..Package::empty(folder, super::System::Windows) })
        };
        packages.entry(version.to_string()).or_insert_with(empty).1.infs.push(inf);
    }
    wrong.extend(packages.values().filter_map(|(version, package)| judged(*version, package)));
    (paths.len(), wrong)
}

#[test]
fn real_inf_files_say_what_is_known_of_their_branches() {
    let Some(folder) = std::env::var_os(FOLDER) else {
        eprintln!("skipped: {FOLDER} names no folder with INF files of real packages");
        return;
    };
    let (files, wrong) = check(Path::new(&folder));
    eprintln!("{files} INF files of {}", folder.display());
    assert!(files > 0, "{} holds no INF file", folder.display());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The judge itself, on files made here: an old branch, a new one, and a new one that lacks the card.
#[test]
fn the_judge_of_real_files_knows_old_new_and_wrong() {
    let inf = |version: &str, id: &str| {
        format!(
            "[Version]\nClass=Display\nProvider=NVIDIA\nDriverVer=01/01/2020,{version}\n[Manufacturer]\nN=M,NTamd64.10.0\n\
             [M.NTamd64.10.0]\nx=s,PCI\\VEN_10DE&DEV_{id}\n"
        )
    };
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: String| {
        let path = folder.path().join(name).join("nv_dispi.inf");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write("old", inf("21.21.13.5582", "1b80"));
    write("new", inf("27.21.14.7141", "2484"));
    assert_eq!(check(folder.path()), (2, Vec::new()));
    write("wrong", inf("30.0.14.7212", "1b80"));
    let (files, wrong) = check(folder.path());
    assert_eq!((files, wrong.len()), (3, 1));
    assert!(wrong[0].starts_with("472.12: an RTX 3070: No("), "{wrong:?}");
}
