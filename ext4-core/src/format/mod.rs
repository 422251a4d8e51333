//! Every on-disk structure of ext4, read and written; pure, without I/O.
//!
//! Two layers: raw little-endian structs (zerocopy, the kernel documentation's field names) stay in here;
//! above them stand checked types whose fields cannot disagree. Only `core` and `alloc` are needed.
//!
//! Invariant: nothing a device holds can panic, overflow, loop without end or allocate without a bound in
//! here.
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::cast_possible_truncation)
)]

pub mod bitmap;
pub mod directory;
pub mod extent;
pub mod features;
pub mod group_descriptor;
pub mod hash;
pub mod indirect;
pub mod inode;
mod ondisk;
pub mod orphan_file;
pub mod superblock;
pub mod xattr;
