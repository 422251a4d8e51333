//! Access control lists of new and changed files, compared with the kernel's for the same operations.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use ext4_core::format::inode::FileType;
use ext4_test_support::loop_device::KernelMount;
use ext4_test_support::tools::{can_mount, have, mke2fs_image, run_ok};
use ext4_writeback::{Credentials, NewInode, SetAttributes};

fn owner(mode: u16) -> Credentials {
    Credentials { uid: 0, gid: 0, mode }
}

#[tokio::test]
async fn default_lists_are_inherited_and_chmod_changes_the_mask_as_in_the_kernel() {
    if !have(&["mkfs.ext4", "e2fsck", "setfacl", "getfacl"]) || !can_mount() {
        return;
    }
    let image = {
        let kernel = KernelMount::of_image(&mke2fs_image(&[], "16M"));
        let directory = kernel.directory().join("d");
        std::fs::create_dir(&directory).unwrap();
        let at = |name: &str| directory.join(name).to_str().unwrap().to_owned();
        run_ok("setfacl", ["-d", "-m", "u:1234:rwx,g:55:r-x,o::---", directory.to_str().unwrap()]);
        std::fs::File::create(at("kernel-file")).unwrap();
        std::fs::create_dir(at("kernel-directory")).unwrap();
        std::fs::File::create(at("kernel-changed")).unwrap();
        run_ok("chmod", ["0751", &at("kernel-changed")]);
        kernel.unmount()
    };
    let mounted = common::mount(&image).await;
    let filesystem = &mounted.filesystem;
    let directory = filesystem.resolve(b"/d", true).await.unwrap();
    filesystem.create(directory, b"our-file", owner(0o666)).await.unwrap();
    filesystem.mkdir(directory, b"our-directory", owner(0o777)).await.unwrap();
    let changed = filesystem.create(directory, b"our-changed", owner(0o666)).await.unwrap();
    let mode = SetAttributes::new().mode(0o751);
    filesystem.set_attributes(changed, &mode).await.unwrap();
    // What a tool restores is as it was.
    let restored = NewInode::new(FileType::Regular, owner(0o640));
    let restored = filesystem.create_with(directory, b"restored", restored).await.unwrap();
    assert!(filesystem.listxattr(restored).await.unwrap().is_empty());
    assert_eq!(filesystem.attributes(restored).await.unwrap().mode & 0o7777, 0o640);
    let image = mounted.unmount_clean("access control lists").await;

    let kernel = KernelMount::of_image(&image);
    let list = |name: &str| {
        let path = kernel.directory().join("d").join(name);
        run_ok("getfacl", ["--omit-header", "--numeric", "--absolute-names", path.to_str().unwrap()])
    };
    for kind in ["file", "directory", "changed"] {
        let (ours, theirs) = (list(&format!("our-{kind}")), list(&format!("kernel-{kind}")));
        assert_eq!(ours, theirs, "{kind}");
        assert!(ours.contains("user:1234:"), "{ours}");
    }
}
