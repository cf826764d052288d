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
