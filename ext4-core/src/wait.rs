//! Waiting on a [`Notify`] until a condition holds, without a lost wakeup.
//!
//! One order makes every wakeup arrive, and it is written down here once:
//!
//! ```text
//!   waiter: enable the Notified ──► check the state ──► await the Notified ──► (again)
//!   waker:                 change the state ──► notify
//! ```
//!
//! Were the state checked first, a waker could change it and notify between the check and the registration:
//! the waiter would then wait for a notification that has already gone by. [`Notify::notify_waiters`] reaches
//! only futures that exist, and [`Notify::notify_one`] keeps one permit for any number of waiters; a future
//! that was enabled is in the queue and gets either.
//!
//! A waker changes the state before it notifies, or changes it under the lock that `check` takes.

use std::pin::pin;

use tokio::sync::Notify;

use crate::Result;

/// Waits until `check` returns a value. `check` runs once at the beginning and once after each notification
/// of `notify`, and takes whatever lock the state has; it must give the lock back before it returns, and must
/// not block.
///
/// Dropping the future ends the wait; a permit of [`Notify::notify_one`] that it held goes to the next
/// waiter.
pub async fn until<T>(notify: &Notify, mut check: impl FnMut() -> Option<T>) -> T {
    loop {
        let mut notified = pin!(notify.notified());
        notified.as_mut().enable();
        if let Some(value) = check() {
            return value;
        }
        notified.await;
    }
}

/// [`until`] for a check that can fail: `Ok(None)` waits on.
///
/// # Errors
/// The first error that `check` returns.
pub async fn try_until<T>(notify: &Notify, mut check: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    until(notify, || check().transpose()).await
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::task::{Context, Poll, Waker};

    use super::*;
    use crate::{Errno, Error};

    fn poll<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn a_notification_that_falls_into_the_check_is_not_lost() {
        for one in [false, true] {
            let (notify, value) = (Notify::new(), AtomicU32::new(0));
            let mut checks = 0;
            let mut waits = pin!(until(&notify, || {
                checks += 1;
                let seen = value.load(Ordering::SeqCst);
                if checks == 1 {
                    // The waker runs between this check and the wait.
                    value.store(7, Ordering::SeqCst);
                    if one {
                        notify.notify_one();
                    } else {
                        notify.notify_waiters();
                    }
                }
                (seen > 0).then_some(seen)
            }));
            assert_eq!(poll(waits.as_mut()), Poll::Ready(7));
        }
    }

    #[test]
    fn two_waiters_get_one_permit_each() {
        let notify = Arc::new(Notify::new());
        let left = AtomicU32::new(0);
        let take = || left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).ok();
        let mut waits = [Box::pin(until(&notify, take)), Box::pin(until(&notify, take))];
        for wait in &mut waits {
            assert!(poll(wait.as_mut()).is_pending());
        }
        left.store(2, Ordering::SeqCst);
        notify.notify_one();
        notify.notify_one();
        for wait in &mut waits {
            assert!(poll(wait.as_mut()).is_ready());
        }
    }

    #[test]
    fn an_error_of_the_check_ends_the_wait() {
        let notify = Notify::new();
        let mut checks = 0;
        let mut waits = pin!(try_until(&notify, || {
            checks += 1;
            if checks == 2 { Err(Error::posix(Errno::EIO, "stopped")) } else { Ok(None::<()>) }
        }));
        assert!(poll(waits.as_mut()).is_pending());
        notify.notify_waiters();
        match poll(waits.as_mut()) {
            Poll::Ready(Err(error)) => assert_eq!(error.errno(), Errno::EIO),
            other => panic!("{other:?}"),
        }
    }
}
