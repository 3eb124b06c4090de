//! Whether a replica still gets on with what it was given, decided: who says nothing, and who says something and computes
//! nothing.
//!
//! Pure: frames, orders and looks come in with the time, a verdict comes out. A suspicion is cheap and may be wrong: what it
//! leads to is an offer of the same work to somebody else. So it comes soon, and goes as soon as the replica speaks.

use std::time::{Duration, Instant};

use cuckoo_wire::limits::{
    MINER_BEAT, MINER_BEATS_MISSED_MAX, MINER_IDLE_BEAT, STEP_DUE_TIMES, STREAM_GAP_MIN, STREAM_GAP_TIMES,
};
use cuckoo_wire::message::Beat;

/// How often somebody must look.
pub(super) const LOOK_INTERVAL: Duration = Duration::from_millis(25);
/// How often where nobody has anything to do: of many miners that may be most.
pub(super) const IDLE_LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// What one look adds to the time, in intervals. A scheduler that was itself stopped, or starved of a processor, must not
/// take that for the silence of all its miners; what they have said meanwhile is read before enough looks have gone by.
const LOOK_INTERVALS_MAX: u32 = 2;
/// What a replica's steps take while nobody has seen two of them.
const PACE_UNKNOWN: Duration = Duration::from_millis(125);
/// The weight of the newest step in the average of all.
const PACE_SHARE: u32 = 8;

/// Time as it is looked at, since the connection was made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    time: Duration,
    looked: Instant,
    /// When the next look is due, after that.
    interval: Duration,
}

impl Clock {
    pub(super) fn new(now: Instant) -> Self {
        Self { time: Duration::ZERO, looked: now, interval: LOOK_INTERVAL }
    }

    /// The time of an event now.
    pub(super) fn at(&self, now: Instant) -> Duration {
        self.time + now.saturating_duration_since(self.looked).min(self.interval * LOOK_INTERVALS_MAX)
    }

    /// Somebody looks, and will look again after `interval`.
    pub(super) fn look(&mut self, interval: Duration, now: Instant) -> Duration {
        self.time = self.at(now);
        (self.looked, self.interval) = (self.looked.max(now), interval);
        self.time
    }
}

/// Why a replica is suspect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Suspicion {
    /// It says nothing.
    Silent,
    /// It speaks, and computes nothing.
    Stalled,
}

/// One replica, as it is heard. All times are those of a [`Clock`].
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pulse {
    /// When it last said anything, or had its first sequence.
    heard: Duration,
    /// When it last computed, or had something to compute again.
    computed: Duration,
    /// Steps, by its heartbeats.
    steps: u64,
    /// When its last tokens came, while there has been something to compute ever since.
    tokens: Option<Duration>,
    /// What its steps take on average.
    pace: Option<Duration>,
    /// What it expects of the step that it computes.
    due: Duration,
    /// Whether it has a sequence, and whether one of them may go on.
    has_sequences: bool,
    owes: bool,
}

impl Pulse {
    /// It is offered now.
    pub(super) fn new(at: Duration) -> Self {
        Self { heard: at, computed: at, ..Self::default() }
    }

    /// What it has to do, now. Whoever had nothing to do seldom spoke, and rightly so.
    pub(super) fn has(&mut self, has_sequences: bool, owes: bool, at: Duration) {
        if has_sequences && !self.has_sequences {
            self.heard = at;
        }
        if owes && !self.owes {
            self.computed = at;
        }
        if !owes {
            self.tokens = None;
        }
        (self.has_sequences, self.owes) = (has_sequences, owes);
    }

    /// It sent a heartbeat. Whether it has computed since the last one.
    pub(super) fn beat(&mut self, beat: Beat, at: Duration) -> bool {
        self.heard = at;
        let has_computed = beat.steps > self.steps;
        if has_computed {
            self.computed = at;
        }
        (self.steps, self.due) = (beat.steps, beat.due());
        has_computed
    }

    /// It sent a step, which tells of something computed or not, with tokens or without.
    pub(super) fn stepped(&mut self, has_computed: bool, has_tokens: bool, at: Duration) {
        self.heard = at;
        if !has_computed {
            return;
        }
        (self.computed, self.due) = (at, Duration::ZERO);
        if !has_tokens {
            return;
        }
        if let Some(last) = self.tokens.replace(at) {
            // A fault is no pace: one gap counts for no more than what was bearable.
            let took = at.saturating_sub(last).min(self.patience());
            self.pace = Some(match self.pace {
                Some(pace) => (pace * (PACE_SHARE - 1) + took) / PACE_SHARE,
                None => took,
            });
        }
    }

    /// How long a sequence that decodes may be silent.
    pub(super) fn patience(&self) -> Duration {
        let pace = self.pace.unwrap_or(PACE_UNKNOWN) * STREAM_GAP_TIMES;
        STREAM_GAP_MIN.max(pace).max(self.due * STEP_DUE_TIMES)
    }

    /// What is to be thought of it after `before`, where a word takes `round_trip` to be asked for and to come. Who was
    /// found stalled must compute, though all that it had has gone elsewhere.
    pub(super) fn suspicion(&self, round_trip: Duration, before: Option<Suspicion>, at: Duration) -> Option<Suspicion> {
        // What was too long for one who had something to do stays so.
        let is_busy = self.has_sequences || before == Some(Suspicion::Silent);
        let beat = if is_busy { MINER_BEAT } else { MINER_IDLE_BEAT };
        let is_silent = at.saturating_sub(self.heard) > beat * MINER_BEATS_MISSED_MAX + round_trip;
        // Steps without tokens, as of a long prompt, are told of by heartbeats.
        let stall_max = self.patience() + MINER_BEAT * 2 + round_trip;
        let is_stalled = at.saturating_sub(self.computed) > stall_max;
        match () {
            () if is_silent => Some(Suspicion::Silent),
            () if is_stalled && (self.owes || before == Some(Suspicion::Stalled)) => Some(Suspicion::Stalled),
            () => None,
        }
    }
}

#[cfg(test)]
mod tests;
