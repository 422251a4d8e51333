//! What the three who replay a journal make of an image.

use ext4_core::device::simulated::Image;
use ext4_writeback::Filesystem;
use tempfile::TempDir;

use crate::common;
use crate::tree::{self, Tree};

/// What has to be found: the directories' times have no tag, so they may be those of the last full commit or of the
/// replay.
pub fn comparable(mut tree: Tree) -> Tree {
    for facts in tree.values_mut() {
        if facts.mode & 0o170_000 == 0o040_000 {
            (facts.mtime, facts.ctime) = ((0, 0), (0, 0));
        }
    }
    tree
}

/// The tree of a mounted file system.
pub async fn live(filesystem: &Filesystem) -> Tree {
    comparable(tree::of_filesystem(filesystem).await)
}

/// What the kernel's mount recovers.
pub fn by_kernel(image: &Image, context: &str) -> Tree {
    let kernel = common::KernelMount::new(image);
    let found = tree::of_directory(&kernel.path());
    let after = kernel.unmount();
    common::assert_clean(&after, &format!("{context}, after the kernel"));
    comparable(found)
}

/// What `e2fsck -fy` recovers.
pub async fn by_e2fsck(image: &Image, context: &str) -> Tree {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("image");
    image.to_file(&path).unwrap();
    if let Some(kept) = std::env::var_os("EXT4_KEEP") {
        std::fs::copy(&path, kept).unwrap();
    }
    let output = common::run("e2fsck", &["-fy", path.to_str().unwrap()]);
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code().is_some_and(|code| code <= 1), "{context}: {said}");
    let after = Image::from_file(&path).unwrap();
    common::assert_clean(&after, &format!("{context}, after e2fsck: {said}"));
    let mounted = common::mount(&after).await;
    let found = live(&mounted.filesystem).await;
    mounted.unmount_clean(context).await;
    found
}

/// All of them find `expected` in what a crash left.
pub async fn assert_recovered(image: &Image, expected: &Tree, context: &str) {
    tree::assert_same(expected, &by_kernel(image, context), &format!("{context}, by the kernel"));
    tree::assert_same(expected, &by_e2fsck(image, context).await, &format!("{context}, by e2fsck"));
}
