//! The lock order of the crate: one enum, [`Level`], and its check in debug builds (as the kernel's lockdep).
//!
//! A task that asks for a lock holds only locks of levels that come before it in [`Level`]. Two tasks that
//! take the same locks in opposite orders wait for each other for ever, and with them the journal's commit,
//! which waits for all handles, and each task that waits for the commit.
//!
//! How it is checked:
//! - An *operation* is what runs inside one [`Scoped`] future or [`scoped`], on whichever thread it is
//!   polled. It counts the locks that were taken while it was polled. A guard gives its count back to the
//!   operation that took it, wherever the guard is dropped.
//! - A [`Scoped`] that is a part ([`Scoped::part`]) and is polled inside another operation also answers for
//!   the locks of that one: the outer operation waits for it. A part whose caller stopped waiting is polled
//!   by the runtime, and answers for its own locks only. A new operation ([`Scoped::new`], [`scoped`]) never
//!   answers for others: a device may itself be a file of another file system, whose operations run inside
//!   those of this one.
//! - Only waiting is checked. `try_lock` and the like cannot wait, so they may be called out of order; what
//!   they get is counted as held all the same.
//! - What is taken outside every operation (a test that takes one lock itself) is neither counted nor
//!   checked. Each entry point is an operation of its own, so two of them that one task polls together
//!   (`join!`) have nothing to do with each other.
//!
//! Release builds hold and check nothing: [`Rank`] and [`Token`] have no fields there.
//!
//! Below all levels lie the locks of ext4-core (groups, buffers, inode table) and of ext4-journal. Those
//! crates know no lock of this one, so they cannot ask for one while they hold theirs.

use std::future::Future;
use std::ops::{Deref, DerefMut};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::sync::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError};

/// The levels, outermost first: a task takes a lock only if all it holds are of levels above it in this list.
/// Where several locks of one level may be held at once, the level says so.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Level {
    /// `Volume::freeze` (s_umount, sb_start_write): held for reading by each operation that changes
    /// something. First, because unmount holds it for writing while everything else comes to rest.
    Freeze,
    /// The rename mutex (s_vfs_rename_mutex): the tree of directories stands still while a rename finds out
    /// which of two directories is the upper one, and locks both.
    Rename,
    /// `InodeInfo::rwlock` (i_rwsem). Several at once: a directory before what is in it, two directories of
    /// which neither holds the other under the rename mutex, two files by their numbers.
    Inode,
    /// `InodeInfo::invalidate_lock` (mapping->invalidate_lock): keeps page cache from being filled while
    /// blocks go. A reader fills folios under it, so it comes before the folio lock.
    Mapping,
    /// `Pass::lock` of the page cache (I_SYNC): one pass of writeback over an inode; a pass locks folios.
    /// Truncation, which holds the mapping, waits for such passes.
    Writeback,
    /// The folio lock. Several at once: in ascending order of the file, or with `try_lock`.
    Folio,
    /// A journal handle, or its stand-in without a journal. The commit waits for all handles: a task that
    /// waits for a folio under a handle waits for the holder of the folio, which may wait to start a handle,
    /// which waits for the commit. A second handle under the first waits for the commit, too.
    Handle,
    /// `InodeInfo::on_disk` (i_data_sem). One at a time, but for that of an inode that is being made and that
    /// no other task can have found ([`OrderedRwLock::write_unfound`]).
    Data,
}

impl Level {
    /// True if a task may ask for a lock of this level while it holds another one of it.
    #[cfg(debug_assertions)]
    fn may_nest(self) -> bool {
        matches!(self, Self::Inode | Self::Folio)
    }
}

#[cfg(debug_assertions)]
mod checked {
    use std::cell::RefCell;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::Level;

    const LEVELS: [Level; 8] = [
        Level::Freeze,
        Level::Rename,
        Level::Inode,
        Level::Mapping,
        Level::Writeback,
        Level::Folio,
        Level::Handle,
        Level::Data,
    ];

    /// One operation that is being polled on this thread, inside another one or not.
    #[derive(Debug)]
    struct Frame {
        held: Held,
        outer: Option<Arc<Frame>>,
    }

    thread_local! {
        static CURRENT: RefCell<Option<Arc<Frame>>> = const { RefCell::new(None) };
    }

    /// How many locks of each level one operation holds.
    #[derive(Clone, Debug, Default)]
    pub(crate) struct Held(Arc<[AtomicU32; LEVELS.len()]>);

    /// Restores the operation that was polled around this one.
    pub(crate) struct Entered(Option<Arc<Frame>>);

    impl Held {
        /// The operation is polled on this thread until the result is dropped. `is_part`: it answers for the
        /// locks of the operation around it.
        pub fn enter(&self, is_part: bool) -> Entered {
            CURRENT.with_borrow_mut(|current| {
                let outer = current.as_ref().filter(|_| is_part).map(Arc::clone);
                Entered(current.replace(Arc::new(Frame { held: self.clone(), outer })))
            })
        }

        fn has(&self, level: Level) -> bool {
            self.0[level as usize].load(Ordering::Relaxed) > 0
        }
    }

    impl Drop for Entered {
        fn drop(&mut self) {
            CURRENT.set(self.0.take());
        }
    }

    /// The innermost level for which `matches` holds and of which the operation on this thread holds a lock.
    fn find_held(matches: impl Fn(Level) -> bool) -> Option<Level> {
        let mut frame = CURRENT.with_borrow(Clone::clone);
        let mut found = None;
        while let Some(at) = frame {
            found = found.max(LEVELS.into_iter().rev().find(|level| matches(*level) && at.held.has(*level)));
            frame = at.outer.as_ref().map(Arc::clone);
        }
        found
    }

    /// Where a lock stands in the order.
    #[derive(Clone, Copy, Debug)]
    pub(crate) struct Rank(Level);

    impl Rank {
        pub const fn new(level: Level) -> Self {
            Self(level)
        }

        /// To be called before waiting for a lock of this rank.
        ///
        /// # Panics
        /// If the operation holds a lock that comes after this one.
        pub fn check(self) {
            let wrong = |level: Level| level > self.0 || level == self.0 && !level.may_nest();
            if let Some(held) = find_held(wrong) {
                panic!("lock order: {:?} is asked for while {held:?} is held", self.0);
            }
        }

        /// Counts a lock of this rank, which was taken.
        pub fn taken(self) -> Token {
            let held = CURRENT.with_borrow(|current| current.as_ref().map(|frame| frame.held.clone()));
            if let Some(held) = &held {
                held.0[self.0 as usize].fetch_add(1, Ordering::Relaxed);
            }
            Token(held.map(|held| (held, self.0)))
        }
    }

    /// Counts one lock for the operation that took it, as long as it lives.
    #[derive(Debug)]
    pub(crate) struct Token(Option<(Held, Level)>);

    impl Token {
        /// Counts nothing.
        pub const fn none() -> Self {
            Self(None)
        }
    }

    impl Drop for Token {
        fn drop(&mut self) {
            if let Some((held, level)) = &self.0 {
                held.0[*level as usize].fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    /// Checks that the operation holds no lock of `level` or of a level behind it, before it begins `what`.
    ///
    /// # Panics
    /// If it holds one.
    pub(crate) fn assert_holds_none_from(level: Level, what: &str) {
        if let Some(held) = find_held(|held| held >= level) {
            panic!("lock order: {what} while {held:?} is held");
        }
    }
}

#[cfg(not(debug_assertions))]
mod checked {
    use super::Level;

    #[derive(Clone, Debug, Default)]
    pub(crate) struct Held;
    pub(crate) struct Entered;

    impl Held {
        pub fn enter(&self, _is_part: bool) -> Entered {
            Entered
        }
    }

    /// Where a lock stands in the order: not kept in release builds.
    #[derive(Clone, Copy, Debug)]
    pub(crate) struct Rank;

    impl Rank {
        pub const fn new(_level: Level) -> Self {
            Self
        }
        pub fn check(self) {}
        pub fn taken(self) -> Token {
            Token
        }
    }

    /// Counts one lock: not in release builds.
    #[derive(Debug)]
    pub(crate) struct Token;

    impl Token {
        pub const fn none() -> Self {
            Self
        }
    }

    pub(crate) fn assert_holds_none_from(_level: Level, _what: &str) {}
}

use checked::Held;

pub(crate) use checked::{Rank, Token, assert_holds_none_from};

/// Checks, in debug builds, that the operation holds no handle and no lock of a level below, before it waits
/// for data I/O, for memory or for writeback: all of these may need a transaction to end first.
///
/// # Panics
/// If it holds one.
pub(crate) fn assert_no_handle(what: &str) {
    assert_holds_none_from(Level::Handle, what);
}

/// The guard of a lock that has a [`Level`].
#[derive(Debug)]
pub(crate) struct Guard<G> {
    guard: G,
    token: Token,
}

/// A [`Guard`] of an RwLock that is held for reading.
pub(crate) type ReadGuard<'a, T> = Guard<RwLockReadGuard<'a, T>>;

/// A [`Guard`] of an RwLock that is held for writing.
pub(crate) type WriteGuard<'a, T> = Guard<RwLockWriteGuard<'a, T>>;

impl<G> Guard<G> {
    /// Counts `guard`, which was just taken, as a lock of `rank`.
    pub fn new(guard: G, rank: Rank) -> Self {
        Self { guard, token: rank.taken() }
    }
}

impl<'a, T> WriteGuard<'a, T> {
    /// The lock for reading from now on, without a moment in which no task holds it.
    pub fn downgrade(self) -> ReadGuard<'a, T> {
        Guard { guard: self.guard.downgrade(), token: self.token }
    }
}

impl<G: Deref> Deref for Guard<G> {
    type Target = G::Target;

    fn deref(&self) -> &G::Target {
        &self.guard
    }
}

impl<G: DerefMut> DerefMut for Guard<G> {
    fn deref_mut(&mut self) -> &mut G::Target {
        &mut self.guard
    }
}

/// tokio's RwLock with a [`Level`].
#[derive(Debug)]
pub(crate) struct OrderedRwLock<T> {
    lock: RwLock<T>,
    rank: Rank,
}

impl<T> OrderedRwLock<T> {
    /// An unlocked lock of `level`.
    pub fn new(level: Level, value: T) -> Self {
        Self { lock: RwLock::new(value), rank: Rank::new(level) }
    }

    /// Locks for reading.
    pub async fn read(&self) -> ReadGuard<'_, T> {
        self.rank.check();
        Guard::new(self.lock.read().await, self.rank)
    }

    /// Locks for writing.
    pub async fn write(&self) -> WriteGuard<'_, T> {
        self.rank.check();
        Guard::new(self.lock.write().await, self.rank)
    }

    /// Locks for writing what no other task can have found yet: it never waits, and is not counted as held.
    pub async fn write_unfound(&self) -> WriteGuard<'_, T> {
        Guard { guard: self.lock.write().await, token: Token::none() }
    }

    /// Locks for reading if no task has to be waited for.
    ///
    /// # Errors
    /// If a task would have to be waited for.
    pub fn try_read(&self) -> Result<ReadGuard<'_, T>, TryLockError> {
        Ok(Guard::new(self.lock.try_read()?, self.rank))
    }

    /// Locks for writing if no task has to be waited for.
    ///
    /// # Errors
    /// If a task would have to be waited for.
    pub fn try_write(&self) -> Result<WriteGuard<'_, T>, TryLockError> {
        Ok(Guard::new(self.lock.try_write()?, self.rank))
    }
}

/// tokio's Mutex with a [`Level`].
#[derive(Debug)]
pub(crate) struct OrderedMutex<T> {
    lock: Mutex<T>,
    rank: Rank,
}

impl<T> OrderedMutex<T> {
    /// An unlocked mutex of `level`.
    pub fn new(level: Level, value: T) -> Self {
        Self { lock: Mutex::new(value), rank: Rank::new(level) }
    }

    /// Locks.
    pub async fn lock(&self) -> Guard<MutexGuard<'_, T>> {
        self.rank.check();
        Guard::new(self.lock.lock().await, self.rank)
    }

    /// Locks if no task has to be waited for.
    ///
    /// # Errors
    /// If a task would have to be waited for.
    pub fn try_lock(&self) -> Result<Guard<MutexGuard<'_, T>>, TryLockError> {
        Ok(Guard::new(self.lock.try_lock()?, self.rank))
    }
}

/// One operation, or a part of one: the locks that are taken while it is polled are its own.
pub(crate) struct Scoped<F> {
    operation: F,
    held: Held,
    is_part: bool,
}

impl<F: Future + Unpin> Scoped<F> {
    /// `operation` as an operation of its own, whatever it is polled in.
    pub fn new(operation: F) -> Self {
        Self { operation, held: Held::default(), is_part: false }
    }

    /// `operation` as a part of the operation that it is polled in, if there is one.
    pub fn part(operation: F) -> Self {
        Self { is_part: true, ..Self::new(operation) }
    }
}

impl<F: Future + Unpin> Future for Scoped<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let _entered = self.held.enter(self.is_part);
        Pin::new(&mut self.operation).poll(context)
    }
}

/// `operation` as an operation of its own in debug builds; `operation` itself in release builds.
#[cfg(debug_assertions)]
pub(crate) fn scoped<F: Future>(operation: F) -> Scoped<Pin<Box<F>>> {
    Scoped::new(Box::pin(operation))
}

/// `operation` as an operation of its own in debug builds; `operation` itself in release builds.
#[cfg(not(debug_assertions))]
pub(crate) fn scoped<F: Future>(operation: F) -> F {
    operation
}

#[cfg(all(test, debug_assertions))]
mod tests;
