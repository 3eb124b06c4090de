use proptest::prelude::*;

use super::*;

const F16: Numerics = Numerics::exact(1, KvFormat::F16);
const Q8: Numerics = Numerics::exact(1, KvFormat::Q8_0);
const CLASSES: [Numerics; 3] = [F16, Q8, Numerics { tensor_cores: Some(90), ..F16 }];

fn keeping(numerics: Numerics, ask: Price) -> Offer {
    Offer { numerics, ..offer(4, 100, ask) }
}

/// The rest of what was begun so.
fn begun(numerics: Numerics) -> Need {
    Need { numerics: Some(numerics), has_begun: true, ..need(20, 10) }
}

fn placed(board: &mut Still) -> Vec<(u64, ReplicaKey, Numerics, u32)> {
    board.place().iter().map(|p| (p.ticket.0, p.key, p.numerics, p.reasons.other_numerics)).collect()
}

#[test]
fn what_was_begun_goes_on_where_it_is_computed_alike_and_what_is_new_anywhere() {
    let mut board = Still::default();
    (1..=9).for_each(|link| board.offer(key(link), keeping(Q8, price(1, 1))));
    board.stepped(key(1), Steps { cached: &[7], ..Steps::default() });
    board.offer(key(10), keeping(F16, price(99, 99)));
    let rest = |numerics| Need { chain: Arc::new([7]), ..begun(numerics) };
    board.submit(Ticket(1), rest(F16));
    assert_eq!(placed(&mut board), [(1, key(10), F16, 9)], "though others are cheaper and know its beginning");
    board.submit(Ticket(2), rest(Q8));
    assert_eq!(placed(&mut board), [(2, key(1), Q8, 1)]);
    board.submit(Ticket(3), need(20, 10));
    let new = placed(&mut board);
    assert_eq!((new[0].2, new[0].3), (Q8, 0), "the first token's maker decides, and nobody is left out");
}

#[test]
fn the_rest_waits_for_one_that_computes_alike_and_is_told_if_none_comes() {
    let mut board = Still::default();
    board.offer(key(1), keeping(Q8, price(1, 1)));
    board.submit(Ticket(1), begun(F16));
    assert_eq!(placed(&mut board), []);
    board.submit(Ticket(2), need(20, 10));
    assert_eq!(placed(&mut board).len(), 1, "it holds nobody up");
    board.offer(key(2), keeping(F16, price(1, 1)));
    assert_eq!(placed(&mut board), [(1, key(2), F16, 1)]);
    // Who leaves is no one, and who could load the model has it already.
    board.drain(key(2));
    board.expect(W, true);
    board.submit(Ticket(3), begun(F16));
    assert_eq!((placed(&mut board), board.expire(4 * S)), (vec![], vec![]));
    assert_eq!(board.expire(5 * S), [(Ticket(3), Turned::Unmatched)]);
    board.lose(key(1));
    board.submit(Ticket(4), begun(F16));
    assert_eq!(board.expire(5 * S), [], "where nobody has it, whoever loads it may compute alike");
    board.expect(W, false);
    assert_eq!(board.expire(6 * S), [], "it was told when to look again");
    assert_eq!(board.expire(120 * S), [(Ticket(4), Turned::Unserved)]);
}

#[test]
fn one_that_is_full_or_suspect_is_waited_for() {
    let mut board = Still::default();
    board.offer(key(1), keeping(Q8, price(1, 1)));
    board.offer(key(2), Offer { window: Window { sequences: 0, blocks: 100 }, ..keeping(F16, price(1, 1)) });
    board.offer(key(3), keeping(F16, price(1, 1)));
    board.suspect(key(3), true);
    board.submit(Ticket(1), begun(F16));
    assert_eq!((placed(&mut board), board.expire(6 * S)), (vec![], vec![]));
    board.suspect(key(3), false);
    assert_eq!(placed(&mut board), [(1, key(3), F16, 1)]);
    assert_eq!(board.quote_for(&begun(F16)).replicas, 2);
    assert_eq!(board.quote(&BASE).replicas, 3);
}

#[test]
fn a_successor_computes_alike_and_has_the_adapter() {
    let mut board = Still::default();
    let rest = |whom| Need { whom, ..begun(F16) };
    board.offer(key(1), keeping(F16, price(1, 1)));
    board.offer(key(2), with_adapters(&[5], keeping(Q8, price(1, 1))));
    board.submit(Ticket(1), rest(Whom::Not(key(1))));
    board.submit(Ticket(2), rest(Whom::Only(key(2))));
    let adapted = Need { numerics: Some(F16), ..adapted(5, 20, 10) };
    board.submit(Ticket(3), adapted);
    assert_eq!(placed(&mut board), []);
    let late = board.expire(5 * S);
    assert_eq!(late, [(Ticket(1), Turned::Unsuited), (Ticket(2), Turned::Unsuited), (Ticket(3), Turned::Unmatched)]);
    board.submit(Ticket(4), rest(Whom::Not(key(1))));
    board.offer(key(3), keeping(F16, price(1, 1)));
    assert_eq!(placed(&mut board), [(4, key(3), F16, 1)]);
}

proptest! {
    /// Whatever comes and goes, what was begun is only placed where it is computed alike, others are counted, and nobody waits
    /// while one that computes alike has room.
    #[test]
    fn classes_are_never_mixed(acts in prop::collection::vec((0u8..6, 0u64..8, 0usize..4), 1..120)) {
        let mut board = Still::default();
        let (mut there, mut room) = (BTreeMap::<u64, Numerics>::new(), BTreeMap::<u64, u64>::new());
        let mut waiting = BTreeMap::new();
        for (ticket, (act, link, class)) in acts.into_iter().enumerate() {
            match (act, CLASSES.get(class)) {
                (0..2, Some(numerics)) => {
                    board.offer(key(link), keeping(*numerics, price(1 + link, 1)));
                    there.insert(link, *numerics);
                    room.insert(link, 4);
                }
                (2, _) => {
                    board.lose(key(link));
                    there.remove(&link);
                    room.remove(&link);
                }
                (_, numerics) => {
                    let need = Need { numerics: numerics.copied(), has_begun: numerics.is_some(), ..need(20, 10) };
                    prop_assert!(board.submit(Ticket(ticket as u64), need));
                    waiting.insert(ticket as u64, numerics.copied());
                }
            }
            for (ticket, at, numerics, others) in placed(&mut board) {
                let wanted = waiting.remove(&ticket).unwrap();
                prop_assert_eq!(there.get(&at.link.0), Some(&numerics));
                prop_assert!(wanted.is_none_or(|wanted| wanted == numerics));
                let left_out = there.values().filter(|there| wanted.is_some_and(|wanted| wanted != **there)).count();
                prop_assert_eq!(others as usize, left_out);
                *room.get_mut(&at.link.0).unwrap() -= 1;
            }
            let has_room = |wanted: &Option<Numerics>| {
                there.iter().any(|(link, there)| room[link] > 0 && wanted.is_none_or(|wanted| wanted == *there))
            };
            prop_assert!(!waiting.values().any(has_room));
        }
    }
}
