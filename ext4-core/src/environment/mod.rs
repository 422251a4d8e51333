//! What a file system takes from the world besides its device: the time, random bytes, and a runtime for its
//! tasks.
//!
//! Everything comes in through these two traits, so that an image can be the same byte for byte every time
//! and the whole engine can run on one seeded scheduler.
//!
//! Invariant: below the backends and the tools nothing else reads a clock, draws a random number, starts a
//! thread, spawns a task or waits for a time.

mod run_to_end;
mod simulation;

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

pub use run_to_end::RunToEnd;
pub use simulation::{Simulation, Stuck};

use crate::types::Timestamp;

/// A boxed future, as async traits hand them around.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Time and randomness.
pub trait Environment: Send + Sync {
    /// The time to stamp into inodes and superblocks.
    fn now(&self) -> Timestamp;

    /// Fills `bytes` with random data: UUIDs, hash seeds, inode generations.
    fn random(&self, bytes: &mut [u8]);

    /// Four random bytes as a number.
    fn random_u32(&self) -> u32 {
        let mut bytes = [0; 4];
        self.random(&mut bytes);
        u32::from_le_bytes(bytes)
    }
}

/// What runs tasks and waits for times: the seam to an async runtime.
pub trait Runtime: Send + Sync {
    /// Runs `task` to its end, independent of the caller.
    fn spawn(&self, task: BoxFuture<'static, ()>);

    /// Resolves after `duration`.
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()>;

    /// A clock that never goes back, for intervals.
    fn monotonic(&self) -> Duration;
}

/// The host's clock and random numbers.
#[derive(Debug, Default, Clone, Copy)]
pub struct SystemEnvironment;

impl Environment for SystemEnvironment {
    /// As of the last tick of the kernel's clock, a few milliseconds old, which is what its own file systems
    /// stamp: the precise clock would cost a small write a tenth of its time.
    fn now(&self) -> Timestamp {
        // clock_gettime(2), CLOCK_REALTIME_COARSE.
        match nix::time::clock_gettime(nix::time::ClockId::CLOCK_REALTIME_COARSE) {
            Ok(time) => {
                Timestamp { seconds: time.tv_sec(), nanoseconds: u32::try_from(time.tv_nsec()).unwrap_or(0) }
            }
            Err(_) => Timestamp::default(),
        }
    }

    fn random(&self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(16) {
            let random = uuid::Uuid::new_v4();
            // A version 4 UUID has six fixed bits; two UUIDs folded together leave none.
            let other = uuid::Uuid::new_v4();
            let mixed = random.as_u128() ^ other.as_u128().rotate_left(64 + 7);
            for (byte, value) in chunk.iter_mut().zip(mixed.to_le_bytes()) {
                *byte = value;
            }
        }
    }
}

/// A clock that stands still and random numbers from a seed: for images that must be the same every time.
#[derive(Debug)]
pub struct FixedEnvironment {
    now: Timestamp,
    state: std::sync::atomic::AtomicU64,
}

impl FixedEnvironment {
    /// A clock that always says `now`, random numbers that follow from `seed`.
    #[must_use]
    pub fn new(now: Timestamp, seed: u64) -> Self {
        Self { now, state: std::sync::atomic::AtomicU64::new(seed) }
    }
}

impl Environment for FixedEnvironment {
    fn now(&self) -> Timestamp {
        self.now
    }

    fn random(&self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            // splitmix64: https://prng.di.unimi.it/splitmix64.c (public domain), restated.
            let step = 0x9e37_79b9_7f4a_7c15_u64;
            let mut z = self.state.fetch_add(step, std::sync::atomic::Ordering::Relaxed).wrapping_add(step);
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^= z >> 31;
            for (byte, value) in chunk.iter_mut().zip(z.to_le_bytes()) {
                *byte = value;
            }
        }
    }
}
