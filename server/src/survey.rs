//! How a cluster is, as one of its nodes sees it, and what each of the others says of itself.
//!
//! A survey is not a snapshot: the nodes are asked at about the same time, and each answers with the map that it has
//! applied. It knows nothing that a node does not say.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future::join_all;
use lockgate_migrate::control::NodeId;
use lockgate_migrate::node::{AdminReply, AdminRequest, KnownNode, NodeStatus, ShardStatus};
use serde::{Deserialize, Serialize};

use crate::formation::{self, FormationError};

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
            let NodeStatus { applied, leader, lease_held, .. } = *status;
            Some(OwnWords { applied, leader, lease_held })
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
            let lease = if words.lease_held { ", lease held" } else { "" };
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
fn columns(rows: &[Vec<String>]) -> Vec<String> {
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..rows[0].len()).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}
