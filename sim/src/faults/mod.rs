//! Carries out the plan's faults, and undoes them.
//!
//! A fault begins at its time or at a job's step, lasts, and ends; when healing begins, all end. What a fault finds
//! already so (a machine that is down is killed) does not count as having happened.

mod mangle;
mod who;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use futures_channel::oneshot;
use futures_util::future::select;
use lockgate_migrate::control::JobId;
use lockgate_runtime::Event;
use lockgate_runtime::sim::{DiskFaults, LinkFaults, PowerLoss};

use crate::cluster::Cluster;
use crate::counters::Counters;
use crate::jobs::Reached;
use crate::operator::Operator;
use crate::plan::{Plan, PlannedFault, What, When, Who};
use crate::random::Random;
use crate::watch::Watch;
use mangle::Mangler;
pub use who::resolve;

/// The machine of the clients and the operator.
pub const CLIENTS: &str = "driver";
/// Room that a full disk still has: the next file of a log does not fit, and soon no write does.
const FULL_DISK_ROOM_BYTES: u64 = 64 << 10;
/// Bits that rot at once.
const ROTTEN_BITS: usize = 40;
const SLOW_DISK: DiskFaults = DiskFaults {
    sync_fails_one_in: 0,
    write_fails_one_in: 0,
    read_fails_one_in: 0,
    slow_one_in: 3,
    slow_ns: (2_000_000, 300_000_000),
    capacity_bytes: None,
};
const STUCK_DISK: DiskFaults =
    DiskFaults { slow_one_in: 1, slow_ns: (1_000_000_000, 2_000_000_000), ..SLOW_DISK };
const SLOW_LINK: LinkFaults =
    LinkFaults { latency_ns: (1_000_000, 120_000_000), loss_one_in: 0, bytes_per_s: Some(200_000) };

/// What ends a fault.
type Undo = Box<dyn FnOnce()>;

/// Carries out faults.
pub struct Injector {
    cluster: Rc<Cluster>,
    watch: Rc<RefCell<Watch>>,
    reached: Rc<Reached>,
    operator: Rc<Operator>,
    seed: u64,
    /// Whether clocks stay within the bound on drift.
    keeps_bound: bool,
    is_healing: Cell<bool>,
    healing: Event,
    /// What has happened.
    pub counters: RefCell<Counters>,
}

impl Injector {
    /// Faults for this cluster.
    pub fn new(
        cluster: Rc<Cluster>,
        watch: Rc<RefCell<Watch>>,
        operator: Rc<Operator>,
        plan: &Plan,
    ) -> Rc<Injector> {
        let reached = Rc::clone(&watch.borrow().view.jobs.reached);
        Rc::new(Injector {
            cluster,
            watch,
            reached,
            operator,
            seed: plan.seed,
            keeps_bound: plan.scenario.keeps_drift_bound(),
            is_healing: Cell::new(false),
            healing: Event::new(),
            counters: RefCell::default(),
        })
    }

    /// One fault, from its planned time until it is undone.
    pub async fn carry_out(self: Rc<Self>, number: usize, fault: PlannedFault) {
        if let When::AfterPoll { machine, number: poll } = fault.when {
            return self.carry_out_after(machine, poll, number, fault).await;
        }
        let job = Cell::new(None);
        let wait = async {
            match fault.when {
                When::AtMs(ms) => lockgate_runtime::sleep(Duration::from_millis(ms)).await,
                When::AtStep { step, nth, after_us } => {
                    job.set(Some(self.reached.nth(step, nth as usize).await));
                    if after_us > 0 {
                        lockgate_runtime::sleep(Duration::from_micros(after_us)).await;
                    }
                }
                When::AtFailover { nth, after_us } => {
                    self.reached.nth_failover(nth as usize).await;
                    lockgate_runtime::sleep(Duration::from_micros(after_us)).await;
                }
                When::AfterPoll { .. } => {}
            }
        };
        if !self.unless_healing(wait).await {
            return;
        }
        let Some(undo) = self.begin(number, fault.what, job.get()) else { return };
        self.last(number, fault, undo).await;
    }

    /// The same right after a poll of a machine, not one poll later.
    async fn carry_out_after(self: Rc<Self>, machine: usize, poll: u64, number: usize, fault: PlannedFault) {
        let (tell, begun) = oneshot::channel();
        let this = Rc::clone(&self);
        self.cluster.control.after_poll(&self.cluster.machines[machine].name, poll, move || {
            if !this.is_healing.get()
                && let Some(undo) = this.begin(number, fault.what, None)
            {
                // The run may have ended.
                let _ = tell.send(undo);
            }
        });
        let undo = RefCell::new(None);
        let wait = async { *undo.borrow_mut() = begun.await.ok() };
        self.unless_healing(wait).await;
        if let Some(undo) = undo.into_inner() {
            self.last(number, fault, undo).await;
        }
    }

    /// What is left of a fault that has begun.
    async fn last(&self, number: usize, fault: PlannedFault, undo: Undo) {
        self.unless_healing(lockgate_runtime::sleep(Duration::from_millis(fault.lasts_ms))).await;
        tracing::info!(number, what = ?fault.what, "fault ends");
        undo();
    }

    /// Ends all faults, mends what they left behind, and starts every machine.
    pub fn heal(&self) {
        tracing::info!("healing");
        self.is_healing.set(true);
        self.healing.notify_all();
        self.cluster.restarts.set(true);
        let control = &self.cluster.control;
        control.heal_network();
        control.set_default_link(LinkFaults::default());
        control.set_middlebox(None);
        for (index, machine) in self.cluster.machines.iter().enumerate() {
            control.set_disk_faults(&machine.name, DiskFaults::default());
            control.set_clock_rate(&machine.name, 0);
            if control.is_paused(&machine.name) {
                control.resume(&machine.name);
            }
            self.cluster.start(index);
        }
    }

    /// Waits for `future`; `false` if healing began first.
    async fn unless_healing(&self, future: impl Future<Output = ()>) -> bool {
        let healing = async {
            loop {
                let begins = self.healing.listen();
                if self.is_healing.get() {
                    return;
                }
                begins.await;
            }
        };
        select(std::pin::pin!(future), std::pin::pin!(healing)).await;
        !self.is_healing.get()
    }

    /// Begins a fault. Returns what undoes it, or `None` if there was nothing to do it to.
    fn begin(self: &Rc<Self>, number: usize, what: What, job: Option<JobId>) -> Option<Undo> {
        let finalizing = self.watch.borrow().view.jobs.finalizing();
        let undo = self.effect(what, job)?;
        tracing::info!(number, ?what, finalizing, "fault");
        let word = word(what);
        let mut counters = self.counters.borrow_mut();
        counters.add(&format!("fault_{word}"), 1);
        if finalizing > 0 {
            counters.add("faults_at_finalize", 1);
            counters.add(&format!("fault_{word}_at_finalize"), 1);
        }
        Some(undo)
    }

    fn effect(self: &Rc<Self>, what: What, job: Option<JobId>) -> Option<Undo> {
        let this = Rc::clone(self);
        let find = |who| resolve(&self.watch.borrow().view, who, job);
        let control = &self.cluster.control;
        let name = |machine: usize| self.cluster.machines[machine].name.clone();
        match what {
            What::Kill(who) => {
                let machine = find(who).filter(|&machine| self.cluster.is_running(machine))?;
                control.kill(&name(machine));
                self.cluster.gone(machine);
                Some(Box::new(move || this.cluster.start(machine)))
            }
            What::PowerCut { who, torn } => {
                let machine = find(who).filter(|&machine| self.cluster.is_running(machine))?;
                control.cut_power(&name(machine), if torn { PowerLoss::Seeded } else { PowerLoss::All });
                self.cluster.gone(machine);
                Some(Box::new(move || this.cluster.start(machine)))
            }
            What::Blackout { torn } => {
                let running: Vec<usize> = (0..self.cluster.machines.len())
                    .filter(|&machine| self.cluster.is_running(machine))
                    .collect();
                for &machine in &running {
                    control.cut_power(&name(machine), if torn { PowerLoss::Seeded } else { PowerLoss::All });
                    self.cluster.gone(machine);
                }
                let undo = move || running.iter().for_each(|&machine| this.cluster.start(machine));
                Some(Box::new(undo))
            }
            What::Pause(who) => {
                let machine = find(who).filter(|&machine| self.cluster.is_running(machine))?;
                let name = name(machine);
                if control.is_paused(&name) {
                    return None;
                }
                control.pause(&name);
                Some(Box::new(move || {
                    if this.cluster.control.is_paused(&name) {
                        this.cluster.control.resume(&name);
                    }
                }))
            }
            What::Isolate(who) => Some(self.cut(find(who)?, true, true, true)),
            What::Mute(who) => Some(self.cut(find(who)?, true, false, false)),
            What::Deafen(who) => Some(self.cut(find(who)?, false, true, false)),
            What::Part(one, other) => {
                let (one, other) = (name(find(one)?), name(find(other)?));
                if one == other {
                    return None;
                }
                control.block(&one, &other);
                control.block(&other, &one);
                Some(Box::new(move || {
                    this.cluster.control.unblock(&one, &other);
                    this.cluster.control.unblock(&other, &one);
                }))
            }
            What::SlowLinks(who) => {
                let machine = find(who)?;
                self.set_links(machine, SLOW_LINK);
                Some(Box::new(move || this.set_links(machine, LinkFaults::default())))
            }
            What::LossyNetwork { one_in } => {
                control.set_default_link(LinkFaults { loss_one_in: one_in, ..LinkFaults::default() });
                Some(Box::new(move || this.cluster.control.set_default_link(LinkFaults::default())))
            }
            What::ResetLinks(one, other) => {
                let (one, other) = (name(find(one)?), name(find(other)?));
                if one == other {
                    return None;
                }
                control.reset_connections(&one, &other);
                Some(Box::new(|| {}))
            }
            What::MangleMessages { drop_one_in, repeat_one_in, delay_one_in } => {
                let ports = self.cluster.machines.iter().map(|machine| machine.link.port()).collect();
                let mangler = Mangler::new(ports, drop_one_in, repeat_one_in, delay_one_in);
                control.set_middlebox(Some(Box::new(mangler)));
                // The bytes of open connections were mangled, and must go on through the same hands.
                Some(Box::new(|| {}))
            }
            What::Drift { who, ppm } => {
                let name = name(find(who)?);
                control.set_clock_rate(&name, ppm);
                Some(Box::new(move || this.cluster.control.set_clock_rate(&name, 0)))
            }
            What::JumpClock { who, ms } => {
                // A clock that gains time which did not pass is beyond every bound on drift; only a leader's grants trust it.
                let may_jump = |&machine: &usize| !self.keeps_bound || find(Who::Leader) != Some(machine);
                let machine = find(who).filter(may_jump)?;
                control.jump_boottime(&name(machine), Duration::from_millis(ms));
                Some(Box::new(|| {}))
            }
            What::JumpWallClock { who, ms } => {
                control.jump_wall_clock(&name(find(who)?), ms);
                Some(Box::new(|| {}))
            }
            What::SlowDisk(who) => Some(self.disk(find(who)?, SLOW_DISK)),
            What::StuckDisk(who) => Some(self.disk(find(who)?, STUCK_DISK)),
            What::FullDisk(who) => {
                let machine = find(who)?;
                let capacity = control.disk_bytes(&name(machine)) + FULL_DISK_ROOM_BYTES;
                self.cluster.machines[machine].may_step_down.set(true);
                Some(
                    self.disk(
                        machine,
                        DiskFaults { capacity_bytes: Some(capacity), ..DiskFaults::default() },
                    ),
                )
            }
            What::FailSync(who) => {
                let machine = find(who).filter(|&machine| self.cluster.is_running(machine))?;
                self.cluster.machines[machine].may_step_down.set(true);
                control.fail_next_sync(&name(machine));
                Some(Box::new(move || this.cluster.start(machine)))
            }
            What::RotBits(who) => {
                let machine = find(who)?;
                // Its shard must be able to do without it, since no operation of a run replaces a disk: all run, so that
                // their newest map is the newest there is, and another one leads.
                let all_run =
                    (0..self.cluster.machines.len()).all(|other| self.cluster.node(other).is_some());
                let map = self.cluster.newest_map().filter(|_| all_run)?;
                if map.shards.values().any(|shard| Cluster::machine_of(shard.primary.node) == machine) {
                    return None;
                }
                if self.cluster.is_running(machine) {
                    control.kill(&name(machine));
                    self.cluster.gone(machine);
                }
                if control.rot(&name(machine), "/data", ROTTEN_BITS) == 0 {
                    return None;
                }
                self.cluster.machines[machine].is_rotten.set(true);
                Some(Box::new(move || this.cluster.start(machine)))
            }
            What::CancelJobs => {
                let random = Random::new(self.seed, "cancel");
                let (operator, cluster) = (Rc::clone(&self.operator), Rc::clone(&self.cluster));
                lockgate_runtime::spawn(async move { operator.cancel_all(&cluster, random).await });
                Some(Box::new(|| {}))
            }
            What::HandOver(who) => {
                let node = self.cluster.node(find(who)?)?;
                lockgate_runtime::spawn(async move {
                    let ended = node.hand_over(None).await;
                    tracing::info!(?ended, "the operator's hand-over has ended");
                    let ended = if ended.is_ok() { "hand_overs" } else { "hand_overs_refused" };
                    this.counters.borrow_mut().add(ended, 1);
                });
                Some(Box::new(|| {}))
            }
        }
    }

    /// Cuts a machine off from all others, and from clients if `clients`.
    fn cut(self: &Rc<Self>, machine: usize, out: bool, into: bool, clients: bool) -> Undo {
        let here = self.cluster.machines[machine].name.clone();
        let others = self.cluster.machines.iter().map(|machine| machine.name.clone());
        let others = others.chain(clients.then(|| CLIENTS.to_owned()));
        let mut blocked = Vec::new();
        for other in others.filter(|other| *other != here) {
            if out {
                blocked.push((here.clone(), other.clone()));
            }
            if into {
                blocked.push((other, here.clone()));
            }
        }
        for (from, to) in &blocked {
            self.cluster.control.block(from, to);
        }
        let this = Rc::clone(self);
        Box::new(move || {
            for (from, to) in &blocked {
                this.cluster.control.unblock(from, to);
            }
        })
    }

    fn set_links(&self, machine: usize, faults: LinkFaults) {
        let here = &self.cluster.machines[machine].name;
        for other in self.cluster.machines.iter().map(|machine| &machine.name).filter(|other| *other != here)
        {
            self.cluster.control.set_link(here, other, faults);
            self.cluster.control.set_link(other, here, faults);
        }
    }

    fn disk(self: &Rc<Self>, machine: usize, faults: DiskFaults) -> Undo {
        let (this, name) = (Rc::clone(self), self.cluster.machines[machine].name.clone());
        this.cluster.control.set_disk_faults(&name, faults);
        Box::new(move || {
            this.cluster.control.set_disk_faults(&name, DiskFaults::default());
            this.cluster.start(machine);
        })
    }
}

/// A fault's name among the counters.
fn word(what: What) -> &'static str {
    match what {
        What::Kill(_) => "kill",
        What::PowerCut { torn: false, .. } => "power_cut",
        What::PowerCut { torn: true, .. } => "power_cut_torn",
        What::Blackout { .. } => "blackout",
        What::Pause(_) => "pause",
        What::Isolate(_) => "isolate",
        What::Mute(_) => "mute",
        What::Deafen(_) => "deafen",
        What::Part(..) => "part",
        What::SlowLinks(_) => "slow_links",
        What::LossyNetwork { .. } => "lossy_network",
        What::ResetLinks(..) => "reset_links",
        What::MangleMessages { .. } => "mangle_messages",
        What::Drift { .. } => "clock_drift",
        What::JumpClock { .. } => "clock_jump",
        What::JumpWallClock { .. } => "wall_clock_jump",
        What::StuckDisk(_) => "stuck_disk",
        What::SlowDisk(_) => "slow_disk",
        What::FailSync(_) => "failed_sync",
        What::FullDisk(_) => "full_disk",
        What::RotBits(_) => "rotten_bits",
        What::CancelJobs => "cancel_jobs",
        What::HandOver(_) => "hand_over",
    }
}
