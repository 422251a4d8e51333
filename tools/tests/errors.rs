//! Errors of the command line tool: one clear line, the right exit code, no half-written target.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;

use ext4_test_support::loop_device::{KernelMount, LoopDevice};
use ext4_test_support::tools::is_root;
use support::{check, ext4, have_kernel, inside, mke2fs, program, run};

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn source(work: &Path) -> std::path::PathBuf {
    let source = work.join("in");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("file"), vec![7; 3 << 20]).unwrap();
    source
}

#[test]
fn wrong_usage_is_exit_code_2() {
    for arguments in [
        &["frobnicate"][..],
        &["ls"],
        &["ls", "disk.img"],
        &["ls", "--no-such-option", "disk.img:/"],
        &["--backend", "floppy", "df", "disk.img"],
        &["--offset", "12Q", "df", "disk.img"],
        &["pack", "-b", "3000", ".", "disk.img"],
        &["pack", "-O", "no_such_feature", ".", "disk.img"],
        &["pack", "-E", "hash_seed=1", ".", "disk.img"],
        &["pack", "-U", "not-a-uuid", ".", "disk.img"],
        &["pack", "-L", "a label that is too long", ".", "disk.img"],
        &["cp", "a", "b"],
        &["cp", "-", "-"],
        &["mkdir", "-m", "9", "disk.img:/x"],
    ] {
        let work = tempfile::tempdir().unwrap();
        let mut command = program();
        command.current_dir(work.path()).args(arguments);
        run(command).fails(2, &[]);
        assert!(names(work.path()).is_empty(), "{arguments:?} leaves nothing");
    }
}

#[test]
fn every_command_explains_itself() {
    let help = ext4(["--help"]).ok();
    for command in [
        "mkfs", "pack", "unpack", "info", "ls", "stat", "cat", "cp", "mkdir", "rm", "mv", "ln", "df",
        "extents", "journal", "trim",
    ] {
        assert!(help.contains(&format!("  {command} ")), "{command} in {help}");
        let text = ext4([command, "--help"]).ok();
        assert!(text.contains("Examples:\n  ext4 "), "{command}: {text}");
    }
}

#[test]
fn a_target_that_is_not_there_or_no_file_system_is_said_in_one_line() {
    let work = tempfile::tempdir().unwrap();
    let at = |name: &str| work.path().join(name);
    fs::write(at("empty"), "").unwrap();
    fs::write(at("short"), vec![0; 1000]).unwrap();
    fs::write(at("zeros"), vec![0; 1 << 20]).unwrap();
    fs::write(at("noise"), (0..1 << 20).map(|_| fastrand::u8(..)).collect::<Vec<_>>()).unwrap();
    fs::create_dir(at("directory")).unwrap();
    for name in ["missing", "empty", "short", "zeros", "noise", "directory"] {
        for command in [&["info"][..], &["df"]] {
            let mut run_it = program();
            run_it.args(command).arg(at(name));
            run(run_it).fails(1, &[name]);
        }
        ext4(["ls", &inside(&at(name), "/")]).fails(1, &[name]);
        ext4(["mkdir", &inside(&at(name), "/x")]).fails(1, &[name]);
        ext4(["cp", "/etc/passwd", &inside(&at(name), "/x")]).fails(1, &[name]);
    }
    run({
        let mut command = program();
        command.args(["ls", "/dev/null:/"]);
        command
    })
    .fails(1, &["/dev/null"]);
    assert_eq!(fs::read(at("zeros")).unwrap(), vec![0; 1 << 20], "nothing was written");
}

#[test]
fn a_truncated_image_is_refused() {
    let work = tempfile::tempdir().unwrap();
    let image = work.path().join("disk.img");
    ext4(["mkfs".as_ref(), image.as_os_str(), "64M".as_ref()]).ok();
    fs::File::options().write(true).open(&image).unwrap().set_len(20 << 20).unwrap();
    ext4(["ls", &inside(&image, "/")]).fails(1, &["disk.img"]);
    ext4(["mkdir", &inside(&image, "/x")]).fails(1, &["disk.img"]);
}

#[test]
fn absent_paths_and_wrong_types_are_named() {
    let work = tempfile::tempdir().unwrap();
    let image = work.path().join("disk.img");
    ext4(["mkfs".as_ref(), image.as_os_str(), "16M".as_ref()]).ok();
    let place = |path: &str| inside(&image, path);
    ext4(["mkdir", &place("/directory")]).ok();
    ext4(["cp", "/etc/passwd", &place("/file")]).ok();
    for (arguments, words) in [
        (vec!["ls".into(), place("/nope")], "No such file"),
        (vec!["stat".into(), place("/file/below")], "Not a directory"),
        (vec!["cat".into(), place("/directory")], "Is a directory"),
        (vec!["cat".into(), place("/nope")], "No such file"),
        (vec!["rm".into(), place("/directory")], "-r"),
        (vec!["rm".into(), place("/nope")], "No such file"),
        (vec!["rm".into(), "-r".into(), place("/")], "root"),
        (vec!["mkdir".into(), place("/directory")], "exists"),
        (vec!["mkdir".into(), place("/a/b")], "No such file"),
        (vec!["cp".into(), "/nonexistent".into(), place("/x")], "No such file"),
        (vec!["cp".into(), "/etc".into(), place("/x")], "-r"),
        (vec!["cp".into(), place("/nope"), "/tmp/x".into()], "No such file"),
        (vec!["cp".into(), place("/directory"), "/tmp/x".into()], "-r"),
        (vec!["cp".into(), "-r".into(), place("/directory"), place("/directory/x")], "itself"),
        (vec!["mv".into(), place("/nope"), place("/x")], "No such file"),
        (vec!["ln".into(), place("/nope"), place("/x")], "No such file"),
        (vec!["extents".into(), place("/directory")], "regular"),
    ] {
        ext4(&arguments).fails(1, &[words]);
    }
    ext4(["rm", "-f", &place("/nope")]).ok();
    check(&image);
}

#[test]
fn a_read_only_image_is_read_and_not_written() {
    let work = tempfile::tempdir().unwrap();
    let image = work.path().join("disk.img");
    ext4(["mkfs".as_ref(), image.as_os_str(), "16M".as_ref()]).ok();
    ext4(["cp", "/etc/passwd", &inside(&image, "/file")]).ok();
    if is_root() {
        if !have_kernel() {
            return;
        }
        let device = LoopDevice::attach(&image, &["--read-only"]);
        ext4(["ls", &inside(device.path(), "/")]).ok();
        ext4(["mkdir", &inside(device.path(), "/x")]).fails(1, &[]);
        ext4(["mkfs".as_ref(), "--force".as_ref(), device.path().as_os_str()]).fails(1, &[]);
    } else {
        fs::set_permissions(&image, fs::Permissions::from_mode(0o444)).unwrap();
        ext4(["ls", &inside(&image, "/")]).ok();
        ext4(["mkdir", &inside(&image, "/x")]).fails(1, &["disk.img", "Permission"]);
    }
    check(&image);
}

#[test]
fn a_mounted_device_is_refused() {
    if !have_kernel() {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let source = source(work.path());
    let image = work.path().join("disk.img");
    mke2fs(&image, 64 << 20, &[]);
    let mount = KernelMount::of_file(&image, "rw");
    let device = fs::read_to_string("/proc/mounts")
        .unwrap()
        .lines()
        .find(|line| line.contains(mount.directory().to_str().unwrap()))
        .and_then(|line| line.split(' ').next().map(String::from))
        .unwrap();
    ext4(["mkdir", &format!("{device}:/x")]).fails(1, &["busy"]);
    for backend in ["auto", "file", "uring"] {
        let mut command = program();
        command.args(["--backend", backend, "pack", "--force"]).arg(&source).arg(&device);
        run(command).fails(1, &["busy"]);
        ext4(["--backend", backend, "mkfs", "--force", &device]).fails(1, &["busy"]);
    }
    drop(mount);
    check(&image);
}

#[test]
fn an_image_that_is_too_small_leaves_no_target() {
    let work = tempfile::tempdir().unwrap();
    let source = source(work.path());
    let image = work.path().join("disk.img");
    let pack = |size: &str| {
        let mut command = program();
        command.args(["pack", "--size", size]).arg(&source).arg(&image);
        run(command)
    };
    pack("2M").fails(1, &["disk.img"]);
    pack("3M").fails(1, &["disk.img"]);
    pack("100").fails(1, &[]);
    assert_eq!(names(work.path()), ["in"]);
    fs::write(&image, "what was there before").unwrap();
    pack("3M").fails(1, &["disk.img"]);
    assert_eq!(fs::read(&image).unwrap(), b"what was there before");
    assert_eq!(names(work.path()), ["disk.img", "in"]);
}

#[test]
fn a_source_that_cannot_be_read_leaves_no_target() {
    let work = tempfile::tempdir().unwrap();
    let image = work.path().join("disk.img");
    for missing in ["/nonexistent", "/etc/passwd"] {
        let mut command = program();
        command.args(["pack", missing]).arg(&image);
        run(command).fails(1, &[missing]);
    }
    if !is_root() {
        let source = source(work.path());
        fs::set_permissions(source.join("file"), fs::Permissions::from_mode(0o000)).unwrap();
        let mut command = program();
        command.arg("pack").arg(&source).arg(&image);
        run(command).fails(1, &["in/file", "Permission"]);
    }
    assert!(!image.exists());
}

#[test]
fn a_full_image_says_so_and_stays_whole() {
    let work = tempfile::tempdir().unwrap();
    let image = work.path().join("disk.img");
    ext4(["mkfs".as_ref(), image.as_os_str(), "16M".as_ref()]).ok();
    let large = work.path().join("large");
    fs::write(&large, vec![1; 30 << 20]).unwrap();
    ext4(["cp", large.to_str().unwrap(), &inside(&image, "/large")]).fails(1, &["No space"]);
    check(&image);
    ext4(["rm", "-f", &inside(&image, "/large")]).ok();
    ext4(["cp", "/etc/passwd", &inside(&image, "/small")]).ok();
    check(&image);
    let few = work.path().join("few.img");
    ext4(["mkfs".as_ref(), "-N".as_ref(), "16".as_ref(), few.as_os_str(), "16M".as_ref()]).ok();
    let many = work.path().join("many");
    fs::create_dir(&many).unwrap();
    for number in 0..200 {
        fs::write(many.join(format!("{number}")), "").unwrap();
    }
    ext4(["cp", "-r", many.to_str().unwrap(), &inside(&few, "/many")]).fails(1, &["No space"]);
    check(&few);
}

#[test]
fn an_interrupted_pack_leaves_no_target() {
    let work = tempfile::tempdir().unwrap();
    let source = work.path().join("in");
    fs::create_dir(&source).unwrap();
    for number in 0..40 {
        fs::write(source.join(format!("{number}")), vec![number; 4 << 20]).unwrap();
    }
    let image = work.path().join("disk.img");
    let mut interrupted = false;
    for milliseconds in [20, 60, 120, 250, 500] {
        let mut command = program();
        command.arg("pack").arg(&source).arg(&image).stdout(Stdio::null()).stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(milliseconds));
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let output = child.wait_with_output().unwrap();
        if output.status.success() {
            check(&image);
            fs::remove_file(&image).unwrap();
        } else {
            interrupted = true;
        }
        assert_eq!(names(work.path()), ["in"], "after {milliseconds} ms");
    }
    assert!(interrupted, "no run was slow enough");
}

#[test]
fn an_existing_file_system_is_not_made_over_without_force() {
    let work = tempfile::tempdir().unwrap();
    let image = work.path().join("disk.img");
    ext4(["mkfs".as_ref(), image.as_os_str(), "16M".as_ref()]).ok();
    ext4(["cp", "/etc/passwd", &inside(&image, "/file")]).ok();
    ext4(["mkfs".as_ref(), image.as_os_str()]).fails(1, &["--force"]);
    ext4(["mkfs".as_ref(), image.as_os_str(), "32M".as_ref()]).fails(1, &["--force"]);
    ext4(["cat", &inside(&image, "/file")]).ok();
    ext4(["mkfs".as_ref(), image.as_os_str(), "--force".as_ref()]).ok();
    assert_eq!(ext4(["ls", &inside(&image, "/")]).ok(), "lost+found\n");
    check(&image);
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let work = tempfile::tempdir().unwrap();
    let image = work.path().join("disk.img");
    ext4(["mkfs".as_ref(), image.as_os_str(), "64M".as_ref()]).ok();
    let large = work.path().join("large");
    fs::write(&large, vec![b'x'; 8 << 20]).unwrap();
    ext4(["cp", large.to_str().unwrap(), &inside(&image, "/large")]).ok();
    let mut command = program();
    command.args(["cat", &inside(&image, "/large")]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}
