//! Which waiting request goes to which replica, decided: late binding by windows.
//!
//! Pure: offers, grants, steps and requests come in, with the time; placements come out. Requests wait here and nowhere
//! else; one is bound to a replica only when that replica's window has room, so a miner's batch fills as its slots free,
//! across the network. Windows are cumulative: what was granted and what was taken only grow, and the difference is what is
//! free.
//!
//! ```text
//! submit ▶ queue: who is next ─▶ a few replicas: by prefix, by ring, by chance ─▶ the cheapest in milliseconds ▶ placement
//!                                        ▲ windows, step times, caches, losses: what the replicas say
//! ```
//!
//! Whatever the fleet's size, a pick looks at a handful of replicas. Chance is a generator whose seed is part of the state:
//! the same events give the same placements.

mod chance;
mod fleet;
mod members;
mod pool;
mod prefix_index;
mod queue;
mod rates;
mod score;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use cuckoo_wire::BlockHash;
use cuckoo_wire::limits::BLOCK_TOKENS;
use cuckoo_wire::message::{
    FoundBy, Numerics, Offer, Price, ReplicaId, ServiceClass, Task, Terms, WeightsHash, Window,
};
use serde::{Deserialize, Serialize};

pub use chance::mixed;
pub use fleet::Replica;
use pool::Pool;
pub use prefix_index::BlockName;
pub use score::{Objective, objective};

/// Requests that may wait, all models together.
pub const WAITING_MAX: usize = 4_096;

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

/// Who is served: requests of one account share its turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Tenant(pub u64);

/// What a tenant was charged for the service of one model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Charge {
    /// The model, with all its adapters.
    pub weights: WeightsHash,
    /// As what its requests came.
    pub class: ServiceClass,
    /// Who.
    pub tenant: Tenant,
    /// How many tokens; negative where it had been charged for more than it got.
    pub tokens: i64,
}

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
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// Who asks.
    pub tenant: Tenant,
    /// How urgent it is.
    pub class: ServiceClass,
    /// It was placed before: its miner is lost, or should be left.
    pub has_begun: bool,
    /// Names of the blocks of its known tokens.
    pub chain: Arc<[BlockName]>,
    /// Who is asked.
    pub whom: Whom,
    /// How whoever goes on with it must compute: as those who made what it has did. `None` where it has nothing yet.
    pub numerics: Option<Numerics>,
}

impl Need {
    /// Names of the full blocks of `tokens`, as miners name them: for [`Need::chain`].
    pub fn chain_of(model: &Computes, salt: &[u8; 16], tokens: &[u32]) -> Arc<[BlockName]> {
        let adapter = model.adapter.as_ref().map(|adapter| &adapter.0);
        let root = BlockHash::root(&model.weights.0, adapter, salt);
        BlockHash::chain(root, tokens, BLOCK_TOKENS).map(BlockHash::short).collect()
    }
}

/// One decision.
#[derive(Clone, Debug, PartialEq)]
pub struct Placement {
    /// Which request.
    pub ticket: Ticket,
    /// Where to.
    pub key: ReplicaKey,
    /// What it takes from the window.
    pub blocks: u32,
    /// What it will be charged.
    pub ask: Price,
    /// How it is computed there.
    pub numerics: Numerics,
    /// Why there.
    pub reasons: Reasons,
}

/// Why a request went where it went.
#[derive(Clone, Debug, PartialEq)]
pub struct Reasons {
    /// How long it had waited.
    pub waited: Duration,
    /// Requests of the model that go on waiting.
    pub waiting: u32,
    /// Replicas of the model.
    pub replicas: u32,
    /// Of these, those left out because they compute in another way than it was begun in.
    pub other_numerics: u32,
    /// What its tenant had got when it was its turn, in tokens.
    pub served_tokens: u64,
    /// Who was considered; the first was taken.
    pub candidates: Vec<Considered>,
}

/// A replica that was considered for a request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Considered {
    /// Which.
    pub key: ReplicaKey,
    /// Tokens of the prompt that it has cached.
    pub cached_tokens: u32,
    /// What it would cost.
    pub terms: Terms,
    /// When 95 % of first tokens would have come, in milliseconds.
    pub ttft_p95_ms: f64,
    /// Milliseconds between tokens.
    pub itl_ms: f64,
    /// Whether both are within what the class asks for.
    pub meets: bool,
    /// How it was found.
    pub found_by: FoundBy,
}

/// What a replica says of the steps that it computed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Steps<'a> {
    /// How many.
    pub steps: u32,
    /// Their rows.
    pub rows: u32,
    /// How long they took together.
    pub took: Duration,
    /// KV blocks in use.
    pub blocks_used: u64,
    /// Names that came into its cache.
    pub cached: &'a [BlockName],
    /// Names that left it.
    pub evicted: &'a [BlockName],
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

/// Why a request is not let in, or waits no longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turned {
    /// No replica computes this.
    Unserved,
    /// None that suits: too dear, too small, or gone.
    Unsuited,
    /// Those who compute this do so in another way than it was begun in.
    Unmatched,
    /// Too many wait, or this one waited too long: so long until there may be room.
    Busy(Duration),
}

/// All replicas and all waiting requests.
#[derive(Debug)]
pub struct Board {
    pools: HashMap<WeightsHash, Pool>,
    /// Where a replica is: its model, and its number there.
    homes: BTreeMap<ReplicaKey, (WeightsHash, u32)>,
    tickets: HashMap<Ticket, WeightsHash>,
    /// Models of which something has changed since the last placements.
    changed: BTreeSet<WeightsHash>,
    waiting: usize,
    chance: u64,
}

impl Default for Board {
    fn default() -> Self {
        Self::new(0)
    }
}

impl Board {
    /// Empty. Boards of one seed to which the same happens do the same.
    pub fn new(seed: u64) -> Self {
        Self {
            pools: HashMap::new(),
            homes: BTreeMap::new(),
            tickets: HashMap::new(),
            changed: BTreeSet::new(),
            waiting: 0,
            chance: mixed(seed),
        }
    }

    /// A replica is there. `network` is the time to it and back.
    pub fn offer(&mut self, key: ReplicaKey, offer: Offer, network: Duration) {
        self.lose(key);
        let weights = offer.weights;
        let id = self.pools.entry(weights).or_default().join(key, offer, network);
        self.homes.insert(key, (weights, id));
        self.changed.insert(weights);
    }

    /// A replica accepts so much in all. Grants never shrink: an older one that arrives late changes nothing.
    pub fn grant(&mut self, key: ReplicaKey, window: Window) {
        self.at(key, |pool, id| pool.fleet.grant(id, window));
    }

    /// A replica has computed.
    pub fn stepped(&mut self, key: ReplicaKey, steps: Steps<'_>) {
        if let Some((weights, id)) = self.homes.get(&key)
            && let Some(pool) = self.pools.get_mut(weights)
        {
            pool.stepped(*id, &steps);
        }
    }

    /// A replica takes nothing more.
    pub fn drain(&mut self, key: ReplicaKey) {
        self.at(key, |pool, id| pool.fleet.drain(id));
    }

    /// A replica is not heard of, or is again: it gets nothing new meanwhile.
    pub fn suspect(&mut self, key: ReplicaKey, suspect: bool) {
        self.at(key, |pool, id| pool.fleet.suspect(id, suspect));
    }

    /// A replica is gone.
    pub fn lose(&mut self, key: ReplicaKey) {
        if let Some((weights, id)) = self.homes.remove(&key)
            && let Some(pool) = self.pools.get_mut(&weights)
        {
            pool.lose(id);
            self.changed.insert(weights);
        }
    }

    /// A connection is gone with all its replicas.
    pub fn lose_link(&mut self, link: LinkId) {
        let bounds = [ReplicaId(0), ReplicaId(u32::MAX)].map(|replica| ReplicaKey { link, replica });
        let gone: Vec<ReplicaKey> = self.homes.range(bounds[0]..=bounds[1]).map(|(key, _)| *key).collect();
        gone.into_iter().for_each(|key| self.lose(key));
    }

    /// A request waits, or is turned away: where too many wait already, or it would wait for longer than its class does.
    pub fn submit(&mut self, ticket: Ticket, need: Need, now: Duration) -> Result<(), Turned> {
        let weights = need.model.weights;
        let pool = self.pools.entry(weights).or_default();
        // Who was placed before is not shut out: there are no more of these than sequences that run.
        if self.waiting >= WAITING_MAX && !need.has_begun {
            return Err(Turned::Busy(pool.retry_after()));
        }
        let only = match need.whom {
            Whom::Only(key) => self.homes.get(&key).map(|(_, id)| *id),
            Whom::Any | Whom::Not(_) => None,
        };
        pool.submit(ticket, need, only, now)?;
        self.tickets.insert(ticket, weights);
        self.waiting += 1;
        self.changed.insert(weights);
        Ok(())
    }

    /// A request waits no longer. False if it did not wait.
    pub fn withdraw(&mut self, ticket: Ticket) -> bool {
        let Some(pool) = self.tickets.get(&ticket).and_then(|weights| self.pools.get_mut(weights)) else {
            return false;
        };
        let did_wait = pool.withdraw(ticket);
        if did_wait {
            self.waiting -= 1;
            self.changed.extend(self.tickets.remove(&ticket));
        }
        did_wait
    }

    /// A placed request has given its first token.
    pub fn answered(&mut self, key: ReplicaKey, ticket: Ticket, now: Duration) {
        self.at(key, |pool, id| pool.answered(id, ticket, now));
    }

    /// A placed request runs no longer: it gave so many tokens, or was lost. To be said after its replica was lost, too.
    pub fn ended(&mut self, key: ReplicaKey, ticket: Ticket, end: Ended, now: Duration) {
        let Some(weights) = self.tickets.remove(&ticket) else { return };
        let id = self.homes.get(&key).map(|(_, id)| *id);
        if let Some(pool) = self.pools.get_mut(&weights) {
            pool.ended(id, ticket, end, now);
        }
    }

    /// Binds as many waiting requests as windows allow. A request that only lacks blocks has the replica that it waits for
    /// kept from being filled by smaller ones; one that no replica suits holds nobody up. One that is better
    /// off waiting for a faster replica, or one that knows its beginning, is looked at again when that has room. A model and
    /// its adapters share replicas, and so one order.
    pub fn place(&mut self, now: Duration) -> Vec<Placement> {
        let mut placed = Vec::new();
        while let Some(weights) = self.changed.pop_first() {
            if let Some(pool) = self.pools.get_mut(&weights) {
                pool.place(now, &mut self.chance, &mut placed);
            }
        }
        self.waiting -= placed.len();
        placed
    }

    /// Requests that have waited for too long, and why nobody took them. They wait no longer.
    pub fn expire(&mut self, now: Duration) -> Vec<(Ticket, Turned)> {
        let mut late: Vec<_> = self.pools.values_mut().flat_map(|pool| pool.expire(now)).collect();
        // Whoever waits for a replica that nothing is heard of goes elsewhere after a while.
        let waiting = self.pools.iter().filter(|(_, pool)| pool.has_waiting()).map(|(weights, _)| *weights);
        self.changed.extend(waiting);
        self.waiting -= late.len();
        late.iter().for_each(|(ticket, _)| _ = self.tickets.remove(ticket));
        late.sort_by_key(|(ticket, _)| *ticket);
        late
    }

    /// Takes what was charged here since the last time, `most` charges at most, for the other schedulers to count.
    pub fn take_charges(&mut self, most: usize) -> Vec<Charge> {
        let mut taken = Vec::new();
        for (weights, pool) in &mut self.pools {
            let untold = pool.queue.take_untold(most - taken.len());
            let charge = |(class, tenant, tokens)| Charge { weights: *weights, class, tenant, tokens };
            taken.extend(untold.into_iter().map(charge));
        }
        taken
    }

    /// Other schedulers have charged so much. What is said of a model that was never asked for or offered here is not kept:
    /// nobody competes for it here, and whoever comes first begins level.
    pub fn charge_elsewhere(&mut self, charges: &[Charge]) {
        for Charge { weights, class, tenant, tokens } in charges {
            if let Some(pool) = self.pools.get_mut(weights) {
                pool.queue.charge_elsewhere(*tenant, *class, *tokens);
            }
        }
    }

    /// Whether somebody could load a model, so that it is worth waiting for where nobody has it.
    pub fn expect(&mut self, weights: WeightsHash, is_loadable: bool) {
        self.pools.entry(weights).or_default().expect(is_loadable);
    }

    /// Tokens a second that are wanted of each model.
    pub fn wanted(&self, now: Duration) -> BTreeMap<WeightsHash, f64> {
        self.pools.iter().map(|(weights, pool)| (*weights, pool.wanted(now))).collect()
    }

    /// Whether somebody waits for a model that nobody serves and somebody could load.
    pub fn has_unserved(&self) -> bool {
        self.pools.values().any(Pool::is_unserved)
    }

    /// Tokens a second that a replica computes, as far as is known; see [`Replica::tokens_per_s`].
    pub fn rate(&self, key: ReplicaKey) -> Option<f64> {
        let (weights, id) = self.homes.get(&key)?;
        self.pools.get(weights)?.fleet.get(*id).map(Replica::tokens_per_s)
    }

    /// How a model stands.
    pub fn quote(&self, model: &Computes) -> Quote {
        self.pools.get(&model.weights).map(|pool| pool.fleet.quote(model, None)).unwrap_or_default()
    }

    /// How a model stands for whoever needs it so: of all replicas, those count that compute as the need says.
    pub fn quote_for(&self, need: &Need) -> Quote {
        let quote = |pool: &Pool| pool.fleet.quote(&need.model, need.numerics);
        self.pools.get(&need.model.weights).map(quote).unwrap_or_default()
    }

    /// Requests that wait.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// Names of blocks that are known to be in caches, counted once for each replica.
    pub fn blocks_known(&self) -> usize {
        self.pools.values().map(|pool| pool.index.blocks()).sum()
    }

    /// Replicas there are, in no order.
    pub fn replicas(&self) -> impl Iterator<Item = &Replica> {
        self.pools.values().flat_map(|pool| pool.fleet.all())
    }

    /// Does something to a replica after which others may be placed.
    fn at(&mut self, key: ReplicaKey, act: impl FnOnce(&mut Pool, u32)) {
        if let Some((weights, id)) = self.homes.get(&key)
            && let Some(pool) = self.pools.get_mut(weights)
        {
            act(pool, *id);
            self.changed.insert(*weights);
        }
    }
}

/// How a placement ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Tokens of output that it gave.
    pub output: u32,
    /// Whether the miner lost it.
    pub is_lost: bool,
}

#[cfg(test)]
mod tests;
