//! What an encoder made, read as far as an answer is known: the parts of one H.264 picture and the size that it says.
//!
//! Names and order of the fields are those of ITU-T H.264, sections 7.3 and 7.4 and annex B.

use std::borrow::Cow;

/// One picture that stands for itself.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Picture<'a> {
    /// Visible size.
    pub(crate) width: u64,
    pub(crate) height: u64,
    /// Its slices, which hold all that is seen.
    pub(crate) slices: Vec<&'a [u8]>,
}

impl Picture<'_> {
    /// Bytes of all slices.
    pub(crate) fn bytes(&self) -> usize {
        self.slices.iter().map(|slice| slice.len()).sum()
    }
}

// nal_unit_type
const SLICE_IDR: u8 = 5;
const SEI: u8 = 6;
const SEQUENCE: u8 = 7;
const PARAMETERS: u8 = 8;
const DELIMITER: u8 = 9;
const FILLER: u8 = 12;

/// Profiles whose sequence says more about colours.
const HIGH: &[u32] = &[100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135];

/// Reads a picture: a sequence parameter set, a picture parameter set, and IDR slices of intra macroblocks that refer
/// to them, with nothing else between them but what may be left out.
pub(crate) fn picture(bytes: &[u8]) -> Result<Picture<'_>, String> {
    let mut sets = Vec::new();
    let mut units = units(bytes).into_iter().filter(|unit| match kind(unit) {
        SEI | DELIMITER | FILLER => false,
        SEQUENCE | PARAMETERS if sets.contains(unit) => false, // the same once more
        SEQUENCE | PARAMETERS => {
            sets.push(*unit);
            true
        }
        _ => true,
    });
    let mut next = |wanted: u8, what: &str| match units.next() {
        Some(unit) if kind(unit) == wanted => Ok(Some(unit)),
        Some(unit) => Err(format!("unit of type {} where {what} must be", kind(unit))),
        None => Ok(None),
    };
    let Some(unit) = next(SEQUENCE, "a sequence parameter set")? else {
        return Err("no sequence parameter set".into());
    };
    let (sequence, width, height) = sequence(unit)?;
    let Some(unit) = next(PARAMETERS, "a picture parameter set")? else {
        return Err("no picture parameter set".into());
    };
    let mut bits = Bits::of(unit);
    let (parameters, refers) = (bits.number(), bits.number());
    bits.end()?;
    if refers != sequence {
        return Err(format!("the picture parameter set is for sequence {refers}, there is {sequence}"));
    }
    let mut slices = Vec::new();
    while let Some(unit) = next(SLICE_IDR, "an IDR slice")? {
        let mut bits = Bits::of(unit);
        let (_first, kind, refers) = (bits.number(), bits.number(), bits.number());
        bits.end()?;
        if ![2, 7].contains(&kind) {
            return Err(format!("a slice of type {kind} in an IDR picture"));
        }
        if refers != parameters {
            return Err(format!("a slice is for picture parameters {refers}, there are {parameters}"));
        }
        slices.push(unit);
    }
    if slices.is_empty() { Err("no IDR slice".into()) } else { Ok(Picture { width, height, slices }) }
}

/// `nal_unit_type`.
fn kind(unit: &[u8]) -> u8 {
    unit.first().map_or(0, |byte| byte & 0x1f)
}

/// The units between start codes, without the zeros that may follow one.
fn units(bytes: &[u8]) -> Vec<&[u8]> {
    let starts: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at..].starts_with(&[0, 0, 1])).collect();
    let ends = starts.iter().skip(1).copied().chain([bytes.len()]);
    let trimmed = |unit: &'_ [u8]| unit.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let unit = |(start, end): (&usize, usize)| {
        let unit = &bytes[start + 3..end.max(start + 3)];
        &unit[..trimmed(unit)]
    };
    starts.iter().zip(ends).map(unit).filter(|unit| !unit.is_empty()).collect()
}

/// Id and visible size of a sequence parameter set.
fn sequence(unit: &[u8]) -> Result<(u32, u64, u64), String> {
    let mut bits = Bits::of(unit);
    let profile = bits.take(8);
    bits.take(16); // constraints, level
    let id = bits.number();
    // without more words: 4:2:0 in one plane
    let (mut colours, mut separate) = (1, false);
    if HIGH.contains(&profile) {
        colours = bits.number();
        separate = colours == 3 && bits.flag();
        bits.number(); // depth of luma
        bits.number(); // depth of chroma
        bits.take(1);
        if bits.flag() {
            scaling(&mut bits, if colours == 3 { 12 } else { 8 });
        }
    }
    bits.number(); // log2 of the largest frame number
    match bits.number() {
        0 => drop(bits.number()),
        1 => {
            bits.take(1);
            bits.number();
            bits.number();
            for _ in 0..bits.number().min(255) {
                bits.number();
            }
        }
        _ => {}
    }
    bits.number(); // reference frames
    bits.take(1);
    let (columns, rows) = (u64::from(bits.number()) + 1, u64::from(bits.number()) + 1);
    let fields = 2 - u64::from(bits.take(1));
    bits.take(fields as u32); // one more for fields, and one for all
    let mut crop = [0_u64; 4];
    if bits.flag() {
        crop.fill_with(|| u64::from(bits.number()));
    }
    bits.end()?;
    let (across, down) = match colours {
        1 if !separate => (2, 2),
        2 if !separate => (2, 1),
        _ => (1, 1),
    };
    let width = (columns * 16).checked_sub(across * (crop[0] + crop[1]));
    let height = (rows * 16 * fields).checked_sub(down * fields * (crop[2] + crop[3]));
    let (Some(width), Some(height)) = (width, height) else {
        return Err("it crops more than there is".into());
    };
    Ok((id, width, height))
}

/// Skips scaling lists.
fn scaling(bits: &mut Bits<'_>, lists: usize) {
    for list in 0..lists {
        if !bits.flag() {
            continue;
        }
        let (mut last, mut next) = (8_i64, 8_i64);
        for _ in 0..if list < 6 { 16 } else { 64 } {
            if next != 0 {
                let coded = i64::from(bits.number());
                let change = if coded % 2 == 1 { coded / 2 + 1 } else { -(coded / 2) };
                next = (last + change).rem_euclid(256);
            }
            last = if next == 0 { last } else { next };
        }
    }
}

/// Bits of a unit after its first byte.
struct Bits<'a> {
    bytes: Cow<'a, [u8]>,
    at: usize,
}

/// Most bytes of a unit that are looked at: parameter sets and heads of slices are much shorter.
const HEAD: usize = 4096;

impl<'a> Bits<'a> {
    fn of(unit: &'a [u8]) -> Self {
        let unit = &unit[..unit.len().min(HEAD)];
        Self { bytes: unescaped(unit.get(1..).unwrap_or_default()), at: 0 }
    }

    /// So many bits; ones where none are left, which [`Bits::end`] tells.
    fn take(&mut self, count: u32) -> u32 {
        (0..count).fold(0, |value, _| {
            let bit = self.bytes.get(self.at / 8).map_or(1, |byte| byte >> (7 - self.at % 8) & 1);
            self.at += 1;
            value << 1 | u32::from(bit)
        })
    }

    fn flag(&mut self) -> bool {
        self.take(1) == 1
    }

    /// `ue(v)`; those with more than 31 bits are cut.
    fn number(&mut self) -> u32 {
        let zeros = (0..31).take_while(|_| !self.flag()).count() as u32;
        (1 << zeros) - 1 + self.take(zeros)
    }

    /// Whether all that was taken was there.
    fn end(&self) -> Result<(), String> {
        if self.at > self.bytes.len() * 8 { Err("a unit ends early".into()) } else { Ok(()) }
    }
}

/// Without the bytes that keep start codes out of a unit.
fn unescaped(bytes: &[u8]) -> Cow<'_, [u8]> {
    if !bytes.windows(3).any(|three| three == [0, 0, 3]) {
        return Cow::Borrowed(bytes);
    }
    let mut zeros = 0;
    let kept = bytes.iter().filter(|byte| {
        let escape = zeros >= 2 && **byte == 3;
        zeros = if **byte == 0 { zeros + 1 } else { 0 };
        !escape
    });
    Cow::Owned(kept.copied().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Writes what [`Bits`] reads.
    #[derive(Default)]
    struct Writer {
        bits: Vec<bool>,
    }

    impl Writer {
        fn put(mut self, value: u32, count: u32) -> Self {
            self.bits.extend((0..count).rev().map(|bit| value >> bit & 1 == 1));
            self
        }

        fn number(self, value: u32) -> Self {
            let length = (value + 1).ilog2();
            self.put(0, length).put(value + 1, length + 1)
        }

        /// A unit with its start code and the bytes that keep start codes out of it.
        fn unit(mut self, kind: u8) -> Vec<u8> {
            self.bits.push(true);
            let byte = |eight: &[bool]| (0..8).fold(0, |b, n| b << 1 | u8::from(eight.get(n) == Some(&true)));
            let mut unit = vec![0, 0, 0, 1, 0x60 | kind];
            let mut zeros = 0;
            for byte in self.bits.chunks(8).map(byte) {
                if zeros == 2 && byte <= 3 {
                    unit.push(3);
                    zeros = 0;
                }
                zeros = if byte == 0 { zeros + 1 } else { 0 };
                unit.push(byte);
            }
            unit
        }
    }

    /// A sequence of the main profile with number 1.
    fn main_sequence(columns: u32, rows: u32, crop: Option<[u32; 4]>) -> Vec<u8> {
        let start = Writer::default().put(77, 8).put(0, 8).put(30, 8).number(1).number(0).number(2).number(1);
        let size = start.put(0, 1).number(columns - 1).number(rows - 1).put(1, 1).put(1, 1);
        match crop {
            None => size.put(0, 1),
            Some(sides) => sides.into_iter().fold(size.put(1, 1), Writer::number),
        }
        .put(0, 1)
        .unit(SEQUENCE)
    }

    fn parameters(id: u32, sequence: u32) -> Vec<u8> {
        Writer::default().number(id).number(sequence).put(0, 9).unit(PARAMETERS)
    }

    fn slice(kind: u32, parameters: u32) -> Vec<u8> {
        Writer::default().number(0).number(kind).number(parameters).put(0xaa, 32).unit(SLICE_IDR)
    }

    #[test]
    fn a_picture_says_its_size() {
        let parts =
            [main_sequence(40, 23, Some([0, 0, 0, 4])), parameters(3, 1), slice(7, 3), slice(2, 3)].concat();
        let picture = picture(&parts).unwrap();
        assert_eq!((picture.width, picture.height, picture.slices.len()), (640, 360, 2));
        assert_eq!(picture.bytes(), picture.slices[0].len() + picture.slices[1].len());
        let delimiter = Writer::default().put(0, 3).unit(DELIMITER);
        assert!(super::picture(&[delimiter, parts].concat()).is_ok());
        let sets = || [main_sequence(40, 23, None), parameters(3, 1)].concat();
        let twice = [sets(), sets(), slice(7, 3)].concat();
        assert_eq!(super::picture(&twice).map(|picture| picture.height), Ok(368));
        let other = [sets(), main_sequence(40, 22, None), slice(7, 3)].concat();
        assert!(super::picture(&other).is_err(), "of another size in the middle");
    }

    #[test]
    fn what_is_not_such_a_picture_is_told() {
        let told = |parts: &[Vec<u8>]| picture(&parts.concat()).unwrap_err();
        let sequence = || main_sequence(40, 23, None);
        insta::assert_snapshot!(told(&[]), @"no sequence parameter set");
        insta::assert_snapshot!(told(&[slice(7, 3)]), @"unit of type 5 where a sequence parameter set must be");
        insta::assert_snapshot!(told(&[sequence(), parameters(3, 1)]), @"no IDR slice");
        insta::assert_snapshot!(told(&[sequence(), parameters(3, 0), slice(7, 3)]), @"the picture parameter set is for sequence 0, there is 1");
        insta::assert_snapshot!(told(&[sequence(), parameters(3, 1), slice(5, 3)]), @"a slice of type 5 in an IDR picture");
        insta::assert_snapshot!(told(&[sequence(), parameters(3, 1), slice(7, 2)]), @"a slice is for picture parameters 2, there are 3");
        insta::assert_snapshot!(told(&[main_sequence(1, 1, Some([0, 9, 0, 0]))]), @"it crops more than there is");
        insta::assert_snapshot!(told(&[sequence()[..8].to_vec()]), @"a unit ends early");
    }

    /// Sequences as encoders write them: a high profile with an escape, and a cropped baseline one.
    #[test]
    fn sequences_of_real_encoders() {
        let of = |bytes: &[u8]| sequence(bytes).map(|(_, width, height)| (width, height));
        let high = [
            0x67, 0x64, 0x00, 0x1f, 0xac, 0xd9, 0x40, 0x50, 0x05, 0xbb, 0x01, 0x10, 0x00, 0x00, 0x03, 0x00,
            0x10, 0x00, 0x00, 0x03, 0x03, 0xc0, 0xf1, 0x83, 0x19, 0x60,
        ];
        assert_eq!(of(&high), Ok((1280, 720)));
        let baseline = [
            0x67, 0x42, 0xc0, 0x1e, 0xd9, 0x00, 0xb4, 0x35, 0xf9, 0xe1, 0x00, 0x00, 0x03, 0x00, 0x01, 0x00,
            0x00, 0x03, 0x00, 0x3c, 0x0f, 0x16, 0x2e, 0x48,
        ];
        assert_eq!(of(&baseline), Ok((720, 404)));
    }

    proptest! {
        #[test]
        fn any_size_is_read_back(columns in 1_u32..500, rows in 1_u32..500, crop in 0_u32..8) {
            let parts =
                [main_sequence(columns, rows, Some([crop, 0, 0, crop])), parameters(0, 1), slice(2, 0)].concat();
            let picture = picture(&parts).unwrap();
            prop_assert_eq!(picture.width, u64::from(columns * 16 - 2 * crop));
            prop_assert_eq!(picture.height, u64::from(rows * 16 - 2 * crop));
        }

        #[test]
        fn foreign_bytes_never_panic(bytes in proptest::collection::vec(
            prop_oneof![3 => Just(0_u8), 1 => Just(1), 1 => Just(0x67), 1 => Just(0x68), 1 => Just(0x65), 4 => any::<u8>()],
            0..300,
        ), cut in 0_usize..60, flip in any::<(usize, u8)>()) {
            let _ = picture(&bytes);
            let mut parts = [main_sequence(40, 23, None), parameters(3, 1), slice(7, 3)].concat();
            let place = flip.0 % parts.len();
            parts[place] ^= flip.1;
            parts.truncate(parts.len().saturating_sub(cut));
            let _ = picture(&parts);
            let mut high = vec![0, 0, 1, 0x67, 100, 0, 31];
            high.extend(bytes);
            let _ = picture(&high);
        }
    }
}
