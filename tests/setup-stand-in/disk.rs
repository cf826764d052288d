//! Disks as Setup numbers them, and a GPT written from DiskConfiguration.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::process::Command;

const SECTOR: u64 = 512;
const ENTRIES: u64 = 128;
const MIB: u64 = 1 << 20;

/// Types of partitions, in the byte order of the disk.
const TYPES: &[(&str, [u8; 16])] = &[
    ("EFI", [0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b]),
    ("MSR", [0x16, 0xe3, 0xc9, 0xe3, 0x5c, 0x0b, 0xb8, 0x4d, 0x81, 0x7d, 0xf9, 0x2d, 0xf0, 0x02, 0x15, 0xae]),
    (
        "Primary",
        [0xa2, 0xa0, 0xd0, 0xeb, 0xe5, 0xb9, 0x33, 0x44, 0x87, 0xc0, 0x68, 0xb6, 0xb7, 0x26, 0x99, 0xc7],
    ),
];

/// Names of block devices below `/dev`, counted as Windows PE is believed to: SATA and NVMe, then USB, then what shows itself
/// only after its driver was loaded from the set-up disk.
pub(crate) fn disks() -> Vec<String> {
    let names = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let mut names: Vec<String> = names.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.retain(|name| ["sd", "vd", "nvme"].iter().any(|kind| name.starts_with(kind)));
    names.sort_by_key(|name| (name.starts_with("vd"), is_removable(name), name.clone()));
    names
}

pub(crate) fn is_removable(disk: &str) -> bool {
    fs::read_to_string(format!("/sys/block/{disk}/removable")).is_ok_and(|text| text.trim() == "1")
}

/// The name of a disk's partition.
pub(crate) fn partition(disk: &str, number: u32) -> String {
    if disk.ends_with(|c: char| c.is_ascii_digit()) {
        format!("{disk}p{number}")
    } else {
        format!("{disk}{number}")
    }
}

/// Writes a fresh GPT; `partitions` as in the answer file.
pub(crate) fn partition_disk(disk: &str, partitions: &[(String, Option<u64>)]) -> Result<(), String> {
    let failed = |error: io::Error| format!("failed to partition {disk}: {error}");
    let sectors: u64 =
        fs::read_to_string(format!("/sys/block/{disk}/size")).map_err(failed)?.trim().parse().unwrap_or(0);
    let layout = layout(sectors, partitions)?;
    let mut file = OpenOptions::new().write(true).open(format!("/dev/{disk}")).map_err(failed)?;
    write_gpt(&mut file, sectors, &layout).map_err(failed)?;
    file.sync_all().map_err(failed)?;
    drop(file);
    let _ = Command::new("/bin/busybox").args(["blockdev", "--rereadpt", &format!("/dev/{disk}")]).status();
    Ok(())
}

/// Type, first and last sector.
type Place = ([u8; 16], u64, u64);

fn layout(sectors: u64, partitions: &[(String, Option<u64>)]) -> Result<Vec<Place>, String> {
    let align = MIB / SECTOR;
    let end = sectors.saturating_sub(34) / align * align;
    let mut next = align;
    let mut places = Vec::new();
    for (kind, size) in partitions {
        let (_, id) = TYPES
            .iter()
            .find(|(name, _)| name == kind)
            .ok_or_else(|| format!("unattend file is invalid: a partition of type '{kind}'"))?;
        let after = size.map_or(end, |mib| next + mib * align);
        if after > end || after <= next {
            return Err(format!("not enough space on the disk for partition {}", places.len() + 1));
        }
        places.push((*id, next, after - 1));
        next = after;
    }
    Ok(places)
}

fn write_gpt(file: &mut File, sectors: u64, places: &[Place]) -> io::Result<()> {
    let mut table = vec![0_u8; (ENTRIES * 128) as usize];
    for (n, (kind, first, last)) in places.iter().enumerate() {
        let entry = &mut table[n * 128..(n + 1) * 128];
        entry[..16].copy_from_slice(kind);
        // Not a random number: a disk of the stand-in needs to be unique in its own machine only.
        entry[16..32].copy_from_slice(&[
            0x43,
            n as u8 + 1,
            0,
            0,
            0,
            0,
            0,
            0x40,
            0x80,
            0,
            0,
            0,
            0,
            0,
            0,
            n as u8 + 1,
        ]);
        entry[32..40].copy_from_slice(&first.to_le_bytes());
        entry[40..48].copy_from_slice(&last.to_le_bytes());
    }
    let mut protective = [0_u8; 512];
    protective[446..462]
        .copy_from_slice(&[0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff, 1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    protective[510..].copy_from_slice(&[0x55, 0xaa]);
    let last = sectors - 1;
    let backup_table = last - 32;
    let mut put = |sector: u64, bytes: &[u8]| {
        file.seek(SeekFrom::Start(sector * SECTOR))?;
        file.write_all(bytes)
    };
    put(0, &protective)?;
    put(1, &header(1, last, 2, backup_table - 1, &table))?;
    put(2, &table)?;
    put(backup_table, &table)?;
    put(last, &header(last, 1, backup_table, backup_table - 1, &table))
}

fn header(own: u64, other: u64, table_at: u64, last_usable: u64, table: &[u8]) -> [u8; 512] {
    let mut bytes = [0_u8; 512];
    bytes[..16].copy_from_slice(b"EFI PART\0\0\x01\0\x5c\0\0\0");
    let numbers = [own, other, 34, last_usable];
    for (n, number) in numbers.into_iter().enumerate() {
        bytes[24 + n * 8..32 + n * 8].copy_from_slice(&number.to_le_bytes());
    }
    bytes[56..72].copy_from_slice(&[0x43, 0, 0, 0, 0, 0, 0, 0x40, 0x80, 0, 0, 0, 0, 0, 0, 0x43]);
    bytes[72..80].copy_from_slice(&table_at.to_le_bytes());
    bytes[80..84].copy_from_slice(&(ENTRIES as u32).to_le_bytes());
    bytes[84..88].copy_from_slice(&128_u32.to_le_bytes());
    bytes[88..92].copy_from_slice(&crc32(table).to_le_bytes());
    let sum = crc32(&bytes[..92]);
    bytes[16..20].copy_from_slice(&sum.to_le_bytes());
    bytes
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & 0_u32.wrapping_sub(crc & 1)))
    })
}

/// FAT32 on a partition; the stand-in's C: too, because there is no NTFS that could be written here.
pub(crate) fn format_fat(partition: &str, label: &str) -> Result<(), String> {
    let status =
        Command::new("/bin/mkfs.fat").args(["-F", "32", "-n", label, &format!("/dev/{partition}")]).output();
    match status {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            Err(format!("failed to format {partition}: {}", String::from_utf8_lossy(&output.stderr).trim()))
        }
        Err(error) => Err(format!("failed to format {partition}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_is_the_answer_files() {
        let asked =
            [("EFI".to_owned(), Some(260)), ("MSR".to_owned(), Some(16)), ("Primary".to_owned(), None)];
        let places = layout((8 << 30) / SECTOR, &asked).unwrap();
        assert_eq!((places[0].1, places[0].2), (2048, 2048 + 260 * 2048 - 1));
        assert_eq!(places[2].1, places[1].2 + 1);
        assert!(layout(2048, &asked).unwrap_err().contains("not enough space"));
    }

    #[test]
    fn the_check_sum_is_the_usual_one() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn sfdisk_reads_what_we_write() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 30).unwrap();
        let asked = [("EFI".to_owned(), Some(260)), ("Primary".to_owned(), None)];
        let sectors = (1 << 30) / SECTOR;
        write_gpt(&mut file.reopen().unwrap(), sectors, &layout(sectors, &asked).unwrap()).unwrap();
        let Ok(output) = Command::new("/sbin/sfdisk").arg("--verify").arg(file.path()).output() else {
            eprintln!("skipped: sfdisk is not installed (Debian package fdisk)");
            return;
        };
        let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && text.contains("No errors detected"), "{text}");
    }
}
