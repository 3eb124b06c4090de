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

/// As many of each class, all of one tenant and of 100 tokens.
fn of_all_classes() -> Queue {
    let mut queue = Queue::default();
    for (ticket, class) in (0..390).zip(CLASSES.into_iter().cycle()) {
        queue.put(waits(ticket, 1, class, 100));
    }
    queue
}

/// Of the next `turns`, those of each class.
fn served_of_classes(queue: &mut Queue, turns: usize) -> [usize; CLASSES.len()] {
    let served: Vec<ServiceClass> = (0..turns).map(|_| serve(queue).class).collect();
    CLASSES.map(|class| served.iter().filter(|served| **served == class).count())
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
    let mut queue = of_all_classes();
    assert_eq!(served_of_classes(&mut queue, 130), [80, 40, 10]);
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
            let class = CLASSES[class as usize];
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

const STANDARD: ServiceClass = ServiceClass::Standard;

/// Tells each queue what the others charged.
fn exchange(queues: &mut [Queue; 2]) {
    let told = [0, 1].map(|at: usize| queues[at].take_untold(usize::MAX));
    for (told, to) in told.into_iter().zip([1, 0]) {
        told.into_iter().for_each(|(class, tenant, tokens)| queues[to].charge_elsewhere(tenant, class, tokens));
    }
}

/// The widest gap between tenant 1, who waits at both of two queues, and tenant 2, who waits at the first one only. Each queue
/// serves `rate` tokens a second.
fn gap_of_one_at_both(works: &[u64], rate: i64, seconds: usize, does_exchange: bool) -> i64 {
    let mut queues = [Queue::default(), Queue::default()];
    let mut works = works.iter().copied().cycle().zip(0..);
    let mut wait = |queue: &mut Queue, tenant: u64| {
        let (work, ticket) = works.next().expect("they come again and again");
        queue.put(waits(ticket, tenant, STANDARD, work));
    };
    for (at, tenant) in [(0, 1), (0, 2), (1, 1)].repeat(2) {
        wait(&mut queues[at], tenant);
    }
    let (mut got, mut credit, mut gap) = ([0i64; 3], [0i64; 2], 0);
    for _ in 0..seconds {
        for (queue, credit) in queues.iter_mut().zip(&mut credit) {
            *credit += rate;
            while *credit > 0 {
                let next = serve(queue);
                wait(queue, next.tenant.0);
                *credit -= next.work as i64;
                got[next.tenant.0 as usize] += next.work as i64;
                gap = gap.max((got[1] - got[2]).abs());
            }
        }
        if does_exchange {
            exchange(&mut queues);
        }
    }
    gap
}

#[test]
fn who_talks_to_two_schedulers_has_one_share() {
    let [apart, together] = [false, true].map(|does| gap_of_one_at_both(&[100], 1_000, 60, does));
    println!("service gap after a minute: {apart} tokens, or {together} where schedulers tell each other");
    assert!(apart >= 50_000, "{apart}: two shares are two shares");
    assert!(together <= 1_300, "{together}: a second's service, and a few requests");
}

#[test]
fn service_elsewhere_leaves_shares_of_classes_as_they_are() {
    let mut queue = of_all_classes();
    queue.charge_elsewhere(Tenant(1), ServiceClass::Interactive, 1_000_000);
    assert_eq!(served_of_classes(&mut queue, 130), [80, 40, 10]);
}

/// Of the next `turns`, those of a tenant.
fn turns_of(queue: &mut Queue, tenant: u64, turns: usize) -> usize {
    (0..turns).filter(|_| serve(queue).tenant == Tenant(tenant)).count()
}

#[test]
fn a_newcomer_begins_level_with_who_was_served_elsewhere() {
    let mut queue = Queue::default();
    for _ in 0..60 {
        [1, 2].into_iter().for_each(|tenant| queue.charge_elsewhere(Tenant(tenant), STANDARD, 1_000));
    }
    (0..90).for_each(|ticket| queue.put(waits(ticket, 1 + ticket % 3, STANDARD, 100)));
    // It makes up for the last second of the others, and for no more.
    let of_newcomer = turns_of(&mut queue, 3, 40);
    assert_eq!(of_newcomer, 20);
    assert_eq!(turns_of(&mut queue, 3, 30), 10);
}

#[test]
fn a_newcomer_does_not_begin_behind_who_waits() {
    let elsewhere = |queue: &mut Queue| queue.charge_elsewhere(Tenant(1), STANDARD, 10_000);
    // Of one that runs, and had been charged for less than it got; or of a stream that has begun.
    let here = |queue: &mut Queue| queue.charge(Tenant(1), STANDARD, 10_000);
    for charge in [elsewhere, here] {
        let mut queue = Queue::default();
        (0..30).for_each(|ticket| queue.put(waits(ticket, 2, STANDARD, 100)));
        (0..5).for_each(|_| charge(&mut queue));
        (30..60).for_each(|ticket| queue.put(waits(ticket, 3, STANDARD, 100)));
        assert_eq!(turns_of(&mut queue, 3, 20), 10);
    }
}

#[test]
fn service_elsewhere_counts_from_where_its_tenant_would_begin() {
    let mut queue = Queue::default();
    queue.charge(Tenant(2), STANDARD, 100);
    (0..200).for_each(|ticket| queue.put(waits(ticket, 1, STANDARD, 100)));
    assert_eq!(turns_of(&mut queue, 1, 100), 100);
    // Tenant 2 has got 9,900 tokens less, but wanted none.
    queue.charge_elsewhere(Tenant(2), STANDARD, 1_000);
    (200..300).for_each(|ticket| queue.put(waits(ticket, 2, STANDARD, 100)));
    assert_eq!(turns_of(&mut queue, 1, 10), 10, "what it got elsewhere is not made up for by what it did not want");
    assert_eq!(turns_of(&mut queue, 1, 20), 10);
}

#[test]
fn counters_are_bounded_however_many_are_served_elsewhere() {
    let mut queue = Queue::default();
    (0..50).for_each(|ticket| queue.put(waits(ticket, 1, STANDARD, 100)));
    queue.charge_elsewhere(Tenant(2), STANDARD, 1_000_000);
    let (before, many) = (queue.counter(Tenant(1), STANDARD), TENANTS_REMEMBERED as u64);
    for tenant in 10..10 + 3 * many {
        queue.charge_elsewhere(Tenant(tenant), STANDARD, 100 + (tenant % 7) as i64);
        assert!(queue.classes[STANDARD as usize].counters.len() <= TENANTS_REMEMBERED);
    }
    assert_eq!((before, queue.counter(Tenant(1), STANDARD)), (0, 0), "who waits is not forgotten");
    assert_eq!(queue.counter(Tenant(2), STANDARD), 1_000_000, "who got most is forgotten last");
    // Newcomers find room, and leave in order.
    (100..200).for_each(|ticket| queue.put(waits(ticket, ticket << 32, STANDARD, 100)));
    assert_eq!((0..150).map(|_| serve(&mut queue)).count(), 150);
    for tenant in 0..3 * many {
        queue.charge(Tenant(tenant), STANDARD, 10);
    }
    assert!(queue.classes[STANDARD as usize].counters.len() <= TENANTS_REMEMBERED);
    assert_eq!(queue.take_untold(usize::MAX).len(), TENANTS_REMEMBERED);
}

proptest! {
    /// Two queues that tell each other once a second are as fair as one, but for what is served meanwhile.
    #[test]
    fn the_gap_over_two_schedulers_is_wider_by_a_second(
        works in prop::collection::vec(1u64..500, 1..40), rate in 500i64..5_000,
    ) {
        let gap = gap_of_one_at_both(&works, rate, 40, true);
        prop_assert!(gap <= rate + 4 * 500, "{} at {} a second", gap, rate);
    }

    /// Others are told of every token once, however much they ask for at a time.
    #[test]
    fn all_that_was_charged_is_told_once(
        acts in prop::collection::vec((0u64..6, 0usize..3, -50i64..200, 0usize..5), 1..200),
    ) {
        let (mut queue, mut charged, mut told) = (Queue::default(), [[0i64; 6]; 3], [[0i64; 6]; 3]);
        let mut hear = |taken: Vec<(ServiceClass, Tenant, i64)>| {
            taken.iter().for_each(|(class, tenant, tokens)| told[*class as usize][tenant.0 as usize] += tokens);
        };
        for (tenant, class, tokens, asks) in acts {
            queue.charge(Tenant(tenant), CLASSES[class], tokens);
            queue.charge_elsewhere(Tenant(tenant), CLASSES[class], 1_000);
            charged[class][tenant as usize] += tokens;
            let taken = queue.take_untold(asks);
            prop_assert!(taken.len() <= asks);
            hear(taken);
        }
        hear(queue.take_untold(usize::MAX));
        prop_assert_eq!(told, charged);
    }
}
