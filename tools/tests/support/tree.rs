//! Trees with everything in them that a file system can hold, and the comparison of two of them.

use ext4_test_support::tools::is_root;
use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, makedev, mknod, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, Whence};
use sha2::{Digest, Sha256};

/// Fills `root` with files of all types as far as the user may, in all corners: sizes around block and folio
/// boundaries, holes, hard links, long and odd names, attributes in the inode and in a block, access control
/// lists, times before 1970 and after 2038, deep and wide directories. The same seed makes the same tree.
pub fn make(root: &Path, seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let directory = |name: &str| {
        let path = root.join(name);
        fs::create_dir(&path).unwrap();
        path
    };

    let sizes = directory("sizes");
    for size in
        [0, 1, 59, 60, 1023, 1024, 1025, 4095, 4096, 4097, 65535, 65536, 65537, (1 << 20) + 1, 5 << 20]
    {
        file(&sizes.join(format!("{size}")), size, &mut random);
    }

    let sparse = directory("sparse");
    holes(&sparse.join("start"), 10 << 20, &[(8 << 20, 4096)], &mut random);
    holes(&sparse.join("end"), 7 << 20, &[(0, 4096)], &mut random);
    holes(&sparse.join("nothing"), 3 << 30, &[], &mut random);
    holes(&sparse.join("huge"), (5 << 30) + 123, &[(1 << 30, 100_000), (5 << 30, 123)], &mut random);
    let many: Vec<(u64, usize)> = (0..700).map(|piece| (piece * 16384, 4096)).collect();
    holes(&sparse.join("many-extents"), 700 * 16384, &many, &mut random);

    let names = directory("names");
    file(&names.join(OsStr::from_bytes(&[b'x'; 255])), 10, &mut random);
    for name in [
        &b"\xff\xfe"[..],
        b"new\nline",
        b" space ",
        b"\x01\x7f",
        "é→𝄞".as_bytes(),
        b"-rf",
        b"a:b",
        b".hidden",
    ] {
        file(&names.join(OsStr::from_bytes(name)), 3, &mut random);
    }

    let links = directory("links");
    file(&links.join("one"), 5000, &mut random);
    fs::hard_link(links.join("one"), links.join("two")).unwrap();
    fs::hard_link(links.join("one"), names.join("three")).unwrap();
    symlink("one", links.join("short")).unwrap();
    symlink("t".repeat(59), links.join("59")).unwrap();
    symlink("t".repeat(60), links.join("60")).unwrap();
    symlink("/".repeat(1000), links.join("1000")).unwrap();
    symlink("nowhere", links.join("dangling")).unwrap();

    let mut deep = directory("deep");
    for level in 0..40 {
        deep.push(format!("level-{level}-of-a-long-way-down"));
        fs::create_dir(&deep).unwrap();
    }
    file(&deep.join("bottom"), 100, &mut random);

    let wide = directory("wide");
    for number in 0..1500 {
        file(&wide.join(format!("a-name-that-takes-some-room-{number:06}")), number % 3, &mut random);
    }
    for number in 0..300 {
        fs::create_dir(wide.join(format!("directory-{number}"))).unwrap();
    }

    special(&directory("special"));
    attributes(&directory("attributes"), &mut random);
    owners(&directory("owners"), &mut random);
    times(&directory("times"), &mut random);
    set_time(root, 1_600_000_000, 123_456_789);
}

/// `size` random bytes under `path`.
pub fn file(path: &Path, size: usize, random: &mut fastrand::Rng) {
    let mut bytes = vec![0; size];
    random.fill(&mut bytes);
    fs::write(path, bytes).unwrap();
}

fn holes(path: &Path, size: u64, pieces: &[(u64, usize)], random: &mut fastrand::Rng) {
    let file = File::create(path).unwrap();
    file.set_len(size).unwrap();
    for (offset, length) in pieces {
        let mut bytes = vec![0; *length];
        random.fill(&mut bytes);
        file.write_all_at(&bytes, *offset).unwrap();
    }
}

fn special(directory: &Path) {
    let make = |name: &str, kind, device| {
        mknod(&directory.join(name), kind, Mode::from_bits_truncate(0o640), device).unwrap();
    };
    make("fifo", SFlag::S_IFIFO, 0);
    make("socket", SFlag::S_IFSOCK, 0);
    if is_root() {
        make("null", SFlag::S_IFCHR, makedev(1, 3));
        make("large-minor", SFlag::S_IFBLK, makedev(8, 70_000));
        make("large-major", SFlag::S_IFCHR, makedev(300, 7));
    }
}

fn attributes(directory: &Path, random: &mut fastrand::Rng) {
    let path = directory.join("user");
    file(&path, 10, random);
    match xattr::set(&path, "user.small", b"value") {
        Err(error) if error.raw_os_error() == Some(Errno::ENOTSUP as i32) => return,
        result => result.unwrap(),
    }
    xattr::set(&path, "user.empty", b"").unwrap();
    let path = directory.join("block");
    file(&path, 10, random);
    xattr::set(&path, "user.block", &[b'v'; 900]).unwrap();
    for other in ["same-1", "same-2", "same-3"] {
        file(&directory.join(other), 1, random);
        xattr::set(directory.join(other), "user.shared", &[b's'; 700]).unwrap();
    }
    fs::create_dir(directory.join("directory")).unwrap();
    xattr::set(directory.join("directory"), "user.directory", b"yes").unwrap();

    let acl = acl(&[(1, 6, !0), (2, 4, 1234), (4, 4, !0), (8, 7, 4321), (16, 7, !0), (32, 0, !0)]);
    let path = directory.join("acl");
    file(&path, 10, random);
    if xattr::set(&path, "system.posix_acl_access", &acl).is_ok() {
        let path = directory.join("default-acl");
        fs::create_dir(&path).unwrap();
        file(&path.join("before"), 1, random);
        xattr::set(&path, "system.posix_acl_default", &acl).unwrap();
        // What is made here inherits; a copy must show exactly what is here.
        file(&path.join("after"), 1, random);
        fs::create_dir(path.join("below")).unwrap();
    }
    if is_root() {
        xattr::set(directory.join("user"), "trusted.mark", b"\x00\xff binary").unwrap();
        symlink("target", directory.join("symlink")).unwrap();
        xattr::set(directory.join("symlink"), "trusted.on-a-symlink", b"1").unwrap();
        let path = directory.join("capability");
        file(&path, 10, random);
        let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        xattr::set(path, "security.capability", &capability).unwrap();
    }
}

/// An access control list in the form of the system call. Source: linux/posix_acl_xattr.h: version 2, then
/// tag, permissions and id of each entry.
fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend_from_slice(&tag.to_le_bytes());
        bytes.extend_from_slice(&permissions.to_le_bytes());
        bytes.extend_from_slice(&id.to_le_bytes());
    }
    bytes
}

fn owners(directory: &Path, random: &mut fastrand::Rng) {
    for mode in [0o000, 0o400, 0o644, 0o777, 0o4755, 0o2755, 0o1644, 0o6711] {
        // A user without privilege cannot read a file back that has no permission to be read.
        if mode & 0o400 == 0 && !is_root() {
            continue;
        }
        let path = directory.join(format!("{mode:o}"));
        file(&path, 10, random);
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
    }
    for mode in [0o700, 0o1777, 0o2775] {
        let path = directory.join(format!("directory-{mode:o}"));
        fs::create_dir(&path).unwrap();
        file(&path.join("inside"), 1, random);
        fs::create_dir(path.join("below")).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
    }
    if is_root() {
        for (uid, gid) in [(1, 2), (65534, 65534), (100_000, 200_000), (0xffff_fffe, 0xffff_fffe)] {
            let path = directory.join(format!("{uid}-{gid}"));
            file(&path, 1, random);
            std::os::unix::fs::lchown(&path, Some(uid), Some(gid)).unwrap();
            let path = directory.join(format!("link-{uid}"));
            symlink("x", &path).unwrap();
            std::os::unix::fs::lchown(&path, Some(uid), Some(gid)).unwrap();
        }
        let path = directory.join("lends-its-group");
        fs::create_dir(&path).unwrap();
        nix::unistd::chown(&path, Some(Uid::from_raw(7)), Some(Gid::from_raw(77))).unwrap();
        file(&path.join("other-group"), 10, random);
        file(&path.join("empty"), 0, random);
        fs::set_permissions(&path, Permissions::from_mode(0o2775)).unwrap();
    }
}

fn times(directory: &Path, random: &mut fastrand::Rng) {
    let moments =
        [(0, 0), (1, 1), (-1, 999_999_999), (-2_000_000_000, 5), (2_147_483_647, 0), (2_147_483_648, 7)];
    for (seconds, nanoseconds) in
        moments.into_iter().chain([(4_294_967_296, 999_999_999), (15_000_000_000, 42)])
    {
        let path = directory.join(format!("{seconds}"));
        file(&path, 10, random);
        set_time(&path, seconds, nanoseconds);
        let path = directory.join(format!("directory{seconds}"));
        fs::create_dir(&path).unwrap();
        set_time(&path, seconds, nanoseconds);
        let path = directory.join(format!("link{seconds}"));
        symlink("x", &path).unwrap();
        set_time(&path, seconds, nanoseconds);
    }
}

fn set_time(path: &Path, seconds: i64, nanoseconds: i64) {
    let time = TimeSpec::new(seconds, nanoseconds);
    utimensat(nix::fcntl::AT_FDCWD, path, &time, &time, UtimensatFlags::NoFollowSymlink).unwrap();
}

/// `count` small files in directories of 1,000.
pub fn small_files(root: &Path, count: usize) {
    for number in 0..count {
        let directory = root.join(format!("{:03}", number / 1000));
        if number % 1000 == 0 {
            fs::create_dir_all(&directory).unwrap();
        }
        let mut file = File::create(directory.join(format!("file-{number}"))).unwrap();
        writeln!(file, "content of file {number}").unwrap();
    }
}

/// One object of a tree, as stat and its content show it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Record {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: (i64, i64),
    pub size: u64,
    pub device: u64,
    pub target: OsString,
    pub xattrs: BTreeMap<OsString, Vec<u8>>,
    /// Offsets and content of every 4 KiB with a byte that is not zero.
    pub digest: String,
    /// The first of its names.
    pub first_name: PathBuf,
    pub links: u64,
}

/// The facts that a comparison leaves out.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ignore {
    /// Owners: a user without privilege cannot keep them.
    pub owners: bool,
    /// mkfs's own directory.
    pub lost_and_found: bool,
}

/// All of a tree, by path.
pub fn describe(root: &Path, ignore: Ignore) -> BTreeMap<PathBuf, Record> {
    let mut first = HashMap::new();
    let mut tree = BTreeMap::new();
    for entry in walkdir::WalkDir::new(root).sort_by_file_name() {
        let entry = entry.unwrap();
        let name = entry.path().strip_prefix(root).unwrap().to_path_buf();
        if ignore.lost_and_found && name.starts_with("lost+found") {
            continue;
        }
        let mut record = record(entry.path());
        if ignore.owners {
            (record.uid, record.gid) = (0, 0);
        }
        if record.links > 1 && !entry.file_type().is_dir() {
            let metadata = entry.path().symlink_metadata().unwrap();
            record.first_name = first.entry((metadata.dev(), metadata.ino())).or_insert(name.clone()).clone();
        } else {
            // Subdirectories are counted by the paths; file systems differ in how they count them.
            record.links = 0;
        }
        tree.insert(name, record);
    }
    tree
}

fn record(path: &Path) -> Record {
    let metadata = path.symlink_metadata().unwrap();
    let kind = metadata.file_type();
    let xattrs = xattr::list(path).map(Iterator::collect::<Vec<_>>).unwrap_or_default();
    let value = |name: OsString| {
        let value = xattr::get(path, &name).ok()??;
        // Labels that a security module puts on everything.
        (name != "security.selinux").then_some((name, value))
    };
    Record {
        mode: metadata.mode(),
        uid: metadata.uid(),
        gid: metadata.gid(),
        mtime: (metadata.mtime(), metadata.mtime_nsec()),
        size: if kind.is_file() { metadata.size() } else { 0 },
        device: metadata.rdev(),
        target: if kind.is_symlink() { fs::read_link(path).unwrap().into() } else { OsString::new() },
        xattrs: xattrs.into_iter().filter_map(value).collect(),
        digest: if kind.is_file() { digest(path, metadata.size()) } else { String::new() },
        first_name: PathBuf::new(),
        links: metadata.nlink(),
    }
}

/// SHA-256 over offset and content of each 4 KiB that is not all zeros; holes are not read.
pub fn digest(path: &Path, size: u64) -> String {
    let file = File::open(path).unwrap();
    let mut hash = Sha256::new();
    let mut next = 0;
    while next < size {
        let start = match nix::unistd::lseek64(&file, next.cast_signed(), Whence::SeekData) {
            Ok(start) => start.cast_unsigned() / 4096 * 4096,
            Err(Errno::ENXIO) => break,
            Err(error) => panic!("{}: {error}", path.display()),
        };
        let end = nix::unistd::lseek64(&file, start.max(next).cast_signed(), Whence::SeekHole).unwrap();
        let end = end.cast_unsigned().next_multiple_of(4096).min(size);
        let mut offset = start.max(next);
        let mut buffer = vec![0; 1 << 20];
        while offset < end {
            let want = usize::try_from((end - offset).min(buffer.len() as u64)).unwrap();
            file.read_exact_at(&mut buffer[..want], offset).unwrap();
            for (number, chunk) in buffer[..want].chunks(4096).enumerate() {
                if chunk.iter().any(|byte| *byte != 0) {
                    hash.update((offset + number as u64 * 4096).to_le_bytes());
                    hash.update(chunk);
                }
            }
            offset += want as u64;
        }
        next = end;
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Asserts that two trees are the same in everything.
#[track_caller]
pub fn assert_same(left: &Path, right: &Path, ignore: Ignore) {
    assert_equal(&describe(left, ignore), &describe(right, ignore));
}

/// Asserts that two descriptions are the same; says what differs.
#[track_caller]
pub fn assert_equal(left: &BTreeMap<PathBuf, Record>, right: &BTreeMap<PathBuf, Record>) {
    let mut differences = Vec::new();
    for name in left.keys().chain(right.keys()) {
        let (left, right) = (left.get(name), right.get(name));
        if left != right {
            differences.push(format!("{}\n   {left:?}\n   {right:?}", name.display()));
        }
    }
    differences.sort();
    differences.dedup();
    let count = differences.len();
    differences.truncate(8);
    assert!(count == 0, "{count} differences:\n{}", differences.join("\n"));
}

/// Bytes that the host has allocated for a tree's files.
pub fn allocated(root: &Path) -> u64 {
    walkdir::WalkDir::new(root)
        .into_iter()
        .map(|entry| entry.unwrap().path().symlink_metadata().unwrap().blocks() * 512)
        .sum()
}

/// A name made of any bytes.
pub fn name(bytes: &[u8]) -> OsString {
    OsString::from_vec(bytes.to_vec())
}
