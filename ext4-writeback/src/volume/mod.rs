//! TODO header.

pub(crate) mod discard;
pub(crate) mod error_policy;
pub(crate) mod fast_commit;
pub(crate) mod handle;
pub(crate) mod superblock_state;

use std::sync::Arc;

use ext4_core::meta::DirectTransaction;
use ext4_core::{Errno, Error, InodeNumber, Result, Timestamp};
use ext4_journal::Journal;

use crate::base::lock_order::HandleToken;
use crate::filesystem::{DIRECT_DIRTY_BLOCKS, FilesystemInner};
use crate::volume::error_policy::Consequence;
use crate::volume::fast_commit::reason::Reason;
use crate::volume::handle::Handle;

impl FilesystemInner {
    /// Starts a handle that may change `credits` blocks. Its transaction has to be committed in full: for operations
    /// that do not tell [`FilesystemInner::fast_commits`] all they do.
    ///
    /// # Errors
    /// `EROFS`, or the journal's.
    pub async fn begin(&self, credits: u32, operation: &'static str) -> Result<Handle> {
        self.begin_for(credits, operation, Some(Reason::Other)).await
    }

    /// As [`FilesystemInner::begin`], where the reason has a name.
    ///
    /// # Errors
    /// As [`FilesystemInner::begin`].
    pub async fn begin_ineligible(
        &self,
        credits: u32,
        operation: &'static str,
        reason: Reason,
    ) -> Result<Handle> {
        self.begin_for(credits, operation, Some(reason)).await
    }

    /// Starts a handle whose holder tells [`FilesystemInner::fast_commits`] of everything it changes that replay does
    /// not find out by itself: names, ranges, inodes that come and go. [`FilesystemInner::log_inode`] tells of inodes.
    ///
    /// # Errors
    /// As [`FilesystemInner::begin`].
    pub async fn begin_tracked(&self, credits: u32, operation: &'static str) -> Result<Handle> {
        self.begin_for(credits, operation, None).await
    }

    async fn begin_for(
        &self,
        credits: u32,
        operation: &'static str,
        untracked: Option<Reason>,
    ) -> Result<Handle> {
        self.check_writable()?;
        let Some(journal) = &self.journal else {
            if self.info.cache.dirty_blocks() >= DIRECT_DIRTY_BLOCKS {
                self.write_dirty_blocks().await?;
            }
            return Ok(Handle::Direct {
                _no_writeback: Arc::clone(&self.direct).read_owned().await,
                transaction: DirectTransaction::new(Arc::clone(&self.info.cache)),
                _token: HandleToken::new(),
            });
        };
        let handle = journal.start(credits, operation).await?;
        let untracked = untracked
            .filter(|_| self.fast_commits.is_enabled())
            .map(|reason| (Arc::clone(&self.fast_commits), reason));
        let handle = Handle::Journal { handle, untracked, _token: HandleToken::new() };
        handle.mark_untracked();
        Ok(handle)
    }

    /// Without a journal: writes the metadata that changed, with every handle kept out (see [`crate::volume::handle`]).
    pub async fn write_dirty_blocks(&self) -> Result<()> {
        let _no_handles = self.direct.write().await;
        self.info.cache.write_dirty().await
    }

    /// Fails with `EROFS` where nothing may be written: mounted read-only, or so since an error.
    pub fn check_writable(&self) -> Result<()> {
        self.errors.check_alive()?;
        if self.options.read_only {
            return Err(Error::posix(Errno::EROFS, "mounted read-only"));
        }
        match self.journal.as_ref().and_then(|journal| journal.aborted()) {
            // The error that stopped it was reported when it struck; what it means from now on is EROFS.
            Some(Error::Aborted(cause)) => Err(Error::Aborted(cause)),
            Some(cause) => Err(Error::Aborted(cause.to_string())),
            None => self.errors.check(),
        }
    }

    /// The time to stamp into inodes.
    pub fn now(&self) -> Timestamp {
        self.keepable(self.info.environment.now())
    }

    /// `time` as inodes of this size can keep it: those of 128 bytes have whole seconds from 1901 to 2038. Were more
    /// of it shown, it would change when the inode leaves memory.
    pub fn keepable(&self, time: Timestamp) -> Timestamp {
        if self.inode_layout.inode_size > 128 {
            return time;
        }
        let seconds = time.seconds.clamp(i64::from(i32::MIN), i64::from(i32::MAX));
        Timestamp { seconds, nanoseconds: 0 }
    }

    /// After `ENOSPC`: commits, so that what was freed lately can be used. False where there is nothing to gain.
    pub async fn commit_for_space(&self) -> Result<bool> {
        let Some(journal) = &self.journal else { return Ok(false) };
        if self.info.blocks_awaiting_commit() == 0 {
            return Ok(false);
        }
        self.commit_and_release(journal).await?;
        Ok(true)
    }

    /// Commits, and waits until what was freed is discarded, where it is to be, and can be allocated. It never needs a
    /// folio.
    pub async fn commit_and_release(&self, journal: &Arc<Journal>) -> Result<()> {
        journal.force_commit().await?;
        if let Some(discards) = &self.discards {
            discards.drain().await;
        }
        Ok(())
    }

    /// Keeps what `error` says of the file system for the superblock, and does what `errors=` asks for. To be called
    /// without a handle or a lock of an inode.
    pub async fn report(&self, error: &Error, inode: InodeNumber, operation: &'static str) {
        let consequence = self.errors.note(error, inode, operation, self.info.environment.now());
        if self.options.read_only {
            return;
        }
        let recorded = match consequence {
            Consequence::Nothing => return,
            Consequence::Record if self.check_writable().is_ok() => self.record_findings().await,
            Consequence::Record => self.record_on_device().await,
            Consequence::Stop => self.stop_writing(error).await,
        };
        if let Err(error) = recorded {
            tracing::warn!(%error, "an error could not be recorded in the superblock");
        }
    }
}
