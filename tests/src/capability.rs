//! Named capabilities of the machine that a case may need, each detected once.

use crate::programs;
use anyhow::{Result, bail};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// Why a capability is not there, and what would help.
type Missing = String;

/// One row: a name, and how to find out.
struct Capability {
    name: &'static str,
    detect: fn() -> Result<(), Missing>,
    seen: OnceLock<Result<(), Missing>>,
}

const fn row(name: &'static str, detect: fn() -> Result<(), Missing>) -> Capability {
    Capability { name, detect, seen: OnceLock::new() }
}

static TABLE: [Capability; 16] = [
    row("no43", || programs::no43().map(drop).map_err(|e| e.to_string())),
    row("lab", lab),
    row("kvm", kvm),
    row("nvidia-card", nvidia_card),
    row("root", || met(rustix::process::geteuid().is_root(), "not root: run the suite with sudo -E")),
    row("mount-namespace", mount_namespace),
    row("mmdebstrap", || met(runs("mmdebstrap", "--version"), "mmdebstrap is not here (package mmdebstrap)")),
    row("uefi", || {
        met(Path::new("/usr/share/OVMF/OVMF_CODE_4M.fd").is_file(), "no UEFI firmware here (package ovmf)")
    }),
    row("qemu-ga", || {
        met(Path::new("/usr/sbin/qemu-ga").is_file(), "no qemu-ga here (package qemu-guest-agent)")
    }),
    row("wine", wine),
    row("xvfb", || met(Path::new("/usr/bin/Xvfb").is_file(), "no screen for Wine here (package xvfb)")),
    row("wixl", || met(runs("wixl", "--version"), "wixl is not here (package wixl)")),
    row("stand-in", stand_in),
    row("swtpm", || met(runs("swtpm", "--version"), "no virtual TPM here (package swtpm)")),
    row("logind-mock", || {
        met(
            runs(crate::logind::PYTHON, "-cimport dbusmock") && runs("dbus-daemon", "--version"),
            "no mock of logind here (packages python3-dbusmock, dbus-daemon and dbus-bin)",
        )
    }),
    row("soak", || met(std::env::var_os("NO43_SOAK").is_some(), "a long case: ci/test --soak")),
];

/// Is the capability here? The inner error is the reason why not; the outer one says that no such name exists.
pub fn check(name: &str) -> Result<Result<(), String>> {
    let Some(row) = TABLE.iter().find(|c| c.name == name) else {
        let names: Vec<_> = TABLE.iter().map(|c| c.name).collect();
        bail!("no capability is called '{name}'; there are {}", names.join(", "));
    };
    Ok(row.seen.get_or_init(row.detect).clone())
}

fn met(yes: bool, otherwise: &str) -> Result<(), Missing> {
    if yes { Ok(()) } else { Err(otherwise.to_owned()) }
}

fn runs(program: &str, argument: &str) -> bool {
    let mut command = Command::new(program);
    command.arg(argument).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|s| s.success())
}

fn lab() -> Result<(), Missing> {
    programs::no43().map_err(|e| e.to_string())?;
    met(runs("mmdebstrap", "--version"), "no lab without mmdebstrap (package mmdebstrap)")?;
    let out = Command::new("qemu-system-x86_64").arg("--version").output();
    let text = out.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
    match qemu_major(&text) {
        Some(major) if major >= 10 => Ok(()),
        Some(major) => Err(format!("the lab needs QEMU 10 or newer, here is {major}: ci/test installs it")),
        None => Err("no qemu-system-x86_64 here (package qemu-system-x86)".to_owned()),
    }
}

fn wine() -> Result<(), Missing> {
    programs::windows_guest().map_err(|e| e.to_string())?;
    met(
        runs("wine", "--version") && runs("wineserver", "--version"),
        "no wine here (packages wine and wine64)",
    )
}

/// What the medium of the stand-in for Windows Setup is made with, and what it runs on.
fn stand_in() -> Result<(), Missing> {
    lab()?;
    met(Path::new("/usr/share/OVMF/OVMF_CODE_4M.fd").is_file(), "no UEFI firmware here (package ovmf)")?;
    for (path, package) in [
        ("/usr/bin/genisoimage", "genisoimage"),
        ("/usr/sbin/qemu-ga", "qemu-guest-agent"),
        ("/usr/bin/mcopy", "mtools"),
        ("/usr/bin/sbsign", "sbsigntool"),
        ("/bin/busybox", "busybox-static"),
    ] {
        met(Path::new(path).is_file(), &format!("{path} is not here (package {package})"))?;
    }
    Ok(())
}

/// `QEMU emulator version 10.0.2 (…)` → 10.
fn qemu_major(text: &str) -> Option<u32> {
    text.split("version ").nth(1)?.split('.').next()?.parse().ok()
}

fn kvm() -> Result<(), Missing> {
    let verdict = no43_host::kvm::probe();
    met(verdict.is_usable(), &format!("no KVM that runs guest code: {verdict}"))
}

fn nvidia_card() -> Result<(), Missing> {
    let read = |dir: &Path, file: &str| std::fs::read_to_string(dir.join(file)).unwrap_or_default();
    let devices =
        std::fs::read_dir("/sys/bus/pci/devices").map_err(|_| "this machine has no PCI bus".to_owned())?;
    let display =
        |dir: &Path| read(dir, "vendor").trim() == "0x10de" && read(dir, "class").starts_with("0x03");
    met(devices.filter_map(Result::ok).any(|d| display(&d.path())), "no NVIDIA card in this machine")
}

fn mount_namespace() -> Result<(), Missing> {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--map-root-user", "true"]).stdin(Stdio::null()).stderr(Stdio::null());
    met(
        command.status().is_ok_and(|s| s.success()),
        "no mount namespaces for this user (unshare --map-root-user)",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_name_is_an_error_and_not_a_skip() {
        let error = check("gpu").expect_err("no such row").to_string();
        assert!(error.contains("'gpu'") && error.contains("nvidia-card"), "{error}");
    }

    #[test]
    fn the_version_of_qemu_is_found() {
        assert_eq!(qemu_major("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright"), Some(10));
        assert_eq!(qemu_major("bash: not found"), None);
    }
}
