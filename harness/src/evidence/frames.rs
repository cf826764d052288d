//! Pictures of a run: kept when they changed, bounded in number and size.

use super::event::Frame;
use super::files::write_atomic;
use crate::words;
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder, RgbImage};
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::PathBuf;

/// No more pictures than this in one run: 2 hours of a screen that changes every 20 seconds.
const MAX_FRAMES: usize = 400;
/// No more bytes of pictures than this in one run.
const MAX_BYTES: u64 = 256 << 20;
/// A picture larger than this in either direction is not a screen.
const MAX_SIDE: u32 = 16_384;

/// What became of a picture.
#[derive(Debug)]
pub(super) enum Kept {
    /// It is a new file.
    New(Frame),
    /// It equals the last one of its source, which lies here.
    Unchanged(String),
    /// The run has kept enough pictures.
    Full,
}

/// Keeps the pictures of one run in `frames/`.
#[derive(Debug)]
pub struct FrameStore {
    dir: PathBuf,
    /// Of each source: the last picture's print and where it lies.
    last: HashMap<String, (u64, String)>,
    kept: usize,
    bytes: u64,
}

impl FrameStore {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir, last: HashMap::new(), kept: 0, bytes: 0 }
    }

    /// Keeps a picture, unless it equals the last one of the same source or the run's limit is reached.
    pub(super) fn add(
        &mut self,
        ms: u64,
        source: &str,
        caption: &str,
        picture: &RgbImage,
    ) -> io::Result<Kept> {
        let print = fingerprint(picture);
        if let Some((last, file)) = self.last.get(source)
            && *last == print
        {
            return Ok(Kept::Unchanged(file.clone()));
        }
        let (width, height) = picture.dimensions();
        let full = self.kept >= MAX_FRAMES || self.bytes >= MAX_BYTES;
        if full || width == 0 || height == 0 || width > MAX_SIDE || height > MAX_SIDE {
            return Ok(Kept::Full);
        }
        let png = encode(picture)?;
        let stem = format!("{:04}.{:03}-{}", ms / 1000, ms % 1000, words::file_word(source));
        let mut name = format!("{stem}.png");
        // two sources may share a word, and two pictures a millisecond
        if self.dir.join(&name).exists() {
            name = format!("{stem}-{}.png", self.kept);
        }
        write_atomic(&self.dir.join(&name), &png)?;
        let file = format!("frames/{name}");
        self.last.insert(source.to_owned(), (print, file.clone()));
        self.kept += 1;
        self.bytes += png.len() as u64;
        Ok(Kept::New(Frame {
            file,
            source: words::clean(source),
            width,
            height,
            caption: words::clean(caption),
        }))
    }
}

/// A number that differs when a pixel differs.
fn fingerprint(picture: &RgbImage) -> u64 {
    let mut hasher = DefaultHasher::new();
    picture.dimensions().hash(&mut hasher);
    picture.as_raw().hash(&mut hasher);
    hasher.finish()
}

/// PNG bytes, by the quick way: a report is looked at once, and a slow encoder holds the run up.
pub(crate) fn encode(picture: &RgbImage) -> io::Result<Vec<u8>> {
    let mut png = Vec::new();
    PngEncoder::new_with_quality(&mut png, CompressionType::Fast, FilterType::Adaptive)
        .write_image(picture.as_raw(), picture.width(), picture.height(), ExtendedColorType::Rgb8)
        .map_err(io::Error::other)?;
    Ok(png)
}
