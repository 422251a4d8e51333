//! Tasks and timers: the runtime seam ([`Runtime`]) over tokio, and running an operation to its end.
//!
//! Invariant: an operation that may change metadata is polled inside [`run_to_end`]. If its caller stops
//! waiting, a task of the runtime goes on with it, so no handle is left with half an operation in it.

use std::future::Future;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use ext4_core::environment::{BoxFuture, RunToEnd, Runtime};
use ext4_core::{Errno, Error, Result};

use crate::base::lock_order::Scoped;

/// The tasks and timers of one tokio runtime, the one that it was made in.
///
/// Timers need a tokio runtime with time enabled (`enable_time` or `enable_all` of its builder).
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
        Box::pin(tokio::time::sleep(duration))
    }

    fn monotonic(&self) -> Duration {
        self.started.elapsed()
    }
}

/// Runs `operation` to its end, even if its caller stops waiting, as one operation of the lock order
/// ([`crate::base::lock_order`]).
pub fn run_to_end<T: Send + 'static>(
    runtime: &Arc<dyn Runtime>,
    operation: impl Future<Output = T> + Send + 'static,
) -> RunToEnd<T> {
    RunToEnd::new(runtime, Scoped::new(Box::pin(operation)))
}

/// Puts the caller's task behind those that are ready, in the queue that every thread of the runtime takes
/// from.
///
/// tokio keeps the task that a running task has just woken in a slot of the running thread, from which no
/// other thread takes it, until the running task waits for something. So a writer that never waits would keep
/// the flusher from running. tokio's `yield_now` does something else: there the caller's task would wait
/// until the woken one waits.
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
