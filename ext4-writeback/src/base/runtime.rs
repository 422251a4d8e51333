//! The runtime seam over tokio, and running an operation to its end.

use std::future::Future;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use ext4_core::environment::{BoxFuture, RunToEnd, Runtime};

use crate::base::lock_order::Scoped;

/// Tasks and timers of the tokio runtime it was made in.
#[derive(Debug)]
pub struct TokioRuntime {
    handle: tokio::runtime::Handle,
    started: Instant,
}

impl TokioRuntime {
    /// The runtime around the caller.
    ///
    /// # Panics
    /// Outside a tokio runtime, as [`tokio::runtime::Handle::current`].
    #[must_use]
    pub fn current() -> Self {
        Self { handle: tokio::runtime::Handle::current(), started: Instant::now() }
    }
}

impl Runtime for TokioRuntime {
    fn spawn(&self, task: BoxFuture<'static, ()>) {
        drop(self.handle.spawn(task));
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(duration))
    }

    fn monotonic(&self) -> Duration {
        self.started.elapsed()
    }
}

/// A part of the caller's operation (see [`crate::base::lock_order`]), run to its end even if the caller stops waiting.
pub(crate) fn run_to_end<T: Send + 'static>(
    runtime: &Arc<dyn Runtime>,
    operation: impl Future<Output = T> + Send + 'static,
) -> RunToEnd<T> {
    RunToEnd::new(runtime, Scoped::part(Box::pin(operation)))
}

/// An operation of its own (see [`crate::base::lock_order`]), run to its end even if its caller stops waiting.
pub(crate) fn run_operation<T: Send + 'static>(
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
