//! `CLUSTER MIGRATESLOTS` and its companions, with the syntax and the error texts of Valkey 9.1.

use lockgate_engine::Slot;
use lockgate_migrate::control::{ClusterMap, Job, JobState, Name, NodeId, ShardId, SlotRange};
use lockgate_net::resp::{Reply, Request};

use super::cluster::shard_of;
use super::{Commands, arity};

/// One `SLOTSRANGE ... NODE ...` group of a request.
struct Group {
    ranges: Vec<SlotRange>,
    target: ShardId,
}

impl Commands {
    /// `CLUSTER MIGRATESLOTS SLOTSRANGE s e [s e ...] NODE id [SLOTSRANGE ... NODE id ...]`.
    pub(super) async fn migrate_slots(&self, request: &Request<'_>, reply: &mut Reply) -> Result<(), String> {
        let (Some(map), Some(me)) = (self.node.map(), self.node.id()) else {
            return Err("ERR this node does not belong to a cluster yet".into());
        };
        let mine = match self.node.shard() {
            Some((shard, true)) => shard,
            _ => return Err("ERR Slot migration can only be used on primary nodes.".into()),
        };
        let groups = parse(&request.args()[2..], &map, me).map_err(|text| format!("ERR {text}"))?;
        check(&groups, &map, mine).map_err(|text| format!("ERR {text}"))?;
        for group in groups {
            self.node.migrate(group.target, group.ranges).await.map_err(|error| format!("ERR {error}"))?;
        }
        reply.ok();
        Ok(())
    }

    /// `CLUSTER GETSLOTMIGRATIONS [COUNT n]`: this shard's jobs, newest first; at most `n` of them.
    pub(super) fn get_slot_migrations(&self, request: &Request<'_>, reply: &mut Reply) -> Result<(), String> {
        let count = match request.args()[2..] {
            [] => usize::MAX,
            [word, number] if word.eq_ignore_ascii_case(b"COUNT") => {
                let number = std::str::from_utf8(number).ok().and_then(|text| text.parse().ok());
                number.ok_or("ERR value is not an integer or out of range")?
            }
            _ => return Err("ERR syntax error: expected COUNT n".into()),
        };
        let (map, mine) = (self.node.map(), self.node.shard().map(|(shard, _)| shard));
        let jobs: Vec<&Job> = map
            .iter()
            .flat_map(|map| map.jobs.values().rev())
            .filter(|job| concerns(job, mine))
            .take(count)
            .collect();
        reply.array(jobs.len());
        for job in jobs {
            self.describe(map.as_ref().expect("jobs come from a map"), job, mine, reply);
        }
        Ok(())
    }

    fn describe(&self, map: &ClusterMap, job: &Job, mine: Option<ShardId>, reply: &mut Reply) {
        let name_of = |shard: ShardId| {
            let info = map.shards.get(&shard).and_then(|shard| map.nodes.get(&shard.primary.node));
            info.map_or_else(String::new, |info| info.name.to_string())
        };
        let ranges: Vec<String> =
            job.slots.iter().map(|range| format!("{}-{}", range.start, range.end)).collect();
        let progress = self.node.job_progress(job.id);
        let remaining = progress.as_ref().map_or(0, |progress| progress.lag_bytes);
        let operation = if Some(job.source) == mine { "EXPORT" } else { "IMPORT" };
        let text = |reply: &mut Reply, key: &str, value: &str| {
            reply.bulk(key.as_bytes());
            reply.bulk(value.as_bytes());
        };
        let number = |reply: &mut Reply, key: &str, value: u64| {
            reply.bulk(key.as_bytes());
            reply.integer(value as i64);
        };
        reply.map(14);
        text(reply, "name", &job.name.to_string());
        text(reply, "operation", operation);
        text(reply, "slot_ranges", &ranges.join(" "));
        text(reply, "target_node", &name_of(job.target));
        text(reply, "source_node", &name_of(job.source));
        number(reply, "create_time", job.created_ms / 1_000);
        number(reply, "last_update_time", job.updated_ms / 1_000);
        number(reply, "last_ack_time", job.updated_ms / 1_000);
        text(reply, "state", state_word(job, progress.as_ref()));
        text(reply, "message", job.reason());
        number(reply, "cow_size", 0);
        number(reply, "remaining_repl_size", remaining);
        number(reply, "payload_bytes", progress.as_ref().map_or(0, |progress| progress.bytes_total));
        number(reply, "freeze_to_activate_us", progress.map_or(0, |progress| progress.freeze_to_activate_us));
    }

    /// `CLUSTER CANCELSLOTMIGRATIONS`: every job of this shard that is not decided yet.
    pub(super) async fn cancel_slot_migrations(&self, reply: &mut Reply) -> Result<(), String> {
        let (map, mine) = (self.node.map(), self.node.shard().map(|(shard, _)| shard));
        let active = map.iter().flat_map(|map| map.jobs.values());
        let jobs: Vec<_> = active
            .filter(|job| job.state == JobState::Active && concerns(job, mine))
            .map(|job| job.id)
            .collect();
        if jobs.is_empty() {
            return Err("ERR No migrations ongoing".into());
        }
        for job in jobs {
            // One that was committed meanwhile has won the race, and stays.
            if let Err(error) = self.node.cancel(job).await {
                tracing::info!(%job, %error, "job was not cancelled");
            }
        }
        reply.ok();
        Ok(())
    }
}

fn concerns(job: &Job, shard: Option<ShardId>) -> bool {
    Some(job.source) == shard || Some(job.target) == shard
}

/// The state in the words that clients of this command know, with ours between them.
fn state_word(job: &Job, progress: Option<&lockgate_migrate::JobProgress>) -> &'static str {
    use lockgate_migrate::Phase;
    match (&job.state, progress.map(|progress| progress.phase)) {
        (JobState::Active, Some(Phase::Streaming)) => "snapshotting",
        (JobState::Active, Some(Phase::Freezing | Phase::Barrier)) => "paused",
        (JobState::Active, Some(Phase::Voting)) => "committing",
        (JobState::Active, _) => "replicating",
        (JobState::Committed { .. }, _) => "committed",
        (JobState::Activated { .. }, _) => "success",
        (JobState::Disputed, _) => "disputed",
        (JobState::Failed { .. }, _) => "failed",
        (JobState::Cancelled { .. }, _) => "cancelled",
    }
}

fn parse(args: &[&[u8]], map: &ClusterMap, me: NodeId) -> Result<Vec<Group>, String> {
    let mut groups = Vec::new();
    let mut args = args.iter().peekable();
    if args.peek().is_none() {
        return Err(arity("CLUSTER|MIGRATESLOTS").trim_start_matches("ERR ").to_owned());
    }
    while let Some(word) = args.next() {
        if !word.eq_ignore_ascii_case(b"SLOTSRANGE") {
            return Err(format!(
                "syntax error: expected SLOTSRANGE, got '{}'",
                String::from_utf8_lossy(word)
            ));
        }
        let mut ranges = Vec::new();
        let node = loop {
            let Some(start) = args.next() else { return Err("No NODE given for the last SLOTSRANGE".into()) };
            if start.eq_ignore_ascii_case(b"NODE") {
                break args.next().ok_or("No node name given after NODE")?;
            }
            let end = args.next().filter(|end| !end.eq_ignore_ascii_case(b"NODE"));
            ranges.push(range(start, end.ok_or("No end slot for final slot range")?)?);
        };
        if ranges.is_empty() {
            return Err("No slot ranges specified".into());
        }
        groups.push(Group { ranges, target: target(node, map, me)? });
    }
    Ok(groups)
}

fn range(start: &[u8], end: &[u8]) -> Result<SlotRange, String> {
    let slot = |arg: &[u8]| {
        let number =
            std::str::from_utf8(arg).ok().and_then(|text| text.parse::<u16>().ok()).and_then(Slot::new);
        number.map(Slot::number).ok_or_else(|| "Invalid or out of range slot".to_owned())
    };
    let (start, end) = (slot(start)?, slot(end)?);
    if start > end {
        return Err(format!("Start slot number {start} is greater than end slot number {end}."));
    }
    Ok(SlotRange::new(start, end))
}

fn target(node: &[u8], map: &ClusterMap, me: NodeId) -> Result<ShardId, String> {
    let text = String::from_utf8_lossy(node);
    let name: Name = text.parse().map_err(|_| format!("Invalid node name: {text}"))?;
    let known = map.nodes.iter().find(|(_, info)| info.name == name);
    let (&id, _) = known.ok_or_else(|| format!("Unknown node name: {text}"))?;
    let (shard, state) = shard_of(map, id).ok_or_else(|| format!("Node {text} belongs to no shard"))?;
    if id == me || state.members().any(|member| member == me) {
        return Err("Target node can not be this node.".into());
    }
    if state.primary.node != id {
        return Err(format!("Target node {text} is not a primary; name its shard's primary"));
    }
    Ok(shard)
}

/// What can be said before the control log is asked; it decides all the same.
fn check(groups: &[Group], map: &ClusterMap, mine: ShardId) -> Result<(), String> {
    let mut seen: Vec<SlotRange> = Vec::new();
    for group in groups {
        for (index, &range) in group.ranges.iter().enumerate() {
            if let Some(other) = group.ranges[..index].iter().find(|other| range.overlaps(**other)) {
                let (a, b) = ((range.start, range.end), (other.start, other.end));
                return Err(format!(
                    "Slot range {}-{} overlaps with previous range {}-{}.",
                    a.0, a.1, b.0, b.1
                ));
            }
            if seen.iter().any(|other| range.overlaps(*other)) {
                return Err("Slot ranges in migrations overlap".into());
            }
        }
        seen.extend_from_slice(&group.ranges);
    }
    let owner = |slot: Slot| map.slots[slot].shard;
    let slots = || seen.iter().flat_map(|range| range.slots());
    if let Some(slot) = slots().find(|&slot| owner(slot).is_none()) {
        return Err(format!("Slot {slot} has no node served."));
    }
    let first = slots().next().and_then(owner);
    if slots().any(|slot| owner(slot) != first) {
        return Err("Requested slots span multiple shards".into());
    }
    if first != Some(mine) {
        return Err("Slots are not served by this node.".into());
    }
    let moving = map.jobs.values().filter(|job| job.state == JobState::Active);
    for range in moving.flat_map(|job| &job.slots) {
        if let Some(slot) = slots().find(|slot| range.contains(slot.number())) {
            return Err(format!("I am already migrating slot {slot}."));
        }
    }
    Ok(())
}
