//! A seeded, single-threaded world: a scheduler that runs the whole engine the same way every time.
//!
//! ```text
//!   run(main) ──► choose one runnable task by chance ──► poll it ──┐
//!      ▲               │ none is runnable                          │
//!      │               ▼                                           │
//!      │          the clock jumps to the next timer                │
//!      │               │ no timer either: deadlock, reported       │
//!      └───────────────┴───────────────────────────────────────────┘
//! ```
//!
//! [`Simulation`] is a [`Runtime`] whose clock stands still while tasks run, and an [`Environment`] whose
//! time is that clock. Which of the runnable tasks comes next follows from the seed alone; now and then a
//! timer fires early in the queue although tasks are runnable, as it would on a machine where they are slow.
//! So one seed is one interleaving of tasks, timers and completions, and a failure is replayed by its seed.
//!
//! The primitives of `tokio::sync` work under it; `tokio::time` and `tokio::spawn` do not. A `tokio::select!`
//! below the seam is `biased`: otherwise it draws from a generator that no seed reaches.
//!
//! Invariants:
//! - One task is polled at a time, and never while a lock of the scheduler is held: a task may spawn, wake
//!   and sleep.
//! - A task that was woken is polled again, also if the wake came while it was being polled. Were such a wake
//!   lost, the scheduler would report deadlocks that the engine does not have.
//! - If nothing can go on any more, that is an error that names the tasks that wait, never a hang.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::{BoxFuture, Environment, FixedEnvironment, Runtime};
use crate::types::Timestamp;

/// A timer fires although tasks are runnable, once in so many steps.
const EARLY_TIMER: u64 = 64;
/// Steps after which a run is given up, unless [`Simulation::run_for`] says otherwise.
const STEP_LIMIT: u64 = 10_000_000;
/// Seconds since 1970 at which the clock begins.
const EPOCH: i64 = 1_700_000_000;

/// Why a simulation did not come to its end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Stuck {
    /// Nothing is runnable and no timer is set, but the main task has not ended.
    Deadlock {
        /// The seed that replays it.
        seed: u64,
        /// Polls until then.
        steps: u64,
        /// The tasks that wait, by name.
        waiting: Vec<String>,
    },
    /// More polls than allowed: tasks that keep each other busy.
    StepLimit {
        /// The seed that replays it.
        seed: u64,
        /// Polls until then.
        steps: u64,
        /// The tasks that are runnable, by name.
        runnable: Vec<String>,
    },
}

impl fmt::Display for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Deadlock { seed, steps, waiting } => {
                write!(f, "seed {seed}: deadlock after {steps} steps; these wait: {}", waiting.join(", "))
            }
            Self::StepLimit { seed, steps, runnable } => {
                write!(f, "seed {seed}: no end after {steps} steps; runnable: {}", runnable.join(", "))
            }
        }
    }
}

impl std::error::Error for Stuck {}

struct Task {
    name: Arc<str>,
    /// Out while it is polled.
    future: Option<BoxFuture<'static, ()>>,
    waker: Arc<TaskWaker>,
}

struct TaskWaker {
    number: usize,
    /// It is in `runnable` already.
    queued: AtomicBool,
    world: Weak<World>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::AcqRel)
            && let Some(world) = self.world.upgrade()
        {
            world.state.lock().runnable.push(self.number);
        }
    }
}

struct State {
    /// splitmix64.
    random: u64,
    now: Duration,
    /// By number; numbers are not used again, so that names in a report are unique.
    tasks: BTreeMap<usize, Task>,
    next: usize,
    runnable: Vec<usize>,
    /// By time, then in the order they were set.
    timers: BTreeMap<(Duration, u64), Waker>,
    next_timer: u64,
    /// Whose turn it is.
    current: Option<Arc<str>>,
    steps: u64,
    ended: bool,
}

impl State {
    fn below(&mut self, bound: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound.max(1)
    }

    /// Lets the clock jump to the next timer: its waker, to be woken without the lock.
    fn fire_timer(&mut self) -> Option<Waker> {
        let ((at, _), waker) = self.timers.pop_first()?;
        self.now = self.now.max(at);
        Some(waker)
    }
}

struct World {
    seed: u64,
    state: Mutex<State>,
}

impl World {
    fn spawn(self: &Arc<Self>, name: Option<&str>, future: BoxFuture<'static, ()>) {
        let mut state = self.state.lock();
        if state.ended {
            drop(state);
            // Dropped without the lock: it may hold what spawns in turn.
            drop(future);
            return;
        }
        let number = state.next;
        state.next += 1;
        let name: Arc<str> = match (name, &state.current) {
            (Some(name), _) => Arc::from(name),
            (None, Some(parent)) => format!("task {number} of {parent}").into(),
            (None, None) => format!("task {number}").into(),
        };
        let waker =
            Arc::new(TaskWaker { number, queued: AtomicBool::new(true), world: Arc::downgrade(self) });
        state.tasks.insert(number, Task { name, future: Some(future), waker });
        state.runnable.push(number);
    }

    /// One step. False if nothing can go on.
    fn step(&self) -> bool {
        let (number, mut future, waker, name) = {
            let mut state = self.state.lock();
            let early = !state.timers.is_empty() && state.below(EARLY_TIMER) == 0;
            if early || state.runnable.is_empty() {
                let fired = state.fire_timer();
                drop(state);
                return match fired {
                    Some(waker) => {
                        waker.wake();
                        true
                    }
                    None => false,
                };
            }
            let bound = state.runnable.len() as u64;
            let chosen = usize::try_from(state.below(bound)).unwrap_or(0);
            let number = state.runnable.swap_remove(chosen);
            let Some(task) = state.tasks.get_mut(&number) else { return true };
            // From here on a wake counts: it queues the task again.
            task.waker.queued.store(false, Ordering::Release);
            let Some(future) = task.future.take() else { return true };
            let (waker, name) = (Arc::clone(&task.waker), Arc::clone(&task.name));
            state.current = Some(Arc::clone(&name));
            state.steps += 1;
            (number, future, waker, name)
        };
        let waker = Waker::from(waker);
        let ended = future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready();
        let finished = {
            let mut state = self.state.lock();
            state.current = None;
            if ended || state.ended {
                state.tasks.remove(&number);
                Some(future)
            } else {
                if let Some(task) = state.tasks.get_mut(&number) {
                    task.future = Some(future);
                }
                None
            }
        };
        // What its end drops may wake or spawn, in its name.
        if finished.is_some() {
            self.state.lock().current = Some(name);
            drop(finished);
            self.state.lock().current = None;
        }
        true
    }
}

/// A seeded scheduler with a clock of its own; see the module. Clones are the same world. When the last one
/// that was made by [`Simulation::new`] is dropped, every task that is left is dropped with it.
#[derive(Clone)]
pub struct Simulation {
    owner: Arc<Owner>,
}

/// Ends the world: its tasks hold what holds the world.
struct Owner(Arc<World>);

impl Drop for Owner {
    fn drop(&mut self) {
        let (tasks, timers) = {
            let mut state = self.0.state.lock();
            state.ended = true;
            (std::mem::take(&mut state.tasks), std::mem::take(&mut state.timers))
        };
        drop((tasks, timers));
    }
}

impl fmt::Debug for Simulation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Simulation").field("seed", &self.owner.0.seed).finish_non_exhaustive()
    }
}

impl Simulation {
    /// A world whose chances follow from `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let state = State {
            random: seed,
            now: Duration::ZERO,
            tasks: BTreeMap::new(),
            next: 0,
            runnable: Vec::new(),
            timers: BTreeMap::new(),
            next_timer: 0,
            current: None,
            steps: 0,
            ended: false,
        };
        Self { owner: Arc::new(Owner(Arc::new(World { seed, state: Mutex::new(state) }))) }
    }

    /// The runtime to give to what is simulated.
    #[must_use]
    pub fn runtime(&self) -> Arc<dyn Runtime> {
        Arc::new(SimulatedRuntime(Arc::clone(&self.owner.0)))
    }

    /// Time (that of the scheduler's clock) and random numbers (from the seed).
    #[must_use]
    pub fn environment(&self) -> Arc<dyn Environment> {
        let random = FixedEnvironment::new(Timestamp::default(), self.owner.0.seed ^ 0x5eed);
        Arc::new(SimulatedEnvironment { world: Arc::clone(&self.owner.0), random })
    }

    /// Starts a task that a report calls `name`. The receiver gives what it returns, and fails
    /// if the simulation ends first.
    pub fn spawn<T: Send + 'static>(
        &self,
        name: &str,
        future: impl Future<Output = T> + Send + 'static,
    ) -> oneshot::Receiver<T> {
        let (sender, receiver) = oneshot::channel();
        let future = Box::pin(async move { drop(sender.send(future.await)) });
        self.owner.0.spawn(Some(name), future);
        receiver
    }

    /// Runs everything until `main` has ended; what else there is stays for the next run.
    ///
    /// # Errors
    /// A deadlock, or more than ten million steps. The tasks that did not end stay in the simulation.
    pub fn run<T: Send + 'static>(&self, main: impl Future<Output = T> + Send + 'static) -> Result<T, Stuck> {
        self.run_for(STEP_LIMIT, main)
    }

    /// As [`Simulation::run`] with at most `limit` steps.
    ///
    /// # Errors
    /// As [`Simulation::run`].
    pub fn run_for<T: Send + 'static>(
        &self,
        limit: u64,
        main: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, Stuck> {
        let mut result = self.spawn("main", main);
        self.drive(limit, || result.try_recv().ok())
    }

    /// Runs until every task has ended or waits for ever, timers included: what is left are tasks that wait
    /// for the world outside.
    ///
    /// # Errors
    /// [`Stuck::StepLimit`]: a timer that is set again and again, for instance.
    pub fn settle(&self, limit: u64) -> Result<(), Stuck> {
        match self.drive(limit, || None::<()>) {
            Err(Stuck::Deadlock { .. }) | Ok(()) => Ok(()),
            Err(stuck) => Err(stuck),
        }
    }

    fn drive<T>(&self, limit: u64, mut done: impl FnMut() -> Option<T>) -> Result<T, Stuck> {
        let world = &self.owner.0;
        for _ in 0..limit {
            let went_on = world.step();
            if let Some(result) = done() {
                return Ok(result);
            }
            if !went_on {
                let state = world.state.lock();
                let waiting = state.tasks.values().map(|task| task.name.to_string()).collect();
                return Err(Stuck::Deadlock { seed: world.seed, steps: state.steps, waiting });
            }
        }
        let state = world.state.lock();
        let name = |number: &usize| Some(state.tasks.get(number)?.name.to_string());
        let runnable = state.runnable.iter().filter_map(name).collect();
        Err(Stuck::StepLimit { seed: world.seed, steps: state.steps, runnable })
    }

    /// How many times a task was polled.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.owner.0.state.lock().steps
    }
}

struct SimulatedRuntime(Arc<World>);

impl Runtime for SimulatedRuntime {
    fn spawn(&self, task: BoxFuture<'static, ()>) {
        self.0.spawn(None, task);
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        let at = self.monotonic().saturating_add(duration);
        Box::pin(Sleep { world: Arc::clone(&self.0), at, timer: None })
    }

    fn monotonic(&self) -> Duration {
        self.0.state.lock().now
    }
}

/// Waits for a moment of the scheduler's clock.
struct Sleep {
    world: Arc<World>,
    at: Duration,
    timer: Option<(Duration, u64)>,
}

impl Sleep {
    fn cancel(&mut self, state: &mut State) -> Option<Waker> {
        self.timer.take().and_then(|timer| state.timers.remove(&timer))
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let world = Arc::clone(&self.world);
        let mut state = world.state.lock();
        let old = self.cancel(&mut state);
        let poll = if state.now >= self.at {
            Poll::Ready(())
        } else {
            let timer = (self.at, state.next_timer);
            state.next_timer += 1;
            state.timers.insert(timer, context.waker().clone());
            self.timer = Some(timer);
            Poll::Pending
        };
        drop(state);
        drop(old);
        poll
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        let world = Arc::clone(&self.world);
        let waker = self.cancel(&mut world.state.lock());
        drop(waker);
    }
}

struct SimulatedEnvironment {
    world: Arc<World>,
    random: FixedEnvironment,
}

impl Environment for SimulatedEnvironment {
    fn now(&self) -> Timestamp {
        let now = self.world.state.lock().now;
        let since = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        Timestamp { seconds: EPOCH.saturating_add(since), nanoseconds: now.subsec_nanos() }
    }

    fn random(&self, bytes: &mut [u8]) {
        self.random.random(bytes);
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::Notify;

    use super::*;

    fn order_of(seed: u64) -> Vec<u32> {
        let world = Simulation::new(seed);
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = Vec::new();
        for number in 0..8 {
            let (order, runtime) = (Arc::clone(&order), world.runtime());
            tasks.push(world.spawn(&format!("number {number}"), async move {
                for _ in 0..3 {
                    tokio::task::yield_now().await;
                    order.lock().push(number);
                    runtime.sleep(Duration::from_millis(u64::from(number % 3))).await;
                }
            }));
        }
        world
            .run(async move {
                for task in tasks {
                    task.await.unwrap();
                }
            })
            .unwrap();
        Arc::into_inner(order).unwrap().into_inner()
    }

    #[test]
    fn one_seed_is_one_order_and_another_is_another() {
        assert_eq!(order_of(1), order_of(1));
        assert_ne!(order_of(1), order_of(2));
        assert_eq!(order_of(3).len(), 24);
    }

    #[test]
    fn the_clock_moves_only_by_timers() {
        let world = Simulation::new(7);
        let runtime = world.runtime();
        let environment = world.environment();
        let before = environment.now();
        let elapsed = world
            .run(async move {
                let day = Duration::from_secs(86_400);
                runtime.sleep(day).await;
                // A timer that is dropped before its time leaves nothing behind.
                tokio::select! {
                    biased;
                    () = runtime.sleep(Duration::from_secs(1)) => {}
                    () = runtime.sleep(day) => {}
                }
                runtime.monotonic()
            })
            .unwrap();
        assert_eq!(elapsed, Duration::from_secs(86_401));
        assert_eq!(environment.now().seconds - before.seconds, 86_401);
        world.settle(10).unwrap();
        assert_eq!(environment.now().seconds - before.seconds, 86_401);
    }

    #[test]
    fn a_deadlock_is_reported_with_the_names_of_those_that_wait() {
        let world = Simulation::new(3);
        let never = Arc::new(Notify::new());
        let left = world.spawn("left", {
            let never = Arc::clone(&never);
            async move { never.notified().await }
        });
        let stuck = world.run(async move { left.await.is_ok() }).unwrap_err();
        let Stuck::Deadlock { seed: 3, waiting, .. } = &stuck else { panic!("{stuck}") };
        assert_eq!(waiting, &["left", "main"]);
        never.notify_one();
        world.settle(100).unwrap();
    }

    #[test]
    fn tasks_that_keep_themselves_busy_meet_the_limit() {
        let world = Simulation::new(3);
        let stuck = world.run_for(1000, async {
            loop {
                tokio::task::yield_now().await;
            }
        });
        let Err(Stuck::StepLimit { runnable, .. }) = stuck else { panic!("it does not end") };
        assert_eq!(runnable, ["main"]);
    }

    #[test]
    fn what_is_left_is_dropped_with_the_world() {
        struct Told(Arc<AtomicBool>);
        impl Drop for Told {
            fn drop(&mut self) {
                self.0.store(true, Ordering::SeqCst);
            }
        }
        let dropped = Arc::new(AtomicBool::new(false));
        let world = Simulation::new(1);
        let (told, runtime) = (Told(Arc::clone(&dropped)), world.runtime());
        drop(world.spawn("holds the runtime", async move {
            runtime.sleep(Duration::from_secs(1)).await;
            std::future::pending::<()>().await;
            drop((told, runtime));
        }));
        world.settle(100).unwrap();
        assert!(!dropped.load(Ordering::SeqCst));
        drop(world);
        assert!(dropped.load(Ordering::SeqCst));
    }
}
