//! What the slots of a scripted run were after each of its writes, and whether what a recovery found is one of these.
//!
//! Invariant: a slot's states are in the order of its frames in its log. So a recovery that loses an end of a log, and
//! nothing else, leaves every slot in one of its states, and no slot in a state whose frame lies behind one that is lost.

use std::collections::BTreeMap;

use lockgate_engine::{Engine, Gate, Generation, LogTicket, Slot, Term, Version};
use lockgate_runtime::sync::Arc;

use crate::common::{key, slot_of};

/// The slots that are written, by the tags of their keys. Two cores have three of them each, or so.
pub const TAGS: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
/// Keys of each slot, in each keyspace.
pub const KEYS: usize = 6;
pub const KEYSPACES: u8 = 2;

pub fn slots() -> impl Iterator<Item = (usize, Slot)> {
    TAGS.iter().map(|tag| slot_of(tag)).enumerate()
}

/// All that can be seen of a slot, value by value.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    pub generation: Generation,
    pub term: Term,
    pub version: Version,
    pub digest: u64,
    pub keys: u64,
    live_bytes: u64,
    values: BTreeMap<(u8, usize), Vec<u8>>,
}

impl Seen {
    pub fn of(engine: &Engine, at: usize) -> Seen {
        let tag = TAGS[at];
        let status = engine.slot_status(slot_of(tag));
        let mut values = BTreeMap::new();
        for (keyspace, number) in (0..KEYSPACES).flat_map(|keyspace| (0..KEYS).map(move |n| (keyspace, n))) {
            if status.gate == Gate::Absent {
                continue;
            }
            let found = engine.keyspace(keyspace).peek(&key(tag, number)).expect("a slot that is here").value;
            if let Some(value) = found {
                values.insert((keyspace, number), value.as_bytes().to_vec());
            }
        }
        Seen {
            generation: status.generation,
            term: status.term,
            version: status.version,
            digest: status.digest,
            keys: status.keys,
            live_bytes: status.live_bytes,
            values,
        }
    }

    /// Whether the slot is still this, as far as can be told without looking at values.
    pub fn is_still(&self, engine: &Engine, at: usize) -> bool {
        let now = engine.slot_status(slot_of(TAGS[at]));
        (self.generation, self.term, self.version, self.digest, self.keys)
            == (now.generation, now.term, now.version, now.digest, now.keys)
    }

    fn brief(&self) -> String {
        let Seen { generation, term, version, keys, digest, .. } = self;
        format!("generation {generation}, term {term}, version {version}, {keys} keys, digest {digest:x}")
    }
}

/// A state of a slot, and where the log has the frame that led to it.
#[derive(Clone, Debug)]
pub struct State {
    pub seen: Seen,
    pub boot: u64,
    pub ticket: LogTicket,
}

/// The states of all slots of a run.
#[derive(Clone, Debug, Default)]
pub struct History(pub Vec<Vec<Arc<State>>>);

impl History {
    /// Where in its states each slot is that was found like this, at `least` or behind. Whatever is wrong is said in words.
    pub fn place(&self, found: &[Seen], least: &[usize]) -> Result<Vec<usize>, String> {
        let mut earliest = Vec::new();
        let mut latest = Vec::new();
        for (at, seen) in found.iter().enumerate() {
            let (states, from) = (&self.0[at], least[at]);
            let mut matching = (from..states.len()).filter(|place| states[*place].seen == *seen);
            let Some(first) = matching.next() else {
                return Err(self.none_matches(at, seen, from));
            };
            earliest.push(first);
            latest.push(matching.next_back().unwrap_or(first));
        }
        self.check_holes(&earliest, &latest)?;
        Ok(latest)
    }

    fn none_matches(&self, at: usize, seen: &Seen, from: usize) -> String {
        let states = &self.0[at];
        let earlier = states[..from].iter().rposition(|state| state.seen == *seen);
        let why = match earlier {
            Some(place) => format!("that is state {place}: what was promised is lost"),
            None if states.iter().any(|state| state.seen.brief() == seen.brief()) => {
                "values differ from those that were written".to_owned()
            }
            None => "the slot was never like this: a write is there in part, or one before it is missing"
                .to_owned(),
        };
        format!(
            "slot {} ({}) is [{}]; {why}. It should be state {from} [{}] or one of the {} behind it",
            TAGS[at],
            slot_of(TAGS[at]),
            seen.brief(),
            states[from].seen.brief(),
            states.len() - 1 - from
        )
    }

    /// What lies before a frame that is there is there.
    fn check_holes(&self, earliest: &[usize], latest: &[usize]) -> Result<(), String> {
        // Up to where each log of each boot must be there.
        let mut there: BTreeMap<(u64, u32), (u64, usize)> = BTreeMap::new();
        for (at, place) in earliest.iter().enumerate() {
            let state = &self.0[at][*place];
            let reaches = there.entry((state.boot, state.ticket.core)).or_default();
            *reaches = (*reaches).max((state.ticket.position.0, at));
        }
        for (at, place) in latest.iter().enumerate() {
            for lost in &self.0[at][place + 1..] {
                let reaches = there.get(&(lost.boot, lost.ticket.core));
                if let Some((position, of)) =
                    reaches.filter(|(position, _)| *position > lost.ticket.position.0)
                {
                    return Err(format!(
                        "a hole in log core-{} of boot {}: slot {} has what lies before position {position}, and slot \
                         {} lost what lies before position {}",
                        lost.ticket.core, lost.boot, TAGS[*of], TAGS[at], lost.ticket.position.0
                    ));
                }
            }
        }
        Ok(())
    }
}
