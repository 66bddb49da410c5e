//! [`Watermark`]: a number that only grows, and those who wait for it to reach a value.
//!
//! Invariants:
//! - `get` never goes down.
//! - A waiter for `v` is woken by the first `advance_to(w)` with `w >= v`, or by `fail`; none is lost.
//! - A value that was reached stays reached: `wait_for` of it succeeds after `fail`, too.
//!
//! A waiter registers its waker, publishes the lowest target that is waited for, and then looks at the value again;
//! `advance_to` first raises the value and then looks at the lowest target. With a SeqCst fence between both steps
//! on both sides, one of them sees the other. So an advance that nobody waits for takes no lock.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use crate::error::{Failed, WaitError};
use crate::foreign::block_on_foreign;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

/// Nobody waits.
const NOBODY: u64 = u64::MAX;

/// A monotonic number with waiters, usable from every thread.
pub struct Watermark {
    value: AtomicU64,
    failed: AtomicBool,
    /// The lowest target in `waiters`, or a lower number; changed under its lock.
    lowest: AtomicU64,
    waiters: Mutex<Waiters>,
}

#[derive(Default)]
struct Waiters {
    next_id: u64,
    /// By target, then by registration.
    wakers: BTreeMap<(u64, u64), Waker>,
}

impl Waiters {
    fn lowest(&self) -> u64 {
        self.wakers.first_key_value().map_or(NOBODY, |((target, _), _)| *target)
    }
}

impl fmt::Debug for Watermark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watermark").field("value", &self.get()).finish_non_exhaustive()
    }
}

impl Watermark {
    /// A watermark that stands at `value`.
    pub fn new(value: u64) -> Self {
        Self {
            value: AtomicU64::new(value),
            failed: AtomicBool::new(false),
            lowest: AtomicU64::new(NOBODY),
            waiters: Mutex::new(Waiters::default()),
        }
    }

    /// The value now.
    pub fn get(&self) -> u64 {
        self.value.load(Ordering::Acquire)
    }

    /// Whether [`Watermark::fail`] was called.
    pub fn is_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// Raises the value to `to` (a lower `to` changes nothing) and wakes those who waited for it.
    pub fn advance_to(&self, to: u64) {
        drop(self.raise_to(to));
    }

    /// As [`Watermark::advance_to`], but those who waited sleep until what is returned is dropped: many sleeping threads take
    /// long to wake, and whoever raised the value may have something to do that should not wait for that.
    pub fn raise_to(&self, to: u64) -> Reached {
        self.value.fetch_max(to, Ordering::AcqRel);
        fence(Ordering::SeqCst);
        if self.lowest.load(Ordering::Relaxed) > to {
            return Reached(BTreeMap::new());
        }
        let reached = {
            let mut waiters = self.waiters.lock();
            let later = match to.checked_add(1) {
                Some(next) => waiters.wakers.split_off(&(next, 0)),
                None => BTreeMap::new(),
            };
            let reached = std::mem::replace(&mut waiters.wakers, later);
            self.lowest.store(waiters.lowest(), Ordering::Relaxed);
            reached
        };
        Reached(reached)
    }

    /// Says that the value will not grow any more: waiters get [`Failed`], now and later.
    pub fn fail(&self) {
        self.failed.store(true, Ordering::Release);
        fence(Ordering::SeqCst);
        let all = {
            let mut waiters = self.waiters.lock();
            self.lowest.store(NOBODY, Ordering::Relaxed);
            std::mem::take(&mut waiters.wakers)
        };
        for waker in all.into_values() {
            waker.wake();
        }
    }

    /// Waits until the value is at least `target`.
    pub fn wait_for(&self, target: u64) -> WaitFor<'_> {
        WaitFor { watermark: self, target, id: None }
    }

    /// As [`Watermark::wait_for`], blocking the calling thread, which must not be a core's.
    pub fn wait_for_blocking(&self, target: u64) -> Result<(), WaitError> {
        Ok(block_on_foreign(self.wait_for(target))??)
    }

    fn state(&self, target: u64) -> Option<Result<(), Failed>> {
        if self.get() >= target {
            Some(Ok(()))
        } else if self.is_failed() {
            // The value may have been raised just before the failure.
            Some(if self.get() >= target { Ok(()) } else { Err(Failed) })
        } else {
            None
        }
    }
}

/// Those whose target was reached: woken when this is dropped. Made by [`Watermark::raise_to`].
#[must_use = "who waited is woken when this is dropped"]
pub struct Reached(BTreeMap<(u64, u64), Waker>);

impl fmt::Debug for Reached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reached").field("waiters", &self.0.len()).finish()
    }
}

impl Drop for Reached {
    fn drop(&mut self) {
        for waker in std::mem::take(&mut self.0).into_values() {
            waker.wake();
        }
    }
}

/// The future of [`Watermark::wait_for`].
#[derive(Debug)]
#[must_use = "a wait does nothing unless it is awaited"]
pub struct WaitFor<'a> {
    watermark: &'a Watermark,
    target: u64,
    id: Option<u64>,
}

impl Future for WaitFor<'_> {
    type Output = Result<(), Failed>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let watermark = self.watermark;
        if let Some(state) = watermark.state(self.target) {
            return Poll::Ready(state);
        }
        {
            let mut waiters = watermark.waiters.lock();
            let id = *self.id.get_or_insert_with(|| {
                waiters.next_id += 1;
                waiters.next_id
            });
            waiters.wakers.insert((self.target, id), cx.waker().clone());
            watermark.lowest.store(waiters.lowest(), Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
        watermark.state(self.target).map_or(Poll::Pending, Poll::Ready)
    }
}

impl Drop for WaitFor<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            let mut waiters = self.watermark.waiters.lock();
            let removed = waiters.wakers.remove(&(self.target, id));
            self.watermark.lowest.store(waiters.lowest(), Ordering::Relaxed);
            drop(waiters);
            drop(removed);
        }
    }
}
