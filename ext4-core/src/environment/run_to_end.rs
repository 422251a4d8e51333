//! Running an operation to its end, also if its caller stops waiting for it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::{BoxFuture, Runtime};

/// An operation that runs to its end even when its caller stops waiting: polled in place while the caller
/// waits, handed to the runtime when it is dropped half way.
///
/// Every operation that opens a handle goes through this, and a commit that a caller carries out. Were it
/// dropped between two changes of metadata, the transaction would commit half an operation.
pub struct RunToEnd<T: Send + 'static> {
    operation: Option<BoxFuture<'static, T>>,
    polled: bool,
    runtime: Arc<dyn Runtime>,
}

impl<T: Send + 'static> RunToEnd<T> {
    /// Wraps `operation`. Nothing of it runs unless this is polled once.
    pub fn new(runtime: &Arc<dyn Runtime>, operation: impl Future<Output = T> + Send + 'static) -> Self {
        Self { operation: Some(Box::pin(operation)), polled: false, runtime: Arc::clone(runtime) }
    }
}

impl<T: Send + 'static> Unpin for RunToEnd<T> {}

impl<T: Send + 'static> Future for RunToEnd<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        self.polled = true;
        let operation = self.operation.as_mut().expect("a finished operation is not polled again");
        let result = operation.as_mut().poll(context);
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

fn into_unit<T: Send + 'static>(operation: BoxFuture<'static, T>) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let _ = operation.await;
    })
}
