//! The queue of handles that wait for room, in the order in which they came.
//!
//! A handle that asks for much and one that asks for little wait for the same room. If each took room as soon
//! as it fitted, a crowd of small handles would starve a large one: each bit of room that becomes free would
//! go to one of them. So only the first place in the queue may take room; see [`crate::running`] for how a
//! place is taken and given up.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::Notify;

/// The places of the waiting handles, first come first.
#[derive(Debug, Default)]
pub(crate) struct Queue(VecDeque<Arc<Notify>>);

impl Queue {
    /// True if no handle waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes the last place.
    pub(crate) fn join(&mut self) -> Arc<Notify> {
        let place = Arc::new(Notify::new());
        self.0.push_back(Arc::clone(&place));
        place
    }

    /// True if no place is before `place`.
    pub(crate) fn is_first(&self, place: &Arc<Notify>) -> bool {
        self.0.front().is_none_or(|first| Arc::ptr_eq(first, place))
    }

    /// Gives `place` up and returns the first of those that are left, which has to be notified.
    pub(crate) fn leave(&mut self, place: &Arc<Notify>) -> Option<Arc<Notify>> {
        self.0.retain(|other| !Arc::ptr_eq(other, place));
        self.0.front().cloned()
    }
}
