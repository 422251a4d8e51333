//! Inodes and names in JSON.

use ext4_core::Timestamp;
use ext4_tools::display::{exact_time, type_word};
use ext4_writeback::{Attributes, InlineExtent};
use serde::Serialize;

/// A name of any bytes: `name` as text, and `name_hex` in hexadecimal if the bytes are not UTF-8.
#[derive(Serialize, Debug)]
pub struct Name {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    name_hex: Option<String>,
}

impl From<&[u8]> for Name {
    fn from(bytes: &[u8]) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(name) => Self { name: name.into(), name_hex: None },
            Err(_) => Self {
                name: String::from_utf8_lossy(bytes).into_owned(),
                name_hex: Some(bytes.iter().map(|byte| format!("{byte:02x}")).collect()),
            },
        }
    }
}

/// Inline data of an inode, and its place on the device, in bytes of the file system.
#[derive(Serialize, Debug)]
pub struct Inline {
    length: u64,
    physical_byte: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    rest_physical_byte: Option<u64>,
}

impl From<InlineExtent> for Inline {
    fn from(extent: InlineExtent) -> Self {
        Self { length: extent.len, physical_byte: extent.physical, rest_physical_byte: extent.rest }
    }
}

impl std::fmt::Display for Inline {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Inline: {} bytes in the inode, at byte {}", self.length, self.physical_byte)?;
        match self.rest_physical_byte {
            Some(rest) => write!(f, "; from byte 60 on at byte {rest}"),
            None => Ok(()),
        }
    }
}

/// The attributes of an inode. Times are decimal seconds since 1970 as text, exact to the nanosecond.
#[derive(Serialize, Debug)]
pub struct Inode {
    #[serde(flatten)]
    name: Name,
    inode: u32,
    #[serde(rename = "type")]
    kind: &'static str,
    mode: String,
    uid: u32,
    gid: u32,
    links: u32,
    size: u64,
    sectors: u64,
    atime: String,
    mtime: String,
    ctime: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    crtime: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<(u32, u32)>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
    flags: String,
    generation: u32,
}

impl Inode {
    /// An inode with a name (or path); `target` is the target of a symlink.
    pub fn new(name: &[u8], attributes: &Attributes, target: Option<&[u8]>) -> Self {
        let time = |time: Timestamp| exact_time(time);
        Self {
            name: name.into(),
            inode: attributes.inode.0,
            kind: type_word(attributes.file_type),
            mode: format!("{:04o}", attributes.mode & 0o7777),
            uid: attributes.uid,
            gid: attributes.gid,
            links: attributes.links,
            size: attributes.size,
            sectors: attributes.sectors,
            atime: time(attributes.atime),
            mtime: time(attributes.mtime),
            ctime: time(attributes.ctime),
            crtime: attributes.crtime.map(time),
            device: attributes.device,
            target: target.map(|target| String::from_utf8_lossy(target).into_owned()),
            flags: format!("{:#x}", attributes.flags.bits()),
            generation: attributes.generation,
        }
    }
}
