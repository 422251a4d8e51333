//! Trees as the shared corpus records them (`manifest.py`), and ours in the same form.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use ext4_core::format::inode::FileType;
use ext4_core::{InodeNumber, Timestamp};
use ext4_writeback::Filesystem;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

/// Path to facts, by their names in a manifest.
pub type Manifest = BTreeMap<String, Map<String, Value>>;

/// Reads `NAME.jsonl.gz`.
pub fn read(path: &Path) -> Manifest {
    let output = Command::new("gzip").arg("-dc").arg(path).output().unwrap();
    assert!(output.status.success(), "{}", path.display());
    let text = String::from_utf8(output.stdout).unwrap();
    let line = |line: &str| {
        let facts: Map<String, Value> = serde_json::from_str(line).unwrap();
        (facts["path"].as_str().unwrap().to_owned(), facts)
    };
    text.lines().map(line).collect()
}

/// What a mounted file system of ours shows.
pub async fn of_filesystem(filesystem: &Filesystem) -> Manifest {
    let mut found = Manifest::new();
    let mut pending = vec![(Vec::new(), InodeNumber::ROOT)];
    while let Some((path, inode)) = pending.pop() {
        let name = if path.is_empty() { ".".to_owned() } else { escaped(&path) };
        found.insert(name.clone(), facts(filesystem, &name, inode).await);
        if filesystem.attributes(inode).await.unwrap().file_type != FileType::Directory {
            continue;
        }
        let mut position = 0;
        loop {
            let entries = filesystem.readdir(inode, position, 256).await.unwrap();
            let Some(last) = entries.last() else { break };
            position = last.next;
            for entry in entries.iter().filter(|entry| entry.name != b"." && entry.name != b"..") {
                let slash: &[u8] = if path.is_empty() { b"" } else { b"/" };
                pending.push(([&path, slash, &entry.name].concat(), entry.inode));
            }
        }
    }
    found
}

async fn facts(filesystem: &Filesystem, path: &str, inode: InodeNumber) -> Map<String, Value> {
    let attributes = filesystem.attributes(inode).await.unwrap();
    let time = |time: Timestamp| json!(format!("{}.{:09}", time.seconds, time.nanoseconds));
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
    facts.insert("path".into(), path.into());
    facts.insert("type".into(), kind.into());
    facts.insert("mode".into(), format!("{:04o}", attributes.mode & 0o7777).into());
    facts.insert("uid".into(), attributes.uid.into());
    facts.insert("gid".into(), attributes.gid.into());
    facts.insert("ino".into(), inode.0.into());
    facts.insert("nlink".into(), attributes.links.into());
    facts.insert("size".into(), attributes.size.into());
    facts.insert("blocks".into(), attributes.sectors.into());
    facts.insert("gen".into(), attributes.generation.into());
    facts.insert("mtime".into(), time(attributes.mtime));
    facts.insert("ctime".into(), time(attributes.ctime));
    match attributes.file_type {
        FileType::Symlink => {
            facts.insert("target".into(), escaped(&filesystem.readlink(inode).await.unwrap()).into());
        }
        FileType::Regular => {
            let (sha256, dsha256) = digests(filesystem, inode, attributes.size).await;
            facts.insert("sha256".into(), sha256.into());
            facts.insert("dsha256".into(), dsha256.into());
        }
        _ => {}
    }
    let mut xattrs = Map::new();
    for name in filesystem.listxattr(inode).await.unwrap() {
        let value = filesystem.getxattr(inode, &name).await.unwrap();
        xattrs.insert(String::from_utf8_lossy(&name).into_owned(), hex(&value).into());
    }
    if !xattrs.is_empty() {
        facts.insert("xattrs".into(), xattrs.into());
    }
    facts
}

/// SHA-256 of all, and of the chunks of 4,096 bytes that hold something, each after its offset.
async fn digests(filesystem: &Filesystem, inode: InodeNumber, size: u64) -> (String, String) {
    let file = filesystem.open(inode).await.unwrap();
    let (mut whole, mut sparse) = (Sha256::new(), Sha256::new());
    let mut buffer = vec![0; 1 << 20];
    let mut at = 0;
    while at < size {
        let count = file.read_at(at, &mut buffer).await.unwrap();
        assert!(count > 0, "inode {inode} ends at {at} of {size}");
        whole.update(&buffer[..count]);
        for (index, chunk) in buffer[..count].chunks(4096).enumerate() {
            if chunk.iter().any(|byte| *byte != 0) {
                sparse.update((at + index as u64 * 4096).to_le_bytes());
                sparse.update(chunk);
            }
        }
        at += count as u64;
    }
    (hex(&whole.finalize()), hex(&sparse.finalize()))
}

pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

fn escaped(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        match byte {
            b'%' | ..=0x20 | 0x7f.. => write!(text, "%{byte:02X}").unwrap(),
            byte => text.push(char::from(*byte)),
        }
        text
    })
}

/// Where two trees differ in one of `keys`, in words; nothing where they agree. A key that `theirs` lacks counts only
/// for extended attributes.
pub fn differences(ours: &Manifest, theirs: &Manifest, keys: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for (path, facts) in theirs {
        let Some(our_facts) = ours.get(path) else {
            found.push(format!("{path} is missing"));
            continue;
        };
        for key in keys {
            let (our, their) = (our_facts.get(*key), facts.get(*key));
            if our != their && (their.is_some() || *key == "xattrs") {
                found.push(format!("{path}: {key} is {our:?}, not {their:?}"));
            }
        }
    }
    found.extend(
        ours.keys().filter(|path| !theirs.contains_key(*path)).map(|path| format!("{path} is too much")),
    );
    found
}
