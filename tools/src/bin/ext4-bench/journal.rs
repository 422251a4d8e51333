//! Suite `journal`: commits of small changes, through our whole stack and through the kernel's ext4 on the
//! same device.
//!
//! | workload | one operation |
//! |---|---|
//! | `append-fsync-N` | one of N tasks appends 4 KiB to its file and calls fsync |
//! | `create-sync` | an empty file is created in one directory; one sync after the last file |
//!
//! On the raw device an append is a write of 4 KiB and a flush, by N threads, each in a range of its own: the
//! cost of making only the data durable.
//!
//! Every run begins with a fresh file system, on memory that has been touched. The operations are timed;
//! mkfs, mount and unmount are not. Journal bytes and device flushes are counted in the timed part.

use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use ext4_backend_uring::{UringDevice, UringOptions};
use ext4_core::InodeNumber;
use ext4_core::device::{AlignedBuffer, BlockDevice};
use ext4_core::environment::SystemEnvironment;
use ext4_core::meta::mkfs::MkfsOptions;
use ext4_writeback::{Filesystem, MountOptions};

use crate::kernel::{self, Mounted};
use crate::ours::{journal_bytes, owner};
use crate::report::{Report, Subject};
use crate::session::{Session, Target};
use crate::workload::{Description, Measurement, Stopwatch};

const BLOCK: usize = 4096;
/// Appends of one run, by all tasks together.
const APPENDS: u64 = 8192;
/// Files of one run.
const FILES: u64 = 100_000;
/// Numbers of tasks that append.
const TASKS: [u64; 4] = [1, 4, 16, 64];
/// Files that are created first, to fill the block of the inode table that holds the journal's inode. An
/// inode in that block is not fast committed: e2fsck would overwrite it.
const NEIGHBOURS: u64 = 16;
/// Bytes of the device that the suite needs.
const NEEDED: u64 = 512 << 20;

#[derive(Clone, Copy, Debug)]
enum Kind {
    Append { tasks: u64 },
    Create,
}

impl Kind {
    fn description(self) -> Description {
        match self {
            Self::Append { tasks } => Description {
                name: format!("append-fsync-{tasks}"),
                block_size: BLOCK as u64,
                bytes: APPENDS * BLOCK as u64,
                operations: APPENDS,
            },
            Self::Create => {
                Description { name: "create-sync".into(), block_size: 0, bytes: 0, operations: FILES }
            }
        }
    }
}

/// Runs the suite.
///
/// # Errors
/// Those of our file system, and of mkfs.ext4 and mount(8).
pub fn run(session: &Session, report: &mut Report) -> anyhow::Result<()> {
    let Session { runtime, target, rounds, .. } = session;
    let kinds = TASKS.map(|tasks| Kind::Append { tasks }).into_iter().chain([Kind::Create]);
    let with_kernel = session.prepare(NEEDED)?;
    for kind in kinds {
        let description = kind.description();
        if !session.includes(&description.name) {
            continue;
        }
        let mut subjects = vec![Subject::OursUring, Subject::Kernel];
        if matches!(kind, Kind::Append { .. }) {
            subjects.extend([Subject::OursFastCommit, Subject::KernelFastCommit, Subject::Raw]);
        }
        if !with_kernel {
            subjects.retain(|subject| !matches!(subject, Subject::Kernel | Subject::KernelFastCommit));
        }
        report.measure("journal", &description, &subjects, *rounds, |subject| match subject {
            Subject::Raw | Subject::RawBatched => raw(&target.device, kind),
            Subject::Kernel => kernel(&target.device, kind, false),
            Subject::KernelFastCommit => kernel(&target.device, kind, true),
            Subject::OursFastCommit => runtime.block_on(ours(target, kind, true)),
            Subject::OursUring | Subject::OursFile => runtime.block_on(ours(target, kind, false)),
        })?;
        if matches!(kind, Kind::Append { tasks } if tasks > 1) {
            report.compare(&description.name, &Kind::Append { tasks: 1 }.description().name);
        }
    }
    Ok(())
}

async fn ours(target: &Target, kind: Kind, fast_commit: bool) -> anyhow::Result<Measurement> {
    let path = target.device.as_path();
    let device: Arc<dyn BlockDevice> = Arc::new(UringDevice::open(path, &UringOptions::default())?);
    let mut options = MkfsOptions {
        blocks_count: Some(NEEDED / BLOCK as u64),
        block_size: Some(ext4_core::BlockSize::KIB_4),
        inodes_count: Some(inodes()),
        ..MkfsOptions::default()
    };
    if fast_commit {
        let mut features = ext4_core::meta::mkfs::default_features();
        features.compat.insert(ext4_core::format::features::Compat::FAST_COMMIT);
        options.features = Some(features);
    }
    ext4_writeback::mkfs(Arc::clone(&device), &options, &SystemEnvironment).await.context("mkfs")?;
    let mut options = MountOptions::default();
    target.mount_options.apply(&mut options);
    let filesystem = Filesystem::mount(device, options).await.context("mount")?;
    let measured = match kind {
        Kind::Append { tasks } => append(path, &filesystem, tasks).await?,
        Kind::Create => create(path, &filesystem).await?,
    };
    filesystem.unmount().await.context("unmount")?;
    Ok(measured)
}

fn inodes() -> u32 {
    u32::try_from(FILES + FILES / 8).unwrap_or(u32::MAX)
}

async fn append(path: &Path, filesystem: &Filesystem, tasks: u64) -> anyhow::Result<Measurement> {
    for number in 0..NEIGHBOURS {
        let name = format!("neighbour{number}");
        filesystem.create(InodeNumber::ROOT, name.as_bytes(), owner()).await.context("create")?;
    }
    let mut files = Vec::new();
    for number in 0..tasks {
        let name = format!("file{number}");
        let inode = filesystem.create(InodeNumber::ROOT, name.as_bytes(), owner()).await.context("create")?;
        files.push(filesystem.open(inode).await.context("open")?);
    }
    filesystem.sync().await.context("sync")?;
    let (flushes, bytes) = (kernel::flushes(path), journal_bytes(filesystem, BLOCK as f64));
    let watch = Stopwatch::start();
    let running: Vec<_> = files
        .into_iter()
        .map(|file| {
            tokio::spawn(async move {
                let data = [0x5a_u8; BLOCK];
                for number in 0..APPENDS / tasks {
                    let written = file.write_at(number * BLOCK as u64, &data).await.context("write")?;
                    ensure!(written == data.len(), "a short write");
                    file.sync_all().await.context("fsync")?;
                }
                Ok(())
            })
        })
        .collect();
    for task in running {
        task.await.context("a writer")??;
    }
    let mut measured = watch.stop();
    measured.traffic = kernel::traffic(path, flushes, journal_bytes(filesystem, BLOCK as f64) - bytes);
    Ok(measured)
}

async fn create(path: &Path, filesystem: &Filesystem) -> anyhow::Result<Measurement> {
    let (flushes, bytes) = (kernel::flushes(path), journal_bytes(filesystem, BLOCK as f64));
    let creating = filesystem.clone();
    let watch = Stopwatch::start();
    // On a task of its own: the thread in `block_on` is not a worker of the runtime.
    let task = tokio::spawn(async move {
        for number in 0..FILES {
            let name = format!("file{number}");
            creating.create(InodeNumber::ROOT, name.as_bytes(), owner()).await.context("create")?;
        }
        creating.sync().await.context("sync")
    });
    task.await.context("the creator")??;
    let mut measured = watch.stop();
    measured.traffic = kernel::traffic(path, flushes, journal_bytes(filesystem, BLOCK as f64) - bytes);
    Ok(measured)
}

fn kernel(device: &Path, kind: Kind, fast_commit: bool) -> anyhow::Result<Measurement> {
    let inodes = inodes().to_string();
    let mut arguments = vec!["-b", "4096", "-N", &inodes];
    if fast_commit {
        arguments.extend(["-O", "fast_commit"]);
    }
    let mounted = Mounted::new(device, &arguments, Some(NEEDED / BLOCK as u64))?;
    let directory = mounted.path();
    match kind {
        Kind::Append { tasks } => {
            for number in 0..NEIGHBOURS {
                std::fs::File::create_new(directory.join(format!("neighbour{number}"))).context("create")?;
            }
            let files = (0..tasks)
                .map(|number| std::fs::File::create_new(directory.join(format!("file{number}"))))
                .collect::<Result<Vec<_>, _>>()
                .context("create")?;
            mounted.sync()?;
            let (flushes, bytes) = (kernel::flushes(device), mounted.journal_bytes(BLOCK as f64)?);
            let mut measured = threads(tasks, |number, step| {
                let file = &files[usize::try_from(number)?];
                file.write_all_at(&[0x5a; BLOCK], step * BLOCK as u64).context("write")?;
                file.sync_all().context("fsync")
            })?;
            measured.traffic = kernel::traffic(device, flushes, mounted.journal_bytes(BLOCK as f64)? - bytes);
            Ok(measured)
        }
        Kind::Create => {
            let (flushes, bytes) = (kernel::flushes(device), mounted.journal_bytes(BLOCK as f64)?);
            let watch = Stopwatch::start();
            for number in 0..FILES {
                std::fs::File::create_new(directory.join(format!("file{number}"))).context("create")?;
            }
            mounted.sync()?;
            let mut measured = watch.stop();
            measured.traffic = kernel::traffic(device, flushes, mounted.journal_bytes(BLOCK as f64)? - bytes);
            Ok(measured)
        }
    }
}

/// The appends on the raw device: each writes 4 KiB and flushes.
fn raw(device: &Path, kind: Kind) -> anyhow::Result<Measurement> {
    let Kind::Append { tasks } = kind else { bail!("a raw device has no files to create") };
    let file = std::fs::OpenOptions::new()
        .write(true)
        .custom_flags(nix::fcntl::OFlag::O_DIRECT.bits())
        .open(device)
        .context("open the device")?;
    let mut data = AlignedBuffer::zeroed(BLOCK)?;
    data.fill(0x5a);
    let share = NEEDED / tasks;
    threads(tasks, |number, step| {
        file.write_all_at(&data, number * share / BLOCK as u64 * BLOCK as u64 + step * BLOCK as u64)
            .context("write")?;
        file.sync_data().context("flush")
    })
}

/// The appends by `tasks` threads: `step` gets the number of the thread and the number of the append in that
/// thread.
fn threads(tasks: u64, step: impl Fn(u64, u64) -> anyhow::Result<()> + Sync) -> anyhow::Result<Measurement> {
    let watch = Stopwatch::start();
    std::thread::scope(|scope| {
        let step = &step;
        let running: Vec<_> = (0..tasks)
            .map(|number| scope.spawn(move || (0..APPENDS / tasks).try_for_each(|at| step(number, at))))
            .collect();
        for thread in running {
            match thread.join() {
                Ok(result) => result?,
                Err(_) => bail!("a thread panicked"),
            }
        }
        Ok(())
    })?;
    Ok(watch.stop())
}
