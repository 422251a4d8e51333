//! Power cuts while several tasks work on a few files and the flusher is awake, on the seeded scheduler.
//!
//! One seed is one schedule: what the tasks do, in which order they and the flusher, the completions, the
//! commits and the device take turns, where the power goes, and which writes it loses. What is left is
//! recovered and judged by [`history`]. A failure prints its seed and the calls; `SEED=n` replays it.
//!
//! The short form runs a thousand schedules, `EXT4_LONG_TESTS=1` a hundred thousand.

mod history;
mod world;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use world::{Weather, World};

const SHORT: u64 = 1_000;
const LONG: u64 = 100_000;

fn settings() -> (u64, u64) {
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
    let long = std::env::var_os("EXT4_LONG_TESTS").is_some_and(|value| value != "0");
    match seed {
        Some(seed) => (seed, seed + 1),
        None => (1, 1 + if long { LONG } else { SHORT }),
    }
}

/// Runs the schedules on as many threads as there are processors.
#[test]
fn what_a_power_cut_leaves_of_several_tasks_is_what_they_did() {
    let Some(world) = World::new() else { return };
    let (first, end) = settings();
    let began = Instant::now();
    let next = AtomicU64::new(first);
    let cuts = AtomicU64::new(0);
    let failed: Vec<u64> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..std::thread::available_parallelism().map_or(2, usize::from))
            .map(|_| {
                scope.spawn(|| {
                    let mut failed = Vec::new();
                    loop {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        if seed >= end || failed.len() > 3 {
                            return failed;
                        }
                        match world.run(seed, Weather::of(seed)) {
                            Ok(judged) => drop(cuts.fetch_add(judged, Ordering::Relaxed)),
                            Err(report) => {
                                eprintln!("SEED={seed}: {report}");
                                failed.push(seed);
                            }
                        }
                    }
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("a schedule panicked")).collect()
    });
    let (schedules, cuts) = (end - first, cuts.into_inner());
    println!("{schedules} schedules, {cuts} cuts judged in {:.1} s", began.elapsed().as_secs_f64());
    assert!(failed.is_empty(), "these seeds failed: {failed:?}");
    assert!(cuts >= schedules, "only {cuts} cuts of {schedules} schedules");
}
