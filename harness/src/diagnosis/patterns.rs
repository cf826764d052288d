//! Lines of kernels and tools that tell something about a card, from a table; the guest program has one of its own for what it sends.

use std::sync::OnceLock;

/// The table itself, with the source of every row.
pub const PATTERNS_SOURCE: &str = include_str!("data/log-patterns.tsv");

/// Whose log it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// This host's kernel, or QEMU.
    Host,
    /// A Linux guest's kernel.
    GuestLinux,
    /// A program in a Windows guest.
    GuestWindows,
}

/// One row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    /// Whose log it is.
    pub side: Side,
    /// `error`, `warning`, `setup`, or `by code` where the line's number decides.
    pub severity: &'static str,
    /// Texts that the line contains, in this order.
    pub texts: Vec<&'static str>,
    /// What it means.
    pub meaning: &'static str,
    /// Who says so; `unverified` if nobody does.
    pub source: &'static str,
}

impl Pattern {
    /// Does this line say it?
    pub fn fits(&self, line: &str) -> bool {
        let mut rest = line;
        self.texts.iter().all(|text| match rest.find(text) {
            Some(at) => {
                rest = &rest[at + text.len()..];
                true
            }
            None => false,
        })
    }
}

/// All rows.
pub fn patterns() -> &'static [Pattern] {
    static ROWS: OnceLock<Vec<Pattern>> = OnceLock::new();
    ROWS.get_or_init(|| PATTERNS_SOURCE.lines().filter_map(parse).collect())
}

fn parse(line: &'static str) -> Option<Pattern> {
    let mut fields = line.split('\t');
    let side = match fields.next()? {
        "host" => Side::Host,
        "guest-linux" => Side::GuestLinux,
        "guest-windows" => Side::GuestWindows,
        _ => return None,
    };
    let severity = fields.next()?;
    let texts = fields.next()?.split('…').collect();
    Some(Pattern { side, severity, texts, meaning: fields.next()?, source: fields.next()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_table_is_a_row() {
        let lines = PATTERNS_SOURCE.lines().filter(|line| !line.starts_with('#')).count();
        assert_eq!(patterns().len(), lines);
        let known = ["error", "warning", "setup", "by code"];
        assert!(patterns().iter().all(|row| known.contains(&row.severity)));
        assert!(patterns().iter().all(|row| row.texts.iter().all(|text| !text.is_empty())));
    }

    #[test]
    fn texts_are_looked_for_in_their_order() {
        let row = patterns().iter().find(|row| row.texts.len() == 2).unwrap();
        let (a, b) = (row.texts[0], row.texts[1]);
        assert!(row.fits(&format!("x {a} 0 {b} y")));
        assert!(!row.fits(&format!("{b} {a}")));
    }
}
