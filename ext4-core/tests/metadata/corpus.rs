//! Images that others made: those of e2fsprogs, most of them damaged on purpose, and syzkaller's. As they
//! are, they are walked over without a panic or a loop; as e2fsck repaired them, names and attributes are
//! those the kernel saw.

use std::collections::{BTreeMap, BTreeSet};

use ext4_core::format::inode::FileType;
use ext4_core::meta::orphan::Orphans;
use ext4_core::meta::{directory, inode_table, xattr};
use ext4_core::{Errno, InodeNumber, Result};
use ext4_test_support::corpus::packed_images;
use ext4_test_support::tools::{have, run, unpacked};

use crate::fixture::Fixture;

/// Inodes a walk visits at most: a damaged tree may have circles.
const MAX_INODES: usize = 20_000;
/// Entries a walk looks at in one directory at most.
const MAX_ENTRIES: usize = 100_000;
/// Names a walk looks up in one directory at most.
const MAX_LOOKUPS: usize = 1000;

/// What a walk finds at a path.
#[derive(PartialEq, Eq, Debug)]
struct Found {
    inode: u64,
    attributes: BTreeMap<String, String>,
}

/// As the lists of the corpus escape paths and names.
fn escape(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| match byte {
        0x21..=0x7e if *byte != b'%' => text + &char::from(*byte).to_string(),
        byte => text + &format!("%{byte:02X}"),
    })
}

/// All attributes of an inode, values in hexadecimal digits.
async fn attributes(fixture: &Fixture, number: InodeNumber) -> Result<BTreeMap<String, String>> {
    let inode = inode_table::read_inode(&fixture.info, number).await?;
    let mut attributes = BTreeMap::new();
    for name in xattr::list(&fixture.info, &inode).await? {
        let value = xattr::get(&fixture.info, &inode, &name).await?.unwrap();
        attributes.insert(escape(&name), value.iter().map(|byte| format!("{byte:02x}")).collect());
    }
    Ok(attributes)
}

/// Everything below the root, errors passed over.
async fn walk(fixture: &Fixture) -> BTreeMap<String, Found> {
    let mut tree = BTreeMap::new();
    let mut seen = BTreeSet::from([InodeNumber::ROOT]);
    let mut directories = vec![(Vec::new(), InodeNumber::ROOT)];
    while let Some((path, number)) = directories.pop() {
        let Ok(inode) = inode_table::read_inode(&fixture.info, number).await else { continue };
        let _ = directory::is_empty(&fixture.info, &inode).await;
        let (mut position, mut count, mut looked_up) = (0, 0, 0);
        while let Ok(entries) = directory::read(&fixture.info, &inode, position, 200).await {
            let Some(last) = entries.last() else { break };
            assert!(last.next > position, "a position goes on");
            position = last.next;
            count += entries.len();
            for entry in entries {
                if matches!(entry.name.as_slice(), b"." | b"..") {
                    continue;
                }
                // One of these directories has 24,000 names and no index: most are only listed.
                looked_up += 1;
                let found = if looked_up < MAX_LOOKUPS {
                    directory::lookup(&fixture.info, &inode, &entry.name).await
                } else {
                    Ok(Some((entry.inode, entry.file_type)))
                };
                let mut path: Vec<u8> = path.clone();
                if !path.is_empty() {
                    path.push(b'/');
                }
                path.extend_from_slice(&entry.name);
                if let (Ok(Some((number, _))), Ok(attributes)) =
                    (found, attributes(fixture, entry.inode).await)
                {
                    tree.insert(escape(&path), Found { inode: u64::from(number), attributes });
                }
                let child = inode_table::read_inode(&fixture.info, entry.inode).await;
                let is_directory = child.is_ok_and(|child| child.file_type() == Some(FileType::Directory));
                if is_directory && seen.len() < MAX_INODES && seen.insert(entry.inode) {
                    directories.push((path, entry.inode));
                }
            }
            if count > MAX_ENTRIES {
                break;
            }
        }
    }
    tree
}

#[tokio::test]
async fn damaged_images_are_walked_over() {
    let Some(images) = packed_images() else { return };
    let mut opened = 0;
    for image in images {
        let Ok(fixture) = Fixture::try_open(image.content(), true).await else { continue };
        opened += 1;
        let _ = Orphans::load(&fixture.info).await;
        let _ = walk(&fixture).await;
        for number in 1..=fixture.info.inodes_count().min(200) {
            let _ = attributes(&fixture, InodeNumber(number)).await;
        }
    }
    println!("{opened} images could be opened");
    assert!(opened > 100, "{opened} images could be opened");
}

#[tokio::test]
async fn repaired_images_hold_what_the_kernel_sees() {
    let Some(images) = packed_images() else { return };
    if !have(&["e2fsck"]) {
        return;
    }
    let (mut compared, mut paths, mut refused) = (0, 0, Vec::new());
    for image in images {
        let text = std::fs::read_to_string(image.expected("json")).unwrap();
        let facts: serde_json::Value = serde_json::from_str(&text).unwrap();
        // Of a file system with multiple mount protection e2fsck first waits ten seconds if another host
        // else has it.
        let skipped = |feature: &serde_json::Value| feature == "mmp";
        let skip = facts["features"].as_array().is_some_and(|all| all.iter().any(skipped));
        if facts["tree_by"] != "kernel" || skip {
            continue;
        }
        let fixture = match Fixture::try_open(repaired(&image.content()), true).await {
            Ok(fixture) => fixture,
            // The kernel knows more features.
            Err(error) => {
                assert_eq!(error.errno(), Errno::EOPNOTSUPP, "{}: {error}", image.name());
                refused.push(format!("{}: {error}", image.name()));
                continue;
            }
        };
        let tree = walk(&fixture).await;
        let list = unpacked(&image.expected("tree.jsonl.gz"));
        for line in String::from_utf8(list).unwrap().lines() {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            let place = line["path"].as_str().unwrap();
            if place == "." || line["error"].is_object() {
                continue;
            }
            let attributes = line["xattrs"].as_object().into_iter().flatten();
            let attributes =
                attributes.map(|(name, value)| (name.clone(), value.as_str().unwrap().to_owned())).collect();
            let found = Found { inode: line["ino"].as_u64().unwrap(), attributes };
            assert_eq!(tree.get(place), Some(&found), "{}: {place}", image.name());
            paths += 1;
        }
        compared += 1;
    }
    println!("{compared} images with {paths} paths, refused: {refused:?}");
    assert!(compared > 100 && paths > 40_000, "{compared} images with {paths} paths");
}

/// An image after `e2fsck -fy`, as often as it takes.
fn repaired(content: &[u8]) -> Vec<u8> {
    // e2fsck syncs after each change: in memory that costs nothing.
    let file =
        tempfile::NamedTempFile::new_in("/dev/shm").or_else(|_| tempfile::NamedTempFile::new()).unwrap();
    std::fs::write(file.path(), content).unwrap();
    for _ in 0..3 {
        if run("e2fsck", ["-fy".as_ref(), file.path().as_os_str()]).status.success() {
            break;
        }
    }
    std::fs::read(file.path()).unwrap()
}
