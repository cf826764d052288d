//! Text that people read: foreign strings made safe, durations and times in words.
//!
//! A guest can put terminal escapes, bidirectional overrides or a megabyte of noise into any string. [`clean`] is applied once,
//! where such a string enters the evidence; the reports escape again for their own format.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The longest foreign string that is kept in an event, in characters.
pub const MAX_TEXT: usize = 2000;

/// Makes a foreign string fit for one line: control and direction characters become '\u{FFFD}', line ends and tabs a space, and what is longer
/// than `max` characters is cut with a note of how much.
pub fn clean_to(text: &str, max: usize) -> String {
    let mut out = String::with_capacity(text.len().min(max * 4));
    let mut rest = 0usize;
    for (count, c) in text.trim_end().chars().enumerate() {
        if count < max {
            out.push(visible(c));
        } else {
            rest += 1;
        }
    }
    if rest > 0 {
        out.push_str(&format!(" … (+{rest} characters)"));
    }
    out
}

/// [`clean_to`] with the usual limit of [`MAX_TEXT`] characters.
pub fn clean(text: &str) -> String {
    clean_to(text, MAX_TEXT)
}

/// One character as it may appear in a report.
fn visible(c: char) -> char {
    match c {
        '\n' | '\r' | '\t' => ' ',
        // direction overrides can make a report say the opposite of what it says
        '\u{200e}' | '\u{200f}' | '\u{061c}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
            '\u{fffd}'
        }
        // line and paragraph separators, byte order marks, and the non-characters that XML 1.0 refuses
        '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{fffe}' | '\u{ffff}' => {
            '\u{fffd}'
        }
        c if c.is_control() => '\u{fffd}',
        c => c,
    }
}

/// Like [`clean`], but for a block of text: line ends stay.
pub fn clean_block(text: &str, max: usize) -> String {
    let mut out = String::with_capacity(text.len().min(max));
    for line in text.lines() {
        if out.len() + line.len() > max {
            out.push_str("… (cut)\n");
            break;
        }
        out.push_str(&clean(line));
        out.push('\n');
    }
    out
}

/// A foreign string as part of a file name: small letters, digits, '.' and '-', at most 40 characters, never empty and never a path.
pub fn file_word(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars().take(200) {
        let c = match c {
            'a'..='z' | '0'..='9' => c,
            'A'..='Z' => c.to_ascii_lowercase(),
            '.' if !out.is_empty() && !out.ends_with(['.', '-']) => '.',
            _ if out.is_empty() || out.ends_with(['-', '.']) => continue,
            _ => '-',
        };
        out.push(c);
        if out.len() == 40 {
            break;
        }
    }
    let out = out.trim_end_matches(['-', '.']);
    if out.is_empty() { "unnamed".into() } else { out.into() }
}

/// A duration as a person says it: "12 ms", "3.4 s", "2 min 14 s", "1 h 03 min".
pub fn duration(d: Duration) -> String {
    let ms = d.as_millis();
    let s = d.as_secs();
    match s {
        _ if ms < 1000 => format!("{ms} ms"),
        0..60 => format!("{}.{} s", s, (ms % 1000) / 100),
        60..3600 => format!("{} min {:02} s", s / 60, s % 60),
        _ => format!("{} h {:02} min", s / 3600, s % 3600 / 60),
    }
}

/// A limit as a person says it, without false precision: "90 s", "5 min".
pub fn limit(d: Duration) -> String {
    match d.as_secs() {
        s if s >= 120 && s.is_multiple_of(60) => format!("{} min", s / 60),
        0 => duration(d),
        s => format!("{s} s"),
    }
}

/// Elapsed time as minutes and seconds, as frames are named in reports: "0:48", "12:05".
pub fn clock(ms: u64) -> String {
    format!("{}:{:02}", ms / 60_000, ms / 1000 % 60)
}

/// Bytes with a binary unit: "512 B", "16.0 MiB", "8 GiB". Whole numbers stay whole.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut unit = 0;
    let mut scale = 1u64;
    while unit + 1 < UNITS.len() && n / scale >= 1024 {
        scale *= 1024;
        unit += 1;
    }
    if n.is_multiple_of(scale) {
        format!("{} {}", n / scale, UNITS[unit])
    } else {
        format!("{:.1} {}", n as f64 / scale as f64, UNITS[unit])
    }
}

/// A moment in UTC as "2026-11-22T17:05:09Z".
pub fn rfc3339(time: SystemTime) -> String {
    let (y, mo, d, s) = civil(time);
    format!("{y:04}-{mo:02}-{d:02}T{:02}:{:02}:{:02}Z", s / 3600, s / 60 % 60, s % 60)
}

/// The day of a moment in UTC as "2026-11-22".
pub fn date(time: SystemTime) -> String {
    let (y, m, d, _) = civil(time);
    format!("{y:04}-{m:02}-{d:02}")
}

/// Year, month, day and second of the day, by the proleptic Gregorian calendar (Hinnant's `civil_from_days`).
fn civil(time: SystemTime) -> (i64, u32, u32, u64) {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let days = i64::try_from(seconds / 86400).unwrap_or(0) + 719_468;
    let era = days / 146_097;
    let doe = days % 146_097;
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + i64::from(month <= 2);
    (year, u32::try_from(month).unwrap_or(1), u32::try_from(day).unwrap_or(1), seconds % 86400)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_read_as_a_person_says_them() {
        let say = |ms| duration(Duration::from_millis(ms));
        assert_eq!(
            [say(12), say(3460), say(59_990), say(134_000), say(3_780_000)],
            ["12 ms", "3.4 s", "59.9 s", "2 min 14 s", "1 h 03 min"]
        );
        assert_eq!(limit(Duration::from_secs(90)), "90 s");
        assert_eq!(limit(Duration::from_secs(300)), "5 min");
    }

    #[test]
    fn times_agree_with_date() {
        let at = |s| UNIX_EPOCH + Duration::from_secs(s);
        assert_eq!(rfc3339(at(0)), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(at(1_795_367_109)), "2026-11-22T17:05:09Z");
        assert_eq!(rfc3339(at(951_782_400)), "2000-02-29T00:00:00Z");
    }

    #[test]
    fn sizes_stay_whole_where_they_are() {
        assert_eq!(
            [bytes(0), bytes(4096), bytes(16 << 20), bytes(8 << 30), bytes(1500)],
            ["0 B", "4 KiB", "16 MiB", "8 GiB", "1.5 KiB"]
        );
    }

    #[test]
    fn escapes_and_direction_marks_do_not_reach_a_terminal() {
        assert_eq!(clean("a\x1b[31mred\u{202e}x\r\nb\0"), "a\u{fffd}[31mred\u{fffd}x  b\u{fffd}");
    }

    proptest! {
        #[test]
        fn a_file_word_is_never_a_path(text in any::<String>()) {
            let word = file_word(&text);
            prop_assert!(!word.is_empty() && word.len() <= 40 && !word.starts_with('.'));
            prop_assert!(word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.'));
        }

        #[test]
        fn cleaned_text_is_one_bounded_line(text in any::<String>()) {
            let out = clean_to(&text, 10);
            prop_assert!(out.chars().count() < 60);
            prop_assert!(!out.chars().any(char::is_control));
        }
    }
}
