//! Why an installation failed: a table of causes with their fixes, and the signs by which each is known.
//!
//! Signs are codes and words of Setup's own logs, which are English in every Windows, never words of a translated screen.
//! The codes are published; the words are what public reports quote. No row has been checked against a real Windows.

use serde::{Deserialize, Serialize};

use super::Phase;

/// What went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// Firmware that never came to the medium.
    MediumNotStarted,
    /// The prompt ended without a key.
    NoBootKey,
    /// The firmware refused the medium's signature.
    SecureBoot,
    /// Setup sees no disk to install on.
    NoTargetDisk,
    /// Setup found no answer file.
    NoAnswerFile,
    /// Setup refused the answer file.
    AnswerRefused,
    /// The edition, or the key's edition, is not on the medium.
    NoEdition,
    /// Setup's language is not on the medium.
    Language,
    /// The computer does not meet this Windows' demands.
    Requirements,
    /// The target disk does not start.
    TargetNotBootable,
    /// It restarts again and again.
    BootLoop,
    /// Somebody else restarts the guest.
    UpdateTookOver,
    /// An action of the plan failed.
    Action,
    /// No room left, in the guest or here.
    DiskFull,
    /// The agent does not answer.
    AgentSilent,
    /// The system stopped itself.
    Panic,
    /// Nothing happens any more: a question on the screen, most likely.
    Still,
    /// It moves, and takes too long.
    TooSlow,
    /// The guest did not shut down.
    NotShutDown,
    /// The guest switched itself off.
    SwitchedOff,
    /// QEMU ended.
    MachineGone,
    /// What was installed is not as it should be.
    ImageState,
}

/// One row: a cause in words.
pub(super) struct Row {
    pub(super) cause: Cause,
    pub(super) what: &'static str,
    pub(super) fix: &'static str,
}

const fn row(cause: Cause, what: &'static str, fix: &'static str) -> Row {
    Row { cause, what, fix }
}

pub(super) static CAUSES: &[Row] = &[
    row(
        Cause::MediumNotStarted,
        "the firmware did not start the medium",
        "inputs.iso: is it an ISO that boots by UEFI? no43 media inspect names its boot manager",
    ),
    row(
        Cause::NoBootKey,
        "no boot key was taken: \"Press any key to boot from CD or DVD\" ended without one",
        "build again; if it happens again, report it with the serial log: the keyboard of this firmware does not work",
    ),
    row(
        Cause::SecureBoot,
        "Secure Boot refuses this medium: its boot manager is signed by nobody whom the firmware's keys name",
        "use a firmware with newer keys (package ovmf), an ISO of the same age as the keys, or machine.firmware = \"uefi\"",
    ),
    row(
        Cause::NoTargetDisk,
        "Windows Setup cannot see the target disk",
        "inputs.virtio: use an ISO with viostor for this Windows, or set machine.disk-bus = \"ahci\"",
    ),
    row(
        Cause::NoAnswerFile,
        "Windows Setup did not find the answer file",
        "attach no other removable disk; the set-up disk must be the only one with an Autounattend.xml",
    ),
    row(
        Cause::AnswerRefused,
        "Windows Setup refused the answer file",
        "no43 answer lint says what is wrong with a file of your own; one that no43 made should be reported",
    ),
    row(
        Cause::NoEdition,
        "the edition is not on the medium, or the key belongs to another one",
        "guest.edition: no43 media inspect lists what the ISO holds; an evaluation ISO takes no key",
    ),
    row(
        Cause::Language,
        "Setup's language is not on the medium",
        "guest.language: no43 media inspect lists the languages of the ISO",
    ),
    row(
        Cause::Requirements,
        "this Windows refuses the machine (TPM, Secure Boot, memory, processor)",
        "machine.tpm = true and machine.firmware = \"uefi-secure\", 2 CPUs, 4 GiB of memory, 64 GiB of disk",
    ),
    row(
        Cause::TargetNotBootable,
        "the target disk does not start: the firmware went back to the medium",
        "machine.disk-bus: try another one; report it with the serial log",
    ),
    row(
        Cause::BootLoop,
        "boot loop: the guest restarts again and again",
        "look at the last screen and the setup logs",
    ),
    row(
        Cause::UpdateTookOver,
        "something else than the plan restarts the guest: an update took over",
        "network.mode = \"none\" while it is built, or updates.windows = \"none\"",
    ),
    row(Cause::Action, "a set-up action failed", "the action's log is below"),
    row(Cause::DiskFull, "no room left on the disk", "machine.disk: ask for more; and look at df here"),
    row(
        Cause::AgentSilent,
        "the guest agent does not answer",
        "inputs.virtio: its agent and the vioserial driver must fit this Windows",
    ),
    row(Cause::Panic, "the guest's system stopped itself", "the stop code names the driver or part at fault"),
    row(
        Cause::Still,
        "nothing happens any more; most likely a question stands on the screen",
        "look at the last screen; --keep-on-failure leaves the machine running",
    ),
    row(
        Cause::TooSlow,
        "it still works, and takes longer than it may",
        "a machine without KVM or with a slow disk: no43 build --patience 5",
    ),
    row(Cause::NotShutDown, "the guest did not shut down when it was asked to", "look at the last screen"),
    row(Cause::SwitchedOff, "the guest switched itself off in the middle", "look at the setup logs"),
    row(Cause::MachineGone, "QEMU ended in the middle", "its own words are below"),
    row(Cause::ImageState, "Windows says that it is not completely set up", "look at the setup logs"),
];

impl Cause {
    pub(super) fn row(self) -> &'static Row {
        CAUSES.iter().find(|row| row.cause == self).expect("a test looks for a row of every cause")
    }

    /// One sentence.
    #[must_use]
    pub fn what(self) -> &'static str {
        self.row().what
    }

    /// What a person can do.
    #[must_use]
    pub fn fix(self) -> &'static str {
        self.row().fix
    }
}

/// A sign in the guest's setup logs.
struct Sign {
    /// In lower case; every text must be in the line.
    texts: &'static [&'static str],
    cause: Cause,
}

const fn sign(texts: &'static [&'static str], cause: Cause) -> Sign {
    Sign { texts, cause }
}

/// The first row that fits a line wins, from the last line upward.
static SIGNS: &[Sign] = &[
    sign(&["no storage controller"], Cause::NoTargetDisk),
    sign(&["failed to find", "disk"], Cause::NoTargetDisk),
    sign(&["diskpart", "0x80042413"], Cause::NoTargetDisk),
    sign(&["could not find", "unattend"], Cause::NoAnswerFile),
    sign(&["no unattend file"], Cause::NoAnswerFile),
    sign(&["unattend", "could not be parsed"], Cause::AnswerRefused),
    sign(&["unattend", "invalid"], Cause::AnswerRefused),
    sign(&["0x80220001"], Cause::AnswerRefused), // WDS/unattend parser: not valid against the schema
    sign(&["0x80220005"], Cause::AnswerRefused),
    sign(&["license terms"], Cause::NoEdition),
    sign(&["no images", "available"], Cause::NoEdition),
    sign(&["image", "index", "not found"], Cause::NoEdition),
    sign(&["uilanguage", "not"], Cause::Language),
    sign(&["language", "not available"], Cause::Language),
    sign(&["hwreq"], Cause::Requirements),
    sign(&["0xc1900200"], Cause::Requirements),
    sign(&["0x80070070"], Cause::DiskFull),
    sign(&["not enough", "space"], Cause::DiskFull),
];

/// The cause that setup's logs tell, with the line that tells it.
pub(super) fn of_logs<'a>(lines: impl DoubleEndedIterator<Item = &'a str>) -> Option<(Cause, &'a str)> {
    lines.rev().find_map(|line| {
        let lower = line.to_lowercase();
        let fits = |sign: &&Sign| sign.texts.iter().all(|text| lower.contains(text));
        SIGNS.iter().find(fits).map(|sign| (sign.cause, line))
    })
}

/// What silence in a phase most likely means, when nothing was said.
pub(super) fn of_silence(phase: Phase, evidence: &Silence) -> Cause {
    match phase {
        Phase::Firmware => Cause::MediumNotStarted,
        Phase::BootPrompt => Cause::NoBootKey,
        Phase::Agent => Cause::AgentSilent,
        Phase::Seal => Cause::NotShutDown,
        // Windows Setup reads the whole answer file when it finds it, and then the drivers beside it.
        Phase::Copying if evidence.is_still && !evidence.setup_disk_read => Cause::NoAnswerFile,
        _ if evidence.is_still => Cause::Still,
        _ => Cause::TooSlow,
    }
}

/// What is known when a limit is over.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Silence {
    /// Neither screen nor disks changed for a while.
    pub(super) is_still: bool,
    /// Windows Setup has read files of the set-up disk.
    pub(super) setup_disk_read: bool,
}

/// Names of stop codes that installations and graphics drivers produce; the others keep their number.
static STOP_CODES: &[(u64, &str)] = &[
    (0x0a, "IRQL_NOT_LESS_OR_EQUAL"),
    (0x1e, "KMODE_EXCEPTION_NOT_HANDLED"),
    (0x3b, "SYSTEM_SERVICE_EXCEPTION"),
    (0x50, "PAGE_FAULT_IN_NONPAGED_AREA"),
    (0x5c, "HAL_INITIALIZATION_FAILED"),
    (0x67, "CONFIG_INITIALIZATION_FAILED"),
    (0x7b, "INACCESSIBLE_BOOT_DEVICE"),
    (0x7e, "SYSTEM_THREAD_EXCEPTION_NOT_HANDLED"),
    (0x7f, "UNEXPECTED_KERNEL_MODE_TRAP"),
    (0x9f, "DRIVER_POWER_STATE_FAILURE"),
    (0xc4, "DRIVER_VERIFIER_DETECTED_VIOLATION"),
    (0xd1, "DRIVER_IRQL_NOT_LESS_OR_EQUAL"),
    (0xef, "CRITICAL_PROCESS_DIED"),
    (0x101, "CLOCK_WATCHDOG_TIMEOUT"),
    (0x113, "VIDEO_DXGKRNL_FATAL_ERROR"),
    (0x116, "VIDEO_TDR_FAILURE"),
    (0x119, "VIDEO_SCHEDULER_INTERNAL_ERROR"),
    (0x133, "DPC_WATCHDOG_VIOLATION"),
    (0x139, "KERNEL_SECURITY_CHECK_FAILURE"),
    (0x154, "UNEXPECTED_STORE_EXCEPTION"),
    (0xc000_021a, "WINLOGON_FATAL_ERROR"),
];

/// QEMU's `GUEST_PANICKED` in words: with Windows' stop code where the crash enlightenment gave one.
pub(super) fn panic_in_words(data: &serde_json::Value) -> String {
    let argument = |n: u8| data.pointer(&format!("/info/arg{n}")).and_then(serde_json::Value::as_u64);
    let Some(code) = argument(1) else {
        return "the guest's panic device was written to, without a code".to_owned();
    };
    let name = STOP_CODES.iter().find(|(known, _)| *known == code).map(|(_, name)| format!(" {name}"));
    let parameters: Vec<String> = (2..=5).filter_map(argument).map(|value| format!("{value:#x}")).collect();
    format!("stop code {code:#x}{} ({})", name.unwrap_or_default(), parameters.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_cause_has_one_row_and_every_sign_a_cause_with_a_fix() {
        for n in 0.. {
            // serde knows the names; the table must know them all
            let Some(row) = CAUSES.get(n) else { break };
            assert_eq!(CAUSES.iter().filter(|other| other.cause == row.cause).count(), 1, "{:?}", row.cause);
            assert!(!row.what.is_empty() && !row.fix.is_empty());
        }
        let names = serde_json::from_value::<Cause>(json!("?")).unwrap_err().to_string();
        assert_eq!(names.matches('`').count() / 2 - 1, CAUSES.len(), "{names}");
        assert!(SIGNS.iter().all(|sign| CAUSES.iter().any(|row| row.cause == sign.cause)));
    }

    #[test]
    fn logs_tell_their_cause_from_the_last_line_upward() {
        let lines = [
            "2026-11-22 20:00:01, Info  IBS  Callback_Unattend_InitEngine: using unattend file D:\\Autounattend.xml",
            "2026-11-22 20:00:09, Error IBS  no storage controller driver loaded",
            "2026-11-22 20:00:10, Info  IBS  waiting for the user",
        ];
        assert_eq!(of_logs(lines.into_iter()), Some((Cause::NoTargetDisk, lines[1])));
        assert_eq!(of_logs(["nothing of note"].into_iter()), None);
    }

    #[test]
    fn stop_codes_have_names() {
        let panic = json!({"action": "pause", "info": {"type": "hyper-v", "arg1": 0x7b, "arg2": 1, "arg3": 2, "arg4": 3, "arg5": 4}});
        assert_eq!(panic_in_words(&panic), "stop code 0x7b INACCESSIBLE_BOOT_DEVICE (0x1, 0x2, 0x3, 0x4)");
        assert_eq!(
            panic_in_words(&json!({"action": "pause"})),
            "the guest's panic device was written to, without a code"
        );
        assert!(panic_in_words(&json!({"info": {"arg1": 0x9999}})).starts_with("stop code 0x9999 ("));
    }

    #[test]
    fn silence_means_what_the_phase_waits_for() {
        let still = Silence { is_still: true, setup_disk_read: true };
        assert_eq!(of_silence(Phase::Copying, &still), Cause::Still);
        assert_eq!(
            of_silence(Phase::Copying, &Silence { setup_disk_read: false, ..still }),
            Cause::NoAnswerFile
        );
        assert_eq!(of_silence(Phase::Oobe, &Silence::default()), Cause::TooSlow);
        assert_eq!(of_silence(Phase::BootPrompt, &Silence::default()), Cause::NoBootKey);
    }
}
