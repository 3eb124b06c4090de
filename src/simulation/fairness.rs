//! How far apart tenants may get that wait at the same time: the *service gap* of Sheng et al. 2024 ("Fairness in Serving
//! Large Language Models"), measured rather than proved.
//!
//! A tenant is *backlogged* while at least one of its requests waits to be computed. What it gets is counted in weighted
//! tokens: [`INPUT_WEIGHT`] for each of a prompt, [`OUTPUT_WEIGHT`] for each of an answer. The gap is the largest difference
//! between what two tenants got in any interval in which both were backlogged all the time.
//!
//! With `d` for what one got less what the other got, that is how far `d` rises above its lowest value since both are
//! backlogged, over all ordered pairs. `d` rises only when its first tenant is served, so its lowest value so far has to be
//! looked at only right before that: serving one tenant is one row of pairs, not all of them.
//!
//! What happens at one moment happens at once: an interval begins and ends between moments, never within one, or the order
//! in which the sequences of one step are listed would count.
//!
//! A service costs one look at each tenant that is backlogged, beginning or ending to wait the same; memory is one number a
//! pair, so [`TENANTS_MAX`] are compared at most.

/// What a token of a prompt counts: w_p, as in the paper.
pub(super) const INPUT_WEIGHT: u64 = 1;
/// What a token of an answer counts: w_q, as in the paper.
pub(super) const OUTPUT_WEIGHT: u64 = 2;
/// Tenants that are compared with each other at most: 128 KiB of pairs.
pub(super) const TENANTS_MAX: usize = 128;

/// What the paper proves for its virtual token counter: no two backlogged tenants get further apart, where `longest_input` is
/// the longest prompt and `batch_tokens` what the running batch holds at most (L_input and M).
pub(super) fn bound(longest_input: u64, batch_tokens: u64) -> u64 {
    2 * (INPUT_WEIGHT * longest_input).max(OUTPUT_WEIGHT * batch_tokens)
}

/// Follows who waits and who is served. Tenants are numbers from 0; time never runs backwards.
#[derive(Debug)]
pub(super) struct Fairness {
    now_us: u64,
    tenants: Vec<Tenant>,
    /// Who was backlogged from the last moment that is over.
    backlogged: Vec<usize>,
    /// Whose requests began or ended to wait at this moment; may name one twice.
    stirred: Vec<usize>,
    /// Who was served at this moment.
    served: Vec<usize>,
    /// Of each ordered pair, the lowest difference since both are backlogged, as of the last service of its first.
    lows: Vec<i64>,
    gap: i64,
    contended_us: u64,
}

#[derive(Clone, Debug, Default)]
struct Tenant {
    /// Requests that wait, now.
    waiting: u32,
    is_backlogged: bool,
    /// Weighted tokens until the last moment that is over.
    got: i64,
    /// Those of this moment.
    gets: i64,
}

impl Fairness {
    pub(super) fn new(tenants: usize) -> Self {
        let tenants = tenants.min(TENANTS_MAX);
        Self {
            now_us: 0,
            tenants: vec![Tenant::default(); tenants],
            backlogged: Vec::with_capacity(tenants),
            stirred: Vec::new(),
            served: Vec::new(),
            lows: vec![0; tenants * tenants],
            gap: 0,
            contended_us: 0,
        }
    }

    /// One request more of a tenant waits.
    pub(super) fn waits(&mut self, now_us: u64, tenant: usize) {
        self.advance(now_us);
        self.tenants[tenant].waiting += 1;
        self.stirred.push(tenant);
    }

    /// One of them waits no longer.
    pub(super) fn goes(&mut self, now_us: u64, tenant: usize) {
        self.advance(now_us);
        self.tenants[tenant].waiting -= 1;
        self.stirred.push(tenant);
    }

    /// A tenant gets weighted tokens.
    pub(super) fn serves(&mut self, now_us: u64, tenant: usize, tokens: u64) {
        self.advance(now_us);
        let of = &mut self.tenants[tenant];
        if of.gets == 0 && tokens > 0 {
            self.served.push(tenant);
        }
        of.gets += tokens as i64;
    }

    /// The gap, in weighted tokens, and for how many microseconds two or more were backlogged.
    pub(super) fn measured(mut self) -> (u64, u64) {
        self.end_moment();
        (self.gap.unsigned_abs(), self.contended_us)
    }

    fn advance(&mut self, now_us: u64) {
        if now_us > self.now_us {
            self.end_moment();
            if self.backlogged.len() > 1 {
                self.contended_us += now_us - self.now_us;
            }
            self.now_us = now_us;
        }
    }

    fn end_moment(&mut self) {
        // Whoever ends to wait at a moment is not compared over what is served at it; whoever begins to, is.
        while let Some(tenant) = self.stirred.pop() {
            let of = &mut self.tenants[tenant];
            let was_backlogged = std::mem::replace(&mut of.is_backlogged, of.waiting > 0);
            match (was_backlogged, of.is_backlogged) {
                (true, false) => self.backlogged.retain(|other| *other != tenant),
                (false, true) => self.joins(tenant),
                _ => {}
            }
        }
        for tenant in self.served.iter().copied().filter(|tenant| self.tenants[*tenant].is_backlogged) {
            let row = tenant * self.tenants.len();
            for other in &self.backlogged {
                let low = &mut self.lows[row + other];
                *low = (*low).min(self.tenants[tenant].got - self.tenants[*other].got);
            }
        }
        for tenant in &self.served {
            let of = &mut self.tenants[*tenant];
            of.got += std::mem::take(&mut of.gets);
        }
        while let Some(tenant) = self.served.pop() {
            if !self.tenants[tenant].is_backlogged {
                continue;
            }
            let row = tenant * self.tenants.len();
            for other in &self.backlogged {
                let above = self.tenants[tenant].got - self.tenants[*other].got - self.lows[row + other];
                self.gap = self.gap.max(above);
            }
        }
    }

    fn joins(&mut self, tenant: usize) {
        let count = self.tenants.len();
        self.backlogged.push(tenant);
        for other in &self.backlogged {
            let difference = self.tenants[tenant].got - self.tenants[*other].got;
            self.lows[tenant * count + other] = difference;
            self.lows[other * count + tenant] = -difference;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const TENANTS: usize = 5;

    #[derive(Clone, Copy, Debug)]
    enum Act {
        Waits,
        Goes,
        Serves(u64),
    }

    fn measured(events: &[(u64, usize, Act)]) -> (u64, u64) {
        let mut fairness = Fairness::new(TENANTS);
        for (now, tenant, act) in events {
            match act {
                Act::Waits => fairness.waits(*now, *tenant),
                Act::Goes => fairness.goes(*now, *tenant),
                Act::Serves(tokens) => fairness.serves(*now, *tenant, *tokens),
            }
        }
        fairness.measured()
    }

    /// Every interval of every pair, by the definition.
    fn by_definition(events: &[(u64, usize, Act)]) -> (u64, u64) {
        let mut moments = BTreeMap::<u64, ([u32; TENANTS], [i64; TENANTS])>::new();
        let mut waiting = [0; TENANTS];
        for (now, tenant, act) in events {
            let mut served = 0;
            match act {
                Act::Waits => waiting[*tenant] += 1,
                Act::Goes => waiting[*tenant] -= 1,
                Act::Serves(tokens) => served = *tokens as i64,
            }
            let moment = moments.entry(*now).or_insert((waiting, [0; TENANTS]));
            moment.0 = waiting;
            moment.1[*tenant] += served;
        }
        let contended: u64 = (moments.iter().zip(moments.keys().skip(1)))
            .filter(|((_, (waiting, _)), _)| waiting.iter().filter(|count| **count > 0).count() > 1)
            .map(|((from, _), to)| to - from)
            .sum();
        let moments: Vec<_> = moments.into_values().collect();
        let mut gap = 0;
        for from in 0..moments.len() {
            for (f, g) in (0..TENANTS).flat_map(|f| (0..f).map(move |g| (f, g))) {
                let mut difference = 0;
                let both = moments[from..].iter().take_while(|(waiting, _)| waiting[f] > 0 && waiting[g] > 0);
                for (_, served) in both {
                    difference += served[f] - served[g];
                    gap = gap.max(difference.unsigned_abs());
                }
            }
        }
        (gap, contended)
    }

    #[test]
    fn only_time_in_which_both_wait_counts() {
        let alone = [(0, 0, Act::Waits), (1, 0, Act::Serves(100)), (2, 1, Act::Waits), (3, 1, Act::Serves(10))];
        assert_eq!(measured(&alone), (10, 1));
        let in_turn = [(4, 0, Act::Serves(10)), (5, 1, Act::Goes), (6, 0, Act::Serves(500)), (7, 1, Act::Waits)];
        assert_eq!(measured(&[&alone[..], &in_turn].concat()), (10, 3));
    }

    #[test]
    fn a_gap_is_found_though_it_closes_again_and_began_late() {
        let mut events = vec![(0, 0, Act::Waits), (0, 1, Act::Waits)];
        let mut now = 0;
        let mut serve = |tenant, times: u64| {
            for _ in 0..times {
                now += 1;
                events.push((now, tenant, Act::Serves(5)));
            }
        };
        // The first gets ahead by 10, the second by 30 of the same interval, and in the end they have got the same.
        serve(0, 2);
        serve(1, 6);
        serve(0, 4);
        assert_eq!(measured(&events).0, 30);
    }

    #[test]
    fn what_is_served_at_once_is_compared_at_once() {
        let waits = [(0, 0, Act::Waits), (0, 1, Act::Waits)];
        let served = [(1, 0, Act::Serves(8)), (1, 1, Act::Serves(8)), (2, 1, Act::Serves(8)), (2, 0, Act::Serves(6))];
        assert_eq!(measured(&[waits, [served[0], served[1]]].concat()), (0, 1));
        assert_eq!(measured(&[&waits[..], &served].concat()), (2, 2));
        // Who does not wait from one moment to the next was never backlogged.
        let passing = [(0, 0, Act::Waits), (1, 1, Act::Waits), (1, 1, Act::Goes), (1, 0, Act::Serves(9))];
        assert_eq!(measured(&passing), (0, 0));
    }

    #[test]
    fn the_bound_is_that_of_the_paper() {
        assert_eq!((bound(1_000, 10_000), bound(10_000, 1_000)), (40_000, 20_000));
    }

    proptest! {
        /// The gap is that of the definition, whatever comes in whichever order.
        #[test]
        fn the_gap_is_what_it_is_defined_to_be(
            acts in prop::collection::vec((0u64..3, 0..TENANTS, 0u8..5, 1u64..50), 0..120),
        ) {
            let (mut now, mut waiting, mut events) = (0, [0u32; TENANTS], Vec::new());
            for (after, tenant, kind, tokens) in acts {
                now += after;
                let act = match kind {
                    0 | 1 => Act::Waits,
                    2 if waiting[tenant] > 0 => Act::Goes,
                    _ => Act::Serves(tokens),
                };
                match act {
                    Act::Waits => waiting[tenant] += 1,
                    Act::Goes => waiting[tenant] -= 1,
                    Act::Serves(_) => {}
                }
                events.push((now, tenant, act));
            }
            prop_assert_eq!(measured(&events), by_definition(&events));
        }
    }
}
