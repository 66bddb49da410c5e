//! What the thread of each core runs: polls tasks, submits and completes operations, spins, parks.
//!
//! Invariants:
//! - Before the core parks, everything that was published since its last `begin` was drained (see `parking`), no
//!   task is runnable, and a read of the bell is in flight.
//! - Wakers run from this loop only, never from a system call's completion inside of another operation.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Waker};
use std::time::Duration;

use super::request::RingBell;
use super::ring::{Op, Ring};
use crate::clock;
use crate::executor::Core;

/// How many polls before completions and other threads' wakes are looked at again.
const POLLS_PER_ROUND: usize = 128;
/// Turns of the spin loop between two looks at the clock.
const SPINS_PER_LOOK: usize = 32;
/// How long a core that stops waits for operations in flight before it leaves their buffers to the kernel for good.
const DRAIN_PATIENCE: Duration = Duration::from_secs(10);

/// The loop of one core.
pub(super) struct EventLoop {
    core: Rc<Core>,
    ring: Rc<Ring>,
    spin_ns: u64,
    bell: Option<Op<RingBell>>,
}

impl EventLoop {
    pub(super) fn new(core: Rc<Core>, ring: Rc<Ring>, spin_us: u32) -> Self {
        Self { core, ring, spin_ns: u64::from(spin_us) * 1000, bell: None }
    }

    /// Runs until the core is asked to stop. The core must be the current one.
    pub(super) fn run(&mut self) {
        let shared = self.core.shared.clone();
        loop {
            shared.park.begin();
            if shared.is_stopping() {
                return;
            }
            self.core.drain_injected();
            self.core.fire_timers(clock::boottime_ns());
            for _ in 0..self.core.runnable().min(POLLS_PER_ROUND) {
                self.core.poll_next();
            }
            self.ring.process();
            if self.core.has_runnable() {
                // Submits what the round has queued, so that it proceeds while other tasks run.
                if self.ring.wants_enter() {
                    self.ring.flush();
                    self.ring.process();
                }
                continue;
            }
            if !shared.park.is_dirty() {
                self.idle();
            }
        }
    }

    /// Nothing is runnable: spins, then parks, until there is something to do.
    fn idle(&mut self) {
        if self.spin_ns > 0 && self.spin() {
            return;
        }
        // After the spin, which may have taken the completion of a late ring: to park with no read in flight would be
        // to sleep through the next one.
        self.arm_bell();
        if !self.core.shared.park.try_park() {
            return;
        }
        let timeout_ns = self
            .core
            .timers
            .borrow()
            .next_deadline_ns()
            .map(|deadline_ns| deadline_ns.saturating_sub(clock::boottime_ns()));
        if timeout_ns == Some(0) {
            self.ring.flush();
        } else {
            self.ring.park(timeout_ns);
        }
        self.ring.process();
    }

    /// Submits, then looks out for work for a while. True when there is some.
    fn spin(&self) -> bool {
        if self.ring.wants_enter() {
            self.ring.flush();
        }
        self.ring.process();
        let start = clock::boottime_ns();
        let next = self.core.timers.borrow().next_deadline_ns().unwrap_or(u64::MAX);
        let until = start.saturating_add(self.spin_ns);
        loop {
            if self.core.has_runnable() || self.core.shared.park.is_dirty() {
                return true;
            }
            if self.ring.has_completions() {
                self.ring.flush();
                self.ring.process();
                continue;
            }
            let now = clock::boottime_ns();
            if now >= next {
                return true;
            }
            if now >= until {
                return false;
            }
            for _ in 0..SPINS_PER_LOOK {
                std::hint::spin_loop();
            }
        }
    }

    /// Makes sure that a read of the bell is in flight.
    fn arm_bell(&mut self) {
        if let Some(bell) = &mut self.bell {
            let mut cx = Context::from_waker(Waker::noop());
            match Future::poll(Pin::new(bell), &mut cx) {
                std::task::Poll::Pending => return,
                std::task::Poll::Ready((result, _)) => {
                    if let Err(error) = result {
                        panic!("the bell of core {} is broken ({error})", self.core.shared.index);
                    }
                }
            }
        }
        self.bell = Some(self.ring.submit(RingBell { core: self.core.shared.clone(), counter: 0 }));
    }

    /// Drops all tasks and waits for what they have in flight. The core must be the current one.
    pub(super) fn finish(&mut self) {
        self.core.drop_tasks();
        self.bell = None;
        let left = self.ring.drain(DRAIN_PATIENCE);
        if left > 0 {
            tracing::error!(
                core = self.core.shared.index,
                left,
                "operations did not complete after the stop; their buffers are left to the kernel"
            );
        }
    }
}
