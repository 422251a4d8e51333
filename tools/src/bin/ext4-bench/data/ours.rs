//! Suite `data` on our whole stack, over io_uring.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, ensure};
use ext4_backend_uring::{UringDevice, UringOptions};
use ext4_core::InodeNumber;
use ext4_core::device::BlockDevice;
use ext4_core::environment::SystemEnvironment;
use ext4_core::meta::mkfs::MkfsOptions;
use ext4_writeback::{File, Filesystem, MountOptions};

use super::{Before, FileWorkload, content};
use crate::kernel;
use crate::ours::{journal_bytes, owner};
use crate::session::Target;
use crate::workload::{Fsync, Measurement, Stopwatch, Workload};

/// Runs a workload on a fresh file system.
///
/// # Errors
/// Those of the file system and of the device.
pub async fn measure(target: &Target, workload: &FileWorkload) -> anyhow::Result<Measurement> {
    let path = target.device.as_path();
    ext4_writeback::mkfs(open(path)?, &MkfsOptions::default(), &SystemEnvironment).await.context("mkfs")?;
    let mut filesystem = mount(target, workload).await?;
    let inode = filesystem.create(InodeNumber::ROOT, b"file", owner()).await.context("create")?;
    let mut file = filesystem.open(inode).await.context("open")?;
    let range = workload.transfers.range;
    match workload.before {
        Before::Empty => {}
        Before::Hole => file.set_len(range).await.context("extend")?,
        Before::Cached | Before::Cold => {
            write(&file, range).await?;
            file.sync_all().await.context("fsync")?;
        }
    }
    if workload.before == Before::Cold {
        drop(file);
        filesystem.unmount().await.context("unmount")?;
        filesystem = mount(target, workload).await?;
        file = filesystem.open(inode).await.context("open")?;
    }
    let (flushes, bytes) = (kernel::flushes(path), journal_bytes(&filesystem, 4096.0));
    // On a task of its own: the thread in `block_on` is not a worker of the runtime.
    let task = tokio::spawn(transfer(file, workload.transfers.clone()));
    let mut measured = task.await.context("the caller")??;
    measured.traffic = kernel::traffic(path, flushes, journal_bytes(&filesystem, 4096.0) - bytes);
    filesystem.unmount().await.context("unmount")?;
    Ok(measured)
}

fn open(path: &Path) -> anyhow::Result<Arc<dyn BlockDevice>> {
    Ok(Arc::new(UringDevice::open(path, &UringOptions::default())?))
}

async fn mount(target: &Target, workload: &FileWorkload) -> anyhow::Result<Filesystem> {
    let range = workload.transfers.range;
    let cache = usize::try_from(4 * range + (64 << 20))?;
    let mut options = MountOptions::new().cache(cache);
    target.mount_options.apply(&mut options);
    let filesystem = Filesystem::mount(open(&target.device)?, options).await.context("mount")?;
    let inode = filesystem.create(InodeNumber::ROOT, b"warm", owner()).await.context("create")?;
    write(&filesystem.open(inode).await.context("open")?, range).await?;
    filesystem.unlink(InodeNumber::ROOT, b"warm").await.context("unlink")?;
    filesystem.sync().await.context("sync")?;
    Ok(filesystem)
}

/// Writes the first `range` bytes.
async fn write(file: &File, range: u64) -> anyhow::Result<()> {
    let data = content(1 << 20)?;
    for at in (0..range).step_by(data.len()) {
        file.write_at(at, &data).await.context("write")?;
    }
    Ok(())
}

async fn transfer(file: File, workload: Workload) -> anyhow::Result<Measurement> {
    let mut data = content(workload.block_size)?;
    let places = workload.range / workload.block_size;
    let mut random = fastrand::Rng::with_seed(1);
    let watch = Stopwatch::start();
    for number in 0..workload.operations() {
        let place = if workload.random { random.u64(0..places) } else { number };
        let at = place * workload.block_size;
        let count = if workload.write {
            file.write_at(at, &data).await.context("write")?
        } else {
            file.read_at(at, &mut data).await.context("read")?
        };
        ensure!(count == data.len(), "a short transfer");
        if workload.fsync == Fsync::Each {
            file.sync_all().await.context("fsync")?;
        }
    }
    if workload.fsync == Fsync::AtTheEnd {
        file.sync_all().await.context("fsync")?;
    }
    Ok(watch.stop())
}
