#![allow(clippy::unwrap_used)]

use cuckoo_wire::message::KvFormat;

use super::*;

const W: WeightsHash = WeightsHash([1; 32]);
const BASE: Computes = Computes { weights: W, adapter: None };

fn price(input: u64, output: u64) -> Price {
    Price { input_per_mtok: input, output_per_mtok: output }
}

fn offer(sequences: u64, blocks: u64, ask: Price) -> Offer {
    Offer {
        replica: ReplicaId(1),
        weights: W,
        context_tokens: 1_000,
        block_tokens: 16,
        ask,
        window: Window { sequences, blocks },
        task: Task::Generate,
        adapters: Vec::new(),
        device: 0,
        numerics: Numerics::exact(1, KvFormat::F16),
    }
}

fn key(link: u64) -> ReplicaKey {
    ReplicaKey { link: LinkId(link), replica: ReplicaId(1) }
}

fn need(tokens: u32, max_new: u32) -> Need {
    Need {
        model: BASE,
        task: Task::Generate,
        tokens,
        max_new,
        limit: price(100, 100),
        tenant: Tenant(1),
        class: ServiceClass::Standard,
        has_begun: false,
        chain: Arc::new([]),
        whom: Whom::Any,
        numerics: None,
    }
}

const ZERO: Duration = Duration::ZERO;
const S: Duration = Duration::from_secs(1);

/// A board whose time stands still, but where a test says otherwise.
#[derive(Default)]
struct Still(Board);

impl Still {
    fn offer(&mut self, key: ReplicaKey, offer: Offer) {
        self.0.offer(key, offer, ZERO);
    }

    fn submit(&mut self, ticket: Ticket, need: Need) -> bool {
        self.0.submit(ticket, need, ZERO).is_ok()
    }

    fn place(&mut self) -> Vec<Placement> {
        self.0.place(ZERO)
    }
}

impl std::ops::Deref for Still {
    type Target = Board;
    fn deref(&self) -> &Board {
        &self.0
    }
}

impl std::ops::DerefMut for Still {
    fn deref_mut(&mut self) -> &mut Board {
        &mut self.0
    }
}

#[test]
fn a_request_waits_until_a_window_opens() {
    let mut board = Still::default();
    assert!(board.submit(Ticket(1), need(10, 10)));
    assert!(board.place().is_empty());
    board.offer(key(1), offer(1, 100, price(1, 1)));
    let placed = board.place();
    let told: Vec<_> = placed.iter().map(|p| (p.ticket, p.key, p.blocks, p.ask)).collect();
    assert_eq!(told, [(Ticket(1), key(1), 2, price(1, 1))]);
    board.submit(Ticket(2), need(10, 10));
    assert!(board.place().is_empty(), "the window holds one sequence");
    board.grant(key(1), Window { sequences: 2, blocks: 102 });
    assert_eq!(board.place().len(), 1);
}

#[test]
fn texts_go_to_encoders_and_prompts_to_others() {
    let mut board = Still::default();
    let encoder = Offer { task: Task::Embed, ..offer(4, 100, price(1, 1)) };
    board.offer(key(1), encoder);
    board.offer(key(2), offer(4, 100, price(1, 1)));
    let text = Need { task: Task::Embed, ..need(20, 0) };
    board.submit(Ticket(1), need(10, 10));
    board.submit(Ticket(2), text.clone());
    let placed: Vec<_> = board.place().iter().map(|p| (p.ticket.0, p.key.link.0, p.blocks)).collect();
    assert_eq!(placed, [(1, 2, 2), (2, 1, 2)]);
    board.lose(key(1));
    board.submit(Ticket(3), text);
    assert!(board.place().is_empty());
    assert_eq!(board.expire(5 * S), [(Ticket(3), Turned::Unsuited)]);
}

#[test]
fn an_old_grant_that_arrives_late_changes_nothing() {
    let mut board = Still::default();
    board.offer(key(1), offer(2, 100, price(1, 1)));
    board.grant(key(1), Window { sequences: 3, blocks: 110 });
    board.grant(key(1), Window { sequences: 2, blocks: 100 });
    (1..=4).for_each(|t| assert!(board.submit(Ticket(t), need(1, 1))));
    assert_eq!(board.place().len(), 3);
}

#[test]
fn a_price_limit_excludes_and_does_not_hold_others_up() {
    let mut board = Still::default();
    board.offer(key(1), offer(4, 1_000, price(50, 50)));
    board.submit(Ticket(1), Need { limit: price(49, 100), ..need(1, 1) });
    board.submit(Ticket(2), need(1, 1));
    assert_eq!(board.place().iter().map(|p| p.ticket).collect::<Vec<_>>(), vec![Ticket(2)]);
    assert_eq!(board.waiting(), 1);
    board.offer(key(2), offer(4, 1_000, price(49, 100)));
    assert_eq!(board.place()[0].key, key(2));
}

/// A need of an adapter.
fn adapted(adapter: u8, tokens: u32, max_new: u32) -> Need {
    Need { model: Computes { adapter: Some(WeightsHash([adapter; 32])), ..BASE }, ..need(tokens, max_new) }
}

fn with_adapters(adapters: &[u8], offer: Offer) -> Offer {
    Offer { adapters: adapters.iter().map(|n| WeightsHash([*n; 32])).collect(), ..offer }
}

#[test]
fn an_adapter_is_placed_only_where_it_is_loaded() {
    let mut board = Still::default();
    board.offer(key(1), offer(10, 1_000, price(1, 1)));
    board.offer(key(2), with_adapters(&[7], offer(10, 1_000, price(2, 2))));
    (1..=4).for_each(|t| assert!(board.submit(Ticket(t), adapted(7, 1, 1))));
    board.submit(Ticket(5), adapted(8, 1, 1));
    assert!(board.place().iter().all(|p| p.key == key(2)) && board.waiting() == 1);
    assert_eq!(board.expire(5 * S), [(Ticket(5), Turned::Unserved)], "nobody computes it");
    let quote = |adapter| board.quote(&adapted(adapter, 1, 1).model);
    assert_eq!((quote(7).replicas, quote(7).lowest_ask, quote(8).replicas), (1, Some(price(2, 2)), 0));
    assert_eq!((board.quote(&BASE).replicas, board.quote(&BASE).lowest_ask), (2, Some(price(1, 1))));
}

#[test]
fn a_base_and_its_adapters_are_served_in_one_order() {
    let mut board = Still::default();
    board.offer(key(1), with_adapters(&[7, 8], offer(3, 1_000, price(1, 1))));
    // Nobody has number 9, and however many ask for it, nobody else waits for that.
    (100..300).for_each(|t| assert!(board.submit(Ticket(t), adapted(9, 1, 1))));
    for (ticket, need) in
        [(1, adapted(8, 1, 1)), (2, need(1, 1)), (3, adapted(7, 1, 1)), (4, need(1, 1)), (5, adapted(8, 1, 1))]
    {
        board.submit(Ticket(ticket), need);
    }
    let tickets = |placed: Vec<Placement>| placed.iter().map(|p| p.ticket.0).collect::<Vec<_>>();
    assert_eq!(tickets(board.place()), [1, 2, 3]);
    board.grant(key(1), Window { sequences: 5, blocks: 1_000 });
    assert_eq!(tickets(board.place()), [4, 5]);
    // An older large request keeps its blocks from younger ones of another adapter.
    let mut board = Still::default();
    board.offer(key(1), with_adapters(&[7], offer(10, 10, price(1, 1))));
    board.submit(Ticket(1), need(16 * 8, 16));
    board.place();
    board.submit(Ticket(2), adapted(7, 16 * 8, 16));
    board.0.submit(Ticket(3), need(8, 8), S).unwrap();
    assert!(board.place().is_empty());
}

#[test]
fn a_large_request_is_not_overtaken_for_ever() {
    let mut board = Still::default();
    board.offer(key(1), offer(10, 10, price(1, 1)));
    board.submit(Ticket(1), need(16 * 8, 16));
    assert_eq!(board.place().len(), 1);
    board.submit(Ticket(2), need(16 * 8, 16));
    board.0.submit(Ticket(3), need(8, 8), S).unwrap();
    assert!(board.place().is_empty(), "one block is free, and it is kept for the older request");
    board.grant(key(1), Window { sequences: 11, blocks: 19 });
    let order: Vec<Ticket> = board.place().iter().map(|p| p.ticket).collect();
    assert_eq!(order, vec![Ticket(2), Ticket(3)]);
}

#[test]
fn who_waits_for_nobody_is_told_soon_and_who_waits_for_room_later() {
    let mut board = Still::default();
    let elsewhere = Computes { weights: WeightsHash([2; 32]), adapter: None };
    board.offer(key(1), offer(1, 10, price(1, 1)));
    board.submit(Ticket(1), need(100, 60));
    board.submit(Ticket(2), need(100, 61));
    board.submit(Ticket(3), Need { model: elsewhere, ..need(1, 1) });
    board.submit(Ticket(4), Need { limit: price(0, 100), ..need(1, 1) });
    assert_eq!(board.place().len(), 1, "ten blocks are all there are");
    board.submit(Ticket(5), need(1, 1));
    board.submit(Ticket(6), Need { class: ServiceClass::Interactive, ..need(1, 1) });
    board.place();
    assert_eq!(board.expire(4 * S), []);
    let unserved = board.expire(5 * S);
    assert_eq!(unserved, [(Ticket(2), Turned::Unsuited), (Ticket(3), Turned::Unserved), (Ticket(4), Turned::Unsuited)]);
    assert_eq!(board.expire(29 * S), []);
    assert!(matches!(board.expire(30 * S)[..], [(Ticket(6), Turned::Busy(_))]));
    assert!(matches!(board.expire(120 * S)[..], [(Ticket(5), Turned::Busy(_))]));
    assert_eq!(board.waiting(), 0);
    board.drain(key(1));
    board.submit(Ticket(7), need(1, 1));
    board.place();
    assert_eq!(board.expire(5 * S), [(Ticket(7), Turned::Unserved)]);
}

#[test]
fn who_nobody_suited_is_looked_at_again_when_somebody_comes() {
    let mut board = Still::default();
    board.offer(key(1), offer(1, 10, price(1, 1)));
    board.submit(Ticket(1), need(100, 100));
    assert!(board.place().is_empty());
    board.offer(key(2), offer(1, 20, price(1, 1)));
    assert_eq!(board.place()[0].key, key(2));
}

#[test]
fn a_search_finds_the_one_in_a_thousand_that_suits() {
    let mut board = Still::default();
    for link in 0..1_000 {
        let ask = if link == 777 { price(1, 1) } else { price(50, 50) };
        board.offer(key(link), offer(4, 100, ask));
    }
    board.submit(Ticket(1), Need { limit: price(10, 10), ..need(1, 1) });
    let events = (1..100u64).find(|event| {
        board.grant(key(0), Window { sequences: 4, blocks: 100 + event });
        !board.place().is_empty()
    });
    assert!(events.is_some_and(|events| events <= 1_000u64.div_ceil(64)), "{events:?}");
    board.submit(Ticket(2), Need { limit: price(0, 0), ..need(1, 1) });
    (0..20).for_each(|event| {
        board.grant(key(0), Window { sequences: 4, blocks: 1_000 + event });
        assert!(board.place().is_empty());
    });
    assert_eq!(board.expire(5 * S), [(Ticket(2), Turned::Unsuited)], "all were looked at, a few at a time");
}

/// Tells of a step of `rows` that took `ms`.
fn steps(rows: u32, ms: u64) -> Steps<'static> {
    Steps { steps: 1, rows, took: Duration::from_millis(ms), ..Steps::default() }
}

#[test]
fn the_faster_one_gets_more_and_the_slower_one_gets_some() {
    let mut board = Still::default();
    board.offer(key(1), offer(64, 10_000, price(1, 1)));
    board.offer(key(2), offer(64, 10_000, price(1, 1)));
    for n in 0..200 {
        let rows = 1 + n % 32;
        board.stepped(key(1), steps(rows, 5 + u64::from(rows)));
        board.stepped(key(2), steps(rows, 20 + 4 * u64::from(rows)));
    }
    (1..=60).for_each(|t| assert!(board.submit(Ticket(t), need(100, 100))));
    let placed = board.place();
    let on = |link| placed.iter().filter(|p| p.key == key(link)).count();
    assert!(on(1) > 2 * on(2) && on(2) > 5, "{} and {}", on(1), on(2));
}

#[test]
fn a_newcomer_is_thought_to_be_as_the_others_are() {
    let mut board = Still::default();
    board.offer(key(1), offer(64, 10_000, price(1, 1)));
    (0..200).for_each(|n| board.stepped(key(1), steps(1 + n % 32, 100 + 4 * u64::from(n % 32))));
    board.offer(key(2), offer(64, 10_000, price(1, 1)));
    (1..=20).for_each(|t| assert!(board.submit(Ticket(t), need(100, 100))));
    let placed = board.place();
    let on = |link| placed.iter().filter(|p| p.key == key(link)).count();
    assert!(on(1) >= 8, "it does not draw everybody before it has shown what it can do: {} and {}", on(1), on(2));
}

#[test]
fn prompts_go_where_they_are_known() {
    let mut board = Still::default();
    (1..=50).for_each(|link| board.offer(key(link), offer(4, 1_000, price(1, 1))));
    let chain: Arc<[BlockName]> = (1..=40).collect();
    let cached: Vec<BlockName> = chain.to_vec();
    board.stepped(key(33), Steps { cached: &cached, ..Steps::default() });
    let known = || Need { chain: chain.clone(), ..need(16 * 40 + 3, 10) };
    board.submit(Ticket(1), known());
    let placed = board.place();
    let first = placed[0].reasons.candidates[0];
    assert_eq!((placed[0].key, first.cached_tokens, first.found_by), (key(33), 640, FoundBy::Prefix));
    board.ended(key(33), Ticket(1), Ended { output: 10, is_lost: false }, ZERO);
    board.stepped(key(33), Steps { evicted: &cached[20..], ..Steps::default() });
    board.submit(Ticket(2), known());
    assert_eq!(board.place()[0].reasons.candidates[0].cached_tokens, 320);
    board.lose(key(33));
    assert_eq!(board.blocks_known(), 0);
    board.submit(Ticket(3), known());
    assert_eq!(board.place()[0].reasons.candidates[0].cached_tokens, 0);
}

#[test]
fn equal_beginnings_that_nobody_knows_go_to_the_same_place_until_it_is_busy() {
    let mut board = Still::default();
    (1..=20).for_each(|link| board.offer(key(link), offer(8, 1_000, price(1, 1))));
    let placed: Vec<ReplicaKey> = (0..2)
        .map(|t| {
            board.submit(Ticket(t), Need { chain: Arc::new([77]), ..need(20, 10) });
            board.place()[0].reasons.candidates.iter().find(|c| c.found_by == FoundBy::Ring).unwrap().key
        })
        .collect();
    assert_eq!(placed[0], placed[1]);
}

#[test]
fn who_is_suspect_is_given_nothing_and_still_serves() {
    let mut board = Still::default();
    board.offer(key(1), offer(4, 100, price(1, 1)));
    board.suspect(key(1), true);
    board.suspect(key(2), true);
    board.submit(Ticket(1), need(10, 10));
    assert!(board.place().is_empty());
    assert_eq!(board.expire(6 * S), [], "it is waited for");
    board.offer(key(2), offer(4, 100, price(9, 9)));
    assert_eq!(board.place()[0].key, key(2), "a dearer one that speaks");
    board.suspect(key(1), false);
    board.submit(Ticket(2), need(10, 10));
    assert_eq!(board.place()[0].key, key(1));
}

#[test]
fn who_has_run_already_comes_first_and_is_not_shut_out() {
    let mut board = Still::default();
    (1..=WAITING_MAX as u64).for_each(|ticket| assert!(board.submit(Ticket(ticket), need(10, 10))));
    assert!(!board.submit(Ticket(9_000), need(10, 10)));
    assert!(board.submit(Ticket(9_001), Need { has_begun: true, ..need(10, 10) }));
    board.offer(key(1), offer(2, 100, price(1, 1)));
    let placed: Vec<_> = board.place().iter().map(|p| p.ticket.0).collect();
    assert_eq!((placed, board.waiting()), (vec![9_001, 1], WAITING_MAX - 1));
}

#[test]
fn a_successor_goes_to_another_replica_or_to_the_one_it_was_on() {
    let mut board = Still::default();
    let whom = |whom| Need { whom, has_begun: true, ..need(10, 10) };
    board.offer(key(1), offer(8, 100, price(1, 1)));
    board.submit(Ticket(1), whom(Whom::Not(key(1))));
    assert!(board.place().is_empty());
    board.offer(key(2), offer(8, 100, price(9, 9)));
    let placed = |board: &mut Still| board.place().iter().map(|p| (p.ticket, p.key)).collect::<Vec<_>>();
    assert_eq!(placed(&mut board), [(Ticket(1), key(2))], "as soon as there is another");
    for (ticket, at) in [(2, key(2)), (3, key(1))] {
        board.submit(Ticket(ticket), whom(Whom::Only(at)));
        assert_eq!(placed(&mut board), [(Ticket(ticket), at)]);
    }
    board.lose(key(1));
    board.submit(Ticket(4), whom(Whom::Only(key(1))));
    assert!(board.place().is_empty(), "nobody else will do");
}

#[test]
fn a_dearer_one_is_taken_when_it_is_worth_it_to_the_class() {
    let place = |class| {
        let mut board = Still::default();
        board.offer(key(1), offer(64, 10_000, price(40, 40)));
        board.offer(key(2), offer(64, 10_000, price(10, 10)));
        for n in 0..200 {
            let rows = 1 + n % 32;
            board.stepped(key(1), steps(rows, 5));
            board.stepped(key(2), steps(rows, 60));
        }
        board.submit(Ticket(1), Need { class, ..need(100, 100) });
        board.place()[0].key
    };
    assert_eq!((place(ServiceClass::Interactive), place(ServiceClass::Batch)), (key(1), key(2)));
}

#[test]
fn the_queue_is_bounded_and_says_when_to_come_back() {
    let mut board = Still::default();
    (0..WAITING_MAX as u64).for_each(|t| assert!(board.submit(Ticket(t), need(1, 1))));
    let Err(Turned::Busy(after)) = board.0.submit(Ticket(9_999), need(1, 1), ZERO) else { panic!("it is full") };
    assert!((1..=600).contains(&after.as_secs()));
    assert!(board.withdraw(Ticket(7)));
    assert!(!board.withdraw(Ticket(7)));
    assert!(board.submit(Ticket(9_999), need(1, 1)));
}

#[test]
fn who_would_wait_for_longer_than_its_class_does_is_turned_away_at_once() {
    let mut board = Still::default();
    board.offer(key(1), offer(1, 10_000, price(1, 1)));
    let interactive = || Need { class: ServiceClass::Interactive, ..need(900, 100) };
    let standard = || need(900, 100);
    (0..60).for_each(|t| assert!(board.submit(Ticket(t), standard()), "how fast they are is not known"));
    // One after the other, 1,000 tokens in ten seconds.
    for n in 0..3 {
        let now = (n + 1) * 10 * S;
        let placed = board.0.place(now);
        assert_eq!(placed.len(), 1);
        board.ended(key(1), placed[0].ticket, Ended { output: 100, is_lost: false }, now);
        board.grant(key(1), Window { sequences: 2 + u64::from(n), blocks: 10_000 });
    }
    board.0.place(30 * S);
    let other = |class, tenant| Need { class, tenant: Tenant(tenant), ..interactive() };
    let Err(Turned::Busy(after)) = board.0.submit(Ticket(90), interactive(), 30 * S) else { panic!("it is full") };
    assert!((500..=600).contains(&after.as_secs()), "56 wait, at 100 tokens a second: {after:?}");
    assert!(board.0.submit(Ticket(91), other(ServiceClass::Interactive, 2), 30 * S).is_ok(), "others have their turn");
    assert!(board.0.submit(Ticket(92), other(ServiceClass::Batch, 1), 30 * S).is_ok(), "who is patient waits");
}

#[test]
fn a_quiet_night_says_nothing_of_how_much_is_possible() {
    let mut board = Still::default();
    board.offer(key(1), offer(1, 100_000, price(1, 1)));
    for n in 0..20 {
        let now = n * 60 * S;
        board.0.submit(Ticket(u64::from(n)), need(10, 10), now).unwrap();
        assert_eq!(board.0.place(now).len(), 1);
        board.ended(key(1), Ticket(u64::from(n)), Ended { output: 10, is_lost: false }, now);
        board.grant(key(1), Window { sequences: 2 + u64::from(n), blocks: 100_000 });
    }
    (100..200).for_each(|t| assert!(board.0.submit(Ticket(t), need(900, 100), 1_200 * S).is_ok()));
}

#[test]
fn what_ended_is_what_the_rest_is_foreseen_from() {
    let mut board = Still::default();
    board.offer(key(1), offer(4, 1_000, price(1, 1)));
    let mut itl = Vec::new();
    for t in 0..200 {
        board.submit(Ticket(t), need(100, 400));
        let placed = board.place();
        itl.push(placed[0].reasons.candidates[0].terms.decode / placed[0].reasons.candidates[0].itl_ms as f32);
        board.answered(key(1), Ticket(t), S);
        board.ended(key(1), Ticket(t), Ended { output: 20, is_lost: false }, S);
        board.grant(key(1), Window { sequences: 5 + t, blocks: 1_000 + 32 * (t + 1) });
    }
    assert!((itl[0] - 128.0).abs() < 1.0 && (itl[199] - 20.0).abs() < 5.0, "{} {}", itl[0], itl[199]);
}

/// What other schedulers charge, and are told.
mod elsewhere;
/// Streams that go on only where they are computed as they were begun.
mod numerics;
/// Those that wait for a better replica than there is.
mod waiting;
/// Windows, against a plain model of them.
mod windows;
