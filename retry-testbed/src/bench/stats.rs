//! Medians, spreads and ratios.

/// What several rounds gave.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Spread {
    /// The value in the middle; of an even number, the mean of the two.
    pub(crate) median: f64,
    /// The smallest.
    pub(crate) min: f64,
    /// The largest.
    pub(crate) max: f64,
}

impl Spread {
    /// Of these values; zeros when there are none.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (Some(min), Some(max)) = (values.first(), values.last()) else {
            return Self::default();
        };
        let middle = &values[(values.len() - 1) / 2..=values.len() / 2];
        let median = (middle[0] + middle[middle.len() - 1]) / 2.0;
        Self { median, min: *min, max: *max }
    }

    /// The median of the ratios of two series, round by round: what swings slowly swings in both.
    pub(crate) fn ratio(values: &[f64], references: &[f64]) -> f64 {
        Self::of(values.iter().zip(references).map(|(value, reference)| value / reference)).median
    }

    /// The median of the differences of two series, round by round.
    pub(crate) fn difference(values: &[f64], references: &[f64]) -> f64 {
        Self::of(values.iter().zip(references).map(|(value, reference)| value - reference)).median
    }
}

#[cfg(test)]
mod tests {
    use super::Spread;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(Spread::of([3.0, 1.0, 2.0]), Spread { median: 2.0, min: 1.0, max: 3.0 });
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 8.0]).median, 3.0);
        assert_eq!(Spread::of([7.0]).median, 7.0);
        assert_eq!(Spread::of([]), Spread::default());
    }

    #[test]
    fn ratios_are_taken_round_by_round() {
        // The second round ran at half speed for both.
        let ratio = Spread::ratio(&[50.0, 25.0, 60.0], &[100.0, 50.0, 100.0]);
        assert!((ratio - 0.5).abs() < 1e-9);
    }

    #[test]
    fn differences_are_taken_round_by_round() {
        // In the second round something else took 100 from both.
        let difference = Spread::difference(&[15.0, 130.0, 18.0], &[10.0, 110.0, 14.0]);
        assert!((difference - 5.0).abs() < 1e-9);
    }
}
