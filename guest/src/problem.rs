//! The problem codes of Windows' device nodes, and what each means for a card that is passed through.
//!
//! Names are those of cfg.h. Codes 1 to 57 without the legacy ones are documented by Microsoft ("Device Manager Error
//! Messages"); the names of the legacy ones, which no PCI card meets, are from memory of that header and unverified.

/// One problem code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Problem {
    /// The number, as in "Code 43".
    pub code: u32,
    /// Its name without `CM_PROB_`.
    pub name: &'static str,
    /// What kind of trouble it is.
    pub kind: ProblemKind,
}

/// What kind of trouble a problem code is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProblemKind {
    /// None.
    Fine,
    /// As it must be until a driver is installed, and a fault afterwards.
    BeforeDriver,
    /// Passes by itself or with a restart: look again once.
    Transient,
    /// The driver reported a failed device after its start.
    Code43,
    /// The virtual machine does not give the card what it needs.
    Configuration,
    /// The card did not come back from a reset, or is gone.
    HostReset,
    /// The machine was started without the card.
    Wiring,
    /// The driver's files or registry entries are damaged.
    DriverInstall,
    /// The driver cannot be loaded or fails at once.
    DriverLoad,
    /// Somebody or something has switched the device off.
    Policy,
    /// The guest is out of something.
    Environment,
    /// Only below Hyper-V.
    HyperV,
    /// Not to be met with a PCI card.
    Unlikely,
    /// Of Windows 9x.
    Legacy,
}

impl ProblemKind {
    /// Whether a second look after a moment or a restart may find it gone.
    #[must_use]
    pub const fn is_transient(self) -> bool {
        matches!(self, Self::Transient)
    }
}

/// The row of a code; `None` for one that nobody knows yet.
#[must_use]
pub fn problem(code: u32) -> Option<&'static Problem> {
    PROBLEMS.iter().find(|row| row.code == code)
}

const fn row(code: u32, name: &'static str, kind: ProblemKind) -> Problem {
    Problem { code, name, kind }
}

use ProblemKind::*;

/// All codes, in order.
pub const PROBLEMS: &[Problem] = &[
    row(0, "NONE", Fine),
    row(1, "NOT_CONFIGURED", BeforeDriver),
    row(2, "DEVLOADER_FAILED", Legacy),
    row(3, "OUT_OF_MEMORY", Environment),
    row(4, "ENTRY_IS_WRONG_TYPE", Legacy),
    row(5, "LACKED_ARBITRATOR", Legacy),
    row(6, "BOOT_CONFIG_CONFLICT", Legacy),
    row(7, "FAILED_FILTER", Legacy),
    row(8, "DEVLOADER_NOT_FOUND", Legacy),
    row(9, "INVALID_DATA", HostReset),
    row(10, "FAILED_START", Configuration),
    row(11, "LIAR", Legacy),
    row(12, "NORMAL_CONFLICT", Configuration),
    row(13, "NOT_VERIFIED", Legacy),
    row(14, "NEED_RESTART", Transient),
    row(15, "REENUMERATION", Legacy),
    row(16, "PARTIAL_LOG_CONF", Configuration),
    row(17, "UNKNOWN_RESOURCE", Legacy),
    row(18, "REINSTALL", DriverInstall),
    row(19, "REGISTRY", DriverInstall),
    row(20, "VXDLDR", Legacy),
    row(21, "WILL_BE_REMOVED", Transient),
    row(22, "DISABLED", Policy),
    row(23, "DEVLOADER_NOT_READY", Legacy),
    row(24, "DEVICE_NOT_THERE", HostReset),
    row(25, "MOVED", Legacy),
    row(26, "TOO_EARLY", Legacy),
    row(27, "NO_VALID_LOG_CONF", Legacy),
    row(28, "FAILED_INSTALL", BeforeDriver),
    row(29, "HARDWARE_DISABLED", Configuration),
    row(30, "CANT_SHARE_IRQ", Legacy),
    row(31, "FAILED_ADD", DriverLoad),
    row(32, "DISABLED_SERVICE", Policy),
    row(33, "TRANSLATION_FAILED", Configuration),
    row(34, "NO_SOFTCONFIG", Unlikely),
    row(35, "BIOS_TABLE", Configuration),
    row(36, "IRQ_TRANSLATION_FAILED", Configuration),
    row(37, "FAILED_DRIVER_ENTRY", DriverLoad),
    row(38, "DRIVER_FAILED_PRIOR_UNLOAD", Transient),
    row(39, "DRIVER_FAILED_LOAD", DriverLoad),
    row(40, "DRIVER_SERVICE_KEY_INVALID", DriverInstall),
    row(41, "LEGACY_SERVICE_NO_DEVICES", HostReset),
    row(42, "DUPLICATE_DEVICE", Unlikely),
    row(43, "FAILED_POST_START", Code43),
    row(44, "HALTED", Policy),
    row(45, "PHANTOM", Wiring),
    row(46, "SYSTEM_SHUTDOWN", Transient),
    row(47, "HELD_FOR_EJECT", Policy),
    row(48, "DRIVER_BLOCKED", DriverLoad),
    row(49, "REGISTRY_TOO_LARGE", Environment),
    row(50, "SETPROPERTIES_FAILED", DriverInstall),
    row(51, "WAITING_ON_DEPENDENCY", Transient),
    row(52, "UNSIGNED_DRIVER", DriverLoad),
    row(53, "USED_BY_DEBUGGER", Policy),
    row(54, "DEVICE_RESET", Transient),
    row(55, "CONSOLE_LOCKED", Policy),
    row(56, "NEED_CLASS_CONFIG", Transient),
    row(57, "GUEST_ASSIGNMENT_FAILED", HyperV),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_from_0_to_57_has_one_row() {
        assert!(PROBLEMS.iter().map(|row| row.code).eq(0..=57));
        // Microsoft documents 41 of them
        assert_eq!(PROBLEMS.iter().filter(|row| !matches!(row.kind, Fine | Legacy)).count(), 41);
        assert_eq!(problem(43).map(|row| (row.name, row.kind)), Some(("FAILED_POST_START", Code43)));
        assert_eq!(problem(58), None);
    }
}
