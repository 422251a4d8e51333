//! Direct I/O (`O_DIRECT`) through both backends, on loop devices of both sector sizes; the kernel reads what
//! we wrote, and in turn.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use ext4_backend_file::{FileDevice, FileOptions};
use ext4_backend_uring::{UringDevice, UringOptions};
use ext4_core::InodeNumber;
use ext4_core::device::{AlignedBuffer, BlockDevice};
use ext4_test_support::loop_device::{KernelMount, LoopDevice};
use ext4_test_support::tools::command;
use ext4_writeback::{Credentials, Filesystem, MountOptions, OpenOptions, SyncMode};
use support::{check, have_kernel, mke2fs, run};

const SIZE: usize = 8 << 20;

fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    std::iter::repeat_with(|| random.u8(..)).take(len).collect()
}

fn device(path: &Path, uring: bool) -> Arc<dyn BlockDevice> {
    if uring {
        Arc::new(UringDevice::open(path, &UringOptions::default()).unwrap())
    } else {
        Arc::new(FileDevice::open(path, &FileOptions::default()).unwrap())
    }
}

async fn write_and_read(path: &Path, uring: bool, sector: usize, content: &[u8]) {
    let fs = Filesystem::mount(device(path, uring), MountOptions::default()).await.unwrap();
    let owner = Credentials { mode: 0o644, ..Credentials::default() };
    let number = fs.create(InodeNumber::ROOT, b"file", owner).await.unwrap();
    let options = OpenOptions::new().direct(true).sync(SyncMode::Data).append(false);
    let file = Arc::new(fs.open_with(number, options).await.unwrap());
    assert_eq!(file.direct_alignment() as usize, sector);
    // Appended, in pieces that are no whole blocks if sectors are smaller.
    let piece = 3 * sector;
    for (i, data) in content[..64 * piece].chunks(piece).enumerate() {
        assert_eq!(file.write_at((i * piece) as u64, data).await.unwrap(), piece);
    }
    // The rest: made long, then many at a time into the hole, the odd ones twice.
    fs.open(number).await.unwrap().set_len(SIZE as u64).await.unwrap();
    let content: Arc<[u8]> = content.into();
    let mut writes = Vec::new();
    for round in 0..2 {
        for (i, start) in (64 * piece..SIZE).step_by(1 << 18).enumerate() {
            if round == 0 || i % 2 == 1 {
                let (file, content) = (Arc::clone(&file), Arc::clone(&content));
                writes.push(tokio::spawn(async move {
                    let data = AlignedBuffer::copied(&content[start..(start + (1 << 18)).min(SIZE)]).unwrap();
                    let len = data.len();
                    let (result, _) = file.write_direct(start as u64, data).await;
                    assert_eq!(result.unwrap(), len);
                }));
            }
        }
    }
    for write in writes {
        write.await.unwrap();
    }
    let (result, read) = file.read_direct(0, AlignedBuffer::zeroed(SIZE).unwrap()).await;
    assert_eq!(result.unwrap(), SIZE);
    assert!(read[..] == content[..]);
    // And through the cache.
    let mut cached = vec![0; SIZE];
    fs.open(number).await.unwrap().read_at(0, &mut cached).await.unwrap();
    assert!(cached == content[..]);
    drop(file);
    fs.unmount().await.unwrap();
}

async fn read_only(path: &Path, uring: bool, name: &[u8]) -> Vec<u8> {
    let fs = Filesystem::mount(device(path, uring), MountOptions::default()).await.unwrap();
    let number = fs.lookup(InodeNumber::ROOT, name).await.unwrap();
    let file = fs.open(number).await.unwrap();
    let (result, buffer) = file.read_direct(0, AlignedBuffer::zeroed(SIZE).unwrap()).await;
    let count = result.unwrap();
    let found = buffer[..count].to_vec();
    drop(file);
    fs.unmount().await.unwrap();
    found
}

#[test]
fn both_backends_and_the_kernel_read_what_each_writes_directly() {
    if !have_kernel() {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    for (sector, block_size) in [(512, "1024"), (512, "4096"), (4096, "4096")] {
        for uring in [false, true] {
            let image = work.path().join("disk.img");
            let _ = fs::remove_file(&image);
            mke2fs(&image, 64 << 20, &["-b", block_size]);
            let content = bytes(sector as u64 + u64::from(uring), SIZE);
            let theirs = work.path().join("theirs");
            fs::write(&theirs, bytes(3, SIZE / 2 + 100)).unwrap();
            {
                let size = format!("--sector-size={sector}");
                let attached = LoopDevice::attach(&image, &["--direct-io=on", &size]);
                runtime.block_on(write_and_read(attached.path(), uring, sector, &content));
            }
            check(&image);
            {
                let mount = KernelMount::of_file(&image, "rw");
                assert!(fs::read(mount.path("file")).unwrap() == content, "{sector}, uring {uring}");
                let mut dd = command("dd");
                dd.arg(format!("if={}", theirs.display()));
                dd.arg(format!("of={}", mount.path("theirs").display()));
                run({
                    dd.args(["bs=64k", "oflag=direct", "conv=fsync"]);
                    dd
                })
                .ok();
            }
            {
                let size = format!("--sector-size={sector}");
                let attached = LoopDevice::attach(&image, &["--direct-io=on", &size]);
                let found = runtime.block_on(read_only(attached.path(), uring, b"theirs"));
                assert!(found == fs::read(&theirs).unwrap(), "{sector}, uring {uring}");
            }
            check(&image);
        }
    }
}
