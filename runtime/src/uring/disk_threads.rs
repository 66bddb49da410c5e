//! Threads that sync files for the cores of a runtime.
//!
//! Why not the ring: it has a worker of the kernel do what blocks, which on common file systems is every write and every sync.
//! That worker may run only where the core may that has pinned itself (since Linux 6.2 whatever else it is told), so it waits
//! for a core that spins or works; and a write and its sync are two ways to a worker and back, linked or not, as the ring's
//! completions pass through the core. Here both are one way, to a thread that may run anywhere.
//!
//! Invariants:
//! - A thread is started when there is work and none is idle, up to [`THREADS_MAX`]; none ends before the runtime does.
//! - What was taken in is done, also when its future is dropped, and before [`DiskThreads::join`] returns.
//! - A panic of the work is the future's.

use std::any::Any;
use std::collections::VecDeque;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::thread::{self, JoinHandle};

use super::cores::pin_to;
use crate::sync::{Arc, Condvar, Mutex};

/// More syncs at a time than these wait for each other. A core has two logs at most, and rarely a checkpoint's file.
const THREADS_MAX: usize = 8;

type Job = Box<dyn FnOnce() + Send>;

/// The threads of one runtime.
pub(crate) struct DiskThreads {
    name: String,
    /// Where they may run; empty: where whoever starts them may.
    processors: Vec<usize>,
    pool: Arc<Pool>,
}

struct Pool {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    idle: usize,
    threads: Vec<JoinHandle<()>>,
    closed: bool,
}

impl DiskThreads {
    pub(super) fn new(name: &str, processors: Vec<usize>) -> Self {
        let pool = Pool { state: Mutex::new(State::default()), changed: Condvar::new() };
        Self { name: format!("{name}-disk"), processors, pool: Arc::new(pool) }
    }

    /// Does `work` on one of the threads.
    pub(crate) fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Done<T> {
        let done = Done(Arc::new(Mutex::new(Outcome { result: None, waker: None })));
        let outcome = done.0.clone();
        let job: Job = Box::new(move || {
            let result = catch_unwind(AssertUnwindSafe(work));
            let waker = {
                let mut outcome = outcome.lock();
                outcome.result = Some(result);
                outcome.waker.take()
            };
            if let Some(waker) = waker {
                waker.wake();
            }
        });
        if let Some(job) = self.pool.take_in(job, |pool| self.start_thread(pool)) {
            // No thread could be started, and none is there: slow is better than never.
            job();
        }
        done
    }

    fn start_thread(&self, pool: &Arc<Pool>) -> std::io::Result<JoinHandle<()>> {
        let (pool, processors) = (pool.clone(), self.processors.clone());
        thread::Builder::new().name(self.name.clone()).spawn(move || {
            pin_to(&processors);
            pool.work();
        })
    }

    /// Waits until all that was taken in is done, and the threads have ended.
    pub(super) fn join(&self) {
        let threads = {
            let mut state = self.pool.state.lock();
            state.closed = true;
            self.pool.changed.notify_all();
            std::mem::take(&mut state.threads)
        };
        for thread in threads {
            // The work's panics are caught.
            let _ = thread.join();
        }
    }
}

impl Pool {
    /// Hands the job back if there is no thread to do it.
    fn take_in(
        self: &Arc<Self>,
        job: Job,
        start: impl FnOnce(&Arc<Self>) -> std::io::Result<JoinHandle<()>>,
    ) -> Option<Job> {
        let mut state = self.state.lock();
        // Those that were woken for earlier jobs still count as idle.
        if state.idle <= state.jobs.len() && state.threads.len() < THREADS_MAX {
            match start(self) {
                Ok(thread) => state.threads.push(thread),
                Err(error) if state.threads.is_empty() => {
                    tracing::warn!(%error, "no thread for syncs could be started; the core syncs by itself");
                    return Some(job);
                }
                Err(_) => {}
            }
        }
        state.jobs.push_back(job);
        drop(state);
        self.changed.notify_one();
        None
    }

    fn work(&self) {
        let mut state = self.state.lock();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                drop(state);
                job();
                state = self.state.lock();
            } else if state.closed {
                return;
            } else {
                state.idle += 1;
                self.changed.wait(&mut state);
                state.idle -= 1;
            }
        }
    }
}

/// The result of what is done on another thread.
#[must_use = "the work is done, but nobody knows how it went"]
pub(crate) struct Done<T>(Arc<Mutex<Outcome<T>>>);

struct Outcome<T> {
    result: Option<Result<T, Box<dyn Any + Send>>>,
    waker: Option<Waker>,
}

impl<T> Future for Done<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let mut outcome = self.0.lock();
        match outcome.result.take() {
            Some(Ok(value)) => Poll::Ready(value),
            Some(Err(panic)) => {
                drop(outcome);
                resume_unwind(panic)
            }
            None => {
                outcome.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::foreign::block_on_foreign;

    #[test]
    fn work_is_done_at_the_same_time_and_in_any_case() {
        let threads = DiskThreads::new("test", Vec::new());
        let (tell, told) = mpsc::channel();
        let (let_go, waits) = mpsc::channel::<()>();
        let first = threads.run(move || waits.recv().is_ok());
        // While the first one waits, another thread does this one; nobody asks how it went.
        drop(threads.run(move || tell.send(7).expect("the test waits")));
        assert_eq!(told.recv().expect("done"), 7);
        let_go.send(()).expect("it waits");
        assert!(block_on_foreign(first).expect("a foreign thread"));
        let last = threads.run(|| 9);
        threads.join();
        assert_eq!(block_on_foreign(last).expect("a foreign thread"), 9);
    }

    #[test]
    fn a_panic_is_for_who_waits() {
        let threads = DiskThreads::new("test", Vec::new());
        let work = threads.run(|| panic!("of the work"));
        let waits = catch_unwind(AssertUnwindSafe(|| block_on_foreign(work)));
        assert!(waits.is_err());
        assert_eq!(block_on_foreign(threads.run(|| 1)).expect("a foreign thread"), 1);
        threads.join();
    }
}
