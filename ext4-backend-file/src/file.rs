//! An image file, read and written by positional I/O.
//!
//! The bios of a plug are sorted by offset; adjacent reads, and adjacent writes, become one system call. Each
//! operation is one function: transfer, flush (`fdatasync`), discard (punches a hole), write zeroes (punches
//! a hole; if the host refuses, zeroes the range; if the host refuses that too, writes zeros).
//!
//! Invariants:
//! - A write of zeros allocates blocks like any write: only discard and write-zeroes punch holes, so that
//!   allocated space stays allocated.
//! - FUA is `RWF_DSYNC`, PREFLUSH is an `fdatasync` before the write, in the same thread: a commit block is
//!   not durable before what it commits.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ext4_core::device::host::{HostFile, HostOptions};
use ext4_core::device::{AlignedBuffer, Bio, BioFlags, BlockDevice, Geometry, Operation, Plug, Segment};
use ext4_core::{Errno, Error, Result};
use nix::fcntl::{FallocateFlags, fallocate};

use crate::syscall::{Direction, MAX_VECTORS, transfer};
use crate::workers::Workers;

/// Adjacent bios are joined up to this many bytes: large enough to make the cost of a system call negligible,
/// small enough to let the threads share a long plug.
const MAX_JOINED: u64 = 2 << 20;

/// How to open an image file.
#[derive(Clone, Debug, Default)]
pub struct FileOptions {
    /// True if the device only reads: writes fail with `EROFS`.
    pub read_only: bool,
    /// First byte of the device in the file (a partition). A multiple of the logical block size.
    pub offset: u64,
    /// If set, the file is created with this size in bytes, sparse. It must not exist.
    pub create: Option<u64>,
    /// If set, the size of the device in bytes; otherwise the device reaches from `offset` to the end of the
    /// file.
    pub size: Option<u64>,
}

/// Bios that one system call carries out: adjacent bios of one direction, or a single bio.
type Job = Vec<Bio>;

#[derive(Debug)]
struct Target {
    host: HostFile,
    /// True if the host's file system has refused `FALLOC_FL_PUNCH_HOLE`: it is not asked again.
    no_holes: AtomicBool,
    /// True if the host's file system has refused `FALLOC_FL_ZERO_RANGE`: it is not asked again.
    no_zero_range: AtomicBool,
}

/// An image file (or block device), read and written by positional I/O on threads of the device.
///
/// Needs no tokio runtime. Dropping the device carries out what is queued and ends the threads.
#[derive(Debug)]
pub struct FileDevice {
    // Before `target`: dropped first, so that the threads have given their references back.
    workers: Workers<Job>,
    target: Arc<Target>,
    geometry: Geometry,
}

impl FileDevice {
    /// Opens `path`, a regular file or a block device. A regular file is locked (`flock`, shared if
    /// `read_only`), so that it has one writer at a time; a block device is opened with `O_EXCL`.
    ///
    /// # Errors
    /// Each names the path.
    /// - `EBUSY`: another process has the file open through this library, or the block device is mounted.
    /// - `EEXIST`: `create` is set and the file exists.
    /// - `EINVAL`: `offset` or `size` does not lie within the file, or not on logical blocks.
    /// - `EISDIR`, `ENOTBLK`: `path` is neither a regular file nor a block device.
    /// - The host's errors for opening, locking and measuring the file, and for starting threads.
    pub fn open(path: &Path, options: &FileOptions) -> Result<Self> {
        let host = HostFile::open(
            path,
            &HostOptions {
                read_only: options.read_only,
                offset: options.offset,
                size: options.size,
                create: options.create,
                direct: false,
            },
        )?;
        Self::start(host)
    }

    fn start(host: HostFile) -> Result<Self> {
        let geometry = Geometry {
            // The host's page cache copies: any address and length will do, and the host writes back by
            // itself.
            memory_alignment: 1,
            max_transfer: 16 << 20,
            max_segments: 1024,
            queue_depth: 64,
            volatile_cache: true,
            fua: true,
            ..host.geometry().clone()
        };
        let target = Arc::new(Target {
            host,
            no_holes: AtomicBool::new(false),
            no_zero_range: AtomicBool::new(false),
        });
        let threads = std::thread::available_parallelism().map_or(2, |count| count.get().clamp(2, 4));
        let workers = {
            let target = Arc::clone(&target);
            Workers::start(threads, move |job| target.run(job))?
        };
        Ok(Self { workers, target, geometry })
    }

    /// The path the device was opened by.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.target.host.path()
    }

    /// Extends the image by a hole, so that the device has `size` bytes. Takes the device by value: it is
    /// called before the device is shared.
    ///
    /// # Errors
    /// - `EINVAL`: `size` is smaller than the present size.
    /// - `ENOTSUP`: the device is a block device.
    /// - `EBUSY`: a job of the device is still running.
    /// - The host's errors for extending the file and starting threads.
    pub fn grow(self, size: u64) -> Result<Self> {
        let Self { workers, target, .. } = self;
        drop(workers);
        let Ok(Target { mut host, .. }) = Arc::try_unwrap(target) else {
            return Err(Error::io("grow", "the device", Errno::EBUSY));
        };
        host.grow(size)?;
        Self::start(host)
    }
}

impl BlockDevice for FileDevice {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn submit(&self, plug: Plug) {
        let mut bios = Vec::with_capacity(plug.len());
        for bio in plug {
            match bio.check(&self.geometry) {
                Ok(()) => bios.push(bio),
                Err(error) => bio.complete(Err(error)),
            }
        }
        // A stable sort: bios for one offset keep their order. Flushes (offset 0) go first: a flush covers
        // only writes that had completed before it was submitted.
        bios.sort_by_key(|bio| bio.offset);
        let mut jobs: Vec<Job> = Vec::new();
        for bio in bios {
            match jobs.last_mut() {
                Some(job) if joins(job, &bio) => job.push(bio),
                _ => jobs.push(vec![bio]),
            }
        }
        self.workers.push(jobs);
    }
}

/// Returns true if `bio` can be carried out with `job` in one system call.
fn joins(job: &[Bio], bio: &Bio) -> bool {
    let (Some(first), Some(last)) = (job.first(), job.last()) else { return false };
    let special = BioFlags::PREFLUSH | BioFlags::FUA;
    matches!(bio.operation, Operation::Read | Operation::Write)
        && last.operation == bio.operation
        && last.offset + last.len == bio.offset
        && !bio.flags.intersects(special)
        && !first.flags.intersects(special)
        && bio.offset + bio.len - first.offset <= MAX_JOINED
        && job.iter().map(|bio| bio.segments.len()).sum::<usize>() + bio.segments.len() <= MAX_VECTORS
}

impl Target {
    fn run(&self, mut job: Job) {
        if job.len() > 1 && self.carry_out(&mut job).is_ok() {
            for bio in job {
                bio.complete(Ok(()));
            }
            return;
        }
        // A single bio, or several of which at least one failed. Each is carried out alone, so that only the
        // bio that fails completes with the error. To write the same bytes twice does no harm.
        for mut bio in job {
            let result = self.carry_out(std::slice::from_mut(&mut bio)).map_err(|errno| {
                let location = format!("{} of {}", bio.location(), self.host.path().display());
                Error::io(bio.operation_name(), location, errno)
            });
            bio.complete(result);
        }
    }

    /// Carries out adjacent bios of one operation.
    fn carry_out(&self, bios: &mut [Bio]) -> Result<(), Errno> {
        let Some(first) = bios.first() else { return Ok(()) };
        let (operation, flags, len) = (first.operation, first.flags, first.len);
        let offset = self.host.offset() + first.offset;
        let durable = flags.contains(BioFlags::FUA);
        if flags.contains(BioFlags::PREFLUSH) && operation != Operation::Flush {
            self.flush()?;
        }
        match operation {
            Operation::Read => transfer(self.host.file(), Direction::Read, offset, bios),
            Operation::Write => self.write(offset, bios, durable),
            Operation::Flush => self.flush(),
            Operation::Discard => match self.punch(offset, len) {
                // Discard is advice: a range that cannot be discarded keeps its blocks.
                Ok(()) | Err(Errno::EOPNOTSUPP) => Ok(()),
                Err(errno) => Err(errno),
            },
            Operation::WriteZeroes => {
                self.write_zeroes(offset, len)?;
                if durable { self.flush() } else { Ok(()) }
            }
        }
    }

    fn write(&self, offset: u64, bios: &mut [Bio], durable: bool) -> Result<(), Errno> {
        match transfer(self.host.file(), Direction::Write { durable }, offset, bios) {
            Err(Errno::EOPNOTSUPP) if durable => {
                transfer(self.host.file(), Direction::Write { durable: false }, offset, bios)?;
                self.flush()
            }
            result => result,
        }
    }

    fn flush(&self) -> Result<(), Errno> {
        if self.geometry_is_read_only() {
            return Ok(());
        }
        nix::unistd::fdatasync(self.host.file())
    }

    fn geometry_is_read_only(&self) -> bool {
        self.host.geometry().read_only
    }

    fn punch(&self, offset: u64, len: u64) -> Result<(), Errno> {
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        self.allocate(&self.no_holes, flags, offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), Errno> {
        match self.punch(offset, len) {
            Err(Errno::EOPNOTSUPP) => {}
            result => return result,
        }
        let flags = FallocateFlags::FALLOC_FL_ZERO_RANGE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        match self.allocate(&self.no_zero_range, flags, offset, len) {
            Err(Errno::EOPNOTSUPP) => self.store_zeros(offset, len),
            result => result,
        }
    }

    /// Calls `fallocate`, unless the host has refused this mode before.
    ///
    /// # Errors
    /// - `EOPNOTSUPP`: the host refuses the mode, now or before.
    /// - `EFBIG`: `offset` or `len` does not fit into `off_t`.
    /// - The host's other errors.
    fn allocate(
        &self,
        refused: &AtomicBool,
        flags: FallocateFlags,
        offset: u64,
        len: u64,
    ) -> Result<(), Errno> {
        if refused.load(Ordering::Relaxed) {
            return Err(Errno::EOPNOTSUPP);
        }
        let signed = |value: u64| libc::off_t::try_from(value).map_err(|_| Errno::EFBIG);
        let (offset, len) = (signed(offset)?, signed(len)?);
        loop {
            match fallocate(self.host.file(), flags, offset, len) {
                Err(Errno::EINTR) => {}
                Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL) => {
                    refused.store(true, Ordering::Relaxed);
                    return Err(Errno::EOPNOTSUPP);
                }
                result => return result,
            }
        }
    }

    fn store_zeros(&self, mut offset: u64, mut len: u64) -> Result<(), Errno> {
        while len > 0 {
            let part = len.min(1 << 20);
            let zeros = AlignedBuffer::zeroed(usize::try_from(part).map_err(|_| Errno::ENOMEM)?)
                .map_err(|error| error.errno())?;
            let segments = vec![Segment::Owned(zeros)];
            let mut bio = [Bio::new(Operation::Write, BioFlags::empty(), offset, segments, Box::new(drop))];
            transfer(self.host.file(), Direction::Write { durable: false }, offset, &mut bio)?;
            offset += part;
            len -= part;
        }
        Ok(())
    }
}
