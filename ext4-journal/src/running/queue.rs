//! A place in the queue of handles that wait for room.
//!
//! Only the handle in the first place takes room; one that comes joins at the end. The first asks for a
//! commit or a checkpoint, and what becomes free is its own: it waits for at most the commit that is under
//! way, its own and a checkpoint, and each handle behind it for no more than that again.
//!
//! A handle that waits only until a locked transaction is frozen takes no place: that ends for all of them at
//! once, and needs no room.
//!
//! Invariant: a handle that leaves the first place, admitted or given up, notifies the next. Were that lost,
//! every handle behind it would wait for ever.

use std::sync::Arc;

use tokio::sync::Notify;

use crate::journal::Journal;

/// A place in the queue, given up when it is dropped.
pub(crate) struct Turn<'a> {
    journal: &'a Journal,
    place: Arc<Notify>,
}

impl<'a> Turn<'a> {
    /// Takes the last place.
    pub(crate) fn take(journal: &'a Journal) -> Self {
        let place = journal.state.lock().queue.join();
        Self { journal, place }
    }

    /// Waits until this place is the first. An abort brings every place to the front in turn.
    pub(crate) async fn first(&self) {
        while !self.journal.state.lock().queue.is_first(&self.place) {
            // One waiter and a permit: a notification between the check and this wait is not lost.
            self.place.notified().await;
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let next = self.journal.state.lock().queue.leave(&self.place);
        if let Some(next) = next {
            next.notify_one();
        }
    }
}
