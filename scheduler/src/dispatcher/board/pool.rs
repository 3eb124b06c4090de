//! One model: its replicas, what they have cached, and who waits for them.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use cuckoo_wire::message::{FoundBy, Offer, ServiceClass};

use super::fleet::{Fleet, Runs, mixed};
use super::prefix_index::PrefixIndex;
use super::queue::{Queue, Waits};
use super::rates::{Mean, StepTime};
use super::score::{self, Foreseen, Outlook};
use super::{Considered, Ended, Need, Placement, Reasons, ReplicaKey, Steps, Ticket, Turned};

/// Waiting requests that are considered at a time; bounds the work of one event.
const CONSIDERED_MAX: usize = 64;
/// Replicas that are considered for their caches, and by chance.
const BY_PREFIX: usize = 4;
const BY_CHANCE: usize = 4;
/// Replicas that are looked at in one go where none of these can take a request.
const SEARCHED_MAX: u32 = 64;
/// How long a request waits where no replica could ever take it: a miner may be restarting.
const UNSERVED_PATIENCE: Duration = Duration::from_secs(5);
/// How soon the search for one goes on.
const SEARCH_PAUSE: Duration = Duration::from_millis(100);
/// What an output is thought to have before any has ended, in tokens, and how much one counts.
const OUTPUT_PRIOR: f64 = 128.0;
const OUTPUT_SHARE: f64 = 0.02;
/// Tokens that a model's replicas compute in a second, before they have.
const DRAIN_PRIOR: f64 = 100.0;
/// Over such a time their rate is measured.
const DRAIN_PERIOD: Duration = Duration::from_secs(5);
/// Nobody is told to come back sooner or later than this.
const RETRY_AFTER: (u64, u64) = (1, 600);

/// How long a request of a class waits for a replica that could take it.
fn patience(class: ServiceClass) -> Duration {
    Duration::from_secs(match class {
        ServiceClass::Interactive => 30,
        ServiceClass::Standard => 120,
        ServiceClass::Batch => 600,
    })
}

/// One model's side of the board.
#[derive(Debug)]
pub(super) struct Pool {
    pub(super) fleet: Fleet,
    pub(super) index: PrefixIndex,
    queue: Queue,
    requests: HashMap<Ticket, Request>,
    /// Until when each of them waits.
    deadlines: BTreeSet<(Duration, Ticket)>,
    /// Those that no replica suits: nobody waits behind them. Looked at again when one comes.
    parked: BTreeSet<Ticket>,
    /// What was charged for those that run: who, and for how much output.
    charged: HashMap<Ticket, (Waits, f64)>,
    output: Mean,
    /// Steps of all replicas together.
    time: StepTime,
    drained: Drained,
}

/// One waiting request.
#[derive(Debug)]
struct Request {
    need: Need,
    waits: Waits,
    deadline: Duration,
    /// Where the search for a replica goes on, and how many were looked at since one came.
    cursor: u32,
    searched: u32,
    /// Whether one of these could take it when it has room.
    is_suited: bool,
    /// The replica whose room is kept for it.
    kept: Option<u32>,
}

/// What became of a request that was considered.
enum Pick {
    Placed(Box<Placement>),
    /// It goes on waiting.
    Waits,
    /// No replica there is will ever take it.
    Unserved,
}

/// Tokens a second, over the last whole period.
#[derive(Clone, Copy, Debug)]
struct Drained {
    since: Duration,
    tokens: u64,
    rate: f64,
}

impl Default for Pool {
    fn default() -> Self {
        Self {
            fleet: Fleet::default(),
            index: PrefixIndex::default(),
            queue: Queue::default(),
            requests: HashMap::new(),
            deadlines: BTreeSet::new(),
            parked: BTreeSet::new(),
            charged: HashMap::new(),
            output: Mean::new(OUTPUT_SHARE, OUTPUT_PRIOR),
            time: StepTime::default(),
            drained: Drained { since: Duration::ZERO, tokens: 0, rate: DRAIN_PRIOR },
        }
    }
}

impl Pool {
    pub(super) fn join(&mut self, key: ReplicaKey, offer: Offer, network: Duration) -> u32 {
        let id = self.fleet.join(key, offer, network.as_secs_f64() * 1e3, self.time.newcomer());
        for ticket in std::mem::take(&mut self.parked) {
            let Some(request) = self.requests.get_mut(&ticket) else { continue };
            self.queue.put(request.waits);
        }
        self.requests.values_mut().for_each(|request| (request.searched, request.is_suited) = (0, false));
        id
    }

    pub(super) fn lose(&mut self, id: u32) {
        self.index.forget(id);
        let kept = self.fleet.leave(id).and_then(|replica| replica.kept_for);
        if let Some(request) = kept.and_then(|ticket| self.requests.get_mut(&ticket)) {
            request.kept = None;
        }
        // Whoever was suited may have been by this one alone.
        self.requests.values_mut().for_each(|request| (request.searched, request.is_suited) = (0, false));
    }

    pub(super) fn stepped(&mut self, id: u32, steps: &Steps<'_>) {
        steps.evicted.iter().for_each(|name| self.index.remove(id, *name));
        steps.cached.iter().for_each(|name| self.index.store(id, *name));
        let all = &mut self.time;
        self.fleet.change(id, |replica| {
            replica.context = steps.blocks_used.saturating_mul(u64::from(replica.offer.block_tokens));
            if steps.steps > 0 {
                let each_ms = steps.took.as_secs_f64() * 1e3 / f64::from(steps.steps);
                replica.time.observe(steps.rows / steps.steps, replica.context, each_ms);
                all.observe(steps.rows / steps.steps, replica.context, each_ms);
            }
        });
    }

    pub(super) fn submit(&mut self, ticket: Ticket, need: Need, now: Duration) -> Result<(), Turned> {
        let output = self.output_of(&need);
        let waits = Waits {
            ticket,
            tenant: need.tenant,
            class: need.class,
            has_begun: need.has_begun,
            since: now,
            work: u64::from(need.tokens) + output as u64 + 1,
        };
        let patience = patience(need.class);
        let is_crowded = self.fleet.computes(&need.model) && self.fleet.open(&need.model).is_empty();
        let wait = self.queue.ahead_of(need.tenant, waits.work) as f64 / self.drained.rate;
        if is_crowded && !need.has_begun && wait > patience.as_secs_f64() {
            return Err(Turned::Busy(self.retry_after()));
        }
        let deadline = now + patience.min(UNSERVED_PATIENCE);
        self.deadlines.insert((deadline, ticket));
        self.queue.put(waits);
        let request = Request { need, waits, deadline, cursor: 0, searched: 0, is_suited: false, kept: None };
        self.requests.insert(ticket, request);
        Ok(())
    }

    pub(super) fn withdraw(&mut self, ticket: Ticket) -> bool {
        let Some(request) = self.leave(ticket) else { return false };
        if !self.parked.remove(&ticket) {
            self.queue.remove(&request.waits);
        }
        true
    }

    /// It waits no longer, and is to be taken out of the queue.
    fn leave(&mut self, ticket: Ticket) -> Option<Request> {
        let request = self.requests.remove(&ticket)?;
        self.deadlines.remove(&(request.deadline, ticket));
        if let Some(kept) = request.kept {
            self.fleet.change(kept, |replica| replica.kept_for = replica.kept_for.filter(|for_it| *for_it != ticket));
        }
        Some(request)
    }

    pub(super) fn answered(&mut self, id: u32, ticket: Ticket, now: Duration) {
        self.fleet.change(id, |replica| {
            let Some(runs) = replica.running.get_mut(&ticket) else { return };
            let Some((placed, foreseen_ms)) = runs.foreseen.take() else { return };
            replica.prefilling -= u64::from(runs.uncached);
            replica.late.observe(now.saturating_sub(placed).as_secs_f64() * 1e3 / foreseen_ms.max(1.0));
        });
    }

    /// `id` is `None` where its replica has gone.
    pub(super) fn ended(&mut self, id: Option<u32>, ticket: Ticket, end: Ended, now: Duration) {
        if let Some(id) = id {
            self.fleet.change(id, |replica| {
                let Some(runs) = replica.running.remove(&ticket) else { return };
                if runs.foreseen.is_some() {
                    replica.prefilling -= u64::from(runs.uncached);
                }
                replica.losses.observe(f64::from(u8::from(end.is_lost)));
            });
        }
        let Some((waits, output)) = self.charged.remove(&ticket) else { return };
        self.queue.charge(waits.tenant, waits.class, i64::from(end.output) - output as i64);
        self.drained.add(waits.work.saturating_sub(output as u64) + u64::from(end.output), now);
        if !end.is_lost {
            self.output.observe(f64::from(end.output));
        }
    }

    pub(super) fn place(&mut self, now: Duration, chance: &mut u64, placed: &mut Vec<Placement>) {
        let mut passed = Vec::new();
        let may_place = |fleet: &Fleet| fleet.has_room() || fleet.len() == 0;
        while passed.len() < CONSIDERED_MAX && may_place(&self.fleet) {
            let Some(waits) = self.queue.take() else { break };
            match self.pick(waits, now, chance) {
                Pick::Placed(placement) => placed.push(*placement),
                Pick::Waits => passed.push(waits),
                Pick::Unserved => _ = self.parked.insert(waits.ticket),
            }
        }
        passed.into_iter().for_each(|waits| self.queue.put(waits));
    }

    fn pick(&mut self, waits: Waits, now: Duration, chance: &mut u64) -> Pick {
        let Some(request) = self.requests.get(&waits.ticket) else { return Pick::Waits };
        if !self.fleet.computes(&request.need.model) {
            return Pick::Unserved;
        }
        let mut found = self.candidates(request, chance);
        if found.is_empty() {
            found = self.search(waits.ticket);
        }
        let Some(request) = self.requests.get(&waits.ticket) else { return Pick::Waits };
        if found.is_empty() {
            let is_unserved = !request.is_suited && request.searched >= self.fleet.ids();
            return if is_unserved { Pick::Unserved } else { Pick::Waits };
        }
        Pick::Placed(Box::new(self.choose(waits, found, now)))
    }

    /// A handful of replicas that can take it now.
    fn candidates(&self, request: &Request, chance: &mut u64) -> Vec<(u32, FoundBy)> {
        let need = &request.need;
        let mut found: Vec<(u32, FoundBy)> = Vec::with_capacity(BY_PREFIX + BY_CHANCE + 2);
        let can = |id: u32| self.fleet.get(id).is_some_and(|r| r.suits(need) && r.has_room(need));
        found.extend(request.kept.filter(|id| can(*id)).map(|id| (id, FoundBy::Kept)));
        let is_free = |id: u32| can(id) && self.fleet.get(id).is_some_and(|r| r.kept_for.is_none());
        let add = |found: &mut Vec<(u32, FoundBy)>, id: u32, by: FoundBy| {
            if found.iter().all(|(other, _)| *other != id) && is_free(id) {
                found.push((id, by));
            }
        };
        let most = found.len() + BY_PREFIX;
        self.index.deepest(&need.chain, next(chance), |id| {
            add(&mut found, id, FoundBy::Prefix);
            found.len() < most
        });
        if let Some(id) = need.chain.first().and_then(|first| self.fleet.on_ring(*first, need)) {
            add(&mut found, id, FoundBy::Ring);
        }
        let open = self.fleet.open(&need.model);
        match open.len() <= 2 * BY_CHANCE {
            true => open.iter().for_each(|id| add(&mut found, *id, FoundBy::Chance)),
            false => (0..BY_CHANCE).for_each(|_| {
                add(&mut found, open[(next(chance) % open.len() as u64) as usize], FoundBy::Chance);
            }),
        }
        found
    }

    /// Looks on for a replica where those at hand would not do: at so many, from where it stopped. Keeps the room of one
    /// that only lacks blocks.
    fn search(&mut self, ticket: Ticket) -> Vec<(u32, FoundBy)> {
        let Some(request) = self.requests.get_mut(&ticket) else { return Vec::new() };
        let (mut found, mut lacks_blocks) = (Vec::new(), None);
        let ids = self.fleet.ids();
        for _ in 0..SEARCHED_MAX.min(ids) {
            let id = request.cursor % ids;
            (request.cursor, request.searched) = (id + 1, request.searched.saturating_add(1));
            let Some(replica) = self.fleet.get(id).filter(|replica| replica.suits(&request.need)) else { continue };
            request.is_suited = true;
            let is_others = replica.kept_for.is_some_and(|other| other != ticket);
            if !is_others && replica.has_room(&request.need) {
                found.push((id, FoundBy::Search));
            } else if !is_others && replica.has_sequence() {
                let better =
                    |other: u32| self.fleet.get(other).is_none_or(|other| other.blocks_free() < replica.blocks_free());
                lacks_blocks = lacks_blocks.filter(|other| !better(*other)).or(Some(id));
            }
        }
        if found.is_empty() && request.kept.is_none() {
            request.kept = lacks_blocks;
            if let Some(id) = lacks_blocks {
                self.fleet.change(id, |replica| replica.kept_for = Some(ticket));
            }
        }
        found
    }

    /// The cheapest of those that give what the class asks for, or of all.
    fn choose(&mut self, waits: Waits, found: Vec<(u32, FoundBy)>, now: Duration) -> Placement {
        let request = self.leave(waits.ticket).expect("it was looked at");
        let need = &request.need;
        let output = self.output_of(need);
        let lowest = self.fleet.quote(&need.model).lowest_ask;
        let lowest_cost = lowest.map_or(0.0, |ask| score::cost_at(need, output, &ask));
        let outlook = Outlook { output, lowest_cost };
        let mut candidates: Vec<(u32, Foreseen, Considered)> = found
            .into_iter()
            .filter_map(|(id, found_by)| {
                let replica = self.fleet.get(id)?;
                let cached_tokens = self.index.hit(id, &need.chain) as u32 * replica.offer.block_tokens;
                let foreseen = score::foresee(replica, need, cached_tokens, &outlook);
                let Foreseen { terms, ttft_p95_ms, itl_ms, meets, .. } = foreseen;
                let key = replica.key;
                let considered = Considered { key, cached_tokens, terms, ttft_p95_ms, itl_ms, meets, found_by };
                Some((id, foreseen, considered))
            })
            .collect();
        candidates.sort_by(|(_, a, _), (_, b, _)| {
            b.meets.cmp(&a.meets).then_with(|| a.terms.total().total_cmp(&b.terms.total()))
        });
        let (id, foreseen, considered) = candidates[0];
        let replica = self.fleet.get(id).expect("it is a candidate");
        let (key, blocks, ask) = (replica.key, replica.blocks(need), replica.ask());
        let uncached = need.tokens.saturating_sub(considered.cached_tokens);
        let served_tokens = self.queue.counter(waits.tenant, waits.class);
        self.fleet.assign(id, waits.ticket, blocks, Runs { uncached, foreseen: Some((now, foreseen.ttft_ms)) });
        self.queue.charge(waits.tenant, waits.class, i64::from(uncached) + output as i64);
        self.charged.insert(waits.ticket, (waits, output));
        let reasons = Reasons {
            waited: now.saturating_sub(waits.since),
            waiting: self.queue.len() as u32,
            replicas: self.fleet.len(),
            served_tokens,
            candidates: candidates.into_iter().map(|(_, _, considered)| considered).collect(),
        };
        Placement { ticket: waits.ticket, key, blocks, ask, reasons }
    }

    /// Those whose time is over. Of a request that nobody could be found for yet it is found out, a few replicas at a time,
    /// whether there is anybody at all.
    pub(super) fn expire(&mut self, now: Duration) -> Vec<(Ticket, Turned)> {
        let mut late = Vec::new();
        while let Some((deadline, ticket)) = self.deadlines.first().copied().filter(|(deadline, _)| *deadline <= now) {
            let computes = self.requests.get(&ticket).is_some_and(|request| self.fleet.computes(&request.need.model));
            if computes && !self.parked.contains(&ticket) {
                self.search(ticket);
            }
            let Some(request) = self.requests.get_mut(&ticket) else { break };
            let last = request.waits.since + patience(request.need.class);
            let is_known = request.is_suited || request.searched >= self.fleet.ids();
            if computes && now < last && (request.is_suited || !is_known) {
                self.deadlines.remove(&(deadline, ticket));
                request.deadline = if is_known { last } else { now + SEARCH_PAUSE };
                self.deadlines.insert((request.deadline, ticket));
                continue;
            }
            let why = match (computes, request.is_suited || !is_known) {
                (false, _) => Turned::Unserved,
                (true, false) => Turned::Unsuited,
                (true, true) => Turned::Busy(self.retry_after()),
            };
            self.withdraw(ticket);
            late.push((ticket, why));
        }
        late
    }

    /// When what waits now will have been served, at the rate of late.
    pub(super) fn retry_after(&self) -> Duration {
        let seconds = (self.queue.work() as f64 / self.drained.rate).ceil() as u64;
        Duration::from_secs(seconds.clamp(RETRY_AFTER.0, RETRY_AFTER.1))
    }

    fn output_of(&self, need: &Need) -> f64 {
        self.output.value().min(f64::from(need.max_new))
    }
}

impl Drained {
    fn add(&mut self, tokens: u64, now: Duration) {
        self.tokens += tokens;
        let period = now.saturating_sub(self.since);
        if period >= DRAIN_PERIOD {
            let rate = self.tokens as f64 / period.as_secs_f64();
            *self = Self { since: now, tokens: 0, rate: rate.max(1.0) };
        }
    }
}

/// The next of a sequence of numbers that look random.
fn next(chance: &mut u64) -> u64 {
    *chance = chance.wrapping_add(1);
    mixed(*chance)
}
