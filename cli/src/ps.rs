//! `no43 ps`: what is running. Looks only.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use no43_harness::exit_codes;
use no43_harness::running::{Left, Row};

use crate::context::{Context, Done};
use crate::running::runs;
use crate::text::Table;
use no43_harness::words::duration as seconds;

/// A machine whose no43 was killed is shown as "alone": the next command that changes something takes it over.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

pub(crate) fn run(_: &Args, context: &Context) -> Done {
    let rows = runs()?.list();
    context.print(&rows, |rows| {
        if rows.is_empty() {
            return "nothing is running\n".to_owned();
        }
        let mut table = Table::new(&["NAME", "STATE", "SINCE", "CPUS", "MEMORY", "QEMU", "CARDS"]);
        rows.iter().for_each(|row| table.row(cells(row)));
        let mut text = table.to_string();
        if rows.iter().any(|row| row.left != Left::Watched) {
            text.push_str("  alone, dead: their no43 is gone; the next command that changes something (no43 release, for one) sees to them\n");
        }
        text
    })?;
    Ok(exit_codes::OK)
}

fn cells(row: &Row) -> [String; 7] {
    let note = &row.note;
    let state = match row.left {
        Left::Watched => note.stage.word(),
        Left::Alone => "alone",
        Left::Dead => "dead",
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let cards = if note.cards.is_empty() { "-".to_owned() } else { note.cards.join(", ") };
    [
        note.name.clone(),
        state.to_owned(),
        seconds(Duration::from_secs(now.saturating_sub(note.began))),
        note.cpus.to_string(),
        format!("{} MiB", note.memory_mib),
        row.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
        cards,
    ]
}
