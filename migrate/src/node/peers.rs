//! Outbound control links: one per other node, on core 0, opened when there is something to say.
//!
//! A message that cannot be sent is dropped: every sender either repeats itself or has a bound after which it gives up.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use futures_channel::mpsc;
use futures_util::StreamExt;
use futures_util::future::{Either, select};
use lockgate_net::link::{Hello, Link, LinkError, Purpose};
use lockgate_runtime::sync::Arc;

use super::messages::{ControlMessage, KIND_MESSAGE, parts};
use super::shared::Shared;
use crate::control::NodeId;

/// Messages that wait for one peer; more are dropped.
const PEER_MESSAGES_MAX: usize = 4_096;
/// Time in which a link must be open.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Pause before another try to reach a peer.
pub(crate) const RECONNECT_PAUSE: Duration = Duration::from_millis(50);

/// Senders to all peers. Lives on core 0.
pub(crate) struct Peers {
    shared: Arc<Shared>,
    outboxes: BTreeMap<NodeId, (SocketAddr, mpsc::Sender<Rc<ControlMessage>>)>,
}

impl Peers {
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared, outboxes: BTreeMap::new() }
    }

    /// Sends to `node` at `addr`, or drops the message where the peer is too far behind.
    pub fn send(&mut self, node: NodeId, addr: SocketAddr, message: ControlMessage) {
        let stale = self.outboxes.get(&node).is_some_and(|(known, _)| *known != addr);
        if stale {
            self.outboxes.remove(&node);
        }
        let shared = &self.shared;
        let (_, outbox) = self.outboxes.entry(node).or_insert_with(|| {
            let (sender, receiver) = mpsc::channel(PEER_MESSAGES_MAX);
            lockgate_runtime::spawn(run_peer(Arc::clone(shared), node, addr, receiver));
            (addr, sender)
        });
        if outbox.try_send(Rc::new(message)).is_err() {
            tracing::debug!(peer = node.0, "control message dropped: the peer is too far behind");
        }
    }
}

/// The Hello that this node opens links with.
pub(crate) fn hello(shared: &Shared, purpose: Purpose) -> Hello {
    let identity = shared.identity.get();
    let boot = shared.engine.boot();
    Hello {
        cluster: shared.link_cluster(),
        node: identity.map_or(0, |identity| identity.me.node.0),
        directory: boot.directory_id,
        boot: boot.number,
        purpose,
        format: lockgate_net::link::FORMAT,
    }
}

async fn run_peer(
    shared: Arc<Shared>,
    node: NodeId,
    addr: SocketAddr,
    mut outbox: mpsc::Receiver<Rc<ControlMessage>>,
) {
    while !shared.stop.is_stopped() {
        let Some(first) = outbox.next().await else { return };
        match converse(&shared, addr, first, &mut outbox).await {
            Ok(()) => return,
            Err(error) => {
                tracing::debug!(peer = node.0, %addr, %error, "control link");
                shared.note_refusal(&error).await;
            }
        }
        // What gathered meanwhile is stale; consensus and jobs repeat what matters.
        while outbox.try_recv().is_ok() {}
        lockgate_runtime::sleep(RECONNECT_PAUSE).await;
    }
}

async fn converse(
    shared: &Shared,
    addr: SocketAddr,
    first: Rc<ControlMessage>,
    outbox: &mut mpsc::Receiver<Rc<ControlMessage>>,
) -> Result<(), LinkError> {
    let (sender, mut receiver, _) =
        Link::connect(addr, hello(shared, Purpose::Control), CONNECT_TIMEOUT).await?;
    let reach = ControlMessage::Reach { link: shared.reached_at() };
    sender.send(KIND_MESSAGE, parts(&reach)).await?;
    let mut next = Some(first);
    while let Some(message) = next {
        sender.send(KIND_MESSAGE, parts(&*message)).await?;
        // The other end says nothing but that it is there; listening, first of all, tells when it is gone.
        next = match select(pin!(receiver.recv()), outbox.next()).await {
            Either::Left((heard, _)) => heard.map(|_| None)?,
            Either::Right((message, _)) => message,
        };
    }
    Ok(())
}
