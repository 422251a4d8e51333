//! Running an operation to its end, and queueing up behind other tasks.

use std::future::Future;
use std::sync::Arc;
use std::task::Poll;

pub use ext4_core::environment::TokioRuntime;
use ext4_core::environment::{RunToEnd, Runtime};

use crate::lock_order::Scoped;

/// `operation` as one operation of the lock order, run to its end even when its caller stops waiting.
pub fn run_to_end<T: Send + 'static>(
    runtime: &Arc<dyn Runtime>,
    operation: impl Future<Output = T> + Send + 'static,
) -> RunToEnd<T> {
    RunToEnd::new(runtime, Scoped::new(Box::pin(operation)))
}

/// Has the caller's task queue up behind those that are ready, where any thread of the runtime finds it.
///
/// A task that was just woken by this one waits in a place of its own, from which no other thread of tokio's takes it,
/// until this one waits for something: a writer who never waits would keep the flusher from running. `yield_now` of
/// tokio is not the same: there this task would wait until the other one does.
pub async fn queue_up() {
    let mut queued = false;
    std::future::poll_fn(move |context| {
        if std::mem::replace(&mut queued, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
