//! A reader of UDF discs (ECMA-167 and OSTA UDF 1.02 to 2.01): one path at a time, never the whole tree.
//!
//! A Windows medium has about a thousand files; walking to the few that matter reads a dozen kilobytes. Every structure
//! begins with a tag whose checksum and CRC are checked; lengths are bounded before anything is allocated.

use std::io;

use super::source::{Pieces, ReadAt, Source};

/// Blocks of optical media, then those of hard-disk images.
const BLOCK_SIZES: [u32; 3] = [2048, 512, 4096];
const ANCHOR_BLOCK: u64 = 256;
const DESCRIPTORS_LIMIT: u32 = 64;
/// `sources/` of Windows has 900 entries in 90 KiB.
const DIRECTORY_LIMIT: u64 = 4 << 20;
/// A 7 GB file in extents of 1 GiB has 7; a fragmented one more.
const EXTENTS_LIMIT: usize = 4096;
/// Blocks of allocation descriptors that follow each other; each holds at least a hundred.
const CHAIN_LIMIT: usize = 64;

const PRIMARY_VOLUME: u16 = 1;
const ANCHOR: u16 = 2;
const PARTITION: u16 = 5;
const LOGICAL_VOLUME: u16 = 6;
const TERMINATOR: u16 = 8;
const FILE_SET: u16 = 256;
const FILE_IDENTIFIER: u16 = 257;
const ALLOCATION_EXTENT: u16 = 258;
const FILE_ENTRY: u16 = 261;
const EXTENDED_FILE_ENTRY: u16 = 266;

/// Why a disc cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UdfError {
    #[error("failed to read: {0}")]
    Io(#[from] io::Error),
    /// No recognition sequence.
    #[error("it has no UDF volume")]
    NotUdf,
    /// It is UDF, but a structure lies beyond the end.
    #[error("it ends at byte {end}, before {what} at byte {at}")]
    Truncated { what: &'static str, at: u64, end: u64 },
    /// A tag, length or place that cannot be.
    #[error("its {what} at byte {at} is damaged")]
    Damaged { what: &'static str, at: u64 },
    /// Legal, but nothing that installation media use.
    #[error("it uses {0}, which installation media do not")]
    NotSupported(&'static str),
}

type Result<T> = std::result::Result<T, UdfError>;

/// An open disc.
#[derive(Debug)]
pub(crate) struct Udf<'a, S> {
    source: &'a Source<S>,
    block: u64,
    /// First byte and bytes of each partition that the logical volume maps.
    partitions: Vec<(u64, u64)>,
    root: Place,
    /// The logical volume's name.
    pub(crate) label: String,
}

/// A block of a partition.
#[derive(Clone, Copy, Debug)]
struct Place {
    block: u32,
    partition: u16,
}

/// A file or directory of the disc.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) directory: bool,
    pub(crate) bytes: u64,
    /// Place on the medium and length; no place where the file has a hole.
    pub(crate) pieces: Vec<(Option<u64>, u64)>,
}

impl Entry {
    /// The first byte behind the file's last piece.
    pub(crate) fn end(&self) -> u64 {
        let end = |(place, length): &(Option<u64>, u64)| Some(place.as_ref()?.saturating_add(*length));
        self.pieces.iter().filter_map(end).max().unwrap_or(0)
    }
}

impl<'a, S: ReadAt> Udf<'a, S> {
    pub(crate) fn open(source: &'a Source<S>) -> Result<Self> {
        if !recognised(source)? {
            return Err(UdfError::NotUdf);
        }
        let mut first = None;
        for block in BLOCK_SIZES.map(u64::from) {
            match Self::open_with(source, block) {
                Ok(disc) => return Ok(disc),
                Err(error) => first = first.or(Some(error)),
            }
        }
        // Optical blocks are tried first, so their error is the one that means something.
        Err(first.unwrap_or(UdfError::NotUdf))
    }

    fn open_with(source: &'a Source<S>, block: u64) -> Result<Self> {
        let at = ANCHOR_BLOCK * block;
        let anchor = descriptor(source, at, 512, "anchor")?;
        if tag(&anchor) != ANCHOR {
            return Err(UdfError::Damaged { what: "anchor", at });
        }
        let sequence = |at: usize| (u64::from(u32_at(&anchor, at + 4)) * block, u32_at(&anchor, at));
        let volume = Volume::read(source, sequence(16), block)
            .or_else(|error| Volume::read(source, sequence(24), block).map_err(|_| error))?;
        let (partitions, file_set, label) = volume.resolve(block)?;
        let mut disc = Self { source, block, partitions, root: Place { block: 0, partition: 0 }, label };
        let at = disc.place(file_set, "file set")?;
        let set = descriptor(source, at, 512, "file set")?;
        if tag(&set) != FILE_SET {
            return Err(UdfError::Damaged { what: "file set", at });
        }
        disc.root = long_place(&set, 400);
        Ok(disc)
    }

    /// The file or directory at `path` (parts with `/` between them), compared without case, as Windows does.
    pub(crate) fn find(&self, path: &str) -> Result<Option<Entry>> {
        let mut entry = self.entry(self.root)?;
        for part in path.split('/').filter(|part| !part.is_empty()) {
            if !entry.directory {
                return Ok(None);
            }
            let names = self.names(&entry)?;
            let Some((_, place)) = names.iter().find(|(name, _)| name.eq_ignore_ascii_case(part)) else {
                return Ok(None);
            };
            entry = self.entry(*place)?;
        }
        Ok(Some(entry))
    }

    /// The names in the directory at `path`; none where there is no such directory.
    pub(crate) fn list(&self, path: &str) -> Result<Vec<String>> {
        match self.find(path)? {
            Some(entry) if entry.directory => {
                Ok(self.names(&entry)?.into_iter().map(|(name, _)| name).collect())
            }
            _ => Ok(Vec::new()),
        }
    }

    pub(crate) fn reader<'e>(&self, entry: &'e Entry) -> Pieces<'e, S>
    where
        'a: 'e,
    {
        Pieces::new(self.source, &entry.pieces)
    }

    /// The byte where a block of a partition lies.
    fn place(&self, place: Place, what: &'static str) -> Result<u64> {
        let damaged = UdfError::Damaged { what, at: u64::from(place.block) * self.block };
        let Some((start, bytes)) = self.partitions.get(usize::from(place.partition)) else {
            return Err(damaged);
        };
        let offset = u64::from(place.block) * self.block;
        if offset >= *bytes { Err(damaged) } else { Ok(start + offset) }
    }

    fn entry(&self, place: Place) -> Result<Entry> {
        const WHAT: &str = "file entry";
        let at = self.place(place, WHAT)?;
        let bytes = descriptor(self.source, at, usize::try_from(self.block).unwrap_or(2048), WHAT)?;
        let damaged = || UdfError::Damaged { what: WHAT, at };
        // The two kinds differ in where the lengths of attributes and allocation descriptors stand.
        let lengths = match tag(&bytes) {
            FILE_ENTRY => 168,
            EXTENDED_FILE_ENTRY => 208,
            _ => return Err(damaged()),
        };
        let attributes = u32_at(&bytes, lengths) as usize;
        let start = (lengths + 8).checked_add(attributes).ok_or_else(damaged)?;
        let end = start.checked_add(u32_at(&bytes, lengths + 4) as usize).ok_or_else(damaged)?;
        let descriptors = bytes.get(start..end).ok_or_else(damaged)?;
        let mut entry = Entry { directory: bytes[27] == 4, bytes: u64_at(&bytes, 56), pieces: Vec::new() };
        match u16_at(&bytes, 34) & 7 {
            0 => self.extents(descriptors, 8, place.partition, &mut entry.pieces)?,
            1 => self.extents(descriptors, 16, place.partition, &mut entry.pieces)?,
            3 => entry.pieces.push((Some(at + start as u64), descriptors.len() as u64)),
            _ => return Err(UdfError::NotSupported("extended allocation descriptors")),
        }
        cut(&mut entry.pieces, entry.bytes);
        Ok(entry)
    }

    /// Short (8 bytes) or long (16 bytes) allocation descriptors; a chain of them goes on elsewhere.
    fn extents(
        &self,
        first: &[u8],
        size: usize,
        partition: u16,
        pieces: &mut Vec<(Option<u64>, u64)>,
    ) -> Result<()> {
        const WHAT: &str = "allocation descriptors";
        let mut descriptors = first.to_vec();
        for _ in 0..CHAIN_LIMIT {
            let mut next = None;
            for one in descriptors.chunks_exact(size) {
                let (kind, length) = (u32_at(one, 0) >> 30, u64::from(u32_at(one, 0) & 0x3fff_ffff));
                if length == 0 {
                    break;
                }
                let place = match size {
                    16 => long_place(one, 0),
                    _ => Place { block: u32_at(one, 4), partition },
                };
                let at = || self.place(place, WHAT);
                match kind {
                    0 => pieces.push((Some(at()?), length)),
                    3 => {
                        next = Some(at()?);
                        break;
                    }
                    _ => pieces.push((None, length)),
                }
                if pieces.len() > EXTENTS_LIMIT {
                    return Err(UdfError::NotSupported("a file in thousands of pieces"));
                }
            }
            let Some(at) = next else { return Ok(()) };
            let block = descriptor(self.source, at, usize::try_from(self.block).unwrap_or(2048), WHAT)?;
            let length = u32_at(&block, 20) as usize;
            if tag(&block) != ALLOCATION_EXTENT || length == 0 {
                return Err(UdfError::Damaged { what: WHAT, at });
            }
            descriptors = block.get(24..24 + length).ok_or(UdfError::Damaged { what: WHAT, at })?.to_vec();
        }
        Err(UdfError::NotSupported("a file in thousands of pieces"))
    }

    fn names(&self, directory: &Entry) -> Result<Vec<(String, Place)>> {
        use io::Read as _;
        const WHAT: &str = "directory";
        let at = directory.pieces.first().and_then(|(place, _)| *place).unwrap_or(0);
        if directory.bytes > DIRECTORY_LIMIT {
            return Err(UdfError::Damaged { what: WHAT, at });
        }
        let mut bytes = Vec::new();
        self.reader(directory).read_to_end(&mut bytes)?;
        if (bytes.len() as u64) < directory.bytes {
            return Err(UdfError::Truncated { what: WHAT, at, end: self.source.bytes });
        }
        let mut names = Vec::new();
        let mut rest = bytes.as_slice();
        while rest.len() >= 38 {
            let damaged = || UdfError::Damaged { what: WHAT, at: at + (bytes.len() - rest.len()) as u64 };
            if !tag_is_good(rest) || tag(rest) != FILE_IDENTIFIER {
                return Err(damaged());
            }
            let characteristics = rest[18];
            let start = 38 + usize::from(u16_at(rest, 36));
            let end = start + usize::from(rest[19]);
            let name = rest.get(start..end).ok_or_else(damaged)?;
            // Deleted entries and the way up do not count.
            if characteristics & 0b1100 == 0 {
                names.push((text(name), long_place(rest, 20)));
            }
            rest = rest.get(end.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(names)
    }
}

/// Partitions (first byte, bytes) in the order of the map, the file set's place, and the label.
type Resolved = (Vec<(u64, u64)>, Place, String);

/// The descriptors of the volume, as far as they matter.
#[derive(Default)]
struct Volume {
    named: bool,
    /// Number, first block, blocks.
    partitions: Vec<(u16, u32, u32)>,
    logical: Option<Vec<u8>>,
}

impl Volume {
    fn read<S: ReadAt>(source: &Source<S>, (at, bytes): (u64, u32), block: u64) -> Result<Self> {
        const WHAT: &str = "volume descriptor";
        let mut volume = Self::default();
        let blocks = (u64::from(bytes) / block).min(u64::from(DESCRIPTORS_LIMIT));
        for at in (0..blocks).map(|n| at + n * block) {
            let bytes = descriptor(source, at, usize::try_from(block).unwrap_or(2048), WHAT)?;
            match tag(&bytes) {
                PRIMARY_VOLUME => volume.named = true,
                PARTITION => {
                    volume.partitions.push((u16_at(&bytes, 22), u32_at(&bytes, 188), u32_at(&bytes, 192)));
                }
                LOGICAL_VOLUME => volume.logical = Some(bytes),
                TERMINATOR => break,
                _ => {}
            }
        }
        let whole = volume.named && volume.logical.is_some() && !volume.partitions.is_empty();
        if whole { Ok(volume) } else { Err(UdfError::Damaged { what: WHAT, at }) }
    }

    fn resolve(self, block: u64) -> Result<Resolved> {
        let damaged = || UdfError::Damaged { what: "logical volume descriptor", at: 0 };
        let logical = self.logical.as_deref().ok_or_else(damaged)?;
        if u64::from(u32_at(logical, 212)) != block {
            return Err(damaged());
        }
        let mut partitions = Vec::new();
        let mut maps = logical.get(440..).unwrap_or_default();
        for _ in 0..u32_at(logical, 268).min(4) {
            let (kind, length) = match maps {
                [kind, length, ..] if *length >= 2 => (*kind, usize::from(*length)),
                _ => return Err(damaged()),
            };
            if kind != 1 || maps.len() < 6 {
                return Err(UdfError::NotSupported("a virtual, sparable or metadata partition"));
            }
            let number = u16_at(maps, 4);
            let partition = self.partitions.iter().find(|(known, ..)| *known == number);
            let (_, start, blocks) = partition.ok_or_else(damaged)?;
            partitions.push((u64::from(*start) * block, u64::from(*blocks) * block));
            maps = maps.get(length..).unwrap_or_default();
        }
        Ok((partitions, long_place(logical, 248), dstring(&logical[84..212])))
    }
}

/// Is there `NSR02` or `NSR03` among the volume structures that follow the first 32 KiB?
fn recognised<S: ReadAt>(source: &Source<S>) -> Result<bool> {
    for n in 0..64 {
        let mut head = [0; 6];
        source.read_some(32768 + n * 2048, &mut head)?;
        match &head[1..6] {
            b"NSR02" | b"NSR03" => return Ok(true),
            b"CD001" | b"BEA01" | b"BOOT2" | b"CDW02" => {}
            _ => return Ok(false),
        }
    }
    Ok(false)
}

/// A structure with a good tag.
fn descriptor<S: ReadAt>(source: &Source<S>, at: u64, length: usize, what: &'static str) -> Result<Vec<u8>> {
    let bytes = source.read(at, length).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => UdfError::Truncated { what, at, end: source.bytes },
        _ => UdfError::Io(error),
    })?;
    if tag_is_good(&bytes) { Ok(bytes) } else { Err(UdfError::Damaged { what, at }) }
}

fn tag_is_good(bytes: &[u8]) -> bool {
    if bytes.len() < 16 {
        return false;
    }
    let sum = (0..16).filter(|at| *at != 4).fold(0u8, |sum, at| sum.wrapping_add(bytes[at]));
    let covered = usize::from(u16_at(bytes, 10));
    let body = bytes.get(16..16 + covered);
    sum == bytes[4] && body.is_some_and(|body| crc(body) == u16_at(bytes, 8))
}

/// CRC-CCITT with polynomial 0x1021, beginning at 0 (ECMA-167 1/7.2.6).
fn crc(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, byte| {
        (0..8).fold(
            crc ^ u16::from(*byte) << 8,
            |crc: u16, _| {
                if crc & 0x8000 == 0 { crc << 1 } else { crc << 1 ^ 0x1021 }
            },
        )
    })
}

fn tag(bytes: &[u8]) -> u16 {
    u16_at(bytes, 0)
}

/// Bytes past the end are zero, so that no length needs checking twice.
fn u16_at(bytes: &[u8], at: usize) -> u16 {
    let byte = |at| bytes.get(at).copied().unwrap_or(0);
    u16::from_le_bytes([byte(at), byte(at + 1)])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

/// A long allocation descriptor: length, block, partition.
fn long_place(bytes: &[u8], at: usize) -> Place {
    Place { block: u32_at(bytes, at + 4), partition: u16_at(bytes, at + 8) }
}

/// OSTA compressed Unicode: the first byte says whether characters have one byte or two.
fn text(bytes: &[u8]) -> String {
    match bytes {
        [8 | 254, text @ ..] => text.iter().map(|byte| char::from(*byte)).collect(),
        [16 | 255, text @ ..] => {
            let units: Vec<u16> =
                text.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect();
            String::from_utf16_lossy(&units)
        }
        _ => String::new(),
    }
}

/// A text in a field of fixed size, whose last byte is its length.
fn dstring(field: &[u8]) -> String {
    let length = usize::from(field.last().copied().unwrap_or(0));
    text(field.get(..length).unwrap_or_default())
}

/// Pieces may be longer than the file by the rest of a block.
fn cut(pieces: &mut Vec<(Option<u64>, u64)>, bytes: u64) {
    let mut left = bytes;
    for (_, length) in pieces.iter_mut() {
        *length = (*length).min(left);
        left -= *length;
    }
    pieces.retain(|(_, length)| *length > 0);
}
