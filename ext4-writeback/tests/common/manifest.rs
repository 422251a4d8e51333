//! Trees as `../shared/corpus/manifest.py` describes them: a JSON object for each path.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use ext4_core::format::inode::FileType;
use ext4_core::{InodeNumber, Timestamp};
use ext4_writeback::Filesystem;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

/// Path (escaped as there) to facts.
pub type Manifest = BTreeMap<String, Map<String, Value>>;

/// The bits of i_flags that GETFLAGS shows (kernel: `EXT4_FL_USER_VISIBLE`).
const VISIBLE_FLAGS: u32 = 0x705b_dfff;

/// From a file that manifest.py wrote.
pub fn read(path: &Path) -> Manifest {
    let content = ext4_test_support::tools::unpacked(path);
    let line = |line: &str| {
        let Value::Object(mut facts) = serde_json::from_str(line).unwrap() else { panic!("{line}") };
        let Some(Value::String(path)) = facts.remove("path") else { panic!("{line}") };
        (path, facts)
    };
    String::from_utf8(content).unwrap().lines().map(line).collect()
}

/// The tree of a mounted file system, as we show it.
pub async fn of_filesystem(filesystem: &Filesystem) -> Manifest {
    let mut manifest = Manifest::new();
    let mut pending = vec![(Vec::new(), InodeNumber::ROOT)];
    while let Some((path, inode)) = pending.pop() {
        manifest.insert(escaped(&path), facts(filesystem, inode).await);
        let attributes = filesystem.attributes(inode).await.unwrap();
        if attributes.file_type != FileType::Directory {
            continue;
        }
        let mut position = 0;
        loop {
            let entries = filesystem.readdir(inode, position, 64).await.unwrap();
            let Some(last) = entries.last() else { break };
            position = last.next;
            for entry in entries.into_iter().filter(|entry| !matches!(&entry.name[..], b"." | b"..")) {
                let slash: &[u8] = if path.is_empty() { b"" } else { b"/" };
                pending.push(([&path, slash, &entry.name].concat(), entry.inode));
            }
        }
    }
    manifest
}

async fn facts(filesystem: &Filesystem, inode: InodeNumber) -> Map<String, Value> {
    let attributes = filesystem.attributes(inode).await.unwrap();
    let kind = match attributes.file_type {
        FileType::Regular => "reg",
        FileType::Directory => "dir",
        FileType::Symlink => "lnk",
        FileType::CharacterDevice => "chr",
        FileType::BlockDevice => "blk",
        FileType::Fifo => "fifo",
        FileType::Socket => "sock",
    };
    let mut facts = Map::new();
    let mut put = |key: &str, value: Value| drop(facts.insert(key.to_owned(), value));
    put("type", json!(kind));
    put("mode", json!(format!("{:04o}", attributes.mode & 0o7777)));
    put("uid", json!(attributes.uid));
    put("gid", json!(attributes.gid));
    put("ino", json!(inode.0));
    put("nlink", json!(attributes.links));
    put("blocks", json!(attributes.sectors));
    put("size", json!(attributes.size));
    put("mtime", time(attributes.mtime));
    put("ctime", time(attributes.ctime));
    if let Some(crtime) = attributes.crtime {
        put("crtime", time(crtime));
    }
    if let Some((major, minor)) = attributes.device {
        put("rdev", json!([major, minor]));
    }
    match attributes.file_type {
        FileType::Symlink => put("target", json!(escaped(&filesystem.readlink(inode).await.unwrap()))),
        FileType::Regular => {
            put("dsha256", json!(chunks_hash(filesystem, inode, attributes.size).await));
            if attributes.size <= WHOLE {
                let mut content = vec![0; usize::try_from(attributes.size).unwrap()];
                let file = filesystem.open(inode).await.unwrap();
                assert_eq!(file.read_at(0, &mut content).await.unwrap(), content.len());
                put("sha256", json!(hex(&Sha256::digest(&content))));
            }
        }
        _ => {}
    }
    if matches!(attributes.file_type, FileType::Regular | FileType::Directory) {
        put("flags", json!(format!("{:x}", attributes.flags.bits() & VISIBLE_FLAGS)));
        put("gen", json!(attributes.generation));
    }
    let mut xattrs = Map::new();
    for name in filesystem.listxattr(inode).await.unwrap() {
        let value = filesystem.getxattr(inode, &name).await.unwrap();
        xattrs.insert(escaped(&name), json!(hex(&value)));
    }
    if !xattrs.is_empty() {
        put("xattrs", Value::Object(xattrs));
    }
    facts
}

/// Files up to so many bytes are hashed as a whole too, as what other tools copied out has no other hash.
const WHOLE: u64 = 16 << 20;

/// The hash that manifest.py calls `dsha256`: the chunks of 4 KiB that hold something, each behind its place.
async fn chunks_hash(filesystem: &Filesystem, inode: InodeNumber, size: u64) -> String {
    let file = filesystem.open(inode).await.unwrap();
    let block_size = u64::from(filesystem.superblock().block_size.bytes());
    let mut chunks = BTreeSet::new();
    for mapping in file.extents().await.unwrap() {
        let start = u64::from(mapping.logical.0) * block_size;
        let end = (start + u64::from(mapping.len) * block_size).min(size);
        chunks.extend(start / 4096..end.div_ceil(4096).max(start / 4096));
    }
    if file.inline_extent().await.unwrap().is_some() {
        chunks.insert(0);
    }
    let mut hash = Sha256::new();
    for chunk in chunks {
        let mut content = vec![0; 4096];
        let len = file.read_at(chunk * 4096, &mut content).await.unwrap();
        if content[..len].iter().any(|byte| *byte != 0) {
            hash.update((chunk * 4096).to_le_bytes());
            hash.update(&content[..len]);
        }
    }
    hex(&hash.finalize())
}

fn time(time: Timestamp) -> Value {
    json!(format!("{}.{:09}", time.seconds, time.nanoseconds))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn escaped(path: &[u8]) -> String {
    if path.is_empty() {
        return ".".to_owned();
    }
    let one = |byte: &u8| match byte {
        0x21..=0x7e if *byte != b'%' => char::from(*byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    path.iter().map(one).collect()
}

/// The differences in the keys that both have, as lines: path, key, ours, theirs. `ignore` says which to pass
/// over.
pub fn differences(
    ours: &Manifest,
    theirs: &Manifest,
    ignore: impl Fn(&str, &Map<String, Value>, &str) -> bool,
) -> Vec<String> {
    let mut found = Vec::new();
    for path in ours.keys().chain(theirs.keys().filter(|path| !ours.contains_key(*path))) {
        let (Some(mine), Some(other)) = (ours.get(path), theirs.get(path)) else {
            let facts = ours.get(path).or(theirs.get(path)).unwrap();
            if !ignore(path, facts, "") {
                let side = if ours.contains_key(path) { "only ours" } else { "only theirs" };
                found.push(format!("{path}: {side}"));
            }
            continue;
        };
        for (key, value) in mine {
            let theirs = other.get(key);
            if theirs.is_some_and(|theirs| theirs != value) && !ignore(path, other, key) {
                found.push(format!("{path}: {key}: {value}, expected {}", theirs.unwrap()));
            }
        }
        if mine.contains_key("xattrs") != other.contains_key("xattrs") && !ignore(path, other, "xattrs") {
            found.push(format!(
                "{path}: xattrs: {:?}, expected {:?}",
                mine.get("xattrs"),
                other.get("xattrs")
            ));
        }
    }
    found
}
