//! The handle (jbd2's `handle_t`) as metadata code sees it: what it may ask of a transaction.
//! `ext4-journal`'s handle implements it; [`DirectTransaction`] does for a file system without a journal and
//! for `mkfs`.

use std::sync::Arc;

use async_trait::async_trait;

use super::{Buffer, BufferCache};
use crate::error::Result;
use crate::types::{BlockNumber, TransactionId};

/// Runs once its transaction has committed, in the task that commits; it must not block or start a handle.
pub type OnCommit = Box<dyn FnOnce() + Send>;

/// One operation's part in a transaction: jbd2's handle.
///
/// All changes made through one value become durable together or not at all. Dropping the value ends the
/// operation's part.
#[async_trait]
pub trait Transaction: Send + Sync {
    /// The transaction this operation is part of now.
    fn id(&self) -> TransactionId;

    /// Announces a change of `buffer`. Called by [`Buffer::modify`] before the change.
    ///
    /// # Errors
    /// [`crate::Error::Aborted`] if the journal has stopped.
    fn get_write_access(&self, buffer: &Buffer) -> Result<()>;

    /// Announces the first use of a block that was allocated in this transaction and was not read: cancels a
    /// revoke of it. The content of `buffer` is new.
    ///
    /// # Errors
    /// As [`Transaction::get_write_access`].
    fn get_create_access(&self, buffer: &Buffer) -> Result<()>;

    /// Makes the current content of `buffer` part of the transaction. Called by [`Buffer::modify`] after the
    /// change.
    ///
    /// # Errors
    /// As [`Transaction::get_write_access`].
    fn dirty_metadata(&self, buffer: &Buffer) -> Result<()>;

    /// Says that metadata block `block` was freed: its content no longer matters, and no copy of it in the
    /// log may be replayed over what the block is used for next. `buffer` is its buffer, if one is cached.
    ///
    /// # Errors
    /// As [`Transaction::get_write_access`].
    fn forget(&self, block: BlockNumber, buffer: Option<&Buffer>) -> Result<()>;

    /// How many more blocks this operation may change.
    fn credits(&self) -> u32;

    /// Asks for `credits` more in the same transaction; `false` if the transaction has no room: make the
    /// state consistent, end this operation's part and go on in another one.
    ///
    /// # Errors
    /// As [`Transaction::get_write_access`].
    fn extend(&self, credits: u32) -> Result<bool>;

    /// Calls `callback` when what this operation has done so far is durable.
    fn on_commit(&self, callback: OnCommit);
}

/// Changes go to the buffer cache and to the device when it is written back: a file system without a journal.
#[derive(Debug)]
pub struct DirectTransaction {
    cache: Arc<BufferCache>,
}

impl DirectTransaction {
    /// A transaction over `cache`.
    #[must_use]
    pub fn new(cache: Arc<BufferCache>) -> Self {
        Self { cache }
    }
}

#[async_trait]
impl Transaction for DirectTransaction {
    fn id(&self) -> TransactionId {
        TransactionId(0)
    }

    fn get_write_access(&self, _buffer: &Buffer) -> Result<()> {
        Ok(())
    }

    fn get_create_access(&self, _buffer: &Buffer) -> Result<()> {
        Ok(())
    }

    fn dirty_metadata(&self, buffer: &Buffer) -> Result<()> {
        self.cache.mark_dirty(buffer);
        Ok(())
    }

    fn forget(&self, block: BlockNumber, _buffer: Option<&Buffer>) -> Result<()> {
        self.cache.clear_dirty(block);
        Ok(())
    }

    fn credits(&self) -> u32 {
        u32::MAX
    }

    fn extend(&self, _credits: u32) -> Result<bool> {
        Ok(true)
    }

    fn on_commit(&self, callback: OnCommit) {
        callback();
    }
}
