//! The two places where checks touch the world: the guest, and an eye on the card's own output.

use super::own::Ran;
use anyhow::Result;
use image::RgbImage;
use no43_guest::protocol::{Painted, Report};
use no43_guest::work::WorkReport;
use no43_host::PciAddress;
use std::str::FromStr;
use std::time::Duration;

/// A running guest, asked through its agent.
pub trait Guest {
    /// The guest as it sees itself now.
    ///
    /// # Errors
    /// When agent or guest program do not answer in time, or what they say cannot be read.
    fn report(&mut self) -> Result<Report>;

    /// Paints the pattern of `seed` on the connector of the card at this address of the guest, and leaves it there.
    ///
    /// # Errors
    /// Those of [`Guest::report`], and the guest program's own words when it cannot paint.
    fn paint(&mut self, card: &str, seed: u64) -> Result<Painted>;

    /// Takes the picture away again.
    ///
    /// # Errors
    /// Those of [`Guest::report`].
    fn unpaint(&mut self) -> Result<()>;

    /// Does work on the card at this address of the guest; only these rows of the guest program's table, or the usual ones.
    ///
    /// # Errors
    /// Those of [`Guest::report`], and the guest program's own words when it cannot work at all.
    fn work(&mut self, card: &str, only: &[&str]) -> Result<WorkReport>;

    /// Runs a command to its end, both streams of its output together and bounded.
    ///
    /// # Errors
    /// When it cannot be started, or does not end within the limit.
    fn run(&mut self, argv: &[String], limit: Duration) -> Result<Ran>;

    /// Where our own program is in this guest.
    fn program(&mut self) -> String;

    /// Writes a file.
    ///
    /// # Errors
    /// The guest's words.
    fn put(&mut self, path: &str, bytes: &[u8]) -> Result<()>;

    /// Reads a file of at most `max` bytes.
    ///
    /// # Errors
    /// When it is not there, or larger.
    fn fetch(&mut self, path: &str, max: u64) -> Result<Vec<u8>>;

    /// Why the machine is gone; none while it lives.
    fn gone(&mut self) -> Option<String>;

    /// The boot id of the last report.
    fn last_boot_id(&self) -> Option<String>;
}

/// Someone who sees a card's own output from outside the guest.
pub trait Eye {
    /// The picture on the output of this card of the host.
    ///
    /// # Errors
    /// When no picture can be had; this is never the guest's fault.
    fn capture(&mut self, card: &PciAddress) -> Result<RgbImage>;
}

/// What this host has to complain about since the run began.
#[derive(Debug, Clone, Default)]
pub struct Complaints {
    /// Lines of the kernel's log about the cards, or their bridges.
    pub lines: Vec<String>,
    /// Uncorrected errors that were counted: "0000:00:02.0: 1 non-fatal".
    pub errors: Vec<String>,
    /// Corrected ones, which a link may have now and then.
    pub corrected: Vec<String>,
    /// Functions that left the bus.
    pub gone: Vec<String>,
    /// Why the kernel's log could not be read.
    pub log_unreadable: Option<String>,
}

/// This host's kernel, as it speaks about the cards of a run.
pub trait HostEye {
    /// Everything since the run began.
    fn complaints(&mut self) -> Complaints;
}

/// Something that a check needs and not every host has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Capability {
    /// An eye on the card's own output.
    CardCapture,
}

impl Capability {
    /// Its name in recipes, options and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::CardCapture => "card-capture",
        }
    }
}

impl FromStr for Capability {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "card-capture" => Ok(Self::CardCapture),
            other => Err(format!("no capability is called '{other}'; there is: card-capture")),
        }
    }
}
