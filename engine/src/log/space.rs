//! A full disk: who ran out of space, what is still taken meanwhile, and who waits for it to pass.
//!
//! Invariants:
//! - A full disk does not end a log. While it lasts, frames of data are refused before they are appended, as soon as what
//!   is left of the writer's file is needed for frames of control. What was taken all the same waits to be written.
//! - Once something was refused, all data is, until there is space again: who waits for room waits for that.
//! - Whoever ran out of space tries again by itself, after a time: nothing tells when a disk has space again.
//!
//! What this module does not know: which frames are of control. Who reserves says so.

use std::io;
use std::time::Duration;

use lockgate_runtime::Event;
use lockgate_runtime::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use super::format::{BATCH_HEADER_BYTES, SECTOR_BYTES};

/// What is left of a file for frames of control when the disk is full; of a small file, a quarter.
pub const CONTROL_RESERVE_BYTES: u64 = 256 << 10;
/// How soon it is tried again, at first and at last.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_LAST: Duration = Duration::from_secs(3);

/// Who can run out of space.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub(super) enum Who {
    /// The maker, with the next file.
    Maker = 1,
    /// The writer, with a batch that is larger than its file.
    Writer = 2,
}

/// Whether a log has space.
pub(super) struct Space {
    /// A bit for each [`Who`] that has run out.
    short: AtomicU8,
    /// Something was refused since.
    refused: AtomicBool,
    /// What is left of the writer's file, and how much of that is kept for control.
    room_bytes: AtomicU64,
    kept_bytes: AtomicU64,
    pub(super) changed: Event,
}

/// Whether an error says that there is no space, on the disk or for this user.
pub(super) fn is_no_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

impl Space {
    pub(super) fn new() -> Space {
        Space {
            short: AtomicU8::new(0),
            refused: AtomicBool::new(false),
            room_bytes: AtomicU64::new(u64::MAX),
            kept_bytes: AtomicU64::new(0),
            changed: Event::new(),
        }
    }

    /// Says what is left of the writer's file.
    pub(super) fn set_room(&self, room_bytes: u64, capacity_bytes: u64) {
        self.room_bytes.store(room_bytes, Ordering::Relaxed);
        self.kept_bytes.store(CONTROL_RESERVE_BYTES.min(capacity_bytes / 4), Ordering::Relaxed);
    }

    /// Somebody has run out of space. True if nobody had.
    pub(super) fn run_out(&self, who: Who) -> bool {
        if self.short.load(Ordering::Acquire) == 0 {
            self.refused.store(false, Ordering::Release);
        }
        self.short.fetch_or(who as u8, Ordering::AcqRel) == 0
    }

    /// Somebody has got space. True if that ends the shortage.
    pub(super) fn got(&self, who: Who) -> bool {
        let before = self.short.fetch_and(!(who as u8), Ordering::AcqRel);
        let ended = before == who as u8;
        if ended {
            self.refused.store(false, Ordering::Release);
            self.changed.notify_all();
        }
        ended
    }

    pub(super) fn is_short(&self) -> bool {
        self.short.load(Ordering::Acquire) != 0
    }

    /// Whether data is refused now, of whatever length.
    pub(super) fn refuses(&self) -> bool {
        self.is_short() && self.refused.load(Ordering::Acquire)
    }

    /// Whether data of `bytes` is refused, beside what waits to be written.
    pub(super) fn refuse(&self, outstanding: u64, bytes: u64) -> bool {
        if !self.is_short() {
            return false;
        }
        let needed = (outstanding + bytes + BATCH_HEADER_BYTES as u64).next_multiple_of(SECTOR_BYTES as u64);
        let kept = self.kept_bytes.load(Ordering::Relaxed);
        let room = self.room_bytes.load(Ordering::Relaxed);
        if needed + kept > room {
            self.refused.store(true, Ordering::Release);
        }
        self.refused.load(Ordering::Acquire)
    }

    /// What is left for data.
    pub(super) fn data_room_bytes(&self) -> u64 {
        let room = self.room_bytes.load(Ordering::Relaxed);
        room.saturating_sub(self.kept_bytes.load(Ordering::Relaxed))
    }
}

/// How long whoever ran out waits until the next try.
pub(super) struct Retry(Duration);

impl Retry {
    pub(super) fn new() -> Retry {
        Retry(RETRY_FIRST)
    }

    /// Waits for the time, or for `sooner`.
    pub(super) async fn wait(&mut self, sooner: lockgate_runtime::Listen) {
        let _ = lockgate_runtime::timeout(self.0, sooner).await;
        self.0 = (self.0 * 2).min(RETRY_LAST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_refused_from_the_first_refusal_to_the_end_of_the_shortage() {
        let space = Space::new();
        space.set_room(8 << 20, 64 << 20);
        assert!(!space.refuse(u64::MAX / 2, 1 << 30) && !space.is_short());
        assert!(space.run_out(Who::Maker) && space.is_short());
        assert!(!space.refuse(0, 7 << 20) && !space.refuses());
        assert!(space.refuse(7 << 20, 1 << 20) && space.refuses());
        assert!(space.refuse(0, 1), "it would fit, and others wait");
        assert!(!space.run_out(Who::Writer));
        assert!(!space.got(Who::Maker) && space.refuses());
        assert!(space.got(Who::Writer));
        assert!(!space.refuses() && !space.refuse(0, 64 << 20));
        assert!(!space.got(Who::Writer), "there was no shortage");
        space.set_room(10_000, 16 << 10);
        assert_eq!(space.data_room_bytes(), 10_000 - (4 << 10));
        assert!(space.run_out(Who::Maker));
        assert!(!space.refuse(0, 5_000) && space.refuse(0, 6_000));
    }
}
