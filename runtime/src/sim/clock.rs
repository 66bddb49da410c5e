//! The clocks of one machine: CLOCK_BOOTTIME and the wall clock, by a crystal that may run fast or slow.
//!
//! Invariants:
//! - Within one boot, the boot time never goes back.
//! - [`Clock::world_ns_at`] gives the first moment of the world at which the boot time is reached.
//! - [`SharedClock::ahead_ns`] is never of another clock than the one behind the lock: both change on the simulation's thread.

use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU64, Ordering};

/// What the boot time is when a machine has just started.
pub(super) const BOOTED_NS: u64 = 1_000_000_000;
/// The wall clock when the machines were started: 2026-01-01.
const EPOCH_NS: u64 = 1_767_225_600_000_000_000;
/// Binary digits of the rate after the point.
const RATE_BITS: u32 = 40;
/// The largest drift, in parts per million.
pub(super) const PPM_MAX: i32 = 500_000;

/// Both clocks, as functions of the time of the world.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    /// When the clocks were last set.
    set_at_ns: u64,
    /// What they showed then.
    boot_ns: u64,
    wall_ns: u64,
    /// What they gain, as a part of 1 << RATE_BITS.
    gain: i64,
}

impl Clock {
    fn new() -> Self {
        Self { set_at_ns: BOOTED_NS, boot_ns: BOOTED_NS, wall_ns: EPOCH_NS + BOOTED_NS, gain: 0 }
    }

    /// What the machine counts until `world_ns` since it was set.
    fn elapsed(&self, world_ns: u64) -> u64 {
        let elapsed = world_ns.saturating_sub(self.set_at_ns);
        if self.gain == 0 {
            return elapsed;
        }
        let gained = (i128::from(elapsed) * i128::from(self.gain)) >> RATE_BITS;
        u64::try_from(i128::from(elapsed) + gained).unwrap_or(u64::MAX)
    }

    pub(super) fn boot_ns(&self, world_ns: u64) -> u64 {
        self.boot_ns.saturating_add(self.elapsed(world_ns))
    }

    fn wall_ns(&self, world_ns: u64) -> u64 {
        self.wall_ns.saturating_add(self.elapsed(world_ns))
    }

    /// When the boot time reaches `boot_ns`.
    pub(super) fn world_ns_at(&self, boot_ns: u64) -> u64 {
        let wanted = boot_ns.saturating_sub(self.boot_ns);
        if self.gain == 0 {
            return self.set_at_ns.saturating_add(wanted);
        }
        let rate = (1i128 << RATE_BITS) + i128::from(self.gain);
        let about = (i128::from(wanted) << RATE_BITS) / rate;
        let mut at = self.set_at_ns.saturating_add(u64::try_from(about).unwrap_or(u64::MAX));
        while at < u64::MAX && self.boot_ns(at) < boot_ns {
            at += 1;
        }
        at
    }

    /// See [`SharedClock::ahead_ns`].
    fn ahead_ns(&self) -> u64 {
        // A clock that was set to the end of time stays there.
        let is_simple = self.gain == 0 && self.boot_ns < u64::MAX / 2;
        if is_simple { self.boot_ns.wrapping_sub(self.set_at_ns) } else { ASK }
    }

    /// Counts from now on by what the clocks show now.
    fn set(&mut self, world_ns: u64) {
        (self.boot_ns, self.wall_ns) = (self.boot_ns(world_ns), self.wall_ns(world_ns));
        self.set_at_ns = world_ns;
    }
}

/// The clocks of a machine, where its cores can read them without a lock on the world.
#[derive(Debug)]
pub(super) struct SharedClock {
    clock: Mutex<Clock>,
    /// What the boot time is ahead of the world's, or behind it (as a negative number), while its rate is the world's.
    /// [`ASK`] otherwise.
    ahead_ns: AtomicU64,
}

/// The boot time is to be computed from the clock itself.
const ASK: u64 = u64::MAX;

impl SharedClock {
    pub(super) fn new() -> Self {
        let clock = Clock::new();
        Self { ahead_ns: AtomicU64::new(clock.ahead_ns()), clock: Mutex::new(clock) }
    }

    pub(super) fn get(&self) -> Clock {
        *self.clock.lock()
    }

    /// Both clocks go on from what they show, after this change.
    fn change(&self, world_ns: u64, change: impl FnOnce(&mut Clock)) {
        let mut clock = self.clock.lock();
        clock.set(world_ns);
        change(&mut clock);
        self.ahead_ns.store(clock.ahead_ns(), Ordering::Release);
    }

    /// Sets the drift.
    pub(super) fn set_rate(&self, world_ns: u64, ppm: i32) {
        self.change(world_ns, |clock| clock.gain = (i64::from(ppm) << RATE_BITS) / 1_000_000);
    }

    pub(super) fn jump_boot(&self, world_ns: u64, by_ns: u64) {
        self.change(world_ns, |clock| clock.boot_ns = clock.boot_ns.saturating_add(by_ns));
    }

    pub(super) fn jump_wall(&self, world_ns: u64, by_ms: i64) {
        let by_ns = by_ms.saturating_mul(1_000_000);
        self.change(world_ns, |clock| clock.wall_ns = clock.wall_ns.saturating_add_signed(by_ns));
    }

    /// The machine was started: its boot time begins anew, its wall clock goes on.
    pub(super) fn boot(&self, world_ns: u64, boot_ns: u64) {
        self.change(world_ns, |clock| clock.boot_ns = boot_ns);
    }

    /// The boot time. Asked for at every poll, of every core.
    #[inline]
    pub(super) fn boot_ns(&self, world_ns: u64) -> u64 {
        match self.ahead_ns.load(Ordering::Acquire) {
            ASK => self.clock.lock().boot_ns(world_ns),
            ahead_ns => world_ns.wrapping_add(ahead_ns),
        }
    }

    pub(super) fn unix_ms(&self, world_ns: u64) -> u64 {
        self.clock.lock().wall_ns(world_ns) / 1_000_000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timer_is_due_at_the_first_moment_of_its_time() {
        for ppm in [-PPM_MAX, -300, -1, 0, 1, 77, PPM_MAX] {
            let shared = SharedClock::new();
            shared.set_rate(5_000_000_123, ppm);
            shared.jump_boot(6_000_000_123, 17);
            let clock = shared.get();
            assert_eq!(shared.boot_ns(7_000_000_123), clock.boot_ns(7_000_000_123), "{ppm} ppm");
            for wanted in [0, 1, 2, 3, 999, 1_000_001, 3_600_000_000_007] {
                let boot_ns = clock.boot_ns(6_000_000_123) + wanted;
                let at = clock.world_ns_at(boot_ns);
                assert!(clock.boot_ns(at) >= boot_ns, "{ppm} ppm, {wanted} ns");
                assert!(wanted == 0 || clock.boot_ns(at - 1) < boot_ns, "{ppm} ppm, {wanted} ns");
            }
        }
    }
}
