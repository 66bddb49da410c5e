//! Clients of a simulated register that is linearizable by construction: what it does, it does at one moment. Their history
//! is long, and has all that the checker must cope with: operations of unknown outcome that take effect late or never,
//! refusals, deadlines on a clock that is not exact, and clients that go on within the same nanosecond.

use std::collections::BTreeMap;

use super::super::{Call, Condition, Expiry, Operation, Outcome};
use super::brute::perform;

/// What clients do, and how often, in parts of 100.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mix {
    pub operations: usize,
    pub clients: u32,
    pub reads: u64,
    pub conditional: u64,
    pub deletes: u64,
    pub retimed: u64,
    pub expiring: u64,
    pub unknown: u64,
    pub refused: u64,
}

impl Mix {
    /// As the simulated cluster's clients behave under faults.
    pub const USUAL: Mix = Mix {
        operations: 2_000,
        clients: 8,
        reads: 45,
        conditional: 15,
        deletes: 10,
        retimed: 4,
        expiring: 20,
        unknown: 3,
        refused: 2,
    };
}

/// A small generator of random numbers, splitmix64.
pub(super) struct Random(pub u64);

impl Random {
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }

    fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

enum Event {
    Invoke(u32),
    /// The operation takes effect; the client hears of it at that time, if at all.
    Effect(usize, Option<u64>),
}

struct Simulated {
    mix: Mix,
    random: Random,
    events: BTreeMap<(u64, usize), Event>,
    scheduled: usize,
    history: Vec<Operation>,
    value: Option<(u64, Option<Expiry>)>,
    /// When the value goes, on the owner's clock.
    gone_ns: u64,
    /// What each client saw or wrote last. It expects that in a compare-and-set, or happens to expect what is there.
    last: Vec<u64>,
}

const MICRO: u64 = 1_000;
const MILLI: u64 = 1_000 * MICRO;

/// A history of one key, the same for the same seed.
pub(super) fn history(mix: Mix, seed: u64) -> Vec<Operation> {
    let mut simulated = Simulated {
        mix,
        random: Random(seed),
        events: BTreeMap::new(),
        scheduled: 0,
        history: Vec::new(),
        value: None,
        gone_ns: u64::MAX,
        last: vec![0; mix.clients as usize],
    };
    for client in 0..mix.clients {
        simulated.at(0, Event::Invoke(client));
    }
    while let Some(((now_ns, _), event)) = simulated.events.pop_first() {
        match event {
            Event::Invoke(client) if simulated.history.len() < mix.operations => {
                simulated.invoke(client, now_ns)
            }
            Event::Invoke(_) => {}
            Event::Effect(index, heard_ns) => simulated.take_effect(index, heard_ns, now_ns),
        }
    }
    simulated.history
}

impl Simulated {
    fn at(&mut self, ns: u64, event: Event) {
        self.scheduled += 1;
        self.events.insert((ns, self.scheduled), event);
    }

    fn invoke(&mut self, client: u32, now_ns: u64) {
        let call = self.choose(client, now_ns);
        let index = self.history.len();
        let effect_ns = now_ns + 1 + self.random.below(MILLI);
        let mut ended_ns = effect_ns + 1 + self.random.below(MILLI);
        let mut outcome = Outcome::Unknown;
        if self.random.percent(self.mix.unknown) {
            // The client gives up. Some of these never take effect, some do very late.
            ended_ns = now_ns + 5 * MILLI;
            if self.random.percent(70) {
                let late_ns = self.random.below(60) * self.random.below(MILLI);
                self.at(effect_ns + late_ns, Event::Effect(index, None));
            }
        } else if self.random.percent(self.mix.refused) {
            outcome = Outcome::Refused { at_ns: ended_ns };
        } else {
            self.at(effect_ns, Event::Effect(index, Some(ended_ns)));
        }
        self.history.push(Operation { client, call, invoked_ns: now_ns, outcome });
        let pause_ns = if self.random.percent(50) { 0 } else { self.random.below(2 * MILLI) };
        self.at(ended_ns + pause_ns, Event::Invoke(client));
    }

    fn choose(&mut self, client: u32, now_ns: u64) -> Call {
        let mix = self.mix;
        if self.random.percent(mix.reads) {
            return Call::Get;
        }
        if self.random.percent(mix.deletes) {
            return Call::Delete;
        }
        if self.random.percent(mix.retimed) {
            return Call::Expire { expiry: self.expiry(now_ns) };
        }
        let condition = match self.random.below(5) {
            _ if !self.random.percent(mix.conditional * 2) => Condition::Always,
            0 => Condition::IfAbsent,
            1 => Condition::IfPresent,
            2 => Condition::IfEqual(self.last[client as usize]),
            _ => Condition::IfEqual(self.value.map_or(0, |(value, _)| value)),
        };
        let expiry = self.random.percent(mix.expiring).then(|| self.expiry(now_ns));
        Call::Set { value: self.history.len() as u64 + 1, expiry, condition }
    }

    fn expiry(&mut self, now_ns: u64) -> Expiry {
        let not_before_ns = now_ns + self.random.below(20 * MILLI);
        let wide_ns = self.random.below(4 * MILLI);
        let not_after_ns = if self.random.percent(15) { u64::MAX } else { not_before_ns + wide_ns };
        Expiry { not_before_ns, not_after_ns }
    }

    fn take_effect(&mut self, index: usize, heard_ns: Option<u64>, now_ns: u64) {
        if now_ns > self.gone_ns {
            self.value = None;
        }
        let Operation { client, call, .. } = self.history[index];
        let before = self.value;
        let (reply, after) = perform(call, before);
        self.value = after;
        if before != after {
            let expiry = after.and_then(|(_, expiry)| expiry);
            self.gone_ns = expiry.map_or(u64::MAX, |expiry| {
                let wide_ns = (expiry.not_after_ns - expiry.not_before_ns).min(10 * MILLI);
                expiry.not_before_ns + self.random.below(wide_ns + 1)
            });
        }
        if let Some(at_ns) = heard_ns {
            self.history[index].outcome = Outcome::Returned { at_ns, reply };
            self.last[client as usize] = after.map_or(0, |(value, _)| value);
        }
    }
}
