//! Telling a silent peer from an idle one: both ends of a link say something now and then, and a link on which nothing is
//! heard is over.
//!
//! A connection alone does not tell: a machine that lost its power, or a network that swallows everything, sends no end of
//! the stream, and a process that stands still has its kernel acknowledge for it.
//!
//! Invariants:
//! - Silence counts only while somebody waits to receive: bytes that nobody asked for are not missing.
//! - A link is given up only after two looks in a row have found it silent, so that a process that stood still itself, and
//!   finds all its timers due at once, first takes in what has arrived.

use std::cell::Cell;
use std::rc::Weak;
use std::time::Duration;

use lockgate_runtime::mutation;

use super::error::LinkError;
use super::sender::Shared;

/// How often an end says something when it has nothing to say.
pub const PING_INTERVAL: Duration = Duration::from_millis(500);
/// After so long without a byte from the peer, the link is over.
pub const SILENCE_MAX: Duration = Duration::from_secs(2);

const _: () = assert!(SILENCE_MAX.as_millis() >= 3 * PING_INTERVAL.as_millis(), "a lost ping is no silence");

/// When this end heard something, and whether it listens.
pub(super) struct Hearing {
    heard_ns: Cell<u64>,
    is_waiting: Cell<bool>,
    /// The sequence of looks that have found silence.
    silent_looks: Cell<u32>,
}

impl Hearing {
    pub(super) fn new() -> Self {
        let heard_ns = Cell::new(lockgate_runtime::now_ns());
        Self { heard_ns, is_waiting: Cell::new(false), silent_looks: Cell::new(0) }
    }

    /// Bytes have arrived.
    pub(super) fn heard(&self) {
        self.heard_ns.set(lockgate_runtime::now_ns());
        self.silent_looks.set(0);
    }

    /// Notes that somebody waits for bytes, until the guard is dropped.
    pub(super) fn waiting(&self) -> Waiting<'_> {
        self.is_waiting.set(true);
        Waiting(self)
    }

    /// How long nothing has been heard, if that is too long.
    fn silence(&self) -> Option<Duration> {
        let silence = Duration::from_nanos(lockgate_runtime::now_ns().saturating_sub(self.heard_ns.get()));
        if !self.is_waiting.get() || silence < SILENCE_MAX {
            self.silent_looks.set(0);
            return None;
        }
        self.silent_looks.set(self.silent_looks.get() + 1);
        (self.silent_looks.get() > 1).then_some(silence)
    }
}

/// Somebody waits for bytes.
pub(super) struct Waiting<'a>(&'a Hearing);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.is_waiting.set(false);
    }
}

/// Pings the peer and watches for silence, until the link is over.
pub(super) async fn keep_alive(link: Weak<Shared>) {
    loop {
        lockgate_runtime::sleep(PING_INTERVAL).await;
        let Some(shared) = link.upgrade() else { return };
        if shared.failure().is_some() {
            return;
        }
        if let Some(silence) = shared.hearing.silence().filter(|_| !mutation!("silence-not-noticed")) {
            let silence_ms = silence.as_millis() as u64;
            shared.fail(LinkError::Silent { peer: shared.peer, silence_ms });
            return;
        }
        if !mutation!("silence-not-noticed") {
            shared.ping();
        }
    }
}
