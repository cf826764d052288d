//! The little that process 1 needs: mounts, modules, the screen, COM1, and an end.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use no43_guest::setup::event::{Event, LogTail, What};
use rustix::mount::{MountFlags, mount};
use rustix::system::{RebootCommand, reboot};

/// What the kernel's command line says: which stage this is, and which fault it plays.
pub(crate) struct Options {
    pub(crate) stage: String,
    /// One of the words in README.md; empty for none.
    pub(crate) fault: String,
}

impl Options {
    pub(crate) fn of_kernel() -> Self {
        let line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
        let of = |key: &str| {
            let word = line.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
            word.unwrap_or_default().to_owned()
        };
        Self { stage: of("no43.stage"), fault: of("no43.fault") }
    }

    pub(crate) fn is(&self, fault: &str) -> bool {
        self.fault == fault
    }
}

pub(crate) fn mount_system() {
    for (kind, at) in
        [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys"), ("tmpfs", "/run"), ("tmpfs", "/tmp")]
    {
        let _ = fs::create_dir_all(at);
        let _ = mount(kind, at, kind, MountFlags::empty(), None);
    }
}

/// The modules of `/modules/<group>.txt`, in its order.
pub(crate) fn load_modules(group: &str) {
    let list = fs::read_to_string(format!("/modules/{group}.txt")).unwrap_or_default();
    for module in list.lines() {
        let _ = Command::new("/bin/busybox").args(["insmod", &format!("/modules/{module}")]).status();
    }
}

/// `/dev/virtio-ports/<name>`, which elsewhere udev makes.
pub(crate) fn name_ports() {
    let _ = fs::create_dir_all("/dev/virtio-ports");
    for port in fs::read_dir("/sys/class/virtio-ports").into_iter().flatten().flatten() {
        let name = fs::read_to_string(port.path().join("name")).unwrap_or_default();
        if !name.trim().is_empty() && !name.contains('/') {
            let device = Path::new("/dev").join(port.file_name());
            let _ = std::os::unix::fs::symlink(device, Path::new("/dev/virtio-ports").join(name.trim()));
        }
    }
}

/// Mounts a device whose kind of file system is one of these.
pub(crate) fn mount_as(device: &str, at: &str, kinds: &[(&str, &str)], read_only: bool) -> bool {
    let _ = fs::create_dir_all(at);
    let flags = if read_only { MountFlags::RDONLY } else { MountFlags::empty() };
    kinds.iter().any(|(kind, data)| {
        let data = std::ffi::CString::new(*data).ok();
        mount(device, at, *kind, flags, data.as_deref()).is_ok()
    })
}

/// FAT as Windows has it: long names in UTF-8.
pub(crate) const FAT: &[(&str, &str)] = &[("vfat", "utf8=1")];

/// Waits until a block device shows up.
pub(crate) fn wait_for(device: &str, limit: Duration) -> bool {
    let tries = limit.as_millis() / 100;
    (0..tries).any(|_| {
        let there = Path::new("/sys/class/block").join(device).exists();
        if !there {
            sleep(Duration::from_millis(100));
        }
        there
    })
}

/// Shown on the screen, as Setup would.
pub(crate) fn show(text: &str) {
    if let Ok(mut screen) = OpenOptions::new().write(true).open("/dev/tty0") {
        let _ = writeln!(screen, "{text}\r");
    }
}

/// Tells on COM1 what Windows' error handler would tell, with the end of the log.
pub(crate) fn tell_failure(file: &str, lines: &[String]) {
    let from = lines.len().saturating_sub(20);
    let logs = vec![LogTail { file: file.to_owned(), lines: lines[from..].to_vec() }];
    let event = Event { run: 0, seq: 1, at_ms: 0, what: What::SetupFailed { logs } };
    if let Ok(mut port) = OpenOptions::new().write(true).open("/dev/ttyS0") {
        let _ = port.write_all(event.line().as_bytes());
    }
}

/// For ever: a question stands on the screen, and nobody answers.
pub(crate) fn stand_still() -> ! {
    loop {
        sleep(Duration::from_secs(3600));
    }
}

pub(crate) fn panic() -> ! {
    let _ = fs::write("/proc/sys/kernel/panic", "0");
    let _ = fs::write("/proc/sys/kernel/sysrq", "1");
    let _ = fs::write("/proc/sysrq-trigger", "c");
    stand_still()
}

/// Writes everything, then restarts or switches off.
pub(crate) fn end(restart: bool) -> ! {
    rustix::fs::sync();
    let _ = reboot(if restart { RebootCommand::Restart } else { RebootCommand::PowerOff });
    stand_still()
}
