//! Each command does what it says, and leaves a file system that e2fsck finds clean.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::Stdio;

use ext4_test_support::tools::{debugfs, have};
use support::{check, ext4, inside, program, run};

/// An image of 64 MiB in a directory that goes with it.
struct Image {
    _work: tempfile::TempDir,
    directory: PathBuf,
    path: PathBuf,
}

impl Image {
    fn new() -> Self {
        Self::with(&[])
    }

    fn with(arguments: &[&str]) -> Self {
        let work = tempfile::tempdir().unwrap();
        let directory = work.path().to_path_buf();
        let path = directory.join("disk.img");
        // Blocks of 4 KiB: the unit of direct I/O on some of the file systems that tests run on.
        let mut command = program();
        command.args(["mkfs", "-b", "4096"]).args(arguments).arg(&path).arg("64M");
        run(command).ok();
        check(&path);
        Self { _work: work, directory, path }
    }

    fn at(&self, path: &str) -> String {
        inside(&self.path, path)
    }
}

#[test]
fn directories_links_and_moves() {
    let image = Image::new();
    ext4(["mkdir", "-p", "-m", "2750", "--owner", "5:6", &image.at("/a/b/c")]).ok();
    ext4(["mkdir", "-p", &image.at("/a/b/c")]).ok();
    ext4(["cp", "/etc/passwd", &image.at("/a/file")]).ok();
    ext4(["ln", &image.at("/a/file"), &image.at("/a/hard")]).ok();
    ext4(["ln", "/a/file", &image.at("/a/hard-2")]).ok();
    ext4(["ln", "-s", "../file", &image.at("/a/b/soft")]).ok();
    ext4(["ln", "-s", "elsewhere", &image.at("/a/b/soft")]).fails(1, &["exists"]);
    ext4(["ln", "-sf", "../file", &image.at("/a/b/soft")]).ok();
    check(&image.path);
    let passwd = fs::read_to_string("/etc/passwd").unwrap();
    assert_eq!(ext4(["cat", &image.at("/a/b/soft")]).ok(), passwd);
    let stat = ext4(["stat", "--json", &image.at("/a/hard")]).ok();
    assert!(stat.contains("\"links\": 3"), "{stat}");
    let stat = ext4(["stat", "--json", &image.at("/a/b/c")]).ok();
    assert!(stat.contains("\"mode\": \"2750\"") && stat.contains("\"uid\": 5"), "{stat}");

    ext4(["mv", &image.at("/a/b"), &image.at("/moved")]).ok();
    ext4(["mv", &image.at("/a/hard"), &image.at("/a/hard-2"), &image.at("/moved/c")]).ok();
    ext4(["mv", "-n", &image.at("/a/file"), &image.at("/moved/soft")]).fails(1, &["exists"]);
    assert_eq!(ext4(["ls", &image.at("/moved")]).ok(), "c\nsoft\n");
    assert_eq!(ext4(["ls", &image.at("/moved/c")]).ok(), "hard\nhard-2\n");
    check(&image.path);
    ext4(["rm", "-r", &image.at("/a"), &image.at("/moved")]).ok();
    assert_eq!(ext4(["ls", &image.at("/")]).ok(), "lost+found\n");
    check(&image.path);
}

#[test]
fn listings_show_what_is_there() {
    let image = Image::new();
    ext4(["mkdir", "-m", "755", "--owner", "1:2", &image.at("/directory")]).ok();
    ext4(["ln", "-s", "--owner", "0:0", "target", &image.at("/link")]).ok();
    let file = image.directory.join("file");
    fs::write(&file, "12345").unwrap();
    ext4(["cp", "--owner", "3:4", file.to_str().unwrap(), &image.at("/directory/.hidden")]).ok();
    assert_eq!(ext4(["ls", &image.at("/")]).ok(), "directory\nlink\nlost+found\n");
    assert_eq!(ext4(["ls", &image.at("/directory")]).ok(), "");
    assert_eq!(ext4(["ls", "-a", &image.at("/directory")]).ok(), ".\n..\n.hidden\n");
    let long = ext4(["ls", "-l", &image.at("/")]).ok();
    assert!(
        long.lines().any(|line| line.starts_with("lrwxrwxrwx ") && line.ends_with(" link -> target")),
        "{long}"
    );
    assert!(long.lines().any(|line| line.starts_with("drwxr-xr-x 2 1 2 ")), "{long}");
    let recursive = ext4(["ls", "-aR", &image.at("/directory")]).ok();
    assert!(recursive.ends_with("/directory:\n.\n..\n.hidden\n"), "{recursive}");
    let json: serde_json::Value =
        serde_json::from_str(&ext4(["ls", "-a", "--json", &image.at("/directory")]).ok()).unwrap();
    let entry = &json[0]["entries"][2];
    assert_eq!(entry["name"], ".hidden");
    assert_eq!(
        (entry["size"].as_u64(), entry["uid"].as_u64(), entry["gid"].as_u64()),
        (Some(5), Some(3), Some(4))
    );
    let df: serde_json::Value =
        serde_json::from_str(&ext4(["df".as_ref(), "--json".as_ref(), image.path.as_os_str()]).ok()).unwrap();
    assert!(df["free_bytes"].as_u64().unwrap() > 50 << 20, "{df}");
    assert!(ext4(["df".as_ref(), image.path.as_os_str()]).ok().contains("1K-blocks"));
    check(&image.path);
}

#[test]
fn trimming_makes_an_image_sparse_again() {
    trimming(&Image::new());
    trimming(&Image::with(&["-O", "bigalloc"]));
}

fn trimming(image: &Image) {
    use std::os::unix::fs::MetadataExt;
    let big = image.directory.join("big");
    fs::write(&big, vec![7; 20 << 20]).unwrap();
    ext4(["cp", big.to_str().unwrap(), &image.at("/big")]).ok();
    ext4(["rm", &image.at("/big")]).ok();
    let room = || fs::metadata(&image.path).unwrap().blocks() * 512;
    let before = room();
    let path = image.path.to_str().unwrap();
    let report: serde_json::Value = serde_json::from_str(&ext4(["trim", "--json", path]).ok()).unwrap();
    assert!(report["trimmed_bytes"].as_u64().unwrap() > 40 << 20, "{report}");
    assert!(room() + (18 << 20) < before, "{} of {before} bytes are left", room());
    let part = ext4(["trim", "--from", "8M", "--length", "1M", path]).ok();
    assert!(part.ends_with(" bytes were trimmed\n"), "{part}");
    ext4(["trim", "--from", "1T", path]).fails(1, &["trimming"]);
    check(&image.path);
}

#[test]
fn copies_go_where_cp_would_put_them() {
    let image = Image::new();
    let local = |name: &str| image.directory.join(name).to_str().unwrap().to_string();
    fs::create_dir_all(local("tree/below")).unwrap();
    fs::write(local("tree/below/file"), "one").unwrap();
    fs::write(local("plain"), "two").unwrap();
    fs::write(local("with:colon"), "three").unwrap();

    ext4(["cp", "-r", &local("tree"), &image.at("/copy")]).ok();
    ext4(["cp", "-r", &local("tree"), &image.at("/copy")]).ok();
    ext4(["cp", "-r", &format!("{}/.", local("tree")), &image.at("/copy")]).ok();
    ext4(["cp", &local("plain"), &local("with:colon"), &image.at("/copy/")]).ok();
    ext4(["cp", &local("plain"), &local("with:colon"), &image.at("/nowhere")]).fails(1, &["Not a directory"]);
    check(&image.path);
    assert_eq!(ext4(["ls", &image.at("/copy")]).ok(), "below\nplain\ntree\nwith:colon\n");
    assert_eq!(ext4(["cat", &image.at("/copy/tree/below/file")]).ok(), "one");

    // Overwriting: shorter content leaves nothing of the longer.
    ext4(["cp", "/etc/passwd", &image.at("/copy/plain")]).ok();
    ext4(["cp", &local("plain"), &image.at("/copy/plain")]).ok();
    assert_eq!(ext4(["cat", &image.at("/copy/plain")]).ok(), "two");

    // Out of the image, and on to another.
    ext4(["cp", "-r", &image.at("/copy"), &local("out")]).ok();
    ext4(["cp", &image.at("/copy/plain"), &local("out/below")]).ok();
    assert_eq!(fs::read_to_string(local("out/below/plain")).unwrap(), "two");
    assert_eq!(fs::read_to_string(local("out/tree/below/file")).unwrap(), "one");
    let other = Image::new();
    ext4(["cp", "-a", &image.at("/copy"), &other.at("/")]).ok();
    assert_eq!(ext4(["cat", &other.at("/copy/with:colon")]).ok(), "three");
    ext4(["cp", "-a", &other.at("/copy"), &other.at("/copy2")]).ok();
    assert_eq!(ext4(["cat", &other.at("/copy2/below/file")]).ok(), "one");
    check(&image.path);
    check(&other.path);
}

#[test]
fn standard_input_and_output_are_places() {
    let image = Image::new();
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|number| number.to_le_bytes()[1]).collect();
    let mut command = program();
    command.args(["cp", "-", &image.at("/file")]).stdin(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(&bytes).unwrap();
    assert!(child.wait().unwrap().success());
    check(&image.path);
    let mut command = program();
    command.args(["cp", &image.at("/file"), "-"]);
    assert!(run(command).stdout == bytes);
}

#[test]
fn metadata_is_kept_when_asked_for() {
    let image = Image::new();
    let file = image.directory.join("file");
    fs::write(&file, "x").unwrap();
    let moment = nix::sys::time::TimeSpec::new(1_000_000_000, 123_456_789);
    let at = nix::fcntl::AT_FDCWD;
    let flags = nix::sys::stat::UtimensatFlags::NoFollowSymlink;
    nix::sys::stat::utimensat(at, &file, &moment, &moment, flags).unwrap();
    // First the copy that keeps the access time: reading for the other one changes it.
    ext4(["cp", "-p", file.to_str().unwrap(), &image.at("/kept")]).ok();
    ext4(["cp", file.to_str().unwrap(), &image.at("/plain")]).ok();
    let stat = |path: &str| ext4(["stat", "--json", &image.at(path)]).ok();
    assert!(!stat("/plain").contains("1000000000.123456789"));
    assert!(stat("/kept").contains("\"mtime\": \"1000000000.123456789\""), "{}", stat("/kept"));
    assert!(stat("/kept").contains("\"atime\": \"1000000000.123456789\""));
    ext4(["cp", "-p", &image.at("/kept"), image.directory.join("back").to_str().unwrap()]).ok();
    let back = fs::metadata(image.directory.join("back")).unwrap();
    assert_eq!(back.modified().unwrap(), fs::metadata(&file).unwrap().modified().unwrap());
}

#[test]
fn extents_are_those_that_debugfs_sees() {
    let image = Image::new();
    let file = image.directory.join("file");
    let content = fs::File::create(&file).unwrap();
    for piece in 0..6_u64 {
        std::os::unix::fs::FileExt::write_all_at(&content, &[1; 8192], piece * 65536).unwrap();
    }
    drop(content);
    ext4(["cp", file.to_str().unwrap(), &image.at("/file")]).ok();
    let json: serde_json::Value =
        serde_json::from_str(&ext4(["extents", "--json", &image.at("/file")]).ok()).unwrap();
    let extents = json["extents"].as_array().unwrap();
    assert_eq!(extents.len(), 6, "{json}");
    let block_size = json["block_size"].as_u64().unwrap();
    for (piece, extent) in (0_u64..).zip(extents) {
        assert_eq!(extent["logical"].as_u64().unwrap() * block_size, piece * 65536);
        assert_eq!(extent["length"].as_u64().unwrap() * block_size, 8192);
    }
    if have(&["debugfs"]) {
        for extent in extents {
            let block = debugfs(&image.path, &format!("bmap /file {}", extent["logical"]));
            assert_eq!(block.trim(), extent["physical"].to_string());
        }
    }
    let table = ext4(["extents", &image.at("/file")]).ok();
    assert!(table.contains("last"), "{table}");
    check(&image.path);
}

#[test]
fn durable_files_are_reported_one_by_one() {
    let image = Image::new();
    let tree = image.directory.join("tree");
    fs::create_dir(&tree).unwrap();
    for number in 0..5 {
        fs::write(tree.join(format!("{number}")), "x").unwrap();
    }
    let report = ext4(["cp", "-r", "--report-durable", tree.to_str().unwrap(), &image.at("/tree")]).ok();
    let expected: Vec<String> = (0..5).map(|number| format!("durable {}/{number}", tree.display())).collect();
    assert_eq!(report.lines().collect::<Vec<_>>(), expected);
    check(&image.path);
}

#[test]
fn the_file_backend_and_io_uring_do_the_same() {
    let image = Image::new();
    for backend in ["auto", "file", "uring"] {
        let name = image.at(&format!("/{backend}"));
        ext4(["--backend", backend, "cp", "/etc/passwd", &name]).ok();
        check(&image.path);
        for reader in ["auto", "file", "uring"] {
            let text = ext4(["--backend", reader, "cat", &name]).ok();
            assert_eq!(text, fs::read_to_string("/etc/passwd").unwrap());
        }
    }
}

#[test]
fn verbose_speaks_on_standard_error() {
    let image = Image::new();
    let quiet = ext4(["cp", "/etc/passwd", &image.at("/a")]);
    assert_eq!(quiet.stderr, "");
    let loud = ext4(["-v", "cp", "/etc/passwd", &image.at("/b")]);
    assert!(loud.stderr.contains("copied"), "{}", loud.stderr);
}

/// `-o` reaches the mount: what is asked for is seen in what the command leaves behind.
#[test]
fn mount_options_reach_the_mount() {
    let image = Image::new();
    let big = image.directory.join("big");
    fs::write(&big, vec![7; 3 << 20]).unwrap();
    let big = big.to_str().unwrap();
    let path = image.path.to_str().unwrap();
    let mounted = |options: &str| ext4(["-v", "-o", options, "cp", big, &image.at("/big")]);
    // Published blocks are never unwritten: nothing is converted.
    let plain = mounted("alloc=unwritten");
    assert!(plain.stderr.contains(" publications: 0,"), "{}", plain.stderr);
    assert!(!plain.stderr.contains(" conversions: 0,"), "{}", plain.stderr);
    plain.ok();
    let published = mounted("alloc=publish,last_mounted=/published");
    assert!(published.stderr.contains(" conversions: 0,"), "{}", published.stderr);
    assert!(!published.stderr.contains(" publications: 0,"), "{}", published.stderr);
    published.ok();
    assert_eq!(fs::read(big).unwrap(), ext4(["cat", &image.at("/big")]).stdout);
    check(&image.path);
    assert!(ext4(["info", path]).ok().contains("/published"));
    // After the command as before it.
    ext4(["mkdir", &image.at("/directory"), "-o", "last_mounted=/after"]).ok();
    assert!(ext4(["info", path]).ok().contains("/after"));

    ext4(["mkdir", "-o", "ro", &image.at("/never")]).fails(1, &["read-only"]);
    // Before the command, behind it, again and again: all of them count.
    ext4(["-o", "ro", "mkdir", "-o", "lazytime", "-o", "discard", &image.at("/never")])
        .fails(1, &["read-only"]);
    ext4(["-o", "noload", "mkdir", "-o", "lazytime", &image.at("/never")]).fails(1, &["noload"]);
    ext4(["ls", "-o", "ro,noload", &image.at("/")]).ok();
    ext4(["mkdir", "-o", "noload", &image.at("/never")]).fails(1, &["noload"]);
    check(&image.path);
}

#[test]
fn mount_options_that_are_not_known_are_refused() {
    let image = Image::new();
    let path = image.path.to_str().unwrap();
    ext4(["mkdir", "-o", "nodealloc", &image.at("/a")]).fails(2, &["unknown mount option 'nodealloc'"]);
    ext4(["mkdir", "-o", "alloc=now", &image.at("/a")]).fails(2, &["alloc is one of unwritten, publish"]);
    ext4(["-o", "lazytime", "info", path]).fails(2, &["does not mount"]);
    let target = image.directory.join("other.img");
    let source = image.directory.to_str().unwrap();
    ext4(["pack", "-o", "ro", source, target.to_str().unwrap()]).fails(2, &["read-only"]);
    assert!(!target.exists());
    assert_eq!(ext4(["ls", &image.at("/")]).ok(), "lost+found\n");
}

/// Inline data is shown, and lies at the place that is shown.
#[test]
fn inline_data_is_shown_and_where_it_lies() {
    let image = Image::with(&["-O", "inline_data"]);
    let small = image.directory.join("small");
    let text: Vec<u8> = (0..100).map(|at| b'A' + at % 23).collect();
    fs::write(&small, &text).unwrap();
    ext4(["cp", small.to_str().unwrap(), &image.at("/small")]).ok();
    ext4(["mkdir", "-p", &image.at("/directory/below")]).ok();
    let path = image.path.to_str().unwrap();
    let info = ext4(["info", path]).ok();
    assert!(info.contains("Inline data:") && info.contains("up to 128 bytes in an inode"), "{info}");
    let shown = ext4(["extents", &image.at("/small")]).ok();
    assert!(shown.contains("Inline: 100 bytes in the inode, at byte "), "{shown}");
    assert!(shown.contains("; from byte 60 on at byte "), "{shown}");
    let extents: serde_json::Value =
        serde_json::from_str(&ext4(["extents", "--json", &image.at("/small")]).ok()).unwrap();
    assert_eq!(extents["extents"].as_array().unwrap().len(), 0);
    let bytes = fs::read(&image.path).unwrap();
    let at = |key: &str| usize::try_from(extents["inline"][key].as_u64().unwrap()).unwrap();
    assert_eq!(extents["inline"]["length"], 100);
    assert_eq!(bytes[at("physical_byte")..][..60], text[..60]);
    assert_eq!(bytes[at("rest_physical_byte")..][..40], text[60..]);
    let stat = ext4(["stat", &image.at("/directory")]).ok();
    assert!(stat.contains("Inline: 60 bytes in the inode, at byte "), "{stat}");
    let stat: serde_json::Value =
        serde_json::from_str(&ext4(["stat", "--json", &image.at("/small")]).ok()).unwrap();
    assert_eq!(stat["inline"], extents["inline"]);

    let large = image.directory.join("large");
    fs::write(&large, vec![1; 5000]).unwrap();
    ext4(["cp", large.to_str().unwrap(), &image.at("/large")]).ok();
    for command in ["extents", "stat"] {
        let shown = ext4([command, &image.at("/large")]).ok();
        assert!(!shown.contains("Inline"), "{shown}");
    }
    check(&image.path);
}

#[test]
fn mkfs_takes_cluster_sizes_as_mke2fs_does() {
    let image = Image::with(&["-O", "bigalloc", "-C", "32K"]);
    let path = image.path.to_str().unwrap();
    let info = ext4(["info", path]).ok();
    assert!(info.lines().any(|line| line.starts_with("Cluster size:") && line.ends_with(" 32768")), "{info}");
    let other = image.directory.join("other.img");
    let other = other.to_str().unwrap();
    ext4(["mkfs", "-C", "32K", other, "64M"]).fails(1, &["a cluster size needs bigalloc"]);
    ext4(["mkfs", "-O", "bigalloc", "-C", "3000", other, "64M"]).fails(1, &["a cluster of 3000 bytes"]);
    ext4(["mkfs", "-O", "inline_data", "-I", "128", other, "64M"]).fails(1, &["128 bytes are too small"]);
    assert!(!std::path::Path::new(other).exists());
}
