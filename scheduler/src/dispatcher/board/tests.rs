#![allow(clippy::unwrap_used)]

use super::*;
use proptest::prelude::*;

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
    }
}

fn key(link: u64) -> ReplicaKey {
    ReplicaKey { link: LinkId(link), replica: ReplicaId(1) }
}

fn need(tokens: u32, max_new: u32) -> Need {
    Need { model: BASE, task: Task::Generate, tokens, max_new, limit: price(100, 100), whom: Whom::Any }
}

#[test]
fn a_request_waits_until_a_window_opens() {
    let mut board = Board::default();
    assert!(board.submit(Ticket(1), need(10, 10)));
    assert!(board.place().is_empty());
    board.offer(key(1), offer(1, 100, price(1, 1)));
    let placed = board.place();
    assert_eq!(placed, vec![Placement { ticket: Ticket(1), key: key(1), blocks: 2, ask: price(1, 1) }]);
    board.submit(Ticket(2), need(10, 10));
    assert!(board.place().is_empty(), "the window holds one sequence");
    board.grant(key(1), Window { sequences: 2, blocks: 102 });
    assert_eq!(board.place().len(), 1);
}

#[test]
fn who_is_suspect_is_given_nothing_and_still_serves() {
    let mut board = Board::default();
    board.offer(key(1), offer(4, 100, price(1, 1)));
    board.suspect(key(1), true);
    board.suspect(key(2), true);
    board.submit(Ticket(1), need(10, 10));
    assert!(board.place().is_empty() && board.is_served(&need(10, 10)), "it is waited for");
    board.offer(key(2), offer(4, 100, price(9, 9)));
    assert_eq!(board.place()[0].key, key(2), "a dearer one that speaks");
    board.suspect(key(1), false);
    board.submit(Ticket(2), need(10, 10));
    assert_eq!(board.place()[0].key, key(1));
}

#[test]
fn who_has_run_already_waits_by_its_age_and_is_not_shut_out() {
    let mut board = Board::default();
    (2..=WAITING_MAX as u64 + 1).for_each(|ticket| assert!(board.submit(Ticket(ticket), need(10, 10))));
    assert!(!board.submit(Ticket(9_000), need(10, 10)));
    assert!(board.submit(Ticket(1), need(10, 10)), "it came before all of them");
    board.offer(key(1), offer(2, 100, price(1, 1)));
    let placed: Vec<_> = board.place().iter().map(|p| p.ticket.0).collect();
    assert_eq!((placed, board.waiting()), (vec![1, 2], WAITING_MAX - 1));
}

#[test]
fn a_successor_goes_to_another_replica_or_to_the_one_it_was_on() {
    let mut board = Board::default();
    let whom = |whom| Need { whom, ..need(10, 10) };
    board.offer(key(1), offer(8, 100, price(1, 1)));
    board.submit(Ticket(1), whom(Whom::Not(key(1))));
    assert!(board.place().is_empty() && !board.is_served(&whom(Whom::Not(key(1)))));
    board.offer(key(2), offer(8, 100, price(9, 9)));
    for (ticket, who, at) in [(2, Whom::Only(key(2)), key(2)), (3, Whom::Only(key(1)), key(1))] {
        board.submit(Ticket(ticket), whom(who));
        let placed: Vec<_> = board.place().iter().map(|p| (p.ticket, p.key)).collect();
        assert_eq!(placed.last(), Some(&(Ticket(ticket), at)));
        // The first one went to the other replica as soon as there was one.
        assert_eq!(placed.len(), if ticket == 2 { 2 } else { 1 });
        assert!(ticket != 2 || placed[0] == (Ticket(1), key(2)));
    }
    board.lose(key(1));
    board.submit(Ticket(4), whom(Whom::Only(key(1))));
    assert!(board.place().is_empty(), "nobody else will do");
}

#[test]
fn texts_go_to_encoders_and_prompts_to_others() {
    let mut board = Board::default();
    let encoder = Offer { task: Task::Embed, ..offer(4, 100, price(1, 1)) };
    board.offer(key(1), encoder);
    board.offer(key(2), offer(4, 100, price(1, 1)));
    let text = Need { task: Task::Embed, ..need(20, 0) };
    board.submit(Ticket(1), need(10, 10));
    board.submit(Ticket(2), text);
    let placed: Vec<_> = board.place().iter().map(|p| (p.ticket.0, p.key.link.0, p.blocks)).collect();
    assert_eq!(placed, [(1, 2, 2), (2, 1, 2)]);
    board.lose(key(1));
    assert!(!board.is_served(&text) && board.is_served(&need(10, 10)));
}

#[test]
fn an_old_grant_that_arrives_late_changes_nothing() {
    let mut board = Board::default();
    board.offer(key(1), offer(2, 100, price(1, 1)));
    board.grant(key(1), Window { sequences: 3, blocks: 110 });
    board.grant(key(1), Window { sequences: 2, blocks: 100 });
    (1..=4).for_each(|t| assert!(board.submit(Ticket(t), need(1, 1))));
    assert_eq!(board.place().len(), 3);
}

#[test]
fn requests_spread_over_replicas_by_their_load() {
    let mut board = Board::default();
    board.offer(key(1), offer(4, 1_000, price(1, 1)));
    board.offer(key(2), offer(12, 1_000, price(1, 1)));
    (1..=8).for_each(|t| assert!(board.submit(Ticket(t), need(1, 1))));
    let placed = board.place();
    let on = |link| placed.iter().filter(|p| p.key == key(link)).count();
    assert_eq!((on(1), on(2)), (2, 6), "each is half full");
}

#[test]
fn a_price_limit_excludes_and_does_not_hold_others_up() {
    let mut board = Board::default();
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
    let mut board = Board::default();
    board.offer(key(1), offer(10, 1_000, price(1, 1)));
    board.offer(key(2), with_adapters(&[7], offer(10, 1_000, price(2, 2))));
    (1..=4).for_each(|t| assert!(board.submit(Ticket(t), adapted(7, 1, 1))));
    board.submit(Ticket(5), adapted(8, 1, 1));
    assert!(board.place().iter().all(|p| p.key == key(2)) && board.waiting() == 1);
    assert!(board.is_served(&adapted(7, 1, 1)) && !board.is_served(&adapted(8, 1, 1)));
    let quote = |adapter| board.quote(&adapted(adapter, 1, 1).model);
    assert_eq!((quote(7).replicas, quote(7).lowest_ask, quote(8).replicas), (1, Some(price(2, 2)), 0));
    assert_eq!((board.quote(&BASE).replicas, board.quote(&BASE).lowest_ask), (2, Some(price(1, 1))));
}

#[test]
fn a_base_and_its_adapters_are_served_in_one_order() {
    let mut board = Board::default();
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
    let mut board = Board::default();
    board.offer(key(1), with_adapters(&[7], offer(10, 10, price(1, 1))));
    board.submit(Ticket(1), need(16 * 8, 16));
    board.place();
    board.submit(Ticket(2), adapted(7, 16 * 8, 16));
    board.submit(Ticket(3), need(8, 8));
    assert!(board.place().is_empty());
}

#[test]
fn a_large_request_is_not_overtaken_for_ever() {
    let mut board = Board::default();
    board.offer(key(1), offer(10, 10, price(1, 1)));
    board.submit(Ticket(1), need(16 * 8, 16));
    assert_eq!(board.place().len(), 1);
    board.submit(Ticket(2), need(16 * 8, 16));
    board.submit(Ticket(3), need(8, 8));
    assert!(board.place().is_empty(), "one block is free, and it is kept for the older request");
    board.grant(key(1), Window { sequences: 11, blocks: 19 });
    let order: Vec<Ticket> = board.place().iter().map(|p| p.ticket).collect();
    assert_eq!(order, vec![Ticket(2), Ticket(3)]);
}

#[test]
fn requests_that_no_replica_can_ever_hold_are_not_served() {
    let mut board = Board::default();
    board.offer(key(1), offer(10, 10, price(1, 1)));
    assert!(board.is_served(&need(100, 60)));
    assert!(!board.is_served(&need(100, 61)), "eleven blocks");
    assert!(!board.is_served(&Need { model: Computes { weights: WeightsHash([2; 32]), adapter: None }, ..need(1, 1) }));
    board.drain(key(1));
    assert!(!board.is_served(&need(1, 1)));
}

#[test]
fn the_queue_is_bounded() {
    let mut board = Board::default();
    (0..WAITING_MAX as u64).for_each(|t| assert!(board.submit(Ticket(t), need(1, 1))));
    assert!(!board.submit(Ticket(9_999), need(1, 1)));
    assert!(board.withdraw(Ticket(7)));
    assert!(!board.withdraw(Ticket(7)));
    assert!(board.submit(Ticket(9_999), need(1, 1)));
}

#[derive(Clone, Debug)]
enum Event {
    Offer(u64, u64, u64),
    Submit(u32, u32),
    End(usize),
    Withdraw(usize),
    Lose(u64),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        (0u64..4, 1u64..6, 1u64..40).prop_map(|(l, s, b)| Event::Offer(l, s, b)),
        (1u32..200, 1u32..200).prop_map(|(t, n)| Event::Submit(t, n)),
        any::<usize>().prop_map(Event::End),
        any::<usize>().prop_map(Event::Withdraw),
        (0u64..4).prop_map(Event::Lose),
    ]
}

proptest! {
    /// Against a plain model of each replica: windows are never overdrawn, and every request is placed at most once.
    #[test]
    fn windows_are_never_overdrawn(events in prop::collection::vec(event(), 1..300)) {
        let mut board = Board::default();
        let mut capacity: BTreeMap<ReplicaKey, Window> = BTreeMap::new();
        let mut granted: BTreeMap<ReplicaKey, Window> = BTreeMap::new();
        let mut running: Vec<Placement> = Vec::new();
        let mut waiting: Vec<Ticket> = Vec::new();
        let mut next = 0;
        for event in events {
            match event {
                Event::Offer(link, sequences, blocks) => {
                    let window = Window { sequences, blocks };
                    board.offer(key(link), offer(sequences, blocks, price(1, 1)));
                    running.retain(|p| p.key != key(link));
                    capacity.insert(key(link), window);
                    granted.insert(key(link), window);
                }
                Event::Submit(tokens, max_new) => {
                    next += 1;
                    prop_assert!(board.submit(Ticket(next), need(tokens, max_new)));
                    waiting.push(Ticket(next));
                }
                Event::End(which) if !running.is_empty() => {
                    let ended = running.swap_remove(which % running.len());
                    let window = granted.get_mut(&ended.key).unwrap();
                    window.sequences += 1;
                    window.blocks += u64::from(ended.blocks);
                    board.grant(ended.key, *window);
                }
                Event::Withdraw(which) if !waiting.is_empty() => {
                    let ticket = waiting.swap_remove(which % waiting.len());
                    prop_assert!(board.withdraw(ticket));
                }
                Event::Lose(link) => {
                    board.lose_link(LinkId(link));
                    capacity.remove(&key(link));
                    running.retain(|p| p.key != key(link));
                }
                Event::End(_) | Event::Withdraw(_) => {}
            }
            for placement in board.place() {
                let at = waiting.iter().position(|t| *t == placement.ticket);
                prop_assert!(at.is_some(), "placed twice or never submitted");
                waiting.remove(at.unwrap());
                running.push(placement);
            }
            prop_assert_eq!(board.waiting(), waiting.len());
            for (key, window) in &capacity {
                let here = running.iter().filter(|p| p.key == *key);
                prop_assert!(here.clone().count() as u64 <= window.sequences);
                prop_assert!(here.map(|p| u64::from(p.blocks)).sum::<u64>() <= window.blocks);
            }
        }
    }
}
