//! Taking the driver of a card out of the kernel and loading it again.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use no43_guest::setup::Codes;
use no43_guest::setup::event::Cause;

use super::{Root, names, read_text, wait_for};
use crate::executor::Failure;
use crate::executor::process::{Argument, Program};

/// From the load of a module until it has its devices: a probe function trains links and starts firmware.
const BIND_LIMIT: Duration = Duration::from_secs(60);

/// What is asked of `modprobe`; told with its words if it fails.
type Modprobe<'a> = dyn FnMut(&[&str]) -> Result<(), Failure> + 'a;

/// Takes the modules of the functions' drivers out, with those that stand on them, and loads them again.
pub(super) fn reload(root: &Root, functions: &[String], modprobe: &mut Modprobe<'_>) -> Result<(), Failure> {
    let mut modules = Vec::new();
    for function in functions {
        stands_on(root, &module_of(root, function)?, &mut modules);
    }
    let consoles = Consoles::let_go(root);
    let taken_out = modules.iter().try_for_each(|module| modprobe(&["-r", module.as_str()]));
    // also after a failure, so that the guest has its card again
    let loaded = modules.iter().rev().map(|module| modprobe(&[module.as_str()])).fold(Ok(()), Result::and);
    consoles.take_back();
    taken_out.and(loaded)?;
    let without = |function: &&String| !device(root, function).join("driver").exists();
    match wait_for(BIND_LIMIT, || functions.iter().find(without).is_none().then_some(())) {
        Some(()) => Ok(()),
        None => Err(Failure::new(
            Cause::NotSo,
            format!("{} was loaded again, and a card has no driver after 60 s", modules.join(", ")),
        )),
    }
}

fn device(root: &Root, function: &str) -> PathBuf {
    root.path("sys/bus/pci/devices").join(function)
}

/// The module of a function's driver.
fn module_of(root: &Root, function: &str) -> Result<String, Failure> {
    let not_so = |text: String| Failure::new(Cause::NotSo, text);
    let driver = fs::read_link(device(root, function).join("driver"))
        .map_err(|_| not_so(format!("no driver has {function}")))?;
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    let driver = name(&driver).unwrap_or_default();
    let module = fs::read_link(root.path("sys/bus/pci/drivers").join(&driver).join("module"));
    module.ok().and_then(|module| name(&module)).ok_or_else(|| {
        not_so(format!("'{driver}', the driver of {function}, is a part of the kernel itself"))
    })
}

/// Adds `module` and what stands on it, each before what it stands on, as nvidia_drm comes before nvidia.
fn stands_on(root: &Root, module: &str, order: &mut Vec<String>) {
    if order.iter().any(|known| known == module) {
        return;
    }
    for holder in names(&root.path("sys/module").join(module).join("holders")).unwrap_or_default() {
        stands_on(root, &holder, order);
    }
    order.push(module.to_owned());
}

/// Text consoles on frame buffers: one of them holds the driver whose frame buffer it shows.
struct Consoles(Vec<PathBuf>);

impl Consoles {
    fn let_go(root: &Root) -> Self {
        let all = root.path("sys/class/vtconsole");
        let binds = names(&all).unwrap_or_default().into_iter().map(|name| all.join(name));
        let shows = |dir: &PathBuf| {
            let text = |file: &str| read_text(&dir.join(file)).unwrap_or_default();
            text("name").contains("frame buffer") && text("bind") == "1"
        };
        let held: Vec<PathBuf> = binds.filter(shows).map(|dir| dir.join("bind")).collect();
        // one that stays makes `modprobe -r` fail, which tells
        held.iter().for_each(|bind| drop(fs::write(bind, "0")));
        Self(held)
    }

    fn take_back(self) {
        self.0.iter().for_each(|bind| drop(fs::write(bind, "1")));
    }
}

/// `modprobe` of this guest, its words in `output`.
pub(super) fn modprobe(output: PathBuf, limit: Duration) -> impl FnMut(&[&str]) -> Result<(), Failure> {
    let places = ["/usr/sbin/modprobe", "/sbin/modprobe"].map(Path::new);
    let path = places.into_iter().find(|path| path.exists()).unwrap_or(Path::new("modprobe"));
    move |words| {
        let arguments = words.iter().map(|word| Argument::Word((*word).into())).collect();
        let program = Program::new(path.to_owned(), arguments, output.clone(), limit);
        program.run(&Codes::default()).map(drop).map_err(|failure| {
            let said = failure.log.last().map(|line| format!(": {line}")).unwrap_or_default();
            Failure { text: format!("modprobe {}: {}{said}", words.join(" "), failure.text), ..failure }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const CARD: &str = "0000:01:00.0";

    /// A guest whose card has `nvidia`, on which `nvidia_modeset` and then `nvidia_drm` stand, and a console on it.
    fn guest(dir: &Path) -> Root {
        let path = |relative: &str| dir.join("sys").join(relative);
        for folder in [
            "bus/pci/devices/0000:01:00.0",
            "bus/pci/drivers/nvidia",
            "module/nvidia/holders",
            "module/nvidia_modeset/holders",
            "module/nvidia_drm/holders",
            "class/vtconsole/vtcon0",
            "class/vtconsole/vtcon1",
        ] {
            fs::create_dir_all(path(folder)).unwrap();
        }
        symlink("../../drivers/nvidia", path("bus/pci/devices/0000:01:00.0/driver")).unwrap();
        symlink("../../../../module/nvidia", path("bus/pci/drivers/nvidia/module")).unwrap();
        fs::write(path("module/nvidia/holders/nvidia_modeset"), "").unwrap();
        fs::write(path("module/nvidia/holders/nvidia_drm"), "").unwrap();
        fs::write(path("module/nvidia_modeset/holders/nvidia_drm"), "").unwrap();
        for (console, name) in [("vtcon0", "(S) dummy device\n"), ("vtcon1", "(M) frame buffer device\n")] {
            fs::write(path("class/vtconsole").join(console).join("name"), name).unwrap();
            fs::write(path("class/vtconsole").join(console).join("bind"), "1\n").unwrap();
        }
        Root::at(dir)
    }

    #[test]
    fn what_stands_on_a_module_goes_first_and_comes_last() {
        let dir = tempfile::tempdir().unwrap();
        let root = guest(dir.path());
        let console =
            |n: u8| fs::read_to_string(dir.path().join(format!("sys/class/vtconsole/vtcon{n}/bind")));
        let mut told = Vec::new();
        let mut modprobe = |words: &[&str]| {
            told.push(format!("{} {}", words.join(" "), console(1).unwrap()));
            assert_eq!(console(0).unwrap(), "1\n", "a console without a frame buffer is left alone");
            Ok(())
        };
        reload(&root, &[CARD.into()], &mut modprobe).unwrap();
        insta::assert_snapshot!(told.join("\n"), @r"
        -r nvidia_drm 0
        -r nvidia_modeset 0
        -r nvidia 0
        nvidia 0
        nvidia_modeset 0
        nvidia_drm 0
        ");
        assert_eq!(console(1).unwrap(), "1");
    }

    #[test]
    fn a_module_that_is_in_use_is_told_and_the_others_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let root = guest(dir.path());
        let mut told = Vec::new();
        let mut modprobe = |words: &[&str]| {
            told.push(words.join(" "));
            if words == ["-r", "nvidia_modeset"] {
                return Err(Failure::new(Cause::ExitCode, "modprobe: Module nvidia_modeset is in use."));
            }
            Ok(())
        };
        let failure = reload(&root, &[CARD.into()], &mut modprobe).unwrap_err();
        assert_eq!(failure.text, "modprobe: Module nvidia_modeset is in use.");
        assert_eq!(told[told.len() - 3..], ["nvidia", "nvidia_modeset", "nvidia_drm"]);
    }

    #[test]
    fn a_card_without_a_driver_and_a_driver_without_a_module_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let root = guest(dir.path());
        let mut never = |_: &[&str]| panic!("modprobe was called");
        let mut text = |function: &str| reload(&root, &[function.into()], &mut never).unwrap_err().text;
        assert_eq!(text("0000:02:00.0"), "no driver has 0000:02:00.0");
        fs::remove_file(dir.path().join("sys/bus/pci/drivers/nvidia/module")).unwrap();
        assert_eq!(text(CARD), "'nvidia', the driver of 0000:01:00.0, is a part of the kernel itself");
    }
}
