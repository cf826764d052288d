//! The kernel's file systems, and the root made writable.

use std::fs;
use std::os::unix::fs::symlink;

use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_remount};

use crate::linux::{Root, read_text};

struct Mount {
    kind: &'static str,
    at: &'static str,
    data: &'static str,
    executable: bool,
}

const fn row(kind: &'static str, at: &'static str, data: &'static str, executable: bool) -> Mount {
    Mount { kind, at, data, executable }
}

/// In this order. The initrd may have mounted some of them already, which is fine.
const MOUNTS: &[Mount] = &[
    row("proc", "proc", "", false),
    row("sysfs", "sys", "", false),
    row("devtmpfs", "dev", "mode=0755", true),
    row("devpts", "dev/pts", "mode=0620,gid=5,ptmxmode=0666", true),
    row("tmpfs", "dev/shm", "mode=1777", true),
    row("tmpfs", "run", "mode=0755", true),
    row("tmpfs", "tmp", "mode=1777", true),
];

/// Names in `/dev` that programs expect and devtmpfs does not have.
const LINKS: &[(&str, &str)] = &[
    ("/proc/self/fd", "dev/fd"),
    ("/proc/self/fd/0", "dev/stdin"),
    ("/proc/self/fd/1", "dev/stdout"),
    ("/proc/self/fd/2", "dev/stderr"),
];

/// Mounts everything and makes the root writable. Gives a sentence for each failure: there is no log before.
pub(super) fn mount_all(root: &Root) -> Vec<String> {
    let mut failures = Vec::new();
    for row in MOUNTS {
        let at = root.path(row.at);
        let _ = fs::create_dir(&at); // below /dev only; the others are part of every root
        let flags =
            MountFlags::NOSUID | if row.executable { MountFlags::empty() } else { MountFlags::NOEXEC };
        let data = std::ffi::CString::new(row.data).unwrap_or_default();
        match mount(row.kind, &at, row.kind, flags, data.as_c_str()) {
            Ok(()) | Err(Errno::BUSY) => {}
            Err(error) => failures.push(format!("failed to mount {}: {error}", at.display())),
        }
    }
    for (target, link) in LINKS {
        let _ = symlink(target, root.path(link)); // there already, perhaps
    }
    if let Err(error) = mount_remount("/", MountFlags::empty(), c"") {
        failures.push(format!("failed to make the root writable: {error}"));
    }
    failures
}

/// Mount points other than the root and ours, the innermost first.
pub(super) fn foreign_mount_points(root: &Root) -> Vec<String> {
    let table = read_text(&root.path("proc/self/mounts")).unwrap_or_default();
    let mut points: Vec<String> = table
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .filter(|at| *at != "/" && !MOUNTS.iter().any(|row| at.strip_prefix('/') == Some(row.at)))
        .map(|at| at.replace("\\040", " "))
        .collect();
    points.reverse();
    points
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::report::tests::FakeGuest;

    #[test]
    fn what_is_unmounted_at_the_end() {
        let guest = FakeGuest::new();
        guest.write(
            "proc/self/mounts",
            "/dev/vda / ext4 rw 0 0\nproc /proc proc rw 0 0\ndevpts /dev/pts devpts rw 0 0\n\
             store /mnt/a\\040b 9p rw 0 0\n/dev/vdb /mnt/a\\040b/c ext4 rw 0 0\nbroken\n",
        );
        assert_eq!(foreign_mount_points(&guest.root()), ["/mnt/a b/c", "/mnt/a b"]);
    }
}
