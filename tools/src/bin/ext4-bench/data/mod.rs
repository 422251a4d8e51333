//! Suite `data`: one file, through the whole stack, through the kernel's ext4 on the same device, and what the raw
//! device can do.
//!
//! | workload | before | what is timed |
//! |---|---|---|
//! | `cached-write` | an empty file | writing it |
//! | `cached-overwrite` | all of it in memory, durable | writing it again |
//! | `write-fsync` | an empty file | writing it, one fsync |
//! | `overwrite-fsync` | all of it in memory, durable | writing it again, one fsync |
//! | `append-fsync-each` | an empty file | appends, each with an fsync |
//! | `read-hole` | a file that is one hole | reading it |
//! | `read-cached` | all of it in memory | reading it |
//! | `read-device` | nothing of it in memory | reading it |
//! | `random-write-fsync` | all of it in memory, durable | writes at random places, one fsync |
//! | `random-read` | nothing of it in memory | reads at random places |
//!
//! Each with transfers of 1 KiB, 4 KiB, 64 KiB and 1 MiB, one after the other by one task. Every run begins with a fresh
//! file system. What is timed is the calls, not mkfs, mount, unmount and what is done before. The cache is four times
//! the file, so that its limits on dirty data are no narrower than the kernel's on a machine with memory to spare. On
//! both sides a file of the same size is written to the cache and deleted first: a process pays for the first touch of
//! its memory, and the host under a virtual machine may have to find it, twenty times slower than it is cleared. What is
//! measured is a file system that has been running for a while. The device is written over once for the same reason.
//!
//! Processor time is that of the process that calls and of the kernel's own threads together: the kernel writes back
//! and completes in its workers.

mod kernel;
mod ours;

use anyhow::ensure;
use tokio::runtime::Runtime;

use crate::fio;
use crate::report::{Report, Subject};
use crate::workload::{Fsync, Target, Workload};

/// What the file is like when the clock starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Before {
    /// Of no bytes.
    Empty,
    /// As large as it will be, without blocks.
    Hole,
    /// Written and durable, and in memory.
    Cached,
    /// Written and durable, and not in memory.
    Cold,
}

/// One line of the table above.
#[derive(Clone, Debug)]
struct FileWorkload {
    transfers: Workload,
    before: Before,
    /// The device alone can do something like it.
    like_raw: bool,
}

/// What is transferred at most where each transfer waits for the device, in transfers.
const APPENDS: u64 = 2048;
/// How many transfers there are at random places at most.
const RANDOM: u64 = 1 << 16;

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
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("ext4-bench: the kernel's ext4 is left out: only root can mount it");
    }
    target.touch(needed)?;
    for workload in workloads(target).iter().filter(|workload| only(&workload.transfers.name)) {
        let mut subjects = vec![Subject::OursUring];
        if root {
            subjects.push(Subject::Kernel);
        }
        if workload.like_raw {
            subjects.push(Subject::Raw);
            if workload.transfers.depth > 1 {
                subjects.push(Subject::RawBatched);
            }
        }
        let transfers = &workload.transfers;
        report.measure("data", &transfers.into(), &subjects, rounds, |subject| match subject {
            Subject::Raw => fio::raw(&target.device, transfers, false),
            Subject::RawBatched => fio::raw(&target.device, transfers, true),
            Subject::Kernel => kernel::measure(&target.device, workload),
            _ => runtime.block_on(ours::measure(target, workload)),
        })?;
    }
    Ok(())
}

fn workloads(target: &Target) -> Vec<FileWorkload> {
    // Name, before, write, random, fsync, comparable with the raw device.
    let forms = [
        ("cached-write", Before::Empty, true, false, Fsync::Never, true),
        ("cached-overwrite", Before::Cached, true, false, Fsync::Never, false),
        ("write-fsync", Before::Empty, true, false, Fsync::AtTheEnd, true),
        ("overwrite-fsync", Before::Cached, true, false, Fsync::AtTheEnd, true),
        ("append-fsync-each", Before::Empty, true, false, Fsync::Each, true),
        ("read-hole", Before::Hole, false, false, Fsync::Never, false),
        ("read-cached", Before::Cached, false, false, Fsync::Never, false),
        ("read-device", Before::Cold, false, false, Fsync::Never, true),
        ("random-write-fsync", Before::Cached, true, true, Fsync::AtTheEnd, true),
        ("random-read", Before::Cold, false, true, Fsync::Never, true),
    ];
    let blocks = [(1024, "1k", 32), (4096, "4k", 32), (64 << 10, "64k", 16), (1 << 20, "1m", 8)];
    let mut workloads = Vec::new();
    for (name, before, write, random, fsync, like_raw) in forms {
        for (block_size, block, depth) in blocks {
            let most = match (fsync, random) {
                (Fsync::Each, _) => APPENDS * block_size,
                (_, true) => RANDOM * block_size,
                _ => u64::MAX,
            };
            // A file is read and written by one program, one call after the other; the raw device by as many as it likes,
            // but where the program has to wait each time.
            let waits = fsync == Fsync::Each || (random && !write);
            workloads.push(FileWorkload {
                transfers: Workload {
                    name: format!("{name}-{block}"),
                    block_size,
                    depth: if waits { 1 } else { depth },
                    write,
                    random,
                    range: target.size,
                    bytes: target.size.min(most),
                    fsync,
                },
                before,
                like_raw,
            });
        }
    }
    workloads
}

/// What a transfer of `len` bytes holds.
fn content(len: u64) -> anyhow::Result<Vec<u8>> {
    let mut data = vec![0_u8; usize::try_from(len)?];
    for (number, byte) in data.iter_mut().enumerate() {
        *byte = number.to_le_bytes()[0] ^ number.to_le_bytes()[1];
    }
    Ok(data)
}
