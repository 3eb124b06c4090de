//! Names the steps of a transaction, so that tests can stop a process at each of them and kill it there. In the program
//! nobody ever asks for that.

use std::io::Write;
use std::sync::atomic::{AtomicI64, Ordering};

/// Steps until the process stops; negative while nobody counts.
static LEFT: AtomicI64 = AtomicI64::new(i64::MIN);

/// For tests of crashes: whoever writes to a store stands still for ever at the step after the next `steps`, with
/// everything as it is, and says so on standard output. To be killed there.
pub fn stop_at_step(steps: i64) {
    LEFT.store(steps, Ordering::SeqCst);
}

/// The process has come to this point.
pub(super) fn reached(step: &'static str) {
    if LEFT.load(Ordering::SeqCst) < 0 || LEFT.fetch_sub(1, Ordering::SeqCst) != 0 {
        return;
    }
    let _ = writeln!(std::io::stdout(), "\nstopped at {step}");
    loop {
        std::thread::park();
    }
}
