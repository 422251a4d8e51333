//! Images, mounts and file contents, as all tests of the data path use them.

use std::sync::Arc;

use ext4_core::InodeNumber;
use ext4_core::device::simulated::Image;
use ext4_core::device::{BlockDevice, MemoryDevice};
pub use ext4_test_support::settings::long_tests;
use ext4_test_support::tools::mke2fs;
pub use ext4_test_support::tools::{assert_clean, have_e2fsprogs};
use ext4_writeback::{Credentials, File, Filesystem, MountOptions};

/// An image of `mib` MiB, filled with `fill` before mke2fs writes to it.
pub fn make_image(mib: u64, block_size: u32, options: &[&str], fill: u8) -> Image {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    if fill == 0 {
        file.as_file().set_len(mib << 20).expect("room");
    } else {
        std::fs::write(file.path(), vec![fill; (mib << 20) as usize]).expect("room");
    }
    let block_size = block_size.to_string();
    let fixed = ["-E", "nodiscard,lazy_itable_init=0", "-b", &block_size];
    mke2fs(file.path(), &[&fixed[..], options].concat());
    Image::from_file(file.path()).expect("the image")
}

/// A file system over memory.
pub async fn mount_image(image: Image, options: MountOptions) -> (Arc<MemoryDevice>, Filesystem) {
    let device = Arc::new(MemoryDevice::from_image(image));
    let fs = mount(Arc::clone(&device) as _, options).await;
    (device, fs)
}

pub async fn mount(device: Arc<dyn BlockDevice>, options: MountOptions) -> Filesystem {
    Filesystem::mount(device, options).await.expect("mounts")
}

/// Options for tests: no timers that race with what a test looks at.
pub fn options() -> MountOptions {
    MountOptions::new().cache(32 << 20)
}

pub async fn create(fs: &Filesystem, name: &str) -> File {
    let owner = Credentials { mode: 0o644, ..Credentials::default() };
    let number = fs.create(InodeNumber::ROOT, name.as_bytes(), owner).await.expect("creates");
    fs.open(number).await.expect("opens")
}

pub async fn open(fs: &Filesystem, name: &str) -> File {
    let number = fs.lookup(InodeNumber::ROOT, name.as_bytes()).await.expect("is there");
    fs.open(number).await.expect("opens")
}

/// All bytes of a file.
pub async fn content(file: &File) -> Vec<u8> {
    let mut bytes = vec![0xee; file.len() as usize];
    let count = file.read_at(0, &mut bytes).await.expect("reads");
    assert_eq!(count, bytes.len());
    bytes
}

/// Bytes, all odd, that follow from `seed` and from their offset in the file.
pub fn pattern(seed: u64, offset: u64, len: usize) -> Vec<u8> {
    (0..len as u64)
        .map(|i| {
            let x = (offset + i).wrapping_add(seed << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            (x >> 56) as u8 | 1
        })
        .collect()
}

/// Unmounts and has e2fsck look.
pub async fn finish(device: &MemoryDevice, fs: Filesystem) -> Image {
    fs.unmount().await.expect("unmounts");
    let image = device.image();
    assert_clean(&image, "after the unmount");
    image
}
