//! The lock order, checked in debug builds: whoever holds a handle never asks for a folio lock and never waits for
//! writeback.
//!
//! The journal's commit waits for handles. Were a handle to wait for a folio whose owner waits to start a handle, both
//! would wait for ever.
//!
//! An operation is whatever runs inside one [`Scoped`] future ([`crate::base::runtime::run_to_end`] wraps each of its
//! operations in one), on whichever thread it is polled. It counts the handles it holds; release builds count nothing.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

#[cfg(debug_assertions)]
mod counted {
    use std::cell::RefCell;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    thread_local! {
        static OPERATION: RefCell<Option<Count>> = const { RefCell::new(None) };
    }

    /// Open handles of one operation.
    #[derive(Clone, Debug, Default)]
    pub(crate) struct Count(Arc<AtomicU32>);

    /// Restores the operation that was polled around this one.
    pub(crate) struct Entered(Option<Count>);

    impl Count {
        pub fn enter(&self) -> Entered {
            Entered(OPERATION.replace(Some(self.clone())))
        }
    }

    impl Drop for Entered {
        fn drop(&mut self) {
            OPERATION.set(self.0.take());
        }
    }

    /// Lives as long as a handle.
    #[derive(Debug)]
    pub(crate) struct HandleToken(Option<Count>);

    impl HandleToken {
        pub fn new() -> Self {
            let count = OPERATION.with_borrow(Clone::clone);
            if let Some(count) = &count {
                count.0.fetch_add(1, Ordering::Relaxed);
            }
            Self(count)
        }
    }

    impl Drop for HandleToken {
        fn drop(&mut self) {
            if let Some(count) = &self.0 {
                count.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    /// Panics where the operation that asks holds a handle.
    pub(crate) fn assert_no_handle(what: &str) {
        OPERATION.with_borrow(|operation| {
            if let Some(count) = operation {
                let open = count.0.load(Ordering::Relaxed);
                assert_eq!(open, 0, "lock order: {what} while a journal handle is open");
            }
        });
    }
}

#[cfg(not(debug_assertions))]
mod counted {
    #[derive(Clone, Debug, Default)]
    pub(crate) struct Count;
    pub(crate) struct Entered;

    impl Count {
        pub fn enter(&self) -> Entered {
            Entered
        }
    }

    /// Lives as long as a handle.
    #[derive(Debug)]
    pub(crate) struct HandleToken;

    impl HandleToken {
        pub fn new() -> Self {
            Self
        }
    }

    pub(crate) fn assert_no_handle(_what: &str) {}
}

use counted::Count;

pub(crate) use counted::{HandleToken, assert_no_handle};

/// One operation: the handles that are opened while it is polled are its own.
pub(crate) struct Scoped<F> {
    operation: F,
    count: Count,
}

impl<F: Future + Unpin> Scoped<F> {
    /// Wraps `operation`.
    pub fn new(operation: F) -> Self {
        Self { operation, count: Count::default() }
    }
}

impl<F: Future + Unpin> Future for Scoped<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let _entered = self.count.enter();
        Pin::new(&mut self.operation).poll(context)
    }
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_handle_is_counted_in_its_own_operation_only() {
        Scoped::new(Box::pin(async {
            let token = HandleToken::new();
            Scoped::new(Box::pin(async { assert_no_handle("another operation") })).await;
            drop(token);
            assert_no_handle("after the handle");
        }))
        .await;
        assert_no_handle("outside");
    }

    #[tokio::test]
    #[should_panic(expected = "lock order")]
    async fn k_47_waiting_for_a_folio_under_a_handle_panics() {
        Scoped::new(Box::pin(async {
            let _token = HandleToken::new();
            tokio::task::yield_now().await;
            assert_no_handle("a folio lock");
        }))
        .await;
    }
}
