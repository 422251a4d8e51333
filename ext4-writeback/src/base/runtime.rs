//! The tokio runtime behind [`Runtime`], and running an operation to its end.

use std::future::Future;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use ext4_core::environment::{BoxFuture, RunToEnd, Runtime};
use ext4_core::{Errno, Error, Result};

use crate::base::lock_order::Scoped;

/// Tasks and timers of the tokio runtime that it was made in.
#[derive(Debug)]
pub struct TokioRuntime {
    handle: tokio::runtime::Handle,
    started: Instant,
}

impl TokioRuntime {
    /// The tokio runtime that the caller runs in.
    ///
    /// # Errors
    /// `EINVAL` if the caller runs outside a tokio runtime.
    pub fn current() -> Result<Self> {
        let handle = tokio::runtime::Handle::try_current().map_err(|_| {
            let context = "no tokio runtime here: call this inside one, set MountOptions::runtime, or use \
                           ext4_writeback::blocking";
            Error::posix(Errno::EINVAL, context)
        })?;
        Ok(Self { handle, started: Instant::now() })
    }

    /// `given`, or else the tokio runtime that the caller runs in.
    ///
    /// # Errors
    /// As [`TokioRuntime::current`], if none is given.
    pub(crate) fn or_current(given: Option<&Arc<dyn Runtime>>) -> Result<Arc<dyn Runtime>> {
        match given {
            Some(runtime) => Ok(Arc::clone(runtime)),
            None => Ok(Arc::new(Self::current()?)),
        }
    }
}

impl Runtime for TokioRuntime {
    fn spawn(&self, task: BoxFuture<'static, ()>) {
        drop(self.handle.spawn(task));
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        // The caller may be a thread of the device: the timer belongs to this runtime.
        let _inside = self.handle.enter();
        Box::pin(tokio::time::sleep(duration))
    }

    fn monotonic(&self) -> Duration {
        self.started.elapsed()
    }
}

/// A part of the caller's operation (see [`crate::base::lock_order`]), run to its end even if the caller
/// stops waiting.
pub(crate) fn run_to_end<T: Send + 'static>(
    runtime: &Arc<dyn Runtime>,
    operation: impl Future<Output = T> + Send + 'static,
) -> RunToEnd<T> {
    RunToEnd::new(runtime, Scoped::part(Box::pin(operation)))
}

/// An operation of its own (see [`crate::base::lock_order`]), run to its end even if its caller stops
/// waiting.
pub(crate) fn run_operation<T: Send + 'static>(
    runtime: &Arc<dyn Runtime>,
    operation: impl Future<Output = T> + Send + 'static,
) -> RunToEnd<T> {
    RunToEnd::new(runtime, Scoped::new(Box::pin(operation)))
}

/// Has the caller's task queue up behind the tasks that are ready, in the queue that any thread of the
/// runtime takes from.
///
/// tokio keeps a task that was just woken by the caller's task in a slot from which no other thread takes it,
/// until the caller's task waits for something: a writer that never waits would keep the flusher from
/// running. `yield_now` of tokio is not the same: with it the caller's task would wait until the woken one
/// does.
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
