//! Environment variables that tests obey, each parsed once.
//!
//! | variable | meaning |
//! |---|---|
//! | `CI` | if set, a test that would be skipped fails |
//! | `EXT4_LONG_TESTS` | if set and neither empty nor `0`, tests run in their long form |
//! | `SEED` | a random test runs this one seed instead of its own |
//! | `EXT4_KERNEL_CORPUS` | directories, separated by colons, that `make_kernel_corpus.sh` filled |

use std::io::Write;
use std::path::PathBuf;
use std::sync::LazyLock;

static IN_CI: LazyLock<bool> = LazyLock::new(|| std::env::var_os("CI").is_some());

static LONG_TESTS: LazyLock<bool> = LazyLock::new(|| {
    std::env::var_os("EXT4_LONG_TESTS").is_some_and(|value| !value.is_empty() && value != "0")
});

static GIVEN_SEED: LazyLock<Option<u64>> = LazyLock::new(|| {
    let text = std::env::var_os("SEED")?;
    let seed = text.to_str().and_then(|text| text.parse().ok());
    Some(seed.unwrap_or_else(|| panic!("SEED={} is no number", text.display())))
});

static KERNEL_CORPORA: LazyLock<Vec<PathBuf>> = LazyLock::new(|| {
    let value = std::env::var_os("EXT4_KERNEL_CORPUS").unwrap_or_default();
    std::env::split_paths(&value).filter(|path| !path.as_os_str().is_empty()).collect()
});

/// Returns true if the environment variable `CI` is set: no test may be skipped.
#[must_use]
pub fn in_ci() -> bool {
    *IN_CI
}

/// Returns true if the long form of the tests is asked for (`EXT4_LONG_TESTS=1`).
#[must_use]
pub fn long_tests() -> bool {
    *LONG_TESTS
}

/// The seed that `SEED` gives, if it is set. A test that uses it runs this seed alone.
///
/// # Panics
/// If `SEED` is set and is not a number.
#[must_use]
pub fn given_seed() -> Option<u64> {
    *GIVEN_SEED
}

/// The seed of a test that uses one: the value of `SEED`, or `default`. Printed, so that a failure can be
/// repeated.
///
/// # Panics
/// If `SEED` is set and is not a number.
#[must_use]
pub fn seed_or(default: u64) -> u64 {
    let seed = given_seed().unwrap_or(default);
    println!("SEED={seed}");
    seed
}

/// The seeds of a test that tries many: the value of `SEED` alone, or those of the `long` form if it is asked
/// for, or those of the `short` form.
///
/// # Panics
/// If `SEED` is set and is not a number.
#[must_use]
pub fn seeds(short: impl IntoIterator<Item = u64>, long: impl IntoIterator<Item = u64>) -> Vec<u64> {
    match given_seed() {
        Some(seed) => vec![seed],
        None if long_tests() => long.into_iter().collect(),
        None => short.into_iter().collect(),
    }
}

/// The directories that `EXT4_KERNEL_CORPUS` names; none if it is not set.
#[must_use]
pub fn kernel_corpora() -> &'static [PathBuf] {
    &KERNEL_CORPORA
}

/// Says that the running test is skipped because `missing` is not there.
///
/// The line goes to the standard error of the process itself: `cargo test` shows it although the test passes.
///
/// # Panics
/// If `CI` is set: there a test that is skipped is a failure.
#[track_caller]
pub fn skip(missing: &str) {
    assert!(!in_ci(), "{missing}: not there, and no test may be skipped in CI");
    say_skipped(&format!("{missing}: not there"));
}

/// Returns true in the long form of the tests. If not, a test that has no short form is to be skipped, in CI
/// too, which this function says.
#[must_use]
pub fn long_form_only() -> bool {
    if !long_tests() {
        say_skipped("runs with EXT4_LONG_TESTS=1 only");
    }
    long_tests()
}

fn say_skipped(reason: &str) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    let _ = writeln!(std::io::stderr(), "skipped: {test}: {reason}");
}
