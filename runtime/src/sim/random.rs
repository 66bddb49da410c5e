//! The seeded random numbers (splitmix64), and the hash of what was sent and written.

/// A stream of random numbers.
#[derive(Debug, Clone)]
pub(super) struct Random(u64);

impl Random {
    /// Stream number `stream` of a seed.
    pub(super) fn new(seed: u64, stream: u64) -> Self {
        Self(mix(seed ^ mix(stream.wrapping_add(0x9e37_79b9_7f4a_7c15))))
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number from `low` to `high`, both included.
    pub(super) fn between(&mut self, low: u64, high: u64) -> u64 {
        debug_assert!(low <= high);
        match (high - low).checked_add(1) {
            // The bias of the remainder is of no interest here.
            Some(count) => low + self.next() % count,
            None => self.next(),
        }
    }

    /// An index below `len`, which is not zero.
    pub(super) fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.between(0, len as u64 - 1)).expect("below a usize")
    }

    /// True once in `n` times; never for zero, for which nothing is drawn.
    pub(super) fn one_in(&mut self, n: u32) -> bool {
        n > 0 && self.next().is_multiple_of(u64::from(n))
    }
}

/// Scrambles a number.
pub(super) fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn word(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    word[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(word)
}

/// A hash of bytes, fast rather than strong: four lanes of 8 bytes at a time.
pub(super) fn hash(bytes: &[u8]) -> u64 {
    const FACTOR: u64 = 0x9fb2_1c65_1e98_df25;
    let mut lanes = [1, 2, 3, bytes.len() as u64];
    let mut blocks = bytes.chunks_exact(32);
    for block in &mut blocks {
        for (lane, eight) in lanes.iter_mut().zip(block.chunks_exact(8)) {
            *lane = (lane.rotate_left(23) ^ word(eight)).wrapping_mul(FACTOR);
        }
    }
    for (lane, eight) in lanes.iter_mut().zip(blocks.remainder().chunks(8)) {
        *lane = (lane.rotate_left(23) ^ word(eight)).wrapping_mul(FACTOR);
    }
    lanes.into_iter().fold(0, |hash: u64, lane| mix(hash.rotate_left(17) ^ lane))
}

/// Whether all bytes are zero.
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    let blocks = bytes.chunks_exact(64);
    let rest = blocks.remainder();
    let is_zero_block = |block: &[u8]| block.iter().fold(0, |all, byte| all | byte) == 0;
    blocks.into_iter().all(is_zero_block) && is_zero_block(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_sees_every_byte_and_the_length() {
        for len in [1, 7, 8, 9, 31, 32, 33, 64, 100] {
            let bytes = vec![0; len];
            assert_ne!(hash(&bytes), hash(&bytes[1..]), "length {len}");
            for at in 0..len {
                let mut other = bytes.clone();
                other[at] = 1;
                assert_ne!(hash(&bytes), hash(&other), "byte {at} of {len}");
                assert!(is_zero(&bytes) && !is_zero(&other), "byte {at} of {len}");
            }
        }
    }
}
