//! In which order requests that wait are looked at: streams that have begun first, then classes by weight, then tenants by
//! what they got, then the shorter request.
//!
//! Classes and tenants each have a *virtual counter*: what they were given, divided by their weight; who has least is next
//! (virtual token counter, Sheng et al. 2023; the same rule serves as weighted round robin between classes). Whoever comes
//! back from having nothing to do starts at the level of who is being served, so nobody saves up. Within a tenant, a
//! request of `w` tokens is taken for one that came `w` times [`AGE_PER_TOKEN_US`] later: short ones pass long ones, but
//! only for so long.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use super::{ServiceClass, Tenant, Ticket};

/// How much later a request counts as having come, for each token of its work, in microseconds.
const AGE_PER_TOKEN_US: u64 = 2_000;
/// Of so many turns of a tenant that has requests in time, one goes to one that is late.
const LATE_TURNS: u32 = 4;
/// Shares of the classes where all have requests waiting: interactive, standard, batch.
const WEIGHTS: [u64; 3] = [8, 4, 1];
/// Tenants that wait for nothing are forgotten when there are so many, if they got no more than who is served.
const TENANTS_REMEMBERED: usize = 10_000;
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
    /// The counter of the tenant that was served last.
    floor: u64,
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
            self.forget();
        }
        self.waiting.entry(tenant).or_default().in_time.insert(place_of(&request), request);
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
        if tokens > 0 {
            // Who is served is who had least.
            self.floor = self.floor.max(before);
        }
        *counter = before.saturating_add_signed(tokens.saturating_mul(PARTS as i64));
        if self.order.remove(&(before, tenant)) {
            self.order.insert((*counter, tenant));
        }
    }

    fn forget(&mut self) {
        if self.counters.len() > TENANTS_REMEMBERED {
            let (waiting, floor) = (&self.waiting, self.floor);
            self.counters.retain(|tenant, counter| *counter > floor || waiting.contains_key(tenant));
        }
    }
}

fn place_of(request: &Waits) -> (u64, Ticket) {
    (request.since.as_micros() as u64 + request.work.saturating_mul(AGE_PER_TOKEN_US), request.ticket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn waits(ticket: u64, tenant: u64, class: ServiceClass, work: u64) -> Waits {
        let since = Duration::from_millis(ticket);
        let late_from = Duration::MAX;
        Waits { ticket: Ticket(ticket), tenant: Tenant(tenant), class, has_begun: false, since, late_from, work }
    }

    /// Serves the next, wholly.
    fn serve(queue: &mut Queue) -> Waits {
        let next = queue.take(Duration::ZERO).expect("somebody waits");
        queue.charge(next.tenant, next.class, next.work as i64);
        next
    }

    #[test]
    fn streams_that_have_begun_come_first() {
        let mut queue = Queue::default();
        queue.put(waits(1, 1, ServiceClass::Interactive, 1));
        queue.put(Waits { has_begun: true, ..waits(9, 2, ServiceClass::Batch, 1_000) });
        queue.put(Waits { has_begun: true, ..waits(8, 2, ServiceClass::Batch, 5_000) });
        let order: Vec<u64> = (0..3).map(|_| serve(&mut queue).ticket.0).collect();
        assert_eq!((order, queue.len()), (vec![8, 9, 1], 0));
    }

    #[test]
    fn classes_share_by_weight_and_leave_nothing_idle() {
        let mut queue = Queue::default();
        for ticket in 0..390 {
            let class = [ServiceClass::Interactive, ServiceClass::Standard, ServiceClass::Batch][ticket as usize % 3];
            queue.put(waits(ticket, 1, class, 100));
        }
        let served: Vec<ServiceClass> = (0..130).map(|_| serve(&mut queue).class).collect();
        let of = |class| served.iter().filter(|c| **c == class).count();
        assert_eq!((of(ServiceClass::Interactive), of(ServiceClass::Standard), of(ServiceClass::Batch)), (80, 40, 10));
        let mut rest: Vec<ServiceClass> = (0..260).map(|_| serve(&mut queue).class).collect();
        rest.reverse();
        assert!(rest[..50].iter().all(|class| *class == ServiceClass::Batch), "what is left is served all the same");
    }

    #[test]
    fn a_class_that_was_away_has_saved_nothing_up() {
        let mut queue = Queue::default();
        (0..100).for_each(|n| queue.put(waits(n, 1, ServiceClass::Standard, 100)));
        (0..50).for_each(|_| _ = serve(&mut queue));
        (100..130).for_each(|n| queue.put(waits(n, 1, ServiceClass::Batch, 100)));
        let batch = (0..50).filter(|_| serve(&mut queue).class == ServiceClass::Batch).count();
        assert_eq!(batch, 10, "a fifth from now on");
    }

    #[test]
    fn who_floods_is_served_as_much_as_who_does_not() {
        let mut queue = Queue::default();
        (0..1_000).for_each(|n| queue.put(waits(n, 1, ServiceClass::Standard, 100)));
        (0..20).for_each(|_| _ = serve(&mut queue));
        (1_000..1_010).for_each(|n| queue.put(waits(n, 2, ServiceClass::Standard, 100)));
        let quiet = (0..20).filter(|_| serve(&mut queue).tenant == Tenant(2)).count();
        assert!((9..=10).contains(&quiet), "{quiet}");
    }

    #[test]
    fn who_is_late_waits_for_who_is_not_but_not_for_ever() {
        let mut queue = Queue::default();
        let now = Duration::from_secs(10);
        (0..10).for_each(|n| queue.put(Waits { late_from: now, ..waits(n, 1, ServiceClass::Standard, 50) }));
        (10..20).for_each(|n| queue.put(waits(n, 1, ServiceClass::Standard, 50)));
        let order: Vec<u64> = (0..20).filter_map(|_| queue.take(now)).map(|r| r.ticket.0).collect();
        assert_eq!(order[..8], [10, 11, 12, 0, 13, 14, 15, 1]);
        assert_eq!((order.len(), &order[13..]), (20, &[3, 4, 5, 6, 7, 8, 9][..]));
    }

    #[test]
    fn short_requests_pass_long_ones_for_a_while() {
        let mut queue = Queue::default();
        queue.put(waits(0, 1, ServiceClass::Standard, 5_000));
        queue.put(waits(1, 1, ServiceClass::Standard, 50));
        queue.put(waits(20_000, 1, ServiceClass::Standard, 50));
        let order: Vec<u64> = (0..3).map(|_| serve(&mut queue).ticket.0).collect();
        assert_eq!(order, [1, 0, 20_000], "ten seconds ahead, and no more");
    }

    proptest! {
        /// While two tenants of a class both wait, what they got differs by no more than twice the largest request
        /// (Sheng et al. 2023, theorem 4.4).
        #[test]
        fn the_service_gap_is_bounded(works in prop::collection::vec((1u64..3, 1u64..2_000), 2..200)) {
            let mut queue = Queue::default();
            for (at, (tenant, work)) in works.iter().enumerate() {
                queue.put(waits(at as u64, *tenant, ServiceClass::Standard, *work));
            }
            let mut left = [0; 3];
            works.iter().for_each(|(tenant, _)| left[*tenant as usize] += 1);
            let mut got = [0i64; 3];
            while left[1] > 0 && left[2] > 0 {
                let next = serve(&mut queue);
                left[next.tenant.0 as usize] -= 1;
                got[next.tenant.0 as usize] += next.work as i64;
                prop_assert!((got[1] - got[2]).abs() <= 2 * 2_000);
            }
        }

        /// Whatever is put in comes out once, or is removed, and the length is what it says.
        #[test]
        fn nothing_is_lost(acts in prop::collection::vec((0u8..6, 0u64..5, 0u8..3, any::<bool>(), 1u64..100), 1..200)) {
            let (mut queue, mut inside, mut aside) = (Queue::default(), Vec::<Waits>::new(), Vec::<Waits>::new());
            for (at, (act, tenant, class, has_begun, work)) in acts.into_iter().enumerate() {
                let class = [ServiceClass::Interactive, ServiceClass::Standard, ServiceClass::Batch][class as usize];
                match act {
                    0 | 1 => {
                        let request = Waits { has_begun, ..waits(at as u64, tenant, class, work) };
                        queue.put(request);
                        inside.push(request);
                    }
                    2 => match queue.take(Duration::ZERO) {
                        Some(taken) => {
                            let at = inside.iter().position(|r| *r == taken);
                            prop_assert!(at.is_some());
                            inside.swap_remove(at.unwrap_or_default());
                            queue.charge(taken.tenant, taken.class, work as i64 - 50);
                        }
                        None => prop_assert!(inside.is_empty()),
                    },
                    3 => if let Some(request) = inside.pop().or_else(|| aside.pop()) {
                        prop_assert!(queue.remove(&request) && !queue.remove(&request));
                    }
                    4 => if let Some(taken) = queue.take(Duration::ZERO) {
                        inside.retain(|request| *request != taken);
                        queue.set_aside(taken);
                        aside.push(taken);
                    }
                    _ => if let Some(request) = aside.pop() {
                        queue.call_back(request.ticket);
                        inside.push(request);
                    }
                }
                let work: u64 = inside.iter().chain(&aside).map(|request| request.work).sum();
                prop_assert_eq!((queue.len(), queue.work()), (inside.len() + aside.len(), work));
            }
            prop_assert_eq!(std::iter::from_fn(|| queue.take(Duration::ZERO)).count(), inside.len());
        }
    }
}
