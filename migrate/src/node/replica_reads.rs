//! Reads at replicas: opt-in, acknowledged writes only, and never older than a stated bound (R9).
//!
//! How old an answer may be rests on a question and its answer, as a lease does. A replica that is read from asks its
//! primary now and then whether it is in sync. The primary says so only while it holds its lease and has the replica, under
//! its present boot, in its in-sync set: then all that was acknowledged before it answered has been received here, and
//! nobody else acknowledges anything. So what is read afterwards is no older than the *sending* of the question. The answer
//! counts once this node has applied what the primary had: it then knows of every slot that the primary had given away.
//!
//! These reads are not linearizable, and a pause of this process may make an answer older on its way out.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future::select;
use lockgate_engine::{Followed, Slot, Value};
use lockgate_runtime::sync::atomic::{AtomicU64, Ordering};

use super::Node;
use super::desired::Role;
use super::driver::Driver;
use super::keyspace::OpError;
use super::messages::ControlMessage;
use super::shared::Shared;
use crate::control::{Epoch, NodeId, ShardId};
use crate::replica::{AckPolicy, Mark};

/// For so long after a read the replica keeps asking.
const INTEREST_NS: u64 = 10_000_000_000;
/// Questions within the time that an answer is good for.
const ASKS_PER_STALENESS: u64 = 4;

/// What a replica has of a key, as it may be told.
#[derive(Clone, Debug)]
pub struct ReplicaRead {
    /// The value, if the key is there. A key that is due is there until its owner's delete has come.
    pub value: Option<Value>,
    /// When the key ends: milliseconds since 1970.
    pub deadline_ms: Option<u64>,
    /// What the owner acknowledged longer ago than this, the answer takes into account.
    pub age: Duration,
}

/// Why a replica does not answer.
#[derive(Debug, thiserror::Error)]
pub enum ReplicaReadError {
    /// Somebody else has to be asked: the slot belongs to another shard, is on its way, or this node is no replica.
    #[error(transparent)]
    Elsewhere(OpError),
    /// The primary goes on without this replica.
    #[error("this replica is not in sync with its primary at {primary}: it may lack acknowledged writes")]
    NotInSync {
        /// Where clients reach the primary.
        primary: SocketAddr,
    },
    /// The primary has not confirmed for too long that this replica has everything.
    #[error(
        "what this replica has may be older than {bound:?}: its primary at {primary} has not confirmed it in time"
    )]
    Stale {
        /// How old answers may be.
        bound: Duration,
        /// Where clients reach the primary.
        primary: SocketAddr,
    },
    /// What is here is not known to be acknowledged.
    #[error("slot {slot} has writes here that are not known to be acknowledged after {waited:?}")]
    Unacknowledged {
        /// The slot.
        slot: Slot,
        /// How long it was waited for.
        waited: Duration,
    },
}

impl ReplicaReadError {
    fn passes(&self) -> bool {
        !matches!(self, ReplicaReadError::Elsewhere(_) | ReplicaReadError::NotInSync { .. })
    }
}

/// What a replica knows of how fresh it is, as its readers see it. All in nanoseconds of the runtime's clock.
#[derive(Default)]
pub(crate) struct Freshness {
    /// All that was acknowledged before this is here; 0: not known.
    as_of_ns: AtomicU64,
    /// Readers are about, until this time.
    wanted_until_ns: AtomicU64,
    /// The first question that has had no answer yet; 0: none.
    unanswered_since_ns: AtomicU64,
}

impl Freshness {
    fn want(&self, now_ns: u64) {
        // Written seldom: all readers share it.
        if self.wanted_until_ns.load(Ordering::Relaxed) < now_ns + INTEREST_NS / 2 {
            self.wanted_until_ns.store(now_ns + INTEREST_NS, Ordering::Relaxed);
        }
    }
}

/// The asking side, with the driver.
#[derive(Default)]
pub(super) struct Asker {
    next_ask_ns: u64,
    /// Confirmed as of this time, once so much of the control log is applied here.
    unapplied: Option<(u64, u64)>,
}

/// A reading that waits for its watermark.
struct Held {
    mark: Mark,
    as_of_ns: u64,
    seen: Followed,
}

/// One keyspace of a shard's replica.
pub struct ReplicaKeyspace<'a> {
    node: &'a Node,
    engine: lockgate_engine::Keyspace,
}

impl Node {
    /// One keyspace, as this node has it as a replica.
    pub fn replica_keyspace(&self, number: u8) -> ReplicaKeyspace<'_> {
        ReplicaKeyspace { node: self, engine: self.shared.engine.keyspace(number) }
    }

    /// Whether this node is a replica of the shard that owns `slot`.
    pub fn follows(&self, slot: Slot) -> bool {
        let (Some(map), Some(identity)) = (self.map(), self.shared.identity.get()) else { return false };
        matches!(Role::of(&map, &identity.me), Role::Replica(shard) if map.slots[slot].shard == Some(shard))
    }
}

impl ReplicaKeyspace<'_> {
    /// The value of `key`: an acknowledged one, no older than [`super::NodeBuilder::replica_staleness`]. Waits at most that
    /// long for what is not known yet.
    pub async fn get(&self, key: &[u8]) -> Result<ReplicaRead, ReplicaReadError> {
        let shared = &self.node.shared;
        let limit = shared.config.replica_staleness();
        shared.freshness.want(lockgate_runtime::now_ns());
        let (mut held, mut refusal) = (None, None);
        let wait = async {
            loop {
                let (told, mapped) = (shared.marks.changed().listen(), shared.map_changed.listen());
                match self.look(key, &mut held) {
                    Ok(Some(read)) => return Ok(read),
                    Ok(None) => refusal = None,
                    Err(error) if error.passes() && !shared.is_unanswered(limit) => refusal = Some(error),
                    Err(error) => return Err(error),
                }
                select(told, mapped).await;
            }
        };
        let ended = lockgate_runtime::timeout(limit, wait).await;
        ended.unwrap_or_else(|_| {
            let slot = Slot::of_key(key);
            Err(refusal.unwrap_or(ReplicaReadError::Unacknowledged { slot, waited: limit }))
        })
    }

    /// Looks once. `None`: the reading is kept in `held` until its watermark has come. A slot that is written all the time
    /// would never stand still at its watermark.
    fn look(&self, key: &[u8], held: &mut Option<Held>) -> Result<Option<ReplicaRead>, ReplicaReadError> {
        let marks = &self.node.shared.marks;
        let last = held.take().filter(|last| marks.covers(&last.mark, &last.seen).is_some());
        let reading = match last {
            Some(last) => last,
            None => self.read(key)?,
        };
        if marks.covers(&reading.mark, &reading.seen) != Some(true) {
            *held = Some(reading);
            return Ok(None);
        }
        let Held { seen, as_of_ns, .. } = reading;
        let age = self.node.age(seen.slot, as_of_ns)?;
        Ok(Some(ReplicaRead { value: seen.value, deadline_ms: seen.deadline_ms, age }))
    }

    fn read(&self, key: &[u8]) -> Result<Held, ReplicaReadError> {
        let (shared, slot) = (&self.node.shared, Slot::of_key(key));
        // Before the map: what is fresh as of then is so by the map that was published first.
        let as_of_ns = shared.freshness.as_of_ns.load(Ordering::SeqCst);
        self.node.may_read(slot)?;
        self.node.age(slot, as_of_ns)?;
        let unacknowledged = || ReplicaReadError::Unacknowledged { slot, waited: Duration::ZERO };
        let mark = shared.marks.mark(slot).ok_or_else(unacknowledged)?;
        let seen = self.engine.followed(key).map_err(|error| match error {
            lockgate_engine::OpError::NotOwned { .. } => unacknowledged(),
            other => ReplicaReadError::Elsewhere(OpError::Engine(other)),
        })?;
        let is_sound = shared.marks.is_sound(&mark, &seen);
        is_sound.then_some(Held { mark, as_of_ns, seen }).ok_or_else(unacknowledged)
    }
}

impl Node {
    /// Whether the map has this node as an in-order replica for `slot`: its shard owns it, and nothing is on its way.
    fn may_read(&self, slot: Slot) -> Result<(), ReplicaReadError> {
        let elsewhere = || ReplicaReadError::Elsewhere(self.redirect(slot));
        let map = self.map().ok_or_else(elsewhere)?;
        let me = self.shared.identity.get().ok_or_else(elsewhere)?.me;
        let owner = &map.slots[slot];
        let Role::Replica(mine) = Role::of(&map, &me) else { return Err(elsewhere()) };
        if owner.shard != Some(mine) || owner.pending.is_some() {
            return Err(elsewhere());
        }
        if map.shards[&mine].in_sync.get(&me.node) != Some(&me.boot) {
            return Err(ReplicaReadError::NotInSync { primary: self.primary_of(slot) });
        }
        Ok(())
    }

    /// How old an answer as of that time is, if it may be.
    fn age(&self, slot: Slot, as_of_ns: u64) -> Result<Duration, ReplicaReadError> {
        let bound = self.shared.config.replica_staleness();
        let age = Duration::from_nanos(lockgate_runtime::now_ns().saturating_sub(as_of_ns));
        if as_of_ns == 0 || age > bound {
            return Err(ReplicaReadError::Stale { bound, primary: self.primary_of(slot) });
        }
        Ok(age)
    }

    fn primary_of(&self, slot: Slot) -> SocketAddr {
        self.owner(slot).map_or(self.shared.config.listen, |(_, addr)| addr)
    }
}

impl Shared {
    /// Whether questions have gone unanswered for so long that waiting for the next one is vain.
    fn is_unanswered(&self, limit: Duration) -> bool {
        let since_ns = self.freshness.unanswered_since_ns.load(Ordering::Relaxed);
        since_ns != 0 && lockgate_runtime::now_ns().saturating_sub(since_ns) > limit.as_nanos() as u64
    }
}

impl Driver {
    /// Asks how fresh this replica is, if it is read from and it is time.
    pub(super) fn ask_how_fresh(&mut self, now_ns: u64) {
        let freshness = &self.shared.freshness;
        let wanted = freshness.wanted_until_ns.load(Ordering::Relaxed) > now_ns;
        let Role::Replica(shard) = Role::of(&self.map, &self.me) else {
            return freshness.unanswered_since_ns.store(0, Ordering::Relaxed);
        };
        if !wanted {
            return freshness.unanswered_since_ns.store(0, Ordering::Relaxed);
        }
        if now_ns < self.asker.next_ask_ns {
            return;
        }
        let period_ns = self.shared.config.replica_staleness().as_nanos() as u64 / ASKS_PER_STALENESS;
        self.asker.next_ask_ns = now_ns + period_ns;
        let unanswered = &freshness.unanswered_since_ns;
        let _ = unanswered.compare_exchange(0, now_ns, Ordering::Relaxed, Ordering::Relaxed);
        let led = &self.map.shards[&shard];
        let (epoch, primary) = (led.epoch, led.primary.node);
        let ask = ControlMessage::FreshAsk { shard, epoch, boot: self.me.boot, asked_ns: now_ns };
        self.tell(primary, ask);
    }

    /// A replica asks whether it has everything.
    pub(super) fn on_fresh_ask(&mut self, from: NodeId, reign: (ShardId, Epoch), boot: u64, asked_ns: u64) {
        let (id, epoch) = reign;
        let Some(shard) = self.map.shards.get(&id) else { return };
        let is_in_sync = shard.in_sync.get(&from) == Some(&boot);
        // Under the policy `primary` answers wait for nobody, and no replica can be said to have them all.
        let waited_for = self.shared.config.ack != AckPolicy::Primary;
        if self.my_primary_shard() != Some(id) || shard.epoch != epoch || !is_in_sync || !waited_for {
            return;
        }
        self.shared.watermarks.want(lockgate_runtime::now_ns());
        // Last of all: at this moment nobody else acknowledges anything.
        if self.shared.holds_lease() {
            let applied = self.map.applied;
            self.tell(from, ControlMessage::Fresh { shard: id, epoch, boot, asked_ns, applied });
        }
    }

    /// The primary's word that all is here that was acknowledged before it was asked.
    pub(super) fn on_fresh(&mut self, from: NodeId, reign: (ShardId, Epoch), boot: u64, at: (u64, u64)) {
        let (asked_ns, applied) = at;
        let led = self.map.shards.get(&reign.0);
        let is_current = led.is_some_and(|led| led.primary.node == from && led.epoch == reign.1);
        if !is_current || boot != self.me.boot || asked_ns > lockgate_runtime::now_ns() {
            return;
        }
        self.shared.freshness.unanswered_since_ns.store(0, Ordering::Relaxed);
        // What waits for the control log goes first: under a stream of entries the newest would always be behind.
        let bound_ns = self.shared.config.replica_staleness().as_nanos() as u64;
        let waits =
            self.asker.unapplied.is_some_and(|(as_of_ns, _)| asked_ns - as_of_ns.min(asked_ns) < bound_ns);
        if !waits {
            self.asker.unapplied = Some((asked_ns, applied));
        }
        self.take_freshness();
    }

    /// What was confirmed counts as soon as the map that it rests on is published.
    pub(super) fn take_freshness(&mut self) {
        let is_applied = |(_, applied): &mut (u64, u64)| *applied <= self.map.applied;
        if let Some((as_of_ns, _)) = self.asker.unapplied.take_if(is_applied) {
            self.shared.freshness.as_of_ns.fetch_max(as_of_ns, Ordering::SeqCst);
            self.shared.marks.changed().notify_all();
        }
    }
}
