//! Journal handles (handle_t), and their stand-in for a file system without a journal.
//!
//! Without a journal the dirty blocks are written from time to time, while no handle is open
//! ([`crate::volume::Volume::write_dirty_blocks`]): if a block were freed and used for data while its old
//! content is in flight, the old content could overwrite the data.

use std::sync::Arc;

use async_trait::async_trait;
use ext4_core::meta::transaction::OnCommit;
use ext4_core::meta::{Buffer, DirectTransaction, Transaction};
use ext4_core::{BlockNumber, Result, TransactionId};
use tokio::sync::OwnedRwLockReadGuard;

use crate::base::lock_order::Token;
use crate::volume::fast_commit::reason::Reason;
use crate::volume::fast_commit::track::Tracker;

/// The part of one operation in a transaction, with a journal or without.
#[derive(Debug)]
pub(crate) enum Handle {
    /// With a journal.
    Journal {
        /// The handle of the journal.
        handle: ext4_journal::Handle,
        /// The tracker, if changes under this handle are not reported to it, and why: the transactions that
        /// the handle joins cannot be fast commits.
        untracked: Option<(Arc<Tracker>, Reason)>,
        /// For the check of the lock order.
        _token: Token,
    },
    /// Without a journal.
    Direct {
        /// Changes go to the dirty list of the buffer cache.
        transaction: DirectTransaction,
        /// Keeps the dirty blocks from being written while the handle is open.
        _no_writeback: OwnedRwLockReadGuard<()>,
        /// For the check of the lock order.
        _token: Token,
    },
}

impl Handle {
    /// Tells the tracker that the transaction of this handle has changes that are not tracked.
    pub(crate) fn mark_untracked(&self) {
        if let Self::Journal { handle, untracked: Some((tracker, reason)), .. } = self {
            tracker.mark_ineligible(handle.id(), *reason);
        }
    }

    fn transaction(&self) -> &dyn Transaction {
        match self {
            Self::Journal { handle, .. } => handle,
            Self::Direct { transaction, .. } => transaction,
        }
    }
}

#[async_trait]
impl Transaction for Handle {
    fn id(&self) -> TransactionId {
        self.transaction().id()
    }
    fn get_write_access(&self, buffer: &Buffer) -> Result<()> {
        self.transaction().get_write_access(buffer)
    }
    fn get_create_access(&self, buffer: &Buffer) -> Result<()> {
        self.transaction().get_create_access(buffer)
    }
    fn dirty_metadata(&self, buffer: &Buffer) -> Result<()> {
        self.transaction().dirty_metadata(buffer)
    }
    fn forget(&self, block: BlockNumber, buffer: Option<&Buffer>) -> Result<()> {
        self.transaction().forget(block, buffer)
    }
    fn credits(&self) -> u32 {
        self.transaction().credits()
    }
    fn extend(&self, credits: u32) -> Result<bool> {
        self.transaction().extend(credits)
    }
    fn on_commit(&self, callback: OnCommit) {
        self.transaction().on_commit(callback);
    }
}
