//! Suite `data` on the kernel's ext4, driven by fio with one call after the other.

use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::Context;

use super::{Before, FileWorkload, content};
use crate::fio;
use crate::kernel::{self, Mounted};
use crate::workload::Measurement;

/// Runs a workload on a fresh file system.
///
/// # Errors
/// Those of mkfs.ext4, mount(8) and fio.
pub fn measure(device: &Path, workload: &FileWorkload) -> anyhow::Result<Measurement> {
    let mut mounted = Mounted::new(device, &[], None)?;
    warm_up(&mounted, workload)?;
    let name = "file";
    let file = std::fs::File::create_new(mounted.path().join(name)).context("create")?;
    let range = workload.transfers.range;
    match workload.before {
        Before::Empty => {}
        Before::Hole => file.set_len(range).context("extend")?,
        Before::Cached | Before::Cold => {
            write(&file, range)?;
            file.sync_all().context("fsync")?;
        }
    }
    drop(file);
    if workload.before == Before::Cold {
        mounted = mounted.again()?;
        warm_up(&mounted, workload)?;
    }
    let flushes = kernel::flushes(device);
    let bytes = mounted.journal_bytes(4096.0)?;
    let mut measured = fio::file(&mounted.path().join(name), &workload.transfers)?;
    measured.traffic = kernel::traffic(device, flushes, mounted.journal_bytes(4096.0)? - bytes);
    Ok(measured)
}

/// Writes and deletes a file, so that memory and allocator are as in a file system that has been running for
/// a while.
fn warm_up(mounted: &Mounted, workload: &FileWorkload) -> anyhow::Result<()> {
    let path = mounted.path().join("warm");
    let file = std::fs::File::create_new(&path).context("create")?;
    write(&file, workload.transfers.range)?;
    drop(file);
    std::fs::remove_file(&path).context("unlink")?;
    mounted.sync()
}

/// Writes the first `range` bytes.
fn write(file: &std::fs::File, range: u64) -> anyhow::Result<()> {
    let data = content(1 << 20)?;
    for at in (0..range).step_by(data.len()) {
        file.write_all_at(&data, at).context("write")?;
    }
    Ok(())
}
