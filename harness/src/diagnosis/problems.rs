//! All documented problem codes of Windows in words: what each means for a passed-through card, and what to do.
//!
//! Names and classes are in `no43_guest::problem`; the meanings follow Microsoft's pages on each code (windows-driver-docs,
//! `install/cm-prob-*.md`), applied to a card in a VM.

use super::Finding;
use super::facts::Facts;
use no43_guest::problem::{ProblemKind, problem};

/// What a code means, and what to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Explained {
    /// The number.
    pub code: u32,
    /// What it means for a card in a VM.
    pub meaning: &'static str,
    /// What to do.
    pub fix: &'static str,
}

const fn row(code: u32, meaning: &'static str, fix: &'static str) -> Explained {
    Explained { code, meaning, fix }
}

const REBOOT: &str = "restart the guest and look again: no43 verify with checks.lifecycle = [\"reboot\"]";
const REINSTALL: &str = "install the driver again from a fresh image: no43 build, then no43 verify";
const INSPECT: &str =
    "no43 driver inspect PACKAGE says whether it drives this card on this Windows; then driver.package";
const WINDOW: &str = "machine.firmware = \"uefi\" gives the larger window above 4 GiB";
const HOST: &str = "switch the host off and on, then no43 doctor; a card that stays away needs a power cycle";

/// The 41 documented codes, in order.
const ROWS: &[Explained] = &[
    row(1, "Windows has no configuration for the card: no INF has matched it yet", INSPECT),
    row(
        3,
        "the guest ran out of memory, or the driver's file is damaged",
        "machine.memory: give the guest more; then install the driver again",
    ),
    row(
        9,
        "the card's configuration space reads back nonsense: it sleeps (D3cold) or its reset failed",
        HOST,
    ),
    row(
        10,
        "the driver's start routine failed",
        "look at the problem status and at the host's kernel log in this report",
    ),
    row(12, "the card's memory windows do not fit into what the firmware gives", WINDOW),
    row(14, "the driver wants a restart before it works", REBOOT),
    row(16, "Windows knows only a part of the resources that the card needs", WINDOW),
    row(18, "the driver has to be installed again", REINSTALL),
    row(19, "the card's registry entries are damaged, often left over from an earlier driver", REINSTALL),
    row(
        21,
        "Windows is removing the card at this moment",
        "look again after a minute; if it stays, restart the guest",
    ),
    row(
        22,
        "the card is disabled in Device Manager, by a person or a policy",
        "in the guest: pnputil /enable-device \"INSTANCE\"",
    ),
    row(24, "the card is not there any more, or all of its drivers are gone", HOST),
    row(28, "no driver is installed for the card", INSPECT),
    row(29, "the firmware gave the card no resources", WINDOW),
    row(
        31,
        "the driver could not be added to the card",
        "look at the problem status; then another package in driver.package",
    ),
    row(
        32,
        "the driver's service is switched off",
        "in the guest: sc config nvlddmkm start= demand, then restart",
    ),
    row(33, "Windows cannot work out which resources the card needs", WINDOW),
    row(
        34,
        "the card would need resources set by hand, which no PCI card does",
        "no43 report --anonymise RUN, and open an issue with it",
    ),
    row(
        35,
        "the firmware's tables do not describe the card's place",
        "machine.firmware = \"uefi\", and a current OVMF",
    ),
    row(
        36,
        "the card's interrupt cannot be translated",
        "switch message-signalled interrupts on for the card (MSISupported = 1)",
    ),
    row(37, "the driver's entry routine failed: wrong branch for this card or this Windows", INSPECT),
    row(38, "an old copy of the driver is still in memory", REBOOT),
    row(
        39,
        "the driver's file could not be loaded: damaged, an import missing, or blocked by memory integrity",
        "switch memory integrity off in the guest, or take a newer package in driver.package",
    ),
    row(40, "the registry entry of the driver's service is wrong", REINSTALL),
    row(41, "the driver is loaded and finds no hardware", HOST),
    row(42, "Windows sees the same card twice", "no43 report --anonymise RUN, and open an issue with it"),
    row(
        43,
        "the driver started the card and then reported it as failed",
        "see the causes in this report; Code 43 alone never says why",
    ),
    row(
        44,
        "a program or service has stopped the card",
        "in the guest: pnputil /restart-device \"INSTANCE\"",
    ),
    row(
        45,
        "Windows remembers the card, and it is not there: the machine was started without it",
        "[[card]] in the recipe, and no43 plan: is the card given to this machine?",
    ),
    row(46, "Windows was shutting down when it was asked", "ask again after the next start"),
    row(
        47,
        "the card was prepared for safe removal",
        "restart the guest; do not eject the card from the task bar",
    ),
    row(48, "the driver is on Microsoft's block list", "a newer package in driver.package"),
    row(49, "the guest's system registry is too large", "a fresh image: no43 build"),
    row(50, "Windows could not apply the card's properties", REINSTALL),
    row(
        51,
        "the card waits for another device, such as its audio or USB-C function",
        "give the machine all functions: [[card]] functions = \"all\"; then restart",
    ),
    row(
        52,
        "the driver's signature is not accepted: a patched driver, or test signing is off",
        "the signed package as NVIDIA ships it, in driver.package",
    ),
    row(53, "the kernel debugger has reserved the card", "in the guest: bcdedit /debug off, then restart"),
    row(
        54,
        "the card failed and Windows is resetting it",
        "look again after a minute; if it stays, look at the host's kernel log in this report",
    ),
    row(
        55,
        "the card is blocked until a user logs in (Kernel DMA Protection)",
        "log in, or sign the guest's user in by itself",
    ),
    row(
        56,
        "Windows is still configuring this class of devices",
        "look again after a minute: usual during the first start",
    ),
    row(
        57,
        "Hyper-V could not give the card to a guest",
        "this is a guest of Hyper-V, not of QEMU: look there",
    ),
];

/// All documented codes, in order.
pub fn explained() -> &'static [Explained] {
    ROWS
}

/// The words for a code; none for 0, for the codes of Windows 9x, and for numbers that nobody knows.
pub fn explain(code: u32) -> Option<&'static Explained> {
    ROWS.iter().find(|row| row.code == code)
}

/// One finding for each problem code that was seen. It stands below every cause that knows more.
pub(super) fn findings(facts: &Facts) -> Vec<(i32, Finding)> {
    let codes = facts.get("guest.code").iter().filter_map(|text| text.parse().ok());
    codes.filter(|code| *code != 0).map(|code| finding(code, facts)).collect()
}

fn finding(code: u32, facts: &Facts) -> (i32, Finding) {
    let known = problem(code);
    let name = known.map_or(String::new(), |row| format!(" (CM_PROB_{})", row.name));
    let (meaning, fix) = match (explain(code), known) {
        (Some(row), _) => (row.meaning, row.fix),
        (None, Some(_)) => (
            "a code of Windows 9x, which no PCI card has",
            "no43 report --anonymise RUN, and open an issue with it",
        ),
        (None, None) => {
            ("a code that this version does not know", "Microsoft's list of Device Manager error messages")
        }
    };
    let mut speaks_for = vec![format!("problem code: {code}{name}")];
    speaks_for
        .extend(facts.get("guest.code-status").iter().map(|status| format!("problem status: {status}")));
    // Code 43 has rows of its own and says nothing by itself; a code that passes by itself is the likeliest thing there is
    let score = match known.map(|row| row.kind) {
        Some(ProblemKind::Code43) => 0,
        Some(ProblemKind::Transient) => 3,
        _ => 2,
    };
    let missing = match facts.knows("guest.code-status") {
        true => Vec::new(),
        false => vec!["problem status (no43-guest report in the guest; Windows 8 and later)".to_owned()],
    };
    let finding = Finding {
        id: format!("code-{code}"),
        cause: meaning.into(),
        speaks_for,
        speaks_against: Vec::new(),
        missing,
        fix: fix.into(),
        likely: true,
        source: "Microsoft, Device Manager error messages".into(),
    };
    (score, finding)
}

#[cfg(test)]
mod tests {
    use super::*;
    use no43_guest::problem::PROBLEMS;

    #[test]
    fn all_41_documented_codes_have_words() {
        let documented =
            PROBLEMS.iter().filter(|p| !matches!(p.kind, ProblemKind::Fine | ProblemKind::Legacy));
        assert!(documented.map(|p| p.code).eq(ROWS.iter().map(|row| row.code)));
        assert_eq!(ROWS.len(), 41);
    }

    #[test]
    fn a_code_that_nobody_knows_is_named_all_the_same() {
        for code in [2, 99] {
            let mut facts = Facts::default();
            facts.add("guest.code", code.to_string());
            let found = super::super::diagnose(&facts);
            assert_eq!(found[0].id, format!("code-{code}"));
        }
    }
}
