//! A pool of threads that share out the chunks of one job at a time. It never waits for a thread that has not begun, so
//! a busy machine costs speed and nothing else.
//!
//! A job is a function called once for every chunk number. The caller works too; whoever is free claims the next chunk.
//! Idle workers spin for a moment, because the next operation of a forward pass is microseconds away, and then sleep.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering::*};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

/// How long an idle thread spins before it sleeps: longer than the gaps inside a forward pass, far shorter than a
/// scheduler's time slice.
const SPIN: Duration = Duration::from_micros(20);

type Work<'a> = &'a (dyn Fn(usize) + Sync);

/// Threads that run jobs together with their caller.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<Worker>,
}

struct Worker {
    /// Set by the worker before it sleeps; whoever clears it wakes it.
    asleep: Arc<AtomicBool>,
    handle: Option<JoinHandle<()>>,
}

struct Shared {
    /// `chunks << 32 | next`: the current job's size and its first unclaimed chunk. Claims are compare-and-swaps of both
    /// together, so a claim that succeeds is always one of the job that is current at that instant.
    ticket: AtomicU64,
    /// The current job: a pointer to a [`Work`] on the caller's stack. Read only by holders of a claimed chunk.
    work: AtomicPtr<()>,
    /// Chunks of the current job that have returned.
    done: AtomicU32,
    /// The caller sleeps until `done` reaches the number of chunks.
    caller_asleep: AtomicBool,
    caller: Mutex<Option<Thread>>,
    /// What the first panicking chunk of the current job panicked with.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    stop: AtomicBool,
}

impl Pool {
    /// A pool of `threads` including the caller: `threads - 1` are started. Zero counts as one. Where the system
    /// refuses a thread the pool is smaller.
    pub fn new(threads: usize) -> Self {
        let shared = Arc::new(Shared {
            ticket: AtomicU64::new(0),
            work: AtomicPtr::new(null_mut()),
            done: AtomicU32::new(0),
            caller_asleep: AtomicBool::new(false),
            caller: Mutex::new(None),
            panic: Mutex::new(None),
            stop: AtomicBool::new(false),
        });
        let workers = (1..threads).map_while(|i| Worker::start(i, &shared)).collect();
        Self { shared, workers }
    }

    /// Threads that may work on a job, the caller included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `work(0) .. work(chunks - 1)`, each exactly once, on any thread and in any order, and returns when all have
    /// returned.
    ///
    /// # Panics
    /// With the payload of a chunk that panicked, when no chunk is running any more. The pool stays usable.
    pub fn run(&mut self, chunks: usize, work: Work<'_>) {
        if self.workers.is_empty() || chunks <= 1 {
            (0..chunks).for_each(work);
            return;
        }
        let chunks = u32::try_from(chunks).expect("a job has fewer than 2^32 chunks");
        self.publish(chunks, &work);
        while self.shared.run_one() {}
        self.shared.wait(chunks);
        let panic = self.shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(payload) = panic {
            resume_unwind(payload);
        }
    }

    /// Makes `work` the current job and wakes as many sleepers as could find a chunk.
    fn publish(&self, chunks: u32, work: &Work<'_>) {
        // `&mut self` on `run` and its wait make sure that the last job is over: no chunk of it is unclaimed or running.
        self.shared.done.store(0, Relaxed);
        self.shared.work.store(std::ptr::from_ref(work).cast_mut().cast(), Relaxed);
        self.shared.ticket.store(u64::from(chunks) << 32, SeqCst);
        for worker in self.workers.iter().take(chunks as usize - 1) {
            worker.wake();
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        for worker in &mut self.workers {
            worker.wake();
            if let Some(handle) = worker.handle.take() {
                // A worker catches every panic of a job, so there is nothing in the result to report.
                let _ = handle.join();
            }
        }
    }
}

impl Worker {
    fn start(index: usize, shared: &Arc<Shared>) -> Option<Self> {
        let asleep = Arc::new(AtomicBool::new(false));
        let (shared, flag) = (shared.clone(), asleep.clone());
        let builder = thread::Builder::new().name(format!("kernels-{index}"));
        let handle = builder.spawn(move || shared.serve(&flag)).ok()?;
        Some(Self { asleep, handle: Some(handle) })
    }

    fn wake(&self) {
        if self.asleep.swap(false, SeqCst)
            && let Some(handle) = &self.handle
        {
            handle.thread().unpark();
        }
    }
}

impl Shared {
    /// A worker's life.
    fn serve(&self, asleep: &AtomicBool) {
        while !self.stop.load(SeqCst) {
            if self.run_one() || spin_until(|| self.has_work()) {
                continue;
            }
            // Sequential consistency orders this flag and the ticket: either the publisher sees the flag and wakes us,
            // or we see its ticket and stay awake.
            asleep.store(true, SeqCst);
            while asleep.load(SeqCst) && !self.has_work() {
                thread::park();
            }
            asleep.store(false, SeqCst);
        }
    }

    fn has_work(&self) -> bool {
        let ticket = self.ticket.load(SeqCst);
        (ticket as u32) < (ticket >> 32) as u32 || self.stop.load(SeqCst)
    }

    /// Claims one chunk and runs it; false if there is none.
    fn run_one(&self) -> bool {
        let mut ticket = self.ticket.load(Acquire);
        loop {
            if ticket as u32 >= (ticket >> 32) as u32 {
                return false;
            }
            match self.ticket.compare_exchange_weak(ticket, ticket + 1, AcqRel, Acquire) {
                Ok(_) => break,
                Err(now) => ticket = now,
            }
        }
        let (chunk, chunks) = (ticket as u32, (ticket >> 32) as u32);
        let work = self.work.load(Relaxed).cast_const().cast::<Work<'_>>();
        // SAFETY: this thread holds an unfinished chunk of the current job. `run` does not return before `done` has
        // counted that chunk, so the reference it published, and what that refers to, are alive. The claim acquired the
        // ticket that was released after the pointer was stored, so this is that job's pointer.
        let work = unsafe { *work };
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| work(chunk as usize))) {
            self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(payload);
        }
        // From here on the job may be gone: only `self` is touched.
        if self.done.fetch_add(1, SeqCst) + 1 == chunks && self.caller_asleep.load(SeqCst) {
            // Left in place: a caller that woke by itself may already have put it there for its next job.
            if let Some(caller) = &*self.caller.lock().unwrap_or_else(PoisonError::into_inner) {
                caller.unpark();
            }
        }
        true
    }

    /// Waits until `chunks` chunks have returned.
    fn wait(&self, chunks: u32) {
        let finished = || self.done.load(SeqCst) == chunks;
        if finished() || spin_until(finished) {
            return;
        }
        *self.caller.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread::current());
        self.caller_asleep.store(true, SeqCst);
        while !finished() {
            thread::park();
        }
        self.caller_asleep.store(false, SeqCst);
    }
}

/// Spins until `ready` or for [`SPIN`]; whether it became ready.
fn spin_until(ready: impl Fn() -> bool) -> bool {
    let begin = Instant::now();
    loop {
        // Reading the clock costs more than looking at a flag.
        for _ in 0..32 {
            if ready() {
                return true;
            }
            std::hint::spin_loop();
        }
        if begin.elapsed() > SPIN {
            return false;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    #![allow(clippy::disallowed_methods, reason = "tests sleep on threads of their own")]
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[test]
    fn every_chunk_runs_once_in_many_small_jobs() {
        for threads in [1, 2, 3, 8] {
            let mut pool = Pool::new(threads);
            for job in 0..3000usize {
                let chunks = job % 17;
                // A fresh allocation for each job, so that touching an old one would be seen by a memory checker.
                let seen: Vec<AtomicUsize> = (0..chunks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(chunks, &|i| {
                    seen[i].fetch_add(1, Relaxed);
                });
                assert!(seen.iter().all(|s| s.load(Relaxed) == 1), "job {job} on {threads} threads");
            }
        }
    }

    #[test]
    fn sleeping_threads_wake_up() {
        let mut pool = Pool::new(3);
        for _ in 0..20 {
            thread::sleep(Duration::from_millis(2));
            let names = Mutex::new(std::collections::HashSet::new());
            pool.run(8, &|_| {
                thread::sleep(Duration::from_micros(500));
                names.lock().unwrap().insert(thread::current().id());
            });
            assert!(names.into_inner().unwrap().len() > 1, "the caller worked alone");
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_survives() {
        for threads in [1, 4] {
            let mut pool = Pool::new(threads);
            for round in 0..50 {
                let caught = catch_unwind(AssertUnwindSafe(|| {
                    pool.run(9, &|i| assert!(i != round % 9, "chunk {i}"));
                }));
                let message = *caught.unwrap_err().downcast::<String>().unwrap();
                assert_eq!(message, format!("chunk {}", round % 9));
                let count = AtomicUsize::new(0);
                pool.run(9, &|_| {
                    count.fetch_add(1, Relaxed);
                });
                assert_eq!(count.into_inner(), 9);
            }
        }
    }

    #[test]
    fn a_slow_worker_holds_up_its_own_chunk_only() {
        let mut pool = Pool::new(2);
        let (others, caller) = (AtomicUsize::new(0), thread::current().id());
        let mut worker_took_part = false;
        // The worker's first chunk ends only when the caller has run all the others.
        for _ in 0..100 {
            others.store(0, SeqCst);
            let held = AtomicBool::new(false);
            pool.run(20, &|_| {
                if thread::current().id() == caller {
                    thread::sleep(Duration::from_micros(10));
                } else {
                    held.store(true, SeqCst);
                    let begin = Instant::now();
                    while others.load(SeqCst) < 19 {
                        assert!(begin.elapsed() < Duration::from_secs(20), "the caller waits for a slow worker");
                        thread::yield_now();
                    }
                }
                others.fetch_add(1, SeqCst);
            });
            worker_took_part |= held.into_inner();
        }
        assert!(worker_took_part);
    }
}
