//! The io_uring itself: setting it up, encoding transfers, pushing, entering, draining, registered memory. All system
//! calls and all `unsafe` of this crate.
//!
//! Invariants:
//! - The submission queue is touched only by the holder of a [`Queues`], of which there is one, in the device's state
//!   lock; the completion queue likewise. `io_uring_enter` may be called by anybody: the kernel takes what is there.
//! - Memory named by an entry lives until its completion: the engine's slots own it.
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
/// Regions of the folio pool that can be registered at a time: 32 GiB of them.
const MAX_REGISTERED: u16 = 1024;
/// How often an enter that the kernel refuses for want of memory is tried on the spot.
const ENTER_TRIES: u32 = 16;

/// An io_uring for one file.
pub(crate) struct Ring {
    uring: IoUring,
    /// As entries name the file: its place in the table of registered files, or its descriptor.
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

/// The right to touch the queues; see the module.
#[derive(Debug)]
pub(crate) struct Queues(());

impl Ring {
    /// A ring with room for `slots` entries at a time, for `file`, which must stay open as long as the ring.
    ///
    /// # Errors
    /// The host's refusal; where it forbids io_uring, the text names the other backend.
    pub(crate) fn new(file: &File, slots: u32) -> Result<(Self, Queues)> {
        let build = |newest: bool| {
            let mut builder = IoUring::builder();
            builder.setup_clamp().setup_cqsize(2 * slots);
            if newest {
                builder.setup_submit_all().setup_no_sqarray();
                // What has ended is posted when the thread that started it next enters the kernel, for whatever reason, or
                // sleeps, or at its next tick: it is not interrupted for it. On a virtual machine that interrupt costs
                // as much as the transfer.
                builder.setup_coop_taskrun().setup_taskrun_flag();
            }
            builder.build(slots)
        };
        let uring = match build(true) {
            // Flags that an older kernel does not know.
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

    /// The ring's eventfd, to wait for completions with. Needs a runtime with I/O enabled.
    ///
    /// # Errors
    /// The host's.
    pub(crate) fn watch(&self) -> Result<AsyncFd<Arc<EventFd>>> {
        let event = Arc::clone(&self.event);
        // SAFETY: the descriptor stays open and the same as long as the `AsyncFd` lives: both hold the `EventFd`, which
        // closes it only when it is dropped, and nobody can take it out of its `Arc`.
        let watched = unsafe { AsyncFd::register_with_interest(event, Interest::READABLE) };
        watched.map_err(|failed| Error::host("watch", "the ring's eventfd", &failed.into_parts().1))
    }

    /// The table of registered memory, empty.
    pub(crate) fn registered(&self) -> Registered {
        let available = if self.buffers { MAX_REGISTERED } else { 0 };
        Registered { table: BTreeMap::new(), last: None, available }
    }

    /// The entry for a transfer in `slot`.
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

    /// Queues the entry for a transfer that lies in `slot` of the engine; it starts with the next [`Ring::enter`].
    pub(crate) fn queue(&self, _queues: &mut Queues, slot: usize, transfer: &Transfer) {
        let entry = self.encode(slot, transfer);
        // SAFETY: `_queues` is borrowed mutably, and there is one: nobody else touches the submission queue.
        let mut queue = unsafe { self.uring.submission_shared() };
        // SAFETY: the entry names memory of the engine's slot (module `engine`): the bios' segments, the bounce buffer
        // and the vectors, which all stay where they are until the completion for the slot was drained; the file is
        // open as long as the ring.
        let pushed = unsafe { queue.push(&entry) };
        assert!(pushed.is_ok(), "the engine has no more slots than the ring has entries");
    }

    /// Starts everything queued, and has what this thread started and has ended posted. True where it has to be tried again later ([`Ring::nudge`]).
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

    /// Wakes the reaper, which enters again.
    pub(crate) fn nudge(&self) {
        let _ = self.event.write(1);
    }

    /// True where something has ended and is posted when its thread enters the kernel.
    pub(crate) fn is_to_be_posted(&self, _queues: &mut Queues) -> bool {
        // SAFETY: `_queues` is borrowed mutably, and there is one: nobody else touches the submission queue.
        unsafe { self.uring.submission_shared() }.taskrun()
    }

    /// From now on completions are not told through the eventfd.
    pub(crate) fn silence(&self, _queues: &mut Queues) {
        // SAFETY: `_queues` is borrowed mutably, and there is one: nobody else touches the completion queue.
        unsafe { self.uring.completion_shared() }.disable_eventfd();
    }

    /// The opposite of [`Ring::silence`]. What was posted just before may not have been told.
    pub(crate) fn speak(&self, _queues: &mut Queues) {
        // SAFETY: as above.
        unsafe { self.uring.completion_shared() }.enable_eventfd();
    }

    /// Starts everything queued and waits for a completion, at most `timeout`.
    pub(crate) fn enter_and_wait(&self, timeout: Duration) {
        let timespec = types::Timespec::new().sec(timeout.as_secs()).nsec(timeout.subsec_nanos());
        let arguments = types::SubmitArgs::new().timespec(&timespec);
        // Whatever it says (ETIME, EINTR, EAGAIN), the caller looks and comes again.
        if self.uring.submitter().submit_with_args(1, &arguments).is_err() {
            std::thread::yield_now();
        }
    }

    /// Takes the completions that are there: slot, and bytes moved or error.
    pub(crate) fn drain(&self, _queues: &mut Queues, completions: &mut Vec<(usize, Result<u64, Errno>)>) {
        // SAFETY: `_queues` is borrowed mutably, and there is one: nobody else touches the completion queue.
        let queue = unsafe { self.uring.completion_shared() };
        completions.extend(queue.map(|entry| {
            let slot = usize::try_from(entry.user_data()).unwrap_or(usize::MAX);
            let result =
                u64::try_from(entry.result()).map_err(|_| Errno::from_raw(entry.result().saturating_neg()));
            (slot, result)
        }));
    }

    /// Gives back what is registered, so that the file is closed when its owner closes it and not when the kernel
    /// gets round to the ring's end. Only when nothing is in flight.
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

/// Why there is no ring, in words that help.
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
    /// By the region's number: its place in the ring's table.
    table: BTreeMap<u64, (u16, Weak<Region>)>,
    last: Option<(u64, u16)>,
    /// Places in all; 0 where registering was refused.
    available: u16,
}

/// [`Registered`] with its ring, as the engine asks for buffers.
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
    /// Registers a region; `None` where that is refused or the table is full.
    fn register(&mut self, ring: &Ring, region: &Arc<Region>) -> Option<u16> {
        let index = self.place()?;
        let buffer = libc::iovec { iov_base: region.as_ptr().cast(), iov_len: region.len() };
        // SAFETY: the region is one mapping of that length, which lives as long as any piece of it does; entries name
        // this buffer only for segments that hold such a piece. The kernel pins the pages.
        let done = unsafe { ring.uring.submitter().register_buffers_update(index.into(), &[buffer], None) };
        match done {
            Ok(()) => {
                self.table.insert(region.id(), (index, Arc::downgrade(region)));
                Some(index)
            }
            Err(source) => {
                // RLIMIT_MEMLOCK, most likely. What is registered stays so; no more is tried.
                tracing::info!(%source, registered = self.table.len(), "no more memory can be registered");
                self.available = 0;
                None
            }
        }
    }

    /// A free place in the ring's table: a new one, or that of a region whose pool is gone.
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

/// What the host says `O_DIRECT` on a regular file asks for: alignment of memory and of offsets, in bytes.
/// `None` where it does not say.
pub(crate) fn direct_alignment(file: &File) -> Option<(u32, u32)> {
    let mut found = std::mem::MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the path is an empty string that ends in zero, which with AT_EMPTY_PATH means the descriptor itself; the
    // kernel writes one `statx`.
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
