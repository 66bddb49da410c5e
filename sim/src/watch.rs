//! Looks at every node after every step of the simulation, and tells the oracles what has changed.
//!
//! Invariant: oracles see every state of every gate and map that outlives one turn of one core, in the order in which these
//! states came about. (Within a turn the node is at work, and nothing that it sends has arrived.) A node's state changes
//! only while its machine's cores run, or by faults: where the simulation says that only one machine has run, the others are
//! as they were.

use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;

use lockgate_engine::{Gate, Slot, SlotStatus};
use lockgate_migrate::control::ClusterMap;
use lockgate_runtime::Event;
use lockgate_runtime::sim::Ran;
use lockgate_runtime::sync::Arc;

use crate::cli::story;
use crate::cluster::Cluster;
use crate::jobs::Jobs;
use crate::oracles::Oracle;

/// What was seen last of one machine.
#[derive(Default)]
pub struct Seen {
    /// The number of its process' start; 0 while it has none.
    pub start: u64,
    gate_changes: u64,
    /// Until when it may serve, by its own clock.
    pub lease_until_ns: u64,
    /// Since when it has had a lease without a gap, in ideal time.
    pub lease_since_ns: u64,
    /// How often it was fenced.
    pub fences: u64,
    /// Whether it is fenced.
    pub is_fenced: bool,
    /// Its applied map.
    pub map: Option<Arc<ClusterMap>>,
    /// Its hot slots, in order; empty while it has no process.
    pub slots: Vec<SlotStatus>,
    /// When each of their gates was seen to change, in ideal time.
    pub since_ns: Vec<u64>,
}

/// Everything that was seen last.
pub struct View {
    /// The machines.
    pub cluster: Rc<Cluster>,
    /// The slots that are watched.
    pub hot: Vec<Slot>,
    /// Machine by machine.
    pub seen: Vec<Seen>,
    /// The machines that may have changed since the last look.
    pub looked_at: Range<usize>,
    /// Jobs and their steps.
    pub jobs: Jobs,
    /// Ideal time.
    pub now_ns: u64,
}

/// One slot's change on one machine. `None` while the machine has no process.
pub struct SlotChange {
    /// The machine.
    pub machine: usize,
    /// Which of the hot slots.
    pub at: usize,
    /// What it was.
    pub before: Option<SlotStatus>,
    /// What it is.
    pub after: Option<SlotStatus>,
}

/// One machine's step to a newer map.
pub struct MapChange {
    /// The machine.
    pub machine: usize,
    /// What it had applied; `None` after a start.
    pub before: Option<Arc<ClusterMap>>,
    /// What it has applied.
    pub after: Arc<ClusterMap>,
}

/// An invariant that broke.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which oracle saw it.
    pub oracle: &'static str,
    /// When, in ideal nanoseconds.
    pub at_ns: u64,
    /// What it saw.
    pub what: String,
}

/// The observer of a run.
pub struct Watch {
    /// What was seen last.
    pub view: View,
    oracles: Vec<Box<dyn Oracle>>,
    /// The places of machines by their numbers in the simulation, as far as they were asked for.
    places: Vec<Option<usize>>,
    /// Whether a map was told of in this look.
    map_changed: bool,
    /// Leases that were over before the next one began or the reign ended.
    pub leases_ran_out: u64,
    /// Members that were fenced.
    pub fences: u64,
    /// What broke first.
    pub violation: Option<Violation>,
    /// Notified with the violation.
    pub violated: Event,
}

/// A parked request is tried again at once when its gate opens; its client hears of it within this time.
const WOKEN_WITHIN_NS: u64 = 3_000_000_000;

/// Whether a gate answers clients.
pub fn serves(gate: Gate) -> bool {
    matches!(gate, Gate::Owned | Gate::Frozen)
}

impl Watch {
    /// An observer of this cluster.
    pub fn new(cluster: Rc<Cluster>, oracles: Vec<Box<dyn Oracle>>) -> Rc<RefCell<Watch>> {
        let seen = cluster.machines.iter().map(|_| Seen::default()).collect();
        let (hot, looked_at) = (cluster.hot_slots(), 0..0);
        let view = View { hot, cluster, seen, looked_at, jobs: Jobs::default(), now_ns: 0 };
        let (leases_ran_out, fences) = (0, 0);
        let (violation, violated) = (None, Event::new());
        let (places, map_changed) = (Vec::new(), false);
        Rc::new(RefCell::new(Watch {
            view,
            oracles,
            places,
            map_changed,
            leases_ran_out,
            fences,
            violation,
            violated,
        }))
    }

    /// One look at everything that may have changed.
    pub fn look(&mut self) {
        self.view.now_ns = self.view.cluster.control.now_ns();
        story::set_now_ns(self.view.now_ns);
        self.view.looked_at = self.who_ran();
        self.map_changed = false;
        let mut found = Ok(());
        for machine in self.view.looked_at.clone() {
            found = found.and_then(|()| self.look_at(machine));
        }
        self.view.look_at_jobs(self.map_changed);
        found = found.and_then(|()| self.tell_step());
        if let Err(what) = self.view.parked_were_woken() {
            self.violate("parked requests are woken", what);
        }
        let complaint = self.view.cluster.complaints.borrow_mut().pop();
        if let Err((oracle, what)) = found {
            self.violate(oracle, what);
        }
        if let Some(what) = complaint {
            self.violate("processes run", what);
        }
    }

    /// The machines whose nodes may have changed. What runs on the driver's machine starts and ends processes.
    fn who_ran(&mut self) -> Range<usize> {
        let all = 0..self.view.seen.len();
        match self.view.cluster.control.ran() {
            Ran::Nothing => 0..0,
            Ran::Machine(number) => self.place_of(number).map_or(all, |place| place..place + 1),
            Ran::Anything => all,
        }
    }

    fn place_of(&mut self, number: usize) -> Option<usize> {
        if number >= self.places.len() {
            let cluster = &self.view.cluster;
            let numbers: Vec<_> =
                cluster.machines.iter().map(|machine| cluster.control.number(&machine.name)).collect();
            let place = |number| numbers.iter().position(|known| *known == Some(number));
            self.places = (0..=number).map(place).collect();
        }
        self.places[number]
    }

    /// Notes a violation, unless there is one.
    pub fn violate(&mut self, oracle: &'static str, what: String) {
        if self.violation.is_none() {
            tracing::error!(oracle, %what, "VIOLATION");
            self.violation = Some(Violation { oracle, at_ns: self.view.now_ns, what });
            self.violated.notify_all();
        }
    }

    /// Asks the oracles whether everything is well, after healing.
    pub fn healed(&mut self) {
        self.view.now_ns = self.view.cluster.control.now_ns();
        let view = &self.view;
        let found: Vec<_> = self
            .oracles
            .iter_mut()
            .filter_map(|oracle| oracle.healed(view).err().map(|what| (oracle.name(), what)))
            .collect();
        for (oracle, what) in found {
            self.violate(oracle, what);
        }
    }

    fn look_at(&mut self, machine: usize) -> Result<(), (&'static str, String)> {
        let seen = &self.view.seen[machine];
        let (start, known_start, known_gates) = (seen.start, seen.start, seen.gate_changes);
        let (known_lease_ns, known_fences) = (seen.lease_until_ns, (seen.fences, seen.is_fenced));
        let known_map = seen.map.as_ref().map(Arc::as_ptr);
        let cluster = Rc::clone(&self.view.cluster);
        let news = cluster.with_node(machine, |node, start| {
            let (gates, map) = (node.engine().gate_changes(), node.map());
            let (lease_ns, fences) = (node.lease_until_ns(), (node.fences(), node.is_fenced()));
            let is_same = start == known_start
                && gates == known_gates
                && lease_ns == known_lease_ns
                && fences == known_fences
                && map.as_ref().map(Arc::as_ptr) == known_map;
            (!is_same).then(|| {
                let slots: Vec<_> = match start == known_start && gates == known_gates {
                    true => Vec::new(),
                    false => self.view.hot.iter().map(|&slot| node.engine().slot_status(slot)).collect(),
                };
                let had_lease = start == known_start && node.engine().runtime().now_ns() < known_lease_ns;
                (start, gates, (lease_ns, had_lease), fences, map, slots)
            })
        });
        match news {
            Some(None) => Ok(()),
            None if start == 0 => Ok(()),
            None => {
                let slots = std::mem::take(&mut self.view.seen[machine]).slots;
                self.tell_slots(machine, slots, Vec::new())
            }
            Some(Some((
                start,
                gate_changes,
                (lease_until_ns, had_lease),
                (fences, is_fenced),
                map,
                slots,
            ))) => {
                let old = std::mem::take(&mut self.view.seen[machine]);
                let known_fences = if old.start == start { old.fences } else { 0 };
                self.fences += fences.saturating_sub(known_fences);
                let ran_out = old.start == start && old.lease_until_ns != 0 && !had_lease;
                self.leases_ran_out += u64::from(ran_out && old.lease_until_ns != lease_until_ns);
                let lease_since_ns = if had_lease { old.lease_since_ns } else { self.view.now_ns };
                let (old_map, old_slots) =
                    if old.start == start { (old.map, old.slots) } else { (None, Vec::new()) };
                let has_slots = !slots.is_empty();
                let slots_now = if has_slots { slots } else { old_slots.clone() };
                let since_ns = since(&old_slots, &slots_now, &old.since_ns, self.view.now_ns);
                self.view.seen[machine] = Seen {
                    start,
                    gate_changes,
                    lease_until_ns,
                    lease_since_ns,
                    fences,
                    is_fenced,
                    map: map.clone(),
                    slots: slots_now.clone(),
                    since_ns,
                };
                // The map is published before gates follow it.
                if let Some(after) =
                    map.filter(|map| old_map.as_ref().map(Arc::as_ptr) != Some(Arc::as_ptr(map)))
                {
                    self.tell_map(&MapChange { machine, before: old_map, after })?;
                }
                if has_slots {
                    self.tell_slots(machine, old_slots, slots_now)?;
                }
                self.tell_server(machine)
            }
        }
    }

    fn tell_slots(
        &mut self,
        machine: usize,
        before: Vec<SlotStatus>,
        after: Vec<SlotStatus>,
    ) -> Result<(), (&'static str, String)> {
        for at in 0..self.view.hot.len() {
            let change =
                SlotChange { machine, at, before: before.get(at).copied(), after: after.get(at).copied() };
            if change.before.map(|slot| (slot.gate, slot.generation, slot.term))
                == change.after.map(|slot| (slot.gate, slot.generation, slot.term))
            {
                continue;
            }
            for oracle in &mut self.oracles {
                oracle.slot(&change, &self.view).map_err(|what| (oracle.name(), what))?;
            }
        }
        Ok(())
    }

    fn tell_server(&mut self, machine: usize) -> Result<(), (&'static str, String)> {
        for oracle in &mut self.oracles {
            oracle.server(machine, &self.view).map_err(|what| (oracle.name(), what))?;
        }
        Ok(())
    }

    fn tell_step(&mut self) -> Result<(), (&'static str, String)> {
        for oracle in &mut self.oracles {
            oracle.step(&self.view).map_err(|what| (oracle.name(), what))?;
        }
        Ok(())
    }

    fn tell_map(&mut self, change: &MapChange) -> Result<(), (&'static str, String)> {
        self.map_changed = true;
        self.view.jobs.map_changed(change);
        for oracle in &mut self.oracles {
            oracle.map(change, &self.view).map_err(|what| (oracle.name(), what))?;
        }
        Ok(())
    }
}

/// When each gate changed last: now, where it is another one than before.
fn since(before: &[SlotStatus], after: &[SlotStatus], known_ns: &[u64], now_ns: u64) -> Vec<u64> {
    let same = |at: usize| before.get(at).is_some_and(|slot| slot.gate == after[at].gate);
    (0..after.len()).map(|at| if same(at) { known_ns[at] } else { now_ns }).collect()
}

impl View {
    /// A request waits for its slot's gate and no longer: who was told to try again was not forgotten at an open gate.
    fn parked_were_woken(&self) -> Result<(), String> {
        for (machine, slot) in self.cluster.told_to_try_again.borrow_mut().drain(..) {
            let Ok(at) = self.hot.binary_search(&slot) else { continue };
            let seen = &self.seen[machine];
            let is_open = seen.slots.get(at).is_some_and(|status| status.gate == Gate::Owned);
            let is_open = is_open && self.has_lease(machine);
            let since_ns =
                seen.since_ns.get(at).map_or(self.now_ns, |gate_ns| seen.lease_since_ns.max(*gate_ns));
            let open_ns = self.now_ns.saturating_sub(since_ns);
            if is_open && open_ns > WOKEN_WITHIN_NS {
                let (name, open_ms) = (self.name(machine), open_ns / 1_000_000);
                return Err(format!(
                    "{name} kept a request for slot {slot} waiting, and its gate has been open for {open_ms} ms"
                ));
            }
        }
        Ok(())
    }

    /// Asks the sources of jobs that are not decided where they stand. A newer map may name another source.
    fn look_at_jobs(&mut self, map_changed: bool) {
        if self.looked_at.is_empty() {
            return;
        }
        for (id, source) in self.jobs.undecided() {
            let machine = Cluster::machine_of(source);
            if !map_changed && !self.looked_at.contains(&machine) {
                continue;
            }
            // The phase is of the attempt that this machine has applied; others may be ahead of it.
            let map = self.seen[machine].map.as_ref();
            let attempt = map.and_then(|map| map.jobs.get(&id)).map(|job| job.attempt);
            let progress = self.cluster.with_node(machine, |node, _| node.job_progress(id)).flatten();
            if let (Some(attempt), Some(progress)) = (attempt, progress) {
                self.jobs.phase(id, attempt, progress.phase);
            }
        }
    }

    /// What was seen last of a slot on a machine, if that has a process.
    pub fn slot(&self, machine: usize, at: usize) -> Option<&SlotStatus> {
        self.seen[machine].slots.get(at)
    }

    /// The machines that may answer for a slot at this moment: its gate is open there, and the lease is not over by that
    /// machine's clock.
    pub fn servers(&self, at: usize) -> Vec<usize> {
        let serves_it = |&machine: &usize| {
            self.slot(machine, at).is_some_and(|slot| serves(slot.gate)) && self.has_lease(machine)
        };
        (0..self.seen.len()).filter(serves_it).collect()
    }

    /// Whether a machine's lease is not over, by its own clock.
    pub fn has_lease(&self, machine: usize) -> bool {
        let now_ns = self.cluster.with_node(machine, |node, _| node.engine().runtime().now_ns());
        now_ns.is_some_and(|now_ns| now_ns < self.seen[machine].lease_until_ns)
    }

    /// The applied map that is ahead of all others.
    pub fn newest_map(&self) -> Option<&Arc<ClusterMap>> {
        self.seen.iter().filter_map(|seen| seen.map.as_ref()).max_by_key(|map| map.applied)
    }

    /// A machine's name.
    pub fn name(&self, machine: usize) -> &str {
        &self.cluster.machines[machine].name
    }
}
