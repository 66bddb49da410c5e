//! Whether a cluster is at rest and whole: what healing must lead to.

use lockgate_engine::Gate;
use lockgate_migrate::control::{ClusterMap, ShardId};

use crate::cluster::Cluster;
use crate::watch::{View, serves};

/// What is still missing; `None` when nothing is.
pub fn unsettled(view: &View) -> Option<String> {
    let map = match view.newest_map() {
        Some(map) => map,
        None => return Some("no machine has a map".to_owned()),
    };
    machines(view, map)
        .or_else(|| decisions(map))
        .or_else(|| slots(view, map))
        .or_else(|| replicas(view, map))
}

/// Every machine runs, with the newest map.
fn machines(view: &View, map: &ClusterMap) -> Option<String> {
    for machine in (0..view.seen.len()).filter(|&machine| !view.cluster.is_lost(machine)) {
        let name = view.name(machine);
        let Some(applied) = view.cluster.with_node(machine, |node, _| node.map().map(|map| map.applied))
        else {
            return Some(format!("{name} does not run"));
        };
        if applied != Some(map.applied) {
            return Some(format!("{name} has applied {applied:?} of {}", map.applied));
        }
    }
    None
}

/// No job is undecided or not activated.
fn decisions(map: &ClusterMap) -> Option<String> {
    let open = map.jobs.values().find(|job| !job.state.is_finished())?;
    Some(format!("job {} is {}", open.id, open.state.word()))
}

/// Every slot has its one server.
fn slots(view: &View, map: &ClusterMap) -> Option<String> {
    for (at, &slot) in view.hot.iter().enumerate() {
        let owner = map.owner(slot);
        let Some(shard) = owner.shard.and_then(|shard| map.shards.get(&shard)) else {
            return Some(format!("slot {slot} has no owner"));
        };
        let primary = Cluster::machine_of(shard.primary.node);
        let gate = view.slot(primary, at).map(|status| status.gate);
        if !view.has_lease(primary) {
            return Some(format!("{} has no lease", view.name(primary)));
        }
        if owner.pending.is_some() || gate != Some(Gate::Owned) {
            let name = view.name(primary);
            return Some(format!("slot {slot} is {gate:?} at its owner {name}, pending {:?}", owner.pending));
        }
        if let Some(&other) = view.servers(at).iter().find(|&&machine| machine != primary) {
            return Some(format!("slot {slot} is served by {} as well", view.name(other)));
        }
        let holds_it = |machine: usize| {
            view.slot(machine, at).is_some_and(|status| serves(status.gate) || status.gate == Gate::HandedOff)
        };
        if let Some(other) = (0..view.seen.len()).find(|&machine| machine != primary && holds_it(machine)) {
            return Some(format!("{} has not dropped slot {slot}", view.name(other)));
        }
    }
    None
}

/// Every replica that can be is in sync, and has what its primary has.
fn replicas(view: &View, map: &ClusterMap) -> Option<String> {
    for (id, shard) in &map.shards {
        for &node in &shard.replicas {
            let machine = Cluster::machine_of(node);
            let boot = map.nodes.get(&node).map(|info| info.incarnation.boot);
            if !view.cluster.is_lost(machine) && shard.in_sync.get(&node).copied() != boot {
                let behind = behind(view, map, *id, machine);
                return Some(format!("{} is not in sync with shard {id}{behind}", view.name(machine)));
            }
        }
    }
    for &slot in &view.hot {
        let shard = &map.shards[&map.owner(slot).shard?];
        let status = |machine| view.cluster.with_node(machine, |node, _| node.engine().slot_status(slot));
        let primary = Cluster::machine_of(shard.primary.node);
        let led = status(primary)?;
        for machine in shard.in_sync.keys().map(|&node| Cluster::machine_of(node)) {
            let held = status(machine)?;
            if held.version != led.version {
                let (name, have, want) = (view.name(machine), held.version, led.version);
                return Some(format!("{name} has slot {slot} up to {have} of {want}"));
            }
        }
    }
    None
}

/// How far a replica is behind its primary, in words: the first slot in which they differ.
fn behind(view: &View, map: &ClusterMap, shard: ShardId, replica: usize) -> String {
    let primary = Cluster::machine_of(map.shards[&shard].primary.node);
    for &slot in view.hot.iter().filter(|&&slot| map.owner(slot).shard == Some(shard)) {
        let status = |machine| view.cluster.with_node(machine, |node, _| node.engine().slot_status(slot));
        if let (Some(held), Some(led)) = (status(replica), status(primary))
            && (held.version, held.generation) != (led.version, led.generation)
        {
            return format!(
                ": it has slot {slot} as {} up to {} in generation {}, and its primary as {} up to {} in {}",
                held.gate, held.version, held.generation, led.gate, led.version, led.generation
            );
        }
    }
    String::new()
}
