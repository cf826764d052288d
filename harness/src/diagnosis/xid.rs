//! NVIDIA's error numbers (Xid), from a table.

use std::sync::OnceLock;

const TABLE: &str = include_str!("data/xid.tsv");

/// One number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Xid {
    /// As in `NVRM: Xid (PCI:0000:01:00): 79`.
    pub number: u32,
    /// Its symbol in nverror.h, or `-`.
    pub symbol: &'static str,
    /// `passthrough`, `hw`, `app`, `engine`, …
    pub class: &'static str,
    /// What it means.
    pub meaning: &'static str,
}

/// All numbers, in order.
pub fn xids() -> &'static [Xid] {
    static ROWS: OnceLock<Vec<Xid>> = OnceLock::new();
    ROWS.get_or_init(|| TABLE.lines().filter_map(parse).collect())
}

fn parse(line: &'static str) -> Option<Xid> {
    let mut fields = line.split('\t');
    let number = fields.next()?.parse().ok()?;
    Some(Xid { number, symbol: fields.next()?, class: fields.next()?, meaning: fields.next()? })
}

/// The row of a number; none for one that the table does not have.
pub fn xid(number: u32) -> Option<&'static Xid> {
    xids().iter().find(|row| row.number == number)
}

/// The number in a line of NVIDIA's kernel driver: `NVRM: Xid (PCI:0000:01:00): 79, pid=…`.
pub(crate) fn number_in(line: &str) -> Option<u32> {
    let after = line.split_once("Xid (")?.1.split_once("): ")?.1;
    let digits = after.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_table_is_a_row() {
        let lines = TABLE.lines().filter(|line| !line.starts_with('#')).count();
        assert_eq!(xids().len(), lines);
        assert!(xids().windows(2).all(|two| two[0].number < two[1].number));
        assert_eq!(xid(79).unwrap().class, "passthrough");
        assert_eq!(xid(7), None);
    }

    #[test]
    fn a_number_is_found_in_a_line() {
        assert_eq!(number_in("NVRM: Xid (PCI:0000:01:00): 79, pid='<unknown>', GPU has fallen"), Some(79));
        assert_eq!(number_in("NVRM: Xid (PCI:0000:01:00)"), None);
        assert_eq!(number_in("NVRM: Xid (x): 99999999999"), None);
    }
}
