//! The commit task and the checkpoint task.
//!
//! - The *commit task* commits the running transaction if it is large or old, or if a caller asks for the
//!   commit and does not carry it out. (A caller that waits for a commit that is not under way commits in its
//!   own task, which spares two task switches.)
//! - The *checkpoint task* writes committed blocks to their places if the log runs short, or to empty it.
//!
//! Each task holds a weak reference while it waits: when the last [`Journal`] is dropped both end.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use ext4_core::environment::{BoxFuture, Runtime};
use ext4_core::{Errno, Error};

use crate::journal::Journal;
use crate::state::{Mode, Phase, State, Wake};

impl Journal {
    /// The time on the runtime's clock at which the running transaction will be too old.
    fn deadline(&self, state: &State) -> Option<Duration> {
        let interval = self.options.commit_interval?;
        if state.aborted.is_some() {
            return None;
        }
        // A commit that was asked for begins as soon as the fast commit that it waits for has ended.
        let running = state.running.as_ref().filter(|running| !running.commit_requested)?;
        Some(running.entered(Phase::Running).saturating_add(interval))
    }

    fn is_overdue(&self) -> bool {
        let deadline = self.deadline(&self.state.lock());
        deadline.is_some_and(|deadline| self.runtime.monotonic() >= deadline)
    }

    /// The time that the commit task's timer has to run; `None`: it needs no timer until a transaction
    /// begins. A timer that runs is early enough for every later transaction.
    fn set_timer(&self) -> Option<Duration> {
        let mut state = self.state.lock();
        let deadline = self.deadline(&state);
        state.timer_runs = deadline.is_some();
        Some(deadline?.saturating_sub(self.runtime.monotonic()))
    }

    fn is_closed(&self) -> bool {
        self.state.lock().mode == Mode::Closed
    }
}

/// The commit task: one turn for each notification of [`Wake::commit`] and each end of its timer.
pub(crate) async fn commit_task(journal: Weak<Journal>, wake: Arc<Wake>, runtime: Arc<dyn Runtime>) {
    let _ended = Ended { wake: Arc::clone(&wake), journal: journal.clone() };
    // The timer runs on while transactions come and go: one for each would cost more than many a transaction.
    let mut timer: Option<BoxFuture<'static, ()>> = None;
    loop {
        {
            let Some(journal) = journal.upgrade() else { return };
            if journal.is_closed() {
                return;
            }
            if journal.is_overdue() {
                journal.request_commit();
            }
            if journal.is_commit_requested() {
                let turn = journal.committer.lock().await;
                let committed = journal.commit_if_requested().await;
                drop(turn);
                if committed {
                    continue;
                }
            }
            if timer.is_none() {
                timer = journal.set_timer().map(|left| runtime.sleep(left));
            }
        }
        match &mut timer {
            None => wake.commit.notified().await,
            Some(time) => {
                let over = tokio::select! {
                    biased;
                    () = wake.commit.notified() => false,
                    () = time => true,
                };
                if over {
                    timer = None;
                }
            }
        }
    }
}

/// The checkpoint task: turns until there is nothing to do, after each notification of [`Wake::checkpoint`].
pub(crate) async fn checkpoint_task(journal: Weak<Journal>, wake: Arc<Wake>) {
    let _ended = Ended { wake: Arc::clone(&wake), journal: journal.clone() };
    loop {
        {
            let Some(journal) = journal.upgrade() else { return };
            if journal.is_closed() {
                return;
            }
            if journal.checkpoint_if_needed().await {
                continue;
            }
        }
        wake.checkpoint.notified().await;
    }
}

/// Notes the end of a task, however it ends. A task that panicked takes the journal with it: its work would
/// never be done, and every caller that waits for it would wait for ever.
struct Ended {
    wake: Arc<Wake>,
    journal: Weak<Journal>,
}

impl Drop for Ended {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(journal) = self.journal.upgrade()
        {
            journal.abort(&Error::posix(Errno::EIO, "a task of the journal panicked"));
        }
        self.wake.tasks.fetch_sub(1, Ordering::AcqRel);
        self.wake.ended.notify_waiters();
    }
}
