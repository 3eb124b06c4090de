//! Whether replicas get on with what they were given, decided: what `/health` says of them.
//!
//! Pure: assignments, steps and the time come in, a verdict comes out. A replica owes a step while it has a sequence that
//! may go on: one whose developer reads. It pays by computing, and says so at least once a second however long a prompt
//! is; words about sequences that were cancelled are no payment, so a replica that was found stuck stays so until it
//! computes something or goes.

use std::time::{Duration, Instant};

/// A replica that owes a step for so long is stuck. Longer than a miner's own patience with its device usually is: the
/// miner then takes its replica back, and the sequences move on.
pub(crate) const SILENCE_MAX: Duration = Duration::from_secs(60);

/// How one replica gets on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// When it last computed, or was given something after it had nothing to do; `None` while it owes nothing.
    owes_since: Option<Instant>,
}

impl Progress {
    /// It has a sequence that may go on.
    pub(crate) fn given(&mut self, now: Instant) {
        self.owes_since.get_or_insert(now);
    }

    /// It sent a step. `computed` says whether that tells of anything but ends without tokens, `owes` whether any of its
    /// sequences may go on.
    pub(crate) fn stepped(&mut self, computed: bool, owes: bool, now: Instant) {
        if computed {
            self.owes_since = owes.then_some(now);
        } else if !owes && self.silence(now) <= SILENCE_MAX {
            self.owes_since = None;
        }
    }

    fn silence(self, now: Instant) -> Duration {
        self.owes_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }
}

/// Why nobody can be served, if every replica there is owes a step for more than [`SILENCE_MAX`]. Where there is none,
/// the scheduler is well and its requests are told so; where only some are stuck, the others go on.
pub(crate) fn verdict(replicas: &[Progress], now: Instant) -> Result<(), String> {
    let Some(shortest) = replicas.iter().map(|replica| replica.silence(now)).min() else { return Ok(()) };
    if shortest <= SILENCE_MAX {
        return Ok(());
    }
    let (count, seconds) = (replicas.len(), shortest.as_secs());
    Err(format!(
        "none of the replicas ({count}) has computed anything for {seconds} s though sequences are assigned to all of \
         them: look at the miners' logs and start them again"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn who_computes_or_has_nothing_to_do_is_well() {
        let start = Instant::now();
        let mut replica = Progress::default();
        assert_eq!(verdict(&[], start), Ok(()));
        assert_eq!(verdict(&[replica], start + 10_000 * S), Ok(()), "idle");
        replica.given(start);
        for second in (0..600).step_by(60) {
            assert_eq!(verdict(&[replica], start + second * S), Ok(()));
            replica.stepped(true, true, start + second * S);
        }
        replica.stepped(true, false, start + 600 * S);
        assert_eq!(verdict(&[replica], start + 10_000 * S), Ok(()), "idle again");
    }

    #[test]
    fn silence_counts_from_the_last_step_or_the_first_assignment() {
        let start = Instant::now();
        let mut replica = Progress::default();
        replica.given(start);
        replica.given(start + 50 * S);
        assert_eq!(verdict(&[replica], start + 60 * S), Ok(()));
        let why = verdict(&[replica], start + 61 * S).expect_err("it is stuck");
        assert!(why.contains("(1)") && why.contains("61 s"), "{why}");
        replica.stepped(true, true, start + 70 * S);
        assert_eq!(verdict(&[replica], start + 130 * S), Ok(()));
        assert!(verdict(&[replica], start + 131 * S).is_err());
    }

    #[test]
    fn one_replica_that_can_go_on_is_enough() {
        let start = Instant::now();
        let mut stuck = Progress::default();
        stuck.given(start);
        let late = start + 100 * S;
        assert!(verdict(&[stuck, stuck], late).is_err());
        assert_eq!(verdict(&[stuck, Progress::default(), stuck], late), Ok(()), "an idle one takes what comes");
        let mut other = Progress::default();
        other.given(late - S);
        assert_eq!(verdict(&[stuck, other], late), Ok(()));
    }

    #[test]
    fn who_is_stuck_does_not_recover_by_cancelling() {
        let start = Instant::now();
        let mut replica = Progress::default();
        replica.given(start);
        let mut in_time = replica;
        in_time.stepped(false, false, start + 59 * S);
        assert_eq!(verdict(&[in_time], start + 200 * S), Ok(()), "its only developer went");
        in_time = replica;
        in_time.stepped(false, true, start + 59 * S);
        assert!(verdict(&[in_time], start + 61 * S).is_err(), "one of its developers went");
        replica.stepped(false, false, start + 120 * S);
        assert!(verdict(&[replica], start + 121 * S).is_err());
        replica.stepped(true, false, start + 122 * S);
        assert_eq!(verdict(&[replica], start + 300 * S), Ok(()), "it computed after all");
    }
}
