//! Where the data of an inode of any kind lies, if the inode holds it itself.

use ext4_core::{InodeNumber, Result};

use crate::filesystem::Filesystem;
use crate::io::inline_data::{InlineExtent, extent_of};

impl Filesystem {
    /// Where the data of an inode of any kind lies, if the inode holds it itself: also of directories and symlinks.
    ///
    /// # Errors
    /// Corrupt; those of the device.
    pub async fn inline_extent(&self, inode: InodeNumber) -> Result<Option<InlineExtent>> {
        self.observe("fiemap", inode, async {
            let info = self.inner.inode(inode).await?;
            extent_of(&self.inner.volume, &info).await
        })
        .await
    }
}
