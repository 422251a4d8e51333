//! An RwLock (i_rwsem, s_umount) that an operation keeps even if its caller stops waiting for it.
//!
//! A caller locks, and has a part of its work run to its end ([`crate::base::runtime::run_to_end`]). If the
//! caller's future is dropped half way, its guard goes while the part still runs: another writer would find a
//! hole that is just being filled, and a truncation would remove blocks that the part adds again behind it.
//! So the part holds the lock as well, by a count beside it.
//!
//! Invariants:
//! - A part is counted (by `under_locks` of the floor of inodes) while its caller holds the lock, so no other
//!   task gets the lock between the two.
//! - A task that gets the lock waits until no part is left. A part never asks for the lock that it is counted
//!   in. Nor does a task that the part waits for, while it holds another lock: these locks come first in the
//!   lock order.

use ext4_core::wait;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{Notify, RwLock};

use crate::base::lock_order::{Guard, Level, Rank, ReadGuard, WriteGuard};

/// Another task holds the lock, or a part of its work does.
#[derive(Debug)]
pub(crate) struct Busy;

/// An RwLock that parts of operations hold as well. See the module.
#[derive(Debug)]
pub(crate) struct OperationLock<T> {
    lock: RwLock<T>,
    rank: Rank,
    /// Parts whose callers hold, or held, the lock for writing.
    pub(crate) writing: AtomicUsize,
    /// Parts whose callers hold, or held, the lock for reading.
    pub(crate) reading: AtomicUsize,
    /// A part has ended.
    pub(crate) ended: Notify,
}

impl<T> OperationLock<T> {
    /// An unlocked lock of `level`.
    pub fn new(level: Level, value: T) -> Self {
        Self {
            lock: RwLock::new(value),
            rank: Rank::new(level),
            writing: AtomicUsize::new(0),
            reading: AtomicUsize::new(0),
            ended: Notify::new(),
        }
    }

    /// Returns true if a part of a writer is left; with `also_readers` also if one of a reader is.
    fn is_left(&self, also_readers: bool) -> bool {
        self.writing.load(Ordering::Acquire) > 0 || also_readers && self.reading.load(Ordering::Acquire) > 0
    }

    async fn wait_for_parts(&self, also_readers: bool) {
        if self.is_left(also_readers) {
            wait::until(&self.ended, || (!self.is_left(also_readers)).then_some(())).await;
        }
    }

    /// Locks for reading.
    pub async fn read(&self) -> ReadGuard<'_, T> {
        self.rank.check();
        let guard = Guard::new(self.lock.read().await, self.rank);
        self.wait_for_parts(false).await;
        guard
    }

    /// Locks for writing.
    pub async fn write(&self) -> WriteGuard<'_, T> {
        self.rank.check();
        let guard = Guard::new(self.lock.write().await, self.rank);
        self.wait_for_parts(true).await;
        guard
    }

    /// Locks for reading if no task has to be waited for.
    ///
    /// # Errors
    /// [`Busy`] if one would have to be waited for.
    pub fn try_read(&self) -> Result<ReadGuard<'_, T>, Busy> {
        let guard = self.lock.try_read().map_err(|_| Busy)?;
        if self.is_left(false) { Err(Busy) } else { Ok(Guard::new(guard, self.rank)) }
    }

    /// Locks for writing if no task has to be waited for.
    ///
    /// # Errors
    /// [`Busy`] if one would have to be waited for.
    pub fn try_write(&self) -> Result<WriteGuard<'_, T>, Busy> {
        let guard = self.lock.try_write().map_err(|_| Busy)?;
        if self.is_left(true) { Err(Busy) } else { Ok(Guard::new(guard, self.rank)) }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use ext4_core::BlockSize;

    use crate::base::options::MountOptions;
    use crate::testing::{PAGE, assert_clean, mounted_with, poll_once};

    /// Lets spawned tasks run as far as they can.
    async fn settle() {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    }

    /// A writer that stops waiting while blocks are allocated for it leaves a hole that is just being filled.
    /// If its lock were free, the next writer would fill the hole too: "blocks are mapped already".
    #[tokio::test]
    async fn a_writer_that_stops_waiting_leaves_its_lock_to_the_part_that_runs_on() {
        let options = MountOptions { delayed_allocation: false, ..MountOptions::default() };
        let (device, volume, file) = mounted_with(BlockSize::KIB_4, options).await;
        file.write_at(0, &[1; 100]).await.expect("writes");
        file.sync_all().await.expect("syncs");
        for round in 1..4 {
            let inode = std::sync::Arc::clone(&file.inode);
            let held = inode.on_disk.read().await;
            {
                let mut write = pin!(file.write_at(round * PAGE, &[2; 4096]));
                assert!(poll_once(write.as_mut()).is_pending());
            }
            settle().await;
            assert!(inode.rwlock.try_write().is_err() && inode.rwlock.try_read().is_err());
            let mut next = pin!(file.write_at(round * PAGE, &[3; 4096]));
            assert!(poll_once(next.as_mut()).is_pending());
            drop(held);
            assert_eq!(next.await.expect("writes"), 4096);
            assert!(inode.rwlock.try_write().is_ok());
        }
        let mut bytes = vec![0; 3 * PAGE as usize];
        assert_eq!(file.read_at(PAGE, &mut bytes).await.expect("reads"), bytes.len());
        assert!(bytes.iter().all(|byte| *byte == 3));

        // Unmount waits for the part, too.
        let inode = std::sync::Arc::clone(&file.inode);
        let held = inode.on_disk.read().await;
        {
            let mut write = pin!(file.write_at(9 * PAGE, &[4; 4096]));
            assert!(poll_once(write.as_mut()).is_pending());
        }
        drop(file);
        {
            let mut unmount = pin!(volume.unmount());
            for _ in 0..10 {
                settle().await;
                assert!(poll_once(unmount.as_mut()).is_pending());
            }
            drop(held);
            unmount.await.expect("unmounts");
        }
        assert_clean(&device);
    }
}
