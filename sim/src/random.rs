//! The random numbers of plans and workloads (splitmix64): each purpose draws from a stream of its own, so that leaving a
//! part of a plan out does not change what the others draw.

/// A stream of random numbers.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The stream of this seed that a label names.
    pub fn new(seed: u64, label: &str) -> Self {
        let stream = label.bytes().fold(0u64, |hash, byte| mix(hash ^ u64::from(byte)));
        Self(mix(seed ^ stream))
    }

    /// The next number.
    #[expect(clippy::should_implement_trait, reason = "it has no end, and is no iterator")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number from `low` to `high`, both included.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        debug_assert!(low <= high && high - low < u64::MAX);
        low + self.next() % (high - low + 1)
    }

    /// An index below `len`, which is not zero.
    pub fn index(&mut self, len: usize) -> usize {
        self.between(0, len as u64 - 1) as usize
    }

    /// True once in `n` times; never for 0.
    pub fn one_in(&mut self, n: u64) -> bool {
        n != 0 && self.next().is_multiple_of(n)
    }

    /// One of several.
    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.index(of.len())]
    }

    /// One of several, by weight.
    pub fn weighted<T: Copy>(&mut self, of: &[(u64, T)]) -> T {
        let mut at = self.between(0, of.iter().map(|(weight, _)| weight).sum::<u64>() - 1);
        for &(weight, what) in of {
            if at < weight {
                return what;
            }
            at -= weight;
        }
        unreachable!("the weights were summed")
    }
}

/// Scrambles a number.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
