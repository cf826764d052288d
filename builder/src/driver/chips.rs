//! Which branches drive which generation of chips, and where a virtual machine is refused. Data, with source and date.

use no43_host::PciId;
use serde::Serialize;

use super::version::Version;

/// NVIDIA's vendor id.
pub const NVIDIA: u16 = 0x10de;

/// From this branch on a GeForce works in a VM without hiding it (NVIDIA's announcement of 30 March 2021, driver 465.89).
pub const FIRST_FOR_VMS: Version = Version { branch: 465, minor: 0, patch: None };

/// One generation of chips.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Generation {
    /// As NVIDIA calls it.
    pub name: &'static str,
    /// How names of its chips begin.
    #[serde(skip)]
    chips: &'static [&'static str],
    /// The last branch that drives it; `None` while it is driven.
    pub last_branch: Option<u16>,
    /// The first branch that drives it, where that is known.
    pub first_branch: Option<u16>,
    /// Where that stands.
    #[serde(skip)]
    pub source: &'static str,
}

const fn generation(
    name: &'static str,
    chips: &'static [&'static str],
    first_branch: Option<u16>,
    last_branch: Option<u16>,
    source: &'static str,
) -> Generation {
    Generation { name, chips, last_branch, first_branch, source }
}

/// NVIDIA's list of legacy branches for Unix ("Unix Driver Archive"), which Windows follows.
const ARCHIVE: &str = "NVIDIA's Unix driver archive, seen 2026-11";
/// Not confirmed by a document of NVIDIA's: the release that listed the first card.
const FIRST_CARD: &str = "the release for the generation's first card; not verified";

/// From old to new. A chip's name is looked up by its beginning, the longest first.
pub static GENERATIONS: &[Generation] = &[
    generation("Tesla", &["G8", "G9", "GT2", "MCP7"], None, Some(342), ARCHIVE),
    generation("Fermi", &["GF"], None, Some(391), ARCHIVE),
    generation("Kepler", &["GK"], None, Some(475), ARCHIVE),
    generation("Maxwell", &["GM"], None, Some(582), ARCHIVE),
    generation("Pascal", &["GP"], None, Some(582), ARCHIVE),
    generation("Volta", &["GV"], None, Some(582), ARCHIVE),
    generation("Turing", &["TU"], Some(411), None, FIRST_CARD),
    generation("Ampere", &["GA"], Some(456), None, FIRST_CARD),
    generation("Ada", &["AD"], Some(522), None, FIRST_CARD),
    generation("Blackwell", &["GB"], Some(572), None, FIRST_CARD),
];

/// Until when NVIDIA said that it makes new drivers for a Windows.
#[derive(Debug)]
pub struct WindowsEnd {
    /// As recipes name it.
    pub os: &'static str,
    /// As people do.
    pub name: &'static str,
    /// Year and month of the last new driver.
    pub last: (u16, u8),
    /// Who said so.
    pub source: &'static str,
}

/// Known ends. What a package itself lists counts more: this only explains.
pub static WINDOWS_ENDS: &[WindowsEnd] = &[WindowsEnd {
    os: "windows10",
    name: "Windows 10",
    last: (2026, 10),
    source: "NVIDIA's announcement of 2025-07 for GeForce; not verified",
}];

/// Until when a branch is looked after.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Branch {
    /// Its number.
    pub branch: u16,
    /// What NVIDIA calls it.
    pub kind: &'static str,
    /// Year and month of its end; `None` where it has ended already.
    pub until: Option<&'static str>,
    /// Where that stands.
    pub source: &'static str,
}

/// NVIDIA's table of data centre branches, seen 2026-11, and its list of legacy branches for Unix. Branches of GeForce drivers for
/// Windows have no such list.
pub static BRANCHES: &[Branch] = &[
    branch(340, "legacy (GeForce 8 and 9)", None, FORUM),
    branch(390, "legacy (Fermi)", None, FORUM),
    branch(470, "legacy (Kepler)", None, "nvidia.com/drivers/unix, seen 2026-11"),
    branch(535, "long-term support", Some("2026-06"), DATA_CENTRE),
    branch(580, "long-term support", Some("2028-06"), DATA_CENTRE),
    branch(595, "production", Some("2027-03"), DATA_CENTRE),
    branch(610, "new feature", Some("2026-08"), DATA_CENTRE),
];

const DATA_CENTRE: &str = "docs.nvidia.com, supported drivers and CUDA toolkit versions, seen 2026-11";
const FORUM: &str = "forums.developer.nvidia.com, current graphics driver releases, seen 2026-11";

const fn branch(
    branch: u16,
    kind: &'static str,
    until: Option<&'static str>,
    source: &'static str,
) -> Branch {
    Branch { branch, kind, until, source }
}

/// What is known of a version's branch.
pub fn branch_of(version: Version) -> Option<&'static Branch> {
    BRANCHES.iter().find(|branch| branch.branch == version.branch)
}

/// The generation of a card, by the chip's name in the PCI id list; `None` if that does not tell.
pub fn generation_of(id: PciId) -> Option<&'static Generation> {
    if id.vendor != NVIDIA {
        return None;
    }
    let name = no43_host::device_name(id)?;
    let fits = |generation: &&Generation| {
        generation.chips.iter().any(|chip| {
            let rest = name.strip_prefix(chip);
            rest.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
        })
    };
    GENERATIONS.iter().find(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_tell_their_generation() {
        let of = |id: &str| generation_of(id.parse().unwrap()).map(|generation| generation.name);
        assert_eq!(of("10de:2484"), Some("Ampere"));
        assert_eq!(of("10de:1f82"), Some("Turing"));
        assert_eq!(of("10de:1b80"), Some("Pascal"));
        assert_eq!(of("10de:1180"), Some("Kepler"));
        assert_eq!(of("10de:2b85"), Some("Blackwell"));
        assert_eq!(of("10de:0611"), Some("Tesla"));
        assert_eq!(of("10de:ffff"), None);
        assert_eq!(of("1002:73bf"), None);
    }
}
