//! Read-ahead: what is read before a reader asks for it, by the counters.

use super::common::*;
use ext4_writeback::{Counters, File, Filesystem};

const SIZE: u64 = 16 << 20;

async fn with_cold_file(work: impl AsyncFnOnce(&Filesystem, &File)) {
    let (device, fs) = mount_image(make_image(48, 4096, &[], 0), options()).await;
    let file = create(&fs, "file").await;
    for at in (0..SIZE).step_by(1 << 20) {
        file.write_at(at, &pattern(1, at, 1 << 20)).await.expect("writes");
    }
    drop(file);
    let image = finish(&device, fs).await;
    let (device, fs) = mount_image(image, options()).await;
    let file = open(&fs, "file").await;
    work(&fs, &file).await;
    drop(file);
    finish(&device, fs).await;
}

async fn read(file: &File, at: u64, len: usize) {
    let mut bytes = vec![0; len];
    assert_eq!(file.read_at(at, &mut bytes).await.expect("reads"), len);
    assert!(bytes == pattern(1, at, len), "at {at}");
}

fn since(fs: &Filesystem, before: &Counters) -> (u64, u64, u64, u64) {
    let now = fs.counters();
    (
        now.read_bios - before.read_bios,
        now.read_ahead_sync - before.read_ahead_sync,
        now.read_ahead_async - before.read_ahead_async,
        now.folios_made - before.folios_made,
    )
}

#[tokio::test]
async fn a_sequential_reader_waits_once_and_gets_large_folios() {
    if !have_e2fsprogs() {
        return;
    }
    with_cold_file(async |fs, file| {
        let before = fs.counters();
        for at in (0..SIZE).step_by(16 << 10) {
            read(file, at, 16 << 10).await;
        }
        let (bios, sync, background, folios) = since(fs, &before);
        assert_eq!(sync, 1, "reads that waited with more behind them");
        assert!((4..=12).contains(&background), "{background} windows in the background");
        assert!(bios <= 40, "{bios} bios for 16 MiB");
        assert!(folios <= 40, "{folios} folios for 16 MiB");
    })
    .await;
}

#[tokio::test]
async fn random_reads_read_nothing_else() {
    if !have_e2fsprogs() {
        return;
    }
    with_cold_file(async |fs, file| {
        let before = fs.counters();
        let mut random = fastrand::Rng::with_seed(3);
        let mut places: Vec<u64> = (1..512).map(|i| i * 32_768).collect();
        random.shuffle(&mut places);
        for at in &places[..200] {
            read(file, *at, 4096).await;
        }
        let (bios, sync, background, folios) = since(fs, &before);
        assert_eq!((bios, sync, background, folios), (200, 0, 0, 200));
    })
    .await;
}

#[tokio::test]
async fn two_readers_of_one_file_are_both_read_ahead_of() {
    if !have_e2fsprogs() {
        return;
    }
    with_cold_file(async |fs, file| {
        let before = fs.counters();
        for i in 0..256 {
            read(file, i * 16_384, 16_384).await;
            read(file, (8 << 20) + i * 16_384, 16_384).await;
        }
        let (bios, ..) = since(fs, &before);
        assert!(bios <= 60, "{bios} bios for 512 reads");
    })
    .await;
}
