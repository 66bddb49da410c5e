//! Running one future on a foreign thread, by parking it.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;

use crate::context;
use crate::error::OnCoreThread;

/// Wakes a parked thread. An unpark that comes first is kept for the next park, so no wake-up is lost.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.unpark();
    }
}

/// Runs `future` to its end on the calling thread, which must be a foreign one (not a core's).
///
/// The future may use what is woken across threads ([`crate::Event`], [`crate::Watermark`]); files, sockets and timers
/// belong to cores and are not available.
pub fn block_on_foreign<F: Future>(future: F) -> Result<F::Output, OnCoreThread> {
    if context::is_core_thread() {
        return Err(OnCoreThread);
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut cx = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut cx) {
            return Ok(output);
        }
        // It may return for no reason; then the future is merely polled once more.
        std::thread::park();
    }
}
