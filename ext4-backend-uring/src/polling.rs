//! Whether whoever submits watches for the end of it himself.
//!
//! A completion that is told through the eventfd wakes a thread in the kernel's poll, which runs the reaper, which wakes
//! the task that waits, perhaps on yet another thread: where processors are idle, and above all in a virtual machine,
//! each of these wake-ups costs as much as the transfer. Whoever submits one small thing that somebody waits for, with
//! nothing else in flight, therefore looks at the completion queue for a while before he goes on. Where that is in vain,
//! the device is slow, and it is left alone for a while that grows with each failure. Where several submit at once,
//! there is other work for the processor, and what waits for the same thing is better gathered: then nobody looks.
//!
//! Invariant: it costs a device that is slow next to nothing: the time lost is at most `limit` in every
//! [`MOST_PASSED_OVER`] submissions once that has been found out.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use ext4_core::device::{Bio, BioFlags, Operation};

/// How long to look where nothing is said: a transfer and a flush of a fast device.
const DEFAULT_LIMIT: Duration = Duration::from_micros(100);
/// More bytes than that take longer than a wake-up.
const MOST_BYTES: u64 = 256 << 10;
/// So many submissions are passed over where several submit at once.
const CROWD: u32 = 64;
/// The most submissions that are passed over after a failure.
const MOST_PASSED_OVER: u32 = 1024;

/// See the module.
#[derive(Debug)]
pub(crate) struct Polling {
    limit: Duration,
    /// Submissions that are still to be passed over.
    pass_over: AtomicU32,
    /// How many were after the last failure; 0 after a success.
    passed_over: AtomicU32,
}

impl Polling {
    /// Looks for `limit` at most; zero: never.
    pub(crate) fn new(limit: Option<Duration>) -> Self {
        let limit = limit.unwrap_or(DEFAULT_LIMIT);
        Self { limit, pass_over: AtomicU32::new(0), passed_over: AtomicU32::new(0) }
    }

    /// How long to look.
    pub(crate) fn limit(&self) -> Duration {
        self.limit
    }

    /// True where somebody waits for all of `bios` and they are small.
    pub(crate) fn suits(&self, bios: &[Bio]) -> bool {
        let waited_for = |bio: &Bio| {
            bio.flags.contains(BioFlags::SYNC)
                && matches!(bio.operation, Operation::Read | Operation::Write | Operation::Flush)
        };
        !self.limit.is_zero()
            && bios.iter().all(waited_for)
            && bios.iter().map(|bio| bio.len).sum::<u64>() <= MOST_BYTES
    }

    /// True where the device has been fast, or it is time to try again.
    pub(crate) fn is_worth_it(&self) -> bool {
        // Counts are not exact where several submit at once, and need not be.
        let left = self.pass_over.load(Ordering::Relaxed);
        if left > 0 {
            self.pass_over.store(left - 1, Ordering::Relaxed);
        }
        left == 0
    }

    /// Somebody submitted while something else was in flight.
    pub(crate) fn crowded(&self) {
        self.pass_over.store(CROWD, Ordering::Relaxed);
    }

    /// All of it ended within the limit.
    pub(crate) fn succeeded(&self) {
        self.passed_over.store(0, Ordering::Relaxed);
    }

    /// It took longer.
    pub(crate) fn failed(&self) {
        let count = (self.passed_over.load(Ordering::Relaxed) * 2).clamp(1, MOST_PASSED_OVER);
        self.passed_over.store(count, Ordering::Relaxed);
        self.pass_over.store(count, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_device_is_hardly_ever_watched() {
        let polling = Polling::new(None);
        let mut tries = 0;
        for _ in 0..100_000 {
            if polling.is_worth_it() {
                tries += 1;
                polling.failed();
            }
        }
        assert!((11..120).contains(&tries), "{tries}");
        // It has become fast: watched again each time after the first success.
        while !polling.is_worth_it() {}
        polling.succeeded();
        assert!((0..1000).all(|_| polling.is_worth_it()));
    }

    #[test]
    fn only_small_things_that_somebody_waits_for_are_watched() {
        let bio = |flags, len| Bio::without_memory(Operation::Flush, flags, 0, len, Box::new(drop));
        let polling = Polling::new(None);
        assert!(polling.suits(&[bio(BioFlags::SYNC, 4096), bio(BioFlags::SYNC, 4096)]));
        assert!(!polling.suits(&[bio(BioFlags::SYNC, 4096), bio(BioFlags::BACKGROUND, 4096)]));
        assert!(!polling.suits(&[bio(BioFlags::SYNC, 1 << 20)]));
        assert!(!Polling::new(Some(Duration::ZERO)).suits(&[bio(BioFlags::SYNC, 4096)]));
    }
}
