//! Journal recovery of any log: `cargo +nightly fuzz run journal_recovery`.
//!
//! The properties it checks are in `ext4-journal/tests/common/mutation.rs`. The same check runs with a stable
//! compiler in `ext4-journal/tests/mutation.rs`.
#![no_main]

#[path = "../../ext4-journal/tests/common/mod.rs"]
mod common;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _ = runtime.block_on(common::mutation::judge(input));
});
