//! Logs of programs in the guest: kept below a size, and the end of one as text.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// Most bytes of a log that stay on the disk.
const SIZE: u64 = 4 << 20;

/// Bytes at the end of a log that are looked at for [`tail`].
const END: u64 = 32 << 10;

/// Lines of [`tail`].
const LINES: usize = 20;

/// Characters of such a line.
const LENGTH: usize = 300;

/// Cuts a log that is too long; its end stays. A log that is not there, or is in use, stays as it is.
pub(crate) fn bound(path: &Path) {
    let Ok(length) = fs::metadata(path).map(|meta| meta.len()) else { return };
    if length > SIZE
        && let Some(bytes) = end_of(path, SIZE / 4)
    {
        let _ = fs::write(path, bytes);
    }
}

/// The last lines of a log in UTF-8, UTF-16 (as Windows Installer writes) or a code page; empty if there is none.
pub(crate) fn tail(path: &Path) -> Vec<String> {
    let Some(bytes) = end_of(path, END) else { return Vec::new() };
    let text = decode(&bytes);
    let lines: Vec<&str> = text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    let last = lines.len().saturating_sub(LINES);
    lines[last..].iter().map(|line| line.chars().filter(|c| !c.is_control()).take(LENGTH).collect()).collect()
}

fn end_of(path: &Path, size: u64) -> Option<Vec<u8>> {
    let mut file = File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    // an even place, so that UTF-16 is not cut in the middle of a unit
    file.seek(SeekFrom::Start(length.saturating_sub(size) & !1)).ok()?;
    let mut bytes = Vec::new();
    file.take(size + 1).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// UTF-16 is told by its mark, or by every second byte being 0 in text that is mostly ASCII.
fn decode(bytes: &[u8]) -> String {
    let zeros = bytes.iter().skip(1).step_by(2).filter(|byte| **byte == 0).count();
    if bytes.starts_with(&[0xff, 0xfe]) || zeros * 4 > bytes.len() {
        let units: Vec<u16> =
            bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect();
        String::from_utf16_lossy(&units).trim_start_matches('\u{feff}').to_owned()
    } else {
        String::from_utf8_lossy(bytes).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_end_of_a_log_is_read_in_either_encoding() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.log");
        let text: String = (0..5000).map(|n| format!("line {n} é\r\n\r\n")).collect();
        fs::write(&path, &text).unwrap();
        let plain = tail(&path);
        assert_eq!((plain.len(), plain[19].as_str()), (20, "line 4999 é"));
        let wide: Vec<u8> =
            "\u{feff}".encode_utf16().chain(text.encode_utf16()).flat_map(u16::to_le_bytes).collect();
        fs::write(&path, wide).unwrap();
        assert_eq!(tail(&path), plain);
        assert!(tail(&dir.path().join("none")).is_empty());
    }

    #[test]
    fn a_log_stays_below_its_size() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.log");
        fs::write(&path, vec![b'x'; SIZE as usize + 1]).unwrap();
        bound(&path);
        assert!(fs::metadata(&path).unwrap().len() <= SIZE / 4 + 1);
    }

    proptest! {
        #[test]
        fn any_log_has_an_end(wide: bool, bytes in proptest::collection::vec(prop_oneof![Just(0_u8), Just(b'\n'), any::<u8>()], 0..300)) {
            let mark: &[u8] = if wide { &[0xff, 0xfe] } else { &[] };
            let text = decode(&[mark, &bytes].concat());
            prop_assert!(text.len() <= 3 * (bytes.len() + 2));
        }
    }
}
