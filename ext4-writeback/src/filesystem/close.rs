//! Opening and closing files, as far as the file system counts them.

use crate::File;

impl Drop for File {
    fn drop(&mut self) {
        self.filesystem.inner.close_file(&self.inode);
    }
}
