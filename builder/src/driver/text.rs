//! Text of Windows files in whatever encoding it comes: UTF-16 or UTF-8 with a mark, UTF-8 without one, else Windows-1252.

use encoding_rs::{UTF_8, UTF_16BE, UTF_16LE, WINDOWS_1252};

/// How a text was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Encoding {
    /// UTF-16, little-endian; marked, or told by its zero bytes.
    Utf16Le,
    /// UTF-16, big-endian.
    Utf16Be,
    /// UTF-8.
    Utf8,
    /// Windows-1252: what is not UTF-8.
    Windows1252,
}

/// The text, and how it was written. Bytes that mean nothing become U+FFFD.
pub(super) fn decode(bytes: &[u8]) -> (String, Encoding) {
    let (encoding, name) = match bytes {
        [0xff, 0xfe, ..] => (UTF_16LE, Encoding::Utf16Le),
        [0xfe, 0xff, ..] => (UTF_16BE, Encoding::Utf16Be),
        [0xef, 0xbb, 0xbf, ..] => (UTF_8, Encoding::Utf8),
        // a Latin letter, a zero, a Latin letter, a zero: the mark was lost
        [first, 0, second, 0, ..] if first.is_ascii() && second.is_ascii() => (UTF_16LE, Encoding::Utf16Le),
        _ if std::str::from_utf8(bytes).is_ok() => (UTF_8, Encoding::Utf8),
        _ => (WINDOWS_1252, Encoding::Windows1252),
    };
    let (text, _) = encoding.decode_with_bom_removal(bytes);
    (text.into_owned(), name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn utf16(text: &str, mark: bool) -> Vec<u8> {
        let mark = mark.then_some(0xfeff);
        mark.into_iter().chain(text.encode_utf16()).flat_map(u16::to_le_bytes).collect()
    }

    #[test]
    fn every_encoding_gives_the_same_text() {
        let text = "[Strings]\r\nName=\"Carte é\"";
        assert_eq!(decode(&utf16(text, true)), (text.into(), Encoding::Utf16Le));
        assert_eq!(decode(&utf16(text, false)), (text.into(), Encoding::Utf16Le));
        assert_eq!(decode(text.as_bytes()), (text.into(), Encoding::Utf8));
        let latin: Vec<u8> = text.chars().map(|c| if c == 'é' { 0xe9 } else { c as u8 }).collect();
        assert_eq!(decode(&latin), (text.into(), Encoding::Windows1252));
        assert_eq!(decode(b"\xef\xbb\xbfa").0, "a");
        assert_eq!(decode(&[0xfe, 0xff, 0, b'a']), ("a".into(), Encoding::Utf16Be));
        assert_eq!(decode(b"").0, "");
    }

    /// Files put together of parts in several encodings: what is ASCII, as all ids are, is read in each.
    #[test]
    fn mixed_encodings_keep_what_is_ascii() {
        let ids = "PCI\\VEN_10DE&DEV_2484";
        let marked = [b"\xef\xbb\xbfName=\xe9\r\n", ids.as_bytes()].concat();
        assert_eq!(decode(&marked).0, format!("Name=\u{fffd}\r\n{ids}"));
        let both = ["Name=é\r\n".as_bytes(), b"Other=\xe9\r\n", ids.as_bytes()].concat();
        let (text, encoding) = decode(&both);
        assert!(text.ends_with(ids) && encoding == Encoding::Windows1252, "{text}");
        // UTF-16 that ends in the middle of a letter
        assert!(decode(&[utf16(ids, true), vec![b'x']].concat()).0.starts_with(ids));
    }
}
