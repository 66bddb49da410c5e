//! Models of what needs a proof of its interleavings. Run with
//! `RUSTFLAGS="--cfg loom" cargo test -p lockgate-runtime --lib loom_tests`.

use std::sync::Arc;

use loom::future::block_on;
use loom::thread;

use crate::parking::ParkFlag;
use crate::sync::atomic::{AtomicU64, Ordering as ModelOrdering};
use crate::sync::{Condvar, Mutex, explore};
use crate::{Event, Watermark};

/// A core as the event loop runs it: a queue (a number per notifier), a dirty flag, and a bell like an eventfd.
struct Core {
    flag: ParkFlag,
    queue: [AtomicU64; 2],
    bell: Mutex<Bell>,
    rung: Condvar,
}

#[derive(Default)]
struct Bell {
    is_rung: bool,
    rings: u32,
    parkings: u32,
}

impl Core {
    fn new() -> Self {
        Self {
            flag: ParkFlag::new(),
            queue: [AtomicU64::new(0), AtomicU64::new(0)],
            bell: Mutex::new(Bell::default()),
            rung: Condvar::new(),
        }
    }

    /// Publishes, relaxed on purpose: the flag has to do the ordering.
    fn publish(&self, notifier: usize, value: u64) {
        self.queue[notifier].store(value, ModelOrdering::Relaxed);
        if self.flag.notify() {
            let mut bell = self.bell.lock();
            bell.is_rung = true;
            bell.rings += 1;
            drop(bell);
            self.rung.notify_one();
        }
    }

    /// Runs the loop until everything that was published has been seen. A lost wake-up is a deadlock of the model.
    /// The first `timeouts` parkings end by themselves, as those with a timer or a completion do.
    fn run(&self, wanted: [u64; 2], mut timeouts: u32) {
        loop {
            self.flag.begin();
            let seen =
                [self.queue[0].load(ModelOrdering::Relaxed), self.queue[1].load(ModelOrdering::Relaxed)];
            if seen == wanted {
                break;
            }
            if self.flag.try_park() {
                let mut bell = self.bell.lock();
                bell.parkings += 1;
                if timeouts > 0 {
                    timeouts -= 1;
                    continue;
                }
                while !bell.is_rung {
                    self.rung.wait(&mut bell);
                }
                bell.is_rung = false;
            }
        }
    }

    /// Called when all threads have ended.
    fn check(&self) {
        let bell = self.bell.lock();
        assert!(bell.rings <= bell.parkings, "the bell is rung at most once per parking");
    }
}

#[test]
fn no_wake_up_of_a_parked_core_is_lost() {
    for timeouts in 0..2 {
        explore(3, move || {
            let core = Arc::new(Core::new());
            let notifier = core.clone();
            let thread = thread::spawn(move || {
                notifier.publish(0, 1);
                notifier.publish(0, 2);
            });
            core.run([2, 0], timeouts);
            thread.join().expect("joined");
            core.check();
        });
    }
}

#[test]
fn no_wake_up_of_two_notifiers_is_lost() {
    for timeouts in 0..2 {
        explore(3, move || {
            let core = Arc::new(Core::new());
            let threads: Vec<_> = (0..2)
                .map(|number| {
                    let core = core.clone();
                    thread::spawn(move || core.publish(number, 1))
                })
                .collect();
            core.run([1, 1], timeouts);
            for thread in threads {
                thread.join().expect("joined");
            }
            core.check();
        });
    }
}

#[test]
fn a_waiter_of_a_watermark_is_woken() {
    explore(3, || {
        let mark = Arc::new(Watermark::new(0));
        let advancing = mark.clone();
        let thread = thread::spawn(move || {
            advancing.advance_to(1);
            advancing.advance_to(2);
        });
        block_on(mark.wait_for(2)).expect("reached");
        assert!(mark.get() >= 2);
        thread.join().expect("joined");
    });
}

#[test]
fn a_waiter_of_a_failing_watermark_is_woken() {
    explore(3, || {
        let mark = Arc::new(Watermark::new(0));
        let failing = mark.clone();
        let thread = thread::spawn(move || {
            failing.advance_to(1);
            failing.fail();
        });
        block_on(mark.wait_for(1)).expect("reached before the failure");
        block_on(mark.wait_for(2)).expect_err("failed");
        thread.join().expect("joined");
    });
}

#[test]
fn two_waiters_of_a_watermark_are_woken() {
    explore(3, || {
        let mark = Arc::new(Watermark::new(0));
        let waiting = mark.clone();
        let thread = thread::spawn(move || block_on(waiting.wait_for(1)).expect("reached"));
        let advancing = mark.clone();
        let other = thread::spawn(move || advancing.advance_to(1));
        block_on(mark.wait_for(1)).expect("reached");
        thread.join().expect("joined");
        other.join().expect("joined");
    });
}

#[test]
fn a_listener_misses_no_notification() {
    explore(3, || {
        let event = Event::new();
        let condition = Arc::new(AtomicU64::new(0));
        let (notifying, changing) = (event.clone(), condition.clone());
        let thread = thread::spawn(move || {
            changing.store(1, ModelOrdering::Relaxed);
            notifying.notify_all();
        });
        loop {
            let listen = event.listen();
            if condition.load(ModelOrdering::Relaxed) == 1 {
                break;
            }
            block_on(listen);
        }
        thread.join().expect("joined");
    });
}
