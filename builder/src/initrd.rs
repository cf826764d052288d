//! Initrd: a cpio archive with busybox, the few kernel modules that reach the root disk, and a script that loads them.
//!
//! Only for images that are started with their kernel directly. Debian's own initrd asks udev for every driver it could
//! need; this one loads a known list, mounts one disk and is gone, which matters where every instruction is emulated.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

/// How long the script waits for the root disk. It is there as soon as its driver is; under emulation that takes 1-2 s.
const DISK_LIMIT_SECONDS: u32 = 60;

/// What the initrd is made of.
pub(crate) struct Initrd<'a> {
    /// A static busybox, out of the image.
    pub(crate) busybox: &'a Path,
    /// Module files in the order in which they must be loaded.
    pub(crate) modules: Vec<&'a Path>,
    /// Such as `/dev/vda`.
    pub(crate) root_device: &'a str,
    /// What becomes process 1, with its arguments.
    pub(crate) init: &'a [&'a str],
}

impl Initrd<'_> {
    /// Writes the archive.
    pub(crate) fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut cpio = Cpio::new(out);
        for folder in ["bin", "dev", "lib", "proc", "root", "sys", "sysroot"] {
            cpio.entry(folder, 0o040_755, &[])?;
        }
        // The kernel opens it before anything is mounted: without it the script's first words are lost.
        cpio.device("dev/console", 0o020_600, (5, 1))?;
        cpio.entry("bin/busybox", 0o100_755, &fs::read(self.busybox)?)?;
        for (number, module) in self.modules.iter().enumerate() {
            cpio.entry(&format!("lib/{}", module_name(number, module)), 0o100_644, &fs::read(module)?)?;
        }
        cpio.entry("init", 0o100_755, self.script().as_bytes())?;
        cpio.finish()
    }

    fn script(&self) -> String {
        let names: Vec<String> =
            self.modules.iter().enumerate().map(|(n, module)| module_name(n, module)).collect();
        format!(
            include_str!("initrd/init.sh"),
            modules = names.join(" "),
            root = self.root_device,
            limit = DISK_LIMIT_SECONDS,
            init = self.init.join(" "),
        )
    }
}

/// The number keeps two modules of the same name apart and shows the order.
fn module_name(number: usize, module: &Path) -> String {
    format!("{number:02}-{}", module.file_name().unwrap_or_default().to_string_lossy())
}

/// Writer of the "newc" format: 110 bytes of hexadecimal digits, the name, the contents, each padded to 4 bytes.
struct Cpio<'a> {
    out: &'a mut dyn Write,
    inode: u32,
}

impl<'a> Cpio<'a> {
    fn new(out: &'a mut dyn Write) -> Self {
        Self { out, inode: 0 }
    }

    fn entry(&mut self, name: &str, mode: u32, contents: &[u8]) -> io::Result<()> {
        self.write(name, mode, (0, 0), contents)
    }

    fn device(&mut self, name: &str, mode: u32, number: (u32, u32)) -> io::Result<()> {
        self.write(name, mode, number, &[])
    }

    fn finish(mut self) -> io::Result<()> {
        self.entry("TRAILER!!!", 0, &[])?;
        self.out.flush()
    }

    fn write(&mut self, name: &str, mode: u32, device: (u32, u32), contents: &[u8]) -> io::Result<()> {
        self.inode += 1;
        let length = u32::try_from(contents.len())
            .map_err(|_| io::Error::other(format!("{name} is larger than 4 GiB")))?;
        let links = if mode & 0o170_000 == 0o040_000 { 2 } else { 1 };
        let name_length = name.len() as u32 + 1;
        // inode, mode, uid, gid, links, mtime, size, device (2), special device (2), name, checksum
        let fields = [self.inode, mode, 0, 0, links, 0, length, 0, 0, device.0, device.1, name_length, 0];
        let mut header = String::from("070701");
        for field in fields {
            header += &format!("{field:08x}");
        }
        self.out.write_all(header.as_bytes())?;
        self.out.write_all(name.as_bytes())?;
        self.out.write_all(&[0])?;
        self.pad(header.len() + name.len() + 1)?;
        self.out.write_all(contents)?;
        self.pad(contents.len())
    }

    fn pad(&mut self, written: usize) -> io::Result<()> {
        self.out.write_all(&[0; 3][..written.next_multiple_of(4) - written])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    fn sample(dir: &Path) -> Vec<u8> {
        for (name, contents) in [("busybox", "a program"), ("virtio.ko", "one"), ("virtio_blk.ko", "two22")] {
            fs::write(dir.join(name), contents).unwrap();
        }
        let (busybox, one, two) = (dir.join("busybox"), dir.join("virtio.ko"), dir.join("virtio_blk.ko"));
        let initrd = Initrd {
            busybox: &busybox,
            modules: vec![&one, &two],
            root_device: "/dev/vda",
            init: &["/usr/bin/no43-guest", "init"],
        };
        let mut archive = Vec::new();
        initrd.write(&mut archive).unwrap();
        archive
    }

    #[test]
    fn the_script_loads_in_order_and_hands_over() {
        let dir = tempfile::tempdir().unwrap();
        let archive = sample(dir.path());
        let text = String::from_utf8_lossy(&archive);
        assert!(text.contains("for module in 00-virtio.ko 01-virtio_blk.ko; do"), "{text}");
        assert!(text.contains("exec switch_root /sysroot /usr/bin/no43-guest init"), "{text}");
    }

    #[test]
    fn cpio_reads_what_we_write() {
        let dir = tempfile::tempdir().unwrap();
        let archive = sample(dir.path());
        let Ok(mut cpio) = Command::new("cpio")
            .args(["--list", "--quiet", "--verbose", "--numeric-uid-gid"])
            .env("TZ", "UTC")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
        else {
            eprintln!("skipped: cpio is not installed (Debian package cpio)");
            return;
        };
        cpio.stdin.take().unwrap().write_all(&archive).unwrap();
        let output = cpio.wait_with_output().unwrap();
        assert!(output.status.success());
        let listing = String::from_utf8(output.stdout).unwrap();
        let short: Vec<String> = listing
            .lines()
            .map(|line| {
                line.split_whitespace()
                    .enumerate()
                    .filter(|(n, _)| [0, 4, 8].contains(n))
                    .map(|(_, word)| word)
                    .collect::<Vec<_>>()
                    .join(" ")
            })
            .collect();
        assert!(short.contains(&"-rwxr-xr-x 9 bin/busybox".to_owned()), "{listing}");
        assert!(short.contains(&"-rw-r--r-- 5 lib/01-virtio_blk.ko".to_owned()), "{listing}");
        assert!(listing.contains("crw-------") && listing.contains("5,   1"), "{listing}");
    }
}
