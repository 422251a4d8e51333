//! Journal replay by the kernel, by e2fsck and by us: what each of the three makes of an image.

use ext4_core::device::simulated::Image;
use ext4_test_support::loop_device::KernelMount;
use ext4_test_support::tools::{assert_clean, debugfs, run};
use ext4_writeback::Filesystem;
use tempfile::TempDir;

use crate::common;
use crate::tree::{self, Tree};

/// The part of a tree that has to be found: the directories' times have no tag, so they may be those of the
/// last full commit or of the replay.
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

/// The tree that the kernel's mount recovers.
pub fn by_kernel(image: &Image, context: &str) -> Tree {
    let kernel = KernelMount::of_image(image);
    let found = tree::of_directory(&kernel.directory());
    let after = kernel.unmount();
    assert_clean(&after, &format!("{context}, after the kernel"));
    comparable(found)
}

/// The tree that `e2fsck -fy` recovers, or `None` if e2fsck gives the log up, as 1.47 does when it finds fast
/// commits of a transaction that has been committed in full: for that there is a moment between the commit
/// and the zeros over them.
pub async fn by_e2fsck(image: &Image, context: &str) -> Option<Tree> {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("image");
    image.to_file(&path).unwrap();
    let output = run("e2fsck", ["-fy", path.to_str().unwrap()]);
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    if said.contains("Invalid argument while recovering journal") {
        let dump = debugfs(image, "logdump -a");
        let number = |line: &str| line.split([' ', ',']).rev().find_map(|word| word.parse::<u32>().ok());
        let head = dump.lines().find(|line| line.starts_with("tag HEAD")).and_then(number);
        let committed = dump.lines().rfind(|line| line.contains("type 2 (commit block)"));
        let committed = committed.and_then(|line| line.split([' ', ',']).find_map(|word| word.parse().ok()));
        assert!(head.is_some() && head == committed, "{context}: {head:?}, {committed:?}: {said}{dump}");
        return None;
    }
    assert!(output.status.code().is_some_and(|code| code <= 1), "{context}: {said}");
    let after = Image::from_file(&path).unwrap();
    assert_clean(&after, &format!("{context}, after e2fsck: {said}"));
    let mounted = common::mount(&after).await;
    let found = live(&mounted.filesystem).await;
    mounted.unmount_clean(context).await;
    Some(found)
}

/// The tree that our own mount recovers.
pub async fn by_us(image: &Image, context: &str) -> Tree {
    let mounted = common::mount(image).await;
    let found = live(&mounted.filesystem).await;
    mounted.unmount_clean(&format!("{context}, after our recovery")).await;
    found
}

/// Fails the test unless all three find the same in what a crash left. Returns that tree, and true if e2fsck
/// was one of them.
pub async fn assert_agreed(image: &Image, context: &str) -> (Tree, bool) {
    let kernel = by_kernel(image, context);
    tree::assert_same(&by_us(image, context).await, &kernel, &format!("{context}, we and the kernel"));
    let e2fsck = by_e2fsck(image, context).await;
    if let Some(e2fsck) = &e2fsck {
        tree::assert_same(e2fsck, &kernel, &format!("{context}, e2fsck and the kernel"));
    }
    (kernel, e2fsck.is_some())
}

/// Fails the test unless all three find `expected` in what a crash left.
pub async fn assert_recovered(image: &Image, expected: &Tree, context: &str) {
    let (found, all) = assert_agreed(image, context).await;
    assert!(all, "{context}: e2fsck gave up");
    tree::assert_same(expected, &found, &format!("{context}, before the crash and after"));
}
