use super::*;

fn charge(weights: WeightsHash, tenant: u64, tokens: i64) -> Charge {
    Charge { weights, class: ServiceClass::Standard, tenant: Tenant(tenant), tokens }
}

#[test]
fn others_are_told_what_a_request_got_in_the_end() {
    let mut board = Still::default();
    board.offer(key(1), offer(4, 100, price(1, 1)));
    board.submit(Ticket(1), need(10, 200));
    board.submit(Ticket(2), Need { tenant: Tenant(2), ..need(20, 200) });
    assert_eq!(board.take_charges(9), [], "who waits has got nothing");
    assert_eq!(board.place().len(), 2);
    let foreseen = board.take_charges(1).into_iter().chain(board.take_charges(9));
    let mut foreseen: Vec<Charge> = foreseen.collect();
    foreseen.sort_by_key(|charge| charge.tenant);
    assert_eq!(foreseen, [charge(W, 1, 10 + 128), charge(W, 2, 20 + 128)]);
    board.ended(key(1), Ticket(1), Ended { output: 30, is_lost: false }, ZERO);
    assert_eq!(board.take_charges(9), [charge(W, 1, 30 - 128)]);
    assert_eq!(board.take_charges(9), []);
}

#[test]
fn who_is_served_elsewhere_waits_here_for_who_is_not() {
    let mut board = Still::default();
    board.offer(key(1), offer(2, 100, price(1, 1)));
    board.charge_elsewhere(&[charge(W, 1, 5_000)]);
    (1..=3).for_each(|ticket| assert!(board.submit(Ticket(ticket), need(10, 10))));
    board.submit(Ticket(4), Need { tenant: Tenant(2), ..need(10, 10) });
    let told: Vec<_> = board.place().iter().map(|p| (p.ticket.0, p.reasons.served_tokens)).collect();
    assert_eq!(told, [(4, 0), (1, 5_000)]);
    assert_eq!(board.take_charges(9).len(), 2, "others know of their own service");
}

#[test]
fn models_that_are_not_known_here_are_left_out() {
    let mut board = Still::default();
    let strange = WeightsHash([9; 32]);
    board.charge_elsewhere(&[charge(strange, 1, 5_000)]);
    assert!(board.wanted(ZERO).is_empty(), "nothing is kept of it");
    board.submit(Ticket(1), Need { model: Computes { weights: strange, adapter: None }, ..need(10, 10) });
    board.offer(key(1), Offer { weights: strange, ..offer(1, 100, price(1, 1)) });
    assert_eq!(board.place()[0].reasons.served_tokens, 0, "whoever comes first begins level");
}
