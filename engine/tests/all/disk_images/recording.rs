//! A run that is recorded: an image of the disk at each of its moments, and what had been promised by then.
//!
//! Invariant: what is noted as promised at a moment rests on operations that were done before it. (A core learns between
//! polls that an operation is done, and images are collected after each turn of a core.)

use lockgate_engine::Engine;
use lockgate_runtime::sim::{Control, DiskImage};
use lockgate_runtime::sync::{Arc, Mutex};

use super::history::{History, Seen, State, TAGS, slots};

/// The machine that is recorded.
pub const MACHINE: &str = "a";

/// One moment of a run.
#[derive(Clone, Debug)]
pub struct Moment {
    pub image: DiskImage,
    /// The state of each slot that a receipt had called written, and synced, by then.
    pub written: Vec<usize>,
    pub synced: Vec<usize>,
    /// The last boot that was open by then; 0 before the first.
    pub boot: u64,
    pub directory_id: Option<[u8; 16]>,
    pub is_open: bool,
}

/// A part of a run in which no state was lost, and all its states.
#[derive(Clone, Debug)]
pub struct Span {
    pub history: History,
    pub moments: Vec<Moment>,
}

#[derive(Default)]
struct Present {
    engine: Option<Engine>,
    is_open: bool,
    boot: u64,
    directory_id: Option<[u8; 16]>,
    history: History,
    written: Vec<usize>,
    synced: Vec<usize>,
    moments: Vec<Moment>,
    spans: Vec<Span>,
}

/// Shared by the script and by what watches the simulation.
#[derive(Clone, Default)]
pub struct Recording(Arc<Mutex<Present>>);

impl Present {
    /// Notes states that are new.
    fn note(&mut self) {
        let Some(engine) = self.engine.clone().filter(|_| self.is_open) else { return };
        for (at, slot) in slots() {
            let states = &mut self.history.0[at];
            if states.last().is_some_and(|last| last.seen.is_still(&engine, at)) {
                continue;
            }
            let ticket = engine.ticket_at(slot, engine.slot_status(slot).position);
            states.push(Arc::new(State { seen: Seen::of(&engine, at), boot: self.boot, ticket }));
        }
    }

    /// Moves on what is promised by the watermarks, which are what receipts wait for.
    fn note_promises(&mut self) {
        let Some(engine) = &self.engine else { return };
        for (states, (written, synced)) in
            self.history.0.iter().zip(self.written.iter_mut().zip(&mut self.synced))
        {
            let is_next = |place: usize, has_come: &dyn Fn(&State) -> bool| {
                states.get(place + 1).is_some_and(|state| state.boot == self.boot && has_come(state))
            };
            while is_next(*written, &|state| engine.written(state.ticket)) {
                *written += 1;
            }
            while is_next(*synced, &|state| engine.synced(state.ticket)) {
                *synced += 1;
            }
        }
    }

    fn collect(&mut self, images: Vec<DiskImage>) {
        self.note();
        self.note_promises();
        for image in images {
            self.moments.push(Moment {
                image,
                written: self.written.clone(),
                synced: self.synced.clone(),
                boot: self.boot,
                directory_id: self.directory_id,
                is_open: self.is_open,
            });
        }
    }
}

impl Recording {
    /// Watches the simulation from now on.
    pub fn begin(&self, control: &Control) {
        control.record_images(MACHINE);
        let (control, present) = (control.clone(), self.0.clone());
        control.clone().on_step(move || {
            let images = control.take_images(MACHINE);
            present.lock().collect(images);
        });
    }

    /// An engine has opened. What it has found is promised now. After a kill that may be less than there was: then another
    /// span begins.
    pub fn opened(&self, engine: &Engine) {
        let mut present = self.0.lock();
        let found: Vec<Seen> = (0..TAGS.len()).map(|at| Seen::of(engine, at)).collect();
        if present.history.0.is_empty() {
            let ticket = |at: usize| engine.ticket_at(slots().nth(at).expect("a slot").1, Default::default());
            let first = |(at, seen)| vec![Arc::new(State { seen, boot: 0, ticket: ticket(at) })];
            present.history = History(found.into_iter().enumerate().map(first).collect());
            present.written = vec![0; TAGS.len()];
            // Before there were any states, none was promised.
            for moment in &mut present.moments {
                (moment.written, moment.synced) = (vec![0; TAGS.len()], vec![0; TAGS.len()]);
            }
        } else {
            let places =
                present.history.place(&found, &present.written).expect("a kill loses no written write");
            let span =
                Span { history: present.history.clone(), moments: std::mem::take(&mut present.moments) };
            present.spans.push(span);
            for (states, place) in present.history.0.iter_mut().zip(&places) {
                states.truncate(place + 1);
            }
            present.written = places;
        }
        present.synced = present.written.clone();
        present.boot = engine.boot().number;
        present.directory_id = Some(engine.boot().directory_id);
        (present.engine, present.is_open) = (Some(engine.clone()), true);
    }

    /// To be called after every write, so that no state is missed.
    pub fn note(&self) {
        self.0.lock().note();
    }

    /// The states of a slot so far.
    pub fn states(&self, at: usize) -> Vec<Arc<State>> {
        self.0.lock().history.0[at].clone()
    }

    /// The engine is about to be closed, or to die.
    pub fn ending(&self) {
        let mut present = self.0.lock();
        present.note();
        present.is_open = false;
    }

    /// The engine is gone.
    pub fn ended(&self) {
        let mut present = self.0.lock();
        present.note_promises();
        let engine = present.engine.take();
        drop(present);
        drop(engine);
    }

    /// The engine that is open, or is about to end.
    pub fn engine(&self) -> Engine {
        self.0.lock().engine.clone().expect("one was opened")
    }

    /// All spans of the run.
    pub fn finish(self) -> Vec<Span> {
        let mut present = self.0.lock();
        let last = Span { history: present.history.clone(), moments: std::mem::take(&mut present.moments) };
        present.spans.push(last);
        std::mem::take(&mut present.spans)
    }
}
