//! A card as the checks expect it: what the host has, what the plan shows of it, and where the guest finds it.

use crate::words;
use no43_guest::protocol::{Report, Severity};
use no43_host::{PciAddress, PciId};

/// One card that was given to the guest. Never without functions; the video function is the first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// Marketing name.
    pub name: String,
    /// As lspci writes it on the host: "01:00".
    pub slot: String,
    /// The video function first.
    pub functions: Vec<SubjectFunction>,
    /// Functions of the card that the plan does not give to the guest: place on the host, and role.
    pub left_out: Vec<(PciAddress, String)>,
    /// Lanes of the link on the host; none where it knows no link.
    pub link_width: Option<u32>,
    /// Whether a host says what the card is; otherwise all of this comes from the guest itself, and comparing proves nothing.
    pub compared: bool,
}

/// One function of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubjectFunction {
    /// Where it is on the host.
    pub host: PciAddress,
    /// Where the guest must find it, with domain: "0000:01:00.0".
    pub guest: String,
    /// "video", "audio", "usb", "ucsi", …
    pub role: String,
    /// Its own ids.
    pub id: PciId,
    /// The ids that the guest must see.
    pub shown_as: PciId,
    /// Index and size in bytes of each BAR that has a size; 6 is the ROM.
    pub bars: Vec<(u8, u64)>,
}

impl Subject {
    /// The video function.
    pub fn video(&self) -> &SubjectFunction {
        &self.functions[0]
    }

    /// Does a line of the guest's kernel name one of this card's functions?
    pub(super) fn is_named_in(&self, line: &str) -> bool {
        self.functions.iter().any(|f| line.contains(&f.guest))
    }

    /// The lines of the guest's kernel about this card, the worst first, at most eight.
    pub(super) fn guest_lines(&self, report: &Report) -> Vec<String> {
        let rank = |severity: Severity| match severity {
            Severity::Error => 0,
            Severity::Warning => 1,
            Severity::Unknown | Severity::Info => 2,
        };
        let mut lines: Vec<_> = report
            .log
            .iter()
            .filter(|line| self.is_named_in(&line.text) || rank(line.severity) < 2)
            .collect();
        lines.sort_by_key(|line| rank(line.severity));
        if lines.first().is_some_and(|line| rank(line.severity) < 2) {
            lines.retain(|line| !line.text.starts_with("pci ")); // the bus saying what is there explains nothing
        }
        lines.into_iter().take(8).map(|line| words::clean_to(&line.text, 400)).collect()
    }
}
