//! Suite `data`: one file, through our whole stack, through the kernel's ext4 on the same device, and on the
//! raw device.
//!
//! | workload | file before | what is timed |
//! |---|---|---|
//! | `cached-write` | empty | writing it |
//! | `cached-overwrite` | cached, durable | writing it again |
//! | `write-fsync` | empty | writing it, one fsync |
//! | `overwrite-fsync` | cached, durable | writing it again, one fsync |
//! | `append-fsync-each` | empty | appends, each with an fsync |
//! | `read-hole` | one hole | reading it |
//! | `read-cached` | cached | reading it |
//! | `read-device` | not cached | reading it |
//! | `random-write-fsync` | cached, durable | writes at random offsets, one fsync |
//! | `random-read` | not cached | reads at random offsets |
//!
//! Each workload runs with transfers of 1 KiB, 4 KiB, 64 KiB and 1 MiB, one after the other by one task, on a
//! fresh file system. The calls are timed; mkfs, mount, unmount and the preparation of the file are not.
//!
//! The cache is four times the file, so that its dirty limits are no narrower than the kernel's on a machine
//! with memory to spare. On both sides a file of the same size is written to the cache and deleted first: a
//! process pays for the first touch of its memory, and the host of a virtual machine may have to find that
//! memory, which is twenty times slower than clearing it. The suite measures a file system that has been
//! running for a while. The device is overwritten once for the same reason.
//!
//! Processor time is the sum of the calling process and the kernel's own threads: the kernel writes back and
//! completes in its workers.

mod kernel;
mod ours;

use crate::fio;
use crate::report::{Report, Subject};
use crate::session::{Session, Target};
use crate::workload::{Fsync, Workload};

/// The file when the clock starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Before {
    /// Of size 0.
    Empty,
    /// Of its final size, without blocks.
    Hole,
    /// Written, durable and in the page cache.
    Cached,
    /// Written, durable and not in the page cache.
    Cold,
}

/// One line of the table in the module's header.
#[derive(Clone, Debug)]
struct FileWorkload {
    transfers: Workload,
    before: Before,
    /// True if the raw device can do the same transfers.
    like_raw: bool,
}

/// The most transfers of a workload in which each transfer waits for the device.
const APPENDS: u64 = 2048;
/// The most transfers at random offsets.
const RANDOM: u64 = 1 << 16;

/// Runs the suite.
///
/// # Errors
/// Those of our file system, of mkfs.ext4 and mount(8), and of fio.
pub fn run(session: &Session, report: &mut Report) -> anyhow::Result<()> {
    let Session { runtime, target, rounds, .. } = session;
    let with_kernel = session.prepare(target.size + target.size / 4 + (64 << 20))?;
    for workload in workloads(target).iter().filter(|workload| session.includes(&workload.transfers.name)) {
        let mut subjects = vec![Subject::OursUring];
        if with_kernel {
            subjects.push(Subject::Kernel);
        }
        if workload.like_raw {
            subjects.push(Subject::Raw);
            if workload.transfers.depth > 1 {
                subjects.push(Subject::RawBatched);
            }
        }
        let transfers = &workload.transfers;
        report.measure("data", &transfers.into(), &subjects, *rounds, |subject| match subject {
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
            // A program reads and writes a file with one call after the other. The raw device gets as many
            // transfers at a time as it takes, unless the program has to wait for each of them.
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

/// The content of a transfer of `len` bytes.
fn content(len: u64) -> anyhow::Result<Vec<u8>> {
    let mut data = vec![0_u8; usize::try_from(len)?];
    for (number, byte) in data.iter_mut().enumerate() {
        *byte = number.to_le_bytes()[0] ^ number.to_le_bytes()[1];
    }
    Ok(data)
}
