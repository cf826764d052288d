//! The piece of work with NVIDIA's video encoder: pictures whose size and least amount of bytes are known.

use no43_guest::work::WorkResult;
use std::time::Instant;

use super::cuda::{with_card, wrong};
use super::{Stop, Task, answer, h264, metric};
use crate::native::nvenc::Encoder;

/// Size of the pictures: no multiple of 16 high, so that what the encoder says of it is more than a count of blocks.
const WIDTH: u32 = 640;
const HEIGHT: u32 = 360;

/// Side of the squares of one brightness that a patterned picture is made of.
const SQUARE: u32 = 8;

/// Least bytes of a patterned picture. Its 3600 squares have 200 levels each, of which the quantiser keeps at least
/// every twentieth; that cannot be said with less.
const LEAST: usize = 3600 * 3 / 8;

/// Three pictures, each encoded so that it stands for itself: one of a single grey, and two of other squares.
pub(super) fn frame(task: &Task, result: &mut WorkResult) -> Result<(), Stop> {
    with_card(task, result, |card, result| {
        let mut encoder = Encoder::open(card.object, WIDTH, HEIGHT)?;
        let grey = vec![128; (WIDTH * HEIGHT) as usize];
        let start = Instant::now();
        let mut encoded = Vec::new();
        for picture in [grey, squares(task.seed), squares(task.seed.wrapping_add(1))] {
            encoded.push(encoder.encode(&picture)?);
        }
        let time = start.elapsed().as_micros() as u64 / encoded.len() as u64;
        result.metrics.push(metric("time-per-frame", time, "us"));
        let bytes = encoded.iter().map(|bytes| bytes.len() as u64).sum();
        result.metrics.push(metric("encoded-bytes", bytes, "count"));
        compare(&encoded).map_err(wrong)
    })
}

/// A picture of squares, each of one brightness between 28 and 227.
fn squares(seed: u32) -> Vec<u8> {
    let level = |at: u32| {
        let (row, column) = (at / WIDTH / SQUARE, at % WIDTH / SQUARE);
        28 + (answer::pattern(u64::from(row * (WIDTH / SQUARE) + column), seed) % 200) as u8
    };
    (0..WIDTH * HEIGHT).map(level).collect()
}

/// Looks at what became of a grey picture and of two of squares.
fn compare(encoded: &[Vec<u8>]) -> Result<(), String> {
    let mut pictures = Vec::new();
    for (n, bytes) in encoded.iter().enumerate() {
        let told = |what: String| format!("frame {n} of {} bytes: {what}", bytes.len());
        let picture = h264::picture(bytes).map_err(told)?;
        let size = (picture.width, picture.height);
        if size != (u64::from(WIDTH), u64::from(HEIGHT)) {
            return Err(told(format!("{} x {} instead of {WIDTH} x {HEIGHT}", size.0, size.1)));
        }
        pictures.push(picture);
    }
    let [grey, one, other] = pictures.as_slice() else { return Err("not three frames".into()) };
    let sizes = (grey.bytes(), one.bytes(), other.bytes());
    if sizes.1.min(sizes.2) < LEAST || sizes.0 > sizes.1.min(sizes.2) / 4 {
        return Err(format!(
            "frames of one grey, and of two patterns, have {}, {} and {} bytes: the patterns need {LEAST} each, the \
             grey a quarter of that at most",
            sizes.0, sizes.1, sizes.2
        ));
    }
    // The heads of slices count frames; what follows is the picture.
    let tail =
        |picture: &h264::Picture<'_>| picture.slices.last().map(|slice| slice[slice.len() / 2..].to_vec());
    if tail(one) == tail(other) {
        return Err("frames of other patterns are equal".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_have_all_levels_and_differ() {
        let (one, other) = (squares(43), squares(44));
        assert_eq!(one.len(), 640 * 360);
        assert_eq!((one.iter().min(), one.iter().max()), (Some(&28), Some(&227)));
        assert_eq!((one[0], one[7], one[640 * 7 + 7]), (one[0], one[0], one[0]));
        let same = one.iter().zip(&other).filter(|(a, b)| a == b).count();
        assert!(same < one.len() / 50, "{same}");
    }
}
