//! Suite `data`, first form: writing one file through the whole stack, through the kernel's ext4 on the same device,
//! and on the raw device.
//!
//! Every run begins with a fresh file system. What is timed is the writing, with the fsync where the workload has one;
//! not mkfs, mount and unmount. The cache is large enough for the file, as the kernel's is on a machine with memory to
//! spare, so that `cached-write` measures the way into the cache on both sides. Before each run as much memory is
//! touched and given back: the host under a virtual machine may have to find memory for it first, twenty times slower
//! than it is cleared, and whoever comes first would pay.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, ensure};
use ext4_backend_uring::{UringDevice, UringOptions};
use ext4_core::InodeNumber;
use ext4_core::device::memory::MAX_FOLIO_SIZE;
use ext4_core::device::{BlockDevice, MemoryPool};
use ext4_core::environment::SystemEnvironment;
use ext4_core::meta::mkfs::MkfsOptions;
use ext4_writeback::{Credentials, Filesystem, MountOptions};
use tokio::runtime::Runtime;

use crate::fio;
use crate::kernel::Mounted;
use crate::report::{Report, Subject};
use crate::workload::{Measurement, Stopwatch, Target, Workload};

/// Runs the suite.
///
/// # Errors
/// Those of the file systems, of the tools for the kernel's, and of fio.
pub fn run(
    runtime: &Runtime,
    target: &Target,
    rounds: u32,
    only: &dyn Fn(&str) -> bool,
    report: &mut Report,
) -> anyhow::Result<()> {
    let needed = target.size + target.size / 4 + (64 << 20);
    ensure!(
        needed <= target.available,
        "{} holds {} bytes; {} in a file need {needed}",
        target.device.display(),
        target.available,
        target.size
    );
    let mut subjects = vec![Subject::OursUring, Subject::Kernel, Subject::Raw, Subject::RawBatched];
    if !nix::unistd::geteuid().is_root() {
        eprintln!("ext4-bench: the kernel's ext4 is left out: only root can mount it");
        subjects.retain(|subject| *subject != Subject::Kernel);
    }
    for workload in workloads(target).iter().filter(|workload| only(&workload.name)) {
        report.measure("data", &workload.into(), &subjects, rounds, |subject| {
            touch_memory(workload.bytes)?;
            match subject {
                Subject::Raw => fio::raw(&target.device, workload, false),
                Subject::RawBatched => fio::raw(&target.device, workload, true),
                Subject::Kernel => {
                    let mounted = Mounted::new(&target.device, &[], None)?;
                    fio::file(&mounted.path().join("file"), workload)
                }
                _ => runtime.block_on(ours(&target.device, workload)),
            }
        })?;
    }
    Ok(())
}

fn workloads(target: &Target) -> Vec<Workload> {
    let forms = [("cached-write", false), ("write-fsync", true)];
    let blocks = [(4096, "4k", 32), (1 << 20, "1m", 8)];
    forms
        .into_iter()
        .flat_map(|(name, durable)| {
            blocks.map(|(block_size, block, depth)| Workload {
                name: format!("{name}-{block}"),
                block_size,
                // Of the raw device; a file is written by one program, one call after the other.
                depth,
                write: true,
                random: false,
                range: target.size,
                bytes: target.size,
                durable,
            })
        })
        .collect()
}

/// Touches `bytes` of memory and gives it back.
fn touch_memory(bytes: u64) -> anyhow::Result<()> {
    let pool = MemoryPool::new(usize::try_from(bytes)?);
    let mut held = Vec::new();
    while let Some(memory) = pool.allocate(MAX_FOLIO_SIZE)? {
        memory.write(0, u32::try_from(MAX_FOLIO_SIZE)?, |bytes| bytes.fill(1));
        held.push(memory);
    }
    Ok(())
}

async fn ours(path: &Path, workload: &Workload) -> anyhow::Result<Measurement> {
    let device: Arc<dyn BlockDevice> = Arc::new(UringDevice::open(path, &UringOptions::default())?);
    ext4_writeback::filesystem::mkfs(Arc::clone(&device), &MkfsOptions::default(), &SystemEnvironment)
        .await
        .context("mkfs")?;
    let cache = usize::try_from(workload.bytes + workload.bytes / 4 + (64 << 20))?;
    let options = MountOptions { cache, ..MountOptions::default() };
    let filesystem = Filesystem::mount(device, options).await.context("mount")?;
    let owner = Credentials { uid: 0, gid: 0, mode: 0o644 };
    let inode = filesystem.create(InodeNumber::ROOT, b"file", owner).await.context("create")?;
    let file = filesystem.open(inode).await.context("open")?;
    let mut data = vec![0_u8; usize::try_from(workload.block_size)?];
    for (number, byte) in data.iter_mut().enumerate() {
        *byte = number.to_le_bytes()[0] ^ number.to_le_bytes()[1];
    }
    // On a task of its own: the thread that blocks on the runtime is none of its workers.
    let (block_size, operations, durable) = (workload.block_size, workload.operations(), workload.durable);
    let task = tokio::spawn(async move {
        let watch = Stopwatch::start();
        for number in 0..operations {
            let written = file.write_at(number * block_size, &data).await.context("write")?;
            ensure!(written == data.len(), "a short write");
        }
        if durable {
            file.sync_all().await.context("fsync")?;
        }
        Ok(watch.stop())
    });
    let measured = task.await.context("the writer")??;
    filesystem.unmount().await.context("unmount")?;
    Ok(measured)
}
