//! The replicas of one model as the board sees them: what they offer, what they were given, how they get on.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use cuckoo_wire::message::{Assign, Numerics, Offer, Price, ServiceClass, WeightsHash, Window};

use super::chance::mixed;
use super::members::Members;
use super::rates::{Mean, Quantile, StepTime};
use super::{Computes, Need, Quote, ReplicaKey, Ticket};

/// Places of a replica on the ring of beginnings.
const RING_POINTS: u64 = 8;
/// How much busier than the fleet a replica of the ring may be (consistent hashing with bounded loads, Mirrokni et al. 2018);
/// one below this share of its sequences is never too busy.
const RING_LOAD_MAX: f64 = 1.25;
const RING_LOAD_FREE: f64 = 0.25;
/// Replicas of the ring that are looked at for one that is not too busy.
const RING_WALK_MAX: usize = 8;
/// How often placements are expected to be lost before anything is known, and how much one outcome counts.
const LOSS_PRIOR: f64 = 0.02;
const LOSS_SHARE: f64 = 0.05;
/// How far apart the ends of a replica's requests are before any has ended, and how much one counts.
const END_PRIOR_MS: f64 = 500.0;
const END_SHARE: f64 = 0.1;
/// How much one step's rows of prompts count.
const PROMPT_ROWS_SHARE: f64 = 0.05;
/// The first token is expected within so many times what was foreseen, in 95 of 100 cases, before anything is known.
const LATE_PRIOR: f64 = 1.5;

/// The order in which those who wait for a replica look again: whether they are late already, by class, by name. Nobody waits
/// long, so nobody starves.
pub(super) type Awaits = (bool, ServiceClass, Ticket);

/// A replica as the board sees it.
#[derive(Clone, Debug)]
pub struct Replica {
    pub(super) key: ReplicaKey,
    pub(super) offer: Offer,
    /// Granted so far.
    granted: Window,
    /// Assigned so far.
    taken: Window,
    draining: bool,
    suspect: bool,
    /// The request that its room is kept for: it has a sequence free, and too few blocks.
    pub(super) kept_for: Option<Ticket>,
    pub(super) time: StepTime,
    /// Requests that wait for it though others have room.
    pub(super) awaited_by: BTreeSet<Awaits>,
    /// Milliseconds from the end of one of its requests to that of the next.
    pub(super) end_ms: Mean,
    pub(super) last_end: Duration,
    /// Rows of a step that are of prompts.
    pub(super) prompt_rows: Mean,
    /// How late first tokens are, as a multiple of what was foreseen.
    pub(super) late: Quantile,
    /// The share of placements that are lost.
    pub(super) losses: Mean,
    /// To it and back, in milliseconds.
    pub(super) network_ms: f64,
    pub(super) running: HashMap<Ticket, Runs>,
    /// Tokens of prompts that were assigned and have not given their first token.
    pub(super) prefilling: u64,
    /// Tokens in its blocks, as it said last.
    pub(super) context: u64,
}

/// A request on a replica.
#[derive(Clone, Copy, Debug)]
pub(super) struct Runs {
    pub(super) uncached: u32,
    /// When, and how soon its first token was foreseen, in milliseconds; until it comes.
    pub(super) foreseen: Option<(Duration, f64)>,
}

impl Replica {
    /// Sequences that run or wait on it.
    pub fn sequences_in_use(&self) -> u64 {
        let returned = self.granted.sequences - self.offer.window.sequences;
        self.taken.sequences.saturating_sub(returned)
    }

    /// Blocks that it accepts now.
    pub fn blocks_free(&self) -> u64 {
        self.granted.blocks.saturating_sub(self.taken.blocks)
    }

    /// Tokens a second that it computes with all its sequences, as far as is known: those of prompts come faster.
    pub fn tokens_per_s(&self) -> f64 {
        let rows = u32::try_from(self.offer.window.sequences).unwrap_or(u32::MAX).max(1);
        f64::from(rows) * 1e3 / self.time.step_ms(rows, self.context).max(1e-3)
    }

    /// What it asks.
    pub fn ask(&self) -> Price {
        self.offer.ask
    }

    pub(super) fn blocks(&self, need: &Need) -> u32 {
        Assign::blocks_for(need.tokens, need.max_new, self.offer.block_tokens)
    }

    fn has(&self, model: &Computes) -> bool {
        model.adapter.is_none_or(|adapter| self.offer.adapters.contains(&adapter))
    }

    /// Whether it could ever take the request.
    pub(super) fn suits(&self, need: &Need) -> bool {
        !self.draining
            && need.whom.admits(&self.key)
            && self.has(&need.model)
            && need.numerics.is_none_or(|numerics| numerics == self.offer.numerics)
            && self.offer.task == need.task
            && self.offer.ask.within(&need.limit)
            && need.tokens + need.max_new <= self.offer.context_tokens
            && u64::from(self.blocks(need)) <= self.offer.window.blocks
    }

    /// Whether it can take the request now.
    pub(super) fn has_room(&self, need: &Need) -> bool {
        !self.suspect && self.has_sequence() && u64::from(self.blocks(need)) <= self.blocks_free()
    }

    pub(super) fn has_sequence(&self) -> bool {
        self.taken.sequences < self.granted.sequences
    }

    /// Of those that wait for it, the ones that are to look again, as it has room now or will have none.
    fn to_look_again(&self) -> impl Iterator<Item = Ticket> {
        let room = match self.draining || self.suspect {
            true => usize::MAX,
            false => self.granted.sequences.saturating_sub(self.taken.sequences) as usize,
        };
        self.awaited_by.iter().take(room).map(|(_, _, ticket)| *ticket)
    }

    /// Whether it could take the request if it had room, and may soon have some.
    pub(super) fn is_full(&self, need: &Need) -> bool {
        !self.suspect && self.suits(need) && !self.has_room(need) && self.kept_for.is_none()
    }

    /// Whether anybody may be placed on it.
    fn is_open(&self) -> bool {
        !self.draining && !self.suspect && self.kept_for.is_none() && self.has_sequence()
    }

    /// How long until it has room for one more than those who wait for it already, in milliseconds.
    pub(super) fn room_in_ms(&self) -> f64 {
        (self.awaited_by.len() + 1) as f64 * self.end_ms.value()
    }

    fn load(&self) -> f64 {
        self.running.len() as f64 / self.offer.window.sequences.max(1) as f64
    }
}

/// With which adapter replicas are, and how they compute; each of the two, or all.
type Kind = (Option<WeightsHash>, Option<Numerics>);

/// Replicas of a kind.
#[derive(Debug, Default)]
struct Group {
    /// Those that somebody may be placed on.
    open: Members,
    /// Asks by their sum, and how many ask so; contexts alike.
    asks: BTreeMap<(u64, u64, u64), u32>,
    contexts: BTreeMap<u32, u32>,
}

/// All replicas of one model.
#[derive(Debug, Default)]
pub(super) struct Fleet {
    replicas: Vec<Option<Replica>>,
    vacant: Vec<u32>,
    count: u32,
    /// Each replica is in all groups that it belongs to.
    groups: HashMap<Kind, Group>,
    ring: BTreeMap<u64, u32>,
    /// Replicas that somebody waits for, and of which it should be looked at whether they have room.
    stirred: Vec<u32>,
    /// Replicas whose room is kept for somebody.
    kept: u32,
    /// Requests that run, and sequences that there are, together.
    running: u64,
    sequences: u64,
}

impl Fleet {
    pub(super) fn get(&self, id: u32) -> Option<&Replica> {
        self.replicas.get(id as usize)?.as_ref()
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Replica> {
        self.replicas.iter().flatten()
    }

    /// How many there are.
    pub(super) fn len(&self) -> u32 {
        self.count
    }

    /// Numbers of replicas are below this.
    pub(super) fn ids(&self) -> u32 {
        self.replicas.len() as u32
    }

    pub(super) fn join(&mut self, key: ReplicaKey, offer: Offer, network_ms: f64, time: StepTime) -> u32 {
        let id = self.vacant.pop().unwrap_or(self.replicas.len() as u32);
        if id as usize == self.replicas.len() {
            self.replicas.push(None);
        }
        self.count += 1;
        self.sequences += offer.window.sequences;
        for point in points(key) {
            self.ring.insert(point, id);
        }
        for group in groups_of(&offer) {
            let group = self.groups.entry(group).or_default();
            *group.asks.entry(by_sum(&offer.ask)).or_default() += 1;
            *group.contexts.entry(offer.context_tokens).or_default() += 1;
        }
        let granted = offer.window;
        self.replicas[id as usize] = Some(Replica {
            key,
            offer,
            granted,
            taken: Window::default(),
            draining: false,
            suspect: false,
            kept_for: None,
            time,
            awaited_by: BTreeSet::new(),
            end_ms: Mean::new(END_SHARE, END_PRIOR_MS),
            last_end: Duration::ZERO,
            prompt_rows: Mean::new(PROMPT_ROWS_SHARE, 0.0),
            late: Quantile::new(0.95, LATE_PRIOR),
            losses: Mean::new(LOSS_SHARE, LOSS_PRIOR),
            network_ms,
            running: HashMap::new(),
            prefilling: 0,
            context: 0,
        });
        self.settle(id);
        id
    }

    /// It is gone.
    pub(super) fn leave(&mut self, id: u32) -> Option<Replica> {
        self.drain(id);
        let replica = self.replicas.get_mut(id as usize)?.take()?;
        self.vacant.push(id);
        self.count -= 1;
        self.sequences -= replica.offer.window.sequences;
        self.running -= replica.running.len() as u64;
        self.kept -= u32::from(replica.kept_for.is_some());
        Some(replica)
    }

    /// It takes nothing more.
    pub(super) fn drain(&mut self, id: u32) {
        let Some(replica) = self.get(id).filter(|replica| !replica.draining) else { return };
        let (key, ask, context_tokens) = (replica.key, by_sum(&replica.offer.ask), replica.offer.context_tokens);
        let groups: Vec<_> = groups_of(&replica.offer).collect();
        self.change(id, |replica| replica.draining = true);
        self.stir(id);
        for point in points(key) {
            if self.ring.get(&point) == Some(&id) {
                self.ring.remove(&point);
            }
        }
        for name in groups {
            let Some(group) = self.groups.get_mut(&name) else { continue };
            less(&mut group.asks, ask);
            less(&mut group.contexts, context_tokens);
            if group.contexts.is_empty() {
                self.groups.remove(&name);
            }
        }
    }

    /// Changes a replica, and sees to it that it is found where it belongs.
    pub(super) fn change(&mut self, id: u32, change: impl FnOnce(&mut Replica)) {
        let Some(replica) = self.replicas.get_mut(id as usize).and_then(Option::as_mut) else { return };
        let state = |replica: &Replica| (replica.is_open(), replica.running.len(), replica.kept_for.is_some());
        let was = state(replica);
        change(replica);
        let is = state(replica);
        self.running = self.running + is.1 as u64 - was.1 as u64;
        self.kept = self.kept + u32::from(is.2) - u32::from(was.2);
        if was.0 != is.0 {
            self.settle(id);
        }
    }

    fn settle(&mut self, id: u32) {
        let Some(replica) = self.replicas[id as usize].as_ref() else { return };
        for group in groups_of(&replica.offer) {
            let Some(group) = self.groups.get_mut(&group) else { continue };
            match replica.is_open() {
                true => _ = group.open.add(id),
                false => _ = group.open.remove(id),
            }
        }
    }

    /// Grants never shrink: an older one that arrives late changes nothing.
    pub(super) fn grant(&mut self, id: u32, window: Window) {
        self.change(id, |replica| {
            replica.granted.sequences = replica.granted.sequences.max(window.sequences);
            replica.granted.blocks = replica.granted.blocks.max(window.blocks);
        });
        self.stir(id);
    }

    pub(super) fn suspect(&mut self, id: u32, suspect: bool) {
        self.change(id, |replica| replica.suspect = suspect);
        self.stir(id);
    }

    fn stir(&mut self, id: u32) {
        if self.get(id).is_some_and(|replica| !replica.awaited_by.is_empty()) {
            self.stirred.push(id);
        }
    }

    /// Those whose replica has room now, or will have none.
    pub(super) fn take_stirred(&mut self) -> Vec<Ticket> {
        let stirred = std::mem::take(&mut self.stirred);
        stirred.into_iter().filter_map(|id| self.get(id)).flat_map(Replica::to_look_again).collect()
    }

    /// A request is assigned to it.
    pub(super) fn assign(&mut self, id: u32, ticket: Ticket, blocks: u32, runs: Runs) {
        self.change(id, |replica| {
            replica.taken.sequences += 1;
            replica.taken.blocks += u64::from(blocks);
            replica.prefilling += u64::from(runs.uncached);
            replica.kept_for = replica.kept_for.filter(|kept| *kept != ticket);
            replica.running.insert(ticket, runs);
        });
    }

    /// Replicas that a request may be placed on, as far as windows, adapters and numerics say.
    pub(super) fn open(&self, need: &Need) -> &[u32] {
        self.groups.get(&(need.model.adapter, need.numerics)).map_or(&[], |group| group.open.list())
    }

    /// Whether any replica has room, for anybody or for somebody.
    pub(super) fn has_room(&self) -> bool {
        self.kept > 0 || self.groups.get(&(None, None)).is_some_and(|all| !all.open.list().is_empty())
    }

    /// Whether anybody computes this, in the way that is needed.
    pub(super) fn computes(&self, need: &Need) -> bool {
        self.groups.contains_key(&(need.model.adapter, need.numerics))
    }

    /// Replicas that compute this, and in another way than is needed.
    pub(super) fn other_numerics(&self, need: &Need) -> u32 {
        self.quote(&need.model, None).replicas - self.quote(&need.model, need.numerics).replicas
    }

    /// Where prompts with this beginning go: the first on the ring that is no busier than others.
    pub(super) fn on_ring(&self, beginning: u64, need: &Need) -> Option<u32> {
        let mean = (self.running + 1) as f64 / self.sequences.max(1) as f64;
        let after = self.ring.range(beginning..).chain(self.ring.range(..beginning));
        let fits = |id: &u32| {
            self.get(*id).is_some_and(|replica| {
                replica.is_open()
                    && replica.load() <= (RING_LOAD_MAX * mean).max(RING_LOAD_FREE)
                    && replica.suits(need)
                    && replica.has_room(need)
            })
        };
        after.take(RING_WALK_MAX).map(|(_, id)| *id).find(fits)
    }

    /// How a model or an adapter stands, of those who compute in this way if one is given.
    pub(super) fn quote(&self, model: &Computes, numerics: Option<Numerics>) -> Quote {
        let Some(group) = self.groups.get(&(model.adapter, numerics)) else { return Quote::default() };
        Quote {
            replicas: group.contexts.values().sum(),
            lowest_ask: group
                .asks
                .keys()
                .next()
                .map(|(_, input, output)| Price { input_per_mtok: *input, output_per_mtok: *output }),
            context_tokens: group.contexts.keys().next_back().copied().unwrap_or(0),
        }
    }
}

fn groups_of(offer: &Offer) -> impl Iterator<Item = Kind> {
    let adapters = std::iter::once(None).chain(offer.adapters.iter().copied().map(Some));
    let numerics = [None, Some(offer.numerics)];
    adapters.flat_map(move |adapter| numerics.map(|numerics| (adapter, numerics)))
}

fn by_sum(price: &Price) -> (u64, u64, u64) {
    let Price { input_per_mtok: input, output_per_mtok: output } = *price;
    (input.saturating_add(output), input, output)
}

fn less<K: Ord>(counts: &mut BTreeMap<K, u32>, key: K) {
    if let Some(count) = counts.get_mut(&key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(&key);
        }
    }
}

fn points(key: ReplicaKey) -> impl Iterator<Item = u64> {
    (0..RING_POINTS).map(move |n| mixed(key.link.0 ^ mixed(u64::from(key.replica.0) ^ mixed(n))))
}
