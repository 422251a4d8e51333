//! A handle of the mounted file system: the journal's, or none behind it.
//!
//! Without a journal the dirty blocks are written from time to time, with every handle kept out
//! ([`crate::filesystem`]): were a block freed and used for data while its old content is on its way to the device,
//! the old content could land on top of the data.

use std::sync::Arc;

use async_trait::async_trait;
use ext4_core::meta::transaction::OnCommit;
use ext4_core::meta::{Buffer, DirectTransaction, Transaction};
use ext4_core::{BlockNumber, Result, TransactionId};
use tokio::sync::OwnedRwLockReadGuard;

use crate::base::lock_order::Token;
use crate::volume::fast_commit::reason::Reason;
use crate::volume::fast_commit::track::Tracker;

/// One operation's part in a transaction, whichever kind of file system it is.
#[derive(Debug)]
pub(crate) enum Handle {
    /// With a journal.
    Journal {
        /// The journal's own.
        handle: ext4_journal::Handle,
        /// What it does is not told to this tracker: why the transactions it joins cannot be fast commits.
        untracked: Option<(Arc<Tracker>, Reason)>,
        /// For the check of the lock order.
        _token: Token,
    },
    /// Without.
    Direct {
        /// Changes go to the dirty list of the buffer cache.
        transaction: DirectTransaction,
        /// Keeps the dirty blocks from being written meanwhile.
        _no_writeback: OwnedRwLockReadGuard<()>,
        /// For the check of the lock order.
        _token: Token,
    },
}

impl Handle {
    /// Tells the tracker that the transaction this handle belongs to has something that is not tracked.
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
    async fn restart(&self, credits: u32) -> Result<()> {
        self.transaction().restart(credits).await?;
        self.mark_untracked();
        Ok(())
    }
    fn on_commit(&self, callback: OnCommit) {
        self.transaction().on_commit(callback);
    }
}
