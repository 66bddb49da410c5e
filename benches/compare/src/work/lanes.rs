//! The loops over maps in memory: each compiled for each subject, and behind one object so that they can take turns.
//!
//! Invariant: what is read is checked, by a sum that is the same for all subjects; a subject that lost a key or returns
//! another value fails the run. What a loop is given is prepared before its clock starts.

use std::hint::black_box;
use std::time::Instant;

use crate::failure::Failure;
use crate::keys::{KEY_BYTES, Key, WorkingSet, first_word};
use crate::subjects::Map;

/// Keys of one `read_many`.
pub const MANY: usize = 16;

/// One kind of work on a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PointWork {
    /// Each value says which key is next: nothing overlaps.
    GetDependent,
    /// The keys are known before: the processor may work ahead.
    GetIndependent,
    /// Sixteen at a time.
    GetMany,
    /// Overwrites of keys drawn at random.
    Set,
}

/// A subject that is ready to be measured.
pub trait Lane {
    /// Loads the working set, and waits until it has settled.
    fn load(&mut self, set: &WorkingSet) -> Result<(), Failure>;

    /// Does one round of some work on all keys. Nanoseconds per key.
    fn round(&mut self, work: PointWork, set: &WorkingSet, round: usize) -> Result<f64, Failure>;
}

impl<M: Map> Lane for M {
    fn load(&mut self, set: &WorkingSet) -> Result<(), Failure> {
        let mut value = set.blank();
        for (key, next) in set.pairs() {
            set.begin_with(&mut value, &next);
            self.set(&key, &value)?;
        }
        self.settle()
    }

    fn round(&mut self, work: PointWork, set: &WorkingSet, round: usize) -> Result<f64, Failure> {
        let (began, sum) = match work {
            PointWork::GetDependent => (Instant::now(), get_dependent(self, set)?),
            PointWork::GetIndependent => (Instant::now(), get_each(self, set.chain())?),
            PointWork::GetMany => {
                let keys: Vec<&[u8]> = set.chain().iter().map(|key| &key[..]).collect();
                (Instant::now(), get_many(self, &keys)?)
            }
            PointWork::Set => return overwrite(self, set, round),
        };
        let ns = began.elapsed().as_nanos() as f64;
        if sum != set.sum_of_values() {
            return Err(Failure::new("values were read that were never written"));
        }
        Ok(ns / set.len() as f64)
    }
}

#[cold]
fn lost() -> Failure {
    Failure::new("a key was lost")
}

fn get_dependent(map: &impl Map, set: &WorkingSet) -> Result<u64, Failure> {
    let (mut key, mut sum) = (set.chain()[0], 0_u64);
    for _ in 0..set.len() {
        let next = map.read(&key, |value| value.first_chunk::<KEY_BYTES>().copied())?;
        key = next.flatten().ok_or_else(lost)?;
        sum = sum.wrapping_add(first_word(&key));
    }
    Ok(black_box(sum))
}

/// Reads each of `keys`, and sums up the first words of their values.
pub fn get_each(map: &impl Map, keys: &[Key]) -> Result<u64, Failure> {
    let mut sum = 0_u64;
    for key in keys {
        let word = map.read(key, first_word)?.ok_or_else(lost)?;
        sum = sum.wrapping_add(word);
    }
    Ok(black_box(sum))
}

fn get_many(map: &impl Map, keys: &[&[u8]]) -> Result<u64, Failure> {
    let mut sum = 0_u64;
    for batch in keys.chunks(MANY) {
        map.read_many(batch, |value| sum = sum.wrapping_add(first_word(value)))?;
    }
    Ok(black_box(sum))
}

/// Overwrites as many keys as there are. What goes on in the background afterwards is waited for, and does not count.
fn overwrite(map: &mut impl Map, set: &WorkingSet, round: usize) -> Result<f64, Failure> {
    let (pairs, mut value) = (set.drawn_pairs(round as u64, set.len()).collect::<Vec<_>>(), set.blank());
    let began = Instant::now();
    for (key, next) in &pairs {
        set.begin_with(&mut value, next);
        map.set(key, &value)?;
    }
    let ns = began.elapsed().as_nanos() as f64;
    map.settle()?;
    Ok(ns / pairs.len() as f64)
}
