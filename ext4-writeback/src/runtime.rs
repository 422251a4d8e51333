//! The runtime seam over tokio, and running an operation to its end.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ext4_core::environment::{BoxFuture, RunToEnd, Runtime};

use crate::lock_order::Scoped;

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

/// `operation` as one operation of the lock order, run to its end even when its caller stops waiting.
pub fn run_to_end<T: Send + 'static>(
    runtime: &Arc<dyn Runtime>,
    operation: impl Future<Output = T> + Send + 'static,
) -> RunToEnd<T> {
    RunToEnd::new(runtime, Scoped::new(Box::pin(operation)))
}
