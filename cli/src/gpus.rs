//! `no43 gpus`: the cards of this host.

use no43_harness::exit_codes;
use no43_host::{Inventory, Roots, StateDir, recovery, table};

use crate::context::{Context, Done, OrExit as _};
use crate::text::Table;

/// Looks only; also says what a run that died has left bound.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

pub(crate) fn run(_args: Args, context: &Context) -> Done {
    let roots = Roots::real();
    let inventory = Inventory::read(&roots).or_exit(exit_codes::HOST_SETUP)?;
    let state = StateDir::open_default().or_exit(exit_codes::HOST_SETUP)?;
    let cards = inventory.cards_now(&state, &roots);
    let pending = recovery::pending(&state, &roots);
    let rows = table::rows(&cards);
    let value = serde_json::json!({"cards": cards, "rows": rows, "pending": pending});
    context.print(&value, |_| {
        if rows.is_empty() {
            return "this host has no graphics card\n".to_owned();
        }
        let mut text = Table::new(&table::HEADINGS);
        for row in &rows {
            text.row(row.cells().map(str::to_owned));
        }
        text.to_string()
    })?;
    for left in &pending {
        eprintln!("  pending  {left}");
    }
    Ok(exit_codes::OK)
}
