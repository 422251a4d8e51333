//! Running the program `ext4`, and shorter names for what the end-to-end tests use of `ext4_test_support`.
#![allow(dead_code, reason = "each test binary uses a part")]

pub mod tree;

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use ext4_test_support::tools::{self, assert_clean, can_mount, have};

/// The outcome of one run of a program.
#[derive(Debug)]
pub struct Run {
    pub command: String,
    pub code: Option<i32>,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Run {
    fn new(command: &Command, output: Output) -> Self {
        Self {
            command: format!("{command:?}"),
            code: output.status.code(),
            stdout: output.stdout,
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Asserts that it was done, and quietly; gives standard output as text.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{}\n{}", self.command, self.stderr);
        assert!(!self.stderr.contains("panicked"), "{}\n{}", self.command, self.stderr);
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Asserts that it failed with `code` and one clear line which contains all of `words`.
    #[track_caller]
    pub fn fails(self, code: i32, words: &[&str]) -> String {
        assert_eq!(self.code, Some(code), "{}\n{}", self.command, self.stderr);
        assert!(!self.stderr.contains("panicked"), "{}\n{}", self.command, self.stderr);
        if code == 1 {
            assert_eq!(self.stderr.trim_end().lines().count(), 1, "{}\n{}", self.command, self.stderr);
            assert!(self.stderr.starts_with("ext4: "), "{}\n{}", self.command, self.stderr);
        }
        for word in words {
            assert!(self.stderr.contains(word), "{}\n'{word}' is not in: {}", self.command, self.stderr);
        }
        self.stderr
    }
}

/// The program under test, quiet about panics' backtraces.
pub fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ext4"));
    command.env("RUST_BACKTRACE", "0").env_remove("SOURCE_DATE_EPOCH").stdin(Stdio::null());
    command
}

/// Runs the program under test.
pub fn ext4<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Run {
    let mut command = program();
    command.args(arguments);
    run(command)
}

/// Runs any command.
#[track_caller]
pub fn run(mut command: Command) -> Run {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    Run::new(&command, output)
}

/// `IMAGE:/path`.
pub fn inside(image: &Path, path: &str) -> String {
    format!("{}:{path}", image.display())
}

/// Returns true if the kernel can mount images here that mke2fs made. If not, the test is to be skipped.
pub fn have_kernel() -> bool {
    can_mount() && have(&["mkfs.ext4"])
}

/// Fails the test if e2fsck finds anything in the image, or in the file system on a device.
#[track_caller]
pub fn check(image: &Path) {
    assert_clean(image, &image.display().to_string());
}

/// [`check`] of a file system whose journal lies in the file at `journal`.
#[track_caller]
pub fn check_with_journal(image: &Path, journal: &Path) {
    let mut command = tools::command("e2fsck");
    command.arg("-fn").arg("-j").arg(journal).arg(image);
    tools::succeed(&mut command);
}

/// Makes an image of `size` bytes at `image` with mke2fs and further `arguments`.
#[track_caller]
pub fn mke2fs(image: &Path, size: u64, arguments: &[&str]) {
    std::fs::File::create(image).unwrap().set_len(size).unwrap();
    tools::mke2fs(image, arguments);
}

/// Copies a file and leaves out what is zero.
#[track_caller]
pub fn copy_sparse(from: &Path, to: &Path) {
    let arguments = ["--sparse=always".as_ref(), from.as_os_str(), to.as_os_str()];
    tools::run_ok("cp", arguments);
}

/// Lets the kernel write the file at `path` to its device, as `sync FILE` does.
#[track_caller]
pub fn sync(path: &Path) {
    tools::run_ok("sync", [path]);
}
