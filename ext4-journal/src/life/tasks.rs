//! The commit task and the checkpoint task.
//!
//! - The *commit task* commits the running transaction when it is large or old, or when a caller asks and
//!   does not commit by itself: a caller that waits for a commit that no task carries out commits in its own
//!   task, which spares two changes of tasks.
//! - The *checkpoint task* writes committed blocks to their places when the log runs short, or to empty it.
//!
//! Invariant: each holds only a weak reference while it waits, so that dropping the last [`Journal`] ends it.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use ext4_core::environment::{BoxFuture, Runtime};
use ext4_core::{Errno, Error};

use crate::journal::Journal;
use crate::state::transaction::Phase;
use crate::state::{Mode, State, Wake};

impl Journal {
    /// When the running transaction will be too old, on the runtime's clock.
    fn deadline(&self, state: &State) -> Option<Duration> {
        let interval = self.options.commit_interval?;
        if state.aborted.is_some() {
            return None;
        }
        // What was asked for already begins when the fast commit that keeps it waiting has ended.
        let running = state.running.as_ref().filter(|running| !running.commit_requested)?;
        Some(running.entered(Phase::Running).saturating_add(interval))
    }

    fn is_overdue(&self) -> bool {
        let deadline = self.deadline(&self.state.lock());
        deadline.is_some_and(|deadline| self.runtime.monotonic() >= deadline)
    }

    /// How long the commit task's timer is to run; `None`: it does without one until a transaction begins. A
    /// timer that runs is early enough for every later transaction.
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

pub(crate) async fn commit_task(journal: Weak<Journal>, wake: Arc<Wake>, runtime: Arc<dyn Runtime>) {
    let _ended = Ended { wake: Arc::clone(&wake), journal: journal.clone() };
    // It runs on while transactions come and go: to set one for each would cost more than many a transaction.
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

/// Says that a task is gone, however it ends. One that panicked aborts the journal: no task would do
/// its work, and the tasks that wait for it would wait for ever.
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
