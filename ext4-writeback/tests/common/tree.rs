//! A tree as both sides see it: one line of facts for each path.

#![allow(dead_code, reason = "each test takes what it needs")]

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use ext4_core::InodeNumber;
use ext4_core::format::inode::FileType;
use ext4_writeback::Filesystem;

/// Path to facts.
pub type Tree = BTreeMap<Vec<u8>, Facts>;

/// The facts of one path that have to agree.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Facts {
    pub mode: u32,
    pub links: u64,
    pub owner: (u32, u32),
    pub size: u64,
    pub sectors: u64,
    pub device: (u64, u64),
    pub mtime: (i64, i64),
    pub ctime: (i64, i64),
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// A file's content (its checksum), a symlink's target.
    pub content: Vec<u8>,
    pub inode: u64,
}

fn digest(content: &[u8]) -> Vec<u8> {
    let sums = [!0, 0x1234_5678].map(|seed| ext4_core::checksum::crc32c(seed, content));
    sums.iter().flat_map(|sum| sum.to_le_bytes()).collect()
}

/// The tree below a directory, as the kernel shows it.
pub fn of_directory(root: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut pending = vec![root.to_path_buf()];
    while let Some(path) = pending.pop() {
        let metadata = std::fs::symlink_metadata(&path).unwrap();
        let file_type = metadata.file_type();
        let content = if file_type.is_symlink() {
            std::fs::read_link(&path).unwrap().as_os_str().as_bytes().to_vec()
        } else if file_type.is_file() {
            digest(&std::fs::read(&path).unwrap())
        } else {
            Vec::new()
        };
        let node = file_type.is_block_device() || file_type.is_char_device();
        let facts = Facts {
            mode: metadata.mode(),
            links: metadata.nlink(),
            owner: (metadata.uid(), metadata.gid()),
            size: metadata.size(),
            sectors: metadata.blocks(),
            device: if node { device(metadata.rdev()) } else { (0, 0) },
            mtime: (metadata.mtime(), metadata.mtime_nsec()),
            ctime: (metadata.ctime(), metadata.ctime_nsec()),
            xattrs: xattrs(&path),
            content,
            inode: metadata.ino(),
        };
        if file_type.is_dir() {
            pending.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        tree.insert(path.strip_prefix(root).unwrap().as_os_str().as_bytes().to_vec(), facts);
    }
    tree
}

/// The tree of a mounted file system, as we show it.
pub async fn of_filesystem(filesystem: &Filesystem) -> Tree {
    let mut tree = Tree::new();
    let mut pending = vec![(Vec::new(), InodeNumber::ROOT)];
    while let Some((path, inode)) = pending.pop() {
        let attributes = filesystem.attributes(inode).await.unwrap();
        let content = match attributes.file_type {
            FileType::Symlink => filesystem.readlink(inode).await.unwrap(),
            FileType::Regular => digest(&filesystem.read(&path).await.unwrap()),
            _ => Vec::new(),
        };
        let mut facts = Facts {
            mode: u32::from(attributes.mode),
            links: u64::from(attributes.links),
            owner: (attributes.uid, attributes.gid),
            size: attributes.size,
            sectors: attributes.sectors,
            device: attributes.device.map_or((0, 0), |(major, minor)| (major.into(), minor.into())),
            mtime: (attributes.mtime.seconds, attributes.mtime.nanoseconds.into()),
            ctime: (attributes.ctime.seconds, attributes.ctime.nanoseconds.into()),
            xattrs: BTreeMap::new(),
            content,
            inode: u64::from(inode.0),
        };
        for name in filesystem.listxattr(inode).await.unwrap() {
            let value = filesystem.getxattr(inode, &name).await.unwrap();
            facts.xattrs.insert(name, value);
        }
        if attributes.file_type == FileType::Directory {
            let mut position = 0;
            loop {
                let entries = filesystem.readdir(inode, position, 64).await.unwrap();
                let Some(last) = entries.last() else { break };
                position = last.next;
                for entry in entries {
                    if entry.name == b"." || entry.name == b".." {
                        continue;
                    }
                    let slash: &[u8] = if path.is_empty() { b"" } else { b"/" };
                    pending.push(([&path, slash, &entry.name].concat(), entry.inode));
                }
            }
        }
        tree.insert(path, facts);
    }
    tree
}

/// Fails the test with the first differences.
pub fn assert_same(ours: &Tree, theirs: &Tree, context: &str) {
    let name = |path: &[u8]| String::from_utf8_lossy(path).into_owned();
    let mut differences = Vec::new();
    for path in ours.keys().chain(theirs.keys()) {
        if ours.get(path) != theirs.get(path) {
            let (ours, theirs) = (ours.get(path), theirs.get(path));
            differences.push(format!("{}\n  ours   {ours:?}\n  theirs {theirs:?}", name(path)));
        }
    }
    differences.dedup();
    let shown = differences.iter().take(5).cloned().collect::<Vec<_>>().join("\n");
    assert!(differences.is_empty(), "{context}: {} differences\n{shown}", differences.len());
    assert!(ours.len() > 10, "{context}: hardly anything was compared");
}

/// All extended attributes of one file, not following a symlink.
fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let value = |name: &std::ffi::OsStr| xattr::get(path, name).unwrap().unwrap_or_default();
    xattr::list(path).unwrap().map(|name| (name.as_bytes().to_vec(), value(&name))).collect()
}

/// Major and minor number as glibc packs them.
fn device(packed: u64) -> (u64, u64) {
    (((packed >> 8) & 0xfff) | ((packed >> 32) & !0xfff), (packed & 0xff) | ((packed >> 12) & !0xff))
}
