//! Persistent worker threads that run one closure together, and the barrier they meet at.
//!
//! Workers spin for a moment between inferences, then park: idle ones cost nothing.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Turns before a waiting thread gives its core away.
const SPINS: u32 = 20_000;

/// A thread panicked; the inference has no result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Poisoned;

/// A reusable spinning barrier.
#[derive(Debug)]
pub struct Barrier {
    threads: usize,
    arrived: AtomicUsize,
    generation: AtomicUsize,
    poisoned: AtomicBool,
}

impl Barrier {
    fn new(threads: usize) -> Self {
        Barrier { threads, arrived: AtomicUsize::new(0), generation: AtomicUsize::new(0), poisoned: AtomicBool::new(false) }
    }

    /// Waits for the other threads; fails if one of them panicked.
    pub fn wait(&self) -> Result<(), Poisoned> {
        if self.threads == 1 {
            return Ok(());
        }
        let generation = self.generation.load(Ordering::Acquire);
        if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == self.threads {
            self.arrived.store(0, Ordering::Relaxed);
            self.generation.store(generation.wrapping_add(1), Ordering::Release);
        } else {
            let mut spins = 0;
            while self.generation.load(Ordering::Acquire) == generation {
                if self.poisoned.load(Ordering::Acquire) {
                    return Err(Poisoned);
                }
                spins += 1;
                // More threads than free cores: let the one we wait for run.
                if spins > SPINS { std::thread::yield_now() } else { std::hint::spin_loop() }
            }
        }
        if self.poisoned.load(Ordering::Acquire) { Err(Poisoned) } else { Ok(()) }
    }
}

type Work<'a> = dyn Fn(usize, &Barrier) + Sync + 'a;

/// A lifetime-erased pointer to the closure of the current [`Pool::run`].
#[derive(Clone, Copy)]
struct Job(*const Work<'static>);
// SAFETY: the closure is Sync, and `Pool::run` keeps it alive until every worker is done with it.
unsafe impl Send for Job {}

#[derive(Default)]
struct State {
    job: Option<Job>,
    stop: bool,
}

struct Shared {
    state: Mutex<State>,
    wake: Condvar,
    epoch: AtomicUsize,
    done: AtomicUsize,
    barrier: Barrier,
}

/// The threads. The caller of [`Pool::run`] is thread 0.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// One inference at a time.
    turn: Mutex<()>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No invariant of ours spans a panic while a lock is held.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// Starts `threads − 1` workers.
    pub fn new(threads: usize) -> std::io::Result<Self> {
        let threads = threads.max(1);
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            wake: Condvar::new(),
            epoch: AtomicUsize::new(0),
            done: AtomicUsize::new(0),
            barrier: Barrier::new(threads),
        });
        let mut pool = Pool { shared: shared.clone(), workers: Vec::new(), turn: Mutex::new(()) };
        for thread in 1..threads {
            let shared = shared.clone();
            pool.workers.push(std::thread::Builder::new().name(format!("edge-{thread}")).spawn(move || worker(thread, &shared))?);
        }
        Ok(pool)
    }

    /// Number of threads, the caller's included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `work(thread, barrier)` on every thread and returns when all are done.
    pub fn run(&self, work: &Work<'_>) -> Result<(), Poisoned> {
        let _turn = lock(&self.turn);
        let shared = &*self.shared;
        let workers = self.workers.len();
        if workers > 0 {
            // SAFETY: only the lifetime changes; workers drop the pointer before `done` reaches `workers`, and
            // this function does not return (or unwind) before that.
            let job = Job(unsafe { std::mem::transmute::<*const Work<'_>, *const Work<'static>>(work) });
            shared.done.store(0, Ordering::Relaxed);
            let mut state = lock(&shared.state);
            state.job = Some(job);
            // Under the lock, so that a worker about to sleep cannot miss it.
            shared.epoch.fetch_add(1, Ordering::Release);
            drop(state);
            shared.wake.notify_all();
        }
        if catch_unwind(AssertUnwindSafe(|| work(0, &shared.barrier))).is_err() {
            shared.barrier.poisoned.store(true, Ordering::Release);
        }
        let mut spins = 0;
        while shared.done.load(Ordering::Acquire) < workers {
            spins += 1;
            if spins > SPINS { std::thread::yield_now() } else { std::hint::spin_loop() }
        }
        if shared.barrier.poisoned.swap(false, Ordering::AcqRel) {
            shared.barrier.arrived.store(0, Ordering::Relaxed);
            return Err(Poisoned);
        }
        Ok(())
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let mut state = lock(&self.shared.state);
        state.stop = true;
        self.shared.epoch.fetch_add(1, Ordering::Release);
        drop(state);
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            // A worker's own panic was reported by `run`.
            let _ = worker.join();
        }
    }
}

fn worker(thread: usize, shared: &Shared) {
    let mut seen = 0;
    loop {
        let mut spins = 0;
        while shared.epoch.load(Ordering::Acquire) == seen && spins < SPINS {
            spins += 1;
            std::hint::spin_loop();
        }
        let mut state = lock(&shared.state);
        while shared.epoch.load(Ordering::Acquire) == seen {
            state = shared.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.stop {
            return;
        }
        seen = shared.epoch.load(Ordering::Acquire);
        let job = state.job;
        drop(state);
        if let Some(Job(work)) = job {
            // SAFETY: `Pool::run` keeps the closure alive until `done` counts this thread.
            let work = unsafe { &*work };
            if catch_unwind(AssertUnwindSafe(|| work(thread, &shared.barrier))).is_err() {
                shared.barrier.poisoned.store(true, Ordering::Release);
            }
        }
        shared.done.fetch_add(1, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_thread_works_and_barriers_order_the_phases() {
        let pool = Pool::new(4).unwrap();
        for _ in 0..500 {
            let (first, wrong) = (AtomicUsize::new(0), AtomicUsize::new(0));
            pool.run(&|_, barrier: &Barrier| {
                first.fetch_add(1, Ordering::Relaxed);
                barrier.wait().unwrap();
                wrong.fetch_add(usize::from(first.load(Ordering::Relaxed) != 4), Ordering::Relaxed);
            })
            .unwrap();
            assert_eq!((first.into_inner(), wrong.into_inner()), (4, 0));
        }
    }

    #[test]
    fn a_panic_is_an_error_and_the_pool_lives_on() {
        let pool = Pool::new(3).unwrap();
        let result = pool.run(&|thread, barrier: &Barrier| {
            if thread == 1 {
                std::panic::panic_any("expected by this test");
            }
            let _ = barrier.wait();
        });
        assert_eq!(result, Err(Poisoned));
        pool.run(&|_, barrier: &Barrier| barrier.wait().unwrap()).unwrap();
    }
}
