//! Secrets for one run: a small disk of their own, kept in memory where the state directory is, and overwritten at the end.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};

use no43_builder::setup_disk::{SetupDisk, Source};

/// Its name in the run's directory.
pub(super) const FILE: &str = "secrets.img";
/// A key, a token, a licence file: what is larger is no secret.
const SECRET_MAX: u64 = 1 << 20;

/// Where a secret is read from. Never the secret itself: an argument is everybody's to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretFrom {
    /// A file.
    File(PathBuf),
    /// An environment variable.
    Env(String),
    /// A systemd credential: a file in `$CREDENTIALS_DIRECTORY`.
    Credential(String),
}

/// A named secret: `NAME=file:PATH`, `NAME=env:VARIABLE` or `NAME=credential:NAME`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Secret {
    /// The file's name in the guest.
    pub name: String,
    /// Where it comes from.
    pub from: SecretFrom,
}

impl std::str::FromStr for Secret {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "write NAME=file:PATH, NAME=env:VARIABLE or NAME=credential:NAME".to_owned();
        let (name, from) = text.split_once('=').ok_or_else(wrong)?;
        let (kind, rest) = from.split_once(':').ok_or_else(wrong)?;
        let good = |text: &str| {
            !text.is_empty()
                && text.len() <= 64
                && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
                && !text.starts_with('.')
        };
        if !good(name) || rest.is_empty() {
            return Err(wrong());
        }
        let from = match kind {
            "file" => SecretFrom::File(rest.into()),
            "env" => SecretFrom::Env(rest.to_owned()),
            "credential" if good(rest) => SecretFrom::Credential(rest.to_owned()),
            _ => return Err(wrong()),
        };
        Ok(Self { name: name.to_owned(), from })
    }
}

impl Secret {
    fn read(&self) -> Result<Vec<u8>, String> {
        let file = |path: &Path| {
            let failed = |error: io::Error| format!("secret '{}': {}: {error}", self.name, path.display());
            let mut bytes = Vec::new();
            File::open(path)
                .and_then(|file| file.take(SECRET_MAX + 1).read_to_end(&mut bytes))
                .map_err(failed)?;
            if bytes.len() as u64 > SECRET_MAX {
                Err(format!("secret '{}': {} has more than 1 MiB", self.name, path.display()))
            } else {
                Ok(bytes)
            }
        };
        match &self.from {
            SecretFrom::File(path) => file(path),
            SecretFrom::Env(variable) => std::env::var(variable)
                .map(String::into_bytes)
                .map_err(|_| format!("secret '{}': the environment has no {variable}", self.name)),
            SecretFrom::Credential(name) => {
                let dir = std::env::var_os("CREDENTIALS_DIRECTORY").ok_or_else(|| {
                    format!("secret '{}': this is no systemd service with credentials", self.name)
                })?;
                file(&Path::new(&dir).join(name))
            }
        }
    }
}

/// Writes the secrets onto a fresh disk in a run's directory, which is made. Only its owner can read it.
///
/// # Errors
/// A secret that cannot be read, or a disk that cannot be written; never with a secret in the text.
pub fn write(dir: &no43_machine::RunDirs, secrets: &[Secret]) -> Result<PathBuf, String> {
    dir.create().map_err(|error| format!("failed to make {}: {error}", dir.dir().display()))?;
    let path = dir.dir().join(FILE);
    let mut disk = SetupDisk::new("SECRETS").map_err(|error| error.to_string())?.with_free(0);
    for secret in secrets {
        disk.file(&secret.name, Source::Bytes(secret.read()?)).map_err(|error| error.to_string())?;
    }
    disk.write(&path).map_err(|error| {
        destroy(&path);
        error.to_string()
    })?;
    Ok(path)
}

/// Overwrites and removes a disk of secrets; nothing if there is none.
pub fn destroy(path: &Path) {
    let overwrite = || -> io::Result<()> {
        let mut file = File::options().write(true).open(path)?;
        let length = file.seek(io::SeekFrom::End(0))?;
        file.rewind()?;
        io::copy(&mut io::repeat(0).take(length), &mut file)?;
        file.flush()?;
        file.sync_all()
    };
    let _ = overwrite();
    let _ = fs::remove_file(path);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_secret_names_its_source_and_never_holds_itself() {
        let file: Secret = "token=file:/etc/token".parse().unwrap();
        assert_eq!(file, Secret { name: "token".into(), from: SecretFrom::File("/etc/token".into()) });
        for wrong in ["token", "token=secret", "../x=file:/y", "a=credential:../y", "=env:X", "a=env:"] {
            assert!(wrong.parse::<Secret>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn nothing_is_left_of_a_disk_of_secrets() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("token");
        fs::write(&source, "hunter2-hunter2").unwrap();
        let dirs = no43_machine::RunDirs::at(dir.path().join("m"));
        let secret = Secret { name: "token".into(), from: SecretFrom::File(source) };
        let disk = write(&dirs, &[secret]).unwrap();
        let holds = |bytes: &[u8]| bytes.windows(15).any(|part| part == b"hunter2-hunter2");
        assert!(holds(&fs::read(&disk).unwrap()));
        assert_eq!(fs::metadata(&disk).unwrap().permissions().mode() & 0o077, 0);
        // the same file by another name shows what was written over
        fs::hard_link(&disk, dir.path().join("link")).unwrap();
        destroy(&disk);
        assert!(!disk.exists() && !holds(&fs::read(dir.path().join("link")).unwrap()));
    }
}
