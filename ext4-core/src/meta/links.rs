//! Link counts and times of a directory whose names change (i_links_count, `EXT4_LINK_MAX`).
//!
//! A hashed directory with more subdirectories than a link count can say has a count of 1, and keeps it.
//!
//! Source: kernel documentation, "Index Nodes" (i_links_count) and the feature dir_nlink.

use crate::error::{Errno, Error, Result};
use crate::format::features::{Features, RoCompat};
use crate::format::inode::{Inode, InodeFlags};
use crate::types::Timestamp;

/// The most links an inode has (`EXT4_LINK_MAX`).
pub const LINK_MAX: u16 = 65_000;

/// Checks that `directory` can have another subdirectory.
///
/// # Errors
/// `EMLINK` if it has [`LINK_MAX`] links, and is not a hashed one in a file system with feature dir_nlink.
pub fn check_room_for_subdirectory(features: Features, directory: &Inode) -> Result<()> {
    let uncounted =
        features.ro_compat.contains(RoCompat::DIR_NLINK) && directory.flags.contains(InodeFlags::INDEX);
    if directory.links_count >= LINK_MAX && !uncounted {
        return Err(Error::posix(Errno::EMLINK, format!("directory {}", directory.number)));
    }
    Ok(())
}

/// Counts the `..` of a new subdirectory in `directory`.
pub fn add_subdirectory(directory: &mut Inode) {
    let hashed = directory.flags.contains(InodeFlags::INDEX);
    directory.links_count = match directory.links_count {
        1 if hashed => 1,
        LINK_MAX.. if hashed => 1,
        count => count.saturating_add(1),
    };
}

/// Takes the `..` of a subdirectory off the count of `directory`, which keeps its own two links, or the 1
/// that stands for too many.
pub fn remove_subdirectory(directory: &mut Inode) {
    if directory.links_count > 2 {
        directory.links_count -= 1;
    }
}

/// Stamps `directory`, whose names changed at `now`.
pub fn names_changed(directory: &mut Inode, now: Timestamp) {
    directory.stamp_change(now);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::inode::InodeLayout;
    use crate::types::{BlockSize, InodeNumber};

    fn test_inode(mode: u16) -> Inode {
        let layout = InodeLayout {
            features: Features::default(),
            inode_size: 256,
            block_size: BlockSize::KIB_4,
            cluster_sectors: 8,
            checksum_seed: 0,
            linux: true,
            hurd: false,
        };
        Inode::new(InodeNumber(12), mode, &layout, 32, Timestamp::default())
    }

    #[test]
    fn a_hashed_directory_stops_counting_at_the_limit_and_never_starts_again() {
        let mut directory = test_inode(0o40755);
        directory.flags = InodeFlags::INDEX;
        directory.links_count = LINK_MAX - 1;
        add_subdirectory(&mut directory);
        assert_eq!(directory.links_count, LINK_MAX);
        let features = Features { ro_compat: RoCompat::DIR_NLINK, ..Features::default() };
        assert!(check_room_for_subdirectory(features, &directory).is_ok());
        assert!(check_room_for_subdirectory(Features::default(), &directory).is_err());
        add_subdirectory(&mut directory);
        assert_eq!(directory.links_count, 1);
        remove_subdirectory(&mut directory);
        add_subdirectory(&mut directory);
        assert_eq!(directory.links_count, 1);
    }

    #[test]
    fn a_linear_directory_counts() {
        let mut directory = test_inode(0o40755);
        directory.links_count = 2;
        add_subdirectory(&mut directory);
        assert_eq!(directory.links_count, 3);
        remove_subdirectory(&mut directory);
        remove_subdirectory(&mut directory);
        assert_eq!(directory.links_count, 2);
    }
}
