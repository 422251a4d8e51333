//! What a program meets that uses the library from outside: without tokio, with paths, with bytes to pass on.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;

use ext4_writeback::{
    Credentials, Errno, Error, FallocateMode, File, FileType, Filesystem, InodeNumber, MemoryDevice,
    MkfsOptions, MountOptions, OpenOptions, SetAttributes, SystemEnvironment, blocking, mkfs,
};

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// An executor that knows nothing of tokio.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(value) => return value,
            Poll::Pending => std::thread::park(),
        }
    }
}

#[test]
fn mount_outside_tokio_is_an_error_that_says_what_to_do() {
    let device = Arc::new(MemoryDevice::new(32 << 20));
    block_on(mkfs(Arc::clone(&device) as _, &MkfsOptions::default(), &SystemEnvironment)).expect("makes");
    let error = block_on(Filesystem::mount(device, MountOptions::default())).expect_err("no runtime");
    assert_eq!(error.errno(), Errno::EINVAL);
    assert!(matches!(&error, Error::Posix { context, .. } if context.contains("tokio runtime")), "{error}");
    assert!(error.to_string().contains("ext4_writeback::blocking"), "{error}");
}

/// A mounted file system with `cache` bytes of memory and one file of `len` patterned bytes that is on the
/// device.
async fn one_file(cache: usize, len: usize) -> (Filesystem, File, Vec<u8>) {
    let device = Arc::new(MemoryDevice::new(128 << 20));
    mkfs(Arc::clone(&device) as _, &MkfsOptions::default(), &SystemEnvironment).await.expect("makes");
    let options = MountOptions::new().cache(cache);
    let fs = Filesystem::mount(device, options).await.expect("mounts");
    let owner = Credentials { mode: 0o644, ..Credentials::default() };
    let file =
        fs.open(fs.create(InodeNumber::ROOT, b"file", owner).await.expect("creates")).await.expect("opens");
    let content: Vec<u8> = (0..len).map(|at| (at / 4096 + at) as u8).collect();
    assert_eq!(file.write_at(0, &content).await.expect("writes"), len);
    file.sync_all().await.expect("syncs");
    (fs, file, content)
}

async fn unmount(fs: Filesystem, file: File) {
    drop(file);
    fs.unmount().await.expect("unmounts");
}

#[tokio::test]
async fn bytes_of_one_folio_are_its_memory_and_never_change() {
    let (fs, file, mut content) = one_file(64 << 20, 64 << 10).await;
    let bytes = file.read_bytes(100, 3000).await.expect("reads");
    assert_eq!(bytes, content[100..3100]);
    let mapped = file.map_read(100, 3000).await.expect("maps");
    assert_eq!(mapped.as_ptr(), bytes.as_ptr(), "the folio's own memory");
    drop(mapped);

    file.write_at(100, &[7; 3000]).await.expect("writes");
    file.sync_all().await.expect("syncs");
    assert_eq!(bytes, content[100..3100], "given out before the write");
    content[100..3100].fill(7);
    assert_eq!(file.read_bytes(0, content.len()).await.expect("reads"), content);

    // The bytes outlive the file and the mount.
    unmount(fs, file).await;
    assert_eq!(bytes.len(), 3000);
    assert_ne!(bytes[0], 7);
}

#[tokio::test]
async fn bytes_end_with_the_file() {
    let (fs, file, content) = one_file(64 << 20, 10_001).await;
    assert_eq!(file.read_bytes(9_000, 5_000).await.expect("reads"), content[9_000..]);
    assert!(file.read_bytes(10_001, 1).await.expect("reads").is_empty());
    assert!(file.read_bytes(u64::MAX, usize::MAX).await.expect("reads").is_empty());
    assert!(file.read_bytes(0, 0).await.expect("reads").is_empty());
    assert!(file.read_chunks(10_001, 1).await.expect("reads").is_empty());
    assert_eq!(file.read_bytes(0, usize::MAX).await.expect("reads"), content);
    unmount(fs, file).await;
}

/// Over several folios one `Bytes` is a copy, and the chunks are each a folio's memory.
#[tokio::test]
async fn chunks_cover_several_folios_without_a_copy() {
    let (fs, file, content) = one_file(64 << 20, 5 << 20).await;
    let (from, len) = (1_234_567, 3 << 20);
    let chunks = file.read_chunks(from as u64, len).await.expect("reads");
    assert!(chunks.len() > 1, "3 MiB are more than one folio");
    assert_eq!(chunks.concat(), content[from..from + len]);
    let mut at = from as u64;
    for chunk in &chunks {
        let mapped = file.map_read(at, chunk.len()).await.expect("maps");
        assert_eq!(mapped.as_ptr(), chunk.as_ptr(), "at {at}");
        at += chunk.len() as u64;
    }
    let joined = file.read_bytes(from as u64, len).await.expect("reads");
    assert_eq!(joined, content[from..from + len]);
    assert!(chunks.iter().all(|chunk| !chunk.as_ptr_range().contains(&joined.as_ptr())));
    unmount(fs, file).await;
}

/// What is handed out is bounded: chunks stop there, and one `Bytes` is copied from then on.
#[tokio::test]
async fn bytes_that_are_held_are_bounded() {
    let (fs, file, content) = one_file(16 << 20, 8 << 20).await;
    let held = file.read_chunks(0, content.len()).await.expect("reads");
    let covered: usize = held.iter().map(|chunk| chunk.len()).sum();
    assert!(covered > 0 && covered <= 3 << 20, "{covered} bytes are at most a quarter of 12 MiB");
    assert_eq!(held.concat(), content[..covered]);
    let error = file.read_chunks(covered as u64, 2 << 20).await.expect_err("no more");
    assert_eq!(error.errno(), Errno::EAGAIN);
    assert_eq!(
        file.read_bytes(covered as u64, 4096).await.expect("copies"),
        content[covered..covered + 4096]
    );
    assert_eq!(file.read_bytes(0, content.len()).await.expect("copies"), content);

    // A clone keeps what it is of; with the last one the memory is free for others.
    let clone = held[0].clone();
    drop(held);
    let again = file.read_chunks(covered as u64, 1 << 20).await.expect("there is room");
    assert!(!again.is_empty());
    assert_eq!(clone, content[..clone.len()]);
    unmount(fs, file).await;
}

async fn mounted() -> Filesystem {
    let device = Arc::new(MemoryDevice::new(32 << 20));
    mkfs(Arc::clone(&device) as _, &MkfsOptions::default(), &SystemEnvironment).await.expect("makes");
    Filesystem::mount(device, MountOptions::new()).await.expect("mounts")
}

#[tokio::test]
async fn errors_name_the_path_and_keep_their_errno() {
    let fs = mounted().await;
    fs.create_dir_all("/dir/sub").await.expect("creates");
    fs.write("/dir/file", "content").await.expect("writes");
    fs.symlink_path("loop", "/dir/loop").await.expect("creates");
    let long = format!("/dir/{}", "x".repeat(256));

    let failed = [
        (fs.metadata("/dir/nope").await.map(drop), "/dir/nope", Errno::ENOENT),
        (fs.symlink_metadata("/nope/x").await.map(drop), "/nope/x", Errno::ENOENT),
        (fs.read("/dir/file/below").await.map(drop), "/dir/file/below", Errno::ENOTDIR),
        (fs.read("/dir/sub").await.map(drop), "/dir/sub", Errno::EISDIR),
        (fs.open_path("/dir/loop").await.map(drop), "/dir/loop", Errno::ELOOP),
        (fs.write("/dir/sub/", "x").await, "/dir/sub/", Errno::EISDIR),
        (fs.create_path("/dir/none/x").await.map(drop), "/dir/none/x", Errno::ENOENT),
        (fs.create_dir("/dir/sub").await.map(drop), "/dir/sub", Errno::EEXIST),
        (fs.create_dir(&long).await.map(drop), &long, Errno::ENAMETOOLONG),
        (fs.create_dir_all("/dir/file/x").await.map(drop), "/dir/file/x", Errno::ENOTDIR),
        (fs.read_dir("/dir/file").await.map(drop), "/dir/file", Errno::ENOTDIR),
        (fs.read_link("/dir/file").await.map(drop), "/dir/file", Errno::EINVAL),
        (fs.remove_file("/dir/sub").await, "/dir/sub", Errno::EISDIR),
        (fs.remove_dir("/dir").await, "/dir", Errno::ENOTEMPTY),
        (fs.remove_dir("/").await, "/", Errno::EBUSY),
        (fs.rename_path("/dir", "/dir/sub/dir").await, "/dir", Errno::EINVAL),
        (fs.hard_link("/dir/sub", "/dir/link").await, "/dir/link", Errno::EPERM),
        (fs.resolve_parent("/none/x").await.map(drop), "/none/x", Errno::ENOENT),
    ];
    for (result, path, errno) in failed {
        let error = result.expect_err(path);
        assert_eq!(error.errno(), errno, "{path}: {error}");
        let named = format!("{path:?}");
        assert_eq!(error.to_string().matches(&named).count(), 1, "{named} once in {error}");
    }
    fs.unmount().await.expect("unmounts");
}

#[tokio::test]
async fn paths_do_what_std_fs_does() {
    let fs = mounted().await;
    fs.create_dir("/dir").await.expect("creates");
    fs.write("dir/a", b"one").await.expect("writes");
    fs.write(String::from("/dir/a"), vec![b'2'; 2]).await.expect("replaces");
    assert_eq!(fs.read("/dir/a").await.expect("reads"), b"22");
    fs.symlink_path("a", "/dir/s").await.expect("creates");
    assert_eq!(fs.read_link("/dir/s").await.expect("reads"), b"a");
    assert_eq!(fs.metadata("/dir/s").await.expect("stat").file_type, FileType::Regular);
    assert_eq!(fs.symlink_metadata("/dir/s").await.expect("lstat").file_type, FileType::Symlink);
    fs.hard_link("/dir/a", "/b").await.expect("links");
    assert_eq!(fs.metadata("/b").await.expect("stat").links, 2);
    fs.rename_path("/b", "/dir/c").await.expect("renames");
    for number in 0..600 {
        fs.create_path(format!("/dir/file{number}")).await.expect("creates");
    }
    let mut names: Vec<_> =
        fs.read_dir("/dir").await.expect("lists").into_iter().map(|entry| entry.name).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 603);
    assert!(names.contains(&b"c".to_vec()) && !names.contains(&b".".to_vec()));
    for name in names {
        fs.remove_file([b"/dir/", &name[..]].concat()).await.expect("removes");
    }
    fs.remove_dir("/dir").await.expect("removes");
    fs.unmount().await.expect("unmounts");
}

#[test]
fn the_blocking_api_needs_no_runtime() {
    let device = Arc::new(MemoryDevice::new(64 << 20));
    blocking::mkfs(Arc::clone(&device) as _, &MkfsOptions::default(), &SystemEnvironment).expect("makes");
    let fs = blocking::Filesystem::mount(Arc::clone(&device) as _, MountOptions::new()).expect("mounts");
    fs.create_dir_all("/a/b").expect("creates");
    let threads: Vec<_> = (0..4u8)
        .map(|writer| {
            let fs = fs.clone();
            std::thread::spawn(move || {
                let file = fs.create(format!("/a/b/{writer}")).expect("creates");
                for block in 0..50 {
                    assert_eq!(file.write_at(block * 10_000, &[writer; 10_000]).expect("writes"), 10_000);
                }
                file.sync_all().expect("syncs");
            })
        })
        .collect();
    for thread in threads {
        thread.join().expect("no panic");
    }
    let file = fs.open_with("/a/b/3", OpenOptions::new().append(true)).expect("opens");
    assert_eq!(file.append(b"end").expect("appends"), (500_000, 3));
    file.sync_data().expect("syncs");
    assert_eq!(file.read_bytes(499_999, 100).expect("reads"), &b"\x03end"[..]);
    let mut buffer = [0; 4];
    assert_eq!(file.read_at(499_999, &mut buffer).expect("reads"), 4);
    file.set_len(10).expect("cuts");
    file.fallocate(FallocateMode::AllocateKeepSize, 0, 1 << 20).expect("allocates");
    assert_eq!((file.len(), file.is_empty()), (10, false));
    assert!(file.metadata().expect("stat").sectors >= 2048);
    fs.set_attributes("/a/b/3", &SetAttributes::new().mode(0o600)).expect("sets");
    assert_eq!(fs.metadata("/a/b/3").expect("stat").mode & 0o7777, 0o600);
    let error = fs.clone().unmount().expect_err("a file is open");
    assert_eq!(error.errno(), Errno::EBUSY);
    drop(file);

    fs.symlink("b/0", "/a/s").expect("creates");
    assert_eq!(fs.read_link("/a/s").expect("reads"), b"b/0");
    assert_eq!(fs.symlink_metadata("/a/s").expect("lstat").file_type, FileType::Symlink);
    fs.hard_link("/a/b/0", "/zero").expect("links");
    fs.rename("/zero", "/null").expect("renames");
    assert_eq!(fs.read("/null").expect("reads"), vec![0; 500_000]);
    fs.write("/null", "x").expect("writes");
    fs.remove_file("/null").expect("removes");
    assert_eq!(fs.remove_dir("/a/b").expect_err("not empty").errno(), Errno::ENOTEMPTY);
    assert_eq!(fs.read_dir("/a").expect("lists").len(), 2);
    let inode = fs.create_dir("/c").expect("creates");
    let found = fs.runtime().block_on(fs.as_async().lookup(InodeNumber::ROOT, "c")).expect("finds");
    assert_eq!(found, inode);
    fs.remove_dir("/c").expect("removes");
    fs.sync().expect("syncs");
    assert!(fs.statfs().free_blocks > 0);
    fs.unmount().expect("unmounts");

    // A second mount in a runtime that the caller made; one that is dropped is a crash, which loses nothing
    // synced.
    let runtime = blocking::Runtime::new().expect("starts");
    let fs = blocking::Filesystem::mount_in(&runtime, Arc::clone(&device) as _, MountOptions::new());
    drop(fs.expect("mounts"));
    let options = MountOptions::new().read_only(true);
    let fs = blocking::Filesystem::mount_in(&runtime, device, options).expect("mounts");
    assert_eq!(fs.read("/a/b/2").expect("reads"), vec![2; 500_000]);
    fs.unmount().expect("unmounts");
}

/// Where blocking would stop a runtime's other tasks, and tokio would panic, there is an error instead.
#[test]
fn the_blocking_api_refuses_to_block_inside_tokio() {
    let device = Arc::new(MemoryDevice::new(32 << 20));
    blocking::mkfs(Arc::clone(&device) as _, &MkfsOptions::default(), &SystemEnvironment).expect("makes");
    let fs = blocking::Filesystem::mount(Arc::clone(&device) as _, MountOptions::new()).expect("mounts");
    let file = fs.create("/file").expect("creates");
    let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("builds");
    tokio.block_on(async move {
        let made = blocking::mkfs(Arc::clone(&device) as _, &MkfsOptions::default(), &SystemEnvironment);
        for result in [
            file.write_at(0, b"x").map(drop),
            fs.read("/file").map(drop),
            fs.sync(),
            fs.clone().unmount(),
            blocking::Filesystem::mount(device, MountOptions::new()).map(drop),
            made,
            fs.runtime().enter(|| Ok(())),
        ] {
            let error = result.expect_err("inside tokio");
            assert_eq!(error.errno(), Errno::EINVAL);
            assert!(error.to_string().contains("await"), "{error}");
        }
        // Dropped here, where waiting for the threads would panic.
        drop((file, fs));
    });
}
