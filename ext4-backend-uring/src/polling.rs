//! Busy polling: whether a submitter polls the completion queue before it returns.
//!
//! A completion that is signalled through the eventfd wakes a thread in `epoll_wait`, which runs the reaper
//! task, which wakes the waiting task, perhaps on a third thread. On idle processors, and above all in a
//! virtual machine, each of these wake-ups costs as much as the transfer. So a task that submits one small
//! synchronous plug, with nothing else in flight, polls the completion queue for a while. If the completion
//! does not come in time, the device is slow: the next submissions are not polled, and their number doubles
//! with each failure. If several tasks submit at once, the processor has other work, and tasks that wait for
//! the same commit are better gathered: then no task polls.
//!
//! Invariant: polling costs a slow device next to nothing: once it is known to be slow, the time lost is at
//! most `limit` in every [`MOST_PASSED_OVER`] submissions.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use ext4_core::device::{Bio, BioFlags, Operation};

/// How long to poll by default: the time of a transfer and a flush of a fast device.
const DEFAULT_LIMIT: Duration = Duration::from_micros(100);
/// The largest plug that is polled for, in bytes: a larger one takes longer than a wake-up.
const MOST_BYTES: u64 = 256 << 10;
/// Submissions that are not polled after several tasks have submitted at once.
const CROWD: u32 = 64;
/// The most submissions that are not polled after a failure.
const MOST_PASSED_OVER: u32 = 1024;

/// What is known about a device's speed, to decide if a submitter polls; see the module.
#[derive(Debug)]
pub(crate) struct Polling {
    limit: Duration,
    /// The number of coming submissions that are not polled.
    pass_over: AtomicU32,
    /// The number of submissions not polled after the last failure; 0 after a success.
    passed_over: AtomicU32,
}

impl Polling {
    /// Polls for at most `limit`: `None` means the default, zero means never.
    pub(crate) fn new(limit: Option<Duration>) -> Self {
        let limit = limit.unwrap_or(DEFAULT_LIMIT);
        Self { limit, pass_over: AtomicU32::new(0), passed_over: AtomicU32::new(0) }
    }

    /// How long to poll.
    pub(crate) fn limit(&self) -> Duration {
        self.limit
    }

    /// Returns true if all of `bios` are synchronous and small in sum.
    pub(crate) fn suits(&self, bios: &[Bio]) -> bool {
        let waited_for = |bio: &Bio| {
            bio.flags.contains(BioFlags::SYNC)
                && matches!(bio.operation, Operation::Read | Operation::Write | Operation::Flush)
        };
        !self.limit.is_zero()
            && bios.iter().all(waited_for)
            && bios.iter().map(|bio| bio.len).sum::<u64>() <= MOST_BYTES
    }

    /// Returns true if the device has been fast, or if it is time to try again.
    pub(crate) fn is_worth_it(&self) -> bool {
        // Counts are not exact if several tasks submit at once, and need not be.
        let left = self.pass_over.load(Ordering::Relaxed);
        if left > 0 {
            self.pass_over.store(left - 1, Ordering::Relaxed);
        }
        left == 0
    }

    /// Records that a task submitted while transfers of another plug were in flight.
    pub(crate) fn crowded(&self) {
        self.pass_over.store(CROWD, Ordering::Relaxed);
    }

    /// Records that all transfers ended within the limit.
    pub(crate) fn succeeded(&self) {
        self.passed_over.store(0, Ordering::Relaxed);
    }

    /// Records that a transfer took longer than the limit.
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
    fn a_slow_device_is_polled_rarely() {
        let polling = Polling::new(None);
        let mut tries = 0;
        for _ in 0..100_000 {
            if polling.is_worth_it() {
                tries += 1;
                polling.failed();
            }
        }
        assert!((11..120).contains(&tries), "{tries}");
        // The device has become fast: after the first success every submission is polled.
        while !polling.is_worth_it() {}
        polling.succeeded();
        assert!((0..1000).all(|_| polling.is_worth_it()));
    }

    #[test]
    fn only_small_synchronous_plugs_are_polled() {
        let bio = |flags, len| Bio::without_memory(Operation::Flush, flags, 0, len, Box::new(drop));
        let polling = Polling::new(None);
        assert!(polling.suits(&[bio(BioFlags::SYNC, 4096), bio(BioFlags::SYNC, 4096)]));
        assert!(!polling.suits(&[bio(BioFlags::SYNC, 4096), bio(BioFlags::BACKGROUND, 4096)]));
        assert!(!polling.suits(&[bio(BioFlags::SYNC, 1 << 20)]));
        assert!(!Polling::new(Some(Duration::ZERO)).suits(&[bio(BioFlags::SYNC, 4096)]));
    }
}
