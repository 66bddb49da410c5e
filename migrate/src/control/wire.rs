//! How the engine's types and byte strings look in serde's eyes.
//!
//! The engine does not know serde. Its numbers travel as plain integers, and a slot is checked on the way in.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A slot as `u16`.
pub(super) mod slot {
    use super::*;
    use lockgate_engine::Slot;

    pub fn serialize<S: Serializer>(slot: &Slot, serializer: S) -> Result<S::Ok, S::Error> {
        slot.number().serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Slot, D::Error> {
        let number = u16::deserialize(deserializer)?;
        Slot::new(number).ok_or_else(|| D::Error::custom("slot out of range"))
    }
}

/// A term as `u64`.
pub(super) mod term {
    use super::*;
    use lockgate_engine::Term;

    pub fn serialize<S: Serializer>(term: &Term, serializer: S) -> Result<S::Ok, S::Error> {
        term.0.serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Term, D::Error> {
        u64::deserialize(deserializer).map(Term)
    }
}

/// A generation as `u64`.
pub(super) mod generation {
    use super::*;
    use lockgate_engine::Generation;

    pub fn serialize<S: Serializer>(generation: &Generation, serializer: S) -> Result<S::Ok, S::Error> {
        generation.0.serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Generation, D::Error> {
        u64::deserialize(deserializer).map(Generation)
    }
}

/// A version as (term, counter).
pub(super) mod version {
    use super::*;
    use lockgate_engine::{Term, Version};

    pub fn serialize<S: Serializer>(version: &Version, serializer: S) -> Result<S::Ok, S::Error> {
        (version.term.0, version.counter).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Version, D::Error> {
        let (term, counter) = <(u64, u64)>::deserialize(deserializer)?;
        Ok(Version { term: Term(term), counter })
    }
}

/// Bytes as one string instead of a sequence of numbers: copied at once, and the length is held against what is left of
/// the input before anything is allocated.
pub(super) mod bytes {
    use super::*;
    use serde::de::Visitor;
    use std::fmt;

    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(bytes)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        struct Bytes;
        impl Visitor<'_> for Bytes {
            type Value = Vec<u8>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }

            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
                Ok(bytes.to_vec())
            }
        }
        deserializer.deserialize_bytes(Bytes)
    }
}
