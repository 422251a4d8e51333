//! Many tasks in one tree, callers that go away in the middle, and limits.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::sync::Arc;
use std::time::Duration;

use ext4_core::device::simulated::{FaultyDevice, Image};
use ext4_core::device::{BlockDevice, MemoryDevice};
use ext4_core::{Errno, InodeNumber};
use ext4_test_support::tools::{assert_clean, have, mke2fs_image};
use ext4_writeback::{Credentials, Filesystem, MountOptions, RenameFlags};

const TOOLS: &[&str] = &["mkfs.ext4", "e2fsck"];
const ROOT: InodeNumber = InodeNumber::ROOT;

/// Several tasks change the same few names: every outcome is allowed, a contradiction is not.
async fn quarrel(filesystem: Filesystem, directories: Arc<Vec<InodeNumber>>, seed: u64, steps: usize) {
    let mut random = fastrand::Rng::with_seed(seed);
    for _ in 0..steps {
        let mut place = || {
            let directory = directories[random.usize(..directories.len())];
            (directory, format!("n{}", random.u32(..10)).into_bytes())
        };
        let (from, to) = (place(), place());
        let owner = Credentials { mode: 0o755, ..Credentials::default() };
        let result = match random.u32(..12) {
            0..3 => filesystem.create(from.0, &from.1, owner).await.map(drop),
            3 => filesystem.mkdir(from.0, &from.1, owner).await.map(drop),
            4 => filesystem.symlink(from.0, &from.1, &[b's'; 100], owner).await.map(drop),
            5 => filesystem.unlink(from.0, &from.1).await,
            6 => filesystem.rmdir(from.0, &from.1).await,
            7 => match filesystem.lookup(from.0, &from.1).await {
                Ok(inode) => filesystem.link(inode, to.0, &to.1).await,
                Err(error) => Err(error),
            },
            8 => match filesystem.lookup(from.0, &from.1).await {
                Ok(inode) => match filesystem.open(inode).await {
                    Ok(file) => file.metadata().await.map(drop),
                    Err(error) => Err(error),
                },
                Err(error) => Err(error),
            },
            9 => {
                let flags = RenameFlags { exchange: true, no_replace: false };
                filesystem.rename((from.0, &from.1), (to.0, &to.1), flags).await
            }
            _ => filesystem.rename((from.0, &from.1), (to.0, &to.1), RenameFlags::default()).await,
        };
        if let Err(error) = result {
            assert!(!error.is_corrupt(), "seed {seed}: {error}");
            let fine = [
                Errno::ENOENT,
                Errno::EEXIST,
                Errno::EISDIR,
                Errno::ENOTDIR,
                Errno::ENOTEMPTY,
                Errno::EINVAL,
                Errno::EPERM,
            ];
            assert!(fine.contains(&error.errno()), "seed {seed}: {error}");
        }
    }
}

async fn many_tasks(image: Image, workers: usize) {
    let options = MountOptions::new().cache(8 << 20);
    let mounted = common::mount_with(&image, options).await;
    let filesystem = &mounted.filesystem;
    let mut directories = vec![ROOT];
    // A chain and two branches, so that directories lie above each other and beside each other.
    for name in ["a", "b", "c"] {
        let parent = *directories.last().unwrap();
        directories.push(filesystem.mkdir(parent, name.as_bytes(), Credentials::default()).await.unwrap());
    }
    directories.push(filesystem.mkdir(directories[1], b"d", Credentials::default()).await.unwrap());
    let directories = Arc::new(directories);
    let tasks: Vec<_> = (0..workers as u64)
        .map(|seed| tokio::spawn(quarrel(filesystem.clone(), Arc::clone(&directories), seed, 120)))
        .collect();
    let all = async {
        for task in tasks {
            task.await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(120), all).await.expect("the tasks wait for each other");
    mounted.unmount_clean("after many tasks").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn sixty_four_tasks_in_one_tree() {
    if !have(TOOLS) {
        return;
    }
    many_tasks(mke2fs_image(&["-b", "1024"], "64M"), 64).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn sixty_four_tasks_in_one_tree_without_a_journal() {
    if !have(TOOLS) {
        return;
    }
    many_tasks(mke2fs_image(&["-O", "^has_journal"], "64M"), 64).await;
}

/// Directories move up and down while names in them are moved: two of them are locked in every order there
/// is.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn renames_of_directories_in_all_directions_end() {
    if !have(TOOLS) {
        return;
    }
    let mounted = common::mount(&mke2fs_image(&[], "32M")).await;
    let filesystem = &mounted.filesystem;
    let mut directories = vec![ROOT];
    for number in 0..6 {
        let name = format!("n{number}").into_bytes();
        directories.push(filesystem.mkdir(ROOT, &name, Credentials::default()).await.unwrap());
    }
    let directories = Arc::new(directories);
    let tasks: Vec<_> = (0..16)
        .map(|seed| {
            let (filesystem, directories) = (filesystem.clone(), Arc::clone(&directories));
            tokio::spawn(async move {
                let mut random = fastrand::Rng::with_seed(seed);
                for _ in 0..400 {
                    let mut place = || {
                        let directory = directories[random.usize(..directories.len())];
                        (directory, format!("n{}", random.u32(..6)).into_bytes())
                    };
                    let (from, to) = (place(), place());
                    let flags = RenameFlags { exchange: random.bool(), no_replace: false };
                    let renamed = filesystem.rename((from.0, &from.1), (to.0, &to.1), flags).await;
                    assert!(!renamed.is_err_and(|error| error.is_corrupt()), "seed {seed}");
                }
            })
        })
        .collect();
    let all = async {
        for task in tasks {
            task.await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(120), all).await.expect("the renames wait for each other");
    mounted.unmount_clean("after the renames").await;
}

/// Callers that stop waiting at every possible moment: what they began is done whole or not begun.
#[tokio::test]
async fn a_dropped_call_leaves_nothing_half_done() {
    if !have(TOOLS) {
        return;
    }
    for journal in ["has_journal", "^has_journal"] {
        let image = mke2fs_image(&["-b", "1024", "-O", journal], "32M");
        for seed in 0..8 {
            dropped_calls(&image, seed).await;
        }
    }
}

async fn dropped_calls(image: &Image, seed: u64) {
    let memory = Arc::new(MemoryDevice::from_image(image.clone()));
    let faulty = Arc::new(FaultyDevice::new(Arc::clone(&memory) as Arc<dyn BlockDevice>));
    let driver = Arc::clone(&faulty);
    let options = MountOptions::new().cache(1 << 20);
    let device = Arc::clone(&faulty) as Arc<dyn BlockDevice>;
    let filesystem = Filesystem::mount(device, options).await.unwrap();
    // From here on every I/O takes a few turns of the scheduler, so that calls are caught in the middle.
    faulty.reorder(seed);
    let drive = tokio::spawn(async move { driver.drive().await });
    let mut random = fastrand::Rng::with_seed(seed);
    let directory = filesystem.mkdir(ROOT, b"d", Credentials::default()).await.unwrap();
    for _ in 0..150 {
        let parent = if random.bool() { ROOT } else { directory };
        let name = format!("n{}", random.u32(..8)).into_bytes();
        let other = format!("n{}", random.u32(..8)).into_bytes();
        let owner = Credentials::default();
        let (operation, mut patience) = (random.u32(..6), random.u32(..12));
        let call = async {
            match operation {
                0 => drop(filesystem.create(parent, &name, owner).await),
                1 => drop(filesystem.mkdir(parent, &name, owner).await),
                2 => drop(filesystem.unlink(parent, &name).await),
                3 => drop(filesystem.rmdir(parent, &name).await),
                4 => drop(filesystem.symlink(parent, &name, &[b't'; 90], owner).await),
                _ => {
                    let flags = RenameFlags::default();
                    drop(filesystem.rename((parent, &name), (directory, &other), flags).await);
                }
            }
        };
        let mut call = Box::pin(call);
        std::future::poll_fn(|context| {
            if call.as_mut().poll(context).is_ready() || patience == 0 {
                return std::task::Poll::Ready(());
            }
            patience -= 1;
            context.waker().wake_by_ref();
            std::task::Poll::Pending
        })
        .await;
    }
    filesystem.unmount().await.unwrap();
    drive.abort();
    assert_clean(&memory.image(), &format!("seed {seed}: calls dropped half way"));
}

/// A directory with more subdirectories than a link count can say.
#[tokio::test]
async fn a_directory_of_seventy_thousand_subdirectories() {
    if !have(TOOLS) {
        return;
    }
    let image = mke2fs_image(&["-b", "1024", "-N", "80000", "-J", "size=8"], "160M");
    let options = MountOptions::new().commit_interval(None);
    let mounted = common::mount_with(&image, options).await;
    let filesystem = &mounted.filesystem;
    let parent = filesystem.mkdir(ROOT, b"many", Credentials::default()).await.unwrap();
    for number in 0..66_000 {
        let name = format!("{number:05}").into_bytes();
        filesystem.mkdir(parent, &name, Credentials::default()).await.unwrap();
    }
    assert_eq!(filesystem.attributes(parent).await.unwrap().links, 1);
    for number in 0..2000 {
        filesystem.rmdir(parent, format!("{number:05}").as_bytes()).await.unwrap();
    }
    assert_eq!(filesystem.attributes(parent).await.unwrap().links, 1);
    mounted.unmount_clean("seventy thousand subdirectories").await;
}
