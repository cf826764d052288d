//! The table of causes, by where they show.
//!
//! Rules for a row: `when` names what it is about, so that advice for Code 43 never stands below a code 28; what decides weighs 4 to 6,
//! what fits many causes 1 to 2; what rules it out weighs more than all that speaks for it.

mod code43;
mod drivers;
mod hardware;
mod run;
mod start;

use super::rule::Row;

/// All rows; among equals the earlier one is named first.
pub(super) fn all() -> impl Iterator<Item = &'static Row> {
    [code43::ROWS, drivers::ROWS, hardware::ROWS, run::ROWS, start::ROWS].into_iter().flatten()
}
