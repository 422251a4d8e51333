//! The conformance suite that every backend runs, on image files and on a partition in one.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use ext4_backend_file::{FileDevice, FileOptions};
use ext4_core::device::conformance::{self, MIN_SIZE};

async fn run(offset: u64) {
    let directory = tempfile::tempdir().unwrap();
    let number = std::cell::Cell::new(0);
    conformance::run(|read_only| {
        number.set(number.get() + 1);
        let path = directory.path().join(format!("{}.img", number.get()));
        std::fs::File::create_new(&path).unwrap().set_len(MIN_SIZE + offset).unwrap();
        let options = FileOptions { read_only, offset, ..FileOptions::default() };
        Arc::new(FileDevice::open(&path, &options).unwrap())
    })
    .await;
}

#[tokio::test]
async fn a_file_conforms() {
    run(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_in_a_file_conforms_on_many_threads() {
    run(1 << 20).await;
}
