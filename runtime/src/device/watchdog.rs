//! Whether the executor is still getting anywhere: a step that does not come back in time is a fault of the device.
//!
//! Pure: launches, landings and looks come in with the time, a verdict comes out. Time counts only as it is looked at,
//! so that a process that was stopped for an hour, or a machine that slept, does not take the hour for the step's.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How often somebody must look.
pub(super) const WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// What one look adds to the time that a step took, at most: looks come late on a busy machine.
const LOOK_MAX: Duration = Duration::from_secs(2);
/// A step may always take so long.
const STEP_MAX: Duration = Duration::from_secs(30);
/// A step may take so many times what it was expected to.
const EXPECTED_TIMES: u32 = 20;
/// What a step may take while nothing is known of the device: a full one of a large model on few slow cores.
const UNKNOWN_STEP_MAX: Duration = Duration::from_secs(300);

/// A step that did not come back.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a step of {rows} rows has not come back within {} s", limit.as_secs())]
pub(crate) struct StepOverdue {
    rows: usize,
    limit: Duration,
}

/// Watches the steps of one executor, which computes them in order.
#[derive(Debug)]
pub(super) struct Watchdog {
    /// Steps at the executor, oldest first.
    steps: VecDeque<StepOverdue>,
    /// What the oldest took so far, as it was looked at.
    waited: Duration,
    looked: Instant,
}

impl Watchdog {
    pub(super) fn new(now: Instant) -> Self {
        Self { steps: VecDeque::new(), waited: Duration::ZERO, looked: now }
    }

    /// The executor has a step more, of which is known how long steps like it took.
    pub(super) fn launched(&mut self, rows: usize, expected: Option<Duration>, now: Instant) {
        if self.steps.is_empty() {
            self.begin(now);
        }
        let limit = expected.map_or(UNKNOWN_STEP_MAX, |e| STEP_MAX.max(e.saturating_mul(EXPECTED_TIMES)));
        self.steps.push_back(StepOverdue { rows, limit });
    }

    /// The oldest step came back.
    pub(super) fn landed(&mut self, now: Instant) {
        self.steps.pop_front();
        self.begin(now);
    }

    fn begin(&mut self, now: Instant) {
        (self.waited, self.looked) = (Duration::ZERO, now);
    }

    /// The step that is overdue, if one is.
    pub(super) fn look(&mut self, now: Instant) -> Result<(), StepOverdue> {
        self.waited += now.saturating_duration_since(self.looked).min(LOOK_MAX);
        self.looked = now;
        match self.steps.front() {
            Some(step) if self.waited > step.limit => Err(step.clone()),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Seconds until the oldest step is overdue, looked at every second.
    fn patience(dog: &mut Watchdog, now: &mut Instant) -> Option<u64> {
        (1..10_000).find(|_| {
            *now += WATCH_INTERVAL;
            dog.look(*now).is_err()
        })
    }

    #[test]
    fn a_step_may_take_what_is_expected_many_times_over() {
        for (expected, seconds) in
            [(None, 300), (Some(MS), 30), (Some(1_500 * MS), 30), (Some(2_000 * MS), 40), (Some(Duration::MAX), 0)]
        {
            let mut now = Instant::now();
            let mut dog = Watchdog::new(now);
            dog.launched(7, expected, now);
            match seconds {
                0 => assert_eq!(patience(&mut dog, &mut now), None),
                _ => assert_eq!(patience(&mut dog, &mut now), Some(seconds + 1), "{expected:?}"),
            }
        }
    }

    #[test]
    fn each_step_has_its_own_time() {
        let mut now = Instant::now();
        let mut dog = Watchdog::new(now);
        assert_eq!(patience(&mut dog, &mut now), None, "nothing runs");
        dog.launched(1, Some(MS), now);
        dog.launched(2, None, now);
        for _ in 0..25 {
            now += WATCH_INTERVAL;
            assert_eq!(dog.look(now), Ok(()));
        }
        dog.landed(now);
        let overdue = StepOverdue { rows: 2, limit: UNKNOWN_STEP_MAX };
        assert_eq!(patience(&mut dog, &mut now), Some(301), "the second begins when the first is done");
        assert_eq!(dog.look(now), Err(overdue));
        dog.landed(now);
        assert_eq!(dog.look(now), Ok(()));
        now += 10_000 * WATCH_INTERVAL;
        dog.launched(3, Some(MS), now);
        assert_eq!(patience(&mut dog, &mut now), Some(31), "idle time is not the next step's");
    }

    #[test]
    fn a_process_that_was_stopped_has_not_been_waiting() {
        let mut now = Instant::now();
        let mut dog = Watchdog::new(now);
        dog.launched(1, Some(MS), now);
        for _ in 0..10 {
            now += Duration::from_secs(3_600);
            assert_eq!(dog.look(now), Ok(()));
        }
        assert_eq!(patience(&mut dog, &mut now), Some(11), "20 s of ten looks, and 11 more");
    }
}
