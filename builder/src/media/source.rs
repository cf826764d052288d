//! Bytes of a medium by their place, bounded and counted.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

/// Anything that gives bytes by their place.
pub(crate) trait ReadAt {
    /// Fills `into` from byte `at`; fewer bytes mean the end.
    fn read_at(&self, at: u64, into: &mut [u8]) -> io::Result<usize>;
}

impl ReadAt for File {
    fn read_at(&self, at: u64, into: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < into.len() {
            match FileExt::read_at(self, &mut into[filled..], at + filled as u64) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }
}

impl ReadAt for Vec<u8> {
    fn read_at(&self, at: u64, into: &mut [u8]) -> io::Result<usize> {
        let from = usize::try_from(at).ok().and_then(|at| self.get(at..)).unwrap_or_default();
        let length = from.len().min(into.len());
        into[..length].copy_from_slice(&from[..length]);
        Ok(length)
    }
}

/// A medium, and how many bytes of it were asked for.
#[derive(Debug)]
pub(crate) struct Source<S> {
    from: S,
    /// Of the whole medium.
    pub(crate) bytes: u64,
    read: Cell<u64>,
}

impl<S: ReadAt> Source<S> {
    pub(crate) fn new(from: S, bytes: u64) -> Self {
        Self { from, bytes, read: Cell::new(0) }
    }

    /// Bytes read so far.
    pub(crate) fn bytes_read(&self) -> u64 {
        self.read.get()
    }

    /// Fills `into` from byte `at`, as far as the medium goes.
    pub(crate) fn read_some(&self, at: u64, into: &mut [u8]) -> io::Result<usize> {
        if at.checked_add(into.len() as u64).is_none() {
            return Ok(0);
        }
        let length = self.from.read_at(at, into)?;
        self.read.set(self.read.get() + length as u64);
        Ok(length)
    }

    /// `length` bytes from byte `at`; `UnexpectedEof` where the medium ends before.
    pub(crate) fn read(&self, at: u64, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        if self.read_some(at, &mut bytes)? < length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(bytes)
    }
}

/// A file of the medium in its pieces, readable from one end to the other.
#[derive(Debug)]
pub(crate) struct Pieces<'a, S> {
    source: &'a Source<S>,
    /// Place and length; `None` as place means that these bytes are zero.
    pieces: &'a [(Option<u64>, u64)],
    length: u64,
    at: u64,
}

impl<'a, S: ReadAt> Pieces<'a, S> {
    pub(crate) fn new(source: &'a Source<S>, pieces: &'a [(Option<u64>, u64)]) -> Self {
        let length = pieces.iter().fold(0, |sum: u64, (_, length)| sum.saturating_add(*length));
        Self { source, pieces, length, at: 0 }
    }

    /// The piece at the present place: where on the medium, and how much of it is left.
    fn here(&self) -> Option<(Option<u64>, u64)> {
        let mut before = 0u64;
        for (place, length) in self.pieces {
            let within = self.at - before;
            if within < *length {
                let place = match place {
                    Some(place) => Some(place.checked_add(within)?),
                    None => None,
                };
                return Some((place, length - within));
            }
            before = before.checked_add(*length)?;
        }
        None
    }
}

impl<S: ReadAt> Read for Pieces<'_, S> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let Some((place, left)) = self.here() else { return Ok(0) };
        let length = into.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let into = &mut into[..length];
        let done = match place {
            Some(place) => self.source.read_some(place, into)?,
            None => {
                into.fill(0);
                length
            }
        };
        self.at += done as u64;
        Ok(done)
    }
}

impl<S: ReadAt> Seek for Pieces<'_, S> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let wanted = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.length.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = wanted.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_in_pieces_reads_as_one_and_is_counted() {
        let source = Source::new((0..100u8).collect::<Vec<u8>>(), 100);
        let pieces = [(Some(10), 3), (None, 2), (Some(50), 2)];
        let mut file = Pieces::new(&source, &pieces);
        let mut all = Vec::new();
        file.read_to_end(&mut all).expect("read");
        assert_eq!(all, [10, 11, 12, 0, 0, 50, 51]);
        assert_eq!(source.bytes_read(), 5);
        file.seek(SeekFrom::End(-1)).expect("within");
        all.clear();
        file.read_to_end(&mut all).expect("read");
        assert_eq!(all, [51]);
        file.seek(SeekFrom::Start(1000)).expect("beyond the end is a place too");
        assert_eq!(file.read(&mut [0; 4]).expect("nothing"), 0);
    }
}
