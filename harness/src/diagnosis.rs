//! Why it failed: causes as rows of a table, each with what speaks for and against it.
//!
//! One executor ([`diagnose`]) reads all rows; a new cause is a new row in `CAUSES`.

use serde::{Deserialize, Serialize};

/// A cause that fits what was seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The cause in one sentence.
    pub cause: String,
    /// What was seen that speaks for it.
    #[serde(default)]
    pub speaks_for: Vec<String>,
    /// What was seen that speaks against it.
    #[serde(default)]
    pub speaks_against: Vec<String>,
    /// What to do.
    pub fix: String,
    /// False when more speaks against it than for it.
    pub likely: bool,
}

/// What a run saw, as far as causes depend on it. Filled by the checks and the orchestration.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    /// Name of the check or phase that failed first.
    pub failed: String,
    /// The sentence of that failure.
    pub seen: String,
    /// Lines that the guest's kernel wrote about its cards.
    pub guest_lines: Vec<String>,
    /// End of the guest's serial port.
    pub serial_tail: Vec<String>,
    /// QEMU's own words.
    pub qemu_words: Vec<String>,
    /// What is known to be true of this run.
    pub marks: Vec<Mark>,
}

/// A fact that a cause can lean on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// The recipe shows the guest other ids than the card has.
    PresentAs,
    /// A DRM connector of the card was there.
    ConnectorSeen,
    /// The card's output shows QEMU's placeholder: no driver has set a mode.
    Placeholder,
    /// The card's output shows the pattern of an earlier round.
    StalePicture,
    /// The card's output has one colour only.
    BlankPicture,
    /// No hardware acceleration: everything is 10 to 30 times slower.
    NoKvm,
    /// The guest's serial port stayed silent.
    SilentSerial,
    /// The emulated screen did not change any more.
    FrozenScreen,
}

/// One thing to look for.
enum Sign {
    /// This text (lower case) in a line of the guest's kernel.
    GuestLine(&'static str),
    /// This text (lower case) in QEMU's words.
    QemuWord(&'static str),
    /// This text (lower case) near the end of the serial port.
    Serial(&'static str),
    /// This fact, and how to say it.
    Is(Mark, &'static str),
}

/// A row of the table.
struct Cause {
    /// For failures in these checks or phases.
    failed: &'static [&'static str],
    cause: &'static str,
    fix: &'static str,
    speaks_for: &'static [Sign],
    speaks_against: &'static [Sign],
    /// Listed even if nothing was seen that speaks for it.
    usual: bool,
}

use Sign::{GuestLine, Is, QemuWord, Serial};

/// All causes that are known, the usual ones first.
const CAUSES: &[Cause] = &[
    Cause {
        failed: &["driver"],
        cause: "the driver in the guest does not know this card",
        fix: "a driver that lists the card's ids, or the card's own ids: remove present-as from [[card]]",
        speaks_for: &[
            GuestLine("unknown chipset"),
            GuestLine("unsupported chipset"),
            GuestLine("is not supported by"),
            Is(Mark::PresentAs, "the recipe shows the card under other ids"),
        ],
        speaks_against: &[],
        usual: false,
    },
    Cause {
        failed: &["driver"],
        cause: "the guest has no driver for this card installed",
        fix: "guest.packages: add the driver; for Debian's own kernel the whole linux-image, not linux-image-cloud",
        speaks_for: &[GuestLine("no driver")],
        speaks_against: &[
            GuestLine("unknown chipset"),
            GuestLine("nouveau"),
            GuestLine("nvidia"),
            GuestLine("amdgpu"),
        ],
        usual: true,
    },
    Cause {
        failed: &["driver", "present"],
        cause: "a memory window of the card got no address in the guest",
        fix: "machine.firmware = \"uefi\" gives the larger window above 4 GiB",
        speaks_for: &[
            GuestLine("can't assign"),
            GuestLine("no space for"),
            GuestLine("failed to assign"),
            GuestLine("bar 0: no space"),
        ],
        speaks_against: &[],
        usual: false,
    },
    Cause {
        failed: &["driver"],
        cause: "the driver could not load its firmware files",
        fix: "guest.packages: firmware-misc-nonfree (nouveau), firmware-amd-graphics (amdgpu)",
        speaks_for: &[GuestLine("firmware: failed to load"), GuestLine("direct firmware load")],
        speaks_against: &[GuestLine("unknown chipset")],
        usual: false,
    },
    Cause {
        failed: &["picture"],
        cause: "no driver has switched the card's output on: it still shows QEMU's placeholder",
        fix: "look at the driver's lines of the guest; the card's connector must be connected and have a mode",
        speaks_for: &[Is(Mark::Placeholder, "the output says \"Guest has not initialized the display\"")],
        speaks_against: &[Is(Mark::ConnectorSeen, "a DRM connector of the card is there")],
        usual: false,
    },
    Cause {
        failed: &["picture"],
        cause: "the guest painted on another card than the one whose output was captured",
        fix: "two equal cards may have changed places: compare the guest's addresses with the host's in this report",
        speaks_for: &[
            Is(Mark::StalePicture, "the output still shows an earlier pattern"),
            Is(Mark::Placeholder, "the output was never switched on"),
        ],
        speaks_against: &[],
        usual: false,
    },
    Cause {
        failed: &["picture"],
        cause: "the output is on and nothing is drawn on it",
        fix: "another program may be the display's master (a login screen): stop it before the check",
        speaks_for: &[Is(Mark::BlankPicture, "the output has one colour only")],
        speaks_against: &[Is(Mark::Placeholder, "the output was never switched on")],
        usual: false,
    },
    Cause {
        failed: &["agent"],
        cause: "the guest's kernel stopped",
        fix: "read the serial log from the first line of the panic upward",
        speaks_for: &[Serial("kernel panic"), Serial("end trace"), Serial("attempted to kill init")],
        speaks_against: &[],
        usual: false,
    },
    Cause {
        failed: &["agent"],
        cause: "the guest's system disk was not found",
        fix: "image: the initrd needs the disk's driver (virtio_blk, ahci); see initrd-modules in the recipe",
        speaks_for: &[
            Serial("unable to mount root"),
            Serial("gave up waiting for root"),
            Serial("no bootable device"),
            Serial("waiting for root device"),
        ],
        speaks_against: &[],
        usual: false,
    },
    Cause {
        failed: &["agent"],
        cause: "the guest is still starting: without KVM everything takes 10 to 30 times as long",
        fix: "checks.ready-limit: give it more time, or use a host with a working KVM (no43 doctor)",
        speaks_for: &[Is(Mark::NoKvm, "no KVM here")],
        speaks_against: &[
            Is(Mark::FrozenScreen, "its screen did not change any more"),
            Serial("login:"),
            Serial("kernel panic"),
        ],
        usual: false,
    },
    Cause {
        failed: &["agent"],
        cause: "the guest runs, and its agent does not",
        fix: "guest.packages: qemu-guest-agent; in the guest: systemctl status qemu-guest-agent",
        speaks_for: &[Serial("login:"), Serial("reached target")],
        speaks_against: &[
            Serial("kernel panic"),
            Serial("unable to mount root"),
            Is(Mark::SilentSerial, "its serial port stayed silent"),
        ],
        usual: true,
    },
    Cause {
        failed: &["start", "machine"],
        cause: "QEMU may not lock the guest's memory",
        fix: "raise the limit for locked memory (no43 doctor says by how much), then log in again",
        speaks_for: &[QemuWord("vfio_map_dma"), QemuWord("cannot allocate memory"), QemuWord("vfio_dma_map")],
        speaks_against: &[],
        usual: false,
    },
    Cause {
        failed: &["start", "machine"],
        cause: "the card's group is held by somebody else, or belongs to another user",
        fix: "no43 gpus names the holder; /dev/vfio/<group> must belong to the user that runs QEMU",
        speaks_for: &[
            QemuWord("device or resource busy"),
            QemuWord("permission denied"),
            QemuWord("group is not viable"),
        ],
        speaks_against: &[],
        usual: false,
    },
    Cause {
        failed: &["start", "machine"],
        cause: "the host's IOMMU does not remap interrupts",
        fix: "firmware set-up: VT-d or AMD-Vi with interrupt remapping; kernel: intel_iommu=on iommu=pt",
        speaks_for: &[QemuWord("interrupt remapping")],
        speaks_against: &[],
        usual: false,
    },
    Cause {
        failed: &["start", "machine"],
        cause: "QEMU does not know an option that it was given",
        fix: "install the QEMU that README names (7.2 or newer), or choose machine.qemu",
        speaks_for: &[
            QemuWord("is not a valid device model"),
            QemuWord("invalid option"),
            QemuWord("unsupported machine type"),
            QemuWord("not found"),
        ],
        speaks_against: &[],
        usual: false,
    },
    Cause {
        failed: &["start", "machine"],
        cause: "QEMU was killed: the host ran out of memory, or its sandbox stopped a system call",
        fix: "journalctl -k on the host names the process (oom-kill) or the system call (audit, SECCOMP)",
        speaks_for: &[QemuWord("signal 9"), QemuWord("signal 31"), QemuWord("bad system call")],
        speaks_against: &[],
        usual: false,
    },
];

/// The causes that fit, the likeliest first; at most four.
pub fn diagnose(observed: &Observed) -> Vec<Finding> {
    let mut found: Vec<(i32, Finding)> = CAUSES
        .iter()
        .filter(|row| row.failed.contains(&observed.failed.as_str()))
        .filter_map(|row| weigh(row, observed))
        .collect();
    found.sort_by_key(|(score, _)| -score);
    found.truncate(4);
    found.into_iter().map(|(_, finding)| finding).collect()
}

fn weigh(row: &Cause, observed: &Observed) -> Option<(i32, Finding)> {
    let speaks_for = all_seen(row.speaks_for, observed);
    let speaks_against = all_seen(row.speaks_against, observed);
    if speaks_for.is_empty() && !row.usual {
        return None;
    }
    let count = |list: &[String]| i32::try_from(list.len()).unwrap_or(i32::MAX);
    let score = 2 * count(&speaks_for) - 3 * count(&speaks_against);
    let finding = Finding {
        cause: row.cause.into(),
        speaks_for,
        speaks_against,
        fix: row.fix.into(),
        likely: score >= 0,
    };
    Some((score, finding))
}

/// What was seen of these signs; a line that shows several of them counts once.
fn all_seen(signs: &[Sign], observed: &Observed) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    for words in signs.iter().filter_map(|sign| seen(sign, observed)) {
        if !all.contains(&words) {
            all.push(words);
        }
    }
    all
}

/// The words that show a sign, as the report quotes them.
fn seen(sign: &Sign, observed: &Observed) -> Option<String> {
    let quote =
        |lines: &[String], text: &str| lines.iter().find(|line| line.to_lowercase().contains(text)).cloned();
    match sign {
        GuestLine(text) => quote(&observed.guest_lines, text),
        QemuWord(text) => quote(&observed.qemu_words, text),
        Serial(text) => quote(&observed.serial_tail, text),
        Is(mark, words) => observed.marks.contains(mark).then(|| (*words).to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn say(observed: &Observed) -> String {
        let lines = diagnose(observed).into_iter().map(|f| {
            format!(
                "{} | for: {} | against: {} | {}",
                f.cause,
                f.speaks_for.join("; "),
                f.speaks_against.join("; "),
                if f.likely { "likely" } else { "not likely" }
            )
        });
        lines.collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn an_unknown_chipset_is_blamed_on_the_driver_and_not_on_a_missing_one() {
        let observed = Observed {
            failed: "driver".into(),
            guest_lines: vec!["nouveau 0000:01:00.0: unknown chipset (00000000)".into()],
            marks: vec![Mark::PresentAs],
            ..Observed::default()
        };
        insta::assert_snapshot!(say(&observed), @"
        the driver in the guest does not know this card | for: nouveau 0000:01:00.0: unknown chipset (00000000); the recipe shows the card under other ids | against:  | likely
        the guest has no driver for this card installed | for:  | against: nouveau 0000:01:00.0: unknown chipset (00000000) | not likely
        ");
    }

    #[test]
    fn a_silent_agent_after_a_panic_is_no_agent_problem() {
        let observed = Observed {
            failed: "agent".into(),
            serial_tail: vec![
                "Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)".into(),
            ],
            ..Observed::default()
        };
        let found = diagnose(&observed);
        assert!(found[0].likely && found.last().is_some_and(|f| !f.likely), "{found:?}");
        assert_eq!(found.last().unwrap().cause, "the guest runs, and its agent does not");
    }

    #[test]
    fn a_failure_without_any_row_has_no_cause() {
        assert!(diagnose(&Observed { failed: "weather".into(), ..Observed::default() }).is_empty());
    }
}
