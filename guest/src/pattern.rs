//! The test picture: painted by the guest on a card's own connector, expected by the harness on the card's output.
//!
//! It is a function of (seed, width, height) alone. Every run takes a new seed, so that a frame left over from
//! an earlier run, a console or firmware cannot pass. Each block has a random colour and an edge in the inverted
//! colour: a picture that is shifted by one pixel, scaled, or has its channels swapped differs as well. Flat
//! blocks keep the PNG of a 1280x800 frame near 30 KB.

/// Edge length of a block in pixels.
pub const BLOCK: u32 = 16;

/// A picture that both sides can compute, pixel by pixel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pattern {
    seed: u64,
    width: u32,
    height: u32,
}

/// How a frame differs from the pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Difference {
    /// The frame has another size or is not `width * height * 3` bytes long.
    Size {
        /// Width and height of the pattern.
        expected: (u32, u32),
        /// Width and height of the frame.
        found: (u32, u32),
    },
    /// Some pixels have another colour.
    Pixels {
        /// How many.
        wrong: u64,
        /// Position (x, y) of the first one in reading order.
        first: (u32, u32),
        /// Its colour (red, green, blue) in the pattern.
        expected: [u8; 3],
        /// Its colour (red, green, blue) in the frame.
        found: [u8; 3],
    },
}

impl Pattern {
    /// The picture of `width` by `height` pixels that belongs to `seed`.
    #[must_use]
    pub fn new(seed: u64, width: u32, height: u32) -> Self {
        Self { seed, width, height }
    }

    /// The seed it was made from.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Width in pixels.
    #[must_use]
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Height in pixels.
    #[must_use]
    pub fn height(&self) -> u32 {
        self.height
    }

    /// Colour (red, green, blue) of the pixel at column `x`, row `y`; defined outside the picture, too.
    #[must_use]
    pub fn pixel(&self, x: u32, y: u32) -> [u8; 3] {
        let colour = self.block_colour(x / BLOCK, y / BLOCK);
        if x.is_multiple_of(BLOCK) || y.is_multiple_of(BLOCK) { invert(colour) } else { colour }
    }

    /// Row `y` as XRGB8888 in memory order (blue, green, red, 0), `width * 4` bytes.
    #[must_use]
    pub fn row_xrgb8888(&self, y: u32) -> Vec<u8> {
        let mut row = Vec::with_capacity(self.width as usize * 4);
        self.for_row(y, |[r, g, b]| row.extend_from_slice(&[b, g, r, 0]));
        row
    }

    /// Row `y` as red, green, blue bytes, `width * 3` of them.
    #[must_use]
    pub fn row_rgb(&self, y: u32) -> Vec<u8> {
        let mut row = Vec::with_capacity(self.width as usize * 3);
        self.for_row(y, |colour| row.extend_from_slice(&colour));
        row
    }

    /// Compares a frame of `width` by `height` pixels, given as red, green, blue bytes row by row without padding.
    /// `None` means equal in every pixel.
    #[must_use]
    pub fn difference(&self, width: u32, height: u32, rgb: &[u8]) -> Option<Difference> {
        let bytes = u64::from(width) * u64::from(height) * 3;
        if (width, height) != (self.width, self.height) || rgb.len() as u64 != bytes {
            return Some(Difference::Size { expected: (self.width, self.height), found: (width, height) });
        }
        let mut wrong = 0_u64;
        let mut first = None;
        for (y, row) in (0..height).zip(rgb.chunks_exact((width as usize * 3).max(1))) {
            let expected = self.row_rgb(y);
            if row == expected {
                continue;
            }
            for ((x, found), expected) in (0..width).zip(row.chunks_exact(3)).zip(expected.chunks_exact(3)) {
                if found != expected {
                    wrong += 1;
                    first.get_or_insert(((x, y), triple(expected), triple(found)));
                }
            }
        }
        first.map(|(first, expected, found)| Difference::Pixels { wrong, first, expected, found })
    }

    /// Calls `put` for every pixel of row `y` from left to right; one hash per block instead of one per pixel,
    /// because the guest may be an emulated machine inside an emulated machine.
    fn for_row(&self, y: u32, mut put: impl FnMut([u8; 3])) {
        let edge_row = y.is_multiple_of(BLOCK);
        for start in (0..self.width).step_by(BLOCK as usize) {
            let colour = self.block_colour(start / BLOCK, y / BLOCK);
            let inner = if edge_row { invert(colour) } else { colour };
            put(invert(colour));
            for _ in start + 1..self.width.min(start.saturating_add(BLOCK)) {
                put(inner);
            }
        }
    }

    fn block_colour(&self, column: u32, row: u32) -> [u8; 3] {
        let size = u64::from(self.width) << 32 | u64::from(self.height);
        let place = u64::from(column) << 32 | u64::from(row);
        let mixed = mix(mix(mix(self.seed) ^ size) ^ place);
        let [r, g, b, ..] = mixed.to_le_bytes();
        [r, g, b]
    }
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Size { expected: (ew, eh), found: (w, h) } => {
                write!(f, "the frame is {w}x{h}, the pattern is {ew}x{eh}")
            }
            Self::Pixels { wrong, first: (x, y), expected: [er, eg, eb], found: [r, g, b] } => write!(
                f,
                "wrong pixels: {wrong}, the first one at ({x}, {y}): \
                 #{r:02x}{g:02x}{b:02x} instead of #{er:02x}{eg:02x}{eb:02x}"
            ),
        }
    }
}

/// Finaliser of splitmix64: every input bit reaches every output bit.
fn mix(value: u64) -> u64 {
    let z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn invert(colour: [u8; 3]) -> [u8; 3] {
    colour.map(|channel| !channel)
}

fn triple(bytes: &[u8]) -> [u8; 3] {
    [bytes[0], bytes[1], bytes[2]]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn whole(pattern: Pattern) -> Vec<u8> {
        (0..pattern.height()).flat_map(|y| pattern.row_rgb(y)).collect()
    }

    #[test]
    fn the_picture_of_a_seed_never_changes() {
        // A host and a guest of different builds must agree: changing these colours needs a new protocol version.
        let pattern = Pattern::new(43, 1280, 800);
        let hex = |[r, g, b]: [u8; 3]| format!("{r:02x}{g:02x}{b:02x}");
        let places = [(0, 0), (1, 1), (1279, 799)].map(|(x, y)| hex(pattern.pixel(x, y)));
        insta::assert_snapshot!(places.join(" "), @"6d091f 92f6e0 82e551");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        #[test]
        fn rows_and_pixels_agree(seed: u64, width in 1_u32..100, height in 1_u32..60) {
            let pattern = Pattern::new(seed, width, height);
            for y in 0..height {
                let (rgb, xrgb) = (pattern.row_rgb(y), pattern.row_xrgb8888(y));
                prop_assert_eq!((rgb.len(), xrgb.len()), (width as usize * 3, width as usize * 4));
                for x in 0..width {
                    let [r, g, b] = pattern.pixel(x, y);
                    prop_assert_eq!(&rgb[x as usize * 3..][..3], &[r, g, b]);
                    prop_assert_eq!(&xrgb[x as usize * 4..][..4], &[b, g, r, 0]);
                }
            }
        }

        #[test]
        fn the_same_seed_is_the_same_picture(seed: u64) {
            let pattern = Pattern::new(seed, 320, 200);
            prop_assert_eq!(pattern.difference(320, 200, &whole(Pattern::new(seed, 320, 200))), None);
        }

        #[test]
        fn another_seed_differs_in_nine_of_ten_blocks(a: u64, b: u64) {
            prop_assume!(a != b);
            let (a, b) = (Pattern::new(a, 640, 480), Pattern::new(b, 640, 480));
            let blocks = (0..640 / BLOCK).flat_map(|x| (0..480 / BLOCK).map(move |y| (x * BLOCK + 1, y * BLOCK + 1)));
            let (mut all, mut differ) = (0, 0);
            for (x, y) in blocks {
                all += 1;
                differ += u32::from(a.pixel(x, y) != b.pixel(x, y));
            }
            prop_assert!(differ * 10 > all * 9, "{} of {}", differ, all);
        }

        #[test]
        fn a_shifted_picture_is_found(seed: u64, by in 1_usize..40) {
            let pattern = Pattern::new(seed, 64, 48);
            let mut frame = whole(pattern);
            frame.rotate_left(by * 3);
            prop_assert!(pattern.difference(64, 48, &frame).is_some());
        }

        #[test]
        fn any_frame_is_compared_without_panic(
            seed: u64, width in 0_u32..50, height in 0_u32..50,
            frame in proptest::collection::vec(any::<u8>(), 0..3000),
        ) {
            prop_assert!(Pattern::new(seed, 20, 20).difference(width, height, &frame).is_some());
        }
    }

    #[test]
    fn one_wrong_pixel_is_named() {
        let pattern = Pattern::new(7, 40, 30);
        let mut frame = whole(pattern);
        frame[(17 * 40 + 5) * 3] ^= 0xff;
        let text = pattern.difference(40, 30, &frame).map(|d| d.to_string()).unwrap_or_default();
        insta::assert_snapshot!(text, @"wrong pixels: 1, the first one at (5, 17): #3d76b4 instead of #c276b4");
        assert_eq!(
            pattern.difference(41, 30, &frame).map(|d| d.to_string()),
            Some("the frame is 41x30, the pattern is 40x30".into())
        );
    }

    #[test]
    fn empty_frames_are_equal_to_an_empty_picture() {
        assert_eq!(Pattern::new(1, 0, 0).difference(0, 0, &[]), None);
    }
}
