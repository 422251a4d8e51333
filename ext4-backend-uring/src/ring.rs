//! The io_uring: setup, encoding of transfers, submission, completions, registered memory. All system calls
//! and all `unsafe` of this crate.
//!
//! Invariants:
//! - Submission queue and completion queue are touched only by the holder of the one [`Queues`], which lies
//!   in the device's state lock. Any task may call `io_uring_enter`: the kernel takes every queued entry.
//! - Memory named by an entry lives until its completion: the engine's slots and requests own it.
//! - Registered memory is pinned by the kernel; a region whose pool is gone is replaced, never used again.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Weak};
use std::time::Duration;

use ext4_core::device::Segment;
use ext4_core::device::memory::Region;
use ext4_core::{Errno, Error, Result};
use io_uring::squeue::Flags;
use io_uring::{IoUring, Probe, opcode, squeue, types};
use nix::sys::eventfd::EventFd;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::engine::Registry;
use crate::transfer::{Action, Transfer, Vectors};

/// `BLOCK_URING_CMD_DISCARD`: `_IO(0x12, 0)` (include/uapi/linux/blkdev.h, Linux 6.12).
const BLOCK_URING_CMD_DISCARD: u32 = 0x1200;
/// The most regions of folio pools that are registered at a time: 32 GiB of them.
const MAX_REGISTERED: u16 = 1024;
/// How often `io_uring_enter` is tried at once if the kernel refuses it for lack of memory.
const ENTER_TRIES: u32 = 16;

/// An io_uring for one file.
pub(crate) struct Ring {
    uring: IoUring,
    /// The file as entries name it: its index in the table of registered files, or its descriptor.
    file: types::Fd,
    file_flags: Flags,
    vectored_fixed: bool,
    buffers: bool,
    event: Arc<EventFd>,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ring({} entries)", self.uring.params().sq_entries())
    }
}

/// The right to touch the submission and completion queues; see the module.
#[derive(Debug)]
pub(crate) struct Queues(());

impl Ring {
    /// Sets up a ring with `slots` entries for `file`, which has to stay open as long as the ring.
    ///
    /// # Errors
    /// - `ENOSYS`, `EPERM`, `EACCES`: the host has no io_uring or forbids it; the message names the file
    ///   backend.
    /// - The host's other errors for setting up a ring and an eventfd.
    pub(crate) fn new(file: &File, slots: u32) -> Result<(Self, Queues)> {
        let build = |newest: bool| {
            let mut builder = IoUring::builder();
            builder.setup_clamp().setup_cqsize(2 * slots);
            if newest {
                builder.setup_submit_all().setup_no_sqarray();
                // The kernel posts a completion when the submitting thread next enters the kernel for any
                // reason, sleeps, or at its next tick, and does not interrupt the thread for it. On a virtual
                // machine that interrupt costs as much as the transfer.
                builder.setup_coop_taskrun().setup_taskrun_flag();
            }
            builder.build(slots)
        };
        let uring = match build(true) {
            // An older kernel does not know these flags.
            Err(source) if source.raw_os_error() == Some(libc::EINVAL) => build(false),
            built => built,
        }
        .map_err(|source| refused(&source))?;
        let failed = |source: std::io::Error| Error::host("set up", "an io_uring", &source);
        let event = EventFd::from_flags(nix::sys::eventfd::EfdFlags::EFD_CLOEXEC)
            .map_err(|errno| Error::io("make", "an eventfd", errno))?;
        uring.submitter().register_eventfd(event.as_raw_fd()).map_err(failed)?;
        let (file, file_flags) = match uring.submitter().register_files(&[file.as_raw_fd()]) {
            Ok(()) => (types::Fd(0), Flags::FIXED_FILE),
            Err(_) => (types::Fd(file.as_raw_fd()), Flags::empty()),
        };
        let mut probe = Probe::new();
        let probed = uring.submitter().register_probe(&mut probe).is_ok();
        let vectored_fixed = probed
            && probe.is_supported(opcode::WritevFixed::CODE)
            && probe.is_supported(opcode::ReadvFixed::CODE);
        let buffers = uring.submitter().register_buffers_sparse(MAX_REGISTERED.into()).is_ok();
        tracing::debug!(
            entries = uring.params().sq_entries(),
            vectored_fixed,
            buffers,
            registered_file = !file_flags.is_empty(),
            "io_uring is set up"
        );
        Ok((Self { uring, file, file_flags, vectored_fixed, buffers, event: Arc::new(event) }, Queues(())))
    }

    /// Entries of the submission queue.
    pub(crate) fn entries(&self) -> usize {
        self.uring.params().sq_entries() as usize
    }

    /// The ring's eventfd, registered with the tokio runtime, which has to have I/O enabled.
    ///
    /// # Errors
    /// The host's errors for `epoll_ctl`.
    pub(crate) fn watch(&self) -> Result<AsyncFd<Arc<EventFd>>> {
        let event = Arc::clone(&self.event);
        // SAFETY: the descriptor stays open and the same as long as the `AsyncFd` lives: ring and `AsyncFd`
        // hold the `EventFd`, which closes it only when it is dropped, and no code takes it out of its `Arc`.
        let watched = unsafe { AsyncFd::register_with_interest(event, Interest::READABLE) };
        watched.map_err(|failed| Error::host("watch", "the ring's eventfd", &failed.into_parts().1))
    }

    /// An empty table of registered memory.
    pub(crate) fn registered(&self) -> Registered {
        let available = if self.buffers { MAX_REGISTERED } else { 0 };
        Registered { table: BTreeMap::new(), last: None, available }
    }

    /// The submission queue entry for the transfer in `slot`.
    fn encode(&self, slot: usize, transfer: &Transfer) -> squeue::Entry {
        let file = self.file;
        let offset = transfer.offset;
        let durable = match transfer.action {
            Action::Write { durable: true } => libc::RWF_DSYNC,
            _ => 0,
        };
        let range = |mode| opcode::Fallocate::new(file, transfer.len).offset(offset).mode(mode).build();
        let entry = match transfer.action {
            Action::Read => match &transfer.vectors {
                Vectors::One(vector) => {
                    let (address, len) =
                        (std::ptr::with_exposed_provenance_mut(vector.address), length(vector.len));
                    match transfer.registered {
                        Some(index) => {
                            opcode::ReadFixed::new(file, address, len, index).offset(offset).build()
                        }
                        None => opcode::Read::new(file, address, len).offset(offset).build(),
                    }
                }
                Vectors::Many(vectors) => {
                    let (vectors, count) = (vectors.as_ptr().cast::<libc::iovec>(), length(vectors.len()));
                    match transfer.registered.filter(|_| self.vectored_fixed) {
                        Some(index) => {
                            opcode::ReadvFixed::new(file, vectors, count, index).offset(offset).build()
                        }
                        None => opcode::Readv::new(file, vectors, count).offset(offset).build(),
                    }
                }
            },
            Action::Write { .. } => match &transfer.vectors {
                Vectors::One(vector) => {
                    let (address, len) =
                        (std::ptr::with_exposed_provenance(vector.address), length(vector.len));
                    match transfer.registered {
                        Some(index) => opcode::WriteFixed::new(file, address, len, index)
                            .offset(offset)
                            .rw_flags(durable)
                            .build(),
                        None => {
                            opcode::Write::new(file, address, len).offset(offset).rw_flags(durable).build()
                        }
                    }
                }
                Vectors::Many(vectors) => {
                    let (vectors, count) = (vectors.as_ptr().cast::<libc::iovec>(), length(vectors.len()));
                    match transfer.registered.filter(|_| self.vectored_fixed) {
                        Some(index) => opcode::WritevFixed::new(file, vectors, count, index)
                            .offset(offset)
                            .rw_flags(durable)
                            .build(),
                        None => {
                            opcode::Writev::new(file, vectors, count).offset(offset).rw_flags(durable).build()
                        }
                    }
                }
            },
            Action::Flush => opcode::Fsync::new(file).flags(types::FsyncFlags::DATASYNC).build(),
            Action::Discard => {
                let mut command = [0; 16];
                command[..8].copy_from_slice(&transfer.len.to_ne_bytes());
                opcode::UringCmd16::new(file, BLOCK_URING_CMD_DISCARD).addr(Some(offset)).cmd(command).build()
            }
            Action::DiscardByHole | Action::ZeroByHole => {
                range(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE)
            }
            Action::ZeroRange => range(libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE),
        };
        entry.flags(self.file_flags).user_data(slot as u64)
    }

    /// Queues the entry for the transfer in `slot` of the engine; it starts with the next [`Ring::enter`].
    pub(crate) fn queue(&self, _queues: &mut Queues, slot: usize, transfer: &Transfer) {
        let entry = self.encode(slot, transfer);
        // SAFETY: `_queues` is borrowed mutably, and there is one: no other task touches the submission
        // queue.
        let mut queue = unsafe { self.uring.submission_shared() };
        // SAFETY: the entry names memory of the engine (module `engine`): the bios' segments, the bounce
        // buffer, the zeros and the vectors, which all stay in place until the completion for the slot was
        // drained; the file is open as long as the ring.
        let pushed = unsafe { queue.push(&entry) };
        assert!(pushed.is_ok(), "the engine has no more slots than the ring has entries");
    }

    /// Calls `io_uring_enter`: starts every queued entry, and lets the kernel post the completions of entries
    /// that this thread started. Returns true if the kernel refused: the caller tries again later
    /// ([`Ring::nudge`]).
    pub(crate) fn enter(&self) -> bool {
        for _ in 0..ENTER_TRIES {
            match self.uring.submitter().submit() {
                Ok(_) => return false,
                Err(source) => match source.raw_os_error() {
                    Some(libc::EINTR) => {}
                    Some(libc::EAGAIN | libc::EBUSY | libc::ENOMEM) => std::thread::yield_now(),
                    _ => {
                        tracing::error!(%source, "io_uring_enter");
                        return true;
                    }
                },
            }
        }
        true
    }

    /// Signals the eventfd: the reaper task wakes and enters again.
    pub(crate) fn nudge(&self) {
        let _ = self.event.write(1);
    }

    /// Returns true if a transfer has ended and its completion is posted when its thread enters the kernel
    /// (`IORING_SQ_TASKRUN`).
    pub(crate) fn is_to_be_posted(&self, _queues: &mut Queues) -> bool {
        // SAFETY: `_queues` is borrowed mutably, and there is one: no other task touches the submission
        // queue.
        unsafe { self.uring.submission_shared() }.taskrun()
    }

    /// Disables the eventfd: completions do not signal it.
    pub(crate) fn silence(&self, _queues: &mut Queues) {
        // SAFETY: `_queues` is borrowed mutably, and there is one: no other task touches the completion
        // queue.
        unsafe { self.uring.completion_shared() }.disable_eventfd();
    }

    /// Enables the eventfd again. A completion posted just before may have signalled nothing.
    pub(crate) fn speak(&self, _queues: &mut Queues) {
        // SAFETY: `_queues` is borrowed mutably, and there is one: no other task touches the completion
        // queue.
        unsafe { self.uring.completion_shared() }.enable_eventfd();
    }

    /// Starts every queued entry and waits for a completion, at most `timeout`.
    pub(crate) fn enter_and_wait(&self, timeout: Duration) {
        let timespec = types::Timespec::new().sec(timeout.as_secs()).nsec(timeout.subsec_nanos());
        let arguments = types::SubmitArgs::new().timespec(&timespec);
        // After any error (ETIME, EINTR, EAGAIN) the caller reaps and calls again.
        if self.uring.submitter().submit_with_args(1, &arguments).is_err() {
            std::thread::yield_now();
        }
    }

    /// Moves the posted completions into `completions`: the slot, and the bytes moved or the error.
    pub(crate) fn drain(&self, _queues: &mut Queues, completions: &mut Vec<(usize, Result<u64, Errno>)>) {
        // SAFETY: `_queues` is borrowed mutably, and there is one: no other task touches the completion
        // queue.
        let queue = unsafe { self.uring.completion_shared() };
        completions.extend(queue.map(|entry| {
            let slot = usize::try_from(entry.user_data()).unwrap_or(usize::MAX);
            let result =
                u64::try_from(entry.result()).map_err(|_| Errno::from_raw(entry.result().saturating_neg()));
            (slot, result)
        }));
    }

    /// Unregisters file and memory, so that the file is closed when its owner drops it, not later, when the
    /// kernel frees the ring. Called only when nothing is in flight.
    pub(crate) fn unregister(&self) {
        let submitter = self.uring.submitter();
        if !self.file_flags.is_empty() {
            let _ = submitter.unregister_files();
        }
        if self.buffers {
            let _ = submitter.unregister_buffers();
        }
    }
}

fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("a transfer is shorter than 4 GiB: the limits of its device")
}

/// The error for a ring that cannot be set up; if the host forbids io_uring, with the reason and the other
/// backend.
fn refused(source: &std::io::Error) -> Error {
    let errno = source.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
    if !matches!(errno, Errno::ENOSYS | Errno::EPERM | Errno::EACCES) {
        return Error::io("set up", "an io_uring", errno);
    }
    let sysctl = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    let why = match sysctl.trim() {
        "1" => "the host allows it to privileged processes only (sysctl kernel.io_uring_disabled is 1)",
        "2" => "the host has switched it off (sysctl kernel.io_uring_disabled is 2)",
        _ if errno == Errno::ENOSYS => "the kernel has no io_uring",
        _ => "the host forbids io_uring, as container runtimes do",
    };
    Error::posix(errno, format!("{why}; use `--backend file` instead"))
}

/// Regions of folio pools that are registered with a ring.
#[derive(Debug)]
pub(crate) struct Registered {
    /// Region id → index in the ring's table of buffers.
    table: BTreeMap<u64, (u16, Weak<Region>)>,
    last: Option<(u64, u16)>,
    /// Size of the ring's table; 0 if the host refused to register.
    available: u16,
}

/// [`Registered`] with its ring: the [`Registry`] of the engine.
pub(crate) struct WithRing<'r> {
    pub(crate) registered: &'r mut Registered,
    pub(crate) ring: &'r Ring,
}

impl Registry for WithRing<'_> {
    fn buffer_of(&mut self, segment: &Segment) -> Option<u16> {
        let Segment::Pool { memory, .. } = segment else { return None };
        let (region, _) = memory.region();
        let registered = &mut *self.registered;
        if let Some((id, index)) = registered.last
            && id == region.id()
        {
            return Some(index);
        }
        let index = match registered.table.get(&region.id()) {
            Some((index, _)) => *index,
            None if registered.available == 0 => return None,
            None => registered.register(self.ring, region)?,
        };
        registered.last = Some((region.id(), index));
        Some(index)
    }
}

impl Registered {
    /// Registers a region and returns its index, or `None` if the host refuses or the table is full.
    fn register(&mut self, ring: &Ring, region: &Arc<Region>) -> Option<u16> {
        let index = self.place()?;
        let buffer = libc::iovec { iov_base: region.as_ptr().cast(), iov_len: region.len() };
        // SAFETY: the region is one mapping of that length, which lives as long as any piece of it does;
        // entries name this buffer only for segments that hold such a piece. The kernel pins the pages.
        let done = unsafe { ring.uring.submitter().register_buffers_update(index.into(), &[buffer], None) };
        match done {
            Ok(()) => {
                self.table.insert(region.id(), (index, Arc::downgrade(region)));
                Some(index)
            }
            Err(source) => {
                // RLIMIT_MEMLOCK, most likely. Registered regions stay registered; no other region is tried.
                tracing::info!(%source, registered = self.table.len(), "no more memory can be registered");
                self.available = 0;
                None
            }
        }
    }

    /// A free index in the ring's table: that of a region whose pool is gone, or a new one.
    fn place(&mut self) -> Option<u16> {
        let used = u16::try_from(self.table.len()).ok()?;
        let dead = self.table.iter().find(|(_, (_, region))| region.strong_count() == 0).map(|(id, _)| *id);
        if let Some(id) = dead {
            if self.last.is_some_and(|(last, _)| last == id) {
                self.last = None;
            }
            return self.table.remove(&id).map(|(index, _)| index);
        }
        (used < self.available).then_some(used)
    }
}

/// The alignment that `O_DIRECT` on a regular file needs, for memory and for offsets, in bytes
/// (`STATX_DIOALIGN`). `None` if the host does not tell.
pub(crate) fn direct_alignment(file: &File) -> Option<(u32, u32)> {
    let mut found = std::mem::MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the path is an empty string that ends in zero, which with AT_EMPTY_PATH means the descriptor
    // itself; the kernel writes one `statx`.
    let done = unsafe {
        libc::statx(
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_DIOALIGN,
            found.as_mut_ptr(),
        )
    };
    // SAFETY: a `statx` is plain integers: zeros are a value, and so is what the kernel wrote.
    let found = unsafe { found.assume_init() };
    let told = done == 0 && found.stx_mask & libc::STATX_DIOALIGN != 0;
    (told && found.stx_dio_offset_align > 0).then_some((found.stx_dio_mem_align, found.stx_dio_offset_align))
}
