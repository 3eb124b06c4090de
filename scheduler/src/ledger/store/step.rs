//! Names the steps of a transaction, so that tests can stop a process at each of them. Does nothing in the program.

/// The process has come to this point.
#[cfg(not(test))]
pub(super) fn reached(_: &'static str) {}

#[cfg(test)]
pub(super) use armed::{arm, reached};

#[cfg(test)]
mod armed {
    use std::sync::atomic::{AtomicI64, Ordering};

    /// Steps until the process stops; negative while nobody counts.
    static LEFT: AtomicI64 = AtomicI64::new(i64::MIN);

    /// The process stops at the step after the next `steps`.
    pub(in super::super) fn arm(steps: i64) {
        LEFT.store(steps, Ordering::SeqCst);
    }

    /// Stands still for ever where the count ends, with everything as it is, and says so. Whoever armed it kills it.
    pub(in super::super) fn reached(step: &'static str) {
        if LEFT.load(Ordering::SeqCst) < 0 {
            return;
        }
        if LEFT.fetch_sub(1, Ordering::SeqCst) == 0 {
            println!("\nstopped at {step}");
            loop {
                std::thread::park();
            }
        }
    }
}
