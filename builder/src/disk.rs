//! Disk: partitions, EFI system partition and GRUB for BIOS and UEFI, written into a plain file by an ordinary user.
//!
//! A directly started image is one ext4 file system on the whole disk. A bootable one has three partitions, numbered as
//! in Debian's cloud images so that the root partition can grow to the end of a larger disk:
//!
//! ```text
//! 14  1 MiB     BIOS boot: GRUB's core.img, where boot.img in sector 0 finds it
//! 15  64 MiB    ESP: shim and GRUB, signed by Debian, and three lines that lead to /boot/grub
//!  1  the rest  root, ext4
//! ```

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::Stdio;

use crate::build::BuildError;
use crate::build::child::{self, tool};
use crate::debian::DiskIds;
use crate::plan::Boot;
use crate::store::StoreError;

const SECTOR: u64 = 512;
const MIB: u64 = 1 << 20;
const BIOS_BOOT_AT: u64 = MIB;
const BIOS_BOOT_BYTES: u64 = MIB;
const ESP_AT: u64 = BIOS_BOOT_AT + BIOS_BOOT_BYTES;
/// FAT32 with one sector per cluster needs at least 33 MiB.
const ESP_BYTES: u64 = 64 * MIB;
const ROOT_AT: u64 = ESP_AT + ESP_BYTES;
/// The second copy of the partition table, rounded up.
const TABLE_AT_END: u64 = MIB;
/// Less holds no Debian.
const SMALLEST: u64 = 512 * MIB;

/// Where the root file system is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    partitioned: bool,
    disk_bytes: u64,
}

/// What GRUB is made of, out of the image.
#[derive(Debug)]
pub(crate) struct BootFiles {
    boot_img: Vec<u8>,
    core_img: Vec<u8>,
    dir: std::path::PathBuf,
}

impl Layout {
    pub(crate) fn of(boot: Boot, disk_bytes: u64) -> Result<Self, BuildError> {
        if disk_bytes < SMALLEST || !disk_bytes.is_multiple_of(MIB) {
            return Err(BuildError::Recipe(format!(
                "machine.disk: {disk_bytes} bytes; a whole number of MiB is needed, at least 512"
            )));
        }
        Ok(Self { partitioned: boot == Boot::Disk, disk_bytes })
    }

    pub(crate) fn root_offset(&self) -> u64 {
        if self.partitioned { ROOT_AT } else { 0 }
    }

    pub(crate) fn root_bytes(&self) -> u64 {
        if self.partitioned { self.disk_bytes - ROOT_AT - TABLE_AT_END } else { self.disk_bytes }
    }

    /// Input for `sfdisk`.
    fn table(&self, ids: &DiskIds) -> String {
        // The same key gives the same ids: the table's own with the partition's number in front.
        let id = |number: u32| format!("{number:08}{}", &ids.table[8..]);
        let partition = |number: u32, at: u64, bytes: u64, kind: &str, name: &str| {
            format!(
                "{number} : start={}, size={}, type={kind}, uuid={}, name={name}\n",
                at / SECTOR,
                bytes / SECTOR,
                id(number)
            )
        };
        format!("label: gpt\nlabel-id: {}\nunit: sectors\n", ids.table)
            + &partition(
                1,
                self.root_offset(),
                self.root_bytes(),
                "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709",
                "root",
            )
            + &partition(14, BIOS_BOOT_AT, BIOS_BOOT_BYTES, "21686148-6449-6E6F-744E-656564454649", "bios")
            + &partition(15, ESP_AT, ESP_BYTES, "C12A7328-F81F-11D2-BA4B-00A0C93EC93B", "esp")
    }
}

impl BootFiles {
    pub(crate) fn read(dir: &Path) -> Result<Self, BuildError> {
        let read = |name: &str| fs::read(dir.join(name)).map_err(StoreError::io("read", dir.join(name)));
        let (boot_img, core_img) = (read("boot.img")?, read("core.img")?);
        Ok(Self { boot_img, core_img, dir: dir.to_owned() })
    }
}

/// A sparse file of the disk's size, in a folder that is closed to others: the file itself must be open to all, because
/// root of mmdebstrap's user namespace is a stranger here who gets it as an open file.
pub(crate) fn create(path: &Path, bytes: u64) -> Result<File, BuildError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(StoreError::io("create", folder))?;
    fs::set_permissions(folder, Permissions::from_mode(0o700)).map_err(StoreError::io("close", folder))?;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o666)
        .open(path)
        .map_err(StoreError::io("create", path))?;
    file.set_permissions(Permissions::from_mode(0o666)).map_err(StoreError::io("open up", path))?;
    file.set_len(bytes).map_err(StoreError::io("size", path))?;
    Ok(file)
}

/// Partition table, ESP and GRUB around a root file system that is already in its place.
pub(crate) fn make_bootable(
    disk: &File,
    path: &Path,
    layout: &Layout,
    ids: &DiskIds,
    files: &BootFiles,
) -> Result<(), BuildError> {
    write_table(path, &layout.table(ids))?;
    write_esp(path, ids, files)?;
    // mformat leaves a partition table inside the partition, about which GRUB's tools in the guest complain 20 times.
    disk.write_all_at(&[0; 64], ESP_AT + 446).map_err(StoreError::io("write", path))?;
    install_grub_for_bios(disk, files).map_err(StoreError::io("write", path))?;
    Ok(())
}

/// A qcow2 file with what is not a hole in `raw`.
pub(crate) fn to_qcow2(raw: &Path, qcow2: &Path) -> Result<(), BuildError> {
    let mut command = child::command(&tool("qemu-img", "qemu-utils")?);
    // Out of order and with parallel requests: the order of clusters in the file is of no use to anyone.
    command.args(["convert", "-q", "-W", "-m", "8", "-f", "raw", "-O", "qcow2"]).arg(raw).arg(qcow2);
    child::output("qemu-img", command).map(drop)
}

fn write_table(path: &Path, table: &str) -> Result<(), BuildError> {
    let mut command = child::command(&tool("sfdisk", "fdisk")?);
    command.args(["--quiet", "--no-reread", "--no-tell-kernel", "--wipe", "never"]).arg(path);
    let script = path.with_extension("sfdisk");
    fs::write(&script, table).map_err(StoreError::io("write", &script))?;
    command.stdin(File::open(&script).map_err(StoreError::io("read", &script))?);
    child::output("sfdisk", command).map(drop)
}

/// `EFI/BOOT/BOOTX64.EFI` is what firmware starts when nothing was registered with it, which holds for every new machine.
/// The fallback program that registers entries is left out on purpose: it would reset the machine once.
fn write_esp(path: &Path, ids: &DiskIds, files: &BootFiles) -> Result<(), BuildError> {
    let image = format!("{}@@{ESP_AT}", path.display());
    let mtool = |name: &'static str, args: &[&str]| {
        let mut command = child::command(&tool(name, "mtools")?);
        // mtools doubts disks whose size is no multiple of a track.
        command.env("MTOOLS_SKIP_CHECK", "1").args(["-i", &image]).args(args).stdin(Stdio::null());
        child::output(name, command).map(drop)
    };
    let sectors = (ESP_BYTES / SECTOR).to_string();
    mtool("mformat", &["-F", "-T", &sectors, "-c", "1", "-N", &ids.esp, "-v", "ESP", "::"])?;
    mtool("mmd", &["::/EFI", "::/EFI/BOOT", "::/EFI/debian"])?;
    for (from, to) in [
        ("bootx64.efi", "BOOT/BOOTX64.EFI"),
        ("grubx64.efi", "BOOT/grubx64.efi"),
        ("grub.cfg", "debian/grub.cfg"),
    ] {
        mtool("mcopy", &[&files.dir.join(from).to_string_lossy(), &format!("::/EFI/{to}")])?;
    }
    Ok(())
}

/// What `grub-bios-setup` does, without a device: offsets are those of GRUB's `boot.S` and `diskboot.S`.
fn install_grub_for_bios(disk: &File, files: &BootFiles) -> io::Result<()> {
    const CODE_END: usize = 440; // from here on sector 0 belongs to the partition table
    const KERNEL_SECTOR: usize = 0x5c;
    const DRIVE_CHECK: usize = 0x66;
    const BLOCK_LIST: usize = 0x1f4;
    const LOAD_SEGMENT: u16 = 0x820;
    let core_at = BIOS_BOOT_AT / SECTOR;
    let odd = |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("GRUB's {what}"));

    let mut boot = files.boot_img.clone();
    if boot.len() != SECTOR as usize {
        return Err(odd("boot.img is not one sector"));
    }
    boot[KERNEL_SECTOR..KERNEL_SECTOR + 8].copy_from_slice(&core_at.to_le_bytes());
    // Some BIOSes pass a wrong drive number for hard disks; boot.img then looks for a floppy unless this jump is gone.
    boot[DRIVE_CHECK..DRIVE_CHECK + 2].copy_from_slice(&[0x90, 0x90]);

    let mut core = files.core_img.clone();
    let sectors = core.len().div_ceil(SECTOR as usize);
    if sectors < 2 || core.len() as u64 > BIOS_BOOT_BYTES {
        return Err(odd("core.img does not fit into its partition"));
    }
    core.resize(sectors * SECTOR as usize, 0);
    let rest = u16::try_from(sectors - 1).map_err(|_| odd("core.img is too long"))?;
    core[BLOCK_LIST..BLOCK_LIST + 8].copy_from_slice(&(core_at + 1).to_le_bytes());
    core[BLOCK_LIST + 8..BLOCK_LIST + 10].copy_from_slice(&rest.to_le_bytes());
    core[BLOCK_LIST + 10..BLOCK_LIST + 12].copy_from_slice(&LOAD_SEGMENT.to_le_bytes());

    disk.write_all_at(&core, BIOS_BOOT_AT)?;
    disk.write_all_at(&boot[..CODE_END], 0)?;
    (&mut &*disk).flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn ids() -> DiskIds {
        DiskIds {
            root: "11111111-2222-8333-a444-555555555555".into(),
            esp: "CAFEBABE".into(),
            table: "99999999-2222-8333-A444-555555555555".into(),
        }
    }

    fn boot_files(dir: &Path) -> BootFiles {
        for (name, bytes) in [
            ("boot.img", 512),
            ("core.img", 30_000),
            ("bootx64.efi", 900_000),
            ("grubx64.efi", 4_000_000),
            ("grub.cfg", 99),
        ] {
            fs::write(dir.join(name), vec![0xe9; bytes]).unwrap();
        }
        BootFiles::read(dir).unwrap()
    }

    #[test]
    fn a_bootable_disk_is_what_other_tools_expect() {
        if ["sfdisk", "mformat"].iter().any(|name| tool(name, "").is_err()) {
            eprintln!("skipped: fdisk and mtools are needed");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("private/disk.raw");
        let layout = Layout::of(Boot::Disk, 1024 * MIB).unwrap();
        let disk = create(&path, 1024 * MIB).unwrap();
        make_bootable(&disk, &path, &layout, &ids(), &boot_files(dir.path())).unwrap();

        let dump = Command::new("/usr/sbin/sfdisk").arg("--dump").arg(&path).output().unwrap();
        let dump = String::from_utf8(dump.stdout).unwrap().replace(&path.display().to_string(), "disk");
        insta::assert_snapshot!(dump, @r#"
        label: gpt
        label-id: 99999999-2222-8333-A444-555555555555
        device: disk
        unit: sectors
        first-lba: 2048
        last-lba: 2097118
        sector-size: 512

        disk1 : start=      135168, size=     1959936, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709, uuid=00000001-2222-8333-A444-555555555555, name="root"
        disk14 : start=        2048, size=        2048, type=21686148-6449-6E6F-744E-656564454649, uuid=00000014-2222-8333-A444-555555555555, name="bios"
        disk15 : start=        4096, size=      131072, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B, uuid=00000015-2222-8333-A444-555555555555, name="esp"
        "#);
        let verified = Command::new("/usr/sbin/sfdisk").arg("--verify").arg(&path).output().unwrap();
        assert!(String::from_utf8_lossy(&verified.stdout).contains("No errors detected"));
        let listing = Command::new("mdir")
            .args(["-b", "-/", "-i", &format!("{}@@{ESP_AT}", path.display())])
            .output()
            .unwrap();
        assert!(String::from_utf8_lossy(&listing.stdout).contains("::/EFI/BOOT/BOOTX64.EFI"));

        let mut sector = [0; 512];
        disk.read_exact_at(&mut sector, 0).unwrap();
        assert_eq!(
            (&sector[0x5c..0x64], &sector[0x66..0x68]),
            (2048_u64.to_le_bytes().as_slice(), [0x90, 0x90].as_slice())
        );
        assert_eq!(sector[510..], [0x55, 0xaa]);
        disk.read_exact_at(&mut sector, MIB).unwrap();
        assert_eq!(sector[0x1f4..], [1, 8, 0, 0, 0, 0, 0, 0, 58, 0, 0x20, 8]);
    }

    #[test]
    fn a_strange_size_or_a_strange_bootloader_is_refused() {
        assert!(Layout::of(Boot::Disk, 100 * MIB).is_err());
        assert!(Layout::of(Boot::Direct, (1 << 30) + 1).is_err());
        let dir = tempfile::tempdir().unwrap();
        let mut files = boot_files(dir.path());
        files.core_img = vec![0; 2 << 20];
        let disk = tempfile::tempfile().unwrap();
        assert!(install_grub_for_bios(&disk, &files).unwrap_err().to_string().contains("does not fit"));
    }
}
