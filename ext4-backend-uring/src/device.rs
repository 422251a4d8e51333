//! The io_uring block device: opening, submitting, reaping, dropping.
//!
//! Locks: `state`, around engine and queues, held while bios are split and entries are queued or drained;
//! never across a system call that waits, a completion, or an await. `io_uring_enter` is called outside of
//! the lock: the kernel takes every queued entry, from any submitter.
//!
//! Invariant: the ring is torn down only when the engine is idle. As long as the kernel holds memory of a
//! transfer, the drop waits: the memory is never freed under the kernel's hands.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use ext4_core::device::host::{HostFile, HostOptions};
use ext4_core::device::{Bio, BlockDevice, Geometry, Plug};
use ext4_core::{Errno, Error, Result};
use nix::sys::eventfd::EventFd;
use parking_lot::Mutex;
use tokio::io::unix::AsyncFd;

use crate::engine::{Configuration, Ended, Engine};
use crate::polling::Polling;
use crate::ring::{Queues, Registered, Ring, WithRing, direct_alignment};
use crate::transfer::Limits;

/// Transfers in flight if [`UringOptions::queue_depth`] is 0.
const DEFAULT_DEPTH: u32 = 256;
/// The most transfers in flight.
const MAX_DEPTH: u32 = 4096;
/// The largest transfer in bytes: an entry has 32 bits for the length.
const MAX_TRANSFER: u32 = 64 << 20;

/// Pauses of the processor between two polls of the completion queue.
const SPINS: u32 = 16;

/// How to open a [`UringDevice`].
#[derive(Clone, Debug, Default)]
pub struct UringOptions {
    /// True if the device only reads: writes fail with `EROFS`.
    pub read_only: bool,
    /// First byte of the device in the opened file (a partition). A multiple of the logical block size.
    pub offset: u64,
    /// The most transfers in flight, which is the number of entries of the submission queue (at most 4096). 0
    /// means 256, or the block device's own queue depth (at least 32) if that is less.
    pub queue_depth: u32,
    /// How long a submitter polls for the completion of one small synchronous plug before it returns. `None`
    /// means 100 µs, zero means never. A device that turns out slower is polled rarely.
    pub busy_poll: Option<Duration>,
}

#[derive(Debug)]
struct State {
    engine: Engine,
    queues: Queues,
    registered: Registered,
    /// Empty between two reaps; kept to reuse its allocation.
    completions: Vec<(usize, Result<u64, Errno>)>,
    /// True if a submitter polls for completions; the eventfd is disabled meanwhile.
    watched: bool,
}

#[derive(Debug)]
struct Shared {
    // Dropped in this order: the ring before the memory and the file (invariant of the module).
    ring: Ring,
    state: Mutex<State>,
    /// True if entries are queued that `enter` could not start.
    owed: AtomicBool,
    polling: Polling,
    _host: HostFile,
}

/// A block device (or regular file) driven by one io_uring.
///
/// Dropping the device waits for the transfers in flight: their memory is the kernel's until they complete.
#[derive(Debug)]
pub struct UringDevice {
    shared: Arc<Shared>,
    geometry: Geometry,
    reaper: tokio::task::AbortHandle,
}

impl UringDevice {
    /// Opens `path`. Has to be called within a tokio runtime with I/O enabled: the reaper task runs there as
    /// long as the device lives. A block device is opened with `O_EXCL`; a regular file is locked (`flock`,
    /// shared if `read_only`) and opened with `O_DIRECT` if its file system supports that.
    ///
    /// # Errors
    /// - `EINVAL`: there is no tokio runtime; or `offset` does not lie within the file, or not on a block of
    ///   direct I/O.
    /// - `EBUSY`: the block device is mounted or in use, or another process has the file open through this
    ///   library.
    /// - `EISDIR`, `ENOTBLK`: `path` is neither a regular file nor a block device.
    /// - `ENOSYS`, `EPERM`, `EACCES`: the host has no io_uring or forbids it; the message says which, and
    ///   names the file backend.
    /// - The host's errors for opening the file and setting up the ring.
    pub fn open(path: &Path, options: &UringOptions) -> Result<Self> {
        let runtime = tokio::runtime::Handle::try_current().map_err(|_| {
            Error::posix(Errno::EINVAL, "io_uring devices are opened within a tokio runtime with I/O enabled")
        })?;
        let host = HostFile::open(
            path,
            &HostOptions {
                read_only: options.read_only,
                offset: options.offset,
                direct: true,
                ..HostOptions::default()
            },
        )?;
        let mut geometry = geometry(&host)?;
        let depth = match options.queue_depth {
            // Transfers beyond the device's own queue would go to kernel worker threads, which is slower.
            0 if host.is_block_device() => geometry.queue_depth.clamp(32, DEFAULT_DEPTH),
            0 => DEFAULT_DEPTH,
            depth => depth.min(MAX_DEPTH),
        };
        let (ring, queues) = Ring::new(host.file(), depth)?;
        geometry.queue_depth = depth;
        let bytes = u64::from(geometry.max_transfer);
        let engine = Engine::new(Configuration {
            slots: usize::try_from(depth).unwrap_or(1).min(ring.entries()),
            limits: Limits {
                alignment: geometry.memory_alignment as usize,
                bytes: 1 << bytes.ilog2(),
                vectors: geometry.max_segments as usize,
            },
            offset: host.offset(),
            logical_block_size: u64::from(geometry.logical_block_size),
            discard_command: host.is_block_device(),
            name: path.display().to_string(),
        });
        let registered = ring.registered();
        let event = ring.watch()?;
        let state = Mutex::new(State { engine, queues, registered, completions: Vec::new(), watched: false });
        let polling = Polling::new(options.busy_poll);
        let shared = Arc::new(Shared { ring, state, owed: AtomicBool::new(false), polling, _host: host });
        let reaper = runtime.spawn(reap_for_ever(event, Arc::downgrade(&shared))).abort_handle();
        Ok(Self { shared, geometry, reaper })
    }
}

/// The geometry of the opened file: the host's, within the limits of io_uring and of direct I/O.
///
/// # Errors
/// `EINVAL`: the device starts at a byte that direct I/O on this file cannot address.
fn geometry(host: &HostFile) -> Result<Geometry> {
    let mut geometry = host.geometry().clone();
    geometry.max_segments = 256;
    geometry.max_transfer = geometry.max_transfer.min(MAX_TRANSFER);
    if !host.is_block_device() {
        geometry.max_transfer = 4 << 20;
        if host.is_direct() {
            // 4096 bytes satisfy every file system, if this one does not tell its alignment.
            let (memory, offset) = direct_alignment(host.file()).unwrap_or((4096, 4096));
            geometry.memory_alignment = memory.max(1);
            geometry.logical_block_size = offset.max(512);
            geometry.physical_block_size = geometry.physical_block_size.max(offset);
            let unit = u64::from(geometry.logical_block_size);
            geometry.size -= geometry.size % unit;
            if !host.offset().is_multiple_of(unit) {
                let context = format!(
                    "{}: byte {} is not a multiple of the {unit} bytes that direct I/O needs; \
                     use `--backend file`",
                    host.path().display(),
                    host.offset()
                );
                return Err(Error::posix(Errno::EINVAL, context));
            }
        }
    }
    Ok(geometry)
}

impl Shared {
    /// Queues entries for waiting transfers as long as slots are free. Returns true if it queued any: the
    /// caller has to enter.
    fn queue(&self, state: &mut State) -> bool {
        let mut queued = false;
        while let Some((slot, transfer)) = state.engine.next() {
            self.ring.queue(&mut state.queues, slot, transfer);
            queued = true;
        }
        queued
    }

    fn enter(&self) {
        if self.ring.enter() {
            self.owed.store(true, Ordering::Release);
            self.ring.nudge();
        }
    }

    fn submit(&self, bios: Vec<Bio>) {
        let mut ended = Vec::new();
        let suits = self.polling.suits(&bios);
        let (queued, watch) = {
            let mut state = self.state.lock();
            let state = &mut *state;
            let alone = state.engine.is_idle();
            if !alone {
                self.polling.crowded();
            }
            let mut registry = WithRing { registered: &mut state.registered, ring: &self.ring };
            state.engine.accept(bios, &mut registry, &mut ended);
            let queued = self.queue(state);
            let watch = suits && queued && alone && !state.watched && self.polling.is_worth_it();
            if watch {
                self.ring.silence(&mut state.queues);
            }
            state.watched = watch;
            (queued, watch)
        };
        if queued {
            self.enter();
        }
        complete(ended);
        if watch {
            self.watch();
        }
    }

    /// Polls for completions until nothing is in flight, another task submits, or the time limit is reached.
    fn watch(&self) {
        let began = Instant::now();
        loop {
            let to_be_posted = self.ring.is_to_be_posted(&mut self.state.lock().queues);
            if to_be_posted {
                self.enter();
            }
            self.reap();
            {
                let state = self.state.lock();
                if state.engine.is_idle() {
                    self.polling.succeeded();
                    break;
                }
                if !state.watched {
                    break;
                }
            }
            if began.elapsed() >= self.polling.limit() {
                self.polling.failed();
                break;
            }
            for _ in 0..SPINS {
                std::hint::spin_loop();
            }
        }
        let left = {
            let mut state = self.state.lock();
            state.watched = false;
            self.ring.speak(&mut state.queues);
            !state.engine.is_idle()
        };
        if left {
            // A completion posted just before the eventfd was enabled has signalled nothing: wake the reaper.
            self.ring.nudge();
        }
    }

    /// Retires completed transfers, starts those that waited for them, completes the bios that ended. Returns
    /// true if there were completions.
    fn reap(&self) -> bool {
        let mut ended = Vec::new();
        let (found, queued) = {
            let mut state = self.state.lock();
            let state = &mut *state;
            let mut completions = std::mem::take(&mut state.completions);
            self.ring.drain(&mut state.queues, &mut completions);
            let found = !completions.is_empty();
            let mut registry = WithRing { registered: &mut state.registered, ring: &self.ring };
            for (slot, result) in completions.drain(..) {
                match result {
                    // Put off, not failed: the kernel had no memory, or the submitting thread has ended.
                    Err(errno @ (Errno::EAGAIN | Errno::ECANCELED | Errno::EINTR)) => {
                        state.engine.put_off(slot, errno, &mut registry, &mut ended);
                    }
                    result => state.engine.complete(slot, result, &mut registry, &mut ended),
                }
            }
            state.completions = completions;
            (found, self.queue(state))
        };
        if queued || self.owed.swap(false, Ordering::AcqRel) {
            self.enter();
        }
        complete(ended);
        found
    }
}

/// Completes the bios that have ended. Never called under a lock.
fn complete(ended: Vec<Ended>) {
    for (bio, result) in ended {
        bio.complete(result);
    }
}

/// The reaper task: reaps each time the eventfd is signalled, until the device is dropped.
async fn reap_for_ever(event: AsyncFd<Arc<EventFd>>, shared: Weak<Shared>) {
    while let Ok(mut guard) = event.readable().await {
        // The eventfd is never read: the runtime polls it edge-triggered, and each completion is an edge.
        // Ready is cleared before the reap, so that a completion during the reap wakes the reaper again.
        guard.clear_ready();
        let Some(shared) = shared.upgrade() else { return };
        while shared.reap() {}
        drop(shared);
    }
}

impl BlockDevice for UringDevice {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn submit(&self, plug: Plug) {
        let mut bios = plug;
        if bios.iter().any(|bio| bio.check(&self.geometry).is_err()) {
            let mut good = Vec::with_capacity(bios.len());
            for bio in bios {
                match bio.check(&self.geometry) {
                    Ok(()) => good.push(bio),
                    Err(error) => bio.complete(Err(error)),
                }
            }
            bios = good;
        }
        if bios.is_empty() {
            return;
        }
        // Adjacent bios come together to be joined, and the device sees rising addresses.
        bios.sort_by_key(|bio| bio.offset);
        self.shared.submit(bios);
    }
}

impl Drop for UringDevice {
    fn drop(&mut self) {
        self.reaper.abort();
        // Transfers in flight end first: their memory is the kernel's until then. No bio is submitted any
        // more: that would take a reference to the device, and this is the last one.
        let mut rounds = 0_u32;
        loop {
            while self.shared.reap() {}
            if self.shared.state.lock().engine.is_idle() {
                break;
            }
            rounds += 1;
            if rounds.is_multiple_of(3000) {
                tracing::warn!("waiting for the device to give back what is in flight");
            }
            // With a time limit: the reaper task may be taking the last completions on another thread.
            self.shared.ring.enter_and_wait(Duration::from_millis(10));
        }
        self.shared.ring.unregister();
    }
}
