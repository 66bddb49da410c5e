//! Starting the control log anew when a majority of its voters is lost for good (R18): which map it begins with, and which
//! slots nobody can be sure of.
//!
//! Pure. Invariants
//! - The new map is the highest applied one among those who were asked, and nothing that one of them had applied is
//!   missing from it: applied maps of one generation are prefixes of one history.
//! - It is of the next generation. Links between generations are refused ([`link_id`]), so that no old voter takes part.
//! - No vote of the old generation counts in the new one: every attempt is consumed.
//! - No term is given twice: the lost voters may have given some that nobody here has applied, and writes of such a term may
//!   be here all the same (R1, R4). The counter goes on far above them.
//! - Where the lost nodes may have committed a job and served its slots, both shards have a claim. Such a job is *disputed*,
//!   and its slots are served by nobody until an operator decides.

use std::collections::BTreeSet;

use lockgate_runtime::mutation;
use serde::{Deserialize, Serialize};

use super::map::{ClusterMap, GENESIS_TERM, JobState, VOTERS_MAX};
use super::raft::{MapSnapshot, Members};
use super::types::{ClusterId, Incarnation, JobId, NodeId, ShardId};
use super::{CodecError, encode_map};

/// So far the counter leaps: more than lost voters can have given out of what nobody else has applied. Terms and generations
/// have room for thousands of leaps.
const COUNTER_LEAP: u64 = 1 << 32;

/// The name that links of this generation of the cluster go by. The first generation's is the cluster's own.
pub fn link_id(cluster: ClusterId, generation: u64) -> ClusterId {
    let mut id = cluster;
    if !mutation!("recovery-without-the-fence") {
        id[8..].iter_mut().zip(generation.to_le_bytes()).for_each(|(byte, part)| *byte ^= part);
    }
    id
}

/// The earlier generation of this cluster that a peer's links go by, if they do.
pub fn earlier_generation(cluster: ClusterId, generation: u64, theirs: ClusterId) -> Option<u64> {
    let is_fenced = !mutation!("recovery-without-the-fence");
    (0..generation).find(|&earlier| is_fenced && link_id(cluster, earlier) == theirs)
}

/// What a node says that has left its generation: nothing of it changes any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The node, in its present boot: what an earlier one had applied it need not know any more.
    pub me: Incarnation,
    /// The map that it has applied.
    pub map: ClusterMap,
    /// Jobs whose source it leads, and for whose present attempt it has not asked for the vote.
    pub unvoted: Vec<JobId>,
    /// The highest term in which it has writes of the slots of active jobs.
    pub terms: Vec<(JobId, u64)>,
}

/// What the new generation begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovery {
    /// The snapshot that the new control log begins with, for every node alike.
    pub snapshot: MapSnapshot,
    /// The map in it.
    pub map: ClusterMap,
    /// Jobs whose slots nobody serves until an operator decides.
    pub disputed: Vec<JobId>,
}

/// Why there is no new generation.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    /// Nobody was asked that belongs to the cluster.
    #[error("no node of the cluster answers")]
    Nobody,
    /// Nodes of several generations, or of several clusters.
    #[error("node {node} is of generation {generation}, others are of generation {newest}")]
    Generations {
        /// The node.
        node: NodeId,
        /// Its generation.
        generation: u64,
        /// The newest one.
        newest: u64,
    },
    /// The map is too long.
    #[error(transparent)]
    Codec(#[from] CodecError),
}

/// How many of these voters must answer for the control log to decide.
pub fn majority(voters: usize) -> usize {
    voters / 2 + 1
}

/// Makes the new generation's beginning of what those who answer have said. `id` names this recovery.
pub fn recover(claims: &[Claim], id: [u8; 16]) -> Result<Recovery, RecoveryError> {
    let newest = claims.iter().max_by_key(|claim| (claim.map.generation, claim.map.applied));
    let mut map = newest.ok_or(RecoveryError::Nobody)?.map.clone();
    for Claim { me, map: theirs, .. } in claims {
        if (theirs.cluster, theirs.generation) != (map.cluster, map.generation) {
            let (generation, newest) = (theirs.generation, map.generation);
            return Err(RecoveryError::Generations { node: me.node, generation, newest });
        }
    }
    let answering: BTreeSet<NodeId> =
        claims.iter().map(|claim| claim.me.node).filter(|node| map.nodes.contains_key(node)).collect();
    if answering.is_empty() {
        return Err(RecoveryError::Nobody);
    }
    (map.generation, map.recovery, map.applied) = (map.generation + 1, id, map.applied + 1);
    set_voters(&mut map, &answering);
    let known = map.counter;
    map.counter += COUNTER_LEAP;
    let disputed = settle_jobs(&mut map, claims, known);
    let shards: Vec<ShardId> = map.shards.keys().copied().collect();
    // A lease of the new generation is granted only to who has entered it.
    for shard in shards {
        map.touch(shard);
    }
    let members = Members::new(map.voters(), map.learners());
    let snapshot = MapSnapshot { index: map.applied, term: GENESIS_TERM, members, map: encode_map(&map)? };
    Ok(Recovery { snapshot, map, disputed })
}

/// As many as may vote of those who answer, who voted before first.
fn set_voters(map: &mut ClusterMap, answering: &BTreeSet<NodeId>) {
    let mut voters: Vec<(bool, NodeId)> =
        answering.iter().map(|node| (!map.nodes[node].voter, *node)).collect();
    voters.sort_unstable();
    voters.truncate(VOTERS_MAX);
    for (id, info) in &mut map.nodes {
        info.voter = voters.iter().any(|(_, voter)| voter == id);
    }
}

/// Consumes every attempt, and finds the jobs that may have been committed without anybody here knowing. That has no
/// consequences where the target's primary is here, has run all the while and has not applied it: nobody else could have
/// served the slots. Nor where the source's primary has not asked for the vote, unless it was deposed without knowing it: then
/// writes of the target's are of a term that nobody here knows (all known ones are up to `known`).
fn settle_jobs(map: &mut ClusterMap, claims: &[Claim], known: u64) -> Vec<JobId> {
    let active: Vec<JobId> = map.active_jobs().map(|job| job.id).collect();
    let mut disputed = Vec::new();
    for id in active {
        let job = &map.jobs[&id];
        let [source, target] = [job.source, job.target].map(|shard| map.shards[&shard].primary);
        let unvoted = claims.iter().any(|claim| claim.me == source && claim.unvoted.contains(&id));
        let has_later = |claim: &Claim| claim.terms.iter().any(|&(job, term)| job == id && term > known);
        let is_settled =
            claims.iter().any(|claim| claim.me == target) || (unvoted && !claims.iter().any(has_later));
        let updated_ms = job.updated_ms;
        let why = "a majority of the control log's voters was lost";
        map.consume_attempt(id, updated_ms, why.to_owned());
        if !is_settled {
            map.change_job(id, updated_ms).state = JobState::Disputed;
            disputed.push(id);
        }
    }
    disputed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::tests::Cluster;
    use crate::control::{EntryBody, Refusal, decode_map};

    const ID: [u8; 16] = [9; 16];

    fn with_job() -> (ClusterMap, JobId) {
        let mut cluster = Cluster::new();
        let job = cluster.start(1, 2, 10, 19);
        (cluster.map, job)
    }

    fn claim(node: u32, map: &ClusterMap) -> Claim {
        let me = map.nodes[&NodeId(node)].incarnation;
        Claim { me, map: map.clone(), unvoted: Vec::new(), terms: Vec::new() }
    }

    #[test]
    fn the_highest_applied_map_begins_the_next_generation_with_those_who_answer() {
        let (newer, _) = with_job();
        let older = Cluster::new().map;
        assert!(older.applied < newer.applied);
        let made = recover(&[claim(6, &older), claim(2, &newer)], ID).expect("two nodes answer");
        assert_eq!((made.map.generation, made.map.recovery, made.map.applied), (1, ID, newer.applied + 1));
        assert_eq!(made.map.voters(), [NodeId(2), NodeId(6)], "also one that only learnt");
        assert_eq!(made.map.nodes.len(), newer.nodes.len(), "the lost ones are replaced later");
        assert!(
            made.map.counter >= newer.counter + COUNTER_LEAP,
            "what the lost ones gave is not given again"
        );
        assert!(made.map.validate().is_ok());
        assert_eq!(decode_map(&made.snapshot.map).expect("a map"), made.map);
        assert_eq!(made.snapshot.index, made.map.applied);
        assert!(made.map.shards.values().all(|shard| shard.changed_index == made.map.applied));
        assert!(matches!(recover(&[], ID), Err(RecoveryError::Nobody)));
        let mixed = recover(&[claim(6, &older), claim(2, &made.map)], ID);
        assert!(matches!(mixed, Err(RecoveryError::Generations { node: NodeId(6), .. })));
    }

    #[test]
    fn a_job_is_disputed_only_where_the_lost_target_may_have_served() {
        let (map, job) = with_job();
        // Nodes 1 and 3 lead the source and the target.
        let disputed = |claims: &[Claim]| {
            let made = recover(claims, ID).expect("somebody answers");
            let after = &made.map.jobs[&job];
            assert_ne!(after.attempt, map.jobs[&job].attempt, "no old vote counts");
            assert_eq!(after.state == JobState::Disputed, !made.disputed.is_empty());
            assert!(made.map.validate().is_ok());
            !made.disputed.is_empty()
        };
        assert!(
            disputed(&[claim(1, &map)]),
            "its vote may have been counted, and the target may have served"
        );
        assert!(disputed(&[claim(2, &map)]), "nobody knows what the source did");
        assert!(!disputed(&[claim(2, &map), claim(3, &map)]), "the target is here and did not serve");
        let mut restarted = claim(3, &map);
        restarted.me.boot += 1;
        assert!(disputed(&[claim(2, &map), restarted]), "it may have forgotten what it had applied");
        let unvoted = Claim { unvoted: vec![job], ..claim(1, &map) };
        assert!(!disputed(std::slice::from_ref(&unvoted)), "there was no vote");
        let imported = Claim { terms: vec![(job, map.counter)], ..claim(4, &map) };
        assert!(
            !disputed(&[unvoted.clone(), imported]),
            "what the target's replica has came from the source"
        );
        let served = Claim { terms: vec![(job, map.counter + 1)], ..claim(4, &map) };
        assert!(disputed(&[unvoted, served]), "the source was deposed, and its successor's vote was counted");
    }

    #[test]
    fn an_operator_decides_a_disputed_job_either_way_and_once() {
        let (map, job) = with_job();
        for owner in [ShardId(1), ShardId(2)] {
            let made = recover(&[claim(1, &map)], ID).expect("somebody answers");
            let mut cluster = Cluster::of(made.map);
            let slot = lockgate_engine::Slot::new(12).expect("a slot");
            assert!(cluster.map.is_disputed(slot));
            let third = ShardId(3);
            assert_eq!(
                cluster.refused(EntryBody::Decide { job, owner: third }),
                Refusal::NoClaim { job, shard: third }
            );
            let term = cluster.map.owner(slot).term;
            cluster.apply(EntryBody::Decide { job, owner });
            let now = cluster.map.owner(slot);
            assert_eq!((now.shard, now.pending), (Some(owner), None));
            assert!(now.term > term && !cluster.map.is_disputed(slot));
            let again = cluster.refused(EntryBody::Decide { job, owner });
            assert!(matches!(again, Refusal::JobState { needed: "disputed", .. }), "it is decided");
        }
    }

    #[test]
    fn links_of_earlier_generations_are_known() {
        let cluster = [7; 16];
        assert_eq!(link_id(cluster, 0), cluster);
        assert_eq!(earlier_generation(cluster, 2, link_id(cluster, 1)), Some(1));
        assert_eq!(earlier_generation(cluster, 2, link_id(cluster, 2)), None);
        assert_eq!(earlier_generation(cluster, 2, [8; 16]), None);
    }
}
