//! `no43-guest report`: the guest as it sees itself.

use std::fmt::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use no43_guest::protocol::{GuestMachine, PROTOCOL_VERSION, Report};

use super::init::SETTLED;
use crate::gpu;

use super::{Root, display, kernel_log, pci, read_text, wait_for};

/// Waits until the drivers of the cards that are there have been loaded, at most `limit`: the agent answers
/// earlier than that, under our init by design and under systemd because both start at the same time.
pub(crate) fn wait_settled(root: &Root, limit: Duration) {
    if root.state().join(super::init::RUNNING).exists() {
        wait_for(limit, || root.state().join(SETTLED).exists().then_some(()));
    } else if root.path("run/udev/control").exists() {
        let settle = format!("--timeout={}", limit.as_secs());
        // Its failure or absence only means that drivers may still be missing, which the report then shows.
        let _ = Command::new("udevadm").args(["settle", &settle]).stdin(Stdio::null()).status();
    }
}

/// Everything that the guest can say about its cards.
pub(crate) fn report(root: &Root) -> Report {
    let mut unknown = Vec::new();
    let functions = pci::functions(root, &mut unknown);
    let connectors = display::connectors(root, &mut unknown);
    let addresses: Vec<&str> = functions.iter().map(|function| function.address.as_str()).collect();
    let log = kernel_log::lines(root, &addresses, &mut unknown);
    let nvml = gpu::nvml(&functions, &mut unknown);
    let nvidia_smi = gpu::nvidia_smi(&functions, &mut unknown);
    let drm = display::nodes(root, &mut unknown);
    let mut line = |path: &str| {
        read_text(&root.path(path)).map_err(|error| unknown.push(format!("/{path}: {error}"))).ok()
    };
    let os = line("etc/os-release").and_then(|text| os_name(&text));
    let kernel = line("proc/sys/kernel/osrelease");
    let boot_id = line("proc/sys/kernel/random/boot_id");
    let uptime_ms = line("proc/uptime").and_then(|text| milliseconds(&text));
    let hypervisor_present = line("proc/cpuinfo").map(|text| says_hypervisor(&text));
    let machine = Some(GuestMachine { hypervisor_present, secure_boot: secure_boot(root), hypervisor: None });
    Report {
        version: PROTOCOL_VERSION,
        os,
        kernel,
        boot_id,
        uptime_ms,
        machine,
        functions,
        connectors,
        log,
        nvml,
        nvidia_smi,
        drm,
        unknown,
        ..Report::default()
    }
}

fn says_hypervisor(cpuinfo: &str) -> bool {
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    flags.split(' ').any(|flag| flag == "hypervisor")
}

/// Only a guest with UEFI has it; the value stands behind four bytes of attributes.
fn secure_boot(root: &Root) -> Option<bool> {
    let variable = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";
    let bytes = std::fs::read(root.path(variable)).ok()?;
    bytes.get(4).map(|byte| *byte == 1)
}

/// The report for a person in the guest.
pub(crate) fn human(report: &Report) -> String {
    let or_unknown = |text: &Option<String>| text.clone().unwrap_or_else(|| "unknown".into());
    let mut out = format!("{}, kernel {}\n", or_unknown(&report.os), or_unknown(&report.kernel));
    for f in &report.functions {
        let driver = f.driver.as_deref().unwrap_or("no driver");
        let _ = writeln!(out, "{} {} class {}: {driver}", f.address, or_unknown(&f.id), or_unknown(&f.class));
    }
    for c in &report.connectors {
        let (at, status) = (c.pci.as_deref().unwrap_or("not on PCI"), or_unknown(&c.status));
        let mode = c.modes.first().map_or("no modes", String::as_str);
        let _ = writeln!(out, "{} {} of {at}: {status}, {mode}", c.card, c.name);
    }
    for l in &report.log {
        let _ = writeln!(out, "log: {}", l.text);
    }
    for text in &report.unknown {
        let _ = writeln!(out, "unknown: {text}");
    }
    out
}

fn os_name(os_release: &str) -> Option<String> {
    let value = os_release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    Some(value.trim_matches(['"', '\'']).to_owned())
}

fn milliseconds(uptime: &str) -> Option<u64> {
    let (seconds, rest) = uptime.split_once('.')?;
    let hundredths = rest.get(..2)?;
    seconds.parse::<u64>().ok()?.checked_mul(1000)?.checked_add(hundredths.parse::<u64>().ok()? * 10)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use no43_guest::protocol::GuestLink;

    use super::*;

    /// A guest's `/sys`, `/proc` and `/etc` in a temporary directory, with links as the kernel makes them.
    pub(crate) struct FakeGuest(tempfile::TempDir);

    impl FakeGuest {
        pub(crate) fn new() -> Self {
            let guest = Self(tempfile::tempdir().unwrap());
            guest.write("sys/bus/pci/devices/.keep", "");
            guest.remove("sys/bus/pci/devices/.keep");
            guest
        }

        pub(crate) fn root(&self) -> Root {
            Root::at(self.0.path())
        }

        pub(crate) fn write(&self, path: &str, text: &str) {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        pub(crate) fn remove(&self, path: &str) {
            fs::remove_file(self.0.path().join(path)).unwrap();
        }

        /// A function with ordinary attributes, some of them replaced.
        pub(crate) fn function(&self, address: &str, attributes: &[(&str, &str)]) {
            let ordinary = [
                ("vendor", "0x1234"),
                ("device", "0x1111"),
                ("subsystem_vendor", "0x1af4"),
                ("subsystem_device", "0x1100"),
                ("modalias", "pci:v00001234d00001111sv00001AF4sd00001100bc03sc80i00"),
                ("resource", "0x00000000fd000000 0x00000000fdffffff 0x0000000000042208\n"),
            ];
            let device = format!("sys/devices/pci0000:00/{address}");
            for (name, value) in ordinary.iter().chain(attributes) {
                self.write(&format!("{device}/{name}"), &format!("{value}\n"));
            }
            let target = format!("../../../devices/pci0000:00/{address}");
            symlink(target, self.0.path().join("sys/bus/pci/devices").join(address)).unwrap();
        }

        pub(crate) fn driver(&self, address: &str, driver: &str) {
            let link = format!("sys/devices/pci0000:00/{address}/driver");
            symlink(format!("../../../bus/pci/drivers/{driver}"), self.0.path().join(link)).unwrap();
        }

        /// A display device below `parent` with connectors (name, status, modes).
        pub(crate) fn display(
            &self,
            parent: &str,
            card: &str,
            (major, minor): (u32, u32),
            connectors: &[(&str, &str, &str)],
        ) {
            let dir = format!("sys/devices/pci0000:00/{parent}/drm/{card}");
            self.write(&format!("{dir}/dev"), &format!("{major}:{minor}\n"));
            symlink("../..", self.0.path().join(&dir).join("device")).unwrap();
            let class = self.0.path().join("sys/class/drm");
            fs::create_dir_all(&class).unwrap();
            symlink(format!("../../../{dir}"), class.join(card)).unwrap();
            for (name, status, modes) in connectors {
                self.write(&format!("{dir}/{card}-{name}/status"), &format!("{status}\n"));
                self.write(&format!("{dir}/{card}-{name}/modes"), modes);
                let link = format!("{card}-{name}");
                symlink(format!("../../../{dir}/{link}"), class.join(link)).unwrap();
            }
        }
    }

    #[test]
    fn a_whole_report() {
        let guest = FakeGuest::new();
        guest.write("etc/os-release", "NAME=\"Debian\"\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n");
        guest.write("proc/sys/kernel/osrelease", "6.1.0-40-amd64\n");
        guest.write("proc/sys/kernel/random/boot_id", "0d5a7d6e-0b34-4d1b-9a3b-3c6f4b3f5a11\n");
        guest.write("proc/uptime", "9.12 8.01\n");
        guest.write("proc/cpuinfo", "flags\t\t: fpu hypervisor lahf_lm\n");
        guest.write(
            "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c",
            "\u{6}\0\0\0\u{1}",
        );
        let link = [
            ("current_link_speed", "8.0 GT/s PCIe"),
            ("current_link_width", "16"),
            ("max_link_width", "255"),
        ];
        guest.function("0000:01:00.0", &[[("class", "0x038000")].as_slice(), &link].concat());
        guest.driver("0000:01:00.0", "bochs-drm");
        guest.write("sys/bus/pci/drivers/bochs-drm/module/version", "580.95.05\n");
        guest.display("0000:01:00.0", "card0", (226, 0), &[("Virtual-1", "connected", "1280x800\n")]);
        let report = report(&guest.root());
        assert_eq!(report.uptime_ms, Some(9120));
        let machine = report.machine.clone().unwrap();
        assert_eq!((machine.hypervisor_present, machine.secure_boot), (Some(true), Some(true)));
        let card = &report.functions[0];
        assert_eq!(card.driver_version.as_deref(), Some("580.95.05"));
        assert_eq!(card.link, Some(GuestLink { speed: Some(3), width: Some(16), ..GuestLink::default() }));
        let text = human(&report).replace(&guest.0.path().display().to_string(), "");
        insta::assert_snapshot!(text, @r"
        Debian GNU/Linux 12 (bookworm), kernel 6.1.0-40-amd64
        0000:01:00.0 1234:1111 class 038000: bochs-drm
        card0 Virtual-1 of 0000:01:00.0: connected, 1280x800
        unknown: /dev/kmsg: No such file or directory (os error 2)
        ");
    }

    #[test]
    fn nothing_to_read_is_all_unknown() {
        let empty = tempfile::tempdir().unwrap();
        let report = report(&Root::at(empty.path()));
        assert_eq!((report.os, report.kernel, report.boot_id, report.uptime_ms), (None, None, None, None));
        assert_eq!(report.unknown.len(), 6, "{:?}", report.unknown);
    }

    #[test]
    fn the_report_of_this_machine_is_read_and_fits_the_limits() {
        let bytes = serde_json::to_vec(&report(&Root::real())).unwrap();
        let parsed = no43_guest::protocol::parse_report(&bytes).unwrap();
        assert!(parsed.kernel.is_some());
    }

    #[test]
    fn waiting_for_drivers_ends_at_the_mark() {
        let guest = FakeGuest::new();
        guest.write("run/no43-guest/init", "");
        guest.write("run/no43-guest/settled", "");
        wait_settled(&guest.root(), Duration::from_secs(600));
    }
}
