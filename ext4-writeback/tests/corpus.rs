//! Images that others made, most of them damaged: mounting, walking and changing them ends, without a panic;
//! and what was clean before is clean afterwards.
//!
//! The images are those of the corpus, which lies beside the project.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use ext4_core::InodeNumber;
use ext4_core::device::simulated::Image;
use ext4_core::format::inode::FileType;
use ext4_test_support::corpus::packed_images;
use ext4_test_support::tools::{Judged, assert_clean, have, run};
use ext4_writeback::{Credentials, Filesystem, MountOptions, RenameFlags, SetMode};

static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());
/// How many images could be mounted.
static MOUNTED: AtomicU32 = AtomicU32::new(0);

/// The smallest and the largest image in bytes that are tried: an archive of no file system is smaller, and
/// the few that are larger are sparse and would fill memory.
const SIZES: std::ops::Range<usize> = 64 << 10..256 << 20;

fn is_clean(image: &Image) -> bool {
    // Some of these keep e2fsck itself busy for minutes.
    image.in_a_file(|path| {
        let arguments = ["20", "e2fsck", "-fn"].map(AsRef::as_ref);
        run("timeout", arguments.into_iter().chain([path.as_os_str()])).status.success()
    })
}

/// Walks the tree and reads everything, as far as it goes: the places of everything found.
async fn walk(filesystem: &Filesystem) -> Vec<(InodeNumber, Vec<u8>, InodeNumber)> {
    let mut found = Vec::new();
    let mut seen = BTreeSet::new();
    let mut pending = vec![InodeNumber::ROOT];
    while let Some(directory) = pending.pop() {
        if !seen.insert(directory) || found.len() > 2000 {
            continue;
        }
        let mut position = 0;
        for _ in 0..200 {
            let Ok(entries) = filesystem.readdir(directory, position, 50).await else { break };
            let Some(last) = entries.last() else { break };
            position = last.next;
            for entry in entries {
                if entry.name == b"." || entry.name == b".." {
                    continue;
                }
                look(filesystem, entry.inode).await;
                let _ = filesystem.lookup(directory, &entry.name).await;
                if filesystem
                    .attributes(entry.inode)
                    .await
                    .is_ok_and(|attributes| attributes.file_type == FileType::Directory)
                {
                    pending.push(entry.inode);
                }
                found.push((directory, entry.name, entry.inode));
            }
        }
    }
    found
}

async fn look(filesystem: &Filesystem, inode: InodeNumber) {
    if let Ok(names) = filesystem.listxattr(inode).await {
        for name in names {
            let _ = filesystem.getxattr(inode, &name).await;
        }
    }
    let _ = filesystem.readlink(inode).await;
    if let Ok(file) = filesystem.open(inode).await {
        let mut buffer = vec![0; 100_000];
        let _ = file.read_at(0, &mut buffer).await;
        let _ = file.read_at(file.len().saturating_sub(5000), &mut buffer).await;
        let _ = file.extents().await;
    }
}

/// Changes that each may fail.
async fn change(filesystem: &Filesystem, found: &[(InodeNumber, Vec<u8>, InodeNumber)], seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let owner = Credentials { mode: 0o755, ..Credentials::default() };
    let _ = filesystem.write("/a new file", vec![5; 50_000]).await;
    let _ = filesystem.create_dir_all("/new/directories/here").await;
    for number in 0..60 {
        let name = format!("name {number}").into_bytes();
        let any = (InodeNumber::ROOT, b"a new file".to_vec(), InodeNumber::ROOT);
        let (directory, old, inode) =
            if found.is_empty() { any } else { found[random.usize(..found.len())].clone() };
        match random.u32(..8) {
            0 => drop(filesystem.create(directory, &name, owner).await),
            1 => drop(filesystem.mkdir(directory, &name, owner).await),
            2 => drop(filesystem.unlink(directory, &old).await),
            3 => drop(filesystem.rmdir(directory, &old).await),
            4 => drop(filesystem.link(inode, InodeNumber::ROOT, &name).await),
            5 => {
                let to = (InodeNumber::ROOT, &name[..]);
                drop(filesystem.rename((directory, &old), to, RenameFlags::default()).await);
            }
            6 => drop(filesystem.setxattr(inode, b"user.new", &[1; 100], SetMode::Any).await),
            _ => {
                if let Ok(file) = filesystem.open(inode).await {
                    let _ = file.write_at(random.u64(..200_000), &[9; 9000]).await;
                    let _ = file.set_len(random.u64(..100_000)).await;
                }
            }
        }
    }
    let _ = filesystem.sync().await;
}

async fn exercise(name: &str, image: &Image) {
    let clean_before = is_clean(image);
    let device = std::sync::Arc::new(ext4_core::device::MemoryDevice::from_image(image.clone()));
    let options = MountOptions::new().cache(8 << 20);
    let filesystem = match Filesystem::mount(std::sync::Arc::clone(&device) as _, options).await {
        Ok(filesystem) => filesystem,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    MOUNTED.fetch_add(1, Ordering::Relaxed);
    let found = walk(&filesystem).await;
    change(&filesystem, &found, name.len() as u64).await;
    let errors = filesystem.superblock().error_count;
    let unmounted = filesystem.unmount().await;
    // What e2fsck lets pass and we (and the kernel) do not, an extent tree of seven levels, stays as it is.
    if clean_before && errors == 0 {
        unmounted.unwrap();
        assert_clean(&device.image(), name);
    }
}

#[tokio::test]
async fn images_of_others_do_no_harm() {
    let Some(images) = packed_images() else { return };
    if !have(&["e2fsck", "timeout"]) {
        return;
    }
    std::panic::set_hook(Box::new(|panic| PANICS.lock().unwrap().push(panic.to_string())));
    let mut failures = Vec::new();
    let (mut tried, mut not_tried) = (0, 0);
    for packed in &images {
        let content = packed.content();
        if !SIZES.contains(&content.len()) {
            not_tried += 1;
            continue;
        }
        tried += 1;
        let name = packed.name();
        let image = Image::from(&content[..content.len() & !511]);
        let task = {
            let name = name.clone();
            tokio::spawn(async move { exercise(&name, &image).await })
        };
        let outcome = tokio::time::timeout(Duration::from_secs(60), task).await;
        if outcome.is_err() {
            failures.push(format!("{name}: no end"));
        }
        for panic in PANICS.lock().unwrap().drain(..) {
            failures.push(format!("{name}: {panic}"));
        }
    }
    let _ = std::panic::take_hook();
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
    let mounted = MOUNTED.load(Ordering::Relaxed);
    println!("{tried} tried, {mounted} of them mounted; {not_tried} too small or too large");
    assert!(not_tried < 20, "{not_tried} of {} images are too small or too large", images.len());
    assert!(mounted > 80, "{mounted} of {tried} images were mounted");
}
