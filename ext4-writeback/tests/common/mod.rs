//! File systems mounted over memory, as most tests of this crate use them.
#![allow(dead_code, reason = "each test takes what it needs")]

use std::sync::Arc;

use ext4_core::device::MemoryDevice;
use ext4_core::device::simulated::Image;
use ext4_test_support::tools::assert_clean;
use ext4_writeback::{Filesystem, MountOptions};

/// A device in memory and the file system mounted on it.
pub struct Mounted {
    pub device: Arc<MemoryDevice>,
    pub filesystem: Filesystem,
}

pub async fn mount(image: &Image) -> Mounted {
    mount_with(image, MountOptions::default()).await
}

pub async fn mount_with(image: &Image, options: MountOptions) -> Mounted {
    let device = Arc::new(MemoryDevice::from_image(image.clone()));
    let filesystem = Filesystem::mount(Arc::clone(&device) as _, options).await.unwrap();
    Mounted { device, filesystem }
}

impl Mounted {
    /// Unmounts and has e2fsck look at what is left.
    pub async fn unmount_clean(self, context: &str) -> Image {
        self.filesystem.unmount().await.unwrap();
        let image = self.device.image();
        assert_clean(&image, context);
        image
    }

    /// Drops the file system as a crash would; what is left on the device.
    pub fn crash(self) -> Image {
        let image = self.device.image();
        drop(self.filesystem);
        image
    }
}
