//! The two programs that the lab runs, and where cargo puts them.

use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use xshell::{Cmd, Shell, cmd};

/// The triple is always named, so that host build scripts are not built with static flags.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Paths of built programs.
#[derive(Debug, Clone)]
pub(crate) struct Binaries {
    /// `no43`, one static file: the same one runs outside and in any lab host.
    pub(crate) no43: PathBuf,
    /// `no43-guest`, dynamic, for Linux guests.
    pub(crate) guest: PathBuf,
}

impl Binaries {
    /// Where they will be, under the target folder of `root`.
    pub(crate) fn of(root: &Path) -> Self {
        let target =
            std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |t| root.join(t));
        Self { no43: target.join(TARGET).join("lab/no43"), guest: target.join("lab/no43-guest") }
    }

    /// Tells programs that are started through `sh` where these are.
    pub(crate) fn announce(&self, sh: &Shell) {
        sh.set_var("NO43_BIN", &self.no43);
        sh.set_var("NO43_GUEST", &self.guest);
    }
}

/// The commands that build both.
///
/// `no43` leaves the D-Bus display out: its C libraries cannot be linked statically from Debian's packages.
pub(crate) fn build_commands(sh: &Shell) -> Vec<Cmd<'_>> {
    let features = "--no-default-features";
    vec![
        cmd!(sh, "cargo build -q --profile lab --target {TARGET} -p no43 {features}")
            .env("RUSTFLAGS", "-C target-feature=+crt-static"),
        cmd!(sh, "cargo build -q --profile lab -p no43-guest"),
    ]
}

/// The repository's root: where this crate's folder is.
pub(crate) fn root() -> Result<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().map(Path::to_path_buf).context("the ci crate lies inside the workspace")
}
