//! Times for people and for files.

use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// `10:42` for today, `2026-11-21 10:42` for other days, in local time.
pub(crate) fn since(seconds: u64) -> String {
    let (then, today) = (crate::raw::local_time(seconds), crate::raw::local_time(now()));
    let clock = format!("{:02}:{:02}", then.hour, then.minute);
    match (then.year, then.month, then.day) == (today.year, today.month, today.day) {
        true => clock,
        false => format!("{}-{:02}-{:02} {clock}", then.year, then.month, then.day),
    }
}
