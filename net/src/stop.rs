//! A stop signal that latches: whoever asks late sees it too.

use lockgate_runtime::{
    Event,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// Asks listeners to end. Clones share one signal; usable from any thread.
#[derive(Clone, Default)]
pub struct Stop(Arc<Signal>);

#[derive(Default)]
struct Signal {
    stopped: AtomicBool,
    event: Event,
}

impl Stop {
    /// A signal that was not given yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives the signal, for good.
    pub fn stop(&self) {
        self.0.stopped.store(true, Ordering::Release);
        self.0.event.notify_all();
    }

    /// Whether the signal was given.
    pub fn is_stopped(&self) -> bool {
        self.0.stopped.load(Ordering::Acquire)
    }

    /// Returns once the signal is given.
    pub async fn stopped(&self) {
        loop {
            // Registered before the check, so that a signal between the two is not lost.
            let listen = self.0.event.listen();
            if self.is_stopped() {
                return;
            }
            listen.await;
        }
    }
}

impl std::fmt::Debug for Stop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Stop({})", self.is_stopped())
    }
}
