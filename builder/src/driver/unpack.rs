//! The parts of a package that a guest needs, unpacked to this host's disk: the display driver, and the installer if it is run.
//!
//! NVIDIA's packages bring twenty components (GeForce Experience, telemetry, …); those that nobody asked for never reach
//! the guest. The list of needed files is that of public scripts which slim packages down; no real package was tried.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::archive;
use super::{DriverError, Package};

/// Folders that NVIDIA's installer cannot do without.
const INSTALLER_FOLDERS: &[&str] = &["NVI2"];
/// Files beside it, in the package's top.
const INSTALLER_FILES: &[&str] = &["setup.exe", "setup.cfg", "EULA.txt", "ListDevices.txt"];
/// `setup.cfg` names files of components that are left out, and the installer fails over them: lines with these go.
const LEFT_OUT: &[&str] = &["EulaHtmlFile", "FunctionalConsentFile", "PrivacyPolicyFile"];
/// The name of the installer's list.
const SETUP_CFG: &str = "setup.cfg";

/// Which parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parts<'a> {
    /// The folders with display INF files: enough for the driver store.
    Staged,
    /// The installer too, with these components beside the display driver.
    Installer(&'a [String]),
}

/// What was unpacked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unpacked {
    /// Files.
    pub files: usize,
    /// Their size.
    pub bytes: u64,
    /// Folders with display INF files, below the target, with `/`.
    pub infs: Vec<String>,
}

/// Unpacks `package`, which was read from a package file or folder, into the empty folder `to`.
///
/// # Errors
/// [`DriverError`]: what cannot be read or written, a damaged package, a component that it does not have.
pub fn unpack(package: &Package, parts: Parts<'_>, to: &Path) -> Result<Unpacked, DriverError> {
    let mut infs: Vec<String> = package.infs.iter().map(|inf| folder_of(&inf.path).to_owned()).collect();
    infs.sort();
    infs.dedup();
    let mut wanted = Wanted { folders: infs.clone(), files: &[] };
    if let Parts::Installer(components) = parts {
        wanted.folders.extend(INSTALLER_FOLDERS.iter().map(|name| (*name).to_owned()));
        wanted.folders.extend(components.iter().cloned());
        wanted.files = INSTALLER_FILES;
    }
    let mut out = Out { to, files: 0, bytes: 0, folders: Vec::new(), package: &package.path };
    archive::each(&package.path, &|path| wanted.takes(path), &mut |path, reader| out.write(path, reader))?;
    if let Parts::Installer(components) = parts {
        let missing = components.iter().find(|name| !out.has(name));
        if let Some(name) = missing {
            let why = format!("it has no component '{name}'");
            return Err(DriverError::Damaged { path: package.path.clone(), why });
        }
        if !to.join("setup.exe").is_file() {
            let why = "it has no setup.exe to install it with; set driver.install = \"staged\"".to_owned();
            return Err(DriverError::Damaged { path: package.path.clone(), why });
        }
        slim(&to.join(SETUP_CFG)).map_err(|source| DriverError::Io { path: to.join(SETUP_CFG), source })?;
    }
    Ok(Unpacked { files: out.files, bytes: out.bytes, infs })
}

fn folder_of(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(folder, _)| folder)
}

struct Wanted<'a> {
    folders: Vec<String>,
    files: &'a [&'a str],
}

impl Wanted<'_> {
    fn takes(&self, path: &str) -> bool {
        let below = |folder: &String| {
            let head = path.get(..folder.len()).is_some_and(|head| head.eq_ignore_ascii_case(folder));
            head && path[folder.len()..].starts_with('/')
        };
        // A package unpacked by its Display.Driver folder has its INF files in the top.
        let top = self.folders.iter().any(String::is_empty);
        top || self.folders.iter().any(below) || self.files.iter().any(|file| path.eq_ignore_ascii_case(file))
    }
}

struct Out<'a> {
    to: &'a Path,
    files: usize,
    bytes: u64,
    folders: Vec<String>,
    package: &'a Path,
}

impl Out<'_> {
    /// `path` was checked by the archive's directory: it leads nowhere else.
    fn write(&mut self, path: &str, reader: &mut dyn Read) -> Result<(), DriverError> {
        let file = self.to.join(path);
        let failed = |source| DriverError::Io { path: file.clone(), source };
        if let Some(folder) = file.parent() {
            fs::create_dir_all(folder).map_err(failed)?;
        }
        // Windows knows no case: two names of one file would overwrite each other there.
        let mut new = fs::File::create_new(&file).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => {
                let why = format!("it holds {path} twice");
                DriverError::Damaged { path: self.package.to_owned(), why }
            }
            _ => failed(error),
        })?;
        let copied = io::copy(reader, &mut new).map_err(failed)?;
        self.files += 1;
        self.bytes += copied;
        let top = path.split('/').next().unwrap_or_default();
        if !self.folders.iter().any(|known| known == top) {
            self.folders.push(top.to_owned());
        }
        Ok(())
    }

    fn has(&self, component: &str) -> bool {
        self.folders.iter().any(|folder| folder.eq_ignore_ascii_case(component))
    }
}

/// Takes lines out of `setup.cfg` without decoding it: they are ASCII in every encoding that it was seen in.
fn slim(path: &PathBuf) -> io::Result<()> {
    let bytes = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    let named = |line: &&[u8]| {
        LEFT_OUT.iter().any(|word| line.windows(word.len()).any(|part| part == word.as_bytes()))
    };
    let kept: Vec<&[u8]> = bytes.split_inclusive(|byte| *byte == b'\n').filter(|line| !named(line)).collect();
    fs::write(path, kept.concat())
}
