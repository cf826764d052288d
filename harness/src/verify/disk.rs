//! The throw-away disk of a run: a qcow2 overlay on the image, on a local file system.

use anyhow::{Context as _, Result, bail};
use no43_builder::image::Image;
use no43_builder::install::Identity;
use no43_builder::plan::{IdentityKind, Plan};
use no43_builder::windows::{Private, Who};
use std::path::Path;
use std::process::{Command, Stdio};
use tempfile::TempDir;

use super::spec::Scratch;
use crate::instance::{new_serial, new_uuid};

/// `f_type` of 9p in `statfs`.
const V9FS_MAGIC: u64 = 0x0102_1997;

/// A folder for sockets and overlays, removed when dropped. Its path is short, since a socket's path has at most 107 bytes.
pub(super) fn scratch(wish: Option<&Path>) -> Result<TempDir> {
    let base = wish.map_or_else(std::env::temp_dir, Path::to_owned);
    let kind = rustix::fs::statfs(&base).with_context(|| format!("failed to look at {}", base.display()))?;
    if u64::try_from(kind.f_type).is_ok_and(|t| t == V9FS_MAGIC) {
        bail!(
            "{} is a 9p share, which carries neither sockets nor locks: choose a local folder (TMPDIR)",
            base.display()
        );
    }
    tempfile::Builder::new()
        .prefix("no43-")
        .tempdir_in(&base)
        .with_context(|| format!("failed to make a folder in {}", base.display()))
}

/// What an installed image has beside its disk, as copies of this run's own.
pub(super) fn private_parts(image: &Image, plan: &Plan, scratch: &Scratch) -> Result<Option<Private>> {
    let identity;
    let who = match plan.machine.identity {
        IdentityKind::Fresh => {
            identity = Identity { uuid: new_uuid(), serial: new_serial() };
            Who { identity: Some(&identity), empty_tpm: true }
        }
        IdentityKind::Own | IdentityKind::Image => Who::default(),
    };
    let dir = scratch.vars.parent().context("a file lies in a folder")?;
    image.private_parts(dir, who).with_context(|| format!("failed to fill {}", dir.display()))
}

/// Makes the overlay. What the guest writes goes there and is gone with it.
pub(super) fn overlay(image: &Image, at: &Path) -> Result<()> {
    let base = image.disk();
    let base =
        base.canonicalize().with_context(|| format!("failed to find the image's disk {}", base.display()))?;
    let output = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"])
        .arg(&base)
        .arg(at)
        .stdin(Stdio::null())
        .output()
        .context("failed to run qemu-img (Debian: package qemu-utils)")?;
    if !output.status.success() {
        bail!(
            "failed to make the run's disk on {}: {}",
            base.display(),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}
