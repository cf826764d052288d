//! Another driver for a card that a running Windows has: the set-up disk that it comes from.

use std::fs;
use std::path::Path;

use no43_guest::setup::{Action, DriverChange, SetupPlan, Task};

use super::extra::{DRIVER, DRIVER_LIMIT, DriverIn, installer};
use super::make::LABEL;
use crate::answer::FOLDER;
use crate::driver::{self, Answer, CardIds, Package, Parts, updates};
use crate::recipe::DriverInstall;
use crate::setup_disk::{SetupDisk, Source};

/// A driver that lies on a set-up disk, in a folder of its own.
#[derive(Clone, Debug)]
pub struct DriverOnDisk<'a> {
    /// The folder's name.
    pub name: &'a str,
    /// The package.
    pub driver: &'a DriverIn,
}

/// A card as the running guest has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CardThere {
    /// Address of its video function in the guest, as `0000:01:00.0`.
    pub function: String,
    /// What the guest sees of it.
    pub ids: CardIds,
}

/// The folder of a driver on its disk, as Windows writes it; a plan lies in it.
#[must_use]
pub fn driver_folder(name: &str) -> String {
    format!(r"{FOLDER}\{name}")
}

/// Writes a set-up disk with drivers, and for each the plan that gives it to `cards`. `work` is a folder for what is unpacked.
///
/// # Errors
/// A sentence: a package that does not drive a card, what cannot be read or written.
pub fn write_driver_disk(
    drivers: &[DriverOnDisk<'_>],
    cards: &[CardThere],
    work: &Path,
    to: &Path,
) -> Result<(), String> {
    let mut disk = SetupDisk::new(LABEL).map_err(|error| error.to_string())?;
    for one in drivers {
        let package = Package::read(&one.driver.package.path).map_err(|error| error.to_string())?;
        let plan = change(one, &package, cards)?;
        let unpacked = work.join(one.name);
        let failed = |error: std::io::Error| format!("failed to fill {}: {error}", unpacked.display());
        fs::create_dir_all(&unpacked).map_err(failed)?;
        driver::unpack(&package, parts(one.driver), &unpacked).map_err(|error| error.to_string())?;
        let folder = format!("{FOLDER}/{}", one.name);
        let plan = Source::Bytes(plan.to_json().into_bytes());
        disk.file(&format!("{folder}/plan.json"), plan).map_err(|error| error.to_string())?;
        disk.host_folder(&format!("{folder}/{DRIVER}"), &unpacked).map_err(|error| error.to_string())?;
    }
    disk.write(to).map_err(|error| error.to_string())?;
    fs::remove_dir_all(work).map_err(|error| format!("failed to remove {}: {error}", work.display()))
}

pub(super) fn parts(driver: &DriverIn) -> Parts<'_> {
    match driver.install {
        DriverInstall::WithCard => Parts::Installer(&driver.components),
        _ => Parts::Staged,
    }
}

/// Windows is first allowed to change the driver at all.
fn change(one: &DriverOnDisk<'_>, package: &Package, cards: &[CardThere]) -> Result<SetupPlan, String> {
    let mut actions = vec![updates::lift()];
    if one.driver.install == DriverInstall::WithCard {
        actions.push(installer(one.name, &one.driver.components));
    } else {
        for card in cards {
            let inf = match package.drives(card.ids, None) {
                Answer::Yes(fit) => fit.inf,
                Answer::No(why) => {
                    return Err(format!("the package '{}' does not drive {}: {why}", one.name, card.ids.id));
                }
                Answer::Unlisted => return Err(format!("the package '{}' lists no cards", one.name)),
            };
            let functions = vec![card.function.clone()];
            let task = Task::CardDriver { functions, change: DriverChange::Use(format!("{DRIVER}/{inf}")) };
            let name = format!("driver {} for {}", one.name, card.function);
            actions.push(Action { limit_seconds: DRIVER_LIMIT, ..Action::new(name, task) });
        }
    }
    Ok(SetupPlan { seal: false, ..SetupPlan::new(format!("driver/{}", one.name), actions) })
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::driver::Version;
    use crate::windows::FileFound;

    const INF: &str = "[Version]\nSignature=\"$Windows NT$\"\nClass=Display\nClassGUID={4D36E968-E325-11CE-BFC1-08002BE10318}\n\
        Provider=\"NVIDIA\"\nDriverVer=03/17/2021,27.21.14.6611\n[Manufacturer]\n\"N\"=NV,NTamd64\n[NV.NTamd64]\n\
        \"RTX 3070\"=Section001,PCI\\VEN_10DE&DEV_2484\n[Section001]\n";

    /// A package that was unpacked into a folder, with or without its installer.
    fn driver(package: &Path, install: DriverInstall) -> DriverIn {
        let write = |name: &str, text: &str| {
            let file = package.join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        };
        write("Display.Driver/nv_dispi.inf", INF);
        if install == DriverInstall::WithCard {
            write("setup.exe", "MZ");
            write("setup.cfg", "<setup></setup>");
            write("NVI2/nvi2.dll", "MZ");
        }
        let package = FileFound { path: package.to_owned(), sha256: String::new() };
        DriverIn { package, version: "466.11".parse::<Version>().ok(), install, components: Vec::new() }
    }

    fn card(id: &str) -> CardThere {
        let ids = CardIds { id: id.parse().unwrap(), subsystem: None };
        CardThere { function: "0000:01:00.0".into(), ids }
    }

    fn written(install: DriverInstall, id: &str) -> Result<String, String> {
        let dir = tempfile::tempdir().unwrap();
        let driver = driver(&dir.path().join("package"), install);
        let (work, to) = (dir.path().join("work"), dir.path().join("disk.img"));
        let one = DriverOnDisk { name: "old", driver: &driver };
        write_driver_disk(&[one], &[card(id)], &work, &to)?;
        assert!(!work.exists(), "what was unpacked is on the disk");
        let drive = format!("{}@@1M", to.display());
        let mtools = |words: &[&str]| {
            let out = Command::new(words[0]).args(["-i", &drive]).args(&words[1..]).output().unwrap();
            assert!(out.status.success(), "{out:?}");
            String::from_utf8(out.stdout).unwrap()
        };
        let files = mtools(&["mdir", "-b", "-s", "::/"]);
        let plan = mtools(&["mtype", "::/no43/old/plan.json"]);
        let plan = SetupPlan::parse(plan.as_bytes()).unwrap();
        let tasks: Vec<String> =
            plan.actions.iter().skip(1).map(|action| serde_json::to_string(&action.task).unwrap()).collect();
        Ok(files + &tasks.join("\n"))
    }

    #[test]
    fn a_driver_lies_on_its_disk_with_the_plan_that_gives_it_to_the_card() {
        insta::assert_snapshot!(written(DriverInstall::Staged, "10de:2484").unwrap(), @r#"
        ::/no43/
        ::/no43/old/
        ::/no43/old/driver/
        ::/no43/old/plan.json
        ::/no43/old/driver/Display.Driver/
        ::/no43/old/driver/Display.Driver/nv_dispi.inf
        {"do":"card-driver","functions":["0000:01:00.0"],"change":{"use":"driver/Display.Driver/nv_dispi.inf"}}
        "#);
        insta::assert_snapshot!(written(DriverInstall::WithCard, "10de:2484").unwrap(), @r#"
        ::/no43/
        ::/no43/old/
        ::/no43/old/driver/
        ::/no43/old/plan.json
        ::/no43/old/driver/Display.Driver/
        ::/no43/old/driver/NVI2/
        ::/no43/old/driver/setup.cfg
        ::/no43/old/driver/setup.exe
        ::/no43/old/driver/Display.Driver/nv_dispi.inf
        ::/no43/old/driver/NVI2/nvi2.dll
        {"do":"exe","program":"driver/setup.exe","arguments":["-s","-noreboot","-noeula","-nofinish","-clean","Display.Driver"],"codes":{"done":[0],"restart":[1,3010,1641],"unchanged":[]}}
        "#);
        let why = written(DriverInstall::Staged, "10de:1b80").unwrap_err();
        assert!(why.starts_with("the package 'old' does not drive 10de:1b80: "), "{why}");
    }
}
