//! Measuring several subjects in turns, and what to make of the rounds.
//!
//! A round goes through all subjects (A B C), and each round begins with another one (B C A): a disturbance that lasts
//! longer than a subject's part falls on all of them, and none always follows the same. The figure of a subject is its
//! median over the rounds. The ratio of two is the median of the ratios of each round's pair, not the ratio of the
//! medians: both of a pair were measured at nearly the same time.

use crate::failure::Failure;

/// What each subject came to in each round.
#[derive(Debug, Default)]
pub struct Rounds {
    taken: Vec<(&'static str, Vec<f64>)>,
}

impl Rounds {
    /// Measures `rounds` rounds. `each` is given a subject and the round; subjects that it returns nothing for do not take
    /// part.
    pub fn in_turns<S: ?Sized>(
        rounds: usize,
        subjects: &mut [(&'static str, Box<S>)],
        mut each: impl FnMut(&mut S, usize) -> Result<Option<f64>, Failure>,
    ) -> Result<Rounds, Failure> {
        let mut taken: Vec<_> = subjects.iter().map(|(name, _)| (*name, Vec::new())).collect();
        for round in 0..rounds {
            for turn in 0..subjects.len() {
                let at = (round + turn) % subjects.len();
                taken[at].1.extend(each(&mut *subjects[at].1, round)?);
            }
        }
        taken.retain(|(_, figures)| !figures.is_empty());
        Ok(Rounds { taken })
    }

    /// The subjects that took part.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.taken.iter().map(|(name, _)| *name)
    }

    /// The median of a subject, if it took part.
    pub fn median(&self, name: &str) -> Option<f64> {
        median(self.of(name)?.to_vec())
    }

    /// The median of the ratios of each round's pair, if both took part.
    pub fn ratio(&self, name: &str, to: &str) -> Option<f64> {
        let pairs = self.of(name)?.iter().zip(self.of(to)?);
        median(pairs.map(|(one, other)| one / other).collect())
    }

    fn of(&self, name: &str) -> Option<&[f64]> {
        self.taken.iter().find(|(taken, _)| *taken == name).map(|(_, figures)| figures.as_slice())
    }
}

/// The median; of an even number of figures the mean of the middle two.
pub fn median(mut figures: Vec<f64>) -> Option<f64> {
    figures.sort_by(f64::total_cmp);
    let (low, high) = (figures.len().checked_sub(1)? / 2, figures.len() / 2);
    Some((figures[low] + figures[high]) / 2.0)
}
