//! Clients that read, write, delete, compare and set, and expire; and the history of what they asked and were told.
//!
//! Invariant: an operation whose reply did not come is on record as unknown, from its first request on. It is never assumed
//! to have happened, nor not to have happened.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use lockgate::client::Reply as Resp;
use lockgate_engine::Slot;

use crate::checker::{Call, Condition, Expiry, Operation, Outcome, Reply};
use crate::client::{Client, Ended, decode, encode};
use crate::cluster::Cluster;
use crate::counters::Counters;
use crate::plan::{Plan, Weights};
use crate::random::Random;

/// The longest time until a value expires.
const TTL_MS: (u64, u64) = (20, 1_500);
/// A value of over 64 KiB takes other ways through the engine.
const LARGE_BYTES: (u64, u64) = (66_000, 200_000);
/// How long a slot may have been frozen after healing, which keeps its clock from moving.
const SETTLING_NS: u64 = 120_000_000_000;
/// After a read that failed, before the next one.
const BEFORE_READING_ANEW: Duration = Duration::from_millis(10);

/// A key and what happened to it.
pub struct Key {
    /// The key.
    pub name: Vec<u8>,
    /// Its slot.
    pub slot: Slot,
    /// Everything that clients asked of it, in the order in which it was asked.
    pub history: RefCell<Vec<Operation>>,
    /// The last value that anybody saw, to compare with.
    seen: Cell<u64>,
}

/// The clients' side of a run.
pub struct Workload {
    cluster: Rc<Cluster>,
    plan: Plan,
    /// The keys.
    pub keys: Vec<Key>,
    next_value: Cell<u64>,
    stop: Cell<bool>,
    /// What clients met.
    pub counters: RefCell<Counters>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Get,
    Set,
    Delete,
    SetIfAbsent,
    CompareAndSet,
    SetExpiring,
    Expire,
}

impl Kind {
    fn has_value(self) -> bool {
        !matches!(self, Kind::Get | Kind::Delete | Kind::Expire)
    }
}

impl Weights {
    fn kinds(&self) -> [(u64, Kind); 7] {
        [
            (self.get, Kind::Get),
            (self.set, Kind::Set),
            (self.delete, Kind::Delete),
            (self.set_if_absent, Kind::SetIfAbsent),
            (self.compare_and_set, Kind::CompareAndSet),
            (self.set_expiring, Kind::SetExpiring),
            (self.expire, Kind::Expire),
        ]
    }
}

/// `count` keys, spread over the shards' hot slots.
fn keys(cluster: &Cluster, count: usize) -> Vec<Key> {
    let hot = cluster.hot_slots();
    let candidates = (0u64..).map(|n| format!("key:{n}").into_bytes());
    let in_hot = candidates.filter(|name| hot.binary_search(&Slot::of_key(name)).is_ok());
    let key = |name: Vec<u8>| Key {
        slot: Slot::of_key(&name),
        name,
        history: RefCell::default(),
        seen: Cell::new(0),
    };
    in_hot.take(count).map(key).collect()
}

impl Workload {
    /// Clients for this cluster and plan.
    pub fn new(cluster: Rc<Cluster>, plan: Plan) -> Rc<Workload> {
        let keys = keys(&cluster, plan.load.keys);
        Rc::new(Workload {
            cluster,
            plan,
            keys,
            next_value: Cell::new(1),
            stop: Cell::new(false),
            counters: RefCell::default(),
        })
    }

    /// Lets clients finish what they are at.
    pub fn stop(&self) {
        self.stop.set(true);
    }

    /// One client, until it is told to stop.
    pub async fn client(self: Rc<Self>, number: usize) {
        let mut random = Random::new(self.plan.seed, &format!("client {number}"));
        let mut client = Client::new(Rc::clone(&self.cluster), Random::new(random.next(), "routes"));
        let patience = Duration::from_millis(self.plan.load.patience_ms);
        while !self.stop.get() {
            let key = &self.keys[random.index(self.keys.len())];
            let kind = random.weighted(&self.plan.load.weights.kinds());
            self.operate(&mut client, number, key, kind, &mut random, patience).await;
            let think_us = random.between(0, self.plan.load.think_us_max);
            lockgate_runtime::sleep(Duration::from_micros(think_us)).await;
        }
        let mut counters = self.counters.borrow_mut();
        counters.add("redirects", client.redirects);
        for (code, count) in &client.errors {
            counters.add(&format!("errors_{}", code.to_ascii_lowercase()), *count);
        }
    }

    /// Reads every key, after healing. Says which one could not be read within `patience`. As any client would, it reads anew
    /// where a connection was lost: a failover that was under way before everything was healed may still come.
    pub async fn read_all(&self, patience: Duration) -> Result<(), String> {
        let mut random = Random::new(self.plan.seed, "last reader");
        let mut client = Client::new(Rc::clone(&self.cluster), Random::new(random.next(), "routes"));
        for key in &self.keys {
            let number = self.plan.load.clients;
            let give_up_ns = lockgate_runtime::now_ns() + patience.as_nanos() as u64;
            loop {
                let left = Duration::from_nanos(give_up_ns.saturating_sub(lockgate_runtime::now_ns()));
                if left.is_zero() {
                    let (key, slot) = (String::from_utf8_lossy(&key.name), key.slot);
                    return Err(format!("{key} (slot {slot}) could not be read within {patience:?}"));
                }
                if self.operate(&mut client, number, key, Kind::Get, &mut random, left).await {
                    break;
                }
                lockgate_runtime::sleep(BEFORE_READING_ANEW).await;
            }
        }
        Ok(())
    }

    /// The value of a write. Its length follows from its number, so that it can be named again.
    fn value(&self, number: u64) -> Vec<u8> {
        let load = &self.plan.load;
        let mut random = Random::new(self.plan.seed ^ number, "length");
        let bytes = match random.one_in(load.large_one_in) {
            true => random.between(LARGE_BYTES.0, LARGE_BYTES.1),
            false => random.between(0, load.value_bytes_max as u64),
        };
        encode(number, bytes as usize)
    }

    fn new_value(&self) -> u64 {
        self.next_value.replace(self.next_value.get() + 1)
    }

    /// The deadline of a value that was given `ttl_ms` between two moments, as any of the machines' clocks may see it.
    fn expiry(&self, ttl_ms: u64, invoked_ns: u64, returned_ns: Option<u64>) -> Expiry {
        let (ttl_ns, skew_ns) = (ttl_ms * 1_000_000, self.plan.wall_skew_ms() * 1_000_000);
        let late_ns = ttl_ns + 2 * skew_ns + self.plan.faults_ms * 1_000_000 + SETTLING_NS;
        Expiry {
            not_before_ns: (invoked_ns + ttl_ns).saturating_sub(2 * skew_ns + 2_000_000),
            not_after_ns: returned_ns.map_or(u64::MAX, |at| at + late_ns),
        }
    }

    /// One operation. `true` if it was answered.
    async fn operate(
        &self,
        client: &mut Client,
        number: usize,
        key: &Key,
        kind: Kind,
        random: &mut Random,
        patience: Duration,
    ) -> bool {
        let value = self.new_value();
        let compared = key.seen.get();
        let bytes = if kind.has_value() { self.value(value) } else { Vec::new() };
        let expected = if kind == Kind::CompareAndSet { self.value(compared) } else { Vec::new() };
        let ttl_ms = random.between(TTL_MS.0, TTL_MS.1);
        let ttl = ttl_ms.to_string();
        let name = &key.name[..];
        let command: Vec<&[u8]> = match kind {
            Kind::Get => vec![b"GET", name],
            Kind::Set => vec![b"SET", name, &bytes],
            Kind::Delete => vec![b"DEL", name],
            Kind::SetIfAbsent => vec![b"SET", name, &bytes, b"NX"],
            Kind::CompareAndSet => vec![b"SET", name, &bytes, b"IFEQ", &expected],
            Kind::SetExpiring => vec![b"SET", name, &bytes, b"PX", ttl.as_bytes()],
            Kind::Expire => vec![b"PEXPIRE", name, ttl.as_bytes()],
        };
        let at = key.history.borrow().len();
        let invoked_ns = lockgate_runtime::now_ns();
        let call = |returned_ns: Option<u64>| {
            let set = |condition, expiry| Call::Set { value, expiry, condition };
            let expiry = || self.expiry(ttl_ms, invoked_ns, returned_ns);
            match kind {
                Kind::Get => Call::Get,
                Kind::Set => set(Condition::Always, None),
                Kind::Delete => Call::Delete,
                Kind::SetIfAbsent => set(Condition::IfAbsent, None),
                Kind::CompareAndSet => set(Condition::IfEqual(compared), None),
                Kind::SetExpiring => set(Condition::Always, Some(expiry())),
                Kind::Expire => Call::Expire { expiry: expiry() },
            }
        };
        let operation = |returned_ns, outcome| Operation {
            client: number as u32,
            call: call(returned_ns),
            invoked_ns,
            outcome,
        };
        key.history.borrow_mut().push(operation(None, Outcome::Unknown));
        let ended = client.execute(key.slot, &command, patience).await;
        let at_ns = lockgate_runtime::now_ns();
        tracing::trace!(number, key = %String::from_utf8_lossy(name), call = ?call(None), ?ended, "operation");
        let (outcome, counter) = match &ended {
            Ended::Replied(reply) => {
                let reply = understand(kind, reply);
                if let Reply::Value(Some(seen)) = reply {
                    key.seen.set(seen);
                }
                (Outcome::Returned { at_ns, reply }, "operations_answered")
            }
            Ended::Refused => (Outcome::Refused { at_ns }, "operations_refused"),
            Ended::Unknown => (Outcome::Unknown, "operations_unknown"),
        };
        self.counters.borrow_mut().add(counter, 1);
        key.history.borrow_mut()[at] = operation(Some(at_ns), outcome);
        matches!(ended, Ended::Replied(_))
    }
}

/// What a reply says. Panics when it is none that the command has.
fn understand(kind: Kind, reply: &Resp) -> Reply {
    match (kind, reply) {
        (Kind::Get, Resp::Null) => Reply::Value(None),
        (Kind::Get, Resp::Bulk(bytes)) => {
            let shown = || String::from_utf8_lossy(&bytes[..bytes.len().min(60)]).into_owned();
            Reply::Value(Some(decode(bytes).unwrap_or_else(|| panic!("nobody wrote {:?}", shown()))))
        }
        (Kind::Delete, Resp::Integer(deleted)) => Reply::Deleted(*deleted == 1),
        (Kind::Set | Kind::SetExpiring | Kind::SetIfAbsent | Kind::CompareAndSet, Resp::Simple(_)) => {
            Reply::Set(true)
        }
        (Kind::SetIfAbsent | Kind::CompareAndSet, Resp::Null) => Reply::Set(false),
        (Kind::Expire, Resp::Integer(found)) => Reply::Expiring(*found == 1),
        (_, other) => panic!("not a reply to this command: {other:?}"),
    }
}
