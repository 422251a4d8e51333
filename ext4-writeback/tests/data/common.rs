//! What these tests share: images from mke2fs, mounts, and e2fsck as the judge.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use ext4_core::InodeNumber;
use ext4_core::device::simulated::Image;
use ext4_core::device::{BlockDevice, MemoryDevice};
use ext4_writeback::{Credentials, File, Filesystem, MountOptions};

/// True where e2fsprogs is there. In CI it must be.
pub fn have_tools() -> bool {
    let missing = ["mkfs.ext4", "e2fsck", "debugfs"].iter().any(|tool| {
        Command::new(tool).arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err()
    });
    assert!(!missing || std::env::var_os("CI").is_none(), "CI lacks e2fsprogs");
    !missing
}

/// An image of `mib` MiB, filled with `fill` before mke2fs writes to it.
pub fn make_image(mib: u64, block_size: u32, options: &[&str], fill: u8) -> Image {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    if fill == 0 {
        file.as_file().set_len(mib << 20).expect("room");
    } else {
        std::fs::write(file.path(), vec![fill; (mib << 20) as usize]).expect("room");
    }
    let output = Command::new("mkfs.ext4")
        .args(["-q", "-F", "-E", "nodiscard,lazy_itable_init=0", "-b", &block_size.to_string()])
        .args(options)
        .arg(file.path())
        .output()
        .expect("mkfs.ext4 runs");
    assert!(output.status.success(), "mkfs.ext4: {}", String::from_utf8_lossy(&output.stderr));
    Image::from_file(file.path()).expect("the image")
}

fn e2fsck(image: &Image, arguments: &[&str]) -> (i32, String) {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    image.to_file(file.path()).expect("room");
    run_e2fsck(file.path(), arguments)
}

fn run_e2fsck(path: &Path, arguments: &[&str]) -> (i32, String) {
    let output = Command::new("e2fsck").args(arguments).arg(path).output().expect("e2fsck runs");
    let said = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&said).into_owned())
}

/// `e2fsck -fn` finds nothing.
pub fn assert_clean(image: &Image) {
    let (code, said) = e2fsck(image, &["-fn"]);
    assert_eq!(code, 0, "e2fsck -fn: {said}");
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

/// Bytes that tell their place.
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
    assert_clean(&image);
    image
}

/// True where the long forms of tests are asked for.
pub fn long_tests() -> bool {
    std::env::var_os("EXT4_LONG_TESTS").is_some_and(|value| value != "0")
}
