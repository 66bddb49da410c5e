//! Beginning a new generation of a cluster whose control log has lost a majority of its voters for good.
//!
//! Over the admin links of those who answer: all of them leave the old generation, durably; the leases of those who do not
//! answer run out; the highest applied map becomes the first snapshot of a new control log, with those who answered as its
//! voters; all of them enter it. What that map is, and which slots nobody can be sure of, is decided in
//! [`lockgate_migrate::control::recovery`].
//!
//! Invariants: while a majority answers nothing is done. Until the first node has entered, everything begins anew when it is
//! repeated; from then on every one that left has been prepared, and a repetition lets the rest enter.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use lockgate_migrate::control::recovery::{majority, recover};
use lockgate_migrate::control::{Claim, JobId, MapSnapshot, NodeId};
use lockgate_migrate::node::{AdminReply, AdminRequest, KnownNode, NodeStatus, ShardStatus};

use crate::formation::{self, ANSWER_LIMIT, FormationError, LOOK_PAUSE, ask_within, random_bytes, refused};

/// How long a node may take to answer before it counts as lost.
const LOOK_LIMIT: Duration = Duration::from_secs(3);

/// Why there is no new generation, or why it is not complete.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    /// A node could not be asked, or refused.
    #[error("{0}; repeat the recovery once it answers, or is gone")]
    Node(#[from] FormationError),
    /// Nothing is lost.
    #[error(
        "{answering} of {voters} voters answer, which is a majority: nothing is lost for good, and the control log decides \
         by itself. A node that died is replaced by `lockgate cluster replace-node`"
    )]
    Majority {
        /// Voters that answer.
        answering: usize,
        /// All voters.
        voters: usize,
    },
    /// Somebody else is there.
    #[error(
        "voter {voter} says that node {leader} leads the control log: a majority is there, though this tool cannot reach it. \
         Nothing was done"
    )]
    Led {
        /// Who says so.
        voter: NodeId,
        /// Who leads.
        leader: NodeId,
    },
    /// What the nodes said does not go together.
    #[error(transparent)]
    Claims(#[from] lockgate_migrate::control::RecoveryError),
    /// Nobody leads the new generation.
    #[error("the new generation has begun, but nobody leads it after {0:?}; see the nodes' output")]
    NoLeader(Duration),
}

/// A cluster as those of its nodes see it that answer.
#[derive(Clone, Debug)]
pub struct Findings {
    /// What the node says that has applied most.
    pub newest: NodeStatus,
    /// The nodes of its generation that answer, with their addresses.
    pub answering: BTreeMap<NodeId, (SocketAddr, NodeStatus)>,
    /// Nodes that have left the generation before, and wait to enter this one.
    pub waiting: BTreeMap<NodeId, SocketAddr>,
    /// The nodes that do not answer, or are of an earlier generation.
    pub lost: Vec<NodeId>,
}

/// What was done.
#[derive(Clone, Debug)]
pub struct Recovered {
    /// The new generation.
    pub generation: u64,
    /// Who votes in it.
    pub voters: Vec<NodeId>,
    /// Jobs whose slots nobody serves until an operator decides.
    pub disputed: Vec<JobId>,
}

/// Asks every node that one of these knows of. A leader that is gone is missed by its voters within a node timeout: so long
/// it is asked again. Must run on a core.
pub async fn look(any: &[SocketAddr]) -> Result<Findings, RecoveryError> {
    let began = Instant::now();
    loop {
        let found = look_once(any).await?;
        let patience = Duration::from_millis(2 * found.newest.node_timeout_ms);
        if !matches!(found.check_lost(), Err(RecoveryError::Led { .. })) || began.elapsed() > patience {
            return Ok(found);
        }
        lockgate_runtime::sleep(LOOK_PAUSE).await;
    }
}

async fn look_once(any: &[SocketAddr]) -> Result<Findings, RecoveryError> {
    let mut known: BTreeMap<NodeId, KnownNode> = BTreeMap::new();
    let mut first_error = None;
    for &addr in any {
        match formation::status(addr).await {
            Ok(status) => known.extend(status.nodes.into_iter().map(|node| (node.incarnation.node, node))),
            Err(error) => first_error = first_error.or(Some(error)),
        }
    }
    if let (true, Some(error)) = (known.is_empty(), first_error) {
        return Err(error.into());
    }
    let said = join_all(known.values().map(ask_status)).await;
    let said: Vec<(NodeId, SocketAddr, NodeStatus)> = said.into_iter().flatten().collect();
    let newest = said.iter().map(|(_, _, status)| status).max_by_key(|said| (said.generation, said.applied));
    // The addresses that were given may lead to nodes that their own map knows by others.
    let newest = newest.cloned().ok_or(lockgate_migrate::control::RecoveryError::Nobody)?;
    let generation = newest.generation;
    let waits = |status: &NodeStatus| status.has_left && status.generation + 1 == generation;
    let waiting = said.iter().filter(|(_, _, status)| waits(status)).map(|(node, addr, _)| (*node, *addr));
    let waiting: BTreeMap<NodeId, SocketAddr> = waiting.collect();
    let current = said.into_iter().filter(|(_, _, status)| status.generation == generation);
    let answering: BTreeMap<_, _> = current.map(|(node, addr, status)| (node, (addr, status))).collect();
    let all = newest.nodes.iter().map(|known| known.incarnation.node);
    let lost = all.filter(|node| !answering.contains_key(node) && !waiting.contains_key(node)).collect();
    Ok(Findings { newest, answering, waiting, lost })
}

async fn ask_status(known: &KnownNode) -> Option<(NodeId, SocketAddr, NodeStatus)> {
    let node = known.incarnation.node;
    match ask_within(known.link, &AdminRequest::Status, LOOK_LIMIT).await {
        // Another node may have taken the address.
        Ok(AdminReply::Status(status)) if is_itself(&status, known) => Some((node, known.link, *status)),
        _ => None,
    }
}

fn is_itself(status: &NodeStatus, known: &KnownNode) -> bool {
    let of_itself = status.known(status.node).map(|own| own.incarnation.directory);
    status.node == known.incarnation.node && of_itself == Some(known.incarnation.directory)
}

impl Findings {
    /// Refuses while the control log can decide.
    pub fn check_lost(&self) -> Result<(), RecoveryError> {
        let voters = self.newest.nodes.iter().filter(|known| known.voter).map(|known| known.incarnation.node);
        let voters: Vec<NodeId> = voters.collect();
        let votes = |node: &&NodeId| self.answering.get(node).is_some_and(|(_, status)| !status.has_left);
        let answering = voters.iter().filter(votes).count();
        if answering >= majority(voters.len()) {
            return Err(RecoveryError::Majority { answering, voters: voters.len() });
        }
        let leader_of = |voter: &NodeId| self.answering.get(voter).and_then(|(_, status)| status.leader);
        match voters.iter().find_map(|voter| Some((*voter, leader_of(voter)?))) {
            Some((voter, leader)) => Err(RecoveryError::Led { voter, leader }),
            None => Ok(()),
        }
    }

    /// What a new generation would mean, for people.
    pub fn outlook(&self) -> String {
        let NodeStatus { generation, applied, node, .. } = self.newest;
        let answering: Vec<NodeId> = self.answering.keys().copied().collect();
        let mut lines = vec![
            format!(
                "generation {generation} of the cluster is given up, and generation {} begins",
                generation + 1
            ),
            format!("  from the map of node {node}, up to entry {applied} of the control log"),
            format!("  with those nodes that answer, who vote from then on: {}", numbers(&answering)),
            format!("  without those that do not, which are locked out for good: {}", numbers(&self.lost)),
        ];
        lines.extend(self.newest.shards.iter().map(|shard| format!("  {}", self.outlook_of(shard))));
        lines.extend([
            "lost is what only the nodes have that do not answer: decisions of the control log, and writes that they \
             acknowledged without any in-sync member that answers"
                .to_owned(),
            "while this goes on nothing is served. The nodes that do not answer must be dead, or kept from their clients: \
             this tool cannot stop them from serving each other"
                .to_owned(),
        ]);
        lines.join("\n")
    }

    fn outlook_of(&self, shard: &ShardStatus) -> String {
        let here = |node: NodeId| self.answering.contains_key(&node);
        let heirs: Vec<NodeId> =
            shard.replicas().filter(|m| m.in_sync && here(m.node)).map(|m| m.node).collect();
        match (here(shard.primary) && !shard.is_vacant, heirs.as_slice()) {
            (true, _) => format!("shard {} goes on under node {}", shard.id, shard.primary),
            (false, []) => {
                format!("shard {} IS NOT SERVED: no member of it that is in sync answers", shard.id)
            }
            (false, heirs) => {
                format!("shard {} fails over to one of its in-sync replicas: {}", shard.id, numbers(heirs))
            }
        }
    }

    /// Lets those enter that an interrupted recovery has left behind. Returns who was not part of it, with its words: such a
    /// node had left, but did not answer when the generation began. It is locked out.
    pub async fn finish(&self) -> Result<Vec<(NodeId, String)>, RecoveryError> {
        let mut locked_out = Vec::new();
        for (&node, &addr) in &self.waiting {
            let enter = AdminRequest::Enter { recovery: self.newest.recovery };
            match ask_within(addr, &enter, ANSWER_LIMIT).await? {
                AdminReply::Done => {}
                AdminReply::Refused(why) => locked_out.push((node, why)),
                other => return Err(refused(addr, other).into()),
            }
        }
        Ok(locked_out)
    }

    /// Begins the new generation. Must run on a core.
    pub async fn recover(&self) -> Result<Recovered, RecoveryError> {
        let mut claims: Vec<Claim> = Vec::new();
        for &(addr, _) in self.answering.values() {
            match ask_within(addr, &AdminRequest::Leave, ANSWER_LIMIT).await? {
                AdminReply::Claim(claim) => claims.push(*claim),
                other => return Err(refused(addr, other).into()),
            }
        }
        let made = recover(&claims, random_bytes())?;
        // Those who answered have given their leases up. The others' run out.
        let lease_over_ms = self.answering.values().map(|(_, status)| status.lease_over_ms).max();
        lockgate_runtime::sleep(Duration::from_millis(lease_over_ms.unwrap_or_default())).await;
        self.begin(&made.snapshot, made.map.recovery).await?;
        self.wait_for_leader(made.map.generation).await?;
        let (generation, voters) = (made.map.generation, made.map.voters());
        Ok(Recovered { generation, voters, disputed: made.disputed })
    }

    /// All are prepared before the first one enters.
    async fn begin(&self, snapshot: &MapSnapshot, recovery: [u8; 16]) -> Result<(), RecoveryError> {
        for &(addr, _) in self.answering.values() {
            done(addr, &AdminRequest::Prepare(Box::new(snapshot.clone()))).await?;
        }
        for &(addr, _) in self.answering.values() {
            done(addr, &AdminRequest::Enter { recovery }).await?;
        }
        Ok(())
    }

    async fn wait_for_leader(&self, generation: u64) -> Result<(), RecoveryError> {
        let limit = ANSWER_LIMIT + 4 * Duration::from_millis(self.newest.node_timeout_ms);
        let led = async {
            loop {
                for &(addr, _) in self.answering.values() {
                    let status = formation::status(addr).await?;
                    if status.generation == generation && status.leader.is_some() {
                        return Ok(());
                    }
                }
                lockgate_runtime::sleep(LOOK_PAUSE).await;
            }
        };
        lockgate_runtime::timeout(limit, led).await.unwrap_or(Err(RecoveryError::NoLeader(limit)))
    }
}

async fn done(addr: SocketAddr, request: &AdminRequest) -> Result<(), RecoveryError> {
    match ask_within(addr, request, ANSWER_LIMIT).await? {
        AdminReply::Done => Ok(()),
        other => Err(refused(addr, other).into()),
    }
}

/// Nodes by their numbers, in words.
pub fn numbers(nodes: &[NodeId]) -> String {
    let numbers: Vec<String> = nodes.iter().map(NodeId::to_string).collect();
    if numbers.is_empty() { "none".to_owned() } else { numbers.join(", ") }
}
