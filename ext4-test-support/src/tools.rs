//! The tools that judge: mke2fs, e2fsck, debugfs and whatever else a test runs.
//!
//! Tools are looked for in `PATH` and in `/usr/sbin` and `/sbin`, which many users do not have in theirs.
//! They speak English (`LC_ALL=C`) and get no standard input.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;

use ext4_core::device::MemoryDevice;
use ext4_core::device::simulated::Image;
use tempfile::NamedTempFile;

use crate::settings::skip;

/// What most tests need of e2fsprogs.
pub const E2FSPROGS: &[&str] = &["mkfs.ext4", "e2fsck", "debugfs"];

/// The caller's `PATH` and the directories of the system's administration.
static DIRECTORIES: LazyLock<Vec<PathBuf>> = LazyLock::new(|| {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]).collect()
});

/// Where `tool` lies, or `None` if it is not installed. A path with a slash is taken as it is.
#[must_use]
pub fn find(tool: impl AsRef<Path>) -> Option<PathBuf> {
    DIRECTORIES.iter().map(|directory| directory.join(tool.as_ref())).find(|path| path.is_file())
}

/// Returns true if every one of `tools` is installed. If not, the test is to be skipped, which this function
/// says.
///
/// # Panics
/// If a tool is missing and `CI` is set.
#[must_use]
#[track_caller]
pub fn have(tools: &[&str]) -> bool {
    let missing: Vec<_> = tools.iter().copied().filter(|tool| find(tool).is_none()).collect();
    if !missing.is_empty() {
        skip(&missing.join(", "));
    }
    missing.is_empty()
}

/// [`have`] for [`E2FSPROGS`].
///
/// # Panics
/// If a tool is missing and `CI` is set.
#[must_use]
#[track_caller]
pub fn have_e2fsprogs() -> bool {
    have(E2FSPROGS)
}

/// A command that runs `tool`, which is found as [`find`] does.
#[must_use]
pub fn command(tool: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(tool);
    with_directories(&mut command).stdin(Stdio::null());
    command
}

fn with_directories(command: &mut Command) -> &mut Command {
    let path = std::env::join_paths(DIRECTORIES.iter()).unwrap();
    command.env("PATH", path).env("LC_ALL", "C")
}

/// Both outputs of a tool as text, standard output first.
#[must_use]
pub fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Runs `tool` to its end, however that is.
///
/// # Panics
/// If it cannot be started.
#[track_caller]
pub fn run<S: AsRef<OsStr>>(tool: &str, arguments: impl IntoIterator<Item = S>) -> Output {
    command(tool).args(arguments).output().unwrap_or_else(|error| panic!("{tool}: {error}"))
}

/// Runs `tool`, which has to succeed; returns [both outputs](said).
///
/// # Panics
/// If it cannot be started or fails.
#[track_caller]
pub fn run_ok<S: AsRef<OsStr>>(tool: &str, arguments: impl IntoIterator<Item = S>) -> String {
    succeed(command(tool).args(arguments))
}

/// Runs a command that has to succeed; returns [both outputs](said).
///
/// # Panics
/// If it cannot be started or fails.
#[track_caller]
pub fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}\n{}", output.status, said(&output));
    said(&output)
}

/// Runs a command that has to succeed if its tool is installed; returns its standard output, or `None` if the
/// test is to be skipped.
///
/// # Panics
/// If it fails, or if its tool is missing and `CI` is set.
#[track_caller]
pub fn run_if_there(command: &mut Command) -> Option<String> {
    if find(command.get_program()).is_none() {
        skip(&command.get_program().to_string_lossy());
        return None;
    }
    let output = with_directories(command).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}\n{}", output.status, said(&output));
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Formats the file at `path`, which has its full length already, as ext4 with further `arguments` of mke2fs.
///
/// # Panics
/// If mke2fs is not installed or fails.
#[track_caller]
pub fn mke2fs(path: &Path, arguments: &[&str]) {
    succeed(command("mkfs.ext4").args(["-q", "-F"]).args(arguments).arg(path));
}

/// An image of `size` bytes that mke2fs made. `size` is a number with `K`, `M` or `G` behind it.
///
/// # Panics
/// If `size` is something else, or mke2fs is not installed or fails.
#[must_use]
#[track_caller]
pub fn mke2fs_image(arguments: &[&str], size: &str) -> Image {
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(bytes_of(size)).unwrap();
    mke2fs(file.path(), arguments);
    Image::from_file(file.path()).unwrap()
}

/// The content of [`mke2fs_image`], or `None` if mke2fs is missing: the test is to be skipped, which this
/// function says.
///
/// # Panics
/// If `size` is no size, if mke2fs fails, or if it is missing and `CI` is set.
#[must_use]
#[track_caller]
pub fn mke2fs_content(size: &str, arguments: &[&str]) -> Option<Vec<u8>> {
    have(&["mkfs.ext4"]).then(|| mke2fs_image(arguments, size).to_vec())
}

/// The bytes in a size such as `64M`.
fn bytes_of(size: &str) -> u64 {
    let units = [('K', 10), ('M', 20), ('G', 30)];
    let parsed = units.iter().find_map(|(unit, shift)| {
        let number: u64 = size.strip_suffix(*unit)?.parse().ok()?;
        Some(number << shift)
    });
    parsed.unwrap_or_else(|| panic!("{size} is no size"))
}

/// What a tool can look at: an image in memory, which is written to a temporary file, or one in a file
/// already.
pub trait Judged {
    /// Calls `judge` with the path of a file that holds the image.
    fn in_a_file<T>(&self, judge: impl FnOnce(&Path) -> T) -> T;
}

impl Judged for Path {
    fn in_a_file<T>(&self, judge: impl FnOnce(&Path) -> T) -> T {
        judge(self)
    }
}

impl Judged for PathBuf {
    fn in_a_file<T>(&self, judge: impl FnOnce(&Path) -> T) -> T {
        judge(self)
    }
}

impl Judged for Image {
    fn in_a_file<T>(&self, judge: impl FnOnce(&Path) -> T) -> T {
        let file = NamedTempFile::new().unwrap();
        self.to_file(file.path()).unwrap();
        judge(file.path())
    }
}

impl Judged for [u8] {
    fn in_a_file<T>(&self, judge: impl FnOnce(&Path) -> T) -> T {
        let file = NamedTempFile::new().unwrap();
        std::fs::write(file.path(), self).unwrap();
        judge(file.path())
    }
}

impl Judged for Vec<u8> {
    fn in_a_file<T>(&self, judge: impl FnOnce(&Path) -> T) -> T {
        self.as_slice().in_a_file(judge)
    }
}

impl Judged for MemoryDevice {
    fn in_a_file<T>(&self, judge: impl FnOnce(&Path) -> T) -> T {
        self.image().in_a_file(judge)
    }
}

/// Fails the test if `e2fsck -fn` finds anything in `image`; `context` says which image it is.
///
/// Outside of CI, an e2fsck that is not installed leaves the image unjudged, which a line says. The image
/// that is not clean is kept beside the other temporary files.
///
/// # Panics
/// If e2fsck finds something, or if it is missing and `CI` is set.
#[track_caller]
pub fn assert_clean(image: &(impl Judged + ?Sized), context: &str) {
    if !have(&["e2fsck"]) {
        return;
    }
    image.in_a_file(|path| {
        let output = run("e2fsck", [OsStr::new("-fn"), path.as_os_str()]);
        if !output.status.success() {
            let kept = std::env::temp_dir().join(format!("not-clean-{}.img", std::process::id()));
            let _ = std::fs::copy(path, &kept);
            panic!("{context}: e2fsck -fn (image kept as {}): {}", kept.display(), said(&output));
        }
    });
}

/// What debugfs answers to one `request` about `image`: its standard output.
///
/// # Panics
/// If debugfs is not installed or fails.
#[must_use]
#[track_caller]
pub fn debugfs(image: &(impl Judged + ?Sized), request: &str) -> String {
    image.in_a_file(|path| {
        let output = run("debugfs", [OsStr::new("-R"), OsStr::new(request), path.as_os_str()]);
        assert!(output.status.success(), "debugfs -R '{request}': {}", said(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    })
}

/// Lets debugfs change the image in the file at `path` by one `request`; what it said.
///
/// # Panics
/// If debugfs is not installed or fails.
#[track_caller]
pub fn debugfs_write(path: &Path, request: &str) -> String {
    run_ok("debugfs", [OsStr::new("-w"), OsStr::new("-R"), OsStr::new(request), path.as_os_str()])
}

/// What debugfs makes of `image` by one `request` that changes it.
///
/// # Panics
/// If debugfs is not installed or fails.
#[must_use]
#[track_caller]
pub fn changed_by_debugfs(image: &Image, request: &str) -> Image {
    image.in_a_file(|path| {
        debugfs_write(path, request);
        Image::from_file(path).unwrap()
    })
}

/// The content of a file packed by gzip, bzip2, xz or zstd, as its name says, or of one that is not packed.
///
/// # Panics
/// If the tool that unpacks it is not installed or fails.
#[must_use]
#[track_caller]
pub fn unpacked(path: &Path) -> Vec<u8> {
    let tool = match path.extension().and_then(OsStr::to_str) {
        Some("gz") => "gzip",
        Some("bz2") => "bzip2",
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => return std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())),
    };
    let output = run(tool, [OsStr::new("-dc"), path.as_os_str()]);
    assert!(output.status.success(), "{}: {}", path.display(), String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Returns true if the tests run as root.
#[must_use]
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Returns true if the kernel can mount images here: root, loop devices, and the tools for both. If not, the
/// test is to be skipped, which this function says.
///
/// # Panics
/// If it cannot and `CI` is set.
#[must_use]
#[track_caller]
pub fn can_mount() -> bool {
    let able = is_root() && Path::new("/dev/loop-control").exists();
    if !able {
        skip("root with loop devices");
    }
    able && have(&["losetup", "mount", "umount"])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::in_ci;

    #[test]
    fn sizes_have_units() {
        assert_eq!([bytes_of("64M"), bytes_of("512K"), bytes_of("2G")], [64 << 20, 512 << 10, 2 << 30]);
    }

    #[test]
    fn what_is_not_installed_is_not_found() {
        assert!(find("sh").is_some());
        assert!(find("no-such-tool-is-installed").is_none());
        if !in_ci() {
            assert!(!have(&["sh", "no-such-tool-is-installed"]));
        }
    }

    #[test]
    fn a_damaged_image_is_not_clean() {
        if !have_e2fsprogs() {
            return;
        }
        let mut image = mke2fs_image(&["-b", "1024"], "8M");
        assert_clean(&image, "fresh from mke2fs");
        // The free counts of the superblock, without its checksum.
        image.write(1024 + 0x0c, &[7; 4]);
        let judged = std::panic::catch_unwind(|| assert_clean(&image, "damaged"));
        let message = *judged.unwrap_err().downcast::<String>().unwrap();
        assert!(message.contains("damaged: e2fsck -fn"), "{message}");
        let kept = std::env::temp_dir().join(format!("not-clean-{}.img", std::process::id()));
        std::fs::remove_file(kept).unwrap();
    }
}
