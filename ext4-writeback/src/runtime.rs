//! The runtime seam over tokio, and running an operation to its end.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use ext4_core::environment::{BoxFuture, Runtime};

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

/// An operation that runs to its end even when its caller stops waiting: polled in place while the caller waits,
/// handed to the runtime when it is dropped half way.
///
/// Every operation that opens a handle goes through this. Were it dropped between two changes of metadata, the
/// transaction would commit half an operation.
pub struct RunToEnd<T: Send + 'static> {
    operation: Option<Scoped<BoxFuture<'static, T>>>,
    polled: bool,
    runtime: Arc<dyn Runtime>,
}

impl<T: Send + 'static> RunToEnd<T> {
    /// Wraps `operation`.
    pub fn new(runtime: &Arc<dyn Runtime>, operation: impl Future<Output = T> + Send + 'static) -> Self {
        Self {
            operation: Some(Scoped::new(Box::pin(operation))),
            polled: false,
            runtime: Arc::clone(runtime),
        }
    }
}

impl<T: Send + 'static> Unpin for RunToEnd<T> {}

impl<T: Send + 'static> Future for RunToEnd<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        self.polled = true;
        let operation = self.operation.as_mut().expect("a finished operation is not polled again");
        let result = Pin::new(operation).poll(context);
        if result.is_ready() {
            self.operation = None;
        }
        result
    }
}

impl<T: Send + 'static> Drop for RunToEnd<T> {
    fn drop(&mut self) {
        if !self.polled {
            return;
        }
        if let Some(operation) = self.operation.take() {
            self.runtime.spawn(into_unit(operation));
        }
    }
}

fn into_unit<T: Send + 'static>(operation: Scoped<BoxFuture<'static, T>>) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let _ = operation.await;
    })
}
