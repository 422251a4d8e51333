//! Inline data of an open file: where it lies in the inode (fiemap).

use ext4_core::Result;

use crate::file::File;
use crate::io::inline_data::{InlineExtent, extent_of};

impl File {
    /// Where the file's inline data lies (fiemap's `FIEMAP_EXTENT_DATA_INLINE`); `None` if the file is mapped
    /// to blocks, see [`File::extents`].
    ///
    /// # Errors
    /// `EIO`, `EUCLEAN`: the device, or what it holds.
    pub async fn inline_extent(&self) -> Result<Option<InlineExtent>> {
        let volume = &self.fs().volume;
        volume.errors.check_alive()?;
        extent_of(volume, &self.inode).await
    }
}
