//! One run: a cluster, its clients, its faults, healing, and the verdict.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use futures_channel::oneshot;
use futures_util::future::{Either, join_all, select};
use lockgate_runtime::sim::Sim;

use crate::checker::{self, Limits, Operation, Outcome, Reply, Verdict};
use crate::cluster::Cluster;
use crate::counters::Counters;
use crate::faults::Injector;
use crate::operator::Operator;
use crate::oracles;
use crate::plan::{Plan, Step};
use crate::settled::unsettled;
use crate::watch::{Violation, Watch};
use crate::workload::Workload;

/// Bounds on what a healthy cluster takes, in ideal time.
const FORMATION_LIMIT: Duration = Duration::from_secs(30);
const SETTLING_LIMIT: Duration = Duration::from_secs(60);
const LAST_READ_LIMIT: Duration = Duration::from_secs(15);
/// Pause between two looks at whether the cluster has settled.
const LOOK_PAUSE: Duration = Duration::from_millis(20);

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Report {
    /// Its seed.
    pub seed: u64,
    /// What broke first.
    pub violation: Option<Violation>,
    /// What happened.
    pub counters: Counters,
    /// How long it took, in ideal time.
    pub simulated_ns: u64,
    /// A hash of everything that happened: equal plans give equal histories.
    pub trace_hash: u64,
}

/// Carries out a plan.
pub fn run(plan: &Plan) -> Report {
    run_watched(plan, |_, _| Box::new(|| {}))
}

/// Carries out a plan under the eyes of one more observer, which `observed_by` makes. It is called after the watch has
/// looked, each time.
pub fn run_watched(
    plan: &Plan,
    observed_by: impl FnOnce(&Rc<Cluster>, &Rc<RefCell<Watch>>) -> Box<dyn FnMut()>,
) -> Report {
    let sim = Sim::new(plan.seed);
    let began_ns = sim.now_ns();
    let cluster = Cluster::new(sim.control(), plan.shape.clone());
    let watch = Watch::new(Rc::clone(&cluster), oracles::of(plan));
    let observer = Rc::clone(&watch);
    sim.control().on_step(move || observer.borrow_mut().look());
    sim.control().on_step(observed_by(&cluster, &watch));
    let counters = Rc::new(RefCell::new(Counters::default()));
    let parts =
        Parts { plan: plan.clone(), cluster, watch: Rc::clone(&watch), counters: Rc::clone(&counters) };
    // An assertion that fails in a node, or a deadlock, is a finding like any other.
    let ended = catch_unwind(AssertUnwindSafe(|| sim.run_until(parts.until_done_or_broken())));
    let mut violation = watch.borrow().violation.clone();
    if let Err(panic) = ended {
        let what = message_of(&*panic);
        violation.get_or_insert(Violation { oracle: "no assertion fails", at_ns: sim.now_ns(), what });
    }
    let counters = counters.borrow().clone();
    let (simulated_ns, trace_hash) = (sim.now_ns() - began_ns, sim.trace_hash());
    Report { seed: plan.seed, violation, counters, simulated_ns, trace_hash }
}

fn message_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_else(|| "a panic without words".to_owned())
}

struct Parts {
    plan: Plan,
    cluster: Rc<Cluster>,
    watch: Rc<RefCell<Watch>>,
    counters: Rc<RefCell<Counters>>,
}

impl Parts {
    async fn until_done_or_broken(self) {
        let violated = async {
            loop {
                let listen = self.watch.borrow().violated.listen();
                if self.watch.borrow().violation.is_some() {
                    return;
                }
                listen.await;
            }
        };
        if let Either::Left((Err((what, why)), _)) = select(pin!(self.story()), pin!(violated)).await {
            self.watch.borrow_mut().violate(what, why);
        }
    }

    /// The whole run. An error names the demand that was not met.
    async fn story(&self) -> Result<(), (&'static str, String)> {
        self.cluster.form().await.map_err(|why| ("formation", why))?;
        self.settle(FORMATION_LIMIT, "formation").await?;
        tracing::info!("formed");

        let operator = Rc::new(Operator::default());
        let (cluster, watch) = (Rc::clone(&self.cluster), Rc::clone(&self.watch));
        let injector = Injector::new(cluster, watch, Rc::clone(&operator), &self.plan);
        let workload = Workload::new(Rc::clone(&self.cluster), self.plan.clone());
        let clients: Vec<_> =
            (0..self.plan.load.clients).map(|number| spawned(Rc::clone(&workload).client(number))).collect();
        let jobs = self.plan.jobs.iter().enumerate().map(|(number, &job)| {
            let (operator, cluster) = (Rc::clone(&operator), Rc::clone(&self.cluster));
            let plan = self.plan.clone();
            spawned(async move { operator.ask_for(&cluster, &plan, job, number).await })
        });
        let jobs: Vec<_> = jobs.collect();
        let faults = self.plan.faults.iter().enumerate();
        let faults: Vec<_> =
            faults.map(|(number, &fault)| spawned(Rc::clone(&injector).carry_out(number, fault))).collect();
        lockgate_runtime::sleep(Duration::from_millis(self.plan.faults_ms)).await;

        injector.heal();
        join_all(faults).await;
        self.cluster.all_up().await;
        join_all(jobs).await;
        self.settle(SETTLING_LIMIT, "convergence").await?;
        workload.stop();
        join_all(clients).await;
        // Expired keys and late requests may still write: replicas follow within the same bound.
        self.settle(SETTLING_LIMIT, "convergence").await?;
        workload.read_all(LAST_READ_LIMIT).await.map_err(|why| ("every key is served after healing", why))?;
        self.settle(SETTLING_LIMIT, "convergence").await?;
        self.watch.borrow_mut().healed();
        self.count(&operator, &injector, &workload);
        self.judge(&workload)
    }

    /// Waits until the cluster is at rest, and whole.
    async fn settle(&self, limit: Duration, what: &'static str) -> Result<(), (&'static str, String)> {
        let settled = async {
            while unsettled(&self.watch.borrow().view).is_some() {
                lockgate_runtime::sleep(LOOK_PAUSE).await;
            }
        };
        match lockgate_runtime::timeout(limit, settled).await {
            Ok(()) => Ok(()),
            Err(_) => match unsettled(&self.watch.borrow().view) {
                Some(why) => Err((what, format!("not within {limit:?}: {why}"))),
                None => Ok(()),
            },
        }
    }

    fn count(&self, operator: &Operator, injector: &Injector, workload: &Workload) {
        let mut counters = self.counters.borrow_mut();
        counters.merge(&injector.counters.borrow());
        counters.merge(&workload.counters.borrow());
        let watch = self.watch.borrow();
        let jobs = &watch.view.jobs;
        let steps = Step::ALL
            .map(|step| (format!("jobs_{}", format!("{step:?}").to_lowercase()), jobs.reached.count(step)));
        for (name, count) in steps {
            counters.add(&name, count);
        }
        for (name, count) in [
            ("jobs_asked", self.plan.jobs.len() as u64),
            ("jobs_accepted", operator.accepted.get()),
            ("jobs_failed", jobs.failed),
            ("jobs_cancelled", jobs.cancelled),
            ("attempts_ended", jobs.attempts_ended),
            ("failovers", jobs.failovers.0),
            ("failovers_at_finalize", jobs.failovers.1),
            ("returns_to_office", jobs.returns.0),
            ("returns_to_office_at_finalize", jobs.returns.1),
            ("attempts_ended_by_a_failover", jobs.attempts_failed_over),
            ("votes_void_by_a_failover", jobs.votes_void),
            ("commits_at_the_first_attempt", jobs.first_commits),
            ("leases_ran_out", watch.leases_ran_out),
            ("fences", watch.fences),
            ("nodes_stepped_down", self.cluster.stepped_down.get()),
            ("compactions", self.cluster.compactions()),
            ("checkpoints", self.cluster.checkpoints()),
        ] {
            counters.add(name, count);
        }
    }

    /// Whether what clients saw of each key can be explained.
    fn judge(&self, workload: &Workload) -> Result<(), (&'static str, String)> {
        for key in &workload.keys {
            let history = match self.plan.scenario.keeps_drift_bound() {
                true => key.history.borrow().clone(),
                false => without_reads(&key.history.borrow(), self.plan.load.clients as u32),
            };
            match checker::check(&history, Limits::default()) {
                Verdict::Linearizable => {}
                Verdict::Undecided { .. } => self.counters.borrow_mut().add("histories_undecided", 1),
                Verdict::Violation(explanation) => {
                    // The few operations that show it, told by name where that can be.
                    let explanation = checker::minimise(&history, Limits::default()).unwrap_or(explanation);
                    let (name, slot) = (String::from_utf8_lossy(&key.name).into_owned(), key.slot);
                    return Err((explanation.kind.as_str(), format!("{name} (slot {slot}): {explanation}")));
                }
            }
        }
        Ok(())
    }
}

/// What does not rest on leases: writes that were acknowledged, or may have happened, and what `last_reader` found at the
/// end. A node whose lease is over by other clocks than its own may answer with what was.
fn without_reads(history: &[Operation], last_reader: u32) -> Vec<Operation> {
    let rests_on_a_lease = |reply: &Reply| {
        matches!(reply, Reply::Value(_) | Reply::Set(false) | Reply::Deleted(false) | Reply::Expiring(false))
    };
    let is_kept = |operation: &&Operation| match &operation.outcome {
        Outcome::Returned { reply, .. } => operation.client == last_reader || !rests_on_a_lease(reply),
        Outcome::Refused { .. } | Outcome::Unknown => true,
    };
    history.iter().filter(is_kept).copied().collect()
}

/// Starts a future beside others. What is returned resolves when it has ended.
fn spawned(future: impl Future<Output = ()> + 'static) -> impl Future<Output = ()> {
    let (tell, ended) = oneshot::channel::<()>();
    lockgate_runtime::spawn(async move {
        future.await;
        drop(tell);
    });
    // It never sends: that the other end is dropped says that the future has ended.
    async {
        let _ = ended.await;
    }
}
