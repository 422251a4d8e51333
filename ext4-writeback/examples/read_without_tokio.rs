//! Reads a file of an image without an async runtime in `main`:
//! `cargo run --example read_without_tokio IMAGE PATH`.
//!
//! Without arguments it makes a file system in memory first, so that there is something to read. The image is
//! opened for reading only, and nothing in it changes: a journal that needs recovery is replayed in memory.

use std::io::Write;
use std::sync::Arc;

use ext4_writeback::blocking::{Filesystem, mkfs};
use ext4_writeback::{
    Errno, Error, FileType, MemoryDevice, MkfsOptions, MountOptions, Result, SystemEnvironment,
};

/// Bytes that are read at a time.
const PIECE: usize = 1 << 20;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (device, path) = match (arguments.next(), arguments.next()) {
        (None, _) => (made_in_memory()?, "/etc/motd".to_owned()),
        (Some(image), Some(path)) => (load(&image)?, path),
        (Some(_), None) => return Err(Error::posix(Errno::EINVAL, "usage: read_without_tokio [IMAGE PATH]")),
    };
    let filesystem = Filesystem::mount(device, MountOptions::new().read_only(true).cache(32 << 20))?;
    print(&filesystem, &path)?;
    filesystem.unmount()
}

/// Lists the directory at `path`, or writes the content of the file there to the standard output.
fn print(filesystem: &Filesystem, path: &str) -> Result<()> {
    let mut output = std::io::stdout().lock();
    let failed = |error: std::io::Error| Error::host("write", "the standard output", &error);
    if filesystem.metadata(path)?.file_type == FileType::Directory {
        for entry in filesystem.read_dir(path)? {
            writeln!(output, "{:>10}  {}", entry.inode.0, String::from_utf8_lossy(&entry.name))
                .map_err(failed)?;
        }
        return Ok(());
    }
    let file = filesystem.open(path)?;
    let mut offset = 0;
    loop {
        // The page cache's own memory, if one folio holds the piece.
        let bytes = file.read_bytes(offset, PIECE)?;
        if bytes.is_empty() {
            return Ok(());
        }
        output.write_all(&bytes).map_err(failed)?;
        offset += bytes.len() as u64;
    }
}

/// The image at `path`, in memory. A program that reads large images takes `ext4_backend_file::FileDevice`
/// instead.
fn load(path: &str) -> Result<Arc<MemoryDevice>> {
    let failed = |error: std::io::Error| Error::host("read", path, &error);
    let content = std::fs::read(path).map_err(failed)?;
    Ok(Arc::new(MemoryDevice::from_content(content)))
}

fn made_in_memory() -> Result<Arc<MemoryDevice>> {
    let device = Arc::new(MemoryDevice::new(16 << 20));
    mkfs(device.clone(), &MkfsOptions::default(), &SystemEnvironment)?;
    let filesystem = Filesystem::mount(device.clone(), MountOptions::new())?;
    filesystem.create_dir("/etc")?;
    filesystem.write("/etc/motd", "hello from ext4\n")?;
    filesystem.unmount()?;
    Ok(device)
}
