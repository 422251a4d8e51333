//! Link counts (i_links_count) of directories. A hashed directory with more subdirectories than a link count
//! can hold has a count of 1, and keeps it (feature `dir_nlink`).
//!
//! Source: kernel documentation, "Index Nodes" (i_links_count) and the feature dir_nlink.

use ext4_core::format::features::{Features, RoCompat};
use ext4_core::format::inode::{Inode, InodeFlags};
use ext4_core::{Errno, Error, Result};

/// The most links an inode has (`EXT4_LINK_MAX`).
pub const LINK_MAX: u16 = 65_000;

/// Checks that `directory` can have another subdirectory.
///
/// # Errors
/// `EMLINK`: it has 65,000 links, and is not hashed or the feature `dir_nlink` is off.
pub fn check_room_for_subdirectory(features: Features, directory: &Inode) -> Result<()> {
    let uncounted =
        features.ro_compat.contains(RoCompat::DIR_NLINK) && directory.flags.contains(InodeFlags::INDEX);
    if directory.links_count >= LINK_MAX && !uncounted {
        return Err(Error::posix(Errno::EMLINK, format!("directory {}", directory.number)));
    }
    Ok(())
}

/// Raises the link count of `directory` for the `..` of a new subdirectory.
pub fn add_subdirectory(directory: &mut Inode) {
    let hashed = directory.flags.contains(InodeFlags::INDEX);
    directory.links_count = match directory.links_count {
        1 if hashed => 1,
        LINK_MAX.. if hashed => 1,
        count => count.saturating_add(1),
    };
}

/// Lowers the link count of `directory` for the `..` of a subdirectory that was removed. It keeps its own two
/// links, or the count of 1.
pub fn remove_subdirectory(directory: &mut Inode) {
    if directory.links_count > 2 {
        directory.links_count -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::test_inode;

    #[test]
    fn a_hashed_directory_stops_counting_at_the_limit_and_never_starts_again() {
        let mut directory = test_inode(12, 0o40755);
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
        let mut directory = test_inode(12, 0o40755);
        directory.links_count = 2;
        add_subdirectory(&mut directory);
        assert_eq!(directory.links_count, 3);
        remove_subdirectory(&mut directory);
        remove_subdirectory(&mut directory);
        assert_eq!(directory.links_count, 2);
    }
}
