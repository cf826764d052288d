//! Drivers taken from a disc that is made like virtio-win's, onto a set-up disk.

use std::process::Command;

use super::*;
use crate::media::SYSTEMS;
use crate::media::inspect::tests::{Disc, tool};

fn system(os: &str) -> &'static System {
    SYSTEMS.iter().find(|system| system.os == os).unwrap()
}

/// A disc with viostor for these systems, NetKVM for all, and the agent.
fn virtio(systems: &[&str]) -> (Disc, PathBuf) {
    let disc = Disc::empty();
    for system in systems {
        for name in ["viostor.inf", "viostor.sys", "viostor.cat", "viostor.pdb"] {
            disc.file(&format!("viostor/{system}/amd64/{name}"), format!("{system} {name}").as_bytes());
        }
    }
    disc.file("viostor/w10/x86/viostor.inf", b"32 bits");
    disc.file("NetKVM/w10/amd64/netkvm.inf", b"network");
    disc.file("NetKVM/w11/amd64/readme.txt", b"no driver");
    disc.file("guest-agent/qemu-ga-x86_64.msi", b"agent");
    let iso = disc.dir.path().join("virtio.iso");
    let mut command = Command::new("genisoimage");
    command.args(["-quiet", "-m", "bin", "-r", "-J", "-input-charset", "iso8859-1"]);
    command.args(["-V", "virtio-win-0.1.271", "-o"]);
    tool(command.arg(&iso).arg(disc.dir.path().join("root")));
    (disc, iso)
}

#[test]
fn only_what_the_machine_needs_goes_onto_the_set_up_disk() {
    let (disc, iso) = virtio(&["w10", "w11"]);
    let virtio = VirtioWin::open(&iso).unwrap();
    let mut setup = SetupDisk::new("NO43").unwrap();
    let windows = system("windows10");
    let infs = virtio.put(&mut setup, WINPE_DRIVERS, &[&DISK, &NETWORK], windows).unwrap();
    assert_eq!(infs, ["$WinPEDriver$/viostor/viostor.inf", "$WinPEDriver$/NetKVM/netkvm.inf"]);
    setup.file("agent.msi", virtio.file(GUEST_AGENT).unwrap().expect("there")).unwrap();
    let image = disc.dir.path().join("setup.img");
    let written = setup.write(&image).unwrap();
    assert_eq!(written.files, 5, "three of viostor, one of NetKVM, the agent");
    let drive = format!("{}@@1M", image.display());
    let shown = Command::new("mtype").args(["-i", &drive, "::$WinPEDriver$/viostor/viostor.sys"]).output();
    assert_eq!(shown.unwrap().stdout, b"w10 viostor.sys");
}

#[test]
fn a_system_without_a_driver_is_named_with_those_that_have_one() {
    let (disc, iso) = virtio(&["w11", "2k22"]);
    let virtio = VirtioWin::open(&iso).unwrap();
    let said = |driver, os| {
        let error = virtio.driver(driver, system(os)).unwrap_err().to_string();
        error.replace(&disc.dir.path().display().to_string(), "DIR")
    };
    let lines = [said(&DISK, "windows10"), said(&SCSI, "windows11"), said(&NETWORK, "windows11")];
    insta::assert_snapshot!(lines.join("\n"), @r#"
    DIR/virtio.iso carries viostor for 2k22, w11, the media is Windows 10
        fix   inputs.virtio: use an ISO with viostor/w10/amd64, or set machine.disk-bus = "ahci"
    DIR/virtio.iso carries vioscsi for no system, the media is Windows 11
        fix   inputs.virtio: use an ISO with vioscsi/w11/amd64, or set machine.disk-bus = "ahci"
    NetKVM/w11/amd64 on DIR/virtio.iso is not a driver: there is no netkvm.inf
    "#);
}

#[test]
fn the_lock_says_which_systems_have_drivers() {
    let (_disc, iso) = virtio(&["w11", "2k22"]);
    let facts = VirtioWin::open(&iso).unwrap().facts().unwrap();
    assert_eq!(facts["virtio-win"], "0.1.271");
    assert_eq!(facts["viostor"], "2k22, w11");
    assert_eq!(facts["vioscsi"], "no system");
}

#[test]
fn versions_that_stop_setup_are_warned_of() {
    let (_disc, iso) = virtio(&["w11"]);
    let mut virtio = VirtioWin::open(&iso).unwrap();
    assert_eq!(virtio.version(), Some([0, 1, 271]));
    assert_eq!(virtio.warning(26100), None);
    virtio.iso.label = "virtio-win-0.1.240".into();
    assert_eq!(virtio.warning(19045), None);
    let warning = virtio.warning(26100).unwrap();
    assert_eq!(
        warning,
        "virtio-win 0.1.240 is known to stop Windows Setup of build 26100; take 0.1.258 or newer"
    );
}

#[test]
fn other_discs_are_not_taken_for_one() {
    let disc = Disc::windows();
    let error = VirtioWin::open(&disc.iso()).unwrap_err().to_string();
    assert!(error.contains("has no folder viostor"), "{error}");
    let file = disc.dir.path().join("page.iso");
    std::fs::write(&file, [b'<'; 70_000]).unwrap();
    let error = VirtioWin::open(&file).unwrap_err().to_string();
    assert!(error.contains("it has no ISO 9660 volume"), "{error}");
}
