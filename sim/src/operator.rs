//! The operator of a run: asks for the plan's jobs, and cancels them, over the commands that people use.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use lockgate::client::Reply;
use lockgate_engine::Slot;
use lockgate_migrate::control::SlotRange;

use crate::client::{Answer, Client};
use crate::cluster::Cluster;
use crate::plan::{Plan, PlannedJob};
use crate::random::Random;

/// How long the operator waits for one reply.
const PATIENCE: Duration = Duration::from_secs(6);

/// What became of requests.
#[derive(Default)]
pub struct Operator {
    /// Requests for jobs that were answered with OK.
    pub accepted: Cell<u64>,
    /// Requests that were refused, or not answered.
    pub refused: Cell<u64>,
    /// The last refusal, for the trace.
    pub last_refusal: RefCell<String>,
}

impl Operator {
    /// Asks for one job at its time.
    pub async fn ask_for(&self, cluster: &Rc<Cluster>, plan: &Plan, job: PlannedJob, number: usize) {
        lockgate_runtime::sleep(Duration::from_millis(job.at_ms)).await;
        let Some((machine, range, target)) = resolve(cluster, job) else { return };
        let mut client = Client::new(Rc::clone(cluster), Random::new(plan.seed, &format!("job {number}")));
        let (start, end) = (range.start.to_string(), range.end.to_string());
        let command: [&[u8]; 7] = [
            b"CLUSTER",
            b"MIGRATESLOTS",
            b"SLOTSRANGE",
            start.as_bytes(),
            end.as_bytes(),
            b"NODE",
            target.as_bytes(),
        ];
        let answer = client.ask(machine, &command, PATIENCE).await;
        tracing::info!(number, %range, from = machine + 1, ?answer, "job asked for");
        match answer {
            Answer::Reply(Reply::Simple(_)) => self.accepted.set(self.accepted.get() + 1),
            other => {
                self.refused.set(self.refused.get() + 1);
                *self.last_refusal.borrow_mut() = format!("{other:?}");
            }
        }
    }

    /// Asks every machine to cancel its jobs.
    pub async fn cancel_all(&self, cluster: &Rc<Cluster>, random: Random) {
        let mut client = Client::new(Rc::clone(cluster), random);
        for machine in 0..cluster.machines.len() {
            if cluster.node(machine).is_some() {
                client.ask(machine, &[b"CLUSTER", b"CANCELSLOTMIGRATIONS"], PATIENCE).await;
            }
        }
    }
}

/// The machine to ask, the slots, and the target's name: what of the planned slots one owner has now.
fn resolve(cluster: &Cluster, job: PlannedJob) -> Option<(usize, SlotRange, String)> {
    let map = cluster.newest_map()?;
    let hot = cluster.shape.hot(job.shard);
    let first = hot.start + job.first;
    let owner = map.owner(Slot::new(first)?).shard?;
    let is_same = |&number: &u16| Slot::new(number).is_some_and(|slot| map.owner(slot).shard == Some(owner));
    let last = (first..hot.end.min(first + job.count)).take_while(is_same).last()?;
    let shards: Vec<_> = map.shards.keys().copied().collect();
    let to = shards[job.to % shards.len()];
    let to = if to == owner { shards[(job.to + 1) % shards.len()] } else { to };
    let primary = |shard| map.shards.get(&shard).map(|shard| shard.primary.node);
    let target = map.nodes.get(&primary(to)?)?.name.to_string();
    Some((Cluster::machine_of(primary(owner)?), SlotRange::new(first, last), target))
}
