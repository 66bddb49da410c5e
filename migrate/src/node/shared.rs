//! What all cores of a node share: the engine, the published map, acknowledgements, and the way to the driver.
//!
//! The driver on core 0 is the only one that changes the map and the gates; everybody else reads what it published.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::OnceLock;

use arc_swap::ArcSwapOption;
use futures_channel::{mpsc, oneshot};
use lockgate_engine::log::LogFailed;
use lockgate_engine::{Engine, Slot};
use lockgate_net::Stop;
use lockgate_runtime::Event;
use lockgate_runtime::mutation;
use lockgate_runtime::sync::Mutex;
use lockgate_runtime::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use super::NodeConfig;
use super::hand_over::HandOverReply;
use super::messages::ControlMessage;
use super::replica_reads::Freshness;
use super::times::TimesOfJobs;
use super::watermarks::Watermarks;
use crate::control::{
    Attempt, Claim, ClusterMap, EntryBody, Incarnation, JobId, MapSnapshot, NodeId, Outcome,
};
use crate::job::Phase;
use crate::office::FenceReport;
use crate::replica::{Feeds, ReplicaAcks, ReplicaMarks};

/// Messages that wait for the driver before links stop reading.
pub(crate) const INBOX_MESSAGES_MAX: usize = 1_024;

/// What reaches the driver.
pub(crate) enum Input {
    /// A node of this cluster said something.
    Message(NodeId, ControlMessage),
    /// Propose this, and tell me what became of it once it is applied here.
    Propose(EntryBody, oneshot::Sender<Outcome>),
    /// The record of this number has (or has not) reached the disk.
    Persisted(u64, Result<(), LogFailed>),
    /// Everything that this fenced member reports is on its disk: to be told to that node.
    Fenced(NodeId, FenceReport),
    /// Hand this node's shard over: to that replica, or to any in sync.
    HandOver(Option<NodeId>, HandOverReply),
    /// Take part in nothing any more, and say what is applied here. What this rests on is durable.
    Leave(oneshot::Sender<Claim>),
    /// Begin the next generation with this.
    Enter(Box<MapSnapshot>, oneshot::Sender<()>),
    /// Another node says that this one's generation is over: its words.
    Superseded(String),
    /// Hand the control log's lead over, if this node has it; answered when another one leads, dropped where none can.
    Retire(oneshot::Sender<()>),
    /// The finals of a barrier are on this node's disk, or never will be under this attempt.
    FinalsSynced { job: JobId, attempt: Attempt, result: Result<(), FinalsFault> },
}

/// Why the finals of a freeze cannot be confirmed here.
#[derive(Clone, Debug)]
pub(crate) enum FinalsFault {
    /// This slot's content differs from the source's: it must be copied anew.
    Mismatch { slot: Slot, why: String },
    /// Anything else, in words.
    Other(String),
}

/// Who this node is in its cluster; known once it has been formed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Identity {
    pub cluster: [u8; 16],
    pub me: Incarnation,
}

/// One job as its source sees it, for operators.
#[derive(Clone, Debug)]
pub struct JobProgress {
    /// Where it stands.
    pub phase: Phase,
    /// Payload bytes in the moving slots.
    pub bytes_total: u64,
    /// Bytes of writes that the target has not acknowledged yet, estimated.
    pub lag_bytes: u64,
    /// From the beginning of the last freeze to the target's word that it serves; 0 while unknown.
    pub freeze_to_activate_us: u64,
    /// Why the last attempt ended; empty if none did.
    pub last_reason: String,
}

impl JobProgress {
    /// Whether it says that nothing is left to do, with all figures.
    pub(crate) fn is_over(&self) -> bool {
        self.phase == Phase::Over
    }
}

/// Shared by all cores of a node.
pub(crate) struct Shared {
    pub engine: Engine,
    pub config: NodeConfig,
    pub link_addr: SocketAddr,
    pub identity: OnceLock<Identity>,
    pub map: ArcSwapOption<ClusterMap>,
    pub map_changed: Event,
    /// Who leads the control log as far as this node knows; 0 for nobody.
    pub leader: AtomicU32,
    /// Where nodes said that they are reached: for those that the map does not have yet.
    pub reach: Mutex<BTreeMap<NodeId, SocketAddr>>,
    pub acks: ReplicaAcks,
    /// Whether it has left its generation of the cluster, and takes part in nothing.
    pub has_left: AtomicBool,
    /// Whether it has what the next generation begins with, and only waits to be let in.
    pub is_prepared: AtomicBool,
    /// What this node has acknowledged as a primary, for its replicas' readers.
    pub watermarks: Watermarks,
    /// What this node may show as a replica...
    pub marks: ReplicaMarks,
    /// ... and how old that is.
    pub freshness: Freshness,
    /// Until when this node may serve its shard, by its clock; 0 while it may not (R6).
    pub lease_until_ns: AtomicU64,
    /// How often this node was fenced since its start.
    pub fences: AtomicU64,
    /// Whether it is fenced at present.
    pub is_fenced: AtomicBool,
    /// How many members of the shard that this node leads are in sync, itself among them.
    pub in_sync: AtomicUsize,
    /// Notified when a lease begins after there was none, and when a reign ends.
    pub lease_changed: Event,
    pub progress: Mutex<BTreeMap<JobId, JobProgress>>,
    pub job_times: TimesOfJobs,
    pub inbox: mpsc::Sender<Input>,
    /// The driver's end of the inbox, until a driver takes it: there is never a second one.
    pub driver_inbox: Mutex<Option<mpsc::Receiver<Input>>>,
    /// Followers with streams open here.
    pub feeds: Mutex<Feeds>,
    /// Asks the node to stop.
    pub stop: Stop,
    /// The driver has stopped.
    pub stopped: Stop,
    /// Why it had to, if it had to.
    pub failure: OnceLock<String>,
}

impl Shared {
    /// Whether this node has its shard's lease at this moment. To be asked after an operation's effect.
    pub fn holds_lease(&self) -> bool {
        lockgate_runtime::now_ns() < self.lease_until_ns.load(Ordering::SeqCst)
            || mutation!("lease-not-checked")
    }

    /// Serves nothing any more: every gate that is open closes. Reads of what the disk may not hold would be lies (R19).
    pub fn step_down(&self) {
        for slot in Slot::all().filter(|&slot| self.engine.gate(slot).serves_reads()) {
            let status = self.engine.slot_status(slot);
            if status.gate.serves_reads()
                && let Err(error) = self.engine.follow(slot, status.generation)
            {
                tracing::error!(%slot, %error, "gate could not be closed");
            }
        }
        self.stop.stop();
    }

    /// Where other nodes reach this one: as the cluster knows it, or as this node has it before it is known.
    pub fn reached_at(&self) -> SocketAddr {
        let map = self.map.load();
        let known = map.as_ref().zip(self.identity.get()).and_then(|(map, id)| map.nodes.get(&id.me.node));
        known.map_or(self.link_addr, |info| info.link)
    }

    /// Hands something to the driver, waiting while it is behind. `false` once the node has stopped.
    pub async fn tell(&self, input: Input) -> bool {
        use futures_util::SinkExt;
        self.inbox.clone().send(input).await.is_ok()
    }
}
