//! Opening what the host offers as storage: a regular file or a block device, for one user at a time.
//!
//! Both backends begin here, so that a path that is absent, a directory, read-only, mounted or in use by
//! another program is refused with the same words by either.
//!
//! Invariant: the holder of a [`HostFile`] for writing is the only writer among the programs that ask: a
//! regular file carries an exclusive `flock` (a shared one if it is opened for reading), a block device is
//! opened with `O_EXCL`, which the kernel refuses for a mounted one. Were this wrong, the kernel's ext4 and
//! ours would write one journal.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::OFlag;

use super::Geometry;
use crate::error::{Errno, Error, Result};

/// How often, and after which pause, a busy block device is asked again.
const BUSY_TRIES: u32 = 10;
const BUSY_PAUSE: Duration = Duration::from_millis(10);

/// How to open a [`HostFile`].
#[derive(Clone, Debug, Default)]
pub struct HostOptions {
    /// True for reading only.
    pub read_only: bool,
    /// Where the device starts in the file, in bytes (a partition).
    pub offset: u64,
    /// If given, the device ends so many bytes after `offset`, though there may be more behind.
    pub size: Option<u64>,
    /// Make the regular file, which must not exist, this many bytes long.
    pub create: Option<u64>,
    /// True for I/O past the page cache of the host (`O_DIRECT`), if it can be had.
    pub direct: bool,
}

/// An open regular file or block device, and the window of it that is our device.
#[derive(Debug)]
pub struct HostFile {
    file: File,
    path: PathBuf,
    block_device: bool,
    direct: bool,
    offset: u64,
    geometry: Geometry,
}

impl HostFile {
    /// Opens `path`.
    ///
    /// # Errors
    /// - The host's, with the path.
    /// - `EBUSY` for a file another process has open through this library and for a block device that is
    ///   mounted.
    /// - `EINVAL` if `offset` or `size` do not lie within the file.
    /// - `ENOTBLK` for what is neither file nor block device.
    pub fn open(path: &Path, options: &HostOptions) -> Result<Self> {
        let Some(size) = options.create else {
            return Self::open_existing(path, options);
        };
        let file = OpenOptions::new().write(true).create_new(true).open(path);
        let file = file.map_err(|source| Error::host("create", path.display().to_string(), &source))?;
        let opened = file
            .set_len(size)
            .map_err(|source| Error::host("set the size of", path.display().to_string(), &source))
            .and_then(|()| Self::open_existing(path, options));
        if opened.is_err() {
            // It is ours, it is new, and it is of no use.
            let _ = std::fs::remove_file(path);
        }
        opened
    }

    fn open_existing(path: &Path, options: &HostOptions) -> Result<Self> {
        let named = || path.display().to_string();
        // Looked at before it is opened: to open a FIFO or a tape has effects.
        let metadata = std::fs::metadata(path).map_err(|source| Error::host("open", named(), &source))?;
        if metadata.is_dir() {
            return Err(Error::io("open", named(), Errno::EISDIR));
        }
        let block_device = metadata.file_type().is_block_device();
        if !block_device && !metadata.is_file() {
            let context = format!("open {}: neither a regular file nor a block device", named());
            return Err(Error::posix(Errno::ENOTBLK, context));
        }
        let (file, direct) = open_file(path, options, block_device)?;
        if !block_device {
            let locked = if options.read_only { file.try_lock_shared() } else { file.try_lock() };
            match locked {
                Ok(()) => {}
                Err(std::fs::TryLockError::WouldBlock) => {
                    let context = format!("{} is in use by another process", named());
                    return Err(Error::posix(Errno::EBUSY, context));
                }
                Err(std::fs::TryLockError::Error(source)) => {
                    return Err(Error::host("lock", named(), &source));
                }
            }
        }
        // Seeking tells the size of a block device as of a file.
        let end =
            (&file).seek(SeekFrom::End(0)).map_err(|source| Error::host("measure", named(), &source))?;
        let mut geometry =
            if block_device { block_device_geometry(metadata.rdev()) } else { regular_file_geometry() };
        geometry.read_only |= options.read_only;
        let unit = u64::from(geometry.logical_block_size);
        geometry.size = window(end, options, unit).ok_or_else(|| {
            let context = format!(
                "{}: {} bytes at byte {} do not lie on {unit}-byte blocks within its {end} bytes",
                named(),
                options.size.map_or_else(|| "all".to_owned(), |size| size.to_string()),
                options.offset
            );
            Error::posix(Errno::EINVAL, context)
        })?;
        Ok(Self { file, path: path.to_owned(), block_device, direct, offset: options.offset, geometry })
    }

    /// The open file.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The path it was opened by.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns true for a block device, false for a regular file.
    #[must_use]
    pub fn is_block_device(&self) -> bool {
        self.block_device
    }

    /// Returns true if the host's page cache is passed by.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.direct
    }

    /// Where our device starts in the file, in bytes.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// What the host says of it; a backend adds its own limits.
    #[must_use]
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Makes a regular file larger, by a hole, so that the device has `size` bytes.
    ///
    /// # Errors
    /// `EINVAL` if it would get smaller or is no whole number of blocks, `ENOTSUP` for a block device, or the
    /// host's.
    pub fn grow(&mut self, size: u64) -> Result<()> {
        let fail = |errno| Err(Error::io("grow", self.path.display().to_string(), errno));
        if self.block_device {
            return fail(Errno::ENOTSUP);
        }
        if self.geometry.read_only {
            return fail(Errno::EROFS);
        }
        let unit = u64::from(self.geometry.logical_block_size);
        let Some(end) = self.offset.checked_add(size) else { return fail(Errno::EFBIG) };
        if size < self.geometry.size || !size.is_multiple_of(unit) {
            return fail(Errno::EINVAL);
        }
        let now = self.file.metadata().map(|metadata| metadata.len());
        now.and_then(|now| if now < end { self.file.set_len(end) } else { Ok(()) })
            .map_err(|source| Error::host("grow", self.path.display().to_string(), &source))?;
        self.geometry.size = size;
        Ok(())
    }
}

impl Drop for HostFile {
    fn drop(&mut self) {
        // A ring of io_uring may hold the file for a moment more; the lock ends here.
        let _ = self.file.unlock();
    }
}

/// Opens the file itself; tells whether `O_DIRECT` was had.
fn open_file(path: &Path, options: &HostOptions, block_device: bool) -> Result<(File, bool)> {
    let open = |direct: bool| {
        let mut flags = OFlag::O_CLOEXEC;
        flags.set(OFlag::O_EXCL, block_device);
        flags.set(OFlag::O_DIRECT, direct);
        OpenOptions::new().read(true).write(!options.read_only).custom_flags(flags.bits()).open(path)
    };
    let mut direct = options.direct;
    let mut opened = open(direct);
    let is = |opened: &std::io::Result<File>, errno: Errno| {
        opened.as_ref().is_err_and(|source| source.raw_os_error() == Some(errno as i32))
    };
    if direct && is(&opened, Errno::EINVAL) {
        // The host's file system has no direct I/O.
        tracing::info!(path = %path.display(), "no O_DIRECT: through the host's page cache");
        direct = false;
        opened = open(false);
    }
    // A block device that was just closed is released a moment later, so is one that udev looks at.
    for _ in 0..BUSY_TRIES {
        if !block_device || !is(&opened, Errno::EBUSY) {
            break;
        }
        std::thread::sleep(BUSY_PAUSE);
        opened = open(direct);
    }
    match opened {
        Ok(file) => Ok((file, direct)),
        Err(source) if block_device && source.raw_os_error() == Some(Errno::EBUSY as i32) => {
            let context = format!("{} is mounted or in use by another process", path.display());
            Err(Error::posix(Errno::EBUSY, context))
        }
        Err(source) => Err(Error::host("open", path.display().to_string(), &source)),
    }
}

/// The bytes of a file of `end` bytes that are the device: whole blocks; `None` if the request does not fit.
fn window(end: u64, options: &HostOptions, unit: u64) -> Option<u64> {
    if !options.offset.is_multiple_of(unit) {
        return None;
    }
    let behind = end.checked_sub(options.offset)?;
    match options.size {
        Some(size) => (size <= behind && size.is_multiple_of(unit)).then_some(size),
        None if behind == 0 && options.offset > 0 => None,
        None => Some(behind - behind % unit),
    }
}

/// A regular file: the host's page cache stands between, so that any alignment of memory does.
fn regular_file_geometry() -> Geometry {
    Geometry {
        size: 0,
        logical_block_size: 512,
        physical_block_size: 4096,
        memory_alignment: 1,
        max_transfer: 16 << 20,
        max_segments: 1024,
        queue_depth: 64,
        volatile_cache: true,
        fua: true,
        discard: true,
        write_zeroes: true,
        read_only: false,
    }
}

/// What sysfs tells of the block device number `device` (kernel documentation, sysfs-block). If there is no
/// sysfs, the values that hold for every device.
fn block_device_geometry(device: u64) -> Geometry {
    let major = nix::sys::stat::major(device);
    let minor = nix::sys::stat::minor(device);
    let link = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    // A partition has no queue of its own: its disk is the directory above.
    let directory = std::fs::canonicalize(&link).unwrap_or(link);
    let queue = [Some(directory.as_path()), directory.parent()]
        .into_iter()
        .flatten()
        .map(|place| place.join("queue"))
        .find(|queue| queue.is_dir());
    let text = |name: &str| {
        let queue = queue.as_ref()?;
        std::fs::read_to_string(queue.join(name)).ok().map(|text| text.trim().to_owned())
    };
    let number = |name: &str| text(name).and_then(|text| text.parse::<u64>().ok());
    let small = |name: &str, otherwise: u32| {
        number(name).and_then(|value| u32::try_from(value).ok()).unwrap_or(otherwise)
    };
    let logical_block_size = match small("logical_block_size", 4096) {
        size if size.is_power_of_two() && (512..=65536).contains(&size) => size,
        _ => 4096,
    };
    let physical_block_size = small("physical_block_size", logical_block_size).max(logical_block_size);
    let max_transfer = small("max_sectors_kb", 128).clamp(4, 1 << 20) * 1024;
    let read_only = std::fs::read_to_string(directory.join("ro")).is_ok_and(|text| text.trim() == "1");
    Geometry {
        size: 0,
        logical_block_size,
        physical_block_size,
        // A mask of address bits that must be zero.
        memory_alignment: small("dma_alignment", 511).saturating_add(1).next_power_of_two(),
        max_transfer: max_transfer - max_transfer % logical_block_size,
        max_segments: 256,
        queue_depth: small("nr_requests", 64).clamp(1, 4096),
        volatile_cache: text("write_cache").is_none_or(|text| text == "write back"),
        fua: number("fua") == Some(1),
        discard: number("discard_max_bytes").is_some_and(|bytes| bytes > 0),
        write_zeroes: number("write_zeroes_max_bytes").is_some_and(|bytes| bytes > 0),
        read_only,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(result: Result<HostFile>) -> String {
        result.expect_err("must be refused").to_string()
    }

    #[test]
    fn what_cannot_be_opened_is_named_in_the_error() {
        let directory = tempfile::tempdir().unwrap();
        let options = HostOptions::default();
        assert!(text(HostFile::open(directory.path(), &options)).contains("Is a directory"));
        let absent = directory.path().join("absent");
        assert!(text(HostFile::open(&absent, &options)).contains("absent: No such file"));
        assert!(text(HostFile::open(Path::new("/dev/null"), &options)).contains("neither"));
    }

    #[test]
    fn a_file_has_one_writer_or_many_readers() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk.img");
        let create = HostOptions { create: Some(8192), ..HostOptions::default() };
        let read = HostOptions { read_only: true, ..HostOptions::default() };
        let writer = HostFile::open(&path, &create).unwrap();
        assert_eq!(writer.geometry().size, 8192);
        assert!(text(HostFile::open(&path, &create)).contains("File exists"));
        assert!(path.exists());
        assert!(text(HostFile::open(&path, &read)).contains("in use by another process"));
        drop(writer);
        let reader = HostFile::open(&path, &read).unwrap();
        let second = HostFile::open(&path, &read).unwrap();
        assert!(text(HostFile::open(&path, &HostOptions::default())).contains("in use by another process"));
        drop((reader, second));
        HostFile::open(&path, &HostOptions::default()).unwrap();
    }

    #[test]
    fn the_window_lies_within_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk.img");
        std::fs::write(&path, vec![0; 10_000]).unwrap();
        let size = |offset, size| {
            let options = HostOptions { offset, size, ..HostOptions::default() };
            HostFile::open(&path, &options).map(|file| file.geometry().size)
        };
        assert_eq!(size(0, None).unwrap(), 9728);
        assert_eq!(size(1024, None).unwrap(), 8704);
        assert_eq!(size(1024, Some(4096)).unwrap(), 4096);
        assert!(size(100, None).is_err());
        assert!(size(10_240, None).is_err());
        assert!(size(1024, Some(9216)).is_err());
        let mut file =
            HostFile::open(&path, &HostOptions { offset: 1024, ..HostOptions::default() }).unwrap();
        assert!(file.grow(512).is_err());
        file.grow(1 << 20).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), (1 << 20) + 1024);
        let create = HostOptions { create: Some(u64::MAX), ..HostOptions::default() };
        let new = directory.path().join("new.img");
        assert!(HostFile::open(&new, &create).is_err());
        assert!(!new.exists());
    }
}
