//! Who signed a UEFI program: the issuers named in its Authenticode signatures. Nothing is verified; firmware does that.

use std::io::{self, Read, Seek, SeekFrom};

use super::der;

/// A signature of Microsoft has 9 KB; some programs carry two.
const TABLE_LIMIT: u32 = 1 << 20;
const HEADERS_LIMIT: u64 = 4096;

/// The common names of the authorities that issued the certificates which `program` is signed with, in the order of the
/// signatures. Empty for a program without a signature, and for anything that is no program.
///
/// Only headers and the table of signatures are read.
///
/// # Errors
/// What the system says; a program that ends early is none.
pub fn signers<R: Read + Seek>(program: &mut R) -> io::Result<Vec<String>> {
    let mut head = Vec::new();
    program.seek(SeekFrom::Start(0))?;
    program.by_ref().take(HEADERS_LIMIT).read_to_end(&mut head)?;
    let Some((at, length)) = table(&head).filter(|(_, length)| *length <= TABLE_LIMIT) else {
        return Ok(Vec::new());
    };
    let mut table = Vec::new();
    program.seek(SeekFrom::Start(u64::from(at)))?;
    program.by_ref().take(u64::from(length)).read_to_end(&mut table)?;
    Ok(signatures(&table).filter_map(issuer).collect())
}

/// Place and length of the attribute certificate table (PE/COFF, data directory 4), which is a place in the file.
fn table(head: &[u8]) -> Option<(u32, u32)> {
    let u32_at = |at: usize| Some(u32::from_le_bytes(head.get(at..at + 4)?.try_into().ok()?));
    let pe = usize::try_from(u32_at(0x3c)?).ok()?;
    if !head.starts_with(b"MZ") || head.get(pe..pe.checked_add(4)?)? != b"PE\0\0" {
        return None;
    }
    let optional = pe + 24;
    // PE32 has its data directories 16 bytes earlier than PE32+.
    let directories = match head.get(optional..optional + 2)? {
        [0x0b, 0x01] => optional + 96,
        [0x0b, 0x02] => optional + 112,
        _ => return None,
    };
    let (at, length) = (u32_at(directories + 32)?, u32_at(directories + 36)?);
    (at > 0 && length > 0).then_some((at, length))
}

/// The PKCS#7 signatures of a table: length, revision and kind in front of each, each padded to 8 bytes.
fn signatures(mut table: &[u8]) -> impl Iterator<Item = &[u8]> {
    const PKCS: u16 = 2;
    std::iter::from_fn(move || {
        loop {
            let length = u32::from_le_bytes(table.get(..4)?.try_into().ok()?);
            let kind = u16::from_le_bytes([*table.get(6)?, *table.get(7)?]);
            let length = usize::try_from(length).ok()?;
            let body = table.get(8..length)?;
            table = table.get(length.next_multiple_of(8)..).unwrap_or_default();
            if kind == PKCS {
                return Some(body);
            }
        }
    })
}

/// The issuer's common name of the certificate that made this signature (PKCS#7 `SignedData`).
fn issuer(signature: &[u8]) -> Option<String> {
    let content = der::elements(der::inside(signature, der::SEQUENCE)?)
        .find(|element| element.tag == der::EXPLICIT_0)?
        .body;
    // version, algorithms, contents, certificates, revocations, signers: the last set is the one.
    let signers = der::elements(der::inside(content, der::SEQUENCE)?)
        .filter(|element| element.tag == der::SET)
        .last()?;
    // version, then issuer and serial number
    let signer = der::elements(der::inside(signers.body, der::SEQUENCE)?).nth(1)?;
    der::common_name(der::inside(signer.body, der::SEQUENCE)?)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::io::Cursor;

    fn wrap(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
        let body = parts.concat();
        let length = u32::try_from(body.len()).expect("short");
        [&[tag, 0x84], &length.to_be_bytes()[..], &body].concat()
    }

    /// An X.500 name with a country and this common name.
    pub(in crate::firmware) fn name(common: &str) -> Vec<u8> {
        let attribute = |oid: &[u8], text: &str| {
            let pair = wrap(der::SEQUENCE, &[&wrap(der::OID, &[oid]), &wrap(0x13, &[text.as_bytes()])]);
            wrap(der::SET, &[&pair])
        };
        wrap(der::SEQUENCE, &[&attribute(&[0x55, 4, 6], "US"), &attribute(&[0x55, 4, 3], common)])
    }

    fn signature(issuer: &str) -> Vec<u8> {
        let serial = wrap(der::SEQUENCE, &[&name(issuer), &wrap(der::INTEGER, &[&[1]])]);
        let signer = wrap(der::SEQUENCE, &[&wrap(der::INTEGER, &[&[1]]), &serial]);
        let data = wrap(
            der::SEQUENCE,
            &[&wrap(der::INTEGER, &[&[1]]), &wrap(der::SET, &[]), &wrap(der::SET, &[&signer])],
        );
        wrap(der::SEQUENCE, &[&wrap(der::OID, &[&[42]]), &wrap(der::EXPLICIT_0, &[&data])])
    }

    /// A program with nothing but headers and these signatures.
    fn program(issuers: &[&str]) -> Vec<u8> {
        let mut bytes = vec![0; 512];
        bytes[..2].copy_from_slice(b"MZ");
        bytes[0x3c] = 0x80;
        bytes[0x80..0x84].copy_from_slice(b"PE\0\0");
        bytes[0x98..0x9a].copy_from_slice(&[0x0b, 0x02]);
        for issuer in issuers {
            let body = signature(issuer);
            let length = u32::try_from(body.len() + 8).expect("short");
            bytes.extend(length.to_le_bytes());
            bytes.extend([0, 2, 2, 0]);
            bytes.extend(body);
            bytes.resize(bytes.len().next_multiple_of(8), 0);
        }
        let length = u32::try_from(bytes.len() - 512).expect("short");
        bytes[0x98 + 144..0x98 + 148].copy_from_slice(&512u32.to_le_bytes());
        bytes[0x98 + 148..0x98 + 152].copy_from_slice(&length.to_le_bytes());
        bytes
    }

    fn signers_of(bytes: &[u8]) -> Vec<String> {
        signers(&mut Cursor::new(bytes)).expect("memory reads")
    }

    #[test]
    fn every_signature_names_its_issuer() {
        let both = ["Microsoft Windows Production PCA 2011", "Windows UEFI CA 2023"];
        assert_eq!(signers_of(&program(&both)), both);
        assert_eq!(signers_of(&program(&[])), [""; 0]);
        assert_eq!(signers_of(b"<!DOCTYPE html>"), [""; 0]);
    }

    proptest::proptest! {
        #[test]
        fn damage_is_never_a_panic(at in 0usize..900, byte: u8, length in 0usize..900) {
            let mut bytes = program(&["Windows UEFI CA 2023"]);
            if let Some(place) = bytes.get_mut(at) {
                *place = byte;
            }
            bytes.truncate(length);
            let _ = signers_of(&bytes);
        }
    }
}
