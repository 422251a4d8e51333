//! Memory-mapped access (`map_read`, `map_write`): stores into folios, and views of them.

use std::sync::Arc;

use super::common::*;
use super::crash::{commits, quiet, record, with_planted_tail};
use super::cuts::at_every_cut;
use super::way::Way;
use ext4_core::Errno;
use ext4_core::device::simulated::RecordingDevice;
use ext4_writeback::Filesystem;

#[tokio::test]
async fn a_store_is_there_when_it_is_committed_and_not_before() {
    if !have_e2fsprogs() {
        return;
    }
    let (device, fs) = mount_image(make_image(16, 4096, &[], 0xaa), options()).await;
    let file = create(&fs, "file").await;
    file.write_at(0, &pattern(1, 0, 10_000)).await.expect("writes");
    let mut map = file.map_write(3000, 2000).await.expect("maps");
    assert_eq!((map.offset(), map.len()), (3000, 2000));
    assert!(map[..] == pattern(1, 3000, 2000)[..], "it holds what the file holds");
    map.fill(9);
    assert_eq!(content(&file).await, pattern(1, 0, 10_000));
    assert_eq!(map.commit().await.expect("commits"), 2000);
    let mut expected = pattern(1, 0, 10_000);
    expected[3000..5000].fill(9);
    assert_eq!(content(&file).await, expected);
    let mut dropped = file.map_write(0, 100).await.expect("maps");
    dropped.fill(7);
    drop(dropped);
    assert_eq!(content(&file).await, expected);
    drop(file);
    let image = finish(&device, fs).await;
    let (device, fs) = mount_image(image, options()).await;
    assert_eq!(content(&open(&fs, "file").await).await, expected);
    finish(&device, fs).await;
}

#[tokio::test]
async fn nothing_is_mapped_or_stored_behind_the_end() {
    if !have_e2fsprogs() {
        return;
    }
    let (device, fs) = mount_image(make_image(16, 4096, &[], 0xaa), options()).await;
    let file = create(&fs, "file").await;
    assert_eq!(file.map_write(0, 1).await.expect_err("empty").errno(), Errno::ENXIO);
    assert_eq!(file.map_read(0, 1).await.expect_err("empty").errno(), Errno::ENXIO);
    file.set_len(5 << 20).await.expect("extends");
    assert_eq!(file.map_write((4 << 20) + 10, usize::MAX).await.expect("maps").len(), (1 << 20) - 10);
    assert_eq!(file.map_write(100, usize::MAX).await.expect("maps").len(), (2 << 20) - 100, "one folio");
    assert_eq!(file.map_write(5 << 20, 1).await.expect_err("at the end").errno(), Errno::ENXIO);
    // Cut while it is mapped.
    let mut map = file.map_write(0, 10_000).await.expect("maps");
    map.fill(5);
    file.set_len(4000).await.expect("cuts");
    assert_eq!(map.commit().await.expect("commits"), 4000);
    assert_eq!(content(&file).await, vec![5; 4000]);
    let map = file.map_write(3000, 100).await.expect("maps");
    file.set_len(3000).await.expect("cuts");
    assert_eq!(map.commit().await.expect("commits"), 0);
    file.set_len(20_000).await.expect("extends");
    assert!(content(&file).await[4000..].iter().all(|byte| *byte == 0));
    drop(file);
    finish(&device, fs).await;
}

#[tokio::test]
async fn k_16_k_17_k_18_a_store_that_is_dropped_gives_its_reservation_back_and_others_keep_theirs() {
    if !have_e2fsprogs() {
        return;
    }
    let (device, fs) = mount_image(make_image(16, 4096, &[], 0xaa), quiet()).await;
    let file = create(&fs, "file").await;
    file.set_len(1 << 20).await.expect("extends");
    fs.sync().await.expect("syncs");
    let sectors = async || file.metadata().await.expect("stat").sectors;
    let free = fs.statfs().free_blocks;
    let before = sectors().await;
    let map = file.map_write(0, 65_536).await.expect("maps");
    assert_eq!(fs.statfs().free_blocks, free - 16, "reserved");
    drop(map);
    assert_eq!((fs.statfs().free_blocks, sectors().await), (free, before), "given back");
    // Two at the same place, one is stored: its blocks are reserved once.
    let (first, mut second) =
        (file.map_write(0, 65_536).await.expect("maps"), file.map_write(32_768, 65_536).await.expect("maps"));
    second.fill(3);
    second.commit().await.expect("commits");
    drop(first);
    assert_eq!(fs.statfs().free_blocks, free - 16);
    assert_eq!(sectors().await, before + 16 * 8);
    // A write came between.
    let map = file.map_write(0, 65_536).await.expect("maps");
    file.write_at(0, &[1; 4096]).await.expect("writes");
    assert_eq!(map.commit().await.expect("commits"), 65_536);
    assert_eq!(fs.statfs().free_blocks, free - 24);
    file.set_len(0).await.expect("cuts");
    fs.sync().await.expect("syncs");
    assert_eq!(fs.statfs().free_blocks, free);
    drop(file);
    finish(&device, fs).await;
}

#[tokio::test]
async fn k_34_a_store_fails_for_space_before_it_is_made() {
    if !have_e2fsprogs() {
        return;
    }
    for delayed_allocation in [true, false] {
        let options = options().delayed_allocation(delayed_allocation);
        let (device, fs) = mount_image(make_image(8, 4096, &["-O", "^has_journal"], 0), options).await;
        let file = create(&fs, "file").await;
        file.set_len(64 << 20).await.expect("extends");
        let mut stored = Vec::new();
        let mut maps = Vec::new();
        for at in (0..64 << 20).step_by(64 << 10) {
            match file.map_write(at, 64 << 10).await {
                Ok(mut map) => {
                    map.fill(7);
                    maps.push(map);
                    // In between some are stored, and written back while space is low.
                    if maps.len() == 8 {
                        for map in maps.drain(..) {
                            stored.push(map.offset());
                            assert_eq!(map.commit().await.expect("what is mapped can be stored"), 64 << 10);
                        }
                    }
                }
                Err(error) => {
                    assert_eq!(error.errno(), Errno::ENOSPC);
                    break;
                }
            }
        }
        for map in maps {
            stored.push(map.offset());
            assert_eq!(map.commit().await.expect("what is mapped can be stored"), 64 << 10);
        }
        assert!(stored.len() > 20 && stored.len() < 128, "{}", stored.len());
        file.sync_all().await.expect("and written");
        for at in stored {
            let mut bytes = vec![0; 64 << 10];
            file.read_at(at, &mut bytes).await.expect("reads");
            assert!(bytes.iter().all(|byte| *byte == 7));
        }
        drop(file);
        finish(&device, fs).await;
    }
}

#[tokio::test]
async fn a_mapping_that_is_held_keeps_no_caller_waiting() {
    if !have_e2fsprogs() {
        return;
    }
    let (device, fs) = mount_image(make_image(16, 4096, &[], 0xaa), options()).await;
    let file = create(&fs, "file").await;
    file.write_at(0, &pattern(1, 0, 100_000)).await.expect("writes");
    let mut store = file.map_write(0, 100_000).await.expect("maps");
    let view = file.map_read(0, 50_000).await.expect("maps");
    store.fill(8);
    let viewed = view.to_vec();
    file.sync_all().await.expect("syncs");
    file.write_at(0, &pattern(2, 0, 60_000)).await.expect("writes");
    file.set_len(70_001).await.expect("cuts");
    file.set_len(1000).await.expect("cuts");
    file.set_len(100_000).await.expect("extends");
    file.write_at(2000, &pattern(3, 2000, 3000)).await.expect("writes");
    file.sync_all().await.expect("syncs");
    assert!(
        view[..] == viewed[..] && view[..] == pattern(1, 0, 100_000)[..view.len()],
        "a view stays as it was"
    );
    let mut expected = vec![0; 100_000];
    expected[..1000].copy_from_slice(&pattern(2, 0, 1000));
    expected[2000..5000].copy_from_slice(&pattern(3, 2000, 3000));
    assert!(content(&file).await == expected);
    store.commit().await.expect("commits");
    assert_eq!(content(&file).await, vec![8; 100_000]);
    drop((file, view));
    finish(&device, fs).await;
}

#[tokio::test]
async fn k_58_what_is_on_its_way_to_the_device_is_one_moment() {
    if !have_e2fsprogs() {
        return;
    }
    let image = make_image(16, 4096, &["-J", "size=4"], 0xaa);
    let work = |_device: Arc<RecordingDevice>, fs: Filesystem| async move {
        let file = create(&fs, "file").await;
        file.write_at(0, &[1; 16_384]).await.expect("writes");
        file.sync_all().await.expect("syncs");
        for value in [3, 5, 7, 9, 11] {
            let mut map = file.map_write(0, 16_384).await.expect("maps");
            // Stored byte by byte while the store before is being written.
            for at in 0..map.len() {
                map[at] = value;
                if at % 4096 == 0 {
                    tokio::task::yield_now().await;
                }
            }
            map.commit().await.expect("commits");
            file.start_writeback().await.expect("starts");
        }
        file.sync_all().await.expect("syncs");
    };
    let recording = record(image, Some(3), quiet(), work).await;
    at_every_cut(&recording, 60, "file", |_, bytes| {
        for sector in bytes.unwrap_or_default().chunks(512) {
            assert!(sector.iter().all(|byte| *byte == sector[0]), "half a store in a sector");
        }
    })
    .await;
}

#[tokio::test]
async fn k_01_w_11_a_store_before_an_extension_does_not_reach_into_it() {
    if !have_e2fsprogs() {
        return;
    }
    let (planted, _) = with_planted_tail(Way::Unwritten).await;
    let work = |_device: Arc<RecordingDevice>, fs: Filesystem| async move {
        let file = open(&fs, "file").await;
        let mut map = file.map_write(0, 1 << 20).await.expect("maps");
        assert_eq!(map.len(), 2000, "to the end of the file, not of its block");
        map.copy_from_slice(&pattern(9, 0, 2000));
        let story = async {
            file.start_writeback().await.expect("starts");
            file.set_len(8192).await.expect("extends");
            map.commit().await.expect("commits");
            file.sync_data().await.expect("syncs");
        };
        tokio::select! {
            () = commits(&fs) => {}
            () = story => {}
        }
    };
    let recording = record(planted, Some(5), quiet(), work).await;
    at_every_cut(&recording, 60, "file", |_, bytes| {
        let bytes = bytes.expect("it was there before");
        assert!([2000, 8192].contains(&bytes.len()), "{}", bytes.len());
        assert!(bytes[2000..].iter().all(|byte| *byte == 0));
        for (at, byte) in bytes[..2000].iter().enumerate() {
            assert!(*byte == pattern(7, at as u64, 1)[0] || *byte == pattern(9, at as u64, 1)[0]);
        }
    })
    .await;
}

#[tokio::test]
async fn views_are_the_pages_themselves_and_bounded() {
    if !have_e2fsprogs() {
        return;
    }
    let (device, fs) = mount_image(make_image(48, 4096, &[], 0), options()).await;
    let file = create(&fs, "file").await;
    for at in (0..20 << 20).step_by(1 << 20) {
        file.write_at(at, &pattern(1, at, 1 << 20)).await.expect("writes");
    }
    let (first, again) =
        (file.map_read(4096, 100).await.expect("maps"), file.map_read(4096, 100).await.expect("maps"));
    assert_eq!(first.as_ptr(), again.as_ptr(), "no copy");
    drop((first, again));
    let mut views = Vec::new();
    let mut at = 0;
    let error = loop {
        match file.map_read(at, usize::MAX).await {
            Ok(view) => {
                assert!(view[..] == pattern(1, at, view.len())[..]);
                at += view.len() as u64;
                views.push(view);
            }
            Err(error) => break error,
        }
    };
    assert_eq!(error.errno(), Errno::EAGAIN);
    assert!((2 << 20..=10 << 20).contains(&at), "{at}");
    // The folios that are viewed are written all the same, with other memory.
    file.write_at(0, &pattern(2, 0, 8 << 20)).await.expect("writes");
    assert!(views[0][..] == pattern(1, 0, views[0].len())[..]);
    drop(views);
    assert!(file.map_read(0, 4096).await.expect("maps")[..] == pattern(2, 0, 4096)[..]);
    file.sync_all().await.expect("syncs");
    drop(file);
    finish(&device, fs).await;
}

/// Stores, views, writes, truncations and syncs against an array of bytes.
#[tokio::test]
async fn stores_agree_with_an_array_of_bytes() {
    if !have_e2fsprogs() {
        return;
    }
    for (seed, block_size) in [(1_u64, 1024), (2, 2048), (3, 4096)] {
        let mut random = fastrand::Rng::with_seed(seed);
        let (device, fs) = mount_image(make_image(32, block_size, &[], 0xaa), options()).await;
        let file = create(&fs, "file").await;
        let mut model: Vec<u8> = Vec::new();
        let mut views: Vec<(Vec<u8>, ext4_writeback::MappedBytes)> = Vec::new();
        for step in 0..800_u64 {
            let offset = random.usize(0..300_000) % (model.len() + 10_000);
            let len = random.usize(1..40_000);
            match random.u8(0..100) {
                0..35 if offset < model.len() => {
                    let mut map = file.map_write(offset as u64, len).await.expect("maps");
                    assert!(map[..] == model[offset..offset + map.len()], "step {step}");
                    let data = pattern(step, offset as u64, map.len());
                    map.copy_from_slice(&data);
                    if random.u8(0..5) > 0 {
                        let count = map.commit().await.expect("commits");
                        model[offset..offset + count].copy_from_slice(&data);
                    }
                }
                35..55 if offset < model.len() => {
                    let view = file.map_read(offset as u64, len).await.expect("maps");
                    assert!(view[..] == model[offset..offset + view.len()], "step {step}");
                    views.push((view.to_vec(), view));
                    if views.len() > 8 {
                        views.remove(random.usize(0..8));
                    }
                }
                55..65 => {
                    file.set_len(offset as u64).await.expect("truncates");
                    model.resize(offset, 0);
                }
                65..70 => file.sync_data().await.expect("syncs"),
                _ => {
                    let data = pattern(step, offset as u64, len);
                    file.write_at(offset as u64, &data).await.expect("writes");
                    model.resize(model.len().max(offset + len), 0);
                    model[offset..offset + len].copy_from_slice(&data);
                }
            }
            assert!(
                views.iter().all(|(then, now)| then[..] == now[..]),
                "seed {seed}: a view changed, step {step}"
            );
        }
        assert!(content(&file).await == model, "seed {seed}");
        drop((file, views));
        finish(&device, fs).await;
    }
}
