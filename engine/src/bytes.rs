//! Comparing bytes where a loop over them, or a call, would take as long as everything else about a lookup.
//!
//! # The access rule
//!
//! No memory is touched but through references: what is unsafe here are instructions that not every processor has, and only
//! those are used that every processor of the architecture has.

/// One bit for each of the bytes that are equal to `byte`.
#[cfg(target_arch = "x86_64")]
#[inline]
pub(crate) fn equal(bytes: &[u8; 16], byte: u8) -> u32 {
    use std::arch::x86_64::{__m128i, _mm_cmpeq_epi8, _mm_movemask_epi8, _mm_set1_epi8};
    let bytes: __m128i = zerocopy::transmute!(*bytes);
    // SAFETY: values in, values out; all that these need is SSE2, which every processor of this architecture has.
    unsafe { _mm_movemask_epi8(_mm_cmpeq_epi8(bytes, _mm_set1_epi8(byte as i8))) as u32 }
}

/// One bit for each of the bytes that are equal to `byte`.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn equal(bytes: &[u8; 16], byte: u8) -> u32 {
    bytes.iter().rev().fold(0, |bits, other| bits << 1 | u32::from(*other == byte))
}

/// Whether one of the bytes is `byte`.
#[inline]
pub(crate) fn has(bytes: &[u8], byte: u8) -> bool {
    let (chunks, rest) = bytes.as_chunks::<16>();
    let found = chunks.iter().fold(0, |found, chunk| found | equal(chunk, byte));
    found != 0 || rest.contains(&byte)
}

/// Whether both are the same. Most keys have 8 to 16 bytes: the first eight and the last eight are all of them.
#[inline]
pub(crate) fn same(one: &[u8], other: &[u8]) -> bool {
    let word = |bytes: Option<&[u8; 8]>| bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes));
    let ends = |bytes: &[u8]| (word(bytes.first_chunk()), word(bytes.last_chunk()));
    match one.len() {
        8..=16 => one.len() == other.len() && ends(one) == ends(other),
        _ => one == other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn as_slices_are(one in proptest::collection::vec(0u8..2, 0..20), other in proptest::collection::vec(0u8..2, 0..20)) {
            prop_assert_eq!(same(&one, &other), one == other);
            prop_assert!(same(&one, &one.clone()));
            for at in 0..one.len() {
                let mut changed = one.clone();
                changed[at] ^= 1;
                prop_assert!(!same(&one, &changed) && !same(&changed, &one));
            }
        }

        #[test]
        fn as_one_by_one(bytes in proptest::collection::vec(0u8..20, 0..60), byte in 0u8..20) {
            prop_assert_eq!(has(&bytes, byte), bytes.contains(&byte));
            if let Some(chunk) = bytes.first_chunk() {
                let bits = (0..16).filter(|&at| chunk[at] == byte).fold(0, |bits, at| bits | 1 << at);
                prop_assert_eq!(equal(chunk, byte), bits);
            }
        }
    }
}
