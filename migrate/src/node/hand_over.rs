//! A planned failover, as its primary does it: stop serving, let the heir catch up, give the lease up, wait for the entry.
//!
//! Invariant: from the moment when nothing is served any more the hand-over either ends in a new reign, or the lease is asked
//! for anew; requests of clients wait meanwhile. Nothing that was acknowledged can be lost: the heir is in sync.

use futures_channel::oneshot;
use lockgate_engine::Slot;
use lockgate_runtime::sync::atomic::Ordering;

use super::driver::Driver;
use super::messages::ControlMessage;
use super::replicas::goal;
use crate::control::{Epoch, NodeId, ShardId};

/// Between two times that the control leader is told.
const REPEAT_NS: u64 = 50_000_000;

/// Why a shard was not handed over.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandOverError {
    /// Another node leads the shard, or none does.
    #[error("this node does not lead a shard: ask its primary")]
    NotPrimary,
    /// The heir is no replica of the shard.
    #[error("node {0} is not a replica of this node's shard")]
    NotReplica(NodeId),
    /// The heir may lack acknowledged writes.
    #[error("node {0} is not in sync: wait until it is, or take another one")]
    NotInSync(NodeId),
    /// One at a time.
    #[error("this shard is being handed over already")]
    Busy,
    /// It did not come about in time; this node leads on.
    #[error(
        "the hand-over was given up after {0} ms: the heir or the control log did not answer; this node leads on"
    )]
    TimedOut(u64),
    /// The node has stopped.
    #[error("this node has stopped")]
    Stopped,
}

/// Told how it ended.
pub(crate) type HandOverReply = oneshot::Sender<Result<(), HandOverError>>;

/// A hand-over under way.
pub(super) struct HandOver {
    shard: ShardId,
    epoch: Epoch,
    /// The last request of the lease that was given up.
    nonce: u64,
    to: NodeId,
    boot: u64,
    /// What the heir has yet to receive.
    goal: Vec<(Slot, u64)>,
    began_ns: u64,
    told_ns: u64,
    reply: Option<HandOverReply>,
}

impl Driver {
    /// Begins to hand this node's shard over to `to`, or to the in-sync replica with the lowest number.
    pub(super) fn begin_hand_over(&mut self, to: Option<NodeId>, reply: HandOverReply) {
        match self.prepare_hand_over(to) {
            Ok((shard, to, boot)) => {
                let epoch = self.map.shards[&shard].epoch;
                let nonce = self.office.holder.yield_now();
                self.shared.lease_until_ns.store(0, Ordering::SeqCst);
                // Taken after the last write was answered for: a later one is answered for by nobody.
                let goal = goal(&self.shared);
                let began_ns = lockgate_runtime::now_ns();
                tracing::info!(%shard, %to, "handing over");
                let reply = Some(reply);
                self.hand_over =
                    Some(HandOver { shard, epoch, nonce, to, boot, goal, began_ns, told_ns: 0, reply });
            }
            // Who asked may have gone.
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    fn prepare_hand_over(&self, to: Option<NodeId>) -> Result<(ShardId, NodeId, u64), HandOverError> {
        if self.hand_over.is_some() {
            return Err(HandOverError::Busy);
        }
        let id = self.my_primary_shard().ok_or(HandOverError::NotPrimary)?;
        let shard = &self.map.shards[&id];
        let in_sync = |node: &NodeId| shard.in_sync.get(node).map(|boot| (id, *node, *boot));
        match to {
            Some(to) if !shard.replicas.contains(&to) => Err(HandOverError::NotReplica(to)),
            Some(to) => in_sync(&to).ok_or(HandOverError::NotInSync(to)),
            None => {
                let first = shard.replicas.first().ok_or(HandOverError::NotReplica(self.me.node))?;
                shard.replicas.iter().find_map(in_sync).ok_or(HandOverError::NotInSync(*first))
            }
        }
    }

    /// Carries a hand-over on.
    pub(super) fn look_after_hand_over(&mut self, now_ns: u64) {
        let Some(under_way) = &mut self.hand_over else { return };
        let HandOver { shard, epoch, nonce, to, boot, .. } = *under_way;
        let reigns = self.map.shards.get(&shard).is_some_and(|s| s.primary == self.me && s.epoch == epoch);
        if !reigns {
            return self.end_hand_over(Ok(()));
        }
        let waited_ns = now_ns.saturating_sub(under_way.began_ns);
        if waited_ns > self.shared.config.times.node_timeout_ns {
            return self.end_hand_over(Err(HandOverError::TimedOut(waited_ns / 1_000_000)));
        }
        match self.shared.acks.received_by(to, boot) {
            Some(received) => under_way.goal.retain(|&(slot, counter)| received(slot) < counter),
            None => return,
        }
        let is_due = now_ns.saturating_sub(under_way.told_ns) >= REPEAT_NS;
        if under_way.goal.is_empty() && is_due {
            under_way.told_ns = now_ns;
            if let Some(leader) = self.raft.leader() {
                self.tell(leader, ControlMessage::Yield { shard, epoch, nonce, to });
            }
        }
    }

    fn end_hand_over(&mut self, result: Result<(), HandOverError>) {
        let Some(ended) = self.hand_over.take() else { return };
        tracing::info!(shard = %ended.shard, to = %ended.to, ?result, "hand-over ended");
        if result.is_err() {
            self.office.holder.resume();
        }
        if let Some(reply) = ended.reply {
            // Who asked may have gone.
            let _ = reply.send(result);
        }
    }
}
