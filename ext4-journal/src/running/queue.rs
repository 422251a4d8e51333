//! Handles that wait for room, in the order they came.
//!
//! A handle that asks for much and one that asks for little wait for the same room. Were they to take it as
//! they find it, a crowd of small ones would keep a large one waiting for ever: whenever a little becomes
//! free, one of them has it. So only the first in the queue may take room, and a handle that comes takes its
//! place behind. The first asks for a commit or a checkpoint, and what it asked for is what it gets: it waits
//! for at most the commit that runs, its own and a checkpoint, and those behind it for no more than that
//! each.
//!
//! A handle that waits only for a locked transaction to be frozen takes no place: that ends without room, for
//! all at once.
//!
//! Invariant: a handle that leaves the front, admitted or given up, tells the next. Were that lost, all
//! behind it would wait for ever.

use std::sync::Arc;

use tokio::sync::Notify;

use crate::journal::Journal;

/// A place in a queue, given up when it is dropped.
pub(crate) struct Turn<'a> {
    journal: &'a Journal,
    place: Arc<Notify>,
}

impl<'a> Turn<'a> {
    /// The last place.
    pub(crate) fn take(journal: &'a Journal) -> Self {
        let place = Arc::new(Notify::new());
        journal.state.lock().queue.0.push_back(Arc::clone(&place));
        Self { journal, place }
    }

    /// Waits until it is the first. An abort lets all of them come to the front in turn.
    pub(crate) async fn first(&self) {
        loop {
            {
                let state = self.journal.state.lock();
                let first = state.queue.0.front();
                if first.is_none_or(|first| Arc::ptr_eq(first, &self.place)) {
                    return;
                }
            }
            self.place.notified().await;
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let next = {
            let mut state = self.journal.state.lock();
            let queue = &mut state.queue.0;
            queue.retain(|place| !Arc::ptr_eq(place, &self.place));
            queue.front().cloned()
        };
        if let Some(next) = next {
            next.notify_one();
        }
    }
}
