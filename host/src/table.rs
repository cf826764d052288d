//! Cards as rows of a table, for `no43 gpus`.

use serde::{Deserialize, Serialize};

use crate::card::{Card, CardState};

/// The headings of a [`GpuRow`], in its order.
pub const HEADINGS: [&str; 6] = ["CARD", "ADDRESS", "FUNCTIONS", "GROUP", "DRIVER", "STATE"];

/// One card, ready to print.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuRow {
    /// `GeForce RTX 3070 (GA104)`
    pub card: String,
    /// `01:00`
    pub address: String,
    /// `video audio`
    pub functions: String,
    /// `17`, or several with commas, or `-`
    pub group: String,
    /// Driver of the video function, or `-`
    pub driver: String,
    /// A sentence.
    pub state: String,
    /// Whether it can be lent now.
    pub ready: bool,
}

impl GpuRow {
    /// The cells in the order of [`HEADINGS`].
    pub fn cells(&self) -> [&str; 6] {
        [&self.card, &self.address, &self.functions, &self.group, &self.driver, &self.state]
    }
}

/// A row for each card.
pub fn rows(cards: &[Card]) -> Vec<GpuRow> {
    let host_display = cards.iter().find(|card| card.state == CardState::HostDisplay);
    cards.iter().map(|card| row(card, host_display)).collect()
}

fn row(card: &Card, host_display: Option<&Card>) -> GpuRow {
    let join = |parts: Vec<String>, by: &str| if parts.is_empty() { "-".into() } else { parts.join(by) };
    let mut roles: Vec<String> = Vec::new();
    for role in &card.roles {
        let role = role.to_string();
        if !roles.contains(&role) {
            roles.push(role);
        }
    }
    let note = card.warning().or_else(|| {
        let other = host_display?;
        Some(format!("this host shows its own screen on the {}", other.titled()))
    });
    let state = match (&card.state, note) {
        (CardState::Ready, Some(note)) => format!("{} ({note})", card.state),
        (state, _) => state.to_string(),
    };
    GpuRow {
        card: card.name.clone(),
        address: card.address.slot_name(),
        functions: join(roles, " "),
        group: join(card.groups.iter().map(ToString::to_string).collect(), ","),
        driver: card.driver.clone().unwrap_or_else(|| "-".into()),
        state,
        ready: card.state.is_ready(),
    }
}
