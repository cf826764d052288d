//! The Secure Boot keys in a store of UEFI variables: whom this firmware lets boot, and whom it refuses.
//!
//! The store is edk2's (`MdeModulePkg`, `VariableFormat.h`): a firmware volume, a header, then variables one after the
//! other, each 4-byte aligned. `db` and `dbx` are lists of certificates and hashes (UEFI 2.10, 32.4.1).

use std::io;
use std::path::{Path, PathBuf};

use super::der;
use crate::spec::{DiskFormat, FlashFile};

/// `gEfiAuthenticatedVariableGuid`, as bytes lie in the file.
const STORE: [u8; 16] =
    [0x78, 0x2c, 0xf3, 0xaa, 0x7b, 0x94, 0x9a, 0x43, 0xa1, 0x80, 0x2e, 0x14, 0x4e, 0xc3, 0x77, 0x92];
/// `EFI_IMAGE_SECURITY_DATABASE_GUID`.
const SECURITY_DATABASE: [u8; 16] =
    [0xcb, 0xb2, 0x19, 0xd7, 0x3a, 0x3d, 0x96, 0x45, 0xa3, 0xbc, 0xda, 0xd0, 0x0e, 0x67, 0x65, 0x6f];
/// `EFI_CERT_X509_GUID`.
const X509: [u8; 16] =
    [0xa1, 0x59, 0xc0, 0xa5, 0xe4, 0x94, 0xa7, 0x4a, 0x87, 0xb5, 0xab, 0x15, 0x5c, 0x2b, 0xf0, 0x72];

/// The largest template seen has 540 KiB.
const STORE_LIMIT: u64 = 16 << 20;
const STORE_HEADER: usize = 28;
const VARIABLE_HEADER: usize = 60;
const VARIABLE_START: u16 = 0x55aa;
/// `VAR_ADDED`: neither deleted nor half written.
const ADDED: u8 = 0x3f;

/// Whom a firmware trusts, by the common names of certificates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SecureBootKeys {
    /// May boot (`db`).
    pub trusted: Vec<String>,
    /// May not, whoever else trusts them (`dbx`).
    pub refused: Vec<String>,
}

impl SecureBootKeys {
    /// Does this firmware start a program with these signers? One that is trusted and not refused is enough.
    #[must_use]
    pub fn boots(&self, signers: &[String]) -> bool {
        signers.iter().any(|signer| self.trusted.contains(signer) && !self.refused.contains(signer))
    }
}

/// Why the keys are not known.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The file cannot be read.
    #[error("failed to read the UEFI variables {path}: {source}")]
    Io {
        /// The store of variables.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Another format.
    #[error("{path} is no store of UEFI variables that this version can read: {why}")]
    Unknown {
        /// The file.
        path: PathBuf,
        /// What was found.
        why: &'static str,
    },
}

/// The keys in a file of UEFI variables, such as [`super::Found::vars_template`].
///
/// # Errors
/// A file that cannot be read, or has another format.
pub fn read(vars: &FlashFile) -> Result<SecureBootKeys, KeysError> {
    let path = || Path::to_owned(&vars.path);
    let unknown = |why| KeysError::Unknown { path: path(), why };
    if vars.format != DiskFormat::Raw {
        return Err(unknown("it is not raw"));
    }
    let read = || -> io::Result<Vec<u8>> {
        use io::Read as _;
        let mut bytes = Vec::new();
        std::fs::File::open(&vars.path)?.take(STORE_LIMIT).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().map_err(|source| KeysError::Io { path: path(), source })?;
    parse(&bytes).ok_or_else(|| unknown("there is no authenticated variable store in it"))
}

fn parse(bytes: &[u8]) -> Option<SecureBootKeys> {
    // The store follows the volume's header, whose length is at byte 48.
    let start = usize::from(u16::from_le_bytes([*bytes.get(48)?, *bytes.get(49)?]));
    let store = bytes.get(start..)?;
    if store.get(..16)? != STORE {
        return None;
    }
    let size = usize::try_from(u32_at(store, 16)?).ok()?;
    let mut rest = store.get(STORE_HEADER..size.min(store.len()))?;
    let mut keys = SecureBootKeys::default();
    while let Some(variable) = Variable::first(rest) {
        if variable.state == ADDED && variable.guid == SECURITY_DATABASE {
            let into = match variable.name {
                b"d\0b\0\0\0" => Some(&mut keys.trusted),
                b"d\0b\0x\0\0\0" => Some(&mut keys.refused),
                _ => None,
            };
            if let Some(into) = into {
                *into = certificates(variable.data).filter_map(der::subject).collect();
            }
        }
        rest = rest.get(variable.length.next_multiple_of(4)..).unwrap_or_default();
    }
    Some(keys)
}

struct Variable<'a> {
    state: u8,
    guid: &'a [u8],
    name: &'a [u8],
    data: &'a [u8],
    length: usize,
}

impl<'a> Variable<'a> {
    fn first(bytes: &'a [u8]) -> Option<Self> {
        let header = bytes.get(..VARIABLE_HEADER)?;
        if u16::from_le_bytes([header[0], header[1]]) != VARIABLE_START {
            return None;
        }
        let name_end = VARIABLE_HEADER.checked_add(usize::try_from(u32_at(header, 36)?).ok()?)?;
        let length = name_end.checked_add(usize::try_from(u32_at(header, 40)?).ok()?)?;
        Some(Self {
            state: header[2],
            guid: &header[44..60],
            name: bytes.get(VARIABLE_HEADER..name_end)?,
            data: bytes.get(name_end..length)?,
            length,
        })
    }
}

/// The X.509 certificates in a signature database: lists with a kind, a head and entries of one size, whose first 16
/// bytes name the owner.
fn certificates(mut database: &[u8]) -> impl Iterator<Item = &[u8]> {
    let lists = std::iter::from_fn(move || {
        let length = usize::try_from(u32_at(database, 16)?).ok()?;
        let list = database.get(..length).filter(|list| list.len() >= 28)?;
        database = &database[length..];
        Some(list)
    });
    lists.filter(|list| list[..16] == X509).flat_map(|list| {
        let field = |at| u32_at(list, at).and_then(|field| usize::try_from(field).ok()).unwrap_or(0);
        let entries = list.get(28usize.saturating_add(field(20))..).unwrap_or_default();
        // A size of zero cannot be; the whole rest is then one entry.
        let size = match field(24) {
            0 => entries.len().max(1),
            size => size,
        };
        entries.chunks_exact(size).filter_map(|entry| entry.get(16..))
    })
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Debian's own templates, where the package is there: the same parser meets the real thing.
    #[test]
    fn microsofts_keys_are_found_in_debians_template() {
        let path = PathBuf::from("/usr/share/OVMF/OVMF_VARS_4M.ms.fd");
        if !path.exists() {
            return;
        }
        let keys = read(&FlashFile { path, format: DiskFormat::Raw }).expect("a store of variables");
        let windows = "Microsoft Windows Production PCA 2011".to_owned();
        assert!(keys.trusted.contains(&windows), "{keys:?}");
        assert!(keys.boots(&[windows]));
        assert!(!keys.boots(&["Debian Secure Boot Signer".to_owned()]));
        assert!(!keys.boots(&[]));
    }

    #[test]
    fn a_template_without_keys_has_none() {
        let path = PathBuf::from("/usr/share/OVMF/OVMF_VARS_4M.fd");
        if !path.exists() {
            return;
        }
        let keys = read(&FlashFile { path, format: DiskFormat::Raw }).expect("a store of variables");
        assert_eq!(keys, SecureBootKeys::default());
    }

    #[test]
    fn refusal_beats_trust() {
        let name = "Microsoft Windows Production PCA 2011".to_owned();
        let keys = SecureBootKeys { trusted: vec![name.clone()], refused: vec![name.clone()] };
        assert!(!keys.boots(&[name]));
    }

    /// A store with one variable `db` that holds `certificate`.
    fn store(certificate: &[u8]) -> Vec<u8> {
        let entry = [&[0; 16], certificate].concat();
        let size = |bytes: &[u8]| u32::try_from(bytes.len()).expect("short").to_le_bytes();
        let list_size = u32::try_from(28 + entry.len()).expect("short").to_le_bytes();
        let list = [&X509[..], &list_size, &[0; 4], &size(&entry), &entry].concat();
        let name = b"d\0b\0\0\0";
        let mut variable = vec![0; VARIABLE_HEADER];
        variable[..3].copy_from_slice(&[0xaa, 0x55, ADDED]);
        variable[36..40].copy_from_slice(&size(name));
        variable[40..44].copy_from_slice(&size(&list));
        variable[44..60].copy_from_slice(&SECURITY_DATABASE);
        variable.extend([name, &list[..]].concat());
        let mut bytes = vec![0; 72];
        bytes[48] = 72;
        bytes.extend(STORE);
        bytes.extend(u32::try_from(STORE_HEADER + variable.len()).expect("short").to_le_bytes());
        bytes.extend([0; 8]);
        bytes.extend(variable);
        bytes
    }

    proptest::proptest! {
        #[test]
        fn damage_is_never_a_panic(at in 0usize..260, byte: u8, length in 0usize..260) {
            let mut bytes = store(b"certificate");
            proptest::prop_assert!(parse(&bytes).is_some());
            if let Some(place) = bytes.get_mut(at) {
                *place = byte;
            }
            bytes.truncate(length);
            let _ = parse(&bytes);
        }
    }
}
