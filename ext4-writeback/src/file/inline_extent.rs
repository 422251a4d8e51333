//! Where an open file's data lies, if the inode holds it itself.

use ext4_core::Result;

use crate::file::File;
use crate::io::inline_data::{InlineExtent, extent_of};

impl File {
    /// Where the file's data lies, if the inode holds it itself (fiemap's FIEMAP_EXTENT_DATA_INLINE); `None` if it is
    /// mapped to blocks, see [`File::extents`].
    ///
    /// # Errors
    /// Corrupt; those of the device.
    pub async fn inline_extent(&self) -> Result<Option<InlineExtent>> {
        let volume = &self.fs().volume;
        volume.errors.check_alive()?;
        extent_of(volume, &self.inode).await
    }
}
