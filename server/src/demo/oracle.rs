//! The demo's verifier: what may a client read, given what the writers were told? Pure: no I/O, no clock.
//!
//! Each key has one writer, which numbers its operations 1, 2, 3, ... and has at most one of them outstanding. Whether
//! operation c of a key is a put or (one in ten) a delete is a function of (seed, key, c), and a value carries its
//! counter before its bytes, so whatever a read returns names the operation that wrote it.
//!
//! Invariants of a key:
//! - `floor <= issued`: `floor` is the newest operation known to have taken effect, because it was acknowledged or
//!   because a read that has ended returned it. A read that begins later must not return anything older.
//! - An operation whose outcome is unknown may take effect at any later time, or never; it is never assumed either way.
//!   It stops being open when a read returns it while nothing newer was issued: then its place in the order is known.
//! - A refused operation never takes effect.
//!
//! What readers note before they ask and after they were answered is enough: `floor` is taken before the read is sent,
//! `issued` after it was answered, so both err to the side of the server, by no more than the read's own duration.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use lockgate_runtime::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use lockgate_runtime::sync::{Arc, Mutex};

use super::data::DataSet;

/// One operation in this many is a delete.
pub const DELETE_ONE_IN: u64 = 10;

/// A key: its index in the data set.
pub type KeyIndex = u32;

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteKind {
    /// Writes the key's value with the operation's counter before it.
    Put,
    /// Deletes the key.
    Delete,
}

/// An operation that was issued; its outcome must be told with one of `write_acked`, `delete_acked`, `write_refused`, `write_unknown`.
#[derive(Debug)]
#[must_use = "an issued write blocks its key until its outcome is told"]
pub struct IssuedWrite {
    /// The key.
    pub key: KeyIndex,
    /// The operation's number on that key.
    pub counter: u64,
    /// Put or delete.
    pub kind: WriteKind,
    /// The newest operation known to have taken effect when this one was issued. What is seen later may have come later,
    /// even when its number is smaller: an operation of unknown outcome.
    floor: u64,
}

/// What was known when a read began.
#[derive(Clone, Copy, Debug)]
#[must_use = "give it to read_ended"]
pub struct ReadSnapshot {
    key: KeyIndex,
    floor: u64,
}

/// What was found in place of an acknowledged operation's effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// No value.
    Nothing,
    /// The value of this operation.
    Operation(u64),
}

/// The judgement on one read, or on the answer to one delete.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// A linearizable store may answer so.
    Fine,
    /// An acknowledged write is gone.
    Lost {
        /// The newest operation known to have taken effect.
        acknowledged: u64,
        /// What is there instead.
        found: Found,
    },
    /// A value from before an acknowledged delete is back.
    Resurrected {
        /// The delete.
        deleted: u64,
        /// The operation whose value is there.
        found: Found,
    },
    /// A read returned less than what was acknowledged before the read began.
    Stale {
        /// The newest operation known to have taken effect when the read began.
        acknowledged: u64,
        /// The operation that the read returned.
        read: u64,
    },
    /// A value that nobody wrote.
    Corrupt {
        /// What is wrong with it.
        why: String,
    },
}

impl Verdict {
    /// Whether there is nothing to report.
    pub fn is_fine(&self) -> bool {
        *self == Verdict::Fine
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Found::Nothing => write!(f, "nothing"),
            Found::Operation(counter) => write!(f, "the value of operation {counter}"),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Fine => write!(f, "fine"),
            Verdict::Lost { acknowledged, found } => {
                write!(f, "lost: operation {acknowledged} had taken effect, but there is {found}")
            }
            Verdict::Resurrected { deleted, found: Found::Operation(found) } => {
                write!(f, "resurrected: delete {deleted} was acknowledged, but operation {found} is back")
            }
            Verdict::Resurrected { deleted, found: Found::Nothing } => {
                write!(f, "resurrected: delete {deleted} was acknowledged, but a later delete found a value")
            }
            Verdict::Stale { acknowledged, read } => {
                write!(
                    f,
                    "stale: operation {acknowledged} had taken effect before the read began, it returned {read}"
                )
            }
            Verdict::Corrupt { why } => write!(f, "corrupt: {why}"),
        }
    }
}

/// Operations that were neither simply acknowledged nor are outstanding. Rare, hence not in [`KeyState`].
#[derive(Default)]
struct Exceptions {
    /// Outcome unknown, and not yet seen at a known place in the order.
    open: BTreeSet<u64>,
    /// Outcome unknown at some time: an acknowledged delete is not among these.
    unknown: BTreeSet<u64>,
    refused: BTreeSet<u64>,
}

#[derive(Default)]
struct KeyState {
    issued: AtomicU64,
    floor: AtomicU64,
    outstanding: AtomicBool,
    /// Whether `Oracle::exceptions` has an entry for this key.
    exceptional: AtomicBool,
}

/// The verifier. Shared by all clients of a run.
pub struct Oracle {
    seed: u64,
    data: Arc<DataSet>,
    keys: Vec<KeyState>,
    exceptions: Mutex<BTreeMap<KeyIndex, Exceptions>>,
}

impl Oracle {
    /// A verifier for the keys of `data`, none of which has been written.
    pub fn new(seed: u64, data: Arc<DataSet>) -> Oracle {
        let keys = (0..data.len()).map(|_| KeyState::default()).collect();
        Oracle { seed, data, keys, exceptions: Mutex::new(BTreeMap::new()) }
    }

    /// The data set whose keys this verifies.
    pub fn data(&self) -> &Arc<DataSet> {
        &self.data
    }

    /// What operation `counter` of a key does. The first one, the load, is always a put.
    pub fn kind_of(&self, key: KeyIndex, counter: u64) -> WriteKind {
        let random = mix64(self.seed ^ mix64(u64::from(key) ^ mix64(counter)));
        if counter > 1 && random.is_multiple_of(DELETE_ONE_IN) { WriteKind::Delete } else { WriteKind::Put }
    }

    /// The bytes that a put stores: `<counter>:<value>`.
    pub fn value_of(&self, key: KeyIndex, counter: u64) -> Vec<u8> {
        let value = &self.data.entries()[key as usize].value;
        let mut bytes = Vec::with_capacity(value.len() + 21);
        bytes.extend_from_slice(counter.to_string().as_bytes());
        bytes.push(b':');
        bytes.extend_from_slice(value);
        bytes
    }

    /// The next operation on a key; to be called by the key's writer before it sends anything.
    ///
    /// Panics if the outcome of the operation before is not told yet: a key has one outstanding operation.
    pub fn write_issued(&self, key: KeyIndex) -> IssuedWrite {
        let state = &self.keys[key as usize];
        assert!(!state.outstanding.swap(true, Ordering::SeqCst), "key {key} has an outstanding operation");
        let floor = state.floor.load(Ordering::SeqCst);
        let counter = state.issued.fetch_add(1, Ordering::SeqCst) + 1;
        IssuedWrite { key, counter, kind: self.kind_of(key, counter), floor }
    }

    /// The operation was acknowledged.
    pub fn write_acked(&self, write: IssuedWrite) {
        let state = &self.keys[write.key as usize];
        state.floor.fetch_max(write.counter, Ordering::SeqCst);
        state.outstanding.store(false, Ordering::SeqCst);
    }

    /// A delete was acknowledged, with the word whether there was something to remove: as good as a read.
    pub fn delete_acked(&self, write: IssuedWrite, removed: bool) -> Verdict {
        let verdict = self.judge_delete(&write, removed);
        self.write_acked(write);
        verdict
    }

    /// The operation was refused: it took no effect and never will.
    pub fn write_refused(&self, write: IssuedWrite) -> Verdict {
        let state = &self.keys[write.key as usize];
        self.except(write.key, |exceptions| {
            exceptions.refused.insert(write.counter);
        });
        let seen = state.floor.load(Ordering::SeqCst) >= write.counter;
        state.outstanding.store(false, Ordering::SeqCst);
        if seen {
            return Verdict::Corrupt {
                why: format!("operation {} was refused, but a read returned it", write.counter),
            };
        }
        Verdict::Fine
    }

    /// Nobody knows whether the operation took effect, or will later.
    pub fn write_unknown(&self, write: IssuedWrite) {
        let state = &self.keys[write.key as usize];
        self.except(write.key, |exceptions| {
            // A read that returned it has ended, and nothing newer is issued yet: it is in its place.
            if state.floor.load(Ordering::SeqCst) < write.counter {
                exceptions.open.insert(write.counter);
                exceptions.unknown.insert(write.counter);
            }
        });
        state.outstanding.store(false, Ordering::SeqCst);
    }

    /// To be called before a read is sent.
    pub fn read_began(&self, key: KeyIndex) -> ReadSnapshot {
        ReadSnapshot { key, floor: self.keys[key as usize].floor.load(Ordering::SeqCst) }
    }

    /// Judges what a read returned.
    pub fn read_ended(&self, snapshot: ReadSnapshot, value: Option<&[u8]>) -> Verdict {
        self.judge(snapshot, value, false)
    }

    /// Judges what is in the store after all writers and readers have ended.
    pub fn finally(&self, key: KeyIndex, value: Option<&[u8]>) -> Verdict {
        self.judge(self.read_began(key), value, true)
    }

    fn judge(&self, snapshot: ReadSnapshot, value: Option<&[u8]>, at_end: bool) -> Verdict {
        let ReadSnapshot { key, floor } = snapshot;
        let issued = self.keys[key as usize].issued.load(Ordering::SeqCst);
        let Some(value) = value else {
            if self.may_be_absent(key, floor, issued) {
                return Verdict::Fine;
            }
            return Verdict::Lost { acknowledged: floor, found: Found::Nothing };
        };
        let counter = match self.operation_of(key, issued, value) {
            Ok(counter) => counter,
            Err(why) => return Verdict::Corrupt { why },
        };
        if counter >= floor {
            self.note_seen(key, counter, issued);
            return Verdict::Fine;
        }
        if self.has_exception(key, |exceptions| exceptions.open.contains(&counter)) {
            return Verdict::Fine;
        }
        if let Some(deleted) = self.acknowledged_delete(key, counter + 1, floor) {
            return Verdict::Resurrected { deleted, found: Found::Operation(counter) };
        }
        if at_end {
            return Verdict::Lost { acknowledged: floor, found: Found::Operation(counter) };
        }
        Verdict::Stale { acknowledged: floor, read: counter }
    }

    /// The operation that wrote these bytes, or why none did.
    fn operation_of(&self, key: KeyIndex, issued: u64, value: &[u8]) -> Result<u64, String> {
        let expected = &self.data.entries()[key as usize].value;
        let Some((counter, bytes)) = split_counter(value) else {
            return Err(format!("the value of {} bytes does not begin with a counter", value.len()));
        };
        if counter == 0 || counter > issued {
            return Err(format!("the value says operation {counter}, but {issued} were issued"));
        }
        if self.kind_of(key, counter) == WriteKind::Delete {
            return Err(format!("the value says operation {counter}, which is a delete"));
        }
        if bytes != expected.as_slice() {
            let at = bytes.iter().zip(expected).take_while(|(a, b)| a == b).count();
            let (is, should) = (bytes.len(), expected.len());
            return Err(format!(
                "operation {counter}'s value differs from byte {at} on ({is} bytes, {should} were written)"
            ));
        }
        if self.has_exception(key, |exceptions| exceptions.refused.contains(&counter)) {
            return Err(format!("the value says operation {counter}, which was refused"));
        }
        Ok(counter)
    }

    /// A read that has ended returned this operation: later reads must not return less.
    fn note_seen(&self, key: KeyIndex, counter: u64, issued: u64) {
        let state = &self.keys[key as usize];
        state.floor.fetch_max(counter, Ordering::SeqCst);
        if counter == issued && state.exceptional.load(Ordering::SeqCst) {
            self.except(key, |exceptions| {
                exceptions.open.remove(&counter);
            });
        }
    }

    /// Whether a read between these two may find nothing: some delete (or nothing at all) may have come last.
    fn may_be_absent(&self, key: KeyIndex, floor: u64, issued: u64) -> bool {
        let is_delete = |counter: &u64| self.kind_of(key, *counter) == WriteKind::Delete;
        let refused = |counter: u64| self.has_exception(key, |e| e.refused.contains(&counter));
        floor == 0
            || (floor..=issued).any(|counter| is_delete(&counter) && !refused(counter))
            || self.has_exception(key, |exceptions| exceptions.open.iter().any(is_delete))
    }

    fn acknowledged_delete(&self, key: KeyIndex, from: u64, to: u64) -> Option<u64> {
        let acknowledged = |counter: u64| {
            !self.has_exception(key, |e| e.refused.contains(&counter) || e.unknown.contains(&counter))
        };
        (from..=to)
            .rev()
            .find(|counter| self.kind_of(key, *counter) == WriteKind::Delete && acknowledged(*counter))
    }

    /// The answer of a delete tells whether there was a value before it.
    fn judge_delete(&self, write: &IssuedWrite, removed: bool) -> Verdict {
        let IssuedWrite { key, floor, .. } = *write;
        let before = write.counter - 1;
        if !removed {
            if self.may_be_absent(key, floor, before) {
                return Verdict::Fine;
            }
            return Verdict::Lost { acknowledged: floor, found: Found::Nothing };
        }
        let may_put = |counter: &u64| self.kind_of(key, *counter) == WriteKind::Put;
        let put_after_floor = (floor.max(1)..=before)
            .any(|counter| may_put(&counter) && !self.has_exception(key, |e| e.refused.contains(&counter)));
        if put_after_floor || self.has_exception(key, |exceptions| exceptions.open.iter().any(may_put)) {
            return Verdict::Fine;
        }
        if floor == 0 {
            return Verdict::Corrupt { why: "a delete removed a value, but none was written".into() };
        }
        Verdict::Resurrected { deleted: floor, found: Found::Nothing }
    }

    fn except(&self, key: KeyIndex, change: impl FnOnce(&mut Exceptions)) {
        let mut all = self.exceptions.lock();
        change(all.entry(key).or_default());
        self.keys[key as usize].exceptional.store(true, Ordering::SeqCst);
    }

    fn has_exception(&self, key: KeyIndex, test: impl FnOnce(&Exceptions) -> bool) -> bool {
        self.keys[key as usize].exceptional.load(Ordering::SeqCst)
            && self.exceptions.lock().get(&key).is_some_and(test)
    }
}

/// A counter and the rest; `None` unless the value begins with a number as [`Oracle::value_of`] writes it, and a colon.
fn split_counter(value: &[u8]) -> Option<(u64, &[u8])> {
    let digits = value.iter().take(21).position(|byte| *byte == b':')?;
    let number = std::str::from_utf8(&value[..digits]).ok()?;
    let canonical = !number.starts_with(['0', '+']);
    Some((number.parse().ok().filter(|_| canonical)?, &value[digits + 1..]))
}

/// Scatters a number's bits (the finalizer of splitmix64). The demo's choices come from it, so that a seed repeats them.
pub fn mix64(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests;
