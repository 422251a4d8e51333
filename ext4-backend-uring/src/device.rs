//! The device: opening, submitting, reaping, the end.
//!
//! Locks: `state`, around engine and queues, held while bios are split and entries are queued or drained; never across
//! a system call that waits, a completion, or an await. `io_uring_enter` is called outside of it: the kernel takes
//! whatever is queued, whoever queued it.
//!
//! Invariant: the ring is torn down only when the engine is idle. Where the kernel will not give memory back, it is
//! leaked rather than freed under the kernel's hands.

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

/// Transfers in flight where nothing is said.
const DEFAULT_DEPTH: u32 = 256;
/// The most transfers in flight.
const MAX_DEPTH: u32 = 4096;
/// The largest transfer: within what one entry can name.
const MAX_TRANSFER: u32 = 64 << 20;

/// Pauses of the processor between two looks at the completion queue.
const SPINS: u32 = 16;

/// How to open a device.
#[derive(Clone, Debug, Default)]
pub struct UringOptions {
    /// For reading only.
    pub read_only: bool,
    /// Where the file system starts on the device, in bytes (a partition).
    pub offset: u64,
    /// Transfers in flight at most, which are the entries of the submission queue; 0: 256, or what the device's own
    /// queue holds where that is less.
    pub queue_depth: u32,
    /// How long whoever submits one small thing that is waited for looks for its end before he goes on; `None`: 100 µs,
    /// zero: never. A device that is slower is left alone.
    pub busy_poll: Option<Duration>,
}

#[derive(Debug)]
struct State {
    engine: Engine,
    queues: Queues,
    registered: Registered,
    /// Kept for their memory.
    completions: Vec<(usize, Result<u64, Errno>)>,
    /// Somebody watches for completions himself; the eventfd is silent.
    watched: bool,
}

#[derive(Debug)]
struct Shared {
    // The ring goes before the file and the memory: see the module.
    ring: Ring,
    state: Mutex<State>,
    /// Entries are queued that `enter` could not start.
    owed: AtomicBool,
    polling: Polling,
    _host: HostFile,
}

/// A block device driven by one io_uring.
#[derive(Debug)]
pub struct UringDevice {
    shared: Arc<Shared>,
    geometry: Geometry,
    reaper: tokio::task::AbortHandle,
}

impl UringDevice {
    /// Opens `path`; needs a tokio runtime with I/O enabled around it, on which the reaper runs as long as the device
    /// lives. A block device is opened exclusively (O_EXCL), so that a mounted one is refused with EBUSY; a regular
    /// file is locked (`flock`) and opened with O_DIRECT where its file system has that.
    ///
    /// # Errors
    /// Those of [`HostFile::open`]; where the host forbids io_uring, the message says so and names the file backend.
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
            // More than the device's own queue takes would be handed to kernel threads, which is slower.
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

/// The geometry of what was opened.
fn geometry(host: &HostFile) -> Result<Geometry> {
    let mut geometry = host.geometry().clone();
    geometry.max_segments = 256;
    geometry.max_transfer = geometry.max_transfer.min(MAX_TRANSFER);
    if !host.is_block_device() {
        geometry.max_transfer = 4 << 20;
        if host.is_direct() {
            // What every file system takes, where this one does not say.
            let (memory, offset) = direct_alignment(host.file()).unwrap_or((4096, 4096));
            geometry.memory_alignment = memory.max(1);
            geometry.logical_block_size = offset.max(512);
            geometry.physical_block_size = geometry.physical_block_size.max(offset);
            let unit = u64::from(geometry.logical_block_size);
            geometry.size -= geometry.size % unit;
            if !host.offset().is_multiple_of(unit) {
                let context = format!(
                    "{}: byte {} is not on one of the {unit}-byte blocks that direct I/O needs there; use `--backend file`",
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
    /// Queues what waits, as far as slots are free; true where there is something to enter for.
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

    /// Looks for completions until nothing is in flight, somebody else submits, or the device proves slow.
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
            // What was posted just before the eventfd could speak was not told: the reaper looks in a moment.
            self.ring.nudge();
        }
    }

    /// Retires what has completed, starts what waited for it, and tells the owners. True where there was anything.
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
                    // Put off, not failed: the kernel had no room, or the thread that submitted it has ended.
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

/// Tells the owners of bios that have ended. Never under a lock.
fn complete(ended: Vec<Ended>) {
    for (bio, result) in ended {
        bio.complete(result);
    }
}

/// Reaps whenever the kernel says so, until the device is gone.
async fn reap_for_ever(event: AsyncFd<Arc<EventFd>>, shared: Weak<Shared>) {
    while let Ok(mut guard) = event.readable().await {
        // The eventfd is never read: the runtime watches for edges, and each completion is one. Cleared before
        // looking, so that what comes while we look wakes us again.
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
        // Neighbours meet, and the device sees rising addresses.
        bios.sort_by_key(|bio| bio.offset);
        self.shared.submit(bios);
    }
}

impl Drop for UringDevice {
    fn drop(&mut self) {
        self.reaper.abort();
        // What is in flight ends first: its memory is the kernel's until then. Nothing is submitted any more, but for
        // completions that do so through another reference, of which there is none.
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
            // Bounded: the reaper may be reaping its last on another thread.
            self.shared.ring.enter_and_wait(Duration::from_millis(10));
        }
        self.shared.ring.unregister();
    }
}
