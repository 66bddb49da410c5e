//! The loops over maps in memory: each compiled for each subject, and behind one object so that they can take turns.
//!
//! Invariant: what is read is checked, by a sum that is the same for all subjects; a subject that lost a key or returns
//! another value fails the run. What a loop is given is prepared before its clock starts.

use std::hint::black_box;
use std::time::Instant;

use crate::failure::Failure;
use crate::keys::{KEY_BYTES, Key, WorkingSet, first_word};
use crate::subjects::Map;

/// Keys of one call for many.
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
    /// As [`PointWork::GetDependent`], with values looked at where they lie.
    LookDependent,
    /// As [`PointWork::GetIndependent`], with values looked at where they lie.
    LookIndependent,
    /// As [`PointWork::GetMany`], with values looked at where they lie.
    LookMany,
    /// Overwrites of keys drawn at random.
    Set,
}

impl PointWork {
    /// Whether it is about values that are given out.
    fn is_get(self) -> bool {
        matches!(self, PointWork::GetDependent | PointWork::GetIndependent | PointWork::GetMany)
    }
}

/// A subject that is ready to be measured.
pub trait Lane {
    /// Loads the working set, and waits until it has settled.
    fn load(&mut self, set: &WorkingSet) -> Result<(), Failure>;

    /// Does one round of some work on all keys. Nanoseconds per key; `None`: this subject does not do it.
    fn round(&mut self, work: PointWork, set: &WorkingSet, round: usize) -> Result<Option<f64>, Failure>;
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

    fn round(&mut self, work: PointWork, set: &WorkingSet, round: usize) -> Result<Option<f64>, Failure> {
        if M::ONLY_GETS && !work.is_get() {
            return Ok(None);
        }
        let (began, sum) = match work {
            PointWork::GetDependent => (Instant::now(), dependent(set, |key| self.get(key, next_key))?),
            PointWork::LookDependent => (Instant::now(), dependent(set, |key| self.look_at(key, next_key))?),
            PointWork::GetIndependent => (Instant::now(), get_each(self, set.chain())?),
            PointWork::LookIndependent => {
                (Instant::now(), each(set.chain(), |key| self.look_at(key, first_word))?)
            }
            PointWork::GetMany => {
                let keys = slices(set);
                (Instant::now(), many(&keys, |keys, sum| self.get_many(keys, adding(sum)))?)
            }
            PointWork::LookMany => {
                let keys = slices(set);
                (Instant::now(), many(&keys, |keys, sum| self.look_at_many(keys, adding(sum)))?)
            }
            PointWork::Set => return overwrite(self, set, round).map(Some),
        };
        let ns = began.elapsed().as_nanos() as f64;
        if sum != set.sum_of_values() {
            return Err(Failure::new("values were read that were never written"));
        }
        Ok(Some(ns / set.len() as f64))
    }
}

#[cold]
fn lost() -> Failure {
    Failure::new("a key was lost")
}

fn next_key(value: &[u8]) -> Option<Key> {
    value.first_chunk::<KEY_BYTES>().copied()
}

fn slices(set: &WorkingSet) -> Vec<&[u8]> {
    set.chain().iter().map(|key| &key[..]).collect()
}

#[inline]
fn dependent(
    set: &WorkingSet,
    next: impl Fn(&[u8]) -> Result<Option<Option<Key>>, Failure>,
) -> Result<u64, Failure> {
    let (mut key, mut sum) = (set.chain()[0], 0_u64);
    for _ in 0..set.len() {
        key = next(&key)?.flatten().ok_or_else(lost)?;
        sum = sum.wrapping_add(first_word(&key));
    }
    Ok(black_box(sum))
}

#[inline]
fn each(keys: &[Key], word: impl Fn(&[u8]) -> Result<Option<u64>, Failure>) -> Result<u64, Failure> {
    let mut sum = 0_u64;
    for key in keys {
        sum = sum.wrapping_add(word(key)?.ok_or_else(lost)?);
    }
    Ok(black_box(sum))
}

/// Gets each of `keys`, and sums up the first words of their values.
pub fn get_each(map: &impl Map, keys: &[Key]) -> Result<u64, Failure> {
    each(keys, |key| map.get(key, first_word))
}

/// Adds the first word of each value that it is shown.
fn adding(sum: &mut u64) -> impl FnMut(&[u8]) {
    |value| *sum = sum.wrapping_add(first_word(value))
}

#[inline]
fn many(keys: &[&[u8]], read: impl Fn(&[&[u8]], &mut u64) -> Result<(), Failure>) -> Result<u64, Failure> {
    let mut sum = 0_u64;
    for batch in keys.chunks(MANY) {
        read(batch, &mut sum)?;
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
