//! Folio memory and its reclaim: which folios stay in the page cache when memory is short, and that a writer
//! always gets some.

use super::common::*;
use ext4_writeback::File;

/// Writes a file and drops it from memory by a remount.
async fn write_file(file: &File, seed: u64, len: usize) {
    for at in (0..len).step_by(1 << 20) {
        file.write_at(at as u64, &pattern(seed, at as u64, (len - at).min(1 << 20))).await.expect("writes");
    }
}

/// Reads `pages` pages of 4 KiB anywhere in the first `len` bytes; returns how many reads the device saw.
async fn read_anywhere(
    fs: &ext4_writeback::Filesystem,
    file: &File,
    random: &mut fastrand::Rng,
    len: u64,
) -> u64 {
    let before = fs.counters().read_bios;
    let mut bytes = [0; 4096];
    for _ in 0..len / 4096 * 2 {
        let at = random.u64(0..len / 4096) * 4096;
        assert_eq!(file.read_at(at, &mut bytes).await.expect("reads"), 4096);
    }
    fs.counters().read_bios - before
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_sequential_read_or_write_leaves_a_working_set_in_memory() {
    if !have_e2fsprogs() {
        return;
    }
    const HOT: u64 = 8 << 20;
    const COLD: usize = 96 << 20;
    let (device, fs) = mount_image(make_image(300, 4096, &[], 0), options()).await;
    for (name, seed, len) in [("hot", 1, HOT as usize), ("cold", 2, COLD)] {
        let file = create(&fs, name).await;
        write_file(&file, seed, len).await;
        file.sync_all().await.expect("syncs");
    }
    let image = finish(&device, fs).await;
    for (unit, write) in [(1 << 20, false), (4096, false), (64 << 10, true)] {
        let options = options().cache(32 << 20);
        let (device, fs) = mount_image(image.clone(), options).await;
        let hot = open(&fs, "hot").await;
        let mut random = fastrand::Rng::with_seed(5);
        let first = read_anywhere(&fs, &hot, &mut random, HOT).await;
        let second = read_anywhere(&fs, &hot, &mut random, HOT).await;
        if write {
            let file = create(&fs, "new").await;
            let data = pattern(3, 0, unit);
            for at in (0..COLD).step_by(unit) {
                file.write_at(at as u64, &data).await.expect("writes");
            }
        } else {
            let cold = open(&fs, "cold").await;
            let mut bytes = vec![0; unit];
            for at in (0..COLD).step_by(unit) {
                cold.read_at(at as u64, &mut bytes).await.expect("reads");
            }
        }
        let after = read_anywhere(&fs, &hot, &mut random, HOT).await;
        println!(
            "unit {unit} write {write}: device reads of the working set {first}, {second}, after {after}"
        );
        assert!(after * 4 <= first, "unit {unit} write {write}: {after} of {first} reads again");
        drop(hot);
        finish(&device, fs).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_in_small_pieces_makes_folios_small_and_nothing_fail() {
    if !have_e2fsprogs() {
        return;
    }
    const LEN: u64 = 48 << 20;
    // Three quarters are for data: nearly all of the one region of 32 MiB that the pool takes.
    let options = options().cache(42 << 20);
    let (device, fs) = mount_image(make_image(200, 4096, &[], 0), options).await;
    let (pages, long) = (create(&fs, "pages").await, create(&fs, "long").await);
    let mut random = fastrand::Rng::with_seed(8);
    let mut model = vec![0; LEN as usize];
    pages.set_len(LEN).await.expect("extends");
    // All of memory in pages, in no order, some of them used again and again; then long writes and reads
    // among them.
    for round in 0..6_u64 {
        for _ in 0..4000 {
            let at = random.u64(0..LEN / 4096) * 4096;
            let data = pattern(round, at, 4096);
            pages.write_at(at, &data).await.expect("writes");
            model[at as usize..][..4096].copy_from_slice(&data);
            let at = random.u64(0..LEN / 16384) * 4096;
            let mut bytes = [0; 4096];
            pages.read_at(at, &mut bytes).await.expect("reads");
            assert!(bytes == model[at as usize..][..4096], "round {round} at {at}");
        }
        let data = pattern(round, 0, 8 << 20);
        long.write_at(round * (8 << 20), &data).await.expect("writes");
        let mut bytes = vec![0; 8 << 20];
        long.read_at(round * (8 << 20), &mut bytes).await.expect("reads");
        assert!(bytes == data, "round {round}");
    }
    let counters = fs.counters();
    println!("{counters:?}");
    assert!(
        counters.shorter_folios > 0 && counters.reclaimed_bytes > 0,
        "memory was not short: {counters:?}"
    );
    assert!(content(&pages).await == model);
    drop((pages, long));
    finish(&device, fs).await;
}
