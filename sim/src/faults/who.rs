//! Finding the machine that a fault's role names.

use lockgate_migrate::control::{JobId, Shard};

use crate::cluster::Cluster;
use crate::plan::Who;
use crate::watch::View;

/// The machine in this role: of `job`, or of the latest one.
pub fn resolve(view: &View, who: Who, job: Option<JobId>) -> Option<usize> {
    let map = view.newest_map()?;
    let shards = || view.jobs.shards(job);
    let primary = |shard: &Shard| Cluster::machine_of(shard.primary.node);
    let replica = |shard: &Shard| shard.replicas.first().map(|&node| Cluster::machine_of(node));
    match who {
        Who::Machine(machine) => (machine < view.seen.len()).then_some(machine),
        Who::Source => map.shards.get(&shards()?.0).map(primary),
        Who::Target => map.shards.get(&shards()?.1).map(primary),
        Who::SourceReplica => map.shards.get(&shards()?.0).and_then(replica),
        Who::TargetReplica => map.shards.get(&shards()?.1).and_then(replica),
        Who::Leader => leader(view),
        Who::Heir => map.shards.get(&view.jobs.reached.last_failover()?).map(primary),
    }
}

/// The machine that leads the control log, as most of those that know a leader say.
fn leader(view: &View) -> Option<usize> {
    let said = (0..view.seen.len())
        .filter_map(|machine| view.cluster.with_node(machine, |node, _| node.leader())?);
    let mut said: Vec<usize> = said.map(Cluster::machine_of).collect();
    said.sort_unstable();
    let count = |leader: usize| said.iter().filter(|&&other| other == leader).count();
    said.iter().copied().max_by_key(|&leader| count(leader))
}
