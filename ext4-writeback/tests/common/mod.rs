//! What the tests of this crate share: images made by mke2fs, judged by e2fsck, shown to the kernel.
//!
//! Where a tool is absent a test that needs it is skipped, except where the environment variable CI is set: there it
//! fails.
#![allow(dead_code, reason = "each test takes what it needs")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use ext4_core::device::MemoryDevice;
use ext4_core::device::simulated::Image;
use ext4_writeback::{Filesystem, MountOptions};
use tempfile::TempDir;

/// True where every tool is there; false where the test is to be skipped.
pub fn have(tools: &[&str]) -> bool {
    let missing: Vec<_> = tools.iter().filter(|tool| find(tool).is_none()).collect();
    if missing.is_empty() {
        return true;
    }
    assert!(std::env::var_os("CI").is_none(), "{missing:?} are not there");
    eprintln!("skipped: {missing:?} are not there");
    false
}

/// Where a tool lies, also in the directories of the super-user.
fn find(tool: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let more = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(more).map(|directory| directory.join(tool)).find(|path| path.exists())
}

/// Runs a tool to its end.
pub fn run(tool: &str, arguments: &[&str]) -> Output {
    let path = find(tool).unwrap_or_else(|| panic!("{tool} is not there"));
    Command::new(path).args(arguments).env("LC_ALL", "C").output().unwrap()
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Runs a tool that has to succeed.
pub fn run_ok(tool: &str, arguments: &[&str]) -> String {
    let output = run(tool, arguments);
    assert!(output.status.success(), "{tool} {arguments:?}: {}", said(&output));
    said(&output)
}

/// An image that mke2fs made: `size` as it takes it (`64M`).
pub fn mke2fs(arguments: &[&str], size: &str) -> Image {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("image");
    let mut all = vec!["-q", "-F"];
    all.extend(arguments);
    all.extend([path.to_str().unwrap(), size]);
    run_ok("mkfs.ext4", &all);
    Image::from_file(&path).unwrap()
}

/// What `e2fsck -fn` has to say; fails the test where it is not clean.
pub fn assert_clean(image: &Image, context: &str) {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("image");
    image.to_file(&path).unwrap();
    assert_file_clean(&path, context);
}

/// The same for an image in a file.
pub fn assert_file_clean(path: &Path, context: &str) {
    let output = run("e2fsck", &["-fn", path.to_str().unwrap()]);
    if !output.status.success() {
        let kept = std::env::temp_dir().join(format!("not-clean-{}.img", std::process::id()));
        let _ = std::fs::copy(path, &kept);
        panic!("{context}: e2fsck (image kept as {}): {}", kept.display(), said(&output));
    }
}

/// What debugfs answers to one request.
pub fn debugfs(image: &Image, request: &str) -> String {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("image");
    image.to_file(&path).unwrap();
    run_ok("debugfs", &["-R", request, path.to_str().unwrap()])
}

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

    /// What a crash now would leave.
    pub fn crash(self) -> Image {
        let image = self.device.image();
        drop(self.filesystem);
        image
    }
}

/// True for the super-user with loop devices.
pub fn can_mount() -> bool {
    let root = run("id", &["-u"]).stdout.starts_with(b"0\n");
    let able = root && Path::new("/dev/loop-control").exists() && find("losetup").is_some();
    assert!(able || std::env::var_os("CI").is_none(), "the kernel cross-checks need root and loop devices");
    if !able {
        eprintln!("skipped: no root or no loop devices");
    }
    able
}

/// An image that the kernel has mounted; unmounted when dropped.
pub struct KernelMount {
    directory: TempDir,
    mounted: bool,
}

impl KernelMount {
    /// Lets the kernel mount `image`.
    pub fn new(image: &Image) -> Self {
        let directory = TempDir::new().unwrap();
        let file = directory.path().join("image");
        image.to_file(&file).unwrap();
        let mut mount = Self { directory, mounted: false };
        std::fs::create_dir(mount.path()).unwrap();
        let point = mount.path();
        run_ok("mount", &["-o", "loop", "-t", "ext4", file.to_str().unwrap(), point.to_str().unwrap()]);
        mount.mounted = true;
        mount
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        self.directory.path().join("mounted")
    }

    /// Unmounts; what the kernel left.
    pub fn unmount(mut self) -> Image {
        // Another test's child may have inherited a file for the moment before it runs its program.
        let unmounted = (0..100).any(|_| {
            let done = run("umount", &[self.path().to_str().unwrap()]).status.success();
            if !done {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            done
        });
        assert!(unmounted, "{} is busy", self.path().display());
        self.mounted = false;
        Image::from_file(&self.directory.path().join("image")).unwrap()
    }
}

impl Drop for KernelMount {
    fn drop(&mut self) {
        if self.mounted {
            let _ = Command::new("umount").arg("-l").arg(self.path()).status();
        }
    }
}
