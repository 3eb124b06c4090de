//! Names the steps of a transaction, so that tests can stop a process at each of them and kill it there. In the program
//! nobody ever asks for that.

use std::io::Write;
use std::sync::atomic::{AtomicI64, Ordering};

use parking_lot::Mutex;

/// Steps until the process stops; negative while nobody counts.
static LEFT: AtomicI64 = AtomicI64::new(i64::MIN);
/// Only steps whose names begin so are counted.
static COUNTED: Mutex<String> = Mutex::new(String::new());

/// For tests of crashes: whoever writes to a store stands still for ever at the step after the next `steps`, of those whose
/// names begin with `counted`, with everything as it is, and says so on standard output. To be killed there.
pub fn stop_at_step(counted: &str, steps: i64) {
    counted.clone_into(&mut COUNTED.lock());
    LEFT.store(steps, Ordering::SeqCst);
}

/// The process has come to this point.
pub(super) fn reached(step: &'static str) {
    // In the program it ends here.
    if LEFT.load(Ordering::SeqCst) < 0 || !step.starts_with(COUNTED.lock().as_str()) {
        return;
    }
    if LEFT.fetch_sub(1, Ordering::SeqCst) != 0 {
        return;
    }
    let _ = writeln!(std::io::stdout(), "\nstopped at {step}");
    loop {
        std::thread::park();
    }
}
