//! Leaving a generation of the control log whose voters are lost, and entering the next (R18).
//!
//! Three steps, each of them durable before it is confirmed, and harmless when repeated:
//! - *Leave*: the node takes part in nothing any more. It neither votes nor grants, asks or proposes, and its lease is over.
//!   What it then says of its map stays true.
//! - *Prepare*: the next generation's first snapshot is kept beside the control log.
//! - *Enter*: a control log of its own begins with that snapshot, in one record: before it the node is of the old
//!   generation, after it of the new one, with nothing of the old log's terms and votes.
//!
//! A node that was started again after it left still has left. Links between generations are refused; a node that is told
//! that its generation is over steps down.

use std::collections::BTreeMap;

use futures_channel::oneshot;
use futures_util::{FutureExt, StreamExt};
use lockgate_net::link::{LinkError, RefusalReason};
use lockgate_runtime::sync::Arc;
use lockgate_runtime::sync::atomic::Ordering;

use super::control_store::{self, Leaving};
use super::driver::{Driver, DriverError};
use super::messages::AdminReply;
use super::office::Office;
use super::peers::Peers;
use super::shared::{Input, Shared};
use crate::control::recovery::link_id;
use crate::control::{
    Claim, EntryBody, HardState, JobId, MapSnapshot, Persist, RaftConfig, RaftCore, Restored, decode_map,
    slots_of,
};

impl Shared {
    /// The name that this node's links go by: its cluster's, in its generation. Zeros before it has one.
    pub fn link_cluster(&self) -> [u8; 16] {
        let generation = self.map.load().as_ref().map_or(0, |map| map.generation);
        self.identity.get().map_or([0; 16], |identity| link_id(identity.cluster, generation))
    }

    /// A link was refused. If it was because this node's generation is over, the driver hears of it.
    pub async fn note_refusal(&self, error: &LinkError) {
        if let LinkError::Refused { refusal, .. } = error
            && refusal.reason == RefusalReason::OldGeneration
        {
            self.tell(Input::Superseded(refusal.words.clone())).await;
        }
    }
}

/// An administrator has this node leave its generation.
pub(super) async fn leave(shared: &Arc<Shared>) -> AdminReply {
    let Some(map) = shared.map.load_full() else {
        return AdminReply::Refused("this node does not belong to a cluster yet".into());
    };
    let known = match control_store::load_left(&shared.engine, map.generation).await {
        Ok(known) => known,
        Err(error) => return AdminReply::Refused(error.to_string()),
    };
    if known.is_none() {
        let leaving = Leaving { generation: map.generation, next: None };
        if let Err(error) = control_store::save_leaving(&shared.engine, &leaving).await {
            return AdminReply::Refused(error.to_string());
        }
    }
    let (reply, claim) = oneshot::channel();
    if !shared.tell(Input::Leave(reply)).await {
        return AdminReply::Refused("this node has stopped".into());
    }
    match claim.await {
        Ok(claim) => AdminReply::Claim(Box::new(claim)),
        Err(_) => AdminReply::Refused("this node has stopped".into()),
    }
}

/// An administrator gives this node, which has left, what the next generation begins with.
pub(super) async fn prepare(shared: &Arc<Shared>, snapshot: MapSnapshot) -> AdminReply {
    match check_next(shared, &snapshot) {
        Err(why) => return AdminReply::Refused(why),
        Ok(()) if !shared.has_left.load(Ordering::SeqCst) => {
            return AdminReply::Refused("this node has not left its generation".into());
        }
        Ok(()) => {}
    }
    let generation = shared.map.load().as_ref().map_or(0, |map| map.generation);
    let leaving = Leaving { generation, next: Some(snapshot) };
    match control_store::save_leaving(&shared.engine, &leaving).await {
        Ok(()) => {
            shared.is_prepared.store(true, Ordering::SeqCst);
            AdminReply::Done
        }
        Err(error) => AdminReply::Refused(error.to_string()),
    }
}

fn check_next(shared: &Shared, snapshot: &MapSnapshot) -> Result<(), String> {
    let next = decode_map(&snapshot.map).map_err(|error| error.to_string())?;
    let map = shared.map.load_full().ok_or("this node does not belong to a cluster yet")?;
    let follows = next.cluster == map.cluster && next.generation == map.generation + 1;
    if !follows || next.applied != snapshot.index || next.applied <= map.applied {
        return Err(format!(
            "the snapshot is of generation {} at entry {}, this node is of generation {} at entry {}",
            next.generation, next.applied, map.generation, map.applied
        ));
    }
    Ok(())
}

/// An administrator has this node enter the recovery of that name.
pub(super) async fn enter(shared: &Arc<Shared>, recovery: [u8; 16]) -> AdminReply {
    let Some(map) = shared.map.load_full() else {
        return AdminReply::Refused("this node does not belong to a cluster yet".into());
    };
    if map.recovery == recovery {
        return AdminReply::Done;
    }
    let next = match control_store::load_left(&shared.engine, map.generation).await {
        Ok(known) => known.and_then(|known| known.next),
        Err(error) => return AdminReply::Refused(error.to_string()),
    };
    let snapshot = next.filter(|next| decode_map(&next.map).is_ok_and(|map| map.recovery == recovery));
    let Some(snapshot) = snapshot else {
        return AdminReply::Refused("this node was not prepared for that recovery".into());
    };
    if let Err(why) = check_next(shared, &snapshot) {
        return AdminReply::Refused(why);
    }
    let (reply, entered) = oneshot::channel();
    if !shared.tell(Input::Enter(Box::new(snapshot), reply)).await || entered.await.is_err() {
        return AdminReply::Refused("this node has stopped".into());
    }
    AdminReply::Done
}

impl Driver {
    /// Takes part in nothing from now on.
    pub(super) fn leave(&mut self) {
        if !self.shared.has_left.swap(true, Ordering::SeqCst) {
            tracing::warn!(
                generation = self.map.generation,
                applied = self.map.applied,
                "this node has left its generation of the cluster: it serves nothing before it enters the next"
            );
        }
        self.hand_over = None;
        self.office.holder.reigns(None);
        self.shared.lease_until_ns.store(0, Ordering::SeqCst);
        self.shared.leader.store(0, Ordering::Relaxed);
        self.shared.lease_changed.notify_all();
    }

    /// What this node says when it has left.
    pub(super) fn claim(&self) -> Claim {
        let mine = self.my_primary_shard();
        let may_be_voted = |job: JobId| {
            let proposed = self.proposals.any(|body| {
                matches!(body, EntryBody::CommitJobs(votes) if votes.iter().any(|vote| vote.job == job))
            });
            proposed || self.votes.iter().any(|vote| vote.job == job)
        };
        let sourced = self.map.active_jobs().filter(|job| Some(job.source) == mine).map(|job| job.id);
        let unvoted = sourced.filter(|job| !may_be_voted(*job)).collect();
        let term = |slot| self.shared.engine.slot_status(slot).version.term.0;
        let terms =
            self.map.active_jobs().filter_map(|job| Some((job.id, slots_of(&job.slots).map(term).max()?)));
        Claim { me: self.me, map: self.map.clone(), unvoted, terms: terms.collect() }
    }

    /// The next input that is there already; none for a node that has just left.
    pub(super) fn input_at_once(&mut self) -> Option<Input> {
        let has_left = self.shared.has_left.load(Ordering::SeqCst);
        if has_left { None } else { self.inbox.next().now_or_never().flatten() }
    }

    /// One input of a node that has left: only what has to do with that.
    pub(super) async fn wait_outside(&mut self) -> Result<(), DriverError> {
        let input = {
            let stop = self.shared.stop.clone();
            let stopped = std::pin::pin!(stop.stopped());
            match futures_util::future::select(self.inbox.next(), stopped).await {
                futures_util::future::Either::Left((input, _)) => input,
                futures_util::future::Either::Right(_) => None,
            }
        };
        match input {
            // Who asked may have gone.
            Some(Input::Leave(reply)) => drop(reply.send(self.claim())),
            Some(Input::Enter(snapshot, reply)) => {
                self.enter(*snapshot).await?;
                let _ = reply.send(());
            }
            // Others may have entered before this one is let in.
            Some(Input::Superseded(why)) if self.shared.is_prepared.load(Ordering::SeqCst) => {
                tracing::debug!(why, "this node waits to enter");
            }
            Some(Input::Superseded(why)) => return Err(DriverError::Superseded(why)),
            Some(Input::Persisted(_, result)) => self.note_persisted(result)?,
            // Everybody else repeats what matters, or hears that it was dropped.
            _ => {}
        }
        Ok(())
    }

    fn note_persisted(
        &mut self,
        result: Result<(), lockgate_engine::log::LogFailed>,
    ) -> Result<(), DriverError> {
        self.syncing -= 1;
        Ok(result?)
    }

    /// Begins the next generation here.
    async fn enter(&mut self, snapshot: MapSnapshot) -> Result<(), DriverError> {
        // What the old log still has on its way to the disk must not be taken for the new one's.
        while self.syncing > 0 {
            match self.inbox.next().await {
                Some(Input::Persisted(_, result)) => self.note_persisted(result)?,
                Some(_) => {}
                None => return Ok(()),
            }
        }
        let (index, term) = (snapshot.index, snapshot.term);
        let hard_state = Some(HardState { term, vote: 0, commit: index });
        let kept = Persist { snapshot: Some(snapshot.clone()), hard_state, entries: Vec::new() };
        self.log.begin_anew(&kept).await?;
        let next = decode_map(&snapshot.map)?;
        let config = RaftConfig::of_genesis(self.me.node, &next);
        let restored = Restored { snapshot: kept.snapshot, hard_state, entries: Vec::new() };
        self.raft = RaftCore::new(&config, restored, Box::new(lockgate_runtime::random_u64))?;
        self.unpersisted.clear();
        self.to_note = None;
        self.forwarded.clear();
        self.loopback.clear();
        self.early.clear();
        self.votes.clear();
        self.retiring = None;
        if self.shared.is_fenced.load(Ordering::Relaxed) {
            self.unfence();
        }
        self.office = Office::new(self.shared.config.times, self.office.always_synced());
        *self.shared.reach.lock() = BTreeMap::new();
        self.shared.has_left.store(false, Ordering::SeqCst);
        self.shared.is_prepared.store(false, Ordering::SeqCst);
        self.install(&snapshot)?;
        // Nobody of the new generation was let in before: what is here was said in the old one.
        while let Some(Some(_)) = self.inbox.next().now_or_never() {}
        // After the map: new links go by its generation.
        self.peers = Peers::new(Arc::clone(&self.shared));
        let now_ns = lockgate_runtime::now_ns();
        (self.next_raft_tick_ns, self.next_tick_ns) = (now_ns, now_ns);
        tracing::warn!(
            generation = self.map.generation,
            index,
            "this node has entered a new generation of the cluster"
        );
        Ok(())
    }
}
