//! Where the built programs are.

use anyhow::{Result, ensure};
use std::path::{Path, PathBuf};

/// The repository's root.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

/// The `no43` to test: `$NO43_BIN`, else the newest one that cargo has built.
pub fn no43() -> Result<PathBuf> {
    find("NO43_BIN", "no43", &["x86_64-unknown-linux-gnu/lab", "release", "debug"])
}

/// The guest program for Linux guests: `$NO43_GUEST`, else the newest one that cargo has built.
pub fn guest() -> Result<PathBuf> {
    find("NO43_GUEST", "no43-guest", &["lab", "release", "debug"])
}

/// The guest program for Windows guests: `$NO43_GUEST_WINDOWS`, else the one that cargo has built.
pub fn windows_guest() -> Result<PathBuf> {
    find("NO43_GUEST_WINDOWS", "no43-guest.exe", &["x86_64-pc-windows-gnu/windows"])
}

fn find(variable: &str, name: &str, folders: &[&str]) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(variable).map(PathBuf::from) {
        ensure!(path.is_file(), "{variable} names {}, which is not there", path.display());
        return Ok(path);
    }
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    let built = folders.iter().map(|f| target.join(f).join(name)).filter(|p| p.is_file());
    let newest = built.max_by_key(|p| p.metadata().and_then(|m| m.modified()).ok());
    newest.ok_or_else(|| anyhow::anyhow!("{name} is not built: ci/test builds it, or set {variable}"))
}
