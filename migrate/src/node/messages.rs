//! What nodes say to each other on control links, and what an administrator asks on admin links.
//!
//! Messages are encoded with postcard; the link below has checked their length and checksum, and the decoder allocates
//! no more than the bytes that are there. Every message may be lost, doubled or late: (job, attempt) is checked where
//! a message takes effect, never on receipt.

use std::net::SocketAddr;

use lockgate_runtime::IoBuf;
use serde::{Deserialize, Serialize};

use crate::control::{Attempt, Claim, EntryBody, Epoch, Genesis, JobId, MapSnapshot, NodeId, ShardId};
use crate::job::SlotFinal;
use crate::office::{FenceReport, LeaseAsk};

/// The kind byte of every postcard message on a control or admin link.
pub(crate) const KIND_MESSAGE: u8 = lockgate_net::link::KIND_USER_MIN;

/// Node to node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum ControlMessage {
    /// One message of the control log's consensus, in its own encoding.
    Raft(Vec<u8>),
    /// Encoded entries, for the leader to propose.
    Propose(Vec<Vec<u8>>),
    /// The final versions of a freeze: source to the target's primary and to its replicas.
    Barrier { job: JobId, attempt: Attempt, finals: Vec<SlotFinal> },
    /// A replica of the target has the finals on its disk, or says why it never will under this attempt.
    BarrierSynced { job: JobId, attempt: Attempt, boot: u64, result: Result<(), String> },
    /// All of the target's in-sync set has synced the finals: target primary to source.
    BarrierPassed { job: JobId, attempt: Attempt, synced: Vec<(NodeId, u64)> },
    /// The barrier cannot pass under this attempt.
    BarrierFailed { job: JobId, attempt: Attempt, why: String },
    /// May I serve what this commit gave me? Target primary to source (R16).
    ReleaseAsk { job: JobId },
    /// The commit is applied here, the gates are closed and reads have stopped.
    Released { job: JobId },
    /// The commit is applied here, and no lease of the source is left that was granted below it: control leader to target
    /// primary (R16).
    LeasesOver { job: JobId },
    /// May I serve my shard? Primary to control leader (R6). `applied`: what of the control log it has applied.
    LeaseAsk { boot: u64, applied: u64, ask: LeaseAsk },
    /// For so long from when it was asked for.
    LeaseGrant { shard: ShardId, epoch: Epoch, nonce: u64, length_ns: u64 },
    /// Take nothing more from this reign, sync, and report: control leader to a shard's members (R12).
    Fence { shard: ShardId, epoch: Epoch },
    /// Done.
    FenceReport(FenceReport),
    /// I serve nothing under this reign any more; let that node lead: primary to control leader.
    Yield { shard: ShardId, epoch: Epoch, nonce: u64, to: NodeId },
    /// The target serves the job's slots: target primary to source. The entry that says so follows.
    Serving { job: JobId },
    /// Where I am reached: the first message on every control link. Who is behind may not have me in its map yet, and must
    /// answer me to get there.
    Reach { link: SocketAddr },
    /// Do I have all that you acknowledged? Replica to primary. `asked_ns`: by the asker's clock.
    FreshAsk { shard: ShardId, epoch: Epoch, boot: u64, asked_ns: u64 },
    /// Yes, as of when you asked, once you have applied so much of the control log.
    Fresh { shard: ShardId, epoch: Epoch, boot: u64, asked_ns: u64, applied: u64 },
}

/// Administrator to node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum AdminRequest {
    /// Who are you?
    Identify,
    /// Become a node of this cluster. Repeating the same genesis is harmless.
    Form(Box<Genesis>),
    /// What does your applied map say?
    Status,
    /// Hand the shard that you lead over to that replica.
    HandOver {
        /// Who leads from now on.
        to: NodeId,
    },
    /// Propose this change of the cluster, and say what became of it.
    Change(Box<EntryBody>),
    /// What was your cluster created from?
    Genesis,
    /// Become this node of a cluster that was created from this genesis without you. Repeating the same is harmless.
    Join {
        /// What the cluster was created from.
        genesis: Box<Genesis>,
        /// The number that the cluster knows you by.
        node: NodeId,
    },
    /// A majority of the voters is lost: leave the generation for good, serve nothing, and say what you have applied.
    Leave,
    /// What the next generation begins with; for who has left.
    Prepare(Box<MapSnapshot>),
    /// Enter the generation that you were prepared for.
    Enter {
        /// Its name.
        recovery: [u8; 16],
    },
}

/// Node to administrator.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum AdminReply {
    /// The answer to [`AdminRequest::Identify`].
    Identity(NodeIdentity),
    /// Done; durable on that node.
    Formed,
    /// The answer to [`AdminRequest::Status`].
    Status(Box<super::status::NodeStatus>),
    /// Done, and applied by that node.
    Done,
    /// Not done, and why.
    Refused(String),
    /// The answer to [`AdminRequest::Genesis`].
    Genesis(Box<Genesis>),
    /// The answer to [`AdminRequest::Leave`].
    Claim(Box<Claim>),
}

/// Who a node is, before and after it belongs to a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeIdentity {
    /// Names the data directory for good.
    pub directory: [u8; 16],
    /// Counts the openings of the directory.
    pub boot: u64,
    /// Where other nodes reach this one.
    pub link: SocketAddr,
    /// Where clients reach it.
    pub listen: SocketAddr,
    /// The cluster that it belongs to, if any.
    pub cluster: Option<[u8; 16]>,
    /// Its applied index of the control log.
    pub applied: u64,
    /// How many slots it serves now.
    pub slots_served: u32,
}

/// Encodes a message for [`lockgate_net::link::LinkSender::send`].
pub(crate) fn parts<T: Serialize>(message: &T) -> Vec<Box<dyn IoBuf>> {
    // Serialising into memory fails only for types that postcard has no form for; none of ours is.
    let bytes = postcard::to_stdvec(message).expect("messages have a postcard form");
    vec![Box::new(bytes)]
}

/// Decodes a message; the error names what was malformed.
pub(crate) fn decode<'a, T: Deserialize<'a>>(payload: &'a [u8]) -> Result<T, String> {
    match postcard::take_from_bytes(payload) {
        Ok((message, [])) => Ok(message),
        Ok((_, rest)) => Err(format!("message of {} bytes has {} bytes too many", payload.len(), rest.len())),
        Err(error) => Err(format!("message of {} bytes is malformed: {error}", payload.len())),
    }
}
