//! Secrets: read from a file, the environment or a systemd credential at the moment when they are needed, and never shown.
//!
//! A [`Secret`] has no `Display`, its `Debug` hides it, and its memory is cleared when it goes. It never enters a key, a
//! manifest, an argument list, a log or a report.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use zeroize::Zeroize;

use crate::plan::SecretSource;

/// Longer than any password or key; a disk image named by mistake is not read into memory.
const MAX_BYTES: u64 = 64 << 10;
/// Every user of this host may read or write: the permission bits of "others".
const OTHERS: u32 = 0o006;
/// Of these a throw-away password is made: no character that looks like another, and none that a keyboard layout moves.
const ALPHABET: &[u8; 32] = b"23456789abcdefghijkmnpqrstuvwxyz";

/// Why a secret cannot be had. No message holds any part of a secret.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file is not there, or cannot be read.
    #[error("failed to read the secret from {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Others can read or change the file.
    #[error("{path} is open to every user of this host (mode {mode:04o})\n    fix   chmod 600 {path}")]
    Open {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A folder, or a device.
    #[error("{0} is not a file")]
    NotAFile(PathBuf),
    /// The variable is not set.
    #[error(
        "the environment variable {0} is not set\n    fix   set it for this command only, or name a file: {{ file = \"…\" }}"
    )]
    NoVariable(String),
    /// `$CREDENTIALS_DIRECTORY` is not set.
    #[error(
        "the systemd credential '{0}' cannot be had: $CREDENTIALS_DIRECTORY is not set\n    fix   start no43 from a unit with LoadCredential={0}:…, or name a file: {{ file = \"…\" }}"
    )]
    NoCredentials(String),
    /// Not the name of a file in a folder.
    #[error("'{0}' is no name of a credential\n    fix   use letters, digits, '-', '_' and '.'")]
    BadName(String),
    /// There is nothing in it, or nothing that can be a secret.
    #[error("the secret from {from} {why}")]
    Unusable {
        /// The file, variable or credential.
        from: String,
        /// What is wrong with it.
        why: &'static str,
    },
}

/// A text that must not be shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes the text over.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// A random one with 120 bits, which satisfies every rule of Windows for passwords.
    ///
    /// # Errors
    /// When the system has no random bytes.
    pub fn throw_away() -> io::Result<Self> {
        let mut bytes = [0; 24];
        File::open("/dev/urandom")?.read_exact(&mut bytes)?;
        let letters = bytes.iter().map(|byte| char::from(ALPHABET[usize::from(byte % 32)]));
        // Upper case and a sign, because three of four kinds of characters are wanted.
        let secret = Self("N-".chars().chain(letters).collect());
        bytes.zeroize();
        Ok(secret)
    }

    /// The text itself; for the one place where it has to be written.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// Reads the secret from where the recipe says.
///
/// # Errors
/// When it is not there, is empty, or lies where every user of the host can read it.
pub fn read(source: &SecretSource) -> Result<Secret, SecretError> {
    match source {
        SecretSource::File(path) => from_file(path),
        SecretSource::Env(name) => {
            let value = std::env::var_os(name).ok_or_else(|| SecretError::NoVariable(name.clone()))?;
            let value = value.into_string().map_err(|_| SecretError::Unusable {
                from: format!("the variable {name}"),
                why: "is not UTF-8 text",
            })?;
            usable(value, format!("the variable {name}"))
        }
        SecretSource::Credential(name) => {
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            if name.is_empty() || name.starts_with('.') || !name.chars().all(plain) {
                return Err(SecretError::BadName(name.clone()));
            }
            let folder = std::env::var_os("CREDENTIALS_DIRECTORY")
                .ok_or_else(|| SecretError::NoCredentials(name.clone()))?;
            from_file(&Path::new(&folder).join(name))
        }
    }
}

/// The first line of a file.
fn from_file(path: &Path) -> Result<Secret, SecretError> {
    let io = |source| SecretError::Io { path: path.to_owned(), source };
    let file = File::open(path).map_err(io)?;
    // Asked of the open file, so that nobody can exchange it in between.
    let meta = file.metadata().map_err(io)?;
    if !meta.is_file() {
        return Err(SecretError::NotAFile(path.to_owned()));
    }
    let mode = meta.permissions().mode() & 0o7777;
    if mode & OTHERS != 0 {
        return Err(SecretError::Open { path: path.to_owned(), mode });
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut bytes).map_err(io)?;
    let from = path.display().to_string();
    let end = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
    let text = std::str::from_utf8(&bytes[..end]).map(|line| {
        let line = line.strip_prefix('\u{feff}').unwrap_or(line);
        line.strip_suffix('\r').unwrap_or(line).to_owned()
    });
    let result = match text {
        Ok(text) => usable(text, from),
        Err(_) => Err(SecretError::Unusable { from, why: "is not UTF-8 text" }),
    };
    bytes.zeroize();
    result
}

fn usable(text: String, from: String) -> Result<Secret, SecretError> {
    let secret = Secret(text);
    if secret.0.is_empty() {
        return Err(SecretError::Unusable { from, why: "is empty" });
    }
    if secret.0.chars().any(|c| c == '\0' || c == '\n') {
        return Err(SecretError::Unusable { from, why: "holds a line break or a zero byte" });
    }
    Ok(secret)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &[u8], mode: u32) -> (tempfile::TempDir, SecretSource) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("password");
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        (folder, SecretSource::File(path))
    }

    #[test]
    fn the_first_line_of_a_file_and_nothing_of_its_ending() {
        for text in ["pa<ss \"w'örd\n", "pa<ss \"w'örd\r\nsecond line", "\u{feff}pa<ss \"w'örd"] {
            let (_folder, source) = file(text.as_bytes(), 0o600);
            assert_eq!(read(&source).unwrap().reveal(), "pa<ss \"w'örd");
        }
    }

    #[test]
    fn a_file_that_others_can_read_or_change_is_refused_with_the_fix() {
        for mode in [0o644, 0o604, 0o602] {
            let (_folder, source) = file(b"hunter2\n", mode);
            let error = read(&source).unwrap_err().to_string();
            assert!(error.contains("chmod 600") && error.contains(&format!("{mode:04o}")), "{error}");
            assert!(!error.contains("hunter2"));
        }
        let (_folder, source) = file(b"hunter2\n", 0o640);
        assert_eq!(read(&source).unwrap().reveal(), "hunter2");
    }

    #[test]
    fn what_cannot_be_a_secret_is_refused_without_showing_it() {
        for (text, why) in [
            (&b""[..], "is empty"),
            (b"\nhunter2", "is empty"),
            (b"a\0b", "zero byte"),
            (b"\xff\xfe", "not UTF-8"),
        ] {
            let (_folder, source) = file(text, 0o600);
            let error = read(&source).unwrap_err().to_string();
            assert!(error.contains(why) && !error.contains("hunter2"), "{error}");
        }
        let error = read(&SecretSource::File("/nowhere/password".into())).unwrap_err().to_string();
        assert!(error.contains("/nowhere/password"));
        assert!(matches!(read(&SecretSource::File("/tmp".into())), Err(SecretError::NotAFile(_))));
        assert!(matches!(read(&SecretSource::Env("NO43_NOT_SET".into())), Err(SecretError::NoVariable(_))));
        for name in ["../x", "", ".x", "a/b"] {
            assert!(matches!(read(&SecretSource::Credential(name.into())), Err(SecretError::BadName(_))));
        }
    }

    #[test]
    fn debug_shows_nothing_and_throw_away_passwords_differ() {
        let [a, b] = [Secret::throw_away().unwrap(), Secret::throw_away().unwrap()];
        assert_eq!(format!("{a:?}"), "Secret(…)");
        assert_ne!(a, b);
        assert_eq!(a.reveal().len(), 26);
    }
}
