//! Inline data of an inode of any type: where it lies in the inode (fiemap).

use ext4_core::{InodeNumber, Result};

use crate::filesystem::Filesystem;
use crate::io::inline_data::{InlineExtent, extent_of};

impl Filesystem {
    /// Where the inline data of an inode of any type lies (fiemap's `FIEMAP_EXTENT_DATA_INLINE`), also of
    /// directories and symlinks; `None` if its data lies in blocks.
    ///
    /// # Errors
    /// - `ENOENT`: the inode is free.
    /// - `EIO`, `EUCLEAN`: the device, or what it holds.
    pub async fn inline_extent(&self, inode: InodeNumber) -> Result<Option<InlineExtent>> {
        self.observe("fiemap", inode, async {
            let inode = self.inner.inode(inode).await?;
            extent_of(&self.inner.volume, &inode).await
        })
        .await
    }
}
