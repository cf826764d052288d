//! The guest program for Windows: where it is, and whether it is the one that belongs to this no43.
//!
//! The host cannot run it, so it is asked through the mark in its file ([`Identity`]). A packaged no43 knows the
//! SHA-256 of the program that came with it and takes no other from beside itself.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use no43_guest::identity::Identity;
use no43_guest::protocol::PROTOCOL_VERSION;
use no43_guest::setup::SETUP_VERSION;
use sha2::{Digest as _, Sha256};

/// The variable that names it.
pub const VARIABLE: &str = "NO43_GUEST_WINDOWS";

/// Its name beside no43.
pub const NAME: &str = "no43-guest.exe";

/// Set where a package is built: the SHA-256 of the program that the package holds.
const PACKAGED: Option<&str> = option_env!("NO43_GUEST_WINDOWS_SHA256");

/// Most bytes of the file; the real one has less than one million.
const LIMIT: u64 = 64 << 20;

/// A program that may be put into a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WindowsProgram {
    /// Where it is.
    pub path: PathBuf,
    /// Of its bytes, in hexadecimal digits: it goes into the key of what is built with it.
    pub sha256: String,
    /// What it says about itself.
    pub identity: Identity,
}

/// Why there is no program for a Windows guest.
#[derive(Debug, thiserror::Error)]
pub enum WindowsProgramError {
    /// It is nowhere.
    #[error(
        "a Windows guest needs the guest program {NAME}, and {place} is not there: it comes with no43's packages; \
         from the source, ci/windows builds it; {VARIABLE}=FILE names one that lies elsewhere"
    )]
    Missing {
        /// Where it was looked for.
        place: PathBuf,
    },
    /// It cannot be read.
    #[error("failed to read the guest program {path}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Another file under its name.
    #[error("{path} is no guest program for Windows: {what}; {VARIABLE}=FILE names the right one")]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        what: String,
    },
    /// A program of another version.
    #[error(
        "the guest program {path} has version {version} (protocol {protocol}, set-up plans {setup}), this no43 speaks \
         protocol {PROTOCOL_VERSION} and set-up plans {SETUP_VERSION}: take the {NAME} that came with it"
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Of the program.
        version: String,
        /// That it speaks.
        protocol: u32,
        /// That it reads.
        setup: u32,
    },
    /// Not the file of this package.
    #[error("{path} has the SHA-256 {found}, this no43 came with {expected}: install the package anew")]
    Altered {
        /// The file.
        path: PathBuf,
        /// What it has.
        found: String,
        /// What the package had.
        expected: String,
    },
}

/// Finds and checks it: `named` (the value of [`VARIABLE`]), else [`NAME`] in `folder` (where no43 itself is).
///
/// # Errors
/// If it is not there, or is not the one that belongs to this no43; the text says what to do.
pub fn windows(named: Option<&Path>, folder: &Path) -> Result<WindowsProgram, WindowsProgramError> {
    // Who names a file knows what he does; what lies beside a packaged no43 must be what was packaged.
    check(named.map_or_else(|| folder.join(NAME), Path::to_owned), PACKAGED.filter(|_| named.is_none()))
}

fn check(path: PathBuf, expected: Option<&str>) -> Result<WindowsProgram, WindowsProgramError> {
    let mut bytes = Vec::new();
    match File::open(&path).and_then(|file| file.take(LIMIT).read_to_end(&mut bytes)) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(WindowsProgramError::Missing { place: path });
        }
        Err(source) => return Err(WindowsProgramError::Unreadable { path, source }),
        Ok(_) => {}
    }
    let foreign = |what: &str| WindowsProgramError::Foreign { path: path.clone(), what: what.to_owned() };
    if !bytes.starts_with(b"MZ") {
        return Err(foreign(if bytes.starts_with(b"\x7fELF") {
            "a Linux program"
        } else {
            "no program of Windows"
        }));
    }
    let identity =
        Identity::find(&bytes).ok_or_else(|| foreign("it does not say so anywhere in its file"))?;
    if identity.os != "windows" {
        return Err(foreign(&format!("built for {}", identity.os)));
    }
    if (identity.protocol, identity.setup) != (PROTOCOL_VERSION, SETUP_VERSION) {
        let Identity { version, protocol, setup, .. } = identity;
        return Err(WindowsProgramError::Version { path, version, protocol, setup });
    }
    let sha256: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    match expected {
        Some(expected) if !sha256.eq_ignore_ascii_case(expected) => {
            Err(WindowsProgramError::Altered { path, found: sha256, expected: expected.to_owned() })
        }
        _ => Ok(WindowsProgram { path, sha256, identity }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(bytes: &[u8], expected: Option<&str>) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(NAME);
        std::fs::write(&path, bytes).unwrap();
        let found = check(path, expected)
            .map_or_else(|e| e.to_string(), |p| format!("{} {}", p.identity.version, p.sha256));
        found.replace(&dir.path().display().to_string(), "/opt")
    }

    fn program(protocol: u32, os: &str) -> Vec<u8> {
        let identity = Identity { version: "0.9.0".into(), protocol, setup: SETUP_VERSION, os: os.into() };
        let mark = format!("no43-guest identity {}", serde_json::to_string(&identity).unwrap());
        [b"MZ\x90\0no43-guest identity \0".as_slice(), mark.as_bytes(), b"\0\xff"].concat()
    }

    #[test]
    fn the_right_program_is_taken() {
        let text = said(&program(PROTOCOL_VERSION, "windows"), None);
        let (version, sha256) = text.split_once(' ').unwrap();
        assert_eq!((version, sha256.len()), ("0.9.0", 64));
        assert_eq!(said(&program(PROTOCOL_VERSION, "windows"), Some(&sha256.to_uppercase())), text);
    }

    #[test]
    fn every_other_file_is_refused_with_what_to_do() {
        let table = [
            said(b"\x7fELF\x02", None),
            said(b"MZ of somebody else", None),
            said(b"<html>", None),
            said(&program(PROTOCOL_VERSION, "linux"), None),
            said(&program(99, "windows"), None),
            said(&program(PROTOCOL_VERSION, "windows"), Some("00ff"))
                .split_inclusive("SHA-256 ")
                .next()
                .unwrap_or_default()
                .into(),
            windows(None, Path::new("/no/such/folder")).unwrap_err().to_string(),
        ];
        insta::assert_snapshot!(table.join("\n"), @r"
        /opt/no43-guest.exe is no guest program for Windows: a Linux program; NO43_GUEST_WINDOWS=FILE names the right one
        /opt/no43-guest.exe is no guest program for Windows: it does not say so anywhere in its file; NO43_GUEST_WINDOWS=FILE names the right one
        /opt/no43-guest.exe is no guest program for Windows: no program of Windows; NO43_GUEST_WINDOWS=FILE names the right one
        /opt/no43-guest.exe is no guest program for Windows: built for linux; NO43_GUEST_WINDOWS=FILE names the right one
        the guest program /opt/no43-guest.exe has version 0.9.0 (protocol 99, set-up plans 1), this no43 speaks protocol 1 and set-up plans 1: take the no43-guest.exe that came with it
        /opt/no43-guest.exe has the SHA-256 
        a Windows guest needs the guest program no43-guest.exe, and /no/such/folder/no43-guest.exe is not there: it comes with no43's packages; from the source, ci/windows builds it; NO43_GUEST_WINDOWS=FILE names one that lies elsewhere
        ");
    }
}
