//! Which replica a request goes to, or for which it is better to wait.

use std::time::Duration;

use cuckoo_wire::message::FoundBy;

use super::super::chance::mixed;
use super::super::fleet::Runs;
use super::super::queue::Waits;
use super::super::score::{self, Foreseen, Outlook};
use super::super::{Considered, Need, Placement, Reasons, Ticket};
use super::{Pool, Request};

/// Replicas that are considered for their caches, and by chance.
const BY_PREFIX: usize = 4;
const BY_CHANCE: usize = 4;
/// Replicas that are looked at in one go where none of these can take a request.
const SEARCHED_MAX: u32 = 64;

/// What became of a request that was considered.
pub(super) enum Pick {
    Placed(Box<Placement>),
    /// It goes on waiting.
    Waits,
    /// It waits for this replica, until then at most.
    WaitsFor(u32, Duration),
    /// No replica there is will ever take it.
    Unserved,
}

/// A candidate: its number, what it would be like, and what is told of it.
type Ranked = (u32, Foreseen, Considered);

impl Pool {
    /// Looks for a replica for a request that is next.
    pub(super) fn pick(&mut self, waits: Waits, now: Duration, chance: &mut u64) -> Pick {
        let Some(request) = self.requests.get(&waits.ticket) else { return Pick::Waits };
        if !self.fleet.computes(&request.need) {
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
        let outlook = self.outlook(&request.need);
        let ranked = self.ranked(&request.need, &outlook, found);
        if let Some((id, until)) = self.better_later(request, &outlook, &ranked[0].1, now, chance) {
            return Pick::WaitsFor(id, until);
        }
        Pick::Placed(Box::new(self.bind(waits, ranked, now)))
    }

    /// A handful of replicas that can take it now.
    fn candidates(&self, request: &Request, chance: &mut u64) -> Vec<(u32, FoundBy)> {
        let need = &request.need;
        let mut found: Vec<(u32, FoundBy)> = Vec::with_capacity(BY_PREFIX + BY_CHANCE + 2);
        let can = |id: u32| self.fleet.get(id).is_some_and(|r| r.suits(need) && r.has_room(need));
        if let Some(only) = request.only {
            return if can(only) { vec![(only, FoundBy::Kept)] } else { Vec::new() };
        }
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
        if let Some(id) = request.preferred {
            add(&mut found, id, FoundBy::Chance);
        }
        if let Some(id) = need.chain.first().and_then(|first| self.fleet.on_ring(*first, need)) {
            add(&mut found, id, FoundBy::Ring);
        }
        let open = self.fleet.open(need);
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
    pub(super) fn search(&mut self, ticket: Ticket) -> Vec<(u32, FoundBy)> {
        let Some(request) = self.requests.get_mut(&ticket) else { return Vec::new() };
        // What was kept and will not do any more keeps nobody from another.
        if let Some(kept) = request.kept.filter(|id| !self.fleet.get(*id).is_some_and(|r| r.suits(&request.need))) {
            request.kept = None;
            self.fleet.change(kept, |replica| replica.kept_for = replica.kept_for.filter(|other| *other != ticket));
        }
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

    /// What is known of a request beside its need.
    fn outlook(&self, need: &Need) -> Outlook {
        let output = self.output_of(need);
        let lowest = self.fleet.quote(&need.model, need.numerics).lowest_ask;
        Outlook { output, lowest_cost: lowest.map_or(0.0, |ask| score::cost_at(need, output, &ask)) }
    }

    /// A request on a replica.
    fn foresee(&self, id: u32, need: &Need, outlook: &Outlook) -> Option<(Foreseen, u32)> {
        let replica = self.fleet.get(id)?;
        let cached = self.index.hit(id, &need.chain) as u32 * replica.offer.block_tokens;
        Some((score::foresee(replica, need, cached, outlook), cached))
    }

    /// Candidates, those first that give what the class aims at, and of these the cheapest.
    fn ranked(&self, need: &Need, outlook: &Outlook, found: Vec<(u32, FoundBy)>) -> Vec<Ranked> {
        let ranked = found.into_iter().filter_map(|(id, found_by)| {
            let (foreseen, cached_tokens) = self.foresee(id, need, outlook)?;
            let Foreseen { terms, ttft_p95_ms, itl_ms, meets, .. } = foreseen;
            let key = self.fleet.get(id)?.key;
            Some((id, foreseen, Considered { key, cached_tokens, terms, ttft_p95_ms, itl_ms, meets, found_by }))
        });
        let mut ranked: Vec<Ranked> = ranked.collect();
        ranked.sort_by(|(_, a, _), (_, b, _)| a.order(b));
        ranked
    }

    /// A replica that has no room, and for which it is better to wait than to take the best of those that have: because
    /// most of the prompt is known there, or because it is that much faster (delay scheduling, Zaharia et al. 2010); and until
    /// when. Nobody waits so for longer than it would save.
    fn better_later(
        &self,
        request: &Request,
        outlook: &Outlook,
        best: &Foreseen,
        now: Duration,
        chance: &mut u64,
    ) -> Option<(u32, Duration)> {
        let need = &request.need;
        let mut looked_at: Vec<u32> = Vec::with_capacity(2 * BY_PREFIX);
        let look = |looked_at: &mut Vec<u32>, id: u32| {
            if !looked_at.contains(&id) && self.fleet.get(id).is_some_and(|replica| replica.is_full(need)) {
                looked_at.push(id);
            }
        };
        self.index.deepest(&need.chain, next(chance), |id| {
            look(&mut looked_at, id);
            looked_at.len() < BY_PREFIX
        });
        let recent = self.ended_on.len() as u64;
        if recent > 0 {
            (0..BY_CHANCE).for_each(|_| look(&mut looked_at, self.ended_on[(next(chance) % recent) as usize]));
        }
        let later = looked_at.into_iter().filter_map(|id| {
            let (mut foreseen, _) = self.foresee(id, need, outlook)?;
            let saved_ms = best.terms.total() - foreseen.terms.total();
            let saved = Duration::try_from_secs_f32(saved_ms / 1e3).unwrap_or_default();
            let until = request.waits.since.saturating_add(saved);
            foreseen.wait(self.fleet.get(id)?.room_in_ms(), need.class);
            (now < until && foreseen.order(best).is_lt()).then_some((id, until, foreseen))
        });
        later.min_by(|(_, _, a), (_, _, b)| a.order(b)).map(|(id, until, _)| (id, until))
    }

    /// Binds a request to the first of its candidates.
    fn bind(&mut self, waits: Waits, candidates: Vec<Ranked>, now: Duration) -> Placement {
        let request = self.leave(waits.ticket).expect("it was looked at");
        let need = &request.need;
        let output = self.output_of(need);
        let (id, foreseen, considered) = candidates[0];
        let replica = self.fleet.get(id).expect("it is a candidate");
        let (key, blocks, ask, numerics) = (replica.key, replica.blocks(need), replica.ask(), replica.offer.numerics);
        let uncached = need.tokens.saturating_sub(considered.cached_tokens);
        let served_tokens = self.queue.counter(waits.tenant, waits.class);
        self.fleet.assign(id, waits.ticket, blocks, Runs { uncached, foreseen: Some((now, foreseen.ttft_ms)) });
        self.queue.charge(waits.tenant, waits.class, i64::from(uncached) + output as i64);
        self.charged.insert(waits.ticket, (waits, output));
        let reasons = Reasons {
            waited: now.saturating_sub(waits.since),
            waiting: self.queue.len() as u32,
            replicas: self.fleet.len(),
            other_numerics: self.fleet.other_numerics(need),
            served_tokens,
            candidates: candidates.into_iter().map(|(_, _, considered)| considered).collect(),
        };
        Placement { ticket: waits.ticket, key, blocks, ask, numerics, reasons }
    }
}

/// The next of a sequence of numbers that look random.
fn next(chance: &mut u64) -> u64 {
    *chance = chance.wrapping_add(1);
    mixed(*chance)
}
