//! Read-only mounts (`ro`). They never write: neither to the file system's device nor to the journal device.
//!
//! ```text
//!   journal empty, no orphans ─────────────────────────────────► the device as it is
//!   something to recover ─► an overlay in memory over each device ─► in the overlay: journal replayed,
//!   orphans processed ─► the overlay, sealed
//! ```
//!
//! The kernel's read-only mount replays the journal in place if the device can be written. This one does not:
//! a caller that opens an image to read may lack the permission to change it, or must not change it (a
//! backup, evidence).
//!
//! Invariant: all writes of recovery and of orphan processing go to an overlay, and the device below gets
//! reads only. The file system looks as a mount for writing would have left it.
//!
//! With `noload` the journal is not replayed: the file system is read as it lies, perhaps with half an
//! operation in it.

use std::sync::Arc;

use ext4_core::Result;
use ext4_core::device::OverlayDevice;
use ext4_core::environment::Runtime;
use ext4_core::format::features::Incompat;
use ext4_core::meta::orphan::Orphans;

use crate::base::options::MountOptions;
use crate::filesystem::Filesystem;
use crate::mount::found::{Devices, Found, look};
use crate::mount::journal_location::has_external_journal;
use crate::mount::run::{assemble, recover, run};
use crate::volume::Volume;

pub(crate) async fn mount(
    devices: Devices,
    mut options: MountOptions,
    runtime: Arc<dyn Runtime>,
) -> Result<Filesystem> {
    if devices.journal.is_none() {
        // The device of an empty external journal is not needed.
        let superblock = ext4_core::meta::SuperblockInfo::read_superblock(&*devices.filesystem).await?;
        let clean = !superblock.features.incompat.contains(Incompat::RECOVER);
        options.noload |= has_external_journal(&superblock) && clean;
    }
    let found = look(&devices, &options, &runtime).await?;
    found.warn_of_errors();
    if options.noload {
        // Orphans are not processed either: the journal may hold the end of their deletion.
        let orphans = Orphans::load(&found.info).await?;
        return Ok(rest(found, orphans, options, runtime));
    }
    if !found.needs_recovery() {
        let orphans = Orphans::load(&found.info).await?;
        if orphans.pending().is_empty() {
            return Ok(rest(found, orphans, options, runtime));
        }
    }
    drop(found);

    let overlay = |device| OverlayDevice::new(device, options.overlay_limit).map(Arc::new);
    let filesystem = overlay(devices.filesystem)?;
    let journal = devices.journal.map(overlay).transpose()?;
    let writable = Devices {
        filesystem: Arc::clone(&filesystem) as _,
        journal: journal.as_ref().map(|journal| Arc::clone(journal) as _),
    };
    let found = look(&writable, &options, &runtime).await?;
    let found = recover(&writable, found, &options).await?;
    finish_orphans(&writable, found, &options, &runtime).await?;
    tracing::info!(bytes = filesystem.used(), "recovered in memory; the device is as it was");

    let sealed = Devices {
        filesystem: Arc::new(filesystem.sealed()),
        journal: journal.map(|journal| Arc::new(journal.sealed()) as _),
    };
    let found = look(&sealed, &options, &runtime).await?;
    let orphans = Orphans::load(&found.info).await?;
    Ok(rest(found, orphans, options, runtime))
}

/// Processes orphans in the overlay. That takes a mount for writing, with a running journal, for as long. If
/// such a mount is not possible, or fails, the orphans stay as they are.
async fn finish_orphans(
    overlay: &Devices,
    found: Found,
    options: &MountOptions,
    runtime: &Arc<dyn Runtime>,
) -> Result<()> {
    if Orphans::load(&found.info).await?.pending().is_empty() {
        return Ok(());
    }
    drop(found);
    let writable = MountOptions { read_only: false, discard: false, last_mounted: None, ..options.clone() };
    let finish = async {
        let found = look(overlay, &writable, runtime).await?;
        run(found, writable, Arc::clone(runtime)).await?.unmount().await
    };
    if let Err(error) = finish.await {
        tracing::warn!(%error, "what was deleted or truncated before the crash is not finished");
    }
    Ok(())
}

/// The mounted file system, without journal, flusher and tasks.
fn rest(found: Found, orphans: Orphans, options: MountOptions, runtime: Arc<dyn Runtime>) -> Filesystem {
    Filesystem { inner: assemble(Volume::new(found.info, None, orphans, None, options, runtime)) }
}
