//! Orphans on file systems that mke2fs made: list and file, full, damaged, and while stale copies of inodes
//! are logged; judged by e2fsck.

use crate::fixture::Fixture;
use ext4_core::InodeNumber;
use ext4_core::format::features::RoCompat;
use ext4_core::format::inode::{FileType, Inode};
use ext4_core::meta::inode_allocator::free_inode;
use ext4_core::meta::orphan::Orphans;
use ext4_test_support::tools::{assert_clean, have, run};

const LIST: &[&str] = &["-b", "1024", "-O", "^orphan_file"];
const FILE: &[&str] = &["-b", "1024", "-O", "orphan_file"];

/// Inodes without names or links.
async fn unlinked(fixture: &Fixture, count: usize) -> Vec<Inode> {
    let mut inodes = Vec::new();
    for _ in 0..count {
        let inode = fixture.new_inode(FileType::Regular).await;
        fixture.write_inode(&inode).await;
        inodes.push(inode);
    }
    inodes
}

/// Takes inodes off and frees them.
async fn delete(fixture: &Fixture, orphans: &Orphans, inodes: impl IntoIterator<Item = Inode>) {
    for mut inode in inodes {
        orphans.remove(&fixture.info, &fixture.transaction, &mut inode).await.unwrap();
        inode.dtime = 1_700_000_000;
        fixture.write_inode(&inode).await;
        free_inode(&fixture.info, &fixture.transaction, inode.number, false).await.unwrap();
    }
}

/// What another mount would find pending.
async fn found_by_next_mount(fixture: &Fixture) -> Vec<InodeNumber> {
    fixture.info.write_superblock(&mut |_| {}).await.unwrap();
    let next = Fixture::open(fixture.device.content()).await;
    Orphans::load(&next.info).await.unwrap().pending()
}

fn numbers<'a>(inodes: impl IntoIterator<Item = &'a Inode>) -> Vec<InodeNumber> {
    inodes.into_iter().map(|inode| inode.number).collect()
}

/// e2fsck deletes the orphans itself and then finds nothing.
fn e2fsck_finishes(content: &[u8], inodes: &[InodeNumber]) {
    if !have(&["e2fsck"]) {
        return;
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), content).unwrap();
    let output = run("e2fsck", ["-fy".as_ref(), file.path().as_os_str()]);
    let text = String::from_utf8_lossy(&output.stdout);
    for inode in inodes {
        assert!(text.contains(&format!("Clearing orphaned inode {inode} ")), "{inode}: {text}");
    }
    assert_clean(file.path(), "after e2fsck -fy");
}

#[tokio::test]
async fn both_kinds_survive_a_crash_and_end_clean() {
    for options in [LIST, FILE] {
        let Some(fixture) = Fixture::new("16M", options).await else { return };
        let (info, transaction) = (&fixture.info, &fixture.transaction);
        let orphans = Orphans::load(info).await.unwrap();
        assert!(orphans.pending().is_empty());
        let mut inodes = unlinked(&fixture, 5).await;
        for inode in &mut inodes {
            orphans.add(info, transaction, inode).await.unwrap();
            orphans.add(info, transaction, inode).await.unwrap();
            fixture.write_inode(inode).await;
        }
        let mut found = found_by_next_mount(&fixture).await;
        e2fsck_finishes(&fixture.device.content(), &found);
        if options == LIST {
            found.reverse();
        } else {
            let present = info.superblock().features.ro_compat.contains(RoCompat::ORPHAN_PRESENT);
            assert!(present && !orphans.file_is_empty());
        }
        assert_eq!(found, numbers(&inodes));
        delete(&fixture, &orphans, inodes).await;
        assert!(orphans.file_is_empty() && found_by_next_mount(&fixture).await.is_empty());
        info.write_superblock(&mut |superblock| {
            superblock.features.ro_compat.remove(RoCompat::ORPHAN_PRESENT)
        })
        .await
        .unwrap();
        fixture.check(&format!("{options:?}")).await;
    }
}

#[tokio::test]
async fn a_stale_copy_never_brings_a_removed_inode_back() {
    let Some(fixture) = Fixture::new("16M", LIST).await else { return };
    let (info, transaction) = (&fixture.info, &fixture.transaction);
    let orphans = Orphans::load(info).await.unwrap();
    let mut inodes = unlinked(&fixture, 12).await;
    for inode in &mut inodes {
        orphans.add(info, transaction, inode).await.unwrap();
        fixture.write_inode(inode).await;
    }
    let mut random = fastrand::Rng::with_seed(4);
    while !inodes.is_empty() {
        let mut gone = inodes.remove(random.usize(..inodes.len()));
        orphans.remove(info, transaction, &mut gone).await.unwrap();
        assert_eq!(gone.dtime, 0);
        // Every other inode is logged as the copy it has had all the time.
        for inode in &inodes {
            fixture.write_inode(inode).await;
        }
        gone.dtime = 1_700_000_000;
        fixture.write_inode(&gone).await;
        free_inode(info, transaction, gone.number, false).await.unwrap();
        assert_eq!(found_by_next_mount(&fixture).await, numbers(inodes.iter().rev()));
    }
    assert_eq!(info.superblock().last_orphan, 0);
    fixture.check("all removed").await;
}

#[tokio::test]
async fn a_full_file_falls_back_to_the_list() {
    let Some(fixture) = Fixture::new("64M", FILE).await else { return };
    let (info, transaction) = (&fixture.info, &fixture.transaction);
    let orphans = Orphans::load(info).await.unwrap();
    let model = unlinked(&fixture, 1).await.remove(0);
    let mut inodes: Vec<Inode> =
        (100..16_000).map(|n| Inode { number: InodeNumber(n), ..model.clone() }).collect();
    let mut listed = Vec::new();
    for inode in &mut inodes {
        orphans.add(info, transaction, inode).await.unwrap();
        if info.orphan_links().dtime(inode.number).is_some() {
            listed.push(inode.number);
        }
        if listed.len() == 10 {
            break;
        }
    }
    assert_eq!(listed.len(), 10);
    assert_eq!(info.superblock().last_orphan, listed[9].0);
    for inode in &mut inodes {
        orphans.remove(info, transaction, inode).await.unwrap();
    }
    assert!(orphans.file_is_empty());
    assert_eq!(info.superblock().last_orphan, 0);
    // The slots can be used again.
    orphans.add(info, transaction, &mut inodes[0]).await.unwrap();
    assert!(!orphans.file_is_empty());
}

#[tokio::test]
async fn a_damaged_list_ends_where_it_makes_no_sense() {
    let Some(fixture) = Fixture::new("16M", LIST).await else { return };
    let (info, transaction) = (&fixture.info, &fixture.transaction);
    let mut inodes = unlinked(&fixture, 3).await;
    let (first, second, third) = (inodes[0].number, inodes[1].number, inodes[2].number);
    // first -> second -> third -> first, a circle; or to what can be none.
    for (end, expected) in [(first.0, 3), (7, 3), (u32::MAX, 2), (third.0, 3)] {
        for (inode, next) in inodes.iter_mut().zip([second.0, third.0, end]) {
            inode.dtime = next;
            fixture.write_inode(inode).await;
        }
        info.write_superblock(&mut |superblock| superblock.last_orphan = first.0).await.unwrap();
        let next = Fixture::open(fixture.device.content()).await;
        let orphans = Orphans::load(&next.info).await.unwrap();
        assert_eq!(orphans.pending(), [first, second, third][..expected]);
        assert!(orphans.is_damaged());
        orphans.mend(&next.info, &next.transaction).await.unwrap();
        assert!(!orphans.is_damaged());
        next.info.write_superblock(&mut |_| {}).await.unwrap();
        let mended = Fixture::open(next.device.content()).await;
        let again = Orphans::load(&mended.info).await.unwrap();
        assert_eq!(again.pending(), orphans.pending());
        assert!(!again.is_damaged());
    }
    for head in [1, u32::MAX] {
        info.write_superblock(&mut |superblock| superblock.last_orphan = head).await.unwrap();
        let orphans = Orphans::load(info).await.unwrap();
        assert!(orphans.pending().is_empty() && orphans.is_damaged());
        orphans.mend(info, transaction).await.unwrap();
        assert_eq!(info.superblock().last_orphan, 0);
    }
}

#[tokio::test]
async fn a_damaged_orphan_file_is_refused() {
    let Some(fixture) = Fixture::new("16M", FILE).await else { return };
    let number = InodeNumber(fixture.info.superblock().orphan_file_inum);
    let inode = fixture.read_inode(number).await;
    let first = ext4_core::LogicalBlock(0);
    let mapping = ext4_core::meta::block_map::lookup(&fixture.info, &inode, first).await.unwrap();
    let ext4_core::meta::extent_tree::MappingState::Written(block) = mapping.state else {
        panic!("{mapping:?}")
    };
    let content = fixture.device.content();
    for byte in [0, 1016, 1020] {
        let mut damaged = content.clone();
        damaged[usize::try_from(block.0).unwrap() * 1024 + byte] ^= 4;
        let fixture = Fixture::open(damaged).await;
        assert!(Orphans::load(&fixture.info).await.unwrap_err().is_corrupt());
    }
}
