//! What runs on one miner, and how its replicas get on: splits step frames, and says who should look for somebody else.
//! Pure but for the channels that news leave by.

use std::time::{Duration, Instant};

use cuckoo_wire::limits::CREDIT_TOKENS;
use cuckoo_wire::message::{Beat, End, Invalid, ReplicaId, SequenceId, StepItem};
use foldhash::{HashMap, HashMapExt};

use super::news::{self, Hearer, News, Standing, Teller};
use super::suspicion::{Clock, IDLE_LOOK_INTERVAL, LOOK_INTERVAL, Pulse, Suspicion};
use crate::dispatcher::progress::Progress;

/// What runs on a miner, and how its replicas get on. One lock holds both, so that no sequence joins a replica that has
/// just gone.
pub(super) struct Sequences {
    replicas: HashMap<ReplicaId, Replica>,
    entries: HashMap<SequenceId, Entry>,
    clock: Clock,
}

#[derive(Default)]
struct Replica {
    progress: Progress,
    pulse: Pulse,
    suspicion: Option<Suspicion>,
    is_leaving: bool,
}

/// Where one sequence's tokens go.
struct Entry {
    replica: ReplicaId,
    received: u32,
    credited: u32,
    news: Teller,
    /// When its last token came, or it was given credit again; `None` before the first.
    spoke: Option<Duration>,
}

impl Entry {
    fn owes(&self) -> bool {
        self.received < self.credited
    }
}

impl Sequences {
    pub(super) fn new(now: Instant) -> Self {
        Self { replicas: HashMap::new(), entries: HashMap::new(), clock: Clock::new(now) }
    }

    /// A replica is there.
    pub(super) fn add_replica(&mut self, replica: ReplicaId, now: Instant) {
        let pulse = Pulse::new(self.clock.at(now));
        self.replicas.insert(replica, Replica { pulse, ..Replica::default() });
    }

    /// A replica is gone: the channels of its sequences end.
    pub(super) fn lose_replica(&mut self, replica: ReplicaId) {
        self.replicas.remove(&replica);
        self.entries.retain(|_, entry| entry.replica != replica);
    }

    /// Everything is gone, and nobody joins any more.
    pub(super) fn lose_all(&mut self) {
        self.replicas.clear();
        self.entries.clear();
    }

    /// A replica takes nothing more, and its sequences should move.
    pub(super) fn leave(&mut self, replica: ReplicaId) {
        if let Some(leaving) = self.replicas.get_mut(&replica) {
            leaving.is_leaving = true;
            self.tell(replica);
        }
    }

    /// How a replica gets on; `None` if it has gone.
    pub(super) fn progress(&self, replica: ReplicaId) -> Option<Progress> {
        self.replicas.get(&replica).map(|replica| replica.progress)
    }

    /// A sequence is assigned to a replica; `None` if that has gone, and where it is heard otherwise.
    pub(super) fn join(&mut self, sequence: SequenceId, replica: ReplicaId, now: Instant) -> Option<Hearer> {
        let on = self.replicas.get_mut(&replica)?;
        on.progress.given(now);
        let standing = Standing { is_suspect: on.suspicion.is_some(), is_leaving: on.is_leaving };
        let (news, hearer) = news::channel(standing);
        let entry = Entry { replica, received: 0, credited: CREDIT_TOKENS, news, spoke: None };
        self.entries.insert(sequence, entry);
        self.count(replica, now);
        Some(hearer)
    }

    /// A sequence is abandoned; false if it has ended.
    pub(super) fn remove(&mut self, sequence: SequenceId, now: Instant) -> bool {
        let Some(entry) = self.entries.remove(&sequence) else { return false };
        self.count(entry.replica, now);
        true
    }

    /// A sequence may send up to `tokens` in all.
    pub(super) fn credit(&mut self, sequence: SequenceId, tokens: u32, now: Instant) {
        let at = self.clock.at(now);
        let Some(entry) = self.entries.get_mut(&sequence) else { return };
        if !entry.owes() {
            entry.spoke = entry.spoke.map(|_| at);
        }
        entry.credited = tokens;
        let replica = entry.replica;
        if let Some(replica) = self.replicas.get_mut(&replica) {
            replica.progress.given(now);
        }
        self.count(replica, now);
    }

    /// A replica sent a heartbeat.
    pub(super) fn beat(&mut self, replica: ReplicaId, beat: Beat, now: Instant) {
        let (at, owes) = (self.clock.at(now), self.owes(replica));
        let Some(replica) = self.replicas.get_mut(&replica) else { return };
        if replica.pulse.beat(beat, at) {
            replica.progress.stepped(true, owes, now);
        }
    }

    /// Hands a step's items to their requests.
    pub(super) fn split(&mut self, replica: ReplicaId, items: Vec<StepItem>, now: Instant) -> Result<(), Invalid> {
        let at = self.clock.at(now);
        let has_tokens = items.iter().any(|item| !item.tokens.is_empty());
        let has_output = |item: &StepItem| {
            !item.tokens.is_empty() || !item.prompt_logprobs.is_empty() || matches!(item.end, Some(End::Embedded(_)))
        };
        let computed = items.iter().any(has_output);
        for item in items {
            // Ended and abandoned sequences may still have news under way.
            let Some(entry) = self.entries.get_mut(&item.sequence) else { continue };
            if entry.replica != replica || entry.received != item.first {
                return Err(Invalid(format!(
                    "sequence {} continues at token {} where {} was expected",
                    item.sequence.0, item.first, entry.received
                )));
            }
            if item.tokens.is_empty() && item.end.is_none() && item.prompt_logprobs.is_empty() {
                return Err(Invalid("an item without news".to_owned()));
            }
            entry.received += item.tokens.len() as u32;
            if entry.received > entry.credited {
                return Err(Invalid(format!("sequence {} sent more tokens than its credit", item.sequence.0)));
            }
            if !item.tokens.is_empty() {
                entry.spoke = Some(at);
                // Known before what it says is: whoever else is asked may have spoken too, and one of the two must go.
                let is_leaving = entry.news.standing().is_leaving;
                entry.news.tell_standing(Standing { is_suspect: false, is_leaving });
            }
            let ended = item.end.is_some();
            let StepItem { tokens, end, logprobs, prompt_logprobs, .. } = item;
            // Who keeps to credit and whole portions of scores always finds room.
            if entry.news.tell(News { tokens, end, logprobs, prompt_logprobs }).is_err() {
                return Err(Invalid(format!("sequence {} sent more items than it can have", item.sequence.0)));
            }
            if ended {
                self.entries.remove(&item.sequence);
            }
        }
        let owes = self.owes(replica);
        if let Some(on) = self.replicas.get_mut(&replica) {
            on.progress.stepped(computed, owes, now);
            on.pulse.stepped(computed, has_tokens, at);
        }
        self.count(replica, now);
        Ok(())
    }

    /// When somebody should look next.
    pub(super) fn look_interval(&self) -> Duration {
        match self.entries.is_empty() {
            true => IDLE_LOOK_INTERVAL,
            false => LOOK_INTERVAL,
        }
    }

    /// Looks whether anybody should have spoken by now, where a word takes `round_trip`. The replicas of which something
    /// else is to be thought than before, and whether they are suspect.
    pub(super) fn look(&mut self, round_trip: Duration, now: Instant) -> Vec<(ReplicaId, bool)> {
        let at = self.clock.look(self.look_interval(), now);
        let mut changed = Vec::new();
        for (id, replica) in &mut self.replicas {
            let before = replica.suspicion;
            replica.suspicion = replica.pulse.suspicion(round_trip, before, at);
            if replica.suspicion != before {
                tracing::debug!(replica = id.0, suspicion = ?replica.suspicion, pulse = ?replica.pulse, "suspicion");
            }
            if replica.suspicion.is_some() != before.is_some() {
                changed.push((*id, replica.suspicion.is_some()));
            }
        }
        for entry in self.entries.values_mut() {
            let Some(on) = self.replicas.get(&entry.replica) else { continue };
            let silent = |spoke| at.saturating_sub(spoke) > on.pulse.patience();
            let is_late = entry.owes() && entry.spoke.is_some_and(silent);
            let is_suspect = is_late || on.suspicion.is_some();
            entry.news.tell_standing(Standing { is_suspect, is_leaving: on.is_leaving });
        }
        changed
    }

    /// Tells a replica's sequences what is to be thought of it.
    fn tell(&mut self, replica: ReplicaId) {
        let Some(on) = self.replicas.get(&replica) else { return };
        for entry in self.entries.values_mut().filter(|entry| entry.replica == replica) {
            let is_suspect = entry.news.standing().is_suspect;
            entry.news.tell_standing(Standing { is_suspect, is_leaving: on.is_leaving });
        }
    }

    fn owes(&self, replica: ReplicaId) -> bool {
        self.entries.values().any(|entry| entry.replica == replica && entry.owes())
    }

    /// Counts what a replica has to do, after that has changed.
    fn count(&mut self, replica: ReplicaId, now: Instant) {
        let at = self.clock.at(now);
        let has_sequences = self.entries.values().any(|entry| entry.replica == replica);
        let owes = self.owes(replica);
        if let Some(replica) = self.replicas.get_mut(&replica) {
            replica.pulse.has(has_sequences, owes, at);
        }
    }
}

#[cfg(test)]
mod tests;
