//! A device that takes its time: each bio reaches the device below after a latency of its own, so that one
//! may take longer than hundreds of others, and they overtake each other.
//!
//! Time is the runtime's: on a simulated scheduler a latency costs nothing and follows from a seed. Every bio
//! that waits is a task of that runtime.
//!
//! Lock: the generator's mutex, held for a number.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::Random;
use crate::device::{BlockDevice, Geometry, Plug};
use crate::environment::Runtime;

/// One bio in so many is slow.
const SLOW: usize = 10;
/// And takes up to so many times as long.
const SLOWER: usize = 200;

/// A device with latencies; see the module.
pub struct DelayedDevice {
    inner: Arc<dyn BlockDevice>,
    runtime: Arc<dyn Runtime>,
    random: Mutex<Random>,
    latency: Duration,
}

impl std::fmt::Debug for DelayedDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DelayedDevice").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl DelayedDevice {
    /// A device before `inner` whose bios take up to `latency`, one in ten of them up to two hundred times as
    /// long.
    #[must_use]
    pub fn new(inner: Arc<dyn BlockDevice>, runtime: Arc<dyn Runtime>, latency: Duration, seed: u64) -> Self {
        Self { inner, runtime, random: Mutex::new(Random(seed)), latency }
    }

    fn draw(&self) -> Duration {
        let mut random = self.random.lock();
        let part = random.below(1000);
        let times = if random.below(SLOW) == 0 { random.below(SLOWER) + 1 } else { 1 };
        self.latency * u32::try_from(part * times).unwrap_or(u32::MAX) / 1000
    }
}

impl BlockDevice for DelayedDevice {
    fn geometry(&self) -> &Geometry {
        self.inner.geometry()
    }

    fn submit(&self, plug: Plug) {
        for bio in plug {
            let (inner, sleep) = (Arc::clone(&self.inner), self.runtime.sleep(self.draw()));
            self.runtime.spawn(Box::pin(async move {
                sleep.await;
                inner.submit(vec![bio]);
            }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{AlignedBuffer, Bio, BioFlags, MemoryDevice, Operation, Segment};
    use crate::environment::Simulation;

    /// The order in which 50 writes end, and when the last one does.
    fn order(seed: u64) -> (Vec<u64>, Duration) {
        let world = Simulation::new(1);
        let runtime = world.runtime();
        let memory = Arc::new(MemoryDevice::new(1 << 20));
        let device = DelayedDevice::new(memory, Arc::clone(&runtime), Duration::from_micros(100), seed);
        let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
        let order = world.run(async move {
            for number in 0..50 {
                let sender = sender.clone();
                let end_io = Box::new(move |completion: crate::device::Completion| {
                    completion.result.unwrap();
                    sender.send(number).unwrap();
                });
                let segments = vec![Segment::Owned(AlignedBuffer::zeroed(512).unwrap())];
                device.submit(vec![Bio::new(
                    Operation::Write,
                    BioFlags::empty(),
                    number * 512,
                    segments,
                    end_io,
                )]);
            }
            drop((device, sender));
            let mut order = Vec::new();
            while let Some(number) = receiver.recv().await {
                order.push(number);
            }
            (order, runtime.monotonic())
        });
        order.unwrap()
    }

    #[test]
    fn bios_overtake_each_other_as_the_seed_decides_and_none_is_lost() {
        let (first, took) = order(1);
        assert_eq!((first.clone(), took), order(1));
        assert_ne!(first, order(2).0);
        assert!(took > Duration::from_micros(500), "some are much slower");
        let mut sorted = first.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..50).collect::<Vec<_>>());
    }
}
