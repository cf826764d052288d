//! Pictures of the screen as PNG files: three bytes per pixel, rows as differences from the row above, packed by one fixed code.
//!
//! A desktop is mostly rows like the one above, so runs of one byte are all the packing that is needed; no library is linked for it.
//! After "Portable Network Graphics (PNG) Specification" and RFC 1950, 1951.

/// Longest run of one code.
const RUN: usize = 258;
/// Shortest one.
const SHORTEST: usize = 3;
/// First length, and further bits, of the codes 257 to 285 (RFC 1951, 3.2.5).
const LENGTHS: [(u16, u8); 29] = [
    (3, 0),
    (4, 0),
    (5, 0),
    (6, 0),
    (7, 0),
    (8, 0),
    (9, 0),
    (10, 0),
    (11, 1),
    (13, 1),
    (15, 1),
    (17, 1),
    (19, 2),
    (23, 2),
    (27, 2),
    (31, 2),
    (35, 3),
    (43, 3),
    (51, 3),
    (59, 3),
    (67, 4),
    (83, 4),
    (99, 4),
    (115, 4),
    (131, 5),
    (163, 5),
    (195, 5),
    (227, 5),
    (258, 0),
];

/// A picture of `width` × `height` pixels, three bytes (red, green, blue) each.
///
/// # Panics
/// Never: rows that are missing in `pixels` are black.
pub(crate) fn encode(width: u32, height: u32, pixels: &[u8]) -> Vec<u8> {
    let mut out = b"\x89PNG\r\n\x1a\n".to_vec();
    let mut header = [width.to_be_bytes(), height.to_be_bytes()].concat();
    header.extend([8, 2, 0, 0, 0]); // 8 bits, colours, the only methods that there are, no interlacing
    chunk(&mut out, *b"IHDR", &header);
    chunk(&mut out, *b"IDAT", &zlib(&rows(width as usize * 3, height as usize, pixels)));
    chunk(&mut out, *b"IEND", &[]);
    out
}

/// Rows with their filter in front: 2, the difference from the row above.
fn rows(length: usize, height: usize, pixels: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity((length + 1) * height);
    let row = |n: usize| pixels.get(n * length..(n + 1) * length);
    for n in 0..height {
        out.push(2);
        let above = n.checked_sub(1).and_then(row);
        let byte = |row: Option<&[u8]>, at: usize| row.map_or(0, |row| row[at]);
        out.extend((0..length).map(|at| byte(row(n), at).wrapping_sub(byte(above, at))));
    }
    out
}

fn chunk(out: &mut Vec<u8>, kind: [u8; 4], data: &[u8]) {
    out.extend((data.len() as u32).to_be_bytes());
    let from = out.len();
    out.extend(kind);
    out.extend(data);
    let sum = crc(&out[from..]);
    out.extend(sum.to_be_bytes());
}

fn crc(bytes: &[u8]) -> u32 {
    let table: Vec<u32> = (0..256_u32)
        .map(|n| (0..8).fold(n, |sum, _| if sum & 1 == 1 { 0xedb8_8320 ^ (sum >> 1) } else { sum >> 1 }))
        .collect();
    !bytes.iter().fold(u32::MAX, |sum, byte| table[usize::from(sum as u8 ^ byte)] ^ (sum >> 8))
}

fn zlib(data: &[u8]) -> Vec<u8> {
    let mut bits = Bits { out: vec![0x78, 0x01], held: 0, count: 0 };
    bits.put(0b011, 3); // the last block, by the fixed code
    let mut at = 0;
    while at < data.len() {
        bits.symbol(u16::from(data[at]));
        let mut more = data[at + 1..].iter().take_while(|byte| **byte == data[at]).count();
        at += 1;
        while more >= SHORTEST {
            let run = more.min(RUN);
            bits.run(run as u16);
            (at, more) = (at + run, more - run);
        }
    }
    bits.symbol(256);
    let mut out = bits.end();
    let (a, b) = data.iter().fold((1_u32, 0_u32), |(a, b), byte| {
        let a = (a + u32::from(*byte)) % 65_521;
        (a, (a + b) % 65_521)
    });
    out.extend((b << 16 | a).to_be_bytes());
    out
}

struct Bits {
    out: Vec<u8>,
    held: u32,
    count: u8,
}

impl Bits {
    /// Lowest bit first.
    fn put(&mut self, value: u16, count: u8) {
        self.held |= u32::from(value) << self.count;
        self.count += count;
        while self.count >= 8 {
            self.out.push(self.held as u8);
            self.held >>= 8;
            self.count -= 8;
        }
    }

    /// A word of the fixed code; its highest bit goes first.
    fn symbol(&mut self, symbol: u16) {
        let (code, count) = match symbol {
            0..=143 => (0x30 + symbol, 8),
            144..=255 => (0x190 + symbol - 144, 9),
            256..=279 => (symbol - 256, 7),
            _ => (0xc0 + symbol - 280, 8),
        };
        self.put(code.reverse_bits() >> (16 - count), count as u8);
    }

    /// The byte before, `length` times again.
    fn run(&mut self, length: u16) {
        let code = LENGTHS.iter().rposition(|(first, _)| *first <= length).unwrap_or_default();
        let (first, more) = LENGTHS[code];
        self.symbol(257 + code as u16);
        self.put(length - first, more);
        self.put(0, 5); // distance 1
    }

    fn end(mut self) -> Vec<u8> {
        if self.count > 0 {
            self.out.push(self.held as u8);
        }
        self.out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decoded(bytes: &[u8]) -> (u32, u32, Vec<u8>) {
        let picture =
            image::load_from_memory_with_format(bytes, image::ImageFormat::Png).unwrap().into_rgb8();
        (picture.width(), picture.height(), picture.into_raw())
    }

    #[test]
    fn a_plain_desktop_is_small() {
        let pixels = [0x1a, 0x5f, 0xb4].repeat(1920 * 1080);
        let png = encode(1920, 1080, &pixels);
        assert!(png.len() < 60_000, "{}", png.len());
        assert_eq!(decoded(&png), (1920, 1080, pixels));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_picture_is_what_another_program_reads(
            width in 1_u32..40,
            height in 1_u32..20,
            bytes in proptest::collection::vec(prop_oneof![Just(0_u8), Just(0xff), any::<u8>()], 2400)
        ) {
            let pixels = &bytes[..(width * height * 3) as usize];
            let read = decoded(&encode(width, height, pixels));
            prop_assert_eq!(read, (width, height, pixels.to_vec()));
        }
    }
}
