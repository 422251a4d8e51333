//! Requests and transfers, in flight and waiting: the state machine behind the ring. No system calls, no
//! `unsafe`: the device asks for the next transfer and reports how it ended.
//!
//! A *request* is one bio, or several adjacent bios that go as one. Its life:
//!
//! ```text
//!            PREFLUSH            │ all transfers done      FUA on zeroes
//!   new ───► Before (flush) ───► Main (transfers) ───────► After (flush) ───► ended: each bio completed
//!     └────────────────────────────┘▲ short, EAGAIN, ECANCELED, EINTR: the rest again, bounded
//! ```
//!
//! Invariants:
//! - A request owns its bios, and a slot owns its transfer, until the kernel has posted the completion:
//!   memory that the kernel may still write is never freed, even if the caller stops waiting.
//! - A slot has at most one entry in the submission queue, and there are no more slots than entries: the
//!   queues cannot overflow, and a completion always finds its slot.
//! - The flush of a PREFLUSH write has completed before the write starts. Were this wrong, a commit block
//!   could be durable before what it commits.

use std::collections::VecDeque;

use ext4_core::device::{AlignedBuffer, Bio, BioFlags, Operation, Segment};
use ext4_core::{Errno, Error, Result};
use slab::Slab;

use crate::transfer::{Action, Limits, Transfer, Vector, Vectors, split};

/// How often a transfer that the kernel put off without moving a byte is tried again.
const MAX_RETRIES: u8 = 32;
/// Bytes of zeros in memory, written to a device that has no command for zeroing.
const ZEROS: usize = 64 << 10;

/// Commands that the kernel or the device has refused. A refused command is not tried again.
#[derive(Clone, Copy, Debug, Default)]
struct Refused {
    discard: bool,
    hole: bool,
    zero_range: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Before,
    Main,
    After,
}

#[derive(Debug)]
struct Request {
    /// Adjacent bios of one operation. Most requests have one.
    bios: Vec<Bio>,
    operation: Operation,
    flags: BioFlags,
    /// First byte in the host's file.
    offset: u64,
    len: u64,
    phase: Phase,
    /// Transfers that are queued or in flight.
    outstanding: u32,
    error: Option<Errno>,
}

/// A bio that has ended, and its result.
pub(crate) type Ended = (Bio, Result<()>);

/// What an engine knows about its device.
#[derive(Clone, Debug)]
pub(crate) struct Configuration {
    /// The most transfers in flight.
    pub(crate) slots: usize,
    pub(crate) limits: Limits,
    /// First byte of the device in the host's file.
    pub(crate) offset: u64,
    pub(crate) logical_block_size: u64,
    /// True if the device has a discard command, as block devices do.
    pub(crate) discard_command: bool,
    /// The path, for errors.
    pub(crate) name: String,
}

/// Finds the registered buffer of a segment.
pub(crate) trait Registry {
    /// Returns the index of the registered buffer that contains the whole segment. Registers the segment's
    /// region if it is not registered yet and can be.
    fn buffer_of(&mut self, segment: &Segment) -> Option<u16>;
}

/// The requests and transfers of one device; see the module.
#[derive(Debug)]
pub(crate) struct Engine {
    configuration: Configuration,
    requests: Slab<Request>,
    slots: Slab<Transfer>,
    backlog: VecDeque<Transfer>,
    refused: Refused,
    zeros: Option<AlignedBuffer>,
}

impl Engine {
    pub(crate) fn new(configuration: Configuration) -> Self {
        let refused = Refused { discard: !configuration.discard_command, ..Refused::default() };
        let slots = Slab::with_capacity(configuration.slots);
        Self { configuration, requests: Slab::new(), slots, backlog: VecDeque::new(), refused, zeros: None }
    }

    /// Accepts bios that were checked and sorted by offset, joins adjacent ones, and puts their transfers
    /// into the backlog.
    pub(crate) fn accept(&mut self, bios: Vec<Bio>, registry: &mut impl Registry, ended: &mut Vec<Ended>) {
        let mut group: Vec<Bio> = Vec::new();
        for bio in bios {
            if !group.is_empty() && !self.joins(&group, &bio) {
                let group = std::mem::take(&mut group);
                self.begin(group, registry, ended);
            }
            group.push(bio);
        }
        self.begin(group, registry, ended);
    }

    fn joins(&self, group: &[Bio], bio: &Bio) -> bool {
        let (Some(first), Some(last)) = (group.first(), group.last()) else { return false };
        let special = BioFlags::PREFLUSH | BioFlags::FUA;
        matches!(bio.operation, Operation::Read | Operation::Write)
            && last.operation == bio.operation
            && last.offset + last.len == bio.offset
            && !bio.flags.intersects(special)
            && !first.flags.intersects(special)
            && bio.offset + bio.len - first.offset <= self.configuration.limits.bytes
            && group.iter().map(|bio| bio.segments.len()).sum::<usize>() + bio.segments.len()
                <= self.configuration.limits.vectors
    }

    fn begin(&mut self, bios: Vec<Bio>, registry: &mut impl Registry, ended: &mut Vec<Ended>) {
        let Some(first) = bios.first() else { return };
        let preflush = first.flags.contains(BioFlags::PREFLUSH) && first.operation != Operation::Flush;
        let request = Request {
            operation: first.operation,
            flags: first.flags,
            offset: self.configuration.offset + first.offset,
            len: bios.iter().map(|bio| bio.len).sum(),
            phase: if preflush { Phase::Before } else { Phase::Main },
            outstanding: 0,
            error: None,
            bios,
        };
        let key = self.requests.insert(request);
        if preflush {
            self.queue(Transfer::without_memory(key, Action::Flush, 0, 0));
        } else {
            self.queue_main(key, registry);
            self.progress(key, registry, ended);
        }
    }

    fn queue(&mut self, transfer: Transfer) {
        self.requests[transfer.request].outstanding += 1;
        self.backlog.push_back(transfer);
    }

    /// Queues the transfers of a request's main phase.
    fn queue_main(&mut self, key: usize, registry: &mut impl Registry) {
        let request = &mut self.requests[key];
        request.phase = Phase::Main;
        let (offset, len) = (request.offset, request.len);
        let action = match request.operation {
            Operation::Read => Action::Read,
            Operation::Write => Action::Write { durable: request.flags.contains(BioFlags::FUA) },
            Operation::Flush => return self.queue(Transfer::without_memory(key, Action::Flush, 0, 0)),
            Operation::Discard => return self.queue_discard(key, offset, len),
            Operation::WriteZeroes => return self.queue_zeroes(key, offset, len),
        };
        let limits = self.configuration.limits;
        let backlog = &mut self.backlog;
        let mut count = 0;
        let find = |segment: &Segment| registry.buffer_of(segment);
        let done = split(&mut request.bios, action, offset, &limits, find, |mut transfer| {
            transfer.request = key;
            count += 1;
            backlog.push_back(transfer);
        });
        request.outstanding += count;
        if let Err(error) = done {
            // Transfers queued before the error run; the request fails when they have ended.
            request.error = Some(error.errno());
        }
    }

    fn queue_discard(&mut self, key: usize, offset: u64, len: u64) {
        let action = if !self.refused.discard {
            Action::Discard
        } else if !self.refused.hole {
            Action::DiscardByHole
        } else {
            // Discard is advice: a range that cannot be discarded keeps its blocks.
            return;
        };
        self.queue(Transfer::without_memory(key, action, offset, len));
    }

    fn queue_zeroes(&mut self, key: usize, offset: u64, len: u64) {
        if !self.refused.hole {
            return self.queue(Transfer::without_memory(key, Action::ZeroByHole, offset, len));
        }
        if !self.refused.zero_range {
            return self.queue(Transfer::without_memory(key, Action::ZeroRange, offset, len));
        }
        let Ok(address) = self.zeros_address() else {
            self.requests[key].error = Some(Errno::ENOMEM);
            return;
        };
        let limit = self.configuration.limits;
        let most = limit.bytes.min(limit.vectors as u64 * ZEROS as u64);
        let mut at = offset;
        while at < offset + len {
            let part = most.min(offset + len - at);
            let mut left = usize::try_from(part).unwrap_or(usize::MAX);
            let mut vectors = Vec::new();
            while left > 0 {
                let piece = left.min(ZEROS);
                vectors.push(Vector { address, len: piece });
                left -= piece;
            }
            let mut transfer = Transfer::without_memory(key, Action::Write { durable: false }, at, part);
            transfer.vectors = Vectors::Many(vectors);
            self.queue(transfer);
            at += part;
        }
    }

    /// The address of [`ZEROS`] zero bytes, aligned as the device asks, that live as long as the engine.
    ///
    /// # Errors
    /// `ENOMEM`: there is no memory for them.
    fn zeros_address(&mut self) -> Result<usize> {
        let alignment = self.configuration.limits.alignment;
        if self.zeros.is_none() {
            self.zeros = Some(AlignedBuffer::zeroed(ZEROS + alignment)?);
        }
        let Some(zeros) = &mut self.zeros else { return Ok(0) };
        let start = zeros.as_ptr().align_offset(alignment).min(alignment);
        Ok(zeros[start..].as_mut_ptr().expose_provenance())
    }

    /// Returns the next transfer to start and its slot, or `None` if no transfer waits or no slot is free.
    pub(crate) fn next(&mut self) -> Option<(usize, &Transfer)> {
        if self.slots.len() >= self.configuration.slots {
            return None;
        }
        let transfer = self.backlog.pop_front()?;
        let slot = self.slots.insert(transfer);
        Some((slot, &self.slots[slot]))
    }

    /// Ends the transfer in `slot`: `result` is the number of bytes moved, or the error.
    pub(crate) fn complete(
        &mut self,
        slot: usize,
        result: Result<u64, Errno>,
        registry: &mut impl Registry,
        ended: &mut Vec<Ended>,
    ) {
        let Some(mut transfer) = self.slots.try_remove(slot) else {
            tracing::error!(slot, "a completion for a slot that is free");
            return;
        };
        let key = transfer.request;
        let outcome = match result {
            Ok(moved) => self.moved(&mut transfer, moved),
            Err(errno) => self.failed(&transfer, errno),
        };
        match outcome {
            Outcome::Done => transfer.finish_read(&mut self.requests[key].bios),
            Outcome::Failed(errno) => {
                self.requests[key].error.get_or_insert(errno);
            }
            Outcome::Again => {
                // To the front: the other transfers have waited less.
                self.backlog.push_front(transfer);
                return;
            }
            Outcome::OtherWay => {
                let (offset, len) = (transfer.offset, transfer.len);
                match self.requests[key].operation {
                    Operation::Discard => self.queue_discard(key, offset, len),
                    _ => self.queue_zeroes(key, offset, len),
                }
            }
        }
        self.requests[key].outstanding -= 1;
        self.progress(key, registry, ended);
    }

    /// The outcome of a transfer of which `moved` bytes are done.
    fn moved(&self, transfer: &mut Transfer, moved: u64) -> Outcome {
        if !matches!(transfer.action, Action::Read | Action::Write { .. }) || moved >= transfer.len {
            return Outcome::Done;
        }
        // The rest has to start on a logical block.
        let whole = moved - moved % self.configuration.logical_block_size;
        if whole > 0 {
            transfer.retries = 0;
            transfer.advance(whole);
            return Outcome::Again;
        }
        if moved == 0 && transfer.action == Action::Read {
            // The file ends before the device does: it was truncated.
            return Outcome::Failed(Errno::EIO);
        }
        retry(transfer, Errno::EIO)
    }

    /// The outcome of a transfer that ended with `errno`.
    fn failed(&mut self, transfer: &Transfer, errno: Errno) -> Outcome {
        // These mean "the command is not supported" rather than "the device failed".
        let refused = matches!(errno, Errno::EOPNOTSUPP | Errno::EINVAL | Errno::ENOTTY | Errno::ENOSYS);
        let flag = match transfer.action {
            Action::Discard => Some(&mut self.refused.discard),
            Action::DiscardByHole | Action::ZeroByHole => Some(&mut self.refused.hole),
            Action::ZeroRange => Some(&mut self.refused.zero_range),
            Action::Read | Action::Write { .. } | Action::Flush => None,
        };
        if let (true, Some(flag)) = (refused, flag) {
            tracing::info!(action = ?transfer.action, %errno, "the host refuses this command; using another");
            *flag = true;
            return Outcome::OtherWay;
        }
        Outcome::Failed(errno)
    }

    /// Starts the next phase of a request that has no transfer outstanding, or ends the request.
    fn progress(&mut self, key: usize, registry: &mut impl Registry, ended: &mut Vec<Ended>) {
        loop {
            let request = &mut self.requests[key];
            if request.outstanding > 0 {
                return;
            }
            let durable_zeroes =
                request.operation == Operation::WriteZeroes && request.flags.contains(BioFlags::FUA);
            match request.phase {
                Phase::Before if request.error.is_none() => self.queue_main(key, registry),
                Phase::Main if durable_zeroes && request.error.is_none() => {
                    request.phase = Phase::After;
                    return self.queue(Transfer::without_memory(key, Action::Flush, 0, 0));
                }
                _ => break,
            }
        }
        let Request { bios, error, .. } = self.requests.remove(key);
        match error {
            None => ended.extend(bios.into_iter().map(|bio| (bio, Ok(())))),
            Some(_) if bios.len() > 1 => {
                // One of several adjacent bios failed. Each goes alone now, so that only the bio that fails
                // completes with the error. To transfer the same bytes twice does no harm.
                for bio in bios {
                    self.begin(vec![bio], registry, ended);
                }
            }
            Some(errno) => ended.extend(bios.into_iter().map(|bio| {
                let location = format!("{} of {}", bio.location(), self.configuration.name);
                let error = Error::io(bio.operation_name(), location, errno);
                (bio, Err(error))
            })),
        }
    }

    /// Queues a transfer again that the kernel put off (`EAGAIN`, `ECANCELED`, `EINTR`), at most
    /// [`MAX_RETRIES`] times.
    pub(crate) fn put_off(
        &mut self,
        slot: usize,
        errno: Errno,
        registry: &mut impl Registry,
        ended: &mut Vec<Ended>,
    ) {
        let Some(transfer) = self.slots.get_mut(slot) else { return };
        match retry(transfer, errno) {
            Outcome::Again => {
                let transfer = self.slots.remove(slot);
                self.backlog.push_front(transfer);
            }
            _ => self.complete(slot, Err(errno), registry, ended),
        }
    }

    /// Returns true if no transfer is in flight and none waits.
    pub(crate) fn is_idle(&self) -> bool {
        self.requests.is_empty()
    }
}

/// What becomes of a transfer that the kernel has ended.
enum Outcome {
    Done,
    Failed(Errno),
    /// The transfer, or its rest, is queued again.
    Again,
    /// The command is not supported: its range is queued with another command.
    OtherWay,
}

/// Counts one more retry, or fails with `errno` after [`MAX_RETRIES`].
fn retry(transfer: &mut Transfer, errno: Errno) -> Outcome {
    if transfer.retries >= MAX_RETRIES {
        return Outcome::Failed(errno);
    }
    transfer.retries += 1;
    Outcome::Again
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nothing;

    impl Registry for Nothing {
        fn buffer_of(&mut self, _: &Segment) -> Option<u16> {
            None
        }
    }

    fn engine(slots: usize) -> Engine {
        Engine::new(Configuration {
            slots,
            limits: Limits { alignment: 512, bytes: 8192, vectors: 4 },
            offset: 1 << 20,
            logical_block_size: 512,
            discard_command: true,
            name: "test".to_owned(),
        })
    }

    fn bio(operation: Operation, flags: BioFlags, offset: u64, len: u64) -> Bio {
        if matches!(operation, Operation::Read | Operation::Write) {
            let memory = AlignedBuffer::zeroed(usize::try_from(len).unwrap()).unwrap();
            Bio::new(operation, flags, offset, vec![Segment::Owned(memory)], Box::new(drop))
        } else {
            Bio::without_memory(operation, flags, offset, len, Box::new(drop))
        }
    }

    fn accept(engine: &mut Engine, bios: Vec<Bio>) -> Vec<Ended> {
        let mut ended = Vec::new();
        engine.accept(bios, &mut Nothing, &mut ended);
        ended
    }

    fn complete(engine: &mut Engine, slot: usize, result: Result<u64, Errno>) -> Vec<Ended> {
        let mut ended = Vec::new();
        engine.complete(slot, result, &mut Nothing, &mut ended);
        ended
    }

    #[test]
    fn a_write_after_a_flush_waits_for_it_and_fails_with_it() {
        let mut engine = engine(8);
        let write = || bio(Operation::Write, BioFlags::PREFLUSH | BioFlags::FUA, 0, 4096);
        accept(&mut engine, vec![write()]);
        let (slot, transfer) = engine.next().unwrap();
        assert_eq!(transfer.action, Action::Flush);
        assert!(engine.next().is_none());
        assert!(complete(&mut engine, slot, Ok(0)).is_empty());
        let (slot, transfer) = engine.next().unwrap();
        assert_eq!((transfer.action, transfer.offset), (Action::Write { durable: true }, 1 << 20));
        assert!(complete(&mut engine, slot, Ok(4096))[0].1.is_ok());
        accept(&mut engine, vec![write()]);
        let slot = engine.next().unwrap().0;
        let ended = complete(&mut engine, slot, Err(Errno::EIO));
        assert_eq!(ended[0].1.as_ref().unwrap_err().errno(), Errno::EIO);
        assert!(engine.is_idle());
    }

    #[test]
    fn a_short_transfer_goes_on_and_the_end_of_the_file_is_an_error() {
        let mut engine = engine(8);
        accept(&mut engine, vec![bio(Operation::Read, BioFlags::empty(), 4096, 4096)]);
        let slot = engine.next().unwrap().0;
        assert!(complete(&mut engine, slot, Ok(1000)).is_empty());
        let (slot, transfer) = engine.next().unwrap();
        assert_eq!((transfer.offset, transfer.len), ((1 << 20) + 4096 + 512, 3584));
        let ended = complete(&mut engine, slot, Ok(0));
        assert_eq!(ended[0].1.as_ref().unwrap_err().errno(), Errno::EIO);
        let mut ended = Vec::new();
        accept(&mut engine, vec![bio(Operation::Read, BioFlags::empty(), 4096, 4096)]);
        for _ in 0..100 {
            let Some((slot, _)) = engine.next() else { break };
            engine.put_off(slot, Errno::EAGAIN, &mut Nothing, &mut ended);
        }
        assert_eq!(ended[0].1.as_ref().unwrap_err().errno(), Errno::EAGAIN);
        assert!(engine.is_idle());
    }

    #[test]
    fn more_bios_than_slots_wait_and_long_ones_are_cut() {
        let mut engine = engine(2);
        let bios = (0..3).map(|number| bio(Operation::Write, BioFlags::empty(), number * 65536, 20480));
        accept(&mut engine, bios.collect());
        let mut done = 0;
        let mut transfers = 0;
        let mut slots = VecDeque::new();
        loop {
            while let Some((slot, transfer)) = engine.next() {
                slots.push_back((slot, transfer.len));
            }
            assert!(slots.len() <= 2);
            let Some((slot, len)) = slots.pop_front() else { break };
            transfers += 1;
            done += complete(&mut engine, slot, Ok(len)).len();
        }
        assert_eq!((done, transfers), (3, 9));
        assert!(engine.is_idle());
    }

    #[test]
    fn what_a_device_has_no_command_for_goes_another_way() {
        let mut engine = engine(8);
        accept(&mut engine, vec![bio(Operation::WriteZeroes, BioFlags::FUA, 0, 16384)]);
        for action in [Action::ZeroByHole, Action::ZeroRange] {
            let (slot, transfer) = engine.next().unwrap();
            assert_eq!(transfer.action, action);
            complete(&mut engine, slot, Err(Errno::EOPNOTSUPP));
        }
        let mut found = Vec::new();
        while let Some((slot, transfer)) = engine.next() {
            found.push((slot, transfer.action, transfer.len));
        }
        assert_eq!(found.len(), 2);
        for (slot, action, len) in found {
            assert_eq!((action, len), (Action::Write { durable: false }, 8192));
            assert!(complete(&mut engine, slot, Ok(len)).is_empty());
        }
        let (slot, transfer) = engine.next().unwrap();
        assert_eq!(transfer.action, Action::Flush);
        assert!(complete(&mut engine, slot, Ok(0))[0].1.is_ok());
        accept(&mut engine, vec![bio(Operation::Discard, BioFlags::empty(), 0, 16384)]);
        let slot = engine.next().unwrap().0;
        // Holes were refused before: no command is left to try, and that is no error.
        assert!(complete(&mut engine, slot, Err(Errno::ENOTTY))[0].1.is_ok());
        assert!(accept(&mut engine, vec![bio(Operation::Discard, BioFlags::empty(), 0, 512)])[0].1.is_ok());
        assert!(engine.is_idle());
    }

    #[test]
    fn the_error_of_one_neighbour_is_not_the_other_s() {
        let mut engine = engine(8);
        let neighbour = |offset| bio(Operation::Write, BioFlags::empty(), offset, 4096);
        accept(&mut engine, vec![neighbour(0), neighbour(4096), neighbour(8192)]);
        let (slot, transfer) = engine.next().unwrap();
        assert_eq!(transfer.len, 8192, "two fit into one transfer");
        assert!(complete(&mut engine, slot, Err(Errno::EIO)).is_empty());
        let mut ended = Vec::new();
        while let Some((slot, transfer)) = engine.next() {
            let bad = transfer.offset == 1 << 20;
            ended.extend(complete(&mut engine, slot, if bad { Err(Errno::EIO) } else { Ok(4096) }));
        }
        let mut results: Vec<_> = ended.iter().map(|(bio, result)| (bio.offset, result.is_ok())).collect();
        results.sort_unstable();
        assert_eq!(results, [(0, false), (4096, true), (8192, true)]);
    }
}
