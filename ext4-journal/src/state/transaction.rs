//! A transaction and its phases, from running to committed.
//!
//! ```text
//!   Running ──► Locked ──► Flushing ──► Committing ──► Committed
//!    ▲  │ ▲       │           │             │              │
//!    │  │ handles no new   images go     the commit     its blocks are written to their places;
//!    │  │ join    handles  to the log    block goes     when none is left, its part of the log is free
//!    │  ▼         │
//!   Paused        └──► (gone) if it turned out empty
//!    a fast commit waits for the open handles and looks at what they did
//! ```
//!
//! Invariant: a transaction is frozen (its images cloned) only when it is locked and no handle is open. Were
//! a handle open, half of an operation could be committed, and a crash would show it.
//!
//! Invariant: a block number is in `buffers` or in `revokes` of one transaction, never in both. Recovery lets
//! a revoke win over an image of the same transaction, so a block that is freed and used again as metadata
//! must lose its revoke, and a block that is freed must lose its image.

use std::sync::Arc;
use std::time::Duration;

use ext4_core::meta::Buffer;
use ext4_core::meta::transaction::OnCommit;
use ext4_core::{BlockNumber, TransactionId};
use rustc_hash::FxHashMap;
use tokio::sync::Notify;

use crate::format::Layout;
use crate::log::Revokes;

/// The phase of a transaction.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Phase {
    /// Handles join and change blocks.
    Running,
    /// Open handles finish, new ones wait until it runs again: a fast commit takes its snapshot.
    Paused,
    /// Open handles finish; new ones wait for the next transaction.
    Locked,
    /// Frozen: its images are being written to the log.
    Flushing,
    /// Its commit block is being written, behind a flush of everything before.
    Committing,
    /// Durable; its blocks wait to be written to their places.
    Committed,
}

/// A transaction: running, or being committed.
pub(crate) struct Transaction {
    pub(crate) id: TransactionId,
    phase: Phase,
    /// The number of open handles.
    pub(crate) handles: u32,
    /// Blocks that open handles may still add.
    pub(crate) reserved: u32,
    /// Every block it changes, held so that the cache keeps it.
    pub(crate) buffers: FxHashMap<BlockNumber, Buffer>,
    pub(crate) revokes: Revokes,
    pub(crate) callbacks: Vec<OnCommit>,
    /// True if a commit was asked for: by a caller, or because the transaction is large or old.
    pub(crate) commit_requested: bool,
    /// Notified when the transaction is dropped or the journal aborted. One for each transaction: waiters for
    /// the end of the next one sleep on.
    pub(crate) done: Arc<Notify>,
    /// The time of the first request for its commit, on the runtime's clock; `None` if it only was old.
    pub(crate) requested: Option<Duration>,
    /// The longest wait of a handle to join.
    pub(crate) longest_wait: Duration,
    /// The time at which each phase began, on the runtime's clock.
    entered: [Duration; 6],
}

impl std::fmt::Debug for Transaction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transaction")
            .field("id", &self.id)
            .field("phase", &self.phase)
            .field("handles", &self.handles)
            .field("reserved", &self.reserved)
            .field("buffers", &self.buffers.len())
            .finish_non_exhaustive()
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        self.done.notify_waiters();
    }
}

impl Transaction {
    /// An empty running transaction.
    pub(crate) fn new(id: TransactionId, now: Duration) -> Self {
        Self {
            id,
            phase: Phase::Running,
            handles: 0,
            reserved: 0,
            buffers: FxHashMap::default(),
            revokes: Revokes::default(),
            callbacks: Vec::new(),
            commit_requested: false,
            done: Arc::default(),
            requested: None,
            longest_wait: Duration::ZERO,
            entered: [now; 6],
        }
    }

    /// The time on the runtime's clock at which `phase` began, one that the transaction has been in.
    pub(crate) fn entered(&self, phase: Phase) -> Duration {
        self.entered[phase as usize]
    }

    /// Asks for its commit, because it has to be durable or is full. Returns true for the first request.
    pub(crate) fn request_commit(&mut self, now: impl FnOnce() -> Duration) -> bool {
        if self.requested.is_none() {
            self.requested = Some(now());
        }
        !std::mem::replace(&mut self.commit_requested, true)
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase
    }

    /// Returns true if new handles are kept out, and a commit of either kind waits for the last open one.
    pub(crate) fn is_draining(&self) -> bool {
        matches!(self.phase, Phase::Paused | Phase::Locked)
    }

    /// Takes the transaction to its next phase; nothing else does. `now`: the time on the runtime's clock.
    pub(crate) fn advance(&mut self, to: Phase, now: Duration) {
        let allowed = matches!(
            (self.phase, to),
            (Phase::Running, Phase::Locked | Phase::Paused)
                | (Phase::Paused, Phase::Running)
                | (Phase::Locked, Phase::Flushing)
                | (Phase::Flushing, Phase::Committing)
                | (Phase::Committing, Phase::Committed)
        );
        assert!(allowed, "transaction {} cannot go from {:?} to {to:?}", self.id, self.phase);
        assert!(
            to < Phase::Flushing || self.handles == 0,
            "transaction {} is frozen with {} handles open",
            self.id,
            self.handles
        );
        // A pause does not count as a beginning.
        if self.phase != Phase::Paused {
            self.entered[to as usize] = now;
        }
        self.phase = to;
    }

    /// Returns true if nothing would be written for it.
    pub(crate) fn is_empty(&self) -> bool {
        self.buffers.is_empty() && self.revokes.is_empty()
    }

    /// The number of blocks that it changes or that its handles may still change.
    pub(crate) fn size(&self) -> u32 {
        u32::try_from(self.buffers.len()).unwrap_or(u32::MAX).saturating_add(self.reserved)
    }

    /// Returns true if it has no handles and no changes.
    pub(crate) fn is_idle(&self) -> bool {
        self.handles == 0 && self.is_empty()
    }

    /// The number of log blocks that the transaction can come to need if its handles ask for `more` blocks:
    /// images, descriptors, revoke blocks and the commit block. Revokes take no credits: one block of them
    /// more than there are is counted. A handle that revokes more than fit there is not stopped; the commit
    /// then waits until the checkpoint task has made room, which it can: everything else in the log is
    /// committed. See `running/handle.rs`.
    pub(crate) fn log_blocks(&self, layout: &Layout, more: u32) -> u32 {
        let revokes = self.revokes.len().saturating_add(layout.revokes_per_block());
        log_blocks(layout, self.size().saturating_add(more), revokes)
    }
}

/// The number of log blocks for `images` images and `revokes` revoked blocks, with descriptors, revoke blocks
/// and the commit block.
pub(crate) fn log_blocks(layout: &Layout, images: u32, revokes: usize) -> u32 {
    let tags = u32::try_from(layout.tags_per_descriptor()).unwrap_or(1);
    let revoke_blocks = u32::try_from(revokes.div_ceil(layout.revokes_per_block())).unwrap_or(u32::MAX);
    images.saturating_add(images.div_ceil(tags)).saturating_add(revoke_blocks).saturating_add(1)
}
