//! Suite `backend`: the device alone, through our backends and through fio.
//!
//! Our backends are driven as the file system drives them: a few submitters, each with a plug of bios in
//! flight and one wake-up when all bios of the plug are done.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::Context;
use ext4_backend_file::{FileDevice, FileOptions};
use ext4_backend_uring::{UringDevice, UringOptions};
use ext4_core::device::memory::{MAX_FOLIO_SIZE, MemoryPool};
use ext4_core::device::{Bio, BioFlags, BlockDevice, Completion, Operation, PoolMemory, Segment};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

use crate::fio;
use crate::report::{Report, Subject};
use crate::session::{Session, Target};
use crate::workload::{Fsync, Measurement, Stopwatch, Workload};

/// Runs the suite.
///
/// # Errors
/// Those of the devices and of fio.
pub fn run(session: &Session, report: &mut Report) -> anyhow::Result<()> {
    let Session { runtime, target, rounds, .. } = session;
    fill(runtime, target)?;
    for workload in workloads(target).iter().filter(|workload| session.includes(&workload.name)) {
        let subjects = [Subject::OursUring, Subject::OursFile, Subject::Raw, Subject::RawBatched];
        let subjects = if workload.depth == 1 { &subjects[..3] } else { &subjects[..] };
        report.measure("backend", &workload.into(), subjects, *rounds, |subject| match subject {
            Subject::Raw => fio::raw(&target.device, workload, false),
            Subject::RawBatched => fio::raw(&target.device, workload, true),
            ours => {
                drop_cache(&target.device)?;
                runtime.block_on(drive(ours, &target.device, workload))
            }
        })?;
    }
    Ok(())
}

fn workloads(target: &Target) -> Vec<Workload> {
    let sequential =
        [(1 << 20, 8, "1m"), (128 << 10, 32, "128k")].into_iter().flat_map(|(block_size, depth, name)| {
            [true, false].map(|write| Workload {
                name: format!("sequential-{}-{name}", if write { "write" } else { "read" }),
                block_size,
                depth,
                write,
                random: false,
                range: target.size,
                bytes: target.size,
                fsync: if write { Fsync::AtTheEnd } else { Fsync::Never },
            })
        });
    let random = [1, 32, 128].into_iter().flat_map(|depth| {
        [true, false].map(|write| Workload {
            name: format!("random-{}-depth-{depth}", if write { "write" } else { "read" }),
            block_size: 4096,
            depth,
            write,
            random: true,
            range: target.size,
            // One transfer at a time takes long.
            bytes: if depth == 1 { target.size / 16 } else { target.size },
            fsync: if write { Fsync::AtTheEnd } else { Fsync::Never },
        })
    });
    sequential.chain(random).collect()
}

/// Writes the whole range once, so that the first touch of the device's memory is not measured.
fn fill(runtime: &Runtime, target: &Target) -> anyhow::Result<()> {
    let workload = Workload {
        name: "fill".into(),
        block_size: 1 << 20,
        depth: 8,
        write: true,
        random: false,
        range: target.size,
        bytes: target.size,
        fsync: Fsync::AtTheEnd,
    };
    runtime.block_on(drive(Subject::OursUring, &target.device, &workload)).map(drop)
}

/// Drops the device's pages from the host's page cache.
fn drop_cache(path: &Path) -> anyhow::Result<()> {
    let file = std::fs::File::open(path).with_context(|| format!("open {}", path.display()))?;
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).context("drop the host's cache")?;
    Ok(())
}

async fn drive(subject: Subject, path: &Path, workload: &Workload) -> anyhow::Result<Measurement> {
    let device: Arc<dyn BlockDevice> = match subject {
        Subject::OursFile => Arc::new(FileDevice::open(path, &FileOptions::default())?),
        _ => Arc::new(UringDevice::open(path, &UringOptions::default())?),
    };
    let depth = u64::from(workload.depth);
    let lanes = depth.min(4);
    let share = workload.operations() / lanes;
    let rest = workload.operations() % lanes;
    let block = usize::try_from(workload.block_size).context("a block fits in memory")?;
    let pool = MemoryPool::new((block * usize::try_from(depth)?).max(MAX_FOLIO_SIZE));
    let mut tasks = Vec::new();
    let shared = Arc::new(AtomicUsize::new(0));
    for number in 0..lanes {
        let memory = (0..depth / lanes).map(|_| memory(&pool, block)).collect::<anyhow::Result<Vec<_>>>()?;
        tasks.push(Lane {
            device: Arc::clone(&device),
            workload: workload.clone(),
            memory,
            blocks: workload.range / workload.block_size,
            operations: share + u64::from(number < rest),
            next: Arc::clone(&shared),
            random: fastrand::Rng::with_seed(number),
        });
    }
    // The first transfers pin the memory, which a file system does once.
    warm(&device, &tasks).await?;
    let watch = Stopwatch::start();
    let tasks: Vec<_> = tasks.into_iter().map(|lane| tokio::spawn(lane.run())).collect();
    for task in tasks {
        task.await.context("a submitter")??;
    }
    if workload.fsync != Fsync::Never {
        device.flush().await?;
    }
    Ok(watch.stop())
}

fn memory(pool: &Arc<MemoryPool>, len: usize) -> anyhow::Result<Arc<PoolMemory>> {
    let memory = pool.allocate(len)?.context("the pool is large enough")?;
    let len = u32::try_from(len)?;
    memory.write(0, len, |bytes| {
        for (number, word) in bytes.chunks_mut(8).enumerate() {
            let value = (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
            word.copy_from_slice(&value[..word.len()]);
        }
    });
    Ok(Arc::new(memory))
}

async fn warm(device: &Arc<dyn BlockDevice>, lanes: &[Lane]) -> anyhow::Result<()> {
    for memory in lanes.iter().flat_map(|lane| &lane.memory) {
        let len = u32::try_from(memory.len())?;
        let segment = Segment::Pool { memory: Arc::clone(memory), offset: 0, len };
        device
            .submit_and_wait(Operation::Read, BioFlags::empty(), 0, len.into(), vec![segment])
            .await
            .result?;
    }
    Ok(())
}

/// One submitter, with its share of the operations.
struct Lane {
    device: Arc<dyn BlockDevice>,
    workload: Workload,
    memory: Vec<Arc<PoolMemory>>,
    /// Size of the range, in blocks of the workload.
    blocks: u64,
    operations: u64,
    /// The next block of a sequential workload, shared by all lanes.
    next: Arc<AtomicUsize>,
    random: fastrand::Rng,
}

impl Lane {
    async fn run(mut self) -> anyhow::Result<()> {
        while self.operations > 0 {
            let count = self.operations.min(self.memory.len() as u64);
            self.operations -= count;
            let count = usize::try_from(count)?;
            let first = if self.workload.random { 0 } else { self.next.fetch_add(count, Ordering::Relaxed) };
            let (done, wait) = oneshot::channel();
            let plug_end = Arc::new(PlugEnd {
                left: AtomicUsize::new(count),
                failed: AtomicBool::new(false),
                done: parking_lot::Mutex::new(Some(done)),
            });
            let mut plug = Vec::with_capacity(count);
            for number in 0..count {
                let block = if self.workload.random {
                    self.random.u64(0..self.blocks)
                } else {
                    (first + number) as u64 % self.blocks
                };
                let memory = Arc::clone(&self.memory[number]);
                let len = u32::try_from(self.workload.block_size)?;
                let operation = if self.workload.write { Operation::Write } else { Operation::Read };
                let end = Arc::clone(&plug_end);
                plug.push(Bio::new(
                    operation,
                    BioFlags::SYNC,
                    block * self.workload.block_size,
                    vec![Segment::Pool { memory, offset: 0, len }],
                    Box::new(move |completion| end.one(&completion)),
                ));
            }
            self.device.submit(plug);
            wait.await.context("a plug was lost")?;
            anyhow::ensure!(!plug_end.failed.load(Ordering::Relaxed), "a transfer failed");
        }
        Ok(())
    }
}

/// Counts down the bios of a plug; the last completion wakes the submitter.
struct PlugEnd {
    left: AtomicUsize,
    failed: AtomicBool,
    done: parking_lot::Mutex<Option<oneshot::Sender<()>>>,
}

impl PlugEnd {
    fn one(&self, completion: &Completion) {
        if completion.result.is_err() {
            self.failed.store(true, Ordering::Relaxed);
        }
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1
            && let Some(done) = self.done.lock().take()
        {
            let _ = done.send(());
        }
    }
}
