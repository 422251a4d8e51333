//! Fast commit: tags in the log's area say what the running transaction has done so far, instead of the
//! images of all its blocks.
//!
//! ```text
//!   fsync ─► Running ─► Paused ─────────► Running ─► area: [HEAD tags··· TAIL][tags··· TAIL] ─► returns
//!             new handles wait,   the snapshot is       one write behind a preflush, with FUA
//!             open ones finish    taken: memory only
//! ```
//!
//! What the tags mean is known to the file system alone ([`FastCommitSource`]); this file decides when and to
//! which blocks they are written. Recovery replays them on top of the last transaction that was committed in
//! full.
//!
//! Invariants, each with the crash it prevents:
//! - A fast commit belongs to the running transaction, and every transaction before it has been committed in
//!   full. Were one before it only half written, recovery would end there and apply the tags to a state they
//!   do not fit.
//! - The tags are taken when no handle is open. Were one open, half of its operation could be replayed.
//! - The superblock on the medium says that the log is not empty while there are fast commits to replay:
//!   recovery does not look at the area of an empty log. (jbd2 asks for one full commit after the mount; here
//!   a checkpoint could also empty the log later, and is kept from it.)
//! - If one of the transaction's fast commits was not written, for any reason, no other follows: its tags
//!   would miss the lost ones. The next fsync commits in full, which needs no tags.
//! - The first fast commit of a transaction is there as a whole or not at all, whatever a crash tears: its
//!   first sector, which names the transaction, is written when the rest has completed. The kernel refuses to
//!   mount if it finds that name and no whole fast commit. A torn block of a later fast commit is passed
//!   over, so those are one write.
//! - The area's last block stays unused: a kernel that has read the area to its end goes on behind the log,
//!   and refuses to mount.
//! - When their transaction has been committed in full, the fast commits are made void on the medium, by
//!   zeros over the name of the transaction; so are those that an earlier life of the log left, before the
//!   log is not empty any more. The kernel passes old ones over, but e2fsck (1.47) gives the whole log up if
//!   it finds some: it would lose what was committed in full. Only a crash just before the zeros are on the
//!   medium still leads to that.
//! - One at a time, never beside a full commit of the same transaction, and the area is written over only
//!   when the full commit that makes it void is durable: all of that happens between `busy` and its end.
//! - The file system's data that the tags point to had completed before the call: the preflush (with an
//!   external log a flush of the file system's device before the write) makes it durable no later than the
//!   tags.
//!
//! Batching: a caller is served by the next fast commit whose snapshot is still to be taken. So all callers
//! that come while one is being written share the one after it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ext4_core::device::{AlignedBuffer, BioFlags, Segment};
use ext4_core::{Error, Result, TransactionId, wait};

use crate::format::{FastCommitEncoder, FastCommitTag, FastCommitTags, MIN_BLOCKS};
use crate::journal::Journal;
use crate::log::Space;
use crate::state::{Counters, FastCommitSource, Ineligible, Mode, Phase, Refusal, State};

/// What a caller of a fast commit does next.
enum Step {
    /// Returns: a snapshot that will do is durable. `flushed`: its write flushed the device.
    Served { flushed: bool },
    /// Writes the next fast commit itself, for all callers that ask meanwhile.
    Lead,
    /// Commits in full.
    Full(Refusal),
}

impl Journal {
    /// Asks for a fast-commit area, which the journal makes when it begins to run. Called before that.
    pub fn allow_fast_commits(&self) {
        self.state.lock().fast.wanted = true;
    }

    /// Returns true if the running journal has a fast-commit area.
    #[must_use]
    pub fn has_fast_commits(&self) -> bool {
        self.state.lock().fast.are_allowed()
    }

    /// Divides the log, which is empty, into the ring and the area. Source: jbd2,
    /// `jbd2_journal_initialize_fast_commit`.
    pub(crate) fn set_area(&self, state: &mut State) {
        let (end, blocks) = (state.superblock.max_len(), state.superblock.fast_commit_area());
        let last = end.checked_sub(blocks).filter(|last| *last >= MIN_BLOCKS && blocks > 2);
        if state.fast.wanted && last.is_none() {
            tracing::warn!("the log of {end} blocks has no room for {blocks} of fast commits");
        }
        state.fast.area = last.filter(|_| state.fast.wanted).map(|last| (last + 1, end - 1));
        self.log.set_last(if state.fast.area.is_some() { last.unwrap_or(end) } else { end });
        state.space = Space::empty(&self.log);
    }

    /// Writes zeros over HEAD of the fast commits that are void. If that fails they stay as they are: only
    /// e2fsck minds.
    pub(crate) async fn void_fast_commits(&self) {
        let area = self.state.lock().fast.area;
        if let Some((start, _)) = area {
            let flags = self.barrier_flags() - BioFlags::PREFLUSH;
            if let Err(error) = self.log.zero_first_sector(start, flags).await {
                tracing::warn!(%error, "old fast commits could not be made void");
            }
        }
        self.state.lock().fast.busy = false;
        self.wake.committed.notify_waiters();
        self.wake.commit.notify_one();
        self.wake.checkpoint.notify_one();
    }

    /// Makes fast commits void that an earlier life of the log, which is empty, left in the area.
    pub(crate) async fn void_former_fast_commits(&self) -> Result<()> {
        let area = self.state.lock().fast.area;
        let Some((start, _)) = area else { return Ok(()) };
        let block = self.log.read_block(start).await?;
        if block.iter().all(|byte| *byte == 0) {
            return Ok(());
        }
        self.log.zero_first_sector(start, self.barrier_flags() - BioFlags::PREFLUSH).await
    }

    /// Makes what transaction `id` has done so far durable: by a fast commit of the tags of `source`, shared
    /// with other callers that ask at the same time, or, if that cannot be, by [`Journal::commit`]. Returns
    /// true if that flushed the file system's device after the call began.
    ///
    /// # Errors
    /// [`Error::Aborted`]: the journal has stopped.
    pub async fn fast_commit(
        self: &Arc<Self>,
        id: TransactionId,
        source: &dyn FastCommitSource,
    ) -> Result<bool> {
        let mut number = None;
        loop {
            let step = wait::try_until(&self.wake.committed, || self.next_step(id, source, &mut number));
            match step.await? {
                Step::Served { flushed } => {
                    self.counters.fast_commits.served.fetch_add(1, Ordering::Relaxed);
                    return Ok(flushed);
                }
                Step::Lead => Leader { journal: self, id, number: None }.run(source).await?,
                Step::Full(refusal) => {
                    self.counters.fast_commits.count(refusal);
                    return self.commit(id).await;
                }
            }
        }
    }

    /// The next step of a caller that needs a snapshot of transaction `id` that is still to be taken; `None`:
    /// it waits. `number`: that of the first snapshot that will do.
    fn next_step(
        &self,
        id: TransactionId,
        source: &dyn FastCommitSource,
        number: &mut Option<u64>,
    ) -> Result<Option<Step>> {
        let mut state = self.state.lock();
        state.check()?;
        let wanted = *number.get_or_insert(state.fast.begun + 1);
        if state.fast.finished >= wanted {
            return Ok(Some(Step::Served { flushed: state.fast.flushed >= wanted }));
        }
        let State { running, committing, fast, space, checkpoints, mode, .. } = &mut *state;
        let Some(running) = running.as_mut().filter(|running| running.id == id) else {
            return Ok(Some(Step::Full(Refusal::Overtaken)));
        };
        if let Some((_, refusal)) = fast.refused.filter(|(refused, _)| *refused == id) {
            return Ok(Some(Step::Full(refusal)));
        }
        if *mode != Mode::Running
            || (running.commit_requested && !fast.busy)
            || running.phase() == Phase::Locked
        {
            return Ok(Some(Step::Full(Refusal::Overtaken)));
        }
        if fast.busy || committing.is_some() {
            return Ok(None);
        }
        let refusal = if !fast.are_allowed() || !source.is_eligible(id) {
            Refusal::Ineligible
        } else if space.empty_on_medium || checkpoints.is_emptying() {
            Refusal::LogEmpty
        } else {
            running.advance(Phase::Paused, self.runtime.monotonic());
            fast.busy = true;
            return Ok(Some(Step::Lead));
        };
        fast.refused = Some((id, refusal));
        Ok(Some(Step::Full(refusal)))
    }
}

/// The caller that writes a fast commit. If it is dropped before the end, the transaction gets no other.
struct Leader<'a> {
    journal: &'a Arc<Journal>,
    id: TransactionId,
    /// The number of its snapshot, once that has been taken.
    number: Option<u64>,
}

impl Leader<'_> {
    /// Takes the snapshot of the transaction, which is paused, and writes it. A refusal is no error: the
    /// caller sees it at its next step.
    async fn run(mut self, source: &dyn FastCommitSource) -> Result<()> {
        let journal = self.journal;
        journal.drain().await?;
        let tags = source.take(self.id);
        {
            let mut state = journal.state.lock();
            state.fast.begun += 1;
            self.number = Some(state.fast.begun);
        }
        self.resume();
        let written = match tags {
            Err(Ineligible) => Err(Refusal::Ineligible),
            Ok(tags) if tags.is_empty() => Ok(false),
            Ok(tags) => match self.write(&tags).await {
                Ok(()) => Ok(true),
                Err(WriteError::AreaFull) => Err(Refusal::AreaFull),
                Err(WriteError::Other(error)) => {
                    tracing::warn!(%error, "a fast commit of transaction {} was not written", self.id);
                    Err(Refusal::Failed)
                }
            },
        };
        let mut state = journal.state.lock();
        state.check()?;
        let number = state.fast.begun;
        match written {
            Ok(flushed) => {
                state.fast.finished = number;
                if flushed && journal.options.barrier {
                    state.fast.flushed = number;
                }
            }
            Err(refusal) => state.fast.refused = Some((self.id, refusal)),
        }
        Ok(())
    }

    /// Lets handles start again.
    fn resume(&self) {
        let mut state = self.journal.state.lock();
        if let Some(running) = state.running.as_mut().filter(|running| running.phase() == Phase::Paused) {
            running.advance(Phase::Running, self.journal.runtime.monotonic());
        }
        drop(state);
        self.journal.wake.room.notify_waiters();
    }

    /// Writes the tags behind those of the transaction's earlier fast commits.
    async fn write(&self, tags: &[FastCommitTag]) -> std::result::Result<(), WriteError> {
        let journal = self.journal;
        let (start, used, end) = {
            let mut state = journal.state.lock();
            state.check()?;
            let fast = &mut state.fast;
            if fast.transaction != Some(self.id) {
                fast.transaction = Some(self.id);
                fast.used = 0;
            }
            let (start, end) = fast.area.unwrap_or_default();
            (start, fast.used, end)
        };
        let mut encoder = FastCommitEncoder::new(journal.log.block_size, self.id, used);
        for tag in tags {
            encoder.push(tag)?;
        }
        let blocks = encoder.finish();
        let count = u32::try_from(blocks.len()).unwrap_or(u32::MAX);
        if count > end - start - used {
            return Err(WriteError::AreaFull);
        }
        let home = journal.home();
        if journal.options.barrier {
            Counters::add(&journal.counters.flushes, 1);
            if home.external {
                Counters::add(&journal.counters.flushes, 1);
                home.cache.device().flush().await?;
            }
        }
        let flags = journal.barrier_flags();
        let geometry = journal.log.device.geometry();
        let may_tear = used == 0 && !is_one_sector(&blocks, geometry.logical_block_size);
        // Two writes with a flush behind each are sooner done than a flush, a write and a flush.
        if may_tear || (journal.options.barrier && geometry.fua_flushes()) {
            journal.log.write_first_sector_last(start + used, &blocks, flags).await?;
        } else {
            let aligned = |block: &Vec<u8>| AlignedBuffer::copied(block).map(Segment::Owned);
            let blocks = blocks.iter().map(aligned).collect::<Result<_>>()?;
            journal.log.write_area(start + used, blocks, flags).await?;
        }
        let counters = &journal.counters.fast_commits;
        counters.commits.fetch_add(1, Ordering::Relaxed);
        counters.blocks.fetch_add(u64::from(count), Ordering::Relaxed);
        journal.state.lock().fast.used += count;
        Ok(())
    }
}

/// Returns true if everything that the checksum covers, and the checksum, lie in the first sector: whatever a
/// crash tears, the fast commit is then there as a whole or not at all.
fn is_one_sector(blocks: &[Vec<u8>], sector: u32) -> bool {
    let [block] = blocks else { return false };
    let end =
        FastCommitTags::new(block).last().map(|tag| tag.map(|(covered, _)| covered.end + size_of::<u32>()));
    matches!(end, Some(Ok(end)) if end <= sector as usize)
}

enum WriteError {
    AreaFull,
    Other(Error),
}

impl From<Error> for WriteError {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

impl Drop for Leader<'_> {
    fn drop(&mut self) {
        let journal = self.journal;
        self.resume();
        let (empty, requested) = {
            let mut state = journal.state.lock();
            let number = self.number;
            let fast = &mut state.fast;
            let settled = number.is_some_and(|number| fast.finished >= number)
                || fast.refused.is_some_and(|(refused, _)| refused == self.id);
            if !settled {
                fast.refused = Some((self.id, Refusal::Failed));
            }
            fast.busy = false;
            let requested = state.running.as_ref().is_some_and(|running| running.commit_requested);
            (state.checkpoints.is_to_be_emptied(), requested)
        };
        journal.wake.committed.notify_waiters();
        if requested {
            // A full commit has waited for this one to end.
            journal.wake.commit.notify_one();
        }
        if empty {
            journal.wake.checkpoint.notify_one();
        }
    }
}
