//! Publication (`alloc=publish`) and files of indirect blocks: the guarantees of unwritten blocks hold for
//! them too.

use std::sync::Arc;

use super::common::*;
use super::model::{Form, STEPS, forms, worlds};
use super::stress::Trouble;
use super::way::Way;
use super::{crash, statements, stress};
use ext4_core::Errno;
use ext4_core::device::simulated::{FaultyDevice, Image};
use ext4_core::device::{BlockDevice, MemoryDevice, Operation};
use ext4_core::meta::extent_tree::MappingState;
use ext4_writeback::{Counters, Filesystem, MountOptions};

const WAYS: [Way; 2] = [Way::Publish, Way::Indirect];

#[tokio::test]
async fn g_3_g_11_appended_and_synced_data_is_there_without_a_gap() {
    for way in WAYS {
        crash::appends_and_syncs(way).await;
    }
}

#[tokio::test]
async fn g_4_strict_the_size_moves_over_published_data_only() {
    for way in WAYS {
        crash::scattered_appends(way).await;
    }
}

#[tokio::test]
async fn g_2_a_block_is_mapped_only_when_its_data_is_there() {
    for way in WAYS {
        statements::written_blocks_have_data(way).await;
    }
}

#[tokio::test]
async fn g_5_k_42_the_size_never_ends_in_the_padding_of_a_block() {
    for way in WAYS {
        statements::no_padding(way).await;
    }
}

#[tokio::test]
async fn g_6_a_gap_is_zero_whatever_lay_behind_the_end() {
    for way in WAYS {
        statements::gaps_are_zero(way).await;
    }
}

#[tokio::test]
async fn g_12_fsync_of_one_file_leaves_another_as_it_was_or_newer() {
    for way in WAYS {
        statements::other_files(way).await;
    }
}

#[tokio::test]
async fn g_6_what_lies_behind_the_end_never_shows() {
    for way in WAYS {
        crash::what_lies_behind_the_end(way).await;
    }
}

#[tokio::test]
async fn g_7_g_8_what_was_cut_off_never_comes_back() {
    for way in WAYS {
        crash::what_was_cut_off(way).await;
    }
}

#[tokio::test]
async fn g_1_g_16_every_byte_is_zero_or_was_written_there() {
    if !have_e2fsprogs() {
        return;
    }
    for way in WAYS {
        for seed in [21, 22] {
            crash::random_workload(way, seed, true).await;
        }
    }
}

#[tokio::test]
async fn g_17_the_same_without_delayed_allocation() {
    if !have_e2fsprogs() {
        return;
    }
    for way in WAYS {
        crash::random_workload(way, 23, false).await;
    }
}

/// `forms` in each way.
fn in_ways(forms: &[Form]) -> Vec<Form> {
    let with = |way: Way, form: &Form| {
        let mut form = form.clone();
        if way == Way::Indirect {
            form.features = way.features();
        }
        form.options = way.mounted(form.options.clone());
        form
    };
    WAYS.into_iter().flat_map(|way| forms.iter().map(move |form| with(way, form))).collect()
}

#[tokio::test]
async fn files_agree_with_arrays_of_bytes() {
    worlds(&in_ways(&forms("published", &[1024, 4096], options())), STEPS / 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_agree_with_arrays_of_bytes_on_two_threads_with_little_memory() {
    let options = options().cache(6 << 20);
    worlds(&in_ways(&forms("published, little memory", &[1024], options)), STEPS / 2).await;
}

#[tokio::test]
async fn files_agree_with_arrays_of_bytes_without_delayed_allocation() {
    let options = options().delayed_allocation(false);
    worlds(&in_ways(&forms("published, nodelalloc", &[1024], options)), STEPS / 2).await;
}

#[tokio::test]
async fn files_agree_with_arrays_of_bytes_without_a_flusher() {
    let options = options().commit_interval(None).cache(12 << 20);
    worlds(&in_ways(&forms("published, no flusher", &[4096], options)), STEPS / 2).await;
}

#[tokio::test]
async fn files_agree_with_arrays_of_bytes_with_fast_commits() {
    let mut forms = forms("published, fast commits", &[4096], Way::Publish.mounted(options()));
    forms.iter_mut().for_each(|form| form.features = &["-O", "fast_commit"]);
    worlds(&forms, STEPS / 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_tasks_on_sixteen_files() {
    for way in WAYS {
        stress::rounds(way, Trouble::None, 1, 20).await;
        stress::rounds(way, Trouble::Full, 1, 20).await;
        stress::rounds(way, Trouble::BadSectors, 3, 40).await;
        stress::rounds(way, Trouble::FullAndBad, 1, 20).await;
    }
}

/// No timers, and a cache in which the flusher has nothing to do.
fn quiet() -> MountOptions {
    let hour = std::time::Duration::from_secs(3600);
    options().commit_interval(Some(hour)).cache(64 << 20)
}

/// The cost of one sync of `writes`: (counters, handles of the journal).
async fn cost(way: Way, writes: &[(u64, usize)]) -> (Counters, u64) {
    let (device, fs) = mount_image(way.image(64, 4096, &[], 0xaa), way.mounted(quiet())).await;
    let file = create(&fs, "file").await;
    file.sync_all().await.expect("syncs");
    let handles = |fs: &Filesystem| fs.journal_statistics().expect("a journal").handles;
    let (before, counted) = (handles(&fs), fs.counters());
    for (at, len) in writes {
        file.write_at(*at, &pattern(1, *at, *len)).await.expect("writes");
    }
    assert_eq!(handles(&fs), before, "no handle for delayed writes");
    file.sync_data().await.expect("syncs");
    let (after, now) = (handles(&fs), fs.counters());
    drop(file);
    finish(&device, fs).await;
    let counters = Counters {
        allocations: now.allocations - counted.allocations,
        ioends: now.ioends - counted.ioends,
        conversions: now.conversions - counted.conversions,
        publications: now.publications - counted.publications,
        completion_handles: now.completion_handles - counted.completion_handles,
        ..Counters::default()
    };
    (counters, after - before)
}

#[tokio::test]
async fn k_39_publication_takes_one_handle_for_an_ioend_and_converts_nothing() {
    if !have_e2fsprogs() {
        return;
    }
    // 8 MiB in one run of blocks.
    let large = [(0, 8 << 20)];
    let (unwritten, two) = cost(Way::Unwritten, &large).await;
    let (published, one) = cost(Way::Publish, &large).await;
    println!("8 MiB: unwritten {unwritten:?}, {two} handles; published {published:?}, {one} handles");
    assert_eq!((unwritten.allocations, unwritten.conversions, unwritten.publications), (1, 1, 0));
    assert_eq!((published.allocations, published.conversions, published.publications), (1, 0, 1));
    assert_eq!((published.ioends, published.completion_handles, one), (1, 1, 1));
    assert_eq!(two, 2);
    // Every other block: as many ioends.
    let scattered: Vec<_> = (0..50).map(|i| (i * 8192, 4096)).collect();
    let (unwritten, two) = cost(Way::Unwritten, &scattered).await;
    let (published, one) = cost(Way::Publish, &scattered).await;
    println!("50 pieces: unwritten {unwritten:?}, {two} handles; published {published:?}, {one} handles");
    assert_eq!((published.conversions, published.ioends, published.publications), (0, 50, 50));
    assert!(one <= published.ioends, "{one} handles for {} ioends", published.ioends);
    assert!(two >= 50 + one, "{two} handles with unwritten blocks, {one} without");
}

/// An image with a file of one block, and the bytes of the device where what is appended to it will go.
async fn with_one_block(way: Way, options: &[&str]) -> (Image, std::ops::Range<u64>) {
    let (device, fs) = mount_image(way.image(32, 4096, options, 0xaa), way.mounted(quiet())).await;
    let file = create(&fs, "file").await;
    file.write_at(0, &pattern(1, 0, 4096)).await.expect("writes");
    file.sync_all().await.expect("syncs");
    let extents = file.extents().await.expect("maps");
    let MappingState::Written(block) = extents[0].state else { panic!("{extents:?}") };
    drop(file);
    let start = (block.0 + 1) * 4096;
    (finish(&device, fs).await, start..start + (1 << 20))
}

/// Blocks in flight are not part of the file yet; an overwrite meanwhile goes to the same blocks.
#[tokio::test]
async fn what_is_overwritten_in_flight_stays_where_it_is() {
    if !have_e2fsprogs() {
        return;
    }
    for way in WAYS {
        let (image, place) = with_one_block(way, &[]).await;
        let memory = Arc::new(MemoryDevice::from_image(image));
        let device = Arc::new(crash::Holding::new(Arc::clone(&memory), place));
        device.release();
        let fs = mount(Arc::clone(&device) as _, way.mounted(quiet())).await;
        let file = open(&fs, "file").await;
        let free = fs.statfs().free_blocks;
        device.hold();
        file.write_at(4096, &pattern(1, 4096, 16_384)).await.expect("writes");
        assert_eq!(fs.statfs().free_blocks, free - 4, "reserved");
        file.start_writeback().await.expect("starts");
        assert!(device.holds() > 0, "{way:?}: the data is on its way");
        assert_eq!(fs.statfs().free_blocks, free - 4, "picked blocks are reserved ones");
        fs.fsync(ext4_core::InodeNumber::ROOT).await.expect("commits");
        let (seen, crashed) = mount_image(memory.image(), options()).await;
        assert_eq!(open(&crashed, "file").await.len(), 4096);
        assert_eq!(crashed.statfs().free_blocks, free, "nothing of it is on the device");
        finish(&seen, crashed).await;
        let overwrite = {
            let (fs, file) = (fs.clone(), open(&fs, "file").await);
            tokio::spawn(async move {
                // It waits for the I/O on its block, not for the publication.
                file.write_at(8192, &pattern(2, 8192, 5000)).await.expect("writes");
                drop(fs);
            })
        };
        tokio::task::yield_now().await;
        device.release();
        overwrite.await.expect("no panic");
        file.sync_all().await.expect("syncs");
        let counters = fs.counters();
        assert_eq!((counters.allocations, counters.publications, counters.conversions), (1, 1, 0), "{way:?}");
        assert_eq!(file.extents().await.expect("maps").len(), 1, "{way:?}");
        assert_eq!(fs.statfs().free_blocks, free - 4);
        let mut expected = pattern(1, 0, 20_480);
        expected[8192..13_192].copy_from_slice(&pattern(2, 8192, 5000));
        assert!(content(&file).await == expected);
        drop(file);
        finish(&memory, fs).await;
    }
}

/// The block that i_disksize ends in is changed while its folio is under writeback for a block behind it.
/// What the change replaces is on the device, zeros behind the size included, so nothing has to wait for it;
/// and it could not: the folio is not written again before its writeback ends.
#[tokio::test]
async fn a_tail_that_becomes_dirty_during_the_writeback_of_its_own_folio_stops_no_writer() {
    if !have_e2fsprogs() {
        return;
    }
    for way in [Way::Unwritten, Way::Publish, Way::Indirect] {
        let memory = Arc::new(MemoryDevice::from_image(way.image(32, 1024, &[], 0xaa)));
        let device = Arc::new(crash::Holding::new(Arc::clone(&memory), 0..u64::MAX));
        device.release();
        let fs = mount(Arc::clone(&device) as _, way.mounted(quiet())).await;
        let file = create(&fs, "file").await;
        file.sync_all().await.expect("syncs");
        device.hold();
        file.write_at(0, &pattern(1, 0, 100)).await.expect("writes");
        file.start_writeback().await.expect("starts");
        assert_eq!(device.holds(), 1);
        // The I/O has ended, and no completion worker had a turn to make the block part of the file: it is
        // not written yet.
        device.release();
        file.write_at(1500, &pattern(1, 1500, 100)).await.expect("writes");
        while fs.counters().conversions + fs.counters().publications == 0 {
            tokio::task::yield_now().await;
        }
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        device.hold();
        file.start_writeback().await.expect("starts");
        assert_eq!(device.holds(), 1, "{way:?}: the second block");
        file.write_at(50, &pattern(2, 50, 10)).await.expect("writes");
        device.release();
        file.sync_all().await.unwrap_or_else(|error| panic!("{way:?}: {error}"));
        let mut expected = pattern(1, 0, 1600);
        expected[100..1500].fill(0);
        expected[50..60].copy_from_slice(&pattern(2, 50, 10));
        assert!(content(&file).await == expected, "{way:?}");
        drop(file);
        finish(&memory, fs).await;
    }
}

/// A truncation waits for what is in flight; the blocks that it cuts off go back without having been
/// anywhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k_43_what_is_cut_off_in_flight_is_given_back() {
    if !have_e2fsprogs() {
        return;
    }
    for way in WAYS {
        for size in [0, 5000, 12_288] {
            let (image, place) = with_one_block(way, &[]).await;
            let memory = Arc::new(MemoryDevice::from_image(image));
            let device = Arc::new(crash::Holding::new(Arc::clone(&memory), place));
            device.release();
            let fs = mount(Arc::clone(&device) as _, way.mounted(quiet())).await;
            let file = Arc::new(open(&fs, "file").await);
            // Without the block that is there.
            let free = fs.statfs().free_blocks + 1;
            device.hold();
            file.write_at(4096, &pattern(1, 4096, 36_000)).await.expect("writes");
            file.start_writeback().await.expect("starts");
            assert!(device.holds() > 0, "{way:?}: the data is on its way");
            let cut = tokio::spawn({
                let file = Arc::clone(&file);
                async move { file.set_len(size).await.expect("cuts") }
            });
            while file.len() != size {
                tokio::task::yield_now().await;
            }
            device.release();
            cut.await.expect("no panic");
            file.sync_all().await.expect("syncs");
            assert_eq!(fs.statfs().free_blocks, free - size.div_ceil(4096), "{way:?}, {size}");
            assert!(content(&file).await == pattern(1, 0, size as usize));
            drop(file);
            let image = finish(&memory, fs).await;
            let (device, fs) = mount_image(image, options()).await;
            assert_eq!(fs.statfs().free_blocks, free - size.div_ceil(4096), "{way:?}, {size}");
            finish(&device, fs).await;
        }
    }
}

/// A failed write loses its data, not the space: the blocks and their reservation go back, those that were
/// made dirty again are picked anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g_13_a_failed_publication_leaves_a_hole_and_gives_the_blocks_back() {
    if !have_e2fsprogs() {
        return;
    }
    for way in WAYS {
        let (image, place) = with_one_block(way, &["-m", "0"]).await;
        let memory = Arc::new(MemoryDevice::from_image(image));
        let faulty = Arc::new(FaultyDevice::new(Arc::clone(&memory) as Arc<dyn BlockDevice>));
        let fs = mount(Arc::clone(&faulty) as _, way.mounted(quiet())).await;
        let file = open(&fs, "file").await;
        let free = fs.statfs().free_blocks;
        faulty.fail_range(Operation::Write, place);
        file.write_at(4096, &pattern(1, 4096, 65_536)).await.expect("the cache takes it");
        assert_eq!(file.sync_all().await.expect_err("not written").errno(), Errno::EIO);
        faulty.heal();
        assert_eq!(fs.statfs().free_blocks, free, "{way:?}: nothing is reserved for lost data");
        // Once more, over the hole; and all that is free can be had.
        file.write_at(4096, &pattern(2, 4096, 65_536)).await.expect("writes");
        file.sync_all().await.expect("is there");
        let mut expected = pattern(1, 0, 4096);
        expected.extend(pattern(2, 4096, 65_536));
        assert!(content(&file).await == expected, "{way:?}");
        let all = create(&fs, "all").await;
        let mut at = 0;
        while let Ok(count) = all.write_at(at, &[7; 4096]).await {
            at += count as u64;
        }
        all.sync_all().await.expect("syncs");
        // What is left is kept back for metadata: 2%.
        assert!(fs.statfs().free_blocks <= 8192 / 50 + 4, "{way:?}: {:?}", fs.statfs());
        drop((file, all));
        finish(&memory, fs).await;
    }
}

#[tokio::test]
async fn g_19_fast_commits_of_published_data_are_replayed() {
    if !have_e2fsprogs() {
        return;
    }
    for (seed, without_fua) in [(41, false), (42, true)] {
        crash::fast_commits(Way::Publish, seed, without_fua).await;
    }
}

/// A file of indirect blocks is committed in full, and the reason is counted.
#[tokio::test]
async fn a_file_of_indirect_blocks_has_no_fast_commit() {
    if !have_e2fsprogs() {
        return;
    }
    let image = make_image(32, 4096, &["-O", "^extents,^64bit,fast_commit"], 0);
    let (device, fs) = mount_image(image, quiet()).await;
    // Not in the block of the table that holds the journal's inode.
    for i in 0..16 {
        drop(create(&fs, &format!("other{i}")).await);
    }
    let file = create(&fs, "file").await;
    file.write_at(0, &pattern(1, 0, 10_000)).await.expect("writes");
    file.sync_all().await.expect("syncs");
    let (statistics, reasons) = fs.fast_commit_statistics();
    assert_eq!(statistics.commits, 0);
    assert!(reasons.mapping > 0, "{reasons:?}");
    drop(file);
    finish(&device, fs).await;
}

#[tokio::test]
async fn publication_is_refused_with_bigalloc() {
    if !have_e2fsprogs() {
        return;
    }
    let image = make_image(32, 4096, &["-O", "bigalloc"], 0);
    let device = Arc::new(MemoryDevice::from_image(image));
    let error = Filesystem::mount(device, Way::Publish.mounted(options())).await.expect_err("refused");
    assert!(error.to_string().contains("bigalloc"), "{error}");
}
