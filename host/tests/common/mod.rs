//! A host made of files: sysfs as a real one looks, a proc that is the real one, a dev of plain files; and a thread that
//! does what the kernel does when somebody writes to `unbind` or `drivers_probe`.

#![allow(dead_code, reason = "every test file uses its own part of this")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use no43_host::{PciAddress, Roots, StateDir};

/// One function to lay out.
#[derive(Clone, Debug, Default)]
pub(crate) struct Spec {
    pub(crate) address: String,
    pub(crate) class: String,
    pub(crate) id: String,
    pub(crate) group: Option<u32>,
    pub(crate) driver: Option<String>,
    pub(crate) boot_vga: Option<bool>,
    pub(crate) below: Vec<String>,
}

impl Spec {
    pub(crate) fn new(address: &str, class: &str, id: &str, group: u32, driver: &str) -> Self {
        Spec {
            address: address.into(),
            class: class.into(),
            id: id.into(),
            group: Some(group),
            driver: (driver != "-").then(|| driver.into()),
            ..Spec::default()
        }
    }

    pub(crate) fn below(mut self, bridge: &str) -> Self {
        self.below.push(bridge.into());
        self
    }

    pub(crate) fn boot_vga(mut self, first: bool) -> Self {
        self.boot_vga = Some(first);
        self
    }
}

/// The tree, and the kernel that lives in it.
pub(crate) struct FakeHost {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) roots: Roots,
    pub(crate) state: StateDir,
    kernel: Option<(Arc<AtomicBool>, JoinHandle<()>)>,
}

/// What the simulated kernel does out of the ordinary.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) enum Mood {
    #[default]
    Obedient,
    /// vfio-pci takes nothing (the IOMMU is off): probing leaves the function without a driver.
    VfioRefuses,
    /// The old driver does not take its device back.
    DriverSulks,
}

impl FakeHost {
    /// Lays out the functions.
    pub(crate) fn new(specs: &[Spec]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // the real proc: processes of the tests are real ones
        let roots = Roots { proc_: "/proc".into(), ..Roots::under(dir.path()) };
        let state = StateDir::at(&dir.path().join("state"));
        let host = FakeHost { dir, roots, state, kernel: None };
        for made in
            ["bus/pci/devices", "bus/pci/drivers/vfio-pci", "kernel/iommu_groups", "class/iommu/dmar0"]
        {
            fs::create_dir_all(host.roots.sys.join(made)).unwrap();
        }
        fs::create_dir_all(host.roots.dev.join("vfio")).unwrap();
        fs::write(host.roots.sys.join("bus/pci/drivers_probe"), "").unwrap();
        fs::write(host.roots.sys.join("bus/pci/drivers/vfio-pci/unbind"), "").unwrap();
        specs.iter().for_each(|spec| host.add(spec));
        host
    }

    /// The lab's host: its own display, and two cards of video and audio.
    pub(crate) fn lab() -> Self {
        Self::new(&[
            Spec::new("00:01.0", "0300", "1234:1111", 1, "bochs-drm").boot_vga(true),
            Spec::new("00:02.0", "0604", "1b36:000c", 2, "pcieport"),
            Spec::new("00:03.0", "0604", "1b36:000c", 3, "pcieport"),
            Spec::new("01:00.0", "0380", "1234:1111", 4, "bochs-drm").below("00:02.0"),
            Spec::new("01:00.1", "0403", "8086:2668", 4, "snd_hda_intel").below("00:02.0"),
            Spec::new("02:00.0", "0380", "1234:1111", 5, "bochs-drm").below("00:03.0"),
            Spec::new("02:00.1", "0403", "8086:2668", 5, "snd_hda_intel").below("00:03.0"),
        ])
    }

    fn add(&self, spec: &Spec) {
        let full = |address: &str| format!("0000:{address}");
        let mut path = PathBuf::from("devices/pci0000:00");
        path.extend(spec.below.iter().map(|bridge| full(bridge)));
        path.push(full(&spec.address));
        let device = self.roots.sys.join(&path);
        fs::create_dir_all(&device).unwrap();
        let link = self.roots.sys.join("bus/pci/devices").join(full(&spec.address));
        symlink(Path::new("../../..").join(&path), link).unwrap();
        let driver = spec.driver.as_ref().map(|driver| format!("DRIVER={driver}\n")).unwrap_or_default();
        let ids = format!(
            "PCI_CLASS={}00\nPCI_ID={}\nPCI_SUBSYS_ID=1AF4:1100\n",
            spec.class,
            spec.id.to_uppercase()
        );
        fs::write(device.join("uevent"), format!("{driver}{ids}PCI_SLOT_NAME={}\n", full(&spec.address)))
            .unwrap();
        fs::write(device.join("driver_override"), "(null)\n").unwrap();
        fs::write(device.join("resource"), "0x00000000c0000000 0x00000000c0ffffff 0x0000000000042208\n")
            .unwrap();
        fs::write(device.join("config"), [0x34, 0x12, 0x11, 0x11]).unwrap();
        if let Some(first) = spec.boot_vga {
            fs::write(device.join("boot_vga"), if first { "1\n" } else { "0\n" }).unwrap();
        }
        if let Some(group) = spec.group {
            let group = format!("../../../../kernel/iommu_groups/{group}");
            symlink(group, device.join("iommu_group")).unwrap();
        }
        if let Some(driver) = &spec.driver {
            let dir = self.roots.sys.join("bus/pci/drivers").join(driver);
            fs::create_dir_all(&dir).unwrap();
            if !dir.join("unbind").exists() {
                fs::write(dir.join("unbind"), "").unwrap();
            }
            symlink(&dir, device.join("driver")).unwrap();
        }
    }

    pub(crate) fn device(&self, address: &str) -> PathBuf {
        self.roots.sys.join("bus/pci/devices").join(address.parse::<PciAddress>().unwrap().to_string())
    }

    pub(crate) fn driver(&self, address: &str) -> Option<String> {
        driver_of(&self.device(address))
    }

    /// Gives a function a DRM node and returns the node.
    pub(crate) fn add_drm(&self, address: &str, name: &str) -> PathBuf {
        fs::create_dir_all(self.device(address).join("drm").join(name)).unwrap();
        fs::create_dir_all(self.roots.dev.join("dri")).unwrap();
        let node = self.roots.dev.join("dri").join(name);
        fs::write(&node, "").unwrap();
        node
    }

    /// Starts the kernel's half.
    pub(crate) fn start_kernel(&mut self, mood: Mood) {
        self.stop_kernel();
        let stop = Arc::new(AtomicBool::new(false));
        let kernel = Kernel::new(&self.roots, mood);
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                kernel.look();
                std::thread::sleep(Duration::from_micros(300));
            }
        });
        self.kernel = Some((stop, thread));
    }

    fn stop_kernel(&mut self) {
        if let Some((stop, thread)) = self.kernel.take() {
            stop.store(true, Ordering::Relaxed);
            assert!(thread.join().is_ok() || std::thread::panicking(), "the simulated kernel panicked");
        }
    }

    /// Every file below sys, dev and state with its content and every link with its target: to show that nothing changed.
    pub(crate) fn picture(&self) -> BTreeMap<PathBuf, String> {
        let mut picture = BTreeMap::new();
        let mut dirs = vec![self.dir.path().to_path_buf()];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(dir).unwrap().flatten() {
                let (path, kind) = (entry.path(), entry.file_type().unwrap());
                match () {
                    () if kind.is_symlink() => {
                        picture.insert(path.clone(), fs::read_link(&path).unwrap().display().to_string());
                    }
                    () if kind.is_dir() => dirs.push(path),
                    () => {
                        picture
                            .insert(path.clone(), String::from_utf8_lossy(&fs::read(&path).unwrap()).into());
                    }
                }
            }
        }
        picture
    }
}

impl Drop for FakeHost {
    fn drop(&mut self) {
        self.stop_kernel();
    }
}

struct Kernel {
    sys: PathBuf,
    dev: PathBuf,
    mood: Mood,
    /// The driver that each function has of its own accord.
    native: BTreeMap<String, String>,
}

impl Kernel {
    fn new(roots: &Roots, mood: Mood) -> Self {
        let devices = fs::read_dir(roots.sys.join("bus/pci/devices")).unwrap().flatten();
        let native = devices
            .filter_map(|device| {
                Some((device.file_name().into_string().unwrap(), driver_of(&device.path())?))
            })
            .collect();
        Kernel { sys: roots.sys.clone(), dev: roots.dev.clone(), mood, native }
    }

    fn look(&self) {
        for driver in fs::read_dir(self.sys.join("bus/pci/drivers")).unwrap().flatten() {
            if let Some(address) = taken(&driver.path().join("unbind")) {
                self.unbind(&address);
            }
        }
        if let Some(address) = taken(&self.sys.join("bus/pci/drivers_probe")) {
            self.probe(&address);
        }
        for device in fs::read_dir(self.sys.join("bus/pci/devices")).unwrap().flatten() {
            // a newline clears the override; writing over a longer text leaves its tail, as a plain file does
            let file = device.path().join("driver_override");
            if fs::read_to_string(&file).is_ok_and(|text| text.starts_with('\n')) {
                fs::write(file, "(null)\n").unwrap();
            }
        }
    }

    fn device(&self, address: &str) -> PathBuf {
        self.sys.join("bus/pci/devices").join(address)
    }

    fn unbind(&self, address: &str) {
        let device = self.device(address);
        let Some(driver) = driver_of(&device) else { return };
        if driver == "vfio-pci" {
            let group = fs::read_link(device.join("iommu_group")).unwrap();
            let _ = fs::remove_file(self.dev.join("vfio").join(group.file_name().unwrap()));
        }
        self.set_driver(&device, None);
    }

    fn probe(&self, address: &str) {
        let device = self.device(address);
        if driver_of(&device).is_some() {
            return;
        }
        let wants_vfio = fs::read_to_string(device.join("driver_override")).unwrap().starts_with("vfio-pci");
        let driver = match (wants_vfio, self.mood) {
            (true, Mood::VfioRefuses) | (false, Mood::DriverSulks) => None,
            (true, _) => Some("vfio-pci"),
            (false, _) => self.native.get(address).map(String::as_str).filter(|driver| *driver != "vfio-pci"),
        };
        self.set_driver(&device, driver);
        if driver == Some("vfio-pci") {
            let group = fs::read_link(device.join("iommu_group")).unwrap();
            fs::write(self.dev.join("vfio").join(group.file_name().unwrap()), "").unwrap();
        }
    }

    fn set_driver(&self, device: &Path, driver: Option<&str>) {
        let uevent = fs::read_to_string(device.join("uevent")).unwrap();
        let rest: String =
            uevent.lines().filter(|line| !line.starts_with("DRIVER=")).map(|l| format!("{l}\n")).collect();
        let line = driver.map(|driver| format!("DRIVER={driver}\n")).unwrap_or_default();
        fs::write(device.join("uevent"), line + &rest).unwrap();
        match driver {
            Some(driver) => {
                symlink(self.sys.join("bus/pci/drivers").join(driver), device.join("driver")).unwrap();
            }
            None => drop(fs::remove_file(device.join("driver"))),
        }
    }
}

fn driver_of(device: &Path) -> Option<String> {
    Some(fs::read_link(device.join("driver")).ok()?.file_name()?.to_str()?.to_string())
}

/// What was written to a file since the last look.
fn taken(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok().filter(|text| !text.is_empty())?;
    fs::write(path, "").unwrap();
    Some(text.trim().to_string())
}
