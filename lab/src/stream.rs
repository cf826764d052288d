//! Reading along with a file that the lab host writes, and saying paths as they are outside.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;

/// More than this is not read in one go, so that a lab host that floods one stream cannot stop the other.
const AT_ONCE: u64 = 256 << 10;

/// A line without its end is held back for so many looks: two streams on one terminal must not cut each other's lines, and
/// a question without a line's end must be seen.
const LOOKS: u32 = 10;

/// A file that grows, and where its text goes.
pub(crate) struct Tail<W> {
    path: PathBuf,
    file: Option<File>,
    at: u64,
    /// The start of a line, and how often it was looked at in vain.
    line: Vec<u8>,
    looks: u32,
    replace: Replace,
    to: W,
}

impl<W: Write> Tail<W> {
    /// The file need not exist yet.
    pub(crate) fn new(path: PathBuf, replace: Replace, to: W) -> Self {
        Tail { path, file: None, at: 0, line: Vec::new(), looks: 0, replace, to }
    }

    /// Passes on what is new. True if there was something.
    pub(crate) fn pump(&mut self) -> io::Result<bool> {
        if self.file.is_none() {
            match File::open(&self.path) {
                Ok(file) => self.file = Some(file),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        let Some(file) = &mut self.file else { return Ok(false) };
        file.seek(SeekFrom::Start(self.at))?;
        let mut bytes = Vec::new();
        file.take(AT_ONCE).read_to_end(&mut bytes)?;
        self.at += bytes.len() as u64;
        self.looks = if bytes.is_empty() { self.looks + 1 } else { 0 };
        self.line.extend_from_slice(&bytes);
        let whole = match self.line.iter().rposition(|byte| *byte == b'\n') {
            _ if self.looks >= LOOKS || self.line.len() > AT_ONCE as usize => self.line.len(),
            Some(end) => end + 1,
            None => 0,
        };
        if whole > 0 {
            let ready: Vec<u8> = self.line.drain(..whole).collect();
            self.to.write_all(&self.replace.push(&ready))?;
            self.to.flush()?;
        }
        Ok(!bytes.is_empty())
    }

    /// From now on this text is replaced as well.
    pub(crate) fn replace(&mut self, from: &str, to: &str) {
        self.replace.add(from, to);
    }

    /// Passes on everything that is left.
    pub(crate) fn finish(&mut self) -> io::Result<()> {
        while self.pump()? {}
        let rest = std::mem::take(&mut self.line);
        self.to.write_all(&self.replace.push(&rest))?;
        self.to.write_all(&self.replace.finish())?;
        self.to.flush()
    }
}

/// Replaces texts in a stream, also where a text is cut between two pieces.
#[derive(Debug, Clone, Default)]
pub(crate) struct Replace {
    /// What is looked for, and what stands for it. Longer ones first.
    pairs: Vec<(Vec<u8>, Vec<u8>)>,
    /// The start of what may become one of them.
    held: Vec<u8>,
}

impl Replace {
    /// Empty texts are never found.
    pub(crate) fn new(pairs: impl IntoIterator<Item = (String, String)>) -> Self {
        let mut pairs: Vec<_> = pairs
            .into_iter()
            .filter(|(from, _)| !from.is_empty())
            .map(|(from, to)| (from.into_bytes(), to.into_bytes()))
            .collect();
        pairs.sort_by_key(|(from, _)| std::cmp::Reverse(from.len()));
        Replace { pairs, held: Vec::new() }
    }

    /// One more, unless it is known.
    fn add(&mut self, from: &str, to: &str) {
        if !from.is_empty() && self.pairs.iter().all(|(known, _)| known != from.as_bytes()) {
            self.pairs.push((from.as_bytes().to_vec(), to.as_bytes().to_vec()));
            self.pairs.sort_by_key(|(from, _)| std::cmp::Reverse(from.len()));
        }
    }

    /// What can be passed on after this piece.
    pub(crate) fn push(&mut self, piece: &[u8]) -> Vec<u8> {
        self.held.extend_from_slice(piece);
        self.take(false)
    }

    /// What was held back.
    pub(crate) fn finish(&mut self) -> Vec<u8> {
        self.take(true)
    }

    fn take(&mut self, all: bool) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.held.len());
        let mut rest: &[u8] = &self.held;
        while let Some(first) = rest.first() {
            let partial = |from: &[u8]| from.len() > rest.len() && from.starts_with(rest);
            if !all && self.pairs.iter().any(|(from, _)| partial(from)) {
                break;
            }
            match self.pairs.iter().find(|(from, _)| rest.starts_with(from)) {
                Some((from, to)) => {
                    out.extend_from_slice(to);
                    rest = &rest[from.len()..];
                }
                None => {
                    out.push(*first);
                    rest = &rest[1..];
                }
            }
        }
        self.held = rest.to_vec();
        out
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn replace() -> Replace {
        let pairs = [("/no43/share/r1/runs", "/home/anna/runs"), ("/no43/share/r1", "/tmp/x"), ("", "never")];
        Replace::new(pairs.map(|(from, to)| (from.to_owned(), to.to_owned())))
    }

    #[test]
    fn paths_are_said_as_they_are_outside() {
        let mut replace = replace();
        let mut out = replace.push(b"report: /no43/share/r1/runs/a/report.html and /no43/share/r1/wo");
        out.extend(replace.push(b"rk, /no43/share/r"));
        out.extend(replace.finish());
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "report: /home/anna/runs/a/report.html and /tmp/x/work, /no43/share/r"
        );
    }

    #[test]
    fn a_file_is_followed_while_it_grows() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        let mut said = Vec::new();
        let mut tail = Tail::new(path.clone(), replace(), &mut said);
        assert!(!tail.pump().unwrap());
        std::fs::write(&path, "one\n").unwrap();
        assert!(tail.pump().unwrap());
        assert!(!tail.pump().unwrap());
        std::fs::write(&path, "one\ntwo /no43").unwrap();
        tail.finish().unwrap();
        assert_eq!(said, b"one\ntwo /no43");
    }

    #[test]
    fn a_line_is_passed_on_whole_or_after_a_while() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        std::fs::write(&path, "one\nname? ").unwrap();
        let (mut early, mut late) = (Vec::new(), Vec::new());
        assert!(Tail::new(path.clone(), replace(), &mut early).pump().unwrap());
        assert_eq!(early, b"one\n");
        let mut tail = Tail::new(path, replace(), &mut late);
        (0..=LOOKS).for_each(|_| drop(tail.pump()));
        assert_eq!(late, b"one\nname? ");
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(text in "[/no43shareru1 ]{0,80}", cuts in proptest::collection::vec(0_usize..80, 0..5)) {
            let mut whole = replace();
            let mut expected = whole.push(text.as_bytes());
            expected.extend(whole.finish());
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.sort_unstable();
            let (mut replace, mut out, mut from) = (replace(), Vec::new(), 0);
            for cut in cuts {
                out.extend(replace.push(&text.as_bytes()[from..cut]));
                from = cut;
            }
            out.extend(replace.push(&text.as_bytes()[from..]));
            out.extend(replace.finish());
            prop_assert_eq!(out, expected);
        }
    }
}
