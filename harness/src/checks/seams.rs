//! The two places where checks touch the world: the guest, and an eye on the card's own output.

use anyhow::Result;
use image::RgbImage;
use no43_guest::protocol::{Painted, Report};
use no43_host::PciAddress;
use std::str::FromStr;

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
