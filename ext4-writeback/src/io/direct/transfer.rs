//! Bios of direct I/O: pieces of one buffer to and from the device, in one plug.

use std::sync::Arc;

use ext4_core::device::{
    AlignedBuffer, Bio, BioFlags, BufferPart, Completion, EndIo, Operation, Plug, Segment,
};
use ext4_core::{Errno, Error, IoPurpose, Result};
use tokio::sync::oneshot;

use crate::writeback::Engine;

/// A piece of the buffer, and its place on the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Piece {
    /// Its length in bytes.
    pub len: usize,
    /// Its first byte on the device; `None` for a hole, which reads as zeros.
    pub place: Option<u64>,
}

/// Transfers `pieces` of `buffer`, which follow one another from its start, and waits for all of them. The
/// buffer is whole again when it returns.
///
/// # Errors
/// The first error of the device, in the order of the pieces. Other pieces may have been transferred.
pub(crate) async fn transfer(
    engine: &Arc<Engine>,
    operation: Operation,
    flags: BioFlags,
    pieces: &[Piece],
    buffer: &mut AlignedBuffer,
) -> Result<()> {
    let lengths: Vec<_> = pieces.iter().map(|piece| piece.len).collect();
    let parts = std::mem::replace(buffer, AlignedBuffer::empty()).into_parts(&lengths);
    let mut back: Vec<BufferPart> = Vec::with_capacity(parts.len());
    let mut plug = Plug::new();
    let mut waits = Vec::new();
    for (mut part, piece) in parts.into_iter().zip(pieces.iter().map(Some).chain([None])) {
        let Some(place) = piece.and_then(|piece| piece.place) else {
            if piece.is_some() && operation == Operation::Read {
                part.fill(0);
            }
            back.push(part);
            continue;
        };
        let (sender, receiver) = oneshot::channel();
        let end_io: EndIo = Box::new(move |completion: Completion| drop(sender.send(completion)));
        plug.push(Bio::new(operation, flags, place, vec![Segment::Part(part)], end_io));
        waits.push(receiver);
    }
    if !plug.is_empty() {
        engine.volume.info.device().submit(plug);
    }
    let mut result = Ok(());
    for wait in waits {
        let gone = |_| Completion {
            result: Err(Error::io("complete", "the device went away", Errno::EIO)),
            segments: Vec::new(),
        };
        let completion = wait.await.unwrap_or_else(gone);
        result = result.and(completion.result);
        back.extend(completion.segments.into_iter().filter_map(|segment| match segment {
            Segment::Part(part) => Some(part),
            _ => None,
        }));
    }
    if let Some(whole) = AlignedBuffer::from_parts(back) {
        *buffer = whole;
    }
    result.map_err(|error| error.for_purpose(IoPurpose::Data))
}
