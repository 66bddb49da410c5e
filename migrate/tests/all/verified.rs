//! Six nodes in simulated time: three movers shift slots between three shards at the same time, writers count their keys
//! up, and readers check that no read falls below what was acknowledged, or seen, before it began.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;

use crate::common::{Machine, ended, form, get, keys_in, set, start};
use futures_util::future::join_all;
use lockgate_engine::Slot;
use lockgate_migrate::control::{JOBS_KEPT, JobState, ShardId, SlotRange, ranges_of};
use lockgate_runtime::Runtime;
use lockgate_runtime::sim::Sim;

const SHARDS: usize = 3;
const KEYS: usize = 24;
const WRITERS: usize = 3;
const READERS: usize = 4;
/// Slots 0..=95 of each shard's first range are those that move, in jobs of 16.
const JOB_SLOTS: usize = 16;

/// One key: the last operation that was issued, and the last one that is known to have taken effect.
struct Register {
    key: Vec<u8>,
    issued: Cell<u64>,
    floor: Cell<u64>,
}

struct World {
    machines: Vec<Machine>,
    registers: Vec<Register>,
    /// The owner of each moving slot, and whether it is moving now.
    places: RefCell<Vec<(Slot, usize, bool)>>,
    stop: Cell<bool>,
    reads: Cell<u64>,
    writes: Cell<u64>,
}

async fn write_until_stopped(world: Rc<World>, number: usize) {
    while !world.stop.get() {
        for register in world.registers.iter().skip(number).step_by(WRITERS) {
            let operation = register.issued.get() + 1;
            register.issued.set(operation);
            set(&world.machines, &register.key, &operation.to_le_bytes()).await;
            register.floor.set(register.floor.get().max(operation));
            world.writes.set(world.writes.get() + 1);
        }
    }
}

async fn read_until_stopped(world: Rc<World>, number: usize) {
    while !world.stop.get() {
        for register in world.registers.iter().cycle().skip(number * 5).take(KEYS) {
            let began_at = register.floor.get();
            let value = get(&world.machines, &register.key).await;
            let read = value.map_or(0, |bytes| u64::from_le_bytes(bytes.try_into().expect("eight bytes")));
            let slot = Slot::of_key(&register.key);
            assert!(read >= began_at, "slot {slot}: read {read} after operation {began_at} had taken effect");
            assert!(read <= register.issued.get(), "slot {slot}: read {read}, which nobody wrote");
            register.floor.set(register.floor.get().max(read));
            world.reads.set(world.reads.get() + 1);
        }
    }
}

/// Takes slots of shard `from` that are not moving, if it has enough of them.
fn take_slots(world: &World, from: usize) -> Option<Vec<Slot>> {
    let mut places = world.places.borrow_mut();
    let free = places.iter_mut().filter(|(_, owner, moving)| *owner == from && !moving);
    let mut chosen: Vec<_> = free.take(JOB_SLOTS).collect();
    if chosen.len() < JOB_SLOTS {
        return None;
    }
    chosen.iter_mut().for_each(|place| place.2 = true);
    Some(chosen.iter().map(|place| place.0).collect())
}

async fn move_slots(world: Rc<World>, number: usize, jobs: usize) {
    for turn in 0..jobs {
        let (from, slots) = loop {
            let from = (number + turn + lockgate_runtime::random_u64() as usize) % SHARDS;
            if let Some(slots) = take_slots(&world, from) {
                break (from, slots);
            }
            lockgate_runtime::yield_now().await;
        };
        let to = (from + 1 + lockgate_runtime::random_u64() as usize % (SHARDS - 1)) % SHARDS;
        let source = &world.machines[from * 2].node;
        let ranges = ranges_of(slots.iter().copied());
        let job = source.migrate(ShardId(to as u32 + 1), ranges).await.expect("the job starts");
        let state = ended(source, job).await;
        assert!(matches!(state, JobState::Activated { .. }), "{state:?}");
        for place in world.places.borrow_mut().iter_mut().filter(|place| slots.contains(&place.0)) {
            *place = (place.0, to, false);
        }
    }
}

async fn reads_never_go_back(runtimes: Vec<Runtime>, jobs_per_mover: usize) {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let machines =
        join_all(runtimes.into_iter().map(|runtime| start(runtime, PathBuf::from("/data"), any))).await;
    form(&machines).await;
    let first = |shard: usize| (shard * (16_384 / SHARDS)) as u16;
    let range = |shard| SlotRange::new(first(shard), first(shard) + 95);
    let keys = (0..SHARDS).flat_map(|shard| keys_in(range(shard), KEYS / SHARDS));
    let registers = keys.map(|key| Register { key, issued: Cell::new(0), floor: Cell::new(0) });
    let places = (0..SHARDS).flat_map(|shard| range(shard).slots().map(move |slot| (slot, shard, false)));
    let world = Rc::new(World {
        machines,
        registers: registers.collect(),
        places: RefCell::new(places.collect()),
        stop: Cell::new(false),
        reads: Cell::new(0),
        writes: Cell::new(0),
    });
    let movers = async {
        join_all((0..SHARDS).map(|number| move_slots(world.clone(), number, jobs_per_mover))).await;
        world.stop.set(true);
    };
    let writers = join_all((0..WRITERS).map(|number| write_until_stopped(world.clone(), number)));
    let readers = join_all((0..READERS).map(|number| read_until_stopped(world.clone(), number)));
    futures_util::join!(movers, writers, readers);
    for register in &world.registers {
        let value = get(&world.machines, &register.key).await;
        assert_eq!(value.as_deref(), Some(&register.issued.get().to_le_bytes()[..]));
    }
    assert!(world.writes.get() > 100 && world.reads.get() > 100, "clients worked while slots moved");
}

fn run(seed: u64, jobs_per_mover: usize) {
    let sim = Sim::new(seed);
    let runtimes = (1..=2 * SHARDS).map(|n| sim.node(&format!("node-{n}"), 1)).collect();
    sim.run_until(reads_never_go_back(runtimes, jobs_per_mover));
}

#[test]
fn reads_never_go_back_while_slots_move() {
    crate::common::log_to_stderr();
    for seed in 1..=4 {
        println!("seed {seed}");
        run(seed, 6);
    }
}

/// More jobs than the map remembers: what a forgotten job leaves behind must not touch the jobs of today. (A finished job
/// that was forgotten once thawed slots that a later job had frozen, and an acknowledged write was lost.)
#[test]
fn jobs_that_the_map_has_forgotten_touch_nothing() {
    crate::common::log_to_stderr();
    run(5, JOBS_KEPT / SHARDS + 20);
}
