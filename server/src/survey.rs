//! How a cluster is, as one of its nodes sees it, and what each of the others says of itself.
//!
//! A survey is not a snapshot: the nodes are asked at about the same time, and each answers with the map that it has
//! applied. It knows nothing that a node does not say.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future::join_all;
use lockgate_migrate::control::recovery::majority;
use lockgate_migrate::control::{NodeId, SlotRange};
use lockgate_migrate::node::{AdminReply, AdminRequest, KnownNode, NodeStatus, ShardStatus};
use serde::{Deserialize, Serialize};

use crate::formation::{self, FormationError};
use crate::recovery::numbers;

/// How long a node may take to say how it is, before it counts as unreachable.
const LOOK_LIMIT: Duration = Duration::from_secs(1);

/// A cluster as its nodes see it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Survey {
    /// What the node says that was asked first: its map is the one that is shown.
    pub seen: NodeStatus,
    /// What each node of that map says of itself, in the order of their numbers.
    pub nodes: Vec<Surveyed>,
}

/// One node in a [`Survey`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Surveyed {
    /// The node.
    pub node: NodeId,
    /// What it says; `None` if it does not answer.
    pub says: Option<OwnWords>,
}

/// What a node says of itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OwnWords {
    /// Its applied index of the control log.
    pub applied: u64,
    /// Who leads the control log, as far as it knows.
    pub leader: Option<NodeId>,
    /// Whether it has the lease of a shard that it leads.
    pub lease_held: bool,
    /// Whether it has left its generation of the cluster, and waits to enter the next.
    pub has_left: bool,
    /// The slots that are frozen there.
    pub frozen: Vec<SlotRange>,
}

/// Asks the node at `addr` for its map, then each node of that map for itself. Must run on a core.
pub async fn survey(addr: SocketAddr) -> Result<Survey, FormationError> {
    let seen = formation::status(addr).await?;
    let nodes = join_all(seen.nodes.iter().map(ask_of_itself)).await;
    Ok(Survey { seen, nodes })
}

async fn ask_of_itself(known: &KnownNode) -> Surveyed {
    let node = known.incarnation.node;
    let says = match formation::ask_within(known.link, &AdminRequest::Status, LOOK_LIMIT).await {
        // Another node may have taken the address.
        Ok(AdminReply::Status(status)) if status.node == node => {
            let NodeStatus { applied, leader, lease_held, has_left, frozen, .. } = *status;
            Some(OwnWords { applied, leader, lease_held, has_left, frozen })
        }
        _ => None,
    };
    Surveyed { node, says }
}

/// A survey as a table for people.
pub fn table(survey: &Survey) -> String {
    let seen = &survey.seen;
    let leader = seen.leader.map_or("no leader".to_owned(), |leader| format!("led by node {leader}"));
    let mut lines = vec![format!(
        "as node {} sees it, up to entry {} of the control log, which is {leader}",
        seen.node, seen.applied
    )];
    lines.extend(alarms(survey));
    lines.extend(columns(&node_rows(survey)));
    lines.push(String::new());
    lines.extend(columns(&shard_rows(seen)));
    for job in &seen.jobs {
        let slots: usize = job.slots.iter().map(|range| range.len()).sum();
        let reason = if job.reason.is_empty() { String::new() } else { format!(": {}", job.reason) };
        let (name, state) = (job.name.get(..8).unwrap_or(&job.name), &job.state);
        lines.push(format!(
            "job {name}  shard {} to {}, {slots} slots, {state}{reason}",
            job.source, job.target
        ));
    }
    lines.join("\n")
}

/// Whether too few voters answer for the control log to decide anything.
pub fn has_lost_majority(survey: &Survey) -> bool {
    let voters = survey.seen.nodes.iter().filter(|known| known.voter).count();
    votes(survey, true).len() < majority(voters)
}

/// The voters that take part, or those that do not.
fn votes(survey: &Survey, wanted: bool) -> Vec<NodeId> {
    let takes_part = |of: &Surveyed| of.says.as_ref().is_some_and(|words| !words.has_left);
    let both = survey.seen.nodes.iter().zip(&survey.nodes);
    both.filter(|(known, of)| known.voter && takes_part(of) == wanted).map(|(_, of)| of.node).collect()
}

/// What operators must not miss.
fn alarms(survey: &Survey) -> Vec<String> {
    let mut lines = Vec::new();
    if has_lost_majority(survey) {
        let (here, away) = (votes(survey, true), votes(survey, false));
        lines.push(format!(
            "THE CONTROL LOG HAS LOST ITS MAJORITY: {} of {} voters take part, nodes {} do not. Leases run out, nothing \
             moves, and no shard fails over until they are back. If they are lost for good: lockgate cluster recover",
            here.len(),
            here.len() + away.len(),
            numbers(&away)
        ));
        for surveyed in &survey.nodes {
            let frozen = surveyed.says.as_ref().map_or(&[][..], |words| &words.frozen);
            if !frozen.is_empty() {
                let ranges: Vec<String> = frozen.iter().map(SlotRange::to_string).collect();
                let (node, ranges) = (surveyed.node, ranges.join(" "));
                lines.push(format!("node {node} holds frozen slots, which stay so until then: {ranges}"));
            }
        }
    }
    lines
}

fn node_rows(survey: &Survey) -> Vec<Vec<String>> {
    let titles = ["node", "links", "clients", "boot", "shard", "role", "in sync", "votes", "answers"];
    let mut rows = vec![titles.map(str::to_owned).to_vec()];
    for (known, surveyed) in survey.seen.nodes.iter().zip(&survey.nodes) {
        let node = known.incarnation.node;
        let shard = survey.seen.shard_of(node);
        let votes = match (known.voter, survey.seen.leader == Some(node)) {
            (true, true) => "yes, leads",
            (true, false) => "yes",
            (false, _) => "no",
        };
        let answers = surveyed.says.as_ref().map_or("no".to_owned(), |words| {
            let lease = match words {
                OwnWords { has_left: true, .. } => ", has left its generation",
                OwnWords { lease_held: true, .. } => ", lease held",
                _ => "",
            };
            format!("at entry {}{lease}", words.applied)
        });
        rows.push(vec![
            node.to_string(),
            known.link.to_string(),
            known.listen.to_string(),
            known.incarnation.boot.to_string(),
            shard.map_or("-".to_owned(), |shard| shard.id.to_string()),
            role(shard, node).to_owned(),
            in_sync(shard, node).to_owned(),
            votes.to_owned(),
            answers,
        ]);
    }
    rows
}

fn role(shard: Option<&ShardStatus>, node: NodeId) -> &'static str {
    match shard {
        None => "none",
        Some(shard) if shard.primary != node => "replica",
        Some(shard) if shard.is_vacant => "was primary",
        Some(_) => "primary",
    }
}

fn in_sync(shard: Option<&ShardStatus>, node: NodeId) -> &'static str {
    let member = shard.and_then(|shard| shard.members.iter().find(|member| member.node == node));
    match member {
        None => "-",
        Some(member) if member.in_sync => "yes",
        Some(_) => "no",
    }
}

fn shard_rows(seen: &NodeStatus) -> Vec<Vec<String>> {
    let titles = ["shard", "epoch", "primary", "replicas", "in sync", "slots"];
    let mut rows = vec![titles.map(str::to_owned).to_vec()];
    for shard in &seen.shards {
        let list = |nodes: Vec<String>| if nodes.is_empty() { "-".to_owned() } else { nodes.join(",") };
        let replicas = shard.replicas().map(|member| member.node.to_string());
        let in_sync = shard.members.iter().filter(|member| member.in_sync);
        let slots: usize = shard.slots.iter().map(|range| range.len()).sum();
        let ranges: Vec<String> = shard.slots.iter().map(|range| range.to_string()).collect();
        rows.push(vec![
            shard.id.to_string(),
            shard.epoch.to_string(),
            shard.primary.to_string(),
            list(replicas.collect()),
            list(in_sync.map(|member| member.node.to_string()).collect()),
            if slots == 0 { "none".to_owned() } else { format!("{slots}: {}", ranges.join(" ")) },
        ]);
    }
    rows
}

/// Rows as lines whose cells stand below each other.
pub(crate) fn columns(rows: &[Vec<String>]) -> Vec<String> {
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..rows[0].len()).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use lockgate_migrate::control::Incarnation;

    use super::*;

    /// Three voters, of which the last `away` say nothing; the first holds a frozen slot.
    fn survey(away: usize) -> Survey {
        let addr = SocketAddr::from(([127, 0, 0, 1], 7_000));
        let known = |number: u32| KnownNode {
            incarnation: Incarnation { node: NodeId(number), directory: [number as u8; 16], boot: 1 },
            name: String::new(),
            link: addr,
            listen: addr,
            voter: true,
        };
        let frozen = vec![SlotRange::new(100, 101)];
        let says = |frozen| OwnWords { applied: 9, leader: None, lease_held: false, has_left: false, frozen };
        let nodes = (0..3).map(|at| Surveyed {
            node: NodeId(at as u32 + 1),
            says: (at + away < 3).then(|| says(if at == 0 { frozen.clone() } else { Vec::new() })),
        });
        let seen = NodeStatus {
            node: NodeId(1),
            applied: 9,
            leader: None,
            lease_held: false,
            node_timeout_ms: 2_000,
            lease_over_ms: 1_515,
            generation: 0,
            recovery: [0; 16],
            has_left: false,
            frozen: frozen.clone(),
            next_node: NodeId(4),
            nodes: (1..=3).map(known).collect(),
            shards: Vec::new(),
            jobs: Vec::new(),
        };
        Survey { seen, nodes: nodes.collect() }
    }

    #[test]
    fn a_lost_majority_is_told_with_who_holds_frozen_slots() {
        assert!(!has_lost_majority(&survey(1)) && alarms(&survey(1)).is_empty());
        let told = table(&survey(2));
        assert!(told.contains("LOST ITS MAJORITY: 1 of 3 voters take part, nodes 2, 3 do not"), "{told}");
        assert!(told.contains("node 1 holds frozen slots, which stay so until then: 100-101"), "{told}");
        let mut left = survey(1);
        left.nodes[1].says.as_mut().expect("it answers").has_left = true;
        assert!(has_lost_majority(&left), "who has left does not take part");
    }
}
