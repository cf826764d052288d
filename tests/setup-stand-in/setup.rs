//! The first stage: from the medium to a target disk that boots, and the first restart.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::answer::{self, WinPe};
use crate::disk;
use crate::machine::{self, FAT, Options, show};
use crate::medium;

/// The log that Setup keeps in memory, in the form of Windows' own, and later on the target.
#[derive(Default)]
pub(crate) struct Log {
    lines: Vec<String>,
    /// The guest program reads it as it grows.
    is_watched: bool,
}

/// Where it lies in the memory of Windows PE.
const LOG: &str = "/x/Windows/Panther/setupact.log";

impl Log {
    pub(crate) fn add(&mut self, text: impl Into<String>) {
        self.line("Info", &text.into());
    }

    fn line(&mut self, level: &str, text: &str) {
        show(text);
        // no clock is asked: the time is only there for the form
        self.lines.push(format!("2026-11-22 20:00:{:02}, {level:<20} IBS    {text}", self.lines.len() % 60));
        let _ = fs::create_dir_all("/x/Windows/Panther");
        let _ = fs::write(LOG, self.lines.join("\r\n") + "\r\n");
    }
}

/// Devices need a moment after their drivers.
const DEVICES: Duration = Duration::from_secs(20);
const MEDIUM: &str = "/medium";
const C: &str = "/c";

pub(crate) fn run(options: &Options) -> ! {
    let mut log = Log::default();
    log.add("Stand-in for Windows Setup (this is not Windows)");
    match install(options, &mut log) {
        Ok(()) => machine::end(true),
        Err(why) => {
            log.line("Error", &why);
            log.add("Setup waits for an answer.");
            if !options.is("mute") && !options.is("no-answer") && !log.is_watched {
                machine::tell_failure(r"X:\Windows\Panther\setupact.log", &log.lines);
            }
            machine::stand_still()
        }
    }
}

fn install(options: &Options, log: &mut Log) -> Result<(), String> {
    if !machine::wait_for("sr0", DEVICES)
        || !machine::mount_as("/dev/sr0", MEDIUM, &[("udf", ""), ("iso9660", "")], true)
    {
        return Err("the medium is gone".to_owned());
    }
    machine::wait_for("sda", DEVICES);
    std::thread::sleep(Duration::from_millis(500)); // its partition comes after it
    if options.is("no-answer") {
        return Err("Where do you want to go? (no unattend file was found)".to_owned());
    }
    let (answer_disk, file) = find_answer_file(log)?;
    let text =
        fs::read_to_string(&file).map_err(|error| format!("unattend file could not be parsed: {error}"))?;
    let text = if options.is("bad-answer") { text.replace("</settings>", "") } else { text };
    let root = answer::read(&text)?;
    let asked = answer::windows_pe(&root)?;
    answer::later(&root)?;
    run_commands(&asked, options, log);
    check_medium(&asked, options, log)?;
    load_drivers(&answer_disk, options, log)?;
    let disk = target(&asked, log)?;
    log.add(format!("partitioning {disk}"));
    disk::partition_disk(&disk, &asked.partitions)?;
    if options.is("hang") {
        machine::stand_still();
    }
    copy(&disk, &asked, &text, options, log)
}

/// In the documented order, as far as it concerns Windows PE: removable writable media, removable read-only ones, `\sources`
/// of the medium. The registry and %WINDIR% come first and are empty here.
fn find_answer_file(log: &mut Log) -> Result<(PathBuf, PathBuf), String> {
    log.add("looking for an unattend file: registry: none; %WINDIR%\\Panther: none");
    let removable = disk::disks().into_iter().filter(|disk| disk::is_removable(disk));
    for (n, name) in removable.flat_map(|disk| [disk::partition(&disk, 1), disk]).enumerate() {
        let at = format!("/media/{n}");
        if Path::new("/dev").join(&name).exists()
            && machine::mount_as(&format!("/dev/{name}"), &at, FAT, false)
        {
            log.add(format!("removable disk {name}"));
            if let Some(file) = file_of(Path::new(&at), "autounattend.xml") {
                log.add(format!("using unattend file {}", file.display()));
                return Ok((PathBuf::from(at), file));
            }
        }
    }
    for folder in ["", "sources"] {
        let folder = Path::new(MEDIUM).join(folder);
        if let Some(file) = file_of(&folder, "autounattend.xml") {
            log.add(format!("using unattend file {}", file.display()));
            return Ok((PathBuf::from(MEDIUM), file));
        }
    }
    Err("no unattend file was found".to_owned())
}

/// Names without regard to case, as Windows has them.
fn file_of(folder: &Path, name: &str) -> Option<PathBuf> {
    let entries = fs::read_dir(folder).ok()?.flatten();
    entries
        .map(|entry| entry.path())
        .find(|path| path.file_name().is_some_and(|own| own.eq_ignore_ascii_case(name)))
}

/// Of the commands that run first the stand-in knows one: the real guest program that watches Setup's log.
fn run_commands(asked: &WinPe, options: &Options, log: &mut Log) {
    for command in &asked.commands {
        let known = command.contains(r"\no43\no43-guest.exe") && command.ends_with(" watch-setup");
        if !known || options.is("mute") {
            log.add(format!("not run by the stand-in: {command}"));
            continue;
        }
        let watcher = Command::new("/bin/no43-guest").args(["watch-setup", "--log", LOG]).spawn();
        log.is_watched = watcher.is_ok();
        log.add(format!("running {command}"));
    }
}

fn check_medium(asked: &WinPe, options: &Options, log: &mut Log) -> Result<(), String> {
    let medium = Path::new(MEDIUM);
    let mut languages = medium::languages(medium)?;
    if options.is("no-language") {
        languages = vec!["xx-XX".to_owned()];
    }
    if !languages.iter().any(|language| language.eq_ignore_ascii_case(&asked.setup_language)) {
        return Err(format!(
            "language {} is not available, only {}",
            asked.setup_language,
            languages.join(", ")
        ));
    }
    let mut images = medium::images(medium)?;
    if options.is("no-edition") {
        images.clear();
    }
    let (key, value) = &asked.image;
    let fits = |(index, name): &&(String, String)| match key.as_str() {
        "/IMAGE/INDEX" => index == value,
        "/IMAGE/NAME" => name == value,
        _ => false,
    };
    let image = images.iter().find(fits).ok_or_else(|| format!("image index or name '{value}' not found"))?;
    log.add(format!("image {}: {}", image.0, image.1));
    Ok(())
}

/// Setup loads what is below `$WinPEDriver$`. The stand-in cannot run Windows' drivers: it reads the `.inf` files, and where
/// one is for QEMU's virtio disk it loads Linux' own driver, which it refuses to do otherwise.
fn load_drivers(answer_disk: &Path, options: &Options, log: &mut Log) -> Result<(), String> {
    let Some(folder) = file_of(answer_disk, "$WinPEDriver$") else {
        log.add("no $WinPEDriver$ folder");
        return Ok(());
    };
    let mut folders = vec![folder];
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|own| own.eq_ignore_ascii_case("inf")) {
                let text = inf_text(&fs::read(&path).unwrap_or_default()).to_uppercase();
                log.add(format!("driver {}", path.display()));
                let fits = ["DEV_1001", "DEV_1042"].iter().any(|id| text.contains(&format!("VEN_1AF4&{id}")));
                if fits && text.contains("NTAMD64") && !options.is("no-disk") {
                    machine::load_modules("virtio-disk");
                    machine::wait_for("vda", Duration::from_secs(5));
                }
            }
        }
    }
    Ok(())
}

/// An `.inf` is UTF-16 with a mark, or single bytes.
fn inf_text(bytes: &[u8]) -> String {
    match bytes.strip_prefix(&[0xff, 0xfe]) {
        Some(wide) => String::from_utf16_lossy(
            &wide.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect::<Vec<_>>(),
        ),
        None => String::from_utf8_lossy(bytes).into_owned(),
    }
}

fn target(asked: &WinPe, log: &mut Log) -> Result<String, String> {
    let disks = disk::disks();
    log.add(format!("disks: {}", disks.join(" ")));
    let disk = disks.get(asked.disk as usize).filter(|disk| !disk::is_removable(disk));
    let disk =
        disk.ok_or_else(|| format!("no storage controller driver loaded: there is no disk {}", asked.disk))?;
    if !asked.wipe {
        return Err("unattend file is invalid: WillWipeDisk is not true, and the disk is empty".to_owned());
    }
    Ok(disk.clone())
}

fn copy(disk: &str, asked: &WinPe, answer: &str, options: &Options, log: &mut Log) -> Result<(), String> {
    let esp = asked.partitions.iter().position(|(kind, _)| kind == "EFI");
    let esp = disk::partition(disk, 1 + esp.ok_or("unattend file is invalid: no EFI partition")? as u32);
    let windows = disk::partition(disk, asked.install_to);
    if !machine::wait_for(&windows, Duration::from_secs(10)) {
        return Err(format!("partition {windows} did not appear"));
    }
    disk::format_fat(&esp, "SYSTEM")?;
    disk::format_fat(&windows, "WINDOWS")?;
    for (partition, at) in [(&esp, "/esp"), (&windows, C)] {
        if !machine::mount_as(&format!("/dev/{partition}"), at, FAT, false) {
            return Err(format!("failed to mount {partition}"));
        }
    }
    let failed = |error: std::io::Error| format!("failed to copy: {error}");
    log.add("copying files");
    if options.is("no-room") {
        return Err("Failed to apply image. [0x80070070]".to_owned());
    }
    for folder in [
        "/esp/EFI/Boot",
        "/esp/EFI/Microsoft/Boot",
        "/esp/no43",
        "/c/Windows/Panther",
        "/c/Windows/Setup/Scripts",
    ] {
        fs::create_dir_all(folder).map_err(failed)?;
    }
    let from = Path::new(MEDIUM).join("sources/stand-in");
    for name in ["linux.efi", "initrd.img"] {
        fs::copy(from.join(name), Path::new("/esp/no43").join(name)).map_err(failed)?;
    }
    fs::write(
        "/esp/no43/options.txt",
        format!(
            "initrd=\\no43\\initrd.img console=tty0 quiet no43.stage=installed no43.fault={}\n",
            options.fault
        ),
    )
    .map_err(failed)?;
    if !options.is("no-boot") {
        for to in ["/esp/EFI/Boot/bootx64.efi", "/esp/EFI/Microsoft/Boot/bootmgfw.efi"] {
            fs::copy(from.join("loader.efi"), to).map_err(failed)?;
        }
    }
    fs::write("/c/Windows/Panther/unattend.xml", answer).map_err(failed)?;
    fs::write("/c/Windows/Panther/setupact.log", log.lines.join("\r\n") + "\r\n").map_err(failed)?;
    crate::installed::State::Specialize.write().map_err(failed)
}
