//! Operations that read a key and write it, in one step under its slot's lock.
//!
//! Invariant: what is written follows from what is there at that moment; no other write of the slot comes between.
//! A refusal, for the value's sake too, writes nothing.

use std::borrow::Cow;

use crate::error::OpError;
use crate::keyspace::{Edit, Keyspace, check_value};
use crate::options::{Condition, Expiry, SetOptions, SetOutcome};
use crate::types::VALUE_BYTES_MAX;
use crate::value::Receipt;

impl Keyspace {
    /// Gives a key the value `new` if it has exactly the value `expected`; `None`: if it is not there. The outcome has what
    /// was there, so that a caller whose expectation was wrong knows better without another call.
    ///
    /// As with every set, the key has no deadline afterwards. To keep it, use [`set_with`](Keyspace::set_with) and
    /// [`Expiry::Keep`]; to see writes of the same value, too, [`Condition::IfVersion`].
    pub fn compare_and_set(
        &self,
        key: &[u8],
        expected: Option<&[u8]>,
        new: &[u8],
    ) -> Result<SetOutcome, OpError> {
        let condition = expected.map_or(Condition::IfAbsent, Condition::IfEqual);
        self.set_with(key, new, &SetOptions { condition, expiry: Expiry::Clear, return_previous: true })
    }

    /// Adds `by` to the integer that a key has as decimal text, and returns the sum. A key that is not there has 0. A
    /// deadline stays.
    pub fn increment(&self, key: &[u8], by: i64) -> Result<(i64, Receipt), OpError> {
        let mut sum = Ok(0);
        let outcome = self.edit(key, Expiry::Keep, false, |old, _| {
            sum = old
                .map_or(Some(0), |old| decimal(old.value))
                .ok_or(OpError::NotAnInteger)
                .and_then(|value| value.checked_add(by).ok_or(OpError::Overflow { value, by }));
            match &sum {
                Ok(sum) => Edit::Put(Cow::Owned(sum.to_string().into_bytes())),
                Err(_) => Edit::Nothing,
            }
        })?;
        Ok((sum?, outcome.receipt))
    }

    /// Adds bytes at the end of a key's value, and returns how long that is now. A key that is not there has an empty value.
    /// A deadline stays. The record is written anew: this costs time by the whole value.
    pub fn append(&self, key: &[u8], suffix: &[u8]) -> Result<(usize, Receipt), OpError> {
        check_value(suffix)?;
        let mut bytes = 0;
        let outcome = self.edit(key, Expiry::Keep, false, |old, _| {
            let value = old.as_deref().map(|old| old.value);
            bytes = value.map_or(0, <[u8]>::len) + suffix.len();
            match value {
                // Before anything is built.
                _ if bytes > VALUE_BYTES_MAX => Edit::Nothing,
                Some(_) if suffix.is_empty() => Edit::Nothing,
                Some(value) => Edit::Put(Cow::Owned([value, suffix].concat())),
                None => Edit::Put(Cow::Borrowed(suffix)),
            }
        })?;
        if bytes > VALUE_BYTES_MAX {
            return Err(OpError::ValueTooLong { bytes });
        }
        Ok((bytes, outcome.receipt))
    }
}

/// The integer whose one decimal text this is: no sign but a minus, no leading zeros, no blanks.
fn decimal(text: &[u8]) -> Option<i64> {
    match text {
        [b'0'] | [b'1'..=b'9', ..] | [b'-', b'1'..=b'9', ..] => std::str::from_utf8(text).ok()?.parse().ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_integer_has_one_text() {
        for value in [0, 1, -1, 10, -10, 42, i64::MAX, i64::MIN, i64::MIN + 1] {
            assert_eq!(decimal(value.to_string().as_bytes()), Some(value));
        }
        let others =
            ["", "-", "-0", "00", "01", "-01", "+1", " 1", "1 ", "1.0", "1e3", "0x1", "9223372036854775808"];
        for text in others.into_iter().chain(["-9223372036854775809", "12a", "1_0", "\u{661}"]) {
            assert_eq!(decimal(text.as_bytes()), None, "{text}");
        }
        assert_eq!(decimal(&[b'1', 0xff]), None);
    }
}
