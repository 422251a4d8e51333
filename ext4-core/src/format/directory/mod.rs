//! Directory blocks: names in a row, and the index over them.
//!
//! ```text
//!   a leaf      [entry][entry][entry……slack][tail: 12 bytes, with metadata_csum]
//!   index root  [.][..][root info: 8 bytes][limit, count, block][hash, block]…[slack][dx tail]   block 0
//!   index node  [an unused entry of the whole block][limit, count, block][hash, block]…[dx tail]
//! ```
//!
//! Old programs that know nothing of indices see in root and nodes only entries that cover them; so a hashed
//! directory can always be read as a linear one.
//!
//! - [`Layout`]: what the blocks of one directory look like; everything here hangs on it.
//! - [`leaf`]: entries: walking, searching, adding, removing.
//! - [`index`]: the root and nodes of a hashed directory.
//!
//! Invariant: `rec_len`s of a block chain from its start exactly to its end (or its tail). A chain that
//! misses the end would make the next writer put a name over another block's bytes.
//!
//! Source: kernel documentation, "Directory Entries".

pub mod index;
pub mod leaf;

use alloc::borrow::Cow;
use alloc::format;

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::features::{Features, Incompat};
use super::inode::Inode;
use crate::types::BlockSize;

/// The longest name, in bytes.
pub const MAX_NAME_LEN: usize = 255;
/// Bytes of an entry before its name.
pub(crate) const ENTRY_HEAD: usize = 8;
/// Bytes of a leaf's checksum tail.
pub(crate) const TAIL_LEN: usize = 12;
/// The file type of the unused entry that holds a leaf's checksum.
const TAIL_FILE_TYPE: u8 = 0xde;

/// What is wrong with a block, in words: `entry at 24: rec_len 3 is no multiple of 4`. The caller adds the
/// place.
pub type Problem = Cow<'static, str>;

/// The head of struct ext4_dir_entry_2.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawEntry {
    /// The inode; 0 for an unused entry.
    pub inode: U32,
    /// Bytes to the next entry.
    pub rec_len: U16,
    /// Bytes of the name. (Without the filetype feature this and the next byte are one number below 256.)
    pub name_len: u8,
    /// See [`super::inode::FileType::directory_byte`]; 0 without the filetype feature.
    pub file_type: u8,
}

/// struct ext4_dir_entry_tail.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawTail {
    /// No inode: unused.
    pub det_reserved_zero1: U32,
    /// 12.
    pub det_rec_len: U16,
    /// No name.
    pub det_reserved_zero2: u8,
    /// 0xDE.
    pub det_reserved_ft: u8,
    /// crc32c of inode seed and block up to here.
    pub det_checksum: U32,
}

/// What the blocks of one directory look like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    /// The size of each block.
    pub block_size: BlockSize,
    /// True if entries tell the type of their inode (feature filetype).
    pub filetype: bool,
    /// With metadata_csum: crc32c of the file system's seed, the directory's number and its generation.
    pub checksum_seed: Option<u32>,
    /// No entry may name an inode past this.
    pub inodes_count: u32,
    /// True if the index may have three levels and not just two (feature largedir).
    pub largedir: bool,
}

impl Layout {
    /// The layout of `directory` in a file system of these properties.
    #[must_use]
    pub fn new(
        block_size: BlockSize,
        features: Features,
        checksum_seed: u32,
        inodes_count: u32,
        directory: &Inode,
    ) -> Self {
        let checksum_seed = features.metadata_csum().then(|| directory.checksum_seed(checksum_seed));
        Self {
            block_size,
            filetype: features.incompat.contains(Incompat::FILETYPE),
            checksum_seed,
            inodes_count,
            largedir: features.incompat.contains(Incompat::LARGEDIR),
        }
    }

    /// The bytes of a block that entries may fill.
    #[must_use]
    pub fn leaf_len(&self) -> usize {
        let tail = if self.checksum_seed.is_some() { TAIL_LEN } else { 0 };
        self.block_size.len().saturating_sub(tail)
    }

    /// Bytes to the next entry, from the 16 bits on the device: in blocks of 64 KiB the two low bits are bits
    /// 16 and 17, and 0 and 65,535 both stand for the whole block.
    #[must_use]
    pub(crate) fn decode_rec_len(&self, raw: u16) -> usize {
        let raw = usize::from(raw);
        if self.block_size < BlockSize::KIB_64 {
            raw
        } else if raw == 0 || raw == 0xffff {
            self.block_size.len()
        } else {
            (raw & 0xfffc) | ((raw & 3) << 16)
        }
    }

    /// The inverse of [`Layout::decode_rec_len`], for a multiple of four up to the block size.
    pub(crate) fn encode_rec_len(&self, len: usize) -> u16 {
        u16::try_from(len).unwrap_or(0xffff)
    }

    /// Bytes that an entry with a name of this length needs.
    #[must_use]
    pub fn entry_len(name_len: usize) -> usize {
        name_len.saturating_add(ENTRY_HEAD).next_multiple_of(4)
    }

    pub(crate) fn check_len(&self, block: &[u8]) -> Result<(), Problem> {
        if block.len() == self.block_size.len() {
            Ok(())
        } else {
            Err(format!("{} bytes are no block of {}", block.len(), self.block_size.len()).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::index::{IndexKind, Key};
    use super::leaf::Space;
    use super::*;
    use crate::format::hash::HashVersion;
    use crate::format::inode::FileType;

    fn layout(block_size: BlockSize, checksums: bool) -> Layout {
        Layout {
            block_size,
            filetype: true,
            checksum_seed: checksums.then_some(0x1234_5678),
            inodes_count: 1000,
            largedir: false,
        }
    }

    fn empty_leaf(layout: &Layout) -> Vec<u8> {
        let mut block = vec![0xff; layout.block_size.len()];
        layout.fill_leaf(&mut block, std::iter::empty()).unwrap();
        layout.set_leaf_checksum(&mut block);
        block
    }

    fn sizes() -> impl Strategy<Value = BlockSize> {
        prop_oneof![
            Just(BlockSize::KIB_1),
            Just(BlockSize::KIB_2),
            Just(BlockSize::KIB_4),
            Just(BlockSize::KIB_64)
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_leaf_behaves_like_a_map(
            size in sizes(),
            checksums: bool,
            operations in prop::collection::vec((any::<bool>(), 0_usize..60, 1_u32..=1000), 0..300),
        ) {
            let layout = layout(size, checksums);
            let mut block = empty_leaf(&layout);
            let mut model = BTreeMap::new();
            for (add, which, inode) in operations {
                let name: Vec<u8> = format!("{which}").into_bytes().repeat(1 + which % 40);
                if add {
                    match layout.find_space(&block, &name).unwrap() {
                        Space::At(offset) => {
                            // A name that is there may lie behind the space; a caller that adds looks it up
                            // first.
                            if layout.find(&block, &name).unwrap().is_none() {
                                layout.insert(&mut block, offset, &name, inode, FileType::Regular).unwrap();
                                prop_assert!(model.insert(name, inode).is_none());
                            }
                        }
                        Space::Exists(found) => prop_assert_eq!(model.get(&name), Some(&found)),
                        Space::Full => {}
                    }
                } else {
                    let found = layout.find(&block, &name).unwrap();
                    prop_assert_eq!(found.map(|found| found.inode), model.remove(&name));
                    if let Some(found) = found {
                        layout.remove(&mut block, &found).unwrap();
                    }
                }
                layout.set_leaf_checksum(&mut block);
                layout.verify_leaf(&block).unwrap();
            }
            let entries: BTreeMap<_, _> = layout
                .entries(&block)
                .map(|entry| entry.unwrap())
                .filter(|entry| entry.inode != 0)
                .map(|entry| (entry.name.to_vec(), entry.inode))
                .collect();
            prop_assert_eq!(entries, model);
        }

        #[test]
        fn any_bytes_are_walked_safely(
            checksums: bool,
            mut block in prop::collection::vec(any::<u8>(), 1024),
            small in prop::collection::vec((0_usize..1024, 0_u8..20), 0..400),
        ) {
            for (at, value) in small {
                block[at] = value;
            }
            let layout = layout(BlockSize::KIB_1, checksums);
            let _ = layout.verify_leaf(&block);
            prop_assert!(layout.entries(&block).count() <= 128);
            if let Ok(Some(found)) = layout.find(&block, b"a") {
                let _ = layout.remove(&mut block.clone(), &found);
            }
            if let Ok(Space::At(at)) = layout.find_space(&block, b"abc") {
                let _ = layout.insert(&mut block.clone(), at, b"abc", 1, FileType::Regular);
            }
            for kind in [IndexKind::Root, IndexKind::Node] {
                let _ = layout.verify_index(&block, kind);
                let _ = layout.root_info(&block);
                let at = layout.index_search(&block, kind, 0x8000_0000);
                let _ = layout.index_key(&block, kind, at);
                let mut copy = block.clone();
                let _ = layout.insert_index_key(&mut copy, kind, at, Key { hash: 4, block: 1 });
                layout.set_index_checksum(&mut copy, kind);
            }
        }
    }

    #[test]
    fn every_flipped_bit_of_a_leaf_is_noticed() {
        let layout = layout(BlockSize::KIB_1, true);
        let mut block = empty_leaf(&layout);
        layout.insert(&mut block, 0, b"name", 12, FileType::Symlink).unwrap();
        layout.set_leaf_checksum(&mut block);
        layout.verify_leaf(&block).unwrap();
        for bit in 0..block.len() * 8 {
            block[bit / 8] ^= 1 << (bit % 8);
            assert!(layout.verify_leaf(&block).is_err(), "bit {bit}");
            block[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn rec_len_of_the_largest_blocks_is_folded() {
        let big = layout(BlockSize::KIB_64, false);
        for len in [12, 16, 4096, 65_532, 65_536] {
            assert_eq!(big.decode_rec_len(big.encode_rec_len(len)), len);
        }
        assert_eq!(big.decode_rec_len(0), 65_536);
        let small = layout(BlockSize::KIB_4, false);
        assert_eq!(small.decode_rec_len(4096), 4096);
        assert_eq!(small.decode_rec_len(0), 0);
    }

    #[test]
    fn index_keys_are_found_where_they_were_put() {
        for size in [BlockSize::KIB_1, BlockSize::KIB_4, BlockSize::KIB_64] {
            for checksums in [false, true] {
                let layout = layout(size, checksums);
                let mut block = vec![0; size.len()];
                layout.make_root(&mut block, 2, 2, HashVersion::HalfMd4, 1).unwrap();
                let kind = IndexKind::Root;
                for i in 1..layout.index_limit(kind) {
                    let hash = u32::try_from(i).unwrap().reverse_bits() & !1;
                    let at = layout.index_search(&block, kind, hash);
                    let block_number = u32::try_from(i).unwrap() + 1;
                    layout.insert_index_key(&mut block, kind, at, Key { hash, block: block_number }).unwrap();
                }
                assert!(layout.insert_index_key(&mut block, kind, 0, Key { hash: 2, block: 9 }).is_err());
                layout.set_index_checksum(&mut block, kind);
                layout.verify_index(&block, kind).unwrap();
                let info = layout.root_info(&block).unwrap();
                assert_eq!((info.hash_version, info.levels), (HashVersion::HalfMd4, 0));
                let keys: Vec<Key> = layout.index_keys(&block, kind).collect();
                assert!(keys.is_sorted_by_key(|key| key.hash));
                for (at, key) in keys.iter().enumerate() {
                    assert_eq!(layout.index_search(&block, kind, key.hash), at);
                    assert_eq!(layout.index_search(&block, kind, key.hash | 1), at);
                }
                // What covers the rest of the block lets an old reader pass over the index.
                let plain = Layout { checksum_seed: None, ..layout };
                let names: Vec<_> = plain.entries(&block).map(|entry| entry.unwrap().name).collect();
                assert_eq!(names, [b".".as_slice(), b".."]);
            }
        }
    }
}
