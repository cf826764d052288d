//! The guest that does not answer, functions that were left out, and pictures that do not show.

use crate::diagnosis::rule::{Row, Sign, is, none, says, some};

const PLACEHOLDER: &str = "the output says \"Guest has not initialized the display\"";
const STALE: &str = "the output still shows an earlier pattern";
const BLANK: &str = "the output has one colour only";
const CONNECTOR: &str = "a DRM connector of the card is there";
const NO_KVM: &str = "no KVM here";
const SILENT: &str = "the guest's serial port stayed silent";
const FROZEN: &str = "the emulated screen did not change any more";

const PICTURE: &[Sign] = &[is("run.failed", &["picture"])];
const AGENT: &[Sign] = &[is("run.failed", &["agent"])];

pub(super) const ROWS: &[Row] = &[
    Row {
        id: "function-left-out",
        when: &[is("run.failed", &["present", "audio"])],
        cause: "the machine is not given all functions of the card",
        fix: "[[card]] functions = \"all\", or leave the key out; somebody else's VM: pass every function through",
        speaks_for: &[some("recipe.functions").weighs(5), some("guest.missing").weighs(1)],
        speaks_against: &[none("recipe.functions").weighs(8), some("host.gone").weighs(8)],
        usual: 0,
        source: "passthrough D20; seen in the lab",
    },
    Row {
        id: "audio-without-driver",
        when: &[is("run.failed", &["audio"])],
        cause: "the card's audio function has no driver in the guest",
        fix: "guest.packages: a kernel with snd_hda_intel (linux-image-amd64); on Windows the package's HDAudio part",
        speaks_for: &[is("guest.audio-driver", &["none"]).weighs(3)],
        speaks_against: &[some("recipe.functions").weighs(6), some("guest.blacklist").weighs(4)],
        usual: 0,
        source: "harness 3c",
    },
    Row {
        id: "output-not-switched-on",
        when: PICTURE,
        cause: "no driver has switched the card's output on: it still shows QEMU's placeholder",
        fix: "look at the driver's lines of the guest; the card's connector must be connected and have a mode",
        speaks_for: &[is("run.mark", &[PLACEHOLDER]).weighs(4)],
        speaks_against: &[is("run.mark", &[CONNECTOR])],
        usual: 0,
        source: "seen in the lab",
    },
    Row {
        id: "other-card-painted",
        when: PICTURE,
        cause: "the guest painted on another card than the one whose output was captured",
        fix: "two equal cards may have changed places: compare the guest's addresses with the host's in this report",
        speaks_for: &[
            is("run.mark", &[STALE]).weighs(3),
            is("run.mark", &[PLACEHOLDER]),
            some("host.same-id").weighs(2),
        ],
        speaks_against: &[none("host.same-id").weighs(3)],
        usual: 0,
        source: "seen in the lab",
    },
    Row {
        id: "output-blank",
        when: PICTURE,
        cause: "the output is on and nothing is drawn on it",
        fix: "another program may be the display's master (a login screen): stop it before the check",
        speaks_for: &[is("run.mark", &[BLANK]).weighs(3)],
        speaks_against: &[is("run.mark", &[PLACEHOLDER]).weighs(4)],
        usual: 0,
        source: "seen in the lab",
    },
    Row {
        id: "no-screen-at-the-card",
        when: &[is("run.failed", &["connector", "picture", "work"])],
        cause: "no screen is connected to the card, so that nothing shows a desktop on it",
        fix: "plug a monitor or a dummy plug into the card; the card itself is well (this is no Code 43)",
        speaks_for: &[none("guest.connectors").weighs(4)],
        speaks_against: &[
            some("guest.connectors").weighs(6),
            is("run.mark", &[PLACEHOLDER]).weighs(3),
            is("guest.code", &["43", "28", "10", "12", "31"]).weighs(6),
        ],
        usual: 0,
        source: "passthrough D25",
    },
    Row {
        id: "kernel-panic",
        when: &[is("run.failed", &["agent", "machine"])],
        cause: "the guest's kernel stopped",
        fix: "read the serial log from the first line of the panic upward",
        speaks_for: &[
            says("serial.says", &["kernel panic", "attempted to kill init"]).weighs(3),
            says("serial.says", &["end trace"]),
        ],
        speaks_against: &[says("serial.says", &["unable to mount root"]).weighs(2)],
        usual: 0,
        source: "seen in the lab",
    },
    Row {
        id: "system-disk-not-found",
        when: AGENT,
        cause: "the guest's system disk was not found",
        fix: "guest.initrd-modules: the initrd needs the disk's driver (virtio_blk, ahci)",
        speaks_for: &[says(
            "serial.says",
            &[
                "unable to mount root",
                "gave up waiting for root",
                "no bootable device",
                "waiting for root device",
            ],
        )
        .weighs(5)],
        speaks_against: &[],
        usual: 0,
        source: "seen in the lab",
    },
    Row {
        id: "still-starting",
        when: AGENT,
        cause: "the guest is still starting: without KVM everything takes 10 to 30 times as long",
        fix: "checks.ready: give it more time, or use a host with a working KVM (no43 doctor)",
        speaks_for: &[is("run.mark", &[NO_KVM]).weighs(3)],
        speaks_against: &[
            is("run.mark", &[FROZEN]).weighs(3),
            says("serial.says", &["login:", "kernel panic"]).weighs(4),
        ],
        usual: 0,
        source: "seen in the lab",
    },
    Row {
        id: "agent-not-running",
        when: AGENT,
        cause: "the guest runs, and its agent does not",
        fix: "guest.packages: qemu-guest-agent; in the guest: systemctl status qemu-guest-agent",
        speaks_for: &[says("serial.says", &["login:", "reached target"]).weighs(3)],
        speaks_against: &[
            says("serial.says", &["kernel panic", "unable to mount root", "gave up waiting for root"])
                .weighs(4),
            is("run.mark", &[SILENT]).weighs(3),
        ],
        usual: 1,
        source: "seen in the lab",
    },
    Row {
        id: "windows-stopped",
        when: &[some("machine.stop-code")],
        cause: "Windows stopped with a stop code (blue screen)",
        fix: "the code's parameters and the dump in the run's folder name the driver: !analyze -v in WinDbg",
        speaks_for: &[some("machine.stop-code").weighs(4)],
        speaks_against: &[is("machine.stop-code", &["0x116", "0x117", "0x119"]).weighs(3)],
        usual: 0,
        source: "QEMU, GUEST_PANICKED of type hyper-v",
    },
    Row {
        id: "windows-stopped-by-card",
        when: &[some("machine.stop-code")],
        cause: "Windows stopped because the card's driver could not bring the card back (stop code of the display)",
        fix: "another branch in driver.package; then power and the host's kernel log in this report",
        speaks_for: &[is("machine.stop-code", &["0x116", "0x117", "0x119", "0xea"]).weighs(7)],
        speaks_against: &[],
        usual: 0,
        source: "Microsoft, bug checks 0x116, 0x117, 0x119, 0xEA",
    },
];
