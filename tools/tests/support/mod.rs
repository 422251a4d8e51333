//! Shared by the end-to-end tests: running the program, the judges (e2fsck, debugfs, the kernel), and guards
//! that unmount and detach also if a test panics.
#![allow(dead_code, reason = "each test binary uses a part")]

pub mod tree;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

/// What one run of a program gave.
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

/// True where `program` can be run. Where `CI` is set, its absence is a failure.
pub fn have(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|directory| directory.join(program).is_file());
    missing(found, program)
}

/// True for root with loop devices. Where `CI` is set, their absence is a failure.
pub fn have_kernel() -> bool {
    let found = nix::unistd::geteuid().is_root() && Path::new("/dev/loop-control").exists();
    missing(found, "root with loop devices") && have("losetup") && have("mkfs.ext4")
}

pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

fn missing(found: bool, what: &str) -> bool {
    assert!(found || std::env::var_os("CI").is_none(), "{what} is needed where CI is set");
    if !found {
        eprintln!("skipped: {what} is not there");
    }
    found
}

/// True for the long form of the tests (`EXT4_LONG_TESTS=1`).
pub fn long() -> bool {
    std::env::var_os("EXT4_LONG_TESTS").is_some_and(|value| value != "0")
}

/// A command with the system's administration directories in its path.
pub fn system(program: &str) -> Command {
    let mut command = Command::new(program);
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin")).env("LC_ALL", "C");
    command
}

/// Asserts that e2fsck finds nothing to complain of.
#[track_caller]
pub fn check(image: &Path) {
    if !have("e2fsck") {
        return;
    }
    let mut command = system("e2fsck");
    command.arg("-fn").arg(image);
    let run = run(command);
    let text = String::from_utf8_lossy(&run.stdout);
    assert_eq!(run.code, Some(0), "e2fsck -fn {}:\n{text}{}", image.display(), run.stderr);
}

/// What debugfs answers to one request.
#[track_caller]
pub fn debugfs(image: &Path, request: &str) -> String {
    let mut command = system("debugfs");
    command.arg("-R").arg(request).arg(image);
    run(command).ok()
}

/// Makes an image with the kernel's own mkfs.
#[track_caller]
pub fn mke2fs(image: &Path, size: u64, arguments: &[&str]) {
    std::fs::File::create(image).unwrap().set_len(size).unwrap();
    let mut command = system("mkfs.ext4");
    command.args(["-q", "-F"]).args(arguments).arg(image);
    run(command).ok();
}

/// A loop device; detached when dropped.
#[derive(Debug)]
pub struct Loop {
    pub device: PathBuf,
}

impl Loop {
    #[track_caller]
    pub fn attach(image: &Path, arguments: &[&str]) -> Self {
        let mut command = system("losetup");
        command.args(["--find", "--show"]).args(arguments).arg(image);
        let device = run(command).ok();
        Self { device: device.trim().into() }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let mut command = system("losetup");
        command.arg("--detach").arg(&self.device);
        let _ = command.output();
    }
}

/// A mount by the kernel; unmounted when dropped.
#[derive(Debug)]
pub struct Mount {
    pub directory: PathBuf,
    _device: Loop,
    _place: tempfile::TempDir,
}

impl Mount {
    #[track_caller]
    pub fn new(image: &Path, options: &str) -> Self {
        let device = Loop::attach(image, &[]);
        let place = tempfile::tempdir().unwrap();
        let directory = place.path().to_path_buf();
        let mut command = system("mount");
        command.args(["-t", "ext4", "-o", options]).arg(&device.device).arg(&directory);
        let run = run(command);
        assert_eq!(run.code, Some(0), "{}: {}", run.command, run.stderr);
        Self { directory, _device: device, _place: place }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        for attempt in 0..20 {
            let mut command = system("umount");
            // In the end lazily: nothing may stay mounted because something looked into it.
            command.args((attempt == 19).then_some("-l")).arg(&self.directory);
            if command.output().is_ok_and(|output| output.status.success()) {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}
