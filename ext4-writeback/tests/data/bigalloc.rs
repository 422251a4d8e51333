//! Files on file systems that allocate clusters of blocks (bigalloc).

use std::sync::Arc;

use super::common::*;
use super::crash::{quiet, record};
use super::cuts::at_every_cut;
use ext4_core::device::simulated::RecordingDevice;
use ext4_core::{Errno, InodeNumber};
use ext4_writeback::Filesystem;

const CLUSTERS: &[(u32, &str)] = &[(1024, "16384"), (1024, "65536"), (4096, "16384"), (4096, "65536")];

fn image(mib: u64, block_size: u32, cluster: &str, fill: u8) -> ext4_core::device::simulated::Image {
    make_image(mib, block_size, &["-J", "size=4", "-O", "bigalloc", "-C", cluster], fill)
}

/// Blocks and sectors that are in use count whole clusters, reserved ones too, and each cluster once.
#[tokio::test]
async fn k_38_statfs_and_stat_count_each_cluster_once() {
    if !have_e2fsprogs() {
        return;
    }
    for (block_size, cluster) in CLUSTERS {
        let per_cluster: u64 = cluster.parse::<u64>().expect("a number") / u64::from(*block_size);
        let (device, fs) = mount_image(image(24, *block_size, cluster, 0), quiet()).await;
        let file = create(&fs, "file").await;
        fs.sync().await.expect("syncs");
        let start = fs.statfs().free_blocks;
        let block = u64::from(*block_size);
        let write = |at: u64, count: u64| {
            let file = &file;
            async move {
                let data = pattern(38, at * block, (count * block) as usize);
                file.write_at(at * block, &data).await.expect("writes");
            }
        };
        let used = |clusters: u64, what: &'static str| {
            let (fs, file) = (&fs, &file);
            async move {
                assert_eq!(start - fs.statfs().free_blocks, clusters * per_cluster, "{what}: statfs");
                let sectors = file.metadata().await.expect("stat").sectors;
                assert_eq!(sectors, clusters * per_cluster * block / 512, "{what}: stat");
            }
        };
        write(2, 1).await;
        used(1, "one delayed block").await;
        write(3, 1).await;
        write(0, 1).await;
        used(1, "more of the same cluster").await;
        write(per_cluster - 1, 2).await;
        used(2, "over the end of the cluster").await;
        file.sync_all().await.expect("syncs");
        used(2, "allocated").await;
        write(1, 1).await;
        write(per_cluster + 1, 1).await;
        used(2, "delayed in clusters that are there").await;
        file.set_len(2 * block).await.expect("cuts");
        used(1, "the second cluster is cut off").await;
        file.sync_all().await.expect("syncs");
        used(1, "written").await;
        // The allocated blocks of a cluster go, a delayed one stays.
        file.set_len(0).await.expect("cuts");
        used(0, "empty").await;
        write(2, 2).await;
        file.sync_all().await.expect("syncs");
        write(0, 1).await;
        file.set_len(block).await.expect("cuts");
        used(1, "reserved again").await;
        file.sync_all().await.expect("syncs");
        used(1, "and allocated again").await;
        assert_eq!(content(&file).await, pattern(38, 0, *block_size as usize));
        // Dropped before it is written.
        write(4 * per_cluster, 3).await;
        write(5 * per_cluster - 1, 2).await;
        used(3, "delayed").await;
        file.set_len(4 * per_cluster * block + 1).await.expect("cuts");
        used(2, "the last one is not wanted").await;
        file.set_len(block).await.expect("cuts");
        used(1, "nor the one before").await;
        drop(file);
        fs.unlink(InodeNumber::ROOT, b"file").await.expect("unlinks");
        fs.sync().await.expect("syncs");
        assert_eq!(fs.statfs().free_blocks, start);
        finish(&device, fs).await;
    }
}

/// Files of all kinds until nothing is left, in turn, so that they are in many pieces.
#[tokio::test]
async fn a_file_system_of_clusters_can_be_filled_to_the_last_one() {
    if !have_e2fsprogs() {
        return;
    }
    for delayed_allocation in [true, false] {
        let options = options().delayed_allocation(delayed_allocation);
        let (device, fs) = mount_image(image(16, 1024, "16384", 0), options).await;
        fs.sync().await.expect("syncs");
        let start = fs.statfs();
        let mut random = fastrand::Rng::with_seed(5);
        let mut files: Vec<(ext4_writeback::File, Vec<u8>)> = Vec::new();
        for i in 0..12 {
            files.push((create(&fs, &format!("file{i}")).await, Vec::new()));
        }
        let mut full = 0;
        while full < 20 {
            let i = random.usize(0..files.len());
            let (file, model) = &mut files[i];
            let len = random.usize(1..30_000);
            let data = pattern(i as u64, model.len() as u64, len);
            match file.write_at(model.len() as u64, &data).await {
                Ok(count) => {
                    full += u32::from(count < len);
                    model.extend(&data[..count]);
                }
                Err(error) => {
                    assert_eq!(error.errno(), Errno::ENOSPC);
                    full += 1;
                }
            }
            if random.u8(0..20) == 0 {
                file.sync_data().await.expect("what a write accepted has its space");
            }
            if random.u8(0..40) == 0 && full == 0 {
                let len = random.usize(0..=model.len());
                file.set_len(len as u64).await.expect("cuts");
                model.truncate(len);
            }
        }
        fs.sync().await.expect("syncs");
        // But for what is kept for root (5%) and for extent nodes (2%).
        let left = fs.statfs().available_blocks;
        assert!(left <= start.blocks / 25, "{left} of {} are left", start.blocks);
        for (file, model) in &files {
            assert!(content(file).await == *model);
        }
        files.clear();
        let image = finish(&device, fs).await;
        let (device, fs) = mount_image(image, quiet()).await;
        for i in 0..12 {
            fs.unlink(InodeNumber::ROOT, format!("file{i}").as_bytes()).await.expect("unlinks");
        }
        fs.sync().await.expect("syncs");
        assert_eq!(fs.statfs().free_blocks, start.free_blocks);
        finish(&device, fs).await;
    }
}

/// Small files, directories with many names, long symlinks, attribute blocks: each with clusters of its own.
#[tokio::test]
async fn metadata_takes_and_gives_back_whole_clusters() {
    if !have_e2fsprogs() {
        return;
    }
    for (block_size, cluster) in CLUSTERS {
        let (device, fs) = mount_image(image(64, *block_size, cluster, 0), options()).await;
        fs.sync().await.expect("syncs");
        let start = fs.statfs().free_blocks;
        let owner = ext4_writeback::Credentials { mode: 0o755, ..Default::default() };
        let top = fs.mkdir(InodeNumber::ROOT, b"top", owner).await.expect("makes a directory");
        let count = 400;
        for i in 0..count {
            let name = format!("a name that is long enough to need some blocks {i}");
            let number = fs.create(top, name.as_bytes(), owner).await.expect("creates");
            let file = fs.open(number).await.expect("opens");
            if i % 4 == 0 {
                file.write_at(0, &pattern(i, 0, 1 + i as usize * 5)).await.expect("writes");
            }
            if i % 40 == 0 {
                let value = vec![b'v'; 700];
                let mode = ext4_writeback::SetMode::Create;
                fs.setxattr(number, b"user.long", &value, mode).await.expect("sets");
            }
        }
        for i in 0..20 {
            fs.symlink(top, format!("link{i}").as_bytes(), &vec![b'l'; 300], owner).await.expect("links");
        }
        // Every other block: a tree with nodes.
        let holes = fs.open(fs.create(top, b"holes", owner).await.expect("creates")).await.expect("opens");
        for i in (0..120).rev() {
            let at = i * 2 * u64::from(*block_size);
            holes.write_at(at, &pattern(7, at, *block_size as usize)).await.expect("writes");
            if i % 3 == 0 {
                holes.sync_data().await.expect("syncs");
            }
        }
        drop(holes);
        let image = finish(&device, fs).await;
        let (device, fs) = mount_image(image, options()).await;
        let top = fs.lookup(InodeNumber::ROOT, b"top").await.expect("is there");
        for i in 0..count {
            let name = format!("a name that is long enough to need some blocks {i}");
            let number = fs.lookup(top, name.as_bytes()).await.expect("is there");
            if i % 4 == 0 {
                let bytes = content(&fs.open(number).await.expect("opens")).await;
                assert!(bytes == pattern(i, 0, 1 + i as usize * 5), "file {i}");
            }
            fs.unlink(top, name.as_bytes()).await.expect("unlinks");
        }
        for i in 0..20 {
            fs.unlink(top, format!("link{i}").as_bytes()).await.expect("unlinks");
        }
        let holes = fs.open(fs.lookup(top, b"holes").await.expect("is there")).await.expect("opens");
        holes.set_len(63 * u64::from(*block_size) + 5).await.expect("cuts");
        drop(holes);
        let image = finish(&device, fs).await;
        let (device, fs) = mount_image(image, options()).await;
        let top = fs.lookup(InodeNumber::ROOT, b"top").await.expect("is there");
        fs.unlink(top, b"holes").await.expect("unlinks");
        fs.rmdir(InodeNumber::ROOT, b"top").await.expect("removes");
        fs.sync().await.expect("syncs");
        assert_eq!(fs.statfs().free_blocks, start, "{block_size} {cluster}");
        finish(&device, fs).await;
    }
}

/// Truncations into clusters, holes that are filled, appends, syncs, with commits between all of them.
#[tokio::test]
async fn g_16_clusters_are_neither_lost_nor_shared_at_any_cut() {
    if !have_e2fsprogs() {
        return;
    }
    for (seed, (block_size, cluster)) in (41..).zip([(1024, "16384"), (4096, "16384")]) {
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        let block = u64::from(block_size);
        let steps: Vec<(u8, u64, u64)> =
            (0..70).map(|_| (random.u8(0..10), random.u64(0..60), random.u64(1..12))).collect();
        let work = {
            let steps = steps.clone();
            |_: Arc<RecordingDevice>, fs: Filesystem| async move {
                let file = create(&fs, "file").await;
                for (i, (kind, at, len)) in steps.iter().enumerate() {
                    match kind {
                        0..5 => {
                            let bytes = pattern(4, at * block, (len * block) as usize);
                            file.write_at(at * block, &bytes).await.expect("writes");
                        }
                        5 => file.set_len(at * block + len * 7).await.expect("truncates"),
                        6 | 7 => file.sync_data().await.expect("syncs"),
                        8 => file.start_writeback().await.expect("starts"),
                        _ => create(&fs, &format!("other{i}")).await.sync_all().await.expect("syncs"),
                    }
                }
                fs.sync().await.expect("syncs");
            }
        };
        let recording =
            record(image(16, block_size, cluster, super::crash::STALE), Some(seed), quiet(), work).await;
        at_every_cut(&recording, 60, "file", |_, bytes| {
            for (at, byte) in bytes.unwrap_or_default().iter().enumerate() {
                assert!(*byte == 0 || *byte == pattern(4, at as u64, 1)[0], "{byte:#x} at {at}");
            }
        })
        .await;
    }
}
