//! Extended attributes on file systems that mke2fs made: against a model, shared blocks, access control
//! lists; judged by e2fsck and debugfs.

use std::collections::BTreeMap;
use std::process::Command;

use crate::fixture::Fixture;
use ext4_core::format::inode::{FileType, Inode};
use ext4_core::format::xattr::{self as format, acl::Acl};
use ext4_core::meta::xattr::{SetMode, get, list, release_block, set};
use ext4_core::meta::{DirectTransaction, Opaque};
use ext4_core::{BlockNumber, Errno, InodeNumber};
use ext4_test_support::tools::run_if_there;

const LAYOUTS: &[&[&str]] = &[
    &["-b", "1024"],
    &["-b", "4096"],
    &["-b", "1024", "-I", "128"],
    &["-b", "2048", "-I", "1024"],
    &["-b", "1024", "-O", "^metadata_csum,^ext_attr"],
];

/// A file `name` in the root.
async fn make_file(fixture: &Fixture, name: &[u8]) -> Inode {
    let mut inode = fixture.new_inode(FileType::Regular).await;
    inode.links_count = 1;
    let mut root = fixture.read_inode(InodeNumber::ROOT).await;
    fixture.add(&mut root, name, &inode).await;
    fixture.write_inode(&root).await;
    fixture.write_inode(&inode).await;
    inode
}

#[tokio::test]
async fn random_attributes_come_and_go_as_in_a_map() {
    for options in LAYOUTS {
        let Some(fixture) = Fixture::new("8M", options).await else { return };
        let (info, transaction) = (&fixture.info, &fixture.transaction);
        let mut inode = make_file(&fixture, b"file").await;
        let mut random = fastrand::Rng::with_seed(21);
        let mut model: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        let (mut full, mut in_block) = (0, 0);
        for step in 0..1500 {
            let which = random.u32(0..14);
            let prefix = ["user.", "trusted.", "security.", "gnu."][which as usize % 4];
            let name = format!("{prefix}{}", "n".repeat(1 + which as usize * 3)).into_bytes();
            let known = model.contains_key(&name);
            assert_eq!(get(info, &inode, &name).await.unwrap(), model.get(&name).cloned());
            match random.u8(0..4) {
                0 => {
                    let result = set(info, transaction, &mut inode, &name, None, SetMode::Any).await;
                    assert_eq!(result.is_ok(), known);
                    model.remove(&name);
                }
                kind => {
                    let len = if random.u8(0..10) == 0 { random.usize(0..1100) } else { random.usize(0..90) };
                    let value: Vec<u8> = (0..len).map(|_| random.u8(..)).collect();
                    let mode = [SetMode::Any, SetMode::Create, SetMode::Replace][usize::from(kind) - 1];
                    let before = (inode.clone(), model.clone());
                    match set(info, transaction, &mut inode, &name, Some(&value), mode).await {
                        Ok(()) => {
                            assert!(
                                !(known && mode == SetMode::Create || !known && mode == SetMode::Replace)
                            );
                            model.insert(name, value);
                        }
                        Err(error) => {
                            match error.errno() {
                                Errno::EEXIST => assert!(known && mode == SetMode::Create),
                                Errno::ENODATA => assert!(!known && mode == SetMode::Replace),
                                Errno::ENOSPC => full += 1,
                                errno => panic!("{errno}: {error}"),
                            }
                            assert_eq!((&inode, &model), (&before.0, &before.1), "a failure changes nothing");
                        }
                    }
                }
            }
            in_block += u32::from(inode.file_acl.0 != 0);
            if step % 300 == 299 {
                let mut names = list(info, &inode).await.unwrap();
                names.sort_unstable();
                assert_eq!(names, model.keys().cloned().collect::<Vec<_>>());
                fixture.write_inode(&inode).await;
                assert_eq!(fixture.read_inode(inode.number).await.xattr_area, inode.xattr_area);
                fixture.check(&format!("{options:?}, step {step}")).await;
            }
        }
        assert!(in_block > 0 && (full > 0 || options.contains(&"4096") || options.contains(&"2048")));
        for name in model.keys() {
            set(info, transaction, &mut inode, name, None, SetMode::Replace).await.unwrap();
        }
        assert_eq!((inode.file_acl, inode.sectors), (BlockNumber(0), 0));
        fixture.write_inode(&inode).await;
        fixture.check("without attributes").await;
    }
}

#[tokio::test]
async fn debugfs_reads_what_was_set() {
    let Some(fixture) = Fixture::new("8M", &["-b", "1024"]).await else { return };
    let mut inode = make_file(&fixture, b"file").await;
    let long = "v".repeat(700);
    for (name, value) in [("user.short", "in the inode"), ("user.long", &long), ("trusted.t", "x")] {
        let (info, transaction) = (&fixture.info, &fixture.transaction);
        set(info, transaction, &mut inode, name.as_bytes(), Some(value.as_bytes()), SetMode::Create)
            .await
            .unwrap();
    }
    assert!(inode.file_acl.0 != 0 && inode.sectors == 2);
    fixture.write_inode(&inode).await;
    let content = fixture.check("attributes for debugfs").await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), content).unwrap();
    for (name, value) in [("user.short", "in the inode"), ("user.long", &long), ("trusted.t", "x")] {
        let request = format!("ea_get -V /file {name}");
        let Some(output) = run_if_there(Command::new("debugfs").args(["-R", &request]).arg(file.path()))
        else {
            return;
        };
        assert!(output.contains(value), "{name}: {output}");
    }
}

#[tokio::test]
async fn a_shared_block_is_copied_by_an_owner_that_changes_it_and_freed_by_the_last() {
    for options in [&["-b", "1024", "-I", "128"][..], &["-b", "1024", "-I", "128", "-O", "^metadata_csum"]] {
        let Some(fixture) = Fixture::new("8M", options).await else { return };
        let (info, transaction) = (&fixture.info, &fixture.transaction);
        let mut first = make_file(&fixture, b"first").await;
        let (mut second, mut third) =
            (make_file(&fixture, b"second").await, make_file(&fixture, b"third").await);
        set(info, transaction, &mut first, b"user.a", Some(b"shared"), SetMode::Any).await.unwrap();
        let block = first.file_acl;
        share(&fixture, transaction, block, 3).await;
        for other in [&mut second, &mut third] {
            (other.file_acl, other.sectors) = (block, first.sectors);
        }
        for inode in [&first, &second, &third] {
            fixture.write_inode(inode).await;
        }
        fixture.check("three share a block").await;

        set(info, transaction, &mut second, b"user.a", Some(b"own"), SetMode::Replace).await.unwrap();
        assert!(second.file_acl != block && second.sectors == first.sectors);
        assert_eq!(get(info, &first, b"user.a").await.unwrap().unwrap(), b"shared");
        assert_eq!(get(info, &second, b"user.a").await.unwrap().unwrap(), b"own");
        fixture.write_inode(&second).await;
        fixture.check("two share a block").await;

        set(info, transaction, &mut third, b"user.a", None, SetMode::Any).await.unwrap();
        assert_eq!((third.file_acl, third.sectors), (BlockNumber(0), 0));
        fixture.write_inode(&third).await;
        fixture.check("one has the block").await;

        let (free, _) = info.free_and_reserved_blocks();
        release_block(info, transaction, &mut first).await.unwrap();
        release_block(info, transaction, &mut second).await.unwrap();
        assert_eq!(info.free_and_reserved_blocks().0, free + 2);
        fixture.write_inode(&first).await;
        fixture.write_inode(&second).await;
        fixture.check("no inode has a block").await;
    }
}

/// Says in a block that so many inodes share it.
async fn share(fixture: &Fixture, transaction: &DirectTransaction, block: BlockNumber, references: u32) {
    let info = &fixture.info;
    let buffer = info.cache.read(block, &Opaque).await.unwrap();
    let seed = info.metadata_seed();
    buffer
        .modify(transaction, |bytes| {
            format::set_references(bytes, references);
            format::set_block_checksum(bytes, block, seed);
        })
        .unwrap();
}

/// A list in the form of the system call.
fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

const NO_ID: u32 = u32::MAX;

#[tokio::test]
async fn access_control_lists_go_with_the_mode() {
    let Some(fixture) = Fixture::new("8M", &[]).await else { return };
    let (info, transaction) = (&fixture.info, &fixture.transaction);
    let mut inode = make_file(&fixture, b"file").await;
    let (access, default) = (b"system.posix_acl_access".as_slice(), b"system.posix_acl_default".as_slice());
    let full =
        acl(&[(1, 7, NO_ID), (2, 6, 1000), (4, 5, NO_ID), (8, 4, 50), (0x10, 6, NO_ID), (0x20, 1, NO_ID)]);
    set(info, transaction, &mut inode, access, Some(&full), SetMode::Any).await.unwrap();
    assert_eq!(inode.mode & 0o777, 0o761);
    assert_eq!(get(info, &inode, access).await.unwrap().unwrap(), full);
    assert_eq!(list(info, &inode).await.unwrap(), [access]);
    let stored = format::in_inode(&inode.xattr_area).next().unwrap().unwrap();
    let format::Value::Here(stored) = stored.value else { panic!("{stored:?}") };
    assert_eq!(Acl::from_disk(stored).unwrap().to_call(), full);

    let minimal = acl(&[(1, 6, NO_ID), (4, 4, NO_ID), (0x20, 4, NO_ID)]);
    set(info, transaction, &mut inode, access, Some(&minimal), SetMode::Any).await.unwrap();
    assert_eq!((inode.mode & 0o777, get(info, &inode, access).await.unwrap()), (0o644, None));
    set(info, transaction, &mut inode, access, Some(&minimal), SetMode::Any).await.unwrap();

    let broken = acl(&[(1, 6, NO_ID), (2, 6, 1000), (4, 4, NO_ID), (0x20, 4, NO_ID)]);
    let error = set(info, transaction, &mut inode, access, Some(&broken), SetMode::Any).await.unwrap_err();
    assert_eq!(error.errno(), Errno::EINVAL);
    let error = set(info, transaction, &mut inode, default, Some(&full), SetMode::Any).await.unwrap_err();
    assert_eq!(error.errno(), Errno::EACCES);

    let mut directory = fixture.make_directory(b"directory").await;
    let mode = directory.mode;
    set(info, transaction, &mut directory, default, Some(&full), SetMode::Any).await.unwrap();
    assert_eq!(directory.mode, mode);
    assert_eq!(get(info, &directory, default).await.unwrap().unwrap(), full);
    fixture.write_inode(&inode).await;
    fixture.write_inode(&directory).await;
    fixture.check("access control lists").await;
}

#[tokio::test]
async fn what_is_no_attribute_is_refused() {
    let Some(fixture) = Fixture::new("8M", &["-b", "1024"]).await else { return };
    let (info, transaction) = (&fixture.info, &fixture.transaction);
    let mut inode = make_file(&fixture, b"file").await;
    let long = [b"user.".as_slice(), &[b'x'; 251]].concat();
    for (name, errno) in [
        (b"".as_slice(), Errno::ERANGE),
        (&long, Errno::ERANGE),
        (b"colour", Errno::EOPNOTSUPP),
        (b"system.data", Errno::EOPNOTSUPP),
        (b"user.", Errno::EINVAL),
    ] {
        let result = set(info, transaction, &mut inode, name, Some(b"x"), SetMode::Any).await;
        assert_eq!(result.unwrap_err().errno(), errno);
        assert_eq!(get(info, &inode, name).await.unwrap_err().errno(), errno);
    }
    let large = set(info, transaction, &mut inode, b"user.a", Some(&[0; 70_000]), SetMode::Any).await;
    assert_eq!(large.unwrap_err().errno(), Errno::ENOSPC);
    inode.file_acl = BlockNumber(1);
    assert!(get(info, &inode, b"user.a").await.unwrap_err().is_corrupt());
}
