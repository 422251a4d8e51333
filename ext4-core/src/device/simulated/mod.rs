//! Simulated devices: storage in memory, one that records everything, one that fails on purpose, one that is
//! slow.
//!
//! ```text
//!   engine ──► RecordingDevice ──► DelayedDevice ──► FaultyDevice ──► MemoryDevice  (in any order)
//!                   │ recording()
//!                   ▼
//!               Recording ── cuts() ──► Cut ── variant(seed) ──► Image ──► MemoryDevice ──► mount, check
//! ```
//!
//! A crash test runs its work over a [`RecordingDevice`], then asks the [`Recording`] for what the device
//! could have held had the power gone at each moment, and mounts every one of those images. Images share
//! their memory ([`Image`]), so that a thousand of them cost little more than one.
//!
//! Invariant: whatever is random follows from a seed that the caller gives, so that a failure can be
//! replayed.

mod delayed;
mod faulty;
mod image;
mod memory;
mod recording;

pub use delayed::DelayedDevice;
pub use faulty::{Fault, FaultyDevice, Trigger};
pub use image::Image;
pub use memory::MemoryDevice;
pub use recording::{Change, Cut, Cuts, DistinctStates, Event, Recording, RecordingDevice};

/// Random numbers that follow from a seed: splitmix64 (<https://prng.di.unimi.it/splitmix64.c>, public
/// domain).
#[derive(Clone, Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not 0.
    fn below(&mut self, bound: usize) -> usize {
        let bound = bound as u64;
        usize::try_from(self.next() % bound).expect("below a bound that is a usize")
    }
}
