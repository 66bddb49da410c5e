//! Durations of one kind, and their quantiles.

/// Durations in nanoseconds.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    all_ns: Vec<u64>,
}

impl Samples {
    /// Adds one duration.
    pub fn push(&mut self, ns: u64) {
        self.all_ns.push(ns);
    }

    /// Adds those of `other`.
    pub fn append(&mut self, other: Samples) {
        self.all_ns.extend(other.all_ns);
    }

    /// Each of them, in the order in which they came, in nanoseconds.
    pub fn into_ns(self) -> Vec<u64> {
        self.all_ns
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.all_ns.is_empty()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.all_ns.len()
    }

    /// The quantile `q` (0 to 1), by nearest rank, in microseconds. Panics when there is no sample.
    pub fn quantile_us(&self, q: f64) -> f64 {
        assert!(!self.all_ns.is_empty(), "a quantile of nothing");
        let mut sorted = self.all_ns.clone();
        sorted.sort_unstable();
        let rank = (q * sorted.len() as f64).ceil() as usize;
        sorted[rank.clamp(1, sorted.len()) - 1] as f64 / 1_000.0
    }

    /// The median, in microseconds.
    pub fn p50_us(&self) -> f64 {
        self.quantile_us(0.5)
    }

    /// The 99th percentile, in microseconds; with fewer than 100 samples that is the longest.
    pub fn p99_us(&self) -> f64 {
        self.quantile_us(0.99)
    }
}

impl FromIterator<u64> for Samples {
    fn from_iter<I: IntoIterator<Item = u64>>(all_ns: I) -> Samples {
        Samples { all_ns: all_ns.into_iter().collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_by_nearest_rank() {
        let mut samples = Samples::default();
        (1..=200).rev().for_each(|us| samples.push(us * 1_000));
        assert_eq!((samples.p50_us(), samples.p99_us(), samples.count()), (100.0, 198.0, 200));
        let mut one = Samples::default();
        one.push(7_000);
        assert_eq!((one.p50_us(), one.p99_us()), (7.0, 7.0));
        samples.append(one);
        assert_eq!(samples.quantile_us(0.0), 1.0);
    }
}
