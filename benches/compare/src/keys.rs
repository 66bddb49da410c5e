//! What all subjects are given: the same keys, the same values, in the same order.
//!
//! Invariants: keys are 16 hexadecimal digits of a bijection, so all differ; the value of each key begins with another
//! key, and following these goes through all keys once before it comes back. Keys are loaded in the order of their
//! numbers and read in another, so that what lies side by side in memory is not read side by side. Nothing here is
//! random between runs.

/// The length of a key.
pub const KEY_BYTES: usize = 16;
/// A key.
pub type Key = [u8; KEY_BYTES];

/// What fills a value behind the key that it begins with.
const FILLER: u8 = 0x5a;

/// Steele's and Vigna's mixing function (SplitMix64): a bijection of 64 bits.
fn mixed(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// The key with this number.
pub fn key(number: u64) -> Key {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let bits = mixed(number.wrapping_add(1));
    std::array::from_fn(|at| DIGITS[(bits >> (60 - 4 * at)) as usize & 15])
}

/// The first eight bytes of a value as a number. A sum of them proves that the values were read, and were the right ones.
pub fn first_word(value: &[u8]) -> u64 {
    value.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// Numbers that look random, and are the same in every run.
#[derive(Clone, Debug)]
pub struct Numbers {
    state: u64,
}

impl Numbers {
    /// A sequence of its own for every seed.
    pub fn new(seed: u64) -> Numbers {
        Numbers { state: mixed(seed ^ 0x6c6f_636b_6761_7465) }
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        ((u128::from(mixed(self.state)) * u128::from(bound)) >> 64) as u64
    }
}

/// The keys of a measurement and their values.
pub struct WorkingSet {
    value_bytes: usize,
    /// The number of the key that each key's value begins with.
    next: Vec<u32>,
    /// All keys, in the order in which their values lead from one to the next.
    chain: Vec<Key>,
}

impl WorkingSet {
    /// `keys` keys with values of `value_bytes`.
    pub fn new(keys: u32, value_bytes: usize) -> WorkingSet {
        let mut numbers = Numbers::new(u64::from(keys));
        let mut order: Vec<u32> = (0..keys).collect();
        for at in (1..order.len()).rev() {
            order.swap(at, numbers.below(at as u64 + 1) as usize);
        }
        let mut next = vec![0; order.len()];
        for (at, number) in order.iter().enumerate() {
            next[*number as usize] = order[(at + 1) % order.len()];
        }
        let chain = order.into_iter().map(|number| key(number.into())).collect();
        WorkingSet { value_bytes, next, chain }
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.chain.len()
    }

    /// All keys, each followed by the one that its value begins with.
    pub fn chain(&self) -> &[Key] {
        &self.chain
    }

    /// The sum of the first words of all values.
    pub fn sum_of_values(&self) -> u64 {
        let begin = |key: &Key| first_word(&key[..KEY_BYTES.min(self.value_bytes)]);
        self.chain.iter().map(begin).fold(0, u64::wrapping_add)
    }

    /// A value to write others into.
    pub fn blank(&self) -> Vec<u8> {
        vec![FILLER; self.value_bytes]
    }

    /// Turns a value that [`WorkingSet::blank`] made into the one that begins with this key.
    pub fn begin_with(&self, value: &mut [u8], next: &Key) {
        let bytes = KEY_BYTES.min(value.len());
        value[..bytes].copy_from_slice(&next[..bytes]);
    }

    /// Each key with the one that its value begins with, in the order of their numbers.
    pub fn pairs(&self) -> impl Iterator<Item = (Key, Key)> {
        (0..).zip(&self.next).map(|(number, next)| (key(number), key(u64::from(*next))))
    }

    /// As [`WorkingSet::pairs`], `count` of them, drawn at random.
    pub fn drawn_pairs(&self, seed: u64, count: usize) -> impl Iterator<Item = (Key, Key)> {
        let mut numbers = Numbers::new(seed);
        let drawn = move || {
            let number = numbers.below(self.next.len() as u64);
            (key(number), key(self.next[number as usize].into()))
        };
        std::iter::repeat_with(drawn).take(count)
    }
}
