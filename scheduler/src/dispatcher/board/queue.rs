//! In which order requests that wait are looked at: streams that have begun first, then classes by weight, then tenants by
//! what they got, then the shorter request.
//!
//! Classes and tenants each have a *virtual counter*: what they were given, divided by their weight; who has least is next
//! (virtual token counter, Sheng et al. 2023; the same rule serves as weighted round robin between classes). Whoever comes
//! back from having nothing to do starts at the level of who is being served, so nobody saves up. Within a tenant, a
//! request of `w` tokens is taken for one that came `w` times [`AGE_PER_TOKEN_US`] later: short ones pass long ones, but
//! only for so long.
//!
//! What other schedulers of the same store gave a tenant counts as if it had got it here, so that whoever talks to many has
//! one share. It comes to be known a little later, and the gap between tenants is wider by what is served meanwhile.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use super::{ServiceClass, Tenant, Ticket, WAITING_MAX};

/// How much later a request counts as having come, for each token of its work, in microseconds.
const AGE_PER_TOKEN_US: u64 = 2_000;
/// Of so many turns of a tenant that has requests in time, one goes to one that is late.
const LATE_TURNS: u32 = 4;
/// The classes, each at its place in everything that is kept of them.
const CLASSES: [ServiceClass; 3] = [ServiceClass::Interactive, ServiceClass::Standard, ServiceClass::Batch];
/// Their shares where all have requests waiting.
const WEIGHTS: [u64; CLASSES.len()] = [8, 4, 1];
/// Tenants of a class whose counters are kept, and of which others have yet to be told. Those that wait are fewer.
const TENANTS_REMEMBERED: usize = 10_000;
const _: () = assert!(WAITING_MAX <= TENANTS_REMEMBERED / 2);
/// Parts of a token that counters count, so that weights divide them.
const PARTS: u64 = 64;

/// A request that waits, as the queue knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Waits {
    pub(super) ticket: Ticket,
    pub(super) tenant: Tenant,
    pub(super) class: ServiceClass,
    /// It was placed before.
    pub(super) has_begun: bool,
    pub(super) since: Duration,
    /// When it can no longer be in time.
    pub(super) late_from: Duration,
    /// Tokens to compute, as far as can be foreseen; at least 1.
    pub(super) work: u64,
}

/// All that wait for one model.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// Streams that have begun, in order of arrival: somebody looks at half an answer.
    begun: BTreeMap<(Duration, Ticket), Waits>,
    classes: [Class; 3],
    /// Those that are not to be taken for now, though they wait.
    aside: HashMap<Ticket, Waits>,
    /// The counter of the class that was served last.
    floor: u64,
    len: usize,
    /// Tokens that all of them need.
    work: u64,
    /// Of these, each tenant's.
    owed: HashMap<Tenant, u64>,
}

#[derive(Debug, Default)]
struct Class {
    counter: u64,
    waiting: HashMap<Tenant, Own>,
    /// Tenants that wait, by counter.
    order: BTreeSet<(u64, Tenant)>,
    counters: HashMap<Tenant, u64>,
    /// Where newcomers begin: the counter of the tenant that was served last, unless somebody who waits has less.
    floor: u64,
    /// Tokens that each was charged here since other schedulers were told.
    untold: HashMap<Tenant, i64>,
}

/// What waits of one tenant.
#[derive(Debug, Default)]
struct Own {
    in_time: BTreeMap<(u64, Ticket), Waits>,
    /// Those that are late already: for them it matters less. They wait for those that are not, but for one turn in
    /// [`LATE_TURNS`].
    late: BTreeMap<(u64, Ticket), Waits>,
    turns: u32,
}

impl Own {
    fn is_empty(&self) -> bool {
        self.in_time.is_empty() && self.late.is_empty()
    }

    fn take(&mut self, now: Duration) -> Option<Waits> {
        while let Some(first) = self.in_time.first_entry().filter(|first| first.get().late_from <= now) {
            let (place, request) = first.remove_entry();
            self.late.insert(place, request);
        }
        self.turns += 1;
        let late_first = self.turns.is_multiple_of(LATE_TURNS) || self.in_time.is_empty();
        let next = if late_first { self.late.pop_first() } else { None };
        next.or_else(|| self.in_time.pop_first()).map(|(_, request)| request)
    }

    fn remove(&mut self, place: &(u64, Ticket)) -> bool {
        self.in_time.remove(place).or_else(|| self.late.remove(place)).is_some()
    }
}

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Tokens that all of them need.
    pub(super) fn work(&self) -> u64 {
        self.work
    }

    /// Puts a request where it belongs: a new one, or one that was taken and not served.
    pub(super) fn put(&mut self, request: Waits) {
        self.came(&request);
        self.line_up(request);
    }

    /// Sets one aside that was taken: it waits, and is not taken until it is called back.
    pub(super) fn set_aside(&mut self, request: Waits) {
        self.came(&request);
        self.aside.insert(request.ticket, request);
    }

    /// Puts one that was set aside where it belongs.
    pub(super) fn call_back(&mut self, ticket: Ticket) {
        if let Some(request) = self.aside.remove(&ticket) {
            self.line_up(request);
        }
    }

    fn came(&mut self, request: &Waits) {
        self.len += 1;
        self.work += request.work;
        *self.owed.entry(request.tenant).or_default() += request.work;
    }

    fn line_up(&mut self, request: Waits) {
        if request.has_begun {
            self.begun.insert((request.since, request.ticket), request);
            return;
        }
        let class = &mut self.classes[request.class as usize];
        if class.order.is_empty() {
            class.counter = class.counter.max(self.floor);
        }
        class.put(request);
    }

    /// Takes the next.
    pub(super) fn take(&mut self, now: Duration) -> Option<Waits> {
        let next = match self.begun.pop_first() {
            Some((_, request)) => request,
            None => {
                let waiting = self.classes.iter_mut().filter(|class| !class.order.is_empty());
                waiting.min_by_key(|class| class.counter)?.take(now)?
            }
        };
        self.left(&next);
        Some(next)
    }

    /// Takes this one out. False if it is not here.
    pub(super) fn remove(&mut self, request: &Waits) -> bool {
        let found = self.aside.remove(&request.ticket).is_some()
            || match request.has_begun {
                true => self.begun.remove(&(request.since, request.ticket)).is_some(),
                false => self.classes[request.class as usize].remove(request),
            };
        if found {
            self.left(request);
        }
        found
    }

    fn left(&mut self, request: &Waits) {
        self.len -= 1;
        self.work -= request.work;
        if let Some(owed) = self.owed.get_mut(&request.tenant) {
            *owed -= request.work;
            if *owed == 0 {
                self.owed.remove(&request.tenant);
            }
        }
    }

    /// A tenant is served so many tokens; negative where it was charged for more than it got. A stream that has begun is
    /// charged too: it is the tenant's all the same.
    pub(super) fn charge(&mut self, tenant: Tenant, class: ServiceClass, tokens: i64) {
        let (weight, class) = (WEIGHTS[class as usize], &mut self.classes[class as usize]);
        if tokens > 0 {
            self.floor = self.floor.max(class.counter);
        }
        class.counter = class.counter.saturating_add_signed(tokens.saturating_mul(PARTS as i64) / weight as i64);
        class.charge(tenant, tokens);
        class.keep_for_others(tenant, tokens);
    }

    /// Another scheduler has served a tenant so many tokens. Its class is not charged: weights of classes hold at each
    /// scheduler, and so in the sum, but a tenant with a share of each scheduler would have many.
    pub(super) fn charge_elsewhere(&mut self, tenant: Tenant, class: ServiceClass, tokens: i64) {
        self.classes[class as usize].charge_elsewhere(tenant, tokens);
    }

    /// Takes what was charged here since the last time, of `most` tenants at most.
    pub(super) fn take_untold(&mut self, most: usize) -> Vec<(ServiceClass, Tenant, i64)> {
        let mut taken = Vec::new();
        for class in CLASSES {
            let charges = self.classes[class as usize].untold.extract_if(|_, _| true).take(most - taken.len());
            taken.extend(charges.filter(|(_, tokens)| *tokens != 0).map(|(tenant, tokens)| (class, tenant, tokens)));
        }
        taken
    }

    /// What a tenant got, in tokens, by the counter that decides when it is next.
    pub(super) fn counter(&self, tenant: Tenant, class: ServiceClass) -> u64 {
        let class = &self.classes[class as usize];
        class.counters.get(&tenant).copied().unwrap_or(class.floor) / PARTS
    }

    /// Tokens that are computed before a tenant's next `work` are, were nobody else to come: no more than wait, and no more
    /// than everybody else's share beside its own.
    pub(super) fn ahead_of(&self, tenant: Tenant, work: u64) -> u64 {
        let own = self.owed.get(&tenant).copied().unwrap_or(0) + work;
        let tenants = self.owed.len() as u64 + u64::from(!self.owed.contains_key(&tenant));
        self.work.min(own.saturating_mul(tenants))
    }
}

impl Class {
    fn put(&mut self, request: Waits) {
        let tenant = request.tenant;
        if !self.waiting.contains_key(&tenant) {
            let counter = self.counters.entry(tenant).or_insert(self.floor);
            *counter = (*counter).max(self.floor);
            self.order.insert((*counter, tenant));
        }
        self.waiting.entry(tenant).or_default().in_time.insert(place_of(&request), request);
        self.forget();
    }

    fn take(&mut self, now: Duration) -> Option<Waits> {
        let (_, tenant) = *self.order.first()?;
        let request = self.waiting.get_mut(&tenant)?.take(now)?;
        self.leave_if_empty(tenant);
        Some(request)
    }

    fn remove(&mut self, request: &Waits) -> bool {
        let Some(requests) = self.waiting.get_mut(&request.tenant) else { return false };
        let found = requests.remove(&place_of(request));
        self.leave_if_empty(request.tenant);
        found
    }

    fn leave_if_empty(&mut self, tenant: Tenant) {
        if self.waiting.get(&tenant).is_some_and(Own::is_empty) {
            self.waiting.remove(&tenant);
            self.order.remove(&(self.counters[&tenant], tenant));
        }
    }

    fn charge(&mut self, tenant: Tenant, tokens: i64) {
        let counter = self.counters.entry(tenant).or_insert(self.floor);
        let before = *counter;
        *counter = before.saturating_add_signed(tokens.saturating_mul(PARTS as i64));
        let after = *counter;
        if tokens > 0 {
            // Who is served is who had least, but for streams that have begun and for service elsewhere: there somebody who
            // waits here may have less, and newcomers are not to begin behind them.
            let least = self.order.first().map_or(before, |(counter, _)| *counter);
            self.floor = self.floor.max(before.min(least));
        }
        if self.order.remove(&(before, tenant)) {
            self.order.insert((after, tenant));
        }
        self.forget();
    }

    fn charge_elsewhere(&mut self, tenant: Tenant, tokens: i64) {
        if !self.waiting.contains_key(&tenant) {
            // It begins where it would if it came here now, or what it gets elsewhere would be hidden below that.
            let counter = self.counters.entry(tenant).or_insert(self.floor);
            *counter = (*counter).max(self.floor);
        }
        self.charge(tenant, tokens);
    }

    /// Notes a charge of which others are to be told. Where they have not been for so long that there are too many tenants,
    /// those who come last are served without the others' knowing.
    fn keep_for_others(&mut self, tenant: Tenant, tokens: i64) {
        if let Some(untold) = self.untold.get_mut(&tenant) {
            *untold = untold.saturating_add(tokens);
        } else if self.untold.len() < TENANTS_REMEMBERED {
            self.untold.insert(tenant, tokens);
        }
    }

    /// Makes room where there are too many counters. Nobody who waits is forgotten. Of the others, those who got no more than
    /// who is served would begin there anyway; where these are too few, those follow who got least beyond that: they gain it.
    fn forget(&mut self) {
        if self.counters.len() <= TENANTS_REMEMBERED {
            return;
        }
        let (waiting, floor) = (&self.waiting, self.floor);
        self.counters.retain(|tenant, counter| *counter > floor || waiting.contains_key(tenant));
        let Some(excess) = self.counters.len().checked_sub(TENANTS_REMEMBERED / 2) else { return };
        // Half at a time: looking at all of them is not for every newcomer.
        let idle = self.counters.iter().filter(|(tenant, _)| !waiting.contains_key(tenant));
        let mut idle: Vec<(u64, Tenant)> = idle.map(|(tenant, counter)| (*counter, *tenant)).collect();
        idle.sort_unstable();
        idle.iter().take(excess).for_each(|(_, tenant)| _ = self.counters.remove(tenant));
    }
}

fn place_of(request: &Waits) -> (u64, Ticket) {
    (request.since.as_micros() as u64 + request.work.saturating_mul(AGE_PER_TOKEN_US), request.ticket)
}

#[cfg(test)]
mod tests;
