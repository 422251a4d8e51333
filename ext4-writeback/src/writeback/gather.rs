//! Building ioends: each is one contiguous write of a file to one contiguous range of the device, many folios
//! long; and the bios it is submitted as.
//!
//! An ioend grows while the next piece follows it in the file and on the device, is of its kind ([`Kind`]),
//! and the sum stays within [`MAX_IOEND`].
//!
//! Invariants:
//! - The size of an ioend is exact to the byte: it ends at the i_size that the file had when its last folio
//!   was cleaned. So i_disksize never ends in zeros that only fill up a block while an append waits in
//!   memory.
//! - An ioend is entered in its inode's [`CompletionQueue`](crate::cache::ioends::CompletionQueue) before it
//!   is submitted, in the order of the file.
//! - The memory of its folios goes to the device without a copy, and is not changed until the I/O ends.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use ext4_core::device::{Bio, BioFlags, Completion, EndIo, Operation, Plug, Segment};
use ext4_core::{BlockNumber, Error, IoPurpose, Result};
use parking_lot::Mutex;

use crate::base::counters::LiveCounters;
use crate::cache::folio::FolioGuard;
use crate::cache::ioend::{Ioend, Kind};
use crate::inode::InodeInfo;
use crate::writeback::Engine;
use crate::writeback::completion;

/// The largest ioend in bytes: an allocation of 2,048 blocks of 4 KiB.
pub(crate) const MAX_IOEND: u64 = 8 << 20;

/// How many bytes a plug gathers before it is submitted.
const PLUG_BYTES: u64 = 16 << 20;

/// How many bios a plug gathers before it is submitted.
const PLUG_BIOS: usize = 128;

/// A plug of bios of many inodes, and the ioend that is growing.
pub(crate) struct Gather {
    engine: Arc<Engine>,
    open: Option<(Arc<InodeInfo>, Ioend, Vec<Segment>)>,
    plug: Plug,
    bytes: u64,
    flags: BioFlags,
}

impl Gather {
    /// An empty plug.
    pub fn new(engine: &Arc<Engine>) -> Self {
        Self {
            engine: Arc::clone(engine),
            open: None,
            plug: Vec::new(),
            bytes: 0,
            flags: BioFlags::BACKGROUND,
        }
    }

    /// `sync`: true if a caller waits for the I/O of what is added from now on (REQ_SYNC).
    pub fn set_sync(&mut self, sync: bool) {
        self.flags = if sync { BioFlags::SYNC } else { BioFlags::BACKGROUND };
    }

    /// Adds blocks `blocks` of `folio` (relative to the folio), which lie at `physical`; i_size is
    /// `end_of_file` bytes.
    pub fn add(
        &mut self,
        inode: &Arc<InodeInfo>,
        folio: &FolioGuard,
        blocks: Range<u32>,
        physical: BlockNumber,
        kind: Kind,
        end_of_file: u64,
    ) {
        let bits = self.engine.volume.info.block_size().bits();
        let first = folio.first_block() + blocks.start;
        let count = blocks.end - blocks.start;
        let len = u64::from(count) << bits;
        let offset = first.byte(self.engine.volume.info.block_size());
        let joins = self.open.as_ref().is_some_and(|(owner, open, _)| {
            Arc::ptr_eq(owner, inode)
                && open.kind == kind
                && open.end() == offset
                && open.physical.offset(u64::from(open.blocks.end - open.blocks.start)) == physical
                && open.size + len <= MAX_IOEND
        });
        if !joins {
            self.close();
        }
        folio.add_piece(blocks.clone());
        let segment =
            Segment::Pool { memory: folio.memory(), offset: blocks.start << bits, len: count << bits };
        let (_, ioend, segments) = self.open.get_or_insert_with(|| {
            let ioend = Ioend {
                id: self.engine.dirty.start_ioend(),
                offset,
                size: 0,
                blocks: first..first,
                physical,
                kind,
                pieces: Vec::new(),
                result: Ok(()),
            };
            inode.completion.start(&ioend);
            (Arc::clone(inode), ioend, Vec::new())
        });
        ioend.blocks.end += count;
        ioend.size = (ioend.size + len).min(end_of_file - ioend.offset);
        ioend.pieces.push((Arc::clone(folio), blocks));
        segments.push(segment);
    }

    /// Closes the growing ioend: its bios go into the plug.
    pub fn close(&mut self) {
        let Some((inode, ioend, segments)) = self.open.take() else { return };
        let control = &self.engine.dirty;
        let geometry = self.engine.volume.info.device().geometry();
        let max_bytes = u64::from(geometry.max_transfer.max(1 << 16)).min(MAX_IOEND);
        let max_segments = geometry.max_segments.max(1) as usize;
        let bits = self.engine.volume.info.block_size().bits();
        inode.completion.close(&ioend);
        let mut at = ioend.physical.0 << bits;
        tracing::trace!(
            ino = inode.number.0,
            pos = ioend.offset,
            len = ioend.size,
            pblk = ioend.physical.0,
            kind = ?ioend.kind,
            "iomap_ioend_submit"
        );
        LiveCounters::add(&self.engine.volume.counters.ioends, 1);
        LiveCounters::add(&self.engine.volume.counters.bytes, ioend.size);
        let mut runs: Vec<(u64, Vec<Segment>, u64)> = Vec::new();
        for segment in segments {
            let mut rest = Some(segment);
            while let Some(segment) = rest.take() {
                let room = match runs.last() {
                    Some((_, segments, bytes)) if segments.len() < max_segments => max_bytes - bytes,
                    _ => 0,
                };
                if room < 1 << bits {
                    runs.push((at, Vec::new(), 0));
                    rest = Some(segment);
                    continue;
                }
                let room = room & !((1_u64 << bits) - 1);
                let (now, later) = split(segment, room);
                rest = later;
                let len = u64::from(now.len());
                if let Some((_, segments, bytes)) = runs.last_mut() {
                    segments.push(now);
                    *bytes += len;
                }
                at += len;
            }
        }
        let count = u32::try_from(runs.len()).unwrap_or(u32::MAX);
        LiveCounters::add(&self.engine.volume.counters.bios, u64::from(count));
        let flight = Arc::new(Flight {
            engine: Arc::clone(&self.engine),
            inode,
            remaining: AtomicU32::new(count),
            state: Mutex::new((Some(ioend), None)),
        });
        control.completed.io_started();
        for (offset, segments, bytes) in runs {
            let flight = Arc::clone(&flight);
            let end_io: EndIo = Box::new(move |completion: Completion| {
                // Reclaim gives clean folios up; their memory is free when the last reference is gone.
                drop(completion.segments);
                flight.end_bio(completion.result);
            });
            self.plug.push(Bio::new(Operation::Write, self.flags, offset, segments, end_io));
            self.bytes += bytes;
        }
        if self.bytes >= PLUG_BYTES || self.plug.len() >= PLUG_BIOS {
            self.submit_plug();
        }
    }

    fn submit_plug(&mut self) {
        if !self.plug.is_empty() {
            self.bytes = 0;
            self.engine.volume.info.device().submit(std::mem::take(&mut self.plug));
        }
    }

    /// Submits everything to the device.
    pub fn submit(&mut self) {
        self.close();
        self.submit_plug();
    }
}

impl Drop for Gather {
    fn drop(&mut self) {
        // An ioend that was begun is submitted, whatever happened to its pass: its folios are under
        // writeback.
        self.submit();
    }
}

fn split(segment: Segment, room: u64) -> (Segment, Option<Segment>) {
    match segment {
        Segment::Pool { memory, offset, len } if u64::from(len) > room => {
            let first = room as u32;
            let rest =
                Segment::Pool { memory: Arc::clone(&memory), offset: offset + first, len: len - first };
            (Segment::Pool { memory, offset, len: first }, Some(rest))
        }
        segment => (segment, None),
    }
}

/// An ioend whose bios are in flight.
struct Flight {
    engine: Arc<Engine>,
    inode: Arc<InodeInfo>,
    remaining: AtomicU32,
    state: Mutex<(Option<Ioend>, Option<Error>)>,
}

impl Flight {
    /// A bio of the ioend ended. Runs in the device's completion context: bookkeeping only.
    fn end_bio(&self, result: Result<()>) {
        if let Err(error) = result {
            self.state.lock().1.get_or_insert(error.for_purpose(IoPurpose::Data));
        }
        if self.remaining.fetch_sub(1, Ordering::AcqRel) != 1 {
            return;
        }
        let (ioend, error) = {
            let mut state = self.state.lock();
            (state.0.take(), state.1.take())
        };
        if let Some(mut ioend) = ioend {
            if let Some(error) = error {
                ioend.result = Err(error);
            }
            completion::end_io(&self.engine, &self.inode, ioend);
        }
    }
}
