//! The schedulers that a replica is offered to. Each has a window of its own, as large as if it were alone: what one leaves
//! unused does not lie idle, and where all want everything, sequences wait in the batch. Each has its own names for its
//! sequences and hears of its own alone; what is cached, and how long steps take, all of them hear. Pure but for the channels
//! that frames leave by.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::{Duration, Instant};

use cuckoo_wire::limits::{BLOCK_NEWS_MAX, MINER_BEAT, MINER_IDLE_BEAT};
use cuckoo_wire::message::{Beat, End, Offer, ReplicaFrame, ReplicaId, SequenceId, Step, StepItem, Window};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use super::frameful;
use crate::device::kv_cache::News;

/// One scheduler, as a batcher names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct OutletId {
    /// Which of the miner's links.
    pub(crate) link: usize,
    /// The replica's name there.
    pub(crate) replica: ReplicaId,
}

/// All of them.
#[derive(Default)]
pub(super) struct Outlets {
    all: BTreeMap<OutletId, Outlet>,
    owners: HashMap<SequenceId, Owned>,
    locals: HashMap<(OutletId, SequenceId), SequenceId>,
    /// Sequences that were ever named.
    named: u64,
}

/// Whose a sequence of the batch is, what it is called there, and what it took from the window.
#[derive(Clone, Copy)]
struct Owned {
    outlet: OutletId,
    sequence: SequenceId,
    blocks: u32,
}

struct Outlet {
    frames: mpsc::Sender<ReplicaFrame>,
    /// A frame that there was no room for; nothing more is sent before it.
    unsent: Option<ReplicaFrame>,
    news: VecDeque<StepItem>,
    blocks: News,
    granted: Window,
    taken: Window,
    announced: Window,
    /// Sequences that have not ended.
    sequences: usize,
    draining: Draining,
    /// Steps that were computed since the offer.
    computed: u64,
    /// Of these, those since the last frame that told of a step.
    newest: Computed,
    /// How many of them the scheduler knows of.
    told: u64,
    /// When the last frame left.
    said: Instant,
}

/// Steps that were computed.
#[derive(Clone, Copy, Default)]
struct Computed {
    steps: u32,
    rows: u32,
    took: Duration,
}

#[derive(Clone, Copy, PartialEq)]
enum Draining {
    No,
    /// The scheduler has not heard of it yet.
    Asked,
    Announced,
}

/// What every frame tells of the batch.
#[derive(Clone, Copy)]
pub(super) struct Figures {
    pub(super) batch: u32,
    pub(super) blocks_used: u64,
}

/// What became of what was to be sent.
#[derive(Default)]
pub(super) struct Sent {
    /// Somebody had no room.
    pub(super) is_full: bool,
    /// These are gone, or have come to their end.
    pub(super) gone: Vec<OutletId>,
}

impl Outlets {
    /// A scheduler is there. It has `window`, and hears of all that is cached.
    pub(super) fn attach(
        &mut self,
        id: OutletId,
        frames: mpsc::Sender<ReplicaFrame>,
        (offer, window): (&Offer, Window),
        cached: impl Iterator<Item = u64>,
        now: Instant,
    ) {
        let mut blocks = News::default();
        cached.for_each(|name| blocks.came(name));
        let outlet = Outlet {
            frames,
            unsent: None,
            news: VecDeque::new(),
            blocks,
            granted: window,
            taken: Window::default(),
            announced: window,
            sequences: 0,
            draining: Draining::No,
            computed: 0,
            newest: Computed::default(),
            told: 0,
            said: now,
        };
        let offer = Offer { replica: id.replica, window, ..offer.clone() };
        // Its channel is fresh and empty; if its reader is gone already, the next frame finds out.
        let _ = outlet.frames.try_send(ReplicaFrame::Offer(offer));
        self.all.insert(id, outlet);
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// A scheduler is gone: its sequences, as the batch names them, are nobody's.
    pub(super) fn detach(&mut self, id: OutletId) -> Vec<SequenceId> {
        self.all.remove(&id);
        self.locals.retain(|(owner, _), _| *owner != id);
        let mut orphans = Vec::new();
        self.owners.retain(|local, owned| {
            let is_left = owned.outlet != id;
            if !is_left {
                orphans.push(*local);
            }
            is_left
        });
        orphans.sort_unstable();
        orphans
    }

    /// A scheduler gives a sequence: its name here, or nothing where it is answered already.
    pub(super) fn admit(&mut self, id: OutletId, sequence: SequenceId, blocks: u32) -> Option<SequenceId> {
        let outlet = self.all.get_mut(&id)?;
        let taken = Window { sequences: outlet.taken.sequences + 1, blocks: outlet.taken.blocks + u64::from(blocks) };
        if taken.sequences > outlet.granted.sequences || taken.blocks > outlet.granted.blocks {
            outlet.refuse(sequence, "the window was overdrawn");
            return None;
        }
        outlet.taken = taken;
        if self.locals.contains_key(&(id, sequence)) {
            outlet.give_back(blocks);
            outlet.refuse(sequence, "the sequence is already here");
            return None;
        }
        outlet.sequences += 1;
        self.named += 1;
        let local = SequenceId(self.named);
        self.owners.insert(local, Owned { outlet: id, sequence, blocks });
        self.locals.insert((id, sequence), local);
        Some(local)
    }

    /// What a sequence of a scheduler is called here, if it has not ended.
    pub(super) fn local(&self, id: OutletId, sequence: SequenceId) -> Option<SequenceId> {
        self.locals.get(&(id, sequence)).copied()
    }

    /// Hands the batch's news to those whose they are. What is nobody's any more is dropped.
    pub(super) fn route(&mut self, items: Vec<StepItem>) {
        for item in items {
            let Some(&Owned { outlet: id, sequence, blocks }) = self.owners.get(&item.sequence) else { continue };
            let has_ended = item.end.is_some();
            let Some(outlet) = self.all.get_mut(&id) else { continue };
            if has_ended {
                self.owners.remove(&item.sequence);
                self.locals.remove(&(id, sequence));
                outlet.sequences -= 1;
                outlet.give_back(blocks);
            }
            outlet.news.push_back(StepItem { sequence, ..item });
        }
    }

    /// A step was computed.
    pub(super) fn stepped(&mut self, rows: u32, took: Duration) {
        for outlet in self.all.values_mut() {
            outlet.computed += 1;
            outlet.newest.steps += 1;
            outlet.newest.rows += rows;
            outlet.newest.took += took;
        }
    }

    /// Names came into the cache, and left it.
    pub(super) fn cached(&mut self, came: &[u64], left: &[u64]) {
        for outlet in self.all.values_mut() {
            came.iter().for_each(|name| outlet.blocks.came(*name));
            left.iter().for_each(|name| outlet.blocks.left(*name));
        }
    }

    /// Nothing more is to be taken from this scheduler.
    pub(super) fn drain(&mut self, id: OutletId) {
        if let Some(outlet) = self.all.get_mut(&id) {
            outlet.draining = Draining::Asked;
        }
    }

    /// Sends what there is to say.
    pub(super) fn publish(&mut self, figures: Figures, now: Instant) -> Sent {
        let mut sent = Sent::default();
        for (id, outlet) in &mut self.all {
            match outlet.publish(figures, now) {
                Ok(()) => sent.is_full |= outlet.unsent.is_some(),
                Err(Gone) => sent.gone.push(*id),
            }
        }
        sent
    }

    /// Whether a scheduler waits for nothing, and knows what was computed: who has nothing to do seldom speaks.
    pub(super) fn is_idle(&self, id: OutletId) -> bool {
        self.all.get(&id).is_none_or(Outlet::is_idle)
    }

    /// Sends a heartbeat to `only` one, or to all that would hear nothing for too long.
    pub(super) fn beat(&mut self, only: Option<OutletId>, due: Duration, now: Instant) -> Sent {
        let mut sent = Sent::default();
        for (id, outlet) in &mut self.all {
            let wants = only.map_or_else(|| outlet.is_silent(now), |only| only == *id);
            if !wants || outlet.unsent.is_some() {
                continue;
            }
            outlet.told = outlet.computed;
            match outlet.send(ReplicaFrame::Beat(Beat::new(outlet.computed, due)), now) {
                Ok(()) => sent.is_full |= outlet.unsent.is_some(),
                Err(Gone) => sent.gone.push(*id),
            }
        }
        sent
    }
}

/// Nobody reads any more, or there is nothing more to read.
struct Gone;

impl Outlet {
    /// Sends news, windows and what is cached, if there is any of it.
    fn publish(&mut self, figures: Figures, now: Instant) -> Result<(), Gone> {
        if let Some(frame) = self.unsent.take() {
            self.send(frame, now)?;
        }
        while self.unsent.is_none() && self.has_something_to_say() {
            let items = frameful(&mut self.news);
            self.send_step(items, figures, now)?;
        }
        if self.draining == Draining::Asked && self.unsent.is_none() {
            self.draining = Draining::Announced;
            self.send(ReplicaFrame::Drain, now)?;
        }
        // The end of its stream is the end of the replica; what was assigned meanwhile goes elsewhere.
        let is_over = self.draining == Draining::Announced && self.sequences == 0 && self.unsent.is_none();
        if is_over { Err(Gone) } else { Ok(()) }
    }

    /// Answers what cannot be.
    fn refuse(&mut self, sequence: SequenceId, why: &str) {
        self.news.push_back(StepItem::new(sequence, 0, Vec::new(), Some(End::Failed(why.to_owned()))));
    }

    fn give_back(&mut self, blocks: u32) {
        self.granted.sequences += 1;
        self.granted.blocks += u64::from(blocks);
    }

    fn has_something_to_say(&self) -> bool {
        // What is cached goes along with what is said anyway, unless there is much of it, or nothing else to say.
        let blocks_due = if self.sequences == 0 { 1 } else { BLOCK_NEWS_MAX };
        !self.news.is_empty() || self.granted != self.announced || self.blocks.len() >= blocks_due
    }

    fn send_step(&mut self, items: Vec<StepItem>, figures: Figures, now: Instant) -> Result<(), Gone> {
        self.announced = self.granted;
        if !items.is_empty() {
            self.told = self.computed;
        }
        let Computed { steps, rows, took } = std::mem::take(&mut self.newest);
        let (cached, evicted) = self.blocks.take(BLOCK_NEWS_MAX);
        let Figures { batch, blocks_used } = figures;
        let (window, took_us) = (self.granted, took.as_micros() as u64);
        let step = Step { window, batch, blocks_used, steps, rows, took_us, cached, evicted, items };
        self.send(ReplicaFrame::Step(step), now)
    }

    fn send(&mut self, frame: ReplicaFrame, now: Instant) -> Result<(), Gone> {
        match self.frames.try_send(frame) {
            Ok(()) => self.said = now,
            Err(TrySendError::Full(frame)) => self.unsent = Some(frame),
            Err(TrySendError::Closed(_)) => return Err(Gone),
        }
        Ok(())
    }

    fn is_idle(&self) -> bool {
        self.sequences == 0 && self.told == self.computed
    }

    /// Whether it must hear something before the next look. Looks come as often as heartbeats of those who are busy.
    fn is_silent(&self, now: Instant) -> bool {
        let silence_max = if self.is_idle() { MINER_IDLE_BEAT } else { MINER_BEAT };
        now.duration_since(self.said) + MINER_BEAT / 2 >= silence_max
    }
}

#[cfg(test)]
mod tests;
