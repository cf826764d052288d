//! The known answers: what the kernels and shaders of this program must compute, computed by the processor.

/// What the kernel `no43_chain` and the shader `chain.comp` make of the word at `index`: 64 rounds, each of which needs
/// the one before.
pub(crate) fn chain(word: u32, index: u32, seed: u32) -> u32 {
    let step = index.wrapping_add(1_013_904_223);
    (0..64).fold(word ^ seed, |x, _| {
        let x = x.wrapping_mul(1_664_525).wrapping_add(step);
        x ^ (x >> 13)
    })
}

/// What the kernels `no43_fill` and `no43_verify` take for the word at `index`.
pub(crate) fn pattern(index: u64, seed: u32) -> u32 {
    let x = (index as u32).wrapping_mul(0x9E37_79B1); // the low half; the high one follows
    let x = x.wrapping_add(((index >> 32) as u32).wrapping_mul(0x85EB_CA6B)).wrapping_add(seed);
    let x = (x ^ (x >> 15)).wrapping_mul(0x2C1B_3C6D);
    x ^ (x >> 12)
}

/// `count` words of the pattern as they lie in memory.
pub(crate) fn pattern_words(count: usize, seed: u32) -> Vec<u32> {
    (0..count as u64).map(|index| pattern(index, seed)).collect()
}

/// Compares what a chain over `input` gave; the error names the first wrong word and how many there are.
pub(crate) fn compare_chain(input: &[u32], output: &[u32], seed: u32) -> Result<(), String> {
    let expected = (0_u32..).zip(input).map(|(index, word)| chain(*word, index, seed));
    compare(expected, output)
}

/// Compares words with the expected ones.
pub(crate) fn compare(expected: impl Iterator<Item = u32>, found: &[u32]) -> Result<(), String> {
    let mut wrong = expected.zip(found).enumerate().filter(|(_, (a, b))| a != *b);
    let Some((index, (expected, found))) = wrong.next() else { return Ok(()) };
    let more = wrong.count();
    Err(format!("word {index} is {found:#010x} instead of {expected:#010x}; {} words are wrong", more + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_fixed() {
        // computed once by a C program of the same formula
        assert_eq!([chain(0, 0, 0), chain(1, 2, 3)], [0x7621_4b5b, 0x968e_fc77]);
        assert_eq!([pattern(0, 43), pattern(1 << 33, 7)], [0x6895_af7d, 0x0297_86f0]);
    }

    #[test]
    fn a_wrong_word_is_named() {
        let input = pattern_words(100, 1);
        let mut output: Vec<u32> = (0..).zip(&input).map(|(i, w)| chain(*w, i, 9)).collect();
        assert_eq!(compare_chain(&input, &output, 9), Ok(()));
        output[40] ^= 1;
        output[50] = 0;
        let text = compare_chain(&input, &output, 9).unwrap_err();
        assert!(text.starts_with("word 40 is ") && text.ends_with("; 2 words are wrong"), "{text}");
    }
}
