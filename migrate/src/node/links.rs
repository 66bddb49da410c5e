//! Inbound links, on every core: control messages go to the driver, bulk links are fed, administrators are answered.

use std::rc::Rc;
use std::time::Duration;

use lockgate_engine::{Generation, Slot, Version};
use lockgate_net::link::stream::{FeedObserver, Feeder};
use lockgate_net::link::{
    Hello, LinkError, LinkReceiver, LinkSender, Purpose, Refusal, RefusalReason, accept_links,
};
use lockgate_runtime::TcpListener;
use lockgate_runtime::sync::Arc;
use lockgate_runtime::sync::atomic::Ordering;

use super::Node;
use super::control_store;
use super::messages::{AdminReply, AdminRequest, ControlMessage, KIND_MESSAGE, NodeIdentity, decode, parts};
use super::peers::hello;
use super::recovery;
use super::shared::{Input, Shared};
use crate::control::recovery::earlier_generation;
use crate::control::{ClusterMap, Genesis, Incarnation, NodeId};

/// Serves inbound links on this core until the node stops.
pub(crate) async fn serve_links(shared: Arc<Shared>, listener: TcpListener) {
    let decide = {
        let shared = Arc::clone(&shared);
        move |peer: &Hello| admit(&shared, peer)
    };
    let on_link = {
        let shared = Arc::clone(&shared);
        move |sender: LinkSender, receiver: LinkReceiver, peer: Hello| {
            lockgate_runtime::spawn(serve_link(Arc::clone(&shared), sender, receiver, peer));
        }
    };
    accept_links(listener, shared.stop.clone(), decide, on_link).await;
}

/// Only nodes of this cluster that have not left, in no older incarnation than the map knows; administrators always.
fn admit(shared: &Shared, peer: &Hello) -> Result<Hello, Refusal> {
    let mine = hello(shared, peer.purpose);
    if peer.purpose == Purpose::Admin {
        return Ok(mine);
    }
    let map = shared.map.load_full();
    if let Some(map) = &map
        && let Some(earlier) = earlier_generation(map.cluster, map.generation, peer.cluster)
    {
        return Err(Refusal::new(RefusalReason::OldGeneration, superseded(peer.node, earlier, map)));
    }
    mine.check_cluster(peer)?;
    if shared.has_left.load(Ordering::SeqCst) {
        let words = "this node has left its generation of the cluster, and waits to enter the next";
        return Err(Refusal::new(RefusalReason::Other, words));
    }
    let known = map.as_ref().and_then(|map| map.nodes.get(&NodeId(peer.node)));
    let Some(known) = known else {
        // A member that is behind hears of the newer ones from one of them: it takes their messages, and feeds them nothing.
        let may_be_new = |map: &ClusterMap| !map.retired.contains(&NodeId(peer.node));
        if peer.purpose == Purpose::Control && peer.node != 0 && map.as_deref().is_some_and(may_be_new) {
            return Ok(mine);
        }
        let words = format!("node {} is not a member of this cluster", peer.node);
        return Err(Refusal::new(RefusalReason::UnknownNode, words));
    };
    let known = known.incarnation;
    if peer.directory != known.directory {
        let words = format!("node {} has another data directory than the cluster knows for it", peer.node);
        return Err(Refusal::new(RefusalReason::StaleIncarnation, words));
    }
    if peer.boot < known.boot {
        let words = format!(
            "node {} speaks for boot {}, the cluster knows boot {}",
            peer.node, peer.boot, known.boot
        );
        return Err(Refusal::new(RefusalReason::StaleIncarnation, words));
    }
    Ok(mine)
}

/// What a node is told whose generation was given up for lost.
fn superseded(node: u32, earlier: u64, map: &ClusterMap) -> String {
    format!(
        "node {node} speaks for generation {earlier} of this cluster, which was given up when a majority of its voters was \
         lost; the cluster is at generation {}. What node {node} has that the others lack is not part of it. To use this \
         machine again, start it with an empty data directory, and put it into its old place with `lockgate cluster \
         replace-node`, under a new number",
        map.generation
    )
}

async fn serve_link(shared: Arc<Shared>, sender: LinkSender, receiver: LinkReceiver, peer: Hello) {
    let (node, purpose) = (peer.node, peer.purpose);
    let ended = match purpose {
        Purpose::Control => take_messages(&shared, receiver, NodeId(node), peer.cluster).await,
        Purpose::Bulk => {
            feed(&shared, sender, receiver, peer).await;
            Ok(())
        }
        Purpose::Admin => answer(&shared, &sender, receiver).await,
    };
    match ended {
        Err(error @ LinkError::Frame { .. }) => {
            tracing::warn!(peer = node, ?purpose, %error, "inbound link closed");
        }
        Err(error) => tracing::debug!(peer = node, ?purpose, %error, "inbound link ended"),
        Ok(()) => {}
    }
}

async fn take_messages(
    shared: &Shared,
    mut receiver: LinkReceiver,
    from: NodeId,
    cluster: [u8; 16],
) -> Result<(), LinkError> {
    loop {
        let message = receiver.recv().await?;
        // A link lasts no longer than the generation that it was made in.
        if shared.link_cluster() != cluster {
            return Ok(());
        }
        match decode::<ControlMessage>(&message.payload) {
            Ok(ControlMessage::Reach { link }) => {
                shared.reach.lock().insert(from, link);
            }
            Ok(message) => {
                if !shared.tell(Input::Message(from, message)).await {
                    return Ok(());
                }
            }
            Err(error) => {
                tracing::warn!(peer = from.0, kind = message.kind, %error, "control message refused, link closed");
                return Ok(());
            }
        }
    }
}

async fn feed(shared: &Arc<Shared>, sender: LinkSender, receiver: LinkReceiver, peer: Hello) {
    let (node, boot) = (NodeId(peer.node), peer.boot);
    let link = {
        let mut feeds = shared.feeds.lock();
        // Under the lock, here and below: a stream that begins now must not lose what it is about to be told.
        shared.acks.disconnected(node, boot);
        feeds.begin(node, boot)
    };
    let observer = FeedWatch { shared: Arc::clone(shared), link };
    let feeder =
        Feeder::new(shared.engine.clone(), Rc::new(observer)).watermarks(shared.watermarks.changed());
    let ended = feeder.run(sender, receiver).await;
    tracing::info!(peer = node.0, ?ended, "stream to follower ended");
    let mut feeds = shared.feeds.lock();
    if feeds.end(node, boot, link) {
        shared.acks.disconnected(node, boot);
    }
}

/// What feeders tell this node, and what they ask it.
struct FeedWatch {
    shared: Arc<Shared>,
    link: u64,
}

impl FeedObserver for FeedWatch {
    fn acknowledged(
        &self,
        peer: &Hello,
        slot: Slot,
        generation: Generation,
        received: Version,
        synced: Version,
    ) {
        // What was said of an earlier stay of this slot does not count for the present one.
        if !self.shared.engine.slot_status(slot).generation.same_major(generation) {
            return;
        }
        let (node, boot) = (NodeId(peer.node), peer.boot);
        let feeds = self.shared.feeds.lock();
        if feeds.is_newest(node, boot, self.link) {
            self.shared.acks.acknowledged(node, boot, slot, received, synced);
            drop(feeds);
            self.shared.acks.wake();
        }
    }

    fn closed(&self, _peer: &Hello) {}

    fn may_feed(&self, peer: &Hello, slot: Slot, _: Generation) -> bool {
        let (Some(map), Some(identity)) = (self.shared.map.load_full(), self.shared.identity.get()) else {
            return false;
        };
        may_follow(&map, &identity.me, NodeId(peer.node), slot)
    }

    fn acknowledged_watermark(&self, slot: Slot) -> Option<Version> {
        self.shared.watermarks.of(&self.shared, slot)
    }

    fn watermark_pause(&self) -> Duration {
        self.shared.watermarks.pause()
    }

    fn sent_bytes(&self, _peer: &Hello, _slot: Slot, _bytes: usize) {}
}

/// Replicas may follow all that their shard has or imports; a job's target may follow the job's slots.
/// A primary that restarted feeds nobody before its reign is confirmed.
fn may_follow(map: &ClusterMap, me: &Incarnation, peer: NodeId, slot: Slot) -> bool {
    let Some((&mine, shard)) = map.shards.iter().find(|(_, shard)| shard.primary == *me) else {
        return false;
    };
    if shard.replicas.contains(&peer) {
        return true;
    }
    map.active_jobs().any(|job| {
        job.source == mine
            && map.shards.get(&job.target).is_some_and(|target| target.primary.node == peer)
            && job.slots.iter().any(|range| range.contains(slot.number()))
    })
}

async fn answer(
    shared: &Arc<Shared>,
    sender: &LinkSender,
    mut receiver: LinkReceiver,
) -> Result<(), LinkError> {
    loop {
        let message = receiver.recv().await?;
        let reply = match decode::<AdminRequest>(&message.payload) {
            Ok(request) => reply(shared, request).await,
            Err(error) => AdminReply::Refused(error),
        };
        sender.send(KIND_MESSAGE, parts(&reply)).await?;
    }
}

async fn reply(shared: &Arc<Shared>, request: AdminRequest) -> AdminReply {
    match request {
        AdminRequest::Identify => AdminReply::Identity(identify(shared)),
        AdminRequest::Form(genesis) => form(shared, *genesis).await,
        AdminRequest::HandOver { to } => {
            match (Node { shared: Arc::clone(shared) }).hand_over(Some(to)).await {
                Ok(()) => AdminReply::Done,
                Err(error) => AdminReply::Refused(error.to_string()),
            }
        }
        AdminRequest::Change(body) => match (Node { shared: Arc::clone(shared) }).propose(*body).await {
            Ok(_) => AdminReply::Done,
            Err(error) => AdminReply::Refused(error.to_string()),
        },
        AdminRequest::Genesis => match control_store::load_genesis(&shared.engine).await {
            Ok(Some(mut genesis)) => {
                // Who joins now joins the present generation.
                genesis.generation = shared.map.load().as_ref().map_or(0, |map| map.generation);
                AdminReply::Genesis(Box::new(genesis))
            }
            Ok(None) => AdminReply::Refused("this node does not belong to a cluster yet".into()),
            Err(error) => AdminReply::Refused(error.to_string()),
        },
        AdminRequest::Join { genesis, node } => join(shared, *genesis, node).await,
        AdminRequest::Leave => recovery::leave(shared).await,
        AdminRequest::Prepare(snapshot) => recovery::prepare(shared, *snapshot).await,
        AdminRequest::Enter { recovery } => recovery::enter(shared, recovery).await,
        AdminRequest::Status => match (Node { shared: Arc::clone(shared) }).status() {
            Some(status) => AdminReply::Status(Box::new(status)),
            None => AdminReply::Refused("this node does not belong to a cluster yet".into()),
        },
    }
}

fn identify(shared: &Arc<Shared>) -> NodeIdentity {
    let boot = shared.engine.boot();
    let node = Node { shared: Arc::clone(shared) };
    let served = Slot::all().filter(|&slot| node.serves(slot));
    NodeIdentity {
        directory: boot.directory_id,
        boot: boot.number,
        link: shared.link_addr,
        listen: shared.config.listen,
        cluster: shared.identity.get().map(|identity| identity.cluster),
        applied: shared.map.load().as_ref().map_or(0, |map| map.applied),
        slots_served: served.count() as u32,
    }
}

/// Takes this node into a new cluster: durable before it is confirmed, harmless when repeated.
async fn form(shared: &Arc<Shared>, genesis: Genesis) -> AdminReply {
    if let Some(identity) = shared.identity.get() {
        if identity.cluster == genesis.cluster {
            return AdminReply::Formed;
        }
        return AdminReply::Refused(
            "this node belongs to another cluster already; give it an empty data directory".into(),
        );
    }
    match super::start::join(shared, genesis, None).await {
        Ok(()) => AdminReply::Formed,
        Err(error) => AdminReply::Refused(error.to_string()),
    }
}

/// Takes this node into a cluster that exists: durable before it is confirmed, harmless when repeated.
async fn join(shared: &Arc<Shared>, genesis: Genesis, node: NodeId) -> AdminReply {
    if let Some(identity) = shared.identity.get() {
        if (identity.cluster, identity.me.node) == (genesis.cluster, node) {
            return AdminReply::Formed;
        }
        return AdminReply::Refused(format!(
            "this node is node {} of a cluster already; give it an empty data directory",
            identity.me.node
        ));
    }
    match super::start::join(shared, genesis, Some(node)).await {
        Ok(()) => AdminReply::Formed,
        Err(error) => AdminReply::Refused(error.to_string()),
    }
}
