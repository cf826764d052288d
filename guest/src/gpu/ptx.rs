//! PTX as it goes into the program: without indentation and comments, line for line, so that a compiler's line numbers hold.

use std::ffi::CStr;

/// The text of a file of `data/`.
macro_rules! ptx {
    ($file:literal) => {{
        const TEXT: &[u8] = include_bytes!(concat!("data/", $file));
        const SLIM: &[u8] = &$crate::gpu::ptx::slim::<{ $crate::gpu::ptx::length(TEXT) }>(TEXT);
        const { $crate::gpu::ptx::text(SLIM) }
    }};
}
pub(super) use ptx;

/// Whether the byte at that place is dropped: spaces at the start of a line, and lines that begin with a slash.
const fn is_dropped(text: &[u8], at: usize) -> bool {
    let mut start = at;
    while start > 0 && text[start - 1] != b'\n' {
        start -= 1;
    }
    while start < at && text[start] == b' ' {
        start += 1;
    }
    text[at] != b'\n' && (text[start] == b'/' || start == at && text[at] == b' ')
}

/// Bytes that stay, and a NUL.
pub(super) const fn length(text: &[u8]) -> usize {
    let (mut length, mut at) = (1, 0);
    while at < text.len() {
        length += !is_dropped(text, at) as usize;
        at += 1;
    }
    length
}

pub(super) const fn slim<const N: usize>(text: &[u8]) -> [u8; N] {
    let (mut slim, mut to, mut at) = ([0; N], 0, 0);
    while at < text.len() {
        if !is_dropped(text, at) {
            slim[to] = text[at];
            to += 1;
        }
        at += 1;
    }
    slim
}

pub(super) const fn text(slim: &[u8]) -> &CStr {
    match CStr::from_bytes_with_nul(slim) {
        Ok(text) => text,
        Err(_) => panic!("there is a NUL in a text"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_stay_without_what_compilers_do_not_need() {
        const TEXT: &[u8] = b"// no\n.version 6.0\n    // no\n    add.u32 %r1, %r2, 1;\n\n}\n";
        const SLIM: &[u8] = &slim::<{ length(TEXT) }>(TEXT);
        assert_eq!(text(SLIM), c"\n.version 6.0\n\nadd.u32 %r1, %r2, 1;\n\n}\n");
    }
}
