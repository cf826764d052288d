//! An eye on the card's own output: the lab's, asked through its port.

use crate::checks::Eye;
use anyhow::{Context as _, Result, bail, ensure};
use image::{ImageReader, Limits, RgbImage};
use no43_host::lab_port::{Client, Reply, Request, is_bare_name};
use no43_host::{PciAddress, Roots};
use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// For a picture: the lab's QEMU draws the card's memory and writes a PNG onto a share, on a machine that is busy emulating.
const CAPTURE_LIMIT: Duration = Duration::from_secs(30);
/// A PNG of a screen is never larger.
const MAX_PNG: u64 = 64 << 20;

/// The lab around this host.
pub(crate) struct LabEye {
    client: Client,
    folders: Vec<PathBuf>,
}

impl LabEye {
    /// None on a host that is not a lab's. The lab puts pictures into one of `folders`, which it shares with us.
    pub(crate) fn open(roots: &Roots, folders: &[&Path]) -> Option<Self> {
        let folders = folders.iter().map(|folder| (*folder).to_owned()).collect();
        Client::open(&roots.dev).map(|client| Self { client, folders })
    }
}

impl Eye for LabEye {
    fn capture(&mut self, card: &PciAddress) -> Result<RgbImage> {
        // a name is never used twice: a share may still show the file that had it before
        let name = format!("capture-{:016x}.png", crate::evidence::random());
        let reply = self.client.ask(&Request::Capture { address: *card, file: name }, CAPTURE_LIMIT)?;
        let Reply::Captured { file, .. } = reply else {
            bail!("the lab answered a request for a picture with {reply:?}")
        };
        ensure!(is_bare_name(&file), "the lab named its picture '{file}', which is no file name");
        let path = self.folders.iter().map(|folder| folder.join(&file)).find(|path| path.exists());
        let path = path.with_context(|| {
            format!("the lab says that it wrote {file}, and it is not in {}", list(&self.folders))
        })?;
        let picture =
            read(&path).with_context(|| format!("failed to read the lab's picture {}", path.display()))?;
        // kept again, with its name, in the run's folder
        let _ = fs::remove_file(&path);
        Ok(picture)
    }
}

fn read(path: &Path) -> Result<RgbImage> {
    let size = fs::metadata(path)?.len();
    ensure!(size <= MAX_PNG, "it has {size} bytes, more than the {MAX_PNG} that a screen can have");
    let mut reader = ImageReader::with_format(Cursor::new(fs::read(path)?), image::ImageFormat::Png);
    let mut limits = Limits::default();
    limits.max_image_width = Some(8192);
    limits.max_image_height = Some(8192);
    reader.limits(limits);
    Ok(reader.decode()?.into_rgb8())
}

fn list(folders: &[PathBuf]) -> String {
    folders.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>().join(" or ")
}
