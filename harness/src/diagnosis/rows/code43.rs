//! Causes of Code 43 and of its Linux equivalent, `RmInitAdapter failed`: the driver itself gave the card up.
//!
//! Most are reports of users, compared with each other; none was seen on a real Windows by this project yet.

use crate::diagnosis::rule::{Row, Sign, at_least, below, differs, is, none, says, some};

/// The driver reported a failed device after its start.
const GAVE_UP: &[Sign] =
    &[is("guest.code", &["43"]), says("guest.says", &["rminitadapter failed", "rm_init_adapter failed"])];
/// The same, or a failed start.
const GAVE_UP_OR_FAILED: &[Sign] = &[
    is("guest.code", &["43", "10"]),
    says("guest.says", &["rminitadapter failed", "rm_init_adapter failed"]),
    is("run.failed", &["start", "machine"]),
];

pub(super) const ROWS: &[Row] = &[
    Row {
        id: "driver-older-than-465",
        when: GAVE_UP,
        cause: "a driver older than 465 refuses to work where it sees a hypervisor",
        fix: "driver.package: a package of branch 465 or newer (no43 driver inspect PACKAGE)",
        speaks_for: &[below("guest.driver-version", "465.89").weighs(5), some("guest.hypervisor").weighs(1)],
        speaks_against: &[
            at_least("guest.driver-version", "465.89").weighs(9),
            is("machine.hypervisor-hidden", &["yes"]).weighs(4),
            none("guest.hypervisor").weighs(4),
        ],
        usual: 0,
        source: "passthrough D01",
    },
    Row {
        id: "windows-update-driver",
        when: &[is("guest.code", &["43"]), is("run.failed", &["driver", "version"])],
        cause: "Windows Update put its own driver over the one that was installed",
        fix: "updates.driver = \"ours\", then no43 build; for a guest that is kept: no43 driver lock NAME once the right driver is back",
        speaks_for: &[
            is("guest.driver-source", &["windows-update"]).weighs(7),
            // no log of Windows says it in so many words
            differs("guest.driver-version", "recipe.driver-version").weighs(3),
            is("recipe.updates-driver", &["free"]).weighs(1),
        ],
        speaks_against: &[is("guest.driver-source", &["package"]).weighs(9)],
        usual: 0,
        source: "passthrough D02",
    },
    Row {
        id: "guest-runs-a-hypervisor",
        when: GAVE_UP,
        cause: "the guest runs a hypervisor of its own (Hyper-V, WSL 2, memory integrity), and the card's interrupts end there",
        fix: "in the guest: bcdedit /set hypervisorlaunchtype off, memory integrity off, restart",
        speaks_for: &[
            is("guest.own-hypervisor", &["yes"]).weighs(4),
            is("guest.memory-integrity", &["on"]).weighs(1),
        ],
        speaks_against: &[is("guest.own-hypervisor", &["no"]).weighs(6)],
        usual: 0,
        source: "passthrough D04 (reports are mostly of Intel and AMD cards)",
    },
    Row {
        id: "host-framebuffer",
        when: &[
            is("guest.code", &["43"]),
            says("host.says", &["can't reserve"]),
            is("run.failed", &["driver", "start", "picture"]),
        ],
        cause: "a framebuffer of the host's console still owns a BAR of the card",
        fix: "make another card the first one in the firmware set-up, or add initcall_blacklist=sysfb_init to the host's kernel",
        speaks_for: &[
            some("host.framebuffer").weighs(5),
            says("host.says", &["can't reserve"]).weighs(4),
            is("host.boot-vga", &["1"]).weighs(1),
        ],
        speaks_against: &[none("host.framebuffer").weighs(6), is("host.boot-vga", &["0"]).weighs(1)],
        usual: 0,
        source: "passthrough D05",
    },
    Row {
        id: "rom-shadowed",
        when: &[is("guest.code", &["43"]), is("run.failed", &["agent", "start", "picture"])],
        cause: "the card's video BIOS cannot be read, because the host was started on this card",
        fix: "make another card the first one in the host's firmware set-up; then switch the host off and on",
        speaks_for: &[
            is("host.rom", &["unreadable", "empty"]).weighs(5),
            says("host.says", &["invalid pci rom header"]).weighs(4),
            says("qemu.says", &["cannot read device rom", "device option rom contents"]).weighs(4),
            is("host.boot-vga", &["1"]).weighs(1),
        ],
        speaks_against: &[is("host.rom", &["readable", "legacy only"]).weighs(8)],
        usual: 0,
        source: "passthrough D06",
    },
    Row {
        id: "rom-without-uefi",
        when: &[is("guest.code", &["43"]), is("run.failed", &["agent", "picture"])],
        cause: "the card's video BIOS has no UEFI part, so that UEFI firmware cannot start the card",
        fix: "machine.firmware = \"bios\", or a firmware update of the card by its maker",
        speaks_for: &[is("host.rom", &["legacy only"]).weighs(5)],
        speaks_against: &[
            is("host.rom", &["readable"]).weighs(8),
            is("machine.firmware", &["bios"]).weighs(6),
        ],
        usual: 0,
        source: "passthrough D07",
    },
    Row {
        id: "legacy-firmware",
        when: GAVE_UP,
        cause: "the machine starts by the old BIOS or as i440fx, on which some cards' drivers give up",
        fix: "machine.firmware = \"uefi\"",
        speaks_for: &[
            is("machine.firmware", &["bios"]).weighs(3),
            says("machine.type", &["i440fx", "pc-i440"]).weighs(3),
        ],
        speaks_against: &[
            is("machine.firmware", &["uefi", "uefi-secure"]).weighs(6),
            is("guest.os", &["linux"]).weighs(3),
        ],
        usual: 0,
        source: "passthrough D08 (few reports)",
    },
    Row {
        id: "d3cold",
        when: &[
            is("guest.code", &["43", "10", "9", "24"]),
            is("run.failed", &["start", "machine", "bind", "present", "driver"]),
            says("guest.says", &["fallen off the bus", "rminitadapter failed"]),
        ],
        cause: "the card fell asleep (D3cold) on the host and does not wake up",
        fix: "on the host: vfio-pci disable_idle_d3=1 and d3cold_allowed=0 for card and port; now switch the host off and on",
        speaks_for: &[
            says("host.says", &["d3cold to d0", "currently in d3", "giving up"]).weighs(6),
            says("qemu.says", &["stuck in d3", "unable to power on device"]).weighs(6),
            is("host.power-state", &["d3cold"]).weighs(4),
        ],
        speaks_against: &[is("host.power-state", &["d0"]).weighs(2)],
        usual: 0,
        source: "passthrough D11",
    },
    Row {
        id: "not-reset",
        when: GAVE_UP_OR_FAILED,
        cause: "the card was not reset between two owners: it works once, and not again",
        fix: "switch the host off and on; then bind all functions of the card, so that its bus can be reset (no43 doctor)",
        speaks_for: &[
            is("run.round", &["after-reboot", "after-cold-start", "after-replug"]).weighs(4),
            says("host.says", &["vfio_bar_restore", "reset recovery"]).weighs(5),
            is("host.reset-methods", &["pm", "none"]).weighs(3),
        ],
        speaks_against: &[
            is("run.round", &["first"]).weighs(3),
            says("host.reset-methods", &["flr", "bus"]).weighs(3),
        ],
        usual: 0,
        source: "passthrough D12; harness-log-patterns",
    },
    Row {
        id: "line-interrupts",
        when: &[is("guest.code", &["43", "36"]), is("run.failed", &["audio"])],
        cause: "the card signals by a shared line interrupt instead of messages (MSI)",
        fix: "in the guest: MSISupported = 1 for the card's functions, then restart",
        speaks_for: &[is("guest.msi", &["off"]).weighs(4), is("guest.code", &["36"]).weighs(3)],
        speaks_against: &[is("guest.msi", &["on"]).weighs(8), is("guest.os", &["linux"]).weighs(6)],
        usual: 0,
        source: "passthrough D17",
    },
    Row {
        id: "mobile-card-without-battery",
        when: GAVE_UP,
        cause: "the driver of a laptop's card wants a battery, and the machine has none",
        fix: "this version gives a machine no battery table: a guest with an ACPI table (SSDT) that holds one",
        speaks_for: &[
            is("guest.card-kind", &["mobile"]).weighs(3),
            is("host.chassis", &["9", "10", "14", "31", "32"]).weighs(2),
            none("guest.battery").weighs(2),
        ],
        speaks_against: &[some("guest.battery").weighs(8), is("guest.card-kind", &["desktop"]).weighs(8)],
        usual: 0,
        source: "passthrough D18",
    },
    Row {
        id: "subsystem-id",
        when: &[is("guest.code", &["28", "43"])],
        cause: "the guest sees other subsystem ids than the card has, and a maker's driver asks for them",
        fix: "remove present-as from [[card]]; a laptop's driver needs the laptop's own subsystem ids",
        speaks_for: &[
            differs("guest.subsystem", "host.subsystem").weighs(5),
            is("guest.subsystem", &["0000:0000"]).weighs(3),
        ],
        speaks_against: &[is("guest.inf-match", &["matches"]).weighs(6)],
        usual: 0,
        source: "passthrough D19",
    },
    Row {
        id: "card-at-the-root",
        when: GAVE_UP_OR_FAILED,
        cause: "the card sits on the root bus or behind a conventional bridge instead of a PCI Express port of its own",
        fix: "no43 gives each card a port of its own; in somebody else's VM: pcie-root-port, all functions in one slot",
        speaks_for: &[is("machine.slot", &["root bus", "conventional bridge"]).weighs(5)],
        speaks_against: &[is("machine.slot", &["root port"]).weighs(8)],
        usual: 0,
        source: "passthrough D20",
    },
    Row {
        id: "function-left-on-host",
        when: &[is("guest.code", &["43", "10"]), is("run.failed", &["present", "audio", "driver", "bind"])],
        cause: "a function of the card stayed with a driver of the host",
        fix: "[[card]] functions = \"all\"; no43 gpus shows who has each function",
        speaks_for: &[some("host.not-bound").weighs(6)],
        speaks_against: &[none("host.not-bound").weighs(8)],
        usual: 0,
        source: "passthrough D21",
    },
    Row {
        id: "vgpu-guest-driver",
        when: &[is("guest.code", &["43", "31"])],
        cause: "driver and licence of a virtual GPU do not fit the host's; such cards are not passed through whole",
        fix: "this version does not handle virtual GPUs: the driver must be of the host's vGPU release",
        speaks_for: &[is("guest.card-kind", &["vgpu"]).weighs(7)],
        speaks_against: &[is("guest.card-kind", &["desktop", "mobile"]).weighs(8)],
        usual: 0,
        source: "passthrough D30",
    },
];
