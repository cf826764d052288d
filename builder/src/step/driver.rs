//! NVIDIA's driver in a Linux guest, as a layer: a distribution's own packages, or NVIDIA's `.run` file, with the headers of the
//! kernel that runs, so that its module is built there and then.
//!
//! Flags are those of NVIDIA's README for the installer; components those of Debian's wiki. Neither a package of Debian's non-free
//! archive nor a real `.run` file was at hand: tests run these scripts with stand-ins.

use no43_machine::spec::{Disk, DiskCache};

use crate::plan::{LinuxDriver, RunFile};

/// Packages from the components that Debian keeps apart. Arguments: the version that must come of it (or nothing), then packages.
const PACKAGES: &str = r#"set -e
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
version=$1; shift
for list in "$ETC"/apt/sources.list "$ETC"/apt/sources.list.d/*.list; do
    [ ! -f "$list" ] || sed -i -E '/^deb .* main/ { / non-free( |$)/! s/ main/ main contrib non-free non-free-firmware/ }' "$list"
done
for list in "$ETC"/apt/sources.list.d/*.sources; do
    [ ! -f "$list" ] || sed -i -E '/^Components:.* main/ { / non-free( |$)/! s/ main/ main contrib non-free non-free-firmware/ }' "$list"
done
apt-get -q update
apt-get -q -y --no-install-recommends install "linux-headers-$(uname -r)"
apt-get -q -y --no-install-recommends install $AGAIN "$@"
apt-get clean
find "$VAR"/lib/apt/lists -type f -delete 2> /dev/null || true
"#;

/// NVIDIA's own installer. Arguments: version, size in bytes and SHA-256 of the file that lies on a disk of its own, and the
/// disk's serial number.
const RUN: &str = r#"set -e
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
version=$1; size=$2; sha256=$3; serial=$4
disk=
for block in "$SYS"/block/*; do
    [ "$(cat "$block/serial" 2> /dev/null)" != "$serial" ] || disk=$DEV/${block##*/}
done
[ -n "$disk" ] || { echo "the disk with the driver is not there" >&2; exit 1; }
apt-get -q update
apt-get -q -y --no-install-recommends install "linux-headers-$(uname -r)" gcc make libc6-dev kmod
head -c "$size" "$disk" > "$VAR"/tmp/no43-driver.run
echo "$sha256  $VAR/tmp/no43-driver.run" | sha256sum -c --quiet -
sh "$VAR"/tmp/no43-driver.run --silent --no-x-check --no-nouveau-check --no-install-compat32-libs || {
    code=$?
    tail -n 20 "$VAR"/log/nvidia-installer.log >&2 || true
    exit $code
}
rm -f "$VAR"/tmp/no43-driver.run
apt-get clean
find "$VAR"/lib/apt/lists -type f -delete 2> /dev/null || true
"#;

/// Both end here: the module of the running kernel is there, and of the right version. nouveau would take the card first.
const CHECK: &str = r#"mkdir -p "$ETC"/modprobe.d
printf 'blacklist nouveau\noptions nouveau modeset=0\n' > "$ETC"/modprobe.d/no43-driver.conf
is=$(modinfo -F version nvidia 2> /dev/null) || is=$(modinfo -F version nvidia-current 2> /dev/null) || {
    echo "no module 'nvidia' was built for $(uname -r)" >&2; exit 1
}
case "$is" in
    "$version"|"$version".*) ;;
    *) [ -z "$version" ] || { echo "the module is of version $is, and $version is wanted" >&2; exit 1; } ;;
esac
echo "nvidia $is for $(uname -r)"
"#;

/// Where things are, which tests say otherwise.
const PLACES: &str = "ETC=/etc VAR=/var SYS=/sys DEV=/dev\n";

/// What installs a driver in a running Linux guest, as program and arguments; `again` also where it is installed already.
#[must_use]
pub fn driver_command(driver: &LinuxDriver, again: bool) -> Vec<String> {
    command(driver, &format!("{PLACES}AGAIN={}\n", if again { "--reinstall" } else { "" }))
}

fn command(driver: &LinuxDriver, places: &str) -> Vec<String> {
    let work = if driver.run.is_some() { RUN } else { PACKAGES };
    let script = format!("{places}{work}{CHECK}");
    let mut argv = vec!["sh".to_owned(), "-c".to_owned(), script, "driver".to_owned()];
    argv.push(driver.version.clone().unwrap_or_default());
    match &driver.run {
        Some(run) => argv.extend([run.bytes.to_string(), run.sha256.clone(), serial(run)]),
        None => argv.extend(driver.packages.iter().cloned()),
    }
    argv
}

/// The `.run` file as a disk of the machine: hundreds of megabytes are too much for the agent.
#[must_use]
pub fn driver_disk(run: &RunFile) -> Disk {
    Disk { serial: Some(serial(run)), read_only: true, cache: DiskCache::Unsafe, ..Disk::raw(&run.path) }
}

/// By this the guest finds the file among its disks. At most 20 characters, as virtio's disks have.
fn serial(run: &RunFile) -> String {
    format!("no43-{}", run.sha256.get(..12).unwrap_or(&run.sha256))
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest, Sha256};
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::process::{Command, Output};

    /// A guest of folders, with programs that only write down how they were called.
    struct Stage(tempfile::TempDir);

    impl Stage {
        fn new(module: &str) -> Self {
            let stage = Self(tempfile::tempdir().unwrap());
            for folder in ["etc/apt", "var/tmp", "var/log", "sys/block/vda", "sys/block/vdb", "dev", "bin"] {
                fs::create_dir_all(stage.path(folder)).unwrap();
            }
            stage.write("etc/apt/sources.list", "deb http://deb.debian.org/debian bookworm main\n");
            stage.write("sys/block/vda/serial", "no43-system");
            let called = stage.path("called").display().to_string();
            stage.program("apt-get", &format!("echo apt-get \"$@\" >> {called}"));
            stage.program("uname", "echo 6.1.0-1-amd64");
            stage.program("modinfo", module);
            stage
        }

        fn path(&self, name: &str) -> std::path::PathBuf {
            self.0.path().join(name)
        }

        fn write(&self, name: &str, text: &str) {
            fs::write(self.path(name), text).unwrap();
        }

        fn program(&self, name: &str, line: &str) {
            let path = self.path("bin").join(name);
            fs::write(&path, format!("#!/bin/sh\n{line}\n")).unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        }

        fn run(&self, driver: &LinuxDriver) -> Output {
            let serial = driver.run.as_ref().map_or_else(String::new, serial);
            self.write("sys/block/vdb/serial", &serial);
            let at = self.0.path().display();
            let argv = command(
                driver,
                &format!("ETC={at}/etc VAR={at}/var SYS={at}/sys DEV={at}/dev AGAIN=--reinstall\n"),
            );
            let path = format!("{at}/bin:/usr/bin:/bin");
            Command::new(&argv[0]).args(&argv[1..]).env("PATH", path).output().unwrap()
        }

        fn called(&self) -> String {
            fs::read_to_string(self.path("called")).unwrap_or_default()
        }
    }

    fn packages(version: &str) -> LinuxDriver {
        let packages = vec!["firmware-misc-nonfree".into(), "nvidia-driver".into()];
        LinuxDriver { packages, run: None, version: Some(version.into()), limit: 60 }
    }

    #[test]
    fn packages_come_from_the_components_kept_apart_and_must_give_a_module() {
        let stage = Stage::new("echo 535.216.03");
        let output = stage.run(&packages("535.216"));
        assert!(output.status.success(), "{output:?}");
        let list = fs::read_to_string(stage.path("etc/apt/sources.list")).unwrap();
        assert_eq!(
            list,
            "deb http://deb.debian.org/debian bookworm main contrib non-free non-free-firmware\n"
        );
        let called = stage.called();
        assert!(called.contains("install linux-headers-6.1.0-1-amd64\n"), "{called}");
        assert!(called.contains("install --reinstall firmware-misc-nonfree nvidia-driver\n"), "{called}");
        assert!(stage.path("etc/modprobe.d/no43-driver.conf").is_file());
        // twice is as good as once
        assert!(stage.run(&packages("535.216")).status.success());
        assert_eq!(fs::read_to_string(stage.path("etc/apt/sources.list")).unwrap(), list);
        let other = stage.run(&packages("550.1"));
        assert!(
            String::from_utf8_lossy(&other.stderr).contains("is of version 535.216.03, and 550.1 is wanted")
        );
        let none = Stage::new("exit 1").run(&packages("535.216"));
        assert!(
            String::from_utf8_lossy(&none.stderr).contains("no module 'nvidia' was built for 6.1.0-1-amd64")
        );
    }

    #[test]
    fn a_run_file_comes_from_its_own_disk_and_is_checked_before_it_runs() {
        let stage = Stage::new("echo 595.45.04");
        let file = format!("echo installer \"$@\" >> {}\nexit 0\n", stage.path("called").display());
        // a disk has whole sectors
        stage.write("dev/vdb", &format!("{file}{}", "\0".repeat(100)));
        let run = RunFile {
            path: stage.path("dev/vdb"),
            sha256: crate::key::hex(&Sha256::digest(file.as_bytes())),
            bytes: file.len() as u64,
        };
        let driver = |run: RunFile| LinuxDriver {
            packages: Vec::new(),
            run: Some(run),
            version: Some("595.45.04".into()),
            limit: 60,
        };
        let output = stage.run(&driver(run.clone()));
        assert!(output.status.success(), "{output:?}");
        assert!(stage.called().contains("installer --silent --no-x-check"), "{}", stage.called());
        let other = RunFile { sha256: "00".repeat(32), ..run };
        fs::remove_file(stage.path("called")).unwrap();
        assert!(!stage.run(&driver(other)).status.success());
        assert!(!stage.called().contains("installer"), "what is not the locked file is not run");
    }
}
