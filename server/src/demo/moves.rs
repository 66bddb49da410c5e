//! The demo's movers: threads that keep jobs running between the shards, and note how each went.
//!
//! Invariant: a slot belongs to at most one running job; which shard owns it is known here because nobody else moves slots.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use lockgate_engine::Slot;
use lockgate_migrate::control::{ShardId, SlotRange, ranges_of};
use lockgate_migrate::node::ShardStatus;
use lockgate_runtime::sync::atomic::{AtomicBool, Ordering};
use lockgate_runtime::sync::{Arc, Mutex};

use super::kills::Killer;
use super::load::Shared;
use super::oracle::mix64;
use super::probe::{GapProbe, SlotTags};
use super::report::Durations;
use super::tally::Tally;
use crate::client::{ClientConfig, ClientError, Connection, Reply};

/// Fewest and most slots of a job.
pub const JOB_SLOTS: (usize, usize) = (500, 1_000);
/// A shard keeps at least so many slots that are not moving.
const SHARD_SLOTS_MIN: usize = 1_500;
/// Pause between two looks at a job.
const LOOK_PAUSE: Duration = Duration::from_millis(5);
/// A source's newest jobs, of which the one that is watched must be one.
const JOBS_LOOKED_AT: &[u8] = b"64";
/// How long a finalize is taken to last until the first one has ended, in microseconds.
const FIRST_FINALIZE_US: u64 = 10_000;
/// A job that has not ended by then counts as stuck.
const JOB_LIMIT: Duration = Duration::from_secs(30);
/// Writes that a probe must see acknowledged before its job starts, and again after it has ended.
const PROBE_WRITES: u64 = 20;
/// How long a probe may take for them.
const PROBE_LIMIT: Duration = Duration::from_secs(5);

/// A shard as the movers know it.
pub struct MovingShard {
    /// Its number.
    pub id: ShardId,
    /// Where clients reach the primary that it began with.
    pub primary: SocketAddr,
    /// That primary's name.
    pub name: String,
}

/// What the jobs of a run amount to.
#[derive(Default)]
pub struct Moved {
    /// Jobs that were committed and activated.
    pub jobs: u64,
    /// Jobs that ended otherwise, or not at all, in words.
    pub failures: Vec<String>,
    /// The most jobs that were active at once.
    pub concurrent_max: u64,
    /// Payload that they moved.
    pub bytes: u64,
    /// A client's longest gap on a moving slot, per handover.
    pub gaps: Durations,
    /// From freeze to activation, per handover.
    pub pauses: Durations,
    /// How long at least one job was active.
    pub active: Duration,
    running: u64,
    active_since: Option<Instant>,
}

/// What all movers share.
pub struct Movers {
    shards: Vec<MovingShard>,
    /// The names of all nodes, in the order of their numbers.
    names: Vec<String>,
    /// Kills nodes in every other job.
    killer: Option<Arc<Killer>>,
    seeds: Vec<SocketAddr>,
    client: ClientConfig,
    load: Arc<Shared>,
    tally: Arc<Tally>,
    tags: SlotTags,
    owners: Mutex<Vec<Place>>,
    moved: Mutex<Moved>,
    /// Set it, and no new job is started.
    pub stop: AtomicBool,
}

#[derive(Clone, Copy)]
struct Place {
    shard: usize,
    moving: bool,
}

/// One job to be run.
struct Plan {
    source: usize,
    target: usize,
    slots: Vec<Slot>,
}

impl Movers {
    /// Movers over `shards`, which own the slots in equal parts, in order. Clients begin at `seeds`.
    pub fn new(
        shards: Vec<MovingShard>,
        names: Vec<String>,
        seeds: Vec<SocketAddr>,
        killer: Option<Arc<Killer>>,
        client: ClientConfig,
        load: Arc<Shared>,
        tally: Arc<Tally>,
    ) -> Arc<Movers> {
        let owner = |slot: Slot| {
            (0..shards.len()).rev().find(|shard| first_slot(*shard, shards.len()) <= slot.index())
        };
        let places = Slot::all()
            .map(|slot| Place { shard: owner(slot).expect("shard 0 begins at slot 0"), moving: false });
        Arc::new(Movers {
            owners: Mutex::new(places.collect()),
            seeds,
            names,
            killer,
            shards,
            client,
            load,
            tally,
            tags: SlotTags::find(),
            moved: Mutex::default(),
            stop: AtomicBool::new(false),
        })
    }

    /// Hash tags for every slot.
    pub fn tags(&self) -> &SlotTags {
        &self.tags
    }

    /// Runs one job after the other until it is stopped. `number` tells the movers of a run apart.
    pub fn run(&self, number: u64, seed: u64) {
        let mut random = mix64(seed ^ mix64(0x006d_6f76_6572 ^ number));
        let mut job = 0_u64;
        while !self.stop.load(Ordering::Relaxed) {
            random = mix64(random);
            let Some(plan) = self.plan(random) else {
                std::thread::sleep(LOOK_PAUSE);
                continue;
            };
            job += 1;
            // Who strikes takes every other job, if the cluster can bear it by then.
            let killer = self.killer.clone().filter(|killer| job.is_multiple_of(2) && killer.reserve());
            let mut strike = killer.map(|killer| {
                let delay_us = mix64(random) % (self.finalize_us() / 2).max(1);
                Strike { killer: Some(killer), delay: Duration::from_micros(delay_us) }
            });
            let ended = self.run_job(&format!("{number}-{job}"), &plan, strike.as_mut());
            drop(strike);
            let shard = if ended.is_ok() { plan.target } else { self.owner_after_failure(&plan) };
            let mut owners = self.owners.lock();
            for slot in &plan.slots {
                owners[slot.index()] = Place { shard, moving: false };
            }
            drop(owners);
            if let Err(why) = ended {
                self.moved.lock().failures.push(why);
            }
        }
    }

    /// What the jobs amount to. To be called when all movers have ended.
    pub fn finish(&self) -> Moved {
        std::mem::take(&mut *self.moved.lock())
    }

    /// Jobs done so far.
    pub fn jobs(&self) -> u64 {
        self.moved.lock().jobs
    }

    /// How long a finalize lasts, by the median so far, in microseconds.
    fn finalize_us(&self) -> u64 {
        let moved = self.moved.lock();
        if moved.pauses.count() == 0 { FIRST_FINALIZE_US } else { moved.pauses.quantile_us(0.5) }
    }

    /// Chooses a source that has slots to spare, another shard as target, and a run of the source's slots.
    fn plan(&self, random: u64) -> Option<Plan> {
        let mut owners = self.owners.lock();
        let shards = self.shards.len();
        let source = (random % shards as u64) as usize;
        let target = (source + 1 + (random >> 8) as usize % (shards - 1)) % shards;
        let free: Vec<Slot> = Slot::all()
            .filter(|slot| owners[slot.index()].shard == source && !owners[slot.index()].moving)
            .collect();
        let count = JOB_SLOTS.0 + (random >> 24) as usize % (JOB_SLOTS.1 - JOB_SLOTS.0 + 1);
        if free.len() < count + SHARD_SLOTS_MIN {
            return None;
        }
        let begin = (random >> 40) as usize % (free.len() - count + 1);
        let slots = free[begin..begin + count].to_vec();
        slots.iter().for_each(|slot| owners[slot.index()].moving = true);
        Some(Plan { source, target, slots })
    }

    /// Where the slots of a job are that has failed: mostly where they were, but nodes die at any time.
    fn owner_after_failure(&self, plan: &Plan) -> usize {
        let Some(status) = self.killer.as_ref().and_then(|killer| killer.status()) else {
            return plan.source;
        };
        let first = plan.slots[0].number();
        let owns = |shard: &&ShardStatus| shard.slots.iter().any(|range| range.contains(first));
        let owner = status.shards.iter().find(owns).map(|shard| shard.id);
        self.shards.iter().position(|shard| Some(shard.id) == owner).unwrap_or(plan.source)
    }

    /// Where clients reach the shard's primary of the moment, and its name.
    fn primary(&self, shard: usize) -> Result<(SocketAddr, String), String> {
        let shard = &self.shards[shard];
        let Some(killer) = &self.killer else { return Ok((shard.primary, shard.name.clone())) };
        let (node, listen) = killer.primary(shard.id).ok_or("no node answers for the shard")?;
        Ok((listen, self.names[node.0 as usize - 1].clone()))
    }

    fn run_job(&self, name: &str, plan: &Plan, strike: Option<&mut Strike>) -> Result<(), String> {
        let probe = GapProbe::start(name, &self.seeds, self.client, &plan.slots, &self.tags, &self.tally);
        let probe = probe.map_err(|error| format!("job {name}: the probe did not start: {error}"))?;
        wait_for_writes(&probe);
        self.began();
        let outcome = self.move_slots(plan, strike);
        self.ended();
        wait_for_writes(&probe);
        let gap = probe.finish();
        let done = outcome.map_err(|why| format!("job {name}: {why}"))?;
        let mut moved = self.moved.lock();
        moved.jobs += 1;
        moved.bytes += done.bytes;
        moved.gaps.record(gap.longest);
        // A source that took over from a killed one has not seen the freeze.
        if done.freeze_to_activate_us > 0 {
            moved.pauses.record_us(done.freeze_to_activate_us);
        }
        Ok(())
    }

    fn began(&self) {
        let mut moved = self.moved.lock();
        moved.running += 1;
        moved.concurrent_max = moved.concurrent_max.max(moved.running);
        if moved.active_since.is_none() {
            moved.active_since = Some(Instant::now());
        }
        self.load.counting.store(true, Ordering::Relaxed);
    }

    fn ended(&self) {
        let mut moved = self.moved.lock();
        moved.running -= 1;
        if moved.running == 0 {
            self.load.counting.store(false, Ordering::Relaxed);
            let since = moved.active_since.take().expect("a job was active");
            moved.active += since.elapsed();
        }
    }

    /// Starts the job at the source's primary and watches it there until it has ended.
    fn move_slots(&self, plan: &Plan, mut strike: Option<&mut Strike>) -> Result<Done, String> {
        let ranges = ranges_of(plan.slots.iter().copied());
        let numbers: Vec<String> =
            ranges.iter().flat_map(|r| [r.start.to_string(), r.end.to_string()]).collect();
        let mut args: Vec<&[u8]> = vec![b"CLUSTER", b"MIGRATESLOTS", b"SLOTSRANGE"];
        args.extend(numbers.iter().map(String::as_bytes));
        let (source, (_, target)) = (self.primary(plan.source)?.0, self.primary(plan.target)?);
        args.extend([&b"NODE"[..], target.as_bytes()]);
        let text = |error: ClientError| error.to_string();
        let mut connection = Connection::connect(source, self.client.timeouts).map_err(text)?;
        match connection.call(&args).map_err(text)? {
            Reply::Simple(_) => {}
            other => return Err(format!("refused: {other:?}")),
        }
        let give_up = Instant::now() + JOB_LIMIT;
        let mut last = String::new();
        while Instant::now() < give_up {
            std::thread::sleep(LOOK_PAUSE);
            let jobs = connection.call(&[b"CLUSTER", b"GETSLOTMIGRATIONS", b"COUNT", JOBS_LOOKED_AT]);
            let found = jobs.map_err(text).map(|jobs| find_job(&jobs, &ranges));
            let job = match (found, &self.killer) {
                (Ok(Some(job)), _) => job,
                (Ok(None), None) => return Err("the source has forgotten the job".into()),
                (Err(why), None) => return Err(why),
                // The source is dead, or not the source any more: its successor knows of the job.
                (_, Some(_)) => {
                    if let Ok((source, _)) = self.primary(plan.source)
                        && let Ok(open) = Connection::connect(source, self.client.timeouts)
                    {
                        connection = open;
                    }
                    continue;
                }
            };
            match job.state.as_str() {
                "success" if job.done.freeze_to_activate_us > 0 || self.killer.is_some() => {
                    return Ok(job.done);
                }
                "failed" | "cancelled" => return Err(format!("{}: {}", job.state, job.message)),
                state => last = format!("{state} {}", job.message),
            }
            if matches!(job.state.as_str(), "paused" | "committing" | "committed")
                && let Some(strike) = strike.as_mut()
            {
                strike.now(self.shards[plan.source].id, self.shards[plan.target].id, &ranges);
            }
        }
        Err(format!("has not ended after {JOB_LIMIT:?}, it is {last}"))
    }
}

/// A killer that waits for its job's finalize.
struct Strike {
    /// None once it has struck.
    killer: Option<Arc<Killer>>,
    /// From when the finalize is seen to the strike: up to half as long as one lasts, as it is seen some milliseconds late.
    delay: Duration,
}

impl Strike {
    /// Strikes after its delay, if it has not yet.
    fn now(&mut self, source: ShardId, target: ShardId, slots: &[SlotRange]) {
        if let Some(killer) = self.killer.take() {
            std::thread::sleep(self.delay);
            killer.strike(source, target, slots);
        }
    }
}

impl Drop for Strike {
    fn drop(&mut self) {
        if let Some(killer) = &self.killer {
            killer.release();
        }
    }
}

/// A job's figures when it has succeeded.
struct Done {
    bytes: u64,
    freeze_to_activate_us: u64,
}

/// A job as its source reports it.
struct Reported {
    state: String,
    message: String,
    done: Done,
}

/// The newest export of exactly these ranges.
fn find_job(jobs: &Reply, ranges: &[SlotRange]) -> Option<Reported> {
    let wanted: Vec<String> = ranges.iter().map(|range| format!("{}-{}", range.start, range.end)).collect();
    let wanted = wanted.join(" ");
    let Reply::Array(jobs) = jobs else { return None };
    jobs.iter().find_map(|job| {
        let Reply::Array(pairs) = job else { return None };
        let field = |name: &str| {
            let at = pairs.chunks_exact(2).find(|pair| text_of(&pair[0]).as_deref() == Some(name))?;
            Some(&at[1])
        };
        let text = |name: &str| field(name).and_then(text_of).unwrap_or_default();
        let number = |name: &str| match field(name) {
            Some(Reply::Integer(number)) => *number as u64,
            _ => 0,
        };
        (text("operation") == "EXPORT" && text("slot_ranges") == wanted).then(|| Reported {
            state: text("state"),
            message: text("message"),
            done: Done {
                bytes: number("payload_bytes"),
                freeze_to_activate_us: number("freeze_to_activate_us"),
            },
        })
    })
}

fn text_of(reply: &Reply) -> Option<String> {
    match reply {
        Reply::Bulk(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
        _ => None,
    }
}

fn wait_for_writes(probe: &GapProbe) {
    let (enough, give_up) = (probe.acked() + PROBE_WRITES, Instant::now() + PROBE_LIMIT);
    while probe.acked() < enough && Instant::now() < give_up {
        std::thread::sleep(LOOK_PAUSE);
    }
}

/// The first slot of a shard when the slots are dealt out evenly.
fn first_slot(shard: usize, shards: usize) -> usize {
    shard * usize::from(lockgate_engine::SLOTS) / shards
}
