//! Loop devices and the kernel's mounts, which end with the value that stands for them.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ext4_core::device::simulated::Image;
use tempfile::TempDir;

use crate::tools::{can_mount, command, run_ok, said};

/// A loop device over a file; detached when dropped. Needs [`can_mount`].
#[derive(Debug)]
pub struct LoopDevice {
    path: PathBuf,
}

impl LoopDevice {
    /// Attaches the next free loop device to `file`, with further `arguments` of losetup.
    ///
    /// # Panics
    /// If losetup fails.
    #[track_caller]
    pub fn attach(file: &Path, arguments: &[&str]) -> Self {
        let fixed = ["--find", "--show"].iter().chain(arguments).map(OsStr::new);
        let name = run_ok("losetup", fixed.chain([file.as_os_str()]));
        Self { path: name.trim().into() }
    }

    /// The device's own path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = command("losetup").arg("--detach").arg(&self.path).output();
    }
}

/// An image that the kernel has mounted as ext4; unmounted when dropped. Needs
/// [`can_mount`].
#[derive(Debug)]
pub struct KernelMount {
    // Dropped in this order, after the mount has ended: the device before the file below it.
    device: LoopDevice,
    place: TempDir,
    mounted: bool,
    image: PathBuf,
}

impl KernelMount {
    /// Lets the kernel mount the image in the file at `path`, with mount `options` as `mount -o` takes them.
    ///
    /// # Panics
    /// If the kernel does not mount it.
    #[track_caller]
    pub fn of_file(path: &Path, options: &str) -> Self {
        Self::new(path.to_path_buf(), tempfile::tempdir().unwrap(), options)
    }

    /// Lets the kernel mount the image in the file at `path` for reading and writing, or `None` if it
    /// [cannot](can_mount): the test is to be skipped, which this function says.
    ///
    /// # Panics
    /// If the kernel does not mount it, or if it cannot and `CI` is set.
    #[track_caller]
    pub fn if_possible(path: &Path) -> Option<Self> {
        can_mount().then(|| Self::of_file(path, "rw"))
    }

    /// Lets the kernel mount a copy of `image`.
    ///
    /// # Panics
    /// If the kernel does not mount it.
    #[track_caller]
    pub fn of_image(image: &Image) -> Self {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("image");
        image.to_file(&path).unwrap();
        Self::new(path, place, "rw")
    }

    #[track_caller]
    fn new(image: PathBuf, place: TempDir, options: &str) -> Self {
        let device = LoopDevice::attach(&image, &[]);
        let mut mount = Self { device, place, mounted: false, image };
        std::fs::create_dir(mount.directory()).unwrap();
        let mut tool = command("mount");
        tool.args(["-t", "ext4", "-o", options]).arg(mount.device.path()).arg(mount.directory());
        let output = tool.output().unwrap();
        assert!(output.status.success(), "{tool:?}: {}", said(&output));
        mount.mounted = true;
        mount
    }

    /// The directory on which it is mounted.
    #[must_use]
    pub fn directory(&self) -> PathBuf {
        self.place.path().join("mounted")
    }

    /// The path of `name` below that directory.
    #[must_use]
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.directory().join(name)
    }

    /// Unmounts and detaches; what the kernel left in the image.
    ///
    /// # Panics
    /// If the mount stays busy.
    #[track_caller]
    pub fn unmount(mut self) -> Image {
        self.end();
        Image::from_file(&self.image).unwrap()
    }

    /// Unmounts, waiting a while for children of other tests, which may have inherited an open file for the
    /// moment before they run their program.
    #[track_caller]
    fn end(&mut self) {
        let directory = self.directory();
        let unmounted = (0..250).any(|_| {
            let done = command("umount").arg(&directory).output().is_ok_and(|output| output.status.success());
            if !done {
                std::thread::sleep(Duration::from_millis(20));
            }
            done
        });
        self.mounted = false;
        if !unmounted {
            // Lazily: nothing stays mounted because something looked into it.
            let _ = command("umount").arg("-l").arg(&directory).output();
        }
        assert!(unmounted || std::thread::panicking(), "{} stays busy", directory.display());
    }
}

impl Drop for KernelMount {
    fn drop(&mut self) {
        if self.mounted {
            self.end();
        }
    }
}
