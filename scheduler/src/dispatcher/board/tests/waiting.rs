use super::*;

/// Those that wait for a fast replica with their beginning in its cache, though a slow one has room.
fn crowd(needs: &[(u64, ServiceClass)]) -> Still {
    let mut board = Still::default();
    board.offer(key(1), offer(1, 1_000, price(1, 1)));
    board.offer(key(2), offer(9, 1_000, price(1, 1)));
    for n in 0..200 {
        board.stepped(key(1), steps(1 + n % 32, 5));
        board.stepped(key(2), steps(1 + n % 32, 60));
    }
    board.stepped(key(1), Steps { cached: &[7], ..Steps::default() });
    let need = |class| Need { chain: Arc::new([7]), class, ..need(20, 100) };
    assert!(board.submit(Ticket(0), need(ServiceClass::Standard)));
    assert_eq!(placed(&mut board, ZERO), [(0, key(1))]);
    needs.iter().for_each(|(ticket, class)| assert!(board.submit(Ticket(*ticket), need(*class))));
    assert_eq!(placed(&mut board, ZERO), []);
    assert_eq!(board.waiting(), needs.len());
    board
}

fn placed(board: &mut Still, now: Duration) -> Vec<(u64, ReplicaKey)> {
    board.0.place(now).iter().map(|placement| (placement.ticket.0, placement.key)).collect()
}

#[test]
fn who_waits_for_a_better_one_goes_there_when_it_has_room() {
    let mut board = crowd(&[(1, ServiceClass::Standard), (2, ServiceClass::Interactive)]);
    board.grant(key(2), Window { sequences: 9, blocks: 1_001 });
    assert_eq!(placed(&mut board, ZERO), [], "what others have is no matter");
    for (room, ticket) in [(2, 2), (3, 1)] {
        board.grant(key(1), Window { sequences: room, blocks: 1_000 });
        assert_eq!(placed(&mut board, ZERO), [(ticket, key(1))], "the urgent one first, and one for each room");
    }
    assert_eq!(board.waiting(), 0);
}

#[test]
fn who_waits_for_a_better_one_goes_elsewhere_when_that_takes_longer_than_it_saves() {
    let mut board = crowd(&[(1, ServiceClass::Standard)]);
    for (after, goes) in [(S, None), (3 * S, None), (20 * S, Some((1, key(2))))] {
        board.expire(after);
        assert_eq!(placed(&mut board, after).first().copied(), goes, "{after:?}");
    }
}

#[test]
fn who_waits_for_one_that_is_gone_goes_elsewhere_at_once() {
    let leave: [fn(&mut Board); 4] = [
        |board| board.lose(key(1)),
        |board| board.drain(key(1)),
        |board| board.suspect(key(1), true),
        |board| board.offer(key(1), offer(0, 0, price(1, 1)), ZERO),
    ];
    for leave in leave {
        let mut board = crowd(&[(1, ServiceClass::Standard)]);
        leave(&mut board);
        assert_eq!(placed(&mut board, ZERO), [(1, key(2))]);
    }
}

#[test]
fn who_waits_for_a_better_one_can_be_withdrawn() {
    let mut board = crowd(&[(1, ServiceClass::Standard), (2, ServiceClass::Standard)]);
    assert!(board.withdraw(Ticket(1)) && !board.withdraw(Ticket(1)));
    board.grant(key(1), Window { sequences: 2, blocks: 1_000 });
    assert_eq!((placed(&mut board, ZERO), board.waiting()), (vec![(2, key(1))], 0));
}
