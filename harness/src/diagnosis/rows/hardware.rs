//! Windows of memory, the bus, the link, and what NVIDIA's numbers (Xid) say about the card itself.

use crate::diagnosis::rule::{Row, below, is, less, none, number, says, some};

pub(super) const ROWS: &[Row] = &[
    Row {
        id: "bar-window-too-small",
        when: &[
            is("guest.code", &["12", "29", "16", "33"]),
            is("run.failed", &["driver", "present"]),
            says("guest.says", &["is invalid", "no space for", "failed to assign"]),
        ],
        cause: "a memory window of the card got no address in the guest: the firmware's window for it is too small",
        fix: "machine.firmware = \"uefi\" gives the larger window above 4 GiB; QEMU 8.1 or newer for resizable BARs",
        speaks_for: &[
            is("guest.code", &["12"]).weighs(3),
            some("guest.unassigned").weighs(4),
            says("guest.says", &["assigned to your nvidia device is invalid"]).weighs(5),
            says("guest.says", &["can't assign", "no space for", "failed to assign"]).weighs(3),
            number("host.bar-largest", 8 << 30).weighs(2),
            below("qemu.version", "8.1").weighs(1),
        ],
        speaks_against: &[
            none("guest.unassigned").weighs(4),
            says("host.says", &["can't assign; no space", "bar 1: no space", "bar 0: no space"]).weighs(4),
            is("guest.code", &["28", "43"]).weighs(2),
        ],
        usual: 0,
        source: "passthrough D09",
    },
    Row {
        id: "host-has-no-room-for-bars",
        when: &[
            is("guest.code", &["12", "43", "10"]),
            is("run.failed", &["present", "start", "bind", "driver"]),
        ],
        cause: "the host's own firmware could not place the card's memory windows",
        fix: "host firmware set-up: Above 4G Decoding on; else pci=realloc on the host's kernel command line",
        speaks_for: &[
            says("host.says", &["can't assign; no space", "bar 1: no space", "bar 0: no space"]).weighs(7)
        ],
        speaks_against: &[],
        usual: 0,
        source: "passthrough D10",
    },
    Row {
        id: "fallen-off-the-bus",
        when: &[is("guest.xid", &["79"]), says("guest.says", &["fallen off the bus"])],
        cause: "the card has fallen off the bus: power, riser, power saving of the link, or a reset that failed",
        fix: "check the card's power cables and riser; on the host pcie_aspm=off; now switch the host off and on",
        speaks_for: &[
            is("guest.xid", &["79"]).weighs(4),
            says("guest.says", &["fallen off the bus"]).weighs(4),
        ],
        speaks_against: &[says("host.says", &["d3cold to d0", "currently in d3"]).weighs(6)],
        usual: 0,
        source: "Xid table; open-gpu-kernel-modules osinit.c",
    },
    Row {
        id: "gsp-firmware",
        when: &[is("guest.xid", &["119", "120", "143"])],
        cause: "the card's own controller (GSP) did not start or did not answer: a bad state left by an earlier owner, or a driver that does not fit",
        fix: "switch the host off and on; if it stays, another branch in driver.package",
        speaks_for: &[is("guest.xid", &["119", "120"]).weighs(5), is("guest.xid", &["143"]).weighs(4)],
        speaks_against: &[is("guest.xid", &["79"]).weighs(6)],
        usual: 0,
        source: "Xid table",
    },
    Row {
        id: "iommu-fault",
        when: &[says("host.says", &["dmar: [dma", "io_page_fault"]), is("guest.xid", &["31", "32"])],
        cause: "the host's IOMMU refused an access of the card: its addresses are not those of the guest",
        fix: "no43 doctor; intel_iommu=on or amd_iommu=on with iommu=pt; a host kernel update",
        speaks_for: &[
            says("host.says", &["dmar: [dma", "io_page_fault"]).weighs(6),
            is("guest.xid", &["31", "32"]).weighs(1),
        ],
        speaks_against: &[],
        usual: 0,
        source: "Xid table; kernel messages unverified",
    },
    Row {
        id: "program-fault",
        when: &[is("guest.xid", &["13", "31", "43", "45", "69"])],
        cause: "a program or the driver made an access that the card refused; the card itself is well",
        fix: "run the program alone; another version of it or of the driver (driver.package)",
        speaks_for: &[
            is("guest.xid", &["13", "31", "43", "69"]).weighs(3),
            is("guest.xid", &["45"]).weighs(1),
        ],
        speaks_against: &[
            says("host.says", &["dmar: [dma", "io_page_fault", "pcie bus error"]).weighs(5),
            is("guest.xid", &["79", "48", "94", "95", "119", "120"]).weighs(6),
        ],
        usual: 0,
        source: "Xid table",
    },
    Row {
        id: "card-memory-broken",
        when: &[is("guest.xid", &["48", "58", "63", "64", "92", "94", "95", "140", "171", "172", "175"])],
        cause: "the card's memory makes errors",
        fix: "test the card in another machine; a card whose errors come again is broken",
        speaks_for: &[
            is("guest.xid", &["48", "58", "64", "95", "140", "171", "172", "175"]).weighs(5),
            is("guest.xid", &["63", "92", "94"]).weighs(4),
        ],
        speaks_against: &[],
        usual: 0,
        source: "Xid table",
    },
    Row {
        id: "driver-engine-fault",
        when: &[is("guest.xid", &["8", "38", "44", "46", "59", "61", "62", "109", "110", "158", "169"])],
        cause: "the card stopped working on a task and its driver gave up: driver, heat or hardware",
        fix: "watch the card's temperature; another driver (driver.package); then the card in another machine",
        speaks_for: &[is(
            "guest.xid",
            &["8", "38", "44", "46", "59", "61", "62", "109", "110", "158", "169"],
        )
        .weighs(4)],
        speaks_against: &[is("guest.xid", &["79"]).weighs(6)],
        usual: 0,
        source: "Xid table",
    },
    Row {
        id: "pcie-errors",
        when: &[
            some("host.aer"),
            says("host.says", &["pcie bus error", "aer:"]),
            says("guest.says", &["pcie bus error"]),
            is("guest.xid", &["167", "176"]),
        ],
        cause: "the PCI Express link to the card makes errors: contacts, riser, slot, or power saving of the link",
        fix: "reseat the card, leave the riser out; on the host pcie_aspm=off",
        speaks_for: &[
            some("host.aer").weighs(5),
            says("host.says", &["pcie bus error", "aer:"]).weighs(4),
            says("guest.says", &["pcie bus error"]).weighs(3),
            is("guest.xid", &["167", "176"]).weighs(4),
        ],
        speaks_against: &[some("host.gone").weighs(8)],
        usual: 0,
        source: "passthrough D27; Linux AER; seen in the lab",
    },
    Row {
        id: "link-narrower",
        when: &[is("run.failed", &["link"]), is("guest.code", &["43"])],
        cause: "the card's link has fewer lanes than card and slot could have",
        fix: "another slot, no riser; M.2 disks of some boards take lanes of the slot",
        speaks_for: &[
            less("host.link-width", "host.link-width-max").weighs(3),
            less("guest.link-width", "host.link-width").weighs(3),
        ],
        speaks_against: &[some("host.aer").weighs(2)],
        usual: 0,
        source: "passthrough D27",
    },
    Row {
        id: "card-gone",
        when: &[some("host.gone"), is("run.failed", &["machine", "given back", "present"])],
        cause: "the card left the host's bus while the machine ran",
        fix: "check slot, riser and power; then switch the host off and on",
        speaks_for: &[
            some("host.gone").weighs(7),
            says("host.says", &["card not present", "link down", "surprise"]).weighs(3),
        ],
        speaks_against: &[none("host.gone").weighs(8)],
        usual: 0,
        source: "seen in the lab",
    },
];
