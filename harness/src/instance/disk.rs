//! An instance's disk files: overlays, blank disks, what `qemu-img` says of them, and what they take.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Deserialize;

use super::error::InstanceError;

/// What `qemu-img info` says of a disk.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct DiskFacts {
    /// The size that the guest sees, in bytes.
    pub virtual_size: u64,
    /// `qcow2` or `raw`.
    pub format: String,
    /// The file below, as the header names it.
    pub backing_filename: Option<PathBuf>,
    /// What only this format has.
    #[serde(default)]
    format_specific: serde_json::Value,
}

impl DiskFacts {
    /// The guest's data is in another file, which a header from elsewhere can choose.
    pub(super) fn has_data_file(&self) -> bool {
        self.format_specific.pointer("/data/data-file").is_some()
    }
}

/// Names another file below a disk, without a look at either's contents.
pub(super) fn rebase(disk: &Path, base: &Path) -> Result<(), InstanceError> {
    let args = ["rebase", "-u", "-F", "qcow2", "-b"].map(std::ffi::OsStr::new);
    let files = [base.as_os_str(), disk.as_os_str()];
    qemu_img("tell the disk where its image is", args.into_iter().chain(files)).map(drop)
}

/// Runs `qemu-img` to its end; its own words are the error.
pub(super) fn qemu_img<S: AsRef<std::ffi::OsStr>>(
    what: &str,
    args: impl IntoIterator<Item = S>,
) -> Result<Vec<u8>, InstanceError> {
    let failed = |why: String| InstanceError::Program { what: what.to_owned(), why };
    let output = Command::new("qemu-img").args(args).stdin(Stdio::null()).output();
    let output = output.map_err(|error| failed(format!("qemu-img: {error} (Debian: package qemu-utils)")))?;
    if !output.status.success() {
        return Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    Ok(output.stdout)
}

/// Makes an overlay on `base` at `at`; `bytes` makes it larger than its base.
///
/// # Errors
/// What `qemu-img` says.
pub fn overlay_on(base: &Path, at: &Path, bytes: Option<u64>) -> Result<(), InstanceError> {
    let base = base.canonicalize().map_err(super::file_error("find", base))?;
    let mut args: Vec<std::ffi::OsString> =
        ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"].map(Into::into).to_vec();
    args.extend([base.into(), at.into()]);
    args.extend(bytes.map(|bytes| bytes.to_string().into()));
    qemu_img(&format!("make the disk {}", at.display()), args).map(drop)
}

/// Makes an empty disk.
pub(super) fn blank(at: &Path, bytes: u64) -> Result<(), InstanceError> {
    let what = format!("make the disk {}", at.display());
    let size = bytes.to_string();
    qemu_img(
        &what,
        [
            std::ffi::OsStr::new("create"),
            "-q".as_ref(),
            "-f".as_ref(),
            "qcow2".as_ref(),
            at.as_ref(),
            size.as_ref(),
        ],
    )
    .map(drop)
}

/// What a disk is; its format is not guessed by its contents where `format` is given.
pub(super) fn facts(disk: &Path) -> Result<DiskFacts, InstanceError> {
    let what = format!("look at the disk {}", disk.display());
    // -U: looking is allowed while a guest runs
    let args = ["info", "-U", "--output=json"].map(std::ffi::OsStr::new);
    let json = qemu_img(&what, args.into_iter().chain([disk.as_os_str()]))?;
    serde_json::from_slice(&json).map_err(|error| InstanceError::Program { what, why: error.to_string() })
}

/// Bytes that a folder's files take on the disk, holes not counted.
pub(super) fn allocated(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.file_type() {
            Ok(kind) if kind.is_dir() => allocated(&entry.path()),
            Ok(kind) if kind.is_file() => entry.metadata().map_or(0, |facts| facts.blocks() * 512),
            _ => 0,
        })
        .sum()
}

/// Copies a folder of plain files (UEFI variables, a TPM's state); nothing if there is none.
pub(super) fn copy_dir(from: &Path, to: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(from) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    fs::create_dir_all(to)?;
    for entry in entries {
        let entry = entry?;
        let (path, to) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type()?.is_dir() { copy_dir(&path, &to)? } else { copy_synced(&path, &to)? }
    }
    Ok(())
}

/// Copies a small file and syncs it.
pub(super) fn copy_synced(from: &Path, to: &Path) -> io::Result<()> {
    fs::copy(from, to)?;
    fs::File::open(to)?.sync_all()
}

/// Copies a file if it is there, and removes the target if it is not: both states are then the same.
pub(super) fn mirror_file(from: &Path, to: &Path) -> io::Result<()> {
    if from.exists() {
        let aside = to.with_extension("new");
        copy_synced(from, &aside)?;
        return fs::rename(aside, to);
    }
    remove_if_there(to)
}

pub(super) fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

pub(super) fn remove_dir_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Renames a folder; `AlreadyExists` instead of replacing an empty one.
pub(super) fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // file systems without the flag: the look before is as good as it gets there
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) if to.exists() => {
            Err(io::ErrorKind::AlreadyExists.into())
        }
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => fs::rename(from, to),
        other => Ok(other?),
    }
}

/// Exchanges two folders in one step.
pub(super) fn exchange(a: &Path, b: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    Ok(renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE)?)
}
