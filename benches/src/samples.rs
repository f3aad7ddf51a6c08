//! Samples of one variant, and how they are printed.

/// Figures of one variant, one sample a round.
#[derive(Default)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    /// Adds a round.
    pub(crate) fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    fn sorted(&self) -> Vec<f64> {
        let mut values = self.0.clone();
        values.sort_by(f64::total_cmp);
        values
    }

    /// Middle value, NaN without samples.
    pub(crate) fn median(&self) -> f64 {
        let values = self.sorted();
        values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
    }

    /// This less the other one, round by round.
    pub(crate) fn less(&self, other: &Samples) -> Samples {
        Samples(self.0.iter().zip(&other.0).map(|(value, other)| value - other).collect())
    }

    /// This over the other one, round by round.
    pub(crate) fn over(&self, other: &Samples) -> Samples {
        Samples(self.0.iter().zip(&other.0).map(|(value, other)| value / other).collect())
    }

    /// Sum of all rounds.
    pub(crate) fn sum(&self) -> f64 {
        self.0.iter().sum()
    }

    /// `min / median / max`.
    pub(crate) fn spread(&self) -> String {
        let values = self.sorted();
        match (values.first(), values.last()) {
            (Some(min), Some(max)) => format!("{min:9.2} {:9.2} {max:9.2}", self.median()),
            _ => "        -         -         -".to_owned(),
        }
    }

    /// True when there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
