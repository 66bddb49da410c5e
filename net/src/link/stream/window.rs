//! What a feeder has sent and its follower has not acknowledged yet. Pure.
//!
//! Invariants:
//! - `synced <= received < next`, as numbers of messages; acknowledgements never go back.
//! - Bytes that were not acknowledged as received exceed [`FEED_WINDOW_BYTES`] by at most one message.
//! - A message is remembered until it is acknowledged as synced, and at most [`UNSYNCED_MESSAGES_MAX`] are.

use std::collections::VecDeque;

use lockgate_engine::{Slot, Version};

use super::message::Ack;

/// A feeder stops sending while this many bytes are on their way and not acknowledged.
pub const FEED_WINDOW_BYTES: usize = 4 << 20;
/// A feeder stops sending while this many messages were received but not synced.
pub const UNSYNCED_MESSAGES_MAX: usize = 64 << 10;

/// What one message brought a slot to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Brought {
    pub(super) slot: Slot,
    pub(super) subscription: u32,
    pub(super) last: Version,
}

/// An acknowledgement that cannot be true.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{got:?} acknowledged after {had:?} of {sent} messages sent")]
pub(super) struct BadAck {
    got: Ack,
    had: Ack,
    sent: u64,
}

struct Sent {
    bytes: usize,
    brought: Vec<Brought>,
}

/// The messages of one link. Numbers begin with 1.
pub(super) struct Window {
    limit_bytes: usize,
    /// Messages after `acked.synced`, in order.
    sent: VecDeque<Sent>,
    acked: Ack,
    bytes: usize,
}

impl Window {
    pub(super) fn new(limit_bytes: usize) -> Self {
        Self { limit_bytes, sent: VecDeque::new(), acked: Ack::default(), bytes: 0 }
    }

    /// Bytes that may be sent now; 0 means to wait for an acknowledgement.
    pub(super) fn room(&self) -> usize {
        if self.sent.len() >= UNSYNCED_MESSAGES_MAX { 0 } else { self.limit_bytes.saturating_sub(self.bytes) }
    }

    /// Bytes that were not acknowledged as received.
    #[cfg(test)]
    fn bytes(&self) -> usize {
        self.bytes
    }

    /// The number of the next message.
    pub(super) fn next(&self) -> u64 {
        self.acked.synced + self.sent.len() as u64 + 1
    }

    /// The next message is on its way.
    pub(super) fn sent(&mut self, bytes: usize, brought: Vec<Brought>) {
        self.bytes += bytes;
        self.sent.push_back(Sent { bytes, brought });
    }

    /// Takes an acknowledgement in; calls `received` and `synced` for what is newly so, in order.
    pub(super) fn ack(
        &mut self,
        got: Ack,
        mut received: impl FnMut(&Brought),
        mut synced: impl FnMut(&Brought),
    ) -> Result<(), BadAck> {
        let had = self.acked;
        let last = self.next() - 1;
        if got.received < had.received
            || got.synced < had.synced
            || got.synced > got.received
            || got.received > last
        {
            return Err(BadAck { got, had, sent: last });
        }
        let first = had.synced;
        for message in self.sent.range((had.received - first) as usize..(got.received - first) as usize) {
            self.bytes -= message.bytes;
            message.brought.iter().for_each(&mut received);
        }
        for message in self.sent.drain(..(got.synced - first) as usize) {
            message.brought.iter().for_each(&mut synced);
        }
        self.acked = got;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use lockgate_engine::Term;
    use proptest::prelude::*;

    use super::*;

    fn brought(counter: u64) -> Brought {
        Brought { slot: Slot::new(1).unwrap(), subscription: 1, last: Version::new(Term(1), counter) }
    }

    #[test]
    fn acknowledgements_free_room_and_name_versions() {
        let mut window = Window::new(100);
        for counter in 1..=3 {
            assert_eq!(window.next(), counter);
            window.sent(50, vec![brought(counter)]);
        }
        assert_eq!((window.room(), window.bytes()), (0, 150));
        let (mut received, mut synced) = (vec![], vec![]);
        let ack = Ack { received: 2, synced: 1 };
        window.ack(ack, |b| received.push(b.last.counter), |b| synced.push(b.last.counter)).unwrap();
        assert_eq!((received, synced, window.room()), (vec![1, 2], vec![1], 50));
        assert_eq!(window.next(), 4);
        for (received, synced) in [(1, 1), (2, 0), (2, 3), (4, 1)] {
            assert!(window.ack(Ack { received, synced }, |_| (), |_| ()).is_err());
        }
        assert_eq!(window.bytes(), 50, "a refused acknowledgement changes nothing");
    }

    #[test]
    fn unsynced_messages_are_bounded() {
        let mut window = Window::new(100);
        for _ in 0..UNSYNCED_MESSAGES_MAX {
            assert!(window.room() > 0);
            window.sent(0, vec![]);
        }
        assert_eq!(window.room(), 0);
        window.ack(Ack { received: 9, synced: 9 }, |_| (), |_| ()).unwrap();
        assert_eq!(window.room(), 100);
    }

    proptest! {
        #[test]
        fn everything_is_acknowledged_once_and_in_order(
            steps in prop::collection::vec((0usize..4, 0u64..4, 0u64..4), 0..40),
        ) {
            let mut window = Window::new(1 << 20);
            let (mut sent, mut acked) = (0, Ack::default());
            let (mut received, mut synced) = (vec![], vec![]);
            for (messages, more_received, more_synced) in steps {
                for _ in 0..messages {
                    sent += 1;
                    window.sent(10, vec![brought(sent)]);
                }
                acked.received = sent.min(acked.received + more_received);
                acked.synced = acked.received.min(acked.synced + more_synced);
                window.ack(acked, |b| received.push(b.last.counter), |b| synced.push(b.last.counter)).unwrap();
                prop_assert_eq!(window.bytes() as u64, (sent - acked.received) * 10);
            }
            prop_assert_eq!(received, (1..=acked.received).collect::<Vec<_>>());
            prop_assert_eq!(synced, (1..=acked.synced).collect::<Vec<_>>());
        }
    }
}
