//! Masks of constrained draws, computed by threads of their own while the step that they are for is computed.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use cuckoo_kernels::sampling::TokenMask;
use cuckoo_models::Matcher;
use cuckoo_wire::limits::REPLICA_SEQUENCES_MAX;

/// Masks that may wait for a thread: one for each sequence of a step, in each step that may be in flight.
const JOBS_MAX: usize = 2 * REPLICA_SEQUENCES_MAX;
/// A mask that takes longer is given up, and its sequence with it. What masks cost is bounded far below.
const MASK_TIME_MAX: Duration = Duration::from_secs(10);

/// Where one output stands in its grammar; shared by whoever asks for its next mask and whoever computes it.
pub type SharedMatcher = Arc<Mutex<Matcher>>;

/// The threads that compute masks. They end when this is dropped.
#[derive(Debug)]
pub struct MaskWorkers {
    jobs: SyncSender<Job>,
}

/// A mask that is being computed.
#[derive(Clone, Debug, Default)]
pub struct PendingMask(Arc<Slot>);

#[derive(Debug, Default)]
struct Slot {
    outcome: Mutex<Option<Result<Arc<TokenMask>, String>>>,
    filled: Condvar,
}

struct Job {
    matcher: SharedMatcher,
    /// Tokens that the matcher has not been told of.
    untold: Vec<u32>,
    promise: Promise,
}

/// Whoever drops it without an answer has failed; nobody waits for ever.
struct Promise(PendingMask);

impl MaskWorkers {
    /// Starts `threads` threads.
    ///
    /// # Errors
    /// The system's, if it has no thread to give.
    pub fn start(threads: usize) -> std::io::Result<Self> {
        let (jobs, waiting) = sync_channel(JOBS_MAX);
        let waiting = Arc::new(Mutex::new(waiting));
        for _ in 0..threads.max(1) {
            let waiting = waiting.clone();
            std::thread::Builder::new().name("masks".to_owned()).spawn(move || work(&waiting))?;
        }
        Ok(Self { jobs })
    }

    /// Goes on past `untold`, then computes which tokens may come next. Returns at once.
    pub fn mask(&self, matcher: &SharedMatcher, untold: Vec<u32>) -> PendingMask {
        let pending = PendingMask::default();
        let job = Job { matcher: matcher.clone(), untold, promise: Promise(pending.clone()) };
        // A job that finds no room is dropped, and its promise says so.
        let _ = self.jobs.try_send(job);
        pending
    }
}

impl PendingMask {
    /// A mask that will not come.
    pub(super) fn failed(why: &str) -> Self {
        let pending = Self::default();
        pending.fill(Err(why.to_owned()));
        pending
    }

    /// Waits for the mask; `None` if it failed.
    pub fn wait(&self) -> Option<Arc<TokenMask>> {
        let outcome = self.0.outcome.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.0.filled.wait_timeout_while(outcome, MASK_TIME_MAX, |outcome| outcome.is_none());
        let (mut outcome, _) = waited.unwrap_or_else(PoisonError::into_inner);
        outcome.get_or_insert_with(|| Err("the mask of its constraint took too long".to_owned())).as_ref().ok().cloned()
    }

    /// Why it failed, if it has.
    pub fn failure(&self) -> Option<String> {
        self.0.outcome.lock().unwrap_or_else(PoisonError::into_inner).as_ref()?.as_ref().err().cloned()
    }

    fn fill(&self, outcome: Result<Arc<TokenMask>, String>) {
        self.0.outcome.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(outcome);
        self.0.filled.notify_all();
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.0.fill(Err("the mask of its constraint could not be computed".to_owned()));
    }
}

fn work(waiting: &Mutex<Receiver<Job>>) {
    loop {
        let job = waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job { matcher, untold, promise }) = job else { return };
        let mut matcher = matcher.lock().unwrap_or_else(PoisonError::into_inner);
        let mask = matcher.accept(&untold).and_then(|()| matcher.mask());
        promise.0.fill(mask.map(|words| Arc::new(TokenMask::from_words(words))).map_err(|e| e.to_string()));
    }
}
