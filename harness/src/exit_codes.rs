//! Every exit code of `no43`, with what it means for the person or the script that called it.
//!
//! The numbers are a promise: a new meaning gets a new number, and none is ever reused.

use crate::verdict::{FailureKind, Verdict};

/// Everything that was asked for was done; `verify` proved what the recipe says.
pub const OK: u8 = 0;
/// The command line is wrong: an unknown option or a missing argument.
pub const USAGE: u8 = 2;
/// The recipe, the lock or the plan is wrong; file, line and key are named.
pub const RECIPE: u8 = 3;
/// An input (ISO, package, driver) is missing, or is not what the lock says.
pub const INPUT: u8 = 4;
/// The image could not be built; nothing was published.
pub const BUILD: u8 = 5;
/// The store cannot be used: full, damaged or not writable.
pub const STORE: u8 = 6;
/// The host does not lend the card: none such, in use, already leased, not viable, quarantined.
pub const NOT_LENT: u8 = 7;
/// The host lacks something that a person must set up: rights, locked memory, a QEMU.
pub const HOST_SETUP: u8 = 8;
/// The instance cannot be used: no such, running already, from another host, its image is gone.
pub const INSTANCE: u8 = 9;
/// A check failed, and the guest is the cause.
pub const FAILED_GUEST: u8 = 10;
/// A check failed or the run broke, and the host is the cause.
pub const FAILED_HOST: u8 = 11;
/// The lab broke (its outer QEMU or its own system); this says nothing about guest or host.
pub const LAB_FAULT: u8 = 12;
/// `no43` itself is wrong; please report it with the run's folder.
pub const FAILED_HARNESS: u8 = 13;
/// Nothing was proved, since something that the proof needs is missing here; the reason is in the report.
pub const SKIPPED: u8 = 14;
/// It worked, but not every time; the report says what differed.
pub const UNSTABLE: u8 = 15;
/// Stopped by Ctrl-C or a termination signal; the cards are back.
pub const INTERRUPTED: u8 = 130;

/// All codes as rows for `no43 help exit-codes`: number, short name, meaning.
pub const TABLE: &[(u8, &str, &str)] = &[
    (OK, "ok", "done; for verify: passed"),
    (USAGE, "usage", "the command line is wrong"),
    (RECIPE, "recipe", "recipe, lock or plan is wrong"),
    (INPUT, "input", "an input is missing or is not what the lock says"),
    (BUILD, "build", "the image could not be built; nothing was published"),
    (STORE, "store", "the store is full, damaged or not writable"),
    (NOT_LENT, "not lent", "the host does not lend the card (the reason names who or what)"),
    (HOST_SETUP, "host set-up", "the host lacks rights, locked memory or a QEMU"),
    (INSTANCE, "instance", "the instance cannot be used (the reason says why)"),
    (FAILED_GUEST, "failed (guest)", "a check failed, the guest is the cause"),
    (FAILED_HOST, "failed (host)", "the host is the cause"),
    (LAB_FAULT, "lab fault", "the lab broke; no verdict about guest or host"),
    (FAILED_HARNESS, "failed (no43)", "no43 itself is wrong"),
    (SKIPPED, "skipped", "nothing was proved, a capability is missing"),
    (UNSTABLE, "unstable", "it worked, but not every time"),
    (INTERRUPTED, "interrupted", "stopped by Ctrl-C; the cards are back"),
];

/// The exit code of a verdict.
pub fn of(verdict: &Verdict) -> u8 {
    match verdict {
        Verdict::Passed => OK,
        Verdict::Failed { kind: FailureKind::Guest, .. } => FAILED_GUEST,
        Verdict::Failed { kind: FailureKind::Host, .. } => FAILED_HOST,
        Verdict::Failed { kind: FailureKind::Lab, .. } => LAB_FAULT,
        Verdict::Failed { kind: FailureKind::Harness, .. } => FAILED_HARNESS,
        Verdict::Failed { kind: FailureKind::NotLent, .. } => NOT_LENT,
        Verdict::Failed { kind: FailureKind::HostSetup, .. } => HOST_SETUP,
        Verdict::Failed { kind: FailureKind::Interrupted, .. } => INTERRUPTED,
        Verdict::Skipped { .. } => SKIPPED,
        Verdict::Unstable { .. } => UNSTABLE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verdict_has_a_row_in_the_table() {
        for kind in FailureKind::ALL {
            let code = of(&Verdict::failed(*kind, "x"));
            assert!(TABLE.iter().any(|row| row.0 == code), "{kind:?}");
            assert_ne!(code, OK, "{kind:?}");
        }
    }

    #[test]
    fn no_number_is_used_twice() {
        let mut codes: Vec<u8> = TABLE.iter().map(|row| row.0).collect();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), TABLE.len());
    }
}
