//! Sleeping, timeouts and yielding on the current core.

use std::cell::RefCell;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::context;
use crate::error::Elapsed;
use crate::executor::{TimerKey, Timers};

/// Waits for `duration`, counted from this call. Panics on a foreign thread.
pub fn sleep(duration: Duration) -> Sleep {
    let core = context::expect("sleep");
    let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    Sleep { deadline_ns: core.now_ns().saturating_add(nanos), timers: core.timers.clone(), key: None }
}

/// The future of [`sleep`]. It belongs to the core that made it.
#[must_use = "a sleep does nothing unless it is awaited"]
pub struct Sleep {
    deadline_ns: u64,
    timers: Rc<RefCell<Timers>>,
    key: Option<TimerKey>,
}

impl fmt::Debug for Sleep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sleep").field("deadline_ns", &self.deadline_ns).finish_non_exhaustive()
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if context::now_ns() >= self.deadline_ns {
            return Poll::Ready(());
        }
        let timers = self.timers.clone();
        let (deadline_ns, key) = (self.deadline_ns, self.key);
        self.key = Some(timers.borrow_mut().register(deadline_ns, key, cx.waker()));
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            let removed = self.timers.borrow_mut().remove(key);
            drop(removed);
        }
    }
}

/// Runs `future` for at most `duration`; then it is dropped. Panics on a foreign thread.
pub async fn timeout<F: Future>(duration: Duration, future: F) -> Result<F::Output, Elapsed> {
    let mut future = pin!(future);
    let mut sleep = sleep(duration);
    poll_fn(|cx| {
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            return Poll::Ready(Ok(output));
        }
        Pin::new(&mut sleep).poll(cx).map(|()| Err(Elapsed))
    })
    .await
}

/// Lets the core's other runnable tasks run first.
pub async fn yield_now() {
    let mut yielded = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
