//! Suite `journal`: making small things durable, one after the other, through the whole stack and through the kernel's
//! ext4 on the same device.
//!
//! | workload | what one operation is |
//! |---|---|
//! | `append-fsync-N` | each of N tasks appends 4 KiB to a file of its own and calls fsync |
//! | `create-sync` | an empty file is made in one directory; one sync at the end of all |
//!
//! On the raw device an append is a write of 4 KiB and a flush, by N threads, each at places of its own: what it costs
//! to make the data alone durable.
//!
//! Every run begins with a fresh file system, on memory that has been touched. What is timed is the operations, not mkfs,
//! mount and unmount. The journal's bytes and the device's flushes are those of the timed part.

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
use tokio::runtime::Runtime;

use crate::kernel::{self, Mounted};
use crate::ours::{journal_bytes, owner};
use crate::report::{Report, Subject};
use crate::workload::{Description, Measurement, Stopwatch, Target};

const BLOCK: usize = 4096;
/// Appends of one run, by however many tasks.
const APPENDS: u64 = 8192;
/// Files of one run.
const FILES: u64 = 100_000;
/// How many tasks append.
const TASKS: [u64; 4] = [1, 4, 16, 64];
/// Files that are made first. Those in the block of the inode table that the journal's own inode is in are none like
/// others: e2fsck writes over what a fast commit says of them, so that ours says nothing.
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
/// Those of the file systems and of the tools for the kernel's.
pub fn run(
    runtime: &Runtime,
    target: &Target,
    rounds: u32,
    only: &dyn Fn(&str) -> bool,
    report: &mut Report,
) -> anyhow::Result<()> {
    ensure!(
        target.available >= NEEDED,
        "{} holds {} bytes; the suite needs {NEEDED}",
        target.device.display(),
        target.available
    );
    let kinds = TASKS.map(|tasks| Kind::Append { tasks }).into_iter().chain([Kind::Create]);
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("ext4-bench: the kernel's ext4 is left out: only root can mount it");
    }
    target.touch(NEEDED)?;
    for kind in kinds {
        let description = kind.description();
        if !only(&description.name) {
            continue;
        }
        let mut subjects = vec![Subject::OursUring, Subject::Kernel];
        if matches!(kind, Kind::Append { .. }) {
            subjects.extend([Subject::OursFastCommit, Subject::KernelFastCommit, Subject::Raw]);
        }
        if !root {
            subjects.retain(|subject| !matches!(subject, Subject::Kernel | Subject::KernelFastCommit));
        }
        report.measure("journal", &description, &subjects, rounds, |subject| match subject {
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
    // On a task of its own: the thread that blocks on the runtime is none of its workers.
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

/// Writes 4 KiB and flushes, on the device itself.
fn raw(device: &Path, kind: Kind) -> anyhow::Result<Measurement> {
    let Kind::Append { tasks } = kind else { bail!("nothing like it on a raw device") };
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

/// The appends, by `tasks` threads: `step` gets the thread's number and which of its appends it is.
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
