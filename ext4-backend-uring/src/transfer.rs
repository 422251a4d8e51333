//! A transfer: what becomes one entry of the submission queue.
//!
//! Invariant: the addresses in a transfer point into the segments of the bios of its request, into its own
//! bounce buffer, or into the engine's zeros; the engine keeps all of them until the kernel has posted the
//! completion. Were this wrong, a late read would land in memory that has another owner by then.

use ext4_core::Result;
use ext4_core::device::{AlignedBuffer, Bio, Segment};

/// A piece of memory, laid out as the kernel's `struct iovec`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub(crate) struct Vector {
    pub(crate) address: usize,
    pub(crate) len: usize,
}

const _: () = assert!(size_of::<Vector>() == size_of::<libc::iovec>());

/// The memory of a transfer. Most have one piece.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Vectors {
    One(Vector),
    Many(Vec<Vector>),
}

impl Vectors {
    fn as_mut_slice(&mut self) -> &mut [Vector] {
        match self {
            Self::One(vector) => std::slice::from_mut(vector),
            Self::Many(vectors) => vectors,
        }
    }

    /// Removes the first `moved` bytes.
    fn advance(&mut self, mut moved: usize) {
        let vectors = self.as_mut_slice();
        let mut done = 0;
        for vector in vectors.iter_mut() {
            if moved < vector.len {
                vector.address += moved;
                vector.len -= moved;
                break;
            }
            moved -= vector.len;
            done += 1;
        }
        if let Self::Many(vectors) = self {
            vectors.drain(..done);
        }
    }
}

/// The command of a transfer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Action {
    Read,
    Write {
        /// True if written with `RWF_DSYNC`, which is FUA on a block device.
        durable: bool,
    },
    /// `fdatasync`, which is a flush of the device's cache.
    Flush,
    /// The block device's discard command.
    Discard,
    /// Discard by punching a hole: for files, and for kernels without the discard command.
    DiscardByHole,
    /// Zeros by punching a hole, which the device may do by unmapping.
    ZeroByHole,
    /// Zeros by `FALLOC_FL_ZERO_RANGE`: if the device has no command for it, the kernel writes zeros.
    ZeroRange,
}

/// A bounce buffer, used if the memory of the bios is not aligned as the device asks.
#[derive(Debug)]
pub(crate) struct Bounce {
    buffer: AlignedBuffer,
    /// First byte of the aligned part of the buffer.
    start: usize,
    len: usize,
}

/// One transfer; see the module.
#[derive(Debug)]
pub(crate) struct Transfer {
    /// Key of the request that the transfer belongs to.
    pub(crate) request: usize,
    pub(crate) action: Action,
    /// First byte in the host's file of what is left to transfer.
    pub(crate) offset: u64,
    /// Bytes left to transfer.
    pub(crate) len: u64,
    /// First byte of the whole transfer within its request.
    pub(crate) start: u64,
    pub(crate) vectors: Vectors,
    /// Index of the registered buffer that contains all of the memory.
    pub(crate) registered: Option<u16>,
    pub(crate) bounce: Option<Bounce>,
    /// Retries since the last byte that was moved.
    pub(crate) retries: u8,
}

impl Transfer {
    /// A transfer without memory.
    pub(crate) fn without_memory(request: usize, action: Action, offset: u64, len: u64) -> Self {
        let vectors = Vectors::One(Vector { address: 0, len: 0 });
        Self { request, action, offset, len, start: 0, vectors, registered: None, bounce: None, retries: 0 }
    }

    /// Removes the first `moved` bytes, which are done.
    pub(crate) fn advance(&mut self, moved: u64) {
        self.offset += moved;
        self.len -= moved;
        self.vectors.advance(usize::try_from(moved).unwrap_or(usize::MAX));
    }

    /// After a read: copies the bounce buffer, if there is one, into the segments of `bios`.
    pub(crate) fn finish_read(&self, bios: &mut [Bio]) {
        if let (Action::Read, Some(bounce)) = (self.action, &self.bounce) {
            let bytes = &bounce.buffer[bounce.start..bounce.start + bounce.len];
            pieces(bios, self.start, bytes.len() as u64, |segment, at, range| {
                segment.fill(|piece| piece[range.clone()].copy_from_slice(&bytes[at..at + range.len()]));
            });
        }
    }
}

/// A device's limits for one transfer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Alignment of memory addresses, in bytes.
    pub(crate) alignment: usize,
    /// The most bytes.
    pub(crate) bytes: u64,
    /// The most vectors (pieces of memory).
    pub(crate) vectors: usize,
}

/// Splits the memory of the adjacent `bios`, which start at byte `offset` of the host's file, into transfers,
/// and calls `emit` for each. `registered` returns the index of the registered buffer that contains a
/// segment.
///
/// # Errors
/// `ENOMEM`: there is no memory for a bounce buffer.
pub(crate) fn split(
    bios: &mut [Bio],
    action: Action,
    offset: u64,
    limits: &Limits,
    mut registered: impl FnMut(&Segment) -> Option<u16>,
    mut emit: impl FnMut(Transfer),
) -> Result<()> {
    // The common case, without a list: one piece that fits as it is.
    if let [bio] = bios
        && let [segment] = &mut bio.segments[..]
        && u64::from(segment.len()) <= limits.bytes
    {
        let vector =
            Vector { len: segment.len() as usize, address: segment.as_device_ptr().expose_provenance() };
        if vector.address.is_multiple_of(limits.alignment) {
            emit(Transfer {
                vectors: Vectors::One(vector),
                registered: registered(segment),
                ..Transfer::without_memory(0, action, offset, u64::from(segment.len()))
            });
            return Ok(());
        }
    }
    let mut open: Option<Transfer> = None;
    let mut start = 0;
    let mut ends: Vec<Transfer> = Vec::new();
    for segment in bios.iter_mut().flat_map(|bio| &mut bio.segments) {
        let buffer = registered(segment);
        let mut vector =
            Vector { len: segment.len() as usize, address: segment.as_device_ptr().expose_provenance() };
        while vector.len > 0 {
            let transfer = open.get_or_insert_with(|| Transfer {
                request: 0,
                action,
                offset: offset + start,
                len: 0,
                start,
                vectors: Vectors::Many(Vec::new()),
                registered: buffer,
                bounce: None,
                retries: 0,
            });
            let room = usize::try_from(limits.bytes - transfer.len).unwrap_or(usize::MAX);
            let part = vector.len.min(room);
            if !append(transfer, Vector { address: vector.address, len: part }, buffer, limits.vectors) {
                ends.extend(open.take());
                continue;
            }
            transfer.len += part as u64;
            start += part as u64;
            vector = Vector { address: vector.address + part, len: vector.len - part };
            if transfer.len == limits.bytes {
                ends.extend(open.take());
            }
        }
    }
    ends.extend(open);
    for mut transfer in ends {
        let aligned = transfer
            .vectors
            .as_mut_slice()
            .iter()
            .all(|vector| vector.address.is_multiple_of(limits.alignment));
        if !aligned {
            bounce(&mut transfer, bios, limits.alignment)?;
        }
        emit(transfer);
    }
    Ok(())
}

/// Adds a vector to a transfer. Returns true if it was added, false if the transfer has `max_vectors`
/// already.
fn append(transfer: &mut Transfer, vector: Vector, buffer: Option<u16>, max_vectors: usize) -> bool {
    match &mut transfer.vectors {
        Vectors::Many(vectors) if vectors.is_empty() => {
            transfer.vectors = Vectors::One(vector);
            return true;
        }
        Vectors::One(first) => {
            // Vectors that are adjacent in memory become one, but not across registered buffers.
            if first.address + first.len == vector.address && transfer.registered == buffer {
                first.len += vector.len;
                return true;
            }
            if max_vectors < 2 {
                return false;
            }
            transfer.vectors = Vectors::Many(vec![*first, vector]);
        }
        Vectors::Many(vectors) => {
            if let Some(last) = vectors.last_mut()
                && last.address + last.len == vector.address
                && transfer.registered == buffer
            {
                last.len += vector.len;
                return true;
            }
            if vectors.len() >= max_vectors {
                return false;
            }
            vectors.push(vector);
        }
    }
    if transfer.registered != buffer {
        transfer.registered = None;
    }
    true
}

/// Replaces a transfer's memory by an aligned bounce buffer; for a write, with a copy of the data.
///
/// # Errors
/// `ENOMEM`: there is no memory for the buffer.
fn bounce(transfer: &mut Transfer, bios: &mut [Bio], alignment: usize) -> Result<()> {
    let len = usize::try_from(transfer.len).unwrap_or(usize::MAX);
    let mut buffer = AlignedBuffer::zeroed(len.saturating_add(alignment))?;
    let start = buffer.as_ptr().align_offset(alignment).min(alignment);
    if matches!(transfer.action, Action::Write { .. }) {
        let bytes = &mut buffer[start..start + len];
        pieces(bios, transfer.start, transfer.len, |segment, at, range| {
            segment.read(|piece| bytes[at..at + range.len()].copy_from_slice(&piece[range.clone()]));
        });
    }
    let address = buffer[start..].as_mut_ptr().expose_provenance();
    transfer.vectors = Vectors::One(Vector { address, len });
    transfer.registered = None;
    transfer.bounce = Some(Bounce { buffer, start, len });
    Ok(())
}

/// Calls `f` for each segment that overlaps bytes `start..start + len` of `bios`, with the segment, the first
/// byte of the overlap within the range, and the overlap as bytes of the segment.
fn pieces(
    bios: &mut [Bio],
    start: u64,
    len: u64,
    mut f: impl FnMut(&mut Segment, usize, std::ops::Range<usize>),
) {
    let end = start + len;
    let mut at = 0;
    for segment in bios.iter_mut().flat_map(|bio| &mut bio.segments) {
        let next = at + u64::from(segment.len());
        let (from, to) = (start.max(at), end.min(next));
        if from < to {
            let within = |value: u64, base: u64| usize::try_from(value - base).unwrap_or(usize::MAX);
            f(segment, within(from, start), within(from, at)..within(to, at));
        }
        at = next;
    }
}

#[cfg(test)]
mod tests {
    use ext4_core::device::{BioFlags, MemoryPool, Operation};

    use super::*;

    fn bio(segments: Vec<Segment>) -> Bio {
        Bio::new(Operation::Write, BioFlags::empty(), 0, segments, Box::new(drop))
    }

    fn transfers(bios: &mut [Bio], limits: &Limits) -> Vec<Transfer> {
        let mut found = Vec::new();
        let registered = |segment: &Segment| match segment {
            Segment::Pool { .. } => Some(3),
            _ => None,
        };
        split(bios, Action::Write { durable: false }, 4096, limits, registered, |transfer| {
            found.push(transfer)
        })
        .unwrap();
        found
    }

    const LIMITS: Limits = Limits { alignment: 512, bytes: 8192, vectors: 4 };

    #[test]
    fn neighbours_in_memory_are_one_piece_and_limits_cut() {
        let pool = MemoryPool::new(1 << 21);
        let memory = std::sync::Arc::new(pool.allocate(1 << 16).unwrap().unwrap());
        let piece = |offset, len| Segment::Pool { memory: std::sync::Arc::clone(&memory), offset, len };
        let mut bios =
            [bio(vec![piece(0, 4096), piece(4096, 8192)]), bio(vec![piece(512, 512), piece(0, 512)])];
        let found = transfers(&mut bios, &LIMITS);
        let base = memory.as_ptr().expose_provenance();
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].vectors, Vectors::One(Vector { address: base, len: 8192 }));
        let rest = [(8192, 4096), (512, 512), (0, 512)]
            .map(|(offset, len)| Vector { address: base + offset, len })
            .to_vec();
        assert_eq!(found[1].vectors, Vectors::Many(rest));
        assert_eq!((found[1].offset, found[1].start, found[1].len), (4096 + 8192, 8192, 5120));
        assert_eq!((found[0].registered, found[1].registered), (Some(3), Some(3)));
        let mut many: Vec<_> = (0..9).map(|number| piece(number * 1024, 512)).collect();
        many.push(Segment::Owned(AlignedBuffer::zeroed(512).unwrap()));
        let found = transfers(&mut [bio(many)], &LIMITS);
        assert_eq!(found.iter().map(|transfer| transfer.len).collect::<Vec<_>>(), [2048, 2048, 1024]);
        assert_eq!(
            found.iter().map(|transfer| transfer.registered).collect::<Vec<_>>(),
            [Some(3), Some(3), None]
        );
    }

    #[test]
    fn memory_that_is_not_aligned_goes_through_a_buffer_that_is() {
        let pool = MemoryPool::new(1 << 21);
        let memory = std::sync::Arc::new(pool.allocate(1 << 16).unwrap().unwrap());
        memory.write(0, 4096, |bytes| {
            bytes.iter_mut().zip((0..=250_u8).cycle()).for_each(|(byte, value)| *byte = value)
        });
        let piece = |offset, len| Segment::Pool { memory: std::sync::Arc::clone(&memory), offset, len };
        let mut bios = [bio(vec![piece(1, 512), piece(700, 512)])];
        let limits = Limits { alignment: 4096, ..LIMITS };
        let found = transfers(&mut bios, &limits);
        assert_eq!(found.len(), 1);
        let bounce = found[0].bounce.as_ref().unwrap();
        let bytes = &bounce.buffer[bounce.start..bounce.start + bounce.len];
        assert_eq!(bytes.as_ptr().align_offset(4096), 0);
        let expected = memory.read(0, 4096, |all| [&all[1..513], &all[700..1212]].concat());
        assert_eq!(bytes, expected);
    }

    #[test]
    fn a_short_transfer_goes_on_where_it_stopped() {
        let vector = |address, len| Vector { address, len };
        let mut transfer = Transfer::without_memory(0, Action::Read, 1000, 300);
        transfer.vectors = Vectors::Many(vec![vector(10, 100), vector(1000, 200)]);
        transfer.advance(150);
        assert_eq!(transfer.vectors, Vectors::Many(vec![vector(1050, 150)]));
        assert_eq!((transfer.offset, transfer.len), (1150, 150));
        transfer.vectors = Vectors::One(vector(10, 150));
        transfer.advance(20);
        assert_eq!(transfer.vectors, Vectors::One(vector(30, 130)));
    }
}
