//! Debian's packages of NVIDIA's driver: an `ar` archive whose `control.tar` says name and version. Only that is read.
//!
//! Formats as in deb(5), ar(5) and tar(5). Debian packs `control.tar` with xz.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use lzma_rust2::XzReader;

use super::DriverError;
use super::version::Version;

const AR: &[u8] = b"!<arch>\n";
const AR_HEADER: usize = 60;
/// `control.tar` holds some texts and scripts; NVIDIA's have under 100 KB.
const CONTROL_LIMIT: u64 = 8 << 20;
/// What `xz -9` needs, in KiB, and some more; the header of a file made to harm asks for 4 GiB.
const DECODER_KIB: u32 = 96 << 10;
const TAR_BLOCK: usize = 512;

/// What a package says of itself.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Deb {
    /// Such as `nvidia-driver`.
    pub(super) name: String,
    /// The distribution's, such as `535.216.01-1~deb12u1`.
    pub(super) version: String,
}

impl Deb {
    /// NVIDIA's own version within it; `None` where the package is not of the driver.
    pub(super) fn driver(&self) -> Option<Version> {
        let is_nvidia = self.name.split('-').any(|word| word == "nvidia" || word == "libnvidia");
        let upstream = self.version.rsplit_once(':').map_or(self.version.as_str(), |(_, rest)| rest);
        let upstream = upstream.split(['-', '+', '~']).next()?;
        is_nvidia.then(|| upstream.parse().ok()).flatten()
    }
}

/// Reads a package; `None` if the file is none.
pub(super) fn read(path: &Path) -> Result<Option<Deb>, DriverError> {
    let failed = |source| DriverError::Io { path: path.to_owned(), source };
    let damaged = |why: &str| DriverError::Damaged { path: path.to_owned(), why: why.to_owned() };
    let mut file = File::open(path).map_err(failed)?;
    let mut head = Vec::new();
    file.by_ref().take(AR.len() as u64).read_to_end(&mut head).map_err(failed)?;
    if head != AR {
        return Ok(None);
    }
    // `debian-binary` is the first member and `control.tar` the second: what follows is not looked at
    for _ in 0..2 {
        let (name, size) = member(&mut file).ok_or_else(|| damaged("its archive has no control.tar"))?;
        if size > CONTROL_LIMIT {
            return Err(damaged(&format!("its '{name}' has {size} bytes, more than any package's")));
        }
        let mut bytes = Vec::new();
        file.by_ref().take(size + size % 2).read_to_end(&mut bytes).map_err(failed)?;
        bytes.truncate(usize::try_from(size).unwrap_or(usize::MAX));
        if let Some(packed) = name.strip_prefix("control.tar") {
            let tar = match packed {
                "" => bytes,
                ".xz" => unpacked(&bytes).ok_or_else(|| damaged("control.tar.xz cannot be unpacked"))?,
                other => {
                    let what =
                        format!("a Debian package whose control.tar is packed as '{other}', not as xz");
                    return Err(DriverError::NotAPackage { path: path.to_owned(), what });
                }
            };
            let text = control(&tar).ok_or_else(|| damaged("control.tar holds no control file"))?;
            return deb(&text).map(Some).ok_or_else(|| damaged("its control file has no Package or Version"));
        }
    }
    Err(damaged("its archive has no control.tar"))
}

/// The next member's name and size.
fn member(file: &mut File) -> Option<(String, u64)> {
    let mut header = [0; AR_HEADER];
    file.read_exact(&mut header).ok()?;
    let text = std::str::from_utf8(&header).ok()?;
    let name = text.get(..16)?.trim_end().trim_end_matches('/');
    let safe = name.chars().all(|c| c.is_ascii_alphanumeric() || ".-_".contains(c));
    let size = text.get(48..58)?.trim_end().parse().ok()?;
    (safe && text.ends_with("`\n")).then(|| (name.to_owned(), size))
}

fn unpacked(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut tar = Vec::new();
    XzReader::new_mem_limit(bytes, false, DECODER_KIB).take(CONTROL_LIMIT).read_to_end(&mut tar).ok()?;
    Some(tar)
}

/// The text of `./control`.
fn control(tar: &[u8]) -> Option<String> {
    let mut rest = tar;
    while rest.len() >= TAR_BLOCK {
        let (header, after) = rest.split_at(TAR_BLOCK);
        let text = |from: usize, to: usize| {
            let field = header[from..to].split(|byte| *byte == 0).next().unwrap_or_default();
            String::from_utf8_lossy(field).trim().to_owned()
        };
        let size = usize::from_str_radix(&text(124, 136), 8).ok()?;
        let body = after.get(..size)?;
        if matches!(text(0, 100).as_str(), "./control" | "control") {
            return Some(String::from_utf8_lossy(body).into_owned());
        }
        rest = after.get(size.next_multiple_of(TAR_BLOCK)..)?;
    }
    None
}

fn deb(control: &str) -> Option<Deb> {
    let field = |name: &str| {
        let values = control.lines().filter_map(|line| line.split_once(':'));
        let mut values = values.filter(|(key, _)| key.eq_ignore_ascii_case(name));
        values.next().map(|(_, value)| value.trim().to_owned()).filter(|value| !value.is_empty())
    };
    Some(Deb { name: field("Package")?, version: field("Version")? })
}

#[cfg(test)]
pub(super) mod tests {
    use std::fs;
    use std::io::Write as _;
    use std::process::Command;

    use lzma_rust2::{XzOptions, XzWriter};
    use proptest::prelude::*;

    use super::*;

    /// A package with a control file and nothing else.
    pub(in crate::driver) fn package(control: &str) -> Vec<u8> {
        let mut header = [0_u8; TAR_BLOCK];
        header[..9].copy_from_slice(b"./control");
        header[124..135].copy_from_slice(format!("{:011o}", control.len()).as_bytes());
        let mut tar = header.to_vec();
        tar.extend(control.as_bytes());
        tar.resize(tar.len().next_multiple_of(TAR_BLOCK) + 2 * TAR_BLOCK, 0);
        let mut xz = XzWriter::new(Vec::new(), XzOptions::with_preset(1)).unwrap();
        xz.write_all(&tar).unwrap();
        let mut deb = AR.to_vec();
        for (name, bytes) in [("debian-binary", b"2.0\n".to_vec()), ("control.tar.xz", xz.finish().unwrap())]
        {
            let size = bytes.len();
            deb.extend(format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{size:<10}`\n", 0, 0, 0, 100644).as_bytes());
            deb.extend(bytes);
            deb.resize(deb.len().next_multiple_of(2), b'\n');
        }
        deb
    }

    fn of(bytes: &[u8]) -> Result<Option<Deb>, DriverError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.deb");
        fs::write(&path, bytes).unwrap();
        read(&path)
    }

    #[test]
    fn name_and_version_are_read_and_nothing_else_is_a_driver() {
        let version = |name: &str, version: &str| {
            let deb =
                of(&package(&format!("Package: {name}\nVersion: {version}\nSource: x\n"))).unwrap().unwrap();
            deb.driver().map(|version| version.to_string())
        };
        assert_eq!(version("nvidia-driver", "535.216.01-1~deb12u1").as_deref(), Some("535.216.01"));
        assert_eq!(version("libnvidia-ml1", "2:470.256.02-0+x").as_deref(), Some("470.256.02"));
        assert_eq!(version("nvidia-driver", "current"), None);
        assert_eq!(version("bash", "5.2.15-2"), None);
        assert_eq!(of(b"MZ").unwrap(), None);
    }

    #[test]
    fn what_is_cut_off_or_packed_otherwise_is_said() {
        let whole = package("Package: nvidia-driver\nVersion: 1.2\n");
        assert!(matches!(of(&whole[..whole.len() / 2]), Err(DriverError::Damaged { .. })));
        assert!(matches!(of(AR), Err(DriverError::Damaged { .. })));
        let text = String::from_utf8_lossy(&whole).into_owned();
        let at = text.find("control.tar.xz").unwrap();
        let mut other = whole.clone();
        other[at..at + 15].copy_from_slice(b"control.tar.zst");
        assert!(of(&other).unwrap_err().to_string().contains("'.zst', not as xz"));
    }

    /// One that Debian's own tool made, where it is installed.
    #[test]
    fn a_package_of_dpkg_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root/DEBIAN");
        fs::create_dir_all(&root).unwrap();
        let control = "Package: nvidia-driver\nVersion: 535.216.01-1~deb12u1\nArchitecture: amd64\n\
                       Maintainer: nobody <nobody@example.org>\nDescription: made by a test\n";
        fs::write(root.join("control"), control).unwrap();
        let path = dir.path().join("a.deb");
        let mut make = Command::new("dpkg-deb");
        make.args(["-Zxz", "--root-owner-group", "-b"]).args([&dir.path().join("root"), &path]);
        match make.output() {
            Ok(output) if output.status.success() => {
                assert_eq!(read(&path).unwrap().unwrap().version, "535.216.01-1~deb12u1");
            }
            Ok(output) => panic!("dpkg-deb: {}", String::from_utf8_lossy(&output.stderr)),
            Err(_) => eprintln!("skipped: dpkg-deb is not here"),
        }
    }

    proptest! {
        #[test]
        fn mutated_packages_end_in_an_answer(at in proptest::collection::vec((0_usize..2000, any::<u8>()), 1..20)) {
            let mut bytes = package("Package: nvidia-driver\nVersion: 535.216.01-1\n");
            for (at, value) in at {
                let at = at % bytes.len();
                bytes[at] = value;
            }
            let _ = of(&bytes);
        }
    }
}
