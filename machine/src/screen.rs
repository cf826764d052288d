//! Pictures of emulated screens by `screendump`, and the recognition of QEMU's own placeholder.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use image::{ImageFormat, RgbImage};
use serde_json::json;

use crate::machine::Machine;
use crate::qmp::QmpError;

/// The largest picture that is read: 8192 x 8192 pixels.
const PICTURE_MAX: u64 = 8192 * 8192 * 3 + 64;

/// Why there is no picture.
#[derive(Debug, thiserror::Error)]
pub enum ScreenError {
    /// QEMU made none: there is no such device, or it has no screen.
    #[error("failed to take a picture of {device}: {why}")]
    Qmp {
        /// The device's id, or "the first screen".
        device: String,
        /// What QEMU said.
        why: QmpError,
    },
    /// The file could not be read.
    #[error("failed to read the picture {path}: {why}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        why: io::Error,
    },
    /// The file is no picture.
    #[error("failed to understand the picture {path}: {why}")]
    Picture {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

impl Machine {
    /// The picture on an emulated screen: of the display device with this id, or of the first screen. It is the device's
    /// own output; before the guest's driver starts it may be QEMU's placeholder (see [`is_placeholder`]).
    ///
    /// # Errors
    /// [`ScreenError`].
    pub fn screendump(&self, device: Option<&str>) -> Result<RgbImage, ScreenError> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        // PPM: QEMU's PNG encoder takes 10 times as long.
        let path = self.dirs().dir().join(format!("screen-{number}.ppm"));
        let mut arguments = json!({ "filename": path });
        if let Some(device) = device {
            arguments["device"] = json!(device);
        }
        let taken = self.qmp().raw("screendump", arguments);
        let picture = taken
            .map_err(|why| ScreenError::Qmp { device: device.unwrap_or("the first screen").to_owned(), why })
            .and_then(|_| read_ppm(path.clone()));
        let _ = fs::remove_file(&path);
        picture
    }
}

/// Turns a picture that QEMU wrote (PPM) into a PNG file, and says how large it is.
///
/// # Errors
/// [`ScreenError`].
pub fn save_as_png(raw: &std::path::Path, png: &std::path::Path) -> Result<(u32, u32), ScreenError> {
    let picture = read_ppm(raw.to_owned())?;
    let save = picture.save_with_format(png, ImageFormat::Png);
    save.map_err(|error| ScreenError::Picture { path: png.to_owned(), why: error.to_string() })?;
    Ok(picture.dimensions())
}

fn read_ppm(path: PathBuf) -> Result<RgbImage, ScreenError> {
    let size = fs::metadata(&path).map(|metadata| metadata.len());
    match size.and_then(|size| {
        if size <= PICTURE_MAX { fs::read(&path) } else { Err(io::ErrorKind::FileTooLarge.into()) }
    }) {
        Err(why) => Err(ScreenError::Read { path, why }),
        Ok(bytes) => match image::load_from_memory_with_format(&bytes, ImageFormat::Pnm) {
            Ok(picture) => Ok(picture.into_rgb8()),
            Err(error) => Err(ScreenError::Picture { path, why: error.to_string() }),
        },
    }
}

/// What QEMU itself writes onto a screen that the guest does not drive, cut out of QEMU's own pictures.
const PLACEHOLDERS: [&[u8]; 3] = [
    // "Guest has not initialized the display (yet)."
    include_bytes!("screen/not-initialized.png"),
    // "Display output is not active."
    include_bytes!("screen/not-active.png"),
    // "This VM has no graphic display device."
    include_bytes!("screen/no-device.png"),
];

/// Whether this is QEMU's own text on black, in any size, instead of something that a guest drew.
///
/// Everything but the text must be of one colour and the text itself must be QEMU's, dot by dot; so a guest's console that
/// merely holds the same words is not taken for it.
pub fn is_placeholder(picture: &RgbImage) -> bool {
    static KNOWN: OnceLock<Vec<Dots>> = OnceLock::new();
    let known = KNOWN.get_or_init(|| {
        let decode = |png: &&[u8]| {
            image::load_from_memory(png).expect("the embedded pictures should be good").into_rgb8()
        };
        PLACEHOLDERS.iter().map(decode).filter_map(|text| Dots::of(&text)).collect()
    });
    Dots::of(picture).is_some_and(|dots| known.contains(&dots))
}

/// The dots of a two-coloured picture, cut to where they are.
#[derive(Debug, PartialEq, Eq)]
struct Dots {
    width: u32,
    height: u32,
    lit: Vec<bool>,
}

impl Dots {
    /// `None` if the picture has less or more than two colours. The colour of the first pixel is the background.
    fn of(picture: &RgbImage) -> Option<Dots> {
        let back = picture.pixels().next()?;
        let front = picture.pixels().find(|pixel| *pixel != back)?;
        let (mut left, mut top, mut right, mut bottom) = (u32::MAX, u32::MAX, 0, 0);
        for (x, y, pixel) in picture.enumerate_pixels().filter(|(_, _, pixel)| *pixel != back) {
            if pixel != front {
                return None;
            }
            (left, top, right, bottom) = (left.min(x), top.min(y), right.max(x), bottom.max(y));
        }
        let lit = (top..=bottom)
            .flat_map(|y| (left..=right).map(move |x| (x, y)))
            .map(|(x, y)| picture.get_pixel(x, y) != back)
            .collect();
        Some(Dots { width: right - left + 1, height: bottom - top + 1, lit })
    }
}

#[cfg(test)]
mod tests;
