//! Values whose content says which write they are of, and that nothing of them is missing.

/// The bytes of a write's value: its number, and filler up to a length that follows from it.
pub fn encode(number: u64, bytes: usize) -> Vec<u8> {
    let mut value = format!("{number}:").into_bytes();
    while value.len() < bytes {
        value.push(filler(number, value.len()));
    }
    value
}

/// The number of the write that these bytes are of; `None` if no write has written them.
pub fn decode(value: &[u8]) -> Option<u64> {
    let digits = value.iter().position(|&byte| byte == b':')?;
    let number = std::str::from_utf8(&value[..digits]).ok()?.parse().ok()?;
    let whole = value.iter().enumerate().skip(digits + 1).all(|(at, &byte)| byte == filler(number, at));
    whole.then_some(number)
}

fn filler(number: u64, at: usize) -> u8 {
    (number.wrapping_mul(31).wrapping_add(at as u64 * 7) % 251) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_value_is_of_no_write() {
        let value = encode(77, 40);
        assert_eq!((value.len(), decode(&value)), (40, Some(77)));
        assert_eq!(decode(&encode(12_345, 0)), Some(12_345));
        for at in 0..value.len() {
            let mut damaged = value.clone();
            damaged[at] ^= 0x20;
            assert_eq!(decode(&damaged), None, "byte {at}");
        }
        assert_eq!(decode(b"77"), None);
    }
}
