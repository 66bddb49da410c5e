//! Frames on their way from the readers of the logs to the slots.
//!
//! A log has its slots' frames mixed, and to replay each by itself would be a walk through all of the memory. So a reader
//! gathers a *window* of them, sorts it by slot, and hands to every core the part with that core's slots; a core replays a
//! part slot by slot.
//!
//! Invariants: a slot's frames are replayed in the order of its log, by one core; a reader has at most
//! [`WINDOWS_MAX`] windows that are not replayed, so memory is bounded; after a failure nothing more is replayed.

use std::collections::VecDeque;
use std::ops::Range;

use lockgate_runtime::Event;
use lockgate_runtime::sync::atomic::{AtomicBool, Ordering};
use lockgate_runtime::sync::{Arc, Mutex};

use super::progress::Progress;
use super::replay::{ReplayError, replay_all};
use crate::arena::{LINE_BYTES, prefetch};
use crate::log::FrameHeader;
use crate::slots::SlotTable;
use crate::types::Slot;

/// Bytes of frames that are gathered, or one batch if that is longer.
const WINDOW_BYTES: usize = 16 << 20;
/// Of each reader.
const WINDOWS_MAX: usize = 2;
/// Frames that are replayed before other tasks have their turn, such as the one that reads on.
const FRAMES_PER_TURN: usize = 256;
/// Slots whose memory is fetched ahead.
const SLOTS_AHEAD: usize = 4;
/// Frames, and lines of each, that are fetched ahead.
const FRAMES_AHEAD: usize = 16;
const LINES_AHEAD: usize = 4;

/// A frame in a window.
pub(super) struct Frame {
    pub(super) header: FrameHeader,
    /// Where it begins in its log.
    pub(super) position: u64,
    payload: Range<usize>,
}

/// Frames of one log.
#[derive(Default)]
pub(super) struct Window {
    log: usize,
    bytes: Vec<u8>,
    frames: Vec<Frame>,
    /// One entry per frame: home core, slot, and number in `frames`, so that sorting it is sorting the frames.
    order: Vec<u64>,
}

impl Window {
    pub(super) fn of_log(log: usize) -> Window {
        // Of addresses there are enough; memory is used as far as it is filled.
        Window { log, bytes: Vec::with_capacity(WINDOW_BYTES), ..Window::default() }
    }

    pub(super) fn push(
        &mut self,
        slot: Slot,
        home: usize,
        header: FrameHeader,
        position: u64,
        payload: &[u8],
    ) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(payload);
        let number = self.frames.len() as u64;
        self.order.push((home as u64) << 48 | u64::from(slot.number()) << 32 | number);
        self.frames.push(Frame { header, position, payload: start..self.bytes.len() });
    }

    pub(super) fn is_full(&self) -> bool {
        self.bytes.len() + self.frames.len() * size_of::<Frame>() >= WINDOW_BYTES
    }

    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.frames.clear();
        self.order.clear();
    }

    fn home(&self, at: usize) -> usize {
        (self.order[at] >> 48) as usize
    }

    fn slot(&self, at: usize) -> Slot {
        Slot::new((self.order[at] >> 32) as u16).expect("only frames of slots come into a window")
    }

    fn frame(&self, at: usize) -> (&Frame, &[u8]) {
        let frame = &self.frames[self.order[at] as u32 as usize];
        (frame, &self.bytes[frame.payload.clone()])
    }

    /// Has the processor fetch what lies behind an entry, and of one further on what leads there.
    fn prefetch(&self, entry: usize, end: usize) {
        if entry + FRAMES_AHEAD < end {
            prefetch(&self.frames[self.order[entry + FRAMES_AHEAD] as u32 as usize]);
        }
        let (_, payload) = self.frame(entry);
        for line in payload.chunks(LINE_BYTES).take(LINES_AHEAD) {
            prefetch(&line[0]);
        }
    }

    /// The end of the run of entries from `at` on for which `of` is the same, within `end`.
    fn run<T: PartialEq>(&self, at: usize, end: usize, of: impl Fn(&Window, usize) -> T) -> usize {
        (at..end).find(|next| of(self, *next) != of(self, at)).unwrap_or(end)
    }
}

/// One core's part of a window.
struct Part {
    window: Arc<Window>,
    /// Of the window's order.
    entries: Range<usize>,
}

/// What is to be replayed on one core.
#[derive(Default)]
struct Lane {
    parts: Mutex<VecDeque<Part>>,
    changed: Event,
}

/// Why a replay failed, and at which frame.
pub(super) struct Failure {
    pub(super) log: usize,
    pub(super) position: u64,
    pub(super) error: ReplayError,
}

/// What the readers and the cores share.
pub(super) struct Lanes {
    lanes: Vec<Lane>,
    /// A part was replayed.
    replayed: Event,
    is_closed: AtomicBool,
    has_failed: AtomicBool,
    failure: Mutex<Option<Failure>>,
}

impl Lanes {
    pub(super) fn new(cores: usize) -> Lanes {
        Lanes {
            lanes: (0..cores).map(|_| Lane::default()).collect(),
            replayed: Event::new(),
            is_closed: AtomicBool::new(false),
            has_failed: AtomicBool::new(false),
            failure: Mutex::new(None),
        }
    }

    pub(super) fn cores(&self) -> usize {
        self.lanes.len()
    }

    pub(super) fn has_failed(&self) -> bool {
        self.has_failed.load(Ordering::Acquire)
    }

    pub(super) fn take_failure(&self) -> Option<Failure> {
        self.failure.lock().take()
    }

    /// No reader hands anything over any more.
    pub(super) fn close(&self) {
        self.is_closed.store(true, Ordering::Release);
        self.lanes.iter().for_each(|lane| lane.changed.notify_all());
    }

    fn hand_over(&self, mut window: Window) -> Arc<Window> {
        window.order.sort_unstable();
        let (window, mut at) = (Arc::new(window), 0);
        while at < window.order.len() {
            let end = window.run(at, window.order.len(), Window::home);
            let lane = &self.lanes[window.home(at)];
            lane.parts.lock().push_back(Part { window: window.clone(), entries: at..end });
            lane.changed.notify_all();
            at = end;
        }
        window
    }

    /// Replays what comes for one core, until there will be nothing more. To be run there.
    pub(super) async fn replay(&self, core: usize, slots: &SlotTable, progress: &Progress) {
        let lane = &self.lanes[core];
        loop {
            let changed = lane.changed.listen();
            // Asked before the queue: nothing comes behind it.
            let is_last = self.is_closed.load(Ordering::Acquire);
            let part = lane.parts.lock().pop_front();
            match part {
                Some(part) => {
                    self.replay_part(&part, slots).await;
                    progress.count(part.entries.len() as u64);
                    drop(part);
                    self.replayed.notify_all();
                }
                None if is_last => return,
                None => changed.await,
            }
        }
    }

    async fn replay_part(&self, part: &Part, slots: &SlotTable) {
        let (window, end) = (&part.window, part.entries.end);
        let (mut at, mut turn, mut scratch) = (part.entries.start, 0, Vec::new());
        while at < end {
            if self.has_failed() {
                return;
            }
            let run_end = window.run(at, end, Window::slot);
            if let Some(ahead) = (run_end + SLOTS_AHEAD < end).then(|| window.slot(run_end + SLOTS_AHEAD)) {
                slots.prefetch(ahead);
            }
            let frames = (at..run_end).map(|entry| window.frame(entry));
            (run_end..end).take(run_end - at).for_each(|entry| window.prefetch(entry, end));
            let replayed = replay_all(&mut slots.of(window.slot(at)).lock(), frames, &mut scratch);
            if let Err((frame, error)) = replayed {
                let failure = Failure { log: window.log, position: frame.position, error };
                self.failure.lock().get_or_insert(failure);
                self.has_failed.store(true, Ordering::Release);
            }
            turn += run_end - at;
            at = run_end;
            if turn >= FRAMES_PER_TURN {
                turn = 0;
                lockgate_runtime::yield_now().await;
            }
        }
    }
}

/// The windows that one reader has handed over.
#[derive(Default)]
pub(super) struct Sent(VecDeque<Arc<Window>>);

impl Sent {
    /// Hands a window over, and returns an empty one, once there are not too many.
    pub(super) async fn send(&mut self, window: Window, lanes: &Lanes) -> Window {
        let log = window.log;
        self.0.push_back(lanes.hand_over(window));
        if self.0.len() < WINDOWS_MAX {
            return Window::of_log(log);
        }
        loop {
            let replayed = lanes.replayed.listen();
            let oldest = self.0.pop_front().expect("one was just sent");
            match Arc::try_unwrap(oldest) {
                Ok(mut window) => {
                    window.clear();
                    return window;
                }
                Err(oldest) => self.0.push_front(oldest),
            }
            replayed.await;
        }
    }

    /// Waits until all that was handed over is replayed.
    pub(super) async fn drain(&mut self, lanes: &Lanes) {
        loop {
            let replayed = lanes.replayed.listen();
            self.0.retain(|window| Arc::strong_count(window) > 1);
            if self.0.is_empty() {
                return;
            }
            replayed.await;
        }
    }
}
