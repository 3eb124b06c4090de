//! One model: its replicas, what they have cached, and who waits for them.

mod pick;

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use cuckoo_wire::message::Offer;

use self::pick::Pick;
use super::fleet::{Awaits, Fleet};
use super::prefix_index::PrefixIndex;
use super::queue::{Queue, Waits};
use super::rates::{Mean, StepTime};
use super::score::objective;
use super::{Ended, Need, Placement, ReplicaKey, Steps, Ticket, Turned};

/// Waiting requests that are considered at a time; bounds the work of one event.
const CONSIDERED_MAX: usize = 64;
/// How long a request waits where no replica could ever take it: a miner may be restarting.
const UNSERVED_PATIENCE: Duration = Duration::from_secs(5);
/// How soon the search for one goes on.
const SEARCH_PAUSE: Duration = Duration::from_millis(100);
/// Ends of requests that are further apart say that there was nothing to do.
const END_MAX_MS: f64 = 5_000.0;
/// Ends that are remembered.
const ENDED_MAX: usize = 256;
/// What an output is thought to have before any has ended, in tokens, and how much one counts.
const OUTPUT_PRIOR: f64 = 128.0;
const OUTPUT_SHARE: f64 = 0.02;
/// Tokens that a model's replicas are said to compute in a second, before that is known.
const DRAIN_PRIOR: f64 = 100.0;
/// Over such a time their rate is measured.
const DRAIN_PERIOD: Duration = Duration::from_secs(5);
/// What came longer ago counts a third of what comes now, in seconds.
const ARRIVED_S: f64 = 60.0;
/// What waits should be computed within so many seconds.
const WAITING_S: f64 = 5.0;
/// Nobody is told to come back sooner or later than this.
const RETRY_AFTER: (u64, u64) = (1, 600);

/// One model's side of the board.
#[derive(Debug)]
pub(super) struct Pool {
    pub(super) fleet: Fleet,
    pub(super) index: PrefixIndex,
    pub(super) queue: Queue,
    requests: HashMap<Ticket, Request>,
    /// Until when each of them waits.
    deadlines: BTreeSet<(Duration, Ticket)>,
    /// Those that no replica suits: nobody waits behind them. Looked at again when one comes.
    parked: BTreeSet<Ticket>,
    /// Those that wait for one replica though others have room, by when that pays no longer. Looked at again then, or when
    /// it has room.
    aside: BTreeSet<(Duration, Ticket)>,
    /// What was charged for those that run: who, and for how much output.
    charged: HashMap<Ticket, (Waits, f64)>,
    output: Mean,
    /// Where the newest requests ended, in no order: who finishes more is met here more often.
    ended_on: Vec<u32>,
    ended: usize,
    /// Steps of all replicas together.
    time: StepTime,
    drained: Drained,
    arrived: Arrived,
    /// Whether somebody could load the model who has not.
    is_loadable: bool,
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
    /// Where it must go, if it must.
    only: Option<u32>,
    /// The replica whose room is kept for it.
    kept: Option<u32>,
    /// The replica that it waits for though others have room, or waited for last.
    preferred: Option<u32>,
    /// Until when it does, and its place among those who wait for it.
    aside: Option<(Duration, Awaits)>,
}

/// Tokens a second while somebody waited, over the last whole period: where nobody waits, it is demand that is measured.
#[derive(Clone, Copy, Debug, Default)]
struct Drained {
    since: Duration,
    tokens: u64,
    /// Not known before there was such a period.
    rate: Option<f64>,
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
            aside: BTreeSet::new(),
            charged: HashMap::new(),
            output: Mean::new(OUTPUT_SHARE, OUTPUT_PRIOR),
            ended_on: Vec::new(),
            ended: 0,
            time: StepTime::default(),
            drained: Drained::default(),
            arrived: Arrived::default(),
            is_loadable: false,
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
        let Some(replica) = self.fleet.leave(id) else { return };
        replica.awaited_by.iter().for_each(|(_, _, ticket)| self.look_again(*ticket));
        if let Some(request) = replica.kept_for.and_then(|ticket| self.requests.get_mut(&ticket)) {
            request.kept = None;
        }
        for request in self.requests.values_mut() {
            // Whoever was suited may have been by this one alone.
            (request.searched, request.is_suited) = (0, false);
            request.preferred = request.preferred.filter(|preferred| *preferred != id);
        }
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
                let decoding = replica.running.len() as f64;
                replica.prompt_rows.observe((f64::from(steps.rows) / f64::from(steps.steps) - decoding).max(0.0));
                all.observe(steps.rows / steps.steps, replica.context, each_ms);
            }
        });
    }

    /// `only` is where it must go, if it must.
    pub(super) fn submit(
        &mut self,
        ticket: Ticket,
        need: Need,
        only: Option<u32>,
        now: Duration,
    ) -> Result<(), Turned> {
        let (output, objective) = (self.output_of(&need), objective(need.class));
        let waits = Waits {
            ticket,
            tenant: need.tenant,
            class: need.class,
            has_begun: need.has_begun,
            since: now,
            late_from: now + Duration::from_secs_f64(objective.ttft_ms / 1e3),
            work: u64::from(need.tokens) + output as u64 + 1,
        };
        let patience = objective.patience;
        let is_crowded = self.fleet.computes(&need) && self.fleet.open(&need).is_empty();
        let ahead = self.queue.ahead_of(need.tenant, waits.work) as f64;
        let waits_too_long = self.drained.rate.is_some_and(|rate| ahead / rate > patience.as_secs_f64());
        if is_crowded && !need.has_begun && waits_too_long {
            return Err(Turned::Busy(self.retry_after()));
        }
        if !need.has_begun {
            self.arrived.add(waits.work, now);
        }
        let deadline = now + patience.min(UNSERVED_PATIENCE);
        self.deadlines.insert((deadline, ticket));
        self.queue.put(waits);
        let request = Request {
            need,
            waits,
            deadline,
            cursor: 0,
            searched: 0,
            is_suited: false,
            only,
            kept: None,
            preferred: None,
            aside: None,
        };
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
        self.look_again(ticket);
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
            match self.ended_on.len() < ENDED_MAX {
                true => self.ended_on.push(id),
                false => self.ended_on[self.ended % ENDED_MAX] = id,
            }
            self.ended += 1;
            self.fleet.change(id, |replica| {
                let Some(runs) = replica.running.remove(&ticket) else { return };
                let since = now.saturating_sub(replica.last_end).as_secs_f64() * 1e3;
                replica.end_ms.observe(since.min(END_MAX_MS));
                replica.last_end = now;
                if runs.foreseen.is_some() {
                    replica.prefilling -= u64::from(runs.uncached);
                }
                replica.losses.observe(f64::from(u8::from(end.is_lost)));
            });
        }
        let Some((waits, output)) = self.charged.remove(&ticket) else { return };
        self.queue.charge(waits.tenant, waits.class, i64::from(end.output) - output as i64);
        let tokens = waits.work.saturating_sub(output as u64) + u64::from(end.output);
        self.drained.add(tokens, self.queue.len() > 0, now);
        if !end.is_lost {
            self.output.observe(f64::from(end.output));
        }
    }

    pub(super) fn place(&mut self, now: Duration, chance: &mut u64, placed: &mut Vec<Placement>) {
        self.fleet.take_stirred().into_iter().for_each(|ticket| self.look_again(ticket));
        while let Some((_, ticket)) = self.aside.first().copied().filter(|(until, _)| *until <= now) {
            self.look_again(ticket);
        }
        let mut passed = Vec::new();
        let may_place = |fleet: &Fleet| fleet.has_room() || fleet.len() == 0;
        let mut set_aside = 0;
        while passed.len() + set_aside < CONSIDERED_MAX && may_place(&self.fleet) {
            let Some(waits) = self.queue.take(now) else { break };
            match self.pick(waits, now, chance) {
                Pick::Placed(placement) => placed.push(*placement),
                Pick::Waits => passed.push(waits),
                Pick::WaitsFor(id, until) => {
                    self.set_aside(waits, id, until, now);
                    set_aside += 1;
                }
                Pick::Unserved => _ = self.parked.insert(waits.ticket),
            }
        }
        passed.into_iter().for_each(|waits| self.queue.put(waits));
    }

    /// A request that was taken waits for a replica, and is not looked at until that has room or it is `until`.
    fn set_aside(&mut self, waits: Waits, id: u32, until: Duration, now: Duration) {
        let Some(request) = self.requests.get_mut(&waits.ticket) else { return };
        let is_late = waits.late_from <= now;
        // Who gets late is not first among those who wait any more.
        let until = if is_late { until } else { until.min(waits.late_from) };
        let awaits = (is_late, waits.class, waits.ticket);
        (request.preferred, request.aside) = (Some(id), Some((until, awaits)));
        self.aside.insert((until, waits.ticket));
        self.fleet.change(id, |replica| _ = replica.awaited_by.insert(awaits));
        self.queue.set_aside(waits);
    }

    /// A request that was set aside is in the queue again.
    fn look_again(&mut self, ticket: Ticket) {
        let Some(request) = self.requests.get_mut(&ticket) else { return };
        let Some((until, awaits)) = request.aside.take() else { return };
        self.aside.remove(&(until, ticket));
        if let Some(id) = request.preferred {
            self.fleet.change(id, |replica| _ = replica.awaited_by.remove(&awaits));
        }
        self.queue.call_back(ticket);
    }

    /// Those whose time is over. Of a request that nobody could be found for yet it is found out, a few replicas at a time,
    /// whether there is anybody at all.
    pub(super) fn expire(&mut self, now: Duration) -> Vec<(Ticket, Turned)> {
        let mut late = Vec::new();
        while let Some((deadline, ticket)) = self.deadlines.first().copied().filter(|(deadline, _)| *deadline <= now) {
            let of = |ask: fn(&Fleet, &Need) -> bool| {
                self.requests.get(&ticket).is_some_and(|request| ask(&self.fleet, &request.need))
            };
            let (computes, is_unmatched) = (of(Fleet::computes), of(|fleet, need| fleet.other_numerics(need) > 0));
            self.look_again(ticket);
            if computes && !self.parked.contains(&ticket) {
                self.search(ticket);
            }
            let Some(request) = self.requests.get_mut(&ticket) else { break };
            let last = request.waits.since + objective(request.need.class).patience;
            let is_known = request.is_suited || request.searched >= self.fleet.ids();
            // Who has the model already is among those who could load it, and would compute in no other way then.
            let may_come = !computes && !is_unmatched && self.is_loadable;
            if now < last && (may_come || computes && (request.is_suited || !is_known)) {
                self.deadlines.remove(&(deadline, ticket));
                request.deadline = if is_known || may_come { last } else { now + SEARCH_PAUSE };
                self.deadlines.insert((request.deadline, ticket));
                continue;
            }
            let why = match (computes, request.is_suited || !is_known) {
                (false, _) if is_unmatched => Turned::Unmatched,
                (false, _) if self.is_loadable => Turned::Busy(self.retry_after()),
                (false, _) => Turned::Unserved,
                (true, false) => Turned::Unsuited,
                (true, true) => Turned::Busy(self.retry_after()),
            };
            self.withdraw(ticket);
            late.push((ticket, why));
        }
        late
    }

    /// Whether somebody could load the model: then it is worth waiting for.
    pub(super) fn expect(&mut self, is_loadable: bool) {
        self.is_loadable = is_loadable;
    }

    /// Tokens a second that are wanted: those that come, and those that wait, which are to be served soon and count for more the
    /// longer they do, so that nobody waits for ever for a model that is asked for less than others.
    pub(super) fn wanted(&self, now: Duration) -> f64 {
        let urgency = |waits: &Waits| 1.0 + now.saturating_sub(waits.since).as_secs_f64() / WAITING_S;
        let waiting = self.requests.values().map(|request| request.waits.work as f64 * urgency(&request.waits));
        self.arrived.rate(now) + waiting.sum::<f64>() / WAITING_S
    }

    /// Whether somebody waits for a model that nobody serves and somebody could load.
    pub(super) fn is_unserved(&self) -> bool {
        self.is_loadable && self.fleet.len() == 0 && !self.requests.is_empty()
    }

    /// Whether anybody waits who may be placed.
    pub(super) fn has_waiting(&self) -> bool {
        self.queue.len() > 0
    }

    /// When what waits now will have been served, at the rate of late.
    pub(super) fn retry_after(&self) -> Duration {
        let rate = self.drained.rate.unwrap_or(DRAIN_PRIOR);
        let seconds = (self.queue.work() as f64 / rate).ceil() as u64;
        Duration::from_secs(seconds.clamp(RETRY_AFTER.0, RETRY_AFTER.1))
    }

    fn output_of(&self, need: &Need) -> f64 {
        self.output.value().min(f64::from(need.max_new))
    }
}

/// Tokens a second that requests came with, older ones counting less and less.
#[derive(Clone, Copy, Debug, Default)]
struct Arrived {
    at: Duration,
    rate: f64,
}

impl Arrived {
    fn rate(&self, now: Duration) -> f64 {
        self.rate * (-now.saturating_sub(self.at).as_secs_f64() / ARRIVED_S).exp()
    }

    fn add(&mut self, tokens: u64, now: Duration) {
        *self = Self { at: now, rate: self.rate(now) + tokens as f64 / ARRIVED_S };
    }
}

impl Drained {
    fn add(&mut self, tokens: u64, somebody_waits: bool, now: Duration) {
        if !somebody_waits {
            (self.since, self.tokens) = (now, 0);
            return;
        }
        self.tokens += tokens;
        let period = now.saturating_sub(self.since);
        if period >= DRAIN_PERIOD {
            let rate = (self.tokens as f64 / period.as_secs_f64()).max(1.0);
            *self = Self { since: now, tokens: 0, rate: Some(rate) };
        }
    }
}
