//! Data in inodes: files that grow and shrink around the limit with attributes beside them, directories,
//! crashes at every cut, damaged inodes.

use std::sync::Arc;

use ext4_core::InodeNumber;
use ext4_core::device::simulated::Image;
use ext4_core::device::{AlignedBuffer, MemoryDevice};
use ext4_writeback::SeekTarget;
use ext4_writeback::{Credentials, FallocateMode, Filesystem, SetMode};

use crate::common::{
    assert_clean, content, create, have_e2fsprogs, make_image, mount_image, open, options, pattern,
};
use crate::crash::{STALE, quiet, record};
use crate::cuts::at_every_cut;

/// Further arguments of mke2fs: for blocks, and for clusters.
const KINDS: [&[&str]; 2] = [&["-O", "inline_data"], &["-O", "inline_data,bigalloc", "-C", "16384"]];

fn image(block_size: u32, inode_size: u32) -> Image {
    image_of(KINDS[0], block_size, inode_size)
}

fn image_of(kind: &[&str], block_size: u32, inode_size: u32) -> Image {
    let inode_size = inode_size.to_string();
    make_image(16, block_size, &[kind, &["-I", &inode_size]].concat(), 0)
}

async fn remount(device: Arc<MemoryDevice>, fs: Filesystem) -> (Arc<MemoryDevice>, Filesystem) {
    fs.unmount().await.expect("unmounts");
    let image = device.image();
    assert_clean(&image, "after the unmount");
    mount_image(image, options()).await
}

#[tokio::test]
async fn a_small_file_lies_in_its_inode_and_a_large_one_does_not() {
    if !have_e2fsprogs() {
        return;
    }
    let (device, fs) = mount_image(image(4096, 256), options()).await;
    let file = create(&fs, "small").await;
    file.write_at(0, b"sixteen bytes...").await.expect("writes");
    assert_eq!(file.inline_extent().await.expect("tells").expect("is inline").len, 16);
    assert!(file.extents().await.expect("tells").is_empty());
    assert_eq!(file.seek(3, SeekTarget::Data).await.expect("seeks"), Some(3));
    assert_eq!(file.seek(3, SeekTarget::Hole).await.expect("seeks"), Some(16));
    file.write_at(100, b"end").await.expect("writes");
    assert!(file.inline_extent().await.expect("tells").is_some());
    file.write_at(200, b"too far").await.expect("writes");
    assert!(file.inline_extent().await.expect("tells").is_none());
    let mut expected = vec![0; 207];
    expected[..16].copy_from_slice(b"sixteen bytes...");
    expected[100..103].copy_from_slice(b"end");
    expected[200..].copy_from_slice(b"too far");
    assert_eq!(content(&file).await, expected);
    drop(file);
    let (device, fs) = remount(device, fs).await;
    assert_eq!(content(&open(&fs, "small").await).await, expected);
    fs.unmount().await.expect("unmounts");
    assert_clean(&*device, "after the unmount");
}

/// Writes, truncations, syncs, attributes and remounts against a vector of bytes.
#[tokio::test]
async fn files_around_the_limit_agree_with_a_model() {
    if !have_e2fsprogs() {
        return;
    }
    for (seed, block_size, inode_size) in
        [(1, 4096, 256), (2, 1024, 256), (3, 1024, 1024), (4, 4096, 512), (5, 4096, 256), (6, 1024, 512)]
    {
        let kind = KINDS[usize::from(seed > 4)];
        let context = format!("seed {seed}, {kind:?}, blocks of {block_size}, inodes of {inode_size}");
        let mut random = fastrand::Rng::with_seed(seed);
        let (mut device, mut fs) = mount_image(image_of(kind, block_size, inode_size), options()).await;
        let limit = u64::from(inode_size) + 60;
        let names: Vec<String> = (0..6).map(|n| format!("file{n}")).collect();
        let mut models: Vec<Vec<u8>> = vec![Vec::new(); names.len()];
        for name in &names {
            drop(create(&fs, name).await);
        }
        for step in 0..1500 {
            let at = random.usize(0..names.len());
            let (file, model) = (open(&fs, &names[at]).await, &mut models[at]);
            let number = fs.lookup(InodeNumber::ROOT, names[at].as_bytes()).await.expect("is there");
            match random.u32(0..100) {
                0..45 => {
                    let far = if random.u32(0..10) == 0 { 3 * u64::from(block_size) } else { limit };
                    let offset = random.u64(0..=far);
                    let most = if random.bool() { 20 } else { 200 };
                    let len = random.usize(1..=most);
                    let bytes: Vec<u8> = (0..len).map(|_| random.u8(..)).collect();
                    file.write_at(offset, &bytes).await.expect(&context);
                    let end = offset as usize + len;
                    model.resize(model.len().max(end), 0);
                    model[offset as usize..end].copy_from_slice(&bytes);
                }
                45..65 => {
                    let size = if random.u32(0..3) == 0 { 0 } else { random.u64(0..limit) };
                    file.set_len(size).await.expect(&context);
                    model.resize(size as usize, 0);
                }
                65..75 => {
                    let value = vec![b'v'; random.usize(0..80)];
                    let name = format!("user.{}", random.u32(0..3));
                    fs.setxattr(number, name.as_bytes(), &value, SetMode::Any).await.expect(&context);
                }
                75..82 => {
                    let name = format!("user.{}", random.u32(0..3));
                    let _ = fs.removexattr(number, name.as_bytes()).await;
                }
                82..90 => file.sync_all().await.expect(&context),
                90..92 => {
                    fs.unlink(InodeNumber::ROOT, names[at].as_bytes()).await.expect(&context);
                    drop(file);
                    drop(create(&fs, &names[at]).await);
                    models[at].clear();
                    continue;
                }
                92..93 => {
                    drop(file);
                    (device, fs) = remount(device, fs).await;
                    continue;
                }
                _ => {}
            }
            assert_eq!(content(&file).await, models[at], "{context}, step {step}");
        }
        (device, fs) = remount(device, fs).await;
        for (name, model) in names.iter().zip(&models) {
            assert_eq!(&content(&open(&fs, name).await).await, model, "{context}");
        }
        fs.unmount().await.expect("unmounts");
        assert_clean(&*device, "after the unmount");
    }
}

#[tokio::test]
async fn directories_grow_out_of_their_inodes() {
    if !have_e2fsprogs() {
        return;
    }
    for (kind, block_size, inode_size) in
        [(KINDS[0], 4096, 256), (KINDS[0], 1024, 1024), (KINDS[1], 4096, 256), (KINDS[1], 1024, 512)]
    {
        let (device, fs) = mount_image(image_of(kind, block_size, inode_size), options()).await;
        let owner = Credentials { mode: 0o755, ..Credentials::default() };
        let (mut dirs, mut names) = (Vec::new(), Vec::new());
        for n in 0..4 {
            dirs.push(fs.mkdir(InodeNumber::ROOT, format!("d{n}").as_bytes(), owner).await.expect("makes"));
            names.push(std::collections::BTreeSet::<String>::new());
        }
        let mut random = fastrand::Rng::with_seed(7);
        for step in 0..600 {
            let d = random.usize(0..dirs.len());
            let name = format!("{:0w$}", random.u32(0..if d == 0 { 200 } else { 8 }), w = d * 3 + 2);
            if names[d].remove(&name) {
                if random.bool() {
                    let to = random.usize(0..dirs.len());
                    let target = format!("m{step}");
                    let flags = ext4_writeback::RenameFlags::default();
                    fs.rename((dirs[d], name.as_bytes()), (dirs[to], target.as_bytes()), flags)
                        .await
                        .expect("moves");
                    fs.rmdir(dirs[to], target.as_bytes()).await.expect("removes");
                } else {
                    fs.rmdir(dirs[d], name.as_bytes()).await.expect("removes");
                }
            } else {
                fs.mkdir(dirs[d], name.as_bytes(), owner).await.expect("makes");
                names[d].insert(name);
            }
            if step % 200 == 199 {
                fs.sync().await.expect("syncs");
            }
        }
        let (device, fs) = remount(device, fs).await;
        for (dir, names) in dirs.iter().zip(&names) {
            let mut found = Vec::new();
            let mut position = 0;
            loop {
                let entries = fs.readdir(*dir, position, 3).await.expect("lists");
                let Some(last) = entries.last() else { break };
                position = last.next;
                found.extend(entries.into_iter().map(|entry| String::from_utf8(entry.name).expect("digits")));
            }
            let listed: std::collections::BTreeSet<String> = found.iter().cloned().collect();
            let mut expected = names.clone();
            expected.extend([".".to_owned(), "..".to_owned()]);
            assert_eq!(listed, expected);
        }
        let flags = ext4_writeback::RenameFlags::default();
        if names[1].is_empty() {
            fs.mkdir(dirs[1], b"left", owner).await.expect("makes");
        }
        let (moved, _) = {
            let entry = fs.readdir(dirs[1], 0, 10).await.expect("lists").pop().expect("has one");
            (entry.name, entry.inode)
        };
        fs.rename((dirs[1], &moved), (dirs[2], b"moved"), flags).await.expect("moves");
        let child = fs.lookup(dirs[2], b"moved").await.expect("is there");
        assert_eq!(fs.lookup(child, b"..").await.expect("has a parent"), dirs[2]);
        fs.unmount().await.expect("unmounts");
        assert_clean(&*device, "after the unmount");
    }
}

/// At each cut: what was synced is there, and nothing is there that never was.
#[tokio::test]
async fn g_01_g_11_a_crash_leaves_inline_data_as_before_or_after() {
    if !have_e2fsprogs() {
        return;
    }
    for kind in KINDS {
        crash_at_every_cut(kind).await;
    }
}

async fn crash_at_every_cut(kind: &[&str]) {
    const SIZES: [(usize, u8); 7] = [(50, 1), (120, 3), (30, 5), (900, 7), (0, 9), (100, 11), (2000, 13)];
    let mut states = vec![Vec::new()];
    for (size, byte) in SIZES {
        let mut state: Vec<u8> = states.last().cloned().unwrap_or_default();
        state.resize(size, byte);
        states.push(state);
    }
    let start = make_image(16, 1024, &[kind, &["-I", "256", "-J", "size=4"]].concat(), STALE);
    let recording = record(start, Some(3), quiet(), |device, fs| {
        let states = states.clone();
        async move {
            let file = create(&fs, "file").await;
            for (n, state) in states.iter().enumerate().skip(1) {
                let old = states[n - 1].len();
                if state.len() < old {
                    file.set_len(state.len() as u64).await.expect("cuts");
                } else {
                    file.write_at(old as u64, &state[old..]).await.expect("writes");
                }
                file.sync_all().await.expect("syncs");
                device.mark(format!("synced{n}"));
            }
        }
    })
    .await;
    at_every_cut(&recording, 120, "file", |passed, bytes| {
        let synced = (1..states.len()).rev().find(|n| passed(&format!("synced{n}"))).unwrap_or(0);
        let Some(bytes) = bytes else {
            assert_eq!(synced, 0, "a file that was synced is gone");
            return;
        };
        let next = states.get(synced + 1).unwrap_or(&states[synced]);
        // What is being appended may be there in part: a prefix of whole blocks.
        let between = next.starts_with(bytes) && bytes.starts_with(&states[synced]);
        assert!(
            bytes == states[synced] || bytes == *next || between,
            "after {synced} syncs: {} bytes that were never there",
            bytes.len()
        );
    })
    .await;
}

/// One bit of an inode wrong, with no checksum to tell: an error or an answer, never a panic.
#[tokio::test]
async fn damaged_inline_inodes_do_no_harm() {
    if !have_e2fsprogs() {
        return;
    }
    let image = make_image(8, 1024, &["-O", "inline_data,^metadata_csum", "-I", "256"], 0);
    let (device, fs) = mount_image(image, options()).await;
    let owner = Credentials { mode: 0o755, ..Credentials::default() };
    let file = create(&fs, "file").await;
    file.write_at(0, &[7; 100]).await.expect("writes");
    let at = file.inline_extent().await.expect("tells").expect("is inline").physical - 40;
    drop(file);
    let dir = fs.mkdir(InodeNumber::ROOT, b"dir", owner).await.expect("makes");
    for n in 0..6 {
        fs.mkdir(dir, format!("name{n}").as_bytes(), owner).await.expect("makes");
    }
    fs.unmount().await.expect("unmounts");
    let image = device.image();
    for inode in 0..2_u64 {
        for bit in 0..256 * 8 {
            let mut bytes = image.to_vec();
            bytes[(at + inode * 256) as usize + bit / 8] ^= 1 << (bit % 8);
            let (_, fs) = mount_image(Image::from(&bytes[..]), options()).await;
            if inode == 0 {
                if let Ok(number) = fs.lookup(InodeNumber::ROOT, b"file").await
                    && let Ok(file) = fs.open(number).await
                {
                    let mut buffer = [0; 300];
                    let _ = file.read_at(0, &mut buffer).await;
                    let _ = file.write_at(50, b"x").await;
                    let _ = file.write_at(90, &[1; 200]).await;
                    let _ = file.set_len(10).await;
                }
            } else {
                let _ = fs.readdir(dir, 0, 100).await;
                let _ = fs.lookup(dir, b"name3").await;
                let _ = fs.rmdir(dir, b"name3").await;
                for n in 0..12 {
                    let _ = fs.mkdir(dir, format!("other{n}").as_bytes(), owner).await;
                }
            }
            let _ = fs.unmount().await;
        }
    }
}

/// Fallocate, stores and direct I/O find blocks under the data, or move it there.
#[tokio::test]
async fn what_needs_blocks_moves_the_data_out() {
    if !have_e2fsprogs() {
        return;
    }
    for kind in KINDS {
        needs_blocks(kind).await;
    }
}

async fn needs_blocks(kind: &[&str]) {
    let (device, fs) = mount_image(image_of(kind, 1024, 256), options()).await;
    let modes = [
        FallocateMode::Allocate,
        FallocateMode::AllocateKeepSize,
        FallocateMode::PunchHole,
        FallocateMode::ZeroRange,
        FallocateMode::ZeroRangeKeepSize,
    ];
    for (n, mode) in modes.into_iter().enumerate() {
        let file = create(&fs, &format!("fallocate{n}")).await;
        file.write_at(0, &[9; 100]).await.expect("writes");
        file.fallocate(mode, 40, 20).await.expect("does");
        assert!(file.inline_extent().await.expect("tells").is_none(), "{mode:?}");
        let zeroed = !matches!(mode, FallocateMode::Allocate | FallocateMode::AllocateKeepSize);
        let mut expected = vec![9; 100];
        if zeroed {
            expected[40..60].fill(0);
        }
        assert_eq!(content(&file).await, expected, "{mode:?}");
    }
    let file = create(&fs, "stored").await;
    file.write_at(0, &[5; 100]).await.expect("writes");
    assert_eq!(&*file.map_read(10, 50).await.expect("maps"), &[5; 50]);
    let mut mapped = file.map_write(20, 1000).await.expect("maps");
    assert_eq!(mapped.len(), 80);
    mapped[..3].copy_from_slice(b"abc");
    assert_eq!(mapped.commit().await.expect("stores"), 80);
    let mut expected = vec![5; 100];
    expected[20..23].copy_from_slice(b"abc");
    assert_eq!(content(&file).await, expected);
    drop(file);
    let file = create(&fs, "direct").await;
    file.write_at(0, &[3; 100]).await.expect("writes");
    let (count, read) = file.read_direct(0, AlignedBuffer::zeroed(512).expect("memory")).await;
    assert_eq!((count.expect("reads"), &read[..100]), (100, &[3; 100][..]));
    let (count, _) = file.write_direct(512, AlignedBuffer::copied(&[7; 512]).expect("memory")).await;
    assert_eq!(count.expect("writes"), 512);
    expected = [vec![3; 100], vec![0; 412], vec![7; 512]].concat();
    assert_eq!(content(&file).await, expected);
    drop(file);
    let (device, fs) = remount(device, fs).await;
    assert_eq!(content(&open(&fs, "direct").await).await, expected);
    fs.unmount().await.expect("unmounts");
    assert_clean(&*device, "after the unmount");
}

/// Data that moves out takes one cluster; what is written to the cluster's other blocks afterwards takes
/// none.
#[tokio::test]
async fn data_that_moves_out_takes_one_cluster() {
    if !have_e2fsprogs() {
        return;
    }
    for block_size in [1024, 4096] {
        let (device, fs) = mount_image(image_of(KINDS[1], block_size, 256), quiet()).await;
        let file = create(&fs, "file").await;
        file.write_at(0, &[9; 100]).await.expect("writes");
        fs.sync().await.expect("syncs");
        let start = fs.statfs().free_blocks;
        let used = |what: &'static str, clusters: u64| {
            let (fs, file) = (&fs, &file);
            async move {
                let blocks = 16384 / u64::from(block_size);
                assert_eq!(start - fs.statfs().free_blocks, clusters * blocks, "{what}: statfs");
                let sectors = file.metadata().await.expect("stat").sectors;
                let inline = file.inline_extent().await.expect("tells").is_some();
                assert_eq!(sectors, if inline { 1 } else { clusters * 32 }, "{what}: stat");
            }
        };
        used("inline", 0).await;
        file.write_at(100, &[9; 400]).await.expect("writes");
        used("moved out", 1).await;
        let block = u64::from(block_size);
        file.write_at(2 * block, &pattern(3, 2 * block, block_size as usize)).await.expect("writes");
        used("another block of the cluster, delayed", 1).await;
        file.sync_all().await.expect("syncs");
        used("and written", 1).await;
        file.write_at(16384, &[9; 10]).await.expect("writes");
        used("the next cluster", 2).await;
        let mut expected = vec![0; 16394];
        expected[..500].fill(9);
        let at = 2 * block as usize;
        expected[at..at + block_size as usize].copy_from_slice(&pattern(3, 2 * block, block_size as usize));
        expected[16384..].fill(9);
        assert!(content(&file).await == expected);
        file.set_len(0).await.expect("cuts");
        fs.sync().await.expect("syncs");
        used("cut to nothing", 0).await;
        file.write_at(0, &[7; 90]).await.expect("writes");
        used("inline again", 0).await;
        drop(file);
        let (device, fs) = remount(device, fs).await;
        assert_eq!(content(&open(&fs, "file").await).await, [7; 90]);
        fs.unmount().await.expect("unmounts");
        assert_clean(&*device, "after the unmount");
    }
}

/// The inline extent names the bytes of the device that hold the data: `i_block`, then the value of
/// `system.data`.
#[tokio::test]
async fn an_inline_extent_says_where_the_bytes_lie() {
    if !have_e2fsprogs() {
        return;
    }
    let (device, fs) = mount_image(image(4096, 512), options()).await;
    let number = {
        let file = create(&fs, "file").await;
        file.write_at(0, &pattern(5, 0, 60)).await.expect("writes");
        assert_eq!(file.inline_extent().await.expect("tells").expect("is inline").rest, None);
        file.write_at(60, &pattern(5, 60, 101)).await.expect("writes");
        fs.lookup(InodeNumber::ROOT, b"file").await.expect("is there")
    };
    // Attributes lie before and behind it.
    fs.setxattr(number, b"user.a", b"value", SetMode::Any).await.expect("sets");
    let owner = Credentials { mode: 0o755, ..Credentials::default() };
    let dir = fs.mkdir(InodeNumber::ROOT, b"dir", owner).await.expect("makes");
    fs.mkdir(dir, b"below", owner).await.expect("makes");
    let (device, fs) = remount(device, fs).await;
    let extent = fs.inline_extent(number).await.expect("tells").expect("is inline");
    assert_eq!(extent.len, 161);
    let on_device = |at: u64, len: usize| {
        let mut bytes = vec![0; len];
        device.image().read(at, &mut bytes);
        bytes
    };
    assert_eq!(on_device(extent.physical, 60), pattern(5, 0, 60));
    assert_eq!(on_device(extent.rest.expect("has more"), 101), pattern(5, 60, 101));
    let extent = fs.inline_extent(dir).await.expect("tells").expect("is inline");
    // The parent's number, then an entry: inode, length, length of the name, type, name.
    assert_eq!(on_device(extent.physical, 4), 2_u32.to_le_bytes());
    assert_eq!(on_device(extent.physical + 12, 5), b"below");
    let large = create(&fs, "large").await;
    large.write_at(0, &[1; 1000]).await.expect("writes");
    drop(large);
    let large = fs.lookup(InodeNumber::ROOT, b"large").await.expect("is there");
    assert_eq!(fs.inline_extent(large).await.expect("tells"), None);
    fs.unmount().await.expect("unmounts");
    assert_clean(&*device, "after the unmount");
}
