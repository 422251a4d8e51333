//! The places of handles that wait for room, in the order they came (see [`crate::running::queue`]).

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::Notify;

/// The places, the first one in front.
#[derive(Debug, Default)]
pub(crate) struct Queue(pub(crate) VecDeque<Arc<Notify>>);

impl Queue {
    /// Returns true if no handle waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
