//! [`Event`]: waking all that wait for something to have changed, across threads and executors.
//!
//! Invariants:
//! - A [`Listen`] that was made before a `notify_all` becomes ready by it, whether it was polled before or not. So
//!   "listen, check the condition, await" loses nothing.
//! - `notify_all` with nobody waiting costs one atomic add and one load.
//!
//! The epoch counts notifications. A listener remembers the epoch of its creation and is ready when it has changed.
//! A listener that parks first registers its waker, counts itself in `parked`, and then looks at the epoch again;
//! a notifier first advances the epoch and then looks at `parked`. With a SeqCst fence between both steps on both
//! sides, one of them sees the other.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence};
use crate::sync::{Arc, Mutex};

/// Something that happens, again and again, and that many may wait for. Cheap to clone; all clones are one event.
#[derive(Clone)]
pub struct Event(Arc<Inner>);

struct Inner {
    epoch: AtomicU64,
    /// How many wakers are in `waiters`; changed under its lock.
    parked: AtomicUsize,
    waiters: Mutex<Waiters>,
}

#[derive(Default)]
struct Waiters {
    next_id: u64,
    wakers: BTreeMap<u64, Waker>,
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Event").finish_non_exhaustive()
    }
}

impl Default for Event {
    fn default() -> Self {
        Self::new()
    }
}

impl Event {
    /// A new event with no listeners.
    pub fn new() -> Self {
        Self(Arc::new(Inner {
            epoch: AtomicU64::new(0),
            parked: AtomicUsize::new(0),
            waiters: Mutex::new(Waiters::default()),
        }))
    }

    /// Makes every [`Listen`] that exists now ready.
    pub fn notify_all(&self) {
        self.0.epoch.fetch_add(1, Ordering::AcqRel);
        fence(Ordering::SeqCst);
        if self.0.parked.load(Ordering::Relaxed) == 0 {
            return;
        }
        let wakers = {
            let mut waiters = self.0.waiters.lock();
            self.0.parked.store(0, Ordering::Relaxed);
            std::mem::take(&mut waiters.wakers)
        };
        // Woken outside of the lock: a waker may run code that listens again.
        for waker in wakers.into_values() {
            waker.wake();
        }
    }

    /// A future that is ready after the next `notify_all` from now on.
    pub fn listen(&self) -> Listen {
        let epoch = self.0.epoch.load(Ordering::Acquire);
        // Orders this load before the caller's check of its condition.
        fence(Ordering::SeqCst);
        Listen { event: self.0.clone(), epoch, id: None }
    }
}

/// Waits for the next notification of an [`Event`]. Made by [`Event::listen`].
#[must_use = "a listener does nothing unless it is awaited"]
pub struct Listen {
    event: Arc<Inner>,
    epoch: u64,
    /// The registration in `waiters`, which a notification may have taken away already.
    id: Option<u64>,
}

impl fmt::Debug for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listen").field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

impl Listen {
    /// Whether the notification has come.
    pub fn is_notified(&self) -> bool {
        self.event.epoch.load(Ordering::Acquire) != self.epoch
    }
}

impl Future for Listen {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_notified() {
            return Poll::Ready(());
        }
        {
            let event = self.event.clone();
            let mut waiters = event.waiters.lock();
            let id = *self.id.get_or_insert_with(|| {
                waiters.next_id += 1;
                waiters.next_id
            });
            match waiters.wakers.get_mut(&id) {
                Some(waker) => waker.clone_from(cx.waker()),
                None => {
                    waiters.wakers.insert(id, cx.waker().clone());
                    event.parked.store(waiters.wakers.len(), Ordering::Relaxed);
                }
            }
        }
        fence(Ordering::SeqCst);
        if self.is_notified() { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Drop for Listen {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            let mut waiters = self.event.waiters.lock();
            let removed = waiters.wakers.remove(&id);
            self.event.parked.store(waiters.wakers.len(), Ordering::Relaxed);
            drop(waiters);
            drop(removed);
        }
    }
}
