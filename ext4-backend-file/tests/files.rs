//! Image files: holes, growing, locking, the end of a file.
#![allow(clippy::unwrap_used)]

use std::os::unix::fs::MetadataExt;

use ext4_backend_file::{FileDevice, FileOptions, MappedDevice};
use ext4_core::Errno;
use ext4_core::device::{AlignedBuffer, BioFlags, BlockDevice, Operation, Segment};

fn options(create: Option<u64>) -> FileOptions {
    FileOptions { create, ..FileOptions::default() }
}

fn filled(len: usize, byte: u8) -> Segment {
    let mut buffer = AlignedBuffer::zeroed(len).unwrap();
    buffer.fill(byte);
    Segment::Owned(buffer)
}

#[tokio::test]
async fn a_created_image_is_sparse_and_holes_come_only_when_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk.img");
    let device = FileDevice::open(&path, &options(Some(64 << 20))).unwrap();
    let blocks = || std::fs::metadata(&path).unwrap().blocks();
    assert_eq!(blocks(), 0);
    device.write_at(1 << 20, vec![filled(1 << 20, 0)], BioFlags::empty()).await.unwrap();
    device.flush().await.unwrap();
    assert_eq!(blocks(), 2048, "zeros that were written are there");
    device.discard(1 << 20, 1 << 20).await.unwrap();
    device.flush().await.unwrap();
    assert_eq!(blocks(), 0);
    let device = device.grow(128 << 20).unwrap();
    assert_eq!(device.geometry().size, 128 << 20);
    device.write_at(127 << 20, vec![filled(4096, 7)], BioFlags::FUA).await.unwrap();
    drop(device);
    let map = MappedDevice::open(&path, 127 << 20).unwrap();
    assert_eq!(map.geometry().size, 1 << 20);
    assert!(map.read_at(0, 4096).await.unwrap().iter().all(|byte| *byte == 7));
    assert!(FileDevice::open(&path, &options(None)).is_err(), "a reader is there");
    // The file gets shorter under the map: an error, not SIGBUS.
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(4096).unwrap();
    assert_eq!(map.read_at(0, 4096).await.unwrap_err().errno(), Errno::EIO);
    let write = map.submit_and_wait(Operation::Write, BioFlags::empty(), 0, 512, vec![filled(512, 1)]).await;
    assert_eq!(write.result.unwrap_err().errno(), Errno::EROFS);
}

#[tokio::test]
async fn reading_past_the_end_of_a_file_that_was_cut_is_an_error_that_names_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk.img");
    let device = FileDevice::open(&path, &options(Some(1 << 20))).unwrap();
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(4096).unwrap();
    let error = device.read_at(8192, 4096).await.unwrap_err();
    assert_eq!(error.errno(), Errno::EIO);
    let text = error.to_string();
    assert!(text.contains("read bytes 8192..12288") && text.contains("disk.img"), "{text}");
}
