//! Helpers that unit tests of several floors share: a mounted file system on a device in memory, `e2fsck -fn`
//! over the device afterwards, futures that are polled by hand, and an inode that was never on a device.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use ext4_core::device::{BlockDevice, MemoryDevice};
use ext4_core::environment::SystemEnvironment;
use ext4_core::format::features::Features;
use ext4_core::format::inode::{Inode, InodeLayout};
use ext4_core::meta::mkfs::MkfsOptions;
use ext4_core::{BlockSize, InodeNumber, LogicalBlock, Timestamp};

use crate::base::options::MountOptions;
use crate::file::File;
use crate::filesystem::{Filesystem, FilesystemInner};
use crate::mount::mkfs::mkfs;
use crate::namespace::new_inode::Credentials;

pub(crate) const PAGE: u64 = 4096;

pub(crate) async fn mounted(block_size: BlockSize) -> (Arc<MemoryDevice>, Filesystem, File) {
    mounted_with(block_size, MountOptions::default()).await
}

pub(crate) async fn mounted_with(
    block_size: BlockSize,
    options: MountOptions,
) -> (Arc<MemoryDevice>, Filesystem, File) {
    let device = Arc::new(MemoryDevice::new(128 << 20));
    let shared: Arc<dyn BlockDevice> = Arc::clone(&device) as _;
    let made = MkfsOptions { block_size: Some(block_size), ..MkfsOptions::default() };
    mkfs(Arc::clone(&shared), &made, &SystemEnvironment).await.expect("makes a file system");
    let options = MountOptions { cache: 64 << 20, ..options };
    let fs = Filesystem::mount(shared, options).await.expect("mounts");
    let owner = Credentials { mode: 0o644, ..Credentials::default() };
    let number = fs.create(InodeNumber::ROOT, b"file", owner).await.expect("creates");
    let file = fs.open(number).await.expect("opens");
    (device, fs, file)
}

pub(crate) async fn finish(device: Arc<MemoryDevice>, fs: Filesystem, file: File) {
    drop(file);
    fs.unmount().await.expect("unmounts");
    assert_clean(&device);
}

/// `e2fsck -fn` finds nothing.
pub(crate) fn assert_clean(device: &MemoryDevice) {
    let Ok(_) = std::process::Command::new("e2fsck").arg("-V").output() else {
        assert!(std::env::var_os("CI").is_none(), "CI lacks e2fsprogs");
        return;
    };
    let image = tempfile::NamedTempFile::new().expect("a temporary file");
    device.image().to_file(image.path()).expect("room");
    let said =
        std::process::Command::new("e2fsck").arg("-fn").arg(image.path()).output().expect("e2fsck runs");
    assert!(said.status.success(), "e2fsck -fn: {}", String::from_utf8_lossy(&said.stdout));
}

pub(crate) fn inner(file: &File) -> &Arc<FilesystemInner> {
    &file.filesystem.inner
}

/// `range` as blocks of a file.
pub(crate) fn blocks(range: std::ops::Range<u32>) -> std::ops::Range<LogicalBlock> {
    LogicalBlock(range.start)..LogicalBlock(range.end)
}

pub(crate) fn poll_once<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

/// Writes `pages` from the last to the first, so that each gets a folio of its own.
pub(crate) async fn write_pages(file: &File, pages: std::ops::Range<u64>, byte: u8) {
    for page in pages.rev() {
        file.write_at(page * PAGE, &[byte; PAGE as usize]).await.expect("writes");
    }
}

/// An inode of 256 bytes with these `number` and `mode`, as a table of 4 KiB blocks holds it.
pub(crate) fn test_inode(number: u32, mode: u16) -> Inode {
    let layout = InodeLayout {
        features: Features::default(),
        inode_size: 256,
        block_size: BlockSize::KIB_4,
        cluster_sectors: 8,
        checksum_seed: 0,
        linux: true,
        hurd: false,
    };
    Inode::new(InodeNumber(number), mode, &layout, 32, Timestamp::default())
}
