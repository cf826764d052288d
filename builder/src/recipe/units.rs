//! Sizes ("128 GiB") and durations ("10 min") as people write them.
//!
//! A number without a unit is refused: 128 bytes and 128 GiB are both numbers. Decimal units are refused too, because
//! half of the people who write "GB" mean GiB.

use std::time::Duration;

const SIZES: &[(&str, u64)] = &[("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40)];
const TIMES: &[(&str, u64)] = &[("s", 1), ("min", 60), ("h", 3600)];

/// A size in bytes; the error says what is wrong and what to write.
pub(crate) fn size(text: &str) -> Result<u64, (String, String)> {
    let (number, unit) = split(text, "128 GiB")?;
    let Some((_, factor)) = SIZES.iter().find(|(name, _)| *name == unit) else {
        let meant =
            SIZES.iter().map(|(name, _)| *name).find(|name| name[..1].eq_ignore_ascii_case(&unit[..1]));
        let what = match unit.as_str() {
            "KB" | "kB" | "MB" | "GB" | "TB" => format!("'{unit}' can mean two sizes"),
            _ => format!("'{unit}' is no unit of size"),
        };
        return Err((what, format!("write \"{number} {}\"", meant.unwrap_or("GiB"))));
    };
    number.checked_mul(*factor).ok_or_else(|| too_big(text))
}

/// A duration; the error says what is wrong and what to write.
pub(crate) fn duration(text: &str) -> Result<Duration, (String, String)> {
    let (number, unit) = split(text, "10 min")?;
    let Some((_, factor)) = TIMES.iter().find(|(name, _)| *name == unit) else {
        let what = format!("'{unit}' is no unit of time");
        return Err((what, "use s, min or h, as in \"10 min\"".to_owned()));
    };
    number.checked_mul(*factor).map(Duration::from_secs).ok_or_else(|| too_big(text))
}

fn too_big(text: &str) -> (String, String) {
    (format!("'{text}' is too big"), "write a smaller one".to_owned())
}

fn split(text: &str, example: &str) -> Result<(u64, String), (String, String)> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim();
    let fix = || format!("write a whole number and a unit, as in \"{example}\"");
    if number.is_empty() {
        return Err((format!("'{text}' does not start with a number"), fix()));
    }
    if unit.is_empty() {
        return Err((format!("'{text}' has no unit"), fix()));
    }
    if !unit.chars().all(|c| c.is_ascii_alphabetic()) {
        return Err((format!("'{text}' is more than a whole number and a unit"), fix()));
    }
    number.parse().map(|number| (number, unit.to_owned())).map_err(|_| too_big(text))
}

/// Bytes for people: the largest unit that leaves a whole number.
pub(crate) fn show_size(bytes: u64) -> String {
    let unit = SIZES.iter().rev().find(|(_, factor)| bytes >= *factor && bytes.is_multiple_of(*factor));
    unit.map_or_else(|| format!("{bytes} bytes"), |(name, factor)| format!("{} {name}", bytes / factor))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes() {
        assert_eq!(size("128 GiB"), Ok(128 << 30));
        assert_eq!(size("3MiB"), Ok(3 << 20));
        assert_eq!(show_size(3 << 20), "3 MiB");
        assert_eq!(show_size(1 << 40), "1 TiB");
        assert_eq!(show_size(5), "5 bytes");
    }

    #[test]
    fn wrong_sizes_say_what_to_write() {
        let all = ["12", "GiB", "12 GB", "12 gib", "12 apples", "1.5 GiB", "99999999999 TiB", "", "12 é"];
        let shown = all.map(|text| match size(text) {
            Ok(bytes) => format!("{text}: {bytes}"),
            Err((what, fix)) => format!("{what}; {fix}"),
        });
        insta::assert_snapshot!(shown.join("\n"), @r#"
        '12' has no unit; write a whole number and a unit, as in "128 GiB"
        'GiB' does not start with a number; write a whole number and a unit, as in "128 GiB"
        'GB' can mean two sizes; write "12 GiB"
        'gib' is no unit of size; write "12 GiB"
        'apples' is no unit of size; write "12 GiB"
        '1.5 GiB' is more than a whole number and a unit; write a whole number and a unit, as in "128 GiB"
        '99999999999 TiB' is too big; write a smaller one
        '' does not start with a number; write a whole number and a unit, as in "128 GiB"
        '12 é' is more than a whole number and a unit; write a whole number and a unit, as in "128 GiB"
        "#);
    }

    #[test]
    fn durations() {
        assert_eq!(duration("10 min"), Ok(Duration::from_secs(600)));
        assert_eq!(duration("2h"), Ok(Duration::from_secs(7200)));
        assert!(duration("5 m").is_err());
        assert!(duration("99999999999999999 h").is_err());
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".*") {
            let _ = (size(&text), duration(&text));
        }
    }
}
