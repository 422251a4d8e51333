//! Directories on file systems that mke2fs made: against a model, to the limits of the index, damaged; judged
//! by e2fsck and debugfs.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Instant;

use crate::fixture::Fixture;
use ext4_core::format::inode::{FileType, Inode, InodeFlags};
use ext4_core::meta::directory::{self, add, is_empty, lookup, read, remove, replace};
use ext4_core::{Errno, InodeNumber};
use ext4_test_support::tools::{mke2fs_content, run_if_there};

/// The most links a file can have.
const MAX_LINKS: u16 = 65_000;

/// All names in steps of `step`.
async fn list(fixture: &Fixture, directory: &Inode, step: usize) -> Vec<(Vec<u8>, InodeNumber)> {
    let (mut position, mut names) = (0, Vec::new());
    loop {
        let entries = read(&fixture.info, directory, position, step).await.unwrap();
        let Some(last) = entries.last() else { return names };
        assert!(last.next > position, "a position goes on");
        position = last.next;
        names.extend(entries.into_iter().map(|entry| (entry.name, entry.inode)));
    }
}

/// Runs one debugfs request on an image.
fn debugfs(content: &[u8], request: &str) -> Option<String> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), content).unwrap();
    run_if_there(Command::new("debugfs").args(["-R", request]).arg(file.path()))
}

#[tokio::test]
async fn two_hundred_thousand_names_cost_the_same_each() {
    let Some(fixture) = Fixture::new("64M", &["-b", "4096"]).await else { return };
    let mut directory = fixture.make_directory(b"many").await;
    let mut files = Vec::new();
    for _ in 0..4 {
        files.push(fixture.new_inode(FileType::Regular).await);
    }
    let name = |i: usize| format!("file-number-{i:06}.txt").into_bytes();
    let (count, chunk) = (200_000, 25_000);
    let mut times = Vec::new();
    for first in (0..count).step_by(chunk) {
        let start = Instant::now();
        for i in first..first + chunk {
            fixture.add(&mut directory, &name(i), &files[i % 4]).await;
            files[i % 4].links_count += 1;
        }
        times.push(start.elapsed() / u32::try_from(chunk).unwrap());
    }
    println!("time of an addition, by {chunk} names: {times:?}");
    assert!(files.iter().all(|file| file.links_count < MAX_LINKS));
    for inode in files.iter().chain([&directory]) {
        fixture.write_inode(inode).await;
    }
    let start = Instant::now();
    for i in 0..count {
        let found = lookup(&fixture.info, &directory, &name(i)).await.unwrap();
        assert_eq!(found, Some((files[i % 4].number, Some(FileType::Regular))), "name {i}");
    }
    println!("time of a lookup: {:?}", start.elapsed() / u32::try_from(count).unwrap());
    assert_eq!(lookup(&fixture.info, &directory, b"file-number-200000.txt").await.unwrap(), None);
    assert_eq!(list(&fixture, &directory, 1000).await.len(), count + 2);
    let content = fixture.check("200,000 names").await;
    if let Some(dump) = debugfs(&content, "htree_dump /many") {
        assert!(dump.contains("Indirect levels: 1"), "{}", &dump[..dump.len().min(2000)]);
    }

    for i in (0..count).step_by(2) {
        assert_eq!(
            remove(&fixture.info, &fixture.transaction, &mut directory, &name(i)).await.unwrap(),
            files[i % 4].number
        );
        files[i % 4].links_count -= 1;
    }
    for file in &mut files {
        file.dtime = if file.links_count == 0 { 1 } else { 0 };
        fixture.write_inode(file).await;
    }
    for i in 0..1000 {
        let found = lookup(&fixture.info, &directory, &name(i)).await.unwrap();
        assert_eq!(found.is_some(), i % 2 == 1);
    }
}

const LAYOUTS: &[(&str, &[&str])] = &[
    ("16M", &["-b", "1024"]),
    ("32M", &["-b", "2048", "-O", "metadata_csum_seed,orphan_file"]),
    ("32M", &["-b", "4096"]),
    ("16M", &["-b", "1024", "-O", "^metadata_csum,uninit_bg"]),
    ("16M", &["-b", "1024", "-O", "^filetype"]),
    ("256M", &["-b", "65536", "-O", "^has_journal"]),
    ("16M", &["-b", "1024", "-O", "^dir_index"]),
    ("32M", &["-b", "1024", "-O", "large_dir,^has_journal"]),
];

/// A name of the model: long and short ones, with bytes over 127.
fn model_name(random: &mut fastrand::Rng) -> Vec<u8> {
    let which = random.u32(0..700);
    let mut own = fastrand::Rng::with_seed(u64::from(which));
    let len = if own.u8(..) < 40 { own.usize(150..=255) } else { own.usize(1..40) };
    let mut name: Vec<u8> = (0..len).map(|_| own.u8(1..)).map(|b| if b == b'/' { b'_' } else { b }).collect();
    if matches!(name.as_slice(), b"." | b"..") {
        name.push(b'x');
    }
    name
}

#[tokio::test]
async fn random_names_come_and_go_as_in_a_map() {
    for (size, options) in LAYOUTS {
        let Some(fixture) = Fixture::new(size, options).await else { return };
        let (info, transaction) = (&fixture.info, &fixture.transaction);
        let mut random = fastrand::Rng::with_seed(11);
        let mut directory = fixture.make_directory(b"model").await;
        let mut files = [fixture.new_inode(FileType::Regular).await, fixture.new_inode(FileType::Fifo).await];
        files[1].flags.remove(InodeFlags::EXTENTS);
        files[1].i_block = [0; 60];
        let mut model: BTreeMap<Vec<u8>, usize> = BTreeMap::new();
        for step in 0..6000 {
            let name = model_name(&mut random);
            let which = random.usize(0..2);
            let (number, kind) = (files[which].number, files[which].file_type().unwrap());
            let known = model.get(&name).copied();
            let found = lookup(info, &directory, &name).await.unwrap();
            assert_eq!(found.map(|(inode, _)| inode), known.map(|which| files[which].number));
            match (random.u8(0..10), known) {
                (0..=5, None) => {
                    add(info, transaction, &mut directory, &name, number, kind).await.unwrap();
                    model.insert(name, which);
                }
                (6..=8, Some(which)) => {
                    let removed = remove(info, transaction, &mut directory, &name).await.unwrap();
                    assert_eq!(removed, files[which].number);
                    model.remove(&name);
                }
                (9, Some(_)) => {
                    replace(info, transaction, &mut directory, &name, number, kind).await.unwrap();
                    model.insert(name, which);
                }
                (6..=9, None) => {
                    let error = remove(info, transaction, &mut directory, &name).await.unwrap_err();
                    assert_eq!(error.errno(), Errno::ENOENT);
                }
                _ => {}
            }
            assert_eq!(is_empty(info, &directory).await.unwrap(), model.is_empty());
            if step % 2000 == 1999 {
                let mut names = list(&fixture, &directory, 1 + random.usize(..50)).await;
                assert_eq!(
                    (names[0].0.as_slice(), names[1].0.as_slice()),
                    (b".".as_slice(), b"..".as_slice())
                );
                names.drain(..2);
                let names: BTreeMap<_, _> = names.into_iter().collect();
                let expected: BTreeMap<_, _> =
                    model.iter().map(|(name, which)| (name.clone(), files[*which].number)).collect();
                assert_eq!(names, expected);
                for (which, file) in files.iter_mut().enumerate() {
                    file.links_count =
                        u16::try_from(model.values().filter(|other| **other == which).count()).unwrap();
                    fixture.write_inode(file).await;
                }
                fixture.write_inode(&directory).await;
                fixture.check(&format!("{options:?}, step {step}")).await;
            }
        }
        let hashed =
            !options.contains(&"^dir_index") && directory.size > u64::from(info.block_size().bytes());
        assert_eq!(directory.flags.contains(InodeFlags::INDEX), hashed);
    }
}

#[tokio::test]
async fn every_hash_of_the_superblock_is_used() {
    for (algorithm, flags) in [("legacy", 1), ("tea", 1), ("half_md4", 2), ("legacy", 2), ("tea", 2)] {
        let Some(content) = mke2fs_content("8M", &["-b", "1024"]) else { return };
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        let path = file.path();
        run_if_there(Command::new("tune2fs").args(["-E", &format!("hash_alg={algorithm}")]).arg(path));
        run_if_there(Command::new("debugfs").args(["-w", "-R", &format!("ssv flags {flags}")]).arg(path));
        let fixture = Fixture::open(std::fs::read(path).unwrap()).await;
        let mut directory = fixture.make_directory(b"hashed").await;
        let mut inode = fixture.new_inode(FileType::Regular).await;
        let mut random = fastrand::Rng::with_seed(3);
        for i in 0..2000 {
            let mut name = format!("{i}-").into_bytes();
            name.extend((0..random.usize(1..30)).map(|_| random.u8(128..)));
            fixture.add(&mut directory, &name, &inode).await;
            inode.links_count += 1;
        }
        fixture.write_inode(&inode).await;
        fixture.write_inode(&directory).await;
        let content = fixture.check(&format!("{algorithm}, flags {flags}")).await;
        let Some(dump) = debugfs(&content, "htree_dump /hashed") else { return };
        assert!(dump.contains("Root node dump"), "{}", &dump[..dump.len().min(500)]);
    }
}

#[tokio::test]
async fn a_third_level_comes_with_large_directories_only() {
    for large in [false, true] {
        let feature = if large { "large_dir,^has_journal" } else { "^large_dir,^has_journal" };
        let Some(fixture) = Fixture::new("80M", &["-b", "1024", "-O", feature]).await else { return };
        let mut directory = fixture.make_directory(b"deep").await;
        let mut inode = fixture.new_inode(FileType::Regular).await;
        let mut failed = None;
        for i in 0..60_000_u32 {
            let name = format!("{i:0240}").into_bytes();
            let kind = FileType::Regular;
            match add(&fixture.info, &fixture.transaction, &mut directory, &name, inode.number, kind).await {
                Ok(()) => inode.links_count += 1,
                Err(error) => {
                    failed = Some((i, error));
                    break;
                }
            }
        }
        match &failed {
            Some((_, error)) => assert_eq!(error.errno(), Errno::ENOSPC),
            None => assert!(large, "two levels cannot hold that"),
        }
        println!("large_dir {large}: {failed:?}, {} blocks", directory.size >> 10);
        fixture.write_inode(&inode).await;
        fixture.write_inode(&directory).await;
        let content = fixture.check(&format!("large_dir {large}")).await;
        let levels = if large { "Indirect levels: 2" } else { "Indirect levels: 1" };
        if let Some(dump) = debugfs(&content, "htree_dump /deep") {
            assert!(dump.contains(levels), "{}", &dump[..dump.len().min(500)]);
        }
        for i in (0..u32::from(inode.links_count)).step_by(7) {
            let name = format!("{i:0240}").into_bytes();
            assert!(lookup(&fixture.info, &directory, &name).await.unwrap().is_some(), "{i}");
        }
    }
}

#[tokio::test]
async fn names_with_one_hash_go_on_in_the_next_leaf() {
    let Some(content) = mke2fs_content("8M", &["-b", "1024"]) else { return };
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), content).unwrap();
    run_if_there(Command::new("tune2fs").args(["-E", "hash_alg=legacy"]).arg(file.path()));
    let fixture = Fixture::open(std::fs::read(file.path()).unwrap()).await;
    let mut directory = fixture.make_directory(b"one").await;
    let mut inode = fixture.new_inode(FileType::Regular).await;
    let names = colliding_names(60);
    for name in &names {
        fixture.add(&mut directory, name, &inode).await;
        inode.links_count += 1;
    }
    assert!(directory.flags.contains(InodeFlags::INDEX) && directory.size > 4096);
    for name in &names {
        assert!(lookup(&fixture.info, &directory, name).await.unwrap().is_some());
    }
    fixture.write_inode(&inode).await;
    fixture.write_inode(&directory).await;
    let content = fixture.check("one hash").await;
    if let Some(dump) = debugfs(&content, "htree_dump /one") {
        let keys = dump.lines().filter_map(|line| line.split_once("Hash 0x")?.1.get(..8));
        let continued = keys.filter(|key| u32::from_str_radix(key, 16).unwrap() & 1 == 1).count();
        assert!(continued > 0, "no hash goes on in the next leaf:\n{dump}");
    }
    for name in &names {
        remove(&fixture.info, &fixture.transaction, &mut directory, name).await.unwrap();
    }
    assert!(is_empty(&fixture.info, &directory).await.unwrap());
}

/// Long names of which two or more have the same legacy hash each; so few fit into a leaf that some pair is
/// split.
fn colliding_names(count: usize) -> Vec<Vec<u8>> {
    use ext4_core::format::hash::{HashVersion, Hasher};
    let hasher = Hasher::new(HashVersion::Legacy, [1; 4]);
    let mut by_hash: BTreeMap<u32, Vec<Vec<u8>>> = BTreeMap::new();
    let mut random = fastrand::Rng::with_seed(9);
    // So many hashes of 31 bits that some dozens of them come twice.
    while by_hash.len() < 400_000 {
        let name: Vec<u8> = (0..6).map(|_| random.alphanumeric() as u8).chain([b'-'; 240]).collect();
        let names = by_hash.entry(hasher.hash(&name).major).or_default();
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let mut groups: Vec<_> = by_hash.into_values().filter(|names| names.len() > 1).collect();
    groups.sort_by_key(|names| std::cmp::Reverse(names.len()));
    groups.into_iter().flatten().take(count).collect()
}

#[tokio::test]
async fn a_reader_in_the_midst_misses_nothing_while_names_are_added() {
    let Some(fixture) = Fixture::new("16M", &["-b", "1024"]).await else { return };
    let mut directory = fixture.make_directory(b"read").await;
    let inode = fixture.new_inode(FileType::Regular).await;
    let old: Vec<Vec<u8>> = (0..300).map(|i| format!("old-{i}").into_bytes()).collect();
    for name in &old {
        fixture.add(&mut directory, name, &inode).await;
    }
    let (mut position, mut seen, mut added) = (0, std::collections::BTreeSet::new(), 0);
    loop {
        let entries = read(&fixture.info, &directory, position, 7).await.unwrap();
        let Some(last) = entries.last() else { break };
        position = last.next;
        seen.extend(entries.into_iter().map(|entry| entry.name));
        for _ in 0..30 {
            if added < 3000 {
                let name = format!("new-{added}-{}", "x".repeat(added % 90)).into_bytes();
                fixture.add(&mut directory, &name, &inode).await;
                added += 1;
            }
        }
    }
    assert!(old.iter().all(|name| seen.contains(name)));
}

#[tokio::test]
async fn the_parent_of_a_directory_is_replaced_in_leaf_and_root() {
    let Some(fixture) = Fixture::new("8M", &["-b", "1024"]).await else { return };
    let (info, transaction) = (&fixture.info, &fixture.transaction);
    for names in [0_usize, 500] {
        let mut directory = fixture.make_directory(format!("d{names}").as_bytes()).await;
        let mut inode = fixture.new_inode(FileType::Regular).await;
        for i in 0..names {
            fixture.add(&mut directory, format!("name-{i}").as_bytes(), &inode).await;
            inode.links_count += 1;
        }
        if names == 0 {
            fixture.add(&mut directory, b"only", &inode).await;
            inode.links_count += 1;
        }
        fixture.write_inode(&inode).await;
        fixture.write_inode(&directory).await;
        let kind = FileType::Directory;
        assert_eq!(lookup(info, &directory, b"..").await.unwrap(), Some((InodeNumber::ROOT, Some(kind))));
        let own = directory.number;
        replace(info, transaction, &mut directory, b"..", own, kind).await.unwrap();
        assert_eq!(lookup(info, &directory, b"..").await.unwrap(), Some((own, Some(kind))));
        replace(info, transaction, &mut directory, b"..", InodeNumber::ROOT, kind).await.unwrap();
        assert!(!is_empty(info, &directory).await.unwrap());
    }
    fixture.check("parents").await;
}

#[tokio::test]
async fn what_is_no_name_is_refused() {
    let Some(fixture) = Fixture::new("8M", &[]).await else { return };
    let (info, transaction) = (&fixture.info, &fixture.transaction);
    let mut root = fixture.read_inode(InodeNumber::ROOT).await;
    let long = [b'x'; 256];
    for (name, errno) in [
        (b"".as_slice(), Errno::EINVAL),
        (b"a/b", Errno::EINVAL),
        (b"a\0b", Errno::EINVAL),
        (&long, Errno::ENAMETOOLONG),
    ] {
        assert_eq!(lookup(info, &root, name).await.unwrap_err().errno(), errno);
        let added = add(info, transaction, &mut root, name, InodeNumber(12), FileType::Regular).await;
        assert_eq!(added.unwrap_err().errno(), errno);
        assert_eq!(remove(info, transaction, &mut root, name).await.unwrap_err().errno(), errno);
    }
    let error = remove(info, transaction, &mut root, b"..").await.unwrap_err();
    assert_eq!(error.errno(), Errno::EINVAL);
    let file = fixture.new_inode(FileType::Regular).await;
    assert_eq!(lookup(info, &file, b"a").await.unwrap_err().errno(), Errno::ENOTDIR);
}

#[tokio::test]
async fn a_full_device_leaves_a_whole_directory() {
    let Some(fixture) = Fixture::new("2M", &["-b", "1024", "-O", "^has_journal", "-m", "0"]).await else {
        return;
    };
    let mut directory = fixture.make_directory(b"full").await;
    let mut inode = fixture.new_inode(FileType::Regular).await;
    let mut count = 0_u32;
    let error = loop {
        let name = format!("{count:0200}").into_bytes();
        let kind = FileType::Regular;
        match add(&fixture.info, &fixture.transaction, &mut directory, &name, inode.number, kind).await {
            Ok(()) => count += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(error.errno(), Errno::ENOSPC);
    inode.links_count = u16::try_from(count).unwrap();
    fixture.write_inode(&inode).await;
    fixture.write_inode(&directory).await;
    fixture.check("full").await;
    assert_eq!(list(&fixture, &directory, 100).await.len(), count as usize + 2);
}

#[tokio::test]
async fn directories_without_extents_grow_through_blocks_of_pointers() {
    for (size, options) in [("16M", "^extents,^64bit"), ("3M", "^extents,^64bit,^has_journal")] {
        let Some(fixture) = Fixture::new(size, &["-b", "1024", "-m", "0", "-O", options]).await else {
            return;
        };
        let mut directory = fixture.make_directory(b"old").await;
        let mut inode = fixture.new_inode(FileType::Regular).await;
        let mut count = 0_u32;
        // 12 blocks in the inode, 256 below one pointer, then blocks of blocks of pointers.
        while count < 20_000 {
            let name = format!("{count:0200}").into_bytes();
            let kind = FileType::Regular;
            match add(&fixture.info, &fixture.transaction, &mut directory, &name, inode.number, kind).await {
                Ok(()) => count += 1,
                Err(error) => {
                    assert_eq!((error.errno(), size), (Errno::ENOSPC, "3M"), "{error}");
                    break;
                }
            }
        }
        assert!(directory.size > 300 << 10);
        inode.links_count = u16::try_from(count).unwrap();
        fixture.write_inode(&inode).await;
        fixture.write_inode(&directory).await;
        fixture.check(&format!("{count} names in blocks of pointers")).await;
        assert_eq!(list(&fixture, &directory, 100).await.len(), count as usize + 2);
    }
}

#[tokio::test]
async fn flipped_bits_neither_panic_nor_loop() {
    for options in [&["-b", "1024"][..], &["-b", "1024", "-O", "^metadata_csum"]] {
        let Some(fixture) = Fixture::new("8M", options).await else { return };
        let mut directory = fixture.make_directory(b"damaged").await;
        let inode = fixture.new_inode(FileType::Regular).await;
        for i in 0..1500 {
            fixture.add(&mut directory, format!("some-name-{i}").as_bytes(), &inode).await;
        }
        fixture.write_inode(&directory).await;
        fixture.info.write_superblock(&mut |_| {}).await.unwrap();
        let content = fixture.device.content();
        let mut places = Vec::new();
        for logical in 0..u32::try_from(directory.size >> 10).unwrap() {
            let logical = ext4_core::LogicalBlock(logical);
            let mapping =
                ext4_core::meta::block_map::lookup(&fixture.info, &directory, logical).await.unwrap();
            if let ext4_core::meta::extent_tree::MappingState::Written(block) = mapping.state {
                places.push(block.0 as usize * 1024);
            }
        }
        let mut random = fastrand::Rng::with_seed(5);
        for round in 0..150 {
            let mut damaged = content.clone();
            for _ in 0..random.usize(1..6) {
                // The root and the first bytes of blocks are where it hurts.
                let place = if random.bool() { places[0] } else { places[random.usize(..places.len())] };
                let at = place + if random.bool() { random.usize(..64) } else { random.usize(..1024) };
                damaged[at] ^= 1 << random.u8(..8);
            }
            let fixture = Fixture::open(damaged).await;
            let mut directory = fixture.read_inode(directory.number).await;
            let (info, transaction) = (&fixture.info, &fixture.transaction);
            for i in (0..1500).step_by(50) {
                let name = format!("some-name-{i}").into_bytes();
                let _ = lookup(info, &directory, &name).await;
                let _ = remove(info, transaction, &mut directory, &name).await;
                let name = format!("another-name-{round}-{i}").into_bytes();
                let _ = add(info, transaction, &mut directory, &name, inode.number, FileType::Regular).await;
            }
            let mut position = 0;
            while let Ok(entries) = read(info, &directory, position, 100).await {
                let Some(last) = entries.last() else { break };
                assert!(last.next > position);
                position = last.next;
            }
            let _ = is_empty(info, &directory).await;
        }
    }
}

#[tokio::test]
async fn blocks_can_be_given_to_a_linear_directory_beforehand() {
    let Some(fixture) = Fixture::new("8M", &["-b", "1024"]).await else { return };
    let mut directory = fixture.make_directory(b"roomy").await;
    for _ in 0..11 {
        directory::preallocate_block(&fixture.info, &fixture.transaction, &mut directory).await.unwrap();
    }
    fixture.write_inode(&directory).await;
    assert!(is_empty(&fixture.info, &directory).await.unwrap());
    assert_eq!(directory.size, 12 * 1024);
    fixture.check("lost+found").await;
}
