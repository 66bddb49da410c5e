//! The scripted run: an engine on one simulated machine that is written to in all ways, takes checkpoints, is closed, killed
//! and opened again.
//! Its log files are as small as they may be, so that there are many.

use std::path::Path;
use std::time::Duration;

use lockgate_engine::{Condition, Engine, EngineBuilder, Expiry, Gate, SetOptions, Term};
use lockgate_runtime::sim::{Control, Sim};
use lockgate_runtime::{Runtime, sleep, spawn, unix_ms};

use super::history::{KEYS, KEYSPACES, TAGS, slots};
use super::recording::{MACHINE, Recording, Span};
use crate::common::{FIRST, key, slot_of};

/// Several directories deep, so that none of their names is durable by chance.
const DIRECTORY: &str = "/srv/node/data";
/// Later than anything that a recovered machine lives to see, as its clock starts anew.
const BEFORE_DEADLINES: Duration = Duration::from_secs(3_600);

/// Keys end at latest after so long.
const DEADLINE_MS_MAX: u64 = 6;
/// Steps of a life after its last key has ended.
const STEPS_AT_THE_END: usize = 10;

/// Which run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Script {
    pub name: &'static str,
    pub seed: u64,
    pub cores: usize,
    /// With terms, truncations and generations, which the layer above decides; without, keys may expire.
    pub clustered: bool,
    pub steps: usize,
}

impl Script {
    /// How the engine of the run is opened, on so many cores.
    pub fn builder(&self, cores: usize) -> EngineBuilder {
        Engine::builder(Path::new(DIRECTORY))
            .cores(cores)
            .clustered(self.clustered)
            .log_file_bytes(16 << 10)
            .flush_interval_ms(3)
            .memory_bytes_max(64 << 20)
            .automatic_checkpoints(false)
            .checkpoint_bytes_per_second(0)
    }

    /// Runs it and records it: it is closed once, and killed once.
    pub fn record(&self) -> Vec<Span> {
        let sim = Sim::new(self.seed);
        let control = sim.control();
        let recording = Recording::default();
        let mut dice = Dice(self.seed);
        let mut node = sim.node(MACHINE, self.cores);
        recording.begin(&control);
        for (life, cores) in [self.cores, self.cores, 3 - self.cores].into_iter().enumerate() {
            if life > 0 {
                self.end(&node, &control, &recording, life == 1);
                node = control.start(MACHINE, cores);
            }
            dice = self.live(&node, cores, &recording, dice);
        }
        recording.finish()
    }

    fn live(&self, node: &Runtime, cores: usize, recording: &Recording, dice: Dice) -> Dice {
        let (script, runtime, recording) = (*self, node.clone(), recording.clone());
        node.block_on(0, move || async move {
            let engine = script.builder(cores).open_on(&runtime).await.expect("it opens");
            recording.opened(&engine);
            sleep(BEFORE_DEADLINES).await;
            let clustered = script.clustered;
            let mut life = Life { engine, recording, dice, clustered, may_expire: !clustered };
            if script.clustered {
                (0..TAGS.len()).for_each(|at| life.own(at));
            }
            for _ in 0..script.steps {
                life.step().await;
                life.recording.note();
            }
            // Else keys would end while the next life opens, where nobody looks.
            life.may_expire = false;
            sleep(Duration::from_millis(2 * DEADLINE_MS_MAX)).await;
            for _ in 0..STEPS_AT_THE_END {
                life.step().await;
                life.recording.note();
            }
            life.dice
        })
    }

    fn end(&self, node: &Runtime, control: &Control, recording: &Recording, in_order: bool) {
        recording.ending();
        if in_order {
            let closing = recording.engine();
            node.block_on(0, move || async move { closing.close().await.expect("closed") });
            recording.ended();
            node.shutdown();
        } else {
            control.kill(MACHINE);
            recording.ended();
        }
    }
}

/// Random numbers of a script.
#[derive(Clone, Debug)]
pub struct Dice(pub u64);

impl Dice {
    pub fn below(&mut self, count: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % count
    }
}

struct Life {
    engine: Engine,
    recording: Recording,
    dice: Dice,
    clustered: bool,
    may_expire: bool,
}

impl Life {
    /// A value whose every byte tells whose it is.
    fn value(&mut self) -> Vec<u8> {
        let bytes = match self.dice.below(16) {
            // Over the size from which a frame is a batch of its own.
            0 => 66_000 + self.dice.below(3_000),
            1..=4 => 500 + self.dice.below(4_000),
            _ => self.dice.below(100),
        };
        let stamp = self.dice.below(1 << 30) as u32;
        (0..bytes).map(|at| stamp.rotate_left(at as u32) as u8 ^ (at >> 5) as u8).collect()
    }

    async fn step(&mut self) {
        let at = self.dice.below(TAGS.len());
        let (tag, keyspace) = (TAGS[at], self.dice.below(usize::from(KEYSPACES)) as u8);
        let (slot, keys) = (slot_of(tag), self.engine.keyspace(keyspace));
        let name = key(tag, self.dice.below(KEYS));
        match self.dice.below(20) {
            0..=6 => {
                let value = self.value();
                let _ = keys.set(&name, &value).expect("a write");
            }
            7 | 8 => {
                let _ = keys.delete(&name).expect("a delete");
            }
            9 | 10 => {
                let values: Vec<_> = (0..2 + self.dice.below(3)).map(|_| self.value()).collect();
                let mut batch = self.engine.batch(slot);
                batch.delete(keyspace, name);
                for (number, value) in values.into_iter().enumerate() {
                    batch.set(keyspace, key(tag, number), value);
                }
                let _ = batch.commit().expect("a batch");
            }
            11 if self.dice.below(2) == 0 => drop(keys.clear_slot(slot).expect("a clear")),
            11 => drop(self.engine.clear_slot(slot).expect("a clear")),
            12 | 13 if self.clustered => self.change_hands(at),
            12 | 13 if self.may_expire => self.expire(&name, keyspace),
            14 => self.engine.wait_written(self.ticket(at)).await.expect("written"),
            15 => self.engine.sync_all().await.expect("synced"),
            16 => sleep(Duration::from_micros(500 + self.dice.below(6_000) as u64)).await,
            17 => {
                // It goes on while the next steps are taken. An engine that ends before it abandons it.
                let engine = self.engine.clone();
                drop(spawn(async move { drop(engine.checkpoint().await) }));
            }
            _ => self.engine.wait_synced(self.ticket(at)).await.expect("synced"),
        }
    }

    /// The slot's last write.
    fn ticket(&self, at: usize) -> lockgate_engine::LogTicket {
        let slot = slots().nth(at).expect("a slot").1;
        self.engine.ticket_at(slot, self.engine.slot_status(slot).position)
    }

    /// A key that ends soon, by itself.
    fn expire(&mut self, name: &[u8], keyspace: u8) {
        let at_ms = unix_ms() + 1 + self.dice.below(DEADLINE_MS_MAX as usize) as u64;
        let options =
            SetOptions { expiry: Expiry::At(at_ms), condition: Condition::Always, ..Default::default() };
        let _ = self.engine.keyspace(keyspace).set_with(name, b"soon", &options).expect("a write");
    }

    /// Serves a slot under the next term, in the generation that it has, or in the first one.
    fn own(&mut self, at: usize) {
        let slot = slot_of(TAGS[at]);
        let status = self.engine.slot_status(slot);
        let generation = status.generation.max(FIRST);
        self.engine.own(slot, generation, Term(status.term.0 + 1)).expect("owned");
        self.recording.note();
    }

    /// The slot begins a new term, perhaps without its last writes, or anew in another generation.
    fn change_hands(&mut self, at: usize) {
        let slot = slot_of(TAGS[at]);
        let generation = self.engine.slot_status(slot).generation;
        self.engine.follow(slot, generation).expect("it follows");
        match self.dice.below(4) {
            0 => {
                self.engine.drop_slot(slot, generation).expect("dropped");
                self.recording.note();
                let next = lockgate_engine::Generation::new(generation.major() + 1);
                self.engine.open_slot(slot, next, Gate::Follower).expect("opened");
            }
            1 | 2 => {
                let states = self.recording.states(at);
                let back = states.len().saturating_sub(1 + self.dice.below(4));
                let to = &states[back.min(states.len() - 1)].seen;
                if to.generation == generation && to.version <= self.engine.slot_status(slot).version {
                    self.engine.truncate(slot, generation, to.version).expect("truncated");
                }
            }
            _ => {}
        }
        self.recording.note();
        self.own(at);
    }
}
