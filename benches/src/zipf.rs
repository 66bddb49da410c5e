//! Ranks by Zipf's law: rank `k` of `n` is drawn with a probability proportional to `k^-s`. Exact, in constant time and
//! without a table.
//!
//! This is rejection-inversion (W. Hörmann, G. Derflinger: Rejection-inversion to generate variates from monotone discrete
//! distributions, 1996): the inverse of the integral of `h(x) = x^-s` gives a candidate, which is rejected as often as the
//! histogram lies below that integral's steps.

use crate::numbers::Numbers;

/// A law over the ranks from 1 to some number.
#[derive(Clone, Debug)]
pub struct Zipf {
    ranks: f64,
    exponent: f64,
    /// The integral up to 1.5, less what rank 1 has: where the draws begin.
    integral_first: f64,
    /// The integral up to half a rank behind the last: where they end.
    integral_last: f64,
    /// A candidate that is rounded up by no more than this is never rejected.
    sure: f64,
}

impl Zipf {
    /// The law over `ranks` ranks (1 at least) with this exponent (above 0). Panics otherwise.
    pub fn new(ranks: u64, exponent: f64) -> Zipf {
        assert!(ranks > 0 && exponent > 0.0, "a law needs ranks, and an exponent above 0");
        let mut law =
            Zipf { ranks: ranks as f64, exponent, integral_first: 0.0, integral_last: 0.0, sure: 0.0 };
        law.integral_first = law.integral(1.5) - 1.0;
        law.integral_last = law.integral(law.ranks + 0.5);
        law.sure = 2.0 - law.inverse(law.integral(2.5) - law.height(2.0));
        law
    }

    /// Draws a rank, from 1 up.
    pub fn rank(&self, numbers: &mut Numbers) -> u64 {
        loop {
            let area = self.integral_last + numbers.unit() * (self.integral_first - self.integral_last);
            let at = self.inverse(area);
            // Rounding errors may lead a little outside.
            let rank = (at + 0.5).floor().clamp(1.0, self.ranks);
            if rank - at <= self.sure || area >= self.integral(rank + 0.5) - self.height(rank) {
                return rank as u64;
            }
        }
    }

    fn height(&self, at: f64) -> f64 {
        (-self.exponent * at.ln()).exp()
    }

    /// The integral of the height: `(x^(1-s) - 1) / (1-s)`, or `ln x` where `s` is 1, without loss of digits near it.
    fn integral(&self, at: f64) -> f64 {
        let log = at.ln();
        exp_m1_over((1.0 - self.exponent) * log) * log
    }

    fn inverse(&self, area: f64) -> f64 {
        // Not below -1, where rounding errors may lead.
        let shifted = (area * (1.0 - self.exponent)).max(-1.0);
        (ln_1p_over(shifted) * area).exp()
    }
}

/// `(e^x - 1) / x`, by its series near 0.
fn exp_m1_over(x: f64) -> f64 {
    if x.abs() > 1e-8 { x.exp_m1() / x } else { 1.0 + x / 2.0 * (1.0 + x / 3.0) }
}

/// `ln(1 + x) / x`, by its series near 0.
fn ln_1p_over(x: f64) -> f64 {
    if x.abs() > 1e-8 { x.ln_1p() / x } else { 1.0 - x * (0.5 - x / 3.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pearson's sum over all ranks of a law, for this many draws.
    fn chi_squared(ranks: u64, exponent: f64, draws: u32) -> f64 {
        let (law, mut numbers) = (Zipf::new(ranks, exponent), Numbers::new(ranks));
        let mut seen = vec![0_u32; ranks as usize];
        for _ in 0..draws {
            seen[law.rank(&mut numbers) as usize - 1] += 1;
        }
        let weights: Vec<f64> = (1..=ranks).map(|rank| (rank as f64).powf(-exponent)).collect();
        let total: f64 = weights.iter().sum();
        let parts = seen.iter().zip(weights).map(|(seen, weight)| {
            let expected = weight / total * f64::from(draws);
            (f64::from(*seen) - expected).powi(2) / expected
        });
        parts.sum()
    }

    #[test]
    fn ranks_are_drawn_as_often_as_the_law_says() {
        // 99 degrees of freedom: a thousandth of all samples of the law are above 148.2.
        for exponent in [0.5, 0.99, 1.0, 1.5] {
            let sum = chi_squared(100, exponent, 400_000);
            assert!(sum < 148.2, "exponent {exponent}: {sum}");
        }
        // 1 degree of freedom: a thousandth is above 10.8.
        assert!(chi_squared(2, 0.99, 100_000) < 10.8);
    }

    #[test]
    fn the_test_tells_one_law_from_another() {
        let (law, mut numbers) = (Zipf::new(100, 0.99), Numbers::new(100));
        let firsts = (0..1_000_000).filter(|_| law.rank(&mut numbers) == 1).count();
        // 1 / (sum of k^-0.99 up to 100). With an exponent of 1 it were 0.1928: ten standard deviations off.
        let share = firsts as f64 / 1_000_000.0;
        assert!((share - 0.18887).abs() < 0.0016, "{share}");
    }

    #[test]
    fn all_ranks_are_within_the_law_also_of_very_many() {
        let mut numbers = Numbers::new(3);
        assert!((0..1_000).all(|_| Zipf::new(1, 0.99).rank(&mut numbers) == 1));
        let law = Zipf::new(10_000_000, 0.99);
        let drawn: Vec<u64> = (0..100_000).map(|_| law.rank(&mut numbers)).collect();
        assert!(drawn.iter().all(|rank| (1..=10_000_000).contains(rank)));
        // The upper half has about 4% of all draws.
        let upper = drawn.iter().filter(|rank| **rank > 5_000_000).count();
        assert!((3_000..5_500).contains(&upper), "{upper}");
    }
}
