//! FAT32 behind a partition table: sizes, head sectors, tables and folder entries (Microsoft's FAT specification 1.03).

use super::SetupDiskError;
use super::tree::{Content, Flat, FlatEntry};

pub(super) const SECTOR: u64 = 512;
/// The partition begins where every tool lets it begin.
pub(super) const PARTITION: u64 = 1 << 20;
/// Below this count of clusters a volume is FAT16 by definition (65525); a little more keeps clear of off-by-one readers.
const MIN_CLUSTERS: u64 = 65_536;
const MAX_CLUSTERS: u64 = 0x0fff_fff0;
const MIN_RESERVED: u64 = 32;
/// 2 MiB: the entries of one folder.
const FOLDER_LIMIT: usize = 65_536;
const ENTRY: usize = 32;
const END_OF_CHAIN: u32 = 0x0fff_ffff;
/// 2020-01-01, 00:00: the same for everything, so that bytes are the same every time.
const DATE: u16 = (2020 - 1980) << 9 | 1 << 5 | 1;
const ATTRIBUTE_LABEL: u8 = 0x08;
const ATTRIBUTE_FOLDER: u8 = 0x10;
const ATTRIBUTE_ARCHIVE: u8 = 0x20;
const ATTRIBUTE_LONG: u8 = 0x0f;

/// Volumes up to so many bytes get clusters of so many sectors; 4 KiB from 256 MiB on, so that pieces can be shared by
/// file systems that can do so.
const CLUSTERS: &[(u64, u64)] =
    &[(64 << 20, 1), (128 << 20, 2), (256 << 20, 4), (16 << 30, 8), (32 << 30, 16), (u64::MAX, 64)];

/// Where everything lies. Clusters count from 2.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) cluster_bytes: u64,
    reserved: u64,
    fat_sectors: u64,
    clusters: u64,
    used: u64,
    /// First cluster and clusters of each folder and file; empty files have none.
    pub(super) folders: Vec<(u32, u32)>,
    pub(super) files: Vec<(u32, u32)>,
}

impl Layout {
    pub(super) fn of(flat: &Flat<'_>, free: u64) -> Result<Self, SetupDiskError> {
        let folder_bytes: Vec<u64> = flat
            .folders
            .iter()
            .map(|folder| {
                let entries = 2 + folder.entries.iter().map(entries_of).sum::<usize>();
                let what = || SetupDiskError::TooMuch(format!("{} names in a folder", folder.entries.len()));
                if entries > FOLDER_LIMIT { Err(what()) } else { Ok((entries * ENTRY) as u64) }
            })
            .collect::<Result<_, _>>()?;
        let sizes = || folder_bytes.iter().copied().chain(flat.files.iter().map(|file| file.bytes.into()));
        let rough = sizes().sum::<u64>().saturating_add(free);
        let sectors = CLUSTERS.iter().find(|(limit, _)| rough <= *limit).map_or(64, |(_, sectors)| *sectors);
        let cluster_bytes = sectors * SECTOR;
        let used: u64 = sizes().map(|bytes| bytes.div_ceil(cluster_bytes)).sum();
        let clusters = (used + free.div_ceil(cluster_bytes)).max(MIN_CLUSTERS);
        let fat_sectors = ((clusters + 2) * 4).div_ceil(SECTOR);
        // Clusters begin at a multiple of 4 KiB.
        let reserved = MIN_RESERVED + (8 - (MIN_RESERVED + 2 * fat_sectors) % 8) % 8;
        let total = reserved + 2 * fat_sectors + clusters * sectors;
        if clusters > MAX_CLUSTERS || u32::try_from(total + PARTITION / SECTOR).is_err() {
            return Err(SetupDiskError::TooMuch(format!("{rough} bytes")));
        }
        let mut next = 2;
        let mut place = |bytes: u64| {
            let count = number(bytes.div_ceil(cluster_bytes));
            let first = if count == 0 { 0 } else { next };
            next += count;
            (first, count)
        };
        let folders = folder_bytes.into_iter().map(&mut place).collect();
        let files = flat.files.iter().map(|file| place(file.bytes.into())).collect();
        Ok(Self { cluster_bytes, reserved, fat_sectors, clusters, used, folders, files })
    }

    /// Of the image.
    pub(super) fn bytes(&self) -> u64 {
        PARTITION + self.sectors() * SECTOR
    }

    /// Taken by files and folders.
    pub(super) fn content_bytes(&self) -> u64 {
        self.used * self.cluster_bytes
    }

    /// Of the partition.
    fn sectors(&self) -> u64 {
        self.reserved + 2 * self.fat_sectors + self.clusters * (self.cluster_bytes / SECTOR)
    }

    /// The byte of the image where a cluster begins.
    pub(super) fn at(&self, cluster: u32) -> u64 {
        let first = PARTITION + (self.reserved + 2 * self.fat_sectors) * SECTOR;
        first + (u64::from(cluster) - 2) * self.cluster_bytes
    }

    /// The places of the two file allocation tables.
    pub(super) fn tables_at(&self) -> [u64; 2] {
        let first = PARTITION + self.reserved * SECTOR;
        [first, first + self.fat_sectors * SECTOR]
    }

    /// A file allocation table as far as it is not zero: every chain goes straight on.
    pub(super) fn table(&self) -> Vec<u8> {
        let mut table = Vec::with_capacity((number(self.used) as usize + 2) * 4);
        table.extend([0x0fff_fff8, END_OF_CHAIN].iter().flat_map(|entry: &u32| entry.to_le_bytes()));
        for (first, count) in self.folders.iter().chain(&self.files) {
            for cluster in *first..*first + *count {
                let next = if cluster + 1 == first + count { END_OF_CHAIN } else { cluster + 1 };
                table.extend(next.to_le_bytes());
            }
        }
        table
    }

    /// The partition table.
    pub(super) fn partition_table(&self, serial: u32) -> Vec<u8> {
        const FAT32_LBA: u8 = 0x0c;
        let mut sector = Sector::new();
        sector.put(440, &serial.to_le_bytes());
        // Cylinders, heads and sectors say 'look at the sector numbers instead'.
        sector.put(446, &[0, 0xfe, 0xff, 0xff, FAT32_LBA, 0xfe, 0xff, 0xff]);
        sector.put(454, &number(PARTITION / SECTOR).to_le_bytes());
        sector.put(458, &number(self.sectors()).to_le_bytes());
        sector.signed()
    }

    /// The first nine sectors of the partition: boot sector, free room, an empty one; three later the same again.
    pub(super) fn head(&self, label: &str, serial: u32) -> Vec<u8> {
        let once = [self.boot_sector(label, serial), self.free_room(), Sector::new().signed()].concat();
        [&once[..], &vec![0; once.len()], &once[..]].concat()
    }

    fn boot_sector(&self, label: &str, serial: u32) -> Vec<u8> {
        let mut sector = Sector::new();
        // A jump over the numbers, then 'int 18h': firmware without UEFI goes on to the next disk.
        sector.put(0, &[0xeb, 0x58, 0x90]);
        sector.put(0x5a, &[0xcd, 0x18, 0xeb, 0xfe]);
        sector.put(3, b"MSWIN4.1");
        sector.put(11, &512u16.to_le_bytes());
        sector.put(13, &number(self.cluster_bytes / SECTOR).to_le_bytes()[..1]);
        sector.put(14, &number(self.reserved).to_le_bytes()[..2]);
        sector.put(16, &[2]);
        sector.put(21, &[0xf8]);
        sector.put(24, &63u16.to_le_bytes());
        sector.put(26, &255u16.to_le_bytes());
        sector.put(28, &number(PARTITION / SECTOR).to_le_bytes());
        sector.put(32, &number(self.sectors()).to_le_bytes());
        sector.put(36, &number(self.fat_sectors).to_le_bytes());
        sector.put(44, &2u32.to_le_bytes());
        sector.put(48, &1u16.to_le_bytes());
        sector.put(50, &6u16.to_le_bytes());
        sector.put(64, &[0x80, 0, 0x29]);
        sector.put(67, &serial.to_le_bytes());
        sector.put(71, &label_field(label));
        sector.put(82, b"FAT32   ");
        sector.signed()
    }

    fn free_room(&self) -> Vec<u8> {
        let mut sector = Sector::new();
        sector.put(0, b"RRaA");
        sector.put(484, b"rrAa");
        sector.put(488, &number(self.clusters - self.used).to_le_bytes());
        let next = if self.used == self.clusters { u32::MAX } else { number(self.used + 2) };
        sector.put(492, &next.to_le_bytes());
        sector.signed()
    }

    /// The entries of a folder.
    pub(super) fn folder(&self, flat: &Flat<'_>, number: usize, label: &str) -> Vec<u8> {
        let folder = &flat.folders[number];
        let mut bytes = Vec::new();
        if number == 0 {
            entry(&mut bytes, &label_field(label), ATTRIBUTE_LABEL, 0, 0);
        } else {
            // The way up to the root is written as cluster 0.
            let up = if folder.parent == 0 { 0 } else { self.folders[folder.parent].0 };
            entry(&mut bytes, b".          ", ATTRIBUTE_FOLDER, self.folders[number].0, 0);
            entry(&mut bytes, b"..         ", ATTRIBUTE_FOLDER, up, 0);
        }
        for one in &folder.entries {
            long_name(&mut bytes, one);
            match one.what {
                Content::Folder(below) => {
                    entry(&mut bytes, &one.short, ATTRIBUTE_FOLDER, self.folders[below].0, 0);
                }
                Content::File(file) => {
                    let size = flat.files[file].bytes;
                    entry(&mut bytes, &one.short, ATTRIBUTE_ARCHIVE, self.files[file].0, size);
                }
            }
        }
        bytes
    }
}

/// Every number here was checked to fit when the layout was made.
fn number(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

struct Sector(Vec<u8>);

impl Sector {
    fn new() -> Self {
        Self(vec![0; 512])
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn signed(mut self) -> Vec<u8> {
        self.put(510, &[0x55, 0xaa]);
        self.0
    }
}

fn label_field(label: &str) -> [u8; 11] {
    let mut field = [b' '; 11];
    field[..label.len()].copy_from_slice(label.as_bytes());
    field
}

/// A name that is its own short name, capitals and all, needs no long one.
fn is_short(one: &FlatEntry) -> bool {
    let text = |field: &[u8]| String::from_utf8_lossy(field).trim_end().to_owned();
    let (stem, extension) = (text(&one.short[..8]), text(&one.short[8..]));
    one.name == if extension.is_empty() { stem } else { format!("{stem}.{extension}") }
}

const UNITS: usize = 13;

fn entries_of(one: &FlatEntry) -> usize {
    if is_short(one) { 1 } else { 1 + one.name.encode_utf16().count().div_ceil(UNITS) }
}

fn entry(bytes: &mut Vec<u8>, short: &[u8; 11], attribute: u8, cluster: u32, size: u32) {
    let mut entry = [0; ENTRY];
    let (low, high) = (cluster.to_le_bytes(), (cluster >> 16).to_le_bytes());
    entry[..11].copy_from_slice(short);
    entry[11] = attribute;
    for at in [16, 18, 24] {
        entry[at..at + 2].copy_from_slice(&DATE.to_le_bytes());
    }
    entry[20..22].copy_from_slice(&high[..2]);
    entry[26..28].copy_from_slice(&low[..2]);
    entry[28..32].copy_from_slice(&size.to_le_bytes());
    bytes.extend(entry);
}

/// The long name's pieces, the last one first, each with the short name's sum.
fn long_name(bytes: &mut Vec<u8>, one: &FlatEntry) {
    if is_short(one) {
        return;
    }
    /// Where the 13 units of a piece lie in an entry.
    const PLACES: [usize; UNITS] = [1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30];
    let sum = one.short.iter().fold(0u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte));
    let units: Vec<u16> = one.name.encode_utf16().collect();
    let pieces = units.chunks(UNITS).collect::<Vec<_>>();
    for (n, piece) in pieces.iter().enumerate().rev() {
        let mut entry = [0; ENTRY];
        let last = if n + 1 == pieces.len() { 0x40 } else { 0 };
        entry[0] = u8::try_from(n + 1).unwrap_or(u8::MAX) | last;
        entry[11] = ATTRIBUTE_LONG;
        entry[13] = sum;
        // One zero ends the name, the rest is filled up with ones.
        let filled = piece.iter().copied().chain([0]).chain(std::iter::repeat(u16::MAX));
        for (place, unit) in PLACES.iter().zip(filled) {
            entry[*place..*place + 2].copy_from_slice(&unit.to_le_bytes());
        }
        bytes.extend(entry);
    }
}
