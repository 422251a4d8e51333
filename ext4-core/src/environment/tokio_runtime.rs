//! The runtime seam over tokio: tasks and timers of a tokio runtime.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{BoxFuture, Runtime};
use crate::error::{Errno, Error, Result};

/// Tasks and timers of one tokio runtime. It has to have its timers enabled (`enable_time`); the file
/// system's own tasks need nothing else of it.
#[derive(Clone, Debug)]
pub struct TokioRuntime {
    handle: tokio::runtime::Handle,
    started: Instant,
}

impl TokioRuntime {
    /// The runtime that `handle` belongs to, for callers outside it.
    #[must_use]
    pub fn new(handle: tokio::runtime::Handle) -> Self {
        Self { handle, started: Instant::now() }
    }

    /// The runtime that the caller runs in.
    ///
    /// # Errors
    /// `EINVAL` if the caller runs in none.
    pub fn current() -> Result<Self> {
        tokio::runtime::Handle::try_current().map(Self::new).map_err(|_| {
            let context = "no tokio runtime: call it inside one, or give the options a runtime";
            Error::posix(Errno::EINVAL, context)
        })
    }

    /// `given`, or else the tokio runtime that the caller runs in.
    ///
    /// # Errors
    /// As [`TokioRuntime::current`], if `given` is `None`.
    pub fn given_or_current(given: Option<&Arc<dyn Runtime>>) -> Result<Arc<dyn Runtime>> {
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
        // A timer belongs to the runtime that is entered when it is made, which need not be the caller's.
        let _entered = self.handle.enter();
        Box::pin(tokio::time::sleep(duration))
    }

    fn monotonic(&self) -> Duration {
        self.started.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outside_a_runtime_there_is_an_error_and_inside_there_are_tasks_and_timers() {
        let error = TokioRuntime::current().unwrap_err();
        assert_eq!(error.errno(), Errno::EINVAL);
        assert!(error.to_string().contains("no tokio runtime"), "{error}");
        let tokio = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        // Timers and tasks can be made outside it; they run in it.
        let runtime: Arc<dyn Runtime> = Arc::new(TokioRuntime::new(tokio.handle().clone()));
        let runtime = TokioRuntime::given_or_current(Some(&runtime)).unwrap();
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let sleep = runtime.sleep(Duration::from_millis(1));
        runtime.spawn(Box::pin(async move {
            sleep.await;
            sender.send(TokioRuntime::given_or_current(None).is_ok()).unwrap();
        }));
        assert!(tokio.block_on(receiver).unwrap());
        assert!(runtime.monotonic() >= Duration::from_millis(1));
    }
}
