//! Names on FAT: which are legal, and the short names (8.3) that stand beside long ones.

use std::collections::{HashMap, HashSet};

/// UTF-16 units of a long name.
const LONGEST: usize = 255;

/// Says why a name cannot be on a FAT disk.
pub(super) fn check(name: &str) -> Result<(), &'static str> {
    if name.is_empty() || name == "." || name == ".." {
        return Err("a part of its path is empty, '.' or '..'");
    }
    if name.encode_utf16().count() > LONGEST {
        return Err("a part of its path is longer than 255 characters");
    }
    if name.contains(|c: char| c.is_control() || "\"*/:<>?\\|".contains(c)) {
        return Err("FAT allows none of \" * / : < > ? \\ | and no control characters in a name");
    }
    if name.ends_with([' ', '.']) {
        return Err("a part of its path ends with a space or a dot, which Windows drops");
    }
    Ok(())
}

/// The name by which FAT tells files apart.
pub(super) fn folded(name: &str) -> String {
    // Windows folds character by character: ß stays as it is.
    let upper = |c: char| {
        let mut upper = c.to_uppercase();
        match (upper.next(), upper.next()) {
            (Some(upper), None) => upper,
            _ => c,
        }
    };
    name.chars().map(upper).collect()
}

/// The short names of one folder.
#[derive(Debug, Default)]
pub(super) struct ShortNames {
    taken: HashSet<[u8; 11]>,
    /// The last number given to a beginning.
    numbers: HashMap<[u8; 11], u32>,
}

impl ShortNames {
    /// A short name for `name` that no other in this folder has.
    pub(super) fn take(&mut self, name: &str) -> [u8; 11] {
        let (short, whole) = basis(name);
        if whole && self.taken.insert(short) {
            return short;
        }
        let numbers = self.numbers.entry(short).or_insert(0);
        loop {
            *numbers += 1;
            let numbered = numbered(short, *numbers);
            if self.taken.insert(numbered) {
                return numbered;
            }
        }
    }
}

/// The name in 8.3 form, and whether it says the same as the name except for case.
fn basis(name: &str) -> ([u8; 11], bool) {
    let trimmed = name.trim_start_matches('.');
    let (stem, extension) = match trimmed.rfind('.') {
        Some(dot) => (&trimmed[..dot], &trimmed[dot + 1..]),
        None => (trimmed, ""),
    };
    let mut short = [b' '; 11];
    let whole = fill(&mut short[..8], stem) & fill(&mut short[8..], extension);
    (short, whole && trimmed.len() == name.len() && short[0] != b' ')
}

/// False if something was left out or replaced.
fn fill(field: &mut [u8], text: &str) -> bool {
    let mut whole = true;
    let mut places = field.iter_mut();
    for c in text.chars() {
        if c == ' ' || c == '.' {
            whole = false;
            continue;
        }
        let legal = c.is_ascii_alphanumeric() || "$%'-_@~`!(){}^#&".contains(c);
        whole &= legal;
        let byte = if legal { (c as u32).to_le_bytes()[0].to_ascii_uppercase() } else { b'_' };
        match places.next() {
            Some(place) => *place = byte,
            None => return false,
        }
    }
    whole
}

/// `LONGNA~1.TXT`
fn numbered(short: [u8; 11], number: u32) -> [u8; 11] {
    let tail = format!("~{number}");
    let stem = short[..8].iter().take_while(|byte| **byte != b' ').count().min(8 - tail.len().min(8));
    let mut name = short;
    name[..8].fill(b' ');
    name[..stem].copy_from_slice(&short[..stem]);
    name[stem..stem + tail.len()].copy_from_slice(tail.as_bytes());
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(names: &[&str]) -> Vec<String> {
        let mut shorts = ShortNames::default();
        names.iter().map(|name| String::from_utf8_lossy(&shorts.take(name)).into_owned()).collect()
    }

    #[test]
    fn short_names_are_unique_and_keep_what_fits() {
        let names =
            ["no43-guest.exe", "viostor.inf", "No43-Guess.exe", "$WinPEDriver$", ".x", "a b.txt", "Élodie"];
        assert_eq!(
            taken(&names),
            [
                "NO43-G~1EXE",
                "VIOSTOR INF",
                "NO43-G~2EXE",
                "$WINPE~1   ",
                "X~1        ",
                "AB~1    TXT",
                "_LODIE~1   "
            ]
        );
        assert_eq!(
            taken(&["a~1", "a b", "AB", "ab."]),
            ["A~1        ", "AB~1       ", "AB         ", "AB~2       "]
        );
    }

    #[test]
    fn names_that_windows_cannot_have_are_refused() {
        for name in ["", ".", "..", "a:b", "a\\b", "nul\0", "dot.", "space "] {
            assert!(check(name).is_err(), "{name:?}");
        }
        assert_eq!(check("Autounattend.xml"), Ok(()));
        assert_eq!(folded("Straße é"), "STRAßE É");
    }
}
