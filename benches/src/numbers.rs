//! Numbers that look random and are the same in every run: what benches draw keys by.

/// A sequence of its own for every seed (SplitMix64, by Steele, Lea and Flood).
#[derive(Clone, Debug)]
pub struct Numbers {
    state: u64,
}

/// SplitMix64's output function: a bijection, so different numbers stay different.
pub fn mixed(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

impl Numbers {
    /// The sequence of a seed.
    pub fn new(seed: u64) -> Numbers {
        Numbers { state: mixed(seed) }
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed(self.state)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    /// A number from 0 to 1, without 1, of 53 bits.
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stay_below_their_bound_and_reach_all_of_it() {
        let mut numbers = Numbers::new(1);
        let mut seen = [0; 10];
        (0..10_000).for_each(|_| seen[numbers.below(10) as usize] += 1);
        assert!(seen.iter().all(|count| (800..1_200).contains(count)), "{seen:?}");
        assert!((0..10_000).all(|_| (0.0..1.0).contains(&numbers.unit())));
    }

    #[test]
    fn a_seed_has_one_sequence_and_each_another() {
        let first = |seed| Numbers::new(seed).below(u64::MAX);
        assert_eq!(first(7), first(7));
        assert_ne!(first(7), first(8));
    }
}
