//! Random lives of a slot whose last writes are taken back again and again, against a model: after a truncation the slot
//! must be what it was when that write was its last one. Restarts in between change nothing.

use std::collections::BTreeMap;
use std::path::Path;

use crate::common::{FIRST, clustered, key, slot_of};
use lockgate_engine::{Engine, Expiry, Gate, SetOptions, Slot, Term, Truncated, Version};
use proptest::prelude::*;

/// Far enough away that none comes.
const FAR_MS: u64 = 1 << 50;

#[derive(Clone, Debug)]
enum Step {
    Put {
        key: usize,
        bytes: usize,
        deadline_ms: Option<u64>,
    },
    Delete {
        key: usize,
    },
    /// So many keys at once.
    Batch {
        keys: usize,
        bytes: usize,
    },
    /// All keys go at once.
    Clear,
    /// Later writes are under a later term.
    Term,
    /// Back to the write at this part (of 255) of the history, or to a version that nothing has.
    Truncate {
        part: u8,
        between: bool,
    },
    Checkpoint,
    Reopen {
        cores: usize,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (0usize..12, 0usize..400, proptest::option::of(0u64..5)).prop_map(|(key, bytes, deadline)| {
            Step::Put { key, bytes, deadline_ms: deadline.map(|more| FAR_MS + more) }
        }),
        4 => (0usize..12).prop_map(|key| Step::Delete { key }),
        2 => (1usize..12, 0usize..200).prop_map(|(keys, bytes)| Step::Batch { keys, bytes }),
        1 => Just(Step::Clear),
        2 => Just(Step::Term),
        2 => (any::<u8>(), any::<bool>()).prop_map(|(part, between)| Step::Truncate { part, between }),
        1 => Just(Step::Checkpoint),
        1 => (1usize..4).prop_map(|cores| Step::Reopen { cores }),
    ];
    proptest::collection::vec(step, 1..120)
}

/// What can be seen of the slot.
#[derive(Clone, Debug, PartialEq)]
struct Seen {
    version: Version,
    digest: u64,
    keys: u64,
    live_bytes: u64,
    with_deadline: u64,
    values: BTreeMap<Vec<u8>, Vec<u8>>,
}

fn see(engine: &Engine, slot: Slot) -> Seen {
    let status = engine.slot_status(slot);
    let mut values = BTreeMap::new();
    for number in (0..12).filter(|_| status.gate != Gate::Absent) {
        let key = key("x", number);
        if let Some(value) = engine.keyspace(0).peek(&key).unwrap().value {
            values.insert(key, value.as_bytes().to_vec());
        }
    }
    Seen {
        version: status.version,
        digest: status.digest,
        keys: status.keys,
        live_bytes: status.live_bytes,
        with_deadline: engine.stats().keys_with_deadline,
        values,
    }
}

struct Life<'a> {
    path: &'a Path,
    engine: Option<Engine>,
    slot: Slot,
    term: u64,
    /// What the slot was after each of the writes that it has; before the first one, too.
    history: Vec<Seen>,
}

impl Life<'_> {
    fn engine(&self) -> &Engine {
        self.engine.as_ref().expect("open")
    }

    fn owned(&mut self) -> &Engine {
        if self.engine().slot_status(self.slot).gate != Gate::Owned {
            self.term += 1;
            self.engine().own(self.slot, FIRST, Term(self.term)).unwrap();
        }
        self.engine()
    }

    fn wrote(&mut self) {
        let seen = see(self.engine(), self.slot);
        if seen.version != self.history.last().unwrap().version {
            self.history.push(seen);
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Put { key: number, bytes, deadline_ms } => {
                let expiry = deadline_ms.map_or(Expiry::Clear, Expiry::At);
                let (key, value) = (key("x", number), vec![self.history.len() as u8; bytes]);
                let options = SetOptions { expiry, ..SetOptions::default() };
                assert!(self.owned().keyspace(0).set_with(&key, &value, &options).unwrap().applied);
                self.wrote();
            }
            Step::Delete { key: number } => {
                let _ = self.owned().keyspace(0).delete(&key("x", number)).unwrap();
                self.wrote();
            }
            Step::Batch { keys, bytes } => {
                let value = vec![self.history.len() as u8; bytes];
                let mut batch = self.owned().batch(slot_of("x"));
                for number in 0..keys {
                    batch.set(0, key("x", number), &value);
                }
                let _ = batch.commit().unwrap();
                self.wrote();
            }
            Step::Clear => {
                let _ = self.owned().clear_slot(slot_of("x")).unwrap();
                self.wrote();
            }
            Step::Term => {
                self.term += 1;
                self.engine().own(self.slot, FIRST, Term(self.term)).unwrap();
            }
            Step::Truncate { part, between } => self.truncate(usize::from(part), between),
            Step::Checkpoint => drop(self.engine().checkpoint_blocking().unwrap()),
            Step::Reopen { cores } => {
                self.engine = None;
                self.engine = Some(clustered(self.path, cores));
            }
        }
    }

    fn truncate(&mut self, part: usize, between: bool) {
        self.owned();
        self.engine().follow(self.slot, FIRST).unwrap();
        let chosen = self.history[(self.history.len() - 1) * part / 255].version;
        let to = if between { Version::new(Term(chosen.term.0 + 1), 0) } else { chosen };
        let stays = self.history.iter().rposition(|seen| seen.version <= to).expect("the first is zero");
        let version = self.history[stays].version;
        // Every record has a counter of its own, those of a batch too.
        let dropped_records = self.history.last().unwrap().version.counter - version.counter;
        self.history.truncate(stays + 1);
        let truncated = self.engine().truncate(self.slot, FIRST, to).unwrap();
        assert_eq!(truncated, Truncated { version, dropped_records });
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn a_truncated_slot_is_what_it_was(steps in steps()) {
        let folder = tempfile::tempdir().unwrap();
        let engine = clustered(folder.path(), 1);
        let slot = slot_of("x");
        engine.own(slot, FIRST, Term(1)).unwrap();
        let history = vec![see(&engine, slot)];
        let mut life = Life { path: folder.path(), engine: Some(engine), slot, term: 1, history };
        for step in steps {
            life.step(step.clone());
            let (found, expected) = (see(life.engine(), slot), life.history.last().unwrap());
            prop_assert_eq!(&found, expected, "after {:?}", step);
            let stream = life.engine().stream();
            // An absent slot has no streams.
            if life.engine().slot_status(slot).gate != Gate::Absent {
                for seen in &life.history {
                    prop_assert!(stream.subscribe(slot, FIRST, seen.version).is_ok(), "{}", seen.version);
                }
            }
        }
    }
}
