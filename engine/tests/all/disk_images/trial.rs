//! One moment of a recorded run as its last one: the machine fails, starts again, and an engine opens what is left.

use std::time::Duration;

use lockgate_engine::{Engine, Gate, Term, Version};
use lockgate_runtime::sim::{Control, Outage, PowerLoss, Sim};
use lockgate_runtime::{Runtime, sleep};

use super::history::{History, Seen, State, TAGS, slots};
use super::recording::{MACHINE, Moment, Span};
use super::script::{Dice, Script};
use crate::common::{FIRST, key};
use lockgate_runtime::sync::Arc;

/// What came of trials.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub trials: u64,
    /// Openings that did not come to their end.
    pub interrupted: u64,
    /// Trials in which something was found that nobody had been promised.
    pub found_more: u64,
    /// Trials in which something was lost that nobody had been promised.
    pub lost: u64,
    pub kills: u64,
    /// Trials with new writes, and another start after these.
    pub opened_again: u64,
}

impl Tally {
    pub fn add(&mut self, other: Tally) {
        self.trials += other.trials;
        self.interrupted += other.interrupted;
        self.found_more += other.found_more;
        self.lost += other.lost;
        self.kills += other.kills;
        self.opened_again += other.opened_again;
    }
}

/// A trial: a moment, and a number from which all that is left to chance comes.
pub struct Trial<'a> {
    pub script: Script,
    pub span: &'a Span,
    pub moment: &'a Moment,
    pub number: u64,
}

impl Trial<'_> {
    fn seed(&self) -> u64 {
        let mut dice = Dice(self.number ^ self.script.seed << 40 ^ self.moment.image.number() << 8);
        (0..3).fold(0, |seed, _| seed << 20 ^ dice.below(1 << 30) as u64)
    }

    fn outage(&self, dice: &mut Dice) -> Outage {
        let seed = dice.below(1 << 30) as u64;
        match dice.below(8) {
            0 => Outage::PowerCutLosesAll,
            1 => Outage::PowerCutLosesNothing,
            2 => Outage::Kill(seed),
            _ => Outage::PowerCut(seed),
        }
    }

    /// What is wrong is said in words.
    pub fn run(&self) -> Result<Tally, String> {
        let mut dice = Dice(self.seed());
        let outage = self.outage(&mut dice);
        let run = || self.run_after(outage, dice);
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
        let result = result.unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            Err(format!("a panic: {}", text.unwrap_or_default()))
        });
        result.map_err(|what| {
            format!(
                "script {}, moment {} ({}), {outage:?}, trial {}: {what}\nrepeat it with LOCKGATE_DISK_IMAGE={}:{}:{}",
                self.script.name,
                self.moment.image.number(),
                self.moment.image.moment(),
                self.number,
                self.script.name,
                self.moment.image.number(),
                self.number
            )
        })
    }

    fn run_after(&self, outage: Outage, mut dice: Dice) -> Result<Tally, String> {
        let sim = Sim::new(self.seed());
        let control = sim.control();
        control.put_disk(MACHINE, &self.moment.image, outage);
        let mut tally =
            Tally { trials: 1, kills: u64::from(matches!(outage, Outage::Kill(_))), ..Tally::default() };
        let is_interrupted = dice.below(4) == 0;
        if is_interrupted {
            tally.interrupted += 1;
            self.interrupt(&sim, &mut dice);
        }
        let cores = 1 + dice.below(2);
        let (node, engine) = self.open(&control, cores)?;
        let found = all_seen(&engine);
        // What the system had in its cache outlives a process, and a power cut during the next opening ends it.
        let has_cache = matches!(outage, Outage::Kill(_)) && !is_interrupted;
        let least = if has_cache { &self.moment.written } else { &self.moment.synced };
        let places = self.span.history.place(&found, least)?;
        self.check_boot(&engine, has_cache)?;
        for (at, place) in places.iter().enumerate() {
            tally.found_more += u64::from(*place > self.moment.synced[at]);
            tally.lost += u64::from(*place + 1 < self.span.history.0[at].len());
        }
        // Opening is what costs: not every trial goes on. After a kill what counts is a power cut that follows.
        if tally.kills > 0 || dice.below(5) == 0 {
            let history = self.write(&node, &engine, &mut dice)?;
            self.end_and_open_again(&sim, (node, engine), history, &mut dice)?;
            tally.opened_again += 1;
        }
        Ok(tally)
    }

    /// An opening that is killed, or loses its power, at some time.
    fn interrupt(&self, sim: &Sim, dice: &mut Dice) {
        let control = sim.control();
        let node = control.start(MACHINE, self.script.cores);
        let (opening, builder) = (node.clone(), self.script.builder(self.script.cores));
        node.spawn_on(0, move || async move {
            let opened = builder.open_on(&opening).await;
            std::future::pending::<()>().await;
            drop(opened);
        });
        let most_us = [300, 3_000, 20_000][dice.below(3)];
        let time = Duration::from_micros(dice.below(most_us) as u64);
        sim.run_until(async move { sleep(time).await });
        match dice.below(3) {
            0 => control.kill(MACHINE),
            1 => control.cut_power(MACHINE, PowerLoss::All),
            _ => control.cut_power(MACHINE, PowerLoss::Seeded),
        }
    }

    fn open(&self, control: &Control, cores: usize) -> Result<(Runtime, Engine), String> {
        let node = control.start(MACHINE, cores);
        let (opening, builder) = (node.clone(), self.script.builder(cores));
        let opened = node.block_on(0, move || async move { builder.open_on(&opening).await });
        let engine = opened.map_err(|error| format!("it does not open: {error}"))?;
        Ok((node, engine))
    }

    fn check_boot(&self, engine: &Engine, has_cache: bool) -> Result<(), String> {
        let (boot, last) = (engine.boot(), self.moment.boot);
        if boot.number <= last {
            return Err(format!("boot {} came after boot {last}", boot.number));
        }
        if self.moment.directory_id.is_some_and(|id| id != boot.directory_id) {
            return Err("the directory has another id".into());
        }
        if has_cache && self.moment.is_open && !boot.keeps_writes_of(last) {
            return Err(format!("nothing was lost, and {boot:?} does not keep the writes of boot {last}"));
        }
        Ok(())
    }

    /// New writes are taken, their versions are later than all that was there, and they are synced. The last one is not.
    fn write(&self, node: &Runtime, engine: &Engine, dice: &mut Dice) -> Result<History, String> {
        let (script, writer) = (self.script, engine.clone());
        let takes_checkpoint = dice.below(3) == 0;
        let written = node.block_on(0, move || async move {
            let mut history = History::default();
            for (at, slot) in slots() {
                let status = writer.slot_status(slot);
                if script.clustered {
                    let generation = status.generation.max(FIRST);
                    let term = Term(status.term.0 + 1);
                    writer.own(slot, generation, term).map_err(|error| error.to_string())?;
                }
                let mut batch = writer.batch(slot);
                batch.set(0, key(TAGS[at], 0), vec![at as u8; 700]).set(1, key(TAGS[at], 1), b"last");
                let receipt = batch.commit().map_err(|error| error.to_string())?;
                if receipt.version <= status.version || receipt.version == Version::ZERO {
                    return Err(format!("version {} came after {}", receipt.version, status.version));
                }
                history.0.push(vec![state_now(&writer, at)]);
            }
            if takes_checkpoint {
                writer.checkpoint().await.map_err(|error| error.to_string())?;
            }
            writer.sync_all().await.map_err(|error| error.to_string())?;
            let receipt = writer.keyspace(0).set(&key(TAGS[0], 2), &[9; 3_000]).map_err(|e| e.to_string())?;
            history.0[0].push(state_now(&writer, 0));
            drop(receipt);
            Ok(history)
        })?;
        Ok(written)
    }

    fn end_and_open_again(
        &self,
        sim: &Sim,
        (node, engine): (Runtime, Engine),
        history: History,
        dice: &mut Dice,
    ) -> Result<(), String> {
        let control = sim.control();
        let mut least = vec![0; TAGS.len()];
        match dice.below(5) {
            0 | 1 => {
                let closing = engine.clone();
                let closed = node.block_on(0, move || async move { closing.close().await });
                closed.map_err(|error| format!("it does not close: {error}"))?;
                node.shutdown();
                least[0] = 1;
            }
            2 | 3 => control.cut_power(MACHINE, PowerLoss::All),
            _ => control.cut_power(MACHINE, PowerLoss::Seeded),
        }
        drop(engine);
        let (node, engine) =
            self.open(&control, 1 + dice.below(2)).map_err(|what| format!("again: {what}"))?;
        let found = all_seen(&engine);
        history.place(&found, &least).map_err(|what| format!("after another start: {what}"))?;
        if dice.below(8) == 0 {
            let keys: u64 = found.iter().map(|seen| seen.keys).sum();
            let all = engine.stats().keys;
            if keys != all {
                return Err(format!("there are {all} keys, and {keys} in the slots that were written"));
            }
        }
        node.shutdown();
        Ok(())
    }
}

fn state_now(engine: &Engine, at: usize) -> Arc<State> {
    let slot = slots().nth(at).expect("a slot").1;
    let ticket = engine.ticket_at(slot, engine.slot_status(slot).position);
    debug_assert!(engine.slot_status(slot).gate == Gate::Owned);
    Arc::new(State { seen: Seen::of(engine, at), boot: engine.boot().number, ticket })
}

fn all_seen(engine: &Engine) -> Vec<Seen> {
    (0..TAGS.len()).map(|at| Seen::of(engine, at)).collect()
}
