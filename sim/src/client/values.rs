//! Values whose content says which write they are of, and that nothing of them is missing.

/// Filler bytes are modulo this.
const PERIOD: usize = 251;
/// From one filler byte to the next.
const STEP: usize = 7;

/// Fillers one after the other, from zero on: any value's filler is this from some place on, over and over. A run spends much
/// of its time on values, so that they are copied and compared in pieces.
const FILLERS: [u8; PERIOD] = {
    let mut fillers = [0; PERIOD];
    let mut at = 0;
    while at < PERIOD {
        fillers[at] = (at * STEP % PERIOD) as u8;
        at += 1;
    }
    fillers
};

/// Where in [`FILLERS`] each of them is.
const PLACES: [u8; PERIOD] = {
    let mut places = [0; PERIOD];
    let mut at = 0;
    while at < PERIOD {
        places[FILLERS[at] as usize] = at as u8;
        at += 1;
    }
    places
};

/// The bytes of a write's value: its number, and filler up to a length that follows from it.
pub fn encode(number: u64, bytes: usize) -> Vec<u8> {
    let mut value = format!("{number}:").into_bytes();
    let missing = bytes.saturating_sub(value.len());
    value.reserve_exact(missing);
    for piece in filler(number, value.len(), missing) {
        value.extend_from_slice(piece);
    }
    value
}

/// The number of the write that these bytes are of; `None` if no write has written them.
pub fn decode(value: &[u8]) -> Option<u64> {
    let digits = value.iter().position(|&byte| byte == b':')?;
    let number = std::str::from_utf8(&value[..digits]).ok()?.parse().ok()?;
    let mut rest = &value[digits + 1..];
    for piece in filler(number, digits + 1, rest.len()) {
        rest = rest.strip_prefix(piece)?;
    }
    Some(number)
}

/// So many bytes of a write's filler, from the value's `at`th byte on, in pieces.
fn filler(number: u64, at: usize, bytes: usize) -> impl Iterator<Item = &'static [u8]> {
    static ALL: [u8; PERIOD] = FILLERS;
    let first = number.wrapping_mul(31).wrapping_add((at * STEP) as u64) % PERIOD as u64;
    let mut from = usize::from(PLACES[first as usize]);
    let mut missing = bytes;
    std::iter::from_fn(move || {
        let piece = &ALL[from..PERIOD.min(from + missing)];
        (from, missing) = (0, missing - piece.len());
        (!piece.is_empty()).then_some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filler_follows_from_number_and_place() {
        for (number, bytes) in [(0, 600), (9, 3), (77, 260), (1 << 40, 1_000)] {
            let value = encode(number, bytes);
            let digits = number.to_string().len();
            let expected = |at: usize| ((number.wrapping_mul(31) + at as u64 * 7) % 251) as u8;
            assert_eq!(value.len(), bytes.max(digits + 1));
            assert!((digits + 1..value.len()).all(|at| value[at] == expected(at)), "write {number}");
        }
    }

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
