//! Worker threads that carry out blocking system calls from one queue.
//!
//! Invariant: every queued job is carried out, also while the device is being dropped: the threads end only
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

/// Threads that take jobs of type `J` from one queue.
#[derive(Debug)]
pub(crate) struct Workers<J> {
    shared: Arc<Shared<J>>,
    threads: Vec<JoinHandle<()>>,
}

impl<J: Send + 'static> Workers<J> {
    /// Starts `count` threads, each of which calls `run` for the jobs it takes.
    ///
    /// # Errors
    /// The host's error for starting a thread (`EAGAIN`: a limit on threads is reached).
    pub(crate) fn start(count: usize, run: impl Fn(J) + Send + Sync + 'static) -> Result<Self> {
        let queue = Queue { jobs: VecDeque::new(), closed: false, idle: 0 };
        let shared = Arc::new(Shared { queue: Mutex::new(queue), more: Condvar::new() });
        let run = Arc::new(run);
        // Made before the threads: if one cannot be started, the drop ends those that run already.
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
    /// Waits for the next job; returns `None` when the queue is closed and empty.
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
            // A completion may hold the last reference to the device. Then a worker thread runs this drop: it
            // cannot join itself, and ends when it finds the queue closed.
            if thread.thread().id() != own {
                let _ = thread.join();
            }
        }
    }
}
