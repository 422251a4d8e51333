//! The threads that carry out blocking system calls, and their queue.
//!
//! Invariant: everything that was queued is carried out, also while the device is being dropped: the threads end only
//! when the queue is closed *and* empty. So every bio is completed, and none after the file is closed.
//!
//! Locks: the queue's mutex, held for a push or a pop only; never while a job runs.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::JoinHandle;

use ext4_core::{Error, Result};
use parking_lot::{Condvar, Mutex};

#[derive(Debug)]
struct Queue<J> {
    jobs: VecDeque<J>,
    closed: bool,
    idle: usize,
}

#[derive(Debug)]
struct Shared<J> {
    queue: Mutex<Queue<J>>,
    more: Condvar,
}

/// A few threads, each taking jobs of type `J` from one queue.
#[derive(Debug)]
pub(crate) struct Workers<J> {
    shared: Arc<Shared<J>>,
    threads: Vec<JoinHandle<()>>,
}

impl<J: Send + 'static> Workers<J> {
    /// Starts `count` threads that each call `run` for every job.
    ///
    /// # Errors
    /// The host's refusal to start a thread.
    pub(crate) fn start(count: usize, run: impl Fn(J) + Send + Sync + 'static) -> Result<Self> {
        let queue = Queue { jobs: VecDeque::new(), closed: false, idle: 0 };
        let shared = Arc::new(Shared { queue: Mutex::new(queue), more: Condvar::new() });
        let run = Arc::new(run);
        // Made first, so that a failure half-way ends the threads that run already.
        let mut workers = Self { shared, threads: Vec::with_capacity(count) };
        for number in 0..count {
            let shared = Arc::clone(&workers.shared);
            let run = Arc::clone(&run);
            let thread = std::thread::Builder::new()
                .name(format!("ext4-file-{number}"))
                .spawn(move || {
                    while let Some(job) = shared.next() {
                        run(job);
                    }
                })
                .map_err(|source| Error::host("start", "an I/O thread", &source))?;
            workers.threads.push(thread);
        }
        Ok(workers)
    }

    /// Queues `jobs` in order.
    pub(crate) fn push(&self, jobs: Vec<J>) {
        let count = jobs.len();
        let idle = {
            let mut queue = self.shared.queue.lock();
            queue.jobs.extend(jobs);
            queue.idle
        };
        for _ in 0..count.min(idle) {
            self.shared.more.notify_one();
        }
    }
}

impl<J> Shared<J> {
    /// The next job; `None` when there will be none.
    fn next(&self) -> Option<J> {
        let mut queue = self.queue.lock();
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                return Some(job);
            }
            if queue.closed {
                return None;
            }
            queue.idle += 1;
            self.more.wait(&mut queue);
            queue.idle -= 1;
        }
    }
}

impl<J> Drop for Workers<J> {
    fn drop(&mut self) {
        self.shared.queue.lock().closed = true;
        self.shared.more.notify_all();
        let own = std::thread::current().id();
        for thread in self.threads.drain(..) {
            // A completion may hold the last reference to the device; then this is one of the threads, which cannot
            // wait for itself. It ends by itself.
            if thread.thread().id() != own {
                let _ = thread.join();
            }
        }
    }
}
