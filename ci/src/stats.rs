//! Medians, and how sure they are.

/// The median; `None` of nothing.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    quantile(values, 0.5)
}

/// Quantile `q` (0 to 1) by linear interpolation; `None` of nothing.
pub(crate) fn quantile(values: &[f64], q: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().checked_sub(1)?;
    let at = q.clamp(0.0, 1.0) * last as f64;
    let (low, high) = (at.floor() as usize, at.ceil() as usize);
    Some(sorted[low] + (sorted[high] - sorted[low]) * (at - low as f64))
}

/// 95 % confidence interval of the median by bootstrap (2,000 resamples, the same ones in every run).
pub(crate) fn median_interval(values: &[f64]) -> Option<(f64, f64)> {
    if values.is_empty() {
        return None;
    }
    let mut random = Xorshift(0x9E37_79B9_7F4A_7C15);
    let mut medians = Vec::with_capacity(2000);
    let mut sample = vec![0.0; values.len()];
    for _ in 0..2000 {
        sample.fill_with(|| values[(random.next() % values.len() as u64) as usize]);
        medians.extend(median(&sample));
    }
    Some((quantile(&medians, 0.025)?, quantile(&medians, 0.975)?))
}

/// A small generator; the seed is fixed because a figure should not change when nothing was measured anew.
struct Xorshift(u64);

impl Xorshift {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_even_and_odd_numbers() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[]), None);
        assert_eq!(quantile(&[0.0, 10.0], 0.25), Some(2.5));
    }

    #[test]
    fn the_interval_holds_the_median_and_narrows_with_more_values() {
        let few: Vec<f64> = (0..10).map(f64::from).collect();
        let many: Vec<f64> = (0..1000).map(|i| f64::from(i) / 100.0).collect();
        let (low, high) = median_interval(&few).expect("values");
        assert!(low <= 4.5 && 4.5 <= high, "{low}..{high}");
        let (low2, high2) = median_interval(&many).expect("values");
        assert!(high2 - low2 < (high - low) / 2.0, "{low2}..{high2} against {low}..{high}");
        assert_eq!(median_interval(&[7.0]), Some((7.0, 7.0)));
        assert_eq!(median_interval(&[]), None);
    }

    #[test]
    fn the_interval_covers_the_true_median_about_as_often_as_it_says() {
        let mut random = Xorshift(42);
        let uniform = |r: &mut Xorshift| (r.next() >> 11) as f64 / (1u64 << 53) as f64;
        let covered = (0..100)
            .filter(|_| {
                let values: Vec<f64> = (0..40).map(|_| uniform(&mut random)).collect();
                median_interval(&values).is_some_and(|(low, high)| low <= 0.5 && 0.5 <= high)
            })
            .count();
        assert!((88..=100).contains(&covered), "{covered} of 100");
    }
}
