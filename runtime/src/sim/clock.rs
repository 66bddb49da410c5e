//! The clocks of one machine: CLOCK_BOOTTIME and the wall clock, by a crystal that may run fast or slow.
//!
//! Invariants:
//! - Within one boot, the boot time never goes back.
//! - [`Clock::world_ns_at`] gives the first moment of the world at which the boot time is reached.

use crate::sync::Mutex;

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

    /// Counts from now on by what the clocks show now.
    fn set(&mut self, world_ns: u64) {
        (self.boot_ns, self.wall_ns) = (self.boot_ns(world_ns), self.wall_ns(world_ns));
        self.set_at_ns = world_ns;
    }
}

/// The clocks of a machine, where its cores can read them without a lock on the world.
#[derive(Debug)]
pub(super) struct SharedClock(Mutex<Clock>);

impl SharedClock {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Clock::new()))
    }

    pub(super) fn get(&self) -> Clock {
        *self.0.lock()
    }

    /// Sets the drift. Both clocks go on from what they show.
    pub(super) fn set_rate(&self, world_ns: u64, ppm: i32) {
        let mut clock = self.0.lock();
        clock.set(world_ns);
        clock.gain = (i64::from(ppm) << RATE_BITS) / 1_000_000;
    }

    pub(super) fn jump_boot(&self, world_ns: u64, by_ns: u64) {
        let mut clock = self.0.lock();
        clock.set(world_ns);
        clock.boot_ns = clock.boot_ns.saturating_add(by_ns);
    }

    pub(super) fn jump_wall(&self, world_ns: u64, by_ms: i64) {
        let mut clock = self.0.lock();
        clock.set(world_ns);
        clock.wall_ns = clock.wall_ns.saturating_add_signed(by_ms.saturating_mul(1_000_000));
    }

    /// The machine was started: its boot time begins anew, its wall clock goes on.
    pub(super) fn boot(&self, world_ns: u64, boot_ns: u64) {
        let mut clock = self.0.lock();
        clock.set(world_ns);
        clock.boot_ns = boot_ns;
    }

    pub(super) fn boot_ns(&self, world_ns: u64) -> u64 {
        self.0.lock().boot_ns(world_ns)
    }

    pub(super) fn unix_ms(&self, world_ns: u64) -> u64 {
        self.0.lock().wall_ns(world_ns) / 1_000_000
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
            for wanted in [0, 1, 2, 3, 999, 1_000_001, 3_600_000_000_007] {
                let boot_ns = clock.boot_ns(6_000_000_123) + wanted;
                let at = clock.world_ns_at(boot_ns);
                assert!(clock.boot_ns(at) >= boot_ns, "{ppm} ppm, {wanted} ns");
                assert!(wanted == 0 || clock.boot_ns(at - 1) < boot_ns, "{ppm} ppm, {wanted} ns");
            }
        }
    }
}
