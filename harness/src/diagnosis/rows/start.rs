//! The machine that does not start: what the host lacks, who holds the card, what QEMU says.

use crate::diagnosis::rule::{Row, Sign, is, none, says, some};

const START: &[Sign] = &[is("run.failed", &["start", "machine", "memory"])];
const BEFORE: &[Sign] = &[is("run.failed", &["lease", "bind", "start"])];

pub(super) const ROWS: &[Row] = &[
    Row {
        id: "locked-memory",
        when: START,
        cause: "QEMU may not lock the guest's memory",
        fix: "raise the limit for locked memory (no43 doctor says by how much), then log in again",
        speaks_for: &[says(
            "qemu.says",
            &["vfio_map_dma", "vfio_dma_map", "cannot allocate memory", "locked memory", "rlimit_memlock"],
        )
        .weighs(3)],
        speaks_against: &[says("qemu.says", &["signal 9"]).weighs(2)],
        usual: 0,
        source: "passthrough D22; seen in the lab",
    },
    Row {
        id: "group-not-viable",
        when: BEFORE,
        cause: "another device of the card's IOMMU group is in use by the host, and a group goes to one machine as a whole",
        fix: "no43 doctor names the device; another slot, or ACS in the firmware set-up",
        speaks_for: &[says("qemu.says", &["is not viable", "not viable"]).weighs(5)],
        speaks_against: &[],
        usual: 0,
        source: "passthrough D13; seen in the lab",
    },
    Row {
        id: "group-held",
        when: START,
        cause: "the card's group is held by somebody else, or belongs to another user",
        fix: "no43 gpus names the holder; /dev/vfio/<group> must belong to the user that runs QEMU",
        speaks_for: &[says(
            "qemu.says",
            &["device or resource busy", "permission denied", "failed to open /dev/vfio/"],
        )
        .weighs(3)],
        speaks_against: &[says("qemu.says", &["not viable"]).weighs(3)],
        usual: 0,
        source: "harness-log-patterns",
    },
    Row {
        id: "iommu-off",
        when: BEFORE,
        cause: "the host's IOMMU is off or missing",
        fix: "firmware set-up: VT-d or AMD-Vi on; kernel: intel_iommu=on iommu=pt (no43 doctor)",
        speaks_for: &[
            none("host.iommu").weighs(5),
            says("qemu.says", &["no iommu_group found", "failed with error -22"]).weighs(4),
        ],
        speaks_against: &[some("host.iommu").weighs(6)],
        usual: 0,
        source: "passthrough D14",
    },
    Row {
        id: "rmrr",
        when: BEFORE,
        cause: "the host's firmware keeps a part of memory for this slot (RMRR), and the IOMMU cannot give it away",
        fix: "another slot; some firmware has a switch for it (HP: shared memory)",
        speaks_for: &[says("host.says", &["platform rmrr requirement", "rmrr"]).weighs(6)],
        speaks_against: &[],
        usual: 0,
        source: "passthrough D15",
    },
    Row {
        id: "no-interrupt-remapping",
        when: START,
        cause: "the host's IOMMU does not remap interrupts",
        fix: "firmware set-up: VT-d or AMD-Vi with interrupt remapping; kernel: intel_iommu=on iommu=pt",
        speaks_for: &[
            says("qemu.says", &["interrupt remapping"]).weighs(4),
            says("host.says", &["no interrupt remapping"]).weighs(5),
            is("host.interrupt-remapping", &["off"]).weighs(3),
        ],
        speaks_against: &[is("host.interrupt-remapping", &["on"]).weighs(6)],
        usual: 0,
        source: "passthrough D16",
    },
    Row {
        id: "qemu-option",
        when: START,
        cause: "QEMU does not know an option that it was given",
        fix: "install the QEMU that README names (7.2 or newer); which qemu-system-x86_64 shows which one is used",
        speaks_for: &[says(
            "qemu.says",
            &[
                "is not a valid device model",
                "invalid option",
                "unsupported machine type",
                "property not found",
                "' not found",
            ],
        )
        .weighs(3)],
        speaks_against: &[],
        usual: 0,
        source: "QEMU's messages",
    },
    Row {
        id: "qemu-killed",
        when: START,
        cause: "QEMU was killed: the host ran out of memory, or its sandbox stopped a system call",
        fix: "journalctl -k on the host names the process (oom-kill) or the system call (audit, SECCOMP)",
        speaks_for: &[
            says("qemu.says", &["signal 9", "signal: 9", "signal 31", "signal: 31", "bad system call"])
                .weighs(3),
            says("host.says", &["out of memory: killed process", "oom-kill"]).weighs(4),
        ],
        speaks_against: &[some("host.gone").weighs(4)],
        usual: 0,
        source: "seen in the lab",
    },
    Row {
        id: "card-in-use",
        when: BEFORE,
        cause: "a program of the host uses the card",
        fix: "end the program that the message names, or keep the card free from boot (no43 doctor)",
        speaks_for: &[says("qemu.says", &["in use by", "is open in"]).weighs(4)],
        speaks_against: &[],
        usual: 0,
        source: "passthrough D23; seen in the lab",
    },
    Row {
        id: "ids-match-two-cards",
        when: BEFORE,
        cause: "vfio-pci.ids of the host's kernel command line takes every card with these ids, the host's own too",
        fix: "remove vfio-pci.ids; no43 binds by address",
        speaks_for: &[some("host.vfio-ids").weighs(3), some("host.same-id").weighs(3)],
        speaks_against: &[none("host.vfio-ids").weighs(8), none("host.same-id").weighs(8)],
        usual: 0,
        source: "passthrough D24",
    },
];
