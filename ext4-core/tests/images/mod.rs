//! Images made by mke2fs, and e2fsck as the judge.

use std::path::Path;
use std::process::Command;

/// The content of an image that mke2fs makes with `options`; `None` if mke2fs is absent, except in CI.
pub fn mke2fs(size: &str, options: &[&str]) -> Option<Vec<u8>> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    let mut command = Command::new("mke2fs");
    command.args(["-q", "-F", "-t", "ext4"]).args(options).arg(&path).arg(size);
    run(&mut command)?;
    Some(std::fs::read(&path).unwrap())
}

/// Runs a tool of e2fsprogs that must succeed; its output, or `None` if it is absent, except in CI.
pub fn run(command: &mut Command) -> Option<String> {
    match command.output() {
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(
                output.status.success(),
                "{command:?}: {}\n{text}\n{}",
                output.status,
                String::from_utf8_lossy(&output.stderr)
            );
            Some(text)
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && std::env::var_os("CI").is_none() => {
            eprintln!("{command:?}: not there, skipped");
            None
        }
        Err(error) => panic!("{command:?}: {error}"),
    }
}

/// Fails unless `e2fsck -fn` finds nothing in an image.
pub fn e2fsck(content: &[u8], what: &str) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    std::fs::write(&path, content).unwrap();
    e2fsck_file(&path, what);
}

/// Fails unless `e2fsck -fn` finds nothing in the image at `path`.
pub fn e2fsck_file(path: &Path, what: &str) {
    println!("{what}");
    run(Command::new("e2fsck").arg("-fn").arg(path));
}
