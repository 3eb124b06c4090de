//! Which waiting request goes to which replica, decided: late binding by windows.
//!
//! Pure: offers, grants and requests come in; placements come out. Requests wait here and nowhere else; one is bound to
//! a replica only when that replica's window has room, so a miner's batch fills as its slots free, across the network.
//! Windows are cumulative: what was granted and what was taken only grow, and the difference is what is free.

use std::collections::{BTreeMap, HashSet, VecDeque};

use cuckoo_wire::message::{Assign, Offer, Price, ReplicaId, Task, WeightsHash, Window};

use super::score;

/// Requests that may wait, all models together.
pub const WAITING_MAX: usize = 4_096;
/// Waiting requests of one model, or of one adapter, that are considered at a time; bounds the work of one event.
const CONSIDERED_MAX: usize = 64;

/// One miner's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LinkId(pub u64);

/// One replica of one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReplicaKey {
    /// The connection.
    pub link: LinkId,
    /// The replica on it.
    pub replica: ReplicaId,
}

/// One waiting request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// What computes: weights, and perhaps an adapter of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Computes {
    /// The weights.
    pub weights: WeightsHash,
    /// The adapter.
    pub adapter: Option<WeightsHash>,
}

/// Which replicas a request may go to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Whom {
    /// Any that suits it.
    #[default]
    Any,
    /// Any other than this one: it runs there, and should soon run elsewhere.
    Not(ReplicaKey),
    /// This one, which has computed most of it.
    Only(ReplicaKey),
}

impl Whom {
    /// Whether `key` is one of them.
    pub fn admits(self, key: &ReplicaKey) -> bool {
        match self {
            Self::Any => true,
            Self::Not(other) => *key != other,
            Self::Only(only) => *key == only,
        }
    }
}

/// What a request needs of a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    /// The model.
    pub model: Computes,
    /// What it must be for.
    pub task: Task,
    /// Known tokens.
    pub tokens: u32,
    /// New tokens at most.
    pub max_new: u32,
    /// Highest acceptable ask.
    pub limit: Price,
    /// Who is asked.
    pub whom: Whom,
}

/// One decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Which request.
    pub ticket: Ticket,
    /// Where to.
    pub key: ReplicaKey,
    /// What it takes from the window.
    pub blocks: u32,
    /// What it will be charged.
    pub ask: Price,
}

/// A replica as the board sees it.
#[derive(Clone, Debug)]
pub struct Replica {
    offer: Offer,
    /// Granted so far.
    granted: Window,
    /// Assigned so far.
    taken: Window,
    draining: bool,
    /// It should have spoken by now: nothing is placed there until it has.
    suspect: bool,
}

/// How one model stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quote {
    /// Replicas that serve it.
    pub replicas: u32,
    /// The cheapest of them.
    pub lowest_ask: Option<Price>,
    /// The longest context on offer.
    pub context_tokens: u32,
}

/// All replicas and all waiting requests.
#[derive(Debug, Default)]
pub struct Board {
    replicas: BTreeMap<ReplicaKey, Replica>,
    waiting: BTreeMap<Computes, VecDeque<(Ticket, Need)>>,
    waiting_count: usize,
}

impl Replica {
    /// Sequences that run or wait on it.
    pub fn sequences_in_use(&self) -> u64 {
        let returned = self.granted.sequences - self.offer.window.sequences;
        self.taken.sequences.saturating_sub(returned)
    }

    /// Sequences that it accepts at once.
    pub fn sequences_total(&self) -> u64 {
        self.offer.window.sequences
    }

    /// Blocks that it accepts now.
    pub fn blocks_free(&self) -> u64 {
        self.granted.blocks - self.taken.blocks
    }

    /// What it asks.
    pub fn ask(&self) -> Price {
        self.offer.ask
    }

    /// Whether it has loaded the model, and the adapter if there is one.
    fn has(&self, model: &Computes) -> bool {
        self.offer.weights == model.weights
            && model.adapter.is_none_or(|adapter| self.offer.adapters.contains(&adapter))
    }

    fn blocks(&self, need: &Need) -> u32 {
        Assign::blocks_for(need.tokens, need.max_new, self.offer.block_tokens)
    }

    /// Whether it could ever take the request.
    fn suits(&self, key: &ReplicaKey, need: &Need) -> bool {
        !self.draining
            && need.whom.admits(key)
            && self.has(&need.model)
            && self.offer.task == need.task
            && self.offer.ask.within(&need.limit)
            && need.tokens + need.max_new <= self.offer.context_tokens
            && u64::from(self.blocks(need)) <= self.offer.window.blocks
    }

    /// Whether it can take the request now.
    fn has_room(&self, need: &Need) -> bool {
        !self.suspect
            && self.taken.sequences < self.granted.sequences
            && u64::from(self.blocks(need)) <= self.blocks_free()
    }
}

impl Board {
    /// A replica is there.
    pub fn offer(&mut self, key: ReplicaKey, offer: Offer) {
        let granted = offer.window;
        self.replicas
            .insert(key, Replica { offer, granted, taken: Window::default(), draining: false, suspect: false });
    }

    /// A replica accepts so much in all. Grants never shrink: an older one that arrives late changes nothing.
    pub fn grant(&mut self, key: ReplicaKey, window: Window) {
        if let Some(replica) = self.replicas.get_mut(&key) {
            replica.granted.sequences = replica.granted.sequences.max(window.sequences);
            replica.granted.blocks = replica.granted.blocks.max(window.blocks);
        }
    }

    /// A replica takes nothing more.
    pub fn drain(&mut self, key: ReplicaKey) {
        if let Some(replica) = self.replicas.get_mut(&key) {
            replica.draining = true;
        }
    }

    /// A replica should have spoken by now, or has spoken again.
    pub fn suspect(&mut self, key: ReplicaKey, is_suspect: bool) {
        if let Some(replica) = self.replicas.get_mut(&key) {
            replica.suspect = is_suspect;
        }
    }

    /// A replica is gone.
    pub fn lose(&mut self, key: ReplicaKey) {
        self.replicas.remove(&key);
    }

    /// A connection is gone with all its replicas.
    pub fn lose_link(&mut self, link: LinkId) {
        self.replicas.retain(|key, _| key.link != link);
    }

    /// A request waits, behind those that came before it: one that has run already waits again by its age. False if too many
    /// wait already and none of its model came later.
    pub fn submit(&mut self, ticket: Ticket, need: Need) -> bool {
        let is_full = self.waiting_count >= WAITING_MAX;
        let queue = self.waiting.entry(need.model).or_default();
        let at = queue.partition_point(|(other, _)| *other < ticket);
        if is_full && at == queue.len() {
            return false;
        }
        queue.insert(at, (ticket, need));
        self.waiting_count += 1;
        true
    }

    /// A request waits no longer. False if it did not wait.
    pub fn withdraw(&mut self, ticket: Ticket) -> bool {
        for queue in self.waiting.values_mut() {
            if let Some(at) = queue.iter().position(|(t, _)| *t == ticket) {
                queue.remove(at);
                self.waiting_count -= 1;
                return true;
            }
        }
        false
    }

    /// Binds as many waiting requests as windows allow, oldest first. A request that only lacks blocks keeps the
    /// replica it waits for from being filled by younger, smaller ones; one that no replica suits holds nobody up. A model and
    /// its adapters share replicas, and so one order.
    pub fn place(&mut self) -> Vec<Placement> {
        let mut placed = Vec::new();
        let mut models: Vec<WeightsHash> = self.waiting.keys().map(|model| model.weights).collect();
        models.dedup();
        for weights in models {
            self.place_model(weights, &mut placed);
        }
        self.waiting.retain(|_, queue| !queue.is_empty());
        self.waiting_count -= placed.len();
        placed
    }

    fn place_model(&mut self, weights: WeightsHash, placed: &mut Vec<Placement>) {
        let mut spoken_for: HashSet<ReplicaKey> = HashSet::new();
        let mut bound: HashSet<Ticket> = HashSet::new();
        for (ticket, need) in &self.oldest(weights) {
            let suited = self.replicas.iter().filter(|(key, r)| r.suits(key, need) && !spoken_for.contains(key));
            match score::best(suited.clone().filter(|(_, r)| r.has_room(need))) {
                Some(key) => {
                    let replica = self.replicas.get_mut(&key).expect("chosen from the map");
                    let blocks = replica.blocks(need);
                    replica.taken.sequences += 1;
                    replica.taken.blocks += u64::from(blocks);
                    bound.insert(*ticket);
                    placed.push(Placement { ticket: *ticket, key, blocks, ask: replica.offer.ask });
                }
                None => {
                    let waits_for = score::best(suited);
                    spoken_for.extend(waits_for);
                }
            }
        }
        let queues = self.waiting.iter_mut().filter(|(model, _)| model.weights == weights);
        queues.for_each(|(_, queue)| queue.retain(|(ticket, _)| !bound.contains(ticket)));
    }

    /// The oldest waiting requests of a model and of each of its adapters, those of one that nobody has left out. Tickets
    /// tell who came first.
    fn oldest(&self, weights: WeightsHash) -> Vec<(Ticket, Need)> {
        let offered = |model: &Computes| self.replicas.values().any(|replica| replica.has(model));
        let queues: Vec<_> =
            self.waiting.iter().filter(|(model, _)| model.weights == weights && offered(model)).collect();
        let mut oldest: Vec<(Ticket, Need)> =
            queues.iter().flat_map(|(_, queue)| queue.iter().take(CONSIDERED_MAX).copied()).collect();
        if queues.len() > 1 {
            oldest.sort_by_key(|(ticket, _)| *ticket);
        }
        oldest
    }

    /// Whether any replica could take the request, now or when it has room.
    pub fn is_served(&self, need: &Need) -> bool {
        self.replicas.iter().any(|(key, r)| r.suits(key, need))
    }

    /// How a model stands.
    pub fn quote(&self, model: &Computes) -> Quote {
        let serving = self.replicas.values().filter(|r| r.has(model) && !r.draining);
        serving.fold(Quote::default(), |q, r| Quote {
            replicas: q.replicas + 1,
            lowest_ask: Some(match q.lowest_ask {
                Some(low) if total(&low) <= total(&r.offer.ask) => low,
                _ => r.offer.ask,
            }),
            context_tokens: q.context_tokens.max(r.offer.context_tokens),
        })
    }

    /// Requests that wait.
    pub fn waiting(&self) -> usize {
        self.waiting_count
    }

    /// Replicas there are.
    pub fn replicas(&self) -> impl Iterator<Item = (&ReplicaKey, &Replica)> {
        self.replicas.iter()
    }
}

fn total(price: &Price) -> u64 {
    price.input_per_mtok.saturating_add(price.output_per_mtok)
}

#[cfg(test)]
mod tests;
