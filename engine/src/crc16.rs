//! CRC16 (XMODEM: polynomial 0x1021, start 0, not reflected) and the hash-tag rule of Redis Cluster.
//!
//! Slice-by-8: eight tables let eight bytes be folded per step, about four times faster than one byte at a time.

use crate::bytes;
use crate::types::SLOTS;

const POLYNOMIAL: u16 = 0x1021;
const TABLES: [[u16; 256]; 8] = tables();

const _: () = assert!(SLOTS.is_power_of_two(), "a slot is the CRC's low bits");

const fn tables() -> [[u16; 256]; 8] {
    let mut tables = [[0u16; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = (byte as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000 != 0 { (crc << 1) ^ POLYNOMIAL } else { crc << 1 };
            bit += 1;
        }
        tables[0][byte] = crc;
        byte += 1;
    }
    let mut table = 1;
    while table < 8 {
        let mut byte = 0;
        while byte < 256 {
            let before = tables[table - 1][byte];
            tables[table][byte] = (before << 8) ^ tables[0][(before >> 8) as usize];
            byte += 1;
        }
        table += 1;
    }
    tables
}

/// CRC16/XMODEM of `bytes`.
#[inline]
pub fn crc16(bytes: &[u8]) -> u16 {
    let mut crc = 0u16;
    let (chunks, rest) = bytes.as_chunks::<8>();
    for chunk in chunks {
        let [high, low] = crc.to_be_bytes();
        crc = TABLES[7][(chunk[0] ^ high) as usize]
            ^ TABLES[6][(chunk[1] ^ low) as usize]
            ^ TABLES[5][chunk[2] as usize]
            ^ TABLES[4][chunk[3] as usize]
            ^ TABLES[3][chunk[4] as usize]
            ^ TABLES[2][chunk[5] as usize]
            ^ TABLES[1][chunk[6] as usize]
            ^ TABLES[0][chunk[7] as usize];
    }
    for &byte in rest {
        crc = (crc << 8) ^ TABLES[0][((crc >> 8) as u8 ^ byte) as usize];
    }
    crc
}

/// The part of a key that decides its slot: what stands between the first `{` and the next `}`, if that is not empty.
pub fn hash_tag(key: &[u8]) -> &[u8] {
    let Some(open) = key.iter().position(|&byte| byte == b'{') else { return key };
    let after = &key[open + 1..];
    match after.iter().position(|&byte| byte == b'}') {
        None | Some(0) => key,
        Some(length) => &after[..length],
    }
}

/// The number of a key's slot.
#[inline]
pub(crate) fn key_hash_slot(key: &[u8]) -> u16 {
    (if bytes::has(key, b'{') { crc_of_tag(key) } else { crc16(key) }) & (SLOTS - 1)
}

/// Most keys have no tag.
#[cold]
fn crc_of_tag(key: &[u8]) -> u16 {
    crc16(hash_tag(key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The CRC by its definition, bit by bit.
    fn crc16_by_bits(bytes: &[u8]) -> u16 {
        let mut crc = 0u16;
        for &byte in bytes {
            crc ^= u16::from(byte) << 8;
            for _ in 0..8 {
                crc = if crc & 0x8000 != 0 { (crc << 1) ^ POLYNOMIAL } else { crc << 1 };
            }
        }
        crc
    }

    #[test]
    fn known_values() {
        assert_eq!(crc16(b""), 0);
        assert_eq!(crc16(b"123456789"), 0x31C3);
        assert_eq!(key_hash_slot(b"foo"), 12182);
        assert_eq!(key_hash_slot(b"bar"), 5061);
        assert_eq!(key_hash_slot(b"hello"), 866);
    }

    #[test]
    fn hash_tags_as_in_redis_cluster() {
        assert_eq!(key_hash_slot(b"{user1000}.following"), key_hash_slot(b"{user1000}.followers"));
        assert_eq!(hash_tag(b"{user1000}.following"), b"user1000");
        assert_eq!(hash_tag(b"foo{}{bar}"), b"foo{}{bar}", "an empty tag means the whole key");
        assert_eq!(hash_tag(b"foo{{bar}}zap"), b"{bar");
        assert_eq!(hash_tag(b"foo{bar}{zap}"), b"bar");
        assert_eq!(hash_tag(b"foo{bar"), b"foo{bar");
        assert_eq!(hash_tag(b"{}"), b"{}");
        assert_eq!(hash_tag(b""), b"");
    }

    proptest! {
        #[test]
        fn agrees_with_the_definition(bytes in proptest::collection::vec(prop_oneof![9 => any::<u8>(), 1 => b'z'..=b'~'], 0..200)) {
            prop_assert_eq!(crc16(&bytes), crc16_by_bits(&bytes));
            prop_assert_eq!(key_hash_slot(&bytes), crc16_by_bits(hash_tag(&bytes)) % SLOTS);
        }
    }
}
