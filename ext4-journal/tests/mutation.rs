//! Logs put together from random parts and damaged with their checksums made right again: the stable twin of
//! the fuzz target `fuzz/fuzz_targets/journal_recovery.rs`. `EXT4_LONG_TESTS=1` for many more; a failure
//! prints the seed, and `SEED` runs that one alone.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;

use common::mutation::Fate;
use ext4_test_support::settings::{given_seed, seeds};

#[test]
fn recovery_keeps_its_promises_on_any_log() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut fates = BTreeMap::new();
    for seed in seeds(0..3_000, 0..300_000) {
        let mut random = fastrand::Rng::with_seed(seed);
        let input: Vec<u8> = (0..random.usize(20..220)).map(|_| random.u8(..)).collect();
        let outcome =
            std::panic::catch_unwind(AssertUnwindSafe(|| runtime.block_on(common::mutation::judge(&input))));
        match outcome {
            Ok(fate) => *fates.entry(fate).or_insert(0_u32) += 1,
            Err(panic) => {
                eprintln!("SEED={seed}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    println!("{fates:?}");
    let often = |fate| fates.get(&fate).is_some_and(|count| *count > 100);
    let all = [Fate::Refused, Fate::Salvaged, Fate::Nothing, Fate::Replayed];
    assert!(all.into_iter().all(often) || given_seed().is_some(), "{fates:?}");
}
